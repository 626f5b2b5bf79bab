"""The newly installed version, asked whether it can go on with a mount, or going on with it.

    python -m fanoutfs.keeper.successor check     < State as JSON   > State to begin with
    python -m fanoutfs.keeper.successor run FUSE STATE POSITIONS LOCK MOUNTPOINT

Started by the keeper before it (see handover), not by people.  `check` imports everything that will run: what is
missing or broken is found while the old version still serves.
"""

import dataclasses
import importlib
import os
import sys
from typing import Final

from fanoutfs.errors import FanoutError, UsageError
from fanoutfs.keeper import handover

_PARTS: Final = ("fanoutfs.keeper.main", "fanoutfs.core.main", "fanoutfs.front.main", "fanoutfs.front.pusher")


def check() -> int:
    """Say on stdout what this version would begin with, or on stderr why it cannot."""
    try:
        state = handover.State.decode(sys.stdin.buffer.read())
        for part in _PARTS:
            importlib.import_module(part)
        if state.recipe is None:
            config = handover.config_of(state)
        else:
            wanted = handover.successor_settings(state.recipe, os.environ)
            config = dataclasses.replace(wanted, mountpoint=state.mountpoint)
            if reason := handover.differs(state, config):
                raise UsageError(reason)
        sys.modules["fanoutfs.keeper.main"].check_settings(config)
    except FanoutError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    state = dataclasses.replace(state, settings=handover.settings_as_text(config))
    sys.stdout.buffer.write(state.encode())
    return 0


def run(numbers: list[str]) -> int:
    """Take over."""
    from fanoutfs.keeper.main import serve  # noqa: PLC0415  `check` imports it with the others

    fuse_fd, state_fd, positions_fd, lock_fd = (int(number) for number in numbers)
    for descriptor in (fuse_fd, state_fd, positions_fd, lock_fd):
        os.set_inheritable(descriptor, False)
    inherited = handover.inherit(dict(zip(handover.NAMES, (fuse_fd, state_fd, positions_fd), strict=True)))
    if inherited is None:
        return FanoutError.exit_code
    inherited = dataclasses.replace(inherited, lock_fd=lock_fd)
    return serve(handover.config_of(inherited.state), -1, recipe=inherited.state.recipe, inherited=inherited)


def main(words: list[str]) -> int:
    """Do what the first word says."""
    return check() if words[0] == "check" else run(words[1:5])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

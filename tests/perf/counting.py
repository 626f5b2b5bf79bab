"""How many messages an operation costs: exact numbers, read from the daemon's counters before and after.

A request that needed the core first is counted twice: `read_relayed` when it is sent on, `read_answered` when it is
answered.  Reading the counters sends no message: the control socket is no part of the mount.
"""

import contextlib
from collections.abc import Iterator

from tests.support.mounts import Mount

BACKEND = ("backend_gets", "backend_lists", "backend_heads")


class Counted(dict[str, int]):
    """Messages by name, and the requests to the backend; filled in when the block ends."""

    def __init__(self) -> None:
        super().__init__()
        self.backend: dict[str, int] = {}


@contextlib.contextmanager
def counted(mount: Mount) -> Iterator[Counted]:
    """Count what a block sends to the daemon and the daemon to the backend."""
    result = Counted()
    before = mount.counters()
    yield result
    after = mount.counters()
    for name, value in after.items():
        change = value - before.get(name, 0)  # a message never sent has no counter yet
        if change and name.startswith("messages_"):
            result[name.removeprefix("messages_")] = change
        elif change and name in BACKEND:
            result.backend[name.removeprefix("backend_")] = change

"""What one keeper leaves to the next one of the same mount, so that the mount and every open file live on.

Two ways lead from one keeper to the next:

* by exec (`fanoutfs upgrade`): the same process becomes the newly installed version.  Fronts and core serve until the
  new keeper replaces them, and are its children still.
* through the service manager (a restart, also after kill -9): it holds the descriptors while nobody serves; requests
  wait in the kernel.

Three descriptors are handed over, in an exec also the lock of the cache:

    fuse        /dev/fuse, open on the connection
    state       a memfd with one JSON object, `State`: what the mount is, and the kernel's INIT request
    positions   a memfd, observe.positions: where listings stand

The next keeper begins a new generation, as after the death of a core: the kernel delivers again what is not answered.
The JSON is read by later versions: keys are added, never changed; settings stand as a user would write them.
"""

import contextlib
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from fanoutfs.backend import config_root
from fanoutfs.config.layers import settle
from fanoutfs.config.load import SETTINGS, default_of, show_value
from fanoutfs.config.recipe import Recipe
from fanoutfs.config.schema import MountConfig
from fanoutfs.errors import FanoutError, NotMountedError, UsageError
from fanoutfs.keeper import mount as attach
from fanoutfs.observe.sdnotify import ServiceManager

log = logging.getLogger(__name__)

FUSE: Final = "fuse"
STATE: Final = "state"
POSITIONS: Final = "positions"
NAMES: Final = (FUSE, STATE, POSITIONS)

HELD_BACK: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)
"""Blocked across an exec: the new keeper has no handlers yet."""

FIXED: Final = (
    *("cache_dir", "prefix", "endpoint_url", "read_only", "allow_other", "noexec", "foreground", "log_file"),
    *("uid", "gid", "file_mode", "dir_mode", "small_file_size", "object_attributes"),
)
"""Settings that the mount itself, what the kernel knows, or the index depends on.  All others can change live."""


@dataclass(frozen=True, slots=True)
class State:
    """What a mount is.

    root: identity of the volume and prefix of all keys.  device: "major:minor" in the mount table.  init: the kernel's
    INIT request.  children: in an exec, the processes of the keeper, the core first (0: there is none).
    """

    source: str
    mountpoint: Path
    root: tuple[str, str]
    settings: Mapping[str, str]
    recipe: Recipe | None
    device: str
    init: bytes
    generation: int
    children: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(
            {
                "source": self.source,
                "mountpoint": os.fspath(self.mountpoint),
                "root": self.root,
                "settings": dict(self.settings),
                "recipe": None if self.recipe is None else self.recipe.to_json(),
                "device": self.device,
                "init": self.init.hex(),
                "generation": self.generation,
                "children": self.children,
            }
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> "State":
        """Undo `encode`.  Raises ValueError, KeyError, TypeError for what is none."""
        found: dict[str, Any] = json.loads(data)
        return cls(
            source=found["source"],
            mountpoint=Path(found["mountpoint"]),
            root=(found["root"][0], found["root"][1]),
            settings=found["settings"],
            recipe=None if found["recipe"] is None else Recipe.from_json(found["recipe"]),
            device=found["device"],
            init=bytes.fromhex(found["init"]),
            generation=int(found["generation"]),
            children=tuple(found["children"]),
        )


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a keeper was handed.  lock_fd: -1 if the lock of the cache is to be taken anew."""

    state: State
    fuse_fd: int
    state_fd: int
    positions_fd: int
    lock_fd: int = -1

    @property
    def is_by_exec(self) -> bool:
        """Tell whether this process was the keeper before, whose children are its own."""
        return self.lock_fd >= 0

    def close(self) -> None:
        """Let go of all of it."""
        for descriptor in (self.fuse_fd, self.state_fd, self.positions_fd, self.lock_fd):
            if descriptor >= 0:
                os.close(descriptor)


def settings_as_text(config: MountConfig) -> dict[str, str]:
    """Return every setting as a user would write it; what is unset is left out."""
    values = {name: getattr(config, name) for name in SETTINGS}
    return {name: show_value(name, value) for name, value in values.items() if value is not None}


def config_of(state: State) -> MountConfig:
    """Return the settings of a state.  One that this version does not know any more is dropped."""
    known = {name: text for name, text in state.settings.items() if name in SETTINGS}
    return settle(state.source, state.mountpoint, known, {}).config


def inherit(descriptors: Mapping[str, int]) -> Inheritance | None:
    """Return what was handed over under NAMES, None if something is missing or makes no sense."""
    try:
        numbers = [descriptors[name] for name in NAMES]
        state = State.decode(os.pread(descriptors[STATE], 1 << 20, 0))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if descriptors:
            log.warning("what the keeper before left cannot be used: %r", error)
            for descriptor in descriptors.values():
                os.close(descriptor)
        return None
    return Inheritance(state, *numbers)


def obstacle(inherited: Inheritance, config: MountConfig) -> str:
    """Return why a mount cannot go on with these settings; "" if it can."""
    state = inherited.state
    if reason := differs(state, config):
        return reason
    info = attach.find_mount(state.mountpoint)
    if info is None or info.device != state.device:
        return "it has been unmounted"
    poller = select.poll()
    poller.register(inherited.fuse_fd, 0)
    return "its connection has ended" if poller.poll(0) else ""


def differs(state: State, config: MountConfig) -> str:
    """Return what of the settings cannot change while it is mounted and would; "" for nothing."""
    if state.mountpoint != config.mountpoint:
        return f"it is mounted on {state.mountpoint}"
    if state.source != config.source or state.root != config_root(config):
        return f"its source is {state.source}"
    for name in FIXED:
        new = show_value(name, getattr(config, name))
        # What the version before did not know was as it is by default.
        old = state.settings.get(name, show_value(name, default_of(name)))
        if old != new:
            return f"{name} cannot change while it is mounted (it is {old or 'unset'}, not {new or 'unset'})"
    return ""


def give_up(inherited: Inheritance, manager: ServiceManager) -> None:
    """End an inherited mount that cannot go on."""
    for name in NAMES:
        manager.forget(name)
    where = inherited.state.mountpoint
    info = attach.find_mount(where)
    if info is not None and info.device == inherited.state.device:
        with contextlib.suppress(NotMountedError):
            attach.unmount(where, lazy=True)
    inherited.close()


def write_state(descriptor: int, state: State) -> None:
    """Replace what the memfd says.  Its readers never run at the same time."""
    data = state.encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, data, 0)


def successor_settings(recipe: Recipe, environment: Mapping[str, str]) -> MountConfig:
    """Return what the user's words mean now.  Raises UsageError."""
    from fanoutfs.config.files import read_file  # noqa: PLC0415  tomllib

    file = read_file(Path(recipe.config_file)) if recipe.config_file else None
    return settle(recipe.source, Path(recipe.mountpoint), recipe.options, environment, file).config


def check_successor(state: State) -> bytes:
    """Ask the installed version whether it can go on with this mount; return the state it would begin with.

    Raises UsageError with its words.  Takes as long as Python needs to import everything.
    """
    import subprocess  # noqa: PLC0415

    try:
        done = subprocess.run(
            [sys.executable, "-m", "fanoutfs.keeper.successor", "check"],
            input=state.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"the installed version cannot be started: {error}") from None
    if done.returncode:
        lines = os.fsdecode(done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        raise UsageError(f"the installed version does not take over: {lines[-1]}")
    try:
        State.decode(done.stdout)
    except (ValueError, KeyError, TypeError) as error:
        raise FanoutError(f"the installed version answers what we do not understand: {error!r}") from None
    return done.stdout


def become_successor(inherited: Inheritance) -> NoReturn:
    """Replace this process by the installed version.  Raises OSError if that does not even begin."""
    descriptors = [inherited.fuse_fd, inherited.state_fd, inherited.positions_fd, inherited.lock_fd]
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    numbers = [str(descriptor) for descriptor in descriptors]
    where = os.fspath(inherited.state.mountpoint)  # for who looks at `ps`
    words = [sys.executable, "-m", "fanoutfs.keeper.successor", "run", *numbers, where]
    os.execv(sys.executable, words)  # noqa: S606 - our own interpreter, no shell is wanted

"""What a keeper does all its life so that another can follow it.  See handover for what is handed over."""

import logging
import os
import signal
from dataclasses import replace
from typing import Final

from fanoutfs.backend import config_root
from fanoutfs.config.recipe import Recipe
from fanoutfs.config.schema import MountConfig
from fanoutfs.errors import UsageError
from fanoutfs.keeper import handover
from fanoutfs.keeper import mount as attach
from fanoutfs.keeper.generation import Mounted
from fanoutfs.keeper.handover import Inheritance, State
from fanoutfs.observe.sdnotify import ServiceManager
from fanoutfs.wire.kernel import InitFlag

log = logging.getLogger(__name__)

_NEEDS: Final = "only Linux 6.9 and later deliver again what is not answered when the processes are replaced"


class Succession:
    """Keeps ready what the next keeper needs.  Keeper only."""

    def __init__(
        self,
        config: MountConfig,
        recipe: Recipe | None,
        manager: ServiceManager,
        positions_fd: int,
        lock_fd: int,
        inherited: Inheritance | None,
    ) -> None:
        self._config = config
        self._recipe = recipe
        self._manager = manager
        self._positions_fd = positions_fd
        self._lock_fd = lock_fd
        self._state: State | None = None if inherited is None else replace(inherited.state, children=())
        self._fuse_fd = -1 if inherited is None else inherited.fuse_fd
        # The same file for all keepers of a mount, so that the service manager need not be told of another one.
        self._state_fd = os.memfd_create("fanoutfs-state", os.MFD_CLOEXEC) if inherited is None else inherited.state_fd
        self.is_kept = inherited is not None and manager.keeps_descriptors
        """Whether the service manager holds the mount while nobody serves it."""

    def begin(self, mounted: Mounted, generation: int) -> None:
        """Note what the mount is, and have the service manager hold it."""
        if not mounted.offer.offers(InitFlag.HAS_RESEND):
            return
        info = attach.find_mount(self._config.mountpoint)
        if info is None:
            return  # unmounted already
        self._fuse_fd = mounted.fuse_fd
        self._state = State(
            source=self._config.source,
            mountpoint=self._config.mountpoint,
            root=config_root(self._config),
            settings=handover.settings_as_text(self._config),
            recipe=self._recipe,
            device=info.device,
            init=mounted.init,
            generation=generation,
        )
        handover.write_state(self._state_fd, self._state)
        if self._manager.keeps_descriptors:
            for name, descriptor in zip(handover.NAMES, self._descriptors(), strict=True):
                self._manager.store(name, descriptor)
            self._manager.await_received()
            self.is_kept = True

    def note_generation(self, number: int) -> None:
        """Note that a generation begins: its number says whether the kernel knows of one before."""
        if self._state is not None:
            self._state = replace(self._state, generation=number)
            handover.write_state(self._state_fd, self._state)

    def forget(self) -> None:
        """The mount is gone: nothing is to be handed over."""
        if self.is_kept:
            for name in handover.NAMES:
                self._manager.forget(name)
            self.is_kept = False

    def check_upgrade(self) -> bytes:
        """Return the state with which the installed version would begin.  Raises FanoutError: it would not."""
        if self._state is None:
            raise UsageError(_NEEDS)
        return handover.check_successor(self._state)

    def upgrade(self, checked: bytes, children: tuple[int, ...]) -> None:
        """Become the installed version; returns only if that fails.  checked: from `check_upgrade`."""
        state = replace(State.decode(checked), children=children)
        handover.write_state(self._state_fd, state)
        try:
            handover.become_successor(Inheritance(state, *self._descriptors(), lock_fd=self._lock_fd))
        except OSError as error:
            log.error("the installed version cannot be executed: %s", error)
            for descriptor in (*self._descriptors(), self._lock_fd):
                os.set_inheritable(descriptor, False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, handover.HELD_BACK)
            if self._state is not None:
                handover.write_state(self._state_fd, self._state)

    def _descriptors(self) -> tuple[int, int, int]:
        return self._fuse_fd, self._state_fd, self._positions_fd

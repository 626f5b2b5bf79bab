"""The rules of this mount, asked by inode: policies as last loaded, pins as the index has them.

Core.  Changed by the trio thread, each time by one assignment of a new value, so that worker threads may ask as well
(the small store does, when it gives up a segment).  A policy file that cannot be read leaves the rules as they are.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from fanoutfs.clock import Clock
from fanoutfs.config.policies import Policy, check_places, load_policies
from fanoutfs.config.schema import MountConfig
from fanoutfs.errors import UsageError
from fanoutfs.index.format import Inode
from fanoutfs.index.places import Places
from fanoutfs.index.reader import IndexReader, Transaction
from fanoutfs.index.tiering import PINS, PutPins, unpack_pins
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.tiering.policy import Decision, change_pins, decide, find_policy, is_excluded

log = logging.getLogger(__name__)

_GRAINS: Final = 16
"""Last accesses are written down to this part of the shortest `evict_after`."""


class PolicyBook:
    """Policies and pins."""

    def __init__(
        self,
        *,
        config: MountConfig,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        root_prefix: str,
        clock: Clock,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._root_prefix = root_prefix
        self._clock = clock
        self._upload_delay_s = config.upload_delay
        self._no_upload = config.no_upload_patterns()
        self._mountpoint = config.mountpoint
        self.file: Path | None = config.policy_file
        self.policies: tuple[Policy, ...] = config.policies
        with reader.begin() as txn:
            self.pins: dict[str, bool] = unpack_pins(reader.settings(txn, PINS))
        self.size_of: Callable[[Inode], int] = _recorded_size
        """Returns a file's size as users see it."""
        self.on_change: list[Callable[[], None]] = []
        """Called after policies or pins changed.  No checkpoint."""

    # --- what it says ------------------------------------------------------------------------------------------

    def path(self, ino: int) -> str | None:
        """Return an inode's path relative to the mountpoint; None: no name leads there."""
        with self._reader.begin() as txn:
            return self.path_in(txn, ino)

    def path_in(self, txn: Transaction, ino: int) -> str | None:
        """Return it as one snapshot has it."""
        key = Places.of_reader(self._reader, txn, self._root_prefix).key(ino)
        return None if key is None else key.removeprefix(self._root_prefix).rstrip("/")

    def decide(self, path: str, size_bytes: int) -> Decision:
        """Return what is to become of a file."""
        return decide(self.policies, self.pins, path, size_bytes, self._upload_delay_s)

    def is_excluded(self, path: str) -> bool:
        """Tell whether a name on a path is one that is not uploaded by itself (`--no-upload`)."""
        return is_excluded(path, self._no_upload)

    def is_never(self, path: str, size_bytes: int, *, is_asked: bool) -> bool:
        """Tell whether a file's content is not to be uploaded.  is_asked: somebody asked for it by name."""
        decision = self.decide(path, size_bytes)
        if decision.is_kept_local:
            return True
        return not is_asked and (not decision.is_uploaded or self.is_excluded(path))

    def delay_s(self, path: str, size_bytes: int) -> float:
        """Return how long a file is left alone before it is uploaded; one that never is: the mount's delay."""
        decision = self.decide(path, size_bytes)
        return decision.upload_after_s if decision.is_uploaded else self._upload_delay_s

    def inode_delay_s(self, ino: int) -> float:
        """Return the same for an inode, wherever it is by now."""
        if all(policy.upload_after_s is None for policy in self.policies):
            return self._upload_delay_s
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
            path = None if inode is None else self.path_in(txn, ino)
        return self._upload_delay_s if inode is None or path is None else self.delay_s(path, self.size_of(inode))

    def is_packed(self, key: str, size_bytes: int) -> bool | None:
        """Return whether a policy wants an object's content in the small-file store; None: none says.  Any thread."""
        policies = self.policies
        if all(policy.is_packed is None for policy in policies):
            return None
        path = key.removeprefix(self._root_prefix).rstrip("/")
        policy = find_policy(policies, path, size_bytes)
        return None if policy is None else policy.is_packed

    def upload_class(self, path: str, size_bytes: int) -> str:
        """Return the storage class in which a file is uploaded; "": the store's default."""
        return self.decide(path, size_bytes).upload_class

    @property
    def can_pin(self) -> bool:
        """Tell whether anything may be pinned at all: nobody has to be asked else."""
        return any(self.pins.values()) or any(policy.is_pinned for policy in self.policies)

    def is_pinned(self, ino: int) -> bool:
        """Tell whether what is cached of a file is to stay.  Any thread."""
        if not self.can_pin:
            return False
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
            path = None if inode is None else self.path_in(txn, ino)
        return inode is not None and path is not None and self.decide(path, inode.size_bytes).is_pinned

    @property
    def shortest_age_s(self) -> float | None:
        """Return the shortest `evict_after`; None: no policy has one."""
        return min((each.evict_after_s for each in self.policies if each.evict_after_s is not None), default=None)

    @property
    def access_grain_s(self) -> float | None:
        """Return how exact last accesses are to be written down; None: nobody goes by them."""
        age_s = self.shortest_age_s
        return None if age_s is None else age_s / _GRAINS

    # --- changes -----------------------------------------------------------------------------------------------

    def has_pin_at_or_below(self, path: str) -> bool:
        """Tell whether the path itself, or one below it, was pinned or unpinned."""
        return any(not path or each == path or each.startswith(f"{path}/") for each in self.pins)

    async def pin(self, path: str, *, pinned: bool) -> bool:
        """Pin a path and what is below it, or let it go; False: it was so.  Checkpoint."""
        is_by_policy = any(policy.is_pinned for policy in self.policies)
        changes = change_pins(self.pins, path, pinned=pinned, by_policy=is_by_policy)
        if all(self.pins.get(each) is value for each, value in changes.items()):
            await trio.lowlevel.checkpoint()
            return False
        await self._writer.run(PutPins(changes, self._clock.wall_ns()).apply)
        pins = {each: value for each, value in self.pins.items() if changes.get(each, value) is not None}
        self.pins = pins | {each: value for each, value in changes.items() if value is not None}
        self._tell()
        return True

    def reload(self) -> int:
        """Read the policy file again; return how many policies there are.  Raises UsageError: nothing changed."""
        if self.file is None:
            raise UsageError("this mount was given no file of policies (--policy-file)")
        policies = load_policies(self.file)
        check_places(policies, self._mountpoint)
        self.policies = policies
        log.info("policies loaded file=%s count=%d", self.file, len(self.policies))
        self._tell()
        return len(self.policies)

    def reload_or_keep(self) -> None:
        """Read the file as a core begins: it may have changed since the mount did; a broken one is passed over."""
        if self.file is not None:
            try:
                self.reload()
            except UsageError as error:
                log.warning("policies stay as they were: %s", error)

    def matches(self, path: str, size_bytes: int) -> Policy | None:
        """Return the policy that decides for a file."""
        return find_policy(self.policies, path, size_bytes)

    def _tell(self) -> None:
        for told in self.on_change:
            told()


def _recorded_size(inode: Inode) -> int:
    """Return the size of the object."""
    return inode.size_bytes

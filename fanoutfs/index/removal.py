"""Take names away that the backend does not have any more, a bounded number in one transaction.

Writer thread of the core.  A directory that vanished may have had millions of names below it; readers of fronts and
other writers must not wait for all of them.  What is left between two transactions can still be reached and removed,
also by a core that finds it after a crash.
"""

from dataclasses import dataclass
from typing import Final

from fanoutfs.index.operations import Change, ChangeKind, mark_changed, remove_leaf
from fanoutfs.index.transaction import IndexTransaction

REMOVALS_PER_APPLY: Final = 2000
"""How many names one transaction takes away at most: about 30 ms of the writer's time."""


@dataclass(frozen=True, slots=True)
class RemoveName:
    """Take one name away, with everything below it.  Returns (changes, whether that was all): else apply it again."""

    parent: int
    name: bytes
    now_ns: int

    def apply(self, txn: IndexTransaction) -> tuple[list[Change], bool]:
        known = txn.entry(self.parent, self.name)
        changes: list[Change] = []
        if known is None:
            return changes, True
        is_done = remove_some(txn, self.parent, self.name, known[0], self.now_ns, changes)
        if is_done:
            mark_changed(txn, self.parent, self.now_ns)
        return changes, is_done


def remove_some(txn: IndexTransaction, parent: int, name: bytes, ino: int, now_ns: int, changes: list[Change]) -> bool:
    """Take a name away, and for a directory everything below it, deepest first; the inodes become orphans.

    Adds to `changes` also what is below the name: who holds a vanished directory open must not go on listing it from
    the kernel.  Returns False when `changes` holds REMOVALS_PER_APPLY: the rest is for the next call.
    """
    path = [(parent, name, ino)]
    while path:
        above, gone, gone_ino = path[-1]
        first = txn.first_entry(gone_ino)
        if first is not None:
            path.append((gone_ino, *first))
            continue
        if len(changes) >= REMOVALS_PER_APPLY:
            for reached, _name, _ino in path[1:]:
                mark_changed(txn, reached, now_ns)
            return False
        path.pop()
        remove_leaf(txn, above, gone, gone_ino, now_ns)
        changes.append(Change(ChangeKind.REMOVED, above, gone, gone_ino))
    return True

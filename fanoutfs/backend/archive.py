"""Objects that must be restored before they can be read, and what stores say about them.  Pure.

Sources: Amazon S3 API reference (HeadObject: x-amz-storage-class, x-amz-restore, x-amz-archive-status; RestoreObject);
Azure's and Google's names of their classes.  Google's archive classes are read like any other; Azure's Archive is not.
"""

from enum import Enum
from typing import Final

_ARCHIVE_CLASSES: Final = frozenset(("GLACIER", "DEEP_ARCHIVE", "Archive"))
"""GLACIER_IR is not among them: "instant retrieval" is read at once."""


DEFAULT_CLASS: Final = "STANDARD"
"""What S3 and those who speak like it call it in listings; HEAD says nothing of it."""


def has_to_be_restored(storage_class: str) -> bool:
    """Tell whether objects of a class are not read at once.  One that is restored for some days keeps its class."""
    return storage_class in _ARCHIVE_CLASSES


class Restore(Enum):
    """How an object stands."""

    READABLE = "readable"  # in a class that is read at once
    ARCHIVED = "archived"  # to be restored first
    ONGOING = "ongoing"
    RESTORED = "restored"  # for some days

    @property
    def is_archived(self) -> bool:
        """Tell whether nothing can be read of it now."""
        return self in (Restore.ARCHIVED, Restore.ONGOING)


def restore_state(storage_class: str, restore: str, archive_status: str = "") -> Restore:
    """Return how an object stands by the headers of its HEAD, each "" where the store sent none."""
    if 'ongoing-request="true"' in restore:
        return Restore.ONGOING
    if 'ongoing-request="false"' in restore:
        return Restore.RESTORED
    return Restore.ARCHIVED if has_to_be_restored(storage_class) or archive_status else Restore.READABLE

"""Where a file's bytes are: one word for each file, derived from what the index records.

    remote      only in the object store
    cached      in the store, and here: all of it, or the share that is told with it
    pinned      as cached, and what is here stays
    dirty       the newest bytes are here only, and wait for their upload
    uploading   the same, and they are on their way
    local       the newest bytes are here only, on purpose: they are never uploaded by themselves
    archived    in a storage class from which the store reads nothing before the object was restored

What only its metadata keeps from being clean (a new mode, a new name) has its bytes in the store: it is remote, cached
or pinned, and `reason` says what waits.  A file of no bytes is cached: nothing of it is missing here.
"""

from dataclasses import dataclass
from enum import StrEnum, auto

from fanoutfs.index.format import Dirty


class Tier(StrEnum):
    """The states, in the order in which `tier du` shows them."""

    REMOTE = auto()
    CACHED = auto()
    PINNED = auto()
    DIRTY = auto()
    UPLOADING = auto()
    LOCAL = auto()
    ARCHIVED = auto()


@dataclass(frozen=True, slots=True)
class TierFacts:
    """What decides.

    size_bytes: of the newest content.  cached_bytes: of it, what is here.  has_object: the store has the newest
    content.  what: of the dirty record, None for a clean file.  is_never: not uploaded by itself.  is_pinned: by a pin
    or a policy.
    """

    size_bytes: int
    cached_bytes: int
    has_object: bool
    what: Dirty | None = None
    is_uploading: bool = False
    is_never: bool = False
    is_pinned: bool = False
    is_archived: bool = False


def tier_of(facts: TierFacts) -> Tier:
    """Return the state."""
    if not facts.has_object:
        if facts.is_uploading:
            return Tier.UPLOADING
        return Tier.LOCAL if facts.is_never else Tier.DIRTY
    is_whole = facts.cached_bytes >= facts.size_bytes
    if facts.is_archived and not is_whole:
        return Tier.ARCHIVED
    if facts.is_pinned:
        return Tier.PINNED
    return Tier.CACHED if is_whole or facts.cached_bytes else Tier.REMOTE


def share_cached(facts: TierFacts) -> float:
    """Return which share of a file is here, 0 to 1."""
    return min(1.0, facts.cached_bytes / facts.size_bytes) if facts.size_bytes else 1.0


def reason(facts: TierFacts, *, rule: str, pin: str | None, error: str = "") -> str:
    """Return in one line why a file is where it is.

    rule: which policy decides.  pin: the pinned path that leads to it, if any.  error: why its upload failed.
    """
    tier = tier_of(facts)
    if tier is Tier.LOCAL:
        said = f"never uploaded by itself: {rule}"
    elif tier is Tier.UPLOADING:
        said = "its newest bytes are being uploaded"
    elif tier is Tier.DIRTY:
        said = f"its newest bytes wait for their upload: {rule}"
    elif tier is Tier.ARCHIVED:
        said = "the store refused to read it before it is restored: fanoutfs tier restore"
    elif tier is Tier.PINNED:
        said = f"pinned by {f'a pin of {pin or chr(47)}' if pin is not None else rule}"
        said += "" if facts.cached_bytes >= facts.size_bytes else ", but not all of it is here yet"
    elif tier is Tier.CACHED:
        said = "fetched or written here, and not evicted since"
    else:
        said = "not read since it was evicted, or never"
    if facts.has_object and facts.what is not None:
        said += "; its metadata or its name is still to be told to the store"
    return f"{said}; last failure: {error}" if error else said

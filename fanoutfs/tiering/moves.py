"""What is to be done so that a file is where policy wants it.  Pure.

Never among it: to delete an object, to evict what the store does not have, what is pinned, or what could not be read
again because the object is archived.
"""

from dataclasses import dataclass
from enum import StrEnum, auto

from fanoutfs.tiering.policy import Decision
from fanoutfs.tiering.states import Tier, TierFacts, tier_of


class Move(StrEnum):
    """One thing to do with a file."""

    UPLOAD = auto()  # its time has come, or comes
    EVICT = auto()  # not read for as long as its policy says
    FETCH = auto()  # pinned, and not all of it is here
    RECLASS = auto()  # into the storage class for objects of its age
    REPACK = auto()  # into the small-file store, or out of it


@dataclass(frozen=True, slots=True)
class Ages:
    """Seconds since a file was last read (None: never known to be) and its content was last changed."""

    unread_s: float | None
    unchanged_s: float


def bytes_to_fetch(decision: Decision, facts: TierFacts) -> int:
    """Return how much of a pinned file is missing here and can be read from the store; 0 for all others."""
    can_be_read = facts.has_object and not facts.is_archived
    return max(0, facts.size_bytes - facts.cached_bytes) if decision.is_pinned and can_be_read else 0


def moves_of(
    decision: Decision, facts: TierFacts, ages: Ages, stored_class: str | None, *, is_misplaced: bool
) -> dict[Move, int]:
    """Return what is to be done and how many bytes of this machine's disk or network that moves.

    stored_class: in which class the object is, None: not known.  A copy inside the store moves nothing here.
    is_misplaced: the content is kept in the small-file store against a policy, or not there against one.
    """
    tier = tier_of(facts)
    moves: dict[Move, int] = {}
    if not facts.has_object:
        if tier is not Tier.LOCAL:
            moves[Move.UPLOAD] = facts.size_bytes
        return moves
    if missing_bytes := bytes_to_fetch(decision, facts):
        moves[Move.FETCH] = missing_bytes
    if (
        decision.evict_after_s is not None
        and facts.cached_bytes
        and not facts.is_archived
        and ages.unread_s is not None
        and ages.unread_s >= decision.evict_after_s
    ):
        moves[Move.EVICT] = facts.cached_bytes
    if (
        decision.storage_class_after_s is not None
        and facts.what is None
        and not facts.is_archived
        and ages.unchanged_s >= decision.storage_class_after_s
        and stored_class != decision.storage_class
    ):
        moves[Move.RECLASS] = 0
    # What is cached of it goes, to be fetched again when it is read.
    if is_misplaced and not (facts.cached_bytes and (decision.is_pinned or facts.is_archived)):
        moves[Move.REPACK] = facts.cached_bytes
    return moves

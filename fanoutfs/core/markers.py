"""Markers of directories that moved: put anew under the new prefix, deleted under the old one.

Blocking; `moves` calls this in worker threads, alone with the directory and with the new key (`Publisher.lock`).
"""

from collections.abc import Mapping

from fanoutfs.backend.base import Backend
from fanoutfs.backend.writing import Expect, Properties
from fanoutfs.core.properties import facts_of, is_ours, make_token, owner_of, with_token
from fanoutfs.errors import ObjectMissingError


def move_marker(backend: Backend, tag: str, ino: int, olds: Mapping[str, int | None], new: str) -> None:
    """Put the marker of a directory anew with what it carries, and delete the old one.

    olds: where it may be, and which inode has its place there by now, whose marker it may be as well; a move that was
    broken off may have put it somewhere on the way, and deleted it before that.
    The queue may have put it under the new key already, because its attributes were changed: what is newest stays.
    What is put has a token, so that it is known for ours if nobody hears of its arrival.
    """
    left: list[str] = []
    carried: list[Properties] = []
    for old, other in olds.items():
        properties = _properties(backend, old)
        owner = None if properties is None else owner_of(properties, tag)
        if properties is None or (owner not in (None, ino) and owner == other):
            continue
        left.append(old)
        if owner in (None, ino):  # else it is of a directory that was removed
            carried.append(properties)

    def age(properties: Properties) -> tuple[int, ...]:
        return facts_of(properties, tag, ino) or ()

    if carried:
        newest, there = max(carried, key=age), _properties(backend, new)
        if there is None or not is_ours(there, tag, ino) or age(there) < age(newest):
            ours = newest if is_ours(newest, tag, ino) else with_token(newest, make_token(tag, ino, 0))
            backend.put(new, b"", Expect.ANYTHING, ours)
    for old in left:
        backend.delete(old)


def _properties(backend: Backend, key: str) -> Properties | None:
    try:
        return backend.details(key).properties
    except ObjectMissingError:
        return None

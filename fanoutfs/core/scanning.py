"""Turn the flat, ordered keys of a scan into what a page shows of each directory.  Pure: no I/O, no clock.

A shard is a range of keys.  The directories above the place reached are a stack of frames, so memory is bounded by the
depth of a key.  A directory is complete when the scan leaves it and saw it from its beginning; one through which the
border of two shards goes is not, and is completed by the import when all shards are done.

How two shards share such a directory depends on the store's order (see index.merging).  As long as the order is not
known, borders are only put where both orders agree (imports sees to that).
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from fanoutfs.core.listing import stored_as
from fanoutfs.errors import DisorderedListingError
from fanoutfs.index.importing import Frame, PagePart, PageResult, Place
from fanoutfs.index.merging import BEGIN, END, Frontier
from fanoutfs.index.names import NAME_MAX_BYTES, child_name
from fanoutfs.index.operations import Child
from fanoutfs.records import ObjectInfo

LAST_CHARACTER: Final = "\U0010ffff"
"""Sorts behind every other: border of all keys that begin with the same text."""
_BELOW_SLASH: Final = b".\xf4\x8f\xbf\xbf"


class Order(Enum):
    """In which order a store lists, as far as its answers have shown."""

    UNKNOWN = auto()
    KEY = auto()
    TREE = auto()

    def rank(self, key: str) -> bytes:
        """Return what keys are compared by."""
        raw = key.encode("utf-8", "surrogateescape")
        return raw.replace(b"/", b"\0") if self is Order.TREE else raw


def observed_order(known: Order, keys: Sequence[str]) -> Order:
    """Return what these consecutive keys say about the order.  Raises DisorderedListingError."""
    for one, other in itertools.pairwise(keys):
        by_key = Order.KEY.rank(one) <= Order.KEY.rank(other)
        by_tree = Order.TREE.rank(one) <= Order.TREE.rank(other)
        seen = known if by_key and by_tree else Order.KEY if by_key else Order.TREE if by_tree else None
        if seen is None or known not in (Order.UNKNOWN, seen):
            raise DisorderedListingError(f"the store lists in no order: {one!r} came before {other!r}")
        known = seen
    return known


@dataclass(slots=True)
class _Open:
    """A frame under way, and what the page under way shows of it."""

    frame: Frame
    ino: int | None
    reached: Frontier
    is_announced: bool
    children: list[Child] = field(default_factory=list)
    at: int | None = None
    """Its position in the page's parts."""


class TreeWalk:
    """The place of one shard."""

    def __init__(self, prefix: str, ino: int, after: str, place: Place | None, started_ns: int, order: Order) -> None:
        """place: where an earlier walk stopped; None: begin behind `after` ("" or a border)."""
        self._prefix = prefix
        self.key = after
        self.keys = 0
        self._started_ns = started_ns
        self._stack: list[_Open] = []
        self._parts: list[tuple[_Open, int | None, Frontier, bytes]] = []
        if place is None:
            self._begin(after, order)
        else:
            self.key, self.keys = place.key, place.keys
            self._stack = [_Open(frame, None, frame.reached, is_announced=True) for frame in place.frames]
        if self._stack:
            self._stack[0].ino = ino

    def _begin(self, after: str, order: Order) -> None:
        prefix, name = self._prefix, b""
        while True:
            reached = border(prefix, after, order)
            frame = Frame(prefix, name, reached, self._started_ns, is_whole=not after)
            self._stack.append(_Open(frame, None, reached, is_announced=len(self._stack) == 0))
            part, slash, _rest = after[len(prefix) :].partition("/")
            if not slash:
                return
            name = part.encode("utf-8", "surrogateescape")
            prefix += part + "/"

    def feed(self, infos: Iterable[ObjectInfo], started_ns: int) -> int:
        """Take in the next keys; return how many cannot be shown.  Raises DisorderedListingError.

        started_ns: not after the request that brought them.
        """
        hidden = 0
        for info in infos:
            hidden += not self._take(info, started_ns)
            self.keys += 1
            if not info.key.endswith("/"):
                self.key = info.key  # a directory's key may stand for another one: it is no place to go on from
        return hidden

    def _take(self, info: ObjectInfo, started_ns: int) -> bool:
        while not info.key.startswith(self._stack[-1].frame.prefix):
            self._leave(END)
        *above, leaf = info.key[len(self._stack[-1].frame.prefix) :].split("/")
        for at, each in enumerate(self._stack):
            if not each.is_announced:
                # The shard to the left may have nothing of it.
                each.is_announced = True
                self._open_part(at - 1).children.append(Child(each.frame.name, each.frame.prefix, None))
        for part in above:
            top = self._stack[-1]
            prefix = f"{top.frame.prefix}{part}/"
            name = child_name(prefix, top.frame.prefix)
            if name is None:
                return False
            child = Child(name, prefix, None)
            if top.reached.has_passed(child):
                if not leaf:
                    return True  # it was shown, and a marker says nothing else
                raise DisorderedListingError(f"the store came back to {prefix}")
            self._show(child)
            frame = Frame(prefix, name, BEGIN, started_ns, is_whole=True)
            self._stack.append(_Open(frame, None, BEGIN, is_announced=True))
            self._open_part(len(self._stack) - 1)
        if leaf:
            top = self._stack[-1]
            name = child_name(info.key, top.frame.prefix)
            if name is None:
                return False
            child = Child(name, info.key, info.version, stored_as(info))
            if top.reached.has_passed(child):
                raise DisorderedListingError(f"the store came back to {info.key}")
            self._show(child)
        return True

    def _show(self, child: Child) -> None:
        top = self._open_part(len(self._stack) - 1)
        top.children.append(child)
        top.reached = top.reached.advanced((child,))

    def _open_part(self, depth: int) -> _Open:
        """Give a directory, and those above it, their part in the page."""
        for each, above in zip(self._stack[: depth + 1], [None, *self._stack], strict=False):
            if each.at is None:
                each.at = len(self._parts)
                self._parts.append((each, None if above is None else above.at, END, b""))
        return self._stack[depth]

    def _leave(self, after: Frontier, kept: bytes = b"") -> None:
        self._open_part(len(self._stack) - 1)
        each = self._stack.pop()
        at = each.at
        if at is None:
            raise AssertionError("a part was opened above")
        self._parts[at] = (each, self._parts[at][1], after, kept)

    def finish(self, upto: str | None, order: Order) -> None:
        """Leave all directories: there is no further key up to the shard's end."""
        while self._stack:
            prefix = self._stack[-1].frame.prefix
            if upto is None or not upto.startswith(prefix):
                self._leave(END)
            else:
                self._leave(border(prefix, upto, order), shared_name(prefix, upto))

    def page(self, upto: str | None) -> tuple[PagePart, ...]:
        """Return what was fed since the last `entered`, parents first."""
        still_open = {id(each) for each in self._stack}
        parts = []
        for each, parent, after, kept in self._parts:
            frame = each.frame
            is_whole = frame.is_whole and (upto is None or not upto.startswith(frame.prefix))
            parts.append(
                PagePart(
                    parent=parent,
                    ino=each.ino,
                    name=frame.name,
                    children=tuple(each.children),
                    before=frame.reached,
                    after=each.reached if id(each) in still_open else after,
                    deferred=frame.deferred,
                    started_ns=frame.started_ns,
                    may_complete=is_whole,
                    kept=kept,
                    prefix=frame.prefix,
                )
            )
        return tuple(parts)

    def place(self, result: PageResult, upto: str | None) -> Place:
        """Return the place behind the page, given what entering it said.  Changes nothing."""
        frames = []
        for each in self._stack:
            frame, at = each.frame, each.at
            deferred = frame.deferred if at is None else result.deferred[at]
            is_whole = frame.is_whole and (upto is None or not upto.startswith(frame.prefix))
            frames.append(Frame(frame.prefix, frame.name, each.reached, frame.started_ns, is_whole, deferred))
        return Place(self.key, self.keys, not self._stack, tuple(frames))

    def entered(self, result: PageResult, place: Place) -> None:
        """Go on behind the page, which was entered."""
        for each, frame in zip(self._stack, place.frames, strict=True):
            if each.at is not None:
                each.ino = result.inos[each.at]
            each.frame = frame
            each.at = None
            each.children = []
        self._parts = []


def border(prefix: str, key: str, order: Order) -> Frontier:
    """Return where a border key divides the entries of a directory that it goes through."""
    if not key.startswith(prefix):
        return BEGIN
    relative = key[len(prefix) :].encode("utf-8", "surrogateescape")
    first, slash, _rest = relative.partition(b"/")
    first = first[:NAME_MAX_BYTES]  # LMDB takes no longer keys, and there are no longer names
    if order is Order.TREE:
        # Every directory whose name sorts before has been there, and its key may be greater.
        beginnings = [first[:end] + b"/" for end in range(1, len(first)) if first[end] < ord("/")]
        return Frontier(first, max(relative, *beginnings, b""))
    return Frontier(first + _BELOW_SLASH if slash else first, relative)


def shared_name(prefix: str, key: str) -> bytes:
    """Return the name of the directory below `prefix` that a border key goes through, b"" for none."""
    first, slash, _rest = key[len(prefix) :].partition("/")
    return first.encode("utf-8", "surrogateescape") if slash else b""


def shared_directories(prefix: str, borders: Iterable[str]) -> list[str]:
    """Return the prefixes of all directories that a border goes through, deepest first, the scan's own last."""
    found = {prefix}
    for key in borders:
        at = key.find("/", len(prefix))
        while at >= 0:
            found.add(key[: at + 1])
            at = key.find("/", at + 1)
    return sorted(found, key=lambda each: (-each.count("/"), each))

"""Changes of names that processes on this mount ask for, as values with a pure `apply`.

Core (MakeNode: fronts, too); applied in write transactions, like `operations` (which holds what listings and fills
change).  POSIX's rules are checked here, inside the transaction, so that the answer is exact whatever was committed a
moment ago; what must be known of the store first (is a directory empty, does a name exist there) the caller has made
known.

What becomes of objects is noted in the same transaction: `dirty` (the store does not have this inode as it is),
`departed` (the store still has an object that is not at its place here).  The rules:

* an object belongs to the inode whose record names its key; when its place changes it is departed to that inode;
* of an inode that lost its last name the object stays, departed to the inode, until the kernel has forgotten it
  (whoever has it open may read on), then departed to nothing;
* every dirty inode has its place in `names`;
* a directory's prefix departs with it, both the one its objects were found under and those where they may have been
  moved meanwhile: that of its last place, and wherever a directory above it is on its way; unless another directory's
  objects are still there: then none of its own are (see `places.Places.leaving`).
"""

import errno
import stat
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Final

from fanoutfs.errors import InvariantError, NamesUnknownError, RefusedError
from fanoutfs.index.changed import no_version
from fanoutfs.index.format import (
    DT_DIR,
    FLAG_ATTRS,
    FLAG_HELD,
    FLAG_LISTED,
    FLAG_LOCAL,
    FLAG_STAGED,
    FLAG_WHOLE,
    Departed,
    Dirty,
    DirtyRecord,
    Inode,
    attr_with,
    make_attr,
)
from fanoutfs.index.intents import intent_name, leave_intent
from fanoutfs.index.names import NAME_MAX_BYTES
from fanoutfs.index.requests import Request, known_inode, make_dirty, make_link_dirty, put_attr, touch_directory
from fanoutfs.index.transaction import IndexTransaction

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
_LINK_MAX: Final = 65_000
_ALL: Final = Dirty.CONTENT | Dirty.META
_NOTHING: Final = Dirty(0)
"""Only the object's place is not that of the file."""


@dataclass(frozen=True, slots=True)
class MakeNode:
    """Make a file, directory, symbolic link or special file.  Returns its record.

    ino: reserved before.  life: of the (empty) staging file of a regular file, made before.  target: of a symlink.
    listed_since_ns: raises NamesUnknownError if the directory's names may not have been complete at this time; None:
    the caller has seen to it.
    """

    parent: int
    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    request: Request
    rdev: int = 0
    target: bytes = b""
    life: int = 0
    listed_since_ns: float | None = None

    def apply(self, txn: IndexTransaction) -> Inode:
        if (earlier := self.request.earlier(txn)) is not None:
            return known_inode(txn, earlier)
        directory = _open_directory(txn, self.parent)
        if self.listed_since_ns is not None and not self._is_complete(directory, self.listed_since_ns):
            raise NamesUnknownError(f"the names in directory {self.parent} are not all known")
        _check_name(self.name)
        if txn.entry(self.parent, self.name) is not None:
            raise RefusedError(errno.EEXIST)
        inode = self._record(txn, directory)
        txn.put_inode(inode)
        txn.put_entry(self.parent, self.name, inode)
        txn.changed.put_name(self.ino, self.parent, self.name)
        if stat.S_ISLNK(self.mode):
            txn.changed.put_target(self.ino, self.target)
        if not inode.is_dir:
            txn.add_totals(1, 0)
        txn.changed.put_dirty(self.ino, DirtyRecord(self.request.now_ns, self.request.now_ns, _ALL))
        touch_directory(txn, self.parent, self.request.now_ns)
        self.request.note(txn, self.ino)
        return inode

    def _is_complete(self, directory: Inode, since_ns: float) -> bool:
        """Tell whether a name that the directory does not have here is in the store neither."""
        if directory.is_local or (directory.is_held and directory.is_listed):
            return True
        return directory.is_listed and since_ns <= directory.listed_at_ns <= self.request.now_ns

    def _record(self, txn: IndexTransaction, directory: Inode) -> Inode:
        mode, gid, key = self.mode, self.gid, ""
        flags = FLAG_LOCAL | FLAG_ATTRS
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        if stat.S_ISDIR(mode):
            key = self.request.key_at(txn, self.parent, self.name) + "/"
            flags |= FLAG_LISTED | (FLAG_HELD if txn.changed.departed(key) is not None else 0)
        elif stat.S_ISREG(mode):
            flags |= FLAG_STAGED | FLAG_WHOLE
        attr = make_attr(self.ino, mode, len(self.target), self.request.now_ns, self.uid, gid)
        if self.rdev:
            attr = attr_with(attr, rdev=self.rdev)
        listed_at_ns = self.request.now_ns if stat.S_ISDIR(mode) else self.life
        return Inode(self.ino, attr, listed_at_ns, flags, "", "", key)


@dataclass(frozen=True, slots=True)
class Link:
    """Give a file one more name.  cookie: a reserved number.  Returns the inode's record."""

    ino: int
    parent: int
    name: bytes
    cookie: int
    request: Request

    def apply(self, txn: IndexTransaction) -> Inode:
        if (earlier := self.request.earlier(txn)) is not None:
            return known_inode(txn, earlier)
        inode = known_inode(txn, self.ino)
        if inode.is_dir:
            raise RefusedError(errno.EPERM)
        if txn.is_orphan(self.ino):
            raise RefusedError(errno.ENOENT)
        if inode.links >= _LINK_MAX:
            raise RefusedError(errno.EMLINK)
        _open_directory(txn, self.parent)
        _check_name(self.name)
        if txn.entry(self.parent, self.name) is not None:
            raise RefusedError(errno.EEXIST)
        linked = put_attr(txn, inode, self.request, links=inode.links + 1)
        make_dirty(txn, linked, Dirty.META, self.request)
        txn.put_entry(self.parent, self.name, linked, self.cookie)
        txn.changed.put_name(self.cookie, self.parent, self.name)
        txn.changed.put_link(self.ino, self.cookie)
        make_link_dirty(txn, self.cookie, self.request, is_moved=True)
        touch_directory(txn, self.parent, self.request.now_ns)
        self.request.note(txn, self.ino)
        return linked


@dataclass(frozen=True, slots=True)
class Unlink:
    """Take one name of a file away.  Returns its inode number."""

    parent: int
    name: bytes
    request: Request

    def apply(self, txn: IndexTransaction) -> int:
        if (earlier := self.request.earlier(txn)) is not None:
            return earlier
        ino, dtype = _entry(txn, self.parent, self.name)
        if dtype == DT_DIR:
            raise RefusedError(errno.EISDIR)
        _drop_file(txn, self.parent, self.name, known_inode(txn, ino), self.request)
        touch_directory(txn, self.parent, self.request.now_ns)
        self.request.note(txn, ino)
        return ino


@dataclass(frozen=True, slots=True)
class Rmdir:
    """Take away an empty directory, whose listing is complete.  Returns its inode number."""

    parent: int
    name: bytes
    request: Request

    def apply(self, txn: IndexTransaction) -> int:
        if (earlier := self.request.earlier(txn)) is not None:
            return earlier
        ino, dtype = _entry(txn, self.parent, self.name)
        if dtype != DT_DIR:
            raise RefusedError(errno.ENOTDIR)
        _drop_directory(txn, self.parent, self.name, known_inode(txn, ino), self.request)
        touch_directory(txn, self.parent, self.request.now_ns)
        self.request.note(txn, ino)
        return ino


@dataclass(frozen=True, slots=True)
class Rename:
    """Move a name, over another one if need be; or exchange two.  Returns the moved inode's number.

    A directory that is moved has a complete listing, and so has one that is displaced.  flags: RENAME_*.
    """

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int
    request: Request

    def apply(self, txn: IndexTransaction) -> int:
        if (earlier := self.request.earlier(txn)) is not None:
            return earlier
        if self.flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise RefusedError(errno.EINVAL)
        _open_directory(txn, self.new_parent)
        _check_name(self.new_name)
        ino, _dtype = _entry(txn, self.parent, self.name)
        inode = known_inode(txn, ino)
        known = txn.entry(self.new_parent, self.new_name)
        if known is not None and self.flags == RENAME_NOREPLACE:
            raise RefusedError(errno.EEXIST)
        if known is None and self.flags == RENAME_EXCHANGE:
            raise RefusedError(errno.ENOENT)
        self._check_descent(txn, inode, self.new_parent)
        if known is None or known[0] != ino:  # two names of one file: POSIX says that both stay
            other = None if known is None else known_inode(txn, known[0])
            if self.flags == RENAME_EXCHANGE and other is not None:
                self._exchange(txn, inode, other)
            else:
                self._move(txn, inode, other)
            for parent in {self.parent, self.new_parent}:
                touch_directory(txn, parent, self.request.now_ns)
        self.request.note(txn, ino)
        return ino

    def _move(self, txn: IndexTransaction, inode: Inode, other: Inode | None) -> None:
        if other is not None:
            if inode.is_dir and not other.is_dir:
                raise RefusedError(errno.ENOTDIR)
            if other.is_dir and not inode.is_dir:
                raise RefusedError(errno.EISDIR)
            drop = _drop_directory if other.is_dir else _drop_file
            drop(txn, self.new_parent, self.new_name, other, self.request)
        old = _Old.of(txn, self.parent, self.name, inode, self.request)
        txn.delete_entry(self.parent, self.name)
        old.enter(txn, self.new_parent, self.new_name, self.request)

    def _exchange(self, txn: IndexTransaction, inode: Inode, other: Inode) -> None:
        self._check_descent(txn, other, self.parent)
        old = _Old.of(txn, self.parent, self.name, inode, self.request)
        other_old = _Old.of(txn, self.new_parent, self.new_name, other, self.request)
        homes = {one.inode.key for one, place in ((old, other_old), (other_old, old)) if one.comes_home(txn, place.key)}
        old.enter(txn, self.new_parent, self.new_name, self.request, homes)
        other_old.enter(txn, self.parent, self.name, self.request, homes)

    @staticmethod
    def _check_descent(txn: IndexTransaction, inode: Inode, into: int) -> None:
        at: int | None = into if inode.is_dir else None
        while at is not None:
            if at == inode.ino:
                raise RefusedError(errno.EINVAL)
            place = txn.changed.name(at)
            at = None if place is None else place[0]


@dataclass(frozen=True, slots=True)
class MoveLink:
    """Have the object of a further name, which a directory left at `old_key`, put at its place and the old one deleted.

    cookie: the name's.  Returns whether it is to be uploaded now (it may be already).
    """

    cookie: int
    old_key: str
    request: Request

    def apply(self, txn: IndexTransaction) -> bool:
        """Carry it out."""
        if txn.changed.name(self.cookie) is None:
            return False
        _leave_link_object(txn, self.cookie, {self.old_key})
        make_link_dirty(txn, self.cookie, self.request, is_moved=True)
        return True


@dataclass(frozen=True, slots=True)
class GoBy:
    """Let a file's object go by a further name from now on, because the first one is not uploaded.

    cookie: the further name's, which the first one gets.  Returns the inode's number; None: nothing is to be changed.
    """

    cookie: int
    request: Request

    def apply(self, txn: IndexTransaction) -> int | None:
        """Carry it out."""
        place = txn.changed.name(self.cookie)
        found = None if place is None else txn.entry(*place)
        if place is None or found is None or txn.entry_cookie(*place) != self.cookie:
            return None
        inode = known_inode(txn, found[0])
        first = self.request.places(txn).place(inode.ino)
        if first is None or self.cookie not in txn.changed.links(inode.ino):
            return None
        _leave_link_object(txn, self.cookie, _link_keys(txn, self.cookie, *place, self.request))
        txn.put_entry(*first, inode, self.cookie)
        txn.put_entry(*place, inode)
        txn.changed.put_name(inode.ino, *place)
        txn.changed.put_name(self.cookie, *first)
        make_link_dirty(txn, self.cookie, self.request, is_moved=True)
        known = txn.changed.dirty(inode.ino)
        if known is not None:
            txn.changed.put_dirty(inode.ino, replace(known, what=known.what & ~Dirty.NEVER))
        _depart_file(txn, inode, self.request.key_at(txn, *place), self.request)
        return inode.ino


@dataclass(frozen=True, slots=True)
class _Old:
    """A name that is about to move: what must be known of its place before that.

    is_main: the place of the inode is this name's.  key: what belonged to the place.
    ways: where else objects may be by which only a directory, or a further name, is known, see `Places.ways`.
    """

    inode: Inode
    cookie: int
    is_main: bool
    key: str
    ways: frozenset[str]

    @staticmethod
    def of(txn: IndexTransaction, parent: int, name: bytes, inode: Inode, request: Request) -> "_Old":
        cookie = txn.entry_cookie(parent, name) or inode.ino
        key = request.key_at(txn, parent, name) + ("/" if inode.is_dir else "")
        places = request.places(txn)
        main = places.place(inode.ino)
        ways = frozenset(places.ways(cookie) if inode.is_dir or cookie != inode.ino else ())
        return _Old(inode, cookie, main is None or main == (parent, name), key, ways)

    def comes_home(self, txn: IndexTransaction, new_key: str) -> bool:
        """Tell whether a directory goes to where its objects are still."""
        owner = txn.changed.departed(new_key) if self.inode.is_dir and self.inode.key == new_key else None
        return owner is not None and owner.ino == self.inode.ino

    def enter(
        self, txn: IndexTransaction, parent: int, name: bytes, request: Request, homes: Set[str] = frozenset()
    ) -> None:
        """Let the new name lead to the inode, and say where its object is.  homes: see `_depart_directory`."""
        key = request.key_at(txn, parent, name)
        is_further = self.cookie != self.inode.ino
        txn.put_entry(parent, name, self.inode, self.cookie if is_further else 0)
        inode = put_attr(txn, self.inode, request)
        if is_further:
            _leave_link_object(txn, self.cookie, self.ways | {self.key})
            leave_intent(txn, self.cookie, request.root_prefix)
            txn.changed.put_name(self.cookie, parent, name)
            make_link_dirty(txn, self.cookie, request, is_moved=True)
        if self.is_main:
            txn.changed.put_name(inode.ino, parent, name)
        if inode.is_dir:
            _depart_directory(txn, inode, self.ways | {self.key}, key + "/", request, homes)
        elif self.is_main:
            _depart_file(txn, inode, key, request)


# --- what several of them share --------------------------------------------------------------------------------


def _open_directory(txn: IndexTransaction, ino: int) -> Inode:
    """Return a directory in which names may be made."""
    directory = known_inode(txn, ino)
    if not directory.is_dir:
        raise RefusedError(errno.ENOTDIR)
    if txn.is_orphan(ino):
        raise RefusedError(errno.ENOENT)
    return directory


def _check_name(name: bytes) -> None:
    if len(name) > NAME_MAX_BYTES:
        raise RefusedError(errno.ENAMETOOLONG)


def _entry(txn: IndexTransaction, parent: int, name: bytes) -> tuple[int, int]:
    found = txn.entry(parent, name)
    if found is None:
        raise RefusedError(errno.ENOENT)
    return found


def _drop_file(txn: IndexTransaction, parent: int, name: bytes, inode: Inode, request: Request) -> None:
    """Take a name of a file away; with the last one the inode becomes an orphan."""
    cookie = txn.entry_cookie(parent, name) or inode.ino
    main = request.places(txn).place(inode.ino)
    if cookie != inode.ino:
        _leave_link_object(txn, cookie, _link_keys(txn, cookie, parent, name, request))
        leave_intent(txn, cookie, request.root_prefix)
        txn.changed.delete_dirty(cookie)
        txn.changed.delete_link(inode.ino, cookie)
    txn.delete_entry(parent, name)
    inode = put_attr(txn, inode, request, links=max(0, inode.links - 1))
    if not inode.links:
        txn.put_orphan(inode.ino, request.now_ns)
        txn.changed.delete_name(inode.ino)
        txn.changed.delete_dirty(inode.ino)
        txn.add_totals(-1, -inode.size_bytes)
        if inode.key:
            _put_departed(txn, inode.key, Departed(inode.ino, inode.version))
        leave_intent(txn, inode.ino, request.root_prefix)
    elif main == (parent, name):
        _make_main(txn, inode, request)


def _make_main(txn: IndexTransaction, inode: Inode, request: Request) -> None:
    """Let a further name of a file be the one its object goes by, after that one was taken away.

    What the further name had to upload is what the object's move to its place brings there; what it has in the store
    is replaced by that, or deleted should the file have another place before.
    """
    for cookie in txn.changed.links(inode.ino):
        place = txn.changed.name(cookie)
        if place is not None:
            _leave_link_object(txn, cookie, _link_keys(txn, cookie, *place, request))
            leave_intent(txn, cookie, request.root_prefix)
            txn.changed.delete_dirty(cookie)
            txn.changed.delete_link(inode.ino, cookie)
            txn.put_entry(*place, inode)
            txn.changed.put_name(inode.ino, *place)
            _depart_file(txn, inode, request.key_at(txn, *place), request)
            return
    raise InvariantError(f"inode {inode.ino} has {inode.links} names more, and none is recorded")


def _drop_directory(txn: IndexTransaction, parent: int, name: bytes, inode: Inode, request: Request) -> None:
    """Take an empty directory away."""
    if txn.first_entry(inode.ino) is not None:
        raise RefusedError(errno.ENOTEMPTY)
    if not inode.is_listed:
        raise InvariantError(f"directory {inode.ino} was to be removed unlisted")
    prefix = request.key_at(txn, parent, name) + "/"
    ways = request.places(txn).ways(inode.ino)
    txn.delete_entry(parent, name)
    put_attr(txn, inode, request, links=0)
    txn.put_orphan(inode.ino, request.now_ns)
    txn.changed.delete_name(inode.ino)
    txn.changed.delete_dirty(inode.ino)
    for each in {inode.key, prefix, *ways}:
        owner = txn.changed.departed(each)
        # Of a directory that was made here nothing is in the store but what has departed, each by itself.
        is_empty = inode.is_local and owner is None and next(txn.changed.all_departed(each), None) is None
        is_empty &= txn.setting(intent_name(inode.ino)) is None
        if not is_empty and (owner is None or owner.ino == inode.ino):
            _put_departed(txn, each, Departed(0, no_version()))


def _link_keys(txn: IndexTransaction, cookie: int, parent: int, name: bytes, request: Request) -> set[str]:
    """Return the keys under which the object of a further name may be, if it was ever put."""
    return {request.key_at(txn, parent, name), *request.places(txn).ways(cookie)}


def _leave_link_object(txn: IndexTransaction, cookie: int, keys: Set[str]) -> None:
    """Have the object of a further name deleted, if it was ever put there.  Its version is not recorded."""
    dirty = txn.changed.dirty(cookie)
    if dirty is None or Dirty.STORED in dirty.what:
        for key in keys:
            if txn.changed.departed(key) is None:
                _put_departed(txn, key, Departed(0, no_version()))


def _depart_file(txn: IndexTransaction, inode: Inode, new_key: str, request: Request) -> None:
    """Note that a file's object is not at the place of the file, or is there again.

    Below a prefix that another directory is leaving nothing is at its place.
    """
    if inode.key and inode.key == new_key and request.places(txn).leaving(new_key, inode.ino) is None:
        owner = txn.changed.departed(inode.key)
        if owner is not None and owner.ino == inode.ino:
            txn.changed.delete_departed(inode.key)
        txn.put_inode(replace(inode, flags=inode.flags & ~FLAG_LOCAL))
        known = txn.changed.dirty(inode.ino)
        if known is not None and not known.what:
            txn.changed.delete_dirty(inode.ino)
        return
    if inode.key:
        _put_departed(txn, inode.key, Departed(inode.ino, inode.version))
    leave_intent(txn, inode.ino, request.root_prefix)
    moved = replace(inode, flags=inode.flags | FLAG_LOCAL)
    txn.put_inode(moved)
    make_dirty(txn, moved, _NOTHING, request)


def _depart_directory(
    txn: IndexTransaction, inode: Inode, old: Set[str], new: str, request: Request, homes: Set[str]
) -> None:
    """Note that what is below a directory's prefix has its place below another one now.

    old: where its objects may have been moved meanwhile, its last place among them.
    homes: prefixes of other directories that come back to them in this transaction: nothing of this one came there.
    """
    if not inode.is_listed:
        raise InvariantError(f"directory {inode.ino} was to be moved unlisted")
    at_new = txn.changed.departed(new)
    owner = txn.changed.departed(inode.key)
    if owner is not None and owner.ino not in (0, inode.ino):  # nothing of its own is in the store yet
        held = FLAG_HELD if at_new is not None else 0
        moved = replace(inode, key=new, flags=inode.flags & ~FLAG_HELD | held)
    else:
        # Below a prefix that another directory is leaving only a record says whose the objects are.
        is_free = request.places(txn).leaving(new, inode.ino) is None
        for prefix in {inode.key, *old}:
            known = txn.changed.departed(prefix)  # (0: of a directory that was removed, this one was made there since)
            is_unknown = (known is None or not known.ino) and prefix not in homes
            # Below a prefix that it is leaving nothing comes before its own move, which notes where to.
            above = request.places(txn).moved_prefix(prefix) if prefix != inode.key else None
            is_unknown &= above is None or above[1] != inode.ino
            if (prefix != new or not is_free) and is_unknown:
                _put_departed(txn, prefix, Departed(inode.ino, no_version()))
        if is_free and at_new is not None and at_new.ino == inode.ino:
            txn.changed.delete_departed(new)
        if inode.key == new and not txn.changed.prefixes_of(inode.ino):
            _come_home(txn, inode)
            return
        moved = replace(inode, flags=inode.flags | FLAG_HELD | FLAG_LOCAL)
    txn.put_inode(moved)
    make_dirty(txn, moved, _NOTHING, request)


def _come_home(txn: IndexTransaction, directory: Inode) -> None:
    """Note that a directory is where its objects are, before any of them was moved: nobody has to move it."""
    held = FLAG_HELD if txn.changed.departed(directory.key) is not None else 0
    flags = directory.flags & ~FLAG_HELD | held
    known = txn.changed.dirty(directory.ino)
    if known is None or not known.what:
        flags &= ~FLAG_LOCAL
        txn.changed.delete_dirty(directory.ino)
    txn.put_inode(replace(directory, flags=flags))


def _put_departed(txn: IndexTransaction, key: str, record: Departed) -> None:
    try:
        txn.changed.put_departed(key, record)
    except ValueError as error:
        raise RefusedError(errno.ENAMETOOLONG, str(error)) from error

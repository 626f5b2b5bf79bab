"""The index file format, version 2, byte by byte.

index.lmdb is an LMDB 0.9 environment with these named databases.  Integers in keys are big-endian (they sort), in
values little-endian.

settings   name → value
             "format"       u32, this module's FORMAT_VERSION
             "volume"       UTF-8, identity of the source: URL and prefix, no credentials
             "next_ino"     u64, the next inode number; never goes back, so numbers are never reused
             "ownership"    uid u32, gid u32, file_mode u32, dir_mode u32, small_file_size u64
             "totals"       files u64, bytes u64: what statfs shows as used
             "cached_bytes" u64, sum of the present blocks of `blocks`
             "next_disk"    u64, the next disk's number; only grows
             "disk/N"       a further disk in use (N: 8 hexadecimal digits), JSON: {"path", "token"}, the folder with
                            its objects/ and what its marker says; while there is none, no block gets its number
             "disk_bytes/N" u64, sum of the present blocks on it
             "disk_at/ID"   path of the mount point that a further cache directory was on when it was used last; ID:
                            32 hexadecimal digits, the first half of SHA-256 of the directory's path
             "changes"      u64, how many changes requests have made: the sequence of `applied`
             "pin/ID"       a pin, JSON: {"path", "pinned", "at_ns"}; ID: 32 hexadecimal digits, the first half of
                            SHA-256 of the path; of all that lead to a file, the longest path decides
             "import/ID"    an import not finished yet, JSON (see `importing`): {"started_ns", "order"};
                            ID: 32 hexadecimal digits, the first half of SHA-256 of the prefix
             "import/ID/N/range"  JSON: the keys that shard N (8 digits) is to list
             "import/ID/N/place"  JSON: how far it has come
entries    parent ino u64, name → ino u64, DT_ type u32 [, cookie u64: its position in listings; absent: the ino]
inodes     ino u64 →
              0  88  struct fuse_attr as the kernel wants it
             88   8  listed_at u64: directories: wall clock ns of the last complete listing; staged files: their life,
                     which is part of the staging file's name
             96   2  flags u16: 1 LISTED (the listing is complete), 2 SMALL (content belongs to the small store),
                     and of what was changed here:
                     4 STAGED (newest content, size and times: those of the staging file),
                     8 WHOLE (no block of the object is needed any more),
                     16 SEALED (becoming clean: fronts ask before they write),
                     32 HELD (directory: names are not taken from listings), 64 LOCAL (no object at its path yet),
                     128 ATTRS (mode, owner and times are its own, set here or kept with the object: neither the mount's
                     options nor a listing's time replace them)
             98   2  length of etag, u16
            100   2  length of version id, u16
            102   2  length of key, u16
            104   …  etag, version id, object key (directories: the prefix, ending with "/", or "" for the root)
blocks     ino u64, part u32 →
              0   4  present u32: bit b is set when block b of the part is in the cache file
              4   4  u32, number of the disk that has the blocks; 0: the volume's own folder (older versions know no
                     other, look there in vain and fetch again)
              8 256  xxh3-64, seed: the inode, of each block (the last block of a file: of its actual length)
orphans    ino u64 → u64, wall clock ns since when no name leads there; the record stays until the kernel forgets it

What was changed here and is not (all) in the object store:

names      cookie u64 → parent ino u64, name: for every directory, and for inodes whose place is not what their key says
           (all dirty ones among them); cookie: the ino (of a file with several names: the name whose path its object
           shall have), or the position of a further hard link
           ino u64, cookie u64 → nothing: the inode's further hard links
targets    ino u64 → target of a symbolic link
xattrs     ino u64, name → value
dirty      ino u64 → since_ns u64, changed_ns u64, what u32 (1 CONTENT, 2 META, 4 CONFLICT, 8 NEVER), last error's text
staged     ino u64 → u64, base size: up to there blocks that are not `local` are those of the object
local      ino u64, part u32 → u32, blocks of the part that are in the staging file
departed   object key (or prefix, ending with "/") that is still in the store but not here →
              0   8  ino u64 it moved to, 0: it was deleted
              8  16  size u64, mtime ns u64
             24   2  length of etag, u16
             26   …  etag, version id
           a key of more than 511 bytes: its first 479 and a digest, and behind the version id a 0 and the key
applied    token u32 → opcode u32, ino u64, sequence u64: the last changes, so that none is applied twice after a crash

What tiering remembers (see `tiers`; an index without these two gets them, older versions pass them over):

accessed   ino u64 → u64, wall clock ns: when the file was last known to be read, to a sixteenth of what a policy asks
stored     ino u64 → flags u8 (1 ARCHIVED: a read was refused until the object is restored), storage class, UTF-8

A clean file's attributes never change under its inode number: a changed object is a new inode.
"""

import json
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntFlag
from pathlib import Path
from typing import Final

from fanoutfs.records import PART_BLOCKS, SMALL_FILE_MAX_BYTES, Version
from fanoutfs.wire.kernel import ATTR, ATTR_SIZE

FORMAT_VERSION: Final = 2
FIRST_INO: Final = 16
"""Below are the root (1) and numbers that READDIR uses as positions of "." and ".."."""

DATABASES: Final = (
    b"settings",
    b"entries",
    b"inodes",
    b"blocks",
    b"orphans",
    b"names",
    b"targets",
    b"xattrs",
    b"dirty",
    b"staged",
    b"local",
    b"departed",
    b"applied",
    b"accessed",
    b"stored",
)

U64: Final = struct.Struct("<Q")
INO_KEY: Final = struct.Struct(">Q")
LINK_KEY: Final = struct.Struct(">QQ")
PART_KEY: Final = struct.Struct(">QI")
ENTRY_VALUE: Final = struct.Struct("<QI")
INODE_TAIL: Final = struct.Struct("<QHHHH")
OWNERSHIP: Final = struct.Struct("<IIIIQ")
TOTALS: Final = struct.Struct("<QQ")
ENTRY_COOKIE_VALUE: Final = struct.Struct("<QIQ")
DIRTY: Final = struct.Struct("<QQI")
DEPARTED: Final = struct.Struct("<QQQH")
APPLIED: Final = struct.Struct("<IQQ")
TOKEN_KEY: Final = struct.Struct(">I")
MASK: Final = struct.Struct("<I")
PART_HEAD: Final = struct.Struct("<II")
PART_VALUE: Final = struct.Struct(f"<II{PART_BLOCKS}Q")

# mtime and ctime within a fuse_attr: seconds, then nanoseconds.
_SECONDS: Final = struct.Struct("<qq")
_NANOSECONDS: Final = struct.Struct("<II")
_MTIME_AT: Final = 32
_MTIME_NS_AT: Final = 52

FLAG_LISTED: Final = 1
FLAG_SMALL: Final = 2
FLAG_STAGED: Final = 4
FLAG_WHOLE: Final = 8
FLAG_SEALED: Final = 16
FLAG_HELD: Final = 32
FLAG_LOCAL: Final = 64
FLAG_ATTRS: Final = 128

DT_DIR: Final = 4
DT_REG: Final = 8
DT_LNK: Final = 10

_NS: Final = 1_000_000_000
_U64_MAX: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class KnownDisk:
    """A further disk in use.  folder: has its objects/.  token: what the marker there says."""

    folder: Path
    token: str

    def pack(self) -> bytes:
        """Return the stored form."""
        return json.dumps({"path": os.fsdecode(self.folder), "token": self.token}).encode()


def unpack_disk(value: bytes) -> KnownDisk:
    """Undo `KnownDisk.pack`."""
    found = json.loads(value)
    return KnownDisk(Path(found["path"]), found["token"])


def disk_setting(disk: int) -> bytes:
    """Return the name of the setting that says where a further disk is."""
    return b"disk/%08x" % disk


def disk_bytes_setting(disk: int) -> bytes:
    """Return the name of the setting that says how many cached bytes it has."""
    return b"disk_bytes/%08x" % disk


def _no_policy(_key: str, _size_bytes: int) -> bool | None:
    return None


@dataclass(frozen=True, slots=True)
class Ownership:
    """What every file and directory shows, and where content is kept: objects do not say, the mount's options do."""

    uid: int
    gid: int
    file_mode: int
    dir_mode: int
    small_file_size: int
    policy: Callable[[str, int], bool | None] = field(default=_no_policy, compare=False, repr=False)
    """Takes a key and a size in bytes; returns whether a policy wants the content in the small-file store, None: none
    says.  Any thread.  Not stored."""

    def is_small(self, key: str, size_bytes: int) -> bool:
        """Tell whether the content of an object belongs to the small-file store."""
        wanted = self.policy(key, size_bytes)
        if wanted is None:
            return size_bytes <= self.small_file_size
        return wanted and size_bytes <= SMALL_FILE_MAX_BYTES

    def pack(self) -> bytes:
        """Return the stored form."""
        return OWNERSHIP.pack(self.uid, self.gid, self.file_mode, self.dir_mode, self.small_file_size)


@dataclass(frozen=True, slots=True)
class Inode:
    """One decoded inode record."""

    ino: int
    attr: bytes
    listed_at_ns: int
    flags: int
    etag: str
    version_id: str
    key: str

    @property
    def size_bytes(self) -> int:
        """Return st_size."""
        return int.from_bytes(self.attr[8:16], "little")

    @property
    def mode(self) -> int:
        """Return st_mode."""
        return int.from_bytes(self.attr[60:64], "little")

    @property
    def gid(self) -> int:
        """Return st_gid."""
        return int.from_bytes(self.attr[72:76], "little")

    @property
    def links(self) -> int:
        """Return st_nlink."""
        return int.from_bytes(self.attr[64:68], "little")

    @property
    def is_dir(self) -> bool:
        """Tell whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_listed(self) -> bool:
        """Tell whether the directory's listing is complete."""
        return bool(self.flags & FLAG_LISTED)

    @property
    def is_small(self) -> bool:
        """Tell whether the content belongs to the small-file store."""
        return bool(self.flags & FLAG_SMALL)

    @property
    def is_staged(self) -> bool:
        """Tell whether the newest content, size and times are those of the staging file."""
        return bool(self.flags & FLAG_STAGED)

    @property
    def life(self) -> int:
        """Return which of an inode's staging files is the one; staged files only."""
        return self.listed_at_ns

    @property
    def is_whole(self) -> bool:
        """Tell whether all content is in the staging file."""
        return bool(self.flags & FLAG_WHOLE)

    @property
    def is_sealed(self) -> bool:
        """Tell whether the file is becoming clean."""
        return bool(self.flags & FLAG_SEALED)

    @property
    def is_held(self) -> bool:
        """Tell whether the directory's names are not taken from listings."""
        return bool(self.flags & FLAG_HELD)

    @property
    def is_local(self) -> bool:
        """Tell whether no object is at its path yet."""
        return bool(self.flags & FLAG_LOCAL)

    @property
    def has_attributes(self) -> bool:
        """Tell whether mode, owner and times are its own, not those of mount options and listings."""
        return bool(self.flags & FLAG_ATTRS)

    @property
    def version(self) -> Version:
        """Return the object version this inode stands for."""
        fields = ATTR.unpack(self.attr)
        return Version(self.etag, self.version_id, fields[1], fields[4] * _NS + fields[7])

    @property
    def name(self) -> bytes:
        """Return the name under which the object was found in its directory."""
        return self.key.rstrip("/").rpartition("/")[2].encode("utf-8", "surrogateescape")

    def pack(self) -> bytes:
        """Return the stored form."""
        etag, version_id, key = (
            text.encode("utf-8", "surrogateescape") for text in (self.etag, self.version_id, self.key)
        )
        tail = INODE_TAIL.pack(self.listed_at_ns, self.flags, len(etag), len(version_id), len(key))
        return b"".join((self.attr, tail, etag, version_id, key))


class Dirty(IntFlag):
    """What of an inode is not in the object store, and how it stands.

    STORED is said of further names only: under the key of the name is an object of an earlier state.
    """

    CONTENT = 1
    META = 2
    CONFLICT = 4
    NEVER = 8
    STORED = 16


@dataclass(frozen=True, slots=True)
class DirtyRecord:
    """One inode that the object store does not have as it is.  Times: wall clock, ns."""

    since_ns: int
    changed_ns: int
    what: Dirty
    error: str = ""

    def pack(self) -> bytes:
        """Return the stored form."""
        return DIRTY.pack(self.since_ns, self.changed_ns, int(self.what)) + self.error.encode()[:1024]


def unpack_dirty(value: bytes | memoryview) -> DirtyRecord:
    """Decode a record of `dirty`."""
    since_ns, changed_ns, what = DIRTY.unpack_from(value)
    return DirtyRecord(since_ns, changed_ns, Dirty(what), bytes(value[DIRTY.size :]).decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class Departed:
    """An object that is still in the store but not at its place here.  ino: where it moved, 0: it was deleted."""

    ino: int
    version: Version

    def pack(self) -> bytes:
        """Return the stored form."""
        etag = self.version.etag.encode()
        head = DEPARTED.pack(self.ino, self.version.size_bytes, self.version.mtime_ns, len(etag))
        return head + etag + self.version.version_id.encode()


def unpack_departed(value: bytes | memoryview) -> Departed:
    """Decode a record of `departed`."""
    ino, size_bytes, mtime_ns, etag_len = DEPARTED.unpack_from(value)
    text = bytes(value[DEPARTED.size :])
    return Departed(ino, Version(text[:etag_len].decode(), text[etag_len:].decode(), size_bytes, mtime_ns))


def unpack_inode(ino: int, value: bytes | memoryview) -> Inode:
    """Decode an inode record."""
    listed_at_ns, flags, etag_len, version_len, key_len = INODE_TAIL.unpack_from(value, ATTR_SIZE)
    at = ATTR_SIZE + INODE_TAIL.size
    text = bytes(value[at : at + etag_len + version_len + key_len])
    etag = text[:etag_len].decode()
    version_id = text[etag_len : etag_len + version_len].decode()
    key = text[etag_len + version_len :].decode("utf-8", "surrogateescape")
    return Inode(ino, bytes(value[:ATTR_SIZE]), listed_at_ns, flags, etag, version_id, key)


def cookie_of(entry: bytes | memoryview) -> int:
    """Return the position in listings of an entry, from its stored value."""
    at = ENTRY_VALUE.size if len(entry) > ENTRY_VALUE.size else 0
    return int.from_bytes(entry[at : at + 8], "little")


def make_attr(ino: int, mode: int, size_bytes: int, mtime_ns: int, uid: int, gid: int) -> bytes:
    """Return a fuse_attr.

    st_nlink of a directory is 1, which tells find and rsync that it does not count subdirectories (as btrfs does):
    the true number is unknown until each directory is listed.  st_blocks is what the content would occupy, so that du
    shows the size of the data set, cached or not.  st_blksize 0 lets the kernel say 4096: stdio and Python size their
    buffers by it, and a large one costs small files an allocation per open.
    """
    seconds, nanoseconds = divmod(mtime_ns, _NS)
    blocks = (size_bytes + 511) // 512
    times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)
    return ATTR.pack(ino, size_bytes, blocks, *times, mode, 1, uid, gid, 0, 0, 0)


def moved_attr(attr: bytes, mtime_ns: int) -> bytes:
    """Return a fuse_attr with other times."""
    fields = ATTR.unpack(attr)
    seconds, nanoseconds = divmod(mtime_ns, _NS)
    times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)
    return ATTR.pack(*fields[:3], *times, *fields[9:])


def touched(value: bytes | memoryview, now_ns: int) -> bytes:
    """Return an inode record, or a fuse_attr, with mtime and ctime of now, but later than its mtime in any case."""
    record = bytearray(value)
    seconds, nanoseconds = _SECONDS.unpack_from(record, _MTIME_AT)[0], _NANOSECONDS.unpack_from(record, _MTIME_NS_AT)[0]
    seconds, nanoseconds = divmod(max(now_ns, seconds * _NS + nanoseconds + 1), _NS)
    _SECONDS.pack_into(record, _MTIME_AT, seconds, seconds)
    _NANOSECONDS.pack_into(record, _MTIME_NS_AT, nanoseconds, nanoseconds)
    return bytes(record)


def with_links(inode: Inode, links: int) -> Inode:
    """Return a record with another st_nlink."""
    fields = ATTR.unpack(inode.attr)
    return replace(inode, attr=ATTR.pack(*fields[:10], links, *fields[11:]))


def attr_with(
    attr: bytes,
    *,
    size_bytes: int | None = None,
    blocks: int | None = None,
    atime_ns: int | None = None,
    mtime_ns: int | None = None,
    ctime_ns: int | None = None,
    mode: int | None = None,
    links: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    rdev: int | None = None,
) -> bytes:
    """Return a fuse_attr in which these fields have other values.  Times before 1970 are negative."""
    fields = list(ATTR.unpack(attr))
    new = {1: size_bytes, 2: blocks, 9: mode, 10: links, 11: uid, 12: gid, 13: rdev}
    for at, time_ns in ((3, atime_ns), (4, mtime_ns), (5, ctime_ns)):
        if time_ns is not None:
            seconds, fields[at + 3] = divmod(time_ns, _NS)
            fields[at] = seconds & _U64_MAX
    for at, value in new.items():
        if value is not None:
            fields[at] = value
    return ATTR.pack(*fields)


def attr_times_ns(attr: bytes) -> tuple[int, int, int]:
    """Return (atime, mtime, ctime) of a fuse_attr."""
    fields = ATTR.unpack(attr)
    times = []
    for at in (3, 4, 5):
        seconds = fields[at] - (_U64_MAX + 1) if fields[at] >> 63 else fields[at]
        times.append(seconds * _NS + fields[at + 3])
    return times[0], times[1], times[2]


def directory_inode(ino: int, key: str, mtime_ns: int, owner: Ownership) -> Inode:
    """Return the record of a directory that was not listed yet."""
    attr = make_attr(ino, stat.S_IFDIR | owner.dir_mode, 0, mtime_ns, owner.uid, owner.gid)
    return Inode(ino, attr, 0, 0, "", "", key)


def file_inode(ino: int, key: str, version: Version, owner: Ownership) -> Inode:
    """Return the record of one version of an object."""
    mode = stat.S_IFREG | owner.file_mode
    attr = make_attr(ino, mode, version.size_bytes, version.mtime_ns, owner.uid, owner.gid)
    flags = FLAG_SMALL if owner.is_small(key, version.size_bytes) else 0
    return Inode(ino, attr, 0, flags, version.etag, version.version_id, key)

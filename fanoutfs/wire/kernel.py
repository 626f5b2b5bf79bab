"""Constants and struct layouts of <linux/fuse.h> (7.45), with the kernel's own spelling.

Every process uses them.  All integers are in host byte order, every struct is packed as on a 64-bit kernel.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Final

FUSE_KERNEL_VERSION: Final = 7
FUSE_KERNEL_MINOR_VERSION: Final = 45
"""The newest minor this code was written against; the answer to INIT carries the smaller of this and the kernel's."""
FUSE_MINIMUM_MINOR: Final = 31
"""Linux 5.4.  Older kernels lack EXPLICIT_INVAL_DATA and CACHE_SYMLINKS, which the design rests on."""


class Opcode(IntEnum):
    """Request codes.  NOTIFY codes are another space: see `Notify`."""

    LOOKUP = 1
    FORGET = 2  # no reply
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36  # may go unanswered
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42  # no reply
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Notify(IntEnum):
    """Codes of unsolicited messages to the kernel; they stand in the error field, with unique 0."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RESEND = 7
    INC_EPOCH = 8


class InitFlag(IntEnum):
    """Bits of fuse_init_in.flags | flags2 << 32."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    HAS_EXPIRE_ONLY = 1 << 35
    HAS_RESEND = 1 << 39


class SetattrValid(IntFlag):
    """Bits of fuse_setattr_in.valid."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


WRITE_CACHE: Final = 1 << 0
"""fuse_write_in.write_flags: pages written back later (mmap), nobody waits for the answer's size."""
WRITE_KILL_SUIDGID: Final = 1 << 2
"""fuse_write_in.write_flags: the writer may not keep set-user-ID and set-group-ID bits.  Set for every write of a
process without CAP_FSETID, whatever the file's mode (fs/fuse/file.c of 6.18)."""

UNIQUE_RESEND: Final = 1 << 63
"""Set by the kernel in `unique` of a request that NOTIFY_RESEND delivers again."""
ROOT_NODEID: Final = 1
FUSE_EXPIRE_ONLY: Final = 1

MIN_READ_BUFFER: Final = 8192
"""The kernel refuses a read of /dev/fuse into less than this (FUSE_MIN_READ_BUFFER)."""
MAX_PAGES: Final = 256
MAX_READ_BYTES: Final = MAX_PAGES * 4096

FOREVER_S: Final = (1 << 31) - 1
"""An entry or attribute timeout that never ends in practice (68 years)."""

# len u32, opcode u32, unique u64, nodeid u64, uid u32, gid u32, pid u32, total_extlen u16, padding u16
IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
# len u32, error i32, unique u64
OUT_HEADER: Final = struct.Struct("<IiQ")

# ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags
ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
# nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec; an ATTR follows
ENTRY_OUT_HEAD: Final = struct.Struct("<QQQQII")
# attr_valid, attr_valid_nsec, dummy; an ATTR follows
ATTR_OUT_HEAD: Final = struct.Struct("<QII")
# fh, offset, size, read_flags, lock_owner, flags, padding: READ, READDIR and READDIRPLUS
READ_IN: Final = struct.Struct("<QQIIQII")
# fh, offset, size, write_flags, lock_owner, flags, padding; the data follow
WRITE_IN: Final = struct.Struct("<QQIIQII")
# size, padding
WRITE_OUT: Final = struct.Struct("<II")
# valid, padding, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, unused, uid, gid,
# unused
SETATTR_IN: Final = struct.Struct("<IIQQQQQQIIIIIIII")
# mode, rdev, umask, padding; the name and a NUL follow
MKNOD_IN: Final = struct.Struct("<IIII")
# fh, fsync_flags, padding: FSYNC and FSYNCDIR
FSYNC_IN: Final = struct.Struct("<QII")
# fh, offset, length, mode, padding
FALLOCATE_IN: Final = struct.Struct("<QQQII")
# fh, offset, whence, padding
LSEEK_IN: Final = struct.Struct("<QQII")
# offset
LSEEK_OUT: Final = struct.Struct("<Q")
# getattr_flags, dummy, fh
GETATTR_IN: Final = struct.Struct("<IIQ")
# size, padding; the name and a NUL follow.  LISTXATTR: without the name
GETXATTR_IN: Final = struct.Struct("<II")
# size, padding: how large the answer would be
GETXATTR_OUT: Final = struct.Struct("<II")
# blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding, spare[6]
STATFS_OUT: Final = struct.Struct("<QQQQQIIII24x")
# major, minor, max_readahead, flags, flags2, unused[11]
INIT_IN: Final = struct.Struct("<IIIII44x")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
# map_alignment, flags2, max_stack_depth, request_timeout, unused[11]
INIT_OUT: Final = struct.Struct("<IIIIHHIIHHIIH22x")
# ino, off, namelen, type; the name follows, padded to 8
DIRENT_HEAD: Final = struct.Struct("<QQII")
# ino, off, len
NOTIFY_INVAL_INODE_OUT: Final = struct.Struct("<Qqq")
# parent, namelen, flags; the name and a NUL follow
NOTIFY_INVAL_ENTRY_OUT: Final = struct.Struct("<QII")
# OUT_HEADER (len, error, unique); nodeid, offset, size, padding; the bytes follow
NOTIFY_STORE_HEAD: Final = struct.Struct("<IiQQQII")

IN_HEADER_SIZE: Final = 40
OUT_HEADER_SIZE: Final = 16
ATTR_SIZE: Final = 88
ENTRY_OUT_SIZE: Final = 128

for _struct, _size in (
    (IN_HEADER, IN_HEADER_SIZE),
    (OUT_HEADER, OUT_HEADER_SIZE),
    (ATTR, ATTR_SIZE),
    (ENTRY_OUT_HEAD, ENTRY_OUT_SIZE - ATTR_SIZE),
    (ATTR_OUT_HEAD, 16),
    (READ_IN, 40),
    (WRITE_IN, 40),
    (MKNOD_IN, 16),
    (WRITE_OUT, 8),
    (SETATTR_IN, 88),
    (FSYNC_IN, 16),
    (FALLOCATE_IN, 32),
    (LSEEK_IN, 24),
    (GETATTR_IN, 16),
    (STATFS_OUT, 80),
    (INIT_IN, 64),
    (INIT_OUT, 64),
    (DIRENT_HEAD, 24),
):
    if _struct.size != _size:  # a wrong layout would corrupt every answer: better no import at all
        raise AssertionError(f"struct {_struct.format} has {_struct.size} bytes, the kernel expects {_size}")

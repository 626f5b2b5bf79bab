"""Which opcode is answered how.  One table per kind of mount, checked at import: each opcode has exactly one rule."""

import errno
from dataclasses import dataclass
from typing import Final

from fanoutfs.wire.kernel import FALLOCATE_IN, FSYNC_IN, GETXATTR_IN, LSEEK_IN, MKNOD_IN, SETATTR_IN, WRITE_IN, Opcode


@dataclass(frozen=True, slots=True)
class Rule:
    """What a front does with a request.

    method: name of the method of `Handlers` (behind `changes.` or `forwarding.`: of these parts of it), or "" when the
    answer is always `errno_code`.  is_whole: the method gets the whole request, header included.
    errno_code: 0 means success without a body.  replies: False for requests that must not be answered.
    min_body: bytes that must follow the header; a shorter request is malformed and gets EINVAL.
    """

    method: str = ""
    errno_code: int = 0
    replies: bool = True
    min_body: int = 0
    is_whole: bool = False


_ENOSYS: Final = Rule(errno_code=errno.ENOSYS)
_EROFS: Final = Rule(errno_code=errno.EROFS)

READ_ONLY_RULES: Final[dict[Opcode, Rule]] = {
    Opcode.LOOKUP: Rule("lookup", min_body=2),
    Opcode.GETATTR: Rule("getattr"),
    Opcode.READ: Rule("read", min_body=40),
    Opcode.READDIR: Rule("readdir", min_body=40),
    Opcode.READDIRPLUS: Rule("readdirplus", min_body=40),
    Opcode.STATFS: Rule("statfs"),
    Opcode.FORGET: Rule(replies=False),
    Opcode.BATCH_FORGET: Rule(replies=False),
    Opcode.NOTIFY_REPLY: Rule(replies=False),
    # ENOSYS to these three is the heart of the matter: the kernel never asks again and opens cost nothing.
    Opcode.OPEN: _ENOSYS,
    Opcode.OPENDIR: _ENOSYS,
    Opcode.FLUSH: _ENOSYS,
    # Sent only before the kernel learned that there are no handles.
    Opcode.RELEASE: Rule(),
    Opcode.RELEASEDIR: Rule(),
    Opcode.DESTROY: Rule(),
    # ENOSYS: the kernel does it by itself from now on (default_permissions, page cache, local locks) or reports
    # success (fsync of a file system without dirty data) and never asks again.
    Opcode.ACCESS: _ENOSYS,
    Opcode.FSYNC: _ENOSYS,
    Opcode.FSYNCDIR: _ENOSYS,
    Opcode.SYNCFS: _ENOSYS,
    Opcode.LSEEK: _ENOSYS,
    Opcode.POLL: _ENOSYS,
    Opcode.BMAP: _ENOSYS,
    Opcode.GETLK: _ENOSYS,
    Opcode.SETLK: _ENOSYS,
    Opcode.SETLKW: _ENOSYS,
    Opcode.STATX: _ENOSYS,
    # Every wait for the backend has a deadline, so a request need not be interruptible; the kernel stops asking.
    Opcode.INTERRUPT: _ENOSYS,
    # No extended attributes yet: the kernel turns this into EOPNOTSUPP and never asks again.
    Opcode.GETXATTR: _ENOSYS,
    Opcode.LISTXATTR: _ENOSYS,
    Opcode.IOCTL: Rule(errno_code=errno.ENOTTY),
    Opcode.READLINK: Rule("readlink"),
    # The mount is read-only and the kernel says so itself; this answers after a remount,rw.
    Opcode.SETATTR: _EROFS,
    Opcode.SYMLINK: _EROFS,
    Opcode.MKNOD: _EROFS,
    Opcode.MKDIR: _EROFS,
    Opcode.UNLINK: _EROFS,
    Opcode.RMDIR: _EROFS,
    Opcode.RENAME: _EROFS,
    Opcode.RENAME2: _EROFS,
    Opcode.LINK: _EROFS,
    Opcode.WRITE: _EROFS,
    Opcode.CREATE: _EROFS,
    Opcode.TMPFILE: _EROFS,
    Opcode.SETXATTR: _EROFS,
    Opcode.REMOVEXATTR: _EROFS,
    Opcode.FALLOCATE: _EROFS,
    Opcode.COPY_FILE_RANGE: _EROFS,
    Opcode.COPY_FILE_RANGE_64: _EROFS,
    # The keeper has done this before any front starts, or the kernel never sends it without having been asked.
    Opcode.INIT: Rule(errno_code=errno.EIO),
    Opcode.SETUPMAPPING: _ENOSYS,
    Opcode.REMOVEMAPPING: _ENOSYS,
}

_FORWARD: Final = Rule("forwarding.forward", is_whole=True)

READ_WRITE_RULES: Final[dict[Opcode, Rule]] = READ_ONLY_RULES | {
    Opcode.WRITE: Rule("changes.write", min_body=WRITE_IN.size),
    Opcode.FALLOCATE: Rule("changes.fallocate", min_body=FALLOCATE_IN.size),
    Opcode.LSEEK: Rule("changes.lseek", min_body=LSEEK_IN.size),
    Opcode.FSYNC: Rule("forwarding.fsync", min_body=FSYNC_IN.size, is_whole=True),
    Opcode.FSYNCDIR: Rule("forwarding.fsync", min_body=FSYNC_IN.size, is_whole=True),
    Opcode.SETATTR: Rule("forwarding.setattr", min_body=SETATTR_IN.size, is_whole=True),
    Opcode.GETXATTR: Rule("forwarding.getxattr", min_body=GETXATTR_IN.size + 2, is_whole=True),
    Opcode.LISTXATTR: Rule("forwarding.listxattr", min_body=GETXATTR_IN.size),
    Opcode.SYMLINK: _FORWARD,
    Opcode.MKNOD: Rule("creating.mknod", min_body=MKNOD_IN.size + 2, is_whole=True),
    Opcode.MKDIR: _FORWARD,
    Opcode.UNLINK: _FORWARD,
    Opcode.RMDIR: _FORWARD,
    Opcode.RENAME: _FORWARD,
    Opcode.RENAME2: _FORWARD,
    Opcode.LINK: _FORWARD,
    Opcode.SETXATTR: _FORWARD,
    Opcode.REMOVEXATTR: _FORWARD,
    # ENOSYS: from now on the kernel creates files with MKNOD and opens them by itself, without a handle to release.
    Opcode.CREATE: _ENOSYS,
    # ENOSYS: O_TMPFILE is EOPNOTSUPP from now on, and copy_file_range(2) reads and writes.
    Opcode.TMPFILE: _ENOSYS,
    Opcode.COPY_FILE_RANGE: _ENOSYS,
    Opcode.COPY_FILE_RANGE_64: _ENOSYS,
}

for _rules in (READ_ONLY_RULES, READ_WRITE_RULES):
    if missing := set(Opcode) - set(_rules):
        raise AssertionError(f"opcodes without a rule: {sorted(missing)}")


def rules_of(*, read_only: bool) -> dict[Opcode, Rule]:
    """Return the rules of a mount."""
    return READ_ONLY_RULES if read_only else READ_WRITE_RULES

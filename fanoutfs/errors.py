"""Every error fanoutfs raises on purpose, with the errno a reader sees and the exit code a shell sees.

Owned by no process: the layer everything else may import.  Two tables live here and nowhere else:

* `FanoutError.errno_code`: what a FUSE request that meets the error is answered with;
* `FanoutError.exit_code`: what the command line exits with.  The codes are stable: scripts may test them.

Names say the cause, not the place.  Raise the narrowest class, with the values that explain it in the message:
the message is shown to a person as one line.
"""

import errno
import os
from typing import Final

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
"""What a local disk that is full, or a quota of it, answers to a write."""


class FanoutError(Exception):
    """Base of all errors of this package; the message is one line for a person."""

    errno_code: int = errno.EIO
    exit_code: int = 1


# --- command line and set-up: a mount that cannot start --------------------------------------------------------


class UsageError(FanoutError):
    """An option or argument that makes no sense: unknown key, wrong unit, impossible combination."""

    exit_code = 2


class MountpointError(FanoutError):
    """The mountpoint is missing, not a directory, not empty, or already mounted."""

    exit_code = 10


class MountBusyError(FanoutError):
    """`umount` was refused because a process still uses the mount."""

    exit_code = 11


class NotMountedError(FanoutError):
    """The path names no fanoutfs mount."""

    exit_code = 12


class FuseUnavailableError(FanoutError):
    """No /dev/fuse, no fusermount3, or the kernel is too old."""

    exit_code = 13


class MountDeniedError(FanoutError):
    """The kernel or fusermount3 refused: no privilege, or allow_other without user_allow_other."""

    exit_code = 14


class CacheInUseError(FanoutError):
    """Another daemon holds the lock of the cache directory."""

    exit_code = 15


class CacheUnusableError(FanoutError):
    """The cache directory has the wrong owner or mode, a newer format, or cannot be written."""

    exit_code = 16


class DaemonDiedError(FanoutError):
    """A process of the daemon ended before the mount answered; the log says why."""

    exit_code = 17


class RegressionError(FanoutError):
    """`bench`: a figure is worse than the baseline's, beyond the noise bound; everything was measured and written."""

    exit_code = 40


# --- backend: what an object store can answer ------------------------------------------------------------------


class BackendError(FanoutError):
    """The store failed in a way that a retry will not mend."""

    errno_code = errno.EIO
    exit_code = 20


class CredentialsError(BackendError):
    """No credentials, or the store rejected them (401, 403 with a signature or expiry code)."""

    errno_code = errno.EACCES
    exit_code = 21


class BucketMissingError(BackendError):
    """The bucket, container or directory of the source does not exist.

    EIO: an ENOENT of getdents(2) is an empty directory to the C library, and to `rsync --delete`.
    """

    exit_code = 22


class AccessDeniedError(BackendError):
    """The credentials are good, this object or this operation is not allowed (403 AccessDenied)."""

    errno_code = errno.EACCES
    exit_code = 23


class ObjectMissingError(BackendError):
    """The object does not exist (any more) (404).

    ESTALE, as for BucketMissingError: the name was there when it was looked up.
    """

    errno_code = errno.ESTALE


class VersionGoneError(BackendError):
    """The object exists, but not in the version asked for (412, or an answer with another ETag)."""

    errno_code = errno.ESTALE


class ArchivedError(BackendError):
    """The object is in a storage class that is read only after a restore (S3 InvalidObjectState, Azure BlobArchived).

    ENODATA, as Lustre says of a file that is released and cannot be brought back: nothing is wrong with the name, the
    rights or the store, the bytes are not there now.
    """

    errno_code = errno.ENODATA
    exit_code = 27


class PreconditionFailedError(BackendError):
    """A conditional change did not happen: the object is not in the version (or not absent) that was expected.

    A foreign change; whoever writes makes a conflict of it, nobody overwrites.
    """

    errno_code = errno.ESTALE


class ReadOnlyStoreError(BackendError):
    """The store takes no changes at all: an http source, a server without this method."""

    errno_code = errno.EROFS


class StoreFullError(BackendError):
    """The store has no room or a quota is reached: 507, QuotaExceeded, ENOSPC of a directory."""

    errno_code = errno.ENOSPC


class MetadataTooLargeError(BackendError):
    """An object cannot hold these attributes: more than 2 KiB of them, or a name that is not UTF-8."""

    errno_code = errno.ENOSPC


class UploadMissingError(BackendError):
    """The store does not know this multipart upload (any more): completed, aborted, or expired by a rule."""


class UnsupportedError(BackendError):
    """The store cannot do this (see Abilities); the caller has another way."""

    errno_code = errno.EOPNOTSUPP


class TransientError(BackendError):
    """The store or the way to it failed for now: 429, 5xx, reset, timeout, short or wrong body.  Worth a retry.

    retry_after_s: what the store asked for (Retry-After), or None.
    is_settled: nothing comes of the request any more: it was answered, or never sent.
    """

    exit_code = 24

    def __init__(self, message: str, retry_after_s: float | None = None, *, is_settled: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_settled = is_settled


class DisorderedListingError(BackendError):
    """The store lists keys in no order, where one is needed (S3 directory buckets do)."""

    exit_code = 25


class DeadlineError(BackendError):
    """The retries did not succeed within the time an operation may take."""

    exit_code = 24


# --- inside a running mount ------------------------------------------------------------------------------------


class StaleInodeError(FanoutError):
    """The kernel named an inode that the index no longer has."""

    errno_code = errno.ESTALE


class NotADirectoryInIndexError(FanoutError):
    """A directory operation on an inode that is not a directory."""

    errno_code = errno.ENOTDIR


class RefusedError(FanoutError):
    """POSIX says no to a change of the namespace: the name exists, the directory is not empty.  Carries its errno."""

    def __init__(self, errno_code: int, what: str = "") -> None:
        super().__init__(what or os.strerror(errno_code))
        self.errno_code = errno_code


class NamesUnknownError(FanoutError):
    """A directory's names are not all known, or were some time ago: the store may have one that is to be made."""


class CacheFullError(FanoutError):
    """There is no room in the cache and nothing can be evicted; the caller reads through instead."""

    errno_code = errno.ENOSPC


class DiskGoneError(FanoutError):
    """A cache directory on a disk of its own was taken out of service; the caller takes another one."""


class DatabaseError(FanoutError):
    """LMDB refused a change: the disk is full or failing, or the map is; nothing of the change is in the file."""


class IndexFullError(DatabaseError):
    """The disk has no room for a change of the index."""

    errno_code = errno.ENOSPC


class StoreBrokenError(DatabaseError):
    """A database of the cache is damaged inside: it is put away, and the next generation begins without it."""


class InvariantError(FanoutError):
    """Something that cannot be was: the request fails with EIO and is logged; nothing is papered over."""

"""What reading and writing a directory of files (local.py, localwrite.py) have in common: versions, names, errors."""

import errno
import os
from typing import Final

from fanoutfs.backend.keys import is_same_version
from fanoutfs.errors import (
    NO_ROOM,
    AccessDeniedError,
    BackendError,
    ObjectMissingError,
    ReadOnlyStoreError,
    StoreFullError,
    TransientError,
    VersionGoneError,
)
from fanoutfs.records import Version

SCRATCH_PREFIX: Final = ".fanoutfs-"
"""How the names of files begin that are being written; no listing shows them."""
MISSING: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
# What a network file system under the directory says when it is gone for now.
_TRANSIENT: Final = (errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EHOSTDOWN, errno.ENETUNREACH)


def is_scratch(name: str) -> bool:
    """Return whether this is the name of something that is being written."""
    return name.startswith(SCRATCH_PREFIX)


def version_of(found: os.stat_result) -> Version:
    """Return the version of a file."""
    etag = f"{found.st_dev:x}-{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}-{found.st_size:x}"
    return Version(etag, "", found.st_size, found.st_mtime_ns)


def translate(error: OSError, what: str, *, is_write: bool = False) -> BackendError:
    """Return the error that a failed system call means."""
    text = f"{what}: {error.strerror}"
    if error.errno in NO_ROOM:
        return StoreFullError(text)
    if error.errno == errno.EROFS:
        return ReadOnlyStoreError(text)
    if error.errno in MISSING:
        # A file where a directory is needed, or a name that is too long, is no missing object to a writer.
        return BackendError(text) if is_write and error.errno != errno.ENOENT else ObjectMissingError(text)
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessDeniedError(text)
    if error.errno == errno.ESTALE:
        return TransientError(text) if is_write else VersionGoneError(text)
    return TransientError(text) if error.errno in _TRANSIENT else BackendError(text)


def is_version(found: os.stat_result, asked: Version) -> bool:
    """Tell whether a file is in the version asked for; its modification time here is what somebody said it is."""
    return is_same_version(asked, version_of(found).etag, found.st_size, found.st_mtime_ns)

"""Whether a volume that nobody uses holds what the store does not have: then it is no cache, and must not be deleted.

Any process that has the lock of the cache directory.
"""

import errno
import os
from pathlib import Path

import lmdb

from fanoutfs.cache.staging import KEY_XATTR
from fanoutfs.index import lockfile
from fanoutfs.index.store import FILE_NAME, IndexEnvironment


def holds_unsaved(volume: Path) -> bool:
    """Tell whether names or contents were changed here that the store does not have; when in doubt, yes.  Blocks."""
    if (volume / FILE_NAME).exists():
        try:
            lockfile.begin_anew(volume)
            environment = IndexEnvironment(volume, writable=False)
        except (lmdb.Error, OSError):
            return _has_staged(volume)  # broken, or of an older version
        try:
            with environment.env.begin() as txn:
                return any(txn.stat(each)["entries"] for each in (environment.dirty, environment.departed))
        except lmdb.Error:
            return True
        finally:
            environment.close()
    return _has_staged(volume)


def _has_staged(volume: Path) -> bool:
    """Tell whether a staging file was ever given a content or a name; others were only made ahead of need."""
    try:
        with os.scandir(volume / "staging") as entries:
            return any(entry.stat(follow_symlinks=False).st_size or _has_key(entry.path) for entry in entries)
    except FileNotFoundError:
        return False


def _has_key(path: str) -> bool:
    try:
        return KEY_XATTR in os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        return error.errno != errno.ENOTSUP

"""One GET of exactly the version an inode stands for.  Blocking, for worker threads of the core."""

from fanoutfs.backend.base import Backend, Landing
from fanoutfs.errors import InvariantError, ObjectMissingError, VersionGoneError
from fanoutfs.index.format import Inode


def fetch_version(backend: Backend, inode: Inode, start: int, end: int, into: Landing | None = None) -> memoryview:
    """Return bytes [start, end) of the inode's version.  Raises BackendError, InvariantError.

    into: where to put them, if anywhere (see Backend.get_range).
    """
    try:
        data = backend.get_range(inode.key, start, end, inode.version, into)
    except ObjectMissingError as error:
        # Whoever reads has the file open: its name was there, and ENOENT is no answer to read().
        raise VersionGoneError(f"{inode.key}: the object is gone") from error
    if len(data) != end - start:
        raise InvariantError(f"{inode.key} [{start}, {end}): the backend handed over {len(data)} bytes")
    return data

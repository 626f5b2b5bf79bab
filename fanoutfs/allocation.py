"""fallocate(2) with its modes, and syncfs(2), which Python does not have."""

import ctypes
import os
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def sync_file_system(fd: int) -> None:
    """Write back all of the file system of an open file.  Blocks.  Raises OSError."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change which space of the disk a range of bytes has, as `mode` says.  Blocks.  Raises OSError."""
    if _libc.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

"""One front's /dev/fuse: requests from the kernel, answers to them."""

import errno
import logging
import os
from typing import Final

from fanoutfs.observe.catalog import Count
from fanoutfs.wire.kernel import OUT_HEADER, OUT_HEADER_SIZE
from fanoutfs.wire.messages import encode_error

log = logging.getLogger(__name__)

_GONE: Final = (errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED)


class UnmountedError(Exception):
    """The mount is gone; the front has nothing left to do."""


class KernelChannel:
    """Reads requests and writes answers.  Owned by one front."""

    def __init__(self, fuse_fd: int, row: memoryview) -> None:
        self._fd = fuse_fd
        self._row = row

    def read(self, buffer: memoryview) -> int:
        """Return the length of the next request, 0 when it was withdrawn, -1 when there is none.

        Raises UnmountedError.
        """
        try:
            return os.readv(self._fd, (buffer,))
        except BlockingIOError:
            return -1
        except OSError as error:
            if error.errno in _GONE:
                raise UnmountedError from error
            if error.errno in (errno.ENOENT, errno.EINTR):
                return 0  # the request was interrupted before anyone read it
            raise

    def answer(self, unique: int, *parts: bytes | memoryview) -> None:
        """Answer with success; the parts are sent as they are, without being joined."""
        length = OUT_HEADER_SIZE
        for part in parts:
            length += len(part)
        try:
            os.writev(self._fd, (OUT_HEADER.pack(length, 0, unique), *parts))
        except OSError as error:
            self._refused(error, unique)

    def forward(self, unique: int, packet: bytes | bytearray) -> None:
        """Pass on a whole answer, header included."""
        try:
            os.write(self._fd, packet)
        except OSError as error:
            self._refused(error, unique)

    def error(self, unique: int, errno_code: int) -> None:
        """Answer with an error (positive errno)."""
        try:
            os.write(self._fd, encode_error(unique, errno_code))
        except OSError as error:
            self._refused(error, unique)

    def _refused(self, error: OSError, unique: int) -> None:
        if error.errno == errno.ENOENT:
            # The request was delivered again (NOTIFY_RESEND) or its process was killed: somebody else's business.
            self._row[Count.LATE_ANSWERS] += 1
        elif error.errno in _GONE:
            raise UnmountedError from error
        else:
            self._row[Count.REQUEST_ERRORS] += 1
            log.error("the kernel refused an answer unique=%#x: %s", unique, error)
            if error.errno != errno.EINVAL:
                return
            try:  # the request must not hang because its answer was malformed
                os.write(self._fd, encode_error(unique, errno.EIO))
            except OSError:
                log.error("and an error in its place unique=%#x", unique)

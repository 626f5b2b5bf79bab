"""The process that writes notifications to the kernel, and does nothing else.

The kernel may hold such a write, uninterruptibly, until a request in the same directory is answered.  A thread of the
core that hangs there would keep a dead core from ending, and so from being replaced by the one that would answer.
Here it harms nobody: this process holds no request, no lock and no memory of others, and each generation has its own.
"""

import os
import socket
from typing import Final

from fanoutfs.wire.relay import NOTIFY_OUTCOME_BYTES

_MAX_MESSAGE: Final = 65536


def run(fuse_fd: int, channel: socket.socket) -> int:
    """Write each packet to /dev/fuse and answer with its errno (u32, little-endian; 0: delivered) until EOF."""
    try:
        while message := channel.recv(_MAX_MESSAGE):
            code = 0
            try:
                os.write(fuse_fd, message)
            except OSError as error:
                code = error.errno or 5
            channel.send(code.to_bytes(NOTIFY_OUTCOME_BYTES, "little"))
    except ConnectionError:
        pass  # the core was killed with answers of ours unread: the end as well
    return 0

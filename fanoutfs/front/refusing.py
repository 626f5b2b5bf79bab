"""What is left of a front that cannot open the cache while no core can start either: it answers EIO.

Whoever waits for an answer that never comes cannot even be killed.  See keeper.starts for when it is time to refuse.
"""

import errno
import select
from typing import Final

from fanoutfs.front.dispatch import rules_of
from fanoutfs.front.kernel import KernelChannel
from fanoutfs.observe.shared import CURRENT_UNIQUE, REFUSING
from fanoutfs.wire.kernel import IN_HEADER, MAX_READ_BYTES

_LOOK_MS: Final = 500
"""How soon a front that may be wanted again ends, to be replaced by one that tries."""


def refuse(fuse_fd: int, kernel: KernelChannel, row: memoryview, flags: memoryview, *, read_only: bool) -> None:
    """Answer every request with EIO until a core serves.  Raises UnmountedError.

    row: of the front.
    """
    replies: dict[int, bool] = {int(opcode): rule.replies for opcode, rule in rules_of(read_only=read_only).items()}
    buffer = memoryview(bytearray(MAX_READ_BYTES + 8192))
    poller = select.poll()
    poller.register(fuse_fd, select.POLLIN)
    while flags[REFUSING]:
        if not poller.poll(_LOOK_MS) or kernel.read(buffer) <= 0:
            continue
        _length, opcode, unique, *_rest = IN_HEADER.unpack_from(buffer)
        row[CURRENT_UNIQUE] = unique
        if not flags[REFUSING]:
            return  # it is delivered again to the next front, or answered by the keeper
        if replies.get(opcode, True):
            kernel.error(unique, errno.EIO)
        row[CURRENT_UNIQUE] = 0

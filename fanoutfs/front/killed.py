"""Whether the process behind a request is being killed: then nobody wants the answer, and it cannot end without one.

A FUSE request that was read must be answered, whatever becomes of the process (the kernel waits it out).  The kernel's
INTERRUPT does not say which signal came, and a write(2) to a regular file must not fail with EINTR because of a timer;
/proc does.  A fatal signal of any kind, unless it dumps core, becomes a SIGKILL pending to each thread of the process
(complete_signal in kernel/signal.c).
"""

import signal
from typing import Final

_PENDING: Final = ("SigPnd:", "ShdPnd:")
_SIGKILL_BIT: Final = 1 << signal.SIGKILL - 1


def is_being_killed(pid: int) -> bool:
    """Tell whether a thread, by its number in a FUSE header, has SIGKILL pending.

    False for one that is not visible: it cannot be gone as long as it waits for this request, but one that has handed
    an asynchronous write over can, and its process goes on.  0: nobody's request (pages written back).
    """
    if not pid:
        return False
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return False
    return any(int(line.split()[1], 16) & _SIGKILL_BIT for line in lines if line.startswith(_PENDING))

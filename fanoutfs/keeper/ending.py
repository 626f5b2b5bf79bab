"""Waiting for a child to end, and helping it.  Any process; loads little."""

import os
import select
import signal


def reap_within(pid: int, timeout_s: float, *helped_by: tuple[signal.Signals, float]) -> int | None:
    """Return the exit code of a child (negative: the signal that ended it), reaped; None: it stays.

    timeout_s: how long it may take by itself.  helped_by: what it is sent then, one after the other, and how long it
    may take each time.  A child that the kernel holds does not even end by SIGKILL; it is left to its fate.
    Raises ProcessLookupError, ChildProcessError when there is no such child.
    """
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        has_ended = bool(poller.poll(timeout_s * 1000))
        for number, patience_s in helped_by:
            if has_ended:
                break
            signal.pidfd_send_signal(pidfd, number)
            has_ended = bool(poller.poll(patience_s * 1000))
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if has_ended else None

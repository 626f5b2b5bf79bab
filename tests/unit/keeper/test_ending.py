"""Waiting for a child, and helping it to end."""

import os
import signal
from collections.abc import Callable

import pytest

from fanoutfs.keeper.ending import reap_within


def child(run: Callable[[], object]) -> int:
    """Fork a child that has come as far as `run` when this returns, and exits with 3 after it."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(told, b".")
        run()
        os._exit(3)
    os.close(told)
    os.read(ready, 1)
    os.close(ready)
    return pid


def test_child_that_ends_is_reaped_and_gets_no_signal() -> None:
    pid = child(lambda: None)
    assert reap_within(pid, 30, (signal.SIGKILL, 30)) == 3
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def test_child_that_does_not_hear_one_signal_gets_the_next() -> None:
    assert reap_within(child(signal.pause), 0, (signal.SIGTERM, 0.05), (signal.SIGKILL, 30)) == -signal.SIGKILL


def test_child_that_stays_is_left_there() -> None:
    pid = child(signal.pause)
    assert reap_within(pid, 0, (signal.SIGTERM, 0.05)) is None
    assert reap_within(pid, 0, (signal.SIGKILL, 30)) == -signal.SIGKILL


def test_no_such_child_is_an_error() -> None:
    pid = child(lambda: None)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        reap_within(pid, 0)

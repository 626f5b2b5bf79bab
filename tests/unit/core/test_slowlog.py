"""What the core keeps of slow requests."""

import logging
import os
import threading

import pytest

from fanoutfs.core.slowlog import ENDED, find_process


def test_thread_is_named_by_its_process() -> None:
    told: list[int] = []
    go_on = threading.Event()
    ready = threading.Event()

    def run() -> None:
        told.append(threading.get_native_id())
        ready.set()
        go_on.wait()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        assert told[0] != os.getpid()
        found = find_process(told[0])
        assert found.pid == os.getpid()
        assert found.command == find_process(os.getpid()).command != ""
    finally:
        go_on.set()
        thread.join()


def test_ended_process_and_kernel_are_named_so() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert find_process(pid).command == ENDED
    assert find_process(0).command == "(kernel)"


def test_levels_of_the_log_have_numbers() -> None:
    from fanoutfs.config.schema import LOG_LEVELS
    from fanoutfs.observe.logs import level_number

    assert [level_number(name) for name in LOG_LEVELS] == sorted(level_number(name) for name in LOG_LEVELS)
    assert level_number("debug") == logging.DEBUG
    with pytest.raises(KeyError):
        level_number("loud")

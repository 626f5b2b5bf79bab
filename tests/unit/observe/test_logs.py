"""Repeating messages are dropped and counted."""

import logging

import pytest

from fanoutfs.observe import logs


def records(times: int, level: int) -> list[logging.LogRecord]:
    return [logging.LogRecord("n", level, "/file.py", 7, "event n=%d", (n,), None) for n in range(times)]


def test_repeating_warning_is_written_once_a_second_with_the_number_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("fanoutfs.observe.logs.time.monotonic", lambda: now)
    repeat = logs._RepeatFilter()
    made = records(4, logging.WARNING)
    assert [repeat.filter(record) for record in made[:3]] == [True, False, False]
    now = 1001.5
    assert repeat.filter(made[3])
    assert made[3].getMessage() == "event n=3 repeats_dropped=2"


def test_information_is_never_dropped() -> None:
    repeat = logs._RepeatFilter()
    assert all(repeat.filter(record) for record in records(5, logging.INFO))


def test_other_call_site_has_its_own_limit() -> None:
    repeat = logs._RepeatFilter()
    first, second = records(2, logging.ERROR)
    second.lineno = 8
    assert repeat.filter(first)
    assert repeat.filter(second)

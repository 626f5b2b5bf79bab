"""Repeating messages are dropped and counted."""

import json
import logging
import os
import sys

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


def test_json_is_one_object_a_line_whatever_the_message() -> None:
    formatter = logs._JsonFormatter("core")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("fanoutfs.x", logging.ERROR, "/f.py", 7, 'event key="%s"', ("a\nb",), sys.exc_info())
    line = formatter.format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["process"], found["message"]) == ("error", "core", 'event key="a\nb"')
    assert "two\nlines" in found["exception"]


def test_line_for_which_the_disk_has_no_room_is_dropped_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", closefd=True)
    handler = logs._LineHandler(full)
    for record in records(2, logging.ERROR):
        handler.handle(record)
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(OSError, match="No space"):
        full.close()  # (what it could not write)

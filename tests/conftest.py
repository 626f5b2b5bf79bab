"""What every test shares: fixtures, and a loud failure where the machine lacks what a real mount needs."""

import os
from pathlib import Path

import pytest

from fanoutfs.observe.damon import is_paging_out
from tests.support.fixtures import *  # noqa: F403 - fixtures are found by name

ORDER = ("model", "fault", "mount", "perf", "contract", "unit", "golden")
"""Of the directories.  Workers take a file at a time: the ones that take a minute first, those of a second at the end,
so that no worker is left with a long one while the others have none."""


def pytest_report_header() -> list[str]:
    """Say what may cost a test that counts messages a page now and then, through no fault of its own."""
    return ["DAMON pages out cold memory of this machine: cached pages may go at any time"] if is_paging_out() else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first.  Refuse to start without root and /dev/fuse: a suite that skips silently proves nothing."""
    items.sort(key=_place)
    needs_kernel = [item for item in items if {"mount", "fault", "perf", "model"} & set(item.path.parts)]
    if needs_kernel and (os.geteuid() != 0 or not Path("/dev/fuse").exists()):
        pytest.exit("these tests mount real file systems: run as root on a machine with /dev/fuse", returncode=3)


def _place(item: pytest.Item) -> int:
    directory = item.path.relative_to(Path(__file__).parent).parts[0]
    return ORDER.index(directory) if directory in ORDER else len(ORDER)

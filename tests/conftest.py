"""What every test shares: fixtures, and a loud failure where the machine lacks what a real mount needs."""

import os
from pathlib import Path

import pytest

from tests.support.fixtures import *  # noqa: F403 - fixtures are found by name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse to start without root and /dev/fuse: a suite that skips silently proves nothing."""
    needs_kernel = [item for item in items if {"mount", "fault", "perf", "model"} & set(item.path.parts)]
    if needs_kernel and (os.geteuid() != 0 or not Path("/dev/fuse").exists()):
        pytest.exit("these tests mount real file systems: run as root on a machine with /dev/fuse", returncode=3)

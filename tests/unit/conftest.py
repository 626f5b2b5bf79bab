"""Fixtures of the unit tests: no mount, no server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.index.store import IndexEnvironment
from tests.unit.indexes import open_index


@pytest.fixture
def index(tmp_path: Path) -> Iterator[IndexEnvironment]:
    """An empty index with a root."""
    with open_index(tmp_path) as environment:
        yield environment

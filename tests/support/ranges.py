"""The two ways to get a range of an object: as it comes, and into memory that is there already."""

from collections.abc import Callable
from typing import Final

from fanoutfs.backend.base import Backend, Landing
from fanoutfs.records import Version

Get = Callable[[Backend, str, int, int, Version], memoryview]


def get(backend: Backend, key: str, start: int, end: int, version: Version) -> memoryview:
    """Get bytes [start, end)."""
    return backend.get_range(key, start, end, version)


def get_into(backend: Backend, key: str, start: int, end: int, version: Version) -> memoryview:
    """Get bytes [start, end) into memory of ours."""
    buffer = memoryview(bytearray(b"?" * (end - start)))
    body = backend.get_range(key, start, end, version, Landing(buffer))
    assert body.obj is buffer.obj, "where it was wanted"
    return body


WAYS: Final = (get, get_into)

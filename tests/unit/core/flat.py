"""A source directory that keeps markers as object stores do."""

import contextlib
from pathlib import Path

from fanoutfs.backend.writing import Body, Condition, Expect, Properties
from fanoutfs.errors import FanoutError
from fanoutfs.records import ObjectInfo, Version
from tests.unit.core.rig import PagedBackend


class FlatBackend(PagedBackend):
    """A directory that goes with its last file, as prefixes do in object stores, unless it was made for itself."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.root = Path(directory)
        self.markers: set[str] = set()

    def put(self, key: str, body: Body, condition: Condition, properties: Properties) -> Version:
        is_new = key.endswith("/") and key not in self.markers
        if is_new:
            self.markers.add(key)
        try:
            return super().put(key, body, condition, properties)
        except FanoutError:
            if is_new:
                self.markers.discard(key)
            self._collapse(key)
            raise

    def copy(self, source: ObjectInfo, key: str, condition: Condition, properties: Properties | None) -> Version:
        try:
            return super().copy(source, key, condition, properties)
        except FanoutError:
            self._collapse(key)
            raise

    def delete(self, key: str, condition: Condition = Expect.ANYTHING) -> None:
        self.markers.discard(key)
        super().delete(key, condition)
        self._collapse(key)

    def _collapse(self, key: str) -> None:
        parts = key.rstrip("/").split("/")
        for end in range(len(parts), 0, -1):
            prefix = "/".join(parts[:end])
            if f"{prefix}/" in self.markers:
                return
            with contextlib.suppress(OSError):
                (self.root / prefix).rmdir()

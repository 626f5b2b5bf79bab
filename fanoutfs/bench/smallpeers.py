"""Ways to keep the contents of small files, reduced to what decides between them: the peers of `bench.smallstore`.

`LmdbValues` keeps checksum and content as an LMDB value.  `Segments` appends contents to files of 64 MiB, one pwritev a
batch, and keeps their places in LMDB; `is_aligned` begins each content on a page, so that a dropped one can be punched
out, otherwise contents lie end to end and a segment with too many dead bytes is written anew without them.  All verify
what they read, and none syncs: contents can be fetched again.  `Shipped` is what mounts use (`cache.smallstore`).
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import lmdb
import trio
import xxhash

from fanoutfs.cache.files import punch_hole
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.index.store import LMDB_ENGINE

Item = tuple[int, memoryview]

SEGMENT_BYTES: Final = 64 << 20
PAGE_BYTES: Final = 4096
_MAP_BYTES: Final = 1 << 37
_KEY: Final = struct.Struct(">Q")
_PLACE: Final = struct.Struct("<QIII")  # xxh3-64, segment, offset, length
_BATCH: Final = 512


class SmallPeer(Protocol):
    """One way.  One thread."""

    name: str

    def put(self, items: Sequence[Item]) -> None:
        """Store a batch in one transaction."""

    def get(self, ino: int) -> memoryview:
        """Return a verified content, valid until the next call."""

    def drop(self, inos: Sequence[int]) -> None:
        """Remove a batch in one transaction."""

    def close(self) -> None:
        """Write everything back and close."""


def verified(content: memoryview, ino: int, checksum: int) -> memoryview:
    """Return the content if it is the one that was stored."""
    if xxhash.xxh3_64_intdigest(content, ino) != checksum:
        raise ValueError(f"content {ino} is damaged")
    return content


def _found(value: memoryview | bytes | None) -> memoryview | bytes:
    if value is None:
        raise ValueError("a content is missing")
    return value


def _open(path: Path) -> lmdb.Environment:
    return lmdb.open(
        os.fspath(path), map_size=_MAP_BYTES, subdir=False, sync=False, metasync=False, readahead=False,
        meminit=False, max_dbs=2, lib_version=LMDB_ENGINE,
    )  # fmt: skip


class LmdbValues:
    """Contents as LMDB values."""

    name = "lmdb"

    def __init__(self, directory: Path) -> None:
        self._env = _open(directory / "values.lmdb")

    def put(self, items: Sequence[Item]) -> None:
        with self._env.begin(write=True) as txn:
            for ino, content in items:
                value = xxhash.xxh3_64_intdigest(content, ino).to_bytes(8, "little") + content
                txn.put(_KEY.pack(ino), value)

    def get(self, ino: int) -> memoryview:
        with self._env.begin(buffers=True) as txn:
            value = memoryview(_found(txn.get(_KEY.pack(ino))))
            return verified(value[8:], ino, int.from_bytes(value[:8], "little"))

    def drop(self, inos: Sequence[int]) -> None:
        with self._env.begin(write=True) as txn:
            for ino in inos:
                txn.delete(_KEY.pack(ino))

    def close(self) -> None:
        self._env.sync(True)
        self._env.close()


class Segments:
    """Contents in append-only files, their places in LMDB.

    live_share: a segment with less of it live is written anew (packed only); advice: for the kernel's read-ahead.
    """

    def __init__(
        self,
        directory: Path,
        *,
        is_aligned: bool,
        live_share: float = 0.0,
        advice: int = os.POSIX_FADV_NORMAL,
        ahead_bytes: int = 0,
    ) -> None:
        self.name = "aligned" if is_aligned else "packed"
        self._directory = directory
        self._is_aligned = is_aligned
        self._live_share = live_share
        self._advice = advice
        self._ahead_bytes = ahead_bytes
        self._ahead: dict[int, int] = {}
        self._env = _open(directory / "places.lmdb")
        self._places = self._env.open_db(b"places")
        self._fds: dict[int, int] = {}
        self._live: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._last = -1
        self._buffer = memoryview(bytearray(2 << 20))

    def _fd(self, segment: int) -> int:
        fd = self._fds.get(segment)
        if fd is None:
            fd = os.open(self._directory / f"{segment:08x}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.posix_fadvise(fd, 0, 0, self._advice)
            self._fds[segment] = fd
        return fd

    def put(self, items: Sequence[Item]) -> None:
        places = self._append(items)
        with self._env.begin(write=True, db=self._places) as txn:
            for key, place in places:
                txn.put(key, place)

    def _append(self, items: Sequence[Item]) -> list[tuple[bytes, bytes]]:
        if self._last < 0 or self._ends[self._last] > SEGMENT_BYTES:
            self._last += 1
            self._live[self._last] = self._ends[self._last] = 0
        segment = self._last
        start = end = self._ends[segment]
        parts: list[memoryview | bytes] = []
        places = []
        for ino, content in items:
            length = len(content)
            checksum = xxhash.xxh3_64_intdigest(content, ino)
            places.append((_KEY.pack(ino), _PLACE.pack(checksum, segment, end, length)))
            parts.append(content)
            end += length
            self._live[segment] += length
            if self._is_aligned and length % PAGE_BYTES:
                parts.append(bytes(-length % PAGE_BYTES))
                end += -length % PAGE_BYTES
        for at in range(0, len(parts), 1024):  # IOV_MAX
            start += os.pwritev(self._fd(segment), parts[at : at + 1024], start)
        if start != end:
            raise OSError("short write")
        self._ends[segment] = end
        return places

    def get(self, ino: int) -> memoryview:
        with self._env.begin(buffers=True, db=self._places) as txn:
            return self._read(ino, _found(txn.get(_KEY.pack(ino))))

    def _read(self, ino: int, place: memoryview | bytes) -> memoryview:
        checksum, segment, offset, length = _PLACE.unpack(place)
        view = self._buffer[:length]
        fd = self._fd(segment)
        if self._ahead_bytes and 0 <= offset - self._ahead.get(segment, 0) < self._ahead_bytes:
            os.posix_fadvise(fd, offset + self._ahead_bytes, self._ahead_bytes, os.POSIX_FADV_WILLNEED)
            self._ahead[segment] = offset + self._ahead_bytes
        os.preadv(fd, [view], offset)
        return verified(view, ino, checksum)

    def drop(self, inos: Sequence[int]) -> None:
        dead = []
        with self._env.begin(write=True, db=self._places) as txn:
            for ino in inos:
                _checksum, segment, offset, length = _PLACE.unpack(_found(txn.pop(_KEY.pack(ino))))
                self._live[segment] -= length
                dead.append((segment, offset, length))
        if self._is_aligned:
            for segment, offset, length in dead:
                punch_hole(self._fd(segment), offset, -(-length // PAGE_BYTES) * PAGE_BYTES)
        elif self._live_share:
            for segment in [each for each in self._live if each != self._last]:
                if self._live[segment] < self._live_share * self._ends[segment]:
                    self._write_anew(segment)

    def _write_anew(self, segment: int) -> None:
        with self._env.begin(db=self._places) as txn:  # a prototype has no list of what a segment holds
            values = ((bytes(key), bytes(value)) for key, value in txn.cursor())
            held = [(_KEY.unpack(key)[0], value) for key, value in values if _PLACE.unpack(value)[1] == segment]
        held.sort(key=lambda pair: _PLACE.unpack(pair[1])[2])
        for at in range(0, len(held), _BATCH):
            self.put([(ino, memoryview(bytes(self._read(ino, place)))) for ino, place in held[at : at + _BATCH]])
        del self._live[segment], self._ends[segment]
        os.close(self._fds.pop(segment))
        (self._directory / f"{segment:08x}").unlink()

    def close(self) -> None:
        for fd in self._fds.values():
            os.fsync(fd)
            os.close(fd)
        self._env.sync(True)
        self._env.close()


class Shipped:
    """The store of a mount."""

    name = "fanoutfs"

    def __init__(self, directory: Path) -> None:
        self._store = SmallStore(directory, _MAP_BYTES, trio.lowlevel.checkpoint)

    def put(self, items: Sequence[Item]) -> None:
        if not all(trio.run(self._store.put_many, items)):
            raise ValueError("the store refused a content")

    def get(self, ino: int) -> memoryview:
        with self._store.reader.begin() as txn:
            content = self._store.reader.get(txn, ino)
        if content is None:
            raise ValueError("a content is missing")
        return content

    def drop(self, inos: Sequence[int]) -> None:
        async def drop_and_tidy() -> None:
            await self._store.drop_many(inos)
            while sparse := self._store.find_sparse():
                await self._store.write_anew(sparse[0])

        trio.run(drop_and_tidy)

    def close(self) -> None:
        self._store.close()

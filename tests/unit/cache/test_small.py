"""The small-file store: contents come back, rot is found, space is bounded, a power cut is noticed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fanoutfs.cache import small as small_format
from fanoutfs.cache.small import SmallMismatchError, SmallReader
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.records import KIB, MIB

Open = Callable[[int], SmallStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    stores: list[SmallStore] = []

    def open_it(map_bytes: int) -> SmallStore:
        stores.append(SmallStore(tmp_path, map_bytes))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def content_of(store: SmallStore, ino: int) -> bytes | None:
    with store._env.begin(buffers=True) as txn:
        found = SmallReader.get(txn, ino)
        return None if found is None else bytes(found)


@pytest.mark.parametrize("size", [0, 1, 4096, 128 * KIB])
async def test_content_comes_back(open_store: Open, size: int) -> None:
    store = open_store(8 * MIB)
    assert not store.has(16)
    assert await store.put(16, memoryview(b"x" * size))
    assert store.has(16)
    assert store.is_intact(16)
    assert content_of(store, 16) == b"x" * size
    assert content_of(store, 17) is None


async def test_dropped_content_is_gone(open_store: Open) -> None:
    store = open_store(8 * MIB)
    await store.put(16, memoryview(b"abc"))
    await store.drop(16)
    await store.drop(16)
    assert not store.has(16)


async def test_rot_is_a_mismatch(open_store: Open, tmp_path: Path) -> None:
    store = open_store(8 * MIB)
    body = b"The quick brown fox jumps over the lazy dog. " * 20
    await store.put(16, memoryview(body))
    path = tmp_path / small_format.FILE_NAME
    at = path.read_bytes().index(body)
    with path.open("r+b") as stream:
        stream.seek(at + 100)
        stream.write(bytes([body[100] ^ 1]))
    assert store.has(16)
    assert not store.is_intact(16)
    with pytest.raises(SmallMismatchError):
        content_of(store, 16)


async def test_store_evicts_within_its_soft_limit(open_store: Open) -> None:
    store = open_store(4 * MIB)
    for ino in range(400):
        assert await store.put(ino, memoryview(bytes([ino % 256]) * (16 * KIB + ino)))
    stat = store._env.stat()
    pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    assert pages * stat["psize"] <= 4 * MIB // 8 * 7
    assert store.file_bytes() <= 4 * MIB
    assert store.evicted > 0
    assert store.has(399)
    kept = [ino for ino in range(400) if store.has(ino)]
    assert len(kept) >= 100, "far fewer are kept than fit"
    assert all(store.is_intact(ino) for ino in kept)


async def test_store_keeps_working_when_large_contents_follow_tiny_ones(open_store: Open) -> None:
    store = open_store(4 * MIB)
    for ino in range(8000):
        await store.put(ino, memoryview(b"tiny" * 100))
    stored = [await store.put(10_000 + n, memoryview(bytes(128 * KIB))) for n in range(200)]
    assert all(stored)


async def test_content_that_is_large_for_the_store_is_refused(open_store: Open) -> None:
    store = open_store(MIB)
    assert not await store.put(16, memoryview(bytes(128 * KIB)))
    assert await store.put(17, memoryview(bytes(4 * KIB)))


async def test_contents_survive_a_restart(open_store: Open, tmp_path: Path) -> None:
    small_format.prepare(tmp_path, 8 * MIB)
    store = SmallStore(tmp_path, 8 * MIB)
    await store.put(16, memoryview(b"abc"))
    store.close()
    small_format.mark_closed(tmp_path)
    small_format.prepare(tmp_path, 8 * MIB)
    assert content_of(open_store(8 * MIB), 16) == b"abc"


async def test_kill_within_one_boot_keeps_the_store(open_store: Open, tmp_path: Path) -> None:
    small_format.prepare(tmp_path, 8 * MIB)
    store = SmallStore(tmp_path, 8 * MIB)
    await store.put(16, memoryview(b"abc"))
    store.close()  # as far as the file goes a killed daemon is the same: it was never marked closed
    small_format.prepare(tmp_path, 8 * MIB)
    assert content_of(open_store(8 * MIB), 16) == b"abc"


async def test_store_in_use_under_another_boot_is_deleted(open_store: Open, tmp_path: Path) -> None:
    small_format.prepare(tmp_path, 8 * MIB)
    store = SmallStore(tmp_path, 8 * MIB)
    await store.put(16, memoryview(b"abc"))
    store.close()
    (tmp_path / "boot").write_text("another boot\n")
    small_format.prepare(tmp_path, 8 * MIB)
    assert not (tmp_path / small_format.FILE_NAME).exists()
    assert content_of(open_store(8 * MIB), 16) is None

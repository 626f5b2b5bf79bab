"""The small-file store: contents come back, rot is found, space is bounded and given back, a power cut is noticed."""

import os
import random
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import lmdb
import pytest
import trio

from fanoutfs.cache import small as small_format
from fanoutfs.cache.small import SmallEnvironment, SmallFormatError, SmallMismatchError, SmallReader
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.errors import DatabaseError, StoreBrokenError
from fanoutfs.records import KIB, MIB
from tests.unit.cache.stores import content_of, occupied_bytes, open_store, segments_of

Open = Callable[[int], SmallStore]
PAGE = 4096


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    stores: list[SmallStore] = []

    def open_it(share_bytes: int) -> SmallStore:
        stores.append(open_store(tmp_path, share_bytes))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def bodies(count: int, size: int = 16 * KIB, first: int = 16) -> list[tuple[int, memoryview]]:
    return [(ino, memoryview(random.Random(ino).randbytes(size + ino % 100))) for ino in range(first, first + count)]


def readable(store: SmallStore, items: list[tuple[int, memoryview]]) -> int:
    """Return how many contents are there; each must be what was put."""
    found = 0
    for ino, body in items:
        content = content_of(store, ino)
        assert content in (None, body), f"wrong bytes under {ino}"
        found += content is not None
    return found


@pytest.mark.parametrize("size", [0, 1, 4096, 128 * KIB, 1024 * KIB])
async def test_content_comes_back(opened: Open, size: int) -> None:
    store = opened(32 * MIB)
    assert not store.has(16)
    assert await store.put(16, memoryview(b"x" * size))
    assert store.has(16)
    assert store.is_intact(16)
    assert content_of(store, 16) == b"x" * size
    assert content_of(store, 17) is None


async def test_batch_is_one_append_and_one_commit(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(256 * MIB)
    appends = []
    append = os.pwritev

    def counted(fd: int, buffers: list[memoryview], offset: int) -> int:
        appends.append(len(buffers))
        return append(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", counted)
    items = bodies(512, 4 * KIB)
    before = store._environment.env.info()["last_txnid"]
    assert await store.put_many(items) == [True] * 512
    assert appends == [512]
    assert store._environment.env.info()["last_txnid"] == before + 1
    assert readable(store, items) == 512


async def test_contents_of_a_batch_lie_in_the_order_of_their_inodes(opened: Open, tmp_path: Path) -> None:
    store = opened(64 * MIB)
    items = bodies(20)
    await store.put_many(random.Random(1).sample(items, 20))
    assert segments_of(tmp_path)[0].read_bytes() == b"".join(body for _ino, body in items)


async def test_batch_with_more_contents_than_one_call_takes(opened: Open) -> None:
    store = opened(64 * MIB)
    items = bodies(3000, 1)
    assert all(await store.put_many(items))
    assert readable(store, items) == 3000


async def test_append_that_the_disk_takes_piece_by_piece(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(64 * MIB)
    append = os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: append(fd, buffers[0][:1000], offset))
    items = [*bodies(3), (90, memoryview(b"")), *bodies(3, first=91)]
    assert all(await store.put_many(items))
    assert readable(store, items) == 7


async def test_newer_content_of_an_inode_wins(opened: Open) -> None:
    store = opened(8 * MIB)
    await store.put_many([(16, memoryview(b"first")), (16, memoryview(b"second"))])
    assert content_of(store, 16) == b"second"
    await store.put(16, memoryview(b"third"))
    assert content_of(store, 16) == b"third"


async def test_dropped_content_is_gone(opened: Open) -> None:
    store = opened(8 * MIB)
    await store.put(16, memoryview(b"abc"))
    await store.drop(16)
    await store.drop(16)
    assert not store.has(16)


# --- damage ----------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(100)
        byte = stream.read(1)
        stream.seek(100)
        stream.write(bytes([byte[0] ^ 1]))


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, 101),
    "empty": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a directory": make_directory,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("reopened", [False, True], ids=["open", "reopened"])
async def test_damaged_segment_is_a_mismatch_and_the_store_goes_on(tmp_path: Path, damage: str, reopened: bool) -> None:
    store = open_store(tmp_path, 8 * MIB)
    await store.put(16, memoryview(b"The quick brown fox jumps over the lazy dog. " * 20))
    if reopened:
        store.close()
    DAMAGES[damage](segments_of(tmp_path)[0])
    if reopened:
        store = open_store(tmp_path, 8 * MIB)
    assert store.has(16)
    assert not store.is_intact(16)
    with pytest.raises(SmallMismatchError):
        content_of(store, 16)
    await store.drop(16)
    items = bodies(50)
    assert all(await store.put_many(items))
    assert readable(store, items) == 50
    store.close()


async def test_place_that_leads_elsewhere_is_a_mismatch(opened: Open) -> None:
    store = opened(8 * MIB)
    await store.put_many(bodies(2))
    environment = store._environment
    with environment.env.begin(write=True, db=environment.places) as txn:
        first, second = (ino.to_bytes(8, "big") for ino in (16, 17))
        place = txn.get(first)
        assert place is not None
        txn.put(second, place)
        txn.put(first, place[:-4] + b"\xff\xff\xff\xff")
        txn.put((18).to_bytes(8, "big"), b"short")
    for ino in (16, 17, 18):
        with pytest.raises(SmallMismatchError):
            content_of(store, ino)
    await store.drop_many([16, 17, 18])
    assert await store.put_many(bodies(3)) == [True] * 3
    assert readable(store, bodies(3)) == 3


@pytest.mark.parametrize("database", ["segments", "rosters"])
async def test_record_of_a_wrong_length_is_damage_that_ends_the_store(tmp_path: Path, database: str) -> None:
    store = open_store(tmp_path, 8 * MIB)
    assert all(await store.put_many(bodies(20)))
    environment = store._environment
    with environment.env.begin(write=True, db=getattr(environment, database)) as txn:
        txn.put(bytes(9), b"short")
    if database == "rosters":
        with pytest.raises(StoreBrokenError):
            await store.give_back(MIB)
        assert store.broken.is_set()
    store.close()
    if database == "segments":
        with pytest.raises(struct.error):
            open_store(tmp_path, 8 * MIB)


async def test_file_system_that_refuses_is_a_database_error(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(8 * MIB)
    items = bodies(20)
    assert all(await store.put_many(items[:10]))
    with monkeypatch.context() as patch:

        def refuse(fd: int, buffers: list[memoryview], offset: int) -> int:
            os.pwrite(fd, b"half a content", offset)
            raise OSError(28, "No space left on device")

        patch.setattr(os, "pwritev", refuse)
        with pytest.raises(DatabaseError):
            await store.put_many(items[10:])
    assert readable(store, items) == 10
    assert all(await store.put_many(items[10:]))
    assert readable(store, items) == 20


# --- space -----------------------------------------------------------------------------------------------------


async def test_store_keeps_to_its_share_and_gives_room_to_what_is_new(opened: Open, tmp_path: Path) -> None:
    store = opened(4 * MIB)
    items = bodies(800)
    for at in range(0, 800, 20):
        assert all(await store.put_many(items[at : at + 20]))
        assert occupied_bytes(tmp_path) <= 4 * MIB
        assert readable(store, items[at : at + 20]) == 20
    assert store.evicted > 0
    assert readable(store, items) * 16 * KIB > 3 * MIB, "far less is kept than fits"


async def test_what_is_worth_least_is_given_up_first(opened: Open) -> None:
    def judge(inos: Collection[int], *, stored: int, mean_bytes: int) -> dict[int, float]:
        assert stored >= len(inos)
        assert 16 * KIB <= mean_bytes < 17 * KIB
        return {ino: 1.0 if ino < 116 else 0.0 for ino in inos}

    store = opened(4 * MIB)
    store.judge = judge
    items = bodies(800)
    for at in range(0, 800, 20):
        await store.put_many(items[at : at + 20])
    # One segment may hold some of both.
    assert readable(store, items[:100]) >= 84
    assert store.evicted > 400


async def test_segments_are_judged_by_most_of_what_they_hold_though_it_came_singly(opened: Open) -> None:
    shares = []

    def judge(inos: Collection[int], *, stored: int, mean_bytes: int) -> dict[int, float]:
        shares.append(len(inos) / stored)
        return dict.fromkeys(inos, 0.0)

    store = opened(4 * MIB)
    store.judge = judge
    for item in bodies(400):
        await store.put(*item)
    assert store.evicted > 100
    # All segments but the one that is appended, 16 contents each, of which 32 draws find 14 on average, 8 find 6.
    assert min(shares) > 0.7


async def test_repeated_passes_over_more_than_fits_keep_a_share(opened: Open) -> None:
    store = opened(4 * MIB)
    items = bodies(400)
    hits = 0
    for _pass in range(5):
        for item in items:
            if store.has(item[0]):
                hits += 1
            else:
                await store.put(*item)
    assert hits > 4 * 40, "an LRU would have none; the store holds more than half of all"


async def test_eviction_gives_space_back_to_the_disk(opened: Open, tmp_path: Path) -> None:
    store = opened(64 * MIB)
    await store.put_many(bodies(1000))
    before = occupied_bytes(tmp_path)
    freed = await store.give_back(8 * MIB)
    assert before - occupied_bytes(tmp_path) >= 8 * MIB - 16 * 2 * PAGE
    assert freed >= 8 * MIB
    await store.give_back(1 << 40)
    assert occupied_bytes(tmp_path) < MIB
    assert readable(store, bodies(1000)) == 0
    assert all(await store.put_many(bodies(10)))


async def test_dropped_contents_give_space_back_when_segments_are_written_anew(opened: Open, tmp_path: Path) -> None:
    store = opened(64 * MIB)
    items = bodies(1000)
    assert all(await store.put_many(items))
    gone = set(random.Random(1).sample(range(1000), 300))
    await store.drop_many([items[n][0] for n in gone])
    left = [item for n, item in enumerate(items) if n not in gone]
    stored = sum(len(body) for _ino, body in left)
    assert occupied_bytes(tmp_path) > 1.4 * stored
    while sparse := store.find_sparse():
        await store.write_anew(sparse[0])
    assert readable(store, left) == 700
    assert occupied_bytes(tmp_path) < 1.34 * stored + 4 * MIB
    assert not any(store.has(items[n][0]) for n in gone)


async def test_damaged_content_does_not_hinder_writing_its_segment_anew(opened: Open, tmp_path: Path) -> None:
    store = opened(64 * MIB)
    items = bodies(300)
    assert all(await store.put_many(items))
    flip(segments_of(tmp_path)[0])
    await store.drop_many([ino for ino, _body in items[1:100]])
    sparse = store.find_sparse()
    assert sparse is not None
    await store.write_anew(sparse[0])
    assert not store.has(16), "the damaged one"
    assert readable(store, items[100:]) == 200
    assert not (tmp_path / "segments" / f"{sparse[0]:08x}").exists()


async def test_segments_stay_until_readers_are_done(tmp_path: Path) -> None:
    waiting, done = trio.Event(), trio.Event()

    async def wait_for_readers() -> None:
        waiting.set()
        await done.wait()

    store = open_store(tmp_path, 8 * MIB, wait_for_readers)
    items = bodies(200)
    assert all(await store.put_many(items))
    reader = SmallReader(store._environment)
    before = segments_of(tmp_path)
    async with trio.open_nursery() as nursery:
        with reader.begin() as txn:
            nursery.start_soon(store.give_back, 1)
            await waiting.wait()
            assert readable(store, items) < 200, "new readers do not find them"
            assert [bytes(reader.get(txn, ino) or b"") for ino, _body in items] == [bytes(body) for _ino, body in items]
        assert segments_of(tmp_path) == before
        done.set()
    assert len(segments_of(tmp_path)) == len(before) - 1
    reader.close()
    store.close()


async def test_cancelled_eviction_is_finished_by_the_next(tmp_path: Path) -> None:
    async def wait_for_ever() -> None:
        scope.cancel()
        await trio.sleep_forever()

    store = open_store(tmp_path, 8 * MIB, wait_for_ever)
    assert all(await store.put_many(bodies(300)))
    before = len(segments_of(tmp_path))
    with trio.CancelScope() as scope:
        await store.give_back(1)
    assert len(segments_of(tmp_path)) == before
    store._wait_for_readers = trio.lowlevel.checkpoint
    await store.give_back(1)
    assert len(segments_of(tmp_path)) == before - 2
    store.close()


async def test_accounting_is_what_the_disk_says(tmp_path: Path) -> None:
    chance = random.Random(3)
    store = open_store(tmp_path, 32 * MIB)
    for step in range(60):
        await store.put_many(
            [(chance.randrange(3000), memoryview(chance.randbytes(chance.randrange(9000)))) for _n in range(100)]
        )
        await store.drop_many([chance.randrange(3000) for _n in range(30)])
        if step % 20 == 19:
            await store.give_back(2 * MIB)
        if step % 25 == 24:
            store.close()
            store = open_store(tmp_path, 32 * MIB)
        assert abs(store.file_bytes() - occupied_bytes(tmp_path)) <= 2 * PAGE * len(segments_of(tmp_path))
    store.close()


async def test_content_that_is_large_for_the_store_is_refused(opened: Open) -> None:
    store = opened(MIB)
    assert await store.put_many([(16, memoryview(bytes(128 * KIB))), (17, memoryview(bytes(4 * KIB)))]) == [False, True]


async def test_content_longer_than_a_segment_has_one_of_its_own(opened: Open, tmp_path: Path) -> None:
    store = open_store(tmp_path, 8 * MIB)
    items = [*bodies(5), (80, memoryview(os.urandom(MIB - MIB // 16))), *bodies(5, first=100)]
    for item in items:
        assert await store.put(*item)
    assert sorted(len(segment.read_bytes()) for segment in segments_of(tmp_path))[-1] == MIB - MIB // 16
    assert readable(store, items) == len(items)
    store.close()
    again = opened(8 * MIB)
    assert readable(again, items) == len(items)
    assert await again.put_many(bodies(200, first=1000)) == [True] * 200
    assert await again.give_back(1 << 40) > 0
    assert readable(again, items) == 0


async def test_store_takes_what_is_free_beyond_its_share(opened: Open) -> None:
    store = opened(2 * MIB)
    store.find_limit = lambda: 6 * MIB
    items = bodies(600)
    assert all(await store.put_many(items))
    assert 5 * MIB < store.file_bytes() <= 6 * MIB
    assert store.evicted > 0
    store.find_limit = lambda: 0
    assert all(await store.put_many(bodies(2, first=5000)))
    assert store.file_bytes() <= 2 * MIB


async def test_contents_so_tiny_that_their_places_take_more_room_than_they(opened: Open, tmp_path: Path) -> None:
    store = opened(2 * MIB)
    for first in range(0, 60_000, 1000):
        assert all(await store.put_many([(ino, memoryview(b"tiny")) for ino in range(first, first + 1000)]))
        assert occupied_bytes(tmp_path) <= 2 * MIB
    assert all(await store.put_many(bodies(20, first=100_000)))


# --- restarts --------------------------------------------------------------------------------------------------


async def test_contents_survive_a_restart_and_the_last_segment_is_continued(opened: Open, tmp_path: Path) -> None:
    for first in (16, 26, 36):
        small_format.prepare(tmp_path, 32 * MIB)
        store = open_store(tmp_path, 32 * MIB)
        assert all(await store.put_many(bodies(10, first=first)))
        store.close()
        small_format.mark_closed(tmp_path)
    assert readable(opened(32 * MIB), bodies(30)) == 30
    assert len(segments_of(tmp_path)) == 1


async def test_numbers_of_segments_are_never_used_again(tmp_path: Path) -> None:
    seen: set[str] = set()
    for _restart in range(4):
        store = open_store(tmp_path, 4 * MIB)
        assert all(await store.put_many(bodies(64)))
        found = {path.name for path in segments_of(tmp_path)}
        assert not found & seen
        seen |= found
        await store.give_back(1 << 40)
        store.close()


async def test_kill_within_one_boot_keeps_the_store(opened: Open, tmp_path: Path) -> None:
    small_format.prepare(tmp_path, 8 * MIB)
    store = open_store(tmp_path, 8 * MIB)
    await store.put(16, memoryview(b"abc"))
    store.close()  # as far as the file goes a killed daemon is the same: it was never marked closed
    small_format.prepare(tmp_path, 8 * MIB)
    assert content_of(opened(8 * MIB), 16) == b"abc"


async def test_store_in_use_under_another_boot_is_deleted(opened: Open, tmp_path: Path) -> None:
    small_format.prepare(tmp_path, 8 * MIB)
    store = open_store(tmp_path, 8 * MIB)
    await store.put(16, memoryview(b"abc"))
    store.close()
    (tmp_path / "boot").write_text("another boot\n")
    small_format.prepare(tmp_path, 8 * MIB)
    assert not (tmp_path / small_format.FILE_NAME).exists()
    assert not (tmp_path / "segments").exists()
    assert content_of(opened(8 * MIB), 16) is None


async def test_store_of_a_file_system_that_was_mounted_anew_is_deleted(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It went down without what LMDB had not synced: a place may be that of content which was replaced since."""
    small_format.prepare(tmp_path, 8 * MIB)
    store = open_store(tmp_path, 8 * MIB)
    await store.put(16, memoryview(b"abc"))
    store.close()
    monkeypatch.setattr(small_format, "instance_of", lambda _volume: b"another mount")
    small_format.prepare(tmp_path, 8 * MIB)
    assert content_of(opened(8 * MIB), 16) is None


async def test_tail_torn_by_a_power_cut_after_an_orderly_end_is_noticed(opened: Open, tmp_path: Path) -> None:
    store = open_store(tmp_path, 32 * MIB)
    items = bodies(20)
    assert all(await store.put_many(items))
    store.close()
    (segment,) = segments_of(tmp_path)
    length = segment.stat().st_size
    os.truncate(segment, length * 3 // 4)
    os.truncate(segment, length * 7 // 8)  # zeros, as a file system leaves them whose sizes were written first
    store = opened(32 * MIB)
    intact = [ino for ino, _body in items if store.is_intact(ino)]
    assert 10 < len(intact) < 16
    fresh = bodies(20, first=100)
    assert all(await store.put_many(fresh))
    assert readable(store, fresh) == 20
    assert [ino for ino, _body in items if store.is_intact(ino)] == intact, "what follows does not lie over it"


async def test_files_without_a_record_are_removed_and_foreign_ones_left(opened: Open, tmp_path: Path) -> None:
    store = open_store(tmp_path, 8 * MIB)
    await store.put(16, memoryview(b"abc"))
    store.close()
    (tmp_path / "segments/00000007").write_bytes(bytes(MIB))
    (tmp_path / "segments/README").write_bytes(b"not ours")
    store = opened(8 * MIB)
    assert [path.name for path in segments_of(tmp_path)] == ["00000000", "README"]
    assert store.file_bytes() < MIB
    assert content_of(store, 16) == b"abc"


def test_store_of_another_format_is_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "small.lmdb"), subdir=False, lib_version=0) as env, env.begin(write=True) as txn:
        txn.put((16).to_bytes(8, "big"), b"checksumcontent")
    with pytest.raises(SmallFormatError):
        SmallEnvironment(tmp_path, writable=True)

"""Processes that read the small-file store while it is evicted, written anew and filled: right bytes or none."""

import os
import random
from pathlib import Path

import trio

from fanoutfs.cache.small import SmallEnvironment, SmallMismatchError, SmallReader
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.grace import Grace
from fanoutfs.observe.shared import BUSY, FIRST_FRONT_ROW, SharedState
from fanoutfs.records import KIB, MIB
from tests.fault.children import Child

READERS = 3
INODES = 1500
READS = 50_000


def body(ino: int) -> bytes:
    return random.Random(ino).randbytes(2 * KIB + ino % 5000)


def read_as_a_front(path: Path, shared: SharedState, number: int, begin: int) -> int:
    """Read what is there, marked busy like a front; raises where bytes are wrong or were promised and are not there."""
    assert os.read(begin, 1)  # forked before LMDB was opened, as fronts are
    row = shared.row(FIRST_FRONT_ROW + number)
    reader = SmallReader(SmallEnvironment(path, writable=False))
    chance = random.Random(number)
    found = 0
    for _read in range(READS):
        ino = chance.randrange(16, 16 + INODES)
        row[BUSY] += 1
        with reader.begin() as txn:
            content = reader.get(txn, ino)
            if content is not None:
                found += 1
                assert content == body(ino), ino
        row[BUSY] += 1
    return found


async def test_readers_never_miss_what_they_were_promised(tmp_path: Path) -> None:
    shared = SharedState()
    begin, go = os.pipe()
    readers = [Child(read_as_a_front, tmp_path, shared, number, begin) for number in range(READERS)]
    store = SmallStore(tmp_path, 4 * MIB, Grace(shared, READERS).wait)
    os.write(go, bytes(READERS))
    chance = random.Random(8)
    rounds = 0
    try:
        while rounds < 40 or any(reader.is_running for reader in readers):
            rounds += 1
            inos = [chance.randrange(16, 16 + INODES) for _n in range(60)]
            assert all(await store.put_many([(ino, memoryview(body(ino))) for ino in inos]))
            await store.drop_many(chance.sample(range(16, 16 + INODES), 40))
            sparse = store.find_sparse()
            if sparse is not None:
                await store.write_anew(sparse[0])
            if rounds % 10 == 0:
                await store.give_back(MIB)
        results = [reader.result() for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
        store.close()
        os.close(begin)
        os.close(go)
    assert all(found > READS // 20 for found in results)
    assert store.evicted > 0


async def test_reader_outside_the_grace_period_meets_a_mismatch_at_worst(tmp_path: Path) -> None:
    shared = SharedState()
    store = SmallStore(tmp_path, 4 * MIB, Grace(shared, 0).wait)
    assert all(await store.put_many([(ino, memoryview(body(ino))) for ino in range(16, 516)]))
    reader = SmallReader(store._environment)
    with reader.begin() as txn:
        assert bytes(reader.get(txn, 16) or b"") == body(16)
        await store.give_back(1 << 40)
        outcomes = set()
        for ino in range(16, 516):
            try:
                outcomes.add("read" if bytes(reader.get(txn, ino) or b"") == body(ino) else "wrong")
            except SmallMismatchError:
                outcomes.add("mismatch")
        assert outcomes == {"mismatch"}
    reader.close()
    store.close()


async def test_descriptors_of_a_reader_are_bounded(tmp_path: Path) -> None:
    from fanoutfs.cache import segments

    store = SmallStore(tmp_path, 40 * MIB, trio.lowlevel.checkpoint)
    store._segment_bytes = 8 * KIB
    for first in range(16, 316, 50):
        assert all(await store.put_many([(ino, memoryview(bytes(8 * KIB))) for ino in range(first, first + 50)]))
    for ino in range(16, 316):
        assert store.is_intact(ino)
    assert len(store.reader._segments._open) == segments._MAX_DESCRIPTORS < 300
    store.close()

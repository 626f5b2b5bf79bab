"""kill -9 between any two steps of the small-file store: what was acknowledged is there, nothing else is left over."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cache.killed import BATCH, SHARE_BYTES, STEPS, body
from tests.unit.cache.stores import content_of, occupied_bytes, open_store, segments_of


@pytest.mark.parametrize("step", STEPS)
async def test_store_killed_between_two_steps_is_whole(tmp_path: Path, step: str) -> None:
    command = [sys.executable, "-m", "tests.unit.cache.killed", str(tmp_path), step]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == -9, "it was to die on the way"
    acknowledged = [int(line.split()[0]) for line in done.stdout.splitlines()]
    assert acknowledged
    store = open_store(tmp_path, SHARE_BYTES)
    try:
        known = range(16, acknowledged[-1] + 2 * BATCH)
        found = {ino: content_of(store, ino) for ino in known}  # raises where a place leads to other bytes
        assert all(content in (None, body(ino)) for ino, content in found.items())
        if step in ("before append", "half appended", "appended", "committed"):  # before anything was evicted
            kept = sum(found[ino] is not None for first in acknowledged for ino in range(first, first + BATCH))
            assert kept >= len(acknowledged) * BATCH // 2
            newest = range(acknowledged[-1] + 1, acknowledged[-1] + BATCH)
            assert step == "committed" or all(found[ino] is not None for ino in newest)
        # The table, the disk and LMDB agree on which segments there are.
        assert {int(path.name, 16) for path in segments_of(tmp_path)} == set(store._table.segments)
        assert store.file_bytes() <= SHARE_BYTES + store._segment_bytes
        for number, segment in store._table.segments.items():
            assert segment.live <= segment.end, number
        fresh = [(ino, memoryview(body(ino))) for ino in range(100_000, 100_000 + BATCH)]
        assert all(await store.put_many(fresh))
        assert all(content_of(store, ino) == body(ino) for ino, _content in fresh)
        assert all(content_of(store, ino) in (None, body(ino)) for ino in known)
        await store.give_back(1 << 40)
        assert all(content_of(store, ino) is None for ino in known)
        assert segments_of(tmp_path) == []
        assert occupied_bytes(tmp_path) < SHARE_BYTES // 4
    finally:
        store.close()

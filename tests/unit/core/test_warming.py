"""Warming without a mount: what counts as cached."""

from pathlib import Path
from typing import Any

from fanoutfs.core.warming import Warming
from fanoutfs.records import BLOCK_BYTES, PART_BYTES
from tests.unit.core.rig import running_core


async def test_cached_bytes_count_the_short_last_block(tmp_path: Path) -> None:
    unused: Any = None
    async with running_core(tmp_path) as core:
        inode = await core.put("big", bytes(PART_BYTES + BLOCK_BYTES + 5))
        warming = Warming(
            jobs=core.jobs,
            reader=core.reader,
            listings=core.listings,
            imports=unused,
            fills=core.fills,
            small=core.small,
            metadata_ttl_s=float("inf"),
        )
        assert warming.cached_bytes(inode) == 0
        await core.fills.ensure(inode.ino, PART_BYTES + BLOCK_BYTES, 5)
        assert warming.cached_bytes(inode) == 5

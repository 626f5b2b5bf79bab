"""Blocks in cache files: stored, verified, found torn."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fanoutfs.cache.arena import Run
from fanoutfs.cache.blocks import (
    BlockMismatchError,
    BlockReader,
    add_checksums,
    find_torn_blocks,
    missing_blocks,
    store_blocks,
    write_directly,
)
from fanoutfs.cache.files import CacheFiles, punch_hole
from fanoutfs.index.format import PART_VALUE
from fanoutfs.records import BLOCK_BYTES, MIB, PART_BLOCKS, PART_BYTES

INO = 0x1234


@pytest.fixture
def files(tmp_path: Path) -> Iterator[CacheFiles]:
    (tmp_path / "objects").mkdir()
    files = CacheFiles(tmp_path, writable=True)
    yield files
    files.close()


@pytest.fixture
def reader(tmp_path: Path, files: CacheFiles) -> Iterator[BlockReader]:
    found = CacheFiles(tmp_path, writable=False)
    yield BlockReader(found)
    found.close()


def store(files: CacheFiles, content: bytes) -> dict[int, bytes]:
    """Store a whole file; return its block maps."""
    parts = {}
    for part in range(-(-len(content) // PART_BYTES)):
        data = memoryview(content)[part * PART_BYTES : (part + 1) * PART_BYTES]
        checksums = store_blocks(files.descriptor(INO), INO, part, 0, data)
        row = [checksums.get(block, 0) for block in range(PART_BLOCKS)]
        parts[part] = PART_VALUE.pack(sum(1 << block for block in checksums), 0, *row)
    return parts


@pytest.mark.parametrize("size", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, PART_BYTES, PART_BYTES + 3])
def test_stored_bytes_come_back_at_every_border(files: CacheFiles, reader: BlockReader, size: int) -> None:
    content = os.urandom(size)
    parts = store(files, content)
    borders = {0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, PART_BYTES - 1, PART_BYTES, size - 1}
    for offset in sorted(border for border in borders if 0 <= border < size):
        for length in (1, 4096, BLOCK_BYTES, 1 << 20):
            end = min(offset + length, size)
            data, verified = reader.read(INO, offset, end, size, parts)
            assert data == content[offset:end]
            assert verified == (end - 1) // BLOCK_BYTES - offset // BLOCK_BYTES + 1


def test_bytes_filed_under_another_inode_do_not_pass(files: CacheFiles, reader: BlockReader) -> None:
    content = os.urandom(BLOCK_BYTES)
    parts = store(files, content)
    os.pwrite(files.descriptor(INO + 1), content, 0)
    with pytest.raises(BlockMismatchError):
        reader.read(INO + 1, 0, BLOCK_BYTES, BLOCK_BYTES, parts)


def test_flipped_bit_is_found_only_in_its_block(files: CacheFiles, reader: BlockReader) -> None:
    content = os.urandom(2 * BLOCK_BYTES + 5)
    parts = store(files, content)
    os.pwrite(files.descriptor(INO), bytes([content[BLOCK_BYTES] ^ 1]), BLOCK_BYTES)
    for offset in (0, 2 * BLOCK_BYTES):
        end = offset + 5
        assert reader.read(INO, offset, end, len(content), parts)[0] == content[offset:end]
    with pytest.raises(BlockMismatchError):
        reader.read(INO, BLOCK_BYTES + 7, BLOCK_BYTES + 8, len(content), parts)
    assert find_torn_blocks(files.descriptor(INO), INO, 0, parts[0], len(content)) == 0b010


def test_punched_and_truncated_files_do_not_verify(files: CacheFiles, reader: BlockReader) -> None:
    content = os.urandom(2 * BLOCK_BYTES)
    parts = store(files, content)
    punch_hole(files.descriptor(INO), 0, BLOCK_BYTES)
    with pytest.raises(BlockMismatchError):
        reader.read(INO, 0, 1, len(content), parts)
    os.truncate(files.descriptor(INO), BLOCK_BYTES + 1)
    with pytest.raises(BlockMismatchError):
        reader.read(INO, BLOCK_BYTES, BLOCK_BYTES + 1, len(content), parts)
    assert find_torn_blocks(files.descriptor(INO), INO, 0, parts[0], len(content)) == 0b11


def test_reader_finds_a_file_that_was_made_anew(files: CacheFiles, reader: BlockReader) -> None:
    old = store(files, b"old" * 1000)
    assert reader.read(INO, 0, 3000, 3000, old)[0] == b"old" * 1000
    files.remove(INO)
    new = store(files, b"new" * 1000)
    assert reader.read(INO, 0, 3000, 3000, new)[0] == b"new" * 1000


def test_file_that_was_never_cached_is_a_mismatch(files: CacheFiles, reader: BlockReader) -> None:
    with pytest.raises(BlockMismatchError):
        reader.read(INO + 1, 0, 1, 1, {0: PART_VALUE.pack(1, 0, *[0] * PART_BLOCKS)})


def test_checksums_are_xxh3_of_the_actual_length(files: CacheFiles) -> None:
    content = os.urandom(BLOCK_BYTES + 7)
    checksums = store_blocks(files.descriptor(INO), INO, 1, 30, memoryview(content))
    assert checksums == {
        30: xxhash.xxh3_64_intdigest(content[:BLOCK_BYTES], INO),
        31: xxhash.xxh3_64_intdigest(content[BLOCK_BYTES:], INO),
    }
    assert os.pread(files.descriptor(INO), len(content), PART_BYTES + 30 * BLOCK_BYTES) == content


@given(
    present=st.integers(0, (1 << PART_BLOCKS) - 1),
    part=st.integers(0, 3),
    first=st.integers(0, 4 * PART_BLOCKS - 1),
    count=st.integers(1, 3 * PART_BLOCKS),
)
def test_missing_blocks_are_those_wanted_and_not_present(present: int, part: int, first: int, count: int) -> None:
    last = first + count - 1
    value = PART_VALUE.pack(present, 0, *[0] * PART_BLOCKS)
    base = part * PART_BLOCKS
    if last < base or first >= base + PART_BLOCKS:
        return  # callers ask about parts that the range touches
    wanted = {block for block in range(PART_BLOCKS) if first <= base + block <= last}
    mask = missing_blocks(value, part, first, last)
    assert mask == sum(1 << block for block in wanted if not present >> block & 1)
    assert missing_blocks(None, part, first, last) == sum(1 << block for block in wanted)


def test_descriptors_are_bounded_and_survive_as_duplicates(files: CacheFiles) -> None:
    kept = files.duplicate(INO)
    for ino in range(600):
        files.descriptor(ino)
    os.write(kept, b"still here")
    os.close(kept)
    assert os.pread(files.descriptor(INO), 10, 0) == b"still here"
    assert len(os.listdir("/proc/self/fd")) < 600


@pytest.mark.parametrize("size", [1, 4096, BLOCK_BYTES + 7, PART_BYTES])
def test_bytes_stored_past_the_page_cache_come_back(files: CacheFiles, reader: BlockReader, size: int) -> None:
    content = os.urandom(size)
    buffer = memoryview(mmap.mmap(-1, PART_BYTES))
    buffer[:] = b"\xff" * PART_BYTES
    buffer[:size] = content
    fd = files.open_direct(INO, size)
    try:
        write_directly(fd, 0, buffer, size)
    finally:
        os.close(fd)
    checksums: dict[int, int] = {}
    for arrived in (1, size // 2, BLOCK_BYTES, size):  # some of them twice, or beyond the end
        add_checksums(checksums, INO, 0, buffer[:size], min(arrived, size))
    assert checksums == store_blocks(files.descriptor(INO + 1), INO, 0, 0, memoryview(content))
    row = [checksums.get(block, 0) for block in range(PART_BLOCKS)]
    value = PART_VALUE.pack(sum(1 << block for block in checksums), 0, *row)
    step = min(size, 4 * BLOCK_BYTES)
    for at in range(0, size, step):
        assert reader.read(INO, at, min(size, at + step), size, {0: value})[0] == content[at : at + step]
    assert not any(os.pread(files.descriptor(INO), 4096, size)), "what lay in the buffer before is on the disk"


@settings(deadline=None)  # makes a cache file each time
@given(
    offset=st.integers(0, 4 * BLOCK_BYTES),
    length=st.integers(1, 4 * BLOCK_BYTES),
    spans=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=3),
)
def test_pieces_of_arena_and_file_are_the_range(
    tmp_path_factory: pytest.TempPathFactory, offset: int, length: int, spans: list[tuple[int, int]]
) -> None:
    size = 6 * BLOCK_BYTES - 3
    content = bytes(at % 251 for at in range(size))
    path = tmp_path_factory.mktemp("volume")
    (path / "objects").mkdir()
    files = CacheFiles(path, writable=True)
    try:
        parts = store(files, content)
        end = min(size, offset + length)
        cut = [(max(offset, low * BLOCK_BYTES), min(end, (low + count) * BLOCK_BYTES)) for low, count in spans]
        runs = sorted(
            (Run(low, memoryview(content)[low:high]) for low, high in cut if low < high), key=lambda r: r.start
        )
        pieces, _verified = BlockReader(files).read_around(INO, offset, end, size, parts, runs)
        assert b"".join(pieces) == content[offset:end]
    finally:
        files.close()


def test_parts_are_read_from_their_disks(tmp_path: Path, files: CacheFiles) -> None:
    content = os.urandom(2 * PART_BYTES + 3 * BLOCK_BYTES + 7)
    (tmp_path / "further/objects").mkdir(parents=True)
    files.attach(7, tmp_path / "further")
    parts: dict[int, bytes] = {}
    for part, disk in ((0, 0), (1, 7), (2, 0)):
        data = memoryview(content)[part * PART_BYTES : (part + 1) * PART_BYTES]
        checksums = store_blocks(files.descriptor(INO, disk), INO, part, 0, data)
        sums = [checksums.get(block, 0) for block in range(32)]
        parts[part] = PART_VALUE.pack((1 << len(checksums)) - 1, disk, *sums)
    asked: list[int] = []

    def find(disk: int) -> Path | None:
        asked.append(disk)
        return tmp_path / "further" if disk == 7 else None

    reader = BlockReader(CacheFiles(tmp_path, writable=False, find=find))
    for start in (0, PART_BYTES - 5, PART_BYTES, PART_BYTES - BLOCK_BYTES, 2 * PART_BYTES - 1, 2 * PART_BYTES):
        for length in (1, BLOCK_BYTES, MIB):
            end = min(start + length, len(content))
            touched = {part: parts[part] for part in range(start // PART_BYTES, (end - 1) // PART_BYTES + 1)}
            assert reader.read(INO, start, end, len(content), touched)[0] == content[start:end]
    assert asked == [7], "a disk is looked up once"
    assert reader.has_further
    reader.close_further()
    assert not reader.has_further
    assert reader.read(INO, PART_BYTES, PART_BYTES + 1, len(content), parts)[0] == content[PART_BYTES : PART_BYTES + 1]
    assert asked == [7, 7]
    elsewhere = {1: parts[1][:4] + (8).to_bytes(4, "little") + parts[1][8:]}
    with pytest.raises(BlockMismatchError):
        reader.read(INO, PART_BYTES, PART_BYTES + 1, len(content), elsewhere)


def test_removing_a_file_removes_it_from_all_disks(tmp_path: Path, files: CacheFiles) -> None:
    for disk in (1, 2):
        (tmp_path / str(disk) / "objects").mkdir(parents=True)
        files.attach(disk, tmp_path / str(disk))
        os.pwrite(files.descriptor(INO, disk), b"x", 0)
    os.pwrite(files.descriptor(INO), b"x", 0)
    files.remove(INO)
    assert not [path for path in tmp_path.rglob(f"{INO:x}") if path.is_file()]
    files.detach_all()
    assert list(files.disks) == [0]
    with pytest.raises(FileNotFoundError):
        files.descriptor(INO, 2)

"""The stored formats, byte for byte.  Whoever has to change a literal here changes what is on users' disks: raise
FORMAT_VERSION, and say what becomes of the old files."""

from pathlib import Path

import trio
import xxhash

from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.segments import segment_name
from fanoutfs.cache.small import FORMAT_VALUE, PLACE, ROSTER_KEY, SEGMENT_KEY, SEGMENT_VALUE, U32, SmallEnvironment
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.index.format import (
    DATABASES,
    DT_REG,
    ENTRY_VALUE,
    FLAG_LISTED,
    FORMAT_VERSION,
    INO_KEY,
    PART_HEAD,
    PART_KEY,
    PART_VALUE,
    TOTALS,
    U64,
    Inode,
    Ownership,
    directory_inode,
    file_inode,
    unpack_inode,
)
from fanoutfs.index.importing import (
    Frame,
    KeyRange,
    Place,
    import_setting,
    place_setting,
    range_setting,
    unpack_place,
    unpack_range,
)
from fanoutfs.index.merging import Frontier
from fanoutfs.index.operations import Child
from fanoutfs.records import BLOCK_BYTES, MIB, PART_BLOCKS, Version
from fanoutfs.wire.hints import Hint, HintKind
from fanoutfs.wire.relay import DONE, Outcome, Verb, make_intent, make_unique

OWNER = Ownership(1000, 1001, 0o640, 0o750, 128 * 1024)
FILE = file_inode(0x1234, "d/ä", Version("etag", "v1", 300_000, 1_700_000_000_123_456_789), OWNER)

FILE_RECORD = (
    "3412000000000000" "e093040000000000" "4a02000000000000"  # ino, size, blocks
    "00f1536500000000" "00f1536500000000" "00f1536500000000"  # atime, mtime, ctime
    "15cd5b07" "15cd5b07" "15cd5b07"  # their nanoseconds
    "a0810000" "01000000" "e8030000" "e9030000"  # mode, nlink, uid, gid
    "00000000" "00000000" "00000000"  # rdev, blksize, flags
    "0000000000000000" "0000" "0400" "0200" "0400"  # listed_at, flags, lengths
    "65746167" "7631" "642fc3a4"  # etag, version id, key
)  # fmt: skip

DIRECTORY_RECORD = (
    "1000000000000000" "0000000000000000" "0000000000000000"
    "0100000000000000" "0100000000000000" "0100000000000000"
    "02000000" "02000000" "02000000"
    "e8410000" "01000000" "e8030000" "e9030000"
    "00000000" "00000000" "00000000"
    "0700000000000000" "0100" "0000" "0000" "0200"
    "642f"
)  # fmt: skip


def test_constants_that_shape_the_files() -> None:
    assert FORMAT_VERSION == 2
    assert (BLOCK_BYTES, PART_BLOCKS) == (262_144, 32)
    assert DATABASES[:5] == (b"settings", b"entries", b"inodes", b"blocks", b"orphans")
    assert DATABASES[13:] == (b"accessed", b"stored")
    assert DATABASES[5:13] == (b"names", b"targets", b"xattrs", b"dirty", b"staged", b"local", b"departed", b"applied")


def test_file_record() -> None:
    assert FILE.pack().hex() == FILE_RECORD
    assert unpack_inode(0x1234, bytes.fromhex(FILE_RECORD)) == FILE


def test_directory_record() -> None:
    fresh = directory_inode(16, "d/", 1_000_000_002, OWNER)
    listed = Inode(16, fresh.attr, 7, FLAG_LISTED, "", "", "d/")
    assert listed.pack().hex() == DIRECTORY_RECORD
    assert unpack_inode(16, bytes.fromhex(DIRECTORY_RECORD)) == listed


def test_keys_sort_by_number() -> None:
    assert INO_KEY.pack(0x1234).hex() == "0000000000001234"
    assert PART_KEY.pack(0x1234, 5).hex() == "000000000000123400000005"


def test_entry() -> None:
    assert (INO_KEY.pack(1) + b"name").hex() == "00000000000000016e616d65"
    assert ENTRY_VALUE.pack(0x1234, DT_REG).hex() == "341200000000000008000000"


def test_part_map() -> None:
    value = PART_VALUE.pack(0x8000_0001, 0, *range(1, 33))
    assert value.hex() == "0100008000000000" + "".join(f"{n:02x}00000000000000" for n in range(1, 33))


def test_part_map_on_a_further_disk() -> None:
    value = PART_VALUE.pack(1, 0x0203, *range(1, 33))
    assert value.hex().startswith("01000000030200000100000000000000")
    assert PART_HEAD.unpack_from(value) == (1, 0x0203)


def test_settings() -> None:
    assert OWNER.pack().hex() == "e8030000e9030000a0010000e80100000000020000000000"
    assert TOTALS.pack(3, 5).hex() == "03000000000000000500000000000000"
    assert U64.pack(FORMAT_VERSION).hex() == "0200000000000000"


def test_import_progress() -> None:
    waiting = Child(b"c\xff", "a/b/c", Version("e", "v", 5, 7))
    frames = (
        Frame("", b"", Frontier(b"a", b"a/"), 3, is_whole=False),
        Frame("a/", b"a", Frontier(b"c\xff", b"c\xff"), 4, is_whole=True, deferred=(waiting,)),
    )
    place = Place("a/c", 9, False, frames)
    assert place.pack() == (
        b'{"key": "a/c", "keys": 9, "is_done": false, "frames": ['
        b'{"prefix": "", "name": "", "reached": ["a", "a/"], "started_ns": 3, "is_whole": false, '
        b'"deferred": []}, '
        b'{"prefix": "a/", "name": "a", "reached": ["c\\udcff", "c\\udcff"], "started_ns": 4, "is_whole": true, '
        b'"deferred": [["c\\udcff", "a/b/c", "e", "v", 5, 7]]}]}'
    )
    assert unpack_place(place.pack()) == place
    assert KeyRange("a", None).pack() == b'{"after": "a", "upto": null}'
    assert unpack_range(KeyRange("a", "b").pack()) == KeyRange("a", "b")
    assert place_setting("a/", 3) == b"import/b3dda5b674f9ce730a37dee0a33bb31e/00000003/place"
    assert range_setting("a/", 3) == import_setting("a/") + b"/00000003/range"


def test_small_file_records() -> None:
    assert FORMAT_VALUE.hex() == "0200000000000000"
    assert PLACE.pack(xxhash.xxh3_64_intdigest(b"hello", 16), 3, 0x1234, 5).hex() == (
        "978e9b4c961b7024" "03000000" "34120000" "05000000"
    )  # fmt: skip
    assert ROSTER_KEY.pack(3, 0x1234).hex() == "0000000300001234"
    assert SEGMENT_KEY.pack(3).hex() == "00000003"
    assert SEGMENT_VALUE.pack(0x1234, 0x1000, 7).hex() == "341200000010000007000000"
    assert U32.pack(4).hex() == "04000000"
    assert segment_name(0x2A) == "0000002a"


async def test_small_file_store(tmp_path: Path) -> None:
    store = SmallStore(tmp_path, 16 * MIB, trio.lowlevel.checkpoint)
    await store.put_many([(16, memoryview(b"hello")), (17, memoryview(b"world!"))])
    await store.put(18, memoryview(b"abc"))
    await store.drop(17)
    store.close()
    assert [path.name for path in (tmp_path / "segments").iterdir()] == ["00000000"]
    assert (tmp_path / "segments/00000000").read_bytes() == b"helloworld!abc"
    environment = SmallEnvironment(tmp_path, writable=False)
    with environment.env.begin() as txn:
        assert (txn.get(b"format"), txn.get(b"next")) == (FORMAT_VALUE, U32.pack(1))
        places, rosters, segments = (
            [(key.hex(), value.hex()) for key, value in txn.cursor(db=database)]
            for database in (environment.places, environment.rosters, environment.segments)
        )
    environment.close()
    assert places == [
        ("0000000000000010", "978e9b4c961b7024" "00000000" "00000000" "05000000"),
        ("0000000000000012", PLACE.pack(xxhash.xxh3_64_intdigest(b"abc", 18), 0, 11, 3).hex()),
    ]  # fmt: skip
    assert rosters == [
        ("0000000000000000", "1000000000000000" "1100000000000000"),
        ("0000000000000002", "1200000000000000"),
    ]  # fmt: skip
    assert segments == [("00000000", "0e0000000800000003000000")]


def test_cache_file_path() -> None:
    assert CacheFiles.relative_path(0x12345) == "45/12345"


def test_relay_messages() -> None:
    # Not stored, but spoken between processes that an upgrade replaces one after the other.
    assert DONE.pack(Outcome.SCRATCH, 3, 4096, 0x1122334455667788).hex() == (
        "020000000300000000100000000000008877665544332211"
    )
    assert f"{make_intent(Verb.REFILL, 0x1234):x}" == "200000000001234"
    assert f"{make_unique(3, 0xABCDEF01):x}" == "abcdef010003"


def test_hint_packet() -> None:
    assert Hint(HintKind.PART_READ, 0x1234, 5).encode().hex() == "02000000050000003412000000000000"

"""What must hold in the index of a running mount whatever happened: read from the file itself, as a front does."""

from pathlib import Path

from fanoutfs.index.format import INO_KEY, PART_KEY, PART_VALUE, TOTALS, U64, unpack_inode
from fanoutfs.index.operations import blocks_bytes
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.records import ROOT_INO


def check_index(volume: Path) -> None:
    """Raise AssertionError with what is wrong.  Sees one committed state."""
    index = IndexEnvironment(volume, writable=False)
    try:
        with index.env.begin() as txn:
            inodes = {
                INO_KEY.unpack(key)[0]: unpack_inode(INO_KEY.unpack(key)[0], value)
                for key, value in txn.cursor(db=index.inodes)
            }
            orphans = {INO_KEY.unpack(key)[0] for key, _value in txn.cursor(db=index.orphans)}
            named: dict[int, bytes] = {}
            for key, value in txn.cursor(db=index.entries):
                parent, ino = INO_KEY.unpack(key[:8])[0], int.from_bytes(value[:8], "little")
                assert ino not in named, f"inode {ino} has two names: {named[ino]!r} and {key[8:]!r}"
                named[ino] = key[8:]
                assert parent in inodes, f"{key[8:]!r} lies in inode {parent}, which does not exist"
                assert parent not in orphans, f"{key[8:]!r} lies in the orphan {parent}"
                assert ino in inodes, f"{key[8:]!r} leads to inode {ino}, which does not exist"
                assert inodes[ino].name == key[8:], f"{key[8:]!r} leads to the record of {inodes[ino].name!r}"
            lost = set(inodes) - set(named) - orphans - {ROOT_INO}
            assert not lost, f"inodes without a name that are no orphans: {sorted(lost)}"
            assert not orphans & set(named), f"orphans with a name: {sorted(orphans & set(named))}"
            next_ino = U64.unpack(txn.get(b"next_ino", U64.pack(0), db=index.settings))[0]
            assert max(inodes) < max(next_ino, 2), f"inode {max(inodes)} was never handed out"

            files = [inodes[ino] for ino in named if not inodes[ino].is_dir]
            totals = TOTALS.unpack(txn.get(b"totals", TOTALS.pack(0, 0), db=index.settings))
            assert totals == (len(files), sum(file.size_bytes for file in files)), f"totals say {totals}"

            cached = 0
            for key, value in txn.cursor(db=index.blocks):
                ino, part = PART_KEY.unpack(key)
                assert ino in inodes, f"blocks of inode {ino}, which does not exist"
                cached += blocks_bytes(inodes[ino].size_bytes, part, PART_VALUE.unpack(value)[0])
            counted = U64.unpack(txn.get(b"cached_bytes", U64.pack(0), db=index.settings))[0]
            assert counted == cached, f"cached_bytes says {counted}, the block maps hold {cached}"
    finally:
        index.close()

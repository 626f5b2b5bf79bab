"""What a running mount has still to do in the store, for the text of a failure: read from its index, as fronts do."""

from pathlib import Path

from fanoutfs.core.facts import FactsReader
from fanoutfs.index.intents import INTENTS
from fanoutfs.index.places import Places
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment


def describe_changes(volume: Path, root_prefix: str) -> str:
    """Return a line for each dirty inode, departed key and unanswered request."""
    index = IndexEnvironment(volume, writable=False)
    lines: list[str] = []
    try:
        reader = IndexReader(index)
        looker = FactsReader(reader, root_prefix)
        with reader.begin() as txn:
            places = Places.of_reader(reader, txn, root_prefix)
            for ino, dirty in places.records.all_dirty():
                facts = looker.facts(places, ino, dirty)
                known = None if facts is None else (facts.condition, facts.obstacle, facts.is_link)
                lines.append(f"dirty {ino} at {places.key(ino)}: {dirty} {known} {_inode(places, ino)}")
            for key, departed in places.records.all_departed():
                orphan = " orphan" if departed.ino and places.is_orphan(departed.ino) else ""
                lines.append(f"departed {key} -> {departed}{orphan} {_inode(places, departed.ino)}")
            for name, value in reader.settings(txn, INTENTS).items():
                lines.append(f"{name.decode()} {value.decode()}")
    finally:
        index.close()
    return "\n".join(lines) or "nothing"


def _inode(places: Places, ino: int) -> str:
    inode = places.inode(ino) if ino else None
    return "" if inode is None else f"record: key {inode.key} etag {inode.etag} flags {inode.flags:#x}"

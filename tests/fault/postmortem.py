"""What is left when a promise was broken: what the object store holds, and what the daemon still meant to do."""

from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from fanoutfs.index.intents import INTENTS
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from tests.support.servers import Bucket


def describe_store(bucket: Bucket) -> str:
    """Return each key with its size and metadata, as the store answers to HEAD; directories without markers, too."""
    keys = set(bucket.keys())
    keys |= {f"{key[:at]}/" for key in keys for at, letter in enumerate(key) if letter == "/"}
    return "\n".join(f"store: {key} {_head(bucket, key)}" for key in sorted(keys))


def _head(bucket: Bucket, key: str) -> str:
    try:
        found: dict[str, Any] = bucket.client.head_object(Bucket=bucket.name, Key=bucket.prefix + key)
    except ClientError as error:
        return str(error)
    return f"{found['ContentLength']} bytes {found['LastModified']:%H:%M:%S} {found['Metadata']}"


def describe_journal(volume: Path) -> str:
    """Return the intents, the departed keys, the dirty inodes and the known places of an index that nobody has open."""
    index = IndexEnvironment(volume, writable=False)
    try:
        reader = IndexReader(index)
        with reader.begin() as txn:
            changed = reader.changed(txn)
            lines = [f"intent: {name!r} {value!r}" for name, value in reader.settings(txn, INTENTS).items()]
            lines += [f"departed: {key} {record}" for key, record in changed.all_departed()]
            lines += [f"dirty: {ino:x} {record}" for ino, record in changed.all_dirty()]
            lines += [f"inode: {ino:x} {reader.inode(txn, ino)}" for ino, _record in changed.all_dirty()]
    finally:
        index.close()
    return "\n".join(lines) or "the journal is empty"

"""What was written and not uploaded outlives the loss of the index."""

import os
from pathlib import Path

from fanoutfs.records import BLOCK_BYTES
from tests.mount import kernel
from tests.support.servers import Bucket


def volume_of(cache: Path) -> Path:
    (index,) = cache.rglob("index.lmdb")
    return index.parent


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_new_and_appended_files_are_there_after_the_index_was_lost(bucket: Bucket, tmp_path: Path) -> None:
    content = os.urandom(3 * BLOCK_BYTES + 5)
    bucket.put("d/log", content)
    options = ("--cache-dir", str(tmp_path / "cache"), "--upload-delay", "1h", "--upload-deadline", "1h")
    with kernel.mounted_bucket(bucket, *options) as mount:
        (mount.path / "new").mkdir()
        (mount.path / "new/a").write_bytes(b"written here")
        with (mount.path / "d/log").open("ab") as stream:
            stream.write(b"appended")
        with (mount.path / "d/log").open("r+b") as stream:
            stream.seek(BLOCK_BYTES + 7)
            stream.write(b"patched")
        for name in ("new/a", "d/log"):
            sync(mount.path / name)
    volume_of(tmp_path / "cache").joinpath("index.lmdb").write_bytes(b"garbage")
    patched = bytearray(content + b"appended")
    patched[BLOCK_BYTES + 7 : BLOCK_BYTES + 14] = b"patched"
    with kernel.mounted_bucket(bucket, *options) as mount:
        assert (mount.path / "new/a").read_bytes() == b"written here"
        assert (mount.path / "d/log").read_bytes() == bytes(patched)
        assert sorted(os.listdir(mount.path)) == ["d", "new"]
        assert os.listdir(mount.path / "new") == ["a"]

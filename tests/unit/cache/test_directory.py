"""The cache directory: lock, modes, other volumes."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fanoutfs.cache.directory import CacheDirectory
from fanoutfs.errors import CacheInUseError, CacheUnusableError
from fanoutfs.index.format import Departed, Dirty, DirtyRecord
from fanoutfs.records import KIB, Version
from tests.unit.indexes import apply, open_index


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_directory_is_private(tmp_path: Path) -> None:
    directory = CacheDirectory(tmp_path / "deep" / "cache")
    volume = directory.volume("s3://bucket")
    assert mode(directory.path) == 0o700
    for path in (volume.parent, volume, volume / "objects"):
        assert mode(path) == 0o700, path
    assert (volume / "volume").read_text() == "s3://bucket\n"
    directory.close()


def test_volumes_stay_private_in_a_directory_that_others_can_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    directory = CacheDirectory(tmp_path)
    volume = directory.volume("s3://bucket")
    assert mode(volume) == 0o700
    directory.close()


def test_same_identity_has_the_same_volume(tmp_path: Path) -> None:
    directory = CacheDirectory(tmp_path)
    assert directory.volume("a") == directory.volume("a") != directory.volume("b")
    directory.close()


def test_second_daemon_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom fanoutfs.cache.directory import CacheDirectory\n"
        "CacheDirectory(Path(sys.argv[1]))\nprint('locked', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(CacheInUseError, match=f"pid {owner.pid}"):
            CacheDirectory(tmp_path)
        owner.kill()
    CacheDirectory(tmp_path).close()


def test_lock_is_free_after_close(tmp_path: Path) -> None:
    CacheDirectory(tmp_path).close()
    CacheDirectory(tmp_path).close()


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(CacheUnusableError, match="symbolic links are refused"):
        CacheDirectory(tmp_path / "link")


def test_linked_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to("/tmp/elsewhere")
    with pytest.raises(CacheUnusableError):
        CacheDirectory(tmp_path)


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777])
def test_directory_that_others_can_write_is_refused(tmp_path: Path, bits: int) -> None:
    tmp_path.chmod(bits)
    with pytest.raises(CacheUnusableError, match="writable by others"):
        CacheDirectory(tmp_path)


def test_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)
    with pytest.raises(CacheUnusableError, match="belongs to uid 12345"):
        CacheDirectory(path)


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheUnusableError):
        CacheDirectory(tmp_path / "cache")


@pytest.mark.parametrize("what", ["dirty", "departed", "staged without an index", "staged with a broken index"])
def test_other_volume_that_has_what_the_store_lacks_stays(what: str, tmp_path: Path) -> None:
    directory = CacheDirectory(tmp_path)
    own, other, clean = (directory.volume(name) for name in ("own", "other", "clean"))
    for path in (other, clean):
        (path / "objects" / "x").write_bytes(bytes(64 * KIB))
        (path / "staging").mkdir()
        (path / "staging" / "10-1").write_bytes(b"")  # made ahead of need
        with open_index(path) as environment:
            if path == clean:
                continue
            if what == "dirty":
                apply(environment, lambda txn: txn.changed.put_dirty(16, DirtyRecord(1, 1, Dirty.META)))
            elif what == "departed":
                apply(environment, lambda txn: txn.changed.put_departed("key", Departed(0, Version("e", "", 1, 1))))
    if "staged" in what:
        (other / "staging" / "20-1").write_bytes(b"not uploaded")
        if what == "staged without an index":
            (other / "index.lmdb").unlink()
        else:
            (other / "index.lmdb").write_bytes(bytes(8192))
    directory.remove_other_volumes(own, 0)
    assert other.exists()
    assert not clean.exists()
    directory.close()


def test_other_volumes_go_longest_unused_first(tmp_path: Path) -> None:
    directory = CacheDirectory(tmp_path)
    own, old, new = (directory.volume(name) for name in ("own", "old", "new"))
    for path in (own, old, new):
        (path / "objects" / "x").write_bytes(bytes(64 * KIB))
    os.utime(old, (1, 1))
    assert 128 * KIB <= directory.other_volumes_bytes(own) <= 180 * KIB
    directory.remove_other_volumes(own, 120 * KIB)
    assert not old.exists()
    assert new.exists()
    directory.remove_other_volumes(own, 0)
    assert not new.exists()
    assert own.exists()
    directory.close()

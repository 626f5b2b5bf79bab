"""Set-ID bits after changes by those who may not keep them: on the mount as on a local disk."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount import kernel
from tests.support.mounts import Mount
from tests.support.servers import S3Server

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another user's changes need root")

NOBODY = 65534


def write(path: Path) -> None:
    with path.open("r+b", buffering=0) as stream:
        stream.write(b"x")


def append(path: Path) -> None:
    with path.open("ab", buffering=0) as stream:
        stream.write(b"x")


def truncate(path: Path) -> None:
    os.truncate(path, 1)


def open_truncated(path: Path) -> None:
    path.write_bytes(b"")


def allocate(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.posix_fallocate(fd, 0, 10_000)
    os.close(fd)


@pytest.fixture(scope="module")
def mount(weed: S3Server) -> Iterator[Mount]:
    bucket = weed.bucket()
    bucket.put("clean", b"content")
    with kernel.mounted_bucket(bucket, "--allow-other") as mounted:
        mounted.path.parent.chmod(0o755)
        yield mounted


@pytest.fixture
def local() -> Iterator[Path]:
    """A directory on the disk that everybody may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="fanoutfs-test-", dir="/var/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def run_as_nobody(change: Callable[[Path], None], path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            change(path)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def put(path: Path, mode: int) -> Path:
    path.write_bytes(b"content")
    path.chmod(mode)
    assert mode_of(path) == mode
    return path


@pytest.mark.parametrize("mode", [0o6777, 0o4777, 0o2777, 0o2767], ids=oct)
@pytest.mark.parametrize("change", [write, append, truncate, open_truncated, allocate])
def test_change_by_another_user_takes_set_id_bits_away(
    mount: Mount, local: Path, change: Callable[[Path], None], mode: int
) -> None:
    found = []
    for directory in (mount.path, local):
        path = put(directory / f"{change.__name__}-{mode:o}", mode)
        run_as_nobody(change, path)
        found.append((mode_of(path), path.read_bytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("mode", [0o6777, 0o6767], ids=oct)
def test_chown_takes_set_id_bits_away(mount: Mount, local: Path, mode: int) -> None:
    found = []
    for directory in (mount.path, local):
        path = put(directory / f"chown-{mode:o}", mode)
        os.chown(path, NOBODY, NOBODY)
        found.append(mode_of(path))
    assert found[0] == found[1]


def test_root_keeps_set_id_bits_when_it_writes(mount: Mount) -> None:
    path = put(mount.path / "root", 0o6777)
    with path.open("ab", buffering=0) as stream:
        stream.write(b"x")
    assert mode_of(path) == 0o6777


def test_write_to_an_object_by_another_user_takes_set_id_bits_away(mount: Mount) -> None:
    path = mount.path / "clean"
    path.chmod(0o6777)
    run_as_nobody(write, path)
    assert (mode_of(path), path.read_bytes()) == (0o777, b"xontent")

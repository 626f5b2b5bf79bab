"""Set-ID bits after changes by those who may not keep them: on the mount as on a local disk."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount import kernel
from tests.support.mounts import Mount
from tests.support.servers import S3Server

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another user's changes need root")

NOBODY = 65534
BY_NOBODY = {
    "write": "f = open(path, 'r+b', buffering=0); f.write(b'x')",
    "append": "f = open(path, 'ab', buffering=0); f.write(b'x')",
    "truncate": "os.truncate(path, 1)",
    "open O_TRUNC": "open(path, 'wb')",
    "fallocate": "os.posix_fallocate(os.open(path, os.O_RDWR), 0, 10_000)",
}


@pytest.fixture(scope="module")
def mount(weed: S3Server) -> Iterator[Mount]:
    bucket = weed.bucket()
    bucket.put("clean", b"content")
    with kernel.mounted_bucket(bucket, "--allow-other") as mounted:
        mounted.path.parent.chmod(0o755)
        yield mounted


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    return tmp_path


def run_as_nobody(program: str, path: Path) -> None:
    command = [sys.executable, "-S", "-c", f"import os; path = {os.fspath(path)!r}; {program}"]
    subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], check=True, cwd="/")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def put(path: Path, mode: int) -> Path:
    path.write_bytes(b"content")
    path.chmod(mode)
    assert mode_of(path) == mode
    return path


@pytest.mark.parametrize("mode", [0o6777, 0o4777, 0o2777, 0o2767], ids=oct)
@pytest.mark.parametrize("change", BY_NOBODY)
def test_change_by_another_user_takes_set_id_bits_away(mount: Mount, local: Path, change: str, mode: int) -> None:
    found = []
    for directory in (mount.path, local):
        path = put(directory / f"{change}-{mode:o}", mode)
        run_as_nobody(BY_NOBODY[change], path)
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
    run_as_nobody(BY_NOBODY["write"], path)
    assert (mode_of(path), path.read_bytes()) == (0o777, b"xontent")

"""Modification times that programs set on files of the store are kept: at once, after the upload, and elsewhere."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.mount.test_upload_arrival import drain, writable
from tests.support.servers import Bucket

SIZES = {"small": 3000, "large": 5 << 20}
LOOKUP = ("-o", "object_attributes=lookup")
PAST_NS = 1_234_567_890_123_456_789


def run(*command: str | Path) -> None:
    done = subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def times(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [LOOKUP, ()], ids=["lookup", "none"])
def test_times_that_are_set_on_remote_files_stay(bucket: Bucket, tmp_path: Path, options: tuple[str, ...]) -> None:
    ways = ("cp", "touch", "rsync", "inplace", "write-touch", "touch-read", "touch-chmod")
    bodies = {f"{way}/{name}": os.urandom(size) for way in ways for name, size in SIZES.items()}
    for key, body in bodies.items():
        bucket.put(key, body)
    source = tmp_path / "source"
    source.mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        (source / name).write_bytes(os.urandom(size))
        os.utime(source / name, ns=(0, PAST_NS + number))
    with writable(bucket, *options) as mount:
        root = mount.path
        run("cp", "-p", source / "small", source / "large", root / "cp")
        run("rsync", "-a", f"{source}/", root / "rsync")
        run("rsync", "-a", "--inplace", f"{source}/", root / "inplace")
        for number, (name, size) in enumerate(SIZES.items()):
            for way in ("touch", "touch-read", "touch-chmod"):
                run("touch", "-d", f"@{PAST_NS // 10**9}.{PAST_NS % 10**9 + number:09}", root / way / name)
            os.chmod(root / "touch-chmod" / name, 0o600)
            fd = os.open(root / "touch-read" / name, os.O_RDWR)
            os.pwrite(fd, b"x", size // 2)
            os.utime(fd, ns=(0, PAST_NS + number))
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            changed = bytearray(bodies[f"touch-read/{name}"])
            changed[size // 2 : size // 2 + 1] = b"x"
            assert os.pread(fd, size + 1, 0) == changed
            os.close(fd)
            with open(root / "write-touch" / name, "ab") as stream:
                stream.write(b"more")
            run("touch", "-r", source / name, root / "write-touch" / name)
        expected = {f"{way}/{name}": PAST_NS + number for way in ways for number, name in enumerate(SIZES)}
        assert times(root) == expected
        drain(mount)
        assert times(root) == expected
        mount.stop()
        mount.start()
        assert times(root) == expected
        with writable(bucket, *LOOKUP) as other:
            assert times(other.path) == expected


def test_time_of_a_write_after_one_that_was_set_moves_on(bucket: Bucket) -> None:
    for name, size in SIZES.items():
        bucket.put(name, bytes(size))
    with writable(bucket) as mount:
        for name in SIZES:
            path = mount.path / name
            os.utime(path, ns=(0, PAST_NS))
            before = path.stat()
            with open(path, "r+b") as stream:
                stream.write(b"x")
            after = path.stat()
            assert after.st_mtime_ns > PAST_NS + 10**9
            assert after.st_ctime_ns >= before.st_ctime_ns
        expected = times(mount.path)
        drain(mount)
        assert times(mount.path) == expected
        with writable(bucket, *LOOKUP) as other:
            assert times(other.path) == expected

"""What is written to a mount arrives in the bucket: bytes, names and metadata, with no request too many."""

import contextlib
import json
import os
import random
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fanoutfs.keeper.mountinfo import find_mount
from tests.mount.kernel import RENAME_EXCHANGE, renameat2
from tests.support.changes import describe_changes
from tests.support.mounts import Mount, mounted, run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket


@contextlib.contextmanager
def writable(bucket: Bucket, *options: str, endpoint: str = "", delay: str = "0s") -> Iterator[Mount]:
    """Mount a bucket for writing."""
    settings = ("--endpoint-url", endpoint or bucket.endpoint, "-o", f"upload_delay={delay},upload_deadline=5s")
    with mounted(bucket.url, *settings, *options, env=bucket.env) as mount:
        yield mount


def drain(mount: Mount, path: str = "") -> None:
    try:
        result = run_command("drain", "--wait", str(mount.path / path))
    except subprocess.TimeoutExpired:
        prefix = mount.source.removeprefix("s3://").partition("/")[2]
        pytest.fail(f"drain hangs\n{describe_changes(mount.volume(), prefix)}\n{mount.log()[-8000:]}")
    assert result.returncode == 0, f"{result.stderr}\n{mount.status()['changes']}\n{mount.log()[-4000:]}"


def contents(bucket: Bucket) -> dict[str, bytes]:
    """Return all objects, without directory markers and what goes while the others are looked at."""
    found = {}
    for key in filter(_is_file, bucket.keys()):
        with contextlib.suppress(bucket.client.exceptions.NoSuchKey):
            found[key] = read(bucket, key)
    return found


def _is_file(key: str) -> bool:
    """Tell whether a key is no directory marker, nor what a killed core left of its questions to the store."""
    return not key.endswith("/") and not key.startswith(".fanoutfs-scratch-")


def read(bucket: Bucket, key: str) -> bytes:
    body: bytes = bucket.client.get_object(Bucket=bucket.name, Key=bucket.prefix + key)["Body"].read()
    return body


def metadata(bucket: Bucket, key: str) -> dict[str, str]:
    found: dict[str, str] = bucket.client.head_object(Bucket=bucket.name, Key=bucket.prefix + key)["Metadata"]
    return found


def tree(root: Path) -> dict[str, bytes]:
    """Return path → content of all files below a directory."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def core_pid(mount: Mount) -> int:
    pid: int = mount.status()["core_pid"]
    return pid


def kill_core(mount: Mount) -> None:
    """Kill the core and wait for the next one."""
    pid = core_pid(mount)
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        with contextlib.suppress(Exception):
            return core_pid(mount) not in (0, pid)
        return False

    wait_until(is_back, "the next core answers")


def test_drain_waits_for_what_its_directorys_new_name_lets_be_uploaded(bucket: Bucket) -> None:
    with writable(bucket) as mount:
        (mount.path / "d.tmp").mkdir()
        for number in range(20):
            (mount.path / "d.tmp" / str(number)).write_bytes(b"content")
        drain(mount)
        wait_until(lambda: mount.status()["changes"]["never_uploaded"] == 21, "all were looked at")
        assert contents(bucket) == {}
        (mount.path / "d.tmp").rename(mount.path / "d")
        drain(mount)
        assert contents(bucket) == {f"d/{number}": b"content" for number in range(20)}


def test_file_that_changes_places_with_empty_directories_keeps_its_only_bytes(bucket: Bucket) -> None:
    content = random.Random(2).randbytes(700_000)
    with writable(bucket, delay="1s") as mount:  # the directory's marker could be put before the file's object goes
        (mount.path / "d" / "e").mkdir(parents=True)
        (mount.path / "a").write_bytes(content)
        drain(mount)
        assert run_command("evict", str(mount.path / "a")).returncode == 0
        renameat2(mount.path / "a", mount.path / "d", RENAME_EXCHANGE)

        def is_settled() -> bool:
            changes = mount.status()["changes"]
            return bool(changes["dirty"] == changes["departed"] == 0)

        wait_until(is_settled, "both have changed places")
        assert contents(bucket) == {"d": content}
        assert (mount.path / "a" / "e").is_dir()
        assert (mount.path / "d").read_bytes() == content


def test_tree_arrives_with_bytes_and_metadata(bucket: Bucket) -> None:
    with writable(bucket) as mount:
        (mount.path / "d" / "e").mkdir(parents=True)
        (mount.path / "d" / "small").write_bytes(b"small content")
        (mount.path / "d" / "e" / "empty").touch()
        large = random.Random(1).randbytes(3 << 20)
        (mount.path / "d" / "large").write_bytes(large)
        os.chmod(mount.path / "d" / "small", 0o640)
        os.utime(mount.path / "d" / "small", ns=(0, 1_500_000_000_123_456_789))
        os.setxattr(mount.path / "d" / "small", "user.colour", b"green")
        os.symlink("d/small", mount.path / "link")
        drain(mount)
        assert contents(bucket) == {
            "d/small": b"small content", "d/e/empty": b"", "d/large": large, "link": b"d/small",
        }  # fmt: skip
        found = metadata(bucket, "d/small")
        assert int(found["mode"]) == stat.S_IFREG | 0o640
        assert found["mtime"] == "1500000000.123456789"
        assert "green" not in found["xattr"]
        assert stat.S_ISLNK(int(metadata(bucket, "link")["mode"]))
        assert os.getxattr(mount.path / "d" / "small", "user.fanoutfs.state") == b"clean"
        assert os.stat(mount.path / "d" / "small").st_mtime_ns == 1_500_000_000_123_456_789
        assert (mount.path / "d" / "large").read_bytes() == large


def test_second_mount_sees_the_same_tree(bucket: Bucket) -> None:
    with writable(bucket, "-o", "object_attributes=lookup") as mount:
        (mount.path / "d" / "e").mkdir(parents=True)
        for number in range(30):
            path = mount.path / "d" / f"f{number}"
            path.write_bytes(f"content {number}".encode())
            os.chmod(path, 0o600 + number % 8)
            os.utime(path, (number, number + 0.5))
        os.rename(mount.path / "d" / "f0", mount.path / "d" / "e" / "moved")
        drain(mount)
        with writable(bucket, "-o", "object_attributes=lookup") as other:
            assert tree(other.path) == tree(mount.path)
            for number in range(1, 30):
                ours, theirs = (os.stat(each.path / "d" / f"f{number}") for each in (mount, other))
                assert (ours.st_mode, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns)


def test_checkpoint_renamed_from_tmp_is_one_put(bucket: Bucket, proxy: Proxy) -> None:
    with writable(bucket, endpoint=proxy.endpoint) as mount:
        with open(mount.path / "model.pt.tmp", "wb") as stream:
            stream.write(b"x" * 1_000_000)
            stream.flush()
            os.fsync(stream.fileno())
        wait_until(lambda: mount.status()["changes"]["never_uploaded"] == 1, "the queue has looked at it")
        os.rename(mount.path / "model.pt.tmp", mount.path / "model.pt")
        drain(mount)
        assert contents(bucket) == {"model.pt": b"x" * 1_000_000}
        requests = [each for each in proxy.requests("model.pt") if each.method in ("PUT", "POST", "DELETE")]
        assert [each.method for each in requests] == ["PUT"]


def test_large_file_is_uploaded_in_parts_and_appended_by_copy(bucket: Bucket) -> None:
    with writable(bucket) as mount:
        content = random.Random(2).randbytes(1 << 20) * 70
        (mount.path / "big").write_bytes(content)
        drain(mount)
        assert read(bucket, "big") == content
        before = mount.counters()
        with open(mount.path / "big", "ab") as stream:
            stream.write(b"the end")
        drain(mount)
        assert read(bucket, "big") == content + b"the end"
        after = mount.counters()
        assert after["backend_sent_bytes"] - before["backend_sent_bytes"] < 20 << 20
        assert (mount.path / "big").read_bytes() == content + b"the end"


def test_fsync_waits_for_the_store_when_asked_to(bucket: Bucket) -> None:
    with writable(bucket, "-o", "durability=remote", delay="1h") as mount:
        with open(mount.path / "a", "wb") as stream:
            stream.write(b"content")
            stream.flush()
            os.fsync(stream.fileno())
            assert read(bucket, "a") == b"content"


def test_fsync_never_says_that_the_open_file_is_not_there(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with mounted(f"file://{source}", "-o", "durability=remote,op_timeout=2s") as mount:
        with open(mount.path / "a", "wb", buffering=0) as stream:
            stream.write(b"content")
            source.rename(tmp_path / "away")
            with pytest.raises(OSError, match="Input/output error"):
                os.fsync(stream.fileno())
            (tmp_path / "away").rename(source)
            os.fsync(stream.fileno())
        assert (source / "a").read_bytes() == b"content"


def test_umount_says_what_is_dirty_and_the_next_mount_uploads_it(bucket: Bucket) -> None:
    with writable(bucket, delay="1h") as mount:
        (mount.path / "a").write_bytes(b"content")
        result = run_command("umount", str(mount.path))
        assert result.returncode == 0, result.stderr
        assert "not uploaded" in result.stderr
        assert contents(bucket) == {}
        mount.start()
        assert (mount.path / "a").read_bytes() == b"content"
        assert os.getxattr(mount.path / "a", "user.fanoutfs.state") == b"dirty"
        result = run_command("umount", "--drain", str(mount.path))
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        assert contents(bucket) == {"a": b"content"}


def test_umount_tells_what_is_never_uploaded_from_what_waits(bucket: Bucket, proxy: Proxy) -> None:
    with writable(bucket, "--no-upload", "*.tmp", endpoint=proxy.endpoint) as mount:
        proxy.fault("status", method="PUT", count=1000, status=503)
        (mount.path / "scratch.tmp").write_bytes(bytes(3 << 20))
        (mount.path / "a").write_bytes(bytes(2 << 20))
        wait_until(lambda: mount.status()["changes"]["never_uploaded_bytes"] == 3 << 20, "its time has come")
        result = run_command("umount", "--json", str(mount.path))
        assert result.returncode == 0, result.stderr
        told = json.loads(result.stdout)
        assert told["left_to_upload"] == "1 files or directories are not uploaded yet (2MiB)"
        assert told["kept_here"] == "1 files or directories are never uploaded (3MiB)"
        assert f"{told['left_to_upload']}, {told['kept_here']}; it is safe in the cache directory" in result.stderr


def test_umount_says_which_objects_are_still_there(bucket: Bucket, proxy: Proxy) -> None:
    bucket.put("a", b"content")
    with writable(bucket, endpoint=proxy.endpoint) as mount:
        proxy.fault("status", method="DELETE", count=1000, status=503)
        (mount.path / "a").unlink()
        result = run_command("umount", str(mount.path))
        assert result.returncode == 0, result.stderr
        assert "1 objects are not moved or deleted yet" in result.stderr
        assert contents(bucket) == {"a": b"content"}
        proxy.clear()
        mount.start()
        assert tree(mount.path) == {}
        result = run_command("umount", "--drain", str(mount.path))
        assert (result.returncode, result.stderr) == (0, "")
        assert contents(bucket) == {}


def test_sigterm_leaves_what_is_dirty_to_the_next_mount_and_the_log_says_so(bucket: Bucket) -> None:
    bucket.put("large", bytes(5 << 20))
    with writable(bucket, delay="1h") as mount:
        (mount.path / "a").write_bytes(b"never synced")
        with open(mount.path / "large", "r+b") as stream:
            stream.write(b"changed")
        os.kill(mount.status()["keeper_pid"], signal.SIGTERM)
        wait_until(lambda: find_mount(mount.path) is None and "ended" in mount.log(), "the daemon has ended")
        assert "not uploaded yet files=2" in mount.log()
        mount.start()
        assert (mount.path / "a").read_bytes() == b"never synced"
        drain(mount)
        assert contents(bucket) == {"a": b"never synced", "large": b"changed" + bytes((5 << 20) - 7)}


def test_drain_of_a_path_leaves_the_rest(bucket: Bucket) -> None:
    with writable(bucket, delay="1h") as mount:
        (mount.path / "d").mkdir()
        (mount.path / "d" / "a").write_bytes(b"a")
        (mount.path / "b").write_bytes(b"b")
        drain(mount, "d")
        assert contents(bucket) == {"d/a": b"a"}
        assert mount.status()["changes"]["dirty"] == 1
        drain(mount)
        assert contents(bucket) == {"d/a": b"a", "b": b"b"}


def test_drain_leaves_no_object_of_an_unlinked_file_that_is_open(bucket: Bucket) -> None:
    large, small = random.Random(5).randbytes(9 << 20), b"small"
    for name, content in (("large", large), ("small", small), ("below/large", large), ("stays", b"stays")):
        bucket.put(name, content)
    with writable(bucket) as mount:
        fds = {path: os.open(mount.path / path, os.O_RDWR) for path in ("large", "small", "below/large")}
        try:
            for path in fds:
                os.unlink(mount.path / path)
            drain(mount, "below")
            assert contents(bucket) == {"large": large, "small": small, "stays": b"stays"}
            drain(mount)
            assert contents(bucket) == {"stays": b"stays"}
            assert mount.status()["changes"]["departed"] == 0
            os.pwrite(fds["large"], b"written later", 5 << 20)
            changed = large[: 5 << 20] + b"written later" + large[(5 << 20) + 13 :]
            kill_core(mount)
            for path, content in (("large", changed), ("small", small), ("below/large", large)):
                os.posix_fadvise(fds[path], 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(fds[path], len(content) + 1, 0) == content, path
        finally:
            for fd in fds.values():
                os.close(fd)
        drain(mount)
        assert contents(bucket) == {"stays": b"stays"}


def test_file_that_is_replaced_while_open_keeps_what_was_never_read(bucket: Bucket) -> None:
    large = random.Random(6).randbytes(9 << 20)
    bucket.put("a", large)
    with writable(bucket) as mount:
        fd = os.open(mount.path / "a", os.O_RDONLY)
        try:
            (mount.path / "b").write_bytes(b"new")
            os.rename(mount.path / "b", mount.path / "a")
            wait_until(lambda: contents(bucket) == {"a": b"new"}, "the new file has the key")
            assert os.pread(fd, len(large) + 1, 0) == large
        finally:
            os.close(fd)


def test_file_comes_where_the_store_keeps_an_empty_directory(bucket: Bucket) -> None:
    """SeaweedFS does, of objects that are gone: it says of a file there that it exists, and that it does not."""
    with writable(bucket) as mount:
        (mount.path / "other").write_bytes(b"other")
        drain(mount)
        bucket.put("g/below", b"somebody's")
        bucket.client.delete_object(Bucket=bucket.name, Key=f"{bucket.prefix}g/below")
        (mount.path / "g").write_bytes(b"file")
        drain(mount)
        assert contents(bucket) == tree(mount.path) == {"g": b"file", "other": b"other"}
        assert mount.status()["changes"]["conflicts"] == 0


def test_drain_waits_for_the_objects_of_removed_files(bucket: Bucket, proxy: Proxy) -> None:
    with writable(bucket, endpoint=proxy.endpoint) as mount:
        for number in range(20):
            (mount.path / f"f{number}").write_bytes(bytes([number]) * 1000)
        drain(mount)
        proxy.fault("delay", method="DELETE", count=1000, ms=200)
        for number in range(0, 20, 2):
            os.unlink(mount.path / f"f{number}")
        (mount.path / "f1").rename(mount.path / "moved")
        drain(mount)
        assert contents(bucket) == tree(mount.path)
        assert len(tree(mount.path)) == 10


def test_store_that_refuses_fails_the_drain_and_keeps_the_data(bucket: Bucket, proxy: Proxy) -> None:
    with writable(bucket, endpoint=proxy.endpoint, delay="1h") as mount:
        (mount.path / "first").write_bytes(b"first")
        drain(mount)
        proxy.fault("status", method="PUT", count=1000, status=403, code="AccessDenied")
        (mount.path / "a").write_bytes(b"content")
        result = run_command("drain", "--wait", str(mount.path))
        assert result.returncode == 23, result.stderr
        assert (mount.path / "a").read_bytes() == b"content"
        assert (mount.path / "first").read_bytes() == b"first"
        assert mount.status()["changes"]["last_error"]
        proxy.clear()
        drain(mount)
        assert contents(bucket) == {"a": b"content", "first": b"first"}
        assert "last_error" not in mount.status()["changes"]


def test_store_that_refuses_to_delete_fails_the_drain(bucket: Bucket, proxy: Proxy) -> None:
    bucket.put("a", b"content")
    with writable(bucket, endpoint=proxy.endpoint) as mount:
        proxy.fault("status", method="DELETE", count=1000, status=403, code="AccessDenied")
        (mount.path / "a").unlink()
        result = run_command("drain", "--wait", str(mount.path))
        assert result.returncode == 23, result.stderr
        proxy.clear()
        drain(mount)
        assert contents(bucket) == {}


def test_renamed_directory_of_many_files_follows(bucket: Bucket) -> None:
    for number in range(200):
        bucket.put(f"old/{number % 3}/{number}", str(number).encode())
    with writable(bucket) as mount:
        os.rename(mount.path / "old", mount.path / "new")
        assert len(tree(mount.path)) == 200
        drain(mount)
        assert contents(bucket) == {f"new/{number % 3}/{number}": str(number).encode() for number in range(200)}
        assert tree(mount.path) == contents(bucket)
        assert not mount.status()["changes"]["departed"]


class Writer(threading.Thread):
    """Writes, renames and removes for a while; `expected` is what should be there."""

    def __init__(self, root: Path, seed: int) -> None:
        super().__init__()
        self.root = root
        self.draw = random.Random(seed)
        self.expected: dict[str, bytes] = {}
        self.is_over = threading.Event()
        self.error: BaseException | None = None
        self.kind = ""

    def run(self) -> None:
        try:
            number = 0
            while not self.is_over.is_set():
                number += 1
                self._step(number)
                time.sleep(0.002)
        except BaseException as error:
            self.error = error

    def _step(self, number: int) -> None:
        draw = self.draw
        directory = f"d{draw.randrange(4)}"
        self.kind = kind = draw.choice(["write", "write", "write", "move", "unlink", "directory"])
        if kind == "write":
            (self.root / directory).mkdir(exist_ok=True)
            path = f"{directory}/{draw.randrange(30)}"
            content = draw.randbytes(draw.choice([0, 10, 5000, 300_000]))
            (self.root / path).write_bytes(content)
            self.expected[path] = content
        elif kind == "move" and self.expected:
            old = draw.choice(sorted(self.expected))
            new = f"{old.rpartition('/')[0]}/m{number}"
            os.rename(self.root / old, self.root / new)
            self.expected[new] = self.expected.pop(old)
        elif kind == "unlink" and self.expected:
            path = draw.choice(sorted(self.expected))
            os.unlink(self.root / path)
            del self.expected[path]
        elif kind == "directory" and (self.root / directory).is_dir():
            new = f"r{number}"
            os.rename(self.root / directory, self.root / new)
            for path in [path for path in self.expected if path.startswith(f"{directory}/")]:
                self.expected[new + path.removeprefix(directory)] = self.expected.pop(path)


@pytest.mark.parametrize("seed", [1, 2])
def test_everything_arrives_over_kills_of_the_core(bucket: Bucket, seed: int) -> None:
    draw = random.Random(seed)
    with writable(bucket) as mount:
        writer = Writer(mount.path, seed)
        writer.start()
        try:
            for _kill in range(6):
                time.sleep(draw.uniform(0.1, 0.8))
                kill_core(mount)
        finally:
            writer.is_over.set()
            writer.join(60)
        assert writer.error is None, f"{writer.kind} {writer.error!r}\n{mount.log()[-6000:]}"
        drain(mount)
        assert tree(mount.path) == writer.expected
        # Objects of removed files go once the kernel has forgotten the files.
        wait_until(lambda: not mount.status()["changes"]["departed"], "nothing is left to be deleted", 60)
        assert contents(bucket) == writer.expected
        changes: dict[str, Any] = mount.status()["changes"]
        assert (changes["dirty"], changes["conflicts"]) == (0, 0)

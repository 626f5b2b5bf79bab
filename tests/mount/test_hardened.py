"""A whole session with a real store under what the unit forbids: nothing that the daemon does is in its way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fanoutfs
from fanoutfs.records import MIB
from tests.mount import kernel
from tests.support import hardened
from tests.support.manager import managed
from tests.support.mounts import Mount, run_command, wait_until
from tests.support.servers import Bucket

UNIT = Path(fanoutfs.__file__).parent / "systemd/fanoutfs@.service"
PREFIX = (sys.executable, "-m", "tests.support.hardened", str(UNIT))
LARGE = os.urandom(9 * MIB)


def test_session_with_a_store_under_the_hardening_of_the_unit(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("d/small", b"small")
    bucket.put("d/large", LARGE)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    mount = Mount(bucket.url, mountpoint, tmp_path / "cache")
    where = (bucket.url, str(mountpoint), "--cache-dir", str(mount.cache), "--endpoint-url", bucket.endpoint)
    with managed("mount", "--foreground", *where, "--upload-delay", "0s", environment=bucket.env) as manager:
        manager.start(*PREFIX)
        status = Path(f"/proc/{mount.status()['core_pid']}/status").read_text()
        assert "\nSeccomp:\t2\n" in status
        assert "\nNoNewPrivs:\t1\n" in status
        _use(mount)
        before = mount.status()
        done = run_command("upgrade", str(mountpoint))
        assert done.returncode == 0, done.stderr + manager.log
        _use(mount)
        os.kill(mount.status()["core_pid"], 9)
        wait_until(lambda: _generation(mount) == before["generation"] + 2, "the core is replaced")
        _use(mount)
        done = run_command("drain", "--wait", str(mountpoint))
        assert done.returncode == 0, done.stderr
        assert bucket.get("d/new") == LARGE
        assert manager.end() == 0  # the next start goes on, under the same hardening
        manager.start(*PREFIX)
        _use(mount)
        assert run_command("umount", str(mountpoint)).returncode == 0
        manager.wait()
        assert "Operation not permitted" not in manager.log
        assert "Traceback" not in manager.log


def _generation(mount: Mount) -> int:
    try:
        return int(mount.status()["generation"])
    except Exception:
        return 0


def _use(mount: Mount) -> None:
    place = mount.path / "d"
    assert kernel.read_all(place / "small") == b"small"
    assert kernel.read_all(place / "large") == LARGE
    with (place / "new.part").open("wb") as stream:
        stream.write(LARGE)
        stream.flush()
        os.fsync(stream.fileno())
    (place / "new.part").rename(place / "new")
    os.setxattr(place / "new", "user.note", b"1")
    os.chmod(place / "new", 0o600)
    os.truncate(place / "new", len(LARGE))
    os.symlink("new", place / "link")
    os.link(place / "new", place / "hard")
    assert kernel.read_all(place / "link") == LARGE
    for name in ("link", "hard"):
        (place / name).unlink()
    (place / "below").mkdir()
    (place / "below").rmdir()
    assert {"small", "large", "new"} <= set(os.listdir(place))
    assert os.statvfs(place).f_files >= 0


@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("another family of sockets", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"),
        ("a namespace", "import ctypes, os; r = ctypes.CDLL(None, use_errno=True); n = r.unshare(0x20000); "
         "e = ctypes.get_errno(); raise OSError(e, os.strerror(e)) if n else SystemExit(0)"),
        ("a set-uid file", "import os, tempfile; os.chmod(tempfile.mkdtemp(), 0o4755)"),
        ("memory to write and execute", "import mmap; mmap.mmap(-1, 4096, prot=7)"),
        ("another priority", "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"),
    ],
)  # fmt: skip
def test_control_what_the_unit_forbids_is_refused(what: str, call: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*PREFIX, sys.executable, "-c", call],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 1, what
    assert "PermissionError" in done.stderr, done.stderr


def test_harness_applies_what_is_written() -> None:
    assert {"@system-service", "@mount"} == set(hardened.settings(UNIT)["SystemCallFilter"].split())

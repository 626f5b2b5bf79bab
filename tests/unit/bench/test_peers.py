"""The peers that need no object store, on a real mount."""

import contextlib
import os
import shutil
import signal
import socket
import threading
from pathlib import Path

import pytest

from fanoutfs.bench import load, scope
from fanoutfs.bench.data import make_large_file, make_small_files
from fanoutfs.bench.peers import Passthrough, passthrough_as_example, start_peers
from fanoutfs.bench.scope import PeerError, is_mounted, mounting, scratch_directory, temporary_files_in
from fanoutfs.records import MIB

pytestmark = pytest.mark.skipif(
    not Path("/dev/fuse").exists() or shutil.which("fusermount3") is None, reason="no FUSE here"
)


def test_passthrough_shows_the_source_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_large_file(source / "large", 3 * MIB)
    names = make_small_files(source / "small", 40, 500)
    (source / "link").symlink_to("large")
    with temporary_files_in(tmp_path), Passthrough(source).mounted() as mountpoint:
        assert is_mounted(mountpoint)
        assert sorted(os.listdir(mountpoint)) == ["large", "link", "small"]
        assert (mountpoint / "link").read_bytes() == (source / "large").read_bytes()
        assert all(
            (mountpoint / "small" / name).read_bytes() == (source / "small" / name).read_bytes() for name in names
        )
        assert not (mountpoint / "missing").exists()
        outcome = load.run_together(8, load.hot_opens(bytes(mountpoint / "large"), 2000, 8))
        assert outcome.operations == 2000
        with pytest.raises(OSError, match="Read-only"):
            (mountpoint / "new").touch()
    assert not is_mounted(mountpoint)
    assert os.listdir(tmp_path) == ["source"]


def _reads_of(pid: int) -> int:
    """Return how often a process has read(2): libfuse reads /dev/fuse once for each message."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("syscr:"))


def _messages_of_ten_opens(peer: Passthrough, directory: Path) -> int:
    """Return what ten more opens of a known file cost; close() does not wait for RELEASE, so a few come or go."""
    with temporary_files_in(directory), peer.mounted() as mountpoint:
        path = bytes(mountpoint / "file")
        load.run_together(1, load.hot_opens(path, 10, 1))
        (pid,) = _programs_on(mountpoint)
        before = _reads_of(pid)
        load.run_together(1, load.hot_opens(path, 10, 1))
        return _reads_of(pid) - before


def _programs_on(mountpoint: Path) -> list[int]:
    """Return the processes that have the mountpoint as an argument."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and bytes(mountpoint) in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def test_passthrough_as_example_pays_more_messages_for_every_open(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(bytes(4096))
    tuned = _messages_of_ten_opens(Passthrough(source), tmp_path)
    untuned = _messages_of_ten_opens(passthrough_as_example(source), tmp_path)
    # 20: OPEN and RELEASE; 80: GETATTRs of the path walk, LOOKUP and READ as well.
    assert tuned <= 30
    assert untuned >= 60


def test_a_busy_mount_is_detached(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("x")
    with temporary_files_in(tmp_path), Passthrough(tmp_path / "source").mounted() as mountpoint:
        held = (mountpoint / "file").open()
    assert not is_mounted(mountpoint)
    held.close()


def test_program_that_ends_is_a_reason_not_a_failure(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo no such bucket; exit 7"]
    with (
        pytest.raises(PeerError, match="exit code 7: no such bucket"),
        mounting(command, tmp_path / "mnt", tmp_path / "log"),
    ):
        pass


def test_peer_without_its_program_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fanoutfs.bench.data import Bucket
    from fanoutfs.bench.peers import Ext4, Rclone

    monkeypatch.setenv("PATH", str(tmp_path))
    bucket = Bucket("http://127.0.0.1:1", "data", "us-east-1", "a", "b")
    with temporary_files_in(tmp_path), start_peers([Ext4(tmp_path), Rclone(bucket)]) as (places, reasons):
        assert places == {"ext4": tmp_path}
        assert reasons == {"rclone": "not run: rclone is not installed (apt-get install rclone)"}


def test_scratch_directory_goes_also_after_an_interrupt(tmp_path: Path) -> None:
    with pytest.raises(scope.Interrupted), scope.signals_unwind(), scratch_directory(tmp_path, "x-") as directory:
        (directory / "file").touch()
        os.kill(os.getpid(), 15)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_that_python_drops_interrupts_nevertheless(tmp_path: Path, number: signal.Signals) -> None:
    class Deleted:
        def __del__(self) -> None:
            signal.raise_signal(number)  # what the handler raises here is dropped

    with pytest.raises(scope.Interrupted), scope.signals_unwind(), scratch_directory(tmp_path, "x-"):
        Deleted()
        threading.Event().wait(30)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_that_another_thread_gets_waits_for_the_end_of_cleaning_up(number: signal.Signals) -> None:
    done = []
    may_end, (arrived, arrives) = threading.Event(), socket.socketpair()
    arrives.setblocking(False)
    thread = threading.Thread(target=may_end.wait)
    thread.start()  # it blocks no signal
    assert thread.ident is not None
    before = signal.set_wakeup_fd(arrives.fileno())
    try:
        with pytest.raises((scope.Interrupted, KeyboardInterrupt)), scope.signals_unwind():
            with scope.without_interrupts():
                signal.pthread_kill(thread.ident, number)
                arrived.recv(1)
                done.append("cleaned up")
            done.append("went on")
    finally:
        signal.set_wakeup_fd(before)
        may_end.set()
        thread.join()
        arrived.close()
        arrives.close()
    assert done == ["cleaned up"]

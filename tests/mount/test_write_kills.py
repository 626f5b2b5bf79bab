"""Cores and fronts killed in the middle of changes: nothing acknowledged is lost, nothing is done twice."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Mount, mounted, run_command, wait_until

KILLS = 12
LINE = 64


UPLOADS = {
    "staged": ("--no-upload", "*"),
    "uploaded at once": ("--upload-delay", "0s", "--upload-deadline", "0s"),
}


@pytest.fixture(params=UPLOADS)
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mount]:
    with mounted(f"file://{tmp_path}", "--metadata-ttl", "indefinite", *UPLOADS[request.param]) as place:
        yield place


def kill_core(mount: Mount) -> None:
    _kill(mount.status()["core_pid"])


def kill_front(mount: Mount) -> None:
    _kill(mount.status()["front_pids"][0])


def kill_both(mount: Mount) -> None:
    pids = mount.status()
    _kill(pids["front_pids"][-1])
    _kill(pids["core_pid"])


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it is being replaced at this moment
        os.kill(pid, signal.SIGKILL)


class Storm:
    """Threads that change things until told to stop; an exception in one of them fails the test."""

    def __init__(self, *works: Callable[[int], None]) -> None:
        self.rounds = [0] * len(works)
        self._errors: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(index, work), daemon=True) for index, work in enumerate(works)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, index: int, work: Callable[[int], None]) -> None:
        try:
            while not self._stop.is_set():
                work(self.rounds[index])
                self.rounds[index] += 1
        except BaseException as error:
            self._errors.append(error)

    def has_moved_on(self, before: list[int]) -> bool:
        """Tell whether each thread has done more since, or one of them has failed."""
        return bool(self._errors) or all(now > then for now, then in zip(self.rounds, before, strict=True))

    def check(self) -> None:
        assert not self._errors, self._errors

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a call hangs"
        self.check()


def _kill_often(mount: Mount, storm: Storm, kill: Callable[[Mount], None]) -> None:
    for _number in range(KILLS):
        before = list(storm.rounds)
        wait_until(lambda: storm.has_moved_on(before), "calls go on")
        storm.check()
        kill(mount)
        wait_until(lambda: _answers(mount), "a new generation answers")


def _answers(mount: Mount) -> bool:
    try:
        mount.status()
    except Exception:
        return False
    return True


@pytest.mark.parametrize("kill", [kill_core, kill_front, kill_both])
def test_killed_in_a_storm_of_changes_everything_is_done_once(mount: Mount, kill: Callable[[Mount], None]) -> None:
    root = mount.path
    for name in ("made", "moved", "linked"):
        (root / name).mkdir()
    log = os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def make(number: int) -> None:
        # O_EXCL: done a second time it would fail.
        fd = os.open(root / f"made/{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, b"%d" % number)
        os.close(fd)

    def append(number: int) -> None:
        assert os.write(log, f"{number:0{LINE - 1}d}\n".encode()) == LINE

    def move(number: int) -> None:
        (root / f"moved/a{number}").symlink_to("nowhere")
        os.rename(root / f"moved/a{number}", root / f"moved/b{number}")
        if number % 2:
            os.unlink(root / f"moved/b{number}")

    def link(number: int) -> None:
        if number == 0:
            (root / "linked/0").write_bytes(b"x")
        os.link(root / "linked/0", root / f"linked/{number + 1}")
        os.mkdir(root / f"linked/d{number}")
        os.rmdir(root / f"linked/d{number}")
        os.setxattr(root / "linked/0", f"user.{number % 8}", b"%d" % number)

    storm = Storm(make, append, move, link)
    try:
        _kill_often(mount, storm, kill)
    finally:
        storm.end()
        os.close(log)
    made, appended, moved, linked = storm.rounds
    assert min(storm.rounds) >= KILLS
    assert sorted(map(int, os.listdir(root / "made"))) == list(range(made))
    assert all((root / f"made/{number}").read_bytes() == b"%d" % number for number in range(made))
    expected = b"".join(f"{number:0{LINE - 1}d}\n".encode() for number in range(appended))
    assert (root / "log").read_bytes() == expected
    assert sorted(os.listdir(root / "moved")) == sorted(f"b{number}" for number in range(0, moved, 2))
    assert (root / "linked/0").stat().st_nlink == linked + 1
    assert len(os.listdir(root / "linked")) == linked + 1


@pytest.mark.parametrize("kill", [kill_core, kill_front, kill_both])
def test_files_that_many_make_at_once_are_made_once_and_uploaded(tmp_path: Path, kill: Callable[[Mount], None]) -> None:
    """Fronts make them by themselves: killed in LMDB's lock, before and after the commit, with and without a core."""
    source = tmp_path / "source"
    source.mkdir()
    with mounted(f"file://{source}", "--metadata-ttl", "indefinite", "--upload-delay", "0s") as mount:
        (mount.path / "shared").mkdir()

        def maker(name: str) -> Callable[[int], None]:
            def make(number: int) -> None:
                fd = os.open(mount.path / f"shared/{name}-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                if number % 2:
                    os.write(fd, b"%d" % number)
                os.close(fd)

            return make

        storm = Storm(*map(maker, "abcd"))
        try:
            _kill_often(mount, storm, kill)
        finally:
            storm.end()
        expected = {
            f"{name}-{number}": b"%d" % number if number % 2 else b""
            for name, made in zip("abcd", storm.rounds, strict=True)
            for number in range(made)
        }
        assert mount.counters()["messages_mknod_answered"] > 0
        assert {path.name: path.read_bytes() for path in (mount.path / "shared").iterdir()} == expected
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        assert {path.name: path.read_bytes() for path in (source / "shared").iterdir()} == expected


def test_unlinked_file_stays_open_over_the_death_of_core_and_fronts(mount: Mount) -> None:
    path = mount.path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"kept")
        os.unlink(path)
        for kill in (kill_core, kill_both):
            kill(mount)
            assert os.pread(fd, 4, 0) == b"kept"
            assert os.pwrite(fd, b"more", 4) == 4
        assert os.pread(fd, 10, 0) == b"keptmore"
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)
    staging = mount.volume() / "staging"
    wait_until(lambda: not os.listdir(staging), "the kernel has forgotten the file, and its content goes")


def test_synced_content_survives_the_end_of_the_whole_tree(tmp_path: Path) -> None:
    with mounted(f"file://{tmp_path}", "--no-upload", "*") as mount:
        expected = {}
        (mount.path / "d").mkdir()
        for number in range(20):
            content = os.urandom(1000 * number)
            fd = os.open(mount.path / f"d/{number}", os.O_WRONLY | os.O_CREAT)
            os.write(fd, content)
            os.fsync(fd)
            os.close(fd)
            expected[f"{number}"] = content
        os.rename(mount.path / "d", mount.path / "e")
        mount.kill_everything()
        deadline = time.monotonic() + 30
        while True:  # the lock of the cache is held until the last process has gone
            try:
                mount.start()
                break
            except AssertionError:
                assert time.monotonic() < deadline
        assert {path.name: path.read_bytes() for path in (mount.path / "e").iterdir()} == expected
        assert not (mount.path / "d").exists()

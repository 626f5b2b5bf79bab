"""Push against everything that goes on meanwhile: never a stale byte, never a process that waits for ever."""

import mmap
import os
import random
import signal
import struct
import time
from pathlib import Path

import fanoutfs
from fanoutfs.records import KIB
from tests.fault.children import Child, Children, content, digest
from tests.fault.conftest import Mounter
from tests.support.mounts import Mount, processes_of, run_command, wait_until

STRESS_S = 60.0
READERS = 8
FILES = 300
_HEAD = struct.Struct("<QQ")


def versioned(number: int, version: int) -> bytes:
    """Return the content of a file in a version: it says which one it is, and every byte follows from that."""
    seed = number << 20 | version
    return _HEAD.pack(number, version) + content(seed, random.Random(seed).randrange(64 * KIB))


def put(path: Path, number: int, version: int) -> None:
    """Replace an object at once, as a store does."""
    scratch = path.parent.parent / f"scratch-{path.name}"
    scratch.write_bytes(versioned(number, version))
    scratch.replace(path)


def check(data: bytes, number: int, least: int) -> None:
    """Fail unless this is one whole version of the file, and not an older one than could be seen when it was opened."""
    found, version = _HEAD.unpack_from(data)
    assert found == number
    assert version >= least, f"file {number}: version {version} after {least} was published"
    assert digest(data) == digest(versioned(number, version)), f"file {number}: not version {version}"


def read_versions(root: Path, seed: int, board: mmap.mmap, slot: int) -> int:
    """Read and check every file, in order or not, dropping some pages, until told to stop; return how many reads."""
    chance = random.Random(seed)
    reads = 0
    while not board[0]:
        numbers = list(range(FILES))
        if chance.random() < 0.5:
            chance.shuffle(numbers)
        os.listdir(root)
        for number in numbers:
            least = struct.unpack_from("<Q", board, 8 + 8 * (READERS + number))[0]
            fd = os.open(root / f"{number:04d}", os.O_RDONLY)
            try:
                data = b""
                while chunk := os.read(fd, 1 << 17):
                    data += chunk
                check(data, number, least)
                if chance.random() < 0.5:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            except OSError as error:
                # The old version is gone from the store and was not cached: said, not hidden.
                assert error.errno == 116, error  # ESTALE
            finally:
                os.close(fd)
            reads += 1
            struct.pack_into("<Q", board, 8 + 8 * slot, reads)
            if board[0]:
                break
    return reads


def test_pushes_changes_and_evictions_under_readers_give_right_bytes_and_no_deadlock(
    tmp_path: Path, mount_of: Mounter, children: Children
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed={seed}")
    chance = random.Random(seed)
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for number in range(FILES):
        put(source / "d" / f"{number:04d}", number, 1)
    # The small store holds about two thirds of the files: there are always fills and evictions.
    mount = mount_of(
        f"file://{source}", "--read-only", "--cache-size", "16MiB", "--metadata-ttl", "1s", "--free-space-floor", "0"
    )
    board = mmap.mmap(-1, 1 << 16)
    for number in range(FILES):
        struct.pack_into("<Q", board, 8 + 8 * (READERS + number), 1)
    readers = [children.start(read_versions, mount.path / "d", seed + n, board, n) for n in range(READERS)]
    version = 1
    deadline = time.monotonic() + STRESS_S
    while time.monotonic() < deadline:
        before = [struct.unpack_from("<Q", board, 8 + 8 * n)[0] for n in range(READERS)]
        version += 1
        changed = chance.sample(range(FILES), FILES // 3)
        for number in changed:
            put(source / "d" / f"{number:04d}", number, version)
        mount.invalidate("d")
        for number in changed:
            struct.pack_into("<Q", board, 8 + 8 * (READERS + number), version)
        # A plan fetches, pushes, and drops behind readers who do not keep to it.
        order = chance.sample(range(FILES), FILES)
        fanoutfs.announce((mount.path / "d" / f"{number:04d}" for number in order), name="stress")

        def all_went_on(before: list[int] = before) -> bool:
            running = [reader for reader in readers if not reader.is_running]
            assert not running, children.results(running)
            return all(struct.unpack_from("<Q", board, 8 + 8 * n)[0] > before[n] for n in range(READERS))

        wait_until(all_went_on, "every reader went on")
    board[0] = 1
    reads = sum(children.results(readers))
    counters = mount.counters()
    print(f"reads={reads} versions={version} pushed={counters['pushed_files']} refused={counters['pushes_refused']}")
    assert counters["pushed_files"] > 0
    assert counters["version_switches"] > 0
    assert counters["verify_failures"] == 0
    assert counters["request_errors"] == 0
    assert (counters["restarts_core"], counters["restarts_front"]) == (0, 0)


def cached_directory(tmp_path: Path, mount_of: Mounter, files: int, size_bytes: int = 4 * KIB) -> Mount:
    """Return a mount that is up, anew, with all files of the directory `d` in its cache."""
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for number in range(files):
        (source / "d" / f"{number:05d}").write_bytes(content(number, size_bytes))
    mount = mount_of(f"file://{source}", "--read-only", "--metadata-ttl", "indefinite")
    read_directory(mount.path / "d", files, size_bytes)
    mount.stop()
    mount.start()
    return mount


def read_directory(directory: Path, files: int, size_bytes: int = 4 * KIB) -> None:
    for number in range(files):
        assert (directory / f"{number:05d}").read_bytes() == content(number, size_bytes)


def test_killed_pusher_is_replaced_alone_and_readers_never_notice(tmp_path: Path, mount_of: Mounter) -> None:
    files = 2000
    mount = cached_directory(tmp_path, mount_of, files)
    before = mount.status()
    os.listdir(mount.path / "d")
    os.kill(before["pusher_pid"], signal.SIGKILL)
    read_directory(mount.path / "d", files)
    wait_until(lambda: mount.status()["pusher_pid"] != before["pusher_pid"], "another pusher was started")
    after = mount.status()
    assert (after["core_pid"], after["front_pids"]) == (before["core_pid"], before["front_pids"])
    assert after["counters"]["restarts_core"] == 0


def test_stopped_pusher_holds_up_nobody(tmp_path: Path, mount_of: Mounter, children: Children) -> None:
    files = 500
    mount = cached_directory(tmp_path, mount_of, files)
    os.kill(mount.status()["pusher_pid"], signal.SIGSTOP)
    os.listdir(mount.path / "d")
    children.start(read_directory, mount.path / "d", files).result(30)
    mount.invalidate("d")
    mount.stop()


def test_unmount_in_the_middle_of_a_push_ends_everything(tmp_path: Path, mount_of: Mounter) -> None:
    mount = cached_directory(tmp_path, mount_of, 200, 128 * KIB)
    for _time in range(5):
        os.listdir(mount.path / "d")
        wait_until(lambda: mount.counters()["pushed_files"] > 0, "the push began")
        result = run_command("umount", str(mount.path))
        assert result.returncode == 0, result.stderr
        wait_until(lambda: not processes_of(mount.path.parent), "every process has ended")
        mount.start()


def hold_pusher(mount: Mount, children: Children) -> Child:
    """Have the kernel hold the pusher: the page it writes to belongs to a READ that the fronts, stopped, do not answer.

    Return the reader that waits for that READ.
    """
    status = mount.status()
    (mount.path / "d/00299").read_bytes()  # the first close of a mount costs a message
    fd = os.open(mount.path / "d/00000", os.O_RDONLY)
    os.kill(status["pusher_pid"], signal.SIGSTOP)
    os.listdir(mount.path / "d")
    for pid in status["front_pids"]:
        wait_until(lambda: "epoll" in waits_in(pid) or "ep_poll" in waits_in(pid), "the front has told of the listing")
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: state_of(pid) == "T", "the front stands still")
    reader = children.start(os.pread, fd, 4 * KIB, 0)
    os.close(fd)
    wait_until(
        lambda: state_of(reader.pid) in "DS" and "folio" in waits_in(reader.pid), "the reader waits for its page"
    )
    os.kill(status["pusher_pid"], signal.SIGCONT)
    wait_until(lambda: "folio" in waits_in(status["pusher_pid"]), "the pusher waits for the same page")
    return reader


def state_of(pid: int) -> str:
    """Return a process's state: R, S, D, T or Z."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


def waits_in(pid: int) -> str:
    """Return the kernel function in which a process sleeps."""
    return Path(f"/proc/{pid}/wchan").read_text(encoding="ascii")


def test_held_pusher_keeps_nobody_waiting_and_goes_on_when_the_read_is_answered(
    tmp_path: Path, mount_of: Mounter, children: Children
) -> None:
    mount = cached_directory(tmp_path, mount_of, 300)
    reader = hold_pusher(mount, children)
    status = mount.status()  # the core answers
    for pid in status["front_pids"]:
        os.kill(pid, signal.SIGCONT)
    assert reader.result(30) == content(0, 4 * KIB)
    wait_until(lambda: mount.counters()["pushed_files"] > 100, "the pusher went on")
    read_directory(mount.path / "d", 300)
    assert mount.status()["pusher_pid"] == status["pusher_pid"]


def test_held_pusher_does_not_keep_a_dead_core_from_being_replaced(
    tmp_path: Path, mount_of: Mounter, children: Children
) -> None:
    mount = cached_directory(tmp_path, mount_of, 300)
    reader = hold_pusher(mount, children)
    held = mount.status()
    os.kill(held["core_pid"], signal.SIGKILL)  # the fronts of the next generation answer what these have not
    assert reader.result(30) == content(0, 4 * KIB)
    wait_until(lambda: not Path(f"/proc/{held['pusher_pid']}").exists(), "the old pusher has ended")
    read_directory(mount.path / "d", 300)


def test_held_pusher_does_not_keep_the_daemon_from_ending(
    tmp_path: Path, mount_of: Mounter, children: Children
) -> None:
    mount = cached_directory(tmp_path, mount_of, 300)
    hold_pusher(mount, children)
    os.kill(mount.status()["keeper_pid"], signal.SIGTERM)
    wait_until(lambda: not processes_of(mount.path.parent), "every process has ended")

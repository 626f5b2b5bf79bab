"""Push, as the kernel sees it: exact numbers of messages with it and without."""

import contextlib
import errno
import mmap
import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fanoutfs.records import KIB, MIB
from tests.mount import kernel
from tests.perf.counting import counted
from tests.support.mounts import Mount, mounted, wait_until

pytestmark = pytest.mark.usefixtures("steady_caches")

FILES = 600
FEW_SENTINELS = FILES // 20


@dataclass(frozen=True)
class Place:
    """A mount whose files are all cached, and which is down."""

    mount: Mount
    directory: Path
    contents: dict[str, bytes]

    def start(self, *options: str) -> Mount:
        """Mount again with a kernel that knows nothing, and have it learn that there are no opens."""
        self.mount.options = ("--read-only", "--metadata-ttl", "indefinite", *options)
        self.mount.start()
        kernel.read_all(self.mount.path / "learn")
        return self.mount

    def read_all(self, names: list[str] | None = None) -> None:
        for name in names or self.contents:
            assert kernel.read_all(self.mount.path / "d" / name) == self.contents[name]


@pytest.fixture(params=[4 * KIB, 40 * KIB], ids=["4KiB", "40KiB"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A directory of files of a size, not quite whole pages."""
    chance = random.Random(request.param)
    contents = {f"{number:04d}": chance.randbytes(request.param - number % 3) for number in range(FILES)}
    (tmp_path / "d").mkdir()
    (tmp_path / "learn").touch()
    for name, body in contents.items():
        (tmp_path / "d" / name).write_bytes(body)
    with mounted(f"file://{tmp_path}", "--read-only", "--metadata-ttl", "indefinite", "--push-memory", "0") as mount:
        place = Place(mount, tmp_path, contents)
        os.listdir(mount.path / "d")
        place.read_all()
        mount.stop()
        yield place


def wait_for_push(mount: Mount, files: int = FILES) -> int:
    """Return how many files were pushed, once so many were pushed or left out."""

    def are_settled() -> bool:
        # On a busy machine the kernel has not entered every file in time: it refuses some, and they are tried again.
        counters = mount.counters()
        return counters["blocks_verified"] - counters["pushes_refused"] >= files

    wait_until(are_settled, f"{files} files were pushed or left out")
    return mount.counters()["pushed_files"]


def test_listed_files_are_read_without_a_message_but_for_the_sentinels(place: Place) -> None:
    mount = place.start()
    os.listdir(mount.path / "d")
    pushed = wait_for_push(mount)
    assert FILES - FEW_SENTINELS <= pushed < FILES
    with counted(mount) as first:
        place.read_all()
    assert first == {"read_answered": FILES - pushed}
    assert first.backend == {}
    wait_until(lambda: mount.counters()["sentinels_read"] > 0, "sentinels were noticed")
    with counted(mount) as second:
        os.listdir(mount.path / "d")
        place.read_all()
    assert second == {}


def test_size_and_mapping_of_a_pushed_file_are_right(place: Place) -> None:
    mount = place.start()
    os.listdir(mount.path / "d")
    pushed = wait_for_push(mount)
    with counted(mount) as used:
        for name, body in place.contents.items():
            assert (mount.path / "d" / name).stat().st_size == len(body)
            with kernel.opened(mount.path / "d" / name) as fd:
                with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
                    assert mapped[:] == body
                assert os.pread(fd, 10, len(body) - 1) == body[-1:]
                assert os.lseek(fd, 0, os.SEEK_END) == len(body)
    assert used == {"read_answered": FILES - pushed}


def test_without_push_every_file_costs_a_read(place: Place) -> None:
    mount = place.start("--push-memory", "0")
    assert mount.status()["pusher_pid"] == 0
    os.listdir(mount.path / "d")
    with counted(mount) as first:
        place.read_all()
    assert first == {"read_answered": FILES}
    assert mount.counters()["pushed_files"] == 0


def test_push_that_nobody_reads_stops_at_its_budget(place: Place) -> None:
    mount = place.start("--push-memory", "1MiB")
    with counted(mount) as used:
        os.listdir(mount.path / "d")
        wait_until(lambda: mount.counters()["push_stops_budget"] == 1, "the push stopped")
    assert set(used) == {"lookup_answered", "readdirplus_answered", "opendir_answered"}  # d and its entries
    size_bytes = len(place.contents["0000"])
    assert MIB <= mount.counters()["pushed_bytes"] <= MIB + 32 * size_bytes
    # Reading on takes it up again.
    before = mount.counters()["pushed_files"]
    place.read_all()
    wait_until(lambda: mount.counters()["sentinels_read"] > 0, "sentinels were noticed")
    wait_until(lambda: mount.counters()["pushed_files"] > before, "the push went on")


def test_shuffled_pass_needs_few_reads_too(place: Place) -> None:
    mount = place.start()
    names = list(place.contents)
    random.Random(7).shuffle(names)
    os.listdir(mount.path / "d")
    wait_until(lambda: mount.counters()["pushed_files"] > 100, "the push began")
    with counted(mount) as first:
        place.read_all(names)
    assert set(first) == {"read_answered"}
    assert first["read_answered"] < FILES


def test_files_that_are_not_cached_are_left_alone(place: Place) -> None:
    (place.directory / "new").mkdir()
    for number in range(50):
        (place.directory / "new" / str(number)).write_bytes(b"new")
    mount = place.start()
    mount.invalidate()
    os.listdir(mount.path / "new")
    os.listdir(mount.path / "d")
    pushed = wait_for_push(mount)  # it comes later in the order of listing
    with counted(mount) as first:
        for number in range(50):
            assert kernel.read_all(mount.path / "new" / str(number)) == b"new"
    assert first["read_answered"] == 50
    assert mount.counters()["pushed_files"] == pushed


def test_changed_object_is_read_in_its_new_version_after_a_push(place: Place) -> None:
    mount = place.start()
    os.listdir(mount.path / "d")
    wait_for_push(mount)
    old = kernel.opened(mount.path / "d" / "0001")
    with old as fd:
        (place.directory / "d" / "0001").write_bytes(b"the new version")
        mount.invalidate("d")
        assert kernel.read_all(mount.path / "d" / "0001") == b"the new version"
        assert os.pread(fd, MIB, 0) == place.contents["0001"]
    assert os.stat(mount.path / "d" / "0001").st_size == len(b"the new version")


@contextlib.contextmanager
def fuse_descriptor(mount: Mount) -> Iterator[int]:
    """Borrow the /dev/fuse descriptor of a mount's keeper."""
    pid = mount.status()["keeper_pid"]
    folder = Path(f"/proc/{pid}/fd")
    number = next(int(link.name) for link in folder.iterdir() if os.readlink(link) == "/dev/fuse")
    pidfd = os.pidfd_open(pid)
    try:
        borrowed = kernel.duplicate_from(pidfd, number)
    finally:
        os.close(pidfd)
    try:
        yield borrowed
    finally:
        os.close(borrowed)


def test_kernel_refuses_a_store_to_an_inode_it_does_not_hold(place: Place) -> None:
    # The fact the pusher relies on, on the kernel at hand.
    mount = place.start()
    body = b"nobody asked"
    message = struct.pack("<IiQQQII", 40 + len(body), 4, 0, 1 << 40, 0, len(body), 0) + body
    with fuse_descriptor(mount) as fd, pytest.raises(OSError) as refused:
        os.write(fd, message)
    assert refused.value.errno == errno.ENOENT

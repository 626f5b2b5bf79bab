"""Messages per operation on a read-only mount, as exact numbers.

What costs nothing: open, close, stat, absent names, listings, locks and reads of what the kernel has seen once.
A read-write mount pays one GETATTR more after a READ, because of the time of access.
"""

import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fanoutfs.records import KIB, MIB
from tests.mount import kernel
from tests.perf.counting import counted
from tests.support.caches import drop_page_cache
from tests.support.mounts import Mount, wait_until
from tests.support.servers import S3Server

pytestmark = pytest.mark.usefixtures("steady_caches")

NAMES = [f"{number:03d}" for number in range(100)]


@pytest.fixture(scope="module")
def mount(weed: S3Server) -> Iterator[Mount]:
    """A mount that has learned that there are no opens, with everything listed and nothing read."""
    bucket = weed.bucket()
    for name in NAMES:
        bucket.put(f"directory/{name}", name.encode())
    # In directories of their own: what lies beside a file that is read is fetched as well.
    bucket.put("alone/cold", b"small")
    bucket.put("small/warm", b"small")
    bucket.put("large/4MiB", os.urandom(4 * MIB))
    bucket.put("large/other", os.urandom(4 * MIB))
    bucket.put("learn", b"")
    with kernel.mounted_bucket(bucket, "--read-only") as mounted:
        kernel.read_all(mounted.path / "learn")
        for name in ("", "directory", "alone", "small", "large"):
            os.listdir(mounted.path / name)
        yield mounted


def without_forgets(messages: dict[str, int]) -> dict[str, int]:
    """Leave out what the kernel sends when it likes and nobody waits for."""
    return {name: count for name, count in messages.items() if name not in ("forget_answered", "batch_forget_answered")}


# --- open, read, close -----------------------------------------------------------------------------------------


def test_first_open_and_close_of_a_mount_cost_one_message_each_and_never_again(weed: S3Server) -> None:
    bucket = weed.bucket()
    bucket.put("a", b"")
    bucket.put("b", b"")
    with kernel.mounted_bucket(bucket, "--read-only") as mount:
        with counted(mount) as first:
            assert sorted(os.listdir(mount.path)) == ["a", "b"]
        assert first == {"opendir_answered": 1, "readdirplus_relayed": 1, "readdirplus_answered": 2}
        with counted(mount) as first:
            os.close(os.open(mount.path / "a", os.O_RDONLY))
        assert first == {"open_answered": 1, "flush_answered": 1}
        with counted(mount) as second:
            os.close(os.open(mount.path / "b", os.O_RDONLY))
            os.close(os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY))
        assert second == {}


def test_cold_small_file_costs_one_read_and_one_get(mount: Mount) -> None:
    path = mount.path / "alone/cold"
    with counted(mount) as cold:
        assert kernel.read_all(path) == b"small"
    assert cold == {"read_relayed": 1, "read_answered": 1}
    assert cold.backend == {"gets": 1}
    with counted(mount) as second:
        assert kernel.read_all(path) == b"small"
    assert second == {}
    assert second.backend == {}


def test_cached_file_with_cold_pages_costs_one_read_and_no_backend(mount: Mount) -> None:
    kernel.read_all(mount.path / "small/warm")
    with kernel.opened(mount.path / "small/warm") as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with counted(mount) as again:
            assert os.read(fd, 100) == b"small"
    assert again == {"read_answered": 1}
    assert again.backend == {}


def test_thousands_of_opens_by_several_processes_cost_nothing(mount: Mount) -> None:
    path = mount.path / "small/warm"
    kernel.read_all(path)
    program = (
        "import os, sys\n"
        "for _ in range(1000):\n"
        "    fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "    assert os.pread(fd, 10, 0) == b'small'\n"
        "    os.close(fd)\n"
    )
    with counted(mount) as opens:
        processes = [subprocess.Popen([sys.executable, "-c", program, path]) for _number in range(4)]
        assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
    assert opens == {}
    assert opens.backend == {}


def test_everything_else_a_loader_does_with_a_cached_file_costs_nothing(mount: Mount) -> None:
    path = mount.path / "small/warm"
    kernel.read_all(path)
    with counted(mount) as used, kernel.opened(path) as fd:
        os.fstat(fd)
        os.stat(path)
        os.access(path, os.R_OK)
        os.lseek(fd, 0, os.SEEK_END)
        with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
            assert mapping[:] == b"small"
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.lockf(fd, fcntl.LOCK_SH)
        fcntl.lockf(fd, fcntl.LOCK_UN)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.close(os.dup(fd))
    assert used == {}


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="from 3.13 on open() asks only devices whether they are terminals"
)
def test_buffered_open_of_python_costs_one_ioctl(mount: Mount) -> None:
    """TCGETS of isatty(); the kernel has no way to be told that there are no terminals here.  buffering=0 avoids it."""
    path = mount.path / "small/warm"
    kernel.read_all(path)
    with counted(mount) as buffered:
        for _time in range(10):
            with path.open("rb") as file:
                assert file.read() == b"small"
    assert buffered == {"ioctl_answered": 10}
    with counted(mount) as unbuffered:
        for _time in range(10):
            with path.open("rb", buffering=0) as file:
                assert file.read() == b"small"
    assert unbuffered == {}


# --- names -----------------------------------------------------------------------------------------------------


def test_stat_of_a_listed_name_costs_nothing(mount: Mount) -> None:
    os.listdir(mount.path / "directory")
    with counted(mount) as stats:
        for name in NAMES:
            assert (mount.path / "directory" / name).stat().st_size == 3
    assert stats == {}


def test_listing_again_costs_nothing(mount: Mount) -> None:
    os.listdir(mount.path / "directory")
    with counted(mount) as listings:
        assert os.listdir(mount.path / "directory") == NAMES
        subprocess.run(["ls", "-f", mount.path / "directory"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["find", mount.path / "directory", "-size", "+1"], check=True, stdout=subprocess.DEVNULL)
    assert listings == {}


def test_long_listing_of_a_listed_directory_costs_at_most_the_attributes_question_once(mount: Mount) -> None:
    """ls -l asks for extended attributes; the first answer (not supported) holds for the mount."""
    directory = mount.path / "directory"
    subprocess.run(["ls", "-l", directory], check=True, stdout=subprocess.DEVNULL)
    with counted(mount) as listing:
        subprocess.run(["ls", "-l", directory], check=True, stdout=subprocess.DEVNULL)
    assert listing == {}


def test_first_listing_costs_one_list_and_two_readdirplus(weed: S3Server) -> None:
    """The 32 KiB of ls hold 204 such entries; the second READDIRPLUS finds the end."""
    bucket = weed.bucket()
    for name in NAMES:
        bucket.put(f"directory/{name}", b"")
    with kernel.mounted_bucket(bucket, "--read-only") as mount:
        os.listdir(mount.path)
        with counted(mount) as listing:
            subprocess.run(["ls", "-f", mount.path / "directory"], check=True, stdout=subprocess.DEVNULL)
        assert listing == {"readdirplus_relayed": 1, "readdirplus_answered": 2}
        assert listing.backend == {"lists": 1}


def test_absent_name_costs_one_lookup_and_then_nothing(mount: Mount) -> None:
    path = mount.path / "directory/absent"
    for expected in ({"lookup_answered": 1}, {}, {}):
        with counted(mount) as lookups, pytest.raises(FileNotFoundError):
            os.stat(path)
        assert lookups == expected
        assert lookups.backend == {}


def test_first_name_below_a_directory_never_listed_costs_one_list(weed: S3Server) -> None:
    bucket = weed.bucket()
    for name in ("a", "b"):
        bucket.put(f"directory/{name}", b"")
    with kernel.mounted_bucket(bucket, "--read-only") as mount:
        os.listdir(mount.path)
        listings = mount.counters()["listings"]
        with counted(mount) as first:
            os.stat(mount.path / "directory/a")
        assert first == {"lookup_relayed": 1}
        assert first.backend == {"lists": 1}
        # The first name was answered when its page was entered; the listing ends a commit later.
        wait_until(lambda: mount.counters()["listings"] == listings + 1, "the directory is listed")
        with counted(mount) as second:
            os.stat(mount.path / "directory/b")
        assert second == {"lookup_answered": 1}
        assert second.backend == {}


def test_after_the_kernel_forgot_everything_each_name_costs_one_lookup_and_no_backend(mount: Mount) -> None:
    os.listdir(mount.path / "directory")
    drop_page_cache()
    with counted(mount) as stats:
        for name in NAMES[:10]:
            os.stat(mount.path / "directory" / name)
    assert without_forgets(stats) == {"lookup_answered": 11}
    assert stats.backend == {}


def test_df_costs_one_statfs(mount: Mount) -> None:
    with counted(mount) as asked:
        os.statvfs(mount.path)
    assert asked == {"statfs_answered": 1}


# --- large files -----------------------------------------------------------------------------------------------


def test_sequential_reads_are_of_one_mebibyte(mount: Mount) -> None:
    """read_ahead_kb is 4096 and MAX_PAGES 256: 4 MiB in four READs."""
    path = mount.path / "large/4MiB"
    kernel.read_all(path)
    with kernel.opened(path) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with counted(mount) as reads:
            assert len(os.read(fd, 4 * MIB)) == 4 * MIB
    assert reads == {"read_answered": 4}
    assert reads.backend == {}


def test_direct_read_of_one_mebibyte_is_one_read(mount: Mount) -> None:
    path = mount.path / "large/4MiB"
    kernel.read_all(path)
    # Of an aligned buffer, that is: else it touches 257 pages, and a READ has 256.
    with (
        mmap.mmap(-1, MIB) as buffer,
        kernel.opened(path, os.O_RDONLY | os.O_DIRECT) as fd,
        counted(mount) as reads,
    ):
        assert os.preadv(fd, [buffer], 0) == MIB
        assert len(os.pread(fd, 4 * KIB, MIB)) == 4 * KIB
    assert reads == {"read_answered": 2}


def test_cold_large_file_is_fetched_in_parts_each_byte_once(mount: Mount) -> None:
    path = mount.path / "large/other"
    path.stat()
    before = mount.counters()["backend_bytes"]
    with counted(mount) as cold:
        assert len(kernel.read_all(path)) == 4 * MIB
    assert mount.counters()["backend_bytes"] - before == 4 * MIB
    assert cold.backend["gets"] <= 5
    assert set(cold) == {"read_relayed", "read_answered"}


# --- freshness -------------------------------------------------------------------------------------------------


def test_invalidate_without_a_change_costs_no_notification_and_no_message(mount: Mount) -> None:
    os.listdir(mount.path / "directory")
    before = mount.counters()["notifications"]
    with counted(mount) as asked:
        mount.invalidate("directory")
        assert os.listdir(mount.path / "directory") == NAMES
        os.stat(mount.path / "directory" / NAMES[0])
    assert asked == {}
    assert asked.backend == {"lists": 1}
    assert mount.counters()["notifications"] == before


def test_one_changed_name_costs_one_lookup_and_the_attributes_of_its_directory(weed: S3Server) -> None:
    bucket = weed.bucket()
    for name in NAMES:
        bucket.put(f"directory/{name}", b"old")
    with kernel.mounted_bucket(bucket, "--read-only") as mount:
        for name in NAMES:
            os.stat(mount.path / "directory" / name)
        bucket.put(f"directory/{NAMES[7]}", b"changed")
        mount.invalidate("directory")
        with counted(mount) as stats:
            sizes = [(mount.path / "directory" / name).stat().st_size for name in NAMES]
        assert sizes == [7 if name == NAMES[7] else 3 for name in NAMES]
        # The FORGET of the old inode is on its way since the name was dropped, and may arrive only now.
        assert without_forgets(stats) == {"lookup_answered": 1, "getattr_answered": 1}

"""Every reading system call on a mount, one test each; what has no effect or is refused is stated."""

import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount import kernel
from tests.support.caches import drop_page_cache
from tests.support.mounts import Mount, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket, S3Server

pytestmark = pytest.mark.usefixtures("steady_caches")

LARGE = b"".join(n.to_bytes(8, "little") for n in range((3 << 20) // 8)) + b"end"
SMALL = b"The quick brown fox jumps over the lazy dog.\n" * 20


@pytest.fixture(scope="module")
def mount(weed: S3Server) -> Iterator[Mount]:
    bucket = weed.bucket()
    bucket.put("large", LARGE)
    bucket.put("small", SMALL)
    bucket.put("empty", b"")
    bucket.put("directory/below/file", b"deep")
    with kernel.mounted_bucket(bucket) as mounted:
        yield mounted


@pytest.fixture
def large(mount: Mount) -> Iterator[int]:
    with kernel.opened(mount.path / "large") as fd:
        yield fd


# --- attributes ------------------------------------------------------------------------------------------------


def test_stat_of_a_file_shows_object_and_options(mount: Mount) -> None:
    found = (mount.path / "large").stat()
    assert (found.st_size, found.st_blocks, found.st_blksize) == (len(LARGE), -(-len(LARGE) // 512), 4096)
    assert (stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode)) == (stat.S_IFREG, 0o644)
    assert (found.st_uid, found.st_gid, found.st_nlink, found.st_rdev) == (os.getuid(), os.getgid(), 1, 0)
    assert found.st_mtime_ns == found.st_ctime_ns == found.st_atime_ns
    assert found.st_mtime_ns % 1_000_000_000 == 0


def test_stat_of_a_directory(mount: Mount) -> None:
    for path in (mount.path, mount.path / "directory/below"):
        found = path.stat()
        assert stat.S_ISDIR(found.st_mode)
        assert (stat.S_IMODE(found.st_mode), found.st_nlink) == (0o755, 1)


def test_statx_has_basic_attributes_and_no_birth_time(mount: Mount) -> None:
    for flags in (0, kernel.AT_STATX_FORCE_SYNC):
        mask, ino, size = kernel.statx(mount.path / "large", flags, kernel.STATX_BASIC_STATS | kernel.STATX_BTIME)
        assert mask & kernel.STATX_BASIC_STATS == kernel.STATX_BASIC_STATS
        assert not mask & kernel.STATX_BTIME
        assert (ino, size) == ((mount.path / "large").stat().st_ino, len(LARGE))


def test_inode_numbers_of_stat_and_getdents_agree_and_differ_from_each_other(mount: Mount) -> None:
    by_readdir = {entry.name: entry.inode() for entry in os.scandir(mount.path)}
    assert by_readdir == {name: (mount.path / name).stat().st_ino for name in os.listdir(mount.path)}
    assert len(set(by_readdir.values())) == len(by_readdir)


def test_statvfs_shows_a_file_system_of_a_pebibyte(mount: Mount) -> None:
    found = os.statvfs(mount.path)
    assert (found.f_namemax, found.f_bsize, found.f_frsize) == (255, 4096, 4096)
    assert found.f_blocks * found.f_frsize == 1 << 50
    assert not found.f_flag & os.ST_RDONLY
    assert found.f_flag & os.ST_NOSUID
    assert found.f_bfree == found.f_bavail < found.f_blocks


def test_access_is_checked_by_the_kernel(mount: Mount) -> None:
    assert os.access(mount.path / "large", os.R_OK)
    assert not os.access(mount.path / "large", os.X_OK)
    assert os.access(mount.path / "directory", os.R_OK | os.X_OK)


def test_program_without_execute_permission_does_not_run(mount: Mount) -> None:
    with pytest.raises(PermissionError):
        subprocess.run([mount.path / "small"], check=False)


@pytest.mark.parametrize("length", [256, 512, 1024, 4000])
def test_name_too_long_is_refused(mount: Mount, length: int) -> None:
    for directory in ("", "directory", "directory/below"):
        with pytest.raises(OSError) as caught:
            os.stat(mount.path / directory / ("n" * length))
        assert caught.value.errno == errno.ENAMETOOLONG


def test_longest_name_that_is_absent_is_absent(mount: Mount) -> None:
    with pytest.raises(FileNotFoundError):
        os.stat(mount.path / ("n" * 255))


def test_wrong_kinds_are_refused_by_the_kernel(mount: Mount) -> None:
    with pytest.raises(NotADirectoryError):
        os.stat(mount.path / "small" / "x")
    with pytest.raises(NotADirectoryError):
        os.listdir(mount.path / "small")
    with kernel.opened(mount.path / "directory") as fd, pytest.raises(IsADirectoryError):
        os.read(fd, 1)
    with pytest.raises(OSError) as caught:
        os.readlink(mount.path / "small")
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError) as caught:
        os.open(mount.path / "small", os.O_RDONLY | os.O_DIRECTORY)
    assert caught.value.errno == errno.ENOTDIR


# --- positions -------------------------------------------------------------------------------------------------


def test_lseek_data_and_hole_treat_a_file_as_one_extent(large: int) -> None:
    assert os.lseek(large, 0, os.SEEK_DATA) == 0
    assert os.lseek(large, 12345, os.SEEK_DATA) == 12345
    assert os.lseek(large, 0, os.SEEK_HOLE) == len(LARGE)
    assert os.lseek(large, -3, os.SEEK_END) == len(LARGE) - 3
    assert os.read(large, 100) == b"end"
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        with pytest.raises(OSError) as caught:
            os.lseek(large, len(LARGE), whence)
        assert caught.value.errno == errno.ENXIO


def test_read_past_the_end_returns_nothing_and_across_it_returns_short(mount: Mount, large: int) -> None:
    assert os.pread(large, 100, len(LARGE)) == b""
    assert os.pread(large, 100, len(LARGE) + (1 << 40)) == b""
    assert os.pread(large, 100, len(LARGE) - 3) == b"end"
    with kernel.opened(mount.path / "small") as small, kernel.opened(mount.path / "empty") as empty:
        assert os.pread(small, 4096, len(SMALL) - 1) == SMALL[-1:]
        assert os.pread(small, 4096, len(SMALL)) == b""
        assert os.read(empty, 4096) == b""
        assert os.pread(empty, 1, 1 << 30) == b""


# --- ways to read ----------------------------------------------------------------------------------------------


def test_readv_and_preadv_fill_all_buffers(large: int) -> None:
    buffers = [bytearray(10), bytearray(5000), bytearray(1), bytearray(300_000)]
    assert os.preadv(large, buffers, 777) == 305_011
    assert b"".join(buffers) == LARGE[777 : 777 + 305_011]
    os.lseek(large, 4096, os.SEEK_SET)
    assert os.readv(large, buffers[:2]) == 5010
    assert b"".join(buffers[:2]) == LARGE[4096 : 4096 + 5010]


def test_direct_reads_of_any_alignment_bypass_the_page_cache(mount: Mount) -> None:
    with kernel.opened(mount.path / "large", os.O_RDONLY | os.O_DIRECT) as fd:
        for offset, size in ((0, 4096), (0, len(LARGE)), (1, 1), (262_143, 2), (4095, 700_001), (len(LARGE) - 2, 9)):
            assert os.pread(fd, size, offset) == LARGE[offset : offset + size]
        before = mount.messages()["read_answered"]
        assert os.pread(fd, 4096, 8192) == LARGE[8192:12288]
        assert mount.messages()["read_answered"] == before + 1
    with kernel.opened(mount.path / "small", os.O_RDONLY | os.O_DIRECT) as fd:
        assert os.pread(fd, 1 << 16, 3) == SMALL[3:]


def test_mappings_private_and_shared_see_the_content(mount: Mount, large: int) -> None:
    with mmap.mmap(large, 0, mmap.MAP_SHARED, mmap.PROT_READ) as shared:
        assert len(shared) == len(LARGE)
        assert shared[:] == LARGE
    with mmap.mmap(large, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as private:
        private[100:107] = b"changed"
        assert private[100:107] == b"changed"
        assert os.pread(large, 7, 100) == LARGE[100:107]
    with kernel.opened(mount.path / "small") as small, mmap.mmap(small, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        assert mapped[:] == SMALL


def test_shared_writable_mapping_is_refused(large: int) -> None:
    with pytest.raises(PermissionError):
        mmap.mmap(large, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def test_mapping_behind_the_end_of_the_last_page_is_zero_and_then_sigbus(mount: Mount) -> None:
    program = (
        "import mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "size = os.fstat(fd).st_size\n"
        "import ctypes\n"
        "libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p\n"
        "at = libc.mmap(None, ctypes.c_size_t(1 << 24), 1, 1, fd, ctypes.c_long(0))\n"
        "print(ctypes.string_at(at + size - 3, 8), flush=True)\n"
        "ctypes.string_at(at + (1 << 23), 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, mount.path / "large"], capture_output=True, check=False)
    assert done.stdout == b"b'end\\x00\\x00\\x00\\x00\\x00'\n"
    assert done.returncode == -signal.SIGBUS


def test_sendfile_to_socket_and_file(mount: Mount, large: int, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, kernel.opened(tmp_path / "copy", os.O_RDWR | os.O_CREAT) as copy:
        assert os.sendfile(ours.fileno(), large, 1000, 5000) == 5000
        assert _receive(theirs, 5000) == LARGE[1000:6000]
        sent = 0
        while sent < len(LARGE):
            sent += os.sendfile(copy, large, sent, len(LARGE) - sent)
        assert os.pread(copy, len(LARGE) + 1, 0) == LARGE


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data


def test_splice_into_a_pipe(large: int) -> None:
    reader, writer = os.pipe()
    try:
        for offset in (0, 262_144 - 100, len(LARGE) - 50):
            moved = os.splice(large, writer, 4000, offset_src=offset)
            expected = LARGE[offset : offset + 4000]
            assert os.read(reader, 65536) == expected[:moved]
            assert moved > 0
    finally:
        os.close(reader)
        os.close(writer)


def test_copy_file_range_to_another_file_system_is_refused_and_cp_copies_all_the_same(
    mount: Mount, large: int, tmp_path: Path
) -> None:
    """EXDEV since Linux 5.19 for file systems of different types; every user of the call falls back."""
    with kernel.opened(tmp_path / "copy", os.O_RDWR | os.O_CREAT) as copy, pytest.raises(OSError) as caught:
        os.copy_file_range(large, copy, 1000, 0)
    assert caught.value.errno == errno.EXDEV
    subprocess.run(["cp", mount.path / "large", tmp_path / "cp"], check=True)
    assert (tmp_path / "cp").read_bytes() == LARGE


def test_advice_is_taken_and_changes_nothing(large: int) -> None:
    for advice in (
        os.POSIX_FADV_SEQUENTIAL,
        os.POSIX_FADV_RANDOM,
        os.POSIX_FADV_NOREUSE,
        os.POSIX_FADV_WILLNEED,
        os.POSIX_FADV_DONTNEED,
        os.POSIX_FADV_NORMAL,
    ):
        os.posix_fadvise(large, 0, 0, advice)
        assert os.pread(large, 1000, 500_000) == LARGE[500_000:501_000]


def test_readahead_fills_the_page_cache(mount: Mount) -> None:
    drop_page_cache()
    with kernel.opened(mount.path / "large") as fd:
        kernel.readahead(fd, 0, len(LARGE))
        os.pread(fd, len(LARGE), 0)
        before = mount.messages()
        assert os.pread(fd, len(LARGE), 0) == LARGE
        assert mount.messages() == before


def test_read_without_waiting_is_not_supported(large: int) -> None:
    """RWF_NOWAIT: the kernel's FUSE does not offer it."""
    with pytest.raises(OSError) as caught:
        os.preadv(large, [bytearray(10)], 0, os.RWF_NOWAIT)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_poll_and_epoll_say_ready(large: int) -> None:
    with select.epoll() as epoll:
        epoll.register(large, select.EPOLLIN)
        assert epoll.poll(0) == [(large, select.EPOLLIN)]
    poller = select.poll()
    poller.register(large, select.POLLIN)
    assert poller.poll(0) == [(large, select.POLLIN)]


# --- ways to open ----------------------------------------------------------------------------------------------


def test_openat2_resolves_beneath_and_without_symlinks(mount: Mount) -> None:
    with kernel.opened(mount.path, os.O_RDONLY | os.O_DIRECTORY) as root:
        resolve = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_XDEV
        fd = kernel.openat2(root, "directory/below/file", os.O_RDONLY, resolve)
        try:
            assert os.read(fd, 10) == b"deep"
        finally:
            os.close(fd)
        with pytest.raises(OSError) as caught:
            kernel.openat2(root, "directory/../../etc", os.O_RDONLY, kernel.RESOLVE_BENEATH)
        assert caught.value.errno == errno.EXDEV


def test_handle_opens_the_file_while_the_kernel_holds_its_inode(mount: Mount) -> None:
    """Without FUSE_EXPORT_SUPPORT a handle is good for what is in the inode cache; NFS export is not offered."""
    handle = kernel.name_to_handle(mount.path / "small")
    with kernel.opened(mount.path) as root, kernel.opened(mount.path / "small"):
        fd = kernel.open_by_handle(root, handle)
        try:
            assert os.read(fd, len(SMALL) + 1) == SMALL
        finally:
            os.close(fd)


def test_handle_of_an_inode_the_kernel_forgot_is_stale(mount: Mount) -> None:
    handle = kernel.name_to_handle(mount.path / "directory/below/file")
    with kernel.opened(mount.path) as root:
        drop_page_cache()
        with pytest.raises(OSError) as caught:
            os.close(kernel.open_by_handle(root, handle))
        assert caught.value.errno == errno.ESTALE
    assert kernel.read_all(mount.path / "directory/below/file") == b"deep"


def test_o_path_and_proc_fd_reopen(mount: Mount) -> None:
    with kernel.opened(mount.path / "small", os.O_PATH) as handle:
        with pytest.raises(OSError) as caught:
            os.read(handle, 1)
        assert caught.value.errno == errno.EBADF
        with kernel.opened(f"/proc/self/fd/{handle}") as fd:
            assert os.read(fd, 3) == b"The"


def test_working_directory_inside_the_mount(mount: Mount) -> None:
    done = subprocess.run(
        ["sh", "-c", "pwd; cat file; cat ../../small | wc -c; cd ..; ls"],
        cwd=mount.path / "directory/below",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(mount.path / "directory/below"), f"deep{len(SMALL)}", "below"]


# --- locks -----------------------------------------------------------------------------------------------------


def test_flock_excludes_and_releases(mount: Mount) -> None:
    with kernel.opened(mount.path / "small") as first, kernel.opened(mount.path / "small") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_flock_of_another_process_is_waited_for(mount: Mount) -> None:
    path = mount.path / "small"
    holder = subprocess.Popen(["flock", path, "sh", "-c", "echo held; read _"], stdin=-1, stdout=-1, text=True)
    assert holder.stdin is not None and holder.stdout is not None
    with holder, kernel.opened(path) as fd:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        waiter = threading.Thread(target=fcntl.flock, args=(fd, fcntl.LOCK_EX))
        waiter.start()
        holder.stdin.write("\n")
        holder.stdin.flush()
        waiter.join(30)
        assert not waiter.is_alive()


def test_record_locks_share_for_reading_and_need_a_writable_descriptor_for_writing(mount: Mount, large: int) -> None:
    fcntl.lockf(large, fcntl.LOCK_SH | fcntl.LOCK_NB, 100, 0)
    with pytest.raises(OSError) as caught:
        fcntl.lockf(large, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 0)
    assert caught.value.errno == errno.EBADF
    other = (
        "import fcntl, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 100, 0)\n"
    )
    subprocess.run([sys.executable, "-c", other, mount.path / "large"], check=True)
    fcntl.lockf(large, fcntl.LOCK_UN)


# --- signals ---------------------------------------------------------------------------------------------------


def test_signal_during_a_cold_read_neither_loses_nor_breaks_it(bucket: Bucket, proxy: Proxy) -> None:
    """The kernel sends INTERRUPT, the daemon answers ENOSYS, the read goes on: restarted or finished, never EINTR."""
    bucket.put("file", LARGE)
    proxy.fault("delay", match="/file", ms=600)
    with kernel.mounted_bucket(bucket, endpoint=proxy.endpoint) as mount:
        with kernel.opened(mount.path / "file") as fd:
            program = (
                "import os, signal, sys\n"
                "signal.signal(signal.SIGALRM, lambda *_: None)\n"
                "signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)\n"
                "data = b''\n"
                "while more := os.read(int(sys.argv[1]), 1 << 20): data += more\n"
                "signal.setitimer(signal.ITIMER_REAL, 0)\n"
                "os.write(1, data)\n"
            )
            done = subprocess.run([sys.executable, "-c", program, str(fd)], pass_fds=[fd], stdout=-1, check=False)
        assert done.returncode == 0
        assert done.stdout == LARGE
        assert mount.counters()["request_errors"] == 0


def test_reader_killed_during_a_cold_read_leaves_a_working_mount(bucket: Bucket, proxy: Proxy) -> None:
    bucket.put("file", LARGE)
    proxy.fault("delay", match="/file", ms=1000)
    with kernel.mounted_bucket(bucket, endpoint=proxy.endpoint) as mount:
        reader = subprocess.Popen(["cat", mount.path / "file"], stdout=subprocess.DEVNULL)
        wait_until(lambda: mount.status()["in_flight"]["requests"], "the read reached the core")
        reader.kill()
        assert reader.wait(30) == -signal.SIGKILL
        assert kernel.read_all(mount.path / "file") == LARGE
        wait_until(lambda: mount.status()["in_flight"]["requests"] == 0, "nothing is left in flight")
        assert mount.counters()["request_errors"] == 0

"""Checks of the directory the cache lies in, or of the nearest one above it that exists."""

import contextlib
import ctypes
import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fanoutfs.cache.disks import left_behind, used_directories
from fanoutfs.config.schema import MountConfig
from fanoutfs.config.units import show_size
from fanoutfs.doctor.findings import FAIL, OK, WARN, Finding
from fanoutfs.keeper.mountinfo import MountInfo, read_mounts
from fanoutfs.records import MIB

_LOCAL: Final = ("ext4", "xfs", "btrfs", "ext3", "ext2", "f2fs", "zfs", "bcachefs")
_REMOTE: Final = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "glusterfs", "beegfs", "gpfs")
_MEMORY: Final = ("tmpfs", "ramfs")
_INODES: Final = 100_000
_PUNCH: Final = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, <linux/falloc.h>


def check_disk(config: MountConfig) -> Iterator[Finding]:
    """Yield what there is to say about config.cache_dir; writes an unnamed file of 1 MiB."""
    place = config.cache_dir
    while not place.exists():
        place = place.parent
    yield _check_owner(config.cache_dir, place)
    yield describe_kind(_mount_of(place), config.cache_dir)
    yield from _check_abilities(place)
    found = os.statvfs(place)
    yield check_space(config, found.f_bavail * found.f_frsize)
    yield check_inodes(found.f_files, found.f_favail)
    for disk in config.cache_disks:
        try:
            yield from check_further(config, disk.path, place)
        except OSError as error:
            fix = "repair or replace the disk: meanwhile a mount goes on without it"
            yield Finding("cache_disks", WARN, f"{disk.path} cannot be used: {error.strerror}", fix)
    yield from check_left_behind(config)


def check_further(config: MountConfig, path: Path, first: Path) -> Iterator[Finding]:
    """Yield what there is to say about a further cache directory.  first: where the first one is, or will be."""
    place = path
    while not place.exists():
        place = place.parent
    yield _check_owner(path, place)
    yield from _check_abilities(place)
    found = os.statvfs(place)
    free_bytes = found.f_bavail * found.f_frsize
    fix = "mount its disk, or leave it out: it takes room from the same disk as another one, and adds none"
    if place.stat().st_dev in (first.stat().st_dev, Path("/").stat().st_dev):
        yield Finding("cache_disks", WARN, f"{path} is on no disk of its own", fix)
    elif free_bytes <= config.free_space_floor:
        seen = f"{path}: {show_size(free_bytes)} free"
        yield Finding("cache_disks", WARN, seen, "free some room, or lower --free-space-floor: it gets no part")
    else:
        yield Finding("cache_disks", OK, f"{path}: {show_size(free_bytes)} free")


def check_left_behind(config: MountConfig) -> Iterator[Finding]:
    """Yield the directories that volumes of this cache used once and that are not named any more."""
    named = {disk.path for disk in config.cache_disks}
    for directory in used_directories(config.cache_dir):
        if directory in named:
            continue
        size_bytes = 0
        with contextlib.suppress(OSError):  # its disk may be gone
            size_bytes = sum(size for _folder, size in left_behind(directory))
        if size_bytes:
            seen = f"{directory} was a further cache directory, and still holds {show_size(size_bytes)}"
            fix = f"name it in --cache-disks, or: rm -r {directory}/volumes (it can all be fetched again)"
            yield Finding("cache_disks", WARN, seen, fix)


def _check_owner(wanted: Path, place: Path) -> Finding:
    if place != wanted:
        if os.access(place, os.W_OK):
            return Finding("cache_dir", OK, f"{wanted} will be made")
        return Finding("cache_dir", FAIL, f"{wanted} cannot be made: {place} is not ours", "choose another --cache-dir")
    found = wanted.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return Finding("cache_dir", FAIL, f"{wanted} is no directory", "choose another --cache-dir")
    if found.st_uid != os.geteuid():
        return Finding("cache_dir", FAIL, f"{wanted} belongs to user {found.st_uid}", "choose another --cache-dir")
    if found.st_mode & 0o022:
        return Finding("cache_dir", FAIL, f"others may write to {wanted}", f"chmod go-w {wanted}")
    return Finding("cache_dir", OK, f"{wanted} is ours alone")


def describe_kind(info: MountInfo | None, cache_dir: Path) -> Finding:
    """Judge the kind of file system the cache lies on."""
    kind = "" if info is None else info.fstype
    if kind in _LOCAL:
        return Finding("cache_fs", OK, f"{kind} below {cache_dir}")
    fix = "put --cache-dir on a local NVMe disk with ext4 or xfs"
    if kind in _REMOTE or kind.startswith("fuse"):
        return Finding("cache_fs", FAIL, f"{kind} below {cache_dir}: LMDB needs a local file system", fix)
    if kind in _MEMORY:
        return Finding("cache_fs", WARN, f"{kind}: the cache takes memory, and writes are lost with the machine", fix)
    return Finding("cache_fs", WARN, f"{kind or 'unknown'}: not tried with fanoutfs", fix)


def _check_abilities(place: Path) -> Iterator[Finding]:
    try:
        with tempfile.TemporaryFile(dir=place) as scratch:
            yield from probe_file(scratch.fileno())
    except OSError as error:
        yield Finding("cache_write", FAIL, f"cannot write to {place}: {error.strerror}", "choose another --cache-dir")


def probe_file(fd: int) -> Iterator[Finding]:
    """Try on an open, empty file what cache files need."""
    os.pwrite(fd, b"x" * MIB, 0)
    os.fdatasync(fd)
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_int(fd), ctypes.c_int(_PUNCH), ctypes.c_longlong(0), ctypes.c_longlong(MIB // 2))
    if libc.fallocate(*arguments) == 0 and os.fstat(fd).st_blocks * 512 < MIB:
        yield Finding("cache_holes", OK, "parts of files can be given back")
    else:
        fix = "use ext4 or xfs: evicted parts of large files do not free room here"
        yield Finding("cache_holes", FAIL, "no FALLOC_FL_PUNCH_HOLE", fix)
    page = mmap.mmap(-1, 4096)
    try:
        direct = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        try:
            os.pwrite(direct, page, 0)
        finally:
            os.close(direct)
        yield Finding("cache_direct", OK, "O_DIRECT works")
    except OSError as error:
        reason = f"no O_DIRECT ({error.strerror}): what is fetched passes through the page cache"
        yield Finding("cache_direct", WARN, reason, "use ext4 or xfs on a block device")


def check_space(config: MountConfig, free_bytes: int) -> Finding:
    """Judge the free space against cache_size and free_space_floor."""
    seen = f"{show_size(free_bytes)} free, cache_size {show_size(config.cache_size)}"
    if free_bytes <= config.free_space_floor:
        fix = "free some room, or lower --free-space-floor: nothing would be cached"
        return Finding("cache_space", FAIL, f"{seen}, of which {show_size(config.free_space_floor)} must stay", fix)
    if free_bytes < config.cache_size + config.free_space_floor:
        fix = (
            f"--cache-size {show_size(max(MIB, (free_bytes - config.free_space_floor) // MIB * MIB))}, or a larger disk"
        )
        return Finding(
            "cache_space", WARN, f"{seen}: the disk will be full first, unless the cache has it already", fix
        )
    return Finding("cache_space", OK, seen)


def check_inodes(total: int, free: int) -> Finding:
    """Judge the free inodes: one for each cached large file; total 0: the file system makes them as needed."""
    if total == 0 or free >= _INODES:
        return Finding("cache_inodes", OK, "as many as needed" if total == 0 else f"{free:,} free")
    result = WARN if free > 1000 else FAIL
    return Finding("cache_inodes", result, f"{free:,} free", "remove files, or make the file system with more inodes")


def _mount_of(path: Path) -> MountInfo | None:
    """Return the mount that a path lies in."""
    resolved = path.resolve()
    found = None
    for info in read_mounts():
        is_deeper = found is None or info.mountpoint.is_relative_to(found.mountpoint)
        if resolved.is_relative_to(info.mountpoint) and is_deeper:
            found = info
    return found

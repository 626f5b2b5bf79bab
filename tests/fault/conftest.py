"""Fixtures of the fault tests, and the check after each of them that nothing was left behind."""

import contextlib
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from fanoutfs.config.directories import control_socket
from fanoutfs.keeper.mountinfo import find_mount, read_mounts
from tests.fault.children import Children
from tests.fault.sickdisk import SIZE, Disk
from tests.support.mounts import Mount, mounted, processes_of, wait_until
from tests.support.servers import Bucket

_DISK_OPTIONS: Final = ("--free-space-floor", "16MiB", "--cache-size", "1GiB")

Mounter = Callable[..., Mount]


@pytest.fixture
def children() -> Iterator[Children]:
    """Forked readers, killed at the end."""
    running = Children()
    yield running
    running.end()


@pytest.fixture
def stop() -> Iterator[mmap.mmap]:
    """A byte that processes share: not zero once they are to end."""
    with mmap.mmap(-1, 4096) as shared:
        yield shared


@pytest.fixture
def mount_of(children: Children) -> Iterator[Mounter]:
    """A function that mounts (`mounted` of tests.support); unmounted and checked for leftovers at the end.

    depends on `children` so that no reader keeps a mount busy.
    """
    mounts: list[Mount] = []
    with contextlib.ExitStack() as stack:

        def mount_it(
            source: str, *options: str, env: Mapping[str, str] | None = None, endpoint: str = "", start: bool = True
        ) -> Mount:
            extra = ("--endpoint-url", endpoint) if endpoint else ()
            mount = stack.enter_context(mounted(source, *extra, *options, env=env, start=start))
            mounts.append(mount)
            return mount

        try:
            yield mount_it
        finally:
            children.end()
    check_nothing_left([mount.path.parent for mount in mounts], [mount.path for mount in mounts])


@pytest.fixture
def patched_mount(children: Children) -> Iterator[Mounter]:
    """A function that mounts with a daemon changed by functions of tests.fault.patches (`patches=`, with commas)."""
    mounts: list[Mount] = []
    processes: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:

        def mount_it(
            source: str, *options: str, patches: str, env: Mapping[str, str] | None = None, endpoint: str = ""
        ) -> Mount:
            extra = ("--endpoint-url", endpoint) if endpoint else ()
            mount = stack.enter_context(mounted(source, *extra, *options, env=env, start=False))
            mounts.append(mount)
            log = mount.path.parent / "log"
            with log.open("wb") as stream:
                process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "tests.fault.patches", patches, "mount", source, str(mount.path)),
                        *("--cache-dir", str(mount.cache), "--foreground", *extra, *options),
                    ],
                    env={**os.environ, "FAULT_DIRECTORY": str(mount.path.parent), **(env or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    cwd=Path(__file__).resolve().parents[2],
                )
            processes.append(process)
            stack.callback(_end, process)

            def answers() -> bool:
                assert process.poll() is None, log.read_text()
                try:
                    return bool(mount.status())
                except Exception:
                    return False

            wait_until(answers, "the patched daemon answers")
            return mount

        try:
            yield mount_it
        finally:
            children.end()
            for process in processes:
                _end(process)
            for mount in mounts:
                print((mount.path.parent / "log").read_text(errors="replace")[-20_000:])
    check_nothing_left([mount.path.parent for mount in mounts], [mount.path for mount in mounts])


@pytest.fixture
def make_disk(tmp_path: Path, children: Children) -> Iterator[Callable[..., Disk]]:
    """A function that makes a disk; all are removed at the end, after whoever reads."""
    disks: list[Disk] = []

    def make(*options: str, size_bytes: int = SIZE, base: Path | None = None) -> Disk:
        disks.append(Disk((base or tmp_path) / f"disk{len(disks)}", size_bytes, *options))
        return disks[-1]

    try:
        yield make
    finally:
        children.end()
        for disk in disks:
            disk.remove()


@pytest.fixture
def mount_it(mount_of: Mounter, bucket: Bucket, children: Children) -> Iterator[Callable[..., Mount]]:
    """A function that mounts the bucket with these disks; the first directory is the mount's own."""
    mounts: list[Mount] = []

    def mount(*disks: Disk | str, options: tuple[str, ...] = (), first: Path | None = None) -> Mount:
        names = ":".join(each if isinstance(each, str) else str(each.cache) for each in disks)
        further = ("--cache-disks", names) if names else ()
        made = mount_of(
            bucket.url, *further, *_DISK_OPTIONS, *options, endpoint=bucket.endpoint, env=bucket.env, start=False
        )
        if first is not None:
            made.cache = first
        mounts.append(made)
        made.start()
        return made

    yield mount
    children.end()
    for made in mounts:  # before the disks go
        if find_mount(made.path) is not None:
            made.stop()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a foreground keeper in order; its log explains what went wrong."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail("the keeper did not end within 20 s of SIGTERM")


def check_nothing_left(bases: list[Path], mountpoints: list[Path]) -> None:
    """Fail when a process, mount, socket or loop device of these places is left."""
    for base in bases:
        mounts = [info.mountpoint for info in read_mounts() if info.mountpoint.is_relative_to(base)]
        assert not mounts, f"still mounted: {mounts}"
        wait_until(lambda: not processes_of(base), f"no process of {base} is left")
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            assert not backing.read_text().startswith(str(base)), f"loop device left: {backing}"
    for mountpoint in mountpoints:
        assert not control_socket(mountpoint).exists(), f"socket left: {control_socket(mountpoint)}"

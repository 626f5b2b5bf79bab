"""Real mounts of /dev/fuse that nobody answers: attached, looked at in the mount table, detached.  Never touched."""

import errno
import fcntl
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.errors import FuseUnavailableError, MountBusyError, MountDeniedError, MountpointError, NotMountedError
from fanoutfs.keeper import mount as attach
from fanoutfs.keeper.holders import find_servers
from fanoutfs.keeper.mountinfo import find_mount

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse")


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    while find_mount(path) is not None:
        attach.unmount(path, lazy=True, force=os.geteuid() == 0)


# --- check_mountpoint ------------------------------------------------------------------------------------------


def test_empty_directory_is_accepted_and_symlinks_are_resolved(mountpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("mnt")
    (tmp_path / "up").symlink_to("link/../link")
    assert attach.check_mountpoint(mountpoint) == mountpoint
    assert attach.check_mountpoint(tmp_path / "link") == mountpoint
    assert attach.check_mountpoint(tmp_path / "up") == mountpoint


def test_missing_directory_says_create_it(tmp_path: Path) -> None:
    with pytest.raises(MountpointError, match="does not exist: create it"):
        attach.check_mountpoint(tmp_path / "none")


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountpointError, match="not a directory"):
        attach.check_mountpoint(tmp_path / "file")


def test_directory_with_content_is_refused(mountpoint: Path) -> None:
    (mountpoint / "x").touch()
    with pytest.raises(MountpointError, match="not empty"):
        attach.check_mountpoint(mountpoint)
    (mountpoint / "x").unlink()


def test_symlink_loop_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(MountpointError, match="circle"):
        attach.check_mountpoint(tmp_path / "a")


def test_mount_of_somebody_else_is_refused() -> None:
    with pytest.raises(MountpointError, match="mount already"):
        attach.check_mountpoint(Path("/proc"))


@needs_root
def test_autofs_trigger_is_accepted_untouched(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = mountpoint.parent / "mountinfo"
    table.write_text(f"40 27 0:50 / {mountpoint} rw - autofs systemd-1 rw\n")
    monkeypatch.setattr("fanoutfs.keeper.mountinfo.MOUNTINFO", table)
    (mountpoint / "x").touch()
    assert attach.check_mountpoint(mountpoint) == mountpoint
    monkeypatch.undo()
    (mountpoint / "x").unlink()


@needs_root
def test_dead_mount_of_ours_is_detached(mountpoint: Path) -> None:
    os.close(attach.mount(mountpoint, "memory://", read_only=True, allow_other=False))
    assert attach.probe(mountpoint) == errno.ENOTCONN
    assert attach.check_mountpoint(mountpoint) == mountpoint
    assert find_mount(mountpoint) is None


@needs_root
def test_dead_mount_of_another_file_system_is_refused_and_left(
    mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "FSTYPE", "fuse.other")
    os.close(attach.mount(mountpoint, "memory://", read_only=True, allow_other=False))
    monkeypatch.undo()
    with pytest.raises(MountpointError, match=r"mount already \(fuse\.other"):
        attach.check_mountpoint(mountpoint)
    assert find_mount(mountpoint) is not None


@needs_root
def test_silent_mount_times_out_instead_of_hanging(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach.probe, "__defaults__", (0.2,))
    fd = attach.mount(mountpoint, "memory://", read_only=True, allow_other=False)
    try:
        with pytest.raises(MountpointError, match="does not answer: fanoutfs umount --lazy"):
            attach.check_mountpoint(mountpoint)
        with pytest.raises(MountpointError, match=r"lies in the mount at .* does not answer"):
            attach.check_mountpoint(mountpoint / "below" / "deeper")
    finally:
        attach.unmount(mountpoint, lazy=True, force=True)
        os.close(fd)


# --- mount and unmount as root ---------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("noexec", [True, False])
def test_noexec_is_honoured(mountpoint: Path, noexec: bool) -> None:
    fd = attach.mount(mountpoint, "memory://", read_only=False, allow_other=False, noexec=noexec)
    try:
        info = find_mount(mountpoint)
        assert info is not None
        assert ("noexec" in info.options) is noexec
    finally:
        attach.unmount(mountpoint, lazy=True, force=True)
        os.close(fd)


@needs_root
@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("allow_other", [True, False])
def test_mount_as_root_shows_in_the_table(mountpoint: Path, read_only: bool, allow_other: bool) -> None:
    source = "s3://bucket/a b,c\\d"
    fd = attach.mount(mountpoint, source, read_only=read_only, allow_other=allow_other)
    try:
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_NONBLOCK) == os.O_RDWR
        info = find_mount(mountpoint)
        assert info is not None
        assert (info.fstype, info.source, info.owner_uid) == ("fuse.fanoutfs", source, 0)
        assert {"nosuid", "nodev", "ro" if read_only else "rw"} <= set(info.options)
        assert "default_permissions" in info.super_options
        assert ("allow_other" in info.super_options) is allow_other
        assert Path(f"/sys/class/bdi/{info.device}").exists()
        assert attach.set_read_ahead(info.device, 1024)
        assert Path(f"/sys/class/bdi/{info.device}/read_ahead_kb").read_text().strip() == "1024"
        # Others, too: the kernel gives the number of an unmounted connection out again while a dying daemon holds it.
        assert os.getpid() in find_servers(info)
        opcode = int.from_bytes(os.read(fd, 1 << 20)[4:8], sys.byteorder)
        assert opcode == 26  # FUSE_INIT was waiting for whoever reads first
        attach.unmount(mountpoint)
        assert find_mount(mountpoint) is None
    finally:
        os.close(fd)


@needs_root
def test_busy_unmount_names_the_process(mountpoint: Path) -> None:
    fd = attach.mount(mountpoint, "memory://", read_only=True, allow_other=False)
    # Opening anything inside would wait for an answer; O_PATH on the root itself does not ask the daemon.
    held = os.open(mountpoint, os.O_PATH | os.O_CLOEXEC)
    try:
        with pytest.raises(MountBusyError, match=rf"in use by .*\b{os.getpid()} \(.+\)"):
            attach.unmount(mountpoint)
        attach.unmount(mountpoint, lazy=True)
        assert find_mount(mountpoint) is None
    finally:
        os.close(held)
        os.close(fd)


def test_unmount_of_nothing_is_not_mounted(mountpoint: Path) -> None:
    with pytest.raises(NotMountedError):
        attach.unmount(mountpoint)


@needs_root
def test_mount_that_the_kernel_refuses_is_denied(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(attach, "_call", lambda *_arguments: errno.EPERM)
    with pytest.raises(MountDeniedError, match="CAP_SYS_ADMIN"):
        attach.mount(mountpoint, "memory://", read_only=True, allow_other=False)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_missing_device_is_unavailable(mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "FUSE_DEVICE", mountpoint / "fuse")
    with pytest.raises(FuseUnavailableError, match="apt install fuse3"):
        attach.check_fuse()
    with pytest.raises(FuseUnavailableError):
        attach.mount(mountpoint, "memory://", read_only=True, allow_other=False)


# --- as an ordinary user ---------------------------------------------------------------------------------------


def _as_nobody(script: str, mountpoint: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as the user nobody, with `attach`, `errors`, `os`, `path` in scope, in its own mount namespace."""
    prelude = f"""
        import os, sys
        from pathlib import Path
        from fanoutfs import errors
        from fanoutfs.keeper import mount as attach
        from fanoutfs.keeper.mountinfo import find_mount
        import shutil, socket, subprocess, ctypes, stat  # before the user changes: the interpreter may lie below /root
        path = Path({os.fspath(mountpoint)!r})
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x20000) == 0  # CLONE_NEWNS: nothing below is seen outside
        assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
        device = path.parent / "fuse"
        if not device.exists():
            os.mknod(device, stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
            os.chmod(device, 0o666)  # what udev sets; containers often have 0600
        assert libc.mount(os.fsencode(device), b"/dev/fuse", None, 0x1000, None) == 0  # MS_BIND
        os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(script)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def nobodys(mountpoint: Path) -> Path:
    """A directory that nobody can reach and write to: pytest's own directories are closed to others."""
    os.chown(mountpoint, NOBODY, NOBODY)
    for parent in mountpoint.parents:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    return mountpoint


@needs_root
def test_ordinary_user_mounts_and_unmounts_by_fusermount3(nobodys: Path) -> None:
    done = _as_nobody(
        """
        fd = attach.mount(path, "s3://bucket/a,b\\\\c d", read_only=True, allow_other=False)
        info = find_mount(path)
        assert info.fstype == "fuse.fanoutfs", info
        assert info.source == "s3://bucket/a,b\\\\c d", info
        assert info.owner_uid == os.getuid()
        assert {"nosuid", "nodev", "ro"} <= set(info.options)
        assert not os.get_inheritable(fd)
        assert os.read(fd, 1 << 20)[4] == 26
        held = os.open(path, os.O_PATH)
        try:
            attach.unmount(path)
        except errors.MountBusyError as error:
            assert str(os.getpid()) in str(error), error
        else:
            raise AssertionError("not busy")
        os.close(held)
        attach.unmount(path)
        assert find_mount(path) is None
        try:
            attach.unmount(path)
        except errors.NotMountedError:
            print("done")
        """,
        nobodys,
    )
    assert done.stdout == "done\n", done.stderr


@needs_root
def test_ordinary_user_dead_mount_is_detached(nobodys: Path) -> None:
    done = _as_nobody(
        """
        os.close(attach.mount(path, "memory://", read_only=True, allow_other=False))
        assert attach.check_mountpoint(path) == path
        assert find_mount(path) is None
        print("done")
        """,
        nobodys,
    )
    assert done.stdout == "done\n", done.stderr


@needs_root
def test_allow_other_of_ordinary_user_needs_user_allow_other(nobodys: Path) -> None:
    conf = nobodys.parent / "fuse.conf"
    conf.write_text("#user_allow_other\n")
    done = _as_nobody(
        f"""
        attach.FUSE_CONF = Path({os.fspath(conf)!r})
        try:
            attach.mount(path, "memory://", read_only=True, allow_other=True)
        except errors.MountDeniedError as error:
            print(error)
        """,
        nobodys,
    )
    assert "user_allow_other" in done.stdout, done.stderr


@needs_root
def test_ordinary_user_without_fusermount3_is_told_to_install_it(nobodys: Path) -> None:
    done = _as_nobody(
        """
        attach.FUSERMOUNT = "fusermount3-missing"
        try:
            attach.check_fuse()
        except errors.FuseUnavailableError as error:
            print(error)
        """,
        nobodys,
    )
    assert "apt install fuse3" in done.stdout, done.stderr


@needs_root
def test_directory_of_another_user_is_denied(nobodys: Path) -> None:
    os.chown(nobodys, 0, 0)
    done = _as_nobody(
        """
        try:
            attach.mount(path, "memory://", read_only=True, allow_other=False)
        except errors.MountDeniedError as error:
            print(error)
        """,
        nobodys,
    )
    assert "no write access" in done.stdout, done.stderr


@needs_root
def test_device_closed_to_ordinary_user_is_unavailable(nobodys: Path) -> None:
    done = _as_nobody(
        """
        attach.FUSE_DEVICE = Path("/etc/shadow")  # any file that others may not open
        try:
            attach.check_fuse()
        except errors.FuseUnavailableError as error:
            print(error)
        """,
        nobodys,
    )
    assert "closed to this user" in done.stdout, done.stderr


@needs_root
def test_no_new_privileges_names_the_way_out(nobodys: Path) -> None:
    done = _as_nobody(
        """
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        try:
            attach.check_fuse()
        except errors.MountDeniedError as error:
            print(error)
        """,
        nobodys,
    )
    assert "AmbientCapabilities=CAP_SYS_ADMIN" in done.stdout, done.stderr

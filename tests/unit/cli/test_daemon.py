"""The life of a mount as the command line sees it, with a small keeper in the place of the real one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs import errors
from fanoutfs.config import directories
from fanoutfs.keeper import mount as attach
from fanoutfs.keeper.mountinfo import find_mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse")

Done = subprocess.CompletedProcess[str]


class Shell:
    """Runs the command line with a fake keeper, as a shell or a script would."""

    def __init__(self, directory: Path) -> None:
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir()
        self.environment = os.environ | {"FAKE_RUNTIME_DIR": str(directory / "run")}
        self.environment.pop("FANOUTFS_DEBUG", None)

    def run(self, *words: str | Path, behaviour: str = "serve", pass_fds: tuple[int, ...] = ()) -> Done:
        return subprocess.run(
            [sys.executable, "-m", "tests.unit.cli.fakekeeper", behaviour, *words],
            env=self.environment,
            stdin=subprocess.PIPE,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            pass_fds=pass_fds,
        )

    def mount(self, *options: str, behaviour: str = "serve", pass_fds: tuple[int, ...] = ()) -> Done:
        return self.run("mount", "s3://bucket/x", self.mountpoint, *options, behaviour=behaviour, pass_fds=pass_fds)

    def status(self) -> dict[str, object]:
        result: dict[str, object] = json.loads(self.run("status", self.mountpoint, "--json").stdout)
        return result

    def keeper_pid(self) -> int:
        return int(str(self.status()["keeper_pid"]))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    monkeypatch.setattr(directories, "runtime_dir", lambda: tmp_path / "run")
    yield shell
    while find_mount(shell.mountpoint) is not None:
        attach.unmount(shell.mountpoint, lazy=True, force=True)


def _silent(done: Done) -> bool:
    return (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_mount_is_silent_serves_and_umount_leaves_nothing(shell: Shell) -> None:
    done = shell.mount()
    assert _silent(done), done.stderr
    assert os.stat(shell.mountpoint).st_ino == 1
    pid = shell.keeper_pid()
    assert directories.control_socket(shell.mountpoint).exists()
    done = shell.run("umount", shell.mountpoint)
    assert _silent(done), done.stderr
    assert find_mount(shell.mountpoint) is None
    assert not directories.control_socket(shell.mountpoint).exists()
    assert not Path(f"/proc/{pid}").exists() or _is_zombie(pid)


def test_daemon_keeps_no_descriptor_of_its_caller(shell: Shell, tmp_path: Path) -> None:
    leak = os.open(tmp_path / "leak", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(leak, True)
    assert _silent(shell.mount(pass_fds=(leak,)))
    os.close(leak)
    status = shell.status()
    descriptors = status["fds"]
    assert isinstance(descriptors, dict)
    assert str(tmp_path / "leak") not in descriptors.values()
    assert descriptors["0"] == "/dev/null"
    pid = shell.keeper_pid()
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


@pytest.mark.parametrize("behaviour", ["refuse", "raise"])
@pytest.mark.parametrize("options", [[], ["--foreground"]])
def test_reported_error_becomes_line_and_exit_code(shell: Shell, behaviour: str, options: list[str]) -> None:
    done = shell.mount(*options, behaviour=behaviour)
    assert done.returncode == errors.BucketMissingError.exit_code
    assert done.stderr.splitlines()[-1] == "fanoutfs: bucket `b` does not exist"
    if not options:
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_killed_daemon_is_reported_with_its_last_words_and_the_log(shell: Shell, tmp_path: Path) -> None:
    done = shell.mount("--log-file", str(tmp_path / "log"), behaviour="die")
    assert done.returncode == errors.DaemonDiedError.exit_code
    assert "(SIGKILL): last words; see " in done.stderr
    assert str(tmp_path / "log") in done.stderr
    assert done.stderr.count("\n") == 1


def test_unexpected_exception_of_the_daemon_is_one_line(shell: Shell) -> None:
    done = shell.mount(behaviour="crash")
    assert done.returncode == errors.DaemonDiedError.exit_code
    assert done.stderr == "fanoutfs: the daemon failed: RuntimeError: two lines\n"


def test_second_mount_on_the_same_directory_is_refused(shell: Shell) -> None:
    assert _silent(shell.mount())
    done = shell.mount()
    assert done.returncode == errors.MountpointError.exit_code
    assert "is mounted already" in done.stderr


def test_mount_over_a_dead_one_replaces_it(shell: Shell) -> None:
    assert _silent(shell.mount())
    os.kill(shell.keeper_pid(), signal.SIGKILL)
    assert _wait(lambda: attach.probe(shell.mountpoint) != 0)
    done = shell.run("status", shell.mountpoint)
    assert done.returncode == errors.DaemonDiedError.exit_code
    assert "cannot be reached" in done.stderr
    directories.control_socket(shell.mountpoint).unlink()  # the real keeper does that when it starts
    assert _silent(shell.mount())


def test_umount_of_a_dead_mount_removes_mount_and_socket(shell: Shell) -> None:
    assert _silent(shell.mount())
    os.kill(shell.keeper_pid(), signal.SIGKILL)
    assert _wait(lambda: attach.probe(shell.mountpoint) != 0)
    assert _silent(shell.run("umount", shell.mountpoint))
    assert find_mount(shell.mountpoint) is None
    assert not directories.control_socket(shell.mountpoint).exists()


def test_umount_waits_for_a_daemon_whose_socket_is_gone(shell: Shell) -> None:
    assert _silent(shell.mount())
    pid = shell.keeper_pid()
    os.rename(directories.control_socket(shell.mountpoint), shell.mountpoint.parent / "moved")
    shell.environment["FAKE_RUNTIME_DIR"] = str(shell.mountpoint.parent / "elsewhere")
    assert _silent(shell.run("umount", shell.mountpoint))
    assert not Path(f"/proc/{pid}").exists() or _is_zombie(pid)


def test_busy_umount_exits_11_and_lazy_detaches(shell: Shell) -> None:
    assert _silent(shell.mount())
    held = os.open(shell.mountpoint, os.O_PATH)
    try:
        done = shell.run("umount", shell.mountpoint)
        assert done.returncode == errors.MountBusyError.exit_code
        assert f"{os.getpid()} (" in done.stderr
        assert os.stat(shell.mountpoint).st_ino == 1  # it keeps serving
        assert _silent(shell.run("umount", "--lazy", shell.mountpoint))
        assert find_mount(shell.mountpoint) is None
    finally:
        os.close(held)


def test_umount_of_the_working_directory_by_a_dot(shell: Shell) -> None:
    assert _silent(shell.mount())
    script = """
import os, sys
from pathlib import Path
from fanoutfs.cli import main
from fanoutfs.config import directories
directories.runtime_dir = lambda: Path(os.environ["FAKE_RUNTIME_DIR"])
os.chdir(sys.argv[1])
sys.exit(main(["umount", "."]))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, shell.mountpoint],  # -P: the fake mount cannot be searched for modules
        env=shell.environment | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert _silent(done), done.stderr
    assert find_mount(shell.mountpoint) is None


def test_daemon_that_closes_the_pipe_without_a_word_is_ended(shell: Shell) -> None:
    done = shell.mount(behaviour="quit")
    assert done.returncode == errors.DaemonDiedError.exit_code
    assert "ended before the mount was ready (SIGTERM)" in done.stderr


def test_debugging_shows_what_the_daemon_printed(shell: Shell) -> None:
    shell.environment["FANOUTFS_DEBUG"] = "1"
    done = shell.mount(behaviour="crash")
    assert "noise on stderr" in done.stderr
    assert 'raise RuntimeError("two' in done.stderr


def test_status_without_argument_lists_the_mount(shell: Shell) -> None:
    assert _silent(shell.mount())
    done = shell.run("status")
    assert f"{shell.mountpoint}  from  s3://bucket/x  running for" in done.stdout
    listed = json.loads(shell.run("status", "--json").stdout)
    (entry,) = [mount for mount in listed if mount["mountpoint"] == str(shell.mountpoint)]
    assert entry["alive"] is True
    assert entry["source"] == "s3://bucket/x"


def _is_zombie(pid: int) -> bool:
    """A container without an init never reaps orphans; the process has ended all the same."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _wait(condition: object, timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if callable(condition) and condition():
            return True
        time.sleep(0.01)
    return False

"""One keeper after another on the same mount: `fanoutfs upgrade`, a restart of the service, a kill -9 of the keeper.

Readers and a writer run all the while; they may wait, but see no error.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fanoutfs.cli import main, upgrade
from fanoutfs.errors import DaemonDiedError, FanoutError, MountDeniedError, UsageError
from fanoutfs.keeper.mountinfo import find_mount
from tests.support.load import Load, pattern
from tests.support.manager import Manager, managed
from tests.support.mounts import Mount, run_command, wait_until
from tests.support.processes import free_ports

FILES = 4
DESCRIPTORS = {"fuse", "state", "positions"}


@dataclass
class Place:
    """A source directory with files, and a configuration that mounts it."""

    base: Path

    @property
    def mnt(self) -> Path:
        return self.base / "mnt"

    @property
    def config(self) -> Path:
        return self.base / "data.toml"

    def configure(self, *lines: str) -> None:
        """Write the configuration."""
        own = [
            f'source = "file://{self.base}/source"',
            f'mountpoint = "{self.mnt}"',
            f'cache_dir = "{self.base}/cache"',
        ]
        self.config.write_text("\n".join([*own, *lines]) + "\n")

    def mount(self) -> Mount:
        """Return the mount for its status and log."""
        return Mount(f"file://{self.base}/source", self.mnt, self.base / "cache")


@pytest.fixture
def place() -> Iterator[Place]:
    base = Path(tempfile.mkdtemp(prefix="fanoutfs-test-", dir="/var/tmp"))
    place = Place(base)
    for name in ("mnt", "source"):
        (base / name).mkdir()
    for index in range(FILES):
        (base / "source" / f"file{index}").write_bytes(pattern(index))
    place.configure()
    try:
        yield place
    finally:
        place.mount().kill_everything()
        shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def _load(place: Place) -> Iterator[Load]:
    load = Load(place.mnt)
    try:
        yield load
    except BaseException:
        place.mount().kill_everything()
        load.kill()
        raise


def _assert_unharmed(result: dict[str, object]) -> None:
    assert result["errors"] == []
    assert result["reads"]
    assert result["writes"]


def _serve(place: Place) -> contextlib.AbstractContextManager[Manager]:
    return managed("mount", "--foreground", "--config", str(place.config))


# --- upgrade ---------------------------------------------------------------------------------------------------


def test_upgrade_under_load_is_seen_by_no_reader_and_no_writer(place: Place) -> None:
    assert run_command("mount", "--config", str(place.config)).returncode == 0
    before = place.mount().status()
    with _load(place) as load:
        for _ in range(2):
            done = run_command("upgrade", str(place.mnt), "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["longest_stall_s"] >= 0
        result = load.stop()
    print(result)
    _assert_unharmed(result)
    after = place.mount().status()
    assert after["keeper_pid"] == before["keeper_pid"]
    assert after["generation"] == before["generation"] + 2
    assert not {before["core_pid"], *before["front_pids"]} & {after["core_pid"], *after["front_pids"]}
    assert run_command("umount", str(place.mnt)).returncode == 0


def test_upgrade_of_all_goes_on_after_one_that_cannot_be_upgraded(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which alone can be told what all mounts are: others on this machine are not ours to upgrade."""
    assert run_command("mount", "--config", str(place.config)).returncode == 0
    before = place.mount().status()["generation"]
    monkeypatch.setattr(upgrade, "own_mounts", lambda: [tmp_path, place.mnt])
    assert main(["upgrade", "--all", "--json"]) == DaemonDiedError.exit_code
    said = capsys.readouterr()
    failed, done = json.loads(said.out)
    assert (failed["mountpoint"], done["mountpoint"]) == (str(tmp_path), str(place.mnt))
    assert said.err == f"fanoutfs: {failed['error']}\n"
    assert done["generation"]["before"] == before < done["generation"]["after"]


def test_upgrade_reads_the_configuration_again(place: Place) -> None:
    place.configure("fronts = 2")
    assert run_command("mount", "--config", str(place.config)).returncode == 0
    assert len(place.mount().status()["front_pids"]) == 2
    place.configure("fronts = 3", 'cache_size = "2GiB"')
    assert run_command("upgrade", str(place.mnt)).returncode == 0
    status = place.mount().status()
    assert (len(status["front_pids"]), status["cache"]["cap_bytes"]) == (3, 2 << 30)
    assert run_command("umount", str(place.mnt)).returncode == 0


def test_metrics_are_served_at_the_same_address_after_an_upgrade(place: Place) -> None:
    (port,) = free_ports(1)
    place.configure(f'metrics_address = "127.0.0.1:{port}"')
    assert run_command("mount", "--config", str(place.config)).returncode == 0
    done = run_command("upgrade", str(place.mnt))
    assert done.returncode == 0, done.stderr
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert b"fanoutfs_" in answer.read()
    assert run_command("umount", str(place.mnt)).returncode == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('metrics_address = "here"', "write HOST:PORT"),
        ("[[policy]]\npni = true", "data.toml:5: pni: a policy has no such key: did you mean pin?"),
        ("read_only = true", "read_only cannot change while it is mounted (it is false, not true)"),
        ("cach_size = 1", "data.toml:4: unknown key cach_size: did you mean cache_size?"),
        ('prefix = "elsewhere"', "its source is file://"),
    ],
)
def test_upgrade_to_settings_that_are_no_good_changes_nothing(place: Place, line: str, message: str) -> None:
    assert run_command("mount", "--config", str(place.config)).returncode == 0
    before = place.mount().status()
    place.configure(line)
    done = run_command("upgrade", str(place.mnt))
    assert done.returncode == FanoutError.exit_code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    after = place.mount().status()
    assert (after["generation"], after["core_pid"]) == (before["generation"], before["core_pid"])
    place.configure()
    assert run_command("umount", str(place.mnt)).returncode == 0


def test_upgrade_to_a_version_that_cannot_start_changes_nothing(place: Place) -> None:
    """What is installed is found to be broken while the old version still serves."""
    broken = place.base / "broken"
    broken.mkdir()
    env = {"PYTHONPATH": str(broken)}  # the daemon's, and so that of what it starts
    assert run_command("mount", "--config", str(place.config), env=env).returncode == 0
    (broken / "trio.py").write_text("raise ImportError('no trio today')\n")
    before = place.mount().status()
    done = run_command("upgrade", str(place.mnt))
    assert done.returncode == FanoutError.exit_code
    assert "no trio today" in done.stderr
    assert place.mount().status()["core_pid"] == before["core_pid"]
    assert (place.mnt / "file1").read_bytes() == pattern(1)
    assert run_command("umount", str(place.mnt)).returncode == 0


def test_upgrade_of_nothing_is_an_error(place: Place) -> None:
    done = run_command("upgrade", str(place.mnt))
    assert (done.returncode, done.stderr.count("\n")) == (12, 1)


# --- as a service ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_restart_of_the_service_keeps_the_mount_and_every_open_file(place: Place, number: signal.Signals) -> None:
    with _serve(place) as manager:
        manager.start()
        assert manager.stored.keys() == DESCRIPTORS
        with _load(place) as load:
            for generation in (2, 3):
                first = manager.pid
                assert manager.end(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
                assert find_mount(place.mnt) is not None
                assert manager.stored.keys() == DESCRIPTORS
                manager.start()
                assert manager.pid != first
                assert place.mount().status()["generation"] == generation
            result = load.stop()
        print(result)
        _assert_unharmed(result)
        assert run_command("umount", str(place.mnt)).returncode == 0
        assert manager.wait() == 0


def test_upgrade_of_a_service_keeps_its_process_and_tells_the_manager(place: Place) -> None:
    with _serve(place) as manager:
        manager.start()
        manager.messages.clear()
        assert run_command("upgrade", str(place.mnt)).returncode == 0
        manager.wait_for("READY=1")
        assert manager.stored.keys() == DESCRIPTORS
        assert manager.service is not None
        assert manager.service.poll() is None
        assert manager.end() == 0
        manager.start()
        assert (place.mnt / "file1").read_bytes() == pattern(1)
        assert run_command("umount", str(place.mnt)).returncode == 0


def test_unmounting_takes_back_what_was_stored(place: Place) -> None:
    with _serve(place) as manager:
        manager.start()
        assert run_command("umount", str(place.mnt)).returncode == 0
        assert manager.wait() == 0
        assert manager.stored == {}
        assert manager.strangers == []
        assert find_mount(place.mnt) is None


def test_watchdog_is_fed_while_the_keeper_lives(place: Place) -> None:
    with _serve(place) as manager:
        manager.start()
        for _ in range(3):
            manager.messages.clear()
            manager.wait_for("WATCHDOG=1")
        assert run_command("umount", str(place.mnt)).returncode == 0


def test_restart_with_other_settings_mounts_anew(place: Place) -> None:
    with _serve(place) as manager:
        manager.start()
        device = find_mount(place.mnt)
        assert manager.end() == 0
        place.configure("read_only = true")
        manager.start()
        assert "mounting anew: read_only cannot change" in manager.log
        info = find_mount(place.mnt)
        assert info is not None
        assert device is not None
        assert "ro" in info.options
        assert manager.stored.keys() == DESCRIPTORS
        assert (place.mnt / "file2").read_bytes() == pattern(2)
        assert run_command("umount", str(place.mnt)).returncode == 0


def test_restart_after_somebody_unmounted_mounts_anew(place: Place) -> None:
    with _serve(place) as manager:
        manager.start()
        assert manager.end(signal.SIGKILL) == -signal.SIGKILL
        subprocess.run(["umount", "-l", str(place.mnt)], check=True)
        manager.start()
        assert "mounting anew: it has been unmounted" in manager.log
        assert (place.mnt / "file2").read_bytes() == pattern(2)
        assert run_command("umount", str(place.mnt)).returncode == 0


def test_service_in_a_mount_namespace_of_its_own_fails_loudly(place: Place) -> None:
    with _serve(place) as manager:
        manager.launch("unshare", "--mount", "--propagation", "private")
        assert manager.wait() == MountDeniedError.exit_code
        assert "only this service sees it" in manager.log
        assert "READY=1" not in manager.messages
        assert find_mount(place.mnt) is None


def test_wrong_configuration_ends_the_service_with_its_code(place: Place) -> None:
    place.configure("cach_size = 1")
    with _serve(place) as manager:
        manager.launch()
        assert manager.wait() == UsageError.exit_code
        assert manager.messages == []


def test_descriptors_that_make_no_sense_are_not_used(place: Place) -> None:
    with _serve(place) as manager:
        for name in DESCRIPTORS:
            manager.stored[name] = os.open(os.devnull, os.O_RDWR)
        manager.start()
        assert manager.stored.keys() == DESCRIPTORS
        assert (place.mnt / "file0").read_bytes() == pattern(0)
        assert run_command("umount", str(place.mnt)).returncode == 0
        wait_until(lambda: find_mount(place.mnt) is None, "it is unmounted")

"""Siblings and plans through a real mount and a real S3 server: the proxy's log is the witness."""

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fanoutfs
from fanoutfs.errors import NotMountedError, UsageError
from tests.mount.photos import FILES, WINDOW_FILES, content_of, gets, mounted_photos, name_of, put_photos
from tests.support.mounts import Mount, run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket


@pytest.fixture
def mount(bucket: Bucket, proxy: Proxy) -> Iterator[Mount]:
    put_photos(bucket)
    with mounted_photos(bucket, proxy) as mount:
        yield mount


def read_all(mount: Mount, order: list[int], readers: int = 4) -> None:
    """Read files by so many readers, each its share in turn; every content is right."""
    failures: list[int] = []

    def read(share: list[int]) -> None:
        for index in share:
            if (mount.path / name_of(index)).read_bytes() != content_of(index):
                failures.append(index)

    threads = [threading.Thread(target=read, args=(order[start::readers],)) for start in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []


def announce(mount: Mount, order: list[int], name: str | None = None) -> fanoutfs.Announced:
    return fanoutfs.announce((mount.path / name_of(index) for index in order), name=name)


def plan_of(mount: Mount) -> dict[str, int]:
    (plan,) = mount.status()["plans"]
    return dict(plan)


def shuffled(seed: int) -> list[int]:
    return random.Random(seed).sample(range(FILES), FILES)


@pytest.mark.parametrize("order_of", [lambda: list(range(FILES)), lambda: shuffled(1)], ids=["in order", "at random"])
def test_prefetch_racing_readers_fetches_each_file_once(
    mount: Mount, proxy: Proxy, order_of: Callable[[], list[int]]
) -> None:
    assert len(os.listdir(mount.path / "train")) == FILES
    proxy.set_latency(5)
    read_all(mount, order_of())
    assert set(gets(proxy).values()) == {1}
    assert len(gets(proxy)) == FILES
    assert mount.counters()["prefetch_bytes"] > 0
    assert mount.counters()["hints_dropped"] == 0


def test_announced_files_are_fetched_as_far_as_the_window_while_nobody_reads(mount: Mount, proxy: Proxy) -> None:
    order = shuffled(2)
    assert announce(mount, order) == fanoutfs.Announced(FILES, 0, ())
    wait_until(lambda: mount.counters()["backend_gets"] >= WINDOW_FILES, "the window is fetched")
    read_all(mount, order[:WINDOW_FILES], readers=1)
    wait_until(lambda: plan_of(mount)["fetched"] >= 2 * WINDOW_FILES, "the next window is fetched")
    wait_until(lambda: mount.counters()["backend_gets"] >= 2 * WINDOW_FILES, "the next window has arrived")
    assert plan_of(mount)["position"] == WINDOW_FILES
    assert gets(proxy) == Counter({Path(name_of(index)).name: 1 for index in order[: 2 * WINDOW_FILES]})


def test_epoch_with_a_plan_fetches_each_file_once_and_wastes_nothing(mount: Mount, proxy: Proxy) -> None:
    order = shuffled(3)
    announce(mount, order)
    proxy.set_latency(5)
    read_all(mount, order)
    assert gets(proxy) == Counter({Path(name_of(index)).name: 1 for index in range(FILES)})
    assert mount.counters()["prefetch_wasted_bytes"] == 0


def test_next_epoch_replaces_the_plan_of_this_process_and_another_name_does_not(mount: Mount) -> None:
    announce(mount, shuffled(4))
    announce(mount, shuffled(5))
    announce(mount, shuffled(6), name="validation")
    assert [plan["name"] for plan in mount.status()["plans"]] == [f"process {os.getpid()}", "validation"]
    fanoutfs.announce([], mount.path, name="validation")
    wait_until(lambda: len(mount.status()["plans"]) == 1, "an empty plan is over at once")


def test_core_that_dies_forgets_the_plan_and_readers_never_notice(mount: Mount, proxy: Proxy) -> None:
    order = shuffled(7)
    announce(mount, order)
    read_all(mount, order[:50])
    os.kill(mount.status()["core_pid"], signal.SIGKILL)
    read_all(mount, order[50:100])
    assert mount.status()["plans"] == []
    announce(mount, order[100:])
    read_all(mount, order[100:])
    twice = [name for name, count in gets(proxy).items() if count > 1]
    assert len(twice) <= 128, "only what was in flight when the core died"
    assert len(gets(proxy)) == FILES


def test_command_announces_a_file_of_paths_and_names_unknown_ones(mount: Mount, tmp_path: Path) -> None:
    listed = tmp_path / "order"
    paths = [str(mount.path / name_of(index)) for index in range(10)]
    listed.write_text("\n".join([*paths, str(mount.path / "train/none"), "/etc/passwd"]))
    result = run_command("plan", str(listed))
    assert (result.returncode, result.stdout) == (0, "10 files announced\n")
    assert "2 paths lead to nothing in the mount" in result.stderr
    assert "train/none" in result.stderr
    assert "/etc/passwd" in result.stderr
    listed.write_bytes(b"\0".join(os.fsencode(path) for path in paths[:3]))
    assert run_command("plan", "-0", "--name", "other", str(listed)).stdout == "3 files announced\n"
    assert [(plan["name"], plan["files"]) for plan in mount.status()["plans"]] == [("command line", 10), ("other", 3)]
    listed.write_text("")
    assert run_command("plan", str(listed), "--mount", str(mount.path)).returncode == 0


def test_command_that_announces_nothing_known_fails(mount: Mount, tmp_path: Path) -> None:
    listed = tmp_path / "order"
    listed.write_text(f"{mount.path}/none\n")
    assert run_command("plan", str(listed)).returncode == UsageError.exit_code


def test_announcing_outside_of_a_mount_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotMountedError, match="lies in no fanoutfs mount"):
        fanoutfs.announce([tmp_path / "file"])
    with pytest.raises(UsageError):
        fanoutfs.announce([])


def test_symbolic_links_and_relative_paths_lead_into_the_plan(
    mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(mount.path / "train")
    assert fanoutfs.announce([tmp_path / "data" / "00001.jpg"]).files == 1
    monkeypatch.chdir(mount.path / "train")
    assert fanoutfs.announce(["00002.jpg", b"./00003.jpg", "../train/00004.jpg"]).files == 3

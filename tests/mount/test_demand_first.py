"""Readers before everybody else: what reaches the store in which order, while more is wanted than may be asked for."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mount.test_upload_arrival import read
from tests.support.mounts import COMMAND, Mount, mounted, run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

REQUESTS: Final = 8
BACKGROUND: Final = 6
"""Three quarters of them are all that others than readers get."""
READERS: Final = 30
WARMED: Final = 40
SETTINGS: Final = (
    *("--requests", str(REQUESTS), "--max-readahead", "0B", "--metadata-ttl", "indefinite"),
    # What is held here is held for as long as a slow machine takes.
    *("-o", "op_timeout=200s,upload_delay=0s,upload_deadline=1h"),
)


@pytest.fixture
def mount(bucket: Bucket, proxy: Proxy, tmp_path: Path) -> Iterator[Mount]:
    (tmp_path / "rules").touch()
    for number in range(WARMED):
        bucket.put(f"warm/{number:02}", b"%d" % number * 2000)
    for number in range(READERS):
        bucket.put(f"job/{number:02}", b"%d" % number * 3000)
    proxy.set_latency(20)
    options = ("--endpoint-url", proxy.endpoint, *SETTINGS, "--policy-file", str(tmp_path / "rules"))
    with mounted(bucket.url, *options, env=bucket.env) as mount:
        try:
            yield mount
        finally:
            proxy.clear()
            proxy.release()


class Job:
    """Readers that all begin at once, each with a file of its own."""

    def __init__(self, directory: Path) -> None:
        self.contents: dict[str, bytes] = {}
        paths = [directory / f"{number:02}" for number in range(READERS)]
        self._threads = [threading.Thread(target=self._read, args=(path,), daemon=True) for path in paths]
        for thread in self._threads:
            thread.start()

    def _read(self, path: Path) -> None:
        self.contents[path.name] = path.read_bytes()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
        assert self.contents == {f"{number:02}": b"%d" % number * 3000 for number in range(READERS)}


def wait_held(proxy: Proxy, count: int) -> None:
    """Wait until that many GETs stand at the store and what had been let go before is done."""
    wait_until(lambda: proxy.stats()["held"] == count, f"{count} requests are held, not {proxy.stats()}")


def hold_all(proxy: Proxy) -> None:
    for directory in ("/warm/", "/job/"):
        proxy.fault("hold", match=directory, method="GET", count=1000)


def order(proxy: Proxy) -> list[str]:
    """Return "warm", "job" or "second" for each request for such an object, in the order of their arrival."""
    found = [(each.number, each.path) for each in proxy.answered() if each.method in ("GET", "PUT")]
    names = {"warm": "/warm/", "job": "/job/", "second": "/ckpt/second"}
    return [name for _number, path in sorted(found) for name, part in names.items() if part in path]


def test_readers_go_before_a_warm_and_uploads_and_all_keep_their_budgets(
    bucket: Bucket, proxy: Proxy, mount: Mount
) -> None:
    (mount.path / "ckpt").mkdir()
    assert len(os.listdir(mount.path / "warm")) + len(os.listdir(mount.path / "job")) == WARMED + READERS
    hold_all(proxy)
    warm = subprocess.Popen([*COMMAND, "warm", str(mount.path / "warm")])
    try:
        wait_until(lambda: mount.counters()["fills_started"] == WARMED, "all of the tree is wanted")
        wait_held(proxy, BACKGROUND)
        # A budget of its own: what is written is uploaded beside that.
        (mount.path / "ckpt/first").write_bytes(b"first")
        # Perhaps twice: with no delay its upload may begin between its creation and its first byte.
        wait_until(
            lambda: "ckpt/first" in set(bucket.keys()) and read(bucket, "ckpt/first") == b"first",
            "a file is uploaded while no reader waits",
        )

        job = Job(mount.path / "job")
        wait_until(lambda: mount.counters()["fills_started"] == WARMED + READERS, "all readers are there")
        wait_held(proxy, REQUESTS)
        (mount.path / "ckpt/second").write_bytes(b"second")
        for _wave in range(3):
            proxy.release()
            wait_held(proxy, REQUESTS)
        assert "ckpt/second" not in set(bucket.keys()), "readers are waiting"
        # 26 readers were asked for; when the last four are, nobody waits for his turn any more.
        proxy.release()
        wait_held(proxy, BACKGROUND)
        wait_until(lambda: "ckpt/second" in set(bucket.keys()), "uploads go on")
        assert read(bucket, "ckpt/second") == b"second"
        proxy.clear()
        proxy.release()
        job.join()
        assert warm.wait(60) == 0
    finally:
        warm.kill()
        warm.wait()
    asked = order(proxy)
    assert asked.count("second") == 1, asked
    gets = [name for name in asked if name != "second"]
    assert gets[:BACKGROUND] == ["warm"] * BACKGROUND
    assert gets[BACKGROUND:32] == ["job"] * 26, "nothing else began while readers waited"
    assert sorted(gets[32:38]) == ["job"] * 4 + ["warm"] * 2
    assert gets[38:] == ["warm"] * (WARMED - 8)
    assert asked[: asked.index("second")].count("job") >= 26
    assert mount.counters()["request_errors"] == 0


def test_readers_go_before_what_a_policy_fetches(proxy: Proxy, mount: Mount, tmp_path: Path) -> None:
    assert len(os.listdir(mount.path / "warm")) + len(os.listdir(mount.path / "job")) == WARMED + READERS
    (tmp_path / "rules").write_text('[[policy]]\npath = "warm"\npin = true\n')
    hold_all(proxy)
    assert run_command("tier", "reload", str(mount.path)).returncode == 0
    wait_until(lambda: mount.counters()["fills_started"] == WARMED, "all that is pinned is wanted")
    wait_held(proxy, BACKGROUND)
    job = Job(mount.path / "job")
    wait_until(lambda: mount.counters()["fills_started"] == WARMED + READERS, "all readers are there")
    for _wave in range(4):
        wait_held(proxy, REQUESTS)
        proxy.release()
    wait_held(proxy, BACKGROUND)
    proxy.clear()
    proxy.release()
    job.join()
    expected = sum(len(b"%d" % number * 2000) for number in range(WARMED))
    wait_until(lambda: mount.status()["tiering"]["pinned_fetched_bytes"] == expected, "all that is pinned is here")
    asked = order(proxy)
    assert asked[:BACKGROUND] == ["warm"] * BACKGROUND
    assert asked[BACKGROUND:32] == ["job"] * 26, "nothing else began while readers waited"
    assert sorted(asked[32:38]) == ["job"] * 4 + ["warm"] * 2
    assert asked[38:] == ["warm"] * (WARMED - 8)
    assert run_command("tier", "plan", str(mount.path)).stdout.strip() == "nothing"

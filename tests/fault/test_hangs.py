"""Processes that live but do nothing any more are replaced, unseen by readers and writers; slow stores do not count."""

import os
import signal
from typing import Any

import pytest

from fanoutfs.records import KIB, MIB
from tests.fault.children import Children, content, digest, read_digest
from tests.fault.conftest import Mounter
from tests.fault.test_kills import status_of, wait_for_core
from tests.support.load import Load, pattern
from tests.support.mounts import Mount, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

HANG = ("-o", "hang_timeout=2s")


def _loaded(bucket: Bucket, mount_of: Mounter) -> Mount:
    for index in range(4):
        bucket.put(f"file{index}", pattern(index))
    return mount_of(bucket.url, *HANG, endpoint=bucket.endpoint, env=bucket.env)


def _stop_load(mount: Mount, load: Load) -> dict[str, Any]:
    try:
        return load.stop()
    except BaseException:
        mount.kill_everything()
        load.kill()
        raise


def test_stopped_core_is_replaced_and_readers_and_writers_see_no_error(bucket: Bucket, mount_of: Mounter) -> None:
    mount = _loaded(bucket, mount_of)
    core_pid = mount.status()["core_pid"]
    load = Load(mount.path)
    os.kill(core_pid, signal.SIGSTOP)
    try:
        status = wait_for_core(mount, core_pid)
    finally:
        result = _stop_load(mount, load)
    print(result)
    assert result["errors"] == []
    assert result["reads"]
    assert result["writes"]
    assert status["generation"] == 2
    assert f"process hangs process=core pid={core_pid} state=T" in mount.log()
    assert (status["counters"]["hangs_core"], status["counters"]["hangs_front"]) == (1, 0)


def test_stopped_front_is_replaced_and_readers_and_writers_see_no_error(bucket: Bucket, mount_of: Mounter) -> None:
    mount = _loaded(bucket, mount_of)
    before = mount.status()
    load = Load(mount.path)
    os.kill(before["front_pids"][0], signal.SIGSTOP)
    try:
        wait_until(lambda: before["front_pids"][0] not in status_of(mount)["front_pids"], "the front is replaced")
    finally:
        result = _stop_load(mount, load)
    print(result)
    assert result["errors"] == []
    after = mount.status()
    assert after["core_pid"] == before["core_pid"]
    assert (after["counters"]["hangs_core"], after["counters"]["hangs_front"]) == (0, 1)


@pytest.mark.parametrize("patch", ["core_loops", "core_locks_up"])
def test_hung_core_says_where_and_is_replaced(
    patch: str, bucket: Bucket, patched_mount: Mounter, children: Children
) -> None:
    bucket.put("good", b"g" * KIB)
    mount = patched_mount(bucket.url, *HANG, patches=patch, endpoint=bucket.endpoint, env=bucket.env)
    core_pid = mount.status()["core_pid"]
    (mount.path.parent / "hang").touch()
    assert children.start(read_digest, mount.path / "good").result() == digest(b"g" * KIB)
    assert status_of(mount)["core_pid"] != core_pid
    log = (mount.path.parent / "log").read_text()
    assert f"process hangs process=core pid={core_pid}" in log
    assert "Fatal Python error: Aborted" in log
    assert "in hang_in_lookup" in log


def test_slow_store_is_no_hang(bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children) -> None:
    body = content(1, 3 * MIB)
    bucket.put("slow", body)
    options = (*HANG, "-o", "op_timeout=60s")
    mount = mount_of(bucket.url, *options, endpoint=proxy.endpoint, env=bucket.env)
    before = mount.status()
    proxy.set_latency(3000)  # for the listing and each part: three times as long as a hang takes, in all
    assert children.start(read_digest, mount.path / "slow").result() == digest(body)
    after = mount.status()
    assert (after["core_pid"], after["front_pids"]) == (before["core_pid"], before["front_pids"])
    assert "process hangs" not in mount.log()
    proxy.set_latency(0)

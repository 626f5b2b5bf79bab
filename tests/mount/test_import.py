"""`fanoutfs import` and `mount --import` on a real mount over a real S3 server."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fanoutfs.cli.client import call
from tests.mount import kernel
from tests.support.mounts import COMMAND, INTERRUPTIBLE, Mount, run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

# Siblings such as `a`, `a-1`, `a.txt` tell the orders of stores apart.
TREE = ["top", "a/1", "a/2", "a/b/x", "a/b.x", "a-1/y", "a.txt", "c/d/e/f"]


def fill(bucket: Bucket, keys: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: bucket.put(key, key.encode()), keys))


def walked(mount: Mount) -> list[str]:
    found = []
    for above, _directories, names in os.walk(mount.path):
        found += [os.path.relpath(os.path.join(above, name), mount.path) for name in names]
    return sorted(found)


@pytest.fixture
def mount(bucket: Bucket, proxy: Proxy) -> Iterator[Mount]:
    with kernel.mounted_bucket(bucket, "--metadata-ttl", "1h", endpoint=proxy.endpoint) as mounted:
        yield mounted


def asked(proxy: Proxy) -> int:
    """Return how many requests went to the store so far."""
    return len(proxy.requests())


def test_after_an_import_no_list_and_no_head_is_sent(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    fill(bucket, TREE)
    result = run_command("import", str(mount.path))
    assert result.returncode == 0, result.stderr
    assert f"{len(TREE)} keys" in result.stdout
    before = asked(proxy)
    assert walked(mount) == sorted(TREE)
    assert not (mount.path / "a/absent").exists()
    assert os.stat(mount.path / "c/d/e/f").st_size == len("c/d/e/f")
    assert asked(proxy) == before
    assert kernel.read_all(mount.path / "a/b/x") == b"a/b/x"


def test_import_of_a_subdirectory_touches_only_that(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    fill(bucket, TREE)
    assert run_command("import", str(mount.path / "a")).returncode == 0
    before = asked(proxy)
    assert sorted(os.listdir(mount.path / "a/b")) == ["x"]
    assert sorted(os.listdir(mount.path / "a")) == ["1", "2", "b", "b.x"]
    assert asked(proxy) == before
    assert os.listdir(mount.path / "c/d/e") == ["f"]


def test_import_again_finds_what_changed(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    fill(bucket, TREE)
    assert run_command("import", str(mount.path)).returncode == 0
    assert walked(mount) == sorted(TREE)
    assert kernel.read_all(mount.path / "a/1") == b"a/1"
    bucket.put("a/1", b"another version")
    bucket.delete("a/2")
    bucket.delete("c/d/e/f")
    bucket.put("new/dir/file", b"new")
    assert run_command("import", str(mount.path)).returncode == 0
    before = asked(proxy)
    assert walked(mount) == sorted({*TREE, "new/dir/file"} - {"a/2", "c/d/e/f"})
    assert asked(proxy) == before
    assert kernel.read_all(mount.path / "a/1") == b"another version"


def test_many_directories_do_not_cost_a_list_each(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    fill(bucket, [f"d{number:04d}/file" for number in range(600)])
    before = asked(proxy)
    assert run_command("import", str(mount.path)).returncode == 0
    assert asked(proxy) - before < 20
    assert len(walked(mount)) == 600


def test_import_killed_in_the_middle_goes_on_where_it_was(bucket: Bucket, proxy: Proxy) -> None:
    keys = [f"flat/{number:05d}" for number in range(4000)]
    fill(bucket, keys)
    with kernel.mounted_bucket(bucket, "--metadata-ttl", "1h", endpoint=proxy.endpoint) as mount:
        proxy.set_latency(400)
        job = call(mount.path, "import", path="")["job"]
        wait_until(lambda: call(mount.path, "job", id=job)["progress"].get("keys", 0) >= 1000, "a page is entered")
        status = mount.status()
        for pid in (status["keeper_pid"], status["core_pid"], *status["front_pids"]):
            os.kill(pid, signal.SIGKILL)
        mount.kill_everything()
        proxy.set_latency(0)
        before = asked(proxy)
        mount.start()
        result = run_command("import", str(mount.path))
        assert result.returncode == 0, result.stderr
        assert "before it was broken off" in result.stdout
        pages = [each for each in proxy.requests()[before:] if "max-keys=1000" in each.path]
        assert len(pages) < 4000 / 1000 + 4
        assert all("start-after" in each.path or "continuation-token" in each.path for each in pages)
        before = asked(proxy)
        assert walked(mount) == keys
        assert asked(proxy) == before


def test_import_survives_a_new_core(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    keys = [f"flat/{number:05d}" for number in range(3000)]
    fill(bucket, keys)
    proxy.set_latency(400)
    command = subprocess.Popen([*COMMAND, "import", str(mount.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: any("max-keys=1000" in each.path for each in proxy.requests()), "the scan has begun")
        os.kill(mount.status()["core_pid"], signal.SIGKILL)
        proxy.set_latency(0)
        out, err = command.communicate(timeout=60)
    finally:
        command.kill()
    assert command.returncode == 0, err
    assert b"3,000 keys" in out
    assert walked(mount) == keys


def test_ctrl_c_stops_the_import_and_says_how_to_go_on(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    fill(bucket, [f"flat/{number:05d}" for number in range(2500)])
    proxy.set_latency(1000)
    command = subprocess.Popen(
        [*INTERRUPTIBLE, "import", str(mount.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: proxy.stats()["under_way"], "a page is asked for")
        command.send_signal(signal.SIGINT)
        _out, err = command.communicate(timeout=30)
    finally:
        command.kill()
    assert command.returncode == 130
    assert b"goes on where it was" in err
    proxy.set_latency(0)
    assert run_command("import", str(mount.path)).returncode == 0
    assert len(os.listdir(mount.path / "flat")) == 2500


def test_mount_import_does_not_wait_and_ends_with_everything_listed(bucket: Bucket, proxy: Proxy) -> None:
    fill(bucket, TREE)
    options = ("--import", "--metadata-ttl", "1h")
    with kernel.mounted_bucket(bucket, *options, endpoint=proxy.endpoint) as mount:
        result = run_command("import", str(mount.path))  # joins the one under way, or runs once more
        assert result.returncode == 0, result.stderr
        before = asked(proxy)
        assert walked(mount) == sorted(TREE)
        assert asked(proxy) == before


def test_readers_are_served_while_an_import_runs(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    fill(bucket, [*TREE, *(f"flat/{number:05d}" for number in range(3000))])
    proxy.set_latency(100)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _again in range(5):
                assert kernel.read_all(mount.path / "a/1") == b"a/1"
                assert sorted(os.listdir(mount.path / "a")) == ["1", "2", "b", "b.x"]
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert run_command("import", str(mount.path)).returncode == 0
    reader.join()
    assert failures == []
    assert len(walked(mount)) == len(TREE) + 3000
    assert mount.counters()["request_errors"] == 0


@pytest.mark.parametrize(("path", "code"), [("/", 12), ("absent", 20)], ids=["no mount", "no such directory"])
def test_import_of_what_is_not_there_fails_in_one_line(mount: Mount, path: str, code: int) -> None:
    result = run_command("import", str(mount.path / path))
    assert result.returncode == code
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("fanoutfs: ")


def test_store_that_fails_is_told_with_its_exit_code(bucket: Bucket, proxy: Proxy) -> None:
    fill(bucket, TREE)
    with kernel.mounted_bucket(bucket, "--op-timeout", "1s", endpoint=proxy.endpoint) as mount:
        proxy.fault("status", match="list-type", count=1000, status=503, code="SlowDown")
        result = run_command("import", str(mount.path))
        assert result.returncode == 24
        assert len(result.stderr.splitlines()) == 1
        proxy.clear()
        assert run_command("import", str(mount.path)).returncode == 0


def test_deletion_in_a_large_directory_costs_its_pages_and_two_notices(
    bucket: Bucket, proxy: Proxy, mount: Mount
) -> None:
    keys = [f"flat/{number:05d}" for number in range(3000)]
    fill(bucket, keys)
    assert run_command("import", str(mount.path)).returncode == 0
    assert len(os.listdir(mount.path / "flat")) == 3000
    assert os.stat(mount.path / "flat/01500").st_size
    bucket.delete("flat/01500")
    asked_before, before = asked(proxy), mount.counters()
    call(mount.path, "invalidate", path="flat")
    requests = proxy.requests()[asked_before:]
    assert len(requests) == 3
    assert all("list-type" in each.path for each in requests)
    after = mount.counters()
    assert after["listings"] - before["listings"] == 1
    assert after["notifications"] - before["notifications"] == 2  # the name, and the directory's listing
    assert len(os.listdir(mount.path / "flat")) == 2999
    assert not (mount.path / "flat/01500").exists()
    assert len(proxy.requests()) == asked_before + 3


def test_readers_of_a_large_directory_do_not_wait_for_its_listing_again(
    bucket: Bucket, proxy: Proxy, mount: Mount
) -> None:
    keys = [f"flat/{number:05d}" for number in range(2500)]
    fill(bucket, keys)
    assert run_command("import", str(mount.path)).returncode == 0
    bucket.delete("flat/00500")
    bucket.delete("flat/02000")
    proxy.fault("stall", match="continuation-token")
    again = threading.Thread(target=call, args=(mount.path, "invalidate"), kwargs={"path": "flat", "timeout_s": 60})
    again.start()
    try:
        wait_until(lambda: proxy.stats()["faults_left"] == 0, "the second page is asked for")
        names = os.listdir(mount.path / "flat")
        assert set(keys) - {f"flat/{name}" for name in names} == {"flat/00500"}  # the first page is entered
        assert not (mount.path / "flat/00500").exists()
        assert os.stat(mount.path / "flat/02499").st_size == len("flat/02499")
        assert proxy.stats()["under_way"] == 1
    finally:
        again.join()
    assert len(os.listdir(mount.path / "flat")) == 2498

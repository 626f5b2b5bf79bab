"""`fanoutfs warm` on a real mount over a real S3 server: each byte once, what is cached never, failures by name."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.records import MIB
from tests.mount import kernel
from tests.mount.test_import import fill
from tests.support.mounts import COMMAND, INTERRUPTIBLE, Mount, run_command, wait_until
from tests.support.proxy_client import Proxy, Request
from tests.support.servers import Bucket

SMALL = [f"data/{directory}/{number:02d}" for directory in "ab" for number in range(20)]
BIG = "data/big"


@pytest.fixture
def mount(bucket: Bucket, proxy: Proxy) -> Iterator[Mount]:
    fill(bucket, SMALL)
    bucket.put(BIG, os.urandom(9 * MIB))
    with kernel.mounted_bucket(bucket, "--metadata-ttl", "1h", endpoint=proxy.endpoint) as mounted:
        yield mounted


def fetched(proxy: Proxy) -> int:
    """Return the object bytes that left the store."""
    return sum(each.body_bytes for each in gets(proxy))


def gets(proxy: Proxy) -> list[Request]:
    return [each for each in proxy.requests(method="GET") if "list-type" not in each.path]


def size() -> int:
    return 9 * MIB + sum(len(key) for key in SMALL)


def test_tree_is_fetched_once_and_then_read_without_the_store(proxy: Proxy, mount: Mount) -> None:
    result = run_command("warm", str(mount.path / "data"))
    assert result.returncode == 0, result.stderr
    assert "41 of 41 files" in result.stdout
    assert fetched(proxy) == size()
    for key in SMALL:
        assert kernel.read_all(mount.path / key) == key.encode()
    assert len(kernel.read_all(mount.path / BIG)) == 9 * MIB
    assert run_command("warm", str(mount.path)).returncode == 0
    assert fetched(proxy) == size()


def test_check_tells_the_share_and_fetches_nothing(proxy: Proxy, mount: Mount) -> None:
    result = run_command("warm", "--check", str(mount.path))
    assert result.returncode == 0, result.stderr
    assert "0 of 41 files" in result.stdout
    assert gets(proxy) == []
    assert run_command("warm", str(mount.path / "data/a")).returncode == 0
    before = len(gets(proxy))
    assert "20 of 41 files" in run_command("warm", "--check", str(mount.path)).stdout
    assert len(gets(proxy)) == before


@pytest.mark.parametrize("separator", ["\n", "\0"], ids=["lines", "NUL"])
def test_list_is_read_from_stdin_and_from_a_file(proxy: Proxy, mount: Mount, tmp_path: Path, separator: str) -> None:
    paths = separator.join(str(mount.path / key) for key in SMALL[:5])
    result = subprocess.run(
        [*COMMAND, "warm", "--list", "-"], input=paths.encode(), capture_output=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert b"5 of 5 files" in result.stdout
    assert fetched(proxy) == sum(len(key) for key in SMALL[:5])
    (tmp_path / "list").write_text(separator.join(str(mount.path / key) for key in SMALL[:9]))
    assert "9 of 9 files" in run_command("warm", "--order", "--list", str(tmp_path / "list")).stdout
    assert fetched(proxy) == sum(len(key) for key in SMALL[:9])


def test_what_failed_is_named_with_an_exit_code_of_its_own(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    proxy.fault("status", match="data/a/07", method="GET", count=1000, status=403, code="AccessDenied")
    result = run_command("warm", str(mount.path / "data/a"), str(mount.path / "absent"))
    assert result.returncode == 26
    assert "data/a/07: " in result.stderr
    assert "absent: no such file" in result.stderr
    assert "19 of 20 files" in result.stdout
    proxy.clear()
    assert run_command("warm", str(mount.path / "data/a")).returncode == 0


def test_ctrl_c_stops_and_the_same_command_goes_on(proxy: Proxy, mount: Mount) -> None:
    assert run_command("warm", str(mount.path / "data/b")).returncode == 0
    before = fetched(proxy)
    proxy.set_latency(2000)
    command = subprocess.Popen([*INTERRUPTIBLE, "warm", str(mount.path / "data/a")], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: proxy.stats()["under_way"], "a file is asked for")
        command.send_signal(signal.SIGINT)
        _out, err = command.communicate(timeout=30)
    finally:
        command.kill()
    assert command.returncode == 130
    assert b"skips what is cached" in err
    proxy.set_latency(0)
    assert run_command("warm", str(mount.path / "data")).returncode == 0
    assert fetched(proxy) - before >= 9 * MIB
    assert "41 of 41" in run_command("warm", "--check", str(mount.path)).stdout


def test_warm_with_a_bandwidth_fetches_everything(proxy: Proxy, mount: Mount) -> None:
    result = run_command("warm", "--bandwidth", "1G", str(mount.path))
    assert result.returncode == 0, result.stderr
    assert fetched(proxy) == size()


@pytest.mark.parametrize("arguments", [(), ("--bandwidth", "fast", "x"), ("--list", "/nonexistent")])
def test_wrong_usage_is_one_line(arguments: tuple[str, ...]) -> None:
    result = run_command("warm", *arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1

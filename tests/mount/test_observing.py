"""What an operator sees of a running mount: metrics, stats, top, why, the log."""

import json
import os
import re
import signal
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from fanoutfs.errors import UsageError
from fanoutfs.keeper.mountinfo import find_mount
from fanoutfs.wire.kernel import Opcode
from tests.mount.kernel import mounted_bucket
from tests.support.caches import drop_page_cache
from tests.support.mounts import Mount, mounted, run_command, wait_until
from tests.support.processes import free_ports
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

CONTENT = os.urandom(3 << 20)
PARSE_PLAIN: Any = parser.text_string_to_metric_families  # has no types, like the other one
PARSE_OPENMETRICS: Any = openmetrics_parser.text_string_to_metric_families


@pytest.fixture
def source(tmp_path: Path) -> str:
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "large").write_bytes(CONTENT)
    (directory / "small").write_bytes(CONTENT[:1000])
    return f"file://{directory}"


@pytest.fixture
def watched(source: str, tmp_path: Path) -> Iterator[tuple[Mount, str, Path]]:
    """A mount, the address of its metrics, and the file it writes them to."""
    (port,) = free_ports(1)
    address, file = f"127.0.0.1:{port}", tmp_path / "one.prom"
    with mounted(source, "--metrics-address", address, "--metrics-file", str(file)) as mount:
        yield mount, f"http://{address}", file


def scrape(url: str, accept: str) -> str:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def value_of(text: str, name: str) -> float:
    found = [sample.value for family in PARSE_PLAIN(text) for sample in family.samples if sample.name == name]
    assert len(found) == 1, name
    return float(found[0])


def test_endpoint_shows_openmetrics_and_outlives_the_core(watched: tuple[Mount, str, Path]) -> None:
    mount, url, _file = watched
    assert (mount.path / "large").read_bytes() == CONTENT
    families = {
        family.name: family for family in PARSE_OPENMETRICS(scrape(f"{url}/metrics", "application/openmetrics-text"))
    }
    samples = {sample.name: sample.value for sample in families["fanoutfs_reader_bytes"].samples}
    assert samples["fanoutfs_reader_bytes_total"] >= len(CONTENT)
    calls = {sample.labels.get("call") for sample in families["fanoutfs_backend_call_duration_seconds"].samples}
    assert calls >= {"get", "list"}
    pid = mount.status()["core_pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: mount.status()["core_pid"] != pid, "the next core")
    text = scrape(url, "text/plain")
    assert value_of(text, "fanoutfs_reader_bytes_total") >= len(CONTENT)
    assert value_of(text, "fanoutfs_restarts_core_total") == 1


def test_endpoint_refuses_other_paths_and_methods(watched: tuple[Mount, str, Path]) -> None:
    _mount, url, _file = watched
    for path, data, status in (("/other", None, 404), ("/metrics", b"x", 405)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url + path, data=data), timeout=30)
        caught.value.close()
        assert caught.value.code == status


def test_file_is_readable_for_others_and_goes_with_the_mount(source: str, tmp_path: Path) -> None:
    file = tmp_path / "one.prom"
    with mounted(source, "--metrics-file", str(file)) as mount:
        wait_until(file.exists, "the file")
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        text = file.read_text()
        assert value_of(text, "fanoutfs_cache_cap_bytes") == mount.status()["cache"]["cap_bytes"]
        assert list(tmp_path.glob(".one.prom*")) == []
    assert not file.exists()


def test_address_in_use_or_malformed_is_refused_and_nothing_is_mounted(
    watched: tuple[Mount, str, Path], source: str, tmp_path: Path
) -> None:
    _mount, url, _file = watched
    other = tmp_path / "other"
    other.mkdir()
    options = ("--cache-dir", str(tmp_path / "cache"))
    for address, what in ((url.removeprefix("http://"), "cannot listen on"), ("9567", "write HOST:PORT")):
        result = run_command("mount", source, str(other), *options, "--metrics-address", address)
        assert result.returncode == UsageError.exit_code
        assert what in result.stderr
        assert result.stderr.count("\n") == 1
        assert find_mount(other) is None


def test_stats_shows_what_was_saved_in_three_ways(watched: tuple[Mount, str, Path]) -> None:
    mount, _url, _file = watched
    (mount.path / "large").read_bytes()
    shown = run_command("stats", str(mount.path))
    assert shown.returncode == 0, shown.stderr
    assert "fan-out" in shown.stdout
    assert "store get" in shown.stdout
    document = json.loads(run_command("stats", str(mount.path), "--json").stdout)
    assert document["counters"]["backend_gets"] >= 1
    assert document["gauges"]["cost_spent"] > 0
    assert {latency["count"] > 0 for latency in document["latencies"]} == {True}
    text = run_command("stats", str(mount.path), "--prometheus").stdout
    assert value_of(text, "fanoutfs_backend_gets_total") == document["counters"]["backend_gets"]
    assert run_command("stats", str(mount.path), "--prometheus", "--json").returncode == UsageError.exit_code


# --- who waits for what --------------------------------------------------------------------------------------------


def why(mount: Mount, subject: str) -> dict[str, Any]:
    """Return what this mount says; asked about a process, others answer as well."""
    result = run_command("why", subject, "--json")
    assert result.returncode == 0, result.stderr
    documents = {document["mountpoint"]: document for document in json.loads(result.stdout)}
    found: dict[str, Any] = documents[str(mount.path)]
    return found


def _is_told(mount: Mount, path: str) -> bool:
    """Tell whether the log has a slow request of a file; if not, read it from the store once more.

    A line is the slowest request since the one before: on a busy machine another one may have been that.
    """
    if re.search(rf"slow request opcode=\w+ path={path}", mount.log()):
        return True
    assert run_command("evict", str(mount.path / path)).returncode == 0
    drop_page_cache()
    assert (mount.path / path).read_bytes() == CONTENT
    return False


def test_why_blames_a_slow_store_and_names_path_and_process(bucket: Bucket, proxy: Proxy) -> None:
    bucket.put("dir/large", CONTENT)
    bucket.put("other", b"x")
    proxy.set_latency(60)
    with mounted_bucket(bucket, "--slow-request", "30ms", endpoint=proxy.endpoint) as mount:
        reader = subprocess.run(["md5sum", str(mount.path / "dir/large")], check=True, capture_output=True)
        assert reader.returncode == 0
        document = wait_until(
            lambda: (found := why(mount, str(mount.path / "dir")))["requests"] and found, "the read is known"
        )
        reads = [entry for entry in document["requests"] if entry["opcode"] == "READ"]
        assert {entry["path"] for entry in reads} == {"dir/large"}
        assert max(entry["backend_ms"] for entry in reads) >= 60
        assert all(entry["backend_ms"] <= entry["took_ms"] for entry in reads)
        assert document["advice"][0]["cause"].startswith("store")
        pid = reads[0]["pid"]
        assert {entry["pid"] for entry in why(mount, str(pid))["requests"]} == {pid}
        assert why(mount, str(mount.path / "other"))["requests"] == []
        text = run_command("why", str(mount.path / "dir/large")).stdout
        assert "fanoutfs warm" in text
        wait_until(lambda: _is_told(mount, "dir/large"), lambda: f"the log has one of them:\n{mount.log()}")
        assert mount.counters()["slow_requests"] >= 1
        assert mount.counters()["wait_backend_ns"] >= 60_000_000


def test_what_was_evicted_and_is_read_again_is_told(source: str) -> None:
    with mounted(source) as mount:
        (mount.path / "large").read_bytes()
        mount.wait_for_fills()
        assert mount.counters()["refetched_bytes"] == 0
        assert run_command("evict", str(mount.path / "large")).returncode == 0
        drop_page_cache()
        assert (mount.path / "large").read_bytes() == CONTENT
        assert mount.counters()["refetched_bytes"] >= len(CONTENT)


def test_top_shows_who_reads(source: str) -> None:
    with mounted(source) as mount:
        (mount.path / "large").read_bytes()

        def look() -> dict[str, Any] | None:
            document = json.loads(run_command("top", str(mount.path), "--once", "--json", "--interval", "0.2").stdout)
            assert document["page_cache"] == "invisible to the daemon"
            return {user["pid"]: user for user in document["processes"]}.get(os.getpid())

        user = wait_until(look, "the front has told who asked")
        assert user["read_bytes"] >= len(CONTENT)
        assert user["command"]
        shown = run_command("top", str(mount.path), "--once", "--interval", "0.2")
        assert str(os.getpid()) in shown.stdout
        assert run_command("top", str(mount.path), "--json").returncode == UsageError.exit_code


# --- the log -------------------------------------------------------------------------------------------------------


def test_level_changes_in_every_process_and_outlives_a_front(source: str) -> None:
    with mounted(source, "--log-format", "json") as mount:

        def debugging() -> set[str]:
            lines = [json.loads(line) for line in mount.log().splitlines()]
            return {line["process"] for line in lines if line["message"].startswith("log level")}

        assert run_command("log", str(mount.path), "--level", "debug").returncode == 0
        wait_until(lambda: debugging() >= {"keeper", "core", "front0", "front1", "notifier"}, "all have it")
        pid = mount.status()["front_pids"][0]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: mount.status()["front_pids"][0] != pid, "the next front")
        assert (mount.path / "small").read_bytes() == CONTENT[:1000]
        assert run_command("log", str(mount.path)).returncode == UsageError.exit_code


def test_dump_shows_waiting_requests_stacks_and_tasks(bucket: Bucket, proxy: Proxy) -> None:
    bucket.put("held", CONTENT)
    with mounted_bucket(bucket, endpoint=proxy.endpoint) as mount:
        os.stat(mount.path / "held")
        proxy.set_latency(1500)
        reader = subprocess.Popen(["cat", str(mount.path / "held")], stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: mount.status()["in_flight"]["requests"], "the read waits")
            os.kill(mount.status()["keeper_pid"], signal.SIGUSR1)
            wait_until(lambda: mount.log().count("dump of this process") >= 4, "all processes have written")
        finally:
            assert reader.wait(60) == 0
        log = mount.log()
        assert f"opcode={Opcode.READ.value} " in log
        assert f"pid={reader.pid} " in log
        assert "tasks:" in log
        assert "front/worker.py" in log
        assert "state=S" in log

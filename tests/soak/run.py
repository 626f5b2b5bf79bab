"""Two mounts of one bucket under mixed load, with faults in the middle third; what every process holds is sampled.

    python -m tests.soak.run [--minutes 30] [--json FILE]      exit code 0: no error, no wrong byte, nothing lost

`data` is mounted read-only (profile training) with a cache smaller than the data set, `run` read-write; both as
services that keep /dev/fuse in systemd's descriptor store, whose part `tests.support.manager` plays.  The store is
SeaweedFS behind the proxy, which counts.  The last third is calm: what grows there, leaks.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fanoutfs.cli.client import call
from fanoutfs.errors import FanoutError
from tests.soak.load import (
    LARGE_BYTES,
    LARGE_FILES,
    SMALL_FILES,
    large_content,
    large_name,
    small_content,
    small_name,
)
from tests.soak.samples import Readers, Sample, Series, sample, series
from tests.support.manager import Manager, managed
from tests.support.mounts import run_command
from tests.support.proxy_client import Proxy, running_proxy
from tests.support.servers import Bucket, running_weed

JOBS: Final = (
    ("small reader", "data"), ("large reader", "data"), ("scanner", "data"),
    ("small reader", "run/data"), ("checkpoint writer", "run"), ("small writer", "run"),
)  # fmt: skip
"""Role and where; `run/data`: the same data set through the read-write mount."""
_ANSWER_S: Final = 60.0


@dataclass
class Service:
    """One mount and who starts it."""

    name: str
    mountpoint: Path
    cache: Path
    manager: Manager

    def status(self) -> dict[str, Any]:
        """Return the status as soon as a core answers."""
        deadline = time.monotonic() + _ANSWER_S
        while True:
            try:
                return call(self.mountpoint, "status")
            except FanoutError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def volume(self) -> Path:
        """Return the cache folder of the one volume."""
        (path,) = (self.cache / "volumes").iterdir()
        return path


@dataclass
class Soak:
    """What runs and what was seen.  slots: taken reader slots of each mount, over time."""

    services: list[Service]
    chance: random.Random
    began: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    slots: dict[str, list[int]] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def at_s(self) -> float:
        """Return the seconds since the soak began."""
        return time.monotonic() - self.began

    def look(self) -> None:
        """Sample every process of every mount."""
        for service in self.services:
            self.samples += sample(self.at_s, service.name, service.status())
            readers = Readers(service.volume())
            self.slots.setdefault(service.name, []).append(readers.count())
            readers.close()

    def disturb(self, name: str, service: Service) -> None:
        """Let one thing happen to one mount."""
        say(f"{self.at_s:6.0f} s  {service.name}: {name}")
        self.events[name] = self.events.get(name, 0) + 1
        try:
            EVENTS[name](self, service)
        except Exception as error:
            self.problems.append(f"{name} of {service.name}: {error!r}")

    def command(self, *arguments: str) -> None:
        """Run a command that must succeed."""
        done = run_command(*arguments)
        if done.returncode not in (0, 28):  # 28: `evict` says that some files are in use
            self.problems.append(f"{' '.join(arguments)}: {done.returncode} {done.stderr.strip()}")


def _kill_front(soak: Soak, service: Service) -> None:
    os.kill(soak.chance.choice(service.status()["front_pids"]), signal.SIGKILL)


def _kill_core(soak: Soak, service: Service) -> None:
    before = service.status()
    os.kill(before["core_pid"], signal.SIGKILL)
    while service.status()["core_pid"] == before["core_pid"]:
        time.sleep(0.05)


def _kill_keeper(_soak: Soak, service: Service) -> None:
    service.manager.end(signal.SIGKILL)
    service.manager.start()


def _restart(soak: Soak, service: Service) -> None:
    code = service.manager.end(signal.SIGTERM)
    if code:
        soak.problems.append(f"restart: the service ended with {code}")
    service.manager.start()


def _upgrade(soak: Soak, service: Service) -> None:
    soak.command("upgrade", str(service.mountpoint))


def _evict(soak: Soak, service: Service) -> None:
    soak.command("evict", str(service.mountpoint / ("large" if service.name == "data" else "data")))


EVENTS: Final[dict[str, Callable[[Soak, Service], None]]] = {
    "kill -9 of a front": _kill_front,
    "kill -9 of the core": _kill_core,
    "kill -9 of the keeper": _kill_keeper,
    "restart of the service": _restart,
    "upgrade": _upgrade,
    "evict": _evict,
}


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _services(bucket: Bucket, proxy: Proxy, base: Path) -> Iterator[list[Service]]:
    settings = {
        "data": (f"{bucket.url}data/", "--profile", "training", "--cache-size", "128MiB", "--metadata-ttl", "30s"),
        "run": (bucket.url, "--cache-size", "1GiB", "--upload-delay", "2s", "--metadata-ttl", "30s"),
    }
    with contextlib.ExitStack() as stack:
        services = []
        for name, (source, *options) in settings.items():
            mountpoint, cache = base / name, base / f"cache-{name}"
            mountpoint.mkdir()
            where = ("--cache-dir", str(cache), "--endpoint-url", proxy.endpoint, "--fronts", "2")
            command = ("mount", "--foreground", source, str(mountpoint), *where, *options)
            manager = stack.enter_context(managed(*command, environment={**bucket.env, "WATCHDOG_USEC": "60000000"}))
            stack.callback(subprocess.run, ["umount", "-l", str(mountpoint)], check=False, capture_output=True)
            manager.start()
            services.append(Service(name, mountpoint, cache, manager))
        yield services


def _fill(bucket: Bucket) -> None:
    for number in range(SMALL_FILES):
        bucket.put(f"data/{small_name(number)}", small_content(small_name(number)))
    for number in range(LARGE_FILES):
        bucket.put(f"data/{large_name(number)}", large_content(large_name(number), 0, LARGE_BYTES))


@contextlib.contextmanager
def _jobs(base: Path, seed: int, pace: float) -> Iterator[list[subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []
    try:
        for index, (role, place) in enumerate(JOBS):
            arguments = ["-m", "tests.soak.load", role, str(base / place), str(seed + index), str(pace)]
            job = subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            running.append(job)
            assert job.stdout is not None
            assert job.stdout.readline() == "running\n"
        yield running
    finally:
        for job in running:
            job.kill()
            job.wait()


def _disturb_and_look(soak: Soak, total_s: float, events: list[str], every_s: float) -> None:
    """Let the load run; in the middle third everything happens to it."""
    pauses = total_s / 3 / max(1, len(events))
    planned = [
        (total_s / 3 + index * pauses, name, soak.services[index % len(soak.services)])
        for index, name in enumerate(events)
    ]
    look_at = 0.0
    while soak.at_s < total_s:
        if soak.at_s >= look_at:
            soak.look()
            look_at = soak.at_s + every_s
        if planned and planned[0][0] <= soak.at_s:
            soak.disturb(*planned.pop(0)[1:])
        time.sleep(0.2)
    soak.look()


def _check_bucket(soak: Soak, bucket: Bucket, results: list[dict[str, Any]]) -> int:
    """Compare what the store holds with what the writers say; return how many objects were compared."""
    soak.command("drain", "--wait", str(soak.services[1].mountpoint))
    kept: dict[str, str] = {}
    for result in results:
        kept |= result["kept"]
    keys = bucket.keys()
    found = [key for key in keys if not key.startswith("data/") and not key.endswith("/")]
    for key in sorted(set(found) ^ set(kept)):
        soak.problems.append(f"{key}: {'is left in' if key in found else 'is missing from'} the store")
    for key in set(found) & set(kept):
        if hashlib.sha256(bucket.get(key)).hexdigest() != kept[key]:
            soak.problems.append(f"{key}: other content in the store")
    return len(kept)


def soak_it(minutes: float, pace: float, seed: int, every_s: float, rounds: int, base: Path) -> dict[str, Any]:
    """Run it all; return the report, ready for JSON."""
    with running_weed() as weed, running_proxy(weed.address) as proxy:
        bucket = weed.bucket()
        say("filling the store")
        _fill(bucket)
        with _services(bucket, proxy, base) as services:
            chance = random.Random(seed)
            events = list(EVENTS) * rounds
            chance.shuffle(events)
            soak = Soak(services, chance)
            with _jobs(base, seed, pace) as jobs:
                soak.began = time.monotonic()
                _disturb_and_look(soak, minutes * 60, events, every_s)
                results = [json.loads(job.communicate(timeout=120)[0]) for job in jobs]
            compared = _check_bucket(soak, bucket, results)
            counters = {service.name: service.status()["counters"] for service in services}
            for service in services:
                soak.command("umount", str(service.mountpoint))
                service.manager.wait()
                if "Traceback" in service.manager.log:
                    soak.problems.append(f"{service.name}: a traceback in the log\n{service.manager.log[-20_000:]}")
        requests = proxy.requests()
    return {
        "seed": seed,
        "minutes": minutes,
        "events": soak.events,
        "jobs": [{key: value for key, value in result.items() if key != "kept"} for result in results],
        "series": [dataclasses.asdict(each) for each in series(soak.samples, minutes * 60 * 0.7)],
        "curves": _curves(soak.samples),
        "reader_slots": {name: [found[0], max(found), found[-1]] for name, found in soak.slots.items()},
        "objects_compared": compared,
        "store": {"requests": len(requests), "sent_bytes": sum(each.body_bytes for each in requests)},
        "counters": {name: _shown(found) for name, found in counters.items()},
        "problems": soak.problems,
    }


def _curves(samples: list[Sample]) -> dict[str, list[tuple[int, int, float]]]:
    """Return (second, process, MiB of anonymous memory) of each role, for whoever wants to draw them."""
    curves: dict[str, list[tuple[int, int, float]]] = {}
    for each in samples:
        curves.setdefault(f"{each.mount} {each.role}", []).append((int(each.at_s), each.pid, round(each.anonymous, 1)))
    return curves


def _shown(counters: dict[str, int]) -> dict[str, int]:
    names = ("request_errors", "poison_requests", "verify_failures", "evicted_bytes", "restarts_core", "restarts_front")
    return {name: counters[name] for name in names}


def errors_of(report: dict[str, Any]) -> list[str]:
    """Return everything that went wrong."""
    errors = [f"{job['role']}: {error}" for job in report["jobs"] for error in job["errors"]]
    for name, found in report["counters"].items():
        for each in ("request_errors", "poison_requests", "verify_failures"):
            errors += [f"{name}: {each} {found[each]}"] if found[each] else []
    problems: list[str] = report["problems"]
    return errors + problems


def as_text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [f"{report['minutes']:g} minutes, seed {report['seed']}; {report['events']}", ""]
    lines += ["| job | calls | verified | written | longest wait | errors |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {job['role']} | {job['calls']:,} | {job['bytes_verified'] >> 20:,} MiB "
        f"| {job['bytes_written'] >> 20:,} MiB | {job['longest_s']:.2f} s ({job['longest']}) | {len(job['errors'])} |"
        for job in report["jobs"]
    ]
    lines += ["", "| process | how many | anonymous memory, MiB: first, most, last | slope at the end, MiB/h "]
    lines[-1] += "| descriptors: first, most, last | threads: first, most |"
    lines += ["|---|---|---|---|---|---|"]
    for each in (Series(**found) for found in report["series"]):
        lines.append(
            f"| {each.mount} {each.role} | {each.processes} | {each.first:.1f}, {each.most:.1f}, {each.last:.1f} "
            f"| {each.slope:+.2f} | {', '.join(map(str, each.descriptors))} | {', '.join(map(str, each.threads))} |"
        )
    lines += ["", f"slots of LMDB readers (first, most, last): {report['reader_slots']}"]
    lines += [f"objects in the store compared with what was written: {report['objects_compared']}"]
    lines += [f"store: {report['store']['requests']:,} requests, {report['store']['sent_bytes'] >> 20:,} MiB"]
    lines += [f"counters: {report['counters']}", "", *(errors_of(report) or ["no errors"])]
    return "\n".join(lines)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--pace", type=float, default=1.0, help="2: half the load")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--every", type=float, default=15.0, help="seconds between samples")
    parser.add_argument("--rounds", type=int, default=4, help="how often each fault is injected")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fanoutfs-soak-", dir="/var/tmp", ignore_cleanup_errors=True) as base:
        report = soak_it(options.minutes, options.pace, options.seed, options.every, options.rounds, Path(base))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    print(as_text(report))
    return 1 if errors_of(report) else 0


if __name__ == "__main__":
    sys.exit(main())

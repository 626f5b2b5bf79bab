"""Fronts and cores that are killed under writers: every answered write is there, none is carried out a second time."""

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fanoutfs.records import KIB, MIB
from tests.fault.conftest import Mounter
from tests.fault.test_kills import status_of
from tests.support.mounts import Mount, wait_until
from tests.support.servers import S3Server

KILLS = 25
WRITERS = 4
BASE_BYTES = 12 * MIB
MOST_BYTES = 16 * MIB
SIZES = (1, 100, 4 * KIB, 64 * KIB, 300_000, MIB)


class Writer(threading.Thread):
    """Changes one file in random ways and compares it with what it should be, until told to stop."""

    def __init__(self, path: Path, seed: int, content: bytes, stop: threading.Event) -> None:
        super().__init__()
        self._path = path
        self._chance = random.Random(seed)
        self._model = bytearray(content)
        self._ended = stop
        self.steps = 0
        self.failure = ""

    def run(self) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while not self._ended.is_set():
                step = self._chance.choices((self._write, self._truncate, self._sync, self._read), (14, 1, 1, 4))[0]
                step(fd)
                assert os.fstat(fd).st_size == len(self._model), "size"
                self.steps += 1
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self._compare(fd, 0, len(self._model) + 1)
        except BaseException as error:
            self.failure = f"{self._path.name} after {self.steps} steps: {error!r}"
        finally:
            os.close(fd)

    def _write(self, fd: int) -> None:
        offset = self._chance.randrange(min(len(self._model) + 1000, MOST_BYTES))
        data = self._chance.randbytes(self._chance.choice(SIZES))
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)
        self._model.extend(bytes(max(0, offset - len(self._model))))
        self._model[offset : offset + len(data)] = data

    def _truncate(self, fd: int) -> None:
        size = self._chance.randrange(len(self._model) + 5000)
        os.ftruncate(fd, size)
        self._model.extend(bytes(max(0, size - len(self._model))))
        del self._model[size:]

    def _sync(self, fd: int) -> None:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _read(self, fd: int) -> None:
        self._compare(fd, self._chance.randrange(len(self._model) + 1), self._chance.choice(SIZES))

    def _compare(self, fd: int, offset: int, size: int) -> None:
        found = b""
        while len(found) < size and (chunk := os.pread(fd, size - len(found), offset + len(found))):
            found += chunk
        assert found == self._model[offset : offset + size], f"bytes at {offset}, {size} long"


@pytest.mark.parametrize("core_share", [0.0, 0.4], ids=["fronts", "fronts-and-cores"])
def test_writes_survive_kills_and_are_carried_out_once(mount_of: Mounter, weed: S3Server, core_share: float) -> None:
    seed = 20260 + int(core_share * 10)
    chance = random.Random(seed)
    base = chance.randbytes(BASE_BYTES)
    bucket = weed.bucket()
    bucket.put("object", base)
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env)
    stop = threading.Event()
    writers = [Writer(mount.path / "object", seed, base, stop)]
    writers += [Writer(mount.path / f"new{index}", seed + index, b"", stop) for index in range(1, WRITERS)]
    for writer in writers:
        writer.start()
    try:
        for kill in range(KILLS):
            kill_one(mount, chance, core_share)
            goal = [writer.steps + 5 for writer in writers]
            wait_until(progress(writers, goal), f"writers go on after kill {kill}", 60)
    finally:
        stop.set()
        for writer in writers:
            writer.join(60)
    assert [writer.failure for writer in writers if writer.failure] == [], f"seed {seed}\n{mount.log()}"
    counters = mount.counters()
    assert counters["restarts_front"] + counters["restarts_core"] >= KILLS
    assert counters["request_errors"] == 0


def progress(writers: list[Writer], goal: list[int]) -> Callable[[], bool]:
    return lambda: all(writer.failure or writer.steps >= step for writer, step in zip(writers, goal, strict=True))


def kill_one(mount: Mount, chance: random.Random, core_share: float) -> None:
    """Kill a front or the core, and return when another one is in its place."""
    status = status_of(mount)
    victim = status["core_pid"] if chance.random() < core_share else chance.choice(status["front_pids"])
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in current(mount), f"process {victim} is replaced")


def current(mount: Mount) -> list[int]:
    status = status_of(mount)
    return [status["core_pid"], *status["front_pids"]]

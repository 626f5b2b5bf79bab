"""Readers and a writer on a mount, in a process of their own, until told to stop; they note errors and stalls.

    python -m tests.support.load DIRECTORY     < a closed stdin ends it     > one JSON line

Reads are verified, of open files and by name, and made to reach the daemon: their pages are dropped first.  A process
of its own, because one that waits for a mount nobody serves cannot be ended from inside.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHUNK = 64 << 10
_PAUSE_S = 0.005
"""Between two steps of a worker: what is tested needs processor time as well."""


def pattern(index: int) -> bytes:
    """Return the content of file number `index`."""
    return bytes((index * 7 + position) & 0xFF for position in range(256)) * 4096  # 1 MiB


class Load:
    """A running load.  files: how many `file0`… with `pattern` lie in the directory already."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.load", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "running\n"

    def stop(self) -> dict[str, Any]:
        """Return {"reads", "writes", "longest_s", "errors"}."""
        output, _ = self._process.communicate(timeout=60)
        result: dict[str, Any] = json.loads(output)
        return result

    def kill(self) -> None:
        """End it, whatever it is doing; the mount must have been ended before."""
        self._process.kill()
        self._process.wait(10)


class _Worker(threading.Thread):
    def __init__(self, step: Callable[[], None], stop: threading.Event) -> None:
        super().__init__()
        self._step = step
        self._stop_event = stop
        self.done = 0
        self.longest_s = 0.0
        self.errors: list[str] = []

    def run(self) -> None:
        """Do step after step."""
        while not self._stop_event.is_set():
            began = time.monotonic()
            try:
                self._step()
                self.done += 1
            except Exception as error:
                self.errors.append(repr(error))
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self._stop_event.wait(_PAUSE_S)


def _reader(directory: Path) -> Callable[[], None]:
    names = sorted(name for name in os.listdir(directory) if name.startswith("file"))
    contents = [pattern(int(name.removeprefix("file"))) for name in names]
    opened = [os.open(directory / name, os.O_RDONLY) for name in names]
    turn = iter(range(1 << 62))

    def step() -> None:
        number = next(turn)
        index, at = number % len(names), number * 37 % 16 * CHUNK
        os.posix_fadvise(opened[index], 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(opened[index], CHUNK, at) == contents[index][at : at + CHUNK], names[index]
        assert (directory / names[index]).read_bytes() == contents[index], names[index]
        assert not os.path.exists(directory / f"nothing{number}")
        assert names[index] in os.listdir(directory)

    return step


def _writer(directory: Path) -> Callable[[], None]:
    log = os.open(directory / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    written = bytearray()
    turn = iter(range(1 << 62))

    def step() -> None:
        number = next(turn)
        line = b"%08d\n" % number
        assert os.write(log, line) == len(line)
        written.extend(line)
        os.fsync(log)
        assert os.pread(log, len(written) + 1, 0) == written
        (directory / f"new{number}.part").write_bytes(line)
        (directory / f"new{number}.part").rename(directory / f"new{number}")
        assert (directory / f"new{number}").read_bytes() == line
        (directory / f"new{number}").unlink()

    return step


def main() -> None:
    """Run until stdin ends."""
    directory = Path(sys.argv[1])
    stop = threading.Event()
    is_writable = not os.statvfs(directory).f_flag & os.ST_RDONLY
    readers = [_Worker(_reader(directory), stop) for _ in range(2)]
    writers = [_Worker(_writer(directory), stop)] if is_writable else []
    for worker in (*readers, *writers):
        worker.start()
    print("running", flush=True)
    sys.stdin.read()
    stop.set()
    for worker in (*readers, *writers):
        worker.join()
    workers = [*readers, *writers]
    result = {
        "reads": sum(worker.done for worker in readers),
        "writes": sum(worker.done for worker in writers),
        "longest_s": max(worker.longest_s for worker in workers),
        "errors": [error for worker in workers for error in worker.errors][:20],
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

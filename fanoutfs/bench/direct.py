"""The object store without a file system: list the keys, get each, so many requests in flight, in one process.

`python -m fanoutfs.bench.direct ENDPOINT BUCKET PREFIX IN_FLIGHT`, credentials in the environment.  It says "ready",
waits for a line on stdin, works, prints one JSON object.  The client is the daemon's (obstore), called as the daemon
calls it: synchronously, in threads; an async client on one thread was no faster (4,000 objects of 16 KiB, 128 in
flight: 1,500-2,700 a second instead of 1,800-2,600, store and client on two cores).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fanoutfs.bench.data import Bucket
from fanoutfs.bench.load import LoadError
from fanoutfs.bench.scope import stop, without_interrupts


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one run did and took; seconds: listing included; cpu_s: of the client from the start of the run on."""

    files: int
    bytes_read: int
    seconds: float
    listing_s: float
    cpu_s: float


def fetch(bucket: Bucket, prefix: str, in_flight: int, deadline_s: float) -> Fetched:
    """Run the client as a process of its own, ready before its clock starts.  Raises LoadError."""
    program = [sys.executable, "-m", "fanoutfs.bench.direct"]
    process = subprocess.Popen(
        [*program, bucket.endpoint_url, bucket.name, prefix, str(in_flight)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | bucket.environment(),
        start_new_session=True,
    )
    try:
        assert process.stdout is not None  # noqa: S101  opened as a pipe
        if process.stdout.readline() != b"ready\n":
            raise LoadError("the direct client did not start")
        answer, _ = process.communicate(b"go\n", timeout=deadline_s)
        if process.returncode != 0:
            raise LoadError(f"the direct client ended with {process.returncode}")
        return Fetched(**json.loads(answer))
    except subprocess.TimeoutExpired:
        raise LoadError(f"the direct client did not finish in {deadline_s:.0f} s") from None
    finally:
        with without_interrupts():
            stop(process)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def main(arguments: Sequence[str]) -> int:
    """Wait for the word, then list and get everything below the prefix."""
    import obstore

    endpoint, name, prefix, in_flight = arguments
    environment = os.environ
    bucket = Bucket(
        endpoint,
        name,
        environment["AWS_REGION"],
        environment["AWS_ACCESS_KEY_ID"],
        environment["AWS_SECRET_ACCESS_KEY"],
    )
    store = bucket.store()

    def get(key: str) -> int:
        return len(memoryview(obstore.get(store, key).bytes()))

    with ThreadPoolExecutor(int(in_flight)) as pool:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        started, cpu_before = time.monotonic(), time.process_time()
        keys = [entry["path"] for page in obstore.list(store, prefix) for entry in page]
        listed = time.monotonic()
        size = sum(pool.map(get, keys))
        ended = time.monotonic()
    fetched = {
        "files": len(keys),
        "bytes_read": size,
        "seconds": ended - started,
        "listing_s": listed - started,
        "cpu_s": time.process_time() - cpu_before,
    }
    sys.stdout.write(json.dumps(fetched) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

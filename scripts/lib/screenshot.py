"""Draw `fanoutfs top` of a real mount: SeaweedFS behind a proxy 40 ms away, a loader, a large reader and a writer.

Only the names of the mount and of the bucket are put in place of this machine's.
"""

import dataclasses
import io
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from rich.console import Console  # noqa: E402  the path comes first
from rich.terminal_theme import MONOKAI  # noqa: E402

from fanoutfs.cli.client import call  # noqa: E402
from fanoutfs.cli.topscreen import render  # noqa: E402
from fanoutfs.cli.topview import View, compare  # noqa: E402
from tests.support.mounts import mounted  # noqa: E402
from tests.support.proxy_client import running_proxy  # noqa: E402
from tests.support.servers import running_weed  # noqa: E402

SMALL, SMALL_BYTES = 1500, 24 << 10
LARGE, LARGE_BYTES = 4, 64 << 20
INTERVAL_S = 2.0
WIDTH = 118

LOADER = """
import os, random, sys
while True:
    os.posix_fadvise(fd := os.open(f"{sys.argv[1]}/train/{random.randrange(1500):05}.jpg", 0), 0, 0, 4)
    os.read(fd, 1 << 20); os.close(fd)
"""
LARGE_READER = """
import os, random, sys
while True:
    fd = os.open(f"{sys.argv[1]}/shards/{random.randrange(4)}.tar", 0)
    os.posix_fadvise(fd, 0, 0, 4)
    while os.read(fd, 1 << 20): pass
    os.close(fd)
"""
WRITER = """
import os, sys, time
for step in range(1000):
    with open(f"{sys.argv[1]}/step-{step % 3}.pt.part", "wb") as file:
        for _ in range(24): file.write(os.urandom(1 << 20))
        file.flush(); os.fsync(file.fileno())
    os.rename(file.name, file.name[:-5]); time.sleep(0.3)
"""


def main() -> int:
    """Write the picture to the path given."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/top.svg")
    with running_weed() as weed, running_proxy(weed.address) as proxy:
        bucket = weed.bucket()
        chance = random.Random(1)
        for number in range(SMALL):
            bucket.put(f"train/{number:05}.jpg", chance.randbytes(SMALL_BYTES))
        for number in range(LARGE):
            bucket.put(f"shards/{number}.tar", chance.randbytes(LARGE_BYTES))
        proxy.set_latency(40)
        options = ("--endpoint-url", proxy.endpoint, "--cache-size", "128MiB", "--fronts", "2", "--upload-delay", "1s")
        with mounted(bucket.url, *options, env=bucket.env) as mount:
            jobs = [
                subprocess.Popen([sys.executable, "-c", job, str(mount.path)], process_group=0)
                for job in (LOADER, LOADER, LARGE_READER, WRITER)
            ]
            try:
                time.sleep(4)
                before = call(mount.path, "top")
                time.sleep(INTERVAL_S)
                view = compare(before, call(mount.path, "top"))
            finally:
                for job in jobs:
                    job.send_signal(signal.SIGKILL)
                    job.wait()
    target.write_text(draw(view), encoding="utf-8")
    return 0


def draw(view: View) -> str:
    """Return the picture, as SVG text that needs no font from elsewhere."""
    processes = [dataclasses.replace(user, cgroup="/") for user in view.processes if user.requests_per_s > 0]
    shown = dataclasses.replace(view, mountpoint="/mnt/data", source="s3://datasets", processes=processes)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(render(shown))
    text = console.export_svg(title="fanoutfs top /mnt/data", theme=MONOKAI, unique_id="top")
    text = re.sub(r"\n *@font-face \{.*?\}", "", text, flags=re.DOTALL)
    text = text.replace("Fira Code, monospace", "monospace").replace("font-family: arial", "font-family: sans-serif")
    return re.sub(r"[ \t]+\n", "\n", text)


if __name__ == "__main__":
    sys.exit(main())

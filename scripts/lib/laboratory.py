"""The object store and the witness of the benchmarks: the servers of the tests, behind the benchmarks' interface.

In scripts/ because the package must not import tests.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fanoutfs.bench.data import Bucket
from fanoutfs.bench.lab import Lab
from fanoutfs.bench.program import say
from tests.support.processes import environment
from tests.support.proxy_client import running_proxy
from tests.support.servers import ACCESS_KEY, REGION, SECRET_KEY, running_weed

BUCKET = "data"


@contextlib.contextmanager
def running_lab(scratch: Path) -> Iterator[Lab]:
    """Run SeaweedFS and a proxy in front of it, both on 127.0.0.1; `tempfile` decides where they write."""
    source = scratch / "source"
    source.mkdir()
    say("- starting SeaweedFS and the proxy that logs")
    with (
        environment({"TMPDIR": str(scratch)}),  # weed logs there
        running_weed() as server,
        running_proxy(server.address) as proxy,
    ):
        server.make_bucket(BUCKET)
        direct = Bucket(server.endpoint, BUCKET, REGION, ACCESS_KEY, SECRET_KEY)
        watched = Bucket(proxy.endpoint, BUCKET, REGION, ACCESS_KEY, SECRET_KEY)
        yield Lab(source, direct, watched, proxy, server.process.pid)

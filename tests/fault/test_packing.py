"""Files change their place in the cache under readers: nobody sees an error, no content is kept twice."""

from pathlib import Path

from fanoutfs.records import KIB
from tests.fault.children import Children
from tests.fault.test_kills import forget_pages
from tests.fault.test_space import put_files, read_passes
from tests.mount.test_packing import OWN_FIRST, SWAPPED, large_bytes, packed, reload, ruled
from tests.support.mounts import run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket


def test_readers_meet_no_error_while_files_change_their_place(
    bucket: Bucket, proxy: Proxy, tmp_path: Path, children: Children
) -> None:
    sizes = {f"own/{n}": (n + 1) * 40 * KIB for n in range(24)}
    expected = put_files(bucket, sizes)
    proxy.set_latency(20)  # so that fills are under way when files change their place
    with ruled(bucket, tmp_path, endpoint=proxy.endpoint) as mount:
        try:
            for turn in range(8):
                readers = [children.start(read_passes, mount.path, expected, 3 * turn + n, 4) for n in range(3)]
                while any(reader.is_running for reader in readers):
                    reload(mount, tmp_path, OWN_FIRST if turn % 2 else SWAPPED)
                    result = run_command("tier", "plan", "--now", str(mount.path))
                    assert result.returncode == 0, result.stderr
                children.results(readers)
            assert mount.status()["tiering"]["repacked_files"] > len(expected)
            reload(mount, tmp_path, OWN_FIRST)
            wait_until(lambda: not any(packed(mount, *expected).values()), "all have files of their own")
            for name in expected:
                forget_pages(mount.path / name)
            children.results([children.start(read_passes, mount.path, expected, 99, 1)])
            assert large_bytes(mount) == sum(sizes.values())
            assert mount.counters()["verify_failures"] == 0
        finally:
            children.end()

"""fio with `verify` over a read-only mount: sequential, random, mapped, many jobs; and it notices a wrong byte.

The jobs are those of fanoutfs/bench/fio: layout writes a checksum and its own offset into every 4 KiB, the others read.
"""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fanoutfs.bench.fio import CONTROLS, GOOD, JOBS, FioError, lay_out, run_job
from tests.mount import kernel
from tests.support.caches import drop_page_cache
from tests.support.mounts import Mount
from tests.support.servers import S3Server

SIZE_MIB = 8
DEADLINE_S = 120.0
PATTERN = "fio.0.bin"


@pytest.fixture(scope="module")
def mount(weed: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """What fio wrote, a copy with one bit changed, a copy with two blocks in each other's place."""
    source = tmp_path_factory.mktemp("fio")
    lay_out(source, SIZE_MIB)
    files = {str(path.relative_to(source)): path.read_bytes() for path in source.glob("*/fio.*.bin")}
    assert len(files) == 12
    bucket = weed.bucket()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda item: bucket.put(*item), files.items()))
    with kernel.mounted_bucket(bucket) as mounted:
        yield mounted


@pytest.mark.parametrize("job", JOBS)
def test_job_verifies_every_block(mount: Mount, job: str) -> None:
    run_job(job, mount.path / GOOD, SIZE_MIB, DEADLINE_S)
    assert mount.counters()["verify_failures"] == mount.counters()["request_errors"] == 0


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("job", JOBS)
def test_job_notices_wrong_bytes(mount: Mount, job: str, control: str) -> None:
    with pytest.raises(FioError):
        run_job(job, mount.path / control, SIZE_MIB, DEADLINE_S)


@pytest.mark.parametrize(
    ("engine", "pattern", "is_direct"),
    [("psync", "read", False), ("mmap", "randread", False), ("libaio", "randread", True)],
)
def test_eight_jobs_on_one_file_verify(mount: Mount, engine: str, pattern: str, is_direct: bool) -> None:
    drop_page_cache()
    for directory, is_right in ((GOOD, True), (CONTROLS[0], False)):
        done = subprocess.run(
            [
                "fio",
                "--name=eight",
                "--readonly",
                f"--filename={mount.path / directory / PATTERN}",
                f"--rw={pattern}",
                f"--ioengine={engine}",
                f"--direct={int(is_direct)}",
                "--iodepth=8",
                "--bs=32k",
                f"--size={SIZE_MIB}m",
                "--numjobs=8",
                "--allrandrepeat=0",
                "--verify=crc32c",
                "--verify_interval=4k",
                "--verify_fatal=1",
                "--allow_file_create=0",
            ],
            env=os.environ | {"FIO_SIZE": str(SIZE_MIB << 20)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert (done.returncode == 0) is is_right, done.stdout + done.stderr
        assert is_right or "verify" in done.stdout + done.stderr


def test_bytes_were_fetched_once_for_all_jobs(mount: Mount) -> None:
    known = sum(path.stat().st_size for path in mount.path.rglob("fio.*.bin"))
    assert known == 12 * SIZE_MIB << 20
    assert mount.counters()["backend_bytes"] <= known

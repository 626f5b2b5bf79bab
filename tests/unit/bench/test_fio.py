"""The fio jobs verify: each passes on what layout.fio wrote and fails on one wrong byte."""

import shutil
from pathlib import Path

import pytest

from fanoutfs.bench import fio

pytestmark = pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the good files and the two corrupted copies."""
    directory = tmp_path_factory.mktemp("fio")
    fio.lay_out(directory, size_mib=1)
    return directory


@pytest.mark.parametrize("job", fio.JOBS)
def test_job_passes_on_good_files(job: str, source: Path) -> None:
    assert fio.run_job(job, source / fio.GOOD, 1, 60.0) > 0


@pytest.mark.parametrize("control", fio.CONTROLS)
@pytest.mark.parametrize("job", fio.JOBS)
def test_job_fails_on_corrupted_files(job: str, control: str, source: Path) -> None:
    with pytest.raises(fio.FioError, match="verify"):
        fio.run_job(job, source / control, 1, 60.0)


def test_job_fails_on_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(fio.FioError):
        fio.run_job("sequential", tmp_path, 1, 60.0)

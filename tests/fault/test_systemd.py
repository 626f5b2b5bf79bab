"""The unit under a real systemd, which is process 1 of a namespace: see `tests.support.systemd`."""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.load import pattern
from tests.support.systemd import booted

FILES = 4


@pytest.fixture
def base() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fanoutfs-test-", dir="/var/tmp"))
    for name in ("source", "mnt", "cache"):
        (path / name).mkdir()
    for index in range(FILES):
        (path / "source" / f"file{index}").write_bytes(pattern(index))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_service_is_installed_reloaded_restarted_killed_hung_and_stopped_under_load(base: Path) -> None:
    with booted(base / "systemd.log") as systemd:
        done = systemd.run(sys.executable, "-m", "tests.support.systemd_session", str(base))
        log = base / "service.log"
        assert done.returncode == 0, f"{done.stderr}\n{log.read_text()[-8000:] if log.exists() else ''}"
    result = json.loads(done.stdout)
    print(result)
    assert result["errors"] == []
    assert result["reads"]
    assert result["writes"]
    assert list((base / "mnt").iterdir()) == []

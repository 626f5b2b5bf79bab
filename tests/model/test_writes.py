"""Thousands of steps of the writing model: a mount against ext4, ext4 against itself, and sides that are wrong.

FANOUTFS_WRITES_STEPS   steps on the mount (default 1500, about a minute; a soak asks for 50000)
FANOUTFS_MODEL_SEED     repeat a run: the number a failure printed
FANOUTFS_MODEL_SHRINK   1: let hypothesis look for a shorter failure (minutes)
"""

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test

from tests.model.side import Side
from tests.model.subjects import CACHE_SIZE, MountSubject, PlainSubject, Subject, reference_directory
from tests.model.test_reads import run_settings, steps_of
from tests.model.writes import WritesMachine
from tests.support.mounts import mounted
from tests.support.servers import Bucket

STEPS = int(os.environ.get("FANOUTFS_WRITES_STEPS", "1500"))
CONTROL_STEPS = 600


def run_model(subject: Subject, steps: int, side: Callable[[str], Side] = Side) -> Counter[str]:
    """Run so many steps and return what was done how often.  Prints how to repeat a failure."""
    number = int(os.environ.get("FANOUTFS_MODEL_SEED") or random.SystemRandom().randrange(1 << 32))
    counted: Counter[str] = Counter()
    with reference_directory() as reference:

        class Machine(WritesMachine):
            pass

        Machine.subject, Machine.reference_root, Machine.statistics, Machine.examples = subject, reference, counted, 0
        Machine.side, Machine.failure = staticmethod(side), None
        try:
            while (missing := steps - steps_of(counted)) > 0:
                run_state_machine_as_test(seed(number)(Machine), settings=run_settings(missing))
                number += 1
        except BaseException as error:
            print(f"repeat with FANOUTFS_MODEL_SEED={number} FANOUTFS_WRITES_STEPS={STEPS}")
            failure = Machine.failure
            if failure is None or isinstance(error, type(failure)):
                raise
            # Hypothesis goes through the steps again; what depends on time comes out another way, and that is all it
            # would tell.
            raise failure from None
    return counted


@pytest.mark.timeout(24 * 3600)
def test_mount_tells_what_ext4_tells_while_processes_die(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--endpoint-url", bucket.endpoint, "--metadata-ttl", "1h", "--cache-size", CACHE_SIZE)
    begun = time.monotonic()
    with mounted(bucket.url, *options, "-o", "upload_delay=1s", env=bucket.env) as mount:
        subject = MountSubject(mount, bucket)
        subject.fill_bucket()
        try:
            counted = run_model(subject, STEPS)
        except BaseException:
            print("\n".join(mount.log().splitlines()[-60:]))
            raise
        counters = mount.counters()
    with capsys.disabled():
        print(f"\nwrites: {steps_of(counted)} steps in {time.monotonic() - begun:.0f} s")
        print("  " + ", ".join(f"{name} {n}" for name, n in sorted(counted.items())))
    assert counters["request_errors"] == 0, "a request met an exception nobody expected: see the log"


# --- the model itself ------------------------------------------------------------------------------------------


def test_ext4_equals_itself(tmp_path: Path) -> None:
    counted = run_model(PlainSubject(tmp_path), CONTROL_STEPS)
    assert {"(ENOENT)", "(EEXIST)", "(ENOTDIR)", "(EISDIR)"} <= set(counted)


def test_object_of_another_client_changes_its_own_directory_only(tmp_path: Path) -> None:
    (tmp_path / "above" / "directory").mkdir(parents=True)
    for path in (tmp_path / "above", tmp_path / "above/directory"):
        os.utime(path, ns=(0, 0))
    PlainSubject(tmp_path).put("above/directory/file", b"content")
    assert (tmp_path / "above/directory/file").read_bytes() == b"content"
    assert (tmp_path / "above").stat().st_mtime_ns == 0
    assert (tmp_path / "above/directory").stat().st_mtime_ns != 0


class FlippedBit(Side):
    """Writes at offsets behind the first block arrive with a wrong bit."""

    def write_at(self, path: str, offset: int, size: int, seed: int) -> int:
        written = super().write_at(path, offset, size, seed)
        with self._opened(path, os.O_RDWR) as fd:
            os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 1]), offset)
        return written


class ForgottenMode(Side):
    """chmod is accepted and forgotten."""

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.path(path), os.stat(self.path(path)).st_mode & 0o7777)


class LostTail(Side):
    """A file that was unlinked while open loses what is written to it afterwards."""

    def handle_write(self, handle: int, offset: int, size: int, seed: int) -> int:
        is_gone = not os.fstat(self.handles[handle]).st_nlink
        return size if is_gone else super().handle_write(handle, offset, size, seed)


class StaleTime(Side):
    """A write leaves the modification time as it was."""

    def append(self, path: str, size: int, seed: int) -> int:
        before = os.stat(self.path(path))
        written = super().append(path, size, seed)
        os.utime(self.path(path), ns=(before.st_atime_ns, before.st_mtime_ns))
        return written


class CopyingRename(Side):
    """rename over an existing file keeps the old content."""

    def rename(self, path: str, target: str) -> None:
        with contextlib.suppress(OSError):
            if os.path.isfile(self.path(path)) and os.path.isfile(self.path(target)):
                os.unlink(self.path(path))
                return
        super().rename(path, target)


@pytest.mark.parametrize("side", [FlippedBit, ForgottenMode, LostTail, StaleTime, CopyingRename])
def test_wrong_side_is_noticed(tmp_path: Path, side: type[Side]) -> None:
    with pytest.raises(AssertionError):
        run_model(PlainSubject(tmp_path), 20 * CONTROL_STEPS, side)

"""Benchmarks that are interrupted."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.mounts import INTERRUPTIBLE
from tests.support.processes import die_with_parent


def interrupt_storm(
    path: Path, *options: str, number: signal.Signals = signal.SIGINT, meanwhile: Callable[[], None] = lambda: None
) -> str:
    """Begin a storm of ten minutes in a directory and send it a signal in its first round; return what it says then.

    meanwhile: called while it runs.  Fails the test unless it ends with 130 and prints no result.
    """
    command = [*INTERRUPTIBLE, "bench", "storm", str(path), "--size", "4MiB", "--seconds", "10m", *options]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl through a library loaded before the fork
    ) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("- storm, round 1"):
            assert process.poll() is None
        meanwhile()
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), errors
    return errors

"""CPU time by process."""

import os
import subprocess
import sys
from pathlib import Path

from fanoutfs.bench.cpu import ENDED, MACHINE, Meter, cpu_seconds, processes_with

SPIN = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('spun', flush=True)\nsys.stdin.read()"


def test_work_shows_under_the_process_that_did_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPIN, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        meter = Meter({"worker": [worker.pid], "idle": [os.getppid(), 1]})
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"spun\n"
        assert list(processes_with(tmp_path)) == [worker.pid]
        alive = meter.seconds()
        worker.communicate()
    assert alive["worker"] > 0.1
    assert alive[ENDED] < 0.1
    assert alive[MACHINE] > 0.1
    assert meter.seconds()[ENDED] >= 0.25  # it has ended: getrusage counts it now
    assert cpu_seconds(worker.pid) == 0.0

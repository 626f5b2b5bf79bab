"""Thin door to the benchmarks whose scripts install first: `bench.py epoch|training|write ARGUMENT...`."""

import importlib
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from laboratory import running_lab  # noqa: E402  the path comes first

if __name__ == "__main__":
    program = importlib.import_module(f"fanoutfs.bench.{sys.argv[1]}")
    raise SystemExit(program.main(sys.argv[2:], running_lab))

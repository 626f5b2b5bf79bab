"""Thin door to fanoutfs.bench.quickstart; scripts/quickstart installs first, then runs this."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from laboratory import running_lab  # noqa: E402  the path comes first

from fanoutfs.bench import quickstart  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(quickstart.main(sys.argv[1:], running_lab))

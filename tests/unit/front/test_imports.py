"""What a front must not load: 20 MB of client library, an event loop, the writer."""

import subprocess
import sys

FORBIDDEN = ("trio", "outcome", "pyfuse3", "obstore", "fanoutfs.core", "fanoutfs.backend", "fanoutfs.index.writer")


def test_front_loads_neither_trio_nor_pyfuse3_nor_obstore() -> None:
    program = f"import sys, fanoutfs.front.main; print([name for name in {FORBIDDEN!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

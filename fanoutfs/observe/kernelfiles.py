"""Small files in which the kernel tells of itself: below /proc and /sys."""

from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
SYS: Final = Path("/sys")


def read_text(path: Path) -> str:
    """Return a file's text without blanks at the ends, "" when there is none or it may not be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""

"""What the kernel's DAMON pages out unasked: memory that nobody has looked at for a while, the page cache among it.

A machine may be set up so that cold memory is given back although plenty is free (cloud hosts that lend it out do).
To a training job that is an epoch: the pages of a file that is read once in ten minutes are cold after one, so that
the "hot" epoch asks the daemon again.  /proc/vmstat does not count it.  Documentation/admin-guide/mm/damon/usage.rst
of Linux describes the files that are read here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fanoutfs.observe.kernelfiles import SYS, read_text

_ADMIN: Final = "kernel/mm/damon/admin/kdamonds"
_RECLAIM: Final = "module/damon_reclaim/parameters"
_ACTION: Final = "pageout"


def is_paging_out(sys: Path = SYS) -> bool:
    """Say whether a DAMON that runs pages cold memory out."""
    return read_text(sys / _RECLAIM / "enabled") == "Y" or any(_schemes(sys))


def paged_out_bytes(sys: Path = SYS) -> int:
    """Return how much DAMON has paged out since it was set up; 0 without one, or when this user may not ask."""
    total = int(read_text(sys / _RECLAIM / "bytes_reclaimed_regions") or 0)
    for kdamond, scheme in _schemes(sys):
        try:
            (kdamond / "state").write_text("update_schemes_stats", encoding="ascii")
        except OSError:  # not root; or it ends at this moment
            continue
        total += int(read_text(scheme / "stats" / "sz_applied") or 0)
    return total


def _schemes(sys: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the directories of each running kdamond and of each of its schemes that page out."""
    for kdamond in sorted((sys / _ADMIN).glob("[0-9]*")):
        if read_text(kdamond / "state") == "on":
            for scheme in sorted(kdamond.glob("contexts/[0-9]*/schemes/[0-9]*")):
                if read_text(scheme / "action") == _ACTION:
                    yield kdamond, scheme

"""What is measured on: facts for the report, and the page cache, which only root can drop."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fanoutfs.observe import damon

_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


def can_drop_caches() -> bool:
    """Say whether measurements with a cold page cache are possible: only root may drop it."""
    return os.access(_DROP_CACHES, os.W_OK) and os.geteuid() == 0


def drop_caches() -> None:
    """Write everything back, then drop pages, dentries and inodes of the whole machine.  Root only."""
    os.sync()  # dirty pages cannot be dropped
    _DROP_CACHES.write_text("3\n")


@dataclass(frozen=True, slots=True)
class PageLosses:
    """How pages have left this machine's cache since boot without a need: a measurement that counts on them is spoilt.

    drops: times that somebody dropped all of them.  paged_out_bytes: what DAMON took, a sign and no measure of ours.
    """

    drops: int
    paged_out_bytes: int

    def since(self, before: "PageLosses") -> str:
        """Return who took pages after `before` in words for a report, "" when nobody did."""
        said = []
        if drops := self.drops - before.drops:
            said.append(f"somebody else dropped the page cache {drops} times")
        if paged_out := self.paged_out_bytes - before.paged_out_bytes:
            said.append(f"DAMON paged out {paged_out:,} bytes")
        return " and ".join(said)


class PageWatch:
    """What became of the page cache since this was made.  Where DAMON runs, a look waits for its next one (0.5 s)."""

    def __init__(self) -> None:
        self._before = _page_losses()

    def lost(self) -> str:
        """Return who took pages in words for a report, "" when nobody did."""
        return _page_losses().since(self._before)


def _page_losses() -> PageLosses:
    lines = Path("/proc/vmstat").read_text().splitlines()
    drops = next((int(line.split()[1]) for line in lines if line.startswith("drop_pagecache ")), 0)
    return PageLosses(drops, damon.paged_out_bytes())


def facts(directory: Path) -> dict[str, str | int]:
    """Return what a reader of the numbers must know about the machine; directory: where the data lies."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": memory >> 20,
        "file_system": file_system(directory),
    }


def peer_versions() -> dict[str, str | int]:
    """Return which versions of the programs that are measured as well are installed."""
    return {
        "rclone": _first_line("rclone", "version"),
        "s3fs": _first_line("s3fs", "--version"),
        "fio": _first_line("fio", "--version"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system(directory: Path) -> str:
    """Return type and device of the file system that holds a directory."""
    best, found = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        mountpoint = fields.split(" ")[4]
        inside = str(directory).startswith(mountpoint.rstrip("/") + "/") or str(directory) == mountpoint
        if inside and len(mountpoint) >= len(best):
            best, found = mountpoint, " on ".join(rest.split(" ")[:2])
    return found


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    return (done.stdout or done.stderr).partition("\n")[0].strip()

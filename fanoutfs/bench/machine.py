"""What is measured on: facts for the report, and the page cache, which only root can drop."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Final

_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


def can_drop_caches() -> bool:
    """Say whether measurements with a cold page cache are possible: only root may drop it."""
    return os.access(_DROP_CACHES, os.W_OK) and os.geteuid() == 0


def drop_caches() -> None:
    """Write everything back, then drop pages, dentries and inodes of the whole machine.  Root only."""
    os.sync()  # dirty pages cannot be dropped
    _DROP_CACHES.write_text("3\n")


def cache_drops() -> int:
    """Return how often the page cache of this machine has been dropped since boot, by whomever.

    A measurement that counts on cached pages is spoilt when somebody else does it meanwhile.
    """
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("drop_pagecache ")), 0)


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

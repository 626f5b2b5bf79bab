"""The settings of one mount: names, units, defaults and ranges, declared once.

Everything that takes or shows a setting (command line, `-o key=value`, status, README's table) is made from
`MountConfig`'s fields, so that a setting cannot exist in one of them only.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fanoutfs.records import GIB, KIB, MIB

LOG_LEVELS: Final = ("debug", "info", "warning", "error")

DURABILITIES: Final = ("local", "remote")
OBJECT_ATTRIBUTES: Final = ("never", "lookup")

INDEFINITE: Final = float("inf")
"""`metadata_ttl_s` for a source that never changes: nothing is ever listed twice."""


def default_cache_dir() -> Path:
    """Return /var/cache/fanoutfs for root, else $XDG_CACHE_HOME/fanoutfs or ~/.cache/fanoutfs."""
    if os.geteuid() == 0:
        return Path("/var/cache/fanoutfs")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fanoutfs"


def runtime_dir() -> Path:
    """Return where control sockets live: /run/fanoutfs, $XDG_RUNTIME_DIR/fanoutfs or /tmp/fanoutfs-UID."""
    if os.geteuid() == 0:
        return Path("/run/fanoutfs")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "fanoutfs" if base else Path(f"/tmp/fanoutfs-{os.geteuid()}")  # noqa: S108 - the keeper makes it 0700


def control_socket(mountpoint: Path) -> Path:
    """Return the control socket of the mount at this (absolute, symlink-free) path."""
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    return runtime_dir() / f"{digest}.sock"


def _setting(
    default: Any,
    unit: str,
    doc: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a setting: unit is one of size, duration, count, share, flag, mode, id, text, path.

    least, most: inclusive bounds for what a user writes (code that builds a MountConfig itself is trusted).
    choices: the only texts allowed.
    """
    metadata = {"unit": unit, "doc": doc, "least": least, "most": most, "choices": choices}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class MountConfig:
    """One mount, parsed and checked.  Sizes in bytes, durations in seconds, whatever unit the user wrote."""

    source: str
    """s3://bucket/prefix, gs://, az://, http(s)://, file:///dir or memory://; no credentials in it."""
    mountpoint: Path

    cache_dir: Path = _setting(default_cache_dir, "path", "where the index and cached data live; one daemon at a time")
    cache_size: int = _setting(20 * GIB, "size", "hard cap on what the cache directory occupies", least=MIB)
    free_space_floor: int = _setting(
        512 * MIB, "size", "disk space the cache never takes: it reads through instead", least=0
    )
    metadata_ttl: float = _setting(60.0, "duration", "how long a listing is trusted, or `indefinite`", least=1)
    read_only: bool = _setting(False, "flag", "mount read-only: the kernel refuses every change")
    upload_delay: float = _setting(
        5.0, "duration", "how long a file must be left alone before it is uploaded", least=0, most=24 * 3600
    )
    upload_deadline: float = _setting(
        60.0, "duration", "longest time that a file which keeps changing waits for its upload", least=0, most=24 * 3600
    )
    durability: str = _setting(
        "local", "text", "what fsync waits for: `local` disk or `remote` object store", choices=DURABILITIES
    )
    staging_size: int = _setting(
        0, "size", "what may wait for upload in the cache before writers wait; 0B: half of cache_size", least=0
    )
    upload_requests: int = _setting(8, "count", "uploads in flight at most", least=1, most=256)
    upload_bandwidth: int = _setting(0, "size", "bytes a second that uploads take at most; 0B: no limit", least=0)
    no_upload: str = _setting(
        "*.tmp,*.part,.fuse_hidden*", "text", "names that are never uploaded: patterns, divided by commas"
    )
    object_attributes: str = _setting(
        "never",
        "text",
        "read mode, owner, times and links from the objects' metadata: `never`, or at a file's first `lookup`",
        choices=OBJECT_ATTRIBUTES,
    )
    allow_other: bool = _setting(False, "flag", "let other users in (permissions are always checked by the kernel)")
    uid: int = _setting(os.getuid, "id", "owner shown for every file")
    gid: int = _setting(os.getgid, "id", "group shown for every file")
    file_mode: int = _setting(0o644, "mode", "permission bits shown for files", most=0o777)
    dir_mode: int = _setting(0o755, "mode", "permission bits shown for directories", most=0o777)
    prefix: str = _setting("", "text", "only keys below this prefix (same as a path in the source)")
    endpoint_url: str = _setting("", "text", "S3-compatible endpoint, for example http://127.0.0.1:9000")
    region: str = _setting("", "text", "region of the bucket")
    profile: str = _setting("", "text", "profile of the AWS configuration files to take credentials from")
    small_file_size: int = _setting(
        128 * KIB, "size", "files up to this size are kept in the small-file store", least=0, most=MIB
    )
    small_cache_share: float = _setting(
        0.5, "share", "share of cache_size that small files may take (0 to 1)", least=0, most=1
    )
    fill_memory: int = _setting(256 * MIB, "size", "memory for data between the backend and the cache", least=16 * MIB)
    push_memory: int = _setting(
        256 * MIB,
        "size",
        "small files put into the page cache ahead of their reader (read-only mounts) and not known to be read yet; "
        "0: no push",
        least=0,
    )
    max_readahead: int = _setting(
        64 * MIB, "size", "how far a reader is fetched ahead, in a file or from file to file; 0B: not at all", least=0
    )
    plan_window: int = _setting(256 * MIB, "size", "how far ahead of its reader an announced order is fetched", least=0)
    requests: int = _setting(128, "count", "backend requests in flight at most", least=1, most=1024)
    fronts: int = _setting(0, "count", "data-plane processes; 0: one per core, at least 2, at most 8", least=0, most=16)
    op_timeout: float = _setting(
        25.0, "duration", "longest time a request may wait for the backend, then EIO", least=1, most=3600
    )
    import_source: bool = _setting(
        False, "flag", "import the whole source once the mount answers (also: --import); mount does not wait for it"
    )
    foreground: bool = _setting(False, "flag", "stay in the foreground and log to stderr")
    log_file: Path | None = _setting(
        None, "path", "where a background daemon logs; default: fanoutfs.log in the volume's cache"
    )
    log_level: str = _setting("info", "text", "debug, info, warning or error", choices=LOG_LEVELS)

    def arena_bytes(self) -> int:
        """Return the half of `fill_memory` that is shared with the fronts; the other bounds what is on its way."""
        return self.fill_memory // 2

    def has_push(self) -> bool:
        """Tell whether small files are put into the page cache ahead of their readers.

        On read-only mounts only: the kernel lets a push replace pages that were just written, and nobody could tell
        (fuse_notify_store of 6.18 overwrites pages that are there, dirty or not).
        """
        return self.read_only and self.push_memory > 0

    def staging_bytes(self) -> int:
        """Return how much may wait for upload before writers wait; never more than the cache may hold."""
        return min(self.staging_size or self.cache_size // 2, self.cache_size)

    def no_upload_patterns(self) -> tuple[str, ...]:
        """Return the patterns of names that are never uploaded."""
        return tuple(pattern.strip() for pattern in self.no_upload.split(",") if pattern.strip())

    def front_count(self) -> int:
        """Return how many fronts to start."""
        return self.fronts or min(8, max(2, os.cpu_count() or 2))

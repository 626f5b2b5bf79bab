"""The settings of one mount: names, units, defaults and ranges, declared once.

Everything that takes or shows a setting (command line, `-o key=value`, configuration files, README's table) is made
from `MountConfig`'s fields, so that a setting cannot exist in one of them only.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fanoutfs.config.directories import default_cache_dir
from fanoutfs.config.profiles import PROFILES
from fanoutfs.errors import UsageError
from fanoutfs.eviction import CHOICE_NAMES
from fanoutfs.observe.derived import DEFAULT_PRICES, Prices, parse_prices
from fanoutfs.records import GIB, KIB, MIB, SMALL_FILE_MAX_BYTES

if TYPE_CHECKING:  # few mounts have any
    from fanoutfs.config.policies import Policy

LOG_LEVELS: Final = ("debug", "info", "warning", "error")

LOG_FORMATS: Final = ("text", "json")
DURABILITIES: Final = ("local", "remote")
OBJECT_ATTRIBUTES: Final = ("never", "lookup")
RESTORE_SPEEDS: Final = ("Standard", "Expedited", "Bulk")
"""S3's words for how fast an archived object is restored."""


def _setting(
    default: Any,
    unit: str,
    doc: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a setting: unit is one of size, duration, count, share, flag, mode, id, text, path, disks.

    least, most: inclusive bounds for what a user writes (code that builds a MountConfig itself is trusted).
    choices: the only texts allowed.
    """
    metadata = {"unit": unit, "doc": doc, "least": least, "most": most, "choices": choices}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class DiskDirectory:
    """A further cache directory, on a disk of its own.  limit_bytes: what it may hold at most; 0: what there is."""

    path: Path
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MountConfig:
    """One mount, parsed and checked.  Sizes in bytes, durations in seconds, whatever unit the user wrote."""

    source: str
    """s3://bucket/prefix, gs://, az://, http(s)://, file:///dir or memory://; no credentials in it."""
    mountpoint: Path

    profile: str = _setting(
        "", "text", "settings for a kind of work: `training`, `serving` or `checkpoint`", choices=("", *PROFILES)
    )
    cache_dir: Path = _setting(default_cache_dir, "path", "where the index and cached data live; one daemon at a time")
    cache_disks: tuple[DiskDirectory, ...] = _setting(
        (),
        "disks",
        "further directories for parts of large files, each on a disk of its own: DIR[=SIZE], divided by colons "
        "(also: --cache-dir DIR:DIR, the first being the one above)",
    )
    cache_size: int = _setting(20 * GIB, "size", "hard cap on the cache, all its directories together", least=MIB)
    free_space_floor: int = _setting(
        512 * MIB, "size", "disk space the cache never takes, of each of its disks: it reads through instead", least=0
    )
    free_inode_floor: int = _setting(
        0,
        "count",
        "files that the disk must have room for, below that whole files are evicted; 0: 1000, or a tenth of all",
        least=0,
    )
    high_watermark: float = _setting(
        1.0,
        "share",
        "share of cache_size above which eviction begins in the background; 1: only when room is needed",
        least=0.1,
        most=1,
    )
    low_watermark: float = _setting(
        0.9, "share", "share of cache_size down to which eviction in the background goes", least=0, most=1
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
    fetch_bandwidth: int = _setting(
        0, "size", "bytes a second that is fetched at most for what policies pin; 0B: no limit", least=0
    )
    no_upload: str = _setting(
        "*.tmp,*.part,.fuse_hidden*", "text", "names that are never uploaded: patterns, divided by commas"
    )
    policy_file: Path | None = _setting(
        None,
        "path",
        "TOML file with `[[policy]]` tables: what is uploaded, evicted, pinned, kept local, and stored how",
    )
    object_attributes: str = _setting(
        "never",
        "text",
        "read mode, owner, times and links from the objects' metadata: `never`, or at a file's first `lookup`",
        choices=OBJECT_ATTRIBUTES,
    )
    allow_other: bool = _setting(False, "flag", "let other users in (permissions are always checked by the kernel)")
    noexec: bool = _setting(False, "flag", "no program in the mount can be started")
    uid: int = _setting(os.getuid, "id", "owner shown for every file")
    gid: int = _setting(os.getgid, "id", "group shown for every file")
    file_mode: int = _setting(0o644, "mode", "permission bits shown for files", most=0o777)
    dir_mode: int = _setting(0o755, "mode", "permission bits shown for directories", most=0o777)
    prefix: str = _setting("", "text", "only keys below this prefix (same as a path in the source)")
    endpoint_url: str = _setting("", "text", "S3-compatible endpoint, for example http://127.0.0.1:9000")
    region: str = _setting("", "text", "region of the bucket")
    aws_profile: str = _setting("", "text", "profile of the AWS configuration files to take credentials from")
    small_file_size: int = _setting(
        128 * KIB, "size", "files up to this size are kept in the small-file store", least=0, most=SMALL_FILE_MAX_BYTES
    )
    small_cache_share: float = _setting(
        0.5,
        "share",
        "share of cache_size that small files keep when large ones want it (0 to 1); beyond it they take what is free",
        least=0,
        most=1,
    )
    eviction: str = _setting(
        "learnt",
        "text",
        "what goes first: `learnt`, what promises the fewest hits; to compare with: `lru`, `clock`, `2-random`",
        choices=CHOICE_NAMES,
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
    prices: str = _setting(
        DEFAULT_PRICES,
        "text",
        "what the store charges for 1,000 requests of a kind and for each GiB fetched: `stats` shows costs by it",
    )
    metrics_address: str = _setting(
        "", "text", "serve metrics for Prometheus at HOST:PORT, for example 127.0.0.1:9567; empty: not at all"
    )
    metrics_file: Path | None = _setting(
        None, "path", "write metrics to this file every 15 s, for the node exporter's textfile collector (NAME.prom)"
    )
    foreground: bool = _setting(False, "flag", "stay in the foreground and log to stderr")
    log_file: Path | None = _setting(
        None, "path", "where a background daemon logs; default: fanoutfs.log in the volume's cache"
    )
    log_level: str = _setting("info", "text", "debug, info, warning or error", choices=LOG_LEVELS)
    log_format: str = _setting("text", "text", "`text`, or `json`: one object a line", choices=LOG_FORMATS)
    slow_request: float = _setting(
        1.0, "duration", "requests that take so long are logged with what they waited for; 0s: none", least=0
    )
    hang_timeout: float = _setting(
        20.0,
        "duration",
        "a process of the daemon that does nothing for so long is replaced (slow stores and disks do not count); "
        "0s: never, for debuggers; else 2 s at least",
        least=0,
    )
    policies: "tuple[Policy, ...]" = ()
    """What `policy_file` said when the mount began; in order, the first that matches decides."""

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

    def watermarks(self) -> tuple[int, int]:
        """Return the high and the low watermark in bytes; the low one is never above the high one."""
        low = min(self.low_watermark, self.high_watermark)
        return int(self.cache_size * self.high_watermark), int(self.cache_size * low)

    def no_upload_patterns(self) -> tuple[str, ...]:
        """Return the patterns of names that are never uploaded."""
        return tuple(pattern.strip() for pattern in self.no_upload.split(",") if pattern.strip())

    def price_table(self) -> Prices:
        """Return `prices`, parsed.  Raises UsageError."""
        return parse_prices(self.prices)

    def metrics_endpoint(self) -> tuple[str, int] | None:
        """Return (host, port) of `metrics_address`, None when it is empty.  Raises UsageError."""
        if not self.metrics_address:
            return None
        host, _, port = self.metrics_address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UsageError(f"metrics_address: `{self.metrics_address}`: write HOST:PORT, for example 127.0.0.1:9567")
        return host.strip("[]"), int(port)

    def front_count(self) -> int:
        """Return how many fronts to start."""
        return self.fronts or min(8, max(2, os.cpu_count() or 2))

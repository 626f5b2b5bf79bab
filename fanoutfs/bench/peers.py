"""What is compared: the same files through ext4, a plain pyfuse3 pass-through, rclone, s3fs and fanoutfs.

A peer's `mounted` is a context manager that yields the directory where the files are, with nothing cached by the peer
(the page cache is the caller's business), and leaves no mount, process or file behind.  The directory lies as deep as
the source does: a path walk costs by the component.  It raises PeerError when the
peer cannot run here; a benchmark shows the reason instead of numbers.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from fanoutfs.bench.data import Bucket
from fanoutfs.bench.scope import PeerError, mounting, scratch_directory


class Peer(Protocol):
    """One way to reach the files."""

    @property
    def name(self) -> str:
        """Name in tables."""
        ...

    @property
    def description(self) -> str:
        """The settings it runs with, for the report."""
        ...

    def mounted(self) -> AbstractContextManager[Path]:
        """Mount it; see the module."""
        ...


@dataclass(frozen=True, slots=True)
class Ext4:
    """The directory itself."""

    source: Path
    name: str = "ext4"
    description: str = "the source directory, no FUSE (the file system is named above)"

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """Yield the directory."""
        yield self.source


@dataclass(frozen=True, slots=True)
class Passthrough:
    """fanoutfs.bench.passthrough over the directory."""

    source: Path
    name: str = "passthrough"
    description: str = (
        "plain pyfuse3 over the source directory: OPEN, READ, RELEASE answered; keep_cache, endless timeouts"
    )
    flags: tuple[str, ...] = ()

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount it."""
        with _room(self.name) as room:
            program = [sys.executable, "-m", "fanoutfs.bench.passthrough", *self.flags]
            arguments = [*program, str(self.source), str(room.mountpoint)]
            with mounting(arguments, room.mountpoint, room.log) as mountpoint:
                yield mountpoint


def passthrough_as_example(source: Path) -> Passthrough:
    """Return the pass-through with the settings of pyfuse3's published example: what an untuned file system pays."""
    return Passthrough(
        source,
        "passthrough-as-example",
        "the same, set as pyfuse3's examples/passthroughfs.py is: entry and attribute timeouts 0, no keep_cache",
        ("--as-example",),
    )


@dataclass(frozen=True, slots=True)
class Rclone:
    """`rclone mount` with the flags that suit it best for reading a data set that does not change."""

    bucket: Bucket
    flags: tuple[str, ...] = (
        "--read-only",
        "--vfs-cache-mode=full",
        "--vfs-cache-max-size=100G",
        "--vfs-cache-max-age=24h",
        "--vfs-read-ahead=256M",
        "--vfs-read-chunk-size=64M",
        "--vfs-fast-fingerprint",
        "--buffer-size=64M",
        "--max-read-ahead=1M",
        "--dir-cache-time=24h",
        "--attr-timeout=24h",
        "--poll-interval=0",
        "--no-modtime",
        "--no-checksum",
        "--use-server-modtime",
    )
    name: str = "rclone"

    @property
    def description(self) -> str:
        """The flags."""
        return "rclone mount " + " ".join(self.flags)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount it; credentials go through the environment, not the argument list."""
        program = find_program("rclone")
        with _room(self.name) as room:
            settings = {
                "TYPE": "s3",
                "PROVIDER": "Other",
                "ENDPOINT": self.bucket.endpoint_url,
                "REGION": self.bucket.region,
                "ACCESS_KEY_ID": self.bucket.access_key,
                "SECRET_ACCESS_KEY": self.bucket.secret_key,
                "FORCE_PATH_STYLE": "true",
            }
            environment = _clean_environment() | {
                f"RCLONE_CONFIG_BENCH_{name}": value for name, value in settings.items()
            }
            (room.private / "rclone.conf").touch()
            environment["RCLONE_CONFIG"] = str(room.private / "rclone.conf")
            source = f"bench:{self.bucket.name}"
            arguments = [
                program,
                "mount",
                source,
                str(room.mountpoint),
                f"--cache-dir={room.private / 'cache'}",
                *self.flags,
            ]
            with mounting(arguments, room.mountpoint, room.log, environment) as mountpoint:
                yield mountpoint


@dataclass(frozen=True, slots=True)
class S3fs:
    """`s3fs` with a local cache, parallel downloads and kernel caching."""

    bucket: Bucket
    options: tuple[str, ...] = (
        "ro",
        "use_path_request_style",
        "kernel_cache",
        "parallel_count=8",
        "multipart_size=8",
        "max_stat_cache_size=200000",
        "stat_cache_expire=86400",
        "enable_noobj_cache",
        "complement_stat",
        "umask=0022",
    )
    name: str = "s3fs"

    @property
    def description(self) -> str:
        """The options."""
        return "s3fs -o use_cache=DIR," + ",".join(self.options)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount it; it wants its credentials in a file."""
        program = find_program("s3fs")
        with _room(self.name) as room:
            password = room.private / "password"
            password.touch(mode=0o600)
            password.write_text(f"{self.bucket.access_key}:{self.bucket.secret_key}\n")
            (room.private / "cache").mkdir()
            (room.private / "tmp").mkdir()
            own = (
                f"url={self.bucket.endpoint_url}",
                f"endpoint={self.bucket.region}",
                f"passwd_file={password}",
                f"use_cache={room.private / 'cache'}",
                f"tmpdir={room.private / 'tmp'}",
            )
            options = [part for option in (*own, *self.options) for part in ("-o", option)]
            arguments = [program, self.bucket.name, str(room.mountpoint), "-f", *options]
            with mounting(arguments, room.mountpoint, room.log, _clean_environment()) as mountpoint:
                yield mountpoint


@dataclass(frozen=True, slots=True)
class Fanoutfs:
    """fanoutfs in the foreground, so that its processes are ours to end."""

    bucket: Bucket
    settings: tuple[str, ...] = ("--cache-size=100GiB", "--metadata-ttl=indefinite", "--read-only")
    name: str = "fanoutfs"
    log: Path | None = field(default=None)
    """Where to keep the daemon's log; None: gone with the mount."""
    cache: Path | None = field(default=None)
    """A cache directory that outlives the mount, made if it does not exist; None: a new one, gone with the mount."""

    @property
    def description(self) -> str:
        """The options."""
        return "fanoutfs mount " + " ".join(self.settings)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount it, with an empty cache unless there is one that lasts."""
        with _room(self.name) as room:
            cache = self.cache or room.private / "cache"
            cache.mkdir(mode=0o700, exist_ok=True)
            arguments = [
                *(sys.executable, "-m", "fanoutfs", "mount", f"s3://{self.bucket.name}", str(room.mountpoint)),
                *("--foreground", f"--cache-dir={cache}"),
                *(f"--endpoint-url={self.bucket.endpoint_url}", f"--region={self.bucket.region}", *self.settings),
            ]
            environment = _clean_environment() | self.bucket.environment()
            log = self.log or room.log
            with mounting(arguments, room.mountpoint, log, environment) as mountpoint:
                yield mountpoint


_PACKAGES: Final = {"rclone": "rclone", "s3fs": "s3fs", "fio": "fio", "fusermount3": "fuse3"}


def find_program(name: str) -> str:
    """Return the path of a program, or raise PeerError with the way to install it."""
    found = shutil.which(name)
    if found is None:
        raise PeerError(f"{name} is not installed (apt-get install {_PACKAGES.get(name, name)})")
    return found


@contextlib.contextmanager
def start_peers(peers: Sequence[Peer]) -> Iterator[tuple[dict[str, Path], dict[str, str]]]:
    """Mount all that can run; yield (name -> directory, name -> reason why not)."""
    with contextlib.ExitStack() as scope:
        places: dict[str, Path] = {}
        reasons: dict[str, str] = {}
        for peer in peers:
            try:
                places[peer.name] = scope.enter_context(peer.mounted())
            except PeerError as error:
                reasons[peer.name] = f"not run: {error}"
        yield places, reasons


def _clean_environment() -> dict[str, str]:
    """Return the environment without the user's own AWS settings (rclone 1.60 does not start with AWS_CA_BUNDLE)."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}


@dataclass(frozen=True, slots=True)
class _Room:
    """Where one mount lives: beside the source (scope.temporary_files_in), so that paths are equally deep."""

    mountpoint: Path
    private: Path

    @property
    def log(self) -> Path:
        """Where its program may write."""
        return self.private / "log"


@contextlib.contextmanager
def _room(name: str) -> Iterator[_Room]:
    parent = Path(tempfile.gettempdir())
    with scratch_directory(parent, f"{name}-") as mountpoint, scratch_directory(parent, f"{name}-") as private:
        yield _Room(mountpoint, private)


def describe(peers: Sequence[Peer]) -> Iterator[str]:
    """Yield one line per peer for the report."""
    for peer in peers:
        yield f"{peer.name}: {peer.description}"

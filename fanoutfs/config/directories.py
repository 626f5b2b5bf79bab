"""Where things lie when nobody says: the cache, configurations, control sockets.  Loaded by every command."""

import hashlib
import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Return /var/cache/fanoutfs for root, else $XDG_CACHE_HOME/fanoutfs or ~/.cache/fanoutfs."""
    if os.geteuid() == 0:
        return Path("/var/cache/fanoutfs")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fanoutfs"


def config_dirs() -> tuple[Path, ...]:
    """Return where NAME.toml is looked for, in this order: ordinary users may have their own."""
    system = Path("/etc/fanoutfs")
    if os.geteuid() == 0:
        return (system,)
    return (Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "fanoutfs", system)


def runtime_dir() -> Path:
    """Return where control sockets live: /run/fanoutfs, $XDG_RUNTIME_DIR/fanoutfs or /tmp/fanoutfs-UID."""
    if os.geteuid() == 0:
        return Path("/run/fanoutfs")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "fanoutfs" if base else Path(f"/tmp/fanoutfs-{os.geteuid()}")  # noqa: S108 - the keeper makes it 0700


def other_runtime_dirs() -> tuple[Path, ...]:
    """Return where sockets of this user's daemons may be as well: one was mounted with $XDG_RUNTIME_DIR, or without."""
    uid = os.geteuid()
    known = (Path(f"/run/user/{uid}/fanoutfs"), Path(f"/tmp/fanoutfs-{uid}"))  # noqa: S108 - peers are checked
    return () if uid == 0 else tuple(path for path in known if path != runtime_dir())


def control_socket(mountpoint: Path) -> Path:
    """Return the control socket of the mount at this (absolute, symlink-free) path."""
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    return runtime_dir() / f"{digest}.sock"


def keeper_socket(mountpoint: Path) -> Path:
    """Return the socket of the keeper itself, beside that of the core."""
    return control_socket(mountpoint).with_suffix(".keeper")

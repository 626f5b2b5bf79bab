"""From the words of a user to a `MountConfig`: option names, synonyms of other tools, units, limits, contradictions.

Runs in the command line, before any daemon exists.  Everything a user can get wrong is a UsageError of one line that
names the option and what to write instead.

Options are a mapping from name to text.  A name is a field of MountConfig, spelled with `-` or `_`, or a synonym.
"""

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from fanoutfs.config import units
from fanoutfs.config.schema import MountConfig
from fanoutfs.config.source import parse_source
from fanoutfs.errors import UsageError

SETTINGS: Final = {field.name: field for field in dataclasses.fields(MountConfig) if "unit" in field.metadata}
"""Every setting of a mount by name; metadata as declared in `schema`."""

# What users of other tools write, only where it means the same.  `{}` is what they wrote; a unit behind it is the unit
# the other tool counts in when the user writes none.
SYNONYMS: Final[Mapping[str, tuple[str, str]]] = {
    # mountpoint-s3
    "cache": ("cache_dir", "{}"),
    "max_cache_size": ("cache_size", "{}MiB"),
    # JuiceFS
    "buffer_size": ("fill_memory", "{}MiB"),
    "max_downloads": ("requests", "{}"),
    "log": ("log_file", "{}"),
    # gcsfuse
    "file_cache_max_size_mb": ("cache_size", "{}MiB"),
    "metadata_cache_ttl_secs": ("metadata_ttl", "{}s"),
    "only_dir": ("prefix", "{}"),
    "custom_endpoint": ("endpoint_url", "{}"),
    # s3fs
    "use_cache": ("cache_dir", "{}"),
    "ensure_diskfree": ("free_space_floor", "{}MiB"),
    "url": ("endpoint_url", "{}"),
    # rclone mount
    "vfs_cache_max_size": ("cache_size", "{}"),
    "vfs_cache_min_free_space": ("free_space_floor", "{}"),
    "dir_cache_time": ("metadata_ttl", "{}"),
    # mount(8)
    "ro": ("read_only", "{}"),
}

# Options of mount(8) and systemd that reach a mount helper and mean nothing to it, or what fanoutfs does anyway.
# (x-* as well.)  noexec is not among them: it would be a promise.
IGNORED: Final = frozenset(
    ("_netdev", "nofail", "defaults", "rw", "async", "auto", "noauto", "noatime", "relatime", "nodiratime")
    + ("user", "users", "nouser", "nosuid", "nodev", "suid", "dev", "exec", "default_permissions")
)


def parse_mount_options(text: str) -> dict[str, str]:
    """Split `key=value,flag,...`; a flag becomes "true", `\\,` is a comma inside a value, the last of several wins."""
    options: dict[str, str] = {}
    for word in _split(text):
        key, equals, value = word.partition("=")
        key = _canonical(key)
        if not key:
            if equals:
                raise UsageError(f"-o: `{word}` has no name before the =")
            continue
        if key in IGNORED or key.startswith(("x_", "comment")):
            continue
        options[key] = value if equals else "true"
    return options


def build_config(source: str, mountpoint: Path, options: Mapping[str, str]) -> MountConfig:
    """Return the checked settings; UsageError names the option, what is wrong and the nearest known name.

    mountpoint: absolute; that it can be mounted on is checked elsewhere (it means touching it).
    Relative paths are made absolute here, because a daemon changes its directory.
    """
    values: dict[str, Any] = {}
    for name, text in options.items():
        key, translated = _translate(_canonical(name), text)
        values[key] = _parse(name, key, translated)
    config = MountConfig(source=source, mountpoint=mountpoint, **values)
    check_overlaps(config)
    return config


def check_overlaps(config: MountConfig) -> None:
    """Refuse a cache, log or source directory that the mount would hide or that would contain the mount."""
    mountpoint = config.mountpoint
    for name, path in (("cache_dir", config.cache_dir), ("log_file", config.log_file)):
        if path is not None and path.is_relative_to(mountpoint):
            raise UsageError(f"{_option(name)}: {path} would be hidden below the mountpoint")
    if mountpoint.is_relative_to(config.cache_dir):
        raise UsageError(f"the mountpoint {mountpoint} lies inside the cache directory {config.cache_dir}")
    source = parse_source(config.source, config.prefix)
    if source.scheme == "file":
        directory = Path(source.root or "/")
        if directory.is_relative_to(mountpoint) or mountpoint.is_relative_to(directory):
            # The daemon would wait for itself.
            raise UsageError(f"the source {config.source} and the mountpoint {mountpoint} lie inside each other")
        if config.cache_dir.is_relative_to(directory):
            # Reading the source through the mount would grow the source.
            raise UsageError(f"the cache directory {config.cache_dir} lies inside the source {config.source}")


def show_default(name: str) -> str:
    """Return a setting's default as a user would write it; "" for off, empty and unset."""
    field = SETTINGS[name]
    value: Any = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    match field.metadata["unit"]:
        case "size":
            return units.show_size(value)
        case "duration":
            return units.show_duration(value)
        case "mode":
            return f"{value:04o}"
        case "flag":
            return "on" if value else ""
        case _:
            return "" if value is None else str(value)


def _split(text: str) -> list[str]:
    words, word, escaped = [], "", False
    for character in text:
        if escaped:
            word += character if character in ",\\" else "\\" + character
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == ",":
            words.append(word)
            word = ""
        else:
            word += character
    return [*words, word + ("\\" if escaped else "")]


def _canonical(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _translate(key: str, text: str) -> tuple[str, str]:
    """Return the setting a name stands for and the text in its own units."""
    if key in SETTINGS:
        return key, text
    if key not in SYNONYMS:
        near = difflib.get_close_matches(key, [*SETTINGS, *SYNONYMS], n=1, cutoff=0.7)
        hint = f"did you mean {_option(near[0])}?" if near else "`fanoutfs mount --help` lists all"
        raise UsageError(f"unknown option {_option(key)}: {hint}")
    setting, pattern = SYNONYMS[key]
    if key == "metadata_cache_ttl_secs" and text.strip() == "-1":
        return setting, "indefinite"  # gcsfuse's way to say it
    # A unit of the other tool only completes a bare number: `--max-cache-size 20GiB` means what it says.
    return setting, pattern.format(text) if text.strip().isdecimal() else text


def _parse(name: str, key: str, text: str) -> Any:
    """Return the value of one setting; `name` is what the user called it."""
    metadata = SETTINGS[key].metadata
    unit = metadata["unit"]
    try:
        if not text and unit != "text":
            raise UsageError("needs a value")
        value = _PARSERS["uid" if key == "uid" else "gid" if key == "gid" else unit](text)
        _check_limits(key, value)
        _check_text(key, value)
    except UsageError as error:
        raise UsageError(f"{_option(name)}: {error}") from None
    return value


def _check_limits(key: str, value: Any) -> None:
    metadata = SETTINGS[key].metadata
    least, most, choices = metadata["least"], metadata["most"], metadata["choices"]
    if least is not None and value < least:
        raise UsageError(f"at least {_show(key, least)}, not {_show(key, value)}")
    if most is not None and value > most:
        raise UsageError(f"at most {_show(key, most)}, not {_show(key, value)}")
    if choices and value not in choices:
        raise UsageError(f"`{value}` is not one of {', '.join(choices)}")


def _check_text(key: str, value: Any) -> None:
    if key == "endpoint_url" and value:
        scheme, _, rest = value.partition("://")
        if scheme not in ("http", "https") or not rest:
            raise UsageError(f"`{value}` is no URL: write for example http://127.0.0.1:9000")
        if "@" in rest or "?" in rest:
            raise UsageError("names a server only; credentials come from the environment, a profile or a role")
    if key == "prefix" and value.startswith("/"):
        raise UsageError(f"keys do not start with a slash: write `{value.lstrip('/')}`")


def _show(key: str, value: float) -> str:
    match SETTINGS[key].metadata["unit"]:
        case "size":
            return units.show_size(value)
        case "duration":
            return units.show_duration(value)
        case "mode":
            return f"{int(value):04o}"
        case _:
            return f"{value:g}"


def _parse_text(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise UsageError("control characters are not allowed")
    return text


def _parse_path(text: str) -> Path:
    return Path(os.path.abspath(_parse_text(text)))


_PARSERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "size": units.parse_size,
    "duration": units.parse_duration,
    "count": units.parse_count,
    "share": units.parse_share,
    "flag": units.parse_flag,
    "mode": units.parse_mode,
    "uid": units.parse_uid,
    "gid": units.parse_gid,
    "text": _parse_text,
    "path": _parse_path,
}

"""From the words of a user to the value of a setting: names, synonyms of other tools, units, limits, contradictions.

Runs in the command line, before any daemon exists.  Everything a user can get wrong is a UsageError of one line that
names the option (or variable, or line of a file) and what to write instead.  `layers` puts together who said what.

A name is a field of MountConfig, spelled with `-` or `_`, or a synonym.
"""

import dataclasses
import enum
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fanoutfs.config import units
from fanoutfs.config.nearest import nearest
from fanoutfs.config.schema import DiskDirectory, MountConfig
from fanoutfs.config.source import parse_source
from fanoutfs.errors import UsageError
from fanoutfs.records import PART_BYTES

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
    # the name of the command that does it; Python keeps the word for itself
    "import": ("import_source", "{}"),
    # mount(8)
    "ro": ("read_only", "{}"),
}

# Options of mount(8) and systemd that reach a mount helper and mean nothing to it, or what fanoutfs does anyway.
# (x-* as well.)  `sync` is not among them: it would be a promise.  `noexec` is a setting.
IGNORED: Final = frozenset(
    ("_netdev", "nofail", "defaults", "rw", "async", "auto", "noauto", "noatime", "relatime", "nodiratime")
    + ("strictatime", "norelatime", "iversion", "noiversion", "symfollow")
    + ("owner", "group", "lazytime", "nolazytime", "nostrictatime", "diratime", "nomand", "silent", "loud")
    + ("user", "users", "nouser", "nosuid", "nodev", "suid", "dev", "exec", "default_permissions")
)


class Spelling(enum.Enum):
    """How a setting's name is written where somebody wrote it."""

    FLAG = enum.auto()
    VARIABLE = enum.auto()
    KEY = enum.auto()

    def spell(self, name: str) -> str:
        """Return `--cache-size`, `FANOUTFS_CACHE_SIZE` or `cache_size`."""
        match self:
            case Spelling.FLAG:
                return _option(name)
            case Spelling.VARIABLE:
                return f"FANOUTFS_{name.upper()}"
            case Spelling.KEY:
                return name


@dataclass(frozen=True, slots=True)
class Given:
    """What somebody wrote for a setting.  where: FILE:LINE, or "" where the name says it."""

    name: str
    text: str
    spelling: Spelling
    where: str = ""

    @property
    def label(self) -> str:
        """Return what an error begins with."""
        name = self.spelling.spell(self.name)
        return f"{self.where}: {name}" if self.where else name


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


def parse_given(given: Given) -> tuple[str, Any]:
    """Return the setting's name and its value.  Raises UsageError."""
    key, text = _translate(given)
    try:
        return key, _parse(key, text)
    except UsageError as error:
        raise UsageError(f"{given.label}: {error}") from None


def expand(given: Given) -> list[Given]:
    """Return what is meant by several cache directories in one, as JuiceFS has it: the first, and further ones.

    Raises UsageError.
    """
    if ":" not in given.text or setting_of(given) != "cache_dir":
        return [given]
    first, _, further = given.text.partition(":")
    if not further:
        raise UsageError(f"{given.label}: needs a value behind the colon")
    return [replace(given, text=first), replace(given, name="cache_disks", text=further)]


def setting_of(given: Given) -> str:
    """Return the name of the setting that is meant.  Raises UsageError with the nearest known one."""
    return _translate(given)[0]


def check_overlaps(config: MountConfig) -> None:
    """Refuse a cache, log or source directory that the mount would hide or that would contain the mount."""
    mountpoint = config.mountpoint
    disks = [("cache_disks", disk.path) for disk in config.cache_disks]
    for name, path in (("cache_dir", config.cache_dir), ("log_file", config.log_file), *disks):
        if path is not None and path.is_relative_to(mountpoint):
            raise UsageError(f"{_option(name)}: {path} would be hidden below the mountpoint")
    caches = [config.cache_dir, *(path for _name, path in disks)]
    for at, path in enumerate(caches):
        if mountpoint.is_relative_to(path):
            raise UsageError(f"the mountpoint {mountpoint} lies inside the cache directory {path}")
        for other in caches[:at]:
            if path.is_relative_to(other) or other.is_relative_to(path):
                raise UsageError(f"the cache directories {other} and {path} lie inside each other")
    source = parse_source(config.source, config.prefix)
    if source.scheme == "file":
        directory = Path(source.root or "/")
        if directory.is_relative_to(mountpoint) or mountpoint.is_relative_to(directory):
            # The daemon would wait for itself.
            raise UsageError(f"the source {config.source} and the mountpoint {mountpoint} lie inside each other")
        for path in caches:
            if path.is_relative_to(directory):
                # Reading the source through the mount would grow the source.
                raise UsageError(f"the cache directory {path} lies inside the source {config.source}")


def show_default(name: str) -> str:
    """Return a setting's default as a user would write it; "" for off, empty and unset."""
    value = default_of(name)
    if SETTINGS[name].metadata["unit"] == "flag":
        return "on" if value else ""
    return show_value(name, value)


def default_of(name: str) -> Any:
    """Return a setting's default."""
    field = SETTINGS[name]
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def show_value(name: str, value: Any) -> str:
    """Return a setting's value in the words that mean exactly it; "" for unset."""
    match SETTINGS[name].metadata["unit"]:
        case "size":
            return units.write_size(value)
        case "duration":
            return units.write_duration(value)
        case "mode":
            return f"{value:04o}"
        case "flag":
            return str(value).lower()
        case "disks":
            return ":".join(_show_disk(disk) for disk in value)
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


def _translate(given: Given) -> tuple[str, str]:
    """Return the setting a name stands for and the text in its own units."""
    key, text = _canonical(given.name), given.text
    if key in SETTINGS:
        return key, text
    if key not in SYNONYMS:
        near = nearest(key, [*SETTINGS, *SYNONYMS], 0.7)
        hint = f"did you mean {given.spelling.spell(near)}?" if near else "`fanoutfs mount --help` lists all"
        where, kind = (f"{given.where}: ", "key") if given.where else ("", "option")
        raise UsageError(f"{where}unknown {kind} {given.spelling.spell(key)}: {hint}")
    setting, pattern = SYNONYMS[key]
    if key == "metadata_cache_ttl_secs" and text.strip() == "-1":
        return setting, "indefinite"  # gcsfuse's way to say it
    # A unit of the other tool only completes a bare number: `--max-cache-size 20GiB` means what it says.
    return setting, pattern.format(text) if text.strip().isdecimal() else text


def _parse(key: str, text: str) -> Any:
    """Return the value of one setting.  Raises UsageError without its name."""
    unit = SETTINGS[key].metadata["unit"]
    if not text and unit not in ("text", "disks"):
        raise UsageError("needs a value")
    value = _PARSERS["uid" if key == "uid" else "gid" if key == "gid" else unit](text)
    _check_limits(key, value)
    _check_text(key, value)
    return value


def _check_limits(key: str, value: Any) -> None:
    metadata = SETTINGS[key].metadata
    least, most, choices = metadata["least"], metadata["most"], metadata["choices"]
    if least is not None and value < least:
        raise UsageError(f"at least {_show(key, least)}, not {_show(key, value)}")
    if most is not None and value > most:
        raise UsageError(f"at most {_show(key, most)}, not {_show(key, value)}")
    if choices and value not in choices:
        hint = "; a profile of the AWS files is named by aws_profile" if key == "profile" else ""
        raise UsageError(f"`{value}` is not one of {', '.join(filter(None, choices))}{hint}")


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


def _parse_disks(text: str) -> tuple[DiskDirectory, ...]:
    """Return the directories meant by `DIR[=SIZE]:DIR[=SIZE]...`; none by an empty text."""
    disks = []
    for word in text.split(":") if text else ():
        path, equals, size = word.partition("=")
        if not path:
            raise UsageError(f"`{text}` names an empty directory: write for example /mnt/nvme1/cache=500GiB")
        limit_bytes = units.parse_size(size) if equals else 0
        if equals and limit_bytes < PART_BYTES:
            raise UsageError(f"`{word}`: at least {units.show_size(PART_BYTES)}, one part of a file")
        disks.append(DiskDirectory(_parse_path(path), limit_bytes))
    return tuple(disks)


def _show_disk(disk: DiskDirectory) -> str:
    return f"{disk.path}={units.write_size(disk.limit_bytes)}" if disk.limit_bytes else str(disk.path)


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
    "disks": _parse_disks,
}

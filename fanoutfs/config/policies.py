"""Policies: which files are uploaded, evicted, pinned and stored how: `[[policy]]` tables, in order, first match wins.

    [[policy]]
    name = "checkpoints"             # for explain and plan; without one its number
    path = ["ckpt/**", "*.pt"]       # a pattern, or several; without one every path
    min_size = "1MiB"                # files from this size on
    max_size = "10GiB"               # files up to this size
    upload_after = "30s"             # after the last write; "never": only by `tier push`; default: --upload-delay
    evict_after = "7d"               # since the last access; default: when room is needed
    pin = true                       # what is cached stays
    keep_local = true                # never uploaded, not even by `tier push`
    storage_class = "GLACIER_IR"     # of what is uploaded; with storage_class_after: of what is older
    storage_class_after = "30d"      # since the object's modification
    packed = false                   # not in the small-file store, but in a cache file of its own; true: in the store,
                                     # up to 1 MiB; default: by --small-file-size

Paths are relative to the mountpoint.  `*` and `?` stay within a name, `**` crosses "/".  A pattern without "/" is
compared with every name on the path, one with "/" with the whole path; what matches a directory matches all below it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fanoutfs.config import units
from fanoutfs.config.files import RawTable, read_file
from fanoutfs.config.nearest import nearest
from fanoutfs.errors import UsageError
from fanoutfs.records import SMALL_FILE_MAX_BYTES

NEVER: Final = float("inf")
"""`upload_after`: not by itself."""

_KEYS: Final = frozenset(
    ("name", "path", "min_size", "max_size", "upload_after", "evict_after", "pin", "keep_local", "storage_class")
    + ("storage_class_after", "packed")
)
_CLASS: Final = re.compile(r"[A-Za-z0-9_]{1,40}")


@dataclass(frozen=True, slots=True)
class Policy:
    """One rule.  None: this rule says nothing about it.  Sizes in bytes (both ends included), durations in seconds."""

    name: str
    paths: tuple[str, ...] = ()
    patterns: tuple[re.Pattern[str], ...] = ()
    min_size: int = 0
    max_size: int | None = None
    upload_after_s: float | None = None
    evict_after_s: float | None = None
    is_pinned: bool = False
    is_kept_local: bool = False
    storage_class: str = ""
    storage_class_after_s: float | None = None
    is_packed: bool | None = None


def load_policies(path: Path) -> tuple[Policy, ...]:
    """Return the policies in a configuration file; what else it holds is passed over.  Raises UsageError."""
    return parse_policies(read_file(path).policies)


def parse_policies(tables: Sequence[RawTable]) -> tuple[Policy, ...]:
    """Return the policies that `[[policy]]` tables say.  Raises UsageError with file, line and key."""
    policies: list[Policy] = []
    for number, table in enumerate(tables, 1):
        name = table.values["name"].value if "name" in table.values else f"policy {number}"
        if not isinstance(name, str) or not name.isprintable() or not name:
            raise UsageError(f"{table.place('name')}: name: write a text")
        if any(known.name == name for known in policies):
            raise UsageError(f"{table.place()}: policy {name!r}: there are two of this name")
        policies.append(_parse(name, table))
    return tuple(policies)


def check_places(policies: Sequence[Policy], mountpoint: Path) -> None:
    """Refuse patterns that begin with the mountpoint: they would match nothing.  Raises UsageError."""
    for policy in policies:
        for pattern in policy.paths:
            if mountpoint != Path("/") and f"{pattern}/".startswith(f"{mountpoint}/"):
                below = pattern.removeprefix(f"{mountpoint}").strip("/")
                hint = f"write `{below}`" if below else "leave path out for everything"
                raise UsageError(f"policy {policy.name!r}: path: `{pattern}`: is relative to the mountpoint: {hint}")


def compile_pattern(text: str) -> re.Pattern[str]:
    """Return what a path pattern means.  Raises UsageError."""
    body = text.strip("/")
    if not body:
        raise UsageError(f"path: `{text}` matches nothing")
    if any(name in (".", "..") for name in body.split("/")):
        raise UsageError(f"path: `{text}`: no path has . or .. in it, patterns are relative to the mountpoint")
    if "{" in text.replace("[{]", ""):
        raise UsageError(f"path: `{text}`: braces mean nothing here: write a list of patterns ([{{] is the character)")
    # Without a slash, in front or within: any name on the way.
    expression = "" if "/" in text.rstrip("/") else "(?:.*/)?"
    at = 0
    while at < len(body):
        if body.startswith("**/", at):
            expression += "(?:.*/)?"
            at += 3
        elif body.startswith("**", at):
            expression += ".*"
            at += 2
        elif body[at] in "*?":
            expression += "[^/]*" if body[at] == "*" else "[^/]"
            at += 1
        elif body[at] == "[" and (end := body.find("]", at + 2)) > 0:
            inside = body[at + 1 : end]
            inverted, inside = ("^", inside[1:]) if inside[0] in "!^" else ("", inside)
            inside = inside.replace("\\", "\\\\").replace("[", "\\[")
            expression += f"(?!/)[{inverted}{inside}]"
            at = end + 1
        else:
            expression += re.escape(body[at])
            at += 1
    try:
        return re.compile(f"{expression}(?:/.*)?", re.DOTALL)
    except re.error as error:
        raise UsageError(f"path: `{text}`: {error}") from None


class _Table:
    """The keys of one table, each as what it means.  Every method raises UsageError with the key's place."""

    def __init__(self, table: RawTable) -> None:
        self._table = table

    def get(self, key: str, default: Any = None) -> Any:
        located = self._table.values.get(key)
        return default if located is None else located.value

    def refuse(self, key: str, reason: str) -> UsageError:
        return UsageError(f"{self._table.place(key)}: {key}: {reason}")

    def paths(self) -> tuple[tuple[str, ...], tuple[re.Pattern[str], ...]]:
        if "path" not in self._table.values:
            return (), ()
        value = self.get("path")
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
            raise self.refuse("path", "write a pattern, or a list of them")
        try:
            return tuple(paths), tuple(compile_pattern(path) for path in paths)
        except UsageError as error:
            raise self.refuse("path", str(error)) from None

    def size(self, key: str) -> int | None:
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value  # a number of TOML, not a word of somebody used to another tool's units
        if isinstance(value, str):
            try:
                return units.parse_size(value)
            except UsageError as error:
                raise self.refuse(key, str(error)) from None
        raise self.refuse(key, 'write a size, for example "1MiB"')

    def duration(self, key: str, *, is_never_fine: bool = False) -> float | None:
        value = self.get(key)
        if value is None:
            return None
        if is_never_fine and value == "never":
            return NEVER
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < NEVER:
            return float(value)
        if isinstance(value, str):
            try:
                seconds = units.parse_duration(value)
            except UsageError as error:
                raise self.refuse(key, str(error)) from None
            if seconds < NEVER:
                return seconds
        raise self.refuse(key, 'write a time, for example "30s" or "7d"' + (', or "never"' if is_never_fine else ""))

    def flag(self, key: str) -> bool | None:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(key, "write true or false")
        return value

    def storage_class(self) -> str:
        value = self.get("storage_class", "")
        if value and (not isinstance(value, str) or _CLASS.fullmatch(value) is None):
            raise self.refuse("storage_class", f"`{value}` is none: write for example STANDARD_IA")
        return str(value)

    def check_keys(self) -> None:
        """Refuse keys that mean nothing."""
        for key in self._table.values:
            if key not in _KEYS:
                near = nearest(key, _KEYS, 0.6)
                hint = f"did you mean {near}?" if near else f"known are {', '.join(sorted(_KEYS))}"
                raise self.refuse(key, f"a policy has no such key: {hint}")


def _parse(name: str, raw: RawTable) -> Policy:
    table = _Table(raw)
    table.check_keys()
    paths, patterns = table.paths()
    policy = Policy(
        name=name,
        paths=paths,
        patterns=patterns,
        min_size=table.size("min_size") or 0,
        max_size=table.size("max_size"),
        upload_after_s=table.duration("upload_after", is_never_fine=True),
        evict_after_s=table.duration("evict_after"),
        is_pinned=table.flag("pin") or False,
        is_kept_local=table.flag("keep_local") or False,
        storage_class=table.storage_class(),
        storage_class_after_s=table.duration("storage_class_after"),
        is_packed=table.flag("packed"),
    )
    _check(policy, table)
    return policy


def _check(policy: Policy, table: _Table) -> None:
    """Refuse what contradicts itself."""
    if policy.max_size is not None and policy.max_size < policy.min_size:
        raise table.refuse("max_size", "is below min_size: it matches no file")
    if policy.is_pinned and policy.evict_after_s is not None:
        raise table.refuse("evict_after", "what is pinned is never evicted")
    if policy.is_kept_local and (policy.upload_after_s not in (None, NEVER) or policy.storage_class):
        raise table.refuse("keep_local", "what is never uploaded has neither upload_after nor storage_class")
    if policy.storage_class_after_s is not None and not policy.storage_class:
        raise table.refuse("storage_class_after", "which storage_class?")
    if policy.is_packed and policy.min_size > SMALL_FILE_MAX_BYTES:
        raise table.refuse("packed", "min_size is above 1 MiB: files of that size are never packed")

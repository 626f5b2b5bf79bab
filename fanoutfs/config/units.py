"""How people write sizes, durations, modes, owners and flags, and the values meant.  Pure but for the user database.

Sizes follow GNU coreutils: K M G T and KiB MiB GiB TiB are powers of 1024, KB MB GB TB powers of 1000.  A bare number
is bytes; below 1 MiB it is refused, because people who write `--cache-size 20480` learned it from a tool that counts
in MiB, and both a 20 KiB cache and a silent guess would be worse than a question.

Every parser raises UsageError with what is wrong and an example of what is right, without the setting's name.
"""

import grp
import math
import pwd
import re
from typing import Final

from fanoutfs.errors import UsageError
from fanoutfs.records import MIB

_NUMBER_AND_UNIT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")

INDEFINITE: Final = float("inf")
"""A duration without an end, as `metadata_ttl`: a source that never changes, of which nothing is ever listed twice."""

_PREFIXES: Final = tuple(enumerate("kmgtp", start=1))
_SIZE_UNITS: Final = {
    "b": 1,
    **{letter + ending: 1024**power for power, letter in _PREFIXES for ending in ("", "i", "ib")},
    **{f"{letter}b": 1000**power for power, letter in _PREFIXES},
}

_DURATION_UNITS: Final = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DURATION_WORDS: Final = {"indefinite": INDEFINITE, "inf": INDEFINITE, "minimal": 1.0}

_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})

MAX_SIZE: Final = 1 << 60
MAX_ID: Final = (1 << 32) - 2  # (uid_t)-1 means "leave unchanged" to chown(2)


def parse_size(text: str) -> int:
    """Return the bytes meant by `20GiB`, `20G`, `1.5T`, `500MB` or a bare number of at least 1 MiB (or 0)."""
    match = _NUMBER_AND_UNIT.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"`{text}` is not a size: write for example 20GiB or 512MiB")
    number, unit = match.groups()
    if unit and unit not in _SIZE_UNITS:
        raise UsageError(f"`{text}` has the unknown unit `{unit}`: write for example 20GiB or 512MiB")
    size: int = math.floor(float(number) * _SIZE_UNITS[unit or "b"])
    if not unit and 0 < size < MIB:
        raise UsageError(f"`{text}` has no unit: write {number}MiB, {number}GiB, or {number}B if bytes are meant")
    if size > MAX_SIZE:
        raise UsageError(f"`{text}` is larger than any disk")
    return size


def parse_duration(text: str) -> float:
    """Return the seconds meant by `60`, `60s`, `500ms`, `5m`, `1h`, `2d`, `minimal` (1 s) or `indefinite`."""
    word = text.strip().lower()
    if word in _DURATION_WORDS:
        return _DURATION_WORDS[word]
    match = _NUMBER_AND_UNIT.fullmatch(word)
    if match is None or (match[2] and match[2] not in _DURATION_UNITS):
        raise UsageError(f"`{text}` is not a duration: write for example 60s, 5m, 1h or indefinite")
    return float(match[1]) * _DURATION_UNITS[match[2] or "s"]


def parse_mode(text: str) -> int:
    """Return the permission bits meant by an octal number: `644`, `0644` or `0o644`."""
    digits = text.strip().lower().removeprefix("0o")
    if re.fullmatch(r"[0-7]{1,5}", digits) is None:
        raise UsageError(f"`{text}` is not an octal mode: write for example 0644")
    return int(digits, 8)


def parse_count(text: str) -> int:
    """Return a whole number."""
    if re.fullmatch(r"[0-9]{1,9}", text.strip()) is None:
        raise UsageError(f"`{text}` is not a whole number")
    return int(text)


def parse_share(text: str) -> float:
    """Return the fraction meant by `0.5` or `50%`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(%?)", text.strip())
    if match is None:
        raise UsageError(f"`{text}` is not a share: write for example 0.5 or 50%")
    return float(match[1]) / (100 if match[2] else 1)


def parse_flag(text: str) -> bool:
    """Return whether `true`, `yes`, `on`, `1` or one of their opposites was written."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise UsageError(f"`{text}` is neither true nor false")


def parse_uid(text: str) -> int:
    """Return the user id meant by a number or a user name."""
    if text.strip().isdecimal():
        return _checked_id(text)
    try:
        return pwd.getpwnam(text.strip()).pw_uid
    except KeyError:
        raise UsageError(f"`{text}` is no user of this machine: write its number or another name") from None


def parse_gid(text: str) -> int:
    """Return the group id meant by a number or a group name."""
    if text.strip().isdecimal():
        return _checked_id(text)
    try:
        return grp.getgrnam(text.strip()).gr_gid
    except KeyError:
        raise UsageError(f"`{text}` is no group of this machine: write its number or another name") from None


def show_size(size_bytes: float) -> str:
    """Return a size as people read it: exact when it is a whole number of units, else with three digits."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            decimals = 0 if value == int(value) or value >= 100 else 1 if value >= 10 else 2
            return f"{value:.{decimals}f}{unit}"
        value /= 1024
    raise AssertionError("unreachable")


def show_duration(seconds: float) -> str:
    """Return a duration as people read it, in the two largest units: `2d 3h`, `5m`, `indefinite`."""
    if seconds == INDEFINITE:
        return "indefinite"
    if seconds < 60:
        return f"{seconds:g}s" if seconds == round(seconds, 1) else f"{seconds:.1f}s"
    rest = int(seconds)
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def write_size(size_bytes: int) -> str:
    """Return the shortest text that `parse_size` turns into exactly this size."""
    for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB")):
        if size_bytes % 1024 ** (power + 1) or not size_bytes:
            return f"{size_bytes // 1024**power}{unit}"
    return f"{size_bytes // 1024**5}PiB"


def write_duration(seconds: float) -> str:
    """Return the shortest text that `parse_duration` turns into exactly this duration."""
    if seconds == INDEFINITE:
        return "indefinite"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{int(seconds) if seconds == int(seconds) else seconds}s"


def _checked_id(text: str) -> int:
    number = int(text)
    if number > MAX_ID:
        raise UsageError(f"`{text}` is larger than any id ({MAX_ID})")
    return number

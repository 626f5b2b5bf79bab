"""Configuration files: TOML in, what each key says and on which line it stands out.

A file holds `source`, `mountpoint`, any setting of `schema` under its name, and `[[policy]]` tables:

    source = "s3://bucket/train"
    mountpoint = "/mnt/train"
    profile = "training"
    cache_size = "2TiB"

tomllib says what is TOML and what it means, but not where.  tomlkit does not say either, and the parsers that do are
no longer kept up.  So every statement is given to tomllib by itself: a statement ends with the first line at which what
was gathered since its beginning is TOML, because what is not finished (a string or array over several lines) is none.

Pure but for reading the file.  Errors are UsageErrors that begin with FILE:LINE.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fanoutfs.config.directories import config_dirs
from fanoutfs.errors import UsageError

MAX_FILE_BYTES: Final = 1 << 20  # far above any configuration: somebody named a data file

POLICY: Final = "policy"
"""The only table there is."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names of configuration files, also of systemd's instances: without `/` and `:`, so none is a source."""

_WHERE: Final = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Located:
    """A value as TOML has it, and the line of its key."""

    value: Any
    line: int


@dataclass(frozen=True, slots=True)
class RawTable:
    """One `[[policy]]`: line of its header, and its keys as they were written."""

    file: Path
    line: int
    values: Mapping[str, Located]

    def place(self, key: str = "") -> str:
        """Return FILE:LINE of a key of this table, or of its header; errors begin with it."""
        return f"{self.file}:{self.values[key].line if key else self.line}"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says.  The keys of `values` are as written; whether they exist is not checked here."""

    path: Path
    values: Mapping[str, Located]
    policies: tuple[RawTable, ...]

    def place(self, key: str) -> str:
        """Return FILE:LINE of a key."""
        return f"{self.path}:{self.values[key].line}"


def find_file(name: str) -> Path:
    """Return the configuration file of this name.  Raises UsageError."""
    if not _NAME.fullmatch(name):
        hint = f"for a directory write file://{name if name.startswith('/') else '/DIR'}"
        raise UsageError(f"`{name}` is neither a source nor the name of a configuration: {hint}")
    places = [directory / f"{name}.toml" for directory in config_dirs()]
    for path in places:
        if path.exists():
            return path
    known = sorted(path.stem for directory in config_dirs() for path in directory.glob("*.toml"))
    there_are = f" (there are {', '.join(known)})" if known else ""
    raise UsageError(f"no configuration {places[-1]}{there_are}; for a bucket write s3://{name}")


def read_file(path: Path) -> ConfigFile:
    """Read a configuration file.  Raises UsageError."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path}: more than {MAX_FILE_BYTES} bytes are no configuration")
    try:
        return parse_file(path, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: is not UTF-8, as TOML must be") from None


def parse_file(path: Path, text: str) -> ConfigFile:
    """Parse the text of a configuration file.  Raises UsageError."""
    try:
        tomllib.loads(text)  # duplicates and the like are seen only in the whole
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(path, text, str(error)) from None
    values: dict[str, Located] = {}
    policies: list[RawTable] = []
    current = values
    for line, is_header, statement in _statements(text):
        if is_header:
            if statement != {POLICY: [{}]}:
                name = next(iter(statement))
                raise UsageError(
                    f"{path}:{line}: unknown table `{name}`: settings stand in none, rules in [[{POLICY}]]"
                )
            current = {}
            policies.append(RawTable(path, line, current))
            continue
        for key, value in statement.items():
            current[key] = Located(value, line)
    return ConfigFile(path, values, tuple(policies))


def _statements(text: str) -> Iterator[tuple[int, bool, dict[str, Any]]]:
    """Yield (line, whether it is a table's header, what it says) of every statement of what is known to be TOML."""
    gathered, begin = "", 1
    for number, line in enumerate(text.split("\n"), start=1):
        gathered += line + "\n"
        try:
            statement = tomllib.loads(gathered)
        except tomllib.TOMLDecodeError:
            continue
        if statement:
            yield begin, gathered.lstrip().startswith("["), statement
        gathered, begin = "", number + 1


def _not_toml(path: Path, text: str, message: str) -> UsageError:
    match = _WHERE.fullmatch(message)
    if match is None:
        return UsageError(f"{path}: {message}")
    line = int(match[2]) if match[2] else text.rstrip().count("\n") + 1
    return UsageError(f'{path}:{line}: {match[1]} (text is quoted in TOML: key = "value")')

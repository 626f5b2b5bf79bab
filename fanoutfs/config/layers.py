"""Who has the last word on a setting: flag > environment > file > profile > default.

Every layer is a list of what somebody wrote (`load.Given`), with the place where it stands: errors and
`config show --origin` name it.  A layer is checked even where a higher one overrides it: a file with a mistake is wrong
whatever the flags are.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fanoutfs.config import units
from fanoutfs.config.files import POLICY, ConfigFile, Located
from fanoutfs.config.load import SETTINGS, Given, Spelling, check_overlaps, expand, parse_given, setting_of
from fanoutfs.config.nearest import nearest
from fanoutfs.config.policies import Policy, check_places, load_policies, parse_policies
from fanoutfs.config.profiles import PROFILES
from fanoutfs.config.schema import MountConfig
from fanoutfs.errors import UsageError

ENVIRONMENT_PREFIX: Final = "FANOUTFS_"

PLACES: Final = ("source", "mountpoint")
"""What a file may say beside settings: what the command line has as arguments."""

_DIRECTORIES: Final = ("cache_dir", "cache_disks")
"""What may name several paths: a list, or a text with colons."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A mount's settings and who said each: `--cache-size`, `FANOUTFS_CACHE_SIZE`, FILE:LINE, `profile training`.

    Source and mountpoint as well, when a command line was read: `argument` or FILE:LINE.

    What is not in `origins` has its default.
    """

    config: MountConfig
    origins: Mapping[str, str]


def from_options(options: Mapping[str, str]) -> list[Given]:
    """Return what flags and -o say."""
    return [Given(name, text, Spelling.FLAG) for name, text in options.items()]


def from_environment(environment: Mapping[str, str]) -> list[Given]:
    """Return what FANOUTFS_* variables say.

    Raises UsageError for one that looks like a misspelt setting; others are left alone, they may belong to a script.
    """
    given = []
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name in SETTINGS:
            given.append(Given(name, text, Spelling.VARIABLE))
        elif near := nearest(name, SETTINGS, 0.85):
            raise UsageError(f"{variable}: no such setting: did you mean {Spelling.VARIABLE.spell(near)}?")
    return given


def from_file(file: ConfigFile) -> list[Given]:
    """Return what a file says about settings.  Raises UsageError."""
    given: list[Given] = []
    for key, located in file.values.items():
        if key not in PLACES:
            given.append(Given(key, _as_text(file, key, located), Spelling.KEY, file.place(key)))
    return given


def from_profile(name: str) -> list[Given]:
    """Return what a profile says; "" is none."""
    presets = PROFILES[name] if name else {}
    return [Given(key, preset.text, Spelling.KEY, f"profile {name}") for key, preset in presets.items()]


def place_in_file(file: ConfigFile, name: str) -> str:
    """Return the source or the mountpoint that a file names, "" if it names none.  Raises UsageError."""
    if name not in file.values:
        return ""
    text = file.values[name].value
    if not isinstance(text, str) or not text:
        raise UsageError(f"{file.place(name)}: {name}: needs a text, not `{text}`")
    if name == "mountpoint" and not os.path.isabs(text):
        raise UsageError(f"{file.place(name)}: {name}: `{text}` must be an absolute path")
    return text


def settle(
    source: str,
    mountpoint: Path,
    options: Mapping[str, str],
    environment: Mapping[str, str],
    file: ConfigFile | None = None,
) -> Settled:
    """Put the layers together and check the whole.  Raises UsageError.

    mountpoint: absolute; that it can be mounted on is checked elsewhere (it means touching it).
    """
    values, origins = parse_layer(from_options(options))
    layers = [from_environment(environment)]
    if file is not None:
        layers.append(from_file(file))
    for layer in layers:
        _add(values, origins, layer)
    _add(values, origins, from_profile(values.get("profile", "")))
    values["policies"] = _policies(values, origins, file)
    config = MountConfig(source=source, mountpoint=mountpoint, **values)
    check_overlaps(config)
    check_places(config.policies, mountpoint)
    _check_sizes(config, origins)
    return Settled(config, origins)


def _check_sizes(config: MountConfig, origins: Mapping[str, str]) -> None:
    """Refuse sizes that contradict each other, as far as somebody said them.  Raises UsageError."""
    if "low_watermark" in origins and config.low_watermark > config.high_watermark:
        raise UsageError(f"{origins['low_watermark']}: low_watermark: is above high_watermark")
    if config.staging_size > config.cache_size:
        limit = units.show_size(config.cache_size)
        raise UsageError(f"{origins['staging_size']}: staging_size: is above cache_size ({limit}), which holds it, too")


def _policies(values: dict[str, Any], origins: dict[str, str], file: ConfigFile | None) -> tuple[Policy, ...]:
    """Return the rules: those of `policy_file`, else those of the configuration file, which is read again on reload.

    Raises UsageError.
    """
    own = () if file is None else parse_policies(file.policies)
    if "policy_file" in values:
        if own:
            raise UsageError(f"{origins['policy_file']}: policy_file: {file.path if file else ''} has policies, too")
        return load_policies(values["policy_file"])
    if file is not None:
        values["policy_file"], origins["policy_file"] = file.path, str(file.path)
    return own


def with_mountpoint(settled: Settled, mountpoint: Path) -> Settled:
    """Return the same settings for the path that the mountpoint turned out to be.  Raises UsageError."""
    config = dataclasses.replace(settled.config, mountpoint=mountpoint)
    check_overlaps(config)
    check_places(config.policies, mountpoint)
    return dataclasses.replace(settled, config=config)


def problems(file: ConfigFile) -> list[str]:
    """Return everything that is wrong with a file by itself, a line each."""
    found = []
    for key, located in file.values.items():
        try:
            if key in PLACES:
                place_in_file(file, key)
            else:
                parse_given(Given(key, _as_text(file, key, located), Spelling.KEY, file.place(key)))
        except UsageError as error:
            found.append(str(error))
    try:
        parse_layer(from_file(file) if not found else [])
        parse_policies(file.policies)
    except UsageError as error:
        found.append(str(error))
    return found


def parse_layer(layer: Iterable[Given]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values and the origins of what one layer says.  Raises UsageError."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for given in (each for written in layer for each in expand(written)):
        name, value = parse_given(given)
        if name in values and given.spelling is not Spelling.FLAG:  # the last of several flags wins, as everywhere
            raise UsageError(f"{given.label}: is said twice, also by {origins[name]}")
        values[name] = value
        origins[name] = given.where or given.label
    return values, origins


def _add(values: dict[str, Any], origins: dict[str, str], layer: Iterable[Given]) -> None:
    """Add what a lower layer says about what nobody above it has said."""
    lower, places = parse_layer(layer)
    for name in lower.keys() - values.keys():
        values[name] = lower[name]
        origins[name] = places[name]


def _as_text(file: ConfigFile, key: str, located: Located) -> str:
    """Return a TOML value as a user would write it on the command line, where `load` knows units and limits."""
    value = located.value
    label = f"{file.place(key)}: {key}"
    if key == POLICY:
        raise UsageError(f"{label}: rules are written as tables, [[{POLICY}]]")
    setting = setting_of(Given(key, "", Spelling.KEY, file.place(key)))
    unit = SETTINGS[setting].metadata["unit"]
    match value:
        case bool():
            if unit != "flag":
                raise UsageError(f"{label}: {str(value).lower()} is no {unit}")
            return str(value).lower()
        case int() | float():
            if unit == "mode":  # 0644 is no TOML, and 644 or 0o644 would both be guesses
                raise UsageError(f'{label}: write octal modes as text, for example "0644"')
            return str(value)
        case str():
            several = value.split(":") if setting in _DIRECTORIES else [value]
            for path in several if unit in ("path", "disks") else ():
                if path and not os.path.isabs(path):  # relative to what, at boot?
                    raise UsageError(f"{label}: `{path}` must be an absolute path")
            return value
        case list() if setting in _DIRECTORIES and all(isinstance(each, str) for each in value):
            return _as_text(file, key, Located(":".join(value), located.line))
        case _:
            raise UsageError(f"{label}: needs a single value")

"""Tables for people, made from the schema."""

from dataclasses import fields
from typing import Final

from fanoutfs.config.load import show_default
from fanoutfs.config.profiles import PROFILES
from fanoutfs.config.schema import MountConfig
from fanoutfs.errors import FanoutError

_DEPENDS_ON_USER: Final = {
    "cache_dir": "`/var/cache/fanoutfs`; not root: `~/.cache/fanoutfs`",
    "uid": "yours",
    "gid": "yours",
}
"""Defaults that are found out at run time, in words."""


def option_table() -> str:
    """Return README's table of mount options in Markdown, one row per setting."""
    rows = ["| option | default | what it does |", "|---|---|---|"]
    for setting in fields(MountConfig):
        if setting.metadata:
            option = "--" + setting.name.replace("_", "-")
            default = _DEPENDS_ON_USER.get(setting.name) or show_default(setting.name)
            rows.append(f"| `{option}` | {default} | {setting.metadata['doc']} |")
    return "\n".join(rows) + "\n"


def profile_table() -> str:
    """Return the table of profiles in Markdown, one row per setting of each."""
    rows = ["| `--profile` | sets | because |", "|---|---|---|"]
    for name, presets in PROFILES.items():
        for setting, preset in presets.items():
            rows.append(f"| {name} | `{setting} = {preset.text}` | {preset.reason} |")
    return "\n".join(rows) + "\n"


_OF_COMMANDS: Final = {
    0: "Done.",
    1: "Anything else; the line says what.",
    20: "The store failed in a way that a retry will not mend, or there is no such file.",
    26: "`warm`: some files could not be fetched; they are named.",
    28: "`evict`, `invalidate --content`: some files keep bytes here; why is said.",
    29: "`tier`: not everything was done; what was not is named.",
    130: "Interrupted (Ctrl-C).",
}
"""Exit codes that no error class has for itself."""


def exit_code_table() -> str:
    """Return the table of exit codes in Markdown."""
    meanings = dict(_OF_COMMANDS)
    for error in _descendants(FanoutError):
        if "exit_code" in vars(error):
            first_line = (error.__doc__ or "").partition("\n")[0]
            meanings.setdefault(error.exit_code, first_line)
    rows = ["| exit code | meaning |", "|---|---|"]
    rows += [f"| {code} | {meaning} |" for code, meaning in sorted(meanings.items())]
    return "\n".join(rows) + "\n"


def _descendants(error: type[FanoutError]) -> list[type[FanoutError]]:
    """Return all classes below one, in the order in which they are declared."""
    found: list[type[FanoutError]] = []
    for child in error.__subclasses__():
        found += [child, *_descendants(child)]
    return [each for each in found if each.__module__ == FanoutError.__module__]

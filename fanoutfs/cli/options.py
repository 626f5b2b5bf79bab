"""Command-line options made from the fields of MountConfig: name, unit, default and help are declared there only."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from fanoutfs.config.load import SETTINGS, SYNONYMS, show_default

_Command = TypeVar("_Command", bound=Callable[..., Any])

_METAVARS: Final[Mapping[str, str]] = {
    "size": "SIZE",
    "duration": "TIME",
    "count": "N",
    "share": "SHARE",
    "mode": "OCTAL",
    "id": "ID|NAME",
    "text": "TEXT",
    "path": "PATH",
    "disks": "DIR[=SIZE]:...",
}
_SHORT: Final[Mapping[str, str]] = {"foreground": "-f", "read_only": "-r"}


def setting_options(function: _Command) -> _Command:
    """Give a click command one option per setting, and one hidden option per synonym.

    All arrive as text (a flag as a bool), None when not given: `config.load` alone knows units and limits.
    """
    for name, (setting, _) in reversed(list(SYNONYMS.items())):
        if name != "ro":  # mount(8) says it in -o only
            function = _option(name, setting, hidden=True)(function)
    for name in reversed(SETTINGS):
        function = _option(name, name, hidden=False)(function)
    return function


def _option(name: str, setting: str, *, hidden: bool) -> Callable[[_Command], _Command]:
    metadata = SETTINGS[setting].metadata
    spellings = ["--" + name.replace("_", "-")]
    if not hidden and name in _SHORT:
        spellings.insert(0, _SHORT[name])
    default = "" if hidden else show_default(setting)
    text = metadata["doc"] + (f"  [default: {default}]" if default else "")
    if metadata["unit"] == "flag":  # --no-: what a file or a profile switched on
        spellings[-1] += "/--no-" + spellings[-1].removeprefix("--")
        return click.option(*spellings, name, default=None, help=text, hidden=hidden)
    return click.option(*spellings, name, metavar=_METAVARS[metadata["unit"]], help=text, hidden=hidden)

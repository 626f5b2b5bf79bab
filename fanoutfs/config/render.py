"""Tables for people, made from the schema."""

from dataclasses import fields
from typing import Final

from fanoutfs.config.load import show_default
from fanoutfs.config.schema import MountConfig

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

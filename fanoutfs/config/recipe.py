"""What the user said when mounting, kept by the daemon so that it can be read again: the file may have changed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Recipe:
    """The words of a command line; the environment is the daemon's own.

    config_file: absolute, or "".  options: by name, as `config.layers.settle` takes them.
    """

    source: str
    mountpoint: str
    config_file: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "options": dict(self.options)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Recipe":
        """Undo `to_json`."""
        return cls(data["source"], data["mountpoint"], data["config_file"], dict(data["options"]))

"""How much is done: the options of the commands; their defaults are in fanoutfs.cli.benchpath."""

from dataclasses import dataclass
from typing import Final

_PATIENCE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Options:
    """One command's: 0 for what it does not have."""

    runs: int
    processes: int
    seconds: float = 0.0
    size_bytes: int = 0
    files: int = 0
    file_bytes: int = 0
    block_bytes: int = 0

    @property
    def deadline_s(self) -> float:
        """After so long one load is given up."""
        return self.seconds + _PATIENCE_S

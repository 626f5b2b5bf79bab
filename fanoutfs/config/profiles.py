"""Profiles: a few settings that belong together for a kind of work, each with its reason.

They stand between the defaults and what the user says anywhere else.  Only settings whose best value follows from the
kind of work are here; what follows from the machine (`fronts`, sizes) has a default that looks at the machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Preset:
    """A setting as a user would write it, and why it suits the profile."""

    text: str
    reason: str


PROFILES: Final[Mapping[str, Mapping[str, Preset]]] = {
    "training": {
        "read_only": Preset("true", "only where nothing is written are small files pushed into the page cache"),
        "metadata_ttl": Preset("10m", "data sets change rarely: fewer listings while an epoch runs"),
        "small_cache_share": Preset("0.9", "samples are small files: they may take most of the cache"),
        "fill_memory": Preset("512MiB", "the workers of several GPUs miss at the same time"),
    },
    "serving": {
        "read_only": Preset("true", "weights are read, never written"),
        "small_cache_share": Preset("0.1", "weights are large files"),
        "fill_memory": Preset("512MiB", "a model is loaded from front to back by somebody who waits for it"),
        "max_readahead": Preset("256MiB", "likewise: more of the file may be on its way"),
    },
    "checkpoint": {
        "upload_delay": Preset("1s", "a checkpoint is written once and left alone: no reason to wait longer"),
        "upload_requests": Preset("16", "large files go up in many parts, and the next checkpoint is coming"),
        "small_cache_share": Preset("0.1", "checkpoints are large files"),
        "object_attributes": Preset("lookup", "another machine that resumes sees the modes, times and links"),
    },
}

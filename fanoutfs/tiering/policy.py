"""What policy wants of a file: the first rule that matches its path and size, and pins, which say more than any rule.

Pure.  A pin of a path counts for all below it; the longest such path decides, and unpinning below a pinned directory is
a pin that says no.  What a rule does not say the mount's options say: `upload_delay`, no eviction by age, the store's
default class.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fanoutfs.config.policies import NEVER, Policy

DEFAULT_RULE = "no policy matches, the mount's options decide"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of a file.

    rule: the policy's name, "" without one.  upload_after_s: NEVER for not by itself.  storage_class: "" for the
    store's default; storage_class_after_s: None for at upload.  pin: the path whose pin decided, None: none did.
    """

    rule: str
    upload_after_s: float
    evict_after_s: float | None
    is_pinned: bool
    is_kept_local: bool
    storage_class: str
    storage_class_after_s: float | None
    pin: str | None

    @property
    def upload_class(self) -> str:
        """Return the class in which the file is uploaded."""
        return self.storage_class if self.storage_class_after_s is None else ""

    @property
    def is_uploaded(self) -> bool:
        """Tell whether the file is uploaded by itself."""
        return not self.is_kept_local and self.upload_after_s < NEVER


def find_policy(policies: Sequence[Policy], path: str, size_bytes: int) -> Policy | None:
    """Return the first policy for a file of this size at this path, relative to the mountpoint; None: there is none."""
    for policy in policies:
        if size_bytes < policy.min_size or (policy.max_size is not None and size_bytes > policy.max_size):
            continue
        if not policy.patterns or any(pattern.fullmatch(path) for pattern in policy.patterns):
            return policy
    return None


def find_pin(pins: Mapping[str, bool], path: str) -> tuple[str, bool] | None:
    """Return (path, pinned) of the longest pinned or unpinned path that leads to this one; None: there is none."""
    if not pins:
        return None
    at = path
    while True:
        if at in pins:
            return at, pins[at]
        if not at:
            return None
        at = at.rpartition("/")[0]


def decide(
    policies: Sequence[Policy], pins: Mapping[str, bool], path: str, size_bytes: int, upload_delay_s: float
) -> Decision:
    """Return what is to become of a file."""
    policy = find_policy(policies, path, size_bytes)
    pin = find_pin(pins, path)
    wanted = policy or Policy("")
    is_pinned = wanted.is_pinned if pin is None else pin[1]
    return Decision(
        rule=wanted.name,
        upload_after_s=upload_delay_s if wanted.upload_after_s is None else wanted.upload_after_s,
        evict_after_s=None if is_pinned else wanted.evict_after_s,
        is_pinned=is_pinned,
        is_kept_local=wanted.is_kept_local,
        storage_class=wanted.storage_class,
        storage_class_after_s=wanted.storage_class_after_s,
        pin=None if pin is None else pin[0],
    )


def describe_rule(decision: Decision) -> str:
    """Return which rule decided, in words."""
    return f"policy {decision.rule!r}" if decision.rule else DEFAULT_RULE


def change_pins(pins: Mapping[str, bool], path: str, *, pinned: bool, by_policy: bool) -> dict[str, bool | None]:
    """Return what to set (True, False) and to forget (None) so that a path and all below it are pinned, or not.

    by_policy: some policy pins what is there or below, so that unpinning has to say no.
    """
    below = f"{path}/" if path else ""
    changes: dict[str, bool | None] = {each: None for each in pins if each == path or each.startswith(below)}
    left = {each: value for each, value in pins.items() if each not in changes}
    inherited = find_pin(left, path)
    is_pinned_above = inherited[1] if inherited is not None else by_policy
    if pinned or is_pinned_above:
        changes[path] = pinned
    return changes


def is_excluded(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether a path is not to be uploaded: the whole of it, or any name in it, matches a pattern."""
    names = path.strip("/").split("/")
    for pattern in patterns:
        if fnmatchcase(path, pattern) if "/" in pattern else any(fnmatchcase(name, pattern) for name in names):
            return True
    return False

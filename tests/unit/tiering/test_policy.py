"""First match wins; pins say more than rules; the longest pinned path decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.config.policies import NEVER
from fanoutfs.tiering.policy import change_pins, decide, find_pin
from tests.unit.config.test_policies import parse

RULES = parse(
    {"name": "logs", "path": "*.log", "upload_after": "never"},
    {"name": "scratch", "path": "scratch/", "keep_local": True},
    {"name": "large", "path": "ckpt/**", "min_size": "1MiB", "upload_after": 0, "evict_after": "1h"},
    {"name": "rest", "path": "ckpt/**", "storage_class": "STANDARD_IA", "storage_class_after": "30d", "pin": True},
)


@pytest.mark.parametrize(
    ("path", "size", "rule"),
    [
        ("a.log", 1, "logs"),
        ("ckpt/a.log", 1 << 30, "logs"),
        ("scratch/x/y", 1, "scratch"),
        ("deep/scratch/y", 1, "scratch"),
        ("ckpt/a", 1 << 20, "large"),
        ("ckpt/a", (1 << 20) - 1, "rest"),
        ("other", 1, ""),
    ],
)
def test_first_rule_that_matches_path_and_size_decides(path: str, size: int, rule: str) -> None:
    assert decide(RULES, {}, path, size, 5.0).rule == rule


def test_what_a_rule_does_not_say_the_mount_says() -> None:
    other = decide(RULES, {}, "other", 1, 5.0)
    assert (other.upload_after_s, other.evict_after_s, other.is_pinned, other.is_uploaded) == (5.0, None, False, True)
    logs = decide(RULES, {}, "a.log", 1, 5.0)
    assert logs.upload_after_s == NEVER and not logs.is_uploaded and not logs.is_kept_local
    rest = decide(RULES, {}, "ckpt/small", 1, 5.0)
    assert rest.upload_after_s == 5.0 and rest.is_pinned and rest.storage_class == "STANDARD_IA"
    assert rest.upload_class == ""  # only what is older


def test_pin_overrules_a_policy_both_ways() -> None:
    pinned = decide(RULES, {"ckpt": True}, "ckpt/big", 1 << 20, 5.0)
    assert pinned.is_pinned and pinned.evict_after_s is None and pinned.pin == "ckpt"
    assert not decide(RULES, {"ckpt": False}, "ckpt/small", 1, 5.0).is_pinned


def test_longest_pinned_path_decides() -> None:
    pins = {"": True, "a": False, "a/b": True}
    assert find_pin(pins, "x") == ("", True)
    assert find_pin(pins, "a") == ("a", False)
    assert find_pin(pins, "ab") == ("", True)
    assert find_pin(pins, "a/b/c") == ("a/b", True)
    assert find_pin({}, "a") is None


PATHS = st.lists(st.sampled_from("ab"), max_size=3).map("/".join)


@given(st.lists(st.tuples(PATHS, st.booleans()), max_size=8), PATHS)
def test_after_any_changes_each_path_is_as_it_was_last_told(told: list[tuple[str, bool]], asked: str) -> None:
    pins: dict[str, bool] = {}
    expected = False
    for path, pinned in told:
        changes = change_pins(pins, path, pinned=pinned, by_policy=False)
        pins = {each: value for each, value in (pins | changes).items() if value is not None}
        if asked == path or asked.startswith(f"{path}/") or not path:
            expected = pinned
    found = find_pin(pins, asked)
    assert (found is not None and found[1]) == expected


def test_unpinning_what_no_pin_holds_leaves_nothing_behind() -> None:
    assert change_pins({"a": True}, "a", pinned=False, by_policy=False) == {"a": None}
    assert change_pins({"a": True, "a/b": False}, "a", pinned=True, by_policy=False) == {"a": True, "a/b": None}
    assert change_pins({}, "a", pinned=False, by_policy=True) == {"a": False}

"""One word for where a file's bytes are."""

import dataclasses

import pytest

from fanoutfs.index.format import Dirty
from fanoutfs.tiering.states import Tier, TierFacts, reason, share_cached, tier_of

REMOTE = TierFacts(size_bytes=100, cached_bytes=0, has_object=True)
STAGED = TierFacts(size_bytes=100, cached_bytes=100, has_object=False, what=Dirty.CONTENT)


@pytest.mark.parametrize(
    ("facts", "tier"),
    [
        (REMOTE, Tier.REMOTE),
        (dataclasses.replace(REMOTE, cached_bytes=1), Tier.CACHED),
        (dataclasses.replace(REMOTE, cached_bytes=100), Tier.CACHED),
        (TierFacts(size_bytes=0, cached_bytes=0, has_object=True), Tier.CACHED),
        (dataclasses.replace(REMOTE, is_pinned=True), Tier.PINNED),
        (dataclasses.replace(REMOTE, is_archived=True), Tier.ARCHIVED),
        (dataclasses.replace(REMOTE, is_archived=True, cached_bytes=99), Tier.ARCHIVED),
        (dataclasses.replace(REMOTE, is_archived=True, cached_bytes=100), Tier.CACHED),
        (dataclasses.replace(REMOTE, is_archived=True, is_pinned=True), Tier.ARCHIVED),
        (STAGED, Tier.DIRTY),
        (dataclasses.replace(STAGED, is_uploading=True), Tier.UPLOADING),
        (dataclasses.replace(STAGED, is_pinned=True), Tier.DIRTY),
        (dataclasses.replace(STAGED, is_never=True), Tier.LOCAL),
        (dataclasses.replace(STAGED, is_never=True, is_uploading=True), Tier.UPLOADING),
        (dataclasses.replace(REMOTE, is_never=True, cached_bytes=1), Tier.CACHED),
        (dataclasses.replace(STAGED, what=Dirty.CONTENT | Dirty.CONFLICT), Tier.DIRTY),
        (dataclasses.replace(REMOTE, what=Dirty.META), Tier.REMOTE),
        (dataclasses.replace(REMOTE, what=Dirty.META, cached_bytes=100), Tier.CACHED),
    ],
)
def test_each_state_follows_from_the_records(facts: TierFacts, tier: Tier) -> None:
    assert tier_of(facts) is tier


def test_share_is_of_the_size_and_an_empty_file_is_whole() -> None:
    assert share_cached(dataclasses.replace(REMOTE, cached_bytes=25)) == 0.25
    assert share_cached(TierFacts(size_bytes=0, cached_bytes=0, has_object=True)) == 1.0


def test_reason_names_the_pin_the_rule_and_the_failure() -> None:
    pinned = dataclasses.replace(REMOTE, is_pinned=True, cached_bytes=1)
    assert reason(pinned, rule="policy 'x'", pin="data") == "pinned by a pin of data, but not all of it is here yet"
    assert reason(pinned, rule="policy 'x'", pin=None).startswith("pinned by policy 'x'")
    assert reason(STAGED, rule="policy 'x'", pin=None, error="503").endswith("policy 'x'; last failure: 503")
    assert "metadata" in reason(dataclasses.replace(REMOTE, what=Dirty.META), rule="", pin=None)

"""Fan-out, saved requests, prices."""

import pytest

from fanoutfs.errors import UsageError
from fanoutfs.observe.derived import (
    DEFAULT_PRICES,
    cost_saved,
    cost_spent,
    fan_out,
    hit_ratio,
    parse_prices,
    requests_saved,
    requests_sent,
)
from fanoutfs.records import GIB

COUNTERS = {
    "messages_read_answered": 1000,
    "messages_read_relayed": 100,
    "messages_lookup_answered": 50,
    "messages_lookup_relayed": 60,  # some failed in the core
    "messages_readdirplus_answered": 7,
    "messages_readdir_answered": 3,
    "backend_gets": 80,
    "backend_lists": 2,
    "backend_bytes": 1 * GIB,
    "reader_bytes": 10 * GIB,
}


def test_what_a_client_without_a_cache_would_have_sent_is_saved_and_never_negative() -> None:
    assert requests_saved(COUNTERS) == {"get": 920, "head": 50, "list": 8}
    assert requests_saved({"messages_read_answered": 1, "backend_gets": 5}) == {"get": 0, "head": 0, "list": 0}


def test_costs_follow_the_table() -> None:
    prices = parse_prices("get=1,list=10,gib=0.5")
    assert cost_spent(COUNTERS, prices) == pytest.approx(80 / 1000 + 2 * 10 / 1000 + 0.5)
    assert cost_saved(COUNTERS, prices) == pytest.approx(920 / 1000 + 8 * 10 / 1000 + 9 * 0.5)


def test_kinds_left_out_cost_nothing() -> None:
    assert cost_spent(COUNTERS, parse_prices("")) == 0


def test_default_table_prices_every_kind_of_request() -> None:
    assert set(requests_sent({})) <= set(parse_prices(DEFAULT_PRICES).by_kind)


@pytest.mark.parametrize("text", ["get", "get=", "got=1", "get=-1", "get=nan", "get=1;put=2", "get=inf"])
def test_wrong_table_names_the_word_and_the_kinds(text: str) -> None:
    with pytest.raises(UsageError, match="write KIND=PRICE, KIND one of get"):
        parse_prices(text)


def test_ratios_are_unknown_before_there_is_anything_to_divide_by() -> None:
    assert fan_out({}) is None
    assert hit_ratio({}) is None
    assert fan_out(COUNTERS) == pytest.approx(10)
    assert hit_ratio(COUNTERS) == pytest.approx(0.9)
    assert hit_ratio(COUNTERS, "lookup") == 0

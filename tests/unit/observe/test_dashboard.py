"""The dashboard for Grafana asks only for what there is."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fanoutfs.observe.exposition import exported_names

DASHBOARD = Path(__file__).parents[3] / "grafana" / "fanoutfs.json"


@pytest.fixture
def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def queries(dashboard: Any) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        yield variable["query"]


def test_every_metric_named_is_exported(dashboard: Any) -> None:
    named = {name for query in queries(dashboard) for name in re.findall(r"\bfanoutfs_\w+", query)}
    assert len(named) > 30
    assert named - exported_names() == set()


def test_counters_are_asked_for_rates_and_gauges_are_not(dashboard: Any) -> None:
    for query in queries(dashboard):
        for name in re.findall(r"\bfanoutfs_\w+", query):
            is_counter = name.endswith(("_total", "_bucket"))
            assert bool(re.search(rf"(rate|increase)\({name}\b", query)) == is_counter, query


def test_every_query_follows_the_mount_that_was_chosen(dashboard: Any) -> None:
    for query in queries(dashboard):
        selectors = re.findall(r"\bfanoutfs_\w+(\{[^}]*\})", query)
        assert all("$mountpoint" in selector for selector in selectors)
        assert len(selectors) == len(re.findall(r"\bfanoutfs_\w+", query)) or query.startswith("label_values(")


def test_panels_do_not_overlap_and_have_numbers_of_their_own(dashboard: Any) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])

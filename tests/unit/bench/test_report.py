"""The report: medians, ratios and verdicts."""

import json

from fanoutfs.bench.report import Report, number, table


def _report() -> Report:
    report = Report("title", {"cores": 2})
    rate = report.measure("opens", "opens/s")
    for value in (100.0, 300.0, 200.0):
        report.add(rate, "ext4", value)
    for value in (150.0, 160.0, 10.0):
        report.add(rate, "fanoutfs", value)
    return report


def test_ratio_of_rates_is_a_ratio_of_medians() -> None:
    report = _report()
    assert report.ratio(report.measure("opens", "opens/s"), "fanoutfs", "ext4") == 0.75


def test_ratio_of_times_is_turned_so_that_more_is_better() -> None:
    report = Report("title", {})
    time = report.measure("time", "s", is_rate=False)
    report.add(time, "ext4", 1.0)
    report.add(time, "fanoutfs", 4.0)
    assert report.ratio(time, "fanoutfs", "ext4") == 0.25


def test_target_at_the_limit_is_met_and_above_is_missed() -> None:
    report = _report()
    measure = report.measure("opens", "opens/s")
    assert report.check_ratio(measure, "ext4", 0.75) is True
    assert not report.has_failures
    assert report.check_ratio(measure, "ext4", 0.76) is False
    assert report.has_failures


def test_target_against_a_peer_that_did_not_run_stays_open() -> None:
    report = _report()
    measure = report.measure("opens", "opens/s")
    report.not_run(measure, "rclone", "not run: rclone is not installed")
    assert report.check_ratio(measure, "rclone", 3.0) is None
    assert not report.has_failures
    assert "not run: rclone is not installed" in report.to_text()


def test_subject_that_failed_in_a_later_round_misses_its_target() -> None:
    report = _report()
    measure = report.measure("opens", "opens/s")
    report.not_run(measure, "fanoutfs", "failed: wrong bytes")
    assert report.check_ratio(measure, "ext4", 0.1) is False


def test_json_holds_every_single_value() -> None:
    document = json.loads(_report().to_json())
    peers = document["measures"][0]["peers"]
    assert peers["ext4"]["values"] == [100.0, 300.0, 200.0]
    assert (peers["fanoutfs"]["median"], peers["fanoutfs"]["min"]) == (150.0, 10.0)
    assert peers["fanoutfs"]["ratio_to_ext4"] == 0.75


def test_table_aligns_columns_and_lets_a_last_cell_run_over() -> None:
    lines = list(table([("a", "1", "x"), ("bb", "a long reason that widens nothing")], right=(1,)))
    assert lines == ["a   1  x", "bb  a long reason that widens nothing"]


def test_number_keeps_about_three_digits() -> None:
    assert [number(value) for value in (1234567.8, 12.345, 0.01234, 5.0)] == ["1,234,568", "12.3", "0.0123", "5"]


def test_breakdown_shows_medians_and_a_dash_for_a_part_a_peer_does_not_have() -> None:
    report = Report("title", {})
    for value in (1.0, 9.0, 4.0):
        report.break_down("CPU", "us", "fanoutfs", {"core": value, "loaders": 2.0})
    report.break_down("CPU", "us", "ext4", {"loaders": 3.0})
    rows = report.to_text().split("CPU [us]\n")[1].splitlines()
    assert [row.split() for row in rows] == [
        ["peer", "core", "loaders"],
        ["fanoutfs", "4", "2"],
        ["ext4", "-", "3"],
    ]
    (found,) = json.loads(report.to_json())["breakdowns"]
    assert found["values"]["fanoutfs"]["core"] == [1.0, 9.0, 4.0]

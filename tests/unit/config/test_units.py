"""Units as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.config import units
from fanoutfs.config.units import INDEFINITE
from fanoutfs.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GiB", 20 << 30),
        ("20G", 20 << 30),
        ("20gi", 20 << 30),
        ("20GB", 20 * 10**9),
        ("512M", 512 << 20),
        ("1T", 1 << 40),
        ("1.5T", 3 << 39),
        ("4 KiB", 4096),
        ("100B", 100),
        ("1048576", 1 << 20),
        ("0", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "GiB", "20Q", "20 G iB", "1e9", "inf", "nan", "9999P", "٣G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a size|unknown unit|larger than"):
        units.parse_size(text)


def test_small_plain_number_asks_for_a_unit() -> None:
    with pytest.raises(UsageError, match="`20480` has no unit: write 20480MiB"):
        units.parse_size("20480")


@given(st.integers(0, 1 << 59))
def test_shown_size_is_read_back_within_three_digits(size: int) -> None:
    assert units.parse_size(units.show_size(size)) == pytest.approx(size, rel=0.006)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60", 60),
        ("60s", 60),
        ("5m", 300),
        ("1h", 3600),
        ("2d", 172800),
        ("500ms", 0.5),
        ("indefinite", INDEFINITE),
        ("minimal", 1),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "soon", "5y", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.5, "0.5s"), (59.96, "60.0s"), (60, "1m"), (3725, "1h 2m"), (3605, "1h"), (INDEFINITE, "indefinite")],
)
def test_shown_durations(seconds: float, text: str) -> None:
    assert units.show_duration(seconds) == text


def test_modes_are_octal() -> None:
    assert units.parse_mode("644") == units.parse_mode("0644") == units.parse_mode("0o644") == 0o644
    with pytest.raises(UsageError, match="octal"):
        units.parse_mode("rw-r--r--")
    with pytest.raises(UsageError, match="octal"):
        units.parse_mode("899")


def test_ids_are_numbers_or_names() -> None:
    assert units.parse_uid("root") == units.parse_gid("root") == units.parse_uid("0") == 0
    with pytest.raises(UsageError, match="no user"):
        units.parse_uid("no-such-user")
    with pytest.raises(UsageError, match="no group"):
        units.parse_gid("no-such-group")
    with pytest.raises(UsageError, match="larger"):
        units.parse_uid(str((1 << 32) - 1))


def test_flags_shares_and_counts() -> None:
    assert units.parse_flag("Yes") and not units.parse_flag("off")
    assert units.parse_share("50%") == units.parse_share(".5") == 0.5
    assert units.parse_count("64") == 64
    for parse, text in ((units.parse_flag, "maybe"), (units.parse_share, "half"), (units.parse_count, "-1")):
        with pytest.raises(UsageError):
            parse(text)

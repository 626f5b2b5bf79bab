"""One epoch as loaders read it: listing, order, division, announcement, and what goes wrong."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from fanoutfs.bench.data import make_small_files
from fanoutfs.bench.epoch_read import DataSet, Epoch, compare, divide, in_order, list_files, read_epoch
from fanoutfs.bench.load import LoadError

NAMES = [b"%03d" % number for number in range(103)]
DATA = DataSet("set", 103, 500)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A data set in two directories."""
    names = make_small_files(tmp_path / "set", DATA.files, DATA.size)
    (tmp_path / "set" / "part-001").mkdir()
    for name in names[:40]:
        (tmp_path / "set" / name).rename(tmp_path / "set" / "part-001" / name.name)
    return tmp_path


@pytest.mark.parametrize("batch", [0, 1, 7, 64, 1000])
@pytest.mark.parametrize("loaders", [1, 2, 4, 200])
def test_every_file_is_in_exactly_one_share(loaders: int, batch: int) -> None:
    shares = divide(NAMES, loaders, batch)
    assert len(shares) == loaders
    assert sorted(itertools.chain.from_iterable(shares)) == NAMES


def test_batches_go_to_the_loaders_in_turn() -> None:
    assert divide(NAMES[:10], 3, 2) == [[b"000", b"001", b"006", b"007"], [b"002", b"003", b"008", b"009"], NAMES[4:6]]


def test_without_batches_shares_are_contiguous() -> None:
    assert divide(NAMES[:7], 2, 0) == [NAMES[:3], NAMES[3:7]]


def test_order_is_the_listing_without_a_seed_and_the_same_for_the_same_seed() -> None:
    assert in_order(NAMES, None) == NAMES
    assert in_order(NAMES, 5) == in_order(NAMES, 5) != in_order(NAMES, 6)
    assert sorted(in_order(NAMES, 5)) == NAMES


def test_listing_is_sorted_and_stops_at_the_limit(place: Path) -> None:
    root = bytes(place / "set")
    names = list_files(root, 1000)
    assert names == sorted(names)
    assert len(names) == 103
    assert list_files(root, 5) == names[:5]


def test_listing_leaves_out_directories_it_does_not_need(place: Path) -> None:
    (place / "set" / "part-001").rename(place / "elsewhere")
    (place / "set" / "part-001").symlink_to(place / "missing")  # is no directory: would be taken for a file
    assert len(list_files(bytes(place / "set"), 63)) == 63


@pytest.mark.parametrize("loaders", [1, 4])
def test_epoch_reads_every_file_once(place: Path, loaders: int) -> None:
    result = read_epoch(place, Epoch(DATA, loaders, 8, seed=3), 30.0)
    assert result.files == 103
    assert 0 < result.listing_s < result.seconds
    assert result.rate == 103 / result.seconds


def test_order_is_announced_as_it_is_read(place: Path) -> None:
    def announce(paths: Sequence[str], mountpoint: Path) -> None:
        (place / "announced").write_text("\n".join(paths))  # called in a loader
        assert mountpoint == place

    read_epoch(place, Epoch(DATA, 4, 8, seed=3, announce=announce), 30.0)
    order = in_order(list_files(bytes(place / "set"), 103), 3)
    assert (place / "announced").read_text().split("\n") == [f"{place}/set/{os.fsdecode(name)}" for name in order]


def test_failed_announcement_ends_all_loaders_with_its_reason(place: Path) -> None:
    def announce(paths: Sequence[str], mountpoint: Path) -> None:
        raise OSError("nobody listens")

    with pytest.raises(LoadError, match="nobody listens"):
        read_epoch(place, Epoch(DATA, 4, 8, announce=announce), 30.0)


def test_missing_and_short_files_are_noticed(place: Path) -> None:
    with pytest.raises(LoadError, match="103 files read instead of 104"):
        read_epoch(place, Epoch(DataSet("set", 104, 500), 2, 8), 30.0)
    os.truncate(next((place / "set" / "part-000").iterdir()), 499)
    with pytest.raises(LoadError, match="not 500 bytes"):
        read_epoch(place, Epoch(DATA, 2, 8), 30.0)


def test_comparison_notices_one_wrong_byte(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    compare(place, place, DATA, 3, 30.0)
    copy = tmp_path_factory.mktemp("copy")
    for name in list_files(bytes(place / "set"), 103):
        target = copy / "set" / os.fsdecode(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((place / "set" / os.fsdecode(name)).read_bytes())
    compare(copy, place, DATA, 3, 30.0)
    with target.open("r+b") as file:
        file.write(bytes([file.read(1)[0] ^ 1]))
        file.seek(0)
        file.write(bytes([(target.read_bytes()[0]) ^ 1]))
    with pytest.raises(LoadError, match="not those that were put there"):
        compare(copy, place, DATA, 3, 30.0)

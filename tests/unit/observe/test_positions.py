"""Where listings stand."""

import pytest

from fanoutfs.observe.positions import POSITIONS_BYTES, ListingPositions


@pytest.fixture
def memory() -> memoryview:
    return memoryview(bytearray(POSITIONS_BYTES))


def test_noted_name_is_found_through_another_view_of_the_memory(memory: memoryview) -> None:
    ListingPositions(memory).note(1, 500, b"name")
    assert ListingPositions(memory).find(1, 500) == b"name"


def test_position_nobody_noted_is_not_known(memory: memoryview) -> None:
    positions = ListingPositions(memory)
    positions.note(1, 500, b"name")
    assert positions.find(1, 501) is None
    assert positions.find(2, 500) is None


@pytest.mark.parametrize("length", [1, 255])
def test_names_of_any_length_are_kept(memory: memoryview, length: int) -> None:
    positions = ListingPositions(memory)
    positions.note(1, 500, b"x" * length)
    positions.note(1, 500, b"y")
    positions.note(1, 500, b"x" * length)
    assert positions.find(1, 500) == b"x" * length


def test_slot_that_two_fronts_wrote_at_once_is_not_believed(memory: memoryview) -> None:
    positions = ListingPositions(memory)
    positions.note(1, 500, b"name")
    at = bytes(memory).index(b"name")
    memory[at : at + 2] = b"ot"
    assert positions.find(1, 500) is None


def test_newer_positions_replace_older_ones(memory: memoryview) -> None:
    positions = ListingPositions(memory)
    for cookie in range(20_000):
        positions.note(1, cookie, b"%d" % cookie)
    assert positions.find(1, 19_999) == b"19999"
    assert sum(positions.find(1, cookie) is not None for cookie in range(20_000)) <= 4096

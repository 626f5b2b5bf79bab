"""How much of an overlay is brought for a reader who goes on."""

from fanoutfs.core.overlay import AheadOfReaders
from fanoutfs.records import MIB, PART_BYTES


def test_reader_from_the_beginning_gets_a_part_and_then_all_that_is_allowed() -> None:
    ahead = AheadOfReaders()
    assert ahead.window(1, 0) == PART_BYTES
    ahead.note(1, PART_BYTES)
    # READs of one reader arrive out of order.
    assert ahead.window(1, PART_BYTES + MIB) == ahead.window(1, PART_BYTES) == 64 * MIB


def test_reader_at_random_gets_what_he_asks_for() -> None:
    ahead = AheadOfReaders()
    for offset in (100 * MIB, 900 * MIB, 300 * MIB, 500 * MIB):
        assert ahead.window(1, offset) == 0
        ahead.note(1, offset + MIB)
    assert ahead.window(2, 501 * MIB) == 0, "another file's reader"


def test_many_readers_are_forgotten_sometime() -> None:
    ahead = AheadOfReaders()
    for ino in range(100_000):
        ahead.note(ino, PART_BYTES)
    assert len(ahead._ends) <= 4096

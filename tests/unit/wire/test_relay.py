"""Messages between our own processes: every value comes back."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.wire.hints import HINT_SIZE, Hint, HintKind, decode_hints, encode_small_reads
from fanoutfs.wire.relay import INO_MASK, UNIQUE_INIT, Verb, make_intent, make_unique, split_intent, split_unique


@given(slot=st.integers(0, 0xFFFF), sequence=st.integers(0, 0xFFFF_FFFF))
def test_unique_comes_back_and_never_looks_like_init_or_resend(slot: int, sequence: int) -> None:
    unique = make_unique(slot, sequence)
    assert split_unique(unique) == (slot, sequence)
    assert not unique & UNIQUE_INIT
    assert unique < 1 << 62


@given(verb=st.sampled_from(Verb), ino=st.integers(1, INO_MASK))
def test_intent_comes_back_and_fits_a_file_handle(verb: Verb, ino: int) -> None:
    fh = make_intent(verb, ino)
    assert split_intent(fh) == (verb, ino)
    assert 0 < fh < 1 << 63  # pyfuse3 hands fh on as a signed or unsigned number


def test_intent_of_an_unknown_verb_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a valid Verb"):
        split_intent(99 << 56 | 1)


@given(kind=st.sampled_from(HintKind), ino=st.integers(0, (1 << 64) - 1), part=st.integers(0, (1 << 32) - 1))
def test_hint_comes_back(kind: HintKind, ino: int, part: int) -> None:
    packet = Hint(kind, ino, part).encode()
    assert len(packet) == HINT_SIZE
    assert decode_hints(packet) == [Hint(kind, ino, part)]


def test_small_reads_travel_in_one_packet_in_order() -> None:
    packet = encode_small_reads([7, 5, 7])
    assert decode_hints(packet) == [Hint(HintKind.SMALL_READ, ino) for ino in (7, 5, 7)]


def test_malformed_hints_are_refused() -> None:
    with pytest.raises(struct.error):
        decode_hints(b"\1")
    with pytest.raises(ValueError, match="is not a valid HintKind"):
        decode_hints(bytes(HINT_SIZE))

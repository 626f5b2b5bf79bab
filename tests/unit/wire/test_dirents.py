"""Directory records as the kernel parses them."""

from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.wire.dirents import dirent_size, direntplus_size, pack_dirent
from fanoutfs.wire.kernel import DIRENT_HEAD


def test_dirent_byte_for_byte() -> None:
    assert pack_dirent(16, 17, 8, b"abc").hex() == ("1000000000000000110000000000000003000000080000006162630000000000")


@given(name=st.binary(min_size=1, max_size=255))
def test_dirents_are_padded_to_eight_and_sized_as_promised(name: bytes) -> None:
    packed = pack_dirent(1, 2, 4, name)
    assert len(packed) % 8 == 0
    assert len(packed) == dirent_size(len(name)) == direntplus_size(len(name)) - 128
    assert DIRENT_HEAD.unpack_from(packed) == (1, 2, len(name), 4)
    assert packed[24 : 24 + len(name)] == name
    assert not any(packed[24 + len(name) :])

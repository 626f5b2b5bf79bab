"""INIT, answers and notifications, against bytes written by hand."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.wire import messages
from fanoutfs.wire.kernel import INIT_IN, INIT_OUT, OUT_HEADER_SIZE, InitFlag, Opcode
from fanoutfs.wire.messages import KernelOffer

_FORBIDDEN = (
    InitFlag.ATOMIC_O_TRUNC
    | InitFlag.WRITEBACK_CACHE
    | InitFlag.AUTO_INVAL_DATA
    | 1 << 1  # POSIX_LOCKS
    | 1 << 10  # FLOCK_LOCKS
)


def init_request(flags: int, minor: int = 45, max_readahead: int = 131072) -> bytes:
    body = INIT_IN.pack(7, minor, max_readahead, flags & 0xFFFF_FFFF, flags >> 32)
    return messages.encode_request(Opcode.INIT, 2, 0, body)


def answered(answer: bytes) -> dict[str, int]:
    names = ("major", "minor", "max_readahead", "flags", "max_background", "congestion_threshold", "max_write")
    fields = INIT_OUT.unpack(answer[OUT_HEADER_SIZE:])
    found = dict(zip((*names, "time_gran", "max_pages", "map_alignment", "flags2"), fields, strict=False))
    found["all_flags"] = found["flags"] | found["flags2"] << 32
    return found


def test_init_is_decoded_with_its_upper_flags() -> None:
    offer = messages.decode_init(init_request(InitFlag.INIT_EXT | InitFlag.HAS_RESEND | InitFlag.ASYNC_READ))
    assert offer == KernelOffer(7, 45, 131072, InitFlag.INIT_EXT | InitFlag.HAS_RESEND | InitFlag.ASYNC_READ)
    assert offer.offers(InitFlag.HAS_RESEND)


def test_init_of_an_old_kernel_has_no_upper_flags() -> None:
    body = INIT_IN.pack(7, 31, 131072, InitFlag.ASYNC_READ, 0xFFFF_FFFF)[:16]
    offer = messages.decode_init(messages.encode_request(Opcode.INIT, 2, 0, body))
    assert offer == KernelOffer(7, 31, 131072, InitFlag.ASYNC_READ)


@pytest.mark.parametrize(("version", "has_epoch"), [((7, 43), False), ((7, 44), True), ((8, 0), True)])
def test_epoch_exists_from_744(version: tuple[int, int], has_epoch: bool) -> None:
    assert KernelOffer(*version, 0, 0).has_epoch is has_epoch


@given(flags=st.integers(0, (1 << 64) - 1))
def test_init_answer_never_asks_for_what_breaks_us_or_was_not_offered(flags: int) -> None:
    flags |= InitFlag.INIT_EXT
    found = answered(messages.encode_init_answer(2, messages.decode_init(init_request(flags)), 1 << 20))
    assert not found["all_flags"] & _FORBIDDEN
    assert not found["all_flags"] & ~flags


def test_init_answer_to_a_kernel_that_offers_everything() -> None:
    answer = messages.encode_init_answer(2, messages.decode_init(init_request((1 << 64) - 1)), 1 << 20)
    assert answer[:16].hex() == "50000000000000000200000000000000"
    found = answered(answer)
    assert found["all_flags"] == messages.WANTED_FLAGS
    assert (found["major"], found["minor"], found["max_readahead"]) == (7, 45, 131072)
    assert (found["max_background"], found["congestion_threshold"]) == (512, 384)
    assert (found["max_write"], found["max_pages"], found["time_gran"]) == (1 << 20, 256, 1)


def test_init_answer_takes_the_smaller_minor() -> None:
    assert answered(messages.encode_init_answer(2, KernelOffer(7, 40, 4096, 0), 1 << 20))["minor"] == 40
    assert answered(messages.encode_init_answer(2, KernelOffer(7, 99, 4096, 0), 1 << 20))["minor"] == 45


def test_notifications_byte_for_byte() -> None:
    assert messages.encode_resend().hex() == "10000000070000000000000000000000"
    assert messages.encode_inc_epoch().hex() == "10000000080000000000000000000000"
    assert messages.encode_inval_inode(16, offset=-1).hex() == (
        "280000000200000000000000000000001000000000000000ffffffffffffffff0000000000000000"
    )
    assert messages.encode_inval_entry(1, b"ab").hex() == (
        "2300000003000000000000000000000001000000000000000200000000000000616200"
    )
    assert messages.encode_inval_entry(1, b"ab", expire_only=True)[28:32] == b"\1\0\0\0"


def test_error_answer_carries_the_negative_errno() -> None:
    assert messages.encode_error(5, errno.ENOENT).hex() == "10000000feffffff0500000000000000"


def test_descriptions_name_the_opcode() -> None:
    request = messages.encode_request(Opcode.LOOKUP, 0x22, 7, b"a\0")
    assert messages.describe_request(request) == "LOOKUP unique=0x22 node=7 pid=0 len=42"
    assert messages.describe_request(messages.encode_request(99, 1, 1, b"")).startswith("99 ")
    assert messages.describe_request(b"abc") == "short packet of 3 bytes"

"""The layouts of <linux/fuse.h>, against bytes written by hand."""

from fanoutfs.wire import kernel
from fanoutfs.wire.kernel import Opcode


def test_struct_sizes_are_the_kernels() -> None:
    assert kernel.IN_HEADER.size == 40
    assert kernel.OUT_HEADER.size == 16
    assert kernel.ATTR.size == 88
    assert kernel.ENTRY_OUT_HEAD.size + kernel.ATTR.size == 128
    assert kernel.ATTR_OUT_HEAD.size + kernel.ATTR.size == 104
    assert kernel.READ_IN.size == 40
    assert kernel.STATFS_OUT.size == 80
    assert kernel.INIT_IN.size == 64
    assert kernel.INIT_OUT.size == 64
    assert kernel.DIRENT_HEAD.size == 24
    assert kernel.NOTIFY_INVAL_INODE_OUT.size == 24
    assert kernel.NOTIFY_INVAL_ENTRY_OUT.size == 16


def test_request_header_is_decoded_field_by_field() -> None:
    packet = bytes.fromhex(
        "2c000000"  # len 44
        "01000000"  # LOOKUP
        "0200000000000080"  # unique 2, resent
        "1000000000000000"  # nodeid 16
        "e8030000"  # uid 1000
        "e9030000"  # gid 1001
        "2a000000"  # pid 42
        "0000"
        "0000"
    )
    assert kernel.IN_HEADER.unpack(packet) == (44, Opcode.LOOKUP, kernel.UNIQUE_RESEND | 2, 16, 1000, 1001, 42, 0, 0)


def test_attr_is_encoded_field_by_field() -> None:
    packed = kernel.ATTR.pack(16, 5, 1, 2, 3, 4, 6, 7, 8, 0o100644, 1, 1000, 1001, 9, 4096, 0)
    assert packed.hex(" ", 8) == (
        "1000000000000000 0500000000000000 0100000000000000 0200000000000000 0300000000000000 0400000000000000"
        " 0600000007000000 08000000a4810000 01000000e8030000 e903000009000000 0010000000000000"
    )


def test_read_is_decoded_field_by_field() -> None:
    body = bytes.fromhex("0a00000000000000 0000100000000000 00000200 00000000 0000000000000000 00800000 00000000")
    fh, offset, size, *_rest = kernel.READ_IN.unpack(body)
    assert (fh, offset, size) == (10, 1 << 20, 1 << 17)


def test_opcodes_have_the_kernels_numbers() -> None:
    # From <linux/fuse.h>, 7.45; 7 and 19 are unused.
    assert sorted(Opcode) == [n for n in range(1, 54) if n not in (7, 19)]
    assert (Opcode.READDIRPLUS, Opcode.RENAME2, Opcode.STATX) == (44, 45, 52)

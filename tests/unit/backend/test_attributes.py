"""File attributes as object metadata: there and back, and what others write."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.backend.attributes import (
    METADATA_BYTES,
    FileAttributes,
    decode_attributes,
    encode_attributes,
    encode_xattrs,
)
from fanoutfs.errors import MetadataTooLargeError

TIMES = st.integers(-(1 << 61), 1 << 61)
TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)

MODES = [kind | bits for kind in TYPES for bits in range(0o10000) if kind != stat.S_IFLNK or bits == 0o777]


@given(
    st.builds(
        FileAttributes,
        mode=st.none() | st.sampled_from(MODES),
        uid=st.none() | st.integers(0, 2**32 - 2),
        gid=st.none() | st.integers(0, 2**32 - 2),
        mtime_ns=st.none() | TIMES,
        ctime_ns=st.none() | TIMES,
        atime_ns=st.none() | TIMES,
        rdev=st.none() | st.integers(0, 2**32 - 1),
        xattrs=st.dictionaries(
            st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()).map(lambda text: text.encode()),
            st.binary(max_size=30),
            max_size=3,
        ),
    )
)
def test_attributes_come_back_and_fit_into_headers(attributes: FileAttributes) -> None:
    metadata = encode_attributes(attributes)
    assert decode_attributes(metadata) == attributes
    assert all(value.isascii() and value.isprintable() and value == value.strip() for value in metadata.values())


def test_keys_and_values_are_those_of_s3fs() -> None:
    attributes = FileAttributes(0o100644, 0, 1000, 1_700_000_000_000_000_005, xattrs={b"user.a": b"x"})
    assert encode_attributes(attributes) == {
        "mode": "33188",
        "uid": "0",
        "gid": "1000",
        "mtime": "1700000000.000000005",
        "xattr": "%7B%22user.a%22%3A%22eA%3D%3D%22%7D",
    }


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("33188", 0o100644),
        ("100644", 0o100644),  # rclone --metadata
        ("0100644", 0o100644),
        ("33206", 0o100666),  # decimal, though all digits are octal
        ("41471", 0o120777),
        ("16877", 0o40755),
        ("040755", 0o40755),
        ("", None),
        ("644", None),
        ("-33188", None),
        ("99999999999999999999999", None),
        ("rw-r--r--", None),
        ("٣٣١٨٨", None),
    ],
)
def test_mode_is_told_decimal_or_octal_by_its_type_bits(text: str, mode: int | None) -> None:
    assert decode_attributes({"mode": text}).mode == mode


def test_every_decimal_mode_and_every_octal_one_of_files_and_directories_is_read_as_itself() -> None:
    assert [mode for mode in MODES if decode_attributes({"mode": str(mode)}).mode != mode] == []
    octal = [mode for mode in MODES if stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)]
    wrong = [f"{mode:o}" for mode in octal if decode_attributes({"mode": f"{mode:o}"}).mode != mode]
    assert wrong == ["41471"], "a directory 1471 in octal is a symlink in decimal"


@pytest.mark.parametrize(
    ("text", "mtime_ns"),
    [
        ("1700000000", 1_700_000_000_000_000_000),
        ("1700000000.5", 1_700_000_000_500_000_000),
        ("1700000000.123456789999", 1_700_000_000_123_456_789),
        ("-0.5", -500_000_000),
        ("nan", None),
        ("inf", None),
        ("1e400", None),
        ("2020-01-01T00:00:00Z", None),
    ],
)
def test_times_have_up_to_nine_digits_of_fraction(text: str, mtime_ns: int | None) -> None:
    assert decode_attributes({"mtime": text}).mtime_ns == mtime_ns


@pytest.mark.parametrize("text", ["%7B", "[1]", '{"a":1}', '{"a":"*"}', "%ff", "null"])
def test_broken_xattrs_count_as_none(text: str) -> None:
    assert decode_attributes({"xattr": text}).xattrs == {}


def test_xattrs_that_no_object_holds_are_refused() -> None:
    with pytest.raises(MetadataTooLargeError):
        encode_xattrs({b"user.a": bytes(METADATA_BYTES)})
    with pytest.raises(MetadataTooLargeError):
        encode_xattrs({b"user.\xff": b""})

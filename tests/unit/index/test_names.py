"""Which keys show, and how."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.index.names import child_name


@pytest.mark.parametrize(
    ("key", "prefix", "name"),
    [
        ("a", "", b"a"),
        ("d/a", "d/", b"a"),
        ("d/e/", "d/", b"e"),
        ("a b\n\t", "", b"a b\n\t"),
        ("\udcff", "", b"\xff"),
        ("ä", "", "ä".encode()),
        ("x" * 255, "", b"x" * 255),
        ("...", "", b"..."),
    ],
)
def test_showable_key_has_its_last_part_as_name(key: str, prefix: str, name: bytes) -> None:
    assert child_name(key, prefix) == name


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("", ""),
        ("/", ""),
        ("//", ""),
        ("d//", "d/"),
        (".", ""),
        ("..", ""),
        ("../", ""),
        ("a\0b", ""),
        ("x" * 256, ""),
        ("ä" * 128, ""),
        ("other/a", "d/"),
        ("d/e/f", "d/"),
        ("d/", "d/"),
    ],
)
def test_key_without_a_posix_name_is_hidden(key: str, prefix: str) -> None:
    assert child_name(key, prefix) is None


@given(key=st.text())
def test_every_name_is_one_a_kernel_takes(key: str) -> None:
    try:
        key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return  # no store can send such a key
    name = child_name(key, "")
    if name is not None:
        assert 0 < len(name) <= 255
        assert b"/" not in name
        assert b"\0" not in name
        assert name not in (b".", b"..")

"""Source parsing and volume identity."""

from pathlib import Path

import pytest

from fanoutfs.config.source import Source, parse_source
from fanoutfs.errors import UsageError


@pytest.mark.parametrize(
    ("source", "prefix", "expected"),
    [
        ("s3://b", "", Source("s3", "b", "")),
        ("s3://b/", "", Source("s3", "b", "")),
        ("s3://b/a/c", "", Source("s3", "b", "a/c/")),
        ("s3://b/a/c/", "d", Source("s3", "b", "a/c/d/")),
        ("s3://b", "/d/e/", Source("s3", "b", "d/e/")),
        ("s3://b/a%20b#c?d", "", Source("s3", "b", "a%20b#c?d/")),
        ("gs://b/x", "", Source("gs", "b", "x/")),
        ("az://c/x", "", Source("az", "c", "x/")),
        ("http://Host:80/data%20set/", "", Source("http", "host:80", "data set/")),
        ("https://host", "p", Source("https", "host", "p/")),
        ("memory://", "", Source("memory", "memory", "")),
        ("memory://one", "", Source("memory", "one", "")),
    ],
)
def test_source_is_parsed(source: str, prefix: str, expected: Source) -> None:
    assert parse_source(source, prefix) == expected


@pytest.mark.parametrize(
    "source",
    [
        "", "b/x", "ftp://h/x", "s3://", "s3:///x", "s3://AK:SECRET@b/x", "https://u:SECRET@h/", "https://h/?sig=SECRET",
        "file://dir", "/data", "S3://b", "s3a://b/x", "https://h/#x", "http://[h/",
        "s3://b/a//c", "s3://b/../c", "s3://b/./c", "http://", "relative/dir",
    ],
)  # fmt: skip
def test_senseless_source_is_refused(source: str) -> None:
    with pytest.raises(UsageError):
        parse_source(source)


@pytest.mark.parametrize("source", ["s3://AK:SECRET@b/x", "https://u:SECRET@h/"])
def test_message_for_a_source_with_credentials_does_not_repeat_them(source: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(source)
    assert "SECRET" not in str(caught.value)


def test_file_source_is_decoded_and_resolved(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "link").symlink_to("a b")
    assert parse_source(f"file://{tmp_path}/a%20b").root == str(tmp_path / "a b")
    assert parse_source(f"file://{tmp_path}/link") == parse_source(f"file://{tmp_path}/a b/")


def test_root_directory_is_a_source() -> None:
    assert parse_source("file:///") == Source("file", "", "")


def test_identity_tells_volumes_apart_and_spellings_not() -> None:
    assert parse_source("s3://b/x").identity() == "s3://b/x/"
    assert parse_source("s3://b", "x") == parse_source("s3://b/x/")
    assert parse_source("s3://b/x").identity("http://h:1/") == "s3://b/x/ at http://h:1"
    assert len({parse_source("s3://b/x").identity(each) for each in ("", "http://h:1", "http://h:2")}) == 3

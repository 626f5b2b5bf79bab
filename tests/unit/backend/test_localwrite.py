"""What writing leaves in a directory, and what happens when others write there too."""

import os
import stat
from pathlib import Path

import pytest

from fanoutfs.backend import localwrite
from fanoutfs.backend.attributes import FileAttributes, encode_attributes
from fanoutfs.backend.local import LocalBackend
from fanoutfs.backend.writing import Expect, Properties, Upload
from fanoutfs.errors import (
    BackendError,
    BucketMissingError,
    ObjectMissingError,
    PreconditionFailedError,
    UploadMissingError,
)

NONE = Properties()
MTIME_NS = 1_600_000_000_123_456_789


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def backend(root: Path) -> LocalBackend:
    return LocalBackend(str(root))


def test_mode_and_mtime_are_those_of_the_file_and_setuid_is_not(backend: LocalBackend, root: Path) -> None:
    attributes = FileAttributes(stat.S_IFREG | 0o4751, os.getuid(), os.getgid(), MTIME_NS)
    version = backend.put("d/a", b"x", Expect.NOTHING, Properties(encode_attributes(attributes)))
    found = (root / "d" / "a").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o751, MTIME_NS)
    assert version == backend.head("d/a").version
    assert backend.details("d/a").properties.metadata["mode"] == str(attributes.mode)


def test_file_of_another_program_shows_its_own_attributes(backend: LocalBackend, root: Path) -> None:
    (root / "a").write_bytes(b"x")
    (root / "a").chmod(0o640)
    os.utime(root / "a", ns=(MTIME_NS, MTIME_NS))
    metadata = backend.details("a").properties.metadata
    assert (metadata["mode"], metadata["mtime"]) == (str(stat.S_IFREG | 0o640), "1600000000.123456789")


def test_nothing_is_left_beside_what_was_written(backend: LocalBackend, root: Path) -> None:
    version = backend.put("a", b"x", Expect.NOTHING, NONE)
    with pytest.raises(PreconditionFailedError):
        backend.put("a", b"y", Expect.NOTHING, NONE)
    version = backend.put("a", b"y", version, NONE)
    with pytest.raises(PreconditionFailedError):
        backend.put("a", b"z", backend.put("b", b"", Expect.ANYTHING, NONE), NONE)
    assert sorted(os.listdir(root)) == ["a", "b"]
    assert version == backend.head("a").version


def test_change_of_a_file_that_is_gone_leaves_no_directory_behind(backend: LocalBackend, root: Path) -> None:
    version = backend.put("a", b"x", Expect.NOTHING, NONE)
    for key in ("d/a", "a/b"):
        with pytest.raises(PreconditionFailedError):
            backend.put(key, b"y", version, NONE)
        with pytest.raises(PreconditionFailedError):
            backend.copy(backend.head("a"), key, version, NONE)
    assert os.listdir(root) == ["a"]


def test_upload_under_way_is_not_shown_and_not_counted(backend: LocalBackend) -> None:
    upload = backend.begin_upload("a", NONE)
    backend.upload_part(upload, 1, b"x")
    (page,) = backend.list("")
    assert (page.objects, page.prefixes, page.hidden) == ((), (), 0)
    (page,) = backend.list("", limit=5)
    assert (page.objects, page.prefixes, page.hidden) == ((), (), 0)
    (page,) = backend.scan("")
    assert (page.objects, page.hidden) == ((), 0)


def test_file_of_a_killed_put_is_found_and_removed(backend: LocalBackend, root: Path) -> None:
    (root / ".fanoutfs-writing").mkdir()
    (root / ".fanoutfs-writing" / "put-1").write_bytes(b"half")
    (stale,) = backend.list_uploads("")
    backend.abort_upload(stale.upload)
    assert list(root.iterdir()) == []


def test_foreign_file_that_came_between_is_put_back(
    backend: LocalBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = backend.put("a", b"first", Expect.NOTHING, NONE)
    exchange = localwrite._exchange

    def late(first: str, second: str) -> bool:
        monkeypatch.setattr(localwrite, "_exchange", exchange)
        (root / "foreign").write_bytes(b"other")
        (root / "foreign").replace(root / "a")
        return exchange(first, second)

    monkeypatch.setattr(localwrite, "_exchange", late)
    with pytest.raises(PreconditionFailedError):
        backend.put("a", b"ours", version, NONE)
    assert (root / "a").read_bytes() == b"other"
    assert os.listdir(root) == ["a"]


def test_file_system_that_cannot_exchange_replaces(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localwrite, "_exchange", lambda first, second: False)
    version = backend.put("a", b"second", backend.put("a", b"first", Expect.NOTHING, NONE), NONE)
    assert backend.head("a").version == version


def test_file_where_a_directory_is_needed_is_an_error_of_its_own(backend: LocalBackend) -> None:
    backend.put("a", b"x", Expect.NOTHING, NONE)
    with pytest.raises(BackendError) as caught:
        backend.put("a/b", b"x", Expect.NOTHING, NONE)
    assert not isinstance(caught.value, ObjectMissingError)


@pytest.mark.parametrize("upload_id", ["", ".", "..", "../..", "a/b", ".fanoutfs"])
def test_upload_id_leads_to_no_other_directory(backend: LocalBackend, root: Path, upload_id: str) -> None:
    (root / "kept").write_bytes(b"x")
    with pytest.raises(UploadMissingError):
        backend.abort_upload(Upload("a", upload_id))
    assert (root / "kept").exists()


def test_directory_that_is_not_empty_stays(backend: LocalBackend, root: Path) -> None:
    backend.put("d/", b"", Expect.NOTHING, NONE)
    backend.put("d/a", b"x", Expect.NOTHING, NONE)
    backend.delete("d/")
    assert (root / "d" / "a").exists()


def test_directory_made_for_a_file_goes_with_the_last_one_and_no_other_does(backend: LocalBackend, root: Path) -> None:
    (root / "theirs").mkdir()
    keys = ("theirs/ours/deep/a", "ours/deep/a", "marked/deep/a", "first/a", "ours/b", "a")
    for key in keys:
        backend.put(key, b"x", Expect.NOTHING, NONE)
    for key in ("first/", "marked/"):
        backend.put(key, b"", Expect.NOTHING, NONE)
    for key in keys:
        assert (root / key).exists(), f"{key} went with another one"
        backend.delete(key)
    assert sorted(os.listdir(root)) == ["first", "marked", "theirs"]
    assert not any(list((root / name).iterdir()) for name in os.listdir(root))


def test_put_beside_the_last_file_that_is_deleted_makes_the_directory_again(
    backend: LocalBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.put("d/e/a", b"x", Expect.NOTHING, NONE)
    imply = localwrite._imply

    def late(directory: str) -> None:
        imply(directory)
        monkeypatch.setattr(localwrite, "_imply", imply)
        backend.delete("d/e/a")

    for key in ("d/e/b", "d/e/"):
        monkeypatch.setattr(localwrite, "_imply", late)
        backend.put(key, b"", Expect.NOTHING, NONE)
        assert (root / key).exists()
        backend.put("d/e/a", b"x", Expect.ANYTHING, NONE)


def test_missing_root_is_a_missing_bucket(tmp_path: Path) -> None:
    with pytest.raises(BucketMissingError):
        LocalBackend(str(tmp_path / "nothing")).put("a", b"x", Expect.NOTHING, NONE)

"""What every backend must do to write, run against every implementation and every wrapper."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from fanoutfs.backend.archive import Restore
from fanoutfs.backend.base import Backend
from fanoutfs.backend.connect import open_backend
from fanoutfs.backend.credentials import AwsCredentials
from fanoutfs.backend.faulty import FaultyBackend, Lost
from fanoutfs.backend.local import LocalBackend
from fanoutfs.backend.retry import RetryingBackend, RetryPolicy
from fanoutfs.backend.s3client import S3Client, S3Place
from fanoutfs.backend.s3probe import remove_stale
from fanoutfs.backend.store import StoreBackend
from fanoutfs.backend.writing import TOKEN_KEY, Body, Condition, Expect, FileRange, Part, Properties
from fanoutfs.errors import (
    ObjectMissingError,
    PreconditionFailedError,
    TransientError,
    UnsupportedError,
    UploadMissingError,
    VersionGoneError,
)
from fanoutfs.records import MIB, ObjectInfo, Version
from tests.contract.wrappers import WRAPPERS
from tests.support.processes import environment
from tests.support.servers import REGION, Bucket

NONE = Properties()
NOBODY = Version("0123456789abcdef", "", 5, 0)


class Place:
    """A backend and a prefix in it; keys are relative to the prefix."""

    def __init__(self, backend: Backend, prefix: str = "") -> None:
        self.backend = backend
        self.prefix = prefix

    def put(
        self, key: str, body: Body, condition: Condition = Expect.ANYTHING, properties: Properties = NONE
    ) -> Version:
        return self.backend.put(self.prefix + key, body, condition, properties)

    def info(self, key: str) -> ObjectInfo:
        return self.backend.head(self.prefix + key)

    def read(self, key: str) -> bytes:
        version = self.info(key).version
        chunks = range(0, version.size_bytes, 8 * MIB)
        return b"".join(
            self.backend.get_range(self.prefix + key, start, min(start + 8 * MIB, version.size_bytes), version)
            for start in chunks
        )

    def is_there(self, key: str) -> bool:
        try:
            self.info(key)
        except ObjectMissingError:
            return False
        return True

    def listed(self, below: str = "") -> list[str]:
        pages = self.backend.list(self.prefix + below)
        # SeaweedFS keeps a directory for a while after its last object.
        return sorted(
            info.key.removeprefix(self.prefix) for page in pages for info in page.objects if info.key != self.prefix
        )


@pytest.fixture(params=["file", "memory", "moto", "weed", "weed-open_backend", "measure", "retry", "faulty"])
def place(request: pytest.FixtureRequest, tmp_path: Path, open_bucket: Callable[..., Backend]) -> Iterator[Place]:
    kind = request.param
    if kind == "file":
        (tmp_path / "source").mkdir()
        found = Place(LocalBackend(str(tmp_path / "source")))
    elif kind in ("moto", "weed"):
        bucket: Bucket = request.getfixturevalue("moto_bucket" if kind == "moto" else "bucket")
        found = Place(open_bucket(bucket), bucket.prefix)
    elif kind == "weed-open_backend":
        bucket = request.getfixturevalue("bucket")
        with environment(bucket.env):
            found = Place(open_backend(bucket.config()), bucket.prefix)
    else:
        found = Place(StoreBackend(MemoryStore(), if_match_form="bare"))
        if kind in WRAPPERS:
            found.backend = WRAPPERS[kind](found.backend)
    yield found
    found.backend.close()


@pytest.fixture
def parts_place(place: Place) -> Place:
    """A place that takes uploads in parts."""
    if not place.backend.abilities().can_upload_parts:
        pytest.skip("no uploads in parts here")
    return place


def _file(tmp_path: Path, content: bytes) -> int:
    path = tmp_path / "staged"
    path.write_bytes(content)
    return os.open(path, os.O_RDONLY)


# --- put ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a", "d/e/f", "odd %20+?#&=é", "d/~x"])
def test_put_object_is_read_back_with_the_version_it_returned(place: Place, key: str) -> None:
    version = place.put(key, b"hello")
    assert place.read(key) == b"hello"
    assert (place.info(key).version.etag, version.size_bytes) == (version.etag, 5)
    assert bytes(place.backend.get_range(place.prefix + key, 1, 3, version)) == b"el"


def test_put_of_nothing_makes_an_empty_object(place: Place) -> None:
    assert place.put("a", b"").size_bytes == 0
    assert place.info("a").version.size_bytes == 0


def test_put_out_of_a_file_sends_exactly_the_range(place: Place, tmp_path: Path) -> None:
    content = os.urandom(9 * MIB + 17)
    fd = _file(tmp_path, content)
    try:
        place.put("a", FileRange(fd, 5, len(content) - 3))
        assert place.read("a") == content[5:-3]
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    finally:
        os.close(fd)


def test_put_out_of_a_file_that_is_shorter_fails_and_changes_nothing(place: Place, tmp_path: Path) -> None:
    place.put("a", b"before")
    fd = _file(tmp_path, b"short")
    try:
        with pytest.raises(Exception, match="ends at 5 instead of 6"):
            place.put("a", FileRange(fd, 0, 6))
    finally:
        os.close(fd)
    assert place.read("a") == b"before"


def test_put_if_absent_makes_an_object_once(place: Place) -> None:
    place.put("a", b"first", Expect.NOTHING)
    with pytest.raises(PreconditionFailedError):
        place.put("a", b"second", Expect.NOTHING)
    assert place.read("a") == b"first"


def test_put_if_matching_replaces_that_version_only(place: Place) -> None:
    first = place.put("a", b"first")
    second = place.put("a", b"second!", first)
    with pytest.raises(PreconditionFailedError):
        place.put("a", b"third", first)
    assert place.read("a") == b"second!"
    place.put("a", b"fourth", replace(second, mtime_ns=place.info("a").version.mtime_ns))
    assert place.read("a") == b"fourth"


def test_put_if_matching_where_nothing_is_fails(place: Place) -> None:
    with pytest.raises(PreconditionFailedError):
        place.put("a", b"x", NOBODY)
    assert not place.is_there("a")


def test_metadata_and_content_type_come_back_as_they_were_put(place: Place) -> None:
    metadata = {"mode": "33188", "mtime": "1700000000.123456789", "xattr": "%7B%22user.a%22%3A%22eA%3D%3D%22%7D"}
    place.put("a", b"x", Expect.NOTHING, Properties(metadata, "text/plain"))
    details = place.backend.details(place.prefix + "a")
    found = {name: value for name, value in details.properties.metadata.items() if name != TOKEN_KEY}
    assert (found, details.properties.content_type) == (metadata, "text/plain")
    assert details.info.version.etag == place.info("a").version.etag


def test_details_of_a_missing_object_raise_object_missing(place: Place) -> None:
    with pytest.raises(ObjectMissingError):
        place.backend.details(place.prefix + "nothing")


def test_directory_marker_is_put_and_deleted(place: Place) -> None:
    if not place.backend.abilities().can_mark_directories:
        pytest.skip("no directory markers here")
    place.put("d/", b"", Expect.ANYTHING, Properties({"mode": "16877"}))
    place.put("d/", b"", Expect.ANYTHING, Properties({"mode": "16877"}))
    assert [name for page in place.backend.list(place.prefix) for name in page.prefixes] == [place.prefix + "d/"]
    # SeaweedFS drops the metadata of what it makes a directory.
    assert place.backend.details(place.prefix + "d/").properties.metadata.get("mode", "16877") == "16877"
    place.backend.delete(place.prefix + "d/")
    assert [name for page in place.backend.list(place.prefix) for name in page.prefixes] == []


# --- delete ------------------------------------------------------------------------------------------------------


def test_delete_removes_and_may_be_repeated(place: Place) -> None:
    version = place.put("a", b"x")
    place.backend.delete(place.prefix + "a")
    assert not place.is_there("a")
    place.backend.delete(place.prefix + "a")
    place.backend.delete(place.prefix + "a", version)


def test_delete_if_matching_spares_another_version(place: Place) -> None:
    first = place.put("a", b"first")
    second = place.put("a", b"second")
    with pytest.raises(PreconditionFailedError):
        place.backend.delete(place.prefix + "a", first)
    assert place.read("a") == b"second"
    place.backend.delete(place.prefix + "a", replace(second, mtime_ns=place.info("a").version.mtime_ns))
    assert not place.is_there("a")


def test_delete_many_removes_all_and_does_not_mind_missing_ones(place: Place) -> None:
    keys = [f"m/{number} <&>" for number in range(5)]
    for key in keys:
        place.put(key, b"x")
    place.put("m/left", b"x")
    assert place.backend.delete_many(place.prefix + key for key in [*keys, "m/nothing"]) == {}
    assert place.listed("m/") == ["m/left"]


# --- copy --------------------------------------------------------------------------------------------------------


def test_copy_keeps_content_and_metadata(place: Place) -> None:
    place.put("a +%", b"content", Expect.ANYTHING, Properties({"mode": "33188"}))
    version = place.backend.copy(place.info("a +%"), place.prefix + "b", Expect.NOTHING, None)
    assert place.read("b") == b"content"
    assert place.info("b").version.etag == version.etag
    assert place.backend.details(place.prefix + "b").properties.metadata["mode"] == "33188"


def test_copy_with_properties_replaces_them(place: Place) -> None:
    place.put("a", b"content", Expect.ANYTHING, Properties({"mode": "33188", "uid": "0"}))
    place.backend.copy(place.info("a"), place.prefix + "b", Expect.ANYTHING, Properties({"mode": "33152"}))
    metadata = place.backend.details(place.prefix + "b").properties.metadata
    assert (metadata["mode"], "uid" in metadata, place.read("b")) == ("33152", False, b"content")


def test_copy_to_itself_changes_the_metadata_of_that_version_only(place: Place) -> None:
    place.put("a", b"content", Expect.ANYTHING, Properties({"mode": "33188"}))
    first = place.info("a")
    place.backend.copy(first, first.key, first.version, Properties({"mode": "33152"}))
    assert place.backend.details(first.key).properties.metadata["mode"] == "33152"
    assert place.read("a") == b"content"
    place.put("a", b"foreign")
    with pytest.raises((PreconditionFailedError, VersionGoneError)):
        place.backend.copy(first, first.key, first.version, Properties({"mode": "33152"}))
    assert place.read("a") == b"foreign"


def test_copy_if_absent_spares_what_is_there(place: Place) -> None:
    place.put("a", b"source")
    place.put("b", b"there")
    with pytest.raises(PreconditionFailedError):
        place.backend.copy(place.info("a"), place.prefix + "b", Expect.NOTHING, None)
    assert place.read("b") == b"there"


def test_copy_if_matching_replaces_that_version_only(place: Place) -> None:
    place.put("a", b"source")
    first = place.put("b", b"first")
    place.put("b", b"second")
    with pytest.raises(PreconditionFailedError):
        place.backend.copy(place.info("a"), place.prefix + "b", first, None)
    place.backend.copy(place.info("a"), place.prefix + "b", place.info("b").version, None)
    assert place.read("b") == b"source"


def test_copy_of_another_version_of_the_source_fails(place: Place) -> None:
    place.put("a", b"old")
    old = place.info("a")
    place.put("a", b"new")
    with pytest.raises(VersionGoneError):
        place.backend.copy(old, place.prefix + "b", Expect.NOTHING, None)
    with pytest.raises(ObjectMissingError):
        place.backend.copy(ObjectInfo(place.prefix + "nothing", NOBODY), place.prefix + "b", Expect.NOTHING, None)
    assert not place.is_there("b")


# --- uploads in parts --------------------------------------------------------------------------------------------


def test_upload_of_parts_appears_whole_when_completed(parts_place: Place, tmp_path: Path) -> None:
    backend, key = parts_place.backend, parts_place.prefix + "d/a"
    content = os.urandom(11 * MIB)
    fd = _file(tmp_path, content)
    try:
        upload = backend.begin_upload(key, Properties({"mode": "33188"}))
        last = backend.upload_part(upload, 7, FileRange(fd, 5 * MIB, len(content)))
        first = backend.upload_part(upload, 1, content[: 5 * MIB])
    finally:
        os.close(fd)
    assert not parts_place.is_there("d/a")
    version = backend.complete_upload(upload, [first, last], Expect.NOTHING)
    assert parts_place.read("d/a") == content
    assert (parts_place.info("d/a").version.etag, version.size_bytes) == (version.etag, len(content))
    assert backend.details(key).properties.metadata["mode"] == "33188"
    assert backend.list_uploads(parts_place.prefix) == [] or not [
        each for each in backend.list_uploads(parts_place.prefix) if each.upload.key == key
    ]


def test_part_uploaded_again_replaces_the_first(parts_place: Place) -> None:
    backend, key = parts_place.backend, parts_place.prefix + "a"
    upload = backend.begin_upload(key, NONE)
    backend.upload_part(upload, 1, b"wrong")
    part = backend.upload_part(upload, 1, b"right")
    backend.complete_upload(upload, [part], Expect.ANYTHING)
    assert parts_place.read("a") == b"right"


def test_completion_if_absent_spares_what_is_there(parts_place: Place) -> None:
    backend, key = parts_place.backend, parts_place.prefix + "a"
    upload = backend.begin_upload(key, NONE)
    part = backend.upload_part(upload, 1, b"ours")
    parts_place.put("a", b"foreign")
    with pytest.raises(PreconditionFailedError):
        backend.complete_upload(upload, [part], Expect.NOTHING)
    assert parts_place.read("a") == b"foreign"
    backend.abort_upload(upload)


def test_completion_if_matching_replaces_that_version_only(parts_place: Place) -> None:
    backend, key = parts_place.backend, parts_place.prefix + "a"
    first = parts_place.put("a", b"first")
    parts_place.put("a", b"second")
    upload = backend.begin_upload(key, NONE)
    part = backend.upload_part(upload, 1, b"ours")
    with pytest.raises(PreconditionFailedError):
        backend.complete_upload(upload, [part], first)
    assert parts_place.read("a") == b"second"
    backend.complete_upload(upload, [part], parts_place.info("a").version)
    assert parts_place.read("a") == b"ours"


def test_copied_parts_and_new_ones_make_one_object(parts_place: Place) -> None:
    backend, key = parts_place.backend, parts_place.prefix + "a b"
    old = os.urandom(6 * MIB)
    parts_place.put("a b", old)
    source = parts_place.info("a b")
    upload = backend.begin_upload(key, NONE)
    parts = [backend.copy_part(upload, 1, source, 1, 6 * MIB), backend.upload_part(upload, 2, b"tail")]
    backend.complete_upload(upload, parts, source.version)
    assert parts_place.read("a b") == old[1:] + b"tail"


def test_part_copied_of_another_version_fails(parts_place: Place) -> None:
    backend = parts_place.backend
    parts_place.put("a", b"old")
    old = parts_place.info("a")
    parts_place.put("a", b"new")
    upload = backend.begin_upload(parts_place.prefix + "b", NONE)
    with pytest.raises(VersionGoneError):
        backend.copy_part(upload, 1, old, 0, 3)
    with pytest.raises(ObjectMissingError):
        backend.copy_part(upload, 1, ObjectInfo(parts_place.prefix + "nothing", NOBODY), 0, 3)
    backend.abort_upload(upload)


def test_aborted_upload_is_listed_no_more_and_takes_no_part(parts_place: Place) -> None:
    backend, key = parts_place.backend, parts_place.prefix + "up/a"
    upload = backend.begin_upload(key, NONE)
    other = backend.begin_upload(parts_place.prefix + "other", NONE)
    backend.upload_part(upload, 1, b"x")
    found = [each.upload for each in backend.list_uploads(parts_place.prefix + "up/")]
    assert [(each.key, each.upload_id) for each in found] == [(key, upload.upload_id)]
    backend.abort_upload(upload)
    backend.abort_upload(upload)
    assert backend.list_uploads(parts_place.prefix + "up/") in ([], ())
    with pytest.raises((UploadMissingError, TransientError)):  # moto says 500
        backend.upload_part(upload, 1, b"x")
    with pytest.raises((UploadMissingError, TransientError)):
        backend.complete_upload(replace(upload, token=""), [Part(1, "x", 1)], Expect.ANYTHING)
    backend.abort_upload(other)
    assert not parts_place.is_there("up/a")


def test_store_without_parts_says_so(place: Place) -> None:
    if place.backend.abilities().can_upload_parts:
        pytest.skip("takes parts")
    with pytest.raises(UnsupportedError):
        place.backend.begin_upload(place.prefix + "a", NONE)


def test_readable_object_needs_no_restore(place: Place) -> None:
    place.put("a", b"x")
    assert place.backend.details(place.prefix + "a").restore is Restore.READABLE


def test_copy_onto_itself_changes_the_class_and_nothing_else(place: Place) -> None:
    if not place.backend.abilities().can_change_class:
        pytest.skip("classes are chosen at upload only")
    place.put("a", b"content", Expect.NOTHING, Properties({"mode": "33188"}))
    before = place.backend.details(place.prefix + "a")
    wanted = replace(before.properties, storage_class="STANDARD_IA")
    version = place.backend.copy(before.info, place.prefix + "a", before.info.version, wanted)
    after = place.backend.details(place.prefix + "a")
    assert after.info.version.etag == version.etag
    assert after.properties.storage_class == "STANDARD_IA"
    assert after.properties.metadata == before.properties.metadata
    assert bytes(place.backend.get_range(place.prefix + "a", 0, 7, after.info.version)) == b"content"


# --- what the store can do, and answers that were lost -----------------------------------------------------------


def test_abilities_are_asked_once_and_leave_nothing(place: Place) -> None:
    abilities = place.backend.abilities()
    assert abilities == place.backend.abilities()
    assert abilities.can_put_if_absent
    assert abilities.can_put_if_match
    assert place.listed() == []
    if abilities.can_upload_parts:
        assert list(place.backend.list_uploads(place.prefix)) == []


@pytest.mark.parametrize("kind", ["moto_bucket", "bucket"])
def test_objects_of_a_killed_probe_are_not_listed_and_go(
    kind: str, request: pytest.FixtureRequest, open_bucket: Callable[..., Backend]
) -> None:
    bucket: Bucket = request.getfixturevalue(kind)
    left = [f".fanoutfs-scratch-{'0f' * 8}", f".fanoutfs-scratch-{'0f' * 8}-copy"]
    of_users = [".fanoutfs-scratch-pad", f".fanoutfs-scratch-{'0f' * 8}-2", f"d/x.fanoutfs-scratch-{'0f' * 8}", "a"]
    for key in (*left, *of_users):
        bucket.put(key, b"x")
    place = Place(open_bucket(bucket), bucket.prefix)
    scanned = {info.key for page in place.backend.scan(place.prefix) for info in page.objects}
    assert scanned - {f"{place.prefix}d/"} == {place.prefix + key for key in of_users}
    assert place.listed() == sorted(key for key in of_users if "/" not in key)
    place.backend.abilities()
    assert set(left) <= set(bucket.keys())  # it may be under way
    credentials = AwsCredentials(bucket.env["AWS_ACCESS_KEY_ID"], bucket.env["AWS_SECRET_ACCESS_KEY"])
    client = S3Client(S3Place(bucket.endpoint, bucket.name, REGION), lambda: credentials, 10.0)
    with contextlib.closing(client):
        remove_stale(client, place.prefix, age_s=-60)
    assert sorted(bucket.keys()) == sorted(of_users)


def _shaky(place: Place, kind: str) -> RetryingBackend:
    """Return a retrying backend that loses the answer to the next call of a kind."""
    faulty = FaultyBackend(place.backend)
    faulty.script(kind, Lost(TransientError("reset")))
    return RetryingBackend(faulty, RetryPolicy(deadline_s=20, base_s=0.001))


def test_put_whose_answer_was_lost_is_found_again(place: Place) -> None:
    version = _shaky(place, "put").put(place.prefix + "a", b"x", Expect.NOTHING, Properties({"mode": "33188"}))
    assert place.info("a").version.etag == version.etag
    replaced = _shaky(place, "put").put(place.prefix + "a", b"y", place.info("a").version, NONE)
    assert place.info("a").version.etag == replaced.etag
    with pytest.raises(PreconditionFailedError):
        _shaky(place, "put").put(place.prefix + "a", b"y", Expect.NOTHING, NONE)


def test_copy_whose_answer_was_lost_is_found_again(place: Place) -> None:
    place.put("a", b"x", Expect.NOTHING, Properties({"mode": "33188", TOKEN_KEY: "as any put of ours"}))
    for key, properties in (("b", None), ("c", Properties({"mode": "33152"}))):
        version = _shaky(place, "copy").copy(place.info("a"), place.prefix + key, Expect.NOTHING, properties)
        assert place.info(key).version.etag == version.etag


def test_completion_whose_answer_was_lost_is_found_again(parts_place: Place) -> None:
    backend = _shaky(parts_place, "complete_upload")
    upload = backend.begin_upload(parts_place.prefix + "a", NONE)
    part = backend.upload_part(upload, 1, b"x")
    version = backend.complete_upload(upload, [part], Expect.NOTHING)
    assert parts_place.info("a").version.etag == version.etag


def test_deletion_whose_answer_was_lost_succeeds(place: Place) -> None:
    place.put("a", b"x")
    _shaky(place, "delete").delete(place.prefix + "a", place.info("a").version)
    assert not place.is_there("a")

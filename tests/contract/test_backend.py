"""What every backend must do, run against every implementation and every wrapper."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore

from fanoutfs.backend.base import Backend
from fanoutfs.backend.connect import open_backend, open_store
from fanoutfs.backend.faulty import PASS, FaultyBackend
from fanoutfs.backend.local import LocalBackend
from fanoutfs.backend.store import StoreBackend
from fanoutfs.errors import (
    BucketMissingError,
    CredentialsError,
    ObjectMissingError,
    TransientError,
    VersionGoneError,
)
from fanoutfs.records import ListPage, Version
from tests.contract.wrappers import WRAPPERS
from tests.support import ranges
from tests.support.processes import environment
from tests.support.ranges import Get
from tests.support.servers import Bucket, S3Server

BODY = bytes(range(256)) * 40


@dataclass
class Place:
    """A backend under test and the way around it to its objects; put and delete take keys relative to prefix."""

    backend: Backend
    prefix: str
    put: Callable[[str, bytes], None]
    delete: Callable[[str], None]


def _file_place(directory: Path) -> Place:
    numbers = itertools.count(1)

    def put(key: str, body: bytes) -> None:
        target = directory / key
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replaced as a writer should: a new inode, so that no timestamp tick decides whether the change is seen.
        fresh = directory.parent / f"fresh{next(numbers)}"
        fresh.write_bytes(body)
        fresh.replace(target)

    return Place(LocalBackend(str(directory)), "", put, lambda key: (directory / key).unlink())


def _memory_place() -> Place:
    store = MemoryStore()

    def put(key: str, body: bytes) -> None:
        obstore.put(store, key, body)

    return Place(StoreBackend(store, if_match_form="bare"), "", put, lambda key: obstore.delete(store, key))


def _bucket_place(bucket: Bucket, *, is_wrapped: bool) -> Place:
    with environment(bucket.env):
        backend = open_backend(bucket.config()) if is_wrapped else open_store(bucket.config())
    return Place(backend, bucket.prefix, bucket.put, bucket.delete)


@pytest.fixture(params=["file", "memory", "moto", "weed", "weed-open_backend", "measure", "retry", "faulty"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    kind = request.param
    if kind == "file":
        (tmp_path / "source").mkdir()
        found = _file_place(tmp_path / "source")
    elif kind == "moto":
        found = _bucket_place(request.getfixturevalue("moto_bucket"), is_wrapped=False)
    elif kind.startswith("weed"):
        found = _bucket_place(request.getfixturevalue("bucket"), is_wrapped=kind != "weed")
    else:
        found = _memory_place()
        if kind in WRAPPERS:
            found.backend = WRAPPERS[kind](found.backend)
    yield found
    found.backend.close()


@pytest.fixture(params=ranges.WAYS)
def get(request: pytest.FixtureRequest) -> Get:
    """Return one of the two ways to get a range."""
    way: Get = request.param
    return way


def _version(place: Place, key: str) -> Version:
    return place.backend.head(place.prefix + key).version


def _list(place: Place, below: str = "", limit: int | None = None) -> tuple[list[str], list[str], int]:
    """Return (keys, prefixes, hidden), relative to the place's prefix, sorted."""
    pages = list(place.backend.list(place.prefix + below, limit))
    keys = sorted(info.key.removeprefix(place.prefix) for page in pages for info in page.objects)
    prefixes = sorted(name.removeprefix(place.prefix) for page in pages for name in page.prefixes)
    return keys, prefixes, sum(page.hidden for page in pages)


def test_head_of_an_object_returns_its_key_and_size(place: Place) -> None:
    place.put("a/b", BODY)
    info = place.backend.head(place.prefix + "a/b")
    assert (info.key, info.version.size_bytes) == (place.prefix + "a/b", len(BODY))
    assert info.version.etag
    assert '"' not in info.version.etag


def test_head_of_a_missing_object_raises_object_missing(place: Place) -> None:
    with pytest.raises(ObjectMissingError):
        place.backend.head(place.prefix + "nothing")


def test_head_and_listing_agree_on_the_version(place: Place) -> None:
    place.put("a", BODY)
    (info,) = [info for page in place.backend.list(place.prefix) for info in page.objects]
    assert info == dataclasses.replace(place.backend.head(place.prefix + "a"), version=_version(place, "a"))


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, len(BODY)), (0, 1), (len(BODY) - 1, len(BODY)), (255, 513), (1, len(BODY) - 1), (7, 7)],
    ids=["whole", "first", "last", "inside", "all-but-ends", "nothing"],
)
def test_get_range_returns_exactly_the_range(place: Place, get: Get, start: int, end: int) -> None:
    place.put("a", BODY)
    body = get(place.backend, place.prefix + "a", start, end, _version(place, "a"))
    assert isinstance(body, memoryview)
    assert bytes(body) == BODY[start:end]


def test_get_range_of_an_empty_object_returns_nothing(place: Place, get: Get) -> None:
    place.put("a", b"")
    assert bytes(get(place.backend, place.prefix + "a", 0, 0, _version(place, "a"))) == b""


def test_get_range_with_the_version_of_a_listing_works(place: Place, get: Get) -> None:
    place.put("a", BODY)
    (info,) = [info for page in place.backend.list(place.prefix) for info in page.objects]
    assert bytes(get(place.backend, info.key, 0, 3, info.version)) == BODY[:3]


@pytest.mark.parametrize(
    "new", [BODY[::-1], BODY + b"x", BODY[:9], b""], ids=["equal-size", "longer", "shorter", "empty"]
)
@pytest.mark.parametrize(
    ("start", "end"), [(0, 5), (len(BODY) - 5, len(BODY)), (3, 3)], ids=["begin", "end", "nothing"]
)
def test_get_range_after_overwrite_raises_version_gone(
    place: Place, get: Get, new: bytes, start: int, end: int
) -> None:
    place.put("a", BODY)
    version = _version(place, "a")
    place.put("a", new)
    with pytest.raises(VersionGoneError):
        get(place.backend, place.prefix + "a", start, end, version)


def test_get_range_of_the_new_version_after_overwrite_returns_it(place: Place, get: Get) -> None:
    place.put("a", BODY)
    old = _version(place, "a")
    place.put("a", BODY[::-1])
    with pytest.raises(VersionGoneError):
        get(place.backend, place.prefix + "a", 0, 5, old)
    assert bytes(get(place.backend, place.prefix + "a", 0, 5, _version(place, "a"))) == BODY[::-1][:5]


def test_get_range_after_deletion_raises_object_missing(place: Place, get: Get) -> None:
    place.put("a", BODY)
    version = _version(place, "a")
    place.delete("a")
    with pytest.raises(ObjectMissingError):
        get(place.backend, place.prefix + "a", 0, 5, version)


def test_list_of_nothing_yields_no_entry(place: Place) -> None:
    place.put("a/b", b"")
    assert _list(place, "nothing/") == ([], [], 0)


def test_list_returns_only_what_is_directly_below(place: Place) -> None:
    for key in ("a", "b/c", "b/d/e", "bb", "b0/x"):
        place.put(key, b"x")
    assert _list(place) == (["a", "bb"], ["b/", "b0/"], 0)
    assert _list(place, "b/") == (["b/c"], ["b/d/"], 0)


def test_list_of_more_than_a_page_returns_all(place: Place) -> None:
    count = 1203
    for number in range(count):
        place.put(f"many/{number:04d}", b"")
    keys, prefixes, hidden = _list(place, "many/")
    assert (keys, prefixes, hidden) == ([f"many/{number:04d}" for number in range(count)], [], 0)


def test_list_with_a_limit_stops_early_but_answers(place: Place) -> None:
    for number in range(5):
        place.put(f"a/{number}", b"")
    keys, prefixes, _ = _list(place, "a/", limit=1)
    assert len(keys) + len(prefixes) >= 1


def test_list_asks_nothing_before_the_first_page(place: Place) -> None:
    pages = place.backend.list(place.prefix)
    place.put("late", b"x")
    assert [info.key for page in pages for info in page.objects] == [place.prefix + "late"]


@pytest.mark.parametrize(
    "name",
    [
        "a%b", "a%20b", "a%2Fb", "a%", "a#b", "a#1", "a?b", "a*b", "a b", " a ", "~t", "a[b]{c}", "a+b", "a&b=c",
        "a;b,@!$'()",
        "a:b", 'a<b>"|^`', "ünï-日本-\U0001f600", "e\u0301", "\u00e9", "...", "..a", "-", "A",
    ],
)  # fmt: skip
def test_odd_key_is_listed_headed_and_read_as_itself(place: Place, name: str) -> None:
    place.put(f"odd/{name}", b"right")
    place.put("odd/a", b"wrong")
    keys, prefixes, hidden = _list(place, "odd/")
    assert (sorted({*keys} - {"odd/a"}), prefixes, hidden) == ([f"odd/{name}"], [], 0)
    assert bytes(place.backend.get_range(f"{place.prefix}odd/{name}", 0, 5, _version(place, f"odd/{name}"))) == b"right"


def test_odd_prefix_is_listed_as_itself(place: Place) -> None:
    place.put("a b%20+#?/x", b"x")
    assert _list(place) == ([], ["a b%20+#?/"], 0)
    assert _list(place, "a b%20+#?/") == (["a b%20+#?/x"], [], 0)


@pytest.mark.parametrize("key", ["", "t/", "/a", "a//b", "..", "a/../b", "./a", "a\nb", "a\x00b", "a\x7f"])
def test_key_that_cannot_be_addressed_is_missing_not_another_object(place: Place, key: str) -> None:
    place.put("a/b", b"wrong")
    place.put("t", b"wrong")
    with pytest.raises(ObjectMissingError):
        place.backend.head(key)
    with pytest.raises(ObjectMissingError):
        place.backend.get_range(key, 0, 1, Version("x", "", 1, 0))


# --- scans: everything below a prefix ------------------------------------------------------------------------------

TREE = ("a", "a-1/x", "a.txt", "b/c/d", "b/c.e", "b/f", "b-", "g/h", "z")


def _scan(place: Place, below: str = "", after: str = "", limit: int | None = None) -> list[str]:
    """Return the keys of objects in the order they came, relative to the place's prefix."""
    start = place.prefix + after if after else ""
    pages = list(place.backend.scan(place.prefix + below, start, limit))
    assert not any(page.prefixes for page in pages)
    return [info.key.removeprefix(place.prefix) for page in pages for info in page.objects]


def _files(keys: list[str]) -> list[str]:
    return [key for key in keys if not key.endswith("/")]


def test_scan_yields_everything_below_the_prefix_once(place: Place) -> None:
    for key in TREE:
        place.put(key, b"x")
    assert sorted(_files(_scan(place))) == sorted(TREE)
    assert sorted(_files(_scan(place, "b/"))) == ["b/c.e", "b/c/d", "b/f"]
    assert _scan(place, "nothing/") == []


def test_scan_comes_in_key_order_or_in_tree_order(place: Place) -> None:
    for key in (*TREE, "g/h.1", "b/c/e"):
        place.put(key, b"x")
    keys = _files(_scan(place))
    assert keys in (sorted(keys), sorted(keys, key=lambda key: key.replace("/", "\0")))


def test_scan_and_listing_agree_on_the_version(place: Place) -> None:
    place.put("d/a", BODY)
    (listed,) = [info for page in place.backend.list(place.prefix + "d/") for info in page.objects]
    (scanned,) = [info for page in place.backend.scan(place.prefix + "d/") for info in page.objects]
    assert listed == scanned


def test_scan_behind_any_key_goes_on_with_the_next(place: Place) -> None:
    for key in TREE:
        place.put(key, b"x")
    keys = _files(_scan(place))
    for at, key in enumerate(keys):
        assert _files(_scan(place, after=key)) == keys[at + 1 :]
    assert _files(_scan(place, "b/", after="b/c/d")) == [
        key for key in ("b/c.e", "b/f") if key in keys[keys.index("b/c/d") :]
    ]


def test_scan_of_more_than_a_page_returns_all(place: Place) -> None:
    names = [f"many/{number // 300}/{number:04d}" for number in range(1203)]
    for name in names:
        place.put(name, b"")
    assert _files(_scan(place, "many/")) == names
    assert len(list(place.backend.scan(place.prefix + "many/"))) > 1


def test_scan_with_a_limit_stops_early_but_answers(place: Place) -> None:
    for number in range(5):
        place.put(f"a/{number}", b"")
    assert 1 <= len(_scan(place, limit=1)) < 5
    assert _files(_scan(place, "a/", after="a/1", limit=1))[:1] == ["a/2"]


def test_next_page_of_a_scan_after_an_error_is_the_same_page(place: Place) -> None:
    place.put("a", b"x")
    faulty = FaultyBackend(place.backend)
    faulty.script("scan", TransientError("reset"), PASS)
    pages = faulty.scan(place.prefix)
    with pytest.raises(TransientError):
        next(pages)
    assert [info.key for info in next(pages).objects] == [place.prefix + "a"]
    assert not any(page.objects for page in pages)


def test_scan_of_a_directory_shows_empty_directories(tmp_path: Path) -> None:
    (tmp_path / "a/empty").mkdir(parents=True)
    (tmp_path / "a/file").touch()
    pages = LocalBackend(str(tmp_path)).scan("")
    assert [info.key for page in pages for info in page.objects] == ["a/", "a/empty/", "a/file"]


@pytest.mark.parametrize("target", ["..", ".", "../..", "../b"])
def test_directory_that_leads_back_to_one_above_it_is_hidden_from_scan_and_listing(tmp_path: Path, target: str) -> None:
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a/file").touch()
    (source / "b").symlink_to("a")
    (source / "a/up").symlink_to(target)
    backend = LocalBackend(str(source))
    keys = [info.key for page in backend.scan("") for info in page.objects]
    assert keys == ["a/", "a/file", "b/", "b/file"]
    for prefix, hidden in (("a/", 1), ("b/", 1), ("a/up/", 0)):
        pages = list(backend.list(prefix))
        assert [page.prefixes for page in pages] == [()]
        assert sum(page.hidden for page in pages) == hidden
    assert not any(page.objects or page.prefixes for page in backend.list("a/up/", limit=1))


# --- S3 only -----------------------------------------------------------------------------------------------------


@pytest.fixture
def moto_place(moto_bucket: Bucket) -> Iterator[Place]:
    found = _bucket_place(moto_bucket, is_wrapped=False)
    yield found
    found.backend.close()


def test_directory_marker_is_listed_with_its_slash(moto_place: Place) -> None:
    moto_place.put("t/", b"")
    moto_place.put("t/a", b"x")
    assert _list(moto_place) == ([], ["t/"], 0)
    assert _list(moto_place, "t/") == (["t/", "t/a"], [], 0)


def test_key_that_is_object_and_prefix_is_listed_as_both(moto_place: Place) -> None:
    moto_place.put("a", b"x")
    moto_place.put("a/b", b"y")
    assert _list(moto_place) == (["a"], ["a/"], 0)
    assert bytes(moto_place.backend.get_range("a", 0, 1, _version(moto_place, "a"))) == b"x"


def test_hostile_keys_are_hidden_and_counted_beside_good_ones(moto_place: Place) -> None:
    # The last two fall into one common prefix, which counts once.
    for key in ("..", ".", "/lead", "a\x01b", "a\x7f", "./z", "\x02/deep", "../x", "../y"):
        moto_place.put(key, b"x")
    moto_place.put("good", b"x")
    assert _list(moto_place) == (["good"], [], 8)


@pytest.mark.parametrize("key", ["d//e", "d/..", "d/./x", "d/../y", "d/\x01"])
def test_hostile_key_below_a_good_prefix_is_hidden_there(moto_place: Place, key: str) -> None:
    moto_place.put(key, b"x")
    moto_place.put("d/good", b"x")
    assert _list(moto_place) == ([], ["d/"], 0)
    assert _list(moto_place, "d/") == (["d/good"], [], 1)


def test_backslash_is_an_ordinary_character(moto_place: Place) -> None:
    moto_place.put("a\\b", b"x")
    assert _list(moto_place) == (["a\\b"], [], 0)
    assert moto_place.backend.head("a\\b").version.size_bytes == 1


def test_scan_names_the_directory_of_keys_that_cannot_be_shown(moto_place: Place) -> None:
    for key in ("..", "/lead", "d//e", "e/../f", "g/\x01", "t/", "good"):
        moto_place.put(key, b"x")
    pages = list(moto_place.backend.scan(""))
    assert sorted(info.key for page in pages for info in page.objects) == ["d/", "e/", "g/", "good", "t/"]
    assert sum(page.hidden for page in pages) == 5


def test_list_limit_asks_the_store_for_no_more(moto_place: Place) -> None:
    for number in range(5):
        moto_place.put(f"{number}", b"")
    assert len(_list(moto_place, limit=2)[0]) == 2


def test_list_of_a_missing_bucket_raises_bucket_missing(weed: S3Server, open_bucket: Callable[..., Backend]) -> None:
    missing = open_bucket(Bucket(weed.endpoint, "no-such-bucket"))
    with pytest.raises(BucketMissingError, match="no-such-bucket"):
        list(missing.list(""))


def test_list_of_a_missing_directory_raises_bucket_missing(tmp_path: Path) -> None:
    with pytest.raises(BucketMissingError):
        list(LocalBackend(str(tmp_path / "nothing")).list(""))


def test_scan_of_a_missing_bucket_raises_bucket_missing(
    weed: S3Server, open_bucket: Callable[..., Backend], tmp_path: Path
) -> None:
    with pytest.raises(BucketMissingError, match="no-such-bucket"):
        list(open_bucket(Bucket(weed.endpoint, "no-such-bucket")).scan(""))
    with pytest.raises(BucketMissingError):
        list(LocalBackend(str(tmp_path / "nothing")).scan(""))


@pytest.mark.parametrize(
    "wrong", [{"AWS_ACCESS_KEY_ID": "XX"}, {"AWS_SECRET_ACCESS_KEY": "wrong"}], ids=["key", "secret"]
)
def test_rejected_credentials_raise_credentials_error(
    bucket: Bucket, wrong: dict[str, str], open_bucket: Callable[..., Backend]
) -> None:
    bucket.put("a", BODY)
    key = bucket.prefix + "a"
    version = open_bucket(bucket).head(key).version
    backend = open_bucket(dataclasses.replace(bucket, env={**bucket.env, **wrong}))
    with pytest.raises(CredentialsError):
        list(backend.list(bucket.prefix))
    with pytest.raises(CredentialsError):
        backend.head(key)
    with pytest.raises(CredentialsError):
        backend.get_range(key, 0, 1, version)


def test_next_page_after_an_error_is_the_same_page(place: Place) -> None:
    place.put("a", b"x")
    faulty = FaultyBackend(place.backend)
    faulty.script("list", TransientError("reset"), PASS)
    pages = faulty.list(place.prefix)
    with pytest.raises(TransientError):
        next(pages)
    page: ListPage = next(pages)
    assert [info.key for info in page.objects] == [place.prefix + "a"]
    assert list(pages) == []

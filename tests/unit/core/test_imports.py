"""Imports: divided, resumed, repeated, beside listings: always exactly what the store has, everything listed."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from fanoutfs.backend.base import Backend, Pages
from fanoutfs.core import imports
from fanoutfs.core.imports import Import
from fanoutfs.core.jobs import Job
from fanoutfs.core.notify import ChangeLog
from fanoutfs.core.scanning import Order, shared_directories
from fanoutfs.errors import DatabaseError, TransientError
from fanoutfs.index import removal
from fanoutfs.index.format import DT_DIR
from fanoutfs.index.importing import import_setting
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import ROOT_INO, ListPage, ObjectInfo, Version
from tests.unit.core.rig import Rig, running_core
from tests.unit.indexes import NOW_NS, OWNER


class Store:
    """An object store in memory that lists in either order.  `pages`: a permit for each page, when it is set."""

    def __init__(self, keys: Iterable[str], order: Order = Order.KEY, page: int = 3) -> None:
        self.objects = dict.fromkeys(keys, "1")
        self.order = order
        self.page = page
        self.can_seek = True
        self.scans = 0
        self.listed: list[str] = []
        self.fail_at: str | None = None
        self.permits: threading.Semaphore | PagesAsDivided | None = None

    def scan(self, prefix: str, after: str = "", limit: int | None = None) -> Iterator[ListPage]:
        place = after

        def fetch(_token: str) -> tuple[ListPage, str]:
            nonlocal place
            if limit is None and self.permits is not None:
                assert self.permits.acquire(timeout=30)
            rank = self.order.rank
            keys = sorted((key for key in self.objects if key.startswith(prefix) and rank(key) > rank(place)), key=rank)
            keys, rest = keys[: limit or self.page], keys[limit or self.page :]
            if limit is None:
                self.scans += 1
                if self.fail_at is not None and self.fail_at in keys:
                    raise TransientError("reset")
                self.listed += keys
            place = keys[-1] if keys else place
            infos = tuple(ObjectInfo(key, Version(self.objects[key], "", 1, NOW_NS)) for key in keys)
            return ListPage(infos, ()), "more" if rest else ""

        return Pages(fetch)

    def list(self, prefix: str, limit: int | None = None) -> Iterator[ListPage]:
        raise AssertionError("an import lists nothing by directory")


def importer(core: Rig, store: object, prefix: str = "") -> tuple[Import, Job]:
    job = Job("import", None)
    backend: Backend = store  # type: ignore[assignment]
    directory = core.inode(prefix)
    made = Import(
        jobs=core.jobs,
        backend=backend,
        reader=core.reader,
        writer=core.writer,
        listings=core.listings,
        ownership=OWNER,
        clock=core.clock,
        row=core.row,
        has_epoch=True,
        directory=directory,
        root_prefix="",
        job=job,
    )
    return made, job


def tree(core: Rig, ino: int = ROOT_INO, prefix: str = "") -> dict[str, str]:
    """Return path → ETag of everything; directories end with "/" and must be listed."""
    found: dict[str, str] = {}
    with core.reader.begin() as txn:
        for name, child, *_rest in core.reader.children(txn, ino, b""):
            inode = core.reader.inode(txn, child)
            assert inode is not None
            path = prefix + name.decode()
            if inode.is_dir:
                assert inode.is_listed, path
                found[path + "/"] = ""
                found |= tree(core, child, path + "/")
            else:
                found[path] = inode.etag
    return found


def expected(objects: dict[str, str]) -> dict[str, str]:
    """Return what a file system shows of these objects: the directory wins."""
    found: dict[str, str] = {}
    for key in objects:
        at = key.find("/")
        while at >= 0:
            found[key[: at + 1]] = ""
            at = key.find("/", at + 1)
    found |= {key: etag for key, etag in objects.items() if key + "/" not in found and not key.endswith("/")}
    return found


def hidden(objects: dict[str, str]) -> set[str]:
    return {key for key in objects if any(other.startswith(key + "/") for other in objects)}


PARTS = st.text(alphabet="a-0", min_size=1, max_size=2)
KEYS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
OBJECTS = st.dictionaries(KEYS, st.sampled_from("12"), max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    states=st.lists(OBJECTS, min_size=1, max_size=3),
    order=st.sampled_from([Order.KEY, Order.TREE]),
    page=st.integers(1, 4),
    can_seek=st.booleans(),
)
def test_import_shows_what_the_store_has_and_repeated_finds_every_change(
    tmp_path_factory: pytest.TempPathFactory,
    states: list[dict[str, str]],
    order: Order,
    page: int,
    can_seek: bool,
) -> None:
    async def play() -> None:
        async with running_core(tmp_path_factory.mktemp("core")) as core:
            for objects in states:
                core.clock.now_ns += 1
                store = Store((), order, page)
                store.objects, store.can_seek = objects, can_seek
                made, _job = importer(core, store)
                await made.run()
                assert tree(core) == expected(objects)
                assert core.inode("").is_listed
                with core.reader.begin() as txn:
                    assert core.reader.settings(txn, b"import/") == {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imports, "_ALIKE", 0)
        patch.setattr(imports, "_SPLIT_PAGES", 1)
        trio.run(play)


class MortalWriter:
    """Stands for a core that is killed between two commits."""

    def __init__(self, writer: GroupWriter[IndexTransaction], commits: int) -> None:
        self._writer = writer
        self._left = commits

    async def run(self, apply: Callable[[IndexTransaction], Any]) -> Any:
        if not self._left:
            raise DatabaseError("killed")
        self._left -= 1
        return await self._writer.run(apply)


@settings(max_examples=100, deadline=None)
@given(
    states=st.lists(OBJECTS, min_size=2, max_size=3),
    order=st.sampled_from([Order.KEY, Order.TREE]),
    page=st.integers(1, 4),
    can_seek=st.booleans(),
    limit=st.sampled_from([1, 2, 1000]),
    commits=st.lists(st.integers(0, 25), max_size=3),
)
def test_import_killed_between_any_two_commits_and_resumed_ends_at_what_the_store_has(
    tmp_path_factory: pytest.TempPathFactory,
    states: list[dict[str, str]],
    order: Order,
    page: int,
    can_seek: bool,
    limit: int,
    commits: list[int],
) -> None:
    async def play() -> None:
        async with running_core(tmp_path_factory.mktemp("core")) as core:
            mtimes: dict[str, tuple[int, dict[bytes, int]]] = {}
            for objects in states:
                core.clock.now_ns += 1
                store = Store((), order, page)
                store.objects, store.can_seek = objects, can_seek
                for lives in commits:
                    made, _job = importer(core, store)
                    made._writer = MortalWriter(core.writer, lives)  # type: ignore[assignment]
                    with contextlib.suppress(DatabaseError):
                        await made.run()
                made, _job = importer(core, store)
                await made.run()
                assert tree(core) == expected(objects)
                known = dict(directories(core))
                for path, (mtime_ns, names) in known.items():
                    if path in mtimes and mtimes[path][1] != names:
                        assert mtime_ns > mtimes[path][0], "the kernel would go on showing the names it cached"
                mtimes = known

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imports, "_ALIKE", 0)
        patch.setattr(imports, "_SPLIT_PAGES", 1)
        patch.setattr(removal, "REMOVALS_PER_APPLY", limit)
        trio.run(play)


def directories(core: Rig, ino: int = ROOT_INO, prefix: str = "") -> Iterator[tuple[str, tuple[int, dict[bytes, int]]]]:
    """Yield path → (mtime, names and what they lead to) of a directory and all below it."""
    with core.reader.begin() as txn:
        inode = core.reader.inode(txn, ino)
        children = list(core.reader.children(txn, ino, b""))
    assert inode is not None
    yield f"{prefix}#{ino}", (inode.version.mtime_ns, {name: child for name, child, *_rest in children})
    for name, child, dtype, _cookie in children:
        if dtype == DT_DIR:
            yield from directories(core, child, f"{prefix}{name.decode()}/")


async def test_page_that_was_committed_is_told_although_the_import_was_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_core(tmp_path) as core:
        store = Store(["a", "b", "c"])
        await importer(core, store)[0].run()
        core.clock.now_ns += 1
        del store.objects["b"]
        made, _job = importer(core, store)
        with trio.CancelScope() as scope:
            commit = core.writer.run

            async def commit_and_cancel(apply: Callable[[IndexTransaction], Any]) -> Any:
                result = await commit(apply)
                if isinstance(result, tuple):
                    scope.cancel()
                return result

            monkeypatch.setattr(core.writer, "run", commit_and_cancel)
            await made.run()
        assert scope.cancelled_caught
        assert "b" not in tree(core)
        with trio.fail_after(30):
            while not core.told():
                await trio.sleep(0.001)
        assert b"b" in {body[16:-1] for code, body in core.told() if code.name == "INVAL_ENTRY"}


async def test_large_removal_leaves_a_directory_that_is_listed_in_between_to_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "REMOVALS_PER_APPLY", 2)
    async with running_core(tmp_path) as core:
        store = Store([f"d/{number}" for number in range(6)], page=10)
        await importer(core, store)[0].run()
        core.clock.now_ns += 1
        store.objects = {"d/0": "1"}
        core.write("d/0", b"1")
        core.write("d/new", b"1")  # too new for the page
        publish = core.listings.publish
        listed = 0

        async def list_meanwhile(changes: ChangeLog) -> None:
            nonlocal listed
            await publish(changes)
            if not listed:
                listed += 1
                core.clock.now_ns += 1
                await core.listings.refresh(core.inode("d").ino)

        monkeypatch.setattr(core.listings, "publish", list_meanwhile)
        await importer(core, store)[0].run()
        assert listed == 1
        assert set(tree(core)) == {"d/", "d/0", "d/new"}


class PagesAsDivided:
    """Permits for pages: the next six when there is one more shard, so that to divide is never the slower one."""

    def __init__(self, made: Import) -> None:
        self.made = made
        self.pages = itertools.count()

    def acquire(self, timeout: float) -> bool:
        page, deadline = next(self.pages), time.monotonic() + timeout
        while len(self.made._shards) < min(5, 1 + page // 6):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True


FLAT = [f"d/img-{number:05d}.jpg" for number in range(2000)]


@pytest.mark.parametrize("order", [Order.KEY, Order.TREE])
async def test_flat_directory_is_divided(tmp_path: Path, order: Order) -> None:
    async with running_core(tmp_path) as core:
        store = Store(FLAT, order, page=10)
        made, job = importer(core, store)
        store.permits = PagesAsDivided(made)
        await made.run()
        assert tree(core) == expected(store.objects)
        assert job.progress["keys"] == len(FLAT)
        assert len(made._shards) > 4


async def test_million_directories_are_not_listed_one_by_one(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        store = Store((f"{number:04d}/x" for number in range(1000)), page=100)
        made, _job = importer(core, store)
        await made.run()
        assert tree(core) == expected(store.objects)
        assert store.scans <= 10 + len(made._shards)


@pytest.mark.parametrize("can_seek", [True, False])
async def test_import_that_failed_goes_on_where_it_was(tmp_path: Path, can_seek: bool) -> None:
    async with running_core(tmp_path) as core:
        keys = [f"{top}/{below}/{name:02d}" for top in "abc" for below in "xy" for name in range(20)]
        store = Store(keys, page=7)
        store.can_seek = can_seek
        store.fail_at = "b/y/10"
        made, _job = importer(core, store)
        with pytest.raises(TransientError):
            await made.run()
        entered = set(store.listed)
        assert entered
        # What a killed process leaves is what is in the index; a name may go meanwhile.
        del store.objects["c/x/03"]
        store.fail_at, store.listed = None, []
        again, job = importer(core, store)
        await again.run()
        assert job.progress["resumed_keys"] > 0
        assert len(store.listed) < len(keys)
        assert tree(core) == expected(store.objects) or "c/x/03" in entered


async def test_import_of_a_part_leaves_the_rest_alone(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        core.write("a/x", b"1")
        core.write("b/x", b"1")
        await core.listings.refresh(ROOT_INO)
        store = Store(["a/x", "a/y/z", "b/x"])
        made, _job = importer(core, store, "a")
        await made.run()
        assert tree(core, core.inode("a").ino) == {"x": "1", "y/": "", "y/z": "1"}
        assert not core.inode("b").is_listed


async def test_directory_listed_meanwhile_is_left_to_its_listing(tmp_path: Path) -> None:
    """The listing is newer than the page, which must not bring back what it has taken away."""
    async with running_core(tmp_path) as core:
        core.write("d/new", b"1")
        core.write("d/kept", b"1")
        store = Store(["d/kept", "d/old", "e/x"], page=1)
        store.can_seek = False
        store.permits = threading.Semaphore(1)
        made, job = importer(core, store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            while not job.progress.get("keys"):
                await trio.sleep(0.001)
            core.clock.now_ns += 10
            await core.listings.refresh(core.inode("d").ino)
            store.permits.release(100)
        assert set(tree(core)) == {"d/", "d/kept", "d/new", "e/", "e/x"}


async def test_changes_are_told_to_the_kernel(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        store = Store(["a", "d/b", "d/c"])
        await importer(core, store)[0].run()
        assert core.told() == []
        core.clock.now_ns += 1
        store.objects = {"a": "1", "d/b": "2", "d/new": "1"}
        await importer(core, store)[0].run()
        told = {body[16:-1] for code, body in core.told() if code.name == "INVAL_ENTRY"}
        assert told == {b"b", b"c", b"new"}


async def test_progress_of_long_ago_is_not_taken_up(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        store = Store(["a", "b", "c", "d"], page=1)
        store.fail_at = "c"
        with pytest.raises(TransientError):
            await importer(core, store)[0].run()
        with core.reader.begin() as txn:
            assert core.reader.settings(txn, import_setting(""))
        core.clock.now_ns += 48 * 3600 * 10**9
        store.fail_at, store.listed = None, []
        await importer(core, store)[0].run()
        assert sorted(set(store.listed)) == ["a", "b", "c", "d"]


def test_directories_that_borders_go_through_come_deepest_first() -> None:
    assert shared_directories("p/", ["p/a/b/c\U0010ffff", "p/a/x", "p/z"]) == ["p/a/b/", "p/a/", "p/"]

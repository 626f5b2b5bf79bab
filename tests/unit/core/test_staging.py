"""Content between the store, the staging files and the cache: what fronts and uploads may rely on."""

import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fanoutfs.cache.blocks import BlockReader
from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.staging import KEY_XATTR
from fanoutfs.core.orphans import OrphanReaper
from fanoutfs.core.readahead import ReadAhead
from fanoutfs.core.recovery import recover
from fanoutfs.errors import DatabaseError, FanoutError, RefusedError, VersionGoneError
from fanoutfs.index.format import Dirty, Inode, attr_times_ns
from fanoutfs.index.publishing import MakePublished
from fanoutfs.index.staged import Seal
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.observe.catalog import Count
from fanoutfs.records import BLOCK_BYTES, MIB, PART_BYTES, ROOT_INO, Version
from fanoutfs.wire.relay import Verb
from tests.unit.core.rig import Rig, arrived, running_core
from tests.unit.core.sender import until

LARGE = os.urandom(PART_BYTES + 3 * BLOCK_BYTES + 1000)
FILE = stat.S_IFREG | 0o644


@asynccontextmanager
async def core_with(path: Path, **contents: bytes) -> AsyncIterator[tuple[Rig, dict[str, Inode]]]:
    async with running_core(path, floor_bytes=0) as core:
        await core.filesystem.make_listed(ROOT_INO)
        yield core, {name: await core.put(name, content) for name, content in contents.items()}


async def put_staged(core: Rig, name: bytes, content: bytes) -> Inode:
    made = await core.changes.make(ROOT_INO, name, FILE, 0, 0, 0)
    write(core, made.ino, content, 0)
    return made


def write(core: Rig, ino: int, content: bytes, offset: int) -> None:
    """Do what a front does with a WRITE that the core has made possible."""
    inode = core.filesystem.inode(ino)
    os.pwrite(core.staging_files.descriptor(ino, inode.life), content, offset)


def staged(core: Rig, ino: int) -> bytes:
    inode = core.filesystem.inode(ino)
    fd = core.staging_files.descriptor(ino, inode.life)
    return os.pread(fd, os.fstat(fd).st_size, 0)


def names(core: Rig) -> list[tuple[int, int]]:
    return sorted(core.staging_files.all())


def version(content: bytes, etag: str = "new") -> Version:
    return Version(etag, "", len(content), 1)


def read_cached(core: Rig, ino: int) -> bytes:
    """Return a clean large file's content as a front reads it: every block present, every checksum right."""
    inode = core.filesystem.inode(ino)
    with core.reader.begin() as txn:
        parts = {part: bytes(core.reader.part_value(txn, ino, part) or b"") for part in range(3)}
    reader = BlockReader(CacheFiles(core.source.parent, writable=False))
    content = b""
    while len(content) < inode.size_bytes:
        end = min(len(content) + MIB, inode.size_bytes)
        content += bytes(reader.read(ino, len(content), end, inode.size_bytes, parts)[0])
    return content


# --- staging ---------------------------------------------------------------------------------------------------


async def test_small_file_is_staged_whole_with_its_time_and_leaves_the_small_store(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=b"content") as (core, inodes):
        inode = inodes["a"]
        record = await core.staging.stage(inode.ino, 0, 10)
        assert record.is_whole and staged(core, inode.ino) == b"content"
        assert core.staging.shown(record).version.mtime_ns == inode.version.mtime_ns
        assert not core.small.has(inode.ino)


async def test_change_time_does_not_go_back_when_a_file_is_staged(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=b"content") as (core, inodes):
        ino = inodes["a"].ino
        for _round in range(20):
            changed = await core.changes.setattr(ino, 0, mode=0o600)
            staged_now = core.staging.shown(await core.staging.stage(ino, 0, 1))
            assert attr_times_ns(staged_now.attr)[2] >= attr_times_ns(changed.attr)[2]
            assert await core.staging.seal(ino)
            assert await core.staging.make_clean(ino, "a", version(b"content"))


async def test_large_file_becomes_an_overlay_of_what_is_touched(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=LARGE) as (core, inodes):
        ino = inodes["a"].ino
        shown = core.staging.shown(await core.staging.stage(ino, 0, 0))
        assert shown.version.mtime_ns == inodes["a"].version.mtime_ns
        record = await core.staging.stage(ino, BLOCK_BYTES + 5, 10)
        assert record.is_staged and not record.is_whole
        content = staged(core, ino)
        assert len(content) == len(LARGE)
        assert content[BLOCK_BYTES : 2 * BLOCK_BYTES] == LARGE[BLOCK_BYTES : 2 * BLOCK_BYTES]
        assert core.count(Count.FILLS_STARTED) == 1
        assert core.staging.shown(record).size_bytes == len(LARGE)


async def test_localised_blocks_never_overwrite_what_was_written(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=LARGE) as (core, inodes):
        ino = inodes["a"].ino
        await core.staging.stage(ino, len(LARGE), 4)  # behind the end: nothing of the object is needed
        assert core.count(Count.FILLS_STARTED) == 0
        write(core, ino, b"tail", len(LARGE))
        await core.staging.stage(ino, 3, 4)
        write(core, ino, b"HEAD", 3)
        await core.staging.localise(ino, 0, len(LARGE) + 4)
        assert staged(core, ino) == LARGE[:3] + b"HEAD" + LARGE[7:] + b"tail"


async def test_page_in_which_an_object_ends_is_not_torn_by_a_power_cut(tmp_path: Path) -> None:
    """The index falls back to its last sync; what was written to the staging file stays, as far as it came."""
    async with core_with(tmp_path, a=LARGE) as (core, inodes):
        ino = inodes["a"].ino
        inode = await core.staging.stage(ino, len(LARGE) - 10, 20)
        assert core.environment.is_synced, "a cut would leave the object's bytes, and new ones behind them, in one page"
        await core.staging.stage(ino, 0, 10)
        assert not core.environment.is_synced, "pages that are one or the other as a whole cost no sync"
        await core.staging.stage(ino, 0, 0, truncate_to=BLOCK_BYTES + 10)
        assert core.environment.is_synced
        assert inode.is_staged


async def test_cut_and_grown_overlay_has_zeros_where_the_object_had_bytes(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=LARGE) as (core, inodes):
        ino = inodes["a"].ino
        await core.staging.stage(ino, 0, 0, truncate_to=BLOCK_BYTES + 7)
        await core.staging.stage(ino, 0, 0, truncate_to=3 * BLOCK_BYTES)
        await core.staging.localise(ino, 0, 3 * BLOCK_BYTES)
        assert staged(core, ino) == LARGE[: BLOCK_BYTES + 7] + bytes(2 * BLOCK_BYTES - 7)


async def test_nobody_writes_while_blocks_are_brought_for_a_reader(tmp_path: Path) -> None:
    """The time of a write would be lost with those of the blocks."""
    async with core_with(tmp_path, a=LARGE) as (core, inodes):
        ino = inodes["a"].ino
        life = (await core.staging.stage(ino, 0, 1)).life
        os.utime(core.staging_files.descriptor(ino, life), ns=(7, 7))
        writable: list[bool] = []
        write_blocks = core.staging._write

        async def look(*arguments: Any, **options: Any) -> None:
            writable.append(not core.filesystem.inode(ino).is_sealed)
            await write_blocks(*arguments, **options)

        core.staging._write = look  # type: ignore[method-assign]
        await core.staging.make_readable(ino, BLOCK_BYTES, BLOCK_BYTES)
        await core.staging.localise(ino, 0, len(LARGE))
        assert writable
        assert not any(writable)
        assert core.staging_files.stat(ino, life).st_mtime_ns == 7
        with trio.fail_after(30):
            assert not (await core.staging.stage(ino, 0, 1)).is_sealed
        assert staged(core, ino) == LARGE


async def test_truncation_to_nothing_fetches_nothing(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=LARGE, b=b"small") as (core, inodes):
        for inode in inodes.values():
            record = await core.staging.stage(inode.ino, 0, 0, truncate_to=0)
            assert record.is_whole and staged(core, inode.ino) == b""
        assert core.count(Count.FILLS_STARTED) == 0


async def test_many_who_stage_at_once_share_one_life(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=b"content") as (core, inodes):
        async with trio.open_nursery() as nursery:
            for _n in range(20):
                nursery.start_soon(core.staging.stage, inodes["a"].ino, 0, 1)
        assert len(names(core)) == 1


async def test_object_that_is_gone_is_not_staged_and_leaves_no_file(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=b"content") as (core, inodes):
        (core.source / "a").unlink()
        with pytest.raises(VersionGoneError):
            await core.staging.stage(inodes["a"].ino, 0, 1)
        assert names(core) == []
        assert not core.filesystem.inode(inodes["a"].ino).is_staged


async def test_fill_under_way_does_not_bring_old_content_back(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=b"content") as (core, inodes):
        ino = inodes["a"].ino
        async with trio.open_nursery() as nursery:
            gate = core.backend.hold("get")
            nursery.start_soon(core.filesystem.prepare_read, Verb.FILL, ino, 0, 7)
            await arrived(gate)
            nursery.start_soon(partial(core.staging.stage, ino, 0, 0, truncate_to=0))
            while not core.filesystem.inode(ino).is_staged:
                await trio.sleep(0.001)
            gate.release()
        assert not core.small.has(ino)


@pytest.mark.parametrize("mode", [stat.S_IFDIR | 0o755, stat.S_IFIFO | 0o644])
async def test_what_is_no_file_is_not_staged(tmp_path: Path, mode: int) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        made = await core.changes.make(ROOT_INO, b"x", mode, 0, 0, 0)
        with pytest.raises(RefusedError) as caught:
            await core.staging.stage(made.ino, 0, 1)
        assert caught.value.errno_code == (errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL)


# --- becoming clean --------------------------------------------------------------------------------------------


async def test_sealed_file_keeps_writers_waiting_until_it_is_unsealed(tmp_path: Path) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        made = await put_staged(core, b"a", b"content")
        assert await core.staging.seal(made.ino)
        assert core.filesystem.inode(made.ino).is_sealed
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            async def write_on() -> None:
                await core.staging.stage(made.ino, 0, 1)
                done.set()

            nursery.start_soon(write_on)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not done.is_set()
            await core.staging.unseal(made.ino)
        assert not core.filesystem.inode(made.ino).is_sealed


async def test_writer_is_refused_where_the_index_does_not_let_a_file_be_unsealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the index failed while an upload had the file sealed: nobody may wait for ever, unkillable."""
    refused = DatabaseError("the index refused a change")

    def refuse(_self: Seal, _txn: IndexTransaction) -> None:
        raise refused

    async with core_with(tmp_path) as (core, _inodes):
        made = await put_staged(core, b"a", b"content")
        assert await core.staging.seal(made.ino)
        raised: list[DatabaseError] = []

        async def write_on() -> None:
            with pytest.raises(DatabaseError) as info:
                await core.staging.stage(made.ino, 0, 1)
            raised.append(info.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_on)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not raised
            with monkeypatch.context() as patched:
                patched.setattr(Seal, "apply", refuse)
                with pytest.raises(DatabaseError):
                    await core.staging.make_clean(made.ino, "a", version(b"other length"))
                await until(lambda: raised, lambda: "the writer is told")
        assert raised == [refused]
        assert not (await core.staging.stage(made.ino, 0, 1)).is_sealed, "it works again, and so do writes"


@pytest.mark.parametrize("content", [b"", b"content", LARGE])
async def test_clean_file_is_in_the_cache_and_its_staging_file_gone(tmp_path: Path, content: bytes) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        made = await put_staged(core, b"a", content)
        assert await core.staging.seal(made.ino)
        found = core.staging.shown(core.filesystem.inode(made.ino))
        sums = checksums(made.ino, content)
        assert await core.staging.make_clean(made.ino, "a", version(content), sums)
        clean = core.filesystem.inode(made.ino)
        assert not clean.is_staged and (clean.key, clean.etag, clean.size_bytes) == ("a", "new", len(content))
        assert clean.version.mtime_ns == found.version.mtime_ns
        assert names(core) == []
        if len(content) > OWN_SMALL:
            assert read_cached(core, made.ino) == content
        elif content:
            with core.small.reader.begin() as txn:
                assert bytes(core.small.reader.get(txn, made.ino) or b"") == content


OWN_SMALL = 128 << 10


def checksums(ino: int, content: bytes) -> dict[int, int]:
    import xxhash

    return {
        at // BLOCK_BYTES: xxhash.xxh3_64_intdigest(content[at : at + BLOCK_BYTES], ino)
        for at in range(0, len(content), BLOCK_BYTES)
    }


async def test_clean_overlay_keeps_cached_blocks_of_the_object_and_adds_its_own(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=LARGE) as (core, inodes):
        ino = inodes["a"].ino
        await core.fills.ensure(ino, 0, len(LARGE))
        await core.staging.stage(ino, 2 * BLOCK_BYTES, 5)
        write(core, ino, b"local", 2 * BLOCK_BYTES)
        await core.staging.stage(ino, len(LARGE), 3)
        write(core, ino, b"end", len(LARGE))
        expected = LARGE[: 2 * BLOCK_BYTES] + b"local" + LARGE[2 * BLOCK_BYTES + 5 :] + b"end"
        assert await core.staging.seal(ino)
        assert await core.staging.make_clean(ino, "a", version(expected))
        core.write("a", expected)
        clean = core.filesystem.inode(ino)
        assert clean.size_bytes == len(expected)
        with core.reader.begin() as txn:
            value = bytes(core.reader.part_value(txn, ino, 0) or b"")
        assert int.from_bytes(value[:4], "little") == (1 << 32) - 1
        # The block in which the object ended is not cached any more: it is another one now.
        blocks = (len(expected) - 1) // BLOCK_BYTES
        assert core.blocks(ino, 1) == (1 << (blocks - 32)) - 1
        assert core.cached(clean)[: 32 * BLOCK_BYTES] == expected[: 32 * BLOCK_BYTES]


async def test_removed_or_rewritten_life_does_not_become_clean(tmp_path: Path) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        made = await put_staged(core, b"a", b"content")
        assert not await core.staging.make_clean(made.ino, "a", version(b"content"))  # not sealed
        assert await core.staging.seal(made.ino)
        with pytest.raises(FanoutError):
            await core.staging.make_clean(made.ino, "a", version(b"other length"))
        assert not await core.staging.seal(made.ino + 1)


async def test_file_that_does_not_become_clean_can_be_written_again(tmp_path: Path) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        made = await put_staged(core, b"a", b"content")
        assert await core.staging.seal(made.ino)
        await core.changes.unlink(ROOT_INO, b"a", 0)
        assert not await core.staging.make_clean(made.ino, "a", version(b"content"))
        assert (await core.staging.stage(made.ino, 0, 1)).is_staged
        assert staged(core, made.ino) == b"content"


async def test_staging_file_says_where_its_content_belongs_until_that_is_nowhere(tmp_path: Path) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        made = await put_staged(core, b"a", b"content")
        fd = core.staging_files.descriptor(made.ino, made.life)
        assert os.getxattr(fd, KEY_XATTR) == b"a"
        await core.changes.rename(ROOT_INO, b"a", ROOT_INO, b"b", 0, 0)
        assert os.getxattr(fd, KEY_XATTR) == b"b"
        await core.changes.unlink(ROOT_INO, b"b", 0)
        assert KEY_XATTR not in os.listxattr(fd)


async def test_time_that_is_set_while_a_file_becomes_clean_is_kept(tmp_path: Path) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        for number in range(20):
            made = await put_staged(core, b"%d" % number, b"content")
            assert await core.staging.seal(made.ino)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(core.staging.make_clean, made.ino, f"{number}", version(b"content"))
                nursery.start_soon(partial(core.changes.setattr, made.ino, 0, mtime_ns=4711))
            assert core.staging.shown(core.filesystem.inode(made.ino)).version.mtime_ns == 4711


async def test_file_staged_again_has_another_life(tmp_path: Path) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        made = await put_staged(core, b"a", b"content")
        assert await core.staging.seal(made.ino)
        assert await core.staging.make_clean(made.ino, "a", version(b"content"))
        again = await core.staging.stage(made.ino, 0, 1)
        assert again.life != made.life and staged(core, made.ino) == b"content"


# --- durability and recovery -----------------------------------------------------------------------------------


async def test_failed_sync_fails_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        made = await put_staged(core, b"a", b"content")

        def fail(_fd: int) -> None:
            raise OSError(errno.EIO, "disk")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            with pytest.raises(OSError):
                await core.staging.sync(made.ino, data_only=False)
        with pytest.raises(OSError):
            await core.staging.sync(made.ino, data_only=False)


async def test_concurrent_syncs_share_one(tmp_path: Path) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        made = await put_staged(core, b"a", b"content")
        syncs = 0
        original = core.environment.sync

        def count() -> None:
            nonlocal syncs
            syncs += 1
            original()

        core.environment.sync = count  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            for _n in range(30):
                nursery.start_soon(partial(core.staging.sync, made.ino, data_only=True))
        assert syncs < 30


async def recovered(core: Rig, *, is_first: bool = True) -> None:
    now_ns = core.clock.now_ns
    staging = core.staging_files
    await recover(core.environment, core.reader, core.writer, staging, core.small, "", now_ns, is_first=is_first)


def is_known_request(core: Rig, token: int) -> bool:
    with core.reader.begin() as txn:
        return core.reader.changed(txn).applied(token) is not None


async def test_only_a_new_mount_forgets_which_requests_were_carried_out(tmp_path: Path) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        await core.changes.make(ROOT_INO, b"a", FILE, 0, 0, 5)
        await recovered(core, is_first=False)
        assert is_known_request(core, 5)
        await recovered(core)
        assert not is_known_request(core, 5)


async def test_staging_files_and_records_are_brought_together(tmp_path: Path) -> None:
    async with core_with(tmp_path, small=b"small", large=LARGE, cut=LARGE) as (core, inodes):
        kept = await put_staged(core, b"kept", b"content")
        lost = await put_staged(core, b"lost", b"never synced")
        for name in ("small", "large"):
            record = await core.staging.stage(inodes[name].ino, 0, 1)
            core.staging_files.remove(record.ino, record.life)
        cut = await core.staging.stage(inodes["cut"].ino, 0, 1)
        os.ftruncate(core.staging_files.descriptor(cut.ino, cut.life), 100)
        core.staging_files.remove(lost.ino, lost.life)
        core.staging_files.create(4711, 4712)
        await core.staging.seal(kept.ino)
        await recovered(core)
        assert not core.filesystem.inode(kept.ino).is_sealed and staged(core, kept.ino) == b"content"
        assert staged(core, lost.ino) == b""
        for name in ("small", "large"):
            assert not core.filesystem.inode(inodes[name].ino).is_staged
        assert (4711, 4712) not in names(core)
        await core.staging.stage(cut.ino, 0, 0, truncate_to=200)
        await core.staging.localise(cut.ino, 0, 200)
        assert staged(core, cut.ino) == LARGE[:100] + bytes(100)


async def test_index_is_synced_before_a_file_goes_that_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        core.staging_files.create(4711, 4712)
        seen: list[list[tuple[int, int]]] = []
        monkeypatch.setattr(core.environment, "sync", lambda: seen.append(names(core)))
        await recovered(core)
        assert seen == [[(4711, 4712)]] and names(core) == []


async def test_reader_finds_an_object_that_was_put_anew_by_ourselves(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=b"content") as (core, inodes):
        _put_anew(core)

        async def record(ino: int) -> None:
            (page,) = core.pages.scan("")
            (found,) = page.objects
            published = MakePublished(ino, "a", found.version, Dirty.META, None, "")
            await core.writer.run(published.apply)

        core.filesystem.wait_published = record
        await core.filesystem.prepare_read(Verb.FILL, inodes["a"].ino, 0, 7)
        assert core.small.has(inodes["a"].ino)


async def test_reader_of_an_object_that_somebody_else_put_anew_is_told(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=b"content") as (core, inodes):
        _put_anew(core)
        with pytest.raises(VersionGoneError):
            await core.filesystem.prepare_read(Verb.FILL, inodes["a"].ino, 0, 7)


def _put_anew(core: Rig) -> None:
    """Put the file's object anew, with the same content; the index does not know yet."""
    (core.source / "a").unlink()
    core.write("a", b"content")


async def test_orphan_takes_its_staging_file_along(tmp_path: Path) -> None:
    class Kernel:
        async def is_held(self, ino: int) -> bool:
            return is_held

    is_held = True
    async with core_with(tmp_path) as (core, _inodes):
        made = await put_staged(core, b"a", b"content")
        await core.changes.unlink(ROOT_INO, b"a", 0)
        assert await core.staging.stage(made.ino, 0, 1)  # whoever has it open may write on
        reaper = OrphanReaper(
            environment=core.environment,
            staging=core.staging_files,
            small=core.small,
            space=core.space,
            notifier=Kernel(),  # type: ignore[arg-type]
            grace=core.grace,
            readahead=ReadAhead(0),
            clock=core.clock,
            row=core.row,
        )
        await recovered(core)
        assert await reaper.sweep(0) == 0 and names(core) == [(made.ino, made.life)]
        is_held = False
        reaper._not_before.clear()
        assert await reaper.sweep(0) == 1 and names(core) == []


# --- requests --------------------------------------------------------------------------------------------------


async def test_request_delivered_twice_at_a_time_is_done_once(tmp_path: Path) -> None:
    async with core_with(tmp_path) as (core, _inodes):
        made: list[Inode] = []

        async def make(token: int) -> None:
            made.append(await core.changes.make(ROOT_INO, b"a", FILE, 0, 0, token))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make, 5)
            nursery.start_soon(make, 5 | 1 << 30)
        assert made[0].ino == made[1].ino and len(names(core)) == 1


async def test_refused_request_is_refused_again_though_the_name_is_free_by_now(tmp_path: Path) -> None:
    async with core_with(tmp_path, a=b"1") as (core, _inodes):
        for token in (5, 5 | 1 << 30):
            with pytest.raises(RefusedError):
                await core.changes.make(ROOT_INO, b"a", FILE, 0, 0, token)
            if token == 5:
                await core.changes.unlink(ROOT_INO, b"a", 6)


async def test_name_that_only_the_store_has_is_known_before_it_is_made(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        core.write("a", b"1")
        core.write("d/x", b"1")
        with pytest.raises(RefusedError) as caught:
            await core.changes.make(ROOT_INO, b"a", FILE, 0, 0, 0)
        assert caught.value.errno_code == errno.EEXIST
        with pytest.raises(RefusedError) as caught:
            await core.changes.rmdir(ROOT_INO, b"d", 0)
        assert caught.value.errno_code == errno.ENOTEMPTY
        assert names(core) == []

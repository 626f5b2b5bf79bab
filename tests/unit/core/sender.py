"""A core that writes: the rig with staging and everything that brings changes to its source directory."""

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from fanoutfs.backend.unanswered import Unanswered
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.clock import SystemClock
from fanoutfs.config.schema import MountConfig
from fanoutfs.core.durable import Durable
from fanoutfs.core.numbers import Numbers
from fanoutfs.core.outbound import Outbound, make_outbound
from fanoutfs.core.policybook import PolicyBook
from fanoutfs.core.spares import Spares
from fanoutfs.core.staging import Staging
from fanoutfs.core.warming import Warming
from fanoutfs.errors import RefusedError
from fanoutfs.index.attributes import SetAttributes
from fanoutfs.index.changes import Link, MakeNode, Rename, Rmdir, Unlink
from fanoutfs.index.format import Inode
from fanoutfs.index.intents import INTENTS
from fanoutfs.index.operations import FreeOrphans
from fanoutfs.index.places import Places
from fanoutfs.index.requests import Request
from fanoutfs.index.uploading import TagVolume
from fanoutfs.records import ROOT_INO
from tests.unit.core.rig import Rig, running_core
from tests.unit.indexes import OWNER

UNUSED: Any = None
HIDDEN = ".fanoutfs-writing"


@dataclass
class Sender:
    """The parts, and what a user does with them."""

    rig: Rig
    files: StagingFiles
    staging: Staging
    outbound: Outbound
    numbers: Numbers
    held: set[int]
    """Unlinked inodes that the kernel has not forgotten."""
    events: list[str] = field(default_factory=list)

    # --- what users do -------------------------------------------------------------------------------------------

    def request(self) -> Request:
        return Request(SystemClock().wall_ns(), 0, 0, "")

    async def place(self, path: str) -> tuple[int, bytes]:
        """Return (parent, name), the directories above listed."""
        *above, name = path.split("/")
        at = ROOT_INO
        for part in ["", *above]:
            if part:
                with self.rig.reader.begin() as txn:
                    found = self.rig.reader.child(txn, at, part.encode())
                if found is None:
                    raise RefusedError(errno.ENOENT)
                at = found
            await self.know(at)
        return at, name.encode()

    async def know(self, ino: int) -> None:
        with self.rig.reader.begin() as txn:
            inode = self.rig.reader.inode(txn, ino)
        if inode is not None and inode.is_dir and not inode.is_listed:
            await self.rig.listings.refresh(ino)

    async def create(self, path: str, content: bytes = b"", mode: int = 0o644) -> Inode:
        parent, name = await self.place(path)
        ino, life = await self.staging.new_file()
        made = MakeNode(parent, name, ino, stat.S_IFREG | mode, 7, 8, self.request(), life=life)
        inode = await self.rig.writer.run(made.apply)
        os.pwrite(self.files.descriptor(ino, life), content, 0)
        self.outbound.uploads.note_dirty(ino)
        return inode

    async def make(self, path: str, mode: int, target: bytes = b"") -> Inode:
        parent, name = await self.place(path)
        made = MakeNode(parent, name, await self.numbers.take(), mode, 7, 8, self.request(), target=target)
        inode = await self.rig.writer.run(made.apply)
        self.outbound.uploads.note_dirty(inode.ino)
        return inode

    async def mkdir(self, path: str) -> Inode:
        return await self.make(path, stat.S_IFDIR | 0o750)

    async def write(self, path: str, offset: int, content: bytes, truncate_to: int | None = None) -> None:
        parent, name = await self.place(path)
        with self.rig.reader.begin() as txn:
            ino = self.rig.reader.child(txn, parent, name)
        if ino is None:
            raise RefusedError(errno.ENOENT)
        inode = await self.staging.stage(ino, offset, len(content), truncate_to)
        os.pwrite(self.files.descriptor(ino, inode.life), content, offset)
        self.outbound.uploads.note_dirty(ino)

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        parent, name = await self.place(old)
        new_parent, new_name = await self.place(new)
        with self.rig.reader.begin() as txn:
            for each in (self.rig.reader.child(txn, parent, name), self.rig.reader.child(txn, new_parent, new_name)):
                if each is not None:
                    await self.know(each)
        with self.rig.reader.begin() as txn:
            other = self.rig.reader.child(txn, new_parent, new_name)
        ino = await self.rig.writer.run(Rename(parent, name, new_parent, new_name, flags, self.request()).apply)
        self.outbound.uploads.note_dirty(ino)
        if other is not None:
            self.outbound.note_changed(other)
            await self.forget(other)
        self.outbound.moves.note_departed()

    async def unlink(self, path: str) -> None:
        parent, name = await self.place(path)
        ino = await self.rig.writer.run(Unlink(parent, name, self.request()).apply)
        self.outbound.note_changed(ino)
        await self.forget(ino)

    async def rmdir(self, path: str) -> None:
        parent, name = await self.place(path)
        with self.rig.reader.begin() as txn:
            ino = self.rig.reader.child(txn, parent, name)
        if ino is not None:
            await self.know(ino)
        await self.rig.writer.run(Rmdir(parent, name, self.request()).apply)
        self.outbound.moves.note_departed()

    async def link(self, old: str, new: str) -> None:
        ino = (await self.inode(old)).ino
        parent, name = await self.place(new)
        cookie = await self.numbers.take()
        await self.rig.writer.run(Link(ino, parent, name, cookie, self.request()).apply)
        self.outbound.uploads.note_dirty(ino)
        self.outbound.uploads.note_dirty(cookie)

    async def chmod(self, path: str, mode: int) -> None:
        ino = (await self.inode(path)).ino
        await self.rig.writer.run(SetAttributes(ino, self.request(), mode=mode).apply)
        self.outbound.uploads.note_dirty(ino)

    async def forget(self, ino: int) -> None:
        """The kernel forgets an unlinked inode."""
        with self.rig.reader.begin() as txn:
            is_orphan = self.rig.reader.is_orphan(txn, ino)
        if is_orphan:
            await self.rig.writer.run(FreeOrphans((ino,)).apply)
        self.outbound.moves.note_departed()

    async def inode(self, path: str) -> Inode:
        parent, name = await self.place(path)
        with self.rig.reader.begin() as txn:
            ino = self.rig.reader.child(txn, parent, name)
            inode = None if ino is None else self.rig.reader.inode(txn, ino)
        if inode is None:
            raise RefusedError(errno.ENOENT)
        return inode

    # --- what there is -------------------------------------------------------------------------------------------

    def bucket(self) -> dict[str, bytes]:
        """Return all objects of the source."""
        found = {}
        for folder, folders, names in os.walk(self.rig.source):  # (it passes over what vanishes meanwhile)
            folders[:] = [name for name in folders if name != HIDDEN]
            for name in names:
                path = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):
                    found[str(path.relative_to(self.rig.source))] = path.read_bytes()
        return dict(sorted(found.items()))

    async def tree(self) -> dict[str, str | None]:
        """Return path → object key (None: a directory) of everything that the index shows."""
        found: dict[str, str | None] = {}

        async def visit(ino: int, prefix: str) -> None:
            await self.know(ino)
            with self.rig.reader.begin() as txn:
                children = [
                    (name.decode(), self.rig.reader.inode(txn, child))
                    for name, child, _dtype, _cookie in self.rig.reader.children(txn, ino, b"")
                ]
            for name, inode in children:
                assert inode is not None, f"{prefix}{name} leads to nothing"
                found[prefix + name] = None if inode.is_dir else inode.key
                if inode.is_dir:
                    await visit(inode.ino, f"{prefix}{name}/")

        await visit(ROOT_INO, "")
        return found

    def left(self) -> tuple[list[str], list[str]]:
        """Return what is dirty (by key), and what has departed or may be in the store unnoticed."""
        with self.rig.reader.begin() as txn:
            places = Places.of_reader(self.rig.reader, txn, "")
            dirty = [
                f"{ino} {places.key(ino)} {record.what!r} {record.error}" for ino, record in places.records.all_dirty()
            ]
            departed = [f"{key} -> {record.ino}" for key, record in places.records.all_departed()]
            departed += [f"{name!r} {key!r}" for name, key in self.rig.reader.settings(txn, INTENTS).items()]
        return dirty, departed

    async def settled(self, deadline_s: float = 30.0) -> None:
        """Return when the source has everything."""
        await until(lambda: self.left() == ([], []), lambda: f"left: {self.left()}", deadline_s)


async def until(condition: Callable[[], Any], what: Callable[[], str], deadline_s: float = 30.0) -> None:
    """Return when a condition holds."""
    deadline = trio.current_time() + deadline_s
    while not condition():
        assert trio.current_time() < deadline, what()
        await trio.sleep(0.005)


@asynccontextmanager
async def sending_core(path: Path, **options: Any) -> AsyncIterator[Sender]:
    """Run a core that writes.  options: settings of the mount."""
    async with running_core(path) as rig:
        async with sending(rig, path, **options) as sender:
            yield sender


@asynccontextmanager
async def sending(
    rig: Rig, path: Path, *, late_s: float = 0.05, unanswered: Unanswered | None = None, **options: Any
) -> AsyncIterator[Sender]:
    """Add to a rig what writes; leaving is like a kill."""
    settings = {"upload_delay": 0.0, "upload_deadline": 5.0, "op_timeout": 5.0} | options
    config = MountConfig("file:///", Path("/nonexistent"), **settings)
    files = StagingFiles(path)
    numbers = Numbers(rig.writer)
    staging = Staging(
        reader=rig.reader,
        writer=rig.writer,
        staging=files,
        files=rig.files,
        small=rig.small,
        fills=rig.fills,
        arena=rig.arena,
        space=rig.space,
        room=rig.room,
        grace=rig.grace,
        durable=Durable(rig.environment, rig.space.cap_bytes),
        numbers=numbers,
        spares=Spares(files, numbers),
        ownership=OWNER,
        root_prefix="",
        clock=SystemClock(),
        op_timeout_s=5.0,
    )
    warming = Warming(
        jobs=rig.jobs,
        reader=rig.reader,
        listings=rig.listings,
        imports=UNUSED,
        fills=rig.fills,
        small=rig.small,
        metadata_ttl_s=float("inf"),
    )
    tag = await rig.writer.run(TagVolume("tag").apply)
    held: set[int] = set()

    async def is_held(ino: int) -> bool:
        await trio.lowlevel.checkpoint()
        return ino in held

    outbound = make_outbound(
        config=config,
        backend=rig.backend,
        root_prefix="",
        reader=rig.reader,
        writer=rig.writer,
        files=files,
        staging=staging,
        grace=rig.grace,
        listings=rig.listings,
        jobs=rig.jobs,
        is_held=is_held,
        locate=lambda name: rig.inode(name.decode()).ino,
        book=PolicyBook(config=config, reader=rig.reader, writer=rig.writer, root_prefix="", clock=SystemClock()),
        warming=warming,
        unanswered=unanswered or Unanswered(late_s),
        ownership=OWNER,
        clock=SystemClock(),
        tag=tag,
        row=rig.row,
        late_s=late_s,
    )
    staging.note_dirty = outbound.uploads.note_dirty
    async with trio.open_nursery() as nursery:
        for task in outbound.tasks().values():
            nursery.start_soon(task)
        yield Sender(rig, files, staging, outbound, numbers, held)
        nursery.cancel_scope.cancel()
    files.close()

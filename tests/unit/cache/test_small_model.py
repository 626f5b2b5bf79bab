"""Random sequences of everything the small-file store can do, against a dictionary."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fanoutfs.cache.small import SmallMismatchError
from fanoutfs.records import KIB, MIB
from tests.unit.cache.stores import content_of, occupied_bytes, open_store, segments_of

SHARE_BYTES = 2 * MIB
INODES = st.integers(16, 80)
SIZES = st.one_of(st.integers(0, 300), st.integers(0, 40 * KIB), st.just(129 * KIB), st.just(260 * KIB))
PAGE = 4096


class StoreMachine(RuleBasedStateMachine):
    """contents: what must be there, unless it was evicted; lost: what may fail its checksum instead."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="fanoutfs-store-"))
        self.store = open_store(self.path, SHARE_BYTES)
        self.contents: dict[int, bytes] = {}
        self.lost: set[int] = set()
        self.evicted = 0
        self.made = 0

    @rule(items=st.lists(st.tuples(INODES, SIZES), max_size=40))
    def put_many(self, items: list[tuple[int, int]]) -> None:
        self.made += 1
        made = [(ino, random.Random(f"{self.made} {n}").randbytes(size)) for n, (ino, size) in enumerate(items)]
        stored = trio.run(self.store.put_many, [(ino, memoryview(body)) for ino, body in made])
        assert stored == [len(body) <= (SHARE_BYTES - SHARE_BYTES // 64) // 8 for _ino, body in made]
        for (ino, body), is_stored in zip(made, stored, strict=True):
            if is_stored:
                self.contents[ino] = body
                self.lost.discard(ino)

    @rule(inos=st.lists(INODES, max_size=20))
    def drop(self, inos: list[int]) -> None:
        trio.run(self.store.drop_many, inos)
        for ino in inos:
            self.contents.pop(ino, None)
            assert not self.store.has(ino)

    @rule(wanted=st.integers(1, SHARE_BYTES))
    def give_back(self, wanted: int) -> None:
        trio.run(self.store.give_back, wanted)

    @rule()
    def tidy(self) -> None:
        while sparse := self.store.find_sparse():
            trio.run(self.store.write_anew, sparse[0])

    @rule()
    def reopen(self) -> None:
        self.evicted += self.store.evicted
        self.store.close()
        self.store = open_store(self.path, SHARE_BYTES)

    @rule(where=st.floats(0, 1))
    def tear_the_tail(self, where: float) -> None:
        """Take away what a power cut may: the end of the last file."""
        self.reopen()
        files = segments_of(self.path)
        if files:
            self.store.close()
            os.truncate(files[-1], int(files[-1].stat().st_size * where))
            self.store = open_store(self.path, SHARE_BYTES)
            self.lost |= set(self.contents)

    @invariant()
    def bytes_are_right(self) -> None:
        missing = 0
        for ino in range(16, 81):
            try:
                found = content_of(self.store, ino)
            except SmallMismatchError:
                assert ino in self.lost, f"damaged: {ino}"
                assert not self.store.is_intact(ino)
                continue
            if found is None:
                missing += ino in self.contents
            else:
                assert ino in self.contents, f"came back: {ino}"
                assert found == self.contents[ino], f"wrong bytes: {ino}"
        assert missing <= self.evicted + self.store.evicted + len(self.lost)

    @invariant()
    def accounts_are_right(self) -> None:
        occupied, files = occupied_bytes(self.path), len(segments_of(self.path))
        assert abs(self.store.file_bytes() - occupied) <= 2 * PAGE * files
        assert occupied <= SHARE_BYTES + SHARE_BYTES // 16, "one segment more while one is written anew"

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.path)


StoreMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStore = StoreMachine.TestCase

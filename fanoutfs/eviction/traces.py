"""Traces: what is read in which order.  Made up, and the file format of recorded ones.

A trace file has one access a line: a key (any word without white space: "inode.part", a path) and a size in bytes.
Empty lines and lines that begin with "#" are passed over.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

Access = tuple[int, int]
"""(key, size in bytes)."""

_HOT_SHARE: Final = 0.1
_HOT_READS: Final = 10
"""A tenth of the files is read ten times in each epoch, the others once."""


def same_order(files: int, epochs: int, _seed: int = 0) -> Iterator[int]:
    """Yield every file, in the same order in each epoch."""
    for _epoch in range(epochs):
        yield from range(files)


def shuffled(files: int, epochs: int, seed: int = 0) -> Iterator[int]:
    """Yield every file once in each epoch, in a new order."""
    chance = random.Random(seed)
    order = list(range(files))
    for _epoch in range(epochs):
        chance.shuffle(order)
        yield from order


def hot_subset(files: int, epochs: int, seed: int = 0) -> Iterator[int]:
    """Yield every file in each epoch, in a new order, and a tenth of them nine times more."""
    chance = random.Random(seed)
    order = list(range(files)) + list(range(int(files * _HOT_SHARE))) * (_HOT_READS - 1)
    for _epoch in range(epochs):
        chance.shuffle(order)
        yield from order


def zipf(files: int, epochs: int, seed: int = 0) -> Iterator[int]:
    """Yield files drawn by chance, the n-th most popular in proportion to 1/n; as many draws as files in an epoch."""
    chance = random.Random(seed)
    weights = list(accumulate(1 / (rank + 1) for rank in range(files)))
    names = list(range(files))
    chance.shuffle(names)
    yield from chance.choices(names, cum_weights=weights, k=files * epochs)


def changing(files: int, epochs: int, seed: int = 0) -> Iterator[int]:
    """Yield shuffled epochs over one data set, then as many over another: what was right to keep is of no use then."""
    yield from shuffled(files, epochs // 2, seed)
    for key in shuffled(files, epochs - epochs // 2, seed + 1):
        yield files + key


PATTERNS: Final[dict[str, Callable[[int, int, int], Iterator[int]]]] = {
    "same order": same_order,
    "new shuffle": shuffled,
    "hot subset": hot_subset,
    "zipf": zipf,
    "data set changes": changing,
}


def parse_trace(lines: Iterable[str]) -> list[Access]:
    """Return the accesses of a trace file.  Raises ValueError with the number of a line that is none."""
    numbers: dict[str, int] = {}
    sizes: list[int] = []
    found: list[int] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not words[1].isdecimal():
            raise ValueError(f"line {number}: not a key and a size")
        key = numbers.setdefault(words[0], len(numbers))
        if key == len(sizes):
            sizes.append(int(words[1]))
        sizes[key] = max(sizes[key], int(words[1]))
        found.append(key)
    return [(key, sizes[key]) for key in found]


def data_bytes(trace: Sequence[Access]) -> int:
    """Return how much all files of a trace hold together."""
    return sum(dict(trace).values())

"""Sort more than fits comfortably in memory: runs on disk, merged while they are read.

For the local backend, whose directories may have millions of names in no order.  Any thread; the temporary file has
no name and goes with its last reader.
"""

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

RUN_NAMES: Final = 50_000
"""Names sorted in memory at a time: about 6 MB."""
_READ_BYTES: Final = 1 << 16


def sorted_names(names: Iterable[str], run_names: int = RUN_NAMES) -> Iterator[str]:
    """Return the names in the order of their bytes.  No name holds a NUL or a newline.

    All are read before the first is returned.  Raises OSError when the temporary directory has no room.
    """
    runs: list[tuple[int, int]] = []
    run: list[bytes] = []
    spill: _Spill | None = None
    for name in names:
        run.append(name.encode("utf-8", "surrogateescape"))
        if len(run) >= run_names:
            spill = spill or _Spill()
            runs.append(spill.write(run))
            run.clear()
    if spill is None:
        return (name.decode("utf-8", "surrogateescape") for name in sorted(run))
    runs.append(spill.write(run))
    merged = heapq.merge(*(spill.read(start, end) for start, end in runs))
    return (name.decode("utf-8", "surrogateescape") for name in merged)


class _Spill:
    """A file without a name; each iterator over a run keeps it open."""

    def __init__(self) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its readers

    def __del__(self) -> None:
        self._file.close()

    def write(self, run: list[bytes]) -> tuple[int, int]:
        """Append a run, sorted; return where it is."""
        start = self._file.tell()
        self._file.writelines(name + b"\n" for name in sorted(run))
        return start, self._file.tell()

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the names of a run; other runs may be read meanwhile."""
        left = b""
        while start < end:
            self._file.seek(start)
            chunk = self._file.read(min(_READ_BYTES, end - start))
            start += len(chunk)
            *lines, left = (left + chunk).split(b"\n")
            yield from lines

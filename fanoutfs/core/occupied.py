"""What the volume occupies on disk: what counts against the cap.

Core, trio thread only.  Blocks of large files are exact, in the index, changed in the transaction that publishes them;
the files of index and small store are as long as they are; what waits in staging is known by `core.staged`.  What else
is needed around them is taken for more rather than less.
"""

from typing import Final

from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.reads import Reads
from fanoutfs.core.staged import StagedBytes
from fanoutfs.index.reader import IndexReader, Transaction
from fanoutfs.index.store import IndexEnvironment

FIXED_BYTES: Final = 128 << 10
"""Locks, folders and marks, and the pages by which the index grows beyond its room between two looks at its size."""
_PAGE_BYTES: Final = 4096
_FOLDERS: Final = 256


class Occupied:
    """Counts it."""

    def __init__(
        self,
        *,
        environment: IndexEnvironment,
        files: CacheFiles,
        small: SmallStore,
        staged: StagedBytes,
        reads: Reads,
        fixed_bytes: int,
    ) -> None:
        """fixed_bytes: what is taken for what does not grow with the cache."""
        self._environment = environment
        self._reader = IndexReader(environment)
        self._files = files
        self._small = small
        self._staged = staged
        self._reads = reads
        self._fixed_bytes = fixed_bytes
        self._adopted: dict[int, int] = {}
        """Files whose staging file becomes their cache file as it is, on disk once, with their bytes."""

    def large_bytes(self) -> int:
        """Return the bytes of large files in the cache."""
        with self._environment.env.begin() as txn:
            return self._large_bytes(txn)

    def total_bytes(self) -> int:
        """Return what all takes together, rather more than less: any part may end inside a page of the disk."""
        with self._environment.env.begin() as txn:
            return self._beside_staging_bytes(txn) + max(0, self._staged.total - self._twice_bytes(txn))

    def beside_staging_bytes(self) -> int:
        """Return what all takes but staging files, save those that are cache files as well."""
        with self._environment.env.begin() as txn:
            return self._beside_staging_bytes(txn)

    def reserve_bytes(self) -> int:
        """Return what is taken for more than is counted: growth, marks, and pages that are not full."""
        with self._environment.env.begin() as txn:
            return self._reserve_bytes(txn)

    def _reserve_bytes(self, txn: Transaction) -> int:
        parts = txn.stat(self._environment.blocks)["entries"]
        pages = parts + min(parts, _FOLDERS * self._files.count)
        return self._reads.most_file_bytes + pages * _PAGE_BYTES + self._fixed_bytes + self._small.growth_bytes

    def _beside_staging_bytes(self, txn: Transaction) -> int:
        stores_bytes = self._small.file_bytes() + self._environment.file_bytes()
        return self._large_bytes(txn) + stores_bytes + self._reserve_bytes(txn)

    def note_adopted(self, ino: int, size_bytes: int) -> None:
        """Note that a commit to come counts a staging file as cache file, too, until `forget_adopted`."""
        self._adopted[ino] = size_bytes

    def forget_adopted(self, ino: int) -> None:
        """Note that a file counts once again: its staging file counts no more, or nothing came of the commit."""
        self._adopted.pop(ino, None)

    def _large_bytes(self, txn: Transaction) -> int:
        return int.from_bytes(txn.get(b"cached_bytes", db=self._environment.settings) or b"", "little")

    def _twice_bytes(self, txn: Transaction) -> int:
        """Return what counts as staged and as cached: nobody here may have heard of the commit yet, the index has."""
        return sum(size_bytes for ino, size_bytes in self._adopted.items() if self._is_clean(txn, ino))

    def _is_clean(self, txn: Transaction, ino: int) -> bool:
        inode = self._reader.inode(txn, ino)
        return inode is not None and not inode.is_staged

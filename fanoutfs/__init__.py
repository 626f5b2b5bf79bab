"""fanoutfs: a FUSE caching file system under deep-learning training jobs.

Three promises:
1. An open costs nothing: the kernel answers opens of known files, no message reaches the daemon.
2. A byte is fetched once: however many readers, each byte of a file version leaves the backend once.
3. Nothing served is wrong: every cached byte is checksummed, and one file is never read as a mixture of two versions.

Three kinds of process (`keeper`, `front` × N, `core`):

    training jobs ── syscalls ──> kernel: dentries, attributes, page cache
                                    | /dev/fuse, one descriptor shared by all
        keeper   owns the mount and INIT; starts, watches and replaces the others
          front  answers LOOKUP, GETATTR, READ, READDIRPLUS from LMDB and the cache files, makes files; stateless
          core   pyfuse3 on trio; lists, fills, evicts, notifies; all other changes of LMDB are its
        front ── relay (packets below 64 KiB, never file data) ──> core
    Writes: fronts write staging files; the core (new files: a front) records names and attributes in the index, and
    the core uploads behind them.

Layers, imports point right only:
cli → doctor → keeper → {front | core | bench} → {index, cache, backend} → {wire, observe, config}
→ {eviction, errors, records, clock}

Invariants:
* Commits to the index wait for no disk: they survive the death of every process.  What fsync acknowledged survives a
  power cut, too, which throws the index back to the last sync and never tears it (`index.savepoint`).
* A front changes two things in the index: it enters a new regular file, with a number and a staging file that the core
  has put aside for it, and attributes of a file that is staged and not sealed.  Each in one transaction that takes the
  decision (LMDB lets one process write at a time), under the request's token, and only while the pin of the last sync
  is there.  What was delivered again is the core's.
* What a front answers from is committed, or stands in the arena (fetched bytes in shared memory, read before they are
  on disk).  Bytes are removed only after a grace period in which every front was idle.
* What the store changes never changes under an inode number: a changed object is a new inode.  What is changed here
  keeps its number, and while it is *staged* its newest content, size and times are those of its staging file.  Inode
  numbers are never reused within an index, and everything filed under them goes when an index is begun anew.
* A front writes a staging file only inside a request that found the inode staged and not sealed; the core seals, waits
  for a grace period, and only then relies on the bytes.  A staging file goes only after the commit that says that the
  store has its content is durable.
* Evicted is only what the store has as well, is not pinned, and can be read again there.  No policy deletes an object.
* The index never promises bytes that are not in the cache file; the checksum catches what the disk did to them.
* Notifications follow the commit, after a grace period, from a thread that holds no unanswered request.

Words: a *backend* holds *objects* (keys) in *versions*; an *entry* is a name in a directory; *blocks* (256 KiB) are
checksummed, *parts* (8 MiB) fetched and evicted; a *disk* is one of the directories of the cache, by its number (0: the
first, which alone has index, small files and staging); a *fill* brings bytes to the cache; the *relay* joins front and
core; a file's *tier* is where its bytes are (`tiering.states`), a *policy* where they shall be, a *pin* what keeps them
here.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fanoutfs.cli.plans import Announced, announce

__all__ = ["Announced", "announce"]

__version__: Final = "0.1.0"
"""Here, where pyproject.toml reads it, and not asked of the installation: that takes longer than all the rest of
`fanoutfs --version`."""


def __getattr__(name: str) -> Any:
    """Load what jobs use only when they do: every process of a mount imports this module."""
    if name in __all__:
        from fanoutfs.cli import plans  # noqa: PLC0415

        return getattr(plans, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Every metric, declared once: name, unit, what it says, how far its name can be relied on.

Three kinds: counters (here, `METRICS`), gauges (`GAUGES`: how things stand, said by the core when it is asked) and
latencies (observe.latency).  What is computed from them is in observe.derived.

Counters only grow while a mount lives; they survive restarts of fronts and core because they stand in memory that
the keeper owns.  A process writes only its own row (see `shared`), a reader adds the rows up.  Each position is a
fixed index so that the hot path is one `row[index] += 1`.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from fanoutfs.wire.kernel import Opcode

ANSWERED_BASE: Final = 0
"""row[ANSWERED_BASE + opcode]: messages of this opcode that a front answered itself."""
RELAYED_BASE: Final = 64
"""row[RELAYED_BASE + opcode]: messages of this opcode that needed the core first."""
NAMED_BASE: Final = 128


class Count(IntEnum):
    """Index of a named counter in a row."""

    READER_BYTES = NAMED_BASE
    SMALL_READS = NAMED_BASE + 1
    BLOCKS_VERIFIED = NAMED_BASE + 2
    VERIFY_FAILURES = NAMED_BASE + 3
    HINTS_DROPPED = NAMED_BASE + 4
    REQUEST_ERRORS = NAMED_BASE + 5
    LATE_ANSWERS = NAMED_BASE + 6
    BACKEND_BYTES = NAMED_BASE + 7
    BACKEND_GETS = NAMED_BASE + 8
    BACKEND_LISTS = NAMED_BASE + 9
    BACKEND_HEADS = NAMED_BASE + 10
    BACKEND_RETRIES = NAMED_BASE + 11
    BACKEND_ERRORS = NAMED_BASE + 12
    FILLS_STARTED = NAMED_BASE + 13
    FILLS_JOINED = NAMED_BASE + 14
    FILLS_FAILED = NAMED_BASE + 15
    PREFETCH_BYTES = NAMED_BASE + 16
    READ_THROUGH_BYTES = NAMED_BASE + 17
    EVICTED_BYTES = NAMED_BASE + 18
    LISTINGS = NAMED_BASE + 19
    VERSION_SWITCHES = NAMED_BASE + 20
    HIDDEN_NAMES = NAMED_BASE + 21
    NOTIFICATIONS = NAMED_BASE + 22
    RESTARTS_CORE = NAMED_BASE + 23
    RESTARTS_FRONT = NAMED_BASE + 24
    POISON_REQUESTS = NAMED_BASE + 25
    ORPHANS_FREED = NAMED_BASE + 26
    BACKEND_GET_NS = NAMED_BASE + 27
    BACKEND_HEAD_NS = NAMED_BASE + 28
    BACKEND_LIST_NS = NAMED_BASE + 29
    BACKEND_MISSING = NAMED_BASE + 30
    BACKEND_DEADLINES = NAMED_BASE + 31
    BACKEND_HIDDEN_KEYS = NAMED_BASE + 32
    ARENA_READS = NAMED_BASE + 33
    PREFETCH_USED_BYTES = NAMED_BASE + 34
    PREFETCH_WASTED_BYTES = NAMED_BASE + 35
    PUSHED_FILES = NAMED_BASE + 36
    PUSHED_BYTES = NAMED_BASE + 37
    PUSHES_REFUSED = NAMED_BASE + 38
    PUSH_STOPS_BUDGET = NAMED_BASE + 39
    PUSH_STOPS_PRESSURE = NAMED_BASE + 40
    SENTINELS_READ = NAMED_BASE + 41
    SENTINELS_UNREAD = NAMED_BASE + 42
    BACKEND_PUTS = NAMED_BASE + 43
    BACKEND_PUT_NS = NAMED_BASE + 44
    BACKEND_COPIES = NAMED_BASE + 45
    BACKEND_COPY_NS = NAMED_BASE + 46
    BACKEND_DELETES = NAMED_BASE + 47
    BACKEND_DELETE_NS = NAMED_BASE + 48
    BACKEND_SENT_BYTES = NAMED_BASE + 49
    BACKEND_CONFLICTS = NAMED_BASE + 50
    WRITER_BYTES = NAMED_BASE + 51
    UPLOADED_FILES = NAMED_BASE + 52
    UPLOADED_BYTES = NAMED_BASE + 53
    UPLOADED_PARTS = NAMED_BASE + 54
    UPLOADS_FAILED = NAMED_BASE + 55
    OBJECTS_MOVED = NAMED_BASE + 56
    OBJECTS_DELETED = NAMED_BASE + 57
    CONFLICTS = NAMED_BASE + 58
    STALL_SOME_NS = NAMED_BASE + 59
    STALL_FULL_NS = NAMED_BASE + 60
    WAIT_BACKEND_NS = NAMED_BASE + 61
    WAIT_QUEUE_NS = NAMED_BASE + 62
    WAIT_DISK_NS = NAMED_BASE + 63
    WAIT_DAEMON_NS = NAMED_BASE + 64
    SLOW_REQUESTS = NAMED_BASE + 65
    REFETCHED_BYTES = NAMED_BASE + 66
    GRACE_PERIODS = NAMED_BASE + 67
    GRACE_NS = NAMED_BASE + 68
    DISK_ERRORS = NAMED_BASE + 69
    DISKS_FAILED = NAMED_BASE + 70
    HANGS_CORE = NAMED_BASE + 71
    HANGS_FRONT = NAMED_BASE + 72
    HANGS_PUSHER = NAMED_BASE + 73
    HANGS_NOTIFIER = NAMED_BASE + 74


STABLE: Final = "stable"
"""Dashboards may rely on the name and its meaning."""
EXPERIMENTAL: Final = "experimental"
"""Says how a mechanism works that may be replaced by another one."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One named counter.  unit: "1" for events, "bytes", "ns"."""

    count: Count
    unit: str
    help: str
    stability: str = STABLE

    @property
    def name(self) -> str:
        """Return the name under which status and metrics show it."""
        return self.count.name.lower()


@dataclass(frozen=True, slots=True)
class Gauge:
    """How something stands now.  unit: "1", "bytes", "s"."""

    name: str
    unit: str
    help: str
    stability: str = STABLE


METRICS: Final = (
    Metric(Count.READER_BYTES, "bytes", "file data the fronts handed to the kernel (page cache hits are invisible)"),
    Metric(Count.WRITER_BYTES, "bytes", "file data the fronts took from the kernel and wrote to staging files"),
    Metric(Count.SMALL_READS, "1", "READs answered from the small-file store"),
    Metric(Count.ARENA_READS, "1", "READs of large files answered from memory, before the bytes left it"),
    Metric(Count.BLOCKS_VERIFIED, "1", "cached blocks and small files whose checksum was right when they left"),
    Metric(Count.VERIFY_FAILURES, "1", "cached blocks and small files with a wrong checksum: dropped, fetched again"),
    Metric(Count.HINTS_DROPPED, "1", "hints from a front that found the socket full", EXPERIMENTAL),
    Metric(Count.REQUEST_ERRORS, "1", "requests that met an unexpected exception and got EIO"),
    Metric(Count.LATE_ANSWERS, "1", "answers the kernel no longer waited for (killed reader, resent request)"),
    Metric(Count.BACKEND_BYTES, "bytes", "object data received from the backend"),
    Metric(Count.BACKEND_GETS, "1", "GET requests sent, retries included"),
    Metric(Count.BACKEND_LISTS, "1", "LIST pages received"),
    Metric(Count.BACKEND_HEADS, "1", "HEAD requests sent, retries included"),
    Metric(Count.BACKEND_RETRIES, "1", "backend requests sent again after a transient failure"),
    Metric(Count.BACKEND_ERRORS, "1", "backend requests that failed, before any retry"),
    Metric(Count.FILLS_STARTED, "1", "fills started (one ranged GET each, without retries)"),
    Metric(Count.FILLS_JOINED, "1", "requests that waited for a fill which another one had started"),
    Metric(Count.FILLS_FAILED, "1", "fills that ended with an error"),
    Metric(Count.PREFETCH_BYTES, "bytes", "bytes fetched ahead of a reader"),
    Metric(Count.PREFETCH_USED_BYTES, "bytes", "small files fetched ahead that were then read"),
    Metric(
        Count.PREFETCH_WASTED_BYTES, "bytes", "small files fetched ahead and passed over, given up, or evicted unread"
    ),
    Metric(Count.READ_THROUGH_BYTES, "bytes", "bytes handed to readers without caching (cache full or disk full)"),
    Metric(Count.EVICTED_BYTES, "bytes", "bytes removed from the cache to make room"),
    Metric(Count.DISK_ERRORS, "1", "parts of files that a disk of the cache could not read or did not take"),
    Metric(Count.DISKS_FAILED, "1", "times a further cache directory was taken out of service"),
    Metric(Count.GRACE_PERIODS, "1", "waits until no reader can be at bytes that are about to go"),
    Metric(Count.GRACE_NS, "ns", "time these waits took, summed over all"),
    Metric(Count.LISTINGS, "1", "directories listed or listed again"),
    Metric(Count.VERSION_SWITCHES, "1", "files that became a new inode because the object changed"),
    Metric(Count.HIDDEN_NAMES, "1", "object keys met that no file system can show"),
    Metric(Count.NOTIFICATIONS, "1", "invalidations written to the kernel"),
    Metric(Count.RESTARTS_CORE, "1", "cores started after one died"),
    Metric(Count.RESTARTS_FRONT, "1", "fronts started after one died"),
    Metric(Count.HANGS_CORE, "1", "cores ended because they did nothing for hang_timeout"),
    Metric(Count.HANGS_FRONT, "1", "fronts ended for the same reason"),
    Metric(Count.HANGS_PUSHER, "1", "pushers ended for the same reason", EXPERIMENTAL),
    Metric(Count.HANGS_NOTIFIER, "1", "notifiers ended for the same reason", EXPERIMENTAL),
    Metric(Count.POISON_REQUESTS, "1", "requests answered EIO because they killed a process again and again"),
    Metric(Count.BACKEND_GET_NS, "ns", "time GET requests took, summed over all"),
    Metric(Count.BACKEND_HEAD_NS, "ns", "time HEAD requests took, summed over all"),
    Metric(Count.BACKEND_LIST_NS, "ns", "time LIST pages took, summed over all"),
    Metric(Count.BACKEND_MISSING, "1", "requests answered: no such object, or another version"),
    Metric(Count.BACKEND_DEADLINES, "1", "backend operations given up after op_timeout"),
    Metric(Count.BACKEND_HIDDEN_KEYS, "1", "object keys that listings left out because no request can name them"),
    Metric(Count.PUSHED_FILES, "1", "small files put into the kernel's page cache ahead of a reader", EXPERIMENTAL),
    Metric(Count.PUSHED_BYTES, "bytes", "bytes of these files", EXPERIMENTAL),
    Metric(Count.PUSHES_REFUSED, "1", "files not pushed because the kernel does not hold their inode", EXPERIMENTAL),
    Metric(
        Count.PUSH_STOPS_BUDGET,
        "1",
        "times the push waited because what was pushed is not known to be read",
        EXPERIMENTAL,
    ),
    Metric(Count.PUSH_STOPS_PRESSURE, "1", "times the push waited because memory was short", EXPERIMENTAL),
    Metric(
        Count.SENTINELS_READ,
        "1",
        "files left out of a push that were read: their neighbours count as read, too",
        EXPERIMENTAL,
    ),
    Metric(
        Count.SENTINELS_UNREAD,
        "1",
        "files left out of a push that nobody read: their neighbours count as wasted",
        EXPERIMENTAL,
    ),
    Metric(Count.UPLOADED_FILES, "1", "file contents put into the store"),
    Metric(Count.UPLOADED_BYTES, "bytes", "bytes of these files, parts copied inside the store included"),
    Metric(Count.UPLOADED_PARTS, "1", "parts of large objects that were put or copied"),
    Metric(Count.UPLOADS_FAILED, "1", "uploads that failed and are tried again"),
    Metric(Count.OBJECTS_MOVED, "1", "objects copied inside the store, because of a rename or of new metadata"),
    Metric(Count.OBJECTS_DELETED, "1", "objects deleted because their file is gone or has another name"),
    Metric(Count.CONFLICTS, "1", "files of which somebody else changed the object, too: both versions were kept"),
    Metric(Count.ORPHANS_FREED, "1", "replaced or deleted inodes freed after the kernel forgot them"),
    Metric(Count.BACKEND_PUTS, "1", "requests that put an object or a part, retries included"),
    Metric(Count.BACKEND_PUT_NS, "ns", "time these requests took, summed over all"),
    Metric(Count.BACKEND_COPIES, "1", "requests that copied an object or a part inside the store, retries included"),
    Metric(Count.BACKEND_COPY_NS, "ns", "time these requests took, summed over all"),
    Metric(Count.BACKEND_DELETES, "1", "requests that deleted objects, retries included"),
    Metric(Count.BACKEND_DELETE_NS, "ns", "time these requests took, summed over all"),
    Metric(Count.BACKEND_SENT_BYTES, "bytes", "object data sent to the backend"),
    Metric(Count.BACKEND_CONFLICTS, "1", "changes the backend refused: the object was not what was expected"),
    Metric(Count.STALL_SOME_NS, "ns", "time in which at least one request waited for the core"),
    Metric(Count.STALL_FULL_NS, "ns", "time in which requests waited for the core and no front answered any other"),
    Metric(
        Count.WAIT_BACKEND_NS, "ns", "time requests waited for the store, summed over all that the core helped with"
    ),
    Metric(Count.WAIT_QUEUE_NS, "ns", "time they waited for their turn: memory, requests in flight, room in the cache"),
    Metric(Count.WAIT_DISK_NS, "ns", "time they waited for the cache's disk"),
    Metric(Count.WAIT_DAEMON_NS, "ns", "the rest of their time: the daemon itself, and processors that were busy"),
    Metric(Count.SLOW_REQUESTS, "1", "requests that took `slow_request` or longer"),
    Metric(Count.REFETCHED_BYTES, "bytes", "bytes fetched although they had been in the cache: evicted, or damaged"),
)

_TIERS: Final = {
    "remote": "only in the object store; bytes: also what partly cached files lack",
    "cached": "in the store and here",
    "pinned": "the same, and never evicted",
    "dirty": "waiting for their upload",
    "uploading": "being uploaded",
    "local": "kept local on purpose",
    "archived": "to be restored in the store before they can be read",
}

GAUGES: Final = (
    Gauge("uptime", "s", "since the daemon was started; restarts of the core or of fronts do not count"),
    Gauge("generation", "1", "1 and one more for each core that had to be replaced"),
    Gauge("cache_cap", "bytes", "what the cache may occupy"),
    Gauge("cache_used", "bytes", "what the cache occupies"),
    Gauge("cache_large", "bytes", "of that: blocks of large files"),
    Gauge("cache_small", "bytes", "of that: small files"),
    Gauge("cache_index", "bytes", "of that: the index"),
    Gauge("cache_disks_out", "1", "further cache directories that are out of service"),
    Gauge("known_files", "1", "files the index knows"),
    Gauge("known_bytes", "bytes", "their size, cached or not"),
    Gauge("requests_in_flight", "1", "requests that wait for the core"),
    Gauge("oldest_request_age", "s", "age of the oldest of them"),
    Gauge("fill_memory_used", "bytes", "memory taken by fills under way"),
    Gauge("staged", "bytes", "content written here that the store does not have yet"),
    Gauge("staging_cap", "bytes", "how much of it there may be before writers wait"),
    Gauge("uploads_queued", "1", "files that wait for their upload or are being uploaded"),
    Gauge("uploads_running", "1", "of these, the ones that are being uploaded"),
    Gauge("uploads_failing", "1", "of these, the ones whose last try failed"),
    Gauge("oldest_dirty_age", "s", "how long the oldest of them has not been in the store; 0 without any"),
    Gauge("local_files", "1", "changed files whose time has come, and that are not uploaded by themselves"),
    Gauge("local_bytes", "bytes", "their size"),
    Gauge("pins", "1", "paths that are pinned"),
    Gauge(
        "archived_files_met", "1", "files of which a read was refused because they are archived, since the core began"
    ),
    Gauge("tiers_age", "s", "how old the counts of tiers are; none before the first count"),
    *(Gauge(f"tier_{tier}_files", "1", f"files in this tier: {which}") for tier, which in _TIERS.items()),
    *(Gauge(f"tier_{tier}_bytes", "bytes", f"bytes in this tier: {which}") for tier, which in _TIERS.items()),
    Gauge("fan_out_ratio", "1", "bytes handed to readers for each byte fetched; page cache hits are invisible"),
    Gauge(
        "requests_saved", "1", "requests that a client without a cache would have sent beyond those that were, at least"
    ),
    Gauge("cost_saved", "1", "their price, by the table of the setting `prices`"),
    Gauge("cost_spent", "1", "the price of the requests that were sent and the bytes fetched"),
)


def message_names() -> dict[int, str]:
    """Return index → name of the two counters that each opcode has."""
    names = {}
    for opcode in Opcode:
        names[ANSWERED_BASE + opcode] = f"messages_{opcode.name.lower()}_answered"
        names[RELAYED_BASE + opcode] = f"messages_{opcode.name.lower()}_relayed"
    return names


if {metric.count for metric in METRICS} != set(Count):  # a counter nobody declared could never be read
    raise AssertionError("catalog.METRICS and catalog.Count differ")

"""What `fanoutfs status` shows: one dictionary, made on request."""

import time
from typing import Any

from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.config.schema import MountConfig
from fanoutfs.core.admission import Admission
from fanoutfs.core.disks import Disks
from fanoutfs.core.filesystem import FileSystem
from fanoutfs.core.freshness import Freshness
from fanoutfs.core.outbound import Outbound
from fanoutfs.core.placement import Placement
from fanoutfs.core.plans import Plans
from fanoutfs.core.space import Space
from fanoutfs.core.stagingroom import StagingRoom
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.observe.shared import (
    CORE_ROW,
    FIRST_FRONT_ROW,
    GENERATION,
    HELD,
    KEEPER_ROW,
    PID,
    PUSHER_ROW,
    STARTED_NS,
    SharedState,
)


def describe(
    config: MountConfig,
    shared: SharedState,
    space: Space,
    disks: Disks,
    small: SmallStore,
    environment: IndexEnvironment,
    filesystem: FileSystem,
    freshness: Freshness,
    admission: Admission,
    plans: Plans,
    placement: Placement,
    room: StagingRoom,
    outbound: Outbound | None,
) -> dict[str, Any]:
    """Return the state of a mount, ready for JSON.  Sizes in bytes, times in seconds."""
    keeper = shared.row(KEEPER_ROW)
    fronts = [shared.row(FIRST_FRONT_ROW + index) for index in range(config.front_count())]
    files, file_bytes = filesystem.totals()
    in_flight = shared.in_flight()
    return {
        "source": config.source,
        "mountpoint": str(config.mountpoint),
        "keeper_pid": keeper[PID],
        "core_pid": shared.row(CORE_ROW)[PID],
        "front_pids": [row[PID] for row in fronts],
        "pusher_pid": shared.row(PUSHER_ROW)[PID],
        "generation": keeper[GENERATION],
        "uptime_s": round((time.monotonic_ns() - keeper[STARTED_NS]) / 1e9, 1),
        "cache": {
            "directory": str(config.cache_dir),
            "cap_bytes": space.cap_bytes,
            "used_bytes": space.used_bytes(),
            "large_bytes": space.large_bytes(),
            "small_bytes": small.file_bytes(),
            "index_bytes": environment.file_bytes(),
            "reserve_bytes": space.occupied.reserve_bytes(),
            **({"disks": disks.describe()} if config.cache_disks else {}),
        },
        "known": {"files": files, "bytes": file_bytes, "active_directories": freshness.active},
        "in_flight": {
            "requests": len(in_flight),
            "oldest_s": round(max((request.age_ns for request in in_flight), default=0) / 1e9, 3),
            "fill_bytes": admission.bytes_used,
            "unanswered_by_disk": keeper[HELD],
        },
        "plans": plans.describe(),
        "tiering": placement.describe(),
        "changes": {
            **room.describe(),
            "spares": shared.spares.left(config.front_count()),
            **({} if outbound is None else outbound.describe()),
        },
        "counters": shared.counters(),
    }

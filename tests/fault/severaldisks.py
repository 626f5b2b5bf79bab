"""What tests of a cache with several directories share: how it stands, readers, waits, accounts."""

import contextlib
import json
import mmap
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.fault.children import Children, read_digest
from tests.fault.sickdisk import Disk
from tests.fault.test_kills import forget_pages
from tests.support.du import occupied_bytes
from tests.support.mounts import Mount, run_command, wait_until

DEADLINE_S: Final = 120.0


def states(mount: Mount) -> list[str]:
    return [each["state"] for each in mount.status()["cache"]["disks"]]


def disk_state(mount: Mount, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = mount.status()["cache"]["disks"][number]
    return found


def wait_for(mount: Mount, condition: Callable[[], Any], what: str) -> Any:
    """As `wait_until`; fails with how the cache and its disks stand, too.

    All that is waited for so comes for certain: readers come to every file, and a disk is tried again
    after 5, 10, 20, 40 s.
    Where nothing else runs it takes 15 s at most; a busy machine with a slow disk may take longer.
    """
    return wait_until(condition, lambda: f"{what}\n{describe(mount)}", DEADLINE_S)


def describe(mount: Mount) -> str:
    """Return what explains a wait that did not end: the cache, its disks, counters, files not cached whole, the log."""
    try:
        status = mount.status()
        files = sorted(str(path) for path in mount.path.iterdir())
        infos = json.loads(run_command("info", "--json", *files).stdout)
    except Exception as error:
        return f"{error}\n{mount.log()[-4000:]}"
    lacking = [info for info in infos if info["cached_bytes"] < info["size_bytes"]]
    counters = {name: count for name, count in status["counters"].items() if count}
    pieces = (status["cache"], status["in_flight"], counters, *lacking, mount.log()[-4000:])
    return "\n".join(str(piece) for piece in pieces)


def wait_in_service(mount: Mount, count: int = 1) -> None:
    wait_for(mount, lambda: states(mount).count("ok") == count, f"{count} disks are in service")


def read_for_ever(root: Path, expected: dict[str, str], seed: int, stop: mmap.mmap) -> int:
    """Read all files, in another order each time, through the fronts until told to stop; return how many."""
    chance, count = random.Random(seed), 0
    while not stop[0]:
        for name in chance.sample(sorted(expected), len(expected)):
            assert read_digest(root / name) == expected[name], f"wrong bytes in {name}"
            forget_pages(root / name)
            count += 1
            if stop[0]:
                break
    return count


@contextlib.contextmanager
def readers(mount: Mount, expected: dict[str, str], children: Children, count: int = 3) -> Iterator[None]:
    """Keep hashed readers at work; none may meet an error or a wrong byte."""
    stop = mmap.mmap(-1, 4096)
    running = [children.start(read_for_ever, mount.path, expected, seed, stop) for seed in range(count)]
    yield
    stop[0] = 1
    assert all(read > 0 for read in children.results(running))


def read_all(mount: Mount, expected: dict[str, str]) -> None:
    for name, wanted in expected.items():
        assert read_digest(mount.path / name) == wanted, f"wrong bytes in {name}"
        forget_pages(mount.path / name)
    mount.wait_for_fills()


def check_accounts(mount: Mount, *disks: Disk) -> None:
    """Compare what the index counts for each disk with what du finds there."""
    cache = mount.status()["cache"]
    for disk, found in zip(disks, cache["disks"], strict=True):
        occupied = sum(occupied_bytes(each) for each in disk.cache.glob("volumes/*/objects"))
        folders = sum(4096 for _each in disk.cache.glob("volumes/*/objects/*")) + 4096
        # A file with a last block that is not a whole page takes the rest of the page as well.
        assert found["large_bytes"] <= occupied <= found["large_bytes"] + folders + 200 * 4096
    first = sum(occupied_bytes(each) for each in mount.cache.glob("volumes/*/objects"))
    own_bytes = cache["large_bytes"] - sum(found["large_bytes"] for found in cache["disks"])
    assert own_bytes <= first <= own_bytes + 300 * 4096

"""Checks of the machine: what its kernel can do for FUSE, and what it allows us."""

import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fanoutfs.config.schema import MountConfig
from fanoutfs.config.units import show_size
from fanoutfs.doctor.findings import FAIL, OK, SKIP, WARN, Finding
from fanoutfs.errors import FanoutError
from fanoutfs.keeper import mount as attach
from fanoutfs.keeper.handshake import answer_init
from fanoutfs.keeper.mountinfo import BDI_DIR, FSTYPE
from fanoutfs.observe.damon import is_paging_out
from fanoutfs.observe.kernelfiles import PROC, SYS, read_text
from fanoutfs.records import MIB
from fanoutfs.wire.kernel import InitFlag
from fanoutfs.wire.messages import MAX_BACKGROUND, KernelOffer

_READ_AHEAD_KIB: Final = 4096
_FEATURES: Final = (
    (InitFlag.HAS_RESEND, "resend", "6.9", "a crash of the daemon fails the requests it had in hand"),
    (InitFlag.HAS_EXPIRE_ONLY, "expire-only", "6.2", "a changed name costs its cached pages"),
    (InitFlag.HANDLE_KILLPRIV_V2, "killpriv-v2", "5.12", "each write asks for an extended attribute first"),
    (InitFlag.PARALLEL_DIROPS, "parallel-dirops", "4.7", "lookups in one directory queue"),
)
_DESCRIPTORS: Final = 65536
"""Core and fronts keep one per cached file in use; loaders of training jobs have tens of thousands open."""
_PROCESS_BYTES: Final = 80 * MIB
"""What core and each front take besides buffers: 60 to 75 MiB measured, most of it shared libraries."""


def check_machine(config: MountConfig) -> Iterator[Finding]:
    """Yield what the machine says to a mount with these settings."""
    device = _check_device(config)
    yield device
    if device.result != FAIL:
        yield from check_kernel()
    else:
        yield Finding("kernel", SKIP, "nothing can be mounted")
    yield _check_read_ahead(config)
    yield _check_background()
    yield _check_request_timeout(config)
    yield check_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield check_memory(config, cgroup_limit_bytes(), _available_bytes())
    yield check_cold_memory(is_paging_out())


def _check_device(config: MountConfig) -> Finding:
    try:
        attach.check_fuse(allow_other=config.allow_other)
    except FanoutError as error:
        reason, _, fix = str(error).partition(": ")
        return Finding("fuse", FAIL, reason, fix)
    other = "allow_other allowed" if config.allow_other else "allow_other not asked for"
    return Finding("fuse", OK, f"{attach.FUSE_DEVICE} can be used, {other}")


def check_kernel() -> Iterator[Finding]:
    """Mount an empty directory for a moment and listen to what the kernel offers."""
    with tempfile.TemporaryDirectory(prefix="fanoutfs-doctor-") as name:
        where = Path(name).resolve()
        try:
            fd = attach.mount(where, "fanoutfs-doctor", read_only=True, allow_other=False)
        except FanoutError as error:
            yield Finding("kernel", FAIL, str(error), "mount as root, or repair fusermount3")
            return
        try:
            _init, offer = answer_init(fd)
        except FanoutError as error:
            yield Finding("kernel", FAIL, str(error), "boot a newer kernel")
            return
        finally:
            os.close(fd)
            attach.unmount(where, lazy=True)
    yield describe_offer(offer, os.uname().release)


def describe_offer(offer: KernelOffer, release: str) -> Finding:
    """Judge what the kernel said in INIT."""
    has = [name for flag, name, _since, _loss in _FEATURES if offer.offers(flag)]
    lacks = [(name, since, loss) for flag, name, since, loss in _FEATURES if not offer.offers(flag)]
    if offer.has_epoch:
        has.append("epoch")
    else:
        lacks.append(("epoch", "6.16", "names are asked for again after a while"))
    speaks = f"Linux {release} speaks FUSE {offer.major}.{offer.minor}: {', '.join(has) or 'no feature that counts'}"
    if not lacks:
        return Finding("kernel", OK, speaks)
    losses = "; ".join(f"no {name}: {loss}" for name, _since, loss in lacks)
    newest = max(
        (since for _name, since, _loss in lacks), key=lambda version: [int(part) for part in version.split(".")]
    )
    return Finding("kernel", WARN, f"{speaks}; {losses}", f"Linux {newest} or later has all of it")


def _check_read_ahead(config: MountConfig) -> Finding:
    info = attach.find_mount(config.mountpoint)
    if info is not None and info.fstype == FSTYPE:
        path = BDI_DIR / info.device / "read_ahead_kb"
        kib = int(read_text(path) or 0)
        if kib >= _READ_AHEAD_KIB:
            return Finding("read_ahead", OK, f"{kib} KiB at {config.mountpoint}")
        fix = f"as root: echo {_READ_AHEAD_KIB} > {path}"
        return Finding(
            "read_ahead", WARN, f"{kib} KiB at {config.mountpoint}: cold sequential reads come in pieces", fix
        )
    if os.access(BDI_DIR, os.W_OK):
        return Finding("read_ahead", OK, f"a mount will get {_READ_AHEAD_KIB} KiB")
    fix = f"mount as root, or write {_READ_AHEAD_KIB} to /sys/class/bdi/DEVICE/read_ahead_kb after mounting"
    return Finding("read_ahead", WARN, "128 KiB, and only root may raise it: cold sequential reads come in pieces", fix)


def _check_background() -> Finding:
    limit = int(read_text(SYS / "module/fuse/parameters/max_user_bgreq") or 0)
    if os.geteuid() == 0 or limit == 0 or limit >= MAX_BACKGROUND:
        return Finding("max_background", OK, f"{MAX_BACKGROUND} asynchronous requests in flight")
    fix = f"as root: echo {MAX_BACKGROUND} > /sys/module/fuse/parameters/max_user_bgreq"
    return Finding("max_background", WARN, f"ordinary users get {limit} requests in flight at most", fix)


def _check_request_timeout(config: MountConfig) -> Finding:
    found = [int(read_text(PROC / f"sys/fs/fuse/{name}_request_timeout") or 0) for name in ("default", "max")]
    limit = min((timeout for timeout in found if timeout), default=0)
    if not limit:
        return Finding("request_timeout", OK, "the kernel waits as long as it takes")
    if limit > config.op_timeout:
        return Finding("request_timeout", OK, f"the kernel gives up after {limit} s, we after {config.op_timeout:g} s")
    fix = f"--op-timeout below {limit}s, or raise fs.fuse.max_request_timeout"
    return Finding("request_timeout", FAIL, f"the kernel ends the mount when a request takes {limit} s", fix)


def check_descriptors(hard: int) -> Finding:
    """Judge the hard limit of open files; the daemon raises the soft one to it."""
    if hard == resource.RLIM_INFINITY or hard >= _DESCRIPTORS:
        return Finding("nofile", OK, f"{'no limit' if hard == resource.RLIM_INFINITY else hard} for open files")
    fix = f"LimitNOFILE={_DESCRIPTORS} in the service, or ulimit -Hn {_DESCRIPTORS}"
    return Finding("nofile", WARN, f"{hard} open files at most: files are opened again and again", fix)


def check_memory(config: MountConfig, limit_bytes: int | None, available_bytes: int) -> Finding:
    """Judge what memory there is against what the settings allow the daemon."""
    needed = config.fill_memory + (config.front_count() + 2) * _PROCESS_BYTES
    budget = f"fill_memory {show_size(config.fill_memory)} and processes take up to {show_size(needed)}"
    where = "the cgroup of this shell allows" if limit_bytes is not None else "available:"
    room = min(available_bytes, limit_bytes) if limit_bytes is not None else available_bytes
    seen = f"{budget}; {where} {show_size(room if limit_bytes is None else limit_bytes)}"
    fix = f"lower --fill-memory, or raise the limit to {show_size(needed * 2)}"
    if room < needed:
        return Finding("memory", FAIL, seen, fix)
    if room < needed * 2:
        return Finding("memory", WARN, f"{seen}: little is left for the page cache", fix)
    return Finding("memory", OK, seen)


def check_cold_memory(is_paged_out: bool) -> Finding:
    """Judge whether pages stay in the page cache while there is room for them."""
    if not is_paged_out:
        return Finding("page_cache", OK, "pages stay while there is room for them")
    seen = "DAMON pages out what nobody has read for a while: a later epoch asks the daemon again"
    fix = "turn it off under /sys/kernel/mm/damon/admin/kdamonds or /sys/module/damon_reclaim/parameters"
    return Finding("page_cache", WARN, seen, fix)


def cgroup_limit_bytes(proc: Path = PROC, sys: Path = SYS) -> int | None:
    """Return the smallest memory limit of this process's cgroup and those above it; None without one."""
    limits = []
    for line in (read_text(proc / "self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, name = sys / "fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            root, name = sys / "fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(root):
                break
            text = read_text(place / name)
            if text and text.isdecimal() and int(text) < 1 << 60:  # v1 says "no limit" with a huge number
                limits.append(int(text))
    return min(limits, default=None)


def _available_bytes() -> int:
    for line in (read_text(PROC / "meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0

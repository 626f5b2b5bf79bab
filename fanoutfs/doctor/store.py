"""Checks of the backend: can it be reached, who are we to it, what does it let us do, how fast is it.

In this order, and what cannot be known because something before it failed is skipped.  Writes one scratch object (and
those by which the store's conditions are tried), unless the settings say read-only.
"""

import contextlib
import secrets
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from fanoutfs.backend.base import Backend
from fanoutfs.backend.connect import config_root, open_s3_client, open_store
from fanoutfs.backend.s3client import S3Client
from fanoutfs.backend.writing import Expect, Properties
from fanoutfs.config.schema import MountConfig
from fanoutfs.config.units import show_size
from fanoutfs.doctor.findings import FAIL, OK, SKIP, WARN, Finding
from fanoutfs.errors import (
    AccessDeniedError,
    BucketMissingError,
    CredentialsError,
    FanoutError,
    ObjectMissingError,
    ReadOnlyStoreError,
    TransientError,
)
from fanoutfs.records import MIB, ObjectInfo

T = TypeVar("T")

_SKEW_WARN_S: Final = 60.0
_SKEW_FAIL_S: Final = 15 * 60.0
"""Signature Version 4 is refused beyond this."""
_PINGS: Final = 7
_LATENCY_WARN_S: Final = 0.1
_STREAMS: Final = 8
_PIECE_BYTES: Final = 4 * MIB
_BANDWIDTH_BYTES: Final = 64 * MIB
_BANDWIDTH_S: Final = 3.0
_SCRATCH_BYTES: Final = 8 * MIB
_LISTED: Final = 1000


def check_store(config: MountConfig) -> Iterator[Finding]:
    """Yield what the backend of these settings says."""
    try:
        backend = open_store(config)
        prefix = config_root(config)[1]
        client = open_s3_client(config)
    except FanoutError as error:
        yield _failure(error, config)
        yield from _skipped(
            "clock",
            "list",
            "get",
            "latency",
            "bandwidth",
            "put",
            "conditional_put",
            "multipart",
            "delete",
            "versioning",
        )
        return
    with contextlib.closing(backend):
        yield from _Store(config, backend, prefix, client).check()


class _Store:
    """One run over an opened backend."""

    def __init__(self, config: MountConfig, backend: Backend, prefix: str, client: S3Client | None) -> None:
        self._config = config
        self._backend = backend
        self._prefix = prefix
        self._client = client
        self._largest: ObjectInfo | None = None

    def check(self) -> Iterator[Finding]:
        """Ask everything."""
        yield self._clock()
        listed = self._list()
        yield from listed
        if listed[-1].result == FAIL and listed[-1].check != "list":
            yield from _skipped(
                "get", "latency", "bandwidth", "put", "conditional_put", "multipart", "delete", "versioning"
            )
            return
        scratch, writes = self._write()
        try:
            yield self._get(scratch)
            yield self._latency()
            yield self._bandwidth(scratch)
        finally:
            removed = self._delete(scratch)
        yield from writes
        yield removed
        yield self._versioning()

    def _clock(self) -> Finding:
        if self._client is None:
            return Finding("clock", SKIP, "only asked of S3, whose signatures carry the time")
        try:
            sent = time.time()
            answer = self._client.request("HEAD", "", "HEAD bucket")
            middle = (sent + time.time()) / 2
            skew_s = middle - parsedate_to_datetime(answer.headers["date"]).timestamp() - 0.5  # whole seconds, cut off
        except (FanoutError, KeyError, ValueError) as error:
            return Finding("clock", SKIP, f"no Date heard: {error}")
        return judge_skew(skew_s)

    def _list(self) -> list[Finding]:
        started = time.perf_counter()
        try:
            page = next(iter(self._backend.scan(self._prefix, limit=_LISTED)), None)
        except FanoutError as error:
            return [_failure(error, self._config)]
        took_s = time.perf_counter() - started
        objects = [] if page is None else [found for found in page.objects if found.version.size_bytes]
        self._largest = max(objects, key=lambda found: found.version.size_bytes, default=None)
        is_signed = "answers; the credentials are accepted" if self._client is not None else "answers"
        seen = f"{len(objects)} objects with content on the first page, in {took_s * 1000:.0f} ms"
        fix = "" if objects else "look at the bucket and the prefix: nothing with content lies below it"
        return [Finding("access", OK, f"{self._config.source} {is_signed}"), Finding("list", OK, seen, fix)]

    def _get(self, scratch: ObjectInfo | None) -> Finding:
        found = self._largest or scratch
        if found is None:
            return Finding("get", SKIP, "there is no object to read")
        try:
            self._backend.get_range(found.key, 0, 1, found.version)
        except FanoutError as error:
            return Finding("get", FAIL, _line(error), "allow s3:GetObject (storage.objects.get, Blob Data Reader)")
        return Finding("get", OK, f"one byte of {found.key}, by range and version")

    def _latency(self) -> Finding:
        times = []
        for _n in range(_PINGS):
            started = time.perf_counter()
            try:
                self._backend.head(f"{self._prefix}.fanoutfs-doctor-none")
            except ObjectMissingError:
                pass
            except FanoutError as error:
                return Finding("latency", SKIP, _line(error))
            times.append(time.perf_counter() - started)
        return judge_latency(statistics.median(times[1:]), max(times[1:]), self._config.requests)

    def _bandwidth(self, scratch: ObjectInfo | None) -> Finding:
        found = max(
            (one for one in (self._largest, scratch) if one is not None),
            key=lambda one: one.version.size_bytes,
            default=None,
        )
        if found is None:
            return Finding("bandwidth", SKIP, "there is no object to read")
        size = found.version.size_bytes
        starts = range(0, size, _PIECE_BYTES)
        pieces = [starts[n % len(starts)] for n in range(max(1, min(_BANDWIDTH_BYTES, size * 4) // _PIECE_BYTES))]
        started = time.perf_counter()

        def fetch(at: int) -> int:
            if time.perf_counter() - started > _BANDWIDTH_S:
                return 0
            return len(self._backend.get_range(found.key, at, min(at + _PIECE_BYTES, size), found.version))

        try:
            with ThreadPoolExecutor(_STREAMS) as pool:
                done = sum(pool.map(fetch, pieces))
        except FanoutError as error:
            return Finding("bandwidth", SKIP, _line(error))
        rate = done / (time.perf_counter() - started)
        seen = f"{show_size(rate)}/s over {_STREAMS} connections, {show_size(done)} of {found.key}"
        if done < MIB:
            return Finding("bandwidth", OK, f"{seen}: too little to say much")
        return Finding("bandwidth", OK, seen)

    # --- writes ------------------------------------------------------------------------------------------------

    def _write(self) -> tuple[ObjectInfo | None, list[Finding]]:
        """Put a scratch object and try the store's conditions; return the object, if it is there, and what to say."""
        if self._config.read_only:
            return None, list(_skipped("put", "conditional_put", "multipart", why="read-only: not tried"))
        key = f"{self._prefix}.fanoutfs-doctor-{secrets.token_hex(6)}"
        try:
            body = secrets.token_bytes(_SCRATCH_BYTES)
            version = self._backend.put(key, body, Expect.ANYTHING, Properties())
        except FanoutError as error:
            result, fix = (FAIL, "allow s3:PutObject and s3:DeleteObject, or mount with --read-only")
            if isinstance(error, ReadOnlyStoreError):
                fix = "mount with --read-only"
            return None, [
                Finding("put", result, _line(error), fix),
                *_skipped("conditional_put", "multipart"),
            ]
        scratch = ObjectInfo(key, version)
        findings = [Finding("put", OK, f"{show_size(_SCRATCH_BYTES)} put")]
        try:
            abilities = self._backend.abilities()
        except FanoutError as error:
            return scratch, [*findings, Finding("conditional_put", SKIP, _line(error)), *_skipped("multipart")]
        if abilities.can_put_if_absent and abilities.can_put_if_match:
            findings.append(Finding("conditional_put", OK, "if absent, if matching: nobody's change is overwritten"))
        else:
            lacks = [
                name
                for name, has in (
                    ("If-None-Match", abilities.can_put_if_absent),
                    ("If-Match", abilities.can_put_if_match),
                )
                if not has
            ]
            reason = f"{' and '.join(lacks)} ignored: two writers of one object may overwrite each other"
            findings.append(Finding("conditional_put", WARN, reason, "let one machine write, or use another store"))
        if abilities.can_upload_parts:
            checked = abilities.can_complete_if_absent and abilities.can_complete_if_match
            kept = "with conditions" if checked else "without conditions on completion"
            findings.append(Finding("multipart", OK if checked else WARN, f"uploads in parts, {kept}"))
        else:
            limit = show_size(abilities.max_put_bytes)
            findings.append(Finding("multipart", WARN, f"no uploads in parts: files up to {limit} only"))
        return scratch, findings

    def _delete(self, scratch: ObjectInfo | None) -> Finding:
        if scratch is None:
            return Finding("delete", SKIP, "nothing was put")
        try:
            self._backend.delete(scratch.key)
        except FanoutError as error:
            fix = f"allow s3:DeleteObject, or mount with --read-only; delete {scratch.key} by hand"
            return Finding("delete", FAIL, _line(error), fix)
        return Finding("delete", OK, "what was put is gone again")

    def _versioning(self) -> Finding:
        if self._client is None:
            return Finding("versioning", SKIP, "only asked of S3")
        try:
            answer = self._client.request("GET", "", "GET versioning", {"versioning": ""})
        except FanoutError as error:
            return Finding("versioning", SKIP, _line(error))
        if answer.status != 200:
            return Finding(
                "versioning", SKIP, f"the store does not say (status {answer.status} {answer.code})".rstrip()
            )
        if b"<Status>Enabled</Status>" in answer.body:
            return Finding("versioning", OK, "on: what is overwritten or deleted can be had back")
        return Finding("versioning", OK, "off: what is overwritten or deleted is gone")


def judge_skew(skew_s: float) -> Finding:
    """Judge how far this machine's clock is ahead of the store's."""
    seen = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the store" if abs(skew_s) >= 1 else "in step"
    if abs(skew_s) < _SKEW_WARN_S:
        return Finding("clock", OK, seen)
    fix = "switch NTP on (timedatectl set-ntp true)"
    if abs(skew_s) < _SKEW_FAIL_S:
        return Finding("clock", WARN, f"{seen}; at 15 min signatures are refused", fix)
    return Finding("clock", FAIL, f"{seen}: signatures are refused", fix)


def judge_latency(median_s: float, longest_s: float, requests: int) -> Finding:
    """Judge the round trip to the store."""
    seen = f"{median_s * 1000:.1f} ms median, {longest_s * 1000:.1f} ms longest of {_PINGS - 1} HEADs"
    if median_s < _LATENCY_WARN_S:
        return Finding("latency", OK, seen)
    rate = requests / median_s
    reason = f"{seen}: {requests} requests in flight bring {rate:.0f} small files/s at most"
    return Finding("latency", WARN, reason, "raise --requests, warm or import ahead, or use a nearer region")


def _failure(error: FanoutError, config: MountConfig) -> Finding:
    """Name the check that an error of the first question belongs to."""
    if isinstance(error, CredentialsError):
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, --profile, or a role; look at the key's validity"
        return Finding("credentials", FAIL, _line(error), fix)
    if isinstance(error, BucketMissingError):
        return Finding("bucket", FAIL, _line(error), "look at the spelling, --region and --endpoint-url")
    if isinstance(error, AccessDeniedError):
        return Finding(
            "list", FAIL, _line(error), "allow s3:ListBucket (storage.objects.list) on the bucket and prefix"
        )
    if isinstance(error, TransientError):
        where = config.endpoint_url or config.source
        return Finding("reach", FAIL, _line(error), f"look at the network, proxies and firewalls on the way to {where}")
    return Finding("backend", FAIL, _line(error), "see the message")


def _skipped(*checks: str, why: str = "not to be known before the failure above is mended") -> Iterator[Finding]:
    return (Finding(check, SKIP, why) for check in checks)


def _line(error: FanoutError) -> str:
    return " ".join(str(error).split())

"""Wrong input, as a table: one clear line, the documented exit code, and nothing left behind."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.keeper.mountinfo import read_mounts
from tests.support.mounts import Mount, mounted, run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

BASE_FILES = {
    "bad.toml": 'source = "s3://b"\nmountpoint = \n',
    "unknown.toml": 'source = "s3://b"\nmountpoint = "{base}/empty"\ncach_size = "1GiB"\n',
    "unit.toml": 'source = "s3://b"\nmountpoint = "{base}/empty"\ncache_size = 20480\n',
    "place.toml": 'mountpoint = "{base}/empty"\n',
    "place.policy": '[[policy]]\npath = "{base}/empty/a"\n',
    "braces.policy": '[[policy]]\npath = "*.{{jpg,png}}"\n',
}


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A call and what it gets.

    {base}: a directory with empty/, full/file and BASE_FILES; {mnt}: a living mount, {cache}: its cache.
    """

    call: str
    code: int
    line: str


BEFORE_A_MOUNT = [
    Wrong("bogus", 2, "No such command 'bogus'"),
    Wrong("mount", 2, "name a SOURCE and a MOUNTPOINT, or a configuration"),
    Wrong("mount s3://b", 2, "name a MOUNTPOINT"),
    Wrong("mount s3://b {base}/none", 10, "does not exist: create it first"),
    Wrong("mount s3://b {base}/full", 10, "is not empty"),
    Wrong("mount s3://b {base}/full/file", 10, "is not a directory"),
    Wrong("mount memory:// {mnt} --cache-dir {base}/cache", 10, "is mounted already"),
    Wrong("mount s3://b {base}/empty --cach-size 1GiB", 2, "--cache-size"),
    Wrong("mount s3://b {base}/empty -o cach_size=1GiB", 2, "did you mean --cache-size?"),
    Wrong("mount s3://b {base}/empty -o sync", 2, "unknown option --sync"),
    Wrong("mount s3://b {base}/empty --cache-size 20480", 2, "has no unit"),
    Wrong("mount s3://b {base}/empty --cache-size 20Q", 2, "unknown unit `q`"),
    Wrong("mount s3://b {base}/empty --metadata-ttl 1parsec", 2, "metadata-ttl"),
    Wrong("mount s3://b {base}/empty --fronts 99", 2, "--fronts"),
    Wrong("mount s3://b {base}/empty --uid no-such-user", 2, "is no user of this machine"),
    Wrong("mount s3://b {base}/empty --endpoint-url nonsense", 2, "is no URL"),
    Wrong("mount s3://b {base}/empty --prices free", 2, "write KIND=PRICE"),
    Wrong("mount memory:// {base}/empty --cache-dir {base}/cache --hang-timeout 1s", 2, "is too short"),
    Wrong("mount s3://b {base}/empty --high-watermark 0.5 --low-watermark 0.6", 2, "is above high_watermark"),
    Wrong("mount s3://b {base}/empty --cache-size 1GiB --staging-size 2GiB", 2, r"is above cache_size \(1GiB\)"),
    Wrong("mount s3://b {base}/empty --policy-file {base}/place.policy", 2, "relative to the mountpoint: write `a`"),
    Wrong("mount s3://b {base}/empty --policy-file {base}/braces.policy", 2, "write a list of patterns"),
    Wrong("mount ftp://host/x {base}/empty", 2, "unknown scheme"),
    Wrong("mount s3:// {base}/empty", 2, "cannot be a bucket's name"),
    Wrong("mount s3://user:secret@b/x {base}/empty", 2, "do not belong into it"),
    Wrong("mount no-such-name", 2, "no configuration /etc/fanoutfs/no-such-name.toml"),
    Wrong("mount --config {base}/bad.toml", 2, r"bad\.toml:2: Invalid value"),
    Wrong(
        "mount --config {base}/unknown.toml", 2, r"unknown\.toml:3: unknown key cach_size: did you mean cache_size\?"
    ),
    Wrong("mount --config {base}/unit.toml", 2, r"unit\.toml:3: cache_size"),
    Wrong("mount --config {base}/place.toml", 2, "has no source"),
    Wrong("mount --config {base}/binary.toml", 2, "is not UTF-8"),
    Wrong("mount --config {base}/full", 2, "Is a directory"),
    Wrong("mount --config {base}/none.toml", 2, "No such file or directory"),
    Wrong("mount file://{base}/none {base}/empty --cache-dir {base}/cache", 22, "no such directory"),
    Wrong("mount memory:// {base}/empty --cache-dir {base}/full/file", 16, "cannot create cache directory"),
    Wrong("mount memory:// {base}/empty --cache-dir {base}/cache --log-file {base}/none/x", 16, "cannot write the log"),
    Wrong("mount memory:// {base}/empty --cache-dir {cache}", 15, "in use"),
    Wrong("doctor s3://b --cache-size x", 2, "is not a size"),
    Wrong("completion tcsh", 2, "'tcsh' is not one of"),
    Wrong("service enable no-such-name", 2, "no configuration"),
    Wrong("service install --root /proc", 1, "No such file or directory"),
]
NO_MOUNT_AT = [
    Wrong(f"{name} {{base}}/empty", 12, "mount")
    for name in (
        *("umount", "status", "stats", "top", "info", "warm", "evict", "pin", "unpin", "import", "drain", "invalidate"),
        *("upgrade", "why", "log --dump"),
        *("tier ls", "tier du", "tier push", "tier restore", "tier explain", "tier plan", "tier reload"),
    )
] + [Wrong("plan --mount {base}/empty {base}/full/file", 12, "lies in no fanoutfs mount")]
IN_A_MOUNT = [
    Wrong("umount {mnt}/d", 12, "nothing is mounted at"),
    Wrong("warm {mnt}/none", 26, "1 paths could not be warmed"),
    Wrong("warm --bandwidth x {mnt}", 2, "is not a size"),
    Wrong("warm --list {base}/none", 2, "No such file or directory"),
    Wrong("evict {mnt}/none", 20, "{mnt}/none: no such file"),
    Wrong("pin {mnt}/none", 20, "none: no such file"),
    Wrong("unpin {mnt}/none", 20, "none: no such file"),
    Wrong("tier ls {mnt}/none", 20, "none: no such file"),
    Wrong("tier du {mnt}/none", 20, "none: no such file"),
    Wrong("tier plan {mnt}/none", 20, "none: no such file"),
    Wrong("tier reload {mnt}", 2, "was given no file of policies"),
    Wrong("import {mnt}/d/x", 1, "d/x: only a directory can be imported"),
    Wrong("info {mnt}/none", 20, ""),
    Wrong("tier push {mnt}/none", 29, "1 paths were left as they are"),
    Wrong("tier restore --days x {mnt}", 2, "is not a valid integer"),
    Wrong("tier restore --days 0 {mnt}", 2, "not in the range"),
    Wrong("log {mnt}", 2, "say --level or --dump"),
    Wrong("log {mnt} --level loud", 2, "'loud' is not one of"),
    Wrong("plan {base}/paths", 2, "none of the paths"),
    Wrong("plan {base}/none", 2, "No such file or directory"),
    Wrong("stats --json --prometheus {mnt}", 2, "exclude each other"),
    Wrong("top --interval 0 {mnt}", 2, "not in the range"),
    Wrong("status {mnt} {mnt}", 2, "unexpected extra argument"),
    Wrong("why nonsense", 12, "lies in no fanoutfs mount"),
]


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fanoutfs-test-", dir="/var/tmp"))
    (path / "empty").mkdir()
    (path / "full").mkdir()
    (path / "full/file").touch()
    for name, text in BASE_FILES.items():
        (path / name).write_text(text.format(base=path))
    (path / "binary.toml").write_bytes(b"\xff\xfe")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def mount() -> Iterator[Mount]:
    source = Path(tempfile.mkdtemp(prefix="fanoutfs-test-", dir="/var/tmp"))
    (source / "d").mkdir()
    (source / "d/x").write_bytes(b"x")
    with mounted(f"file://{source}") as mount:
        yield mount
    shutil.rmtree(source)


def _call(wrong: Wrong, base: Path, mount: Mount) -> "subprocess.CompletedProcess[str]":
    (base / "paths").write_text(f"{mount.path}/none\n")
    words = [word.format(base=base, mnt=mount.path, cache=mount.cache) for word in wrong.call.split()]
    return run_command(*words)


@pytest.mark.parametrize("wrong", [*BEFORE_A_MOUNT, *NO_MOUNT_AT, *IN_A_MOUNT], ids=lambda wrong: wrong.call)
def test_wrong_input_gets_one_line_and_its_exit_code(wrong: Wrong, base: Path, mount: Mount) -> None:
    before = {info.mountpoint for info in read_mounts() if info.mountpoint.is_relative_to(base)}
    done = _call(wrong, base, mount)
    assert done.returncode == wrong.code, done.stderr
    lines = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    if wrong.call == "info {mnt}/none":  # says it among what it found
        assert re.search(r"none\n +error +no such file", done.stdout)
    else:
        assert lines[-1].startswith("fanoutfs: "), done.stderr
        assert re.search(wrong.line.replace("{mnt}", str(mount.path)), lines[-1]), lines[-1]
    assert len(lines) <= (2 if wrong.code in (26, 29) else 1), done.stderr  # those name each path before
    assert {info.mountpoint for info in read_mounts() if info.mountpoint.is_relative_to(base)} == before
    assert mount.status()["generation"] == 1


def _fails(bucket: Bucket, base: Path, endpoint: str, source: str = "") -> tuple[int, str]:
    done = run_command(
        *("mount", source or bucket.url, str(base / "empty"), "--cache-dir", str(base / "cache")),
        *("--endpoint-url", endpoint, "--op-timeout", "2s"),
        env=bucket.env,
    )
    assert not os.path.ismount(base / "empty")
    (line,) = done.stderr.splitlines()
    return done.returncode, line


@pytest.mark.parametrize(
    ("status", "error", "code", "message"),
    [
        (403, "ExpiredToken", 21, "credentials"),
        (403, "InvalidAccessKeyId", 21, "credentials"),
        (403, "AccessDenied", 23, "access denied"),
        (404, "NoSuchBucket", 22, "bucket"),
        (503, "SlowDown", 24, "SlowDown"),
    ],
)
def test_what_the_store_refuses(
    status: int, error: str, code: int, message: str, bucket: Bucket, proxy: Proxy, base: Path
) -> None:
    proxy.fault("status", count=1000, status=status, code=error)
    found, line = _fails(bucket, base, proxy.endpoint)
    proxy.clear()
    assert found == code, line
    assert message in line
    assert bucket.url in line


def test_store_that_cannot_be_reached_is_named(bucket: Bucket, base: Path) -> None:
    code, line = _fails(bucket, base, "http://127.0.0.1:9")
    assert code == 24, line
    assert "127.0.0.1:9" in line


def test_a_core_that_is_stopped_costs_one_line(bucket: Bucket) -> None:
    with mounted(bucket.url, "--endpoint-url", bucket.endpoint, "-o", "hang_timeout=0s", env=bucket.env) as mount:
        core = mount.status()["core_pid"]
        os.kill(core, signal.SIGSTOP)
        try:
            done = run_command("status", str(mount.path))
        finally:
            os.kill(core, signal.SIGCONT)
        assert done.returncode == 17
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert "does not answer `status`" in line
        wait_until(mount.status, "it goes on")


def test_a_mount_that_hangs_is_named_and_hides_no_other_one(bucket: Bucket) -> None:
    options = ("--endpoint-url", bucket.endpoint, "-o", "hang_timeout=0s")
    with mounted(bucket.url, *options, env=bucket.env) as hung, mounted(bucket.url, *options, env=bucket.env) as well:
        core = hung.status()["core_pid"]
        os.kill(core, signal.SIGSTOP)
        try:
            listed = json.loads(run_command("status", "--json").stdout)
            why = run_command("why", str(os.getpid()))
            # A name that the kernel has never asked for, and would wait for.
            of_a_path = [run_command(command, str(hung.path / "no-such")) for command in ("stats", "why", "log")]
            through_a_link = hung.cache / "link"
            through_a_link.symlink_to(hung.path / "directory")
            of_a_link = run_command("stats", str(through_a_link / "no-such"))
        finally:
            os.kill(core, signal.SIGCONT)
        alive = {each["mountpoint"]: each["alive"] for each in listed}
        assert (alive[str(hung.path)], alive[str(well.path)]) == (False, True)
        assert why.returncode == 0, why.stderr
        assert f"not asked: the daemon of {hung.path}" in why.stdout
        assert str(well.path) not in why.stdout
        assert [(done.returncode, done.stderr.count("\n")) for done in of_a_path] == [(17, 1), (17, 1), (2, 1)]
        assert (of_a_link.returncode, of_a_link.stderr.count("\n")) == (17, 1), of_a_link.stderr
        wait_until(hung.status, "it goes on")


def test_a_mount_whose_daemon_is_dead_costs_one_line(bucket: Bucket) -> None:
    with mounted(bucket.url, "--endpoint-url", bucket.endpoint, env=bucket.env) as mount:
        os.kill(mount.status()["keeper_pid"], signal.SIGKILL)
        for command in ("status", "stats", "warm", "invalidate"):
            done = run_command(command, str(mount.path))
            assert done.returncode == 17, done.stderr
            assert len(done.stderr.splitlines()) == 1
        assert run_command("umount", str(mount.path)).returncode == 0

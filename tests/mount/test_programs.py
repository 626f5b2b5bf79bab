"""Real programs that write, each on the mount and, as a check of the test itself, on ext4.

What they wrote is then looked at with other programs, and with the tree comparison of the writing model.
"""

import fcntl
import hashlib
import importlib.util
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fanoutfs.cli.drain import drain_mount
from fanoutfs.records import KIB, MIB
from tests.fault.children import Children
from tests.model.side import Side
from tests.support.mounts import Mount, mounted, wait_until
from tests.support.servers import S3Server

DEADLINE_S = 240.0
PAST_S = 1_234_567_890
CLEAN_GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    **{
        f"GIT_{who}_{what}": f"tester{at}"
        for who in ("AUTHOR", "COMMITTER")
        for what, at in (("NAME", ""), ("EMAIL", "@x"))
    },
}


@dataclass(frozen=True)
class Place:
    """A directory to write in.  mount: None on ext4."""

    root: Path
    mount: Mount | None


@pytest.fixture(scope="module", params=["ext4", "mount"])
def place(request: pytest.FixtureRequest, weed: S3Server) -> Iterator[Place]:
    if request.param == "ext4":
        with tempfile.TemporaryDirectory(prefix="fanoutfs-programs-", dir="/var/tmp") as directory:
            yield Place(Path(directory), None)
        return
    bucket = weed.bucket()
    # Uploads run beside the programs: what they just wrote becomes clean, and is written again.
    options = ("--endpoint-url", bucket.endpoint, "-o", "upload_delay=500ms", "-o", "object_attributes=lookup")
    with mounted(bucket.url, *options, env=bucket.env) as mount:
        yield Place(mount.path, mount)
        assert mount.counters()["request_errors"] == 0, mount.log()


@pytest.fixture
def root(place: Place, request: pytest.FixtureRequest) -> Path:
    """An empty directory of the test's own."""
    path: Path = place.root / request.node.originalname
    while path.exists():
        path = path.with_name(f"{path.name}-again")
    path.mkdir()
    return path


@pytest.fixture
def children() -> Iterator[Children]:
    running = Children()
    yield running
    running.end()


def run(*command: object, env: dict[str, str] | None = None, **options: Any) -> str:
    """Run a program; fail the test with what it said."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=DEADLINE_S, check=False, env=os.environ | (env or {}), **options
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    text: str = done.stdout
    return text


def make_tree(root: Path, seed: int = 1, files: int = 120, large_bytes: int = 9 * MIB + 17) -> None:
    """Write files with modes, times, links and attributes."""
    chance = random.Random(seed)
    for number in range(files):
        folder = root / f"folder {number % 7}" / f"ünder-{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"file {number}.bin"
        path.write_bytes(chance.randbytes(chance.choice((0, 1, 100, 4096, 50_000, 131_072, 131_073, 300_000))))
        path.chmod(chance.choice((0o644, 0o600, 0o755, 0o444)))
        if number % 10 == 0:
            os.setxattr(path, "user.number", str(number).encode())
    (root / "big.bin").write_bytes(chance.randbytes(large_bytes))
    (root / "link").symlink_to("folder 1/ünder-1")
    (root / "dangling").symlink_to("/nowhere/at/all")
    (root / "second name").hardlink_to(root / "big.bin")
    for at, folders, names in os.walk(root, topdown=False):
        for found in (*names, *folders):
            os.utime(f"{at}/{found}", (PAST_S, PAST_S + chance.randrange(1000)), follow_symlinks=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tree")
    make_tree(path)
    return path


def assert_same_tree(found: Path, wanted: Path) -> None:
    """Compare names, bytes, modes, owners, times, links and attributes."""
    seen, expected = Side(str(found)).tree(), Side(str(wanted)).tree()
    assert set(seen) == set(expected)
    for path, entry in expected.items():
        assert seen[path] == entry, path


# --- version control and packages ------------------------------------------------------------------------------


def test_git_clones_commits_repacks_and_finds_nothing_wrong(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    git = ("git", "-C", source)
    run(*git, "init", "-q", "-b", "main", env=CLEAN_GIT)
    for number in range(5):
        make_tree(source / f"tree {number % 2}", number, 40, 100_000)
        run(*git, "add", "-A", env=CLEAN_GIT)
        run(*git, "commit", "-q", "-m", f"{number}", env=CLEAN_GIT)
        shutil.rmtree(source / f"tree {(number + 1) % 2}", ignore_errors=True)
    clone = root / "clone"
    run("git", "clone", "-q", f"file://{source}", clone, env=CLEAN_GIT)
    git = ("git", "-C", clone)
    run(*git, "fsck", "--full", "--strict", env=CLEAN_GIT)
    assert run(*git, "status", "--porcelain", env=CLEAN_GIT) == ""
    run(*git, "checkout", "-q", "-b", "side", "HEAD~2", env=CLEAN_GIT)
    (clone / "new").write_text("new\n")
    run(*git, "add", "-A", env=CLEAN_GIT)
    run(*git, "commit", "-q", "-m", "on the side", env=CLEAN_GIT)
    run(*git, "merge", "-q", "-s", "ours", "-m", "together", "main", env=CLEAN_GIT)
    run(*git, "gc", "-q", "--prune=now", env=CLEAN_GIT)
    run(*git, "fsck", "--full", "--strict", env=CLEAN_GIT)
    assert run(*git, "log", "--oneline", env=CLEAN_GIT).count("\n") == 7
    assert run(*git, "status", "--porcelain", env=CLEAN_GIT) == ""


def make_wheel(directory: Path) -> Path:
    """Write a package with a program in it, as a wheel."""
    info = "tinything-1.0.dist-info"
    files = {
        "tinything/__init__.py": "def main():\n    print('tiny', __file__)\n",
        "tinything/data.bin": "x" * 200_000,
        **{f"tinything/part{number}.py": f"VALUE = {number}\n" for number in range(40)},
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntiny = tinything:main\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    wheel = directory / "tinything-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(name, text)
    return wheel


def test_pip_installs_into_a_virtual_environment_and_the_program_runs(root: Path, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    environment = root / "venv"
    run(sys.executable, "-m", "venv", environment)
    pip = (environment / "bin" / "pip", "--disable-pip-version-check", "--no-cache-dir")
    run(*pip, "install", "-q", "--no-index", wheel)
    assert run(environment / "bin" / "tiny") == f"tiny {environment}/{_site()}/tinything/__init__.py\n"
    assert "tinything" in run(*pip, "list")
    run(*pip, "uninstall", "-q", "-y", "tinything")
    assert not (environment / _site() / "tinything").exists()


def _site() -> str:
    return f"lib/python{sysconfig.get_python_version()}/site-packages"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_compiled_program_runs_where_it_was_linked(root: Path) -> None:
    for number in range(4):
        (root / f"part{number}.c").write_text(f"int part{number}(void) {{ return {number}; }}\n")
    calls = "+".join(f"part{number}()" for number in range(4))
    (root / "main.c").write_text(f"int part0(),part1(),part2(),part3();\nint main(void) {{ return {calls}; }}\n")
    run("gcc", "-o", root / "program", *sorted(root.glob("*.c")))
    assert subprocess.run([root / "program"], check=False).returncode == 6


# --- databases -------------------------------------------------------------------------------------------------


def _insert(path: Path, worker: int, rows: int) -> None:
    connection = sqlite3.connect(path, timeout=60)
    for number in range(rows):
        with connection:
            connection.execute("INSERT INTO t VALUES (?, ?, ?)", (worker, number, random.randbytes(number * 17 % 5000)))
    connection.close()


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_sqlite_keeps_what_two_processes_insert(root: Path, children: Children, mode: str) -> None:
    path = root / "base.db"
    connection = sqlite3.connect(path)
    assert connection.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
    connection.execute("CREATE TABLE t (worker INTEGER, number INTEGER, body BLOB, PRIMARY KEY (worker, number))")
    connection.close()
    children.results([children.start(_insert, path, worker, 100) for worker in range(2)], DEADLINE_S)
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT worker, count(*), sum(length(body)) FROM t GROUP BY worker").fetchall()
    assert rows == [(worker, 100, sum(number * 17 % 5000 for number in range(100))) for worker in range(2)]
    with connection:
        connection.execute("DELETE FROM t WHERE number % 2")
    connection.execute("VACUUM")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    assert run("sqlite3", path, "SELECT count(*) FROM t") == "100\n"


# --- copies ----------------------------------------------------------------------------------------------------


def test_tar_extracts_everything(root: Path, tree: Path, tmp_path: Path) -> None:
    run("tar", "--xattrs", "-C", tree, "-cf", tmp_path / "tree.tar", ".")
    run("tar", "--xattrs", "--xattrs-include=user.*", "-C", root, "-xpf", tmp_path / "tree.tar")
    assert_same_tree(root, tree)
    run("tar", "-C", root, "--compare", "-f", tmp_path / "tree.tar")


def test_rsync_transfers_once_and_then_nothing(root: Path, tree: Path) -> None:
    rsync = ("rsync", "-aHX", "--itemize-changes", f"{tree}/", f"{root}/copy/")
    assert len(run(*rsync).splitlines()) > 120
    assert_same_tree(root / "copy", tree)
    assert run(*rsync) == ""
    assert run(*rsync, "--checksum") == ""
    # One file changes in place, one is deleted: just that is done.
    victim = root / "copy" / "folder 1" / "ünder-1" / "file 1.bin"
    victim.write_bytes(b"changed")
    (root / "copy" / "additional").write_bytes(b"x")
    changes = run(*rsync, "--delete", "--inplace").splitlines()
    assert sorted(line.split(maxsplit=1)[1] for line in changes if not line.endswith("/")) == [
        "additional",
        "folder 1/ünder-1/file 1.bin",
    ]
    assert_same_tree(root / "copy", tree)


def test_cp_keeps_everything_and_mv_moves_it(root: Path, tree: Path) -> None:
    run("cp", "-a", tree, root / "copy")
    assert_same_tree(root / "copy", tree)
    run("mv", root / "copy", root / "moved")
    assert_same_tree(root / "moved", tree)
    assert os.listdir(root) == ["moved"]
    run("cp", "-a", root / "moved", root / "again")
    assert_same_tree(root / "again", tree)
    run("rm", "-rf", root / "moved", root / "again")
    assert os.listdir(root) == []


def test_find_du_and_diff_agree_with_the_original(root: Path, tree: Path) -> None:
    run("cp", "-a", tree, root / "copy")
    found = [run("find", ".", "-printf", "%y %m %p %l\n", cwd=path).splitlines() for path in (root / "copy", tree)]
    assert sorted(found[0][1:]) == sorted(found[1][1:])
    newer = [run("find", ".", "-type", "f", "-newermt", f"@{PAST_S + 500}", cwd=p) for p in (root / "copy", tree)]
    assert sorted(newer[0].split("\n")) == sorted(newer[1].split("\n"))
    files = 'find "$1" -type f -print0 | du -b -c --files0-from=- | tail -n 1 | cut -f 1'
    assert run("sh", "-c", files, "sh", root / "copy") == run("sh", "-c", files, "sh", tree)
    assert run("diff", "-r", "--no-dereference", root / "copy", tree) == ""


def test_dd_writes_syncs_and_overwrites_in_the_middle(root: Path, tmp_path: Path) -> None:
    content = random.Random(3).randbytes(5 * MIB + 321)
    source = tmp_path / "source"
    source.write_bytes(content)
    dd = ("dd", "status=none", f"if={source}")
    run(*dd, f"of={root / 'whole'}", "bs=64k", "conv=fsync")
    run(*dd, f"of={root / 'sync'}", "bs=1M", "oflag=sync")
    assert (root / "whole").read_bytes() == (root / "sync").read_bytes() == content
    run(*dd, f"of={root / 'whole'}", "bs=7k", "count=20", "seek=100", "conv=notrunc,fsync")
    middle = content[: 140 * KIB]
    assert (root / "whole").read_bytes() == content[: 700 * KIB] + middle + content[700 * KIB + len(middle) :]
    run(*dd, f"of={root / 'sparse'}", "bs=1", "count=1", "seek=3000000", "conv=fsync")
    assert (root / "sparse").read_bytes() == bytes(3_000_000) + content[:1]
    run(*dd, f"of={root / 'whole'}", "bs=1M", "count=2", "oflag=append", "conv=notrunc")
    assert (root / "whole").stat().st_size == len(content) + 2 * MIB


def test_editors_and_filters_replace_files(root: Path) -> None:
    path = root / "text"
    path.write_text("".join(f"line {number}\n" for number in reversed(range(5000))))
    run("sed", "-i", "s/line/row/", path)
    run("sort", "-k", "2n", "-o", path, path)
    run("sh", "-c", 'echo last >> "$1"', "sh", path)
    run("truncate", "-s", "+10", path)
    lines = path.read_text().split("\n")
    assert (lines[0], lines[4999], lines[5000], lines[5001]) == ("row 0", "row 4999", "last", "\0" * 10)
    run("install", "-m", "600", path, root / "installed")
    assert (root / "installed").stat().st_mode & 0o777 == 0o600
    run("flock", root / "lock", "true")


# --- what training jobs do -------------------------------------------------------------------------------------


def _append_events(path: Path, records: int) -> None:
    """Write as TensorBoard's writer does: length, checksum, data, checksum; flushed now and then."""
    with open(path, "ab") as stream:
        for number in range(records):
            data = random.Random(number).randbytes(50 + number % 3000)
            head = struct.pack("<Q", len(data))
            stream.write(head + struct.pack("<I", zlib.crc32(head)) + data + struct.pack("<I", zlib.crc32(data)))
            if number % 10 == 0:
                stream.flush()
            if number % 100 == 0:
                os.fsync(stream.fileno())


def test_event_log_is_followed_while_it_grows(root: Path, children: Children, tmp_path: Path) -> None:
    path = root / "events.out.tfevents"
    path.touch()
    followed = tmp_path / "followed"
    with followed.open("wb") as stream:
        tail = subprocess.Popen(["tail", "-c", "+1", "-s", "0.05", "-f", path], stdout=stream)
    try:
        children.start(_append_events, path, 2000).result(DEADLINE_S)
        size = sum(16 + 50 + number % 3000 for number in range(2000))
        wait_until(lambda: followed.stat().st_size >= size, "tail has seen all of it", 60)
    finally:
        tail.kill()
        tail.wait()
    assert followed.read_bytes() == path.read_bytes()
    with path.open("rb") as stream:
        for number in range(2000):
            (length,) = struct.unpack("<Q", (head := stream.read(8)))
            assert stream.read(4) == struct.pack("<I", zlib.crc32(head)), number
            data = stream.read(length)
            assert stream.read(4) == struct.pack("<I", zlib.crc32(data)), number


def _append_lines(path: Path, worker: int, lines: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for number in range(lines):
        os.write(fd, f"{worker} {number} {'x' * (number % 100)}\n".encode())
    os.close(fd)


def test_lines_that_four_processes_append_stay_whole(root: Path, children: Children) -> None:
    path = root / "log"
    children.results([children.start(_append_lines, path, worker, 500) for worker in range(4)], DEADLINE_S)
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{worker} {n} {'x' * (n % 100)}" for worker in range(4) for n in range(500))


HUB_FILES = {f"model-{number}.safetensors": random.Random(number).randbytes(300_000 + number) for number in range(6)}


def _hub_download(cache: Path, downloads: Path) -> None:
    """Do what huggingface_hub does: lock, .incomplete, atomic rename into blobs, relative symbolic link, reference."""
    revision = hashlib.sha1(b"revision").hexdigest()
    for name, content in HUB_FILES.items():
        etag = hashlib.sha256(content).hexdigest()
        blob, pointer = cache / "blobs" / etag, cache / "snapshots" / revision / name
        for path in (blob, pointer, cache / "refs" / "main", cache / ".locks" / etag):
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(cache / ".locks" / f"{etag}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not blob.exists():
                incomplete = blob.with_name(f"{etag}.incomplete")
                with incomplete.open("ab") as stream:
                    stream.write(content)
                incomplete.replace(blob)
                with open(downloads, "ab", buffering=0) as log:
                    log.write(b".")
            if not pointer.is_symlink():
                pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        (cache / "refs" / "main").write_text(revision)
        assert pointer.read_bytes() == content


def test_hub_cache_downloads_each_file_once(root: Path, children: Children, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    workers = [children.start(_hub_download, root / "models--x--y", downloads) for _n in range(4)]
    children.results(workers, DEADLINE_S)
    assert downloads.stat().st_size == len(HUB_FILES)
    revision = (root / "models--x--y" / "refs" / "main").read_text()
    for name, content in HUB_FILES.items():
        pointer = root / "models--x--y" / "snapshots" / revision / name
        assert pointer.resolve().parent == root / "models--x--y" / "blobs"
        assert pointer.read_bytes() == content
    assert not list(root.rglob("*.incomplete"))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed: fanoutfs[torch]")
def test_torch_checkpoint_is_saved_and_mapped(root: Path) -> None:
    import torch

    state = {f"layer{number}": torch.randn(256, 1024) for number in range(8)}
    for step in range(3):
        torch.save({"state": state, "step": step}, root / "checkpoint.part")
        (root / "checkpoint.part").replace(root / "checkpoint.pt")
        loaded = torch.load(root / "checkpoint.pt", mmap=True, weights_only=True)
        assert loaded["step"] == step
        assert all(torch.equal(loaded["state"][name], tensor) for name, tensor in state.items())
        state = {name: tensor + 1 for name, tensor in state.items()}


def test_safetensors_are_saved_loaded_and_mapped(root: Path) -> None:
    import numpy as np
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    for step in range(3):
        tensors = {f"t{number}": np.random.default_rng(10 * step + number).random((300, 700)) for number in range(8)}
        save_file(tensors, root / "model.part")
        (root / "model.part").replace(root / "model.safetensors")
        loaded = load_file(root / "model.safetensors")
        with safe_open(root / "model.safetensors", framework="np") as mapped:
            assert set(mapped.keys()) == set(tensors)
            for name, tensor in tensors.items():
                assert np.array_equal(loaded[name], tensor)
                assert np.array_equal(mapped.get_tensor(name), tensor)
                assert np.array_equal(mapped.get_slice(name)[100:200], tensor[100:200])


# --- fio -------------------------------------------------------------------------------------------------------

FIO_JOBS = {
    "random": ("--rw=randwrite", "--ioengine=psync", "--bs=4k"),
    "random-sizes": ("--rw=randwrite", "--ioengine=psync", "--bsrange=4k-256k", "--bs_unaligned=0"),
    "sequential": ("--rw=write", "--ioengine=psync", "--bs=1m", "--end_fsync=1"),
    "mapped": ("--rw=randwrite", "--ioengine=mmap", "--bs=4k", "--fsync=64"),
    "fsync-each": ("--rw=randwrite", "--ioengine=psync", "--bs=16k", "--fsync=1"),
    "fdatasync": ("--rw=randrw", "--ioengine=psync", "--bs=8k", "--fdatasync=16"),
    "asynchronous": ("--rw=randwrite", "--ioengine=libaio", "--iodepth=8", "--bs=32k"),
    "direct": ("--rw=randwrite", "--ioengine=libaio", "--iodepth=8", "--direct=1", "--bs=64k"),
}


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
@pytest.mark.parametrize("job", FIO_JOBS)
def test_fio_verifies_what_it_wrote(root: Path, job: str) -> None:
    run(
        *("fio", f"--name={job}", f"--directory={root}", "--verify_state_save=0", *FIO_JOBS[job]),
        *("--size=16m", "--numjobs=2", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256"),
        *("--do_verify=1", "--randseed=7", "--invalidate=1", "--fallocate=none"),
    )


# --- afterwards ------------------------------------------------------------------------------------------------


def test_tree_is_the_same_from_the_bucket_alone(weed: S3Server, tree: Path) -> None:
    """Drain, throw the cache away, mount again: the objects and their metadata carry all of it.

    But hard links, which become files of their own, and the times of directories, which listings move.
    """
    bucket = weed.bucket()
    options = ("--endpoint-url", bucket.endpoint, "-o", "object_attributes=lookup")
    with mounted(bucket.url, *options, env=bucket.env) as mount:
        run("cp", "-a", tree, mount.path / "copy")
        drain_mount(mount.path)
        mount.stop()
        shutil.rmtree(mount.cache)
        mount.start()
        seen, expected = Side(str(mount.path / "copy")).tree(), Side(str(tree)).tree()
        for entry in (*seen.values(), *expected.values()):
            is_directory = "size" not in entry
            for word in ("links", "links_count", *(("mtime_ns",) if is_directory else ())):
                entry.pop(word, None)
        assert set(seen) == set(expected)
        for path, entry in expected.items():
            assert seen[path] == entry, path

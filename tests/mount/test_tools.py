"""Ordinary programs over a mount agree with a reference tree on local disk, whatever the source is."""

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from fanoutfs.records import KIB, MIB
from tests.mount import kernel
from tests.support.mounts import Mount, mounted
from tests.support.servers import Bucket, S3Server

KINDS = ("s3", "file", "prefix")


@dataclass(frozen=True)
class Place:
    mount: Mount
    reference: Path


def make_tree(root: Path) -> None:
    """Write 150 files in 20 directories: every kind of size and name that any store keeps."""
    choose = random.Random(150)
    for number in range(140):
        folder = root / f"folder {number % 7}" / f"ünder-{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        size = choose.choice((0, 1, 100, 4096, 50_000, 131_072, 131_073, 300_000))
        (folder / f"file {number} (ä).bin").write_bytes(choose.randbytes(size))
    (root / "big.bin").write_bytes(choose.randbytes(9 * MIB + 17))
    (root / "top.txt").write_text("top\n" * 1000)
    deep = root.joinpath(*"abcdefgh")
    deep.mkdir(parents=True)
    (deep / "leaf").write_bytes(b"leaf")


def files_of(root: Path) -> list[str]:
    """Return all files relative to root, sorted."""
    return sorted(os.path.relpath(os.path.join(at, name), root) for at, _dirs, names in os.walk(root) for name in names)


def upload(bucket: Bucket, root: Path, prefix: str = "") -> None:
    """Put a tree into a bucket."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: bucket.put(prefix + name, (root / name).read_bytes()), files_of(root)))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reference")
    make_tree(root)
    return root


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, weed: S3Server, reference: Path) -> Iterator[Place]:
    if request.param == "file":
        with mounted(f"file://{reference}", "--metadata-ttl", "indefinite") as mount:
            yield Place(mount, reference)
        return
    bucket = weed.bucket()
    below = "" if request.param == "s3" else "below/here/"
    upload(bucket, reference, below)
    if below:
        bucket.put("beside", b"not below the prefix")
        bucket.put("below/hereafter", b"not below the prefix either")
    options = ("--prefix", below) if below else ()
    with kernel.mounted_bucket(bucket, *options) as mount:
        yield Place(mount, reference)


def _run(*command: object, **options: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    text: str = done.stdout
    return text


def test_diff_finds_no_difference(place: Place) -> None:
    assert _run("diff", "-r", "--no-dereference", place.reference, place.mount.path) == ""


def test_find_counts_the_same(place: Place) -> None:
    for kind in ("f", "d"):
        counts = [
            _run("sh", "-c", 'cd "$1" && find . -type "$2" | sort', "sh", root, kind)
            for root in (place.reference, place.mount.path)
        ]
        assert counts[0] == counts[1]
    assert len(files_of(place.mount.path)) == len(files_of(place.reference)) == 143


def test_du_sums_the_same_bytes(place: Place) -> None:
    total = sum((place.reference / name).stat().st_size for name in files_of(place.reference))
    script = 'cd "$1" && find . -type f -print0 | du -b -c --files0-from=- | tail -n 1 | cut -f 1'
    assert int(_run("sh", "-c", script, "sh", place.mount.path)) == total
    # Without -b: blocks of 512 bytes, so that du shows the size of the data set, cached or not; directories are free.
    blocks = sum(-(-(place.reference / name).stat().st_size // 512) for name in files_of(place.reference))
    assert int(_run("du", "-s", "--block-size=512", place.mount.path).split()[0]) == blocks


def test_df_shows_source_and_size(place: Place) -> None:
    _run("find", place.mount.path, "-type", "f")
    source, kind, size, used = (
        _run("df", "--output=source,fstype,size,used", "-B1", place.mount.path).split("\n")[1].rsplit(None, 3)
    )
    assert source == place.mount.source
    assert (kind, int(size)) == ("fuse.fanoutfs", 1 << 50)
    total = sum((place.reference / name).stat().st_size for name in files_of(place.reference))
    assert int(used) == -(-total // 4096) * 4096


def test_md5sum_agrees(place: Place, tmp_path: Path) -> None:
    sums = _run("sh", "-c", 'cd "$1" && find . -type f -print0 | xargs -0 md5sum', "sh", place.reference)
    (tmp_path / "sums").write_text(sums)
    _run("md5sum", "--quiet", "-c", tmp_path / "sums", cwd=place.mount.path)


def test_cp_copies_everything(place: Place, tmp_path: Path) -> None:
    _run("cp", "-r", place.mount.path, tmp_path / "copy")
    _run("cp", "-a", place.mount.path, tmp_path / "archive")
    for name in ("copy", "archive"):
        assert _run("diff", "-r", place.reference, tmp_path / name) == ""


def test_tar_packs_everything(place: Place, tmp_path: Path) -> None:
    _run("sh", "-c", 'tar -C "$1" -cf - . | tar -C "$2" -xf -', "sh", place.mount.path, tmp_path)
    assert _run("diff", "-r", place.reference, tmp_path) == ""


def test_rsync_copies_once_and_then_nothing(place: Place, tmp_path: Path) -> None:
    rsync = ("rsync", "-a", "--itemize-changes", f"{place.mount.path}/", tmp_path)
    assert len(_run(*rsync).splitlines()) >= 143
    assert _run("diff", "-r", place.reference, tmp_path) == ""
    assert _run(*rsync) == ""
    assert _run(*rsync, "--checksum") == ""
    assert place.mount.counters()["request_errors"] == 0


def test_local_source_keeps_modification_times_to_the_nanosecond(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    file = tmp_path / "source" / "file"
    file.touch()
    os.utime(file, ns=(1, 1_234_567_890_123_456_789))
    with mounted(f"file://{tmp_path / 'source'}") as mount:
        assert (mount.path / "file").stat().st_mtime_ns == 1_234_567_890_123_456_789
        assert (
            _run("rsync", "-rtn", "--omit-dir-times", "--itemize-changes", f"{mount.path}/", tmp_path / "source") == ""
        )


def test_local_source_sees_a_replaced_and_a_rewritten_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"A" * 300_000)
    with mounted(f"file://{tmp_path}", "--metadata-ttl", "indefinite") as mount:
        assert kernel.read_all(mount.path / "file") == b"A" * 300_000
        file.write_bytes(b"B" * 300_000)
        mount.invalidate()
        assert kernel.read_all(mount.path / "file") == b"B" * 300_000
        (tmp_path / "other").write_bytes(b"C" * 300_000)
        (tmp_path / "other").rename(file)
        mount.invalidate()
        assert kernel.read_all(mount.path / "file") == b"C" * 300_000
        assert os.listdir(mount.path) == ["file"]


def test_empty_sources_are_empty_directories(weed: S3Server, tmp_path: Path) -> None:
    bucket = weed.bucket()
    sources = {"memory://": {}, f"file://{tmp_path}": {}, bucket.url: bucket.env}
    for source, env in sources.items():
        with mounted(source, "--endpoint-url", bucket.endpoint, env=env) as mount:
            assert os.listdir(mount.path) == []
            assert _run("find", mount.path) == f"{mount.path}\n"
            assert _run("du", "-sb", mount.path).split()[0] == "0"
            with pytest.raises(FileNotFoundError):
                (mount.path / "x").stat()


# --- owner and mode --------------------------------------------------------------------------------------------


def _owners(root: Path) -> set[tuple[str, int, int, int]]:
    paths = [root, *(Path(at) / name for at, dirs, names in os.walk(root) for name in (*dirs, *names))]
    found = [path.lstat() for path in paths]
    kinds = ("directory", "file")
    return {(kinds[stat.S_ISREG(each.st_mode)], each.st_uid, each.st_gid, stat.S_IMODE(each.st_mode)) for each in found}


def test_owner_and_mode_follow_the_options_also_on_a_known_cache(weed: S3Server, reference: Path) -> None:
    """The second mount changes every record of the first, and keeps the content that is cached."""
    bucket = weed.bucket()
    upload(bucket, reference)
    choices = [
        (("--uid", "1234", "--gid", "5678", "--file-mode", "640", "--dir-mode", "750"), 1234, 5678, 0o640, 0o750),
        (("--uid", "0", "--gid", "0", "--file-mode", "0444", "--dir-mode", "0555"), 0, 0, 0o444, 0o555),
        ((), os.getuid(), os.getgid(), 0o644, 0o755),
    ]
    inodes: dict[str, int] = {}
    with kernel.mounted_bucket(bucket) as mount:
        common = mount.options
        for options, uid, gid, file_mode, dir_mode in choices:
            mount.stop()
            mount.options = (*common, *options)
            mount.start()
            assert _owners(mount.path) == {("directory", uid, gid, dir_mode), ("file", uid, gid, file_mode)}
            assert _run("diff", "-r", reference, mount.path) == ""
            now = {name: (mount.path / name).stat().st_ino for name in files_of(mount.path)}
            assert now == (inodes or now)
            if inodes:
                assert mount.counters()["backend_gets"] == mount.counters()["backend_lists"] == 0
            inodes = now


def test_mode_is_enforced_by_the_kernel_for_others(weed: S3Server) -> None:
    bucket = weed.bucket()
    bucket.put("file", b"secret")
    with kernel.mounted_bucket(bucket, "--allow-other", "--file-mode", "600") as mount:
        mount.path.parent.chmod(0o755)
        nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        done = subprocess.run([*nobody, "cat", mount.path / "file"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert "Permission denied" in done.stderr
        assert _run(*nobody, "ls", mount.path) == "file\n"


def test_others_are_kept_out_without_allow_other(weed: S3Server) -> None:
    bucket = weed.bucket()
    bucket.put("file", b"x")
    with kernel.mounted_bucket(bucket) as mount:
        mount.path.parent.chmod(0o755)
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", str(mount.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "Permission denied" in done.stderr


def test_tools_that_map_and_search_work(place: Place, tmp_path: Path) -> None:
    assert _run("grep", "-c", "top", place.mount.path / "top.txt") == "1000\n"
    assert _run("tail", "-c", "4", place.mount.path / "top.txt") == "top\n"
    assert _run("head", "-n", "1", place.mount.path / "top.txt") == "top\n"
    assert _run("cmp", place.mount.path / "big.bin", place.reference / "big.bin") == ""
    out = tmp_path / "out"
    _run("dd", f"if={place.mount.path / 'big.bin'}", f"of={out}", "bs=7k", "skip=100", "count=10", "status=none")
    assert out.read_bytes() == (place.reference / "big.bin").read_bytes()[7 * KIB * 100 : 7 * KIB * 110]
    assert shutil.disk_usage(place.mount.path).total == 1 << 50

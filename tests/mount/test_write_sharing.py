"""Several processes write one file: appends, shared maps, locks; what one wrote the others see."""

import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.caches import drop_page_cache
from tests.support.mounts import Mount, mounted

PART = 8 << 20
APPENDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(300):
    line = f"{sys.argv[2]} {number} ".ljust(99, ".").encode() + b"\\n"
    assert os.write(fd, line) == 100
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source")
    (path / "large").write_bytes(bytes(range(256)) * (PART // 256 + 4096))
    (path / "small").write_bytes(b"small" * 100)
    return path


@pytest.fixture(scope="module")
def mount(source: Path) -> Iterator[Mount]:
    with mounted(f"file://{source}", "--metadata-ttl", "indefinite", "--no-upload", "*") as place:
        yield place


@pytest.mark.parametrize("name", ["new", "small", "large"])
def test_appends_of_several_processes_do_not_overwrite_each_other(mount: Mount, source: Path, name: str) -> None:
    path = mount.path / name
    path.touch()
    before = path.read_bytes()
    processes = [subprocess.Popen([sys.executable, "-c", APPENDER, path, f"w{number}"]) for number in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    drop_page_cache()
    content = path.read_bytes()
    assert content[: len(before)] == before
    lines = content[len(before) :].splitlines()
    for number in range(4):
        mine = [line for line in lines if line.startswith(f"w{number} ".encode())]
        assert [int(line.split()[1]) for line in mine] == list(range(300))
    assert len(lines) == 1200


def test_shared_map_is_written_and_read_by_another_descriptor(mount: Mount) -> None:
    path = mount.path / "mapped"
    with open(path, "wb+") as file:
        file.truncate(1 << 20)
        with mmap.mmap(file.fileno(), 1 << 20) as view:
            view[5000:5005] = b"hello"
            view[(1 << 20) - 3 :] = b"end"
            view.flush()
            with open(path, "rb") as other:
                other.seek(5000)
                assert other.read(5) == b"hello"
    drop_page_cache()
    content = path.read_bytes()
    assert content[5000:5005] == b"hello" and content[-3:] == b"end" and len(content) == 1 << 20


def test_shared_map_of_a_file_of_the_store_changes_what_is_written_only(tmp_path: Path) -> None:
    original = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(original)
    with mounted(f"file://{tmp_path}", "--no-upload", "*") as mount:
        with open(mount.path / "file", "rb+") as file, mmap.mmap(file.fileno(), 0) as view:
            view[1_000_000:1_000_004] = b"MMAP"
            view.flush()
        drop_page_cache()
        expected = original[:1_000_000] + b"MMAP" + original[1_000_004:]
        assert (mount.path / "file").read_bytes() == expected


def test_overlay_fetches_only_the_blocks_it_touches(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * PART))
    with mounted(f"file://{tmp_path}", "--no-upload", "*", "--max-readahead", "0B") as mount:
        with open(mount.path / "file", "rb+", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            file.write(b"appended")
            assert mount.counters()["fills_started"] == 0
            file.seek(PART + 5)
            file.write(b"x")
        assert mount.counters()["fills_started"] == 1
        (staged,) = (mount.volume() / "staging").iterdir()
        assert staged.stat().st_blocks * 512 <= 512 << 10


def test_locks_work_between_processes(mount: Mount) -> None:
    path = mount.path / "locked"
    path.touch()
    script = "import fcntl, sys; fcntl.{call}(open(sys.argv[1], 'rb+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with open(path, "rb+") as file:
        for call in ("flock", "lockf"):
            getattr(fcntl, call)(file, fcntl.LOCK_EX)
            held = subprocess.run(
                [sys.executable, "-c", script.format(call=call), path], capture_output=True, check=False
            )
            assert b"BlockingIOError" in held.stderr
            getattr(fcntl, call)(file, fcntl.LOCK_UN)
            subprocess.run([sys.executable, "-c", script.format(call=call), path], check=True)


def test_reader_sees_what_a_writer_adds(mount: Mount) -> None:
    path = mount.path / "tailed"
    with open(path, "wb", buffering=0) as writer, open(path, "rb", buffering=0) as reader:
        for number in range(50):
            writer.write(b"line %d\n" % number)
            assert reader.read() == b"line %d\n" % number

"""What only a directory can do."""

import os
from pathlib import Path

import pytest

from fanoutfs.backend.local import LocalBackend
from fanoutfs.errors import AccessDeniedError, ObjectMissingError, VersionGoneError


def _names(directory: Path, prefix: str = "") -> tuple[list[str], list[str], int]:
    (page,) = list(LocalBackend(str(directory)).list(prefix))
    return sorted(info.key for info in page.objects), sorted(page.prefixes), page.hidden


def test_name_that_is_not_utf8_is_hidden_and_counted(tmp_path: Path) -> None:
    (tmp_path / "good").touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")).touch()
    (tmp_path / "line\nbreak").touch()
    assert _names(tmp_path) == (["good"], [], 2)


def test_symlinks_are_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"abc")
    source = tmp_path / "source"
    source.mkdir()
    (source / "dir").symlink_to(outside)
    (source / "file").symlink_to(outside / "f")
    assert _names(source) == (["file"], ["dir/"], 0)
    backend = LocalBackend(str(source))
    for key in ("file", "dir/f"):
        assert bytes(backend.get_range(key, 0, 3, backend.head(key).version)) == b"abc"


def test_broken_and_looping_symlinks_and_fifos_are_hidden(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    assert _names(tmp_path) == ([], [], 3)
    for key in ("broken", "loop", "fifo"):
        with pytest.raises(ObjectMissingError):
            LocalBackend(str(tmp_path)).head(key)


@pytest.mark.parametrize("target", [".", "..", "../..", "/"])
def test_links_to_directories_above_are_hidden(tmp_path: Path, target: str) -> None:
    """Above the source, too: a mount may lie there, and through it there is no end again."""
    source = tmp_path / "above/source"
    (source / "d").mkdir(parents=True)
    (source / "d/up").symlink_to(target)
    (source / "d/file").touch()
    assert _names(source, "d/") == (["d/file"], [], 1)
    (page,) = list(LocalBackend(str(source)).scan(""))
    assert [info.key for info in page.objects] == ["d/", "d/file"]
    assert page.hidden == 1


def test_scan_counts_what_is_hidden_at_the_root_once(tmp_path: Path) -> None:
    for name in ("a", "line\nbreak", "z\rend"):
        (tmp_path / name).touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "d/tab\t").touch()
    assert sum(page.hidden for page in LocalBackend(str(tmp_path)).scan("")) == 3
    assert sum(page.hidden for page in LocalBackend(str(tmp_path)).scan("", "a")) == 1, "counted by who began"


def test_file_replaced_by_a_fifo_does_not_hold_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    backend = LocalBackend(str(tmp_path))
    version = backend.head("a").version
    (tmp_path / "a").unlink()
    os.mkfifo(tmp_path / "a")
    with pytest.raises(VersionGoneError):
        backend.get_range("a", 0, 3, version)


def test_file_replaced_by_a_directory_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ObjectMissingError):
        LocalBackend(str(tmp_path)).head("a")


def test_file_appended_to_is_another_version(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    backend = LocalBackend(str(tmp_path))
    version = backend.head("a").version
    with (tmp_path / "a").open("ab") as stream:
        stream.write(b"d")
    with pytest.raises(VersionGoneError):
        backend.get_range("a", 0, 3, version)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_denied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    backend = LocalBackend(str(tmp_path))
    version = backend.head("a").version
    (tmp_path / "a").chmod(0)
    with pytest.raises((AccessDeniedError, VersionGoneError)):
        backend.get_range("a", 0, 3, version)


def test_source_in_which_a_directory_above_it_is_mounted_once_more_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `mount --bind / /mnt/root`: the source is the same directory as one above it."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").touch()
    found = os.stat(tmp_path)
    real = os.stat

    def stat(path: object, **how: bool) -> os.stat_result:
        return found if str(path).rstrip("/") == str(tmp_path / "source") else real(path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat)
    assert _names(tmp_path / "source") == (["file"], [], 0)

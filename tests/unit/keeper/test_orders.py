"""The keeper's sockets, without a mount."""

from pathlib import Path

import pytest

from fanoutfs.errors import CacheUnusableError
from fanoutfs.keeper.orders import bind


def test_runtime_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(CacheUnusableError, match=r"runtime directory .* is writable by others"):
        bind(folder / "x.sock")
    assert not list(folder.iterdir())


def test_runtime_directory_behind_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(CacheUnusableError, match="symbolic links are refused"):
        bind(tmp_path / "run" / "x.sock")


def test_socket_left_by_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "x.sock"
    path.parent.mkdir(mode=0o700)
    path.write_text("", encoding="ascii")
    listener = bind(path)
    assert path.is_socket()
    assert path.stat().st_mode & 0o777 == 0o600
    listener.close()

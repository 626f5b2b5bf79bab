"""The same calls on a mount and on a local disk: the same results, errnos and trees.

Each case begins with the same tree, which the mount finds in its source.  The local disk is the one under /var/tmp
(ext4 or xfs), not a copy of what we think it does.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.kernel import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.calls import Step, Tree
from tests.support.mounts import Mount, mounted

LARGE = bytes(range(251)) * 4400  # 1.05 MiB: five blocks, the last one short
SMALL = b"0123456789" * 30
BLOCK = 256 << 10
W, R, RW, C, X, T, A = os.O_WRONLY, os.O_RDONLY, os.O_RDWR, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND
USER, OTHER = 12345, 12346

CASES: dict[str, list[Step]] = {
    "create": [
        ("open", "a", "new", RW | C | X), ("write", "a", b"hello"), ("pread", "a", 10, 0), ("fstat", "a"),
        ("open", "b", "new", RW | C | X), ("open", "c", "new", R), ("pread", "c", 3, 1), ("close", "a"),
        ("stat", "new"), ("get", "new"), ("open", "d", "none/new", W | C), ("open", "e", "small/new", W | C),
        ("open", "f", "x" * 256, W | C), ("open", "g", "y" * 255, W | C), ("open", "h", "dir", W | C),
        ("open", "i", "dir", R | C), ("open", "j", "small", W | C | X),
    ],
    "modes of what is made": [
        ("open", "a", "m", W | C, 0o600), ("stat", "m"), ("open", "b", "n", W | C, 0o4777), ("stat", "n"),
        ("mkdir", "o", 0o1777), ("stat", "o"), ("mkdir", "p", 0o700), ("stat", "p"),
    ],
    "overwrite a small file": [
        ("open", "a", "small", RW), ("pwrite", "a", b"ABC", 5), ("pread", "a", 20, 0), ("pwrite", "a", b"end", 299),
        ("fstat", "a"), ("get", "small"), ("pwrite", "a", b"far", 5000), ("stat", "small"), ("get", "small"),
    ],
    "overwrite a large file": [
        ("open", "a", "large", RW), ("pwrite", "a", b"ABC", BLOCK - 1), ("pread", "a", 10, BLOCK - 4),
        ("pwrite", "a", b"tail", len(LARGE) - 2), ("fstat", "a"), ("get", "large"),
        ("pwrite", "a", bytes(BLOCK), 2 * BLOCK), ("get", "large"), ("pread", "a", 100, 3 * BLOCK - 50),
    ],
    "append": [
        ("append", "small", b"more"), ("append", "large", b"more"), ("get", "small"), ("get", "large"),
        ("stat", "small"), ("stat", "large"), ("append", "none", b""),
    ],
    "append far behind the end of a large file": [
        ("open", "a", "large", RW), ("pwrite", "a", b"x", 3 << 20), ("fstat", "a"), ("get", "large"),
        ("pread", "a", 5, len(LARGE)), ("pread", "a", 8, len(LARGE) - 4),
    ],
    "truncate a small file": [
        ("truncate", "small", 7), ("get", "small"), ("truncate", "small", 20), ("get", "small"),
        ("truncate", "small", 0), ("stat", "small"), ("truncate", "dir", 0), ("truncate", "none", 0),
    ],
    "truncate a large file": [
        ("truncate", "large", BLOCK + 5), ("stat", "large"), ("get", "large"), ("truncate", "large", 3 * BLOCK),
        ("get", "large"), ("open", "a", "large", RW), ("pread", "a", 20, BLOCK), ("pwrite", "a", b"q", 2 * BLOCK),
        ("get", "large"), ("ftruncate", "a", 0), ("fstat", "a"), ("ftruncate", "a", 10), ("get", "large"),
    ],
    "O_TRUNC": [
        ("open", "a", "large", W | T), ("fstat", "a"), ("write", "a", b"new"), ("get", "large"),
        ("open", "b", "small", R | T), ("stat", "small"), ("open", "c", "dir", R | T),
    ],
    "truncate longer": [
        ("truncate", "large", 2 << 20), ("get", "large"), ("truncate", "small", BLOCK), ("get", "small"),
    ],
    "a file beyond what can be": [("truncate", "small", (1 << 63) - 1), ("truncate", "small", -1)],
    "unlink": [
        ("unlink", "small"), ("stat", "small"), ("unlink", "small"), ("unlink", "dir"), ("unlink", "large/x"),
        ("listdir",), ("put", "small", b"again"), ("get", "small"), ("unlink", "dir/inside"), ("listdir", "dir"),
    ],
    "open and unlinked": [
        ("open", "a", "small", RW), ("open", "b", "large", RW), ("open", "n", "new", RW | C), ("write", "n", b"123"),
        ("unlink", "small"), ("unlink", "large"), ("unlink", "new"), ("fstat", "a"), ("pread", "a", 10, 0),
        ("pwrite", "a", b"still", 2), ("pread", "a", 10, 0), ("pread", "b", 10, BLOCK),
        ("pwrite", "b", b"here", BLOCK),
        ("pread", "b", 10, BLOCK), ("pread", "n", 5, 0), ("ftruncate", "n", 1), ("fstat", "n"), ("fsync", "n"),
        ("fstat", "b"), ("listdir",),
    ],
    "mkdir and rmdir": [
        ("mkdir", "d"), ("mkdir", "d"), ("mkdir", "small"), ("mkdir", "d/e"), ("mkdir", "none/e"), ("rmdir", "d"),
        ("rmdir", "d/e"), ("rmdir", "d"), ("rmdir", "d"), ("rmdir", "small"), ("rmdir", "dir"), ("rmdir", "hollow"),
        ("stat", "hollow"), ("mkdir", "hollow"), ("listdir", "hollow"), ("put", "hollow/f", b"1"),
        ("listdir", "hollow"),
        ("rmdir", "hollow"), ("rmdir", "dir/."), ("rmdir", "dir/.."),
    ],
    "a directory that is gone but open": [
        ("mkdir", "d"), ("open", "d", "d", R | os.O_DIRECTORY), ("rmdir", "d"), ("fstat", "d"), ("listdir",),
        ("open", "x", "d/x", W | C),
    ],
    "rename a file": [
        ("rename", "small", "moved"), ("get", "moved"), ("stat", "small"), ("rename", "moved", "dir/moved"),
        ("get", "dir/moved"), ("rename", "none", "x"), ("rename", "dir/moved", "none/x"),
        ("rename", "dir/moved", "small"),
        ("get", "small"), ("listdir", "dir"), ("rename", "large", "large"), ("get", "large"), ("listdir",),
    ],
    "rename over a file": [
        ("put", "new", b"content"), ("open", "a", "small", R), ("rename", "new", "small"), ("get", "small"),
        ("pread", "a", 5, 0), ("fstat", "a"), ("rename", "small", "large"), ("get", "large"), ("listdir",),
        ("rename", "dir", "large"), ("rename", "large", "dir"), ("rename", "large", "dir/inside"),
        ("get", "dir/inside"),
    ],
    "rename a directory": [
        ("rename", "dir", "moved"), ("listdir", "moved"), ("get", "moved/inside"), ("listdir", "moved/deep"),
        ("get", "moved/deep/bottom"), ("stat", "dir"), ("mkdir", "dir"), ("listdir", "dir"),
        ("put", "dir/inside", b"2"),
        ("get", "dir/inside"), ("get", "moved/inside"), ("rename", "moved", "moved/deep/x"),
        ("rename", "moved", "dir"),
        ("rename", "moved", "hollow"), ("listdir",), ("get", "hollow/deep/bottom"), ("rename", "hollow", "hollow/y"),
        ("append", "hollow/inside", b"!"), ("get", "hollow/inside"), ("rename", "hollow/deep", "up"),
        ("get", "up/bottom"),
    ],
    "rename there and back": [
        ("rename", "small", "away"), ("rename", "away", "small"), ("get", "small"), ("rename", "dir", "away"),
        ("rename", "away", "dir"), ("get", "dir/inside"), ("get", "dir/deep/bottom"), ("listdir",),
    ],
    "rename flags": [
        ("renameat2", "small", "large", RENAME_NOREPLACE), ("renameat2", "small", "n", RENAME_NOREPLACE),
        ("listdir",),
        ("renameat2", "n", "large", RENAME_EXCHANGE), ("get", "n"), ("get", "large"),
        ("renameat2", "n", "none", RENAME_EXCHANGE), ("renameat2", "n", "dir", RENAME_EXCHANGE), ("get", "dir"),
        ("listdir", "n"), ("get", "n/inside"), ("renameat2", "n", "n/deep", RENAME_EXCHANGE),
        ("renameat2", "large", "n", RENAME_NOREPLACE | RENAME_EXCHANGE),
        ("renameat2", "n", "hollow", RENAME_EXCHANGE),
        ("listdir", "hollow"), ("listdir", "n"),
    ],
    "hard links": [
        ("link", "small", "two"), ("stat", "small"), ("same_file", "small", "two"), ("append", "two", b"+"),
        ("get", "small"), ("link", "small", "two"), ("link", "dir", "d2"), ("link", "none", "x"),
        ("link", "small", "dir/three"),
        ("stat", "two"), ("rename", "small", "two"), ("listdir",), ("unlink", "small"), ("get", "two"),
        ("stat", "two"),
        ("rename", "two", "four"), ("get", "dir/three"), ("unlink", "dir/three"), ("stat", "four"), ("get", "four"),
        ("put", "new", b"n"), ("link", "new", "new2"), ("unlink", "new"), ("stat", "new2"), ("get", "new2"),
    ],
    "symbolic links": [
        ("symlink", "small", "s"), ("readlink", "s"), ("get", "s"), ("stat", "s"), ("append", "s", b"!"),
        ("get", "small"),
        ("symlink", "x", "s"), ("readlink", "small"), ("symlink", "loop", "loop"), ("get", "loop"),
        ("symlink", "none", "l"),
        ("get", "l"), ("open", "a", "l", W | C), ("listdir",), ("rename", "s", "s2"), ("readlink", "s2"),
        ("unlink", "s2"),
        ("get", "small"), ("symlink", "dir", "d"), ("get", "d/inside"), ("rmdir", "d"), ("chmod", "d", 0o700),
        ("stat", "dir"), ("symlink", "t" * 4095, "long"), ("readlink", "long"), ("symlink", "", "e"),
        ("link", "d", "d2"),
        ("readlink", "d2"), ("open", "n", "d", R | os.O_NOFOLLOW),
    ],
    "special files": [
        ("mknod", "fifo", stat.S_IFIFO | 0o640), ("stat", "fifo"), ("mknod", "sock", stat.S_IFSOCK | 0o600),
        ("stat", "sock"), ("mknod", "null", stat.S_IFCHR | 0o666, os.makedev(1, 3)), ("stat", "null"),
        ("device", "null"), ("mknod", "blk", stat.S_IFBLK | 0o600, os.makedev(259, 70000)), ("device", "blk"),
        ("mknod", "reg", stat.S_IFREG | 0o600), ("stat", "reg"), ("mknod", "reg", stat.S_IFIFO | 0o600),
        ("rename", "fifo", "f2"), ("unlink", "f2"), ("listdir",),
    ],
    "chmod and chown": [
        ("chmod", "small", 0o4711), ("stat", "small"), ("chmod", "large", 0), ("stat", "large"),
        ("chown", "small", USER, OTHER),
        ("stat", "small"), ("chmod", "dir", 0o1777), ("stat", "dir"), ("chown", "dir", -1, OTHER), ("stat", "dir"),
        ("chmod", "none", 0o600), ("open", "n", "new", RW | C, 0o640), ("fchmod", "n", 0o6755), ("fstat", "n"),
        ("fchown", "n", USER, -1), ("fstat", "n"), ("chmod", "new", 0o2644), ("chown", "new", -1, OTHER),
        ("stat", "new"),
        ("chown", "dir", USER, -1), ("stat", "dir"),
    ],
    "set-ID bits go with a write by somebody else": [
        ("put", "p", b"x"), ("chmod", "p", 0o6777), ("append", "p", b"y"), ("stat", "p"),
        ("as_user", USER, USER, "append", "p", b"z"), ("stat", "p"), ("chmod", "p", 0o6777),
        ("as_user", USER, USER, "truncate", "p", 1), ("stat", "p"), ("chmod", "p", 0o2767),
        ("as_user", USER, USER, "append", "p", b"z"), ("stat", "p"), ("chmod", "large", 0o4777),
        ("as_user", USER, USER, "append", "large", b"z"), ("stat", "large"), ("get", "large"),
    ],
    "set-group-ID directories": [
        ("mkdir", "g"), ("chown", "g", 0, OTHER), ("chmod", "g", 0o2777), ("put", "g/f", b"1"), ("stat", "g/f"),
        ("mkdir", "g/d"), ("stat", "g/d"), ("symlink", "f", "g/s"), ("stat", "g/s"),
        ("as_user", USER, USER, "put", "g/u", b"1"), ("stat", "g/u"), ("as_user", USER, USER, "mkdir", "g/e"),
        ("stat", "g/e"), ("mkdir", "g/d/deeper"), ("stat", "g/d/deeper"),
    ],
    "permissions": [
        ("as_user", USER, USER, "put", "new", b"1"), ("chmod", "", 0o777),
        ("as_user", USER, USER, "put", "new", b"1"),
        ("stat", "new"), ("as_user", OTHER, OTHER, "append", "new", b"1"), ("as_user", OTHER, OTHER, "unlink", "new"),
        ("mkdir", "sticky"), ("chmod", "sticky", 0o1777), ("as_user", USER, USER, "put", "sticky/a", b"1"),
        ("as_user", OTHER, OTHER, "unlink", "sticky/a"), ("as_user", OTHER, OTHER, "rename", "sticky/a", "sticky/b"),
        ("as_user", USER, USER, "rename", "sticky/a", "sticky/b"),
        ("as_user", OTHER, OTHER, "chmod", "sticky/b", 0o777),
        ("as_user", USER, USER, "chmod", "sticky/b", 0o600), ("as_user", OTHER, OTHER, "get", "sticky/b"),
        ("as_user", USER, USER, "chown", "sticky/b", OTHER, -1), ("as_user", USER, USER, "chmod", "small", 0o777),
        ("as_user", USER, USER, "utime", "small", 1, 1), ("as_user", USER, USER, "get", "sticky/b"),
        ("as_user", USER, USER, "mkdir", "dir/x"), ("as_user", USER, USER, "rename", "small", "dir/x"),
        ("as_user", USER, USER, "setxattr", "small", "user.a", b"1"),
    ],
    "times": [
        ("utime", "small", 10**18 + 5, 10**18 + 7), ("times", "small"), ("utime", "large", 1, 2), ("times", "large"),
        ("utime", "dir", 3, 4), ("times", "dir"), ("put", "new", b"1"), ("utime", "new", 5, 6), ("times", "new"),
        ("rename", "new", "n2"), ("times", "n2"), ("chmod", "n2", 0o600), ("times", "n2"),
        ("utime", "n2", -(10**9), -5),
        ("times", "n2"), ("utime", "none", 1, 1),
    ],
    "when a time of modification moves": [
        ("moves", "small", "append", "small", b"x"),
        ("moves", "large", "append", "large", b"x"),
        ("moves", "small", "chmod", "small", 0o600),
        ("moves", "small", "truncate", "small", 1),
        ("moves", "small", "rename", "large", "l2"),
        ("moves", "dir", "put", "dir/n", b"1"),
        ("moves", "dir", "append", "dir/n", b"1"), ("moves", "dir", "unlink", "dir/n"),
        ("moves", "dir", "mkdir", "dir/m"), ("moves", "dir", "rmdir", "dir/m"),
        ("moves", "dir", "rename", "small", "dir/s"),
        ("moves", "dir", "rename", "dir/s", "small"),
        ("moves", "dir", "symlink", "x", "dir/y"),
        ("moves", "dir", "link", "small", "dir/z"),
        ("moves", "dir", "chmod", "dir", 0o700), ("moves", "small", "unlink", "dir/z"),
    ],
    "extended attributes": [
        ("setxattr", "small", "user.a", b"1"), ("getxattr", "small", "user.a"), ("listxattr", "small"),
        ("setxattr", "small", "user.a", b"2", os.XATTR_CREATE),
        ("setxattr", "small", "user.a", b"3", os.XATTR_REPLACE),
        ("setxattr", "small", "user.b", b"3", os.XATTR_REPLACE),
        ("setxattr", "small", "user.b", b"", os.XATTR_CREATE),
        ("getxattr", "small", "user.a"), ("getxattr", "small", "user.b"), ("getxattr", "small", "user.c"),
        ("removexattr", "small", "user.a"), ("removexattr", "small", "user.a"), ("listxattr", "small"),
        ("setxattr", "dir", "user.d", b"d"), ("getxattr", "dir", "user.d"), ("rename", "small", "s"),
        ("getxattr", "s", "user.b"), ("append", "s", b"x"), ("getxattr", "s", "user.b"),
        ("setxattr", "none", "user.a", b""),
        ("setxattr", "s", "user." + "n" * 251, b"1"), ("setxattr", "s", "user." + "n" * 250, b"1"),
        ("setxattr", "s", "nonsense", b"1"), ("mknod", "f", stat.S_IFIFO | 0o600), ("setxattr", "f", "user.a", b"1"),
        ("getxattr", "f", "user.a"),
    ],
    "sparse files": [
        ("open", "a", "new", RW | C), ("pwrite", "a", b"x", 1 << 20), ("fstat", "a"), ("lseek", "a", 0, os.SEEK_DATA),
        ("lseek", "a", 0, os.SEEK_HOLE), ("lseek", "a", 1 << 20, os.SEEK_HOLE), ("lseek", "a", 2 << 20, os.SEEK_DATA),
        ("pread", "a", 4, (1 << 20) - 2), ("fallocate", "a", 0, 2 << 20), ("fstat", "a"), ("get", "new"),
        ("open", "l", "large", RW), ("fallocate", "l", 0, 2 << 20), ("fstat", "l"), ("get", "large"),
    ],
    "fsync": [
        ("open", "a", "new", RW | C), ("write", "a", b"x"), ("fsync", "a"), ("fdatasync", "a"),
        ("open", "d", "dir", R),
        ("fsync", "d"), ("open", "s", "small", R), ("fsync", "s"), ("pwrite", "s", b"", 0), ("unlink", "new"),
        ("fsync", "a"),
    ],
    "O_APPEND": [
        ("open", "a", "small", W | A), ("open", "b", "small", W | A), ("write", "a", b"one"), ("write", "b", b"two"),
        ("write", "a", b"three"), ("get", "small"), ("pwrite", "a", b"end", 0), ("get", "small"),
    ],
}  # fmt: skip


def fill(root: Path, case: str) -> None:
    """Make the tree that every case begins with."""
    for folder in ("dir/deep", "hollow"):
        (root / case / folder).mkdir(parents=True)
    files = {"small": SMALL, "large": LARGE, "dir/inside": b"inside", "dir/deep/bottom": b"bottom" * 100_000}
    for name, content in files.items():
        (root / case / name).write_bytes(content)


UPLOADS = {
    "staged": ("--no-upload", "*"),
    "uploaded at once": ("--upload-delay", "0s", "--upload-deadline", "0s"),
}


@pytest.fixture(scope="module", params=UPLOADS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Path]]:
    source = tmp_path_factory.mktemp("source")
    # Not below pytest's own directory, which only its owner may enter: some cases have other users.
    with tempfile.TemporaryDirectory(prefix="fanoutfs-local-", dir="/var/tmp") as directory:
        local = Path(directory)
        os.chmod(local, 0o755)
        for number in range(len(CASES)):
            for root in (source, local):
                fill(root, f"{number:02}")
        options = ("--metadata-ttl", "indefinite", "--allow-other", *UPLOADS[request.param])
        with mounted(f"file://{source}", *options) as mount:
            os.chmod(mount.path.parent, 0o711)
            for root in (mount.path, local):
                assert Tree(root / "00").as_user(USER, USER, "get", "small"), "another user sees nothing at all"
            yield mount, local


@pytest.mark.parametrize("case", CASES)
def test_same_calls_same_results(place: tuple[Mount, Path], case: str) -> None:
    mount, local = place
    number = f"{list(CASES).index(case):02}"
    trees = [Tree(mount.path / number), Tree(local / number)]
    try:
        for index, step in enumerate(CASES[case]):
            ours, theirs = (tree.run(step) for tree in trees)
            if step[0] == "lseek" and ours != theirs:  # how much of a file is a hole is the disk's own business
                assert ours[0] == theirs[0], f"step {index} {step}"
                continue
            assert ours == theirs, f"step {index} {step!r:.200}"
    finally:
        for tree in trees:
            tree.close_all()
    assert trees[0].snapshot() == trees[1].snapshot()


def test_attribute_names_of_the_system_are_refused(place: tuple[Mount, Path]) -> None:
    path = place[0].path / "attributes"
    path.touch()
    for name in ("trusted.a", "security.a", "user.fanoutfs.state"):
        with pytest.raises(OSError) as caught:
            os.setxattr(path, name, b"1")
        assert caught.value.errno in (errno.EOPNOTSUPP, errno.EPERM)
    assert os.getxattr(path, "user.fanoutfs.state") in (b"dirty", b"uploading", b"clean")
    assert os.getxattr(path, "user.fanoutfs.key").endswith(b"attributes")
    assert os.listxattr(path) == []

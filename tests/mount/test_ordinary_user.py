"""A user without any privilege mounts, reads and unmounts through the setuid helper fusermount3.

Everything happens in a private mount namespace: there /dev/fuse has the mode 0666 that udev gives it (containers often
have 0600), and the interpreter of the tests can be reached although /root is closed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.errors import MountBusyError, MountDeniedError
from tests.support.mounts import COMMAND_TIMEOUT_S
from tests.support.servers import Bucket

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[2]

_PRELUDE = """
set -e
mount --make-rprivate /
# Not to hold up the mounts of other tests that run at the same time.
grep fuse.fanoutfs /proc/self/mountinfo | cut -d ' ' -f 5 | while read -r other; do umount -l "$other"; done
mknod -m 666 "$BASE/fuse" c 10 229
mount --bind "$BASE/fuse" /dev/fuse
mount --bind "$BASE/fuse.conf" /etc/fuse.conf
# Checkout and environment may lie where nobody may enter, below /root or in a private directory: show them here.
mkdir -p "$BASE/kept" "$BASE/venv" "$BASE/lib"
mount --bind "$PREFIX" "$BASE/venv"
cp -r "$PACKAGE" "$BASE/lib"
chmod -R a+rX "$BASE/lib"
# So may the interpreter that the environment links to: show only that one below /root.
for tree in $TREES; do mkdir -p "$BASE/kept$tree"; mount --bind "$tree" "$BASE/kept$tree"; done
mount -t tmpfs -o mode=755 none /root
for tree in $TREES; do mkdir -p "$tree"; mount --bind "$BASE/kept$tree" "$tree"; done
cd /
setpriv --reuid=65534 --regid=65534 --clear-groups sh -e -c "$SCRIPT"
sh -c "$SCRIPT_OF_ROOT"
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory of nobody, with the mountpoint `mnt` and a fuse.conf as installed."""
    path = Path(tempfile.mkdtemp(prefix="fanoutfs-test-", dir="/var/tmp"))
    (path / "home" / "mnt").mkdir(parents=True)
    (path / "fuse.conf").write_text("#user_allow_other\n")
    path.chmod(0o755)
    for owned in (path / "home", path / "home" / "mnt"):
        os.chown(owned, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


def _as_nobody(base: Path, script: str, bucket: Bucket, *, then_as_root: str = "") -> subprocess.CompletedProcess[str]:
    """Run a shell script as nobody; `fanoutfs` is the command, $SOURCE and $ENDPOINT name the bucket."""
    tree = os.path.realpath(sys.base_prefix)
    environment = {
        **bucket.env,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(base / "home"),
        "BASE": str(base),
        "SOURCE": bucket.url,
        "ENDPOINT": bucket.endpoint,
        "TREES": tree if tree.startswith("/root/") else "",
        "PREFIX": os.path.realpath(sys.prefix),
        "PACKAGE": str(ROOT / "fanoutfs"),
        "PYTHONPATH": str(base / "lib"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SCRIPT_OF_ROOT": then_as_root,
        "SCRIPT": f'fanoutfs() {{ {base}/venv/bin/python -m fanoutfs "$@"; }}\ncd "$HOME"\n{script}',
    }
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", _PRELUDE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


def test_ordinary_user_mounts_reads_and_unmounts(base: Path, bucket: Bucket) -> None:
    bucket.put("directory/file", b"content")
    bucket.put("large", b"L" * 3_000_000)
    done = _as_nobody(
        base,
        """
        fanoutfs mount "$SOURCE" mnt --endpoint-url "$ENDPOINT" --read-only
        id -u
        stat -c '%u %g %a' mnt/directory/file
        cat mnt/directory/file; echo
        wc -c < mnt/large
        if touch mnt/new 2>/dev/null; then echo written; fi
        grep -c "$HOME/mnt" /proc/self/mountinfo
        grep "$HOME/mnt" /proc/self/mountinfo | grep -o 'ro,nosuid,nodev'
        stat -c '%u %a' .cache/fanoutfs
        fanoutfs status mnt | head -n 1 | cut -d ' ' -f 1
        fanoutfs umount mnt
        grep -c "$HOME/mnt" /proc/self/mountinfo || true
        ls mnt | wc -l
        """,
        bucket,
    )
    assert done.stderr == ""
    assert done.stdout.split("\n") == [
        "65534",
        "65534 65534 644",
        "content",
        "3000000",
        "1",
        "ro,nosuid,nodev",
        "65534 700",
        f"{base}/home/mnt",
        "0",
        "0",
        "",
    ]


def test_root_gets_into_an_ordinary_users_mount_only_with_allow_other(base: Path, bucket: Bucket) -> None:
    (base / "fuse.conf").write_text("user_allow_other\n")
    bucket.put("file", b"content\n")
    look = 'cat "$HOME/mnt/file" 2>&1 | grep -o "content\\|Permission denied"; umount "$HOME/mnt"'
    for option, seen in (("", "Permission denied\n"), ("--allow-other", "content\n")):
        (base / "fuse").unlink(missing_ok=True)
        shutil.rmtree(base / "kept", ignore_errors=True)
        script = f'fanoutfs mount "$SOURCE" mnt --endpoint-url "$ENDPOINT" {option}; cat mnt/file'
        done = _as_nobody(base, script, bucket, then_as_root=look)
        assert (done.stdout, done.stderr) == ("content\n" + seen, "")


def test_allow_other_of_an_ordinary_user_needs_user_allow_other(base: Path, bucket: Bucket) -> None:
    script = """
        fanoutfs mount "$SOURCE" mnt --endpoint-url "$ENDPOINT" --allow-other || echo "code $?"
        grep "$HOME/mnt" /proc/self/mountinfo | grep -c allow_other || true
        ls .cache 2>/dev/null | wc -l
        """
    refused = _as_nobody(base, script, bucket)
    assert refused.stdout == f"code {MountDeniedError.exit_code}\n0\n0\n"
    assert refused.stderr.count("\n") == 1
    assert "user_allow_other" in refused.stderr


def test_busy_and_lazy_umount_of_an_ordinary_user(base: Path, bucket: Bucket) -> None:
    bucket.put("file", b"content")
    done = _as_nobody(
        base,
        """
        fanoutfs mount "$SOURCE" mnt --endpoint-url "$ENDPOINT"
        exec 5< mnt/file
        fanoutfs umount mnt 2>busy || echo "code $?"
        grep -c "in use by .*$$" busy
        fanoutfs umount --lazy mnt
        grep -c "$HOME/mnt" /proc/self/mountinfo || true
        cat <&5; echo
        exec 5<&-
        """,
        bucket,
    )
    assert (done.stdout, done.stderr) == (f"code {MountBusyError.exit_code}\n1\n0\ncontent\n", "")


def test_directory_of_somebody_else_is_refused(base: Path, bucket: Bucket) -> None:
    os.chown(base / "home" / "mnt", 0, 0)
    done = _as_nobody(
        base,
        'fanoutfs mount "$SOURCE" mnt --endpoint-url "$ENDPOINT" || echo "code $?"; ls /tmp/fanoutfs-65534',
        bucket,
    )
    assert done.stdout == f"code {MountDeniedError.exit_code}\n"
    assert "no write access" in done.stderr


def test_cache_of_another_user_is_refused(base: Path, bucket: Bucket) -> None:
    (base / "theirs").mkdir(mode=0o755)
    done = _as_nobody(
        base,
        'fanoutfs mount "$SOURCE" mnt --endpoint-url "$ENDPOINT" --cache-dir "$BASE/theirs" || echo "code $?"',
        bucket,
    )
    assert done.stdout == "code 16\n"
    assert "belongs to uid 0" in done.stderr


@pytest.mark.usefixtures("steady_caches")
def test_ordinary_user_measures_the_own_mount_with_its_counters(base: Path, bucket: Bucket) -> None:
    done = _as_nobody(
        base,
        """
        fanoutfs mount "$SOURCE" mnt --endpoint-url "$ENDPOINT"
        fanoutfs bench storm mnt --size 2MiB --processes 2 --seconds 100ms --runs 1 2>/dev/null
        ls -A mnt | wc -l
        fanoutfs umount mnt
        """,
        bucket,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"from the store +MiB +2$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"messages to the daemon +0$", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.endswith("\n0\n")


def test_daemon_is_found_from_another_session_and_says_whose_it_is(base: Path, bucket: Bucket) -> None:
    """Mounted by cron, asked from a login: one of them has $XDG_RUNTIME_DIR."""
    script = """
        fanoutfs mount "$SOURCE" mnt --endpoint-url "$ENDPOINT" --read-only
        mkdir -m 700 run
        XDG_RUNTIME_DIR="$HOME/run" fanoutfs status mnt | head -n 1 | cut -d ' ' -f 1
        """
    ask = f'{base}/venv/bin/python -m fanoutfs status "$HOME/mnt" 2>&1; umount "$HOME/mnt"'
    done = _as_nobody(base, script, bucket, then_as_root=ask)
    assert done.stderr == ""
    own, foreign = done.stdout.splitlines()
    assert own == f"{base}/home/mnt"
    assert f"it was mounted by user {NOBODY}, ask as that one" in foreign

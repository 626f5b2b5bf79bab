"""Keys that have no counterpart in a file system: never a crash, hidden and counted; the rest visible and readable.

Against moto, which takes any key (SeaweedFS and obstore bend some of them).
"""

import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from fanoutfs.index.names import NAME_MAX_BYTES
from tests.mount import kernel
from tests.support.mounts import Mount, mounted, run_command
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket, S3Server

VISIBLE = {
    "plain": "plain",
    "with space": "space",
    " leading and trailing space ": "spaces",
    "percent%20sign": "percent",
    "percent%2Fslash": "percent slash",
    "100%": "lone percent",
    "hash#question?both": "hash",
    "plus+and&and=": "plus",
    "quote'double\"back`": "quotes",
    "back\\slash": "backslash",
    "star*[bracket]{brace}": "brackets",
    "~tilde": "tilde",
    "-dash": "dash",
    "$(touch x);|<>!": "shell",
    "...": "three dots",
    ".hidden": "dot file",
    "..two": "two dots and more",
    "umlaut-äöü-ß": "latin",
    "e\u0301 and é": "combining and composed",
    "日本語/漢字": "japanese in a directory",
    "emoji-\U0001f680": "emoji",
    "right-to-left-\u202e\u05d0": "bidi",
    "no-break\u00a0space": "no-break space",
    "n" * NAME_MAX_BYTES: "255 bytes",
    "ä" * 127: "254 bytes of umlauts",
    "a:b@c,d": "punctuation",
    "/".join(["deep"] * 200) + "/end": "1003 bytes of key",
    "/".join(["m" * 127] * 8): "1023 bytes of key",
}
HIDDEN_AT_ROOT = {
    "..": "parent",
    ".": "self",
    "../escape": "parent prefix",
    "./self": "self prefix",
    "/leading": "leading slash",
    "//twice": "leading slashes",
    "n" * (NAME_MAX_BYTES + 1): "256 bytes",
    "ä" * 128: "256 bytes of umlauts",
    "new\nline": "newline",
    "tab\there": "tab",
    "bell\x07": "control",
    "del\x7f": "delete",
}
HIDDEN_BELOW = {
    "below//double": "empty part in a directory",
    "below/../up": "parent in a directory",
    "below/./self": "self in a directory",
    "below/trailing//": "trailing slashes",
    "below/carriage\rreturn": "control character in a directory",
}
GOOD_BELOW = {"below/good": "good", "below/also good": "good"}


@dataclass(frozen=True)
class Place:
    mount: Mount
    bucket: Bucket


def _put(bucket: Bucket, key: str, text: str) -> None:
    if "\n" not in key:
        bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + key, Body=text.encode())
        return
    # moto's URL patterns do not match a newline; a form upload carries the key in its body.
    fields = (("key", bucket.prefix + key), ("file", text))
    parts = "".join(f'--border\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields)
    request = urllib.request.Request(
        f"{bucket.endpoint}/{bucket.name}",
        data=f"{parts}--border--\r\n".encode(),
        headers={"Content-Type": "multipart/form-data; boundary=border"},
    )
    urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture(scope="module")
def place(moto: S3Server) -> Iterator[Place]:
    bucket = moto.bucket()
    for key, text in {**VISIBLE, **HIDDEN_AT_ROOT, **HIDDEN_BELOW, **GOOD_BELOW}.items():
        _put(bucket, key, text)
    with kernel.mounted_bucket(bucket) as mount:
        yield Place(mount, bucket)


def _hidden(mount: Mount) -> int:
    counters = mount.counters()
    return counters["hidden_names"] + counters["backend_hidden_keys"]


def test_store_holds_the_keys_as_given(place: Place) -> None:
    """Otherwise nothing below tests anything."""
    assert set(place.bucket.keys()) >= {*VISIBLE, *HIDDEN_BELOW, "..", ".", "/leading", "new\nline"}


@pytest.mark.parametrize("key", VISIBLE, ids=VISIBLE.values())
def test_key_is_visible_and_readable(place: Place, key: str) -> None:
    path = place.mount.path / key
    assert kernel.read_all(path) == VISIBLE[key].encode()
    assert os.fsencode(path.name) in os.listdir(os.fsencode(path.parent))


def test_root_shows_exactly_what_can_be_shown_and_counts_the_rest_once(moto: S3Server) -> None:
    bucket = moto.bucket()
    for key in {**VISIBLE, **HIDDEN_AT_ROOT}:
        _put(bucket, key, "")
    with kernel.mounted_bucket(bucket) as mount:
        assert sorted(os.listdir(mount.path)) == sorted({key.partition("/")[0] for key in VISIBLE})
        # Keys below one hidden common prefix count as one: "/" (leading slashes), "..", and ".".
        prefixes = {key.partition("/")[0] + "/" if "/" in key else key for key in HIDDEN_AT_ROOT}
        assert mount.counters()["hidden_names"] == len(prefixes)
        assert mount.counters()["request_errors"] == 0


def test_directory_with_hidden_keys_shows_the_others(place: Place) -> None:
    os.listdir(place.mount.path)
    before = _hidden(place.mount)
    assert sorted(os.listdir(place.mount.path / "below")) == ["also good", "good", "trailing"]
    assert kernel.read_all(place.mount.path / "below/good") == b"good"
    assert _hidden(place.mount) > before
    assert os.listdir(place.mount.path / "below/trailing") == []


@pytest.mark.parametrize("name", ["new\nline", "tab\there", "bell\x07", "del\x7f"])
def test_hidden_name_is_absent_also_when_asked_for_directly(place: Place, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        os.stat(place.mount.path / name)


def test_hidden_name_in_a_directory_never_listed_is_absent(moto_bucket: Bucket) -> None:
    """The point lookup beside a listing under way must not ask the store for a bent key."""
    _put(moto_bucket, "directory/new\nline", "hidden")
    moto_bucket.put("directory/good", b"good")
    with kernel.mounted_bucket(moto_bucket) as mount:
        with pytest.raises(FileNotFoundError):
            os.stat(mount.path / "directory" / "new\nline")
        assert kernel.read_all(mount.path / "directory/good") == b"good"
        with pytest.raises(FileNotFoundError):
            os.stat(os.fsencode(mount.path) + b"/directory/\xff\xfe")
        assert mount.counters()["request_errors"] == 0


def test_hidden_name_is_absent_while_its_directory_is_being_listed(bucket: Bucket, proxy: Proxy) -> None:
    """Then the one name is asked for by itself, beside a listing whose second page has not come yet."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: bucket.put(f"directory/{number:04d}", b""), range(1_010)))
    proxy.fault("delay", match="continuation-token", ms=3000)
    with kernel.mounted_bucket(bucket, endpoint=proxy.endpoint) as mount:
        directory = os.fsencode(mount.path) + b"/directory/"
        for name in (b"\xff\xfe", b"new\nline", b"absent", "äbsent".encode()):
            with pytest.raises(FileNotFoundError):
                os.stat(directory + name)
        assert os.stat(directory + b"1009").st_size == 0  # on the second page
        assert mount.counters()["listings"] == 1  # the root's: nothing has waited for the page
        assert mount.counters()["request_errors"] == 0
        assert len(os.listdir(directory)) == 1_010


def test_dot_dot_key_leads_nowhere_out_of_the_mount(place: Place) -> None:
    assert (place.mount.path / "..").stat().st_ino == place.mount.path.parent.stat().st_ino
    assert (place.mount.path / "below" / "..").stat().st_ino == place.mount.path.stat().st_ino
    assert not (place.mount.path / "escape").exists()


def test_find_and_tar_walk_everything(place: Place) -> None:
    found = subprocess.run(["find", place.mount.path, "-type", "f", "-print0"], capture_output=True, check=True)
    names = {os.path.relpath(name, os.fsencode(place.mount.path)) for name in found.stdout.split(b"\0") if name}
    assert names == {os.fsencode(key) for key in {**VISIBLE, **GOOD_BELOW}}
    subprocess.run(["tar", "-cf", "/dev/null", "--ignore-failed-read", "."], cwd=place.mount.path, check=True)


def test_prefix_with_strange_characters_is_mounted(place: Place) -> None:
    bucket = place.bucket
    bucket.put("strange %20#?+ä/file", b"found")
    with mounted(f"s3://{bucket.name}/strange %20#?+ä", "--endpoint-url", bucket.endpoint, env=bucket.env) as mount:
        assert os.listdir(mount.path) == ["file"]
        assert kernel.read_all(mount.path / "file") == b"found"
    with mounted(
        f"s3://{bucket.name}", "--prefix", "strange %20#?+ä", "--endpoint-url", bucket.endpoint, env=bucket.env
    ) as mount:
        assert kernel.read_all(mount.path / "file") == b"found"


def test_nothing_of_it_met_an_unexpected_exception(place: Place) -> None:
    subprocess.run(["ls", "-lR", place.mount.path], capture_output=True, check=True)
    counters = place.mount.counters()
    assert counters["request_errors"] == counters["restarts_core"] == counters["restarts_front"] == 0
    assert "exception" not in place.mount.log()


# --- a directory as source -------------------------------------------------------------------------------------


def test_hostile_names_of_a_local_source(tmp_path_factory: pytest.TempPathFactory) -> None:
    source = os.fsencode(tmp_path_factory.mktemp("source"))
    good = [b"plain", b"a b", b"100%", b"#?", "ä".encode(), b"...", b"n" * 255, b"name#1", b"back\\slash"]
    bad = [b"new\nline", b"\xff\xfe", b"tab\t", b"del\x7f"]
    for name in (*good, *bad):
        with open(source + b"/" + name, "wb") as file:
            file.write(name)
    os.mkfifo(source + b"/fifo")
    os.symlink("loop", source + b"/loop")
    os.symlink("nowhere", source + b"/broken")
    os.symlink("plain", source + b"/link")
    with mounted(f"file://{os.fsdecode(source)}", "--metadata-ttl", "indefinite") as mount:
        assert sorted(os.listdir(os.fsencode(mount.path))) == sorted([*good, b"link"])
        for name in good:
            with kernel.opened(os.fsdecode(os.fsencode(mount.path) + b"/" + name)) as fd:
                assert os.read(fd, 1000) == name
        assert kernel.read_all(mount.path / "link") == b"plain"
        assert mount.counters()["hidden_names"] == len(bad) + 3
        assert mount.counters()["request_errors"] == 0


def test_files_with_keys_of_any_length_are_changed_renamed_and_removed(moto_bucket: Bucket) -> None:
    """S3 takes 1,024 bytes, the index's database half as many."""
    directory = "/".join(["d" * 200] * 4)
    for name in ("kept", "changed", "removed", "renamed"):
        moto_bucket.put(f"{directory}/{name}", name.encode())
    with mounted(
        moto_bucket.url, "--endpoint-url", moto_bucket.endpoint, "--upload-delay", "0s", env=moto_bucket.env
    ) as mount:
        path = mount.path / directory
        (path / "changed").write_bytes(b"anew")
        (path / "removed").unlink()
        (path / "renamed").rename(path / ("n" * 200))
        (path / "made").write_bytes(b"here")
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        assert objects(moto_bucket) == {
            f"{directory}/{name}": body
            for name, body in (("kept", b"kept"), ("changed", b"anew"), ("made", b"here"), ("n" * 200, b"renamed"))
        }
        path.parent.rename(mount.path / "short")
        shutil.rmtree(mount.path / directory.partition("/")[0])
        (mount.path / "short").rename(mount.path / ("e" * 200))
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        moved = f"{'e' * 200}/{'d' * 200}"
        assert objects(moto_bucket) == {
            f"{moved}/{name}": body
            for name, body in (("kept", b"kept"), ("changed", b"anew"), ("made", b"here"), ("n" * 200, b"renamed"))
        }
        shutil.rmtree(mount.path / ("e" * 200))
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        assert objects(moto_bucket) == {}
        assert mount.status()["changes"]["departed"] == 0
        assert "Traceback" not in mount.log()


def objects(bucket: Bucket) -> dict[str, bytes]:
    """Return what a bucket has, without the markers of directories."""
    return {key: bucket.get(key) for key in bucket.keys() if not key.endswith("/")}  # noqa: SIM118

"""From options to MountConfig: names, synonyms, what is ignored, what is refused and with which words."""

from pathlib import Path

import pytest

from fanoutfs.config.layers import settle
from fanoutfs.config.load import IGNORED, SETTINGS, SYNONYMS, parse_mount_options, show_default, show_value
from fanoutfs.config.schema import DiskDirectory, MountConfig
from fanoutfs.config.units import INDEFINITE
from fanoutfs.errors import UsageError
from fanoutfs.records import GIB

MNT = Path("/mnt/data")


def build_config(source: str, mountpoint: Path, options: dict[str, str]) -> MountConfig:
    return settle(source, mountpoint, options, {}).config


def _build(**options: str) -> MountConfig:
    return build_config("s3://bucket/prefix", MNT, options)


def test_nothing_given_is_the_defaults() -> None:
    assert _build() == MountConfig("s3://bucket/prefix", MNT)


def test_every_kind_of_setting_is_parsed() -> None:
    config = _build(
        cache_dir="/nvme/cache", cache_size="1TiB", metadata_ttl="indefinite", read_only="true", uid="root", gid="0",
        file_mode="600", endpoint_url="http://127.0.0.1:9000", small_cache_share="25%", requests="8", log_level="debug",
    )  # fmt: skip
    assert (config.cache_dir, config.cache_size, config.metadata_ttl) == (Path("/nvme/cache"), 1 << 40, INDEFINITE)
    assert (config.read_only, config.uid, config.gid, config.file_mode) == (True, 0, 0, 0o600)
    assert (config.small_cache_share, config.requests, config.log_level) == (0.25, 8, "debug")


def test_dashes_and_underscores_name_the_same() -> None:
    assert build_config("s3://bucket", MNT, {"cache-size": "1G"}) == build_config(
        "s3://bucket", MNT, {"cache_size": "1G"}
    )


def test_relative_paths_become_absolute() -> None:
    assert _build(cache_dir="cache").cache_dir == Path.cwd() / "cache"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_size": "20480"}, r"^--cache-size: `20480` has no unit"),
        ({"cache_size": "0"}, r"^--cache-size: at least 1MiB, not 0B$"),
        ({"cach-size": "1G"}, r"^unknown option --cach-size: did you mean --cache-size\?$"),
        ({"frobnicate": "1"}, r"^unknown option --frobnicate: .*--help"),
        ({"sync": "true"}, r"^unknown option --sync"),
        ({"metadata_ttl": "0"}, r"^--metadata-ttl: at least 1s, not 0s$"),
        ({"op_timeout": "indefinite"}, r"^--op-timeout: at most 1h, not indefinite$"),
        ({"file_mode": "4755"}, r"^--file-mode: at most 0777, not 4755$"),
        ({"fronts": "many"}, r"^--fronts: `many` is not a whole number$"),
        ({"small_cache_share": "2"}, r"^--small-cache-share: at most 1, not 2$"),
        ({"profile": "prod"}, r"^--profile: `prod` is not one of training, serving, checkpoint; .* aws_profile$"),
        ({"log_level": "loud"}, r"^--log-level: `loud` is not one of debug, info, warning, error$"),
        ({"cache_dir": ""}, r"^--cache-dir: needs a value$"),
        ({"endpoint_url": "localhost:9000"}, r"^--endpoint-url: `localhost:9000` is no URL"),
        ({"region": "a\nb"}, r"^--region: control characters"),
        ({"prefix": "/a"}, r"^--prefix: .*write `a`$"),
        ({"cache_dir": "/mnt/data/cache"}, r"^--cache-dir: .* hidden below the mountpoint$"),
        ({"cache_dir": "/mnt"}, r"inside the cache directory"),
        ({"log_file": "/mnt/data/log"}, r"^--log-file: "),
    ],
)
def test_refused_with_the_option_and_the_reason(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build_config("s3://bucket", MNT, options)
    assert "\n" not in str(caught.value)


def test_credentials_are_refused_and_not_repeated() -> None:
    for source, options in (
        ("s3://AKIA:hunter2@bucket/x", {}),
        ("s3://bucket", {"endpoint_url": "http://user:hunter2@host"}),
        ("https://host/x?X-Amz-Signature=hunter2", {}),
    ):
        with pytest.raises(UsageError) as caught:
            build_config(source, MNT, options)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "s3://bucket",
        "s3://bucket/pre fix/?#x",
        "gs://bucket/a",
        "az://container",
        "https://host:1/x",
        "file:///data",
        "memory://",
    ],
)
def test_sources(source: str) -> None:
    assert build_config(source, MNT, {}).source == source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("bucket", "write s3://bucket"),
        ("/data", "write file:///data"),
        ("file://data", "file:///DIR"),
        ("ftp://host", "unknown scheme"),
        ("s3://", "cannot be a bucket"),
        ("s3:///key", "cannot be a bucket"),
        ("http:///x", "names no host"),
        ("s3://bucket/a\nb", "control characters"),
        ("s3://bucket/" + "x" * 3000, "more than 2048"),
    ],
)
def test_malformed_sources(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_config(source, MNT, {})


def test_directory_source_and_mountpoint_must_not_overlap() -> None:
    for source in ("file:///mnt", "file:///mnt/data", "file:///mnt/data/below"):
        with pytest.raises(UsageError, match="lie inside each other"):
            build_config(source, MNT, {})
    with pytest.raises(UsageError, match="lies inside the source"):
        build_config("file:///srv", MNT, {"cache_dir": "/srv/.cache"})


def test_mount_options_are_split_and_system_options_ignored() -> None:
    text = (
        "rw,_netdev,nofail,x-systemd.automount,noatime,cache-size=1G,allow_other,prefix=a\\,b\\\\c,,region=r,region=s"
    )
    assert parse_mount_options(text) == {"cache_size": "1G", "allow_other": "true", "prefix": "a,b\\c", "region": "s"}
    assert build_config("s3://bucket", MNT, parse_mount_options("ro")).read_only


@pytest.mark.parametrize(
    ("name", "text", "setting", "value"),
    [
        ("cache", "/nvme", "cache_dir", Path("/nvme")),
        ("max-cache-size", "20480", "cache_size", 20 << 30),
        ("max-cache-size", "20GiB", "cache_size", 20 << 30),
        ("file-cache-max-size-mb", "2048", "cache_size", 2 << 30),
        ("metadata-cache-ttl-secs", "90", "metadata_ttl", 90),
        ("metadata-cache-ttl-secs", "-1", "metadata_ttl", INDEFINITE),
        ("buffer-size", "300", "fill_memory", 300 << 20),
        ("dir-cache-time", "5m", "metadata_ttl", 300),
        ("ensure_diskfree", "1024", "free_space_floor", 1 << 30),
    ],
)
def test_synonyms_mean_what_they_mean_elsewhere(name: str, text: str, setting: str, value: object) -> None:
    assert getattr(build_config("s3://bucket", MNT, {name: text}), setting) == value


def test_error_in_a_synonym_names_what_the_user_wrote() -> None:
    with pytest.raises(UsageError, match=r"^--vfs-cache-max-size: `100` has no unit"):
        _build(**{"vfs-cache-max-size": "100"})


def test_tables_are_consistent() -> None:
    assert not set(SYNONYMS) & set(SETTINGS)
    assert not IGNORED & (set(SYNONYMS) | set(SETTINGS))
    assert {setting for setting, _ in SYNONYMS.values()} <= set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_default_can_be_written(name: str) -> None:
    """What --help shows as a default is accepted back and means the same."""
    shown = show_default(name)
    if shown and SETTINGS[name].metadata["unit"] != "flag":
        assert getattr(_build(**{name: shown}), name) == getattr(_build(), name)


def test_further_cache_directories_are_named_as_with_juicefs_or_by_themselves() -> None:
    disks = (DiskDirectory(Path("/b"), 500 * GIB), DiskDirectory(Path("/c")))
    for given in ({"cache_dir": "/a:/b=500GiB:/c"}, {"cache": "/a:/b=0.5T:/c"},
                  {"cache_dir": "/a", "cache_disks": "/b=512000MiB:/c"}):  # fmt: skip
        config = _build(**given)
        assert (config.cache_dir, [disk.path for disk in config.cache_disks]) == (Path("/a"), [Path("/b"), Path("/c")])
    assert config.cache_disks == disks
    assert show_value("cache_disks", disks) == "/b=500GiB:/c"
    assert _build(cache_disks=show_value("cache_disks", ())).cache_disks == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache_dir": "/a:"}, "needs a value"),
        ({"cache_dir": "/a:/b::/c"}, "empty directory"),
        ({"cache_disks": "/b=1MiB"}, "at least 8MiB"),
        ({"cache_disks": "/b=much"}, "not a size"),
        ({"cache_dir": "/a:/a/b"}, "lie inside each other"),
        ({"cache_dir": "/a:/b:/b"}, "lie inside each other"),
        ({"cache_disks": "/mnt/data/x"}, "hidden below the mountpoint"),
        ({"cache_disks": "/mnt"}, "lies inside the cache directory"),
    ],
)
def test_wrong_further_cache_directories_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _build(**given)

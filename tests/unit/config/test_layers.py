"""Who has the last word: flag > environment > file > profile > default."""

from pathlib import Path

import pytest

from fanoutfs.config.files import parse_file
from fanoutfs.config.layers import Settled, settle
from fanoutfs.config.load import SETTINGS, Given, Spelling, parse_given, show_value
from fanoutfs.config.profiles import PROFILES
from fanoutfs.config.schema import MountConfig
from fanoutfs.errors import UsageError

MNT = Path("/mnt/data")
FILE = Path("/etc/fanoutfs/data.toml")


def _settle(flags: dict[str, str], environment: dict[str, str], file: str) -> Settled:
    return settle("s3://bucket", MNT, flags, environment, parse_file(FILE, file))


def test_each_layer_overrides_those_below_it() -> None:
    flags: dict[str, str] = {}
    environment: dict[str, str] = {}
    text = ""

    def ttl() -> tuple[float, str]:
        settled = _settle(flags, environment, text)
        return settled.config.metadata_ttl, settled.origins.get("metadata_ttl", "default")

    assert ttl() == (60.0, "default")
    text = 'profile = "training"\n'
    assert ttl() == (600.0, "profile training")
    text += 'metadata_ttl = "2m"\n'
    assert ttl() == (120.0, f"{FILE}:2")
    environment["FANOUTFS_METADATA_TTL"] = "3m"
    assert ttl() == (180.0, "FANOUTFS_METADATA_TTL")
    flags["metadata-ttl"] = "4m"
    assert ttl() == (240.0, "--metadata-ttl")


def test_a_profile_may_be_named_by_any_layer_and_the_highest_wins() -> None:
    file = 'profile = "serving"\n'
    assert _settle({}, {}, file).config.max_readahead == 256 << 20
    assert _settle({}, {"FANOUTFS_PROFILE": "checkpoint"}, file).config.upload_requests == 16
    both = _settle({"profile": "training"}, {"FANOUTFS_PROFILE": "checkpoint"}, file).config
    assert (both.profile, both.small_cache_share, both.upload_requests) == ("training", 0.9, 8)


def test_what_a_profile_switches_on_can_be_switched_off() -> None:
    assert _settle({"profile": "training"}, {}, "").config.read_only
    assert not _settle({"profile": "training", "read_only": "false"}, {}, "").config.read_only


def test_a_mistake_below_is_told_even_where_a_flag_overrides_it() -> None:
    with pytest.raises(UsageError, match=rf"^{FILE}:1: requests: `x` is not a whole number$"):
        _settle({"requests": "1"}, {}, 'requests = "x"\n')
    with pytest.raises(UsageError, match=r"^FANOUTFS_REQUESTS: `y` is not a whole number$"):
        _settle({"requests": "1"}, {"FANOUTFS_REQUESTS": "y"}, "")


def test_a_misspelt_variable_is_told_and_a_strangers_is_left_alone() -> None:
    with pytest.raises(UsageError, match=r"^FANOUTFS_CACHESIZE: no such setting: did you mean FANOUTFS_CACHE_SIZE\?$"):
        _settle({}, {"FANOUTFS_CACHESIZE": "1G"}, "")
    strangers = {"FANOUTFS_DEBUG": "1", "FANOUTFS_MODEL_STEPS": "10", "CACHE_SIZE": "x"}
    assert _settle({}, strangers, "").config == MountConfig("s3://bucket", MNT, policy_file=FILE)


def test_profiles_hold_known_settings_with_valid_values_that_are_no_defaults() -> None:
    for name, presets in PROFILES.items():
        for setting, preset in presets.items():
            _, value = parse_given(Given(setting, preset.text, Spelling.KEY))
            assert value != SETTINGS[setting].default, f"{name}: {setting} is the default"


def test_what_is_shown_means_the_same_again() -> None:
    settled = _settle(
        {"cache_size": "1234567B", "metadata_ttl": "90061.5", "upload_delay": "100ms", "file_mode": "600"},
        {"FANOUTFS_METADATA_TTL": "indefinite", "FANOUTFS_CACHE_DIR": "/a b"},
        "",
    )
    for name in SETTINGS:
        value = getattr(settled.config, name)
        text = show_value(name, value)
        if text:
            assert parse_given(Given(name, text, Spelling.KEY))[1] == value, name


def test_a_file_may_list_the_cache_directories() -> None:
    for text in ('cache_dir = ["/a", "/b=1TiB"]', 'cache_dir = "/a"\ncache_disks = ["/b=1TiB"]'):
        config = _settle({}, {}, text).config
        assert (str(config.cache_dir), show_value("cache_disks", config.cache_disks)) == ("/a", "/b=1TiB")
    for text in ('cache_dir = ["/a", "b"]', 'cache_disks = "b"', "cache_disks = [1]"):
        with pytest.raises(UsageError, match=r"absolute path|single value"):
            _settle({}, {}, text)

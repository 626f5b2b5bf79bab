"""What one keeper tells the next: read back as it was written, and refused where it does not fit."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from fanoutfs.backend import config_root
from fanoutfs.config.layers import settle
from fanoutfs.config.load import SETTINGS
from fanoutfs.config.recipe import Recipe
from fanoutfs.config.schema import MountConfig
from fanoutfs.keeper import handover
from fanoutfs.keeper.handover import FIXED, Inheritance, State

MNT = Path("/mnt/nothing/is/mounted/here")


def _config(**options: str) -> MountConfig:
    return settle("s3://bucket/a", MNT, options, {}).config


def _state(config: MountConfig) -> State:
    return State(
        source=config.source,
        mountpoint=config.mountpoint,
        root=config_root(config),
        settings=handover.settings_as_text(config),
        recipe=Recipe(config.source, str(MNT), "/etc/fanoutfs/x.toml", {"fronts": "2"}),
        device="0:51",
        init=b"\x00\x01\xff",
        generation=7,
        children=(3, 1, 2),
    )


def test_a_state_is_read_back_as_it_was_written() -> None:
    config = _config(
        cache_size="1234567B", metadata_ttl="indefinite", upload_delay="100ms", file_mode="600", no_upload=""
    )
    again = State.decode(_state(config).encode())
    assert again == _state(config)
    assert handover.config_of(again) == config


def test_what_a_later_version_added_is_not_minded() -> None:
    data = json.loads(_state(_config()).encode())
    data["settings"]["shiny_new_setting"] = "on"
    data["shiny_new_key"] = 1
    assert handover.config_of(State.decode(json.dumps(data).encode())) == _config()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, ""),
        ({"cache_size": "1GiB", "fronts": "5", "log_level": "debug", "metadata_ttl": "5m"}, ""),
        ({"read_only": "true"}, "read_only cannot change while it is mounted (it is false, not true)"),
        ({"cache_dir": "/elsewhere"}, "cache_dir cannot change"),
        ({"log_file": "/var/log/x"}, "log_file cannot change while it is mounted (it is unset, not /var/log/x)"),
        ({"prefix": "b"}, "its source is s3://bucket/a"),
        ({"endpoint_url": "http://127.0.0.1:1"}, "its source is s3://bucket/a"),
    ],
)
def test_settings_that_may_change_while_it_is_mounted(options: dict[str, str], reason: str) -> None:
    assert handover.differs(_state(_config()), _config(**options)).startswith(reason)
    assert bool(handover.differs(_state(_config()), _config(**options))) is bool(reason)


def test_a_setting_that_the_version_before_did_not_know_was_as_it_is_by_default() -> None:
    state = _state(_config())
    for name in ("dir_mode", "log_file", "object_attributes", "small_file_size", "allow_other"):
        known = {key: text for key, text in state.settings.items() if key != name}
        assert handover.differs(dataclasses.replace(state, settings=known), _config()) == ""


def test_another_source_or_mountpoint_is_another_mount() -> None:
    state = _state(_config())
    assert "its source is" in handover.differs(state, settle("s3://other", MNT, {}, {}).config)
    assert "it is mounted on" in handover.differs(state, dataclasses.replace(_config(), mountpoint=Path("/mnt")))


def test_fixed_settings_exist() -> None:
    assert set(FIXED) <= set(SETTINGS)


def test_a_mount_that_is_gone_is_no_inheritance() -> None:
    inherited = Inheritance(_state(_config()), fuse_fd=-1, state_fd=-1, positions_fd=-1)
    assert handover.obstacle(inherited, _config()) == "it has been unmounted"


def test_descriptors_without_a_state_are_closed() -> None:
    descriptors = {name: os.open(os.devnull, os.O_RDONLY) for name in handover.NAMES}
    assert handover.inherit(descriptors) is None
    for descriptor in descriptors.values():
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    assert handover.inherit({}) is None

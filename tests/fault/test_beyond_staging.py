"""What an earlier version of a file has left in the cache goes when a newer one is uploaded, and counts until then."""

import os

import pytest

from fanoutfs.records import MIB
from tests.fault.children import content, digest
from tests.fault.conftest import Mounter
from tests.fault.test_write_trouble import drain, write_synced
from tests.support.du import occupied_bytes
from tests.support.mounts import Mount
from tests.support.servers import Bucket


def check_accounts(mount: Mount) -> int:
    """Compare what the cache holds with what status says; return the former."""
    held_bytes = occupied_bytes(mount.cache)
    cache = mount.status()["cache"]
    assert held_bytes <= cache["used_bytes"] <= cache["cap_bytes"]
    return held_bytes


def test_files_larger_than_the_staging_quota_stay_below_the_cap(bucket: Bucket, mount_of: Mounter) -> None:
    options = ("--cache-size", "32MiB", "--upload-delay", "1s")
    mount = mount_of(bucket.url, *options, endpoint=bucket.endpoint, env=bucket.env)
    for number in range(4):  # uploaded at the quota of 16 MiB, and once more with the rest
        write_synced(mount.path / f"u{number}", content(number, 20 * MIB))
        drain(mount)
        check_accounts(mount)
    for number in range(4):
        assert digest((mount.path / f"u{number}").read_bytes()) == digest(content(number, 20 * MIB))
        check_accounts(mount)


@pytest.mark.parametrize("left_bytes", [9 * MIB + 1, 1000, 0])
def test_what_is_cut_off_a_cached_file_goes_with_the_upload(left_bytes: int, bucket: Bucket, mount_of: Mounter) -> None:
    body = content(7, 40 * MIB)
    bucket.put("f", body)
    mount = mount_of(bucket.url, "--upload-delay", "0s", endpoint=bucket.endpoint, env=bucket.env)
    path = mount.path / "f"
    assert digest(path.read_bytes()) == digest(body)
    mount.wait_for_fills()
    assert check_accounts(mount) > len(body)
    os.truncate(path, left_bytes)
    drain(mount)
    assert check_accounts(mount) < left_bytes + 2 * MIB
    assert digest(path.read_bytes()) == digest(body[:left_bytes])
    assert digest(bucket.get("f")) == digest(body[:left_bytes])

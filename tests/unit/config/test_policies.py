"""What `[[policy]]` tables mean, and what is refused in one line."""

from pathlib import Path
from typing import Any

import pytest

from fanoutfs.config.files import Located, RawTable, read_file
from fanoutfs.config.layers import settle
from fanoutfs.config.policies import NEVER, Policy, check_places, compile_pattern, load_policies, parse_policies
from fanoutfs.errors import UsageError
from fanoutfs.records import GIB, MIB


def parse(*tables: dict[str, Any]) -> tuple[Policy, ...]:
    """Parse tables as if they stood in a file, one line each."""
    located = [{key: Located(value, number) for key, value in table.items()} for number, table in enumerate(tables, 1)]
    return parse_policies([RawTable(Path("x.toml"), number, each) for number, each in enumerate(located, 1)])


MATCHES = [
    ("*.pt", "a.pt", True),
    ("*.pt", "x/y/a.pt", True),
    ("*.pt", "x/a.pt/inside", True),
    ("*.pt", "a.ptx", False),
    ("/a", "a", True),
    ("/a", "x/a", False),
    ("a/*", "a/b", True),
    ("a/*", "a/b/c", True),  # what matches a directory matches all below it
    ("a/*", "a", False),
    ("a/*.bin", "a/b/c.bin", False),
    ("a/**/c", "a/c", True),
    ("a/**/c", "a/b/b/c", True),
    ("**", "anything/at/all", True),
    ("a?c", "abc", True),
    ("a?c", "a/c", False),
    ("a[0-9]", "a7", True),
    ("a[!0-9]", "a7", False),
    ("a[!0-9]", "a/", False),
    ("a[{]b", "a{b", True),
    ("a.b", "axb", False),
    ("train/", "train/x", True),
]


@pytest.mark.parametrize(("pattern", "path", "expected"), MATCHES)
def test_pattern_matches(pattern: str, path: str, expected: bool) -> None:
    assert (compile_pattern(pattern).fullmatch(path) is not None) is expected


@pytest.mark.parametrize("pattern", ["/", "..", "a/../b", "./a", "a.{jpg,png}", "[b-a]"])
def test_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError):
        compile_pattern(pattern)


def test_pattern_that_begins_with_the_mountpoint_is_refused() -> None:
    for pattern, hint in (("/mnt/data/train/*.pt", "write `train/\\*.pt`"), ("/mnt/data", "leave path out")):
        with pytest.raises(UsageError, match=hint):
            check_places(parse({"path": ["a", pattern]}), Path("/mnt/data"))
    check_places(parse({"path": ["/mnt/data2", "mnt/data/x", "/train"]}), Path("/mnt/data"))
    check_places(parse({"path": "/train"}), Path("/"))


def test_all_keys_are_understood_in_all_their_forms() -> None:
    (policy,) = parse(
        {
            "name": "x",
            "path": ["a", "b/**"],
            "min_size": "1MiB",
            "max_size": 1 << 30,
            "upload_after": 1.5,
            "evict_after": "7d",
            "storage_class": "STANDARD_IA",
            "storage_class_after": 60,
            "packed": False,
        }
    )
    assert policy.is_packed is False
    assert (policy.paths, policy.min_size, policy.max_size) == (("a", "b/**"), MIB, GIB)
    assert (policy.upload_after_s, policy.evict_after_s, policy.storage_class_after_s) == (1.5, 7 * 86400, 60)
    first, second = parse({"path": "a", "upload_after": "never"}, {"keep_local": True})
    assert first.upload_after_s == NEVER
    assert first.is_packed is None
    assert second.is_kept_local and not second.patterns and second.name == "policy 2"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"paht": "a"}, "x.toml:2: paht: a policy has no such key: did you mean path?"),
        ({"path": 3}, "path: write a pattern"),
        ({"path": []}, "path: write a pattern"),
        ({"path": "/"}, "matches nothing"),
        ({"min_size": "2MiB", "max_size": "1MiB"}, "matches no file"),
        ({"min_size": -1}, "write a size"),
        ({"evict_after": "soon"}, "evict_after"),
        ({"evict_after": "never"}, "evict_after"),
        ({"pin": "yes"}, "pin: write true or false"),
        ({"pin": True, "evict_after": "1h"}, "never evicted"),
        ({"keep_local": True, "upload_after": "1h"}, "keep_local"),
        ({"storage_class_after": "1d"}, "which storage_class"),
        ({"storage_class": "a b"}, "storage_class"),
        ({"packed": "no"}, "packed: write true or false"),
        ({"packed": True, "min_size": "2MiB"}, "packed: min_size is above 1 MiB"),
        ({"name": 3}, "name"),
    ],
)
def test_mistake_is_refused_with_the_policy_named(table: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=r"^x\.toml:2: ") as refused:
        parse({"path": "x"}, table)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two of this name"):
        parse({"name": "a"}, {"name": "a"})


def test_file_is_read_when_the_mount_is_configured(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('source = "s3://b"\n[[policy]]\npath = "*.pt"\npin = true\n')
    config = settle("s3://bucket", Path("/mnt"), {"policy_file": str(file)}, {}).config
    assert config.policies == load_policies(file)
    own = settle("s3://bucket", Path("/mnt"), {}, {}, read_file(file)).config
    assert (own.policies, own.policy_file) == (config.policies, file)
    with pytest.raises(UsageError, match="has policies, too"):
        settle("s3://bucket", Path("/mnt"), {"policy_file": str(file)}, {}, read_file(file))
    file.write_text("[[policy]\n")
    with pytest.raises(UsageError, match=r"run\.toml"):
        settle("s3://bucket", Path("/mnt"), {"policy_file": str(file)}, {})
    with pytest.raises(UsageError, match="absent"):
        load_policies(tmp_path / "absent")

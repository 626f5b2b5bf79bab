"""Configuration files: which line said what, and how mistakes are told."""

from pathlib import Path

import pytest

from fanoutfs.config.files import Located, parse_file, read_file
from fanoutfs.config.layers import problems
from fanoutfs.errors import UsageError

FILE = Path("/etc/fanoutfs/data.toml")

LONG = '''# a comment
source = "s3://bucket/train"

cache_size = "2TiB" # [[policy]]
no_upload = """
*.tmp,\\
  [[policy]]
"""
requests = 64

[[policy]] # one
paths = [
  "*.bin", # a ]
  "#",
]
pin = true
[[policy]]

evict_after = "1h"
'''


def test_every_key_has_its_value_and_its_line() -> None:
    file = parse_file(FILE, LONG)
    assert file.values == {
        "source": Located("s3://bucket/train", 2),
        "cache_size": Located("2TiB", 4),
        "no_upload": Located("*.tmp,[[policy]]\n", 5),
        "requests": Located(64, 9),
    }
    assert file.place("requests") == "/etc/fanoutfs/data.toml:9"


def test_policies_are_carried_as_they_were_written_with_their_lines() -> None:
    first, second = parse_file(FILE, LONG).policies
    assert (first.line, first.values) == (11, {"paths": Located(["*.bin", "#"], 12), "pin": Located(True, 16)})
    assert (second.line, second.values) == (17, {"evict_after": Located("1h", 19)})
    assert (second.place(), second.place("evict_after")) == (f"{FILE}:17", f"{FILE}:19")


def test_windows_line_ends_and_no_line_end_at_the_end() -> None:
    file = parse_file(FILE, 'region = "a"\r\n\r\nprefix = "b"')
    assert file.values == {"region": Located("a", 1), "prefix": Located("b", 3)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a = "1"\nb = 2TiB\n', r"^/etc/fanoutfs/data\.toml:2: .*quoted"),
        ('a = "1"\n\na = "2"\n', r"data\.toml:3: Cannot overwrite a value"),
        ('a = "1"\nb = """x\n\n', r"data\.toml:2: "),
        ('a = "1"\n[policy]\n', r"data\.toml:2: unknown table `policy`: .*\[\[policy\]\]"),
        ('\n[cache]\nsize = "1G"\n', r"data\.toml:2: unknown table `cache`: "),
        ("[policy.more]\n", r"data\.toml:1: unknown table `policy`"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_file(FILE, text)


def test_unreadable_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: No such file"):
        read_file(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b'a = "1"\nb = "\xff"\n')
    with pytest.raises(UsageError, match=r"bytes\.toml:2: is not UTF-8"):
        read_file(tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('cach_size = "1G"', "data.toml:2: unknown key cach_size: did you mean cache_size?"),
        ("cache_size = 20480", "data.toml:2: cache_size: `20480` has no unit"),
        ('cache_size = "1 parsec"', "data.toml:2: cache_size: `1 parsec` has the unknown unit"),
        ("cache_size = true", "data.toml:2: cache_size: true is no size"),
        ('read_only = "perhaps"', "data.toml:2: read_only: `perhaps` is neither"),
        ("file_mode = 0o644", 'data.toml:2: file_mode: write octal modes as text, for example "0644"'),
        ("requests = 0", "data.toml:2: requests: at least 1, not 0"),
        ("requests = [1]", "data.toml:2: requests: needs a single value"),
        ('cache_dir = "cache"', "data.toml:2: cache_dir: `cache` must be an absolute path"),
        ('mountpoint = "mnt"', "data.toml:2: mountpoint: `mnt` must be an absolute path"),
        ('cache-size = "1G"\ncache_size = "1G"', "data.toml:3: cache_size: is said twice, also by"),
        ('policy = "x"', "data.toml:2: policy: rules are written as tables"),
        ("[[policy]]\npaht = 'a'", "data.toml:3: paht: a policy has no such key: did you mean path?"),
        ('profile = "prod"', "data.toml:2: profile: `prod` is not one of training, serving, checkpoint"),
    ],
)
def test_each_mistake_names_file_line_and_key(line: str, message: str) -> None:
    (problem,) = problems(parse_file(FILE, f'source = "s3://bucket"\n{line}\n'))
    assert message in problem
    assert problem.startswith(str(FILE))


def test_all_mistakes_are_found_at_once() -> None:
    text = 'cach_size = "1G"\nrequests = 64\nfronts = "many"\n'
    assert [problem.split(": ")[0] for problem in problems(parse_file(FILE, text))] == [f"{FILE}:1", f"{FILE}:3"]


def test_a_right_file_has_no_problems() -> None:
    text = (
        'source = "s3://bucket"\nmountpoint = "/mnt/data"\nprofile = "training"\n'
        'cache-size = "1TiB"\nmetadata_ttl = 90\nsmall_cache_share = 0.5\n'
        'read_only = true\nfile_mode = "0600"\nuid = 0\ncache_dir = "/nvme/cache"\n'
    )
    assert problems(parse_file(FILE, text)) == []

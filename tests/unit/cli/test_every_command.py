"""Every command, walked: an example and --json in its help, what it is for in the list, completed by the shells."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fanoutfs.cli import main
from fanoutfs.cli.app import COMMANDS, commands
from fanoutfs.errors import FanoutError

ROOT = Path(__file__).resolve().parents[3]
ISSUE: tuple[str, ...] = (
    *("mount", "umount", "status", "stats", "top", "info", "warm", "evict", "pin", "import", "drain", "invalidate"),
    *(
        "doctor",
        "bench",
        "config",
        "service",
        "upgrade",
        "version",
        "why",
        "tier",
        "plan",
        "log",
        "unpin",
        "completion",
    ),
)
NO_DOCUMENT = {("completion",)}
"""What it prints is a script."""


def _walk(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _walk(command, (*above, name))
        elif not command.hidden:
            yield (*above, name), command


EVERY = dict(_walk(commands))
each_command = pytest.mark.parametrize("path", EVERY, ids=" ".join)


def test_list_of_commands_is_what_was_promised() -> None:
    assert set(COMMANDS) == set(ISSUE)


@each_command
def test_help_has_an_example_that_the_command_understands(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    example = re.search(r"Example: +(.+?)(?:\n\n|\Z)", shown, re.DOTALL)
    assert example, shown
    calls = re.findall(rf"fanoutfs {' '.join(path)}\b([^|;)]*)", " ".join(example[1].split()))
    assert calls, example[1]
    options = {name for parameter in EVERY[path].params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.partition("=")[0] for call in calls for word in shlex.split(call, comments=True) if word[:2] == "--"}
    assert used <= options


@each_command
def test_every_command_can_print_json(path: tuple[str, ...]) -> None:
    options = {spelling for parameter in EVERY[path].params for spelling in parameter.opts}
    assert ("--json" in options) is (path not in NO_DOCUMENT)


@pytest.mark.parametrize("name", COMMANDS)
def test_line_in_the_list_of_commands_is_one_sentence(name: str) -> None:
    line = COMMANDS[name]
    assert line[0].isupper()
    assert line.endswith(".")
    assert "\n" not in line


@each_command
def test_unknown_option_exits_2_in_one_line(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path, "--no-such-option"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fanoutfs: ")
    assert captured.err.count("\n") == 1


def _completions(words: str) -> set[str]:
    """Return what bash would be offered for the last of these words."""
    split = words.split(" ")
    done = subprocess.run(
        [sys.executable, "-m", "fanoutfs"],
        env={
            **os.environ,
            "_FANOUTFS_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(split) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return {line.partition(",")[2] for line in done.stdout.splitlines()}


def test_bash_completes_commands_and_options() -> None:
    assert _completions("fanoutfs inv") == {"invalidate"}
    assert {"install", "enable"} <= _completions("fanoutfs service ")
    assert {"--content", "--json", "--help"} <= _completions("fanoutfs invalidate --")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_FANOUTFS_COMPLETE" in capsys.readouterr().out


def _codes(kind: type[FanoutError]) -> set[int]:
    return {kind.exit_code}.union(*(_codes(each) for each in kind.__subclasses__()))


def test_exit_codes_are_all_documented() -> None:
    documented = {
        int(number)
        for number in re.findall(r"^\| (\d+) \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)
    }
    sources = (ROOT / "fanoutfs" / "cli").glob("*.py")
    in_commands = {
        int(number) for path in sources for number in re.findall(r"^EXIT_\w+: Final = (\d+)", path.read_text(), re.M)
    }
    assert _codes(FanoutError) | in_commands | {0, 130} <= documented

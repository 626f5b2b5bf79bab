"""The group of commands, how it is called by others (mount(8), fstab), and the edge where errors become one line."""

import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from fanoutfs import __version__
from fanoutfs.config.source import is_source
from fanoutfs.errors import FanoutError

COMMANDS: Final = {
    "mount": "Mount an object store on a directory.",
    "umount": "Unmount, and wait until the daemon has ended.",
    "import": "Learn all names below a path of a mount at once.",
    "drain": "Upload what is dirty now, and wait for it.",
    "warm": "Bring files and trees into the cache, or tell how much of them is there.",
    "evict": "Free the local bytes of files that the object store has.",
    "invalidate": "Forget what is known of names, and of content, and ask the object store again.",
    "pin": "Keep files in the cache: fetch them, and never evict them.",
    "unpin": "Let pinned files be evicted again.",
    "status": "Show the mounts, or what one of them is doing.",
    "info": "Tell in which tier files are, and why.",
    "tier": "Show and steer where bytes are: ls, du, explain, plan, push, restore, reload.",
    "config": "Show and check settings: flags, environment, files, profiles.",
    "service": "Install and enable mounts as systemd services.",
    "upgrade": "Go on with the installed version and the settings as they are now.",
    "top": "Watch a mount: throughput, hits, uploads, and which process waits for what.",
    "why": "Explain what slow requests of a path or a process waited for, and what to change.",
    "log": "Change a running mount's log level, or have it dump what it is doing.",
    "stats": "Show what a mount counted: traffic, latencies, requests saved and their price.",
    "doctor": "Check whether a mount would work here, and how well.",
    "plan": "Announce in which order files will be read.",
    "bench": "Measure a server: storm, cold, small, write, meta, against a baseline; eviction policies on traces.",
    "completion": "Print what makes a shell complete commands and options.",
    "version": "Show the version of fanoutfs and of what it is built on.",
}
"""Name (also of the module and of the function in it; `import_` for import) and the line shown by --help.

Help therefore imports no command."""

INTERRUPTED: Final = 130  # what shells report for SIGINT: 128 + 2


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = getattr(importlib.import_module(f"fanoutfs.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"fanoutfs {__version__}")
        context.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-V", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def commands() -> None:
    """fanoutfs mounts an object store: opens cost nothing, every byte is fetched once."""  # noqa: D403 - our name


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code.  Prints every error as one line and nothing else."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    program = os.path.basename(sys.argv[0]) if arguments is None else "fanoutfs"
    command = as_command(program, words)
    if command is None:
        return 0
    try:
        result = commands.main(command, prog_name="fanoutfs", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except FanoutError as error:
        return _fail(error, str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return _fail(error, error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:  # noqa: BLE001 - the edge where every error becomes a line and an exit code
        return _fail(error, f"{type(error).__name__}: {error} (FANOUTFS_DEBUG=1 shows where)", FanoutError.exit_code)


def as_command(program: str, words: list[str]) -> list[str] | None:
    """Turn the ways mount(8) calls a helper into our own command line; None for a mount that is only to be faked (-f).

    /sbin/mount.fanoutfs SOURCE DIR [-sfnv] [-N ns] [-o options] [-t type] (mount(8), external helpers), and
    `fanoutfs SOURCE DIR -o options`, which is how mount.fuse3 runs the file system type fuse.fanoutfs.
    """
    if not program.startswith("mount."):
        return ["mount", *words] if words and is_source(words[0]) else words
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in ("-N", "-t"):
            next(rest, None)
        elif word == "-o":
            kept += [word, next(rest, "")]
        elif word.startswith("-") and word != "--" and set(word[1:]) <= set("sfnvr"):
            kept += ["-o", "ro"] if "r" in word else []
            if "f" in word:
                return None
        else:
            kept.append(word)
    return ["mount", *kept]


def _fail(error: BaseException, message: str, code: int) -> int:
    if os.environ.get("FANOUTFS_DEBUG") == "1":
        import traceback  # noqa: PLC0415  and with it tokenize and linecache

        traceback.print_exception(error)
    line = " ".join(message.split())
    click.echo(f"fanoutfs: {os.fsencode(line).decode('utf-8', 'backslashreplace')}", err=True)
    return code

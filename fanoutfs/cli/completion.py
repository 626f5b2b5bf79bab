"""`fanoutfs completion`."""

import click
from click.shell_completion import get_completion_class


@click.command(epilog="""Example:  echo 'eval "$(fanoutfs completion bash)"' >> ~/.bashrc""")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete our commands and options; evaluate it in the shell's start-up file."""
    from fanoutfs.cli.app import commands  # noqa: PLC0415  it imports us

    kind = get_completion_class(shell)
    if kind is None:  # a shell that click itself knows
        raise AssertionError(shell)
    click.echo(kind(commands, {}, "fanoutfs", "_FANOUTFS_COMPLETE").source())

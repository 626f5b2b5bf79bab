"""The command line: one file per command, imported when it is used, so that `--version` and `status` start fast.

`main` is the only place where an error becomes text and an exit code: one line on stderr, the code of `errors.py`.
`app` holds the table of commands, `client` talks to a running daemon and may be used by anybody.
"""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (sys.argv by default) and return the exit code.  The entry point `fanoutfs`."""
    from fanoutfs.cli.app import run  # noqa: PLC0415  importing the package for its client must not import click

    return run(arguments)

"""What a command prints: text, or with `--json` one JSON document.  Errors stay one line on stderr and an exit code."""

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def json_option(function: _Command) -> _Command:
    """Give a command the option `--json`, as its argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="print one JSON document")(function)


def show(text: str) -> None:
    """Print; paths may hold bytes that are not UTF-8, which stdout would refuse."""
    click.echo(os.fsencode(text).decode("utf-8", "backslashreplace"))


def print_json(document: object) -> None:
    """Print one document."""
    show(json.dumps(document, indent=2))

"""What the commands share: the settings as options, exit codes, and how text that others wrote is printed."""

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import ArgumentCollection, Parameter
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..setting_errors import ENV_PREFIX, SettingsError
from ..settings import ChromaSettings, DataSettings, ServeSettings
from ..text import plain, shortened

FAILED, USAGE = 1, 2
MAX_NAME = 24
"""Characters of a split's name in a table."""

# None by default, so that no settings are made, and no environment read, before a command runs.
Data = Annotated[DataSettings | None, Parameter(name="*", group="Data")]
Chroma = Annotated[ChromaSettings | None, Parameter(name="*")]
Serve = Annotated[ServeSettings | None, Parameter(name="*", group="Service")]
Folder = Annotated[Path | None, Parameter(help="The same as --source-path.", show_env_var=False)]
Report = Annotated[Path | None, Parameter(show_env_var=False)]
AsJson = Annotated[bool, Parameter(name="--json", negative="", show_env_var=False)]


def data_of(folder: Path | None, data: DataSettings | None) -> DataSettings:
    """The settings, with the folder that was given by its place. Raises SettingsError when another one is given by its option."""
    data = data or DataSettings()
    if folder is None:
        return data
    by_variable = os.environ.get(f"{ENV_PREFIX}SOURCE_PATH") == str(data.source_path)
    if data.source_path not in (None, folder) and not by_variable:
        raise SettingsError(f"two folders are given, {str(folder)!r} and --source-path {str(data.source_path)!r}; leave one out")
    return replace(data, source_path=folder)


def commas(app: cyclopts.App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """For cyclopts: `--splits train,dev` and CPSTREAM_SPLITS=train,dev are two splits, as `--splits train dev` is."""
    for argument in arguments:
        if argument.name in ("--splits", "--labels", "--trusted-proxies"):
            parts = [(token, part.strip()) for token in argument.tokens for part in token.value.split(",")]
            argument.tokens[:] = [token.evolve(value=part, index=i) for i, (token, part) in enumerate(parts)]


def console(*, stderr: bool = False) -> Console:
    """A console that takes nothing in what it prints for markup."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def others(text: str, width: int | None = None) -> Text:
    """Text that others wrote: escaped, and cut in the middle where it takes more than `width` columns."""
    text = plain(text)
    if width is None:
        return Text(text)
    shown = shortened(text, width)
    while cell_len(shown) > width:  # some letters take two columns
        shown = shortened(text, len(shown) - 1)
    return Text(shown)


def table_of(title: str, first: str, *numbers: str) -> Table:
    """A table of a named thing a row, and numbers about it: folded where it is narrow, for half a number is a wrong one."""
    table = Table(first, title=Text(title), title_justify="left")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    return table


def say(message: str) -> None:
    """One line on stdout."""
    print(plain(message))  # noqa: T201


def complain(message: str) -> None:
    """One line on stderr, if it takes one: nobody is left to be told else."""
    with contextlib.suppress(OSError):
        print(f"cpstream: {plain(message)}", file=sys.stderr)  # noqa: T201


def failed(error: Exception, code: int = FAILED) -> int:
    """Say what is wrong. Returns the exit code."""
    complain(str(error))
    return code

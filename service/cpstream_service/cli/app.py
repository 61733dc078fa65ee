"""The command line. Every option of a command is a field of DataSettings or ServeSettings, and a CPSTREAM_* variable.

Exit codes: 0 done, 1 the data or the service asked is at fault, 2 the command itself is wrong, 3 the address cannot be had.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib.metadata import version
from typing import Annotated, NoReturn

import cyclopts
from cyclopts import Parameter
from cyclopts.config import Env
from rich.console import Console

from cpstream_client.errors import CpstreamError

from ..errors import AlignmentError, DataError
from ..settings import DataSettings, ServeSettings, SettingsError
from . import ask
from .check import check, print_reports
from .ingest import ingest

FAILED, USAGE = 1, 2
ENV_PREFIX = "CPSTREAM_"
_CLIENT_VARIABLES = (f"{ENV_PREFIX}URL",)

app = cyclopts.App(
    name="cpstream",
    help="Serve speech embeddings aligned with their speech rate (CPS) to remote PyTorch trainers.\n\n"
    "Every option can be given by an environment variable, too: `--source-path` is `CPSTREAM_SOURCE_PATH`.",
    help_epilogue="Start with: `cpstream serve --source-path FOLDER`, where FOLDER holds numpy_embs.npy and the CPS tables.",
    help_format="markdown",
    version=version("cpstream"),
    config=Env(ENV_PREFIX, command=False),
    default_parameter=Parameter(negative_iterable=()),
)
_DATA = DataSettings()
_SERVE = ServeSettings()
Data = Annotated[DataSettings, Parameter(name="*", group="Data")]


@app.command
def serve(*, data: Data = _DATA, settings: Annotated[ServeSettings, Parameter(name="*", group="Service")] = _SERVE) -> int:
    """Align the data, then serve it over HTTP until SIGTERM or Ctrl-C.

    Bad data stops the start with a message and exit code 1, an address in use with exit code 3.

    **Examples**

    ```
    cpstream serve --source-path data/processed/embeddings
    cpstream serve --source-path data --cps-csv 'tables/{split}.csv' --path-column path --workers 2
    cpstream serve --source-type chromadb --chroma-host chroma --cps-csv 'data/{split}_cps.csv'
    CPSTREAM_TOKEN=secret CPSTREAM_PORT=9000 cpstream serve --source-path data
    ```
    """
    from ..serve import CANNOT_START, CannotStart
    from ..serve import serve as serve_until_signal

    try:
        return serve_until_signal(data, settings)
    except CannotStart as error:
        return failed(error, CANNOT_START)
    except AlignmentError as error:
        print_reports(error.reports, Console(stderr=True))
        return failed(error)


for command in (check, ingest, ask.info, ask.plan):
    app.command(command)


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit code. What is the user's to mend is said in one line on stderr."""
    for name, remedy in unknown_variables(os.environ).items():
        complain(f"warning: the environment variable {name} is none of cpstream's; {remedy}")
    try:
        code = app(arguments, result_action="return_int_as_exit_code_else_zero")
    except SettingsError as error:
        code = failed(error, USAGE)
    except (DataError, CpstreamError) as error:
        code = failed(error)
    sys.exit(code)


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """CPSTREAM_* variables that no setting has, each with what to do about it: a mistyped one would be ignored in silence."""
    known = [ENV_PREFIX + spec.name.upper() for settings in (DataSettings, ServeSettings) for spec in fields(settings)]
    return {
        name: f"did you mean {', '.join(get_close_matches(name, known, n=1)) or 'one of those in docs/operations.md'}?"
        for name in environment
        if name.startswith(ENV_PREFIX) and name not in (*known, *_CLIENT_VARIABLES)
    }


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"cpstream: {message}", file=sys.stderr)  # noqa: T201


def failed(error: Exception, code: int = FAILED) -> int:
    complain(str(error))
    return code

"""The command line. Every option of a command is a field of DataSettings or ServeSettings, and a CPSTREAM_* variable.

Exit codes: 0 done, 1 the data or the service asked is at fault, 2 the command itself is wrong, 3 the address cannot be had.
"""

import json
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

from cpstream_client import Client, Retry
from cpstream_client.errors import CpstreamError
from cpstream_client.plan import Remainder, Shuffle
from cpstream_client.wire import BatchQuery, PlanStep

from .check import check, print_reports
from .errors import AlignmentError, DataError
from .ingest import ingest
from .settings import DataSettings, ServeSettings, SettingsError

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
    from .serve import CANNOT_START, CannotStart
    from .serve import serve as serve_until_signal

    try:
        return serve_until_signal(data, settings)
    except CannotStart as error:
        return failed(error, CANNOT_START)
    except AlignmentError as error:
        print_reports(error.reports, Console(stderr=True))
        return failed(error)


app.command(check)
app.command(ingest)


@app.command
def info(url: str = "http://localhost:8000", *, token: str | None = None) -> int:
    """Print the splits of a running service as a table.

    **Examples**

    ```
    cpstream info
    cpstream info http://data:8000
    CPSTREAM_TOKEN=secret cpstream info http://data:8000
    ```

    Parameters
    ----------
    url
        Where the service is.
    token
        Bearer token, where the service has one.
    """
    from .info import splits_table

    with _client(url, token) as client:
        Console().print(splits_table(client.splits()))
    return 0


@app.command
def plan(
    url: str,
    split: str,
    *,
    step: int = 0,
    batch_size: int = 256,
    shuffle: Shuffle = "none",
    seed: int = 0,
    epoch: int = 0,
    world_size: int = 1,
    remainder: Remainder = "pad",
    drop_last: bool = False,
    start: int = 0,
    fingerprint: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    token: str | None = None,
) -> int:
    """Print which samples every rank got, or will get, at one step of an epoch: the recordings behind a loss spike.

    Give what the training script gave to its dataset.

    **Examples**

    ```
    cpstream plan http://data:8000 train --step 1234 --batch-size 32 --shuffle uniform --seed 7 --epoch 3
    cpstream plan http://data:8000 train --step 0 --batch-size 32 --world-size 8 --start 25600 --json
    ```

    Parameters
    ----------
    url
        Where the service is.
    split
        Name of the split.
    step
        Step of the epoch, counted from --start.
    batch_size
        Samples in a batch of one rank.
    shuffle
        Order of the epoch: none, uniform (what shuffle=True is in Python), or blocks.
    seed
        Seed of the permutation.
    epoch
        Epoch, from 0 on.
    world_size
        Number of ranks.
    remainder
        What happens when the ranks do not divide the samples.
    drop_last
        Whether a short last batch is left out.
    start
        Samples of the epoch that all ranks together had consumed before step 0.
    fingerprint
        Of the data that the training had, as its state has it; other data is refused.
    as_json
        Print the service's JSON instead of a table.
    token
        Bearer token, where the service has one.
    """
    from .info import plan_table

    query = BatchQuery(
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        world_size=world_size,
        remainder=remainder,
        drop_last=drop_last,
        start=start,
        fingerprint=fingerprint,
    )
    with _client(url, token) as client:
        audit = client.plan(split, step, query)
    if as_json:
        print(json.dumps(audit, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        Console().print(plan_table(PlanStep.from_json(audit)))
    return 0


def _client(url: str, token: str | None) -> Client:
    """A client that says at once when it gets no answer: here, a person is waiting."""
    return Client(url, token=token, retry=Retry(timeout_s=0, contact_timeout_s=0))


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

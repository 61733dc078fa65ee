"""The command line. Every option of a command is a field of DataSettings or ServeSettings, and a CPSTREAM_* variable.

Exit codes: 0 done, 1 the data or the service asked is at fault, 2 the command itself is wrong, 3 the address cannot be had.
"""

import errno
import os
import signal
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import version
from typing import NoReturn

import cyclopts
from cyclopts import CycloptsError, Parameter, UnusedCliTokensError
from cyclopts.config import Env
from pydantic import ValidationError

from cpstream_client.errors import CpstreamError

from ..errors import DataError
from ..setting_errors import ENV_PREFIX, SettingsError, sentence
from .ask import info, plan
from .check import check
from .common import FAILED, USAGE, commas, complain, failed
from .doctor import doctor
from .ingest import ingest
from .prepare import prepare
from .serve import serve

app = cyclopts.App(
    name="cpstream",
    help="Serve speech embeddings aligned with their speech rate (CPS) to remote PyTorch trainers.\n\n"
    "Every option can be given by an environment variable, too: `--source-path` is `CPSTREAM_SOURCE_PATH`.",
    help_epilogue="Start with: `cpstream serve FOLDER`, where FOLDER holds numpy_embs.npy and the CPS tables.",
    help_format="markdown",
    version=version("cpstream"),
    config=[Env(ENV_PREFIX, command=False), commas],
    default_parameter=Parameter(negative_iterable=(), consume_multiple=(1, None)),
)
_CANNOT_PRINT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
COMMANDS = (serve, check, prepare, ingest, info, plan, doctor)
for command in COMMANDS:
    app.command(command)
app.register_install_completion_command(help="Have the shell complete cpstream's commands and options, from its next start on.")


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit code. What is the user's to mend is said in one line on stderr."""
    for name, remedy in unknown_variables(os.environ).items():
        complain(f"warning: the environment variable {name} is none of cpstream's; {remedy}")
    try:
        code = _run(arguments)
    except BrokenPipeError:  # whoever reads our output, `head` for example, has enough
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None and error.errno not in _CANNOT_PRINT:
            raise
        complain(f"{error.filename or 'standard output'}: {error.strerror}; check the path, its permissions and its disk")
        code = FAILED
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    else:
        sys.exit(code)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be printed
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
    try:
        code: int = app(arguments, result_action="return_int_as_exit_code_else_zero", exit_on_error=False, print_error=False)
    except CycloptsError as error:
        complain(misuse(error))
        code = USAGE
    except SettingsError as error:
        code = failed(error, USAGE)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("cpstream"):
            raise
        complain(f"missing {error.name}; run: pip install 'cpstream[service]'")
        code = FAILED
    except (DataError, CpstreamError) as error:
        code = failed(error)
    sys.stdout.flush()
    return code


def misuse(error: CycloptsError) -> str:
    """What is wrong with a command, and where to read how it is right."""
    cause, help_line = error.__cause__, " ".join(["cpstream", *(error.command_chain or ()), "--help"])
    if isinstance(cause, ValidationError):
        return sentence(cause)
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{error.unused_tokens[0]!r} stands where nothing more is expected; see {help_line}"
    text = str(error).rstrip(".")
    return f"{text} See {help_line}" if text.endswith("?") else f"{text}; see {help_line}"


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """CPSTREAM_* variables that no option has, each with what to do about it: a mistyped one would be ignored in silence."""
    given = [name for name in environment if name.startswith(ENV_PREFIX)]
    known = variables() if given else frozenset()
    return {
        name: f"did you mean {', '.join(get_close_matches(name, known, n=1)) or 'one of those in docs/operations.md'}?"
        for name in given
        if name not in known
    }


def variables() -> frozenset[str]:
    """The variables of all options of all commands."""
    arguments = (argument for command in COMMANDS for argument in app[command.__name__].assemble_argument_collection())
    return frozenset(
        ENV_PREFIX + argument.name.lstrip("-").upper().replace("-", "_")
        for argument in arguments
        if argument.name.startswith("--") and argument.parameter.show_env_var is not False
    )

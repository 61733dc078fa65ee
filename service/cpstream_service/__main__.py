"""The command `cpstream`, also as `python -m cpstream_service`."""

import io
import os
import signal
import sys
from importlib.util import find_spec

_NEEDED = ("cyclopts", "rich")
"""Of every command, `info` and `plan` on a training machine included; cli/app.py says what the others lack."""


def main() -> None:
    """Run the command line; without what it needs, say what to install."""
    _open_standard_streams()
    # As process 1 of a container, SIGTERM would be ignored until somebody handles it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(f"cpstream: missing {', '.join(missing)}; run: pip install 'cpstream[cli]'", file=sys.stderr)  # noqa: T201
        raise SystemExit(1)
    try:
        from .cli.app import run

        run()
    except KeyboardInterrupt:  # while it is still being imported
        sys.exit(128 + signal.SIGINT)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(signal.getsignal(number)):  # a Python function would only interrupt what ends the interpreter
                signal.signal(number, signal.SIG_DFL)


def _open_standard_streams() -> None:
    """Put /dev/null where the caller has closed a stream: the next file to be opened would get its number, and what is printed.

    What a stream's encoding lacks is printed as an escape.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
        if mode == "w" and isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()

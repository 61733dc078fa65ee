"""The command `cpstream`, also as `python -m cpstream_service`."""

import signal
import sys
from importlib.util import find_spec

_NEEDED = ("cyclopts", "rich")
"""Of every command, `info` and `plan` on a training machine included; cli/app.py says what the others lack."""


def main() -> None:
    """Run the command line; without what it needs, say what to install."""
    # As process 1 of a container, SIGTERM would be ignored until somebody handles it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(f"cpstream: missing {', '.join(missing)}; run: pip install 'cpstream[cli]'", file=sys.stderr)  # noqa: T201
        raise SystemExit(1)
    from .cli.app import run

    run()


if __name__ == "__main__":
    main()

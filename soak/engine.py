"""A Docker Engine and its Compose, by their command lines."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_S = 120.0


class EngineError(Exception):
    """A command failed, or what was waited for did not come."""


def output(*command: str, **environment: str) -> str:
    """What a command prints, run in the root of the tree. Raises EngineError with the last of what it said."""
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def answers(command: Sequence[str]) -> bool:
    """Whether there is such a program, and it runs."""
    return shutil.which(command[0]) is not None and not subprocess.run(command, capture_output=True, timeout=60).returncode


def has_engine() -> bool:
    return answers(["docker", "info"])


def compose_command() -> list[str]:
    """The plugin, or else the older program; empty where there is neither."""
    return next((words for words in (["docker", "compose"], ["docker-compose"]) if answers([*words, "version"])), [])


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_S) -> None:
    """Raises EngineError when it takes longer."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise EngineError(f"after {seconds:.0f} s still not {what}")
        time.sleep(0.1)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as reply:
            return json.load(reply)["status"] == "ready"
    except OSError:
        return False

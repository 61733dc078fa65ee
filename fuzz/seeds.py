"""The seeds of a target, made in a process of their own: what forks workers shall have no threads."""

import pickle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .target import Target


def prepared(target: Target, folder: Path) -> Any:
    """What the target's prepare returns."""
    seeds, into = folder / f"{target.name}-seeds", folder / f"{target.name}.pickle"
    seeds.mkdir(exist_ok=True)
    process = get_context("spawn").Process(target=_prepare, args=(target, seeds, into))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the seeds of {target.name} could not be made; the traceback is above")
    with into.open("rb") as file:
        return pickle.load(file)


def _prepare(target: Target, folder: Path, into: Path) -> None:
    into.write_bytes(pickle.dumps(target.prepare(folder)))

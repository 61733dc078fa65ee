"""Target `snapshot`: one file of a snapshot folder is altered; it opens with the content that was written, or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from cpstream_service.settings import DataSettings
from cpstream_service.snapshot.half import half_precision
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Snapshot, SnapshotInvalid, open_snapshot

from .mutate import mutated
from .tables import PATHS, ROWS, prepare_csv
from .target import Target, WrongError, check_message, labelled, parted

DIM = 8
_KEY = "KEY"
_REBUILT = 0.02
"""Share of the altered ones from which a whole start is made: it takes 50 times as long as opening."""


@dataclass(frozen=True)
class State:
    """A source with its snapshots, to be copied by each worker. files: of the snapshot, relative to the snapshots' folder."""

    folder: Path
    files: list[str]
    key: str


def _settings(folder: Path) -> DataSettings:
    return DataSettings(source_path=folder / "source", snapshot_dir=folder / "snapshots", labels=("pitch",))


def prepare(folder: Path) -> State:
    source = folder / "source"
    source.mkdir()
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIM), dtype=np.float32)
    splits = {
        name: [{"embedding": v, "file_path": p} for v, p in zip(vectors, PATHS, strict=True)][: ROWS - i]
        for i, name in enumerate(("train", "d v"))
    }
    np.save(source / "numpy_embs.npy", splits, allow_pickle=True)  # type: ignore[arg-type]
    table = next(content for variant, content in prepare_csv(folder) if variant == "labels" and b"pitch" in content)
    for name in splits:
        (source / f"{name}_cps.csv").write_bytes(table)
    snapshot = load(_settings(folder)).snapshot
    for split in snapshot.splits.values():
        half_precision(split)
    root = folder / "snapshots"
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.stat().st_size)
    return State(folder, files, snapshot.path.name)


class _Snapshots:
    def __init__(self, state: State, folder: Path) -> None:
        shutil.copytree(state.folder, folder, dirs_exist_ok=True)
        self._root, self._key, self._settings = folder / "snapshots", state.key, _settings(folder)
        self._contents = {name: (self._root / name).read_bytes() for name in state.files}
        self._seeds = list(self._contents.values())
        self._truth = _content(open_snapshot(self._root / self._key))

    def draw(self, random: Random) -> bytes:
        name = random.choice(list(self._contents))
        start = "start" if random.random() < _REBUILT else "open"
        # The key is another one where the source lies elsewhere.
        return labelled(f"{start} {name.replace(self._key, _KEY)}", mutated(self._contents[name], random, self._seeds))

    def accepts(self, data: bytes) -> bool:
        label, content = parted(data)
        how, name = label.replace(_KEY, self._key).split(" ", 1)
        _put(self._root / name, content)
        try:
            if how == "start":
                self._same(load(self._settings).snapshot)
            snapshot = open_snapshot(self._root / self._key)
            self._same(snapshot)
            if "float16" in name:
                for split in snapshot.splits.values():
                    if half_precision(split).tobytes() != np.array(split.embeddings, np.float16).tobytes():
                        raise WrongError(f"the float16 copy of {split.name} was altered, and is served")
        except SnapshotInvalid as error:
            check_message(error)
            return False
        finally:
            self._restore(name)
        return True

    def _same(self, snapshot: Snapshot) -> None:
        if _content(snapshot) != self._truth:
            raise WrongError("the snapshot was altered, and opens with other content")

    def _restore(self, name: str) -> None:
        for path in self._root.iterdir():  # what was rebuilt, and what stood in its place
            if path.name.startswith(".writing-"):
                shutil.rmtree(path)
        for each, content in self._contents.items():
            path = self._root / each
            if each == name or not path.exists() or path.stat().st_size != len(content):
                _put(path, content)


def _put(path: Path, content: bytes) -> None:
    """As another file: what is mapped of the old one stays as it is."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _content(snapshot: Snapshot) -> Any:
    return snapshot.fingerprint, {
        name: (
            split.name,
            split.fingerprint,
            split.embeddings.shape,
            split.embeddings.dtype.str,
            np.ascontiguousarray(split.embeddings).tobytes(),
            split.cps.dtype.str,
            split.cps.tobytes(),
            split.file_paths.to_pylist(),
            {label: values.tobytes() for label, values in split.labels.items()},
            split.info,
            split.report,
        )
        for name, split in snapshot.splits.items()
    }


@contextmanager
def start(state: State, folder: Path) -> Iterator[_Snapshots]:
    yield _Snapshots(state, folder)


TARGET = Target("snapshot", prepare, start)

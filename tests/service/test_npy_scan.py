"""Large files: the embeddings stay where they lie, and every row is the one that the unpickler reads."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import cps_of, make_rows, make_settings, npy_bytes, npy_of, write_cps

from cpstream_service.align.splits import align_all
from cpstream_service.errors import AlignmentError, DataError
from cpstream_service.snapshot import load as snapshot_load
from cpstream_service.snapshot.load import load
from cpstream_service.sources import npy_content, npy_scan
from cpstream_service.sources.file_rows import FileRows
from cpstream_service.sources.npy import read_npy

read_here = partial(read_npy, apart=False)


def rows(count: int = 2500, dimension: int = 96, **options: Any) -> list[dict[str, Any]]:
    return make_rows(count, dimension, **options)


def renamed(names: list[str]) -> list[dict[str, Any]]:
    made = rows(len(names))
    return [row | {"file_path": name} for row, name in zip(made, names, strict=True)]


SCANNED: dict[str, Any] = {
    "one split": {"train": rows()},
    "three splits": {"train": rows(), "dev": rows(40, seed=1, folder="dev"), "test": rows(1001, seed=2, folder="test")},
    "a small split first": {"dev": rows(7), "train": rows(seed=1)},
    "an empty split": {"train": rows(), "dev": [], "test": rows(5, folder="x")},
    "a dict in an array": np.array([{"train": rows()}]),
    "path first": {"train": [{"file_path": row["file_path"], "embedding": row["embedding"]} for row in rows()]},
    "shape (1, D)": {"train": [row | {"embedding": row["embedding"][None]} for row in rows()]},
    "further values": {
        "train": [row | {"seconds": i / 7, "kind": "read", "good": True, "no": None} for i, row in enumerate(rows())]
    },
    "paths of other scripts": {"train": renamed([f"Дети/{i}/名.wav" for i in range(2500)])},
    "long paths": {"train": renamed(["d/" * 200 + f"{i}.wav" for i in range(2500)])},
    "large rows": {"train": rows(60, 20_000)},
}
"""What is large enough, and of the usual kind or nearly so."""

NOT_SCANNED: dict[str, Any] = {
    "paths like opcodes": {"train": renamed([f"a/\x94u}}\x94(e{i}\x95.wav" for i in range(2500)])},
    "one row of another dimension": {"train": [*rows(1300), *make_rows(1, 95), *rows(1300, seed=1, folder="b")]},
    "lists": {"train": rows(300, 600, as_list=True)},
    "float64": {"train": [row | {"embedding": row["embedding"].astype("f8")} for row in rows()]},
    "big-endian": {"train": [row | {"embedding": row["embedding"].astype(">f4")} for row in rows()]},
    "text that differs": {"train": [row | {"speaker": f"speaker {i}"} for i, row in enumerate(rows())]},
    "text that comes again": {"train": [row | {"speaker": ("a", "b")[i % 2]} for i, row in enumerate(rows())]},
    "one array twice": {"train": [*rows(1200), rows(1)[0] | {"embedding": (one := rows(1))[0]["embedding"]}, *one, *rows(1400)]},
    "a flat list": [row | {"split": "train" if i < 2000 else "dev"} for i, row in enumerate(rows())],
    "no path": {"train": renamed([f"{i}.wav" if i != 2000 else "./" for i in range(2500)])},
    "a row that is none": {"train": [*rows(1300), None, *rows(1200)]},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", SCANNED | NOT_SCANNED)
def test_every_row_is_that_of_the_unpickler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, protocol: int) -> None:
    content = (SCANNED | NOT_SCANNED)[name]
    path = tmp_path / "numpy_embs.npy"
    whole = content if isinstance(content, np.ndarray) else np.array(None)
    if whole is not content:
        whole[()] = content
    path.write_bytes(npy_bytes(pickle.dumps(whole, protocol)))
    assert path.stat().st_size > npy_scan.LEAST_BYTES
    scanned = read_here(path)
    monkeypatch.setattr(npy_content, "LEAST_BYTES", 1 << 60)
    expected = read_here(path)
    assert list(scanned) == list(expected)
    for split, ours in scanned.items():
        assert ours.file_paths == expected[split].file_paths
        assert ours.problems == expected[split].problems
        assert ours.embeddings.shape == expected[split].embeddings.shape
        np.testing.assert_array_equal(ours.embeddings, expected[split].embeddings)
    if name in SCANNED and protocol in (3, 4):  # those of np.save
        assert all(isinstance(each.embeddings, FileRows) for each in scanned.values() if each.file_paths)
    if name in NOT_SCANNED and protocol == 4:
        assert not any(isinstance(each.embeddings, FileRows) for each in scanned.values())


def written(folder: Path) -> Path:
    """A source whose rows stay in the file."""
    folder.mkdir(exist_ok=True)
    (folder / "numpy_embs.npy").write_bytes(npy_of({"train": rows()}))
    write_cps(folder / "train_cps.csv", cps_of(rows()))
    return folder


def test_the_process_that_reads_hands_over_places(tmp_path: Path) -> None:
    embeddings = read_npy(written(tmp_path) / "numpy_embs.npy")["train"].embeddings
    expected = np.array([row["embedding"] for row in rows()])
    assert isinstance(embeddings, FileRows)
    assert (embeddings.shape, len(embeddings)) == (expected.shape, len(expected))
    np.testing.assert_array_equal(embeddings, expected)
    np.testing.assert_array_equal(embeddings[-1], expected[-1])
    np.testing.assert_array_equal(embeddings[7:4000], expected[7:4000])
    for order in (np.random.default_rng(0).permutation(2500), np.array([3, 0, 3]), np.array([], np.int64), np.arange(2499, -1, -1)):
        np.testing.assert_array_equal(embeddings[order], expected[order])


UNSOUND = {"nan": np.nan, "infinity": np.inf, "zeros": 0.0, "a square beyond float32": 3e30, "squares that vanish": 1e-30}


@pytest.mark.parametrize("kind", UNSOUND)
def test_rows_that_were_taken_for_sound_are_looked_at_before_they_are_served(tmp_path: Path, kind: str) -> None:
    """Where both sides are whole, rows of a file are judged when they are written: then the split is aligned again."""
    made = {"train": rows(), "dev": rows(40, seed=1, folder="dev") + rows(1)}
    for split, i in (("train", 0), ("train", 1700), ("dev", 39)):
        row = np.ones(96, np.float32) if np.isinf(UNSOUND[kind]) else np.full(96, UNSOUND[kind], np.float32)
        row[-1] = UNSOUND[kind]  # one number is enough
        made[split][i]["embedding"] = row
    (tmp_path / "numpy_embs.npy").write_bytes(npy_of(made))
    for split, of_split in made.items():
        write_cps(tmp_path / f"{split}_cps.csv", cps_of(of_split))
    settings = make_settings(tmp_path, splits=("train", "dev"))
    expected = align_all(settings)
    assert all(isinstance(split.source, FileRows) for split in expected)
    snapshot = load(settings).snapshot
    for split in expected:
        served = snapshot.splits[split.name]
        assert served.report == split.report
        assert split.report.leaks or kind in ("nan", "infinity"), "the first row of train is one of dev"
        np.testing.assert_array_equal(served.embeddings, split.embeddings)
        np.testing.assert_array_equal(served.cps, split.cps)
    lost = 2 if kind in ("nan", "infinity") else 0
    assert (len(snapshot.splits["train"].cps), len(snapshot.splits["dev"].cps)) == (2500 - lost, 41 - lost // 2)
    warned = [warning.count for warning in snapshot.splits["train"].report.warnings if warning.reason == "zero-embedding"]
    assert warned == ([2] if kind == "zeros" else [])
    assert [path.name for path in settings.snapshot_dir.iterdir() if path.name.startswith((".writing", ".lock"))] == []


def test_strict_refuses_rows_that_were_taken_for_sound(tmp_path: Path) -> None:
    made = rows()
    made[7]["embedding"] = np.full(96, np.nan, np.float32)
    (tmp_path / "numpy_embs.npy").write_bytes(npy_of({"train": made}))
    write_cps(tmp_path / "train_cps.csv", cps_of(made))
    settings = make_settings(tmp_path, strict=True)
    with pytest.raises(AlignmentError, match="non-finite"):
        load(settings)
    assert list(settings.snapshot_dir.glob("*/manifest.json")) == []


def change(path: Path, how: str) -> None:
    with path.open("r+b") as file:
        if how == "cut":
            file.truncate(500_000)
        else:
            file.seek(500_000)
            file.write(bytes(100))


@pytest.mark.parametrize("how", ["written over", "cut"])
def test_a_file_that_changes_while_its_rows_are_read_is_named(tmp_path: Path, how: str) -> None:
    path = written(tmp_path) / "numpy_embs.npy"
    embeddings = read_npy(path)["train"].embeddings
    change(path, how)
    with pytest.raises(DataError, match=r"numpy_embs.npy changed while it was read; start again when it is complete"):
        embeddings[:]


@pytest.mark.parametrize("how", ["written over", "cut"])
def test_rows_that_change_before_they_are_in_the_snapshot_are_never_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    source = written(tmp_path / "source")
    write: Callable[..., Path] = snapshot_load.write_snapshot  # type: ignore[attr-defined]

    def changed_first(*arguments: Any, **options: Any) -> Path:
        change(source / "numpy_embs.npy", how)
        return write(*arguments, **options)

    monkeypatch.setattr(snapshot_load, "write_snapshot", changed_first)
    settings = make_settings(source)
    with pytest.raises(DataError, match=r"numpy_embs.npy .*while it was read; start again when it is complete"):
        load(settings)
    assert list(settings.snapshot_dir.glob("*/manifest.json")) == []

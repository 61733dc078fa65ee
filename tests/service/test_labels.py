"""Further labels: numeric columns of wherever the rates are, served by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import DEMO_DATA
from data import cps_of, make_rows, make_settings, write_cps, write_npy

from cpstream_service.dataset import RegressionEmbeddingsDataset
from cpstream_service.errors import DataError
from cpstream_service.setting_errors import SettingsError
from cpstream_service.settings import DataSettings
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Split

ROWS = make_rows(5)
PATHS = [row["file_path"] for row in ROWS]
TABLE = [
    {"audio_path": path, "cps": 5.0 + i, "pitch": 100.5 + i, "speaker_rate": value}
    for i, (path, value) in enumerate(zip(PATHS, [1.5, None, "fast", float("inf"), -2], strict=True))
]
PITCH = np.array([100.5 + i for i in range(5)], np.float32)
SPEAKER_RATE = np.array([1.5, np.nan, np.nan, np.nan, -2], np.float32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_npy(tmp_path / "source", {"train": ROWS})
    write_table(tmp_path / "source", "csv")
    return tmp_path / "source"


def write_table(folder: Path, kind: str, rows: list[dict[str, Any]] = TABLE) -> None:
    path = folder / "train_cps.csv"
    if kind == "json":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        frame = pd.DataFrame(rows)
        frame.assign(
            speaker_rate=frame["speaker_rate"].map(lambda value: value if isinstance(value, (int, float)) else None)
        ).to_parquet(path)
    elif kind == "source":
        write_npy(folder, {"train": [row | said for row, said in zip(ROWS, rows, strict=True)]})
    else:
        separator = {"csv": ",", "tsv": "\t", "semicolon": ";"}[kind]
        write_cps(
            path, [tuple("" if value is None else value for value in row.values()) for row in rows], tuple(rows[0]), separator
        )


def train(settings: DataSettings) -> Split:
    return load(settings).snapshot.splits["train"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "json", "parquet", "source"])
def test_labels_of_every_kind_of_table(source: Path, kind: str) -> None:
    write_table(source, kind)
    settings = make_settings(source, labels=("speaker_rate", "pitch"), cps_from="source" if kind == "source" else "table")
    split = train(settings)
    assert split.info.labels == ("speaker_rate", "pitch")
    np.testing.assert_array_equal(split.labels["pitch"], PITCH)
    np.testing.assert_array_equal(split.labels["speaker_rate"], SPEAKER_RATE)
    assert {values.dtype for values in split.labels.values()} == {np.dtype("f4")}
    np.testing.assert_array_equal(split.cps, [5, 6, 7, 8, 9])
    (warning,) = [entry for entry in split.report.warnings if entry.reason == "missing-label"]
    assert (warning.count, warning.examples[0], split.report.num_dropped) == (3, f"speaker_rate: {PATHS[1]}", 0)


def test_labels_go_with_their_rows(source: Path) -> None:
    write_cps(
        source / "train_cps.csv", [(path, 5, i) for i, path in reversed(list(enumerate(PATHS)))][1:], ("audio_path", "cps", "i")
    )
    split = train(make_settings(source, labels=("i",)))
    assert split.file_paths.to_pylist() == PATHS[:4]
    np.testing.assert_array_equal(split.labels["i"], range(4))


def test_a_decimal_comma(source: Path) -> None:
    write_cps(source / "train_cps.csv", [(path, "5,5", "1,25") for path in PATHS], ("audio_path", "cps", "pitch"), ";")
    np.testing.assert_array_equal(train(make_settings(source, labels=("pitch",))).labels["pitch"], [1.25] * 5)


def test_rows_of_one_path_with_other_labels_conflict(source: Path) -> None:
    write_table(source, "csv", [*TABLE, TABLE[0] | {"pitch": 7}, TABLE[1]])
    assert train(make_settings(source)).info.num_samples == 5
    split = train(make_settings(source, labels=("pitch", "speaker_rate")))
    assert split.file_paths.to_pylist() == PATHS[1:]
    assert {entry.reason: entry.count for entry in split.report.dropped if entry.side == "cps"} == {
        "conflicting-duplicate": 2,
        "identical-duplicate": 1,
    }


def test_labels_are_part_of_the_fingerprint_and_verified(source: Path) -> None:
    settings = make_settings(source, labels=("pitch",))
    prints = [train(make_settings(source)).fingerprint, train(settings).fingerprint]
    prints.append(train(replace(settings, labels=("pitch", "speaker_rate"))).fingerprint)
    write_table(source, "csv", [row | {"pitch": row["pitch"] + 1} for row in TABLE])
    changed = load(settings)
    prints.append(changed.snapshot.fingerprint)
    assert len(set(prints)) == 4
    path = changed.snapshot.path / "train" / "label-pitch.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = load(settings)
    assert again.notes[0].startswith("rebuilding a snapshot: ")
    assert again.snapshot.fingerprint == changed.snapshot.fingerprint


def test_without_labels_the_fingerprint_is_what_it_was(tmp_path: Path) -> None:
    settings = DataSettings(source_path=DEMO_DATA, snapshot_dir=tmp_path)
    assert load(settings).snapshot.fingerprint == "84552c6848bcfba596ab9dc98f7b4aa1"


def test_the_local_twin(source: Path) -> None:
    twin = RegressionEmbeddingsDataset(source, "train", labels=("speaker_rate", "pitch"))
    np.testing.assert_array_equal(twin.extra_labels["pitch"], PITCH)
    np.testing.assert_array_equal(twin.extra_labels["speaker_rate"], SPEAKER_RATE)
    assert RegressionEmbeddingsDataset(source, "train").extra_labels == {}


@pytest.mark.parametrize(
    "name", ["cps", "embedding", "index", "file_path", "a,b", "a b", "", "1st", "ä", "embeddings", "File_Path"]
)
def test_a_name_that_is_none(source: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"labels holds .*; each must be of letters, digits and _, once, and not like any of"):
        make_settings(source, labels=(name,))
    with pytest.raises(SettingsError, match="labels holds 'pitch'"):
        make_settings(source, labels=("pitch", "pitch"))


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "source"])
def test_a_label_that_is_missing(source: Path, kind: str) -> None:
    write_table(source, kind)
    with pytest.raises(DataError, match=r"'pitsch' is missing; .*; rename (it|the column) or set --labels"):
        load(make_settings(source, labels=("pitsch",), cps_from="source" if kind == "source" else "table"))


def test_two_splits_each_have_theirs(source: Path) -> None:
    rows = {"train": ROWS, "dev": make_rows(2, seed=1, folder="dev")}
    write_npy(source, rows)
    table = [(path, cps, cps * 2) for split in rows.values() for path, cps in cps_of(split)]
    write_cps(source / "all.csv", table, ("audio_path", "cps", "twice"))
    for split in load(make_settings(source, cps_csv="all.csv", labels=("twice",))).snapshot.splits.values():
        np.testing.assert_array_equal(split.labels["twice"], split.cps * 2)

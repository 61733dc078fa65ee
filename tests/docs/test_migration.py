"""docs/migration.md: the snippets of the original class run as they stand, on every file that its family of scripts writes."""

import re
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from data import cps_of, make_rows, write_cps, write_npy

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
NPY, CHROMA = re.findall(r"<!-- test: migration -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)

SPLITS = {"train": make_rows(70), "dev": make_rows(5, seed=1)}
FLAT = [row | {"split": split} for split, rows in SPLITS.items() for row in rows]
SHAPES: dict[str, Any] = {
    "dict": SPLITS,
    "dict of lists of numbers": {
        split: [row | {"embedding": row["embedding"].tolist()} for row in rows] for split, rows in SPLITS.items()
    },
    "array of one dict": np.array([SPLITS]),
    "flat list": FLAT,
    "rows of shape (1, D)": {
        split: [row | {"embedding": row["embedding"][None]} for row in rows] for split, rows in SPLITS.items()
    },
    "nested lists": np.array(
        [{split: [row | {"embedding": [row["embedding"].tolist()]} for row in rows] for split, rows in SPLITS.items()}]
    ),
}


@pytest.fixture
def processed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data" / "processed"
    folder.mkdir(parents=True)
    write_cps(folder / "train_cps.csv", cps_of(SPLITS["train"]))
    monkeypatch.chdir(tmp_path)
    return folder


def check(code: str) -> None:
    names: dict[str, Any] = {}
    exec(code, names)
    dataset = names["dataset"]
    assert dataset.filenames == [row["file_path"] for row in SPLITS["train"]]
    np.testing.assert_array_equal(dataset.audio_data, [row["embedding"] for row in SPLITS["train"]])
    np.testing.assert_array_equal(dataset.labels, [5 + i / 8 for i in range(70)])
    assert dataset.report.num_dropped == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_snippet_on_each_shape_of_npy(processed: Path, shape: str) -> None:
    write_npy(processed / "embeddings", SHAPES[shape])
    check(NPY)


def test_the_snippet_on_a_chroma_folder(processed: Path) -> None:
    client = chromadb.PersistentClient(str(processed / "chroma"), Settings(anonymized_telemetry=False))
    client.create_collection("speed_embeddings", embedding_function=None).add(
        ids=[f"{row['split']}/{row['file_path']}" for row in FLAT],
        embeddings=[row["embedding"] for row in FLAT],
        metadatas=[{"split": row["split"], "file_path": row["file_path"]} for row in FLAT],
    )
    client.close()  # type: ignore[attr-defined]
    check(CHROMA)


def test_one_table_for_all_splits(processed: Path) -> None:
    splits = SPLITS | {"dev": make_rows(5, seed=1, folder="audio/dev")}
    write_npy(processed / "embeddings", splits)
    write_cps(processed / "train_cps.csv", [*cps_of(SPLITS["train"]), *cps_of(splits["dev"])])
    check(NPY)

"""Where rates come from: tables as the tools that users have write them, or the source itself."""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chromadb.config import Settings
from data import cps_of, make_rows, make_settings, write_cps, write_npy

from cpstream_service.align.splits import align_all
from cpstream_service.align.verdict import refuse
from cpstream_service.dataset import RegressionEmbeddingsDataset
from cpstream_service.errors import AlignmentError, DataError
from cpstream_service.snapshot.load import load
from cpstream_service.sources.text_rates import TextRates, count_text

ROWS = make_rows(5)
PATHS = [row["file_path"] for row in ROWS]
TEXTS = ["hello", " two  words ", "naïve", "é" * 7, "5 ab!"]
MANIFEST = [
    {"audio_filepath": path, "text": text, "duration": 0.5 + i / 4} for i, (path, text) in enumerate(zip(PATHS, TEXTS, strict=True))
]
RATES = [len(unicodedata.normalize("NFC", text).strip()) / row["duration"] for text, row in zip(TEXTS, MANIFEST, strict=True)]
DEFINITION = "characters (NFC code points, ends stripped, spaces included) of 'text' a second of 'duration'"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rates(folder: Path, **changes: Any) -> dict[str, float]:
    """What is served of the split train: path -> rate."""
    (split,) = align_all(make_settings(folder, splits=("train",), **changes))
    assert [float(rate) for rate in split.cps] == [pytest.approx(float(rate)) for rate in split.cps]
    return dict(zip(split.file_paths, split.cps.tolist(), strict=True))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_npy(tmp_path / "source", {"train": ROWS})
    return tmp_path / "source"


# Tables


def test_a_parquet_table_whose_text_is_none(source: Path) -> None:
    paths = pa.array([b"audio/\xff.wav"]).view(pa.string())
    pq.write_table(pa.table({"audio_path": paths, "cps": [5.0]}), source / "train_cps.csv")
    with pytest.raises(DataError, match=r"train_cps.csv: cannot read it as Parquet \(.*Invalid UTF8.*\); write it again"):
        rates(source)


def test_a_header_without_end_is_told_in_part(source: Path) -> None:
    columns = ["audio_path", *(f"{'long' * 100}{i}" for i in range(50))]
    (source / "train_cps.csv").write_text(",".join(columns) + "\n")
    with pytest.raises(DataError, match=r"column 'cps' is missing; .* and 31 more; rename the column") as caught:
        rates(source)
    assert len(str(caught.value)) < 2000


def test_a_manifest_of_nemo(source: Path) -> None:
    write_lines(source / "train_manifest.json", MANIFEST)
    found = rates(source, cps_csv="{split}_manifest.json")
    assert found == dict(zip(PATHS, np.float32(RATES).tolist(), strict=True))
    info = load(make_settings(source, cps_csv="{split}_manifest.json")).snapshot.splits["train"].info
    assert info.cps_definition == DEFINITION


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t"])
def test_what_a_table_is_written_as_is_seen_from_its_content(source: Path, name: str) -> None:
    write_lines(
        source / name, [{"audio_path": path, "cps": i + 1, "text": "not counted", "duration": 1} for i, path in enumerate(PATHS)]
    )
    (source / name).write_bytes(b"\xef\xbb\xbf\n" + (source / name).read_bytes())
    assert rates(source, cps_csv=name) == {path: i + 1.0 for i, path in enumerate(PATHS)}
    pd.DataFrame({"audio_path": PATHS, "cps": [1.5 * i + 1 for i in range(5)], "other": "x"}).to_parquet(source / name)
    assert rates(source, cps_csv=name) == {path: 1.5 * i + 1 for i, path in enumerate(PATHS)}


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_text_and_duration_in_a_csv(source: Path, separator: str) -> None:
    rows = [(row["text"], row["audio_filepath"], row["duration"]) for row in MANIFEST]
    write_cps(source / "train_cps.csv", rows, ("text", "audio_path", "duration"), separator)
    assert rates(source) == dict(zip(PATHS, np.float32(RATES).tolist(), strict=True))
    named = [(path, "aaaa", 2, "12.5") for path in PATHS]
    write_cps(source / "train_cps.csv", named, ("audio_path", "said", "seconds", "cps"), separator)
    assert set(rates(source, text_column="said", duration_column="seconds").values()) == {12.5}  # a rate that is there is taken
    assert set(rates(source, text_column="said", duration_column="seconds", cps_column="computed").values()) == {2.0}


def test_a_decimal_comma_in_a_duration(source: Path) -> None:
    write_cps(source / "train_cps.csv", [(path, "abc", "1,5") for path in PATHS], ("audio_path", "text", "duration"), ";")
    assert set(rates(source).values()) == {2.0}


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("  hello world \n", "characters", 11),
        ("  hello world \n", "no-spaces", 10),
        ("it's 5 o'clock!", "letters", 10),
        ("e\u0301te\u0301", "characters", 3),
        ("e\u0301te\u0301", "letters", 3),
        ("\u3000日本 語\u3000", "characters", 4),
        ("\u3000日本 語\u3000", "no-spaces", 3),
        ("", "characters", 0),
    ],
)
def test_what_of_a_text_is_counted(text: str, count: Any, expected: int) -> None:
    assert count_text(text, count) == expected
    assert TextRates(count=count).rate(text, 2)[0] == pytest.approx(expected / 2) or expected == 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "abc", "duration": 0}, "duration 0"),
        ({"text": "abc", "duration": -1.5}, "duration -1.5"),
        ({"text": "abc", "duration": None}, "duration null"),
        ({"text": "abc", "duration": "long"}, "duration long"),
        ({"text": "abc", "duration": True}, "duration True"),
        ({"text": "abc", "duration": float("nan")}, "duration nan"),
        ({"text": "abc"}, "duration null"),
        ({"text": " ", "duration": 1}, "0 characters in 1 s"),
        ({"text": None, "duration": 1}, "text null"),
        ({"text": ["a"], "duration": 1}, "text list"),
    ],
)
def test_a_row_without_a_rate_is_dropped_and_said(source: Path, row: dict[str, Any], said: str) -> None:
    write_lines(source / "train.json", [row | {"audio_filepath": PATHS[0]}, *MANIFEST[1:]])
    (split,) = align_all(make_settings(source, cps_csv="{split}.json"))
    assert split.file_paths == PATHS[1:]
    (invalid,) = [entry for entry in split.report.dropped if entry.reason == "invalid-cps"]
    assert invalid.examples == (f"{PATHS[0]} (line 1): {said!r}",)


def test_lines_that_are_no_row_are_dropped_and_said(source: Path) -> None:
    lines = [json.dumps(row) for row in MANIFEST[:3]]
    lines += ["{", "[1]", "", '{"text": "no path", "duration": 1}', '{"audio_filepath": 7}', '{"a":' * 100_000]
    (source / "train.json").write_text("\n".join(lines))
    (split,) = align_all(make_settings(source, cps_csv="{split}.json"))
    assert split.file_paths == PATHS[:3]
    (unreadable,) = [entry for entry in split.report.dropped if entry.reason == "unreadable-row"]
    assert unreadable.count == 5
    assert unreadable.examples[:2] == tuple(
        f"line {line}: not a JSON object ({why})"
        for line, why in (
            (4, "Expecting property name enclosed in double quotes: line 2 column 1 (char 2)"),
            (5, "it is list, not an object"),
        )
    )
    assert any("line 7: audio_filepath is NoneType, not a string" in example for example in unreadable.examples)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b'{"audio_path": "a.wav", "speed": 3}',
            "key 'cps' is missing; there are: 'audio_path', 'speed'; rename it or set --cps-column, or give",
        ),
        (b'{"path": "a.wav", "cps": 3}', "key 'audio_path' is missing; there are: 'path', 'cps'; rename it or set --path-column"),
        (b'[{"audio_path": "a.wav"}]', "is a JSON list; write one object a line: jq -c '.[]'"),
        (b"PAR1 but no more", "cannot read it as Parquet ("),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS, not the data; fetch it: git lfs pull"),
        (b"audio_path,speed\n", "column 'cps' is missing; the header has: 'audio_path', 'speed'"),
    ],
)
def test_a_table_that_is_none(source: Path, content: bytes, said: str) -> None:
    (source / "train_cps.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        align_all(make_settings(source))
    assert str(caught.value).startswith(str(source / "train_cps.csv"))
    assert said in str(caught.value)


def test_a_table_that_is_no_file(source: Path) -> None:
    os.mkfifo(source / "train_cps.csv")
    with pytest.raises(DataError, match=r"train_cps.csv is a pipe, not a file; set --cps-csv to a CPS table"):
        align_all(make_settings(source))
    with pytest.raises(DataError, match="/dev/zero is a device, not a file; set --cps-csv to a CPS table"):
        align_all(make_settings(source, cps_csv="/dev/zero"))


# The source itself


def test_rates_in_the_rows_of_an_npy(source: Path) -> None:
    write_npy(source, {"train": [row | {"cps": 3 + i, "speed": np.float32(i + 1)} for i, row in enumerate(ROWS)]})
    assert rates(source, cps_from="source") == {path: 3.0 + i for i, path in enumerate(PATHS)}
    assert rates(source, cps_from="source", cps_column="speed") == {path: 1.0 + i for i, path in enumerate(PATHS)}
    info = load(make_settings(source, cps_from="source")).snapshot.splits["train"].info
    assert (info.num_cps, info.cps_definition) == (5, "key or column 'cps'")


def test_text_and_duration_in_the_rows_of_an_npy(source: Path) -> None:
    rows = [row | {"text": said["text"], "duration": said["duration"]} for row, said in zip(ROWS, MANIFEST, strict=True)]
    rows[2]["embedding"] = rows[2]["embedding"].tolist()  # another way through the reader
    write_npy(source, {"train": rows})
    assert rates(source, cps_from="source") == dict(zip(PATHS, np.float32(RATES).tolist(), strict=True))
    no_spaces = rates(source, cps_from="source", text_count="no-spaces")
    assert no_spaces[PATHS[1]] == pytest.approx(8 / 0.75)


def test_rates_in_parquet_and_chroma_are_the_same(source: Path, tmp_path: Path) -> None:
    rows = [row | {"cps": 3 + i / 4, "split": "train"} for i, row in enumerate(ROWS)]
    expected = {path: 3 + i / 4 for i, path in enumerate(PATHS)}
    pd.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    assert rates(tmp_path / "x.parquet", source_type="parquet", cps_from="source") == expected
    client = chromadb.PersistentClient(str(tmp_path / "chroma"), Settings(anonymized_telemetry=False))
    client.create_collection("speed_embeddings", embedding_function=None).add(
        ids=PATHS,
        embeddings=[row["embedding"] for row in rows],
        metadatas=[{"split": "train", "file_path": row["file_path"], "cps": row["cps"]} for row in rows],
    )
    client.close()  # type: ignore[attr-defined]
    assert rates(tmp_path / "chroma", source_type="chromadb", cps_from="source") == expected
    twin = RegressionEmbeddingsDataset(tmp_path / "x.parquet", "train", "parquet", cps_from="source")
    assert dict(zip(twin.filenames, twin.labels.tolist(), strict=True)) == expected


def test_rates_of_the_source_that_are_none(source: Path) -> None:
    values = [1.5, None, "fast", -1, "2.5"]
    write_npy(source, {"train": [row | {"cps": value} for row, value in zip(ROWS, values, strict=True)]})
    assert rates(source, cps_from="source") == {PATHS[0]: 1.5, PATHS[4]: 2.5}
    write_npy(source, {"train": ROWS})
    with pytest.raises(
        DataError, match="key or column 'cps' is missing; there are: none; rename it or set --cps-column, or give 'text'"
    ):
        rates(source, cps_from="source")
    write_npy(source, {"train": [row | {"cps": -1} for row in ROWS]})
    splits = align_all(make_settings(source, cps_from="source"))
    with pytest.raises(AlignmentError, match=f"finds a value among the 5 rows of {source}: ") as caught:
        refuse(make_settings(source, cps_from="source"), [split.report for split in splits])
    assert "--cps-csv" not in str(caught.value)


def test_settings_of_the_rates_make_another_snapshot(source: Path) -> None:
    rows = [row | {"text": "a b", "duration": 1.0, "cps": 5.0} for row in ROWS]
    write_npy(source, {"train": rows})
    write_cps(source / "train_cps.csv", cps_of(ROWS))
    prints = set()
    for changes in ({}, {"cps_from": "source"}, {"cps_from": "source", "cps_column": "none"}):
        for count in ("characters", "no-spaces"):
            prints.add(load(make_settings(source, text_count=count, **changes)).snapshot.fingerprint)
    assert len(prints) == 4  # what is counted matters only where it is
    (source / "train_cps.csv").write_text("no table at all")
    assert load(make_settings(source, cps_from="source")).notes[0].startswith(("snapshot", "wrote"))


# Sources whose keys have no extension


@pytest.mark.parametrize("kind", ["npy-folder", "kaldi"])
def test_keys_without_extension_take_the_path_of_the_table(tmp_path: Path, kind: str) -> None:
    import kaldiio

    folder = tmp_path / "feats"
    for split in ("train", "dev"):
        for i, row in enumerate(ROWS):
            (folder / split).mkdir(parents=True, exist_ok=True)
            np.save(folder / split / f"utt{i}.npy", row["embedding"])
        vectors = {f"utt{i}": row["embedding"] for i, row in enumerate(ROWS)}
        kaldiio.save_ark(str(folder / split / "x.ark"), vectors, scp=str(folder / split / "x.scp"))
        write_cps(folder / f"{split}_cps.csv", [(f"wav/{split}/utt{i}.flac", 5 + i) for i in range(4)])
    path = folder / "{split}" / ("x.scp" if kind == "kaldi" else "")
    settings = make_settings(folder, source_type=kind, source_path=path)
    loaded = load(settings)
    for split in ("train", "dev"):
        held = loaded.snapshot.splits[split]
        assert held.file_paths.to_pylist() == [f"wav/{split}/utt{i}.flac" for i in range(4)]
        np.testing.assert_array_equal(held.cps, [5, 6, 7, 8])
        np.testing.assert_array_equal(held.embeddings, [row["embedding"] for row in ROWS[:4]])
        assert held.report.num_dropped == 1
        twin = RegressionEmbeddingsDataset(path, split, kind)
        assert twin.filenames == held.file_paths.to_pylist()
    assert load(settings).notes[0].endswith("is up to date")
    np.save(folder / "dev" / "utt0.npy", ROWS[1]["embedding"])
    kaldiio.save_ark(str(folder / "dev" / "x.ark"), {"utt0": ROWS[1]["embedding"]}, scp=str(folder / "dev" / "x.scp"))
    assert load(settings).snapshot.fingerprint != loaded.snapshot.fingerprint
    with pytest.raises(
        DataError, match=f"a source of type {kind} holds no rates; set --cps-csv to a table, and leave --cps-from out"
    ):
        load(make_settings(folder, source_type=kind, source_path=path, cps_from="source"))

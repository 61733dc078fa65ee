import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import chroma_port, make_rows, make_settings, write_cps, write_dataset, write_npy  # noqa: F401

from cpstream_service.cli.ingest import ingest
from cpstream_service.errors import DataError
from cpstream_service.settings import ChromaSettings, DataSettings
from cpstream_service.snapshot.load import load
from cpstream_service.sources.chroma.client import open_client
from cpstream_service.sources.chroma.read import read_chroma

ROWS = {"train": make_rows(40), "dev": make_rows(9, seed=1)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "source", ROWS)


@pytest.fixture
def target(tmp_path: Path) -> DataSettings:
    return make_settings(tmp_path / "chroma", source_type="chromadb", cps_csv=str(tmp_path / "source" / "{split}_cps.csv"))


def count(target: DataSettings) -> int:
    with open_client(target) as client:
        return client.get_collection(target.collection_name, embedding_function=None).count()


def test_into_a_folder(source: Path, target: DataSettings, capsys: pytest.CaptureFixture[str]) -> None:
    assert ingest(source, chroma_path=target.source_path) == 0
    assert capsys.readouterr().out == "train: 40 rows, 40 written, 0 were there\ndev: 9 rows, 9 written, 0 were there\n"
    assert load(target).snapshot.fingerprint == load(make_settings(source)).snapshot.fingerprint
    ingest(source, chroma_path=target.source_path)
    assert capsys.readouterr().out == "train: 40 rows, 0 written, 40 were there\ndev: 9 rows, 0 written, 9 were there\n"
    assert count(target) == 49


def test_from_the_command_line(source: Path, target: DataSettings, capsys: pytest.CaptureFixture[str]) -> None:
    from cpstream_service.cli.app import run

    arguments = [str(source), "--chroma-path", str(target.source_path), "--collection-name", "speech", "--splits", "dev"]
    with pytest.raises(SystemExit) as ended:
        run(["ingest", *arguments])
    assert ended.value.code == 0
    assert "dev: 9 rows, 9 written, 0 were there" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        run(["ingest", str(source / "nowhere"), *arguments[1:]])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"cpstream: {source}/nowhere/numpy_embs.npy: there is no such file")


def test_into_a_server(source: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    port = request.getfixturevalue("chroma_port")
    server = ChromaSettings(chroma_host="127.0.0.1", chroma_port=port, collection_name="ingested")
    ingest(source / "numpy_embs.npy", server=server, splits=("dev",))
    assert capsys.readouterr().out == "dev: 9 rows, 9 written, 0 were there\n"
    settings = make_settings(
        source, source_type="chromadb", chroma_host="127.0.0.1", chroma_port=port, collection_name="ingested", splits=("dev",)
    )
    served = load(settings).snapshot.splits["dev"]
    assert served.fingerprint == load(make_settings(source)).snapshot.splits["dev"].fingerprint


def test_changed_data(source: Path, target: DataSettings, capsys: pytest.CaptureFixture[str]) -> None:
    ingest(source, chroma_path=target.source_path)
    changed = make_rows(39)
    changed[7]["embedding"] += 1
    write_npy(source, {"train": changed})
    capsys.readouterr()
    ingest(source, chroma_path=target.source_path)
    out = capsys.readouterr().out
    assert out.startswith(
        "train: 39 rows, 1 written, 38 were there\ntrain: the collection holds 1 more records of this split, which"
    )
    read = read_chroma(target)["train"]
    at = read.file_paths.index(changed[7]["file_path"])
    np.testing.assert_array_equal(read.embeddings[at], changed[7]["embedding"])


def test_rows_that_chroma_cannot_hold_are_left_out(source: Path, target: DataSettings, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [*make_rows(5), {"file_path": "x.wav"}]
    rows[2]["embedding"][0] = np.nan
    write_npy(source, {"train": rows})
    ingest(source, chroma_path=target.source_path)
    assert capsys.readouterr().out == (
        "train: 4 rows, 4 written, 0 were there\n"
        "train: 2 rows left out (first: row 5 (x.wav): it has no key 'embedding'; its keys: 'file_path')\n"
    )
    assert count(target) == 4


def test_duplicates_stay_what_they_are(source: Path, target: DataSettings) -> None:
    rows = [*make_rows(5), *make_rows(2), *make_rows(1, seed=5)]
    write_npy(source, {"train": rows})
    write_cps(source / "train_cps.csv", [(row["file_path"], 5) for row in rows[:5]])
    ingest(source, chroma_path=target.source_path)
    ingest(source, chroma_path=target.source_path)
    npy, chroma = load(make_settings(source)).snapshot, load(target).snapshot
    assert chroma.fingerprint == npy.fingerprint
    assert (
        chroma.splits["train"].info.dropped
        == npy.splits["train"].info.dropped
        == {
            "conflicting-duplicate": 3,
            "identical-duplicate": 1,
            "partner-dropped": 1,
        }
    )


def test_where_to(source: Path, target: DataSettings) -> None:
    with pytest.raises(DataError, match="set --chroma-path to a folder, or --chroma-url to a server, one of the two"):
        ingest(source)
    with pytest.raises(DataError, match="one of the two"):
        ingest(source, chroma_path=target.source_path, server=ChromaSettings(chroma_host="localhost"))
    with pytest.raises(DataError, match=r"numpy_embs.npy has no split 'nope'"):
        ingest(source, chroma_path=target.source_path, splits=("nope",))
    write_npy(source, {"train": make_rows(3, dimension=5)})
    ingest(source, chroma_path=target.source_path)
    write_npy(source, {"train": make_rows(3, dimension=6)})
    with pytest.raises(DataError, match=r"chroma: Chroma answers: .*dimension"):
        ingest(source, chroma_path=target.source_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from cpstream_service.cli import ingest
from cpstream_service.sources.chroma.write import Writer

left = int(sys.argv[3])
put = Writer.put

def killing(self, *arguments):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return put(self, *arguments)

Writer.put = killing
ingest.BATCH_ROWS = 10
ingest.ingest(Path(sys.argv[1]), chroma_path=Path(sys.argv[2]))
"""


def test_killed_half_way_and_run_again(source: Path, target: DataSettings, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", KILLED, str(source), str(target.source_path), "2"]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == -signal.SIGKILL
    assert count(target) == 20
    ingest(source, chroma_path=target.source_path)
    assert capsys.readouterr().out.startswith("train: 40 rows, 20 written, 20 were there\n")
    assert count(target) == 49
    assert load(target).snapshot.fingerprint == load(make_settings(source)).snapshot.fingerprint

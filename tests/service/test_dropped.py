"""The whole list of what alignment left out of a split: every row, with its reason, and none that is to be forgotten."""

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from conftest import Server, serving
from data import cps_of, make_rows, make_settings, write_cps, write_dataset

from cpstream_service.align.forget import read_forget_list
from cpstream_service.align.splits import align_all
from cpstream_service.app import create_app
from cpstream_service.settings import DataSettings, ServeSettings
from cpstream_service.snapshot import dropped
from cpstream_service.snapshot.forgotten import Judge
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Snapshot, open_snapshot
from cpstream_service.text import harmless

HOSTILE = ['=HYPERLINK("evil")', "+1", "'=quoted", 'a,"b"\n.wav', "é\u202e.wav"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    """Eight thousand embeddings without a rate, some of hostile names, and two rates that are none."""
    rows = make_rows(8200, dimension=2)
    for row, name in zip(rows, HOSTILE, strict=False):
        row["file_path"] = name
    folder = write_dataset(tmp_path_factory.mktemp("dropped") / "data", {"train": rows})
    write_cps(folder / "train_cps.csv", [*cps_of(rows[8100:]), ("audio/8000.wav", -1), ("audio/8001.wav", "fast")])
    return make_settings(folder)


@pytest.fixture(scope="module")
def loaded(settings: DataSettings) -> Snapshot:
    return load(settings, progress=False).snapshot


def test_every_row_is_listed_as_check_lists_it(settings: DataSettings, loaded: Snapshot) -> None:
    with serving(create_app(loaded, ServeSettings())) as url:
        reply = httpx.get(f"{url}/v1/splits/train/dropped.csv")
        part = httpx.get(f"{url}/v1/splits/train/dropped.csv", headers={"Range": "bytes=0-99"})
    assert (reply.status_code, reply.headers["content-type"].split(";")[0], part.content) == (200, "text/csv", reply.content[:100])
    listed = list(csv.reader(io.StringIO(reply.text, newline="")))
    assert tuple(listed[0]) == dropped.COLUMNS
    assert not [cell for row in listed for cell in row if cell.startswith(("=", "+"))]
    assert len(listed) - 1 == loaded.splits["train"].report.num_dropped == 8102
    (aligned,) = align_all(settings)
    expected = [row.file_path for row in aligned.drops]
    assert [row[2] for row in listed[1:]] == [harmless(path) for path in expected]
    assert set(expected) <= set(dropped.dropped_paths(loaded.splits["train"].path))
    assert set(HOSTILE) <= set(expected)


def test_nothing_left_out_is_a_table_without_rows(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/splits/dev/dropped.csv").text == "side,reason,file_path,where,detail\r\n"


def test_what_is_to_be_forgotten_is_not_listed(settings: DataSettings, loaded: Snapshot, tmp_path: Path) -> None:
    forget = tmp_path / "forget"
    forget.write_text("audio/0100.wav\n")
    assert Judge.of(settings, read_forget_list(forget)).forgotten_in(loaded) == {loaded.splits["train"].fingerprint}
    forget.write_text("audio/nowhere.wav\n")
    assert not Judge.of(settings, read_forget_list(forget)).forgotten_in(loaded)
    forget.write_text("audio/0100.wav\n")
    after = load(replace(settings, forget_list=forget), progress=False).snapshot
    paths = list(dropped.dropped_paths(after.splits["train"].path))
    assert "audio/0100.wav" not in paths
    assert "audio/0101.wav" in paths


def test_a_snapshot_of_an_older_release_has_no_list(loaded: Snapshot, tmp_path: Path) -> None:
    older = Path(shutil.copytree(loaded.path, tmp_path / loaded.path.name, ignore=shutil.ignore_patterns(dropped.NAME)))
    snapshot = open_snapshot(older)
    with serving(create_app(snapshot, ServeSettings())) as url:
        reply = httpx.get(f"{url}/v1/splits/train/dropped.csv")
    assert (reply.status_code, reply.json()["code"]) == (404, "not-found")
    assert "the first of each reason: alignment" in reply.json()["detail"]

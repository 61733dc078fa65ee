"""What two versions of a split differ in, as a service that holds both says it."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import serving
from data import cps_of, make_rows, make_settings, write_cps, write_npy

from cpstream_client import Client, DatasetChanged, Retry
from cpstream_service.api.versions import Version
from cpstream_service.app import create_app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.difference import difference
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import Snapshot

N = 3000


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Snapshot]:
    """Of N recordings, the new version lacks one, has two more, another number in one embedding, and 2,500 other rates."""
    folder = tmp_path_factory.mktemp("data")
    rows = make_rows(N)
    write_npy(folder, {"train": rows})
    write_cps(folder / "train_cps.csv", cps_of(rows))
    old = load(make_settings(folder)).snapshot
    new_rows = [row | {"embedding": row["embedding"].copy()} for row in rows if row["file_path"] != "audio/0007.wav"]
    new_rows[2]["embedding"][5] = np.nextafter(new_rows[2]["embedding"][5], np.float32(9))
    new_rows += [row | {"file_path": f"=new/{i}.wav"} for i, row in enumerate(make_rows(2, seed=5))]
    table: dict[str, float] = dict(cps_of(rows))
    for path in sorted(table)[-2500:]:
        table[path] += 0.5
    table |= {"=new/0.wav": 6.0, "=new/1.wav": 7.0}
    write_npy(folder, {"train": new_rows})
    write_cps(folder / "train_cps.csv", list(table.items()))
    return old, load(make_settings(folder)).snapshot


@pytest.fixture(scope="module")
def http(both: tuple[Snapshot, Snapshot]) -> Iterator[httpx.Client]:
    app = create_app(both[1], ServeSettings())
    with serving(app) as url, httpx.Client(base_url=url) as client:
        app.state.service.versions.open(Version.of(both[0], ServeSettings()))
        yield client


def of(both: tuple[Snapshot, Snapshot]) -> dict[str, str]:
    return {"from": both[0].splits["train"].fingerprint, "to": both[1].splits["train"].fingerprint}


def test_counts_and_examples(http: httpx.Client, both: tuple[Snapshot, Snapshot]) -> None:
    with Client(str(http.base_url).rstrip("/")) as client:
        said = client.diff("train", of(both)["from"])
    assert said.to == of(both)["to"]
    assert (said.num_added, said.num_removed, said.num_changed, said.num_same) == (2, 1, 2501, N - 2502)
    assert (said.num_embeddings_changed, said.num_rates_changed, said.num_labels_changed) == (1, 2500, 0)
    assert said.added == ("=new/0.wav", "=new/1.wav")
    assert said.removed == ("audio/0007.wav",)
    first = said.changed[0]
    assert (first.file_path, first.what) == ("audio/0002.wav", ("embedding",))
    assert first.old_cps == first.new_cps == 5 + 2 / 8
    assert said.changed[1].what == ("rate",)
    assert said.changed[1].new_cps == said.changed[1].old_cps + 0.5
    reply = http.get("/v1/splits/train/diff", params=of(both))
    assert reply.json()["from"] == of(both)["from"]
    assert http.get("/v1/splits/train/diff", params=of(both), headers={"If-None-Match": reply.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("media_type", ["text/csv", "application/x-ndjson"])
def test_the_whole_list_is_that_of_dicts(http: httpx.Client, both: tuple[Snapshot, Snapshot], media_type: str) -> None:
    reply = http.get("/v1/splits/train/diff", params=of(both), headers={"Accept": media_type})
    assert reply.headers["content-type"].startswith(media_type)
    assert reply.headers["content-disposition"].startswith('attachment; filename="train-diff.')
    if media_type == "text/csv":
        rows = list(csv.DictReader(reply.text.splitlines()))
    else:
        rows = [
            {name: "" if cell is None else str(cell) for name, cell in json.loads(line).items()} for line in reply.text.splitlines()
        ]
    old, new = (
        {path: (i, split.embeddings[i].tobytes(), float(split.cps[i])) for i, path in enumerate(split.file_paths.to_pylist())}
        for split in (each.splits["train"] for each in both)
    )
    expected = []
    for path, (i, _, cps) in new.items():
        if path not in old:
            shown = f"'{path}" if media_type == "text/csv" else path  # no spreadsheet takes it for a formula
            expected.append(("added", shown, "", "", str(i), "", str(cps)))
    for path, (i, _, cps) in old.items():
        if path not in new:
            expected.append(("removed", path, "", str(i), "", str(cps), ""))
    for path, (i, vector, cps) in new.items():
        j, before, cps_before = old.get(path, (0, vector, cps))
        what = "+".join(["embedding"] * (before != vector) + ["rate"] * (cps_before != cps))
        if what:
            expected.append(("changed", path, what, str(j), str(i), str(cps_before), str(cps)))
    assert [tuple(row.values()) for row in rows] == expected


def test_what_is_not_held_or_wrong_is_refused(http: httpx.Client, both: tuple[Snapshot, Snapshot]) -> None:
    def code(**parameters: str) -> tuple[int, str]:
        reply = http.get("/v1/splits/train/diff", params=parameters)
        return reply.status_code, reply.json()["detail"]

    assert code() == (422, "from is missing; give it: parameters: from, to")
    assert code(**{"from": "0" * 32})[0] == 409
    assert code(**{"fron": "0" * 32, "from": "x"})[1].startswith("parameter 'fron' is not known here; did you mean 'from'?")
    with Client(str(http.base_url).rstrip("/"), retry=Retry(changed_timeout_s=0)) as client, pytest.raises(DatasetChanged):
        client.diff("train", "0" * 32)
    same = of(both)["to"]
    assert http.get("/v1/splits/train/diff", params={"from": same}).json()["num_same"] == N + 1


def test_other_dimensions_and_labels(tmp_path: Path) -> None:
    rows = make_rows(4, dimension=8)
    write_npy(tmp_path, {"train": rows})
    table = [(row["file_path"], 5 + i, i if i else "") for i, row in enumerate(rows)]
    write_cps(tmp_path / "train_cps.csv", table, ("audio_path", "cps", "pitch"))
    plain, labelled = (load(make_settings(tmp_path, labels=labels)).snapshot.splits["train"] for labels in ((), ("pitch",)))
    found = difference(plain, labelled)
    assert (found.by_label.sum(), found.by_embedding.sum(), found.by_rate.sum()) == (4, 0, 0)
    table[1] = (*table[1][:2], 9)
    write_cps(tmp_path / "train_cps.csv", table, ("audio_path", "cps", "pitch"))
    other = load(make_settings(tmp_path, labels=("pitch",))).snapshot.splits["train"]
    assert difference(labelled, other).changed.tolist() == [[1, 1]]  # NaN, where it is missing, is no change
    write_npy(tmp_path, {"train": make_rows(4, dimension=9)})
    wider = load(make_settings(tmp_path)).snapshot.splits["train"]
    assert difference(plain, wider).by_embedding.all()

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import cps_of, make_rows, make_settings, run_python, write_cps, write_dataset, write_npy

from cpstream_service.errors import AlignmentError, DataError
from cpstream_service.setting_errors import SettingsError
from cpstream_service.settings import DataSettings
from cpstream_service.snapshot.load import load
from cpstream_service.snapshot.store import MANIFEST

ROWS = {"train": make_rows(12), "dev": make_rows(5, seed=1)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "source", ROWS)


def snapshots_of(settings: DataSettings) -> list[str]:
    return sorted(path.parent.name for path in settings.snapshot_dir.glob(f"[!.]*/{MANIFEST}"))


def age(*paths: Path) -> None:
    """Wait until the files' times are old enough to be trusted; no system call can set a ctime."""
    while time.time() - max(path.stat().st_ctime for path in paths) < 2.1:
        time.sleep(0.05)


# npy


def test_a_restart_maps_the_snapshot_at_once(source: Path) -> None:
    settings = make_settings(source)
    first = load(settings)
    assert first.notes[0].startswith("wrote snapshot")
    assert first.stale_reason is None
    again = load(settings)
    assert again.notes[0].endswith("is up to date")
    assert again.snapshot.fingerprint == first.snapshot.fingerprint
    assert again.snapshot.path == first.snapshot.path
    os.utime(source / "numpy_embs.npy")
    assert load(settings).notes == again.notes  # the content counts, not the time
    for name, rows in ROWS.items():
        split = again.snapshot.splits[name]
        np.testing.assert_array_equal(split.embeddings, [row["embedding"] for row in rows])
        np.testing.assert_array_equal(split.cps, [5 + i / 8 for i in range(len(rows))])


def test_unchanged_files_are_not_read_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(source)
    files = sorted(source.iterdir())
    age(*files)
    load(settings)
    read: list[Path] = []
    monkeypatch.setattr("cpstream_service.snapshot.inputs.file_hash", lambda path: read.append(path) or "other")
    assert load(settings).notes[0].endswith("is up to date")
    assert read == []
    os.utime(files[0])  # a new ctime
    assert load(replace(settings, strict=True)) is not None
    assert read == files[:1]


def test_a_file_that_has_just_changed_is_not_remembered(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(source)
    at_s = max(path.stat().st_ctime for path in source.iterdir()) + 1
    monkeypatch.setattr("cpstream_service.snapshot.inputs.time.time", lambda: at_s)  # however long the machine stands still
    load(settings)
    assert list(settings.snapshot_dir.glob(".content-*")) == []


@pytest.mark.parametrize("file", ["numpy_embs.npy", "dev_cps.csv"])
def test_changed_files_make_a_new_snapshot_and_remove_the_old(source: Path, file: str) -> None:
    settings = make_settings(source)
    old = load(settings).snapshot.fingerprint
    if file == "dev_cps.csv":
        write_cps(source / file, [(path, cps + 1) for path, cps in cps_of(ROWS["dev"])])
    else:
        write_npy(source, ROWS | {"dev": make_rows(5, seed=9)})
    changed = load(settings)
    assert changed.snapshot.fingerprint != old
    assert snapshots_of(settings) == [changed.snapshot.path.name]


@pytest.mark.parametrize("change", [{"splits": ("dev",)}, {"cps_column": "other"}, {"cps_csv": "other_{split}.csv"}])
def test_settings_that_shape_the_data_make_another_snapshot(source: Path, change: dict[str, Any]) -> None:
    for name, rows in ROWS.items():
        table = [(path, cps, cps + 1) for path, cps in cps_of(rows)]
        write_cps(source / f"{name}_cps.csv", table, header=("audio_path", "cps", "other"))
        write_cps(source / f"other_{name}.csv", [(path, cps + 2) for path, cps in cps_of(rows)])
    settings = make_settings(source)
    first, second = load(settings), load(replace(settings, **change))
    assert first.snapshot.fingerprint != second.snapshot.fingerprint
    assert load(settings).notes[0].endswith("is up to date")


@pytest.mark.parametrize("file", ["train/embeddings.npy", "train/cps.npy", "train/file_paths.arrow", "manifest.json"])
def test_a_damaged_snapshot_is_rebuilt(source: Path, file: str) -> None:
    settings = make_settings(source)
    first = load(settings).snapshot
    data = bytearray((first.path / file).read_bytes())
    data[-3] ^= 1
    (first.path / file).write_bytes(data)
    again = load(settings)
    assert again.notes[0].startswith("rebuilding a snapshot: ")
    assert again.snapshot.fingerprint == first.fingerprint
    assert load(settings).notes[0].endswith("is up to date")


def test_where_the_cps_tables_lie(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(make_settings(source)).snapshot.fingerprint
    monkeypatch.chdir(tmp_path)
    for i, template in enumerate(["{split}_cps.csv", "source/{split}_cps.csv", str(source / "{split}_cps.csv")]):
        settings = make_settings(source, cps_csv=template, snapshot_dir=tmp_path / str(i))
        assert load(settings).snapshot.fingerprint == expected
    (tmp_path / "tables" / "train").mkdir(parents=True)
    (tmp_path / "tables" / "dev").mkdir()
    for name in ROWS:
        (source / f"{name}_cps.csv").rename(tmp_path / "tables" / name / "cps.csv")
    settings = make_settings(source, cps_csv="tables/{split}/cps.csv")
    assert load(settings).snapshot.fingerprint == expected
    with pytest.raises(DataError, match=r"source/train_cps.csv: there is no such CPS table; set --cps-csv"):
        load(make_settings(source))


def test_a_file_that_changes_while_it_is_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cpstream_service.sources import read

    def read_npy(*arguments: Any, **options: Any) -> Any:
        os.utime(source / "numpy_embs.npy", (1, 1))  # now may be within the same tick of the file system's clock
        return original(*arguments, **options)

    original = read.read_npy
    monkeypatch.setattr(read, "read_npy", read_npy)
    with pytest.raises(DataError, match="changed while it was read; start again when it is complete"):
        load(make_settings(source))


def test_a_split_that_aligns_nothing(source: Path) -> None:
    write_cps(source / "dev_cps.csv", [("elsewhere/x.wav", 5)])
    with pytest.raises(AlignmentError) as caught:
        load(make_settings(source))
    message = str(caught.value)
    assert message.startswith("split 'dev' aligns nothing: none of its 5 embeddings finds a value among the 1 rows of ")
    assert f"{source / 'dev_cps.csv'}: 5 no-cps (first: audio/0000.wav), 1 no-embedding (first: elsewhere/x.wav)" in message
    assert message.endswith("correct the paths, or --cps-csv")
    assert [report.split for report in caught.value.reports] == ["train", "dev"]
    assert load(make_settings(source, splits=("train",))).snapshot.splits.keys() == {"train"}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([("audio/0000.wav", 0), ("audio/0001.wav", "x")], r"2 invalid-cps \(first: .*; correct these rows$"),
        (
            [(f"/data/{path}", cps) for path, cps in cps_of(ROWS["dev"])[1:]] + [("/mnt/audio/0004.wav", 5)],
            r"the paths differ by their roots: --map-root /data/= --map-root /mnt/= matches 5 rows, if these folders hold the same",
        ),
        (
            [(path.replace(".wav", ".flac"), cps) for path, cps in cps_of(ROWS["dev"])],
            r"5 paths differ in extension only, audio/0000.wav and audio/0000.flac: --match stem$",
        ),
    ],
)
def test_what_to_do_where_nothing_aligns(source: Path, table: list[tuple[str, Any]], said: str) -> None:
    write_cps(source / "dev_cps.csv", table)
    with pytest.raises(AlignmentError, match=said):
        load(make_settings(source))


def test_settings_that_match_paths(source: Path) -> None:
    expected = load(make_settings(source)).snapshot.fingerprint
    rows = [(f"/mnt/d/{path}".replace(".wav", ".flac"), cps) for path, cps in cps_of(ROWS["dev"])]
    write_cps(source / "dev_cps.csv", [*rows[:2], *((f"/data/x/{path}", cps) for path, cps in cps_of(ROWS["dev"])[2:])])
    settings = make_settings(source, map_root=("/mnt/d=", "/data/x="), match="stem", strict=True)
    loaded = load(settings).snapshot
    assert loaded.fingerprint == expected  # what is served is the embeddings' path, however it was matched
    assert loaded.splits["dev"].report.num_by_setting == 5
    with pytest.raises(AlignmentError):
        load(replace(settings, map_root=()))
    with pytest.raises(SettingsError, match=r"map_root is '/mnt/d'; it must be A=B, .* \(CPSTREAM_MAP_ROOT\)"):
        make_settings(source, map_root=("/mnt/d",))


# One table for several splits


def test_one_table_for_all_splits(source: Path) -> None:
    expected = load(make_settings(source)).snapshot.fingerprint
    rows = {"train": ROWS["train"], "dev": [{**row, "file_path": f"dev/{row['file_path']}"} for row in ROWS["dev"]]}
    write_npy(source, rows)
    write_cps(source / "all.csv", [*cps_of(rows["train"]), *cps_of(rows["dev"])])
    settings = make_settings(source, cps_csv="all.csv", strict=True)
    both = load(settings).snapshot
    assert {name: split.report.num_cps for name, split in both.splits.items()} == {"train": 12, "dev": 5}
    assert both.splits["train"].fingerprint == load(make_settings(source, splits=("train",))).snapshot.splits["train"].fingerprint
    assert load(replace(settings, splits=("dev",))).snapshot.splits["dev"].info.num_dropped == 0
    assert expected != both.fingerprint
    write_cps(source / "all.csv", [*cps_of(rows["train"]), *cps_of(rows["dev"]), ("nobody.wav", 5)])
    with pytest.raises(AlignmentError, match=r"--strict, and alignment dropped 1 row: split 'dev': 1 no-embedding \(first: nobody"):
        load(replace(settings, splits=("dev",)))


def test_what_aligns_nothing_is_told_on_one_line_whatever_the_paths_are(source: Path) -> None:
    write_cps(source / "dev_cps.csv", [(path.replace("/", "/\r\n"), rate) for path, rate in cps_of(ROWS["dev"])])
    with pytest.raises(AlignmentError, match="5 paths differ in blanks only") as caught:
        load(make_settings(source))
    assert str(caught.value).isprintable()


def test_one_table_for_several_splits_matches_equal_paths_only(source: Path) -> None:
    """Or else the table of one split would serve all of them with its rates."""
    rows = {name: [{**row, "file_path": f"/data/{name}/{row['file_path']}"} for row in rows] for name, rows in ROWS.items()}
    write_npy(source, rows)
    write_cps(source / "dev_cps.csv", cps_of(ROWS["dev"]))
    with pytest.raises(AlignmentError, match="split 'train' aligns nothing"):
        load(make_settings(source, cps_csv="dev_cps.csv"))
    with pytest.raises(AlignmentError, match="split 'dev' aligns nothing"):
        load(make_settings(source, cps_csv="dev_cps.csv", splits=("dev", "train")))


def test_strict(source: Path) -> None:
    rows = cps_of(ROWS["dev"])
    write_cps(source / "dev_cps.csv", [*rows, rows[0]])
    settings = make_settings(source, strict=True)
    assert load(settings).snapshot.splits["dev"].info.dropped == {"identical-duplicate": 1}  # no sample is lost
    write_cps(source / "dev_cps.csv", [*rows[1:], (rows[0][0], "fast")])
    assert len(load(replace(settings, strict=False)).snapshot.splits["dev"].cps) == 4
    with pytest.raises(
        AlignmentError,
        match=r"--strict, and alignment dropped 1 row: split 'dev': 1 invalid-cps \(first: audio/0004.wav \(line 6\): 'fast'\); ",
    ):
        load(settings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"source_path": None},
            r"no source path: set --source-path \(CPSTREAM_SOURCE_PATH\) to the folder that holds numpy_embs.npy",
        ),
        ({"source_path": Path("nowhere")}, "nowhere/numpy_embs.npy: there is no such file; set --source-path"),
        ({"splits": ("trian",)}, "trian_cps.csv: there is no such CPS table; set --cps-csv"),
        ({"path_column": "file"}, "train_cps.csv: column 'file' is missing; .* set --path-column"),
    ],
)
def test_settings_that_name_no_data(source: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load(make_settings(source, **change))


def test_a_snapshot_folder_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/snapshots: Not a directory; .* or set --snapshot-dir"):
        load(make_settings(source, snapshot_dir=tmp_path / "file" / "snapshots"))


# Processes

KILL = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from data import make_settings
from cpstream_service.snapshot.load import load

source, step = Path(sys.argv[1]), 0
done = []
while True:
    settings = make_settings(source, splits=("train",), snapshot_dir=source / "snapshots" / str(step))
    if len(sys.argv) > 3:  # a damaged snapshot is in the way
        damaged = load(settings).snapshot
        os.truncate(damaged.path / "train" / "embeddings.npy", 500)
        del damaged
    child = os.fork()
    if child == 0:
        left = step

        def killing(original):
            def call(*arguments, **options):
                global left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return original(*arguments, **options)
            return call

        for name in ("fsync", "rename", "mkdir", "rmdir", "unlink"):
            setattr(os, name, killing(getattr(os, name)))
        load(settings)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    loaded = load(settings)
    left_over = [path.name for path in settings.snapshot_dir.glob(".writing-*")]
    print(os.WTERMSIG(status), loaded.snapshot.fingerprint, *left_over)
    if os.WIFEXITED(status):
        break
    step += 1
"""


@pytest.mark.parametrize("damaged", [[], ["damaged"]], ids=["first-start", "replacing"])
def test_a_kill_at_any_step_of_writing_leaves_the_next_start_correct(source: Path, damaged: list[str]) -> None:
    expected = load(make_settings(source, splits=("train",))).snapshot.fingerprint
    lines = run_python(KILL, source, Path(__file__).parents[1], *damaged).stdout.splitlines()
    assert lines[:-1] == [f"{signal.SIGKILL:d} {expected}"] * (len(lines) - 1)
    assert lines[-1] == f"0 {expected}"
    assert len(lines) > 10


TOGETHER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from data import make_settings
from cpstream_service.snapshot.load import load

read, write = os.pipe()
children = []
for _ in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        os.close(write)
        os.read(read, 1)  # until all are there
        loaded = load(make_settings(Path(sys.argv[1])))
        value = float(loaded.snapshot.splits["train"].embeddings[3, 3])
        print(loaded.notes[0].split(" ")[0], loaded.snapshot.fingerprint, value, flush=True)
        os._exit(0)
os.close(write)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


def test_services_that_start_at_once_share_one_snapshot(source: Path) -> None:
    lines = run_python(TOGETHER, source, Path(__file__).parents[1]).stdout.splitlines()
    loaded = load(make_settings(source)).snapshot
    value = float(loaded.splits["train"].embeddings[3, 3])
    assert sorted(lines) == [f"snapshot {loaded.fingerprint} {value}"] * 3 + [f"wrote {loaded.fingerprint} {value}"]

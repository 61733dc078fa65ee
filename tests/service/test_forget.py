import json
from pathlib import Path

import numpy as np
import pytest
from data import cps_of, make_rows, make_settings, write_cps, write_dataset, write_npy
from test_check import run_check

from cpstream_service.align.forget import ForgetList, read_forget_list
from cpstream_service.align.splits import align_all
from cpstream_service.errors import AlignmentError, DataError
from cpstream_service.snapshot.load import load


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "source", {"train": make_rows(6), "dev": make_rows(3, seed=1, folder="dev")})


def list_of(folder: Path, *lines: str) -> Path:
    path = folder / "forget.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def bytes_under(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_list_is_read_as_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes("\ufeff# gone\r\n\r\n ./a/b.wav \r\nfile:///x//ö.wav\r\n.\\#1.wav".encode())
    assert read_forget_list(path).keys == {"a/b.wav", "/x/ö.wav", "#1.wav"}
    assert read_forget_list(path).digest == ForgetList.of(["#1.wav", "/x/o\u0308.wav", "a/b.wav"]).digest


@pytest.mark.parametrize(
    ("content", "said"), [(b"a.wav\n\xff.wav", "line 2 is not UTF-8"), (b"a.wav\n\n./\n", "line 3: file_path './' names no file")]
)
def test_a_damaged_list_leaves_nothing_served_unseen(source: Path, tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "list"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        load(make_settings(source, forget_list=path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no such file; set --forget-list to"):
        load(make_settings(source, forget_list=path))


def test_a_changed_list_is_another_snapshot_without_a_trace_of_the_recording(source: Path) -> None:
    settings = make_settings(source)
    before = load(settings).snapshot
    vector = before.splits["train"].embeddings[2].tobytes()
    assert vector in bytes_under(settings.snapshot_dir)
    path = before.path
    del before
    listed = make_settings(source, strict=True, forget_list=list_of(source, "audio/0002.wav"))
    after = load(listed).snapshot
    assert not path.exists()
    held = bytes_under(settings.snapshot_dir)
    assert vector not in held
    assert b"0002.wav" not in held.replace(b"dev/0002.wav", b"")
    train = after.splits["train"]
    assert train.file_paths.to_pylist() == [f"audio/{i:04d}.wav" for i in (0, 1, 3, 4, 5)]
    assert train.info.dropped == {"forgotten": 2}  # its embedding and its rate
    assert after.splits["dev"].info.num_samples == 3
    list_of(source)  # empty: as without one
    assert load(listed).snapshot.path == path


def test_a_recording_is_listed_by_the_path_of_either_side(tmp_path: Path) -> None:
    rows = make_rows(4, folder="/data/audio")
    write_npy(tmp_path, {"train": rows})
    write_cps(tmp_path / "train_cps.csv", [(row["file_path"].removeprefix("/data/"), 5 + i) for i, row in enumerate(rows)])
    settings = make_settings(tmp_path, forget_list=list_of(tmp_path, "/data/audio/0000.wav", "audio/0003.wav"))
    (split,) = align_all(settings)
    assert split.file_paths == ["/data/audio/0001.wav", "/data/audio/0002.wav"]
    assert split.cps.tolist() == [6.0, 7.0]
    assert {(entry.side, entry.reason, entry.count) for entry in split.report.dropped} == {
        ("embedding", "forgotten", 2),
        ("cps", "forgotten", 2),
    }


def test_a_forgotten_row_has_no_other_reason_and_no_example(tmp_path: Path) -> None:
    rows = make_rows(3)
    rows[0]["embedding"][1] = np.nan
    write_npy(tmp_path, {"train": [*rows, rows[2] | {"embedding": rows[1]["embedding"]}]})
    write_cps(tmp_path / "train_cps.csv", [("audio/0001.wav", 5), ("audio/0002.wav", 5), ("audio/0000.wav", -1)])
    settings = make_settings(tmp_path, strict=True, forget_list=list_of(tmp_path, "audio/0000.wav", "audio/0002.wav"))
    (split,) = align_all(settings)
    assert split.file_paths == ["audio/0001.wav"]
    report = split.report
    assert {(e.side, e.reason): (e.count, e.examples) for e in report.dropped} == {
        ("embedding", "forgotten"): (3, ()),
        ("cps", "forgotten"): (2, ()),
    }
    assert sorted(row.file_path for row in split.drops) == ["audio/0000.wav"] * 2 + ["audio/0002.wav"] * 3
    load(settings)  # --strict lets it pass


def test_nothing_left_of_a_split(source: Path) -> None:
    settings = make_settings(source, forget_list=list_of(source, *(f"dev/{i:04d}.wav" for i in range(3))))
    with pytest.raises(AlignmentError, match=r"'dev' aligns nothing: .* 3 forgotten; the forget list names all of it: leave"):
        load(settings)


def test_check_says_what_is_forgotten_and_which_paths_are_of_no_row(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = list_of(source, "audio/0001.wav", "0003.wav", "audio/1.wav")
    assert run_check(monkeypatch, "--source-path", source, "--forget-list", path, "--strict") == 0
    out, err = capsys.readouterr()
    assert "train: 1 embedding, forgotten: The forget list names its recording." in out
    assert "0001.wav" not in out
    assert err.splitlines() == [
        f"cpstream: warning: {path} lists '0003.wav', and no row has this path; a recording like it is served: write its path, "
        "'audio/0003.wav'",
        f"cpstream: warning: {path} lists 'audio/1.wav', and no row has this path",
    ]
    assert run_check(monkeypatch, "--source-path", source, "--forget-list", path, "--json") == 0
    (train, _) = json.loads(capsys.readouterr().out)
    assert {(row["side"], row["reason"], row["file_path"]) for row in train["rows"]} == {
        ("embedding", "forgotten", "audio/0001.wav"),
        ("cps", "forgotten", "audio/0001.wav"),
    }


def test_one_table_for_all_splits(source: Path) -> None:
    train, dev = make_rows(6), make_rows(3, seed=1, folder="dev")
    write_cps(source / "all.csv", cps_of([*train, *dev]))
    listed = list_of(source, "audio/0000.wav", "dev/0001.wav")
    aligned = align_all(make_settings(source, cps_csv="all.csv", forget_list=listed))
    assert {split.name: len(split) for split in aligned} == {"train": 5, "dev": 2}

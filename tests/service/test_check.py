import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from data import cps_of, make_rows, run_python, write_cps, write_dataset
from rich.cells import cell_len


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "source", {"train": make_rows(6), "dev": make_rows(3, seed=1, folder="[dev]")})


def run_check(monkeypatch: pytest.MonkeyPatch, *arguments: object, columns: int = 160) -> int:
    from cpstream_service.cli.app import run

    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        run(["check", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def rows_of(table: str) -> Sequence[list[str]]:
    """Cells of the lines of rich's tables."""
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in table.splitlines() if re.match("[│┃]", line)]


def examples_of(report: str) -> dict[str, list[str]]:
    """The lines that say what was dropped or shared, each with the examples below it."""
    found: dict[str, list[str]] = {}
    last = ""
    for line in report.splitlines():
        if line.startswith("    "):
            found[last].append(line.strip())
        elif re.match(r"[^│┃┏┡└]+: [\d,]+ ", line):
            last = line
            found[last] = []
    return found


def test_sound_data(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(monkeypatch, "--source-path", source, "--strict") == 0
    out, err = capsys.readouterr()
    assert rows_of(out)[1:] == [["train", "6", "6", "6", "6", "0", "0"], ["dev", "3", "3", "3", "3", "0", "0"]]
    assert "Dropped" not in out
    assert err == ""
    assert not (source.parent / "cpstream").exists()


def test_dropped_rows_and_leaks(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    dev = make_rows(3, seed=1, folder="[dev]")
    train = [*make_rows(6), dev[0]]
    write_dataset(source, {"train": train, "dev": dev})
    table = cps_of(train)
    write_cps(source / "train_cps.csv", [*table[1:], (table[0][0], ""), ("nowhere.wav", 4)])
    assert run_check(monkeypatch, "--source-path", source) == 0
    out, err = capsys.readouterr()
    cells = rows_of(out)
    assert ["train", "7", "8", "6", "6", "0", "3"] in cells
    assert examples_of(out) == {
        "train: 1 embedding, partner-dropped: The row that belongs to it was dropped; it is counted there.": ["[dev]/0000.wav"],
        "train: 1 CPS row, no-embedding: The CPS row has no embedding.": ["nowhere.wav"],
        "train: 1 CPS row, invalid-cps: The CPS is not a finite positive number.": ["[dev]/0000.wav (line 8): ''"],
    }
    assert err == ""

    assert run_check(monkeypatch, "--source-path", source, "--strict") == 1
    out, err = capsys.readouterr()
    assert examples_of(out)["train: 1 CPS row, no-embedding: The CPS row has no embedding."] == ["nowhere.wav"]
    assert re.fullmatch(r"cpstream: --strict, and alignment dropped 2 rows: split 'train': .*\n", err)

    write_cps(source / "train_cps.csv", table)
    assert run_check(monkeypatch, "--source-path", source, "--strict") == 0  # a leak drops nothing
    leaks = {"train: 1 also in dev": ["[dev]/0000.wav"], "dev: 1 also in train": ["[dev]/0000.wav"]}
    assert examples_of(capsys.readouterr().out) == leaks


def test_a_split_that_aligns_nothing(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_cps(source / "dev_cps.csv", [("elsewhere/x.wav", 5)])
    assert run_check(monkeypatch, "--source-path", source) == 1
    out, err = capsys.readouterr()
    assert ["dev", "3", "1", "0", "0", "0", "4"] in rows_of(out)
    assert err.startswith("cpstream: split 'dev' aligns nothing: none of its 3 embeddings")


def test_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(monkeypatch, "--source-path", tmp_path) == 1
    assert capsys.readouterr().err == (
        f"cpstream: {tmp_path}/numpy_embs.npy: there is no such file; set --source-path to the folder that holds numpy_embs.npy\n"
    )


def test_checking_npy_imports_neither_torch_nor_chromadb(source: Path) -> None:
    code = f"""
import sys
from cpstream_service.cli.check import check
from cpstream_service.settings import DataSettings
from pathlib import Path
check(data=DataSettings(source_path=Path({str(source)!r})))
print([name for name in ("torch", "chromadb", "pandas", "fastapi") if name in sys.modules])
"""
    assert run_python(code).stdout.splitlines()[-1] == "[]"


EVIL = "a\x1b[31mred\x00\r\n\u202e[bold]x[/bold]/" + "deep/" * 1000 + "0001.wav"


@pytest.mark.parametrize("columns", [80, 200])
def test_text_of_others_is_escaped_and_fits(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = make_rows(1)[0]["embedding"]
    rows = [*make_rows(4), *({"embedding": vector, "file_path": path} for path in (EVIL, "语" * 150 + "/0002.wav"))]
    name = "tr[red]ain\x1b]0;x\x07"
    write_dataset(tmp_path / "source", {name: rows})
    table = next((tmp_path / "source").glob("*.csv"))
    write_cps(table, cps_of(make_rows(4)))
    assert run_check(monkeypatch, tmp_path / "source", columns=columns) == 0
    out, _ = capsys.readouterr()
    assert max(map(cell_len, out.splitlines())) <= columns
    assert all(c.isprintable() or c == "\n" for c in out)
    assert r"tr[red]ain\x1b]0;x\x07" in out
    (example,) = (line for line in out.splitlines() if "0001.wav" in line and "…" in line)
    assert example.startswith(r"    a\x1b[31mred\x00\r\n")
    assert len(example) == columns
    assert run_check(monkeypatch, tmp_path / "source", "--strict", columns=columns) == 1
    err = capsys.readouterr().err
    assert err.removesuffix("\n").isprintable()
    assert len(err) < 400


def test_the_whole_report_as_json(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (left_out, _), *table = cps_of(make_rows(3, seed=1, folder="[dev]"))
    write_cps(source / "dev_cps.csv", table)
    assert run_check(monkeypatch, source, "--json") == 0
    train, dev = json.loads(capsys.readouterr().out)
    assert (train["split"], train["num_aligned"], train["dropped"]) == ("train", 6, [])
    assert (dev["dropped"][0]["reason"], dev["dropped"][0]["count"]) == ("no-cps", 1)
    row = {"side": "embedding", "reason": "no-cps", "file_path": left_out, "where": "", "detail": ""}
    assert (train["rows"], dev["rows"]) == ([], [row])


def test_every_dropped_row_is_in_the_json(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(source, {"train": make_rows(40), "dev": make_rows(3, seed=1)})
    write_cps(source / "train_cps.csv", [*cps_of(make_rows(20)), *((f"x/{i}.wav", "fast") for i in range(30))])
    assert run_check(monkeypatch, source, "--json") == 0
    rows = next(report for report in json.loads(capsys.readouterr().out) if report["split"] == "train")["rows"]
    assert sorted(row["file_path"] for row in rows if row["reason"] == "no-cps") == [f"audio/{i:04d}.wav" for i in range(20, 40)]
    bad = [row for row in rows if row["reason"] == "invalid-cps"]
    assert {(row["file_path"], row["where"], row["detail"]) for row in bad} == {
        (f"x/{i}.wav", f"line {i + 22}", "'fast'") for i in range(30)
    }
    assert run_check(monkeypatch, source) == 0
    assert "    and 25 more (--json lists all)" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 200])
def test_roots_that_differ_are_listed_with_options_to_paste(
    columns: int, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = [("/mnt/a" + "x" * 90, "/srv/one"), ("/mnt/b", "/srv/two")]
    made = make_rows(8)
    rows = [row | {"file_path": f"{roots[i % 2][0]}/{row['file_path']}"} for i, row in enumerate(made)]
    table = [(f"{roots[i % 2][1]}/{path}", cps) for i, (path, cps) in enumerate(cps_of(made))]
    write_dataset(source, {"train": rows, "dev": make_rows(3)})
    write_cps(source / "train_cps.csv", table)
    assert run_check(monkeypatch, source, columns=columns) == 1
    lines = capsys.readouterr().out.splitlines()
    options = [line.split() for line in lines if line.startswith("    --map-root")]
    assert len(options) == 2
    given = [part for option in options for part in option]
    assert run_check(monkeypatch, source, *given, "--strict") == 0
    assert ["train", "8", "8", "8", "0", "0", "8", "0"] in rows_of(capsys.readouterr().out)


def test_a_mistyped_split_and_a_missing_folder_are_named_as_such(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_check(monkeypatch, source, "--splits", "trian") == 1
    assert capsys.readouterr().err == (
        f"cpstream: {source}/trian_cps.csv: there is no such CPS table; set --cps-csv to where it lies, "
        "or --splits to some that have one: 'dev', 'train'\n"
    )
    write_cps(source / "all.csv", cps_of(make_rows(6)))
    assert run_check(monkeypatch, source, "--splits", "trian", "--cps-csv", "all.csv") == 1
    assert "has no split 'trian'; it has: 'train', 'dev'; set --splits" in capsys.readouterr().err
    assert run_check(monkeypatch, source / "nowhere", "--splits", "train") == 1
    assert f"{source}/nowhere/numpy_embs.npy: there is no such file; set --source-path" in capsys.readouterr().err


# The whole list


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_every_dropped_row_in_a_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    import pandas as pd

    odd = ["a,b.wav", 'a"b.wav', "a\nb.wav", "=1+1.wav", "\u00e9.wav", "\x1b[31mred.wav"]
    train = [
        *make_rows(40),
        *({"embedding": row["embedding"], "file_path": path} for row, path in zip(make_rows(6), odd, strict=True)),
    ]
    write_dataset(source, {"train": train, "dev": make_rows(3, seed=1, folder="dev")})
    write_cps(source / "train_cps.csv", [*cps_of(train[20:30]), (train[30]["file_path"], "fast"), ("nowhere.wav", 4)])
    report = tmp_path / f"dropped{suffix}"
    report.write_text("of an earlier run")
    assert run_check(monkeypatch, "--source-path", source, "--report", report) == 0
    assert "wrote 38 dropped rows to" in capsys.readouterr().err
    frame = pd.read_csv(report, keep_default_na=False) if suffix == ".csv" else pd.read_parquet(report)
    assert list(frame.columns) == ["split", "side", "reason", "file_path", "where", "detail"]
    assert (frame["split"] == "train").all()
    missing = frame[(frame["side"] == "embedding") & (frame["reason"] == "no-cps")]
    expected = {row["file_path"] for row in train[:20] + train[31:]}
    assert set(missing["file_path"]) == expected
    assert len(missing) == len(expected)
    (bad,) = frame[frame["reason"] == "invalid-cps"].to_dict("records")
    assert (bad["side"], bad["file_path"], bad["where"]) == ("cps", train[30]["file_path"], "line 12")
    assert "fast" in bad["detail"]
    assert frame[frame["reason"] == "no-embedding"]["file_path"].tolist() == ["nowhere.wav"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_report_is_written_where_a_split_is_refused_and_of_no_rows(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    for name in ("report.parquet", "report.csv"):
        assert run_check(monkeypatch, source, "--report", tmp_path / name) == 0
    assert len(pd.read_parquet(tmp_path / "report.parquet")) == len(pd.read_csv(tmp_path / "report.csv")) == 0
    write_cps(source / "dev_cps.csv", [("nowhere.wav", 4)])
    assert run_check(monkeypatch, source, "--report", tmp_path / "report.csv") == 1
    assert pd.read_csv(tmp_path / "report.csv")["reason"].tolist() == ["no-cps"] * 3 + ["no-embedding"]


def test_a_report_that_cannot_be_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_check(monkeypatch, source, "--report", tmp_path / "report.txt") == 2
    assert capsys.readouterr().err == f"cpstream: report is '{tmp_path}/report.txt'; it must end in .csv or .parquet\n"
    assert run_check(monkeypatch, source, "--report", tmp_path / "none" / "report.csv") == 2
    assert capsys.readouterr().err == f"cpstream: report is '{tmp_path}/none/report.csv'; there is no folder '{tmp_path}/none'\n"
    (tmp_path / "report.csv").mkdir()
    assert run_check(monkeypatch, source, "--report", tmp_path / "report.csv") == 1
    assert f"cpstream: {tmp_path}/report.csv: cannot write it: Is a directory; free space" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_what_is_wrong_with_a_row_is_said_whole(
    columns: int, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (source / "train_cps.csv").open("a") as table:
        table.write("audio/a-folder-with-a-long-name/another-folder-with-a-long-name/x.wav,12,13\n")
    assert run_check(monkeypatch, source, columns=columns) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "the line has 3 fields for 2 columns: quote the commas in them" in out


def test_a_reader_that_has_enough_ends_it_quietly(source: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # before anything is written: `| true` may still be there when all of it fits into the pipe
    command = [sys.executable, "-m", "cpstream_service", "check", str(source), "--json"]
    with open(writer, "wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in done.stderr

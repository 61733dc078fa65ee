import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from data import cps_of, make_rows, run_python, write_cps, write_dataset


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "source", {"train": make_rows(6), "dev": make_rows(3, seed=1, folder="[dev]")})


def run_check(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    from cpstream_service.cli.app import run

    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as ended:
        run(["check", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def rows_of(table: str) -> Sequence[list[str]]:
    """Cells of the lines of rich's tables."""
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in table.splitlines() if re.match("[│┃]", line)]


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
    assert ["train", "embedding", "partner-dropped", "1", "[dev]/0000.wav"] in cells
    assert ["train", "cps", "invalid-cps", "1", "[dev]/0000.wav (line 8): ''"] in cells
    assert ["train", "cps", "no-embedding", "1", "nowhere.wav"] in cells
    assert "The CPS is not a finite positive number." in out
    assert err == ""

    assert run_check(monkeypatch, "--source-path", source, "--strict") == 1
    out, err = capsys.readouterr()
    assert ["train", "cps", "no-embedding", "1", "nowhere.wav"] in rows_of(out)
    assert re.fullmatch(r"cpstream: --strict, and alignment dropped 2 rows: split 'train': .*\n", err)

    write_cps(source / "train_cps.csv", table)
    assert run_check(monkeypatch, "--source-path", source, "--strict") == 0  # a leak drops nothing
    assert ["train", "dev", "1", "[dev]/0000.wav"] in rows_of(capsys.readouterr().out)


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

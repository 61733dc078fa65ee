import math
from pathlib import Path

import numpy as np
import pytest
from data import write_cps

from cpstream_service.errors import DataError
from cpstream_service.sources.cps_table import CpsTable, read_cps_table


def read(path: Path, data: bytes | str) -> CpsTable:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_cps_table(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_bom_and_line_ends(tmp_path: Path, separator: str, bom: bytes, end: str) -> None:
    lines = [["text", "cps", "audio_path"], ["x", "12.5", "a/ä.wav"], ["y", " 7 ", "b.wav"]]
    table = read(tmp_path / "t.csv", bom + end.join(separator.join(line) for line in lines).encode())
    assert table.file_paths == ["a/ä.wav", "b.wav"]
    np.testing.assert_array_equal(table.cps, [12.5, 7])
    np.testing.assert_array_equal(table.lines, [2, 3])
    assert table.bad_texts == {}
    assert table.problems == []


def test_quoting_and_line_numbers(tmp_path: Path) -> None:
    text = '\naudio_path,text,cps\n"a, b.wav","two\nlines; ""quoted""",3\n\nc.wav,plain "quotes",4\n'
    table = read(tmp_path / "t.csv", text)
    assert table.file_paths == ["a, b.wav", "c.wav"]
    np.testing.assert_array_equal(table.lines, [3, 6])  # the first row takes two lines, and one is blank


def test_other_columns(tmp_path: Path) -> None:
    path = write_cps(tmp_path / "t.csv", [("a.wav", 3)], header=["file", "speech rate"])
    table = read_cps_table(path, "file", "speech rate")
    assert (table.file_paths, table.cps.tolist()) == (["a.wav"], [3])


@pytest.mark.parametrize("text", ["", " ", "nan", "NaN", "inf", "-inf", "0", "-3", "twelve", "1_0", "1e999", "0x10", "3 4"])
def test_values_that_are_no_rate(tmp_path: Path, text: str) -> None:
    table = read(tmp_path / "t.csv", f"audio_path,cps\na.wav,5\nb.wav,{text}\nc.wav,6\n")
    assert math.isnan(table.cps[1])
    assert table.bad_texts == {1: text}
    np.testing.assert_array_equal(table.cps[[0, 2]], [5, 6])


@pytest.mark.parametrize(
    ("separator", "text", "value"), [(";", "12,5", 12.5), ("\t", "0,25", 0.25), (",", '"12,5"', None), (";", "1,2,3", None)]
)
def test_decimal_comma(tmp_path: Path, separator: str, text: str, value: float | None) -> None:
    table = read(tmp_path / "t.csv", f"audio_path{separator}cps\na.wav{separator}{text}\n")
    assert table.cps[0] == value if value is not None else math.isnan(table.cps[0])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a.wav", "line 3 (a.wav): the line has 1 of 2 columns"),
        (",5", "line 3: audio_path is empty"),
        ("./,5", "line 3: audio_path './' names no file"),
    ],
)
def test_unreadable_rows(tmp_path: Path, line: str, said: str) -> None:
    table = read(tmp_path / "t.csv", f"audio_path,cps\nx.wav,5\n{line}\ny.wav,6\n")
    assert table.file_paths == ["x.wav", "y.wav"]
    (problem,) = table.problems
    assert (str(problem), problem.reason.code) == (said, "unreadable-row")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty; a CPS table starts with a header line naming 'audio_path' and 'cps'"),
        (b"\n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"audio_path,cps\n", "has a header but no rows"),
        (
            b"path,cps\na,1\n",
            "column 'audio_path' is missing; the header has: 'path', 'cps'; rename the column or set --path-column",
        ),
        (
            b"audio_path;rate\na;1\n",
            "column 'cps' is missing; the header has: 'audio_path', 'rate'; rename the column or set --cps-column",
        ),
        (b"audio_path,cps,cps\na,1,2\n", "column 'cps' occurs more than once"),
        (b"audio_path,cps\na.wav,1\nb\xe4.wav,2\n", r"line 3: byte 24 \(0xe4\) is not UTF-8; save it as CSV UTF-8"),
        ("audio_path,cps\na.wav,1\n".encode("utf-16"), "is UTF-16, not UTF-8"),
        (b'audio_path,cps\na.wav,1\n"b.wav,2\n', r"line 3: not a CSV row \(unexpected end of data\); mend its quotes"),
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path / "train_cps.csv", data)
    assert str(caught.value).startswith(str(tmp_path / "train_cps.csv"))


def test_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_cps.csv: there is no such CPS table; set --cps-csv to where it lies"):
        read_cps_table(tmp_path / "train_cps.csv")
    with pytest.raises(DataError, match="is a folder, not a CPS table; set --cps-csv"):
        read_cps_table(tmp_path)

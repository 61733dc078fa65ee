import gzip
import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data import write_cps

from cpstream_service.errors import DataError
from cpstream_service.setting_errors import SettingsError
from cpstream_service.settings import DataSettings
from cpstream_service.sources.cps_table import CpsTable, read_cps_table


def read(path: Path, data: bytes | str) -> CpsTable:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_cps_table(path)


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "audio_path,cps\n")
    return file.getvalue()


def said(table: CpsTable) -> list[str]:
    return [str(problem) for problem in table.problems]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
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
        (
            "audio_path,cps\na.wav,1\n".encode("utf-16-le"),
            "line 1: it holds a NUL; .*, set --csv-encoding utf-16-le",
        ),
        (b"audio_path,cps,text\n" + b"x" * 200_000 + b",1,2\n", r"line 2: not a CSV row \(field larger than field limit"),
        (b"x" * 200_000 + b",cps\n", r"line 1: not the header of a CSV file \(field larger"),
        (gzip.compress(b"audio_path,cps\n", mtime=0), "is compressed by gzip, not a CSV file; unpack it: gunzip"),
        (zipped("train_cps.csv"), "is a zip archive, not a CSV file; unpack it"),
        (zipped("xl/workbook.xml"), r"is an Excel workbook \(xlsx\), not a CSV file; save it as CSV UTF-8"),
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


# Fields and columns


@pytest.mark.parametrize(
    ("separator", "row", "wrong"),
    [
        (",", "a/2.wav,chapter one, 7,13.0", "line 3 (a/2.wav): the line has 4 fields for 3 columns: quote the commas in them"),
        (";", "a/2.wav;one; two;13", "line 3 (a/2.wav): the line has 4 fields for 3 columns: quote the semicolons in them"),
        (",", "a/2.wav,13.0", "line 3 (a/2.wav): the line has 2 of 3 columns"),
    ],
)
def test_no_row_is_shifted_into_place(tmp_path: Path, separator: str, row: str, wrong: str) -> None:
    header, sound = separator.join(["audio_path", "text", "cps"]), separator.join(["a/1.wav", "x", "12"])
    table = read(tmp_path / "t.csv", f"{header}\n{sound}\n{row}\n")
    assert (table.file_paths, table.cps.tolist(), said(table)) == (["a/1.wav"], [12], [wrong])


def test_trailing_separators_and_blank_rows(tmp_path: Path) -> None:
    text = "audio_path,cps,text,,\n\na.wav,5,x\n,,,,\n \nb.wav,6,y,,\nc.wav,7,z,,,,,\n  ,\t,,\nd.wav,8,,,\n"
    table = read(tmp_path / "t.csv", text)
    assert (table.file_paths, table.cps.tolist(), said(table)) == (["a.wav", "b.wav", "c.wav", "d.wav"], [5, 6, 7, 8], [])
    np.testing.assert_array_equal(table.lines, [3, 6, 7, 9])


def test_blanks_around_paths_and_numbers(tmp_path: Path) -> None:
    table = read(tmp_path / "t.csv", " audio_path , cps \n a.wav , 5 \n\tb c.wav\t,6\n")
    assert (table.file_paths, table.cps.tolist()) == (["a.wav", "b c.wav"], [5, 6])


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_a_line_that_says_the_separator(tmp_path: Path, line: str) -> None:
    table = read(tmp_path / "t.csv", f"{line}\naudio_path;cps\na,b.wav;12,5\n")
    assert (table.file_paths, table.cps.tolist(), table.lines.tolist()) == (["a,b.wav"], [12.5], [3])


def test_the_index_that_pandas_writes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"audio_path": ["a, b.wav", "c.wav"], "cps": [12.5, 7]})
    for options in ({}, {"index": False}, {"sep": "\t"}, {"encoding": "utf-16"}, {"lineterminator": "\r\n"}):
        frame.to_csv(tmp_path / "t.csv", **options)
        table = read_cps_table(tmp_path / "t.csv")
        assert (table.file_paths, table.cps.tolist(), said(table)) == (["a, b.wav", "c.wav"], [12.5, 7], [])


# Quotes


def test_a_quote_in_a_tab_table_swallows_no_row(tmp_path: Path) -> None:
    text = 'audio_path\ttext\tcps\na.wav\t"hello\t5\nb.wav\tbye"\t6\nc.wav\t12" wide\t7\n'
    table = read(tmp_path / "t.tsv", text)
    assert (table.file_paths, table.cps.tolist(), said(table)) == (["a.wav", "b.wav", "c.wav"], [5, 6, 7], [])
    table = read(tmp_path / "t.tsv", 'audio_path\ttext\tcps\na.wav\t"yes" he said\t5\n"b".wav\tx\t6\n')
    assert (table.file_paths, table.cps.tolist()) == (["a.wav", '"b".wav'], [5, 6])


def test_a_tab_table_whose_quotes_are_well_formed(tmp_path: Path) -> None:
    text = '"audio_path"\t"text"\t"cps"\n"a.wav"\t"a ""tab\t"""\t"5"\n"b.wav"\t"two\nlines"\t6\n'
    table = read(tmp_path / "t.tsv", text)
    assert (table.file_paths, table.cps.tolist(), said(table)) == (["a.wav", "b.wav"], [5, 6], [])


@pytest.mark.parametrize("path", ["{}.wav", "utt-{}"])
def test_a_quote_that_swallows_rows_of_a_comma_table(tmp_path: Path, path: str) -> None:
    a, b, c = map(path.format, "abc")
    table = read(tmp_path / "t.csv", f'audio_path,text,cps\n{a},"hello,5\n{b},bye",6\n{c},x,7\n')
    assert (table.file_paths, table.cps.tolist()) == ([c], [7])
    assert said(table) == [f"line 2 ({a}): lines 2 to 3 are one row by their quotes, and look like several: mend the quotes"]


# Encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1251", "koi8-r", "utf-16-be"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes("audio_path,cps\nаудио/ы.wav,5\n".encode(encoding))
    table = read_cps_table(tmp_path / "t.csv", encoding=encoding if "16" not in encoding or "be" in encoding else "utf-8")
    assert (table.file_paths, table.cps.tolist()) == (["аудио/ы.wav"], [5])


def test_an_encoding_that_is_not_the_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"byte 15 \(0xfb\) is not UTF-8; .* --csv-encoding cp1251 \(Cyrillic\), cp1252"):
        read(tmp_path / "t.csv", "audio_path,cps\nы.wav,5\n".encode("cp1251"))
    with pytest.raises(SettingsError, match=r"csv_encoding is 'cp12511', which is no encoding; .* \(CPSTREAM_CSV_ENCODING\)"):
        DataSettings(csv_encoding="cp12511")
    with pytest.raises(SettingsError, match="csv_encoding is 'hex', which is no encoding"):
        DataSettings(csv_encoding="hex")

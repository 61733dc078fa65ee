"""Targets `csv` and `tables`: CPS tables (CSV, TSV, UTF-16; JSON lines, Parquet), read and aligned as a start does it."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpstream_service.align.align import align
from cpstream_service.align.verdict import refuse
from cpstream_service.errors import DataError
from cpstream_service.settings import DataSettings
from cpstream_service.sources.rows import SourceSplit
from cpstream_service.sources.tables import read_table

from .mutate import ANY, Mutation, mutated
from .target import Target, WrongError, check_message, labelled, parted

DIM, ROWS = 4, 12
PATHS = [f"audio/{'ünï' if i % 3 else 'a'}/{i:04d}.wav" for i in range(ROWS)]
VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "labels": {"labels": ("pitch", "energy")},
    "text": {"cps_column": "rate"},
    "latin": {"csv_encoding": "latin-1", "match": "stem"},
}
"""Settings by which a table is read."""

Seeds = list[tuple[str, bytes]]
"""(variant, content)"""


def rows() -> list[dict[str, object]]:
    return [
        {
            "audio_path": path,
            "cps": round(5 + i / 8, 3),
            "text": f'it said "{i}", twice',
            "duration": 1.5 + i,
            "pitch": 100 + i,
            "energy": i / 7,
        }
        for i, path in enumerate(PATHS)
    ]


def prepare_csv(_: Path) -> Seeds:
    seeds = []
    for separator, quoting in ((",", csv.QUOTE_MINIMAL), (";", csv.QUOTE_ALL), ("\t", csv.QUOTE_MINIMAL), ("|", csv.QUOTE_MINIMAL)):
        for columns in (("audio_path", "cps"), tuple(rows()[0])):
            file = io.StringIO(newline="")
            writer = csv.DictWriter(file, columns, delimiter=separator, quoting=quoting, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows())
            text = file.getvalue()
            marked = f"sep={separator}\r\n{text}"
            seeds += [
                text.encode(),
                text.encode("utf-8-sig"),
                text.encode("utf-16"),
                marked.encode(),
                text.replace("\r", "").encode(),
            ]
    return [(variant, seed) for seed in seeds for variant in VARIANTS]


def prepare_tables(folder: Path) -> Seeds:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    seeds = [lines.encode(), lines.encode("utf-8-sig"), lines.replace("audio_path", "audio_filepath").encode()]
    for compression, version in (("snappy", "2.6"), ("none", "1.0"), ("zstd", "2.6"), ("gzip", "2.4")):
        path = folder / f"{compression}.parquet"
        pq.write_table(pa.Table.from_pylist(rows()), path, compression=compression, version=version)
        seeds.append(path.read_bytes())
    return [(variant, seed) for seed in seeds for variant in ("plain", "labels", "text")]


def quote(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """What means something in a CSV file, at any place."""
    at = random.randrange(len(data) + 1)
    data[at:at] = random.choice(
        (b'"', b'""', b",", b";", b"\t", b"|", b"\n", b"\r", b"\r\n", b"\0", b"\xef\xbb\xbf", b"sep=x\n", b"'", b"\\")
    )


def swap_fields(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    lines = bytes(data).split(b"\n")
    at, other = random.randrange(len(lines)), random.randrange(len(lines))
    lines[at], lines[other] = lines[other], lines[at]
    data[:] = b"\n".join(lines)


def endless(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """A field, a line or a nesting without end."""
    at = random.randrange(len(data) + 1)
    piece = random.choice((b"a", b",", b'"', b"[", b'{"a":', b"\n", b"1", b"\xff\xfe"))
    data[at:at] = piece * random.choice((10, 1000, 140_000))


CSV: tuple[Mutation, ...] = (*ANY, quote, quote, quote, swap_fields, endless)


class _Tables:
    def __init__(self, seeds: Seeds, folder: Path) -> None:
        self._seeds, self._path = seeds, folder / "train_cps.csv"
        self._contents = [content for _, content in seeds]
        vectors = np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM)
        self._split = SourceSplit("train", list(PATHS), vectors)
        self._settings = {name: DataSettings(source_path=folder, **given) for name, given in VARIANTS.items()}  # type: ignore[arg-type]

    def draw(self, random: Random) -> bytes:
        variant, seed = random.choice(self._seeds)
        return labelled(variant, mutated(seed, random, self._contents, CSV))

    def accepts(self, data: bytes) -> bool:
        variant, content = parted(data)
        settings = self._settings[variant]
        self._path.write_bytes(content)
        try:
            table = read_table(self._path, settings)
            aligned = align(self._split, table)
            refuse(settings, [aligned.report])
        except DataError as error:
            check_message(error)
            return False
        rates = dict(zip(table.file_paths, table.cps.tolist(), strict=True))
        served = [rate for rate in aligned.cps.tolist() if not 0 < rate < float("inf")]
        if served or len(aligned.cps) > len(rates) or not set(aligned.file_paths) <= set(PATHS):
            raise WrongError(f"served {aligned.cps.tolist()} for {aligned.file_paths}")
        _ = aligned.embeddings, aligned.arrow_paths
        return True


@contextmanager
def start(seeds: Seeds, folder: Path) -> Iterator[_Tables]:
    yield _Tables(seeds, folder)


CSV_TARGET = Target("csv", prepare_csv, start)
TABLES_TARGET = Target("tables", prepare_tables, start)

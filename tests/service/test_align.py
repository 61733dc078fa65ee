import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import is_end, slow_match

from cpstream_client.contract.bodies import AlignmentReport
from cpstream_service.align.align import AlignedSplit, align, find_leaks, num_lost
from cpstream_service.align.match import normalise_path
from cpstream_service.sources.cps_table import CpsTable
from cpstream_service.sources.rows import Reason, RowProblem, SourceSplit

A, B = [1.0, 2.0], [3.0, 4.0]


def source_of(*rows: tuple[str, list[float]], problems: tuple[RowProblem, ...] = (), name: str = "train") -> SourceSplit:
    embeddings = np.array([vector for _, vector in rows], np.float32).reshape(len(rows), 2)
    return SourceSplit(name, [path for path, _ in rows], embeddings, list(problems))


def table_of(*rows: tuple[str, float], problems: tuple[RowProblem, ...] = ()) -> CpsTable:
    cps = np.array([value for _, value in rows], np.float64)
    return CpsTable(Path("t.csv"), [path for path, _ in rows], cps, np.arange(len(rows)) + 2, {}, list(problems))


def aligned_rows(split: AlignedSplit) -> list[tuple[str, list[float], float]]:
    return list(zip(split.file_paths, split.embeddings.tolist(), split.cps.tolist(), strict=True))


def reasons(report: AlignmentReport) -> dict[tuple[str, str], int]:
    return {(entry.side, entry.reason): entry.count for entry in report.dropped}


# Rows


def test_rows_are_ordered_by_key_and_carry_normalised_paths() -> None:
    source = source_of(("./b.wav", B), (" c.wav", A), ("x\\a.wav", A))
    split = align(source, table_of(("c.wav", 7), ("file://x//a.wav", 6), ("b.wav", 5)))
    assert aligned_rows(split) == [("b.wav", B, 5.0), ("c.wav", A, 7.0), ("x/a.wav", A, 6.0)]
    assert split.embeddings.dtype == split.cps.dtype == np.float32
    report = split.report
    assert (report.num_embeddings, report.num_cps, report.num_aligned, report.num_exact, report.num_by_suffix) == (3, 3, 3, 3, 0)
    assert report.dropped == report.roots == report.warnings == ()


def test_one_root_before_all_paths_of_a_side() -> None:
    source = source_of(("/data/b.wav", B), ("/data/s/a.wav", A), ("/data/c.wav", A))
    split = align(source, table_of(("b.wav", 5), ("s/a.wav", 6), ("d.wav", 7)))
    assert aligned_rows(split) == [("/data/b.wav", B, 5.0), ("/data/s/a.wav", A, 6.0)]
    report = split.report
    assert (report.num_aligned, report.num_exact, report.num_by_suffix, report.num_by_setting) == (2, 0, 2, 0)
    assert reasons(report) == {("embedding", "no-cps"): 1, ("cps", "no-embedding"): 1}
    (root,) = report.roots
    assert (root.embeddings, root.cps, root.count, root.applied) == ("/data/", "", 2, True)
    assert root.options == ("--map-root /data/=",)


def test_nfd_names_match_nfc_names() -> None:
    name = "größe/é.wav"
    split = align(source_of((unicodedata.normalize("NFD", name), A)), table_of((name, 5)))
    assert aligned_rows(split) == [(name, A, 5.0)]


def test_duplicates() -> None:
    source = source_of(("same.wav", A), ("./same.wav", A), ("differ.wav", A), ("differ.wav", B), ("cps.wav", A))
    table = table_of(("same.wav", 5), ("same.wav", 5), ("differ.wav", 6), ("cps.wav", 7), ("cps.wav", 8))
    split = align(source, table)
    assert aligned_rows(split) == [("same.wav", A, 5.0)]
    assert reasons(split.report) == {
        ("embedding", "partner-dropped"): 1,
        ("embedding", "conflicting-duplicate"): 2,
        ("embedding", "identical-duplicate"): 1,
        ("cps", "partner-dropped"): 1,
        ("cps", "conflicting-duplicate"): 2,
        ("cps", "identical-duplicate"): 1,
    }
    assert num_lost(split.report) == 4  # what is lost with a conflict is counted there
    examples = {(entry.side, entry.reason): entry.examples for entry in split.report.dropped}
    assert examples["cps", "conflicting-duplicate"] == ("cps.wav (lines 5, 6)",)


def test_an_unusable_duplicate_leaves_the_other() -> None:
    source = source_of(("a.wav", [np.nan, 1]), ("a.wav", A))
    split = align(source, table_of(("a.wav", np.nan), ("a.wav", 5)))
    assert aligned_rows(split) == [("a.wav", A, 5.0)]
    assert reasons(split.report) == {("embedding", "non-finite-embedding"): 1, ("cps", "invalid-cps"): 1}


def test_zero_and_minus_zero_are_a_conflict() -> None:  # or else the order of the source would show in the fingerprint
    split = align(source_of(("a.wav", [0.0, 1]), ("a.wav", [-0.0, 1])), table_of(("a.wav", 5)))
    assert reasons(split.report)["embedding", "conflicting-duplicate"] == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_embeddings(bad: float) -> None:
    split = align(source_of(("a.wav", [1, bad]), ("b.wav", [3e38, 3e38])), table_of(("a.wav", 5), ("b.wav", 6)))
    assert split.file_paths == ["b.wav"]  # its sum of squares overflows; it is finite all the same
    assert reasons(split.report) == {("embedding", "non-finite-embedding"): 1, ("cps", "partner-dropped"): 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1e-60, 1e60])
def test_invalid_cps(bad: float) -> None:
    split = align(source_of(("a.wav", A), ("b.wav", B)), table_of(("a.wav", bad), ("b.wav", 6)))
    assert split.file_paths == ["b.wav"]
    assert reasons(split.report) == {("embedding", "partner-dropped"): 1, ("cps", "invalid-cps"): 1}
    assert num_lost(split.report) == 1
    assert split.report.dropped[1].examples[0].startswith("a.wav (line 2): ")


def test_an_unusable_row_does_not_yield_its_partner_to_another() -> None:
    bad = RowProblem(Reason.UNREADABLE_ROW, "row 0", "no", "x/a.wav")
    split = align(source_of(("y/a.wav", A), problems=(bad,)), table_of(("z/a.wav", 5)))
    assert len(split) == 0
    split = align(source_of(("a.wav", A)), table_of(("x/a.wav", np.nan), ("y/a.wav", 5)))
    assert len(split) == 0
    assert reasons(split.report)["embedding", "ambiguous-path"] == 1


def test_an_unusable_row_stands_for_its_partner() -> None:
    split = align(source_of(("/d/a.wav", A), ("/d/b.wav", A)), table_of(("a.wav", 5), ("b.wav", np.nan)))
    assert reasons(split.report) == {("embedding", "partner-dropped"): 1, ("cps", "invalid-cps"): 1}


def test_folders_that_contradict_never_match() -> None:
    source = source_of(("id10001/vidA/00137.wav", A), ("clean/x.wav", A), ("dev/x.wav", B))
    split = align(source, table_of(("id10002/vidB/00137.wav", 5), ("noisy/x.wav", 6), ("train/x.wav", 7)))
    assert len(split) == 0
    assert reasons(split.report) == {("embedding", "no-cps"): 3, ("cps", "no-embedding"): 3}


def test_ambiguous_or_missing() -> None:
    source = source_of(("p/a.wav", A), ("q/a.wav", A), ("q/b.wav", A), ("r/b.wav", A), ("c.wav", A))
    split = align(source, table_of(("a.wav", 5), ("s/a.wav", 6), ("q/b.wav", 7), ("d/c.wav", 8)))
    assert split.file_paths == ["q/b.wav"]
    assert reasons(split.report) == {
        ("embedding", "no-cps"): 1,  # r/b.wav
        ("embedding", "ambiguous-path"): 3,
        ("cps", "no-embedding"): 1,  # s/a.wav
        ("cps", "ambiguous-path"): 2,
    }
    assert [root.options for root in split.report.roots] == [("--map-root d/=",)]


def test_every_dropped_row_is_kept() -> None:
    problem = RowProblem(Reason.UNREADABLE_ROW, "row 7", "no numbers", "p.wav")
    source = source_of(*((f"{i}.wav", A) for i in range(9)), ("n.wav", [np.nan, 0]), problems=(problem,))
    rows = list(align(source, table_of(("n.wav", 5), ("0.wav", -1), ("0.wav", 5), ("0.wav", 5), ("z.wav", 5))).drops)
    assert {tuple(row) for row in rows} == {
        *(("embedding", "no-cps", f"{i}.wav", "", "") for i in range(1, 9)),
        ("embedding", "non-finite-embedding", "n.wav", "", ""),
        ("embedding", "unreadable-row", "p.wav", "row 7", "no numbers"),
        ("cps", "partner-dropped", "n.wav", "", ""),
        ("cps", "invalid-cps", "0.wav", "line 3", "'-1.0'"),
        ("cps", "identical-duplicate", "0.wav", "line 5", ""),
        ("cps", "no-embedding", "z.wav", "", ""),
    }
    assert len(rows) == len(set(rows))


def test_what_looks_wrong_is_served_with_a_warning() -> None:
    source = source_of(("a.wav", [0.0, -0.0]), ("b.wav", [1e-40, 0]), ("c.wav", A), ("d.wav", A), ("unserved.wav", [0, 0]))
    report = align(source, table_of(("a.wav", 1), ("b.wav", 60), ("c.wav", 0.5), ("d.wav", 1234))).report
    assert report.num_aligned == 4
    assert [(entry.reason, entry.side, entry.count, entry.examples) for entry in report.warnings] == [
        ("unusual-cps", "cps", 2, ("c.wav: 0.5", "d.wav: 1234.0")),
        ("zero-embedding", "embedding", 1, ("a.wav",)),
    ]


def test_leaks() -> None:
    table = table_of(("a.wav", 5), ("b.wav", 6), ("c.wav", 7))
    splits = [
        align(source_of(("a.wav", A), ("b.wav", B), name="train"), table),
        align(source_of(("./b.wav", B), ("c.wav", B), name="dev"), table),
        align(source_of(("c.wav", B), name="test"), table),
    ]
    leaks = find_leaks(splits)
    assert [(leak.reason, leak.count, leak.examples) for leak in leaks["dev"]] == [
        ("train", 1, ("b.wav",)),
        ("test", 1, ("c.wav",)),
    ]
    assert [(leak.reason, leak.count) for leak in leaks["train"]] == [("dev", 1)]


# Against an oracle that is slow and obvious

paths = st.sampled_from(["a", "./a", "b", "x/a", "x\\a", "y/a", "/x/a", "y/b", "q/y/b", "c", "x//c", "/r/x/c", "é", "e\u0301"])
embeddings = st.sampled_from([A, B, [np.nan, 1.0], [0.0, np.inf]])
rates = st.sampled_from([5.0, 6.0, np.nan, 0.0, -1.0, np.inf])


def slow_align(rows: list[tuple[str, list[float]]], table: list[tuple[str, float]]) -> tuple[list[Any], Counter[tuple[str, str]]]:
    def judge(pairs: list[Any], usable: Any, side: str, bad: str) -> tuple[dict[str, Any], set[str]]:
        chosen = {}
        for key in {normalise_path(path) for path, _ in pairs}:
            values = [value for path, value in pairs if normalise_path(path) == key]
            good = [value for value in values if usable(value)]
            dropped[side, bad] += len(values) - len(good)
            if good and all(value == good[0] for value in good):
                chosen[key] = good[0]
                dropped[side, "identical-duplicate"] += len(good) - 1
            else:
                dropped[side, "conflicting-duplicate"] += len(good)
        return chosen, {normalise_path(path) for path, _ in pairs}

    dropped: Counter[tuple[str, str]] = Counter()
    ours, all_ours = judge(rows, lambda vector: np.isfinite(vector).all(), "embedding", "non-finite-embedding")
    theirs, all_theirs = judge(table, lambda value: np.isfinite(value) and value > 0, "cps", "invalid-cps")
    exact, by_suffix = slow_match(all_ours, all_theirs)
    partner = {key: key for key in exact} | by_suffix
    served = sorted((key, ours[key], theirs[other]) for key, other in partner.items() if key in ours and other in theirs)
    served_ours, served_theirs = {key for key, _, _ in served}, {partner[key] for key, _, _ in served}
    for side, usable, done, matched, others, missing in (
        ("embedding", ours, served_ours, partner.keys(), all_theirs - exact, "no-cps"),
        ("cps", theirs, served_theirs, set(partner.values()), all_ours - exact, "no-embedding"),
    ):
        for key in usable.keys() - done:
            related = any(is_end(key, other) or is_end(other, key) for other in others)
            dropped[side, "partner-dropped" if key in matched else "ambiguous-path" if related else missing] += 1
    return served, +dropped


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(paths, embeddings), max_size=8), st.lists(st.tuples(paths, rates), max_size=8), st.randoms())
def test_align_against_the_oracle(rows: list[tuple[str, list[float]]], table: list[tuple[str, float]], random: Any) -> None:
    split = align(source_of(*rows), table_of(*table))
    served, dropped = slow_align(rows, table)
    assert aligned_rows(split) == served
    assert reasons(split.report) == dropped
    report = split.report
    assert report.num_embeddings == len(rows) == report.num_aligned + sum(d.count for d in report.dropped if d.side == "embedding")
    assert report.num_cps == len(table) == report.num_aligned + sum(d.count for d in report.dropped if d.side == "cps")
    assert report.num_exact + report.num_by_suffix == report.num_aligned

    random.shuffle(rows)
    random.shuffle(table)
    again = align(source_of(*rows), table_of(*table))
    assert aligned_rows(again) == served
    assert reasons(again.report) == dropped

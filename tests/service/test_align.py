import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cpstream_client.contract.bodies import AlignmentReport
from cpstream_service.align.align import AlignedSplit, align, find_leaks, num_lost
from cpstream_service.align.match import match_paths, normalise_path, normalise_paths
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


# The key


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a/b.wav", "a/b.wav"),
        ("./a/b.wav", "a/b.wav"),
        ("././a.wav", "a.wav"),
        (".//a.wav", "a.wav"),
        ("a\\b\\c.wav", "a/b/c.wav"),
        (".\\a.wav", "a.wav"),
        ("C:\\audio\\a.wav", "C:/audio/a.wav"),
        ("a//b///c.wav", "a/b/c.wav"),
        ("//server/a.wav", "/server/a.wav"),
        ("/a/./b.wav", "/a/./b.wav"),
        ("../a.wav", "../a.wav"),
        (".hidden.wav", ".hidden.wav"),
        (unicodedata.normalize("NFD", "größe/é.wav"), "größe/é.wav"),
    ],
)
def test_normalise_path(path: str, key: str) -> None:
    assert normalise_path(path) == key
    assert normalise_paths(["x.wav", path]) == ["x.wav", key]


@given(st.text(alphabet="a./\\é\u0301", max_size=12))
def test_normalise_path_is_idempotent(path: str) -> None:
    key = normalise_path(path)
    assert normalise_path(key) == key
    assert "\\" not in key
    assert "//" not in key
    assert not key.startswith("./")


# Matching


def suffixes(key: str) -> list[str]:
    """All of a key's path suffixes, the longest first."""
    parts = key.split("/")
    return [] if key.endswith("/") else ["/".join(parts[i:]) for i in range(len(parts))]


def slow_match(ours: set[str], theirs: set[str]) -> tuple[set[str], dict[str, str]]:
    """The rule as DESIGN.md says it: exact first, then the longest suffix that is unique on both sides."""
    exact = ours & theirs
    by_suffix = {}
    for key in ours - exact:
        for suffix in suffixes(key):
            with_it = [other for other in ours if suffix in suffixes(other)]
            candidates = [other for other in theirs if suffix in suffixes(other)]
            if len(with_it) == 1 and len(candidates) == 1 and candidates[0] not in exact and suffix:
                by_suffix[key] = candidates[0]
                break
    return exact, by_suffix


keys = st.sets(
    st.builds(
        lambda root, parts: root + "/".join(parts),
        st.sampled_from(["", "/"]),
        st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
    ),
    max_size=10,
)


@settings(max_examples=200, deadline=None)
@given(keys, keys)
@example({"/d/a/x"}, {"a/x"})
@example({"a/x", "b/x"}, {"c/x", "d/x"})
@example({"x"}, {"x", "/d/x"})
def test_match_paths_against_the_rule(ours: set[str], theirs: set[str]) -> None:
    assert match_paths(ours, theirs) == slow_match(ours, theirs)
    exact, by_suffix = match_paths(ours, theirs)
    assert match_paths(theirs, ours) == (exact, {b: a for a, b in by_suffix.items()})


# Rows


def test_rows_are_ordered_by_key_and_carry_normalised_paths() -> None:
    source = source_of(("./b.wav", B), ("c.wav", A), ("x\\a.wav", A))
    split = align(source, table_of(("c.wav", 7), ("/data/x/a.wav", 6), ("b.wav", 5)))
    assert aligned_rows(split) == [("b.wav", B, 5.0), ("c.wav", A, 7.0), ("x/a.wav", A, 6.0)]
    assert split.embeddings.dtype == split.cps.dtype == np.float32
    report = split.report
    assert (report.num_embeddings, report.num_cps, report.num_aligned, report.num_exact, report.num_by_suffix) == (3, 3, 3, 2, 1)
    assert report.dropped == ()


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
        ("embedding", "no-cps"): 1,
        ("embedding", "conflicting-duplicate"): 2,
        ("embedding", "identical-duplicate"): 1,
        ("cps", "no-embedding"): 1,
        ("cps", "conflicting-duplicate"): 2,
        ("cps", "identical-duplicate"): 1,
    }
    assert num_lost(split.report) == 6
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
    assert reasons(split.report) == {("embedding", "non-finite-embedding"): 1, ("cps", "no-embedding"): 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1e-60, 1e60])
def test_invalid_cps(bad: float) -> None:
    split = align(source_of(("a.wav", A), ("b.wav", B)), table_of(("a.wav", bad), ("b.wav", 6)))
    assert split.file_paths == ["b.wav"]
    assert reasons(split.report) == {("embedding", "no-cps"): 1, ("cps", "invalid-cps"): 1}
    assert split.report.dropped[1].examples[0].startswith("a.wav (line 2): ")


def test_an_unusable_row_does_not_yield_its_partner_to_another() -> None:
    bad = RowProblem(Reason.UNREADABLE_ROW, "row 0", "no", "x/a.wav")
    split = align(source_of(("y/a.wav", A), problems=(bad,)), table_of(("z/a.wav", 5)))
    assert len(split) == 0
    split = align(source_of(("a.wav", A)), table_of(("x/a.wav", np.nan), ("y/a.wav", 5)))
    assert len(split) == 0
    assert reasons(split.report)["embedding", "ambiguous-path"] == 1


def test_ambiguous_or_missing() -> None:
    source = source_of(("p/a.wav", A), ("q/a.wav", A), ("q/b.wav", A), ("r/b.wav", A), ("c.wav", A))
    split = align(source, table_of(("r/a.wav", 5), ("s/a.wav", 6), ("q/b.wav", 7)))
    assert split.file_paths == ["q/b.wav"]
    assert reasons(split.report) == {
        ("embedding", "no-cps"): 2,  # r/b.wav: the only b.wav there is belongs to another
        ("embedding", "ambiguous-path"): 2,
        ("cps", "ambiguous-path"): 2,
    }


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
    for key in ours.keys() - served_ours:
        free = [other for other in theirs if other not in partner.values()]
        shares_name = key not in partner and any(other.split("/")[-1] == key.split("/")[-1] for other in free)
        dropped["embedding", "ambiguous-path" if shares_name else "no-cps"] += 1
    for other in theirs.keys() - served_theirs:
        free = [key for key in ours if key not in partner]
        shares_name = other not in partner.values() and any(other.split("/")[-1] == key.split("/")[-1] for key in free)
        dropped["cps", "ambiguous-path" if shares_name else "no-embedding"] += 1
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

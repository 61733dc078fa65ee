"""What the report says of paths without a partner: pasted, it matches what belongs together, and nothing else."""

import random
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pairs import recordings, some

from cpstream_service.align.align import AlignedSplit, align, num_lost
from cpstream_service.align.match import PLAIN, MatchRule
from cpstream_service.setting_errors import SettingsError
from cpstream_service.settings import parse_root
from cpstream_service.sources.cps_table import CpsTable
from cpstream_service.sources.rows import SourceSplit


def aligned(ours: dict[str, int], theirs: dict[str, int], rule: MatchRule = PLAIN) -> AlignedSplit:
    """path -> number of the recording: the embedding and the rate of each are its number, from 1."""
    embeddings = np.array([[number] for number in ours.values()], np.float32).reshape(-1, 1)
    cps = np.array(list(theirs.values()), np.float64)
    table = CpsTable(Path("t.csv"), list(theirs), cps, np.arange(len(theirs)) + 2, {}, [])
    return align(SourceSplit("train", list(ours), embeddings), table, rule)


def pasted(split: AlignedSplit) -> MatchRule:
    options = [shlex.split(option) for root in split.report.roots for option in root.options]
    assert all(option[0] == "--map-root" for option in options)
    return MatchRule.of([parse_root(option) for _, option in options])


def roots_of(ours: list[str], theirs: list[str]) -> list[tuple[str, str, int]]:
    report = aligned(dict.fromkeys(ours, 1), dict.fromkeys(theirs, 1)).report
    return [(root.embeddings, root.cps, root.count) for root in report.roots]


ROOTS = ["/data/", "/mnt/d/raw/", "C:/wav/", "/x y/", "s3:/b/k=v/", ""]
several = st.lists(st.sampled_from(ROOTS), min_size=1, max_size=3, unique=True)
shares = st.sampled_from([0.4, 0.9, 1.0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), several, several, shares, shares)
@example(0, ["/mnt/d/raw/"], ["/data/raw/"], 0.9, 0.9)
@example(0, ["/data/", ""], ["", "/x y/"], 0.9, 0.9)
def test_the_options_to_paste_lose_none(seed: int, roots: list[str], others: list[str], share: float, other_share: float) -> None:
    """Rows of several roots on each side, missing at random on both: what is proposed matches every one, and none wrong."""
    draw = random.Random(seed)
    truth = recordings(seed, 900)
    number = {path: i + 1 for i, path in enumerate(truth)}
    ours = {draw.choice(roots) + path: number[path] for path in some(draw, truth, share)}
    theirs = {draw.choice(others) + path: number[path] for path in some(draw, truth, other_share)}
    possible = len(set(ours.values()) & set(theirs.values()))
    first = aligned(ours, theirs)
    second = aligned(ours, theirs, pasted(first))
    for split in (first, second):
        assert split.embeddings[:, 0].tolist() == split.cps.tolist()
    assert len(second) == possible
    assert num_lost(second.report) == len(ours) + len(theirs) - 2 * possible
    assert second.report.roots == ()


@pytest.mark.parametrize(
    ("ours", "theirs", "roots"),
    [
        (["/mnt/d/raw/1", "/mnt/d/raw/2"], ["/data/raw/1", "/data/raw/2"], [("/mnt/d/", "/data/", 2)]),
        (["clean/1", "clean/2"], ["noisy/1", "noisy/2"], [("clean/", "noisy/", 2)]),  # it looks the same: so never unasked
        (["/a/1", "/b/2"], ["1", "2"], [("/a/", "", 1), ("/b/", "", 1)]),
        (["/home/me/data/1", "/data/2"], ["/data/1", "/data/2"], [("/home/me/", "/", 1)]),
    ],
)
def test_roots_are_listed_and_not_applied(ours: list[str], theirs: list[str], roots: list[tuple[str, str, int]]) -> None:
    assert sorted(roots_of(ours, theirs)) == roots
    assert len(aligned(dict.fromkeys(ours, 1), dict.fromkeys(theirs, 1))) == len(set(ours) & set(theirs))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["dev/1", "dev/2"], ["train/1", "train/2"]),  # another split
        (["a/dev-clean/1", "a/dev-clean/2"], ["b/train-100/1", "b/train-100/2"]),
        (["id1/a/00137.wav"], ["id2/b/00137.wav"]),  # a single row
        (["id1/1", "id1/2", "id1/3", "id1/4"], ["id1/3", "id1/4", "id2/1", "id2/2", "id2/3"]),  # 3 is in both
        (["p/1", "p/2", "q/1", "q/2"], ["r/1", "r/2"]),  # which one?
    ],
)
def test_what_is_no_root(ours: list[str], theirs: list[str]) -> None:
    assert roots_of(ours, theirs) == []


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("/mnt/d=/data", ("/mnt/d", "/data")),
        ("/data/=", ("/data/", "")),
        ("/data=", ("/data", "")),
        ("/=", ("/", "")),
        ("/data/split=train/=/x/", ("/data/split=train/", "/x/")),
    ],
)
def test_a_root_as_it_is_typed(text: str, root: tuple[str, str]) -> None:
    assert parse_root(text) == root


@pytest.mark.parametrize("text", ["", "=", "=/data", " =x", "/data"])
def test_what_is_no_map_root(text: str) -> None:
    with pytest.raises(SettingsError, match="it must be A=B"):
        parse_root(text)


# Other differences


def test_spellings() -> None:
    ours = ["A/b.wav", "c.flac", "d e.wav", "f%20g.wav", "h.WAV", "none.wav", "x.ogg", "x.mp3"]
    theirs = ["a/B.wav", "c.wav", "de.wav", "f g.wav", "h.wav", "other.wav", "x.wav"]
    report = aligned(dict.fromkeys(ours, 1), dict.fromkeys(theirs, 1)).report
    rewrite = "write the paths alike on both sides"
    assert [(entry.differs_in, entry.count, entry.remedy) for entry in report.spellings] == [
        ("case", 2, rewrite),
        ("extension", 1, "--match stem"),
        ("blanks", 1, rewrite),
        ("percent-encoding", 1, rewrite),
    ]
    assert report.spellings[0].examples == ("A/b.wav and a/B.wav", "h.WAV and h.wav")


def test_ids_match_by_stem_and_the_path_of_the_table_is_served() -> None:
    source = SourceSplit("all", ["s1/u.1", "s1/u.2"], np.array([[1], [2]], np.float32), bare_keys=True)
    table = CpsTable(Path("t"), ["/d/s1/u.2.wav", "/d/s1/u.1.flac"], np.array([2.0, 1.0]), np.arange(2), {}, [])
    split = align(source, table)
    assert split.file_paths == ["/d/s1/u.1.flac", "/d/s1/u.2.wav"]
    assert split.cps.tolist() == split.embeddings[:, 0].tolist() == [1, 2]

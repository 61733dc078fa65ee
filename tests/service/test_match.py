"""Which paths belong together: against the rule as docs/operations.md says it, and against data whose truth is known."""

import random
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pairs import recordings, slow_match, some

from cpstream_service.align.match import MatchRule, match_paths, normalise_path, normalise_paths

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
        ("/a/./b.wav", "/a/b.wav"),
        ("/./a.wav", "/a.wav"),
        (" a b.wav\t", "a b.wav"),
        ("file:///data/a.wav", "/data/a.wav"),
        (" file://./a.wav ", "a.wav"),
        ("a /b.wav", "a /b.wav"),
        ("../a.wav", "../a.wav"),
        (".hidden.wav", ".hidden.wav"),
        (unicodedata.normalize("NFD", "größe/é.wav"), "größe/é.wav"),
    ],
)
def test_normalise_path(path: str, key: str) -> None:
    assert normalise_path(path) == key
    assert normalise_paths(["x.wav", path]) == ["x.wav", key]


@given(st.text(alphabet="a./\\é\u0301 :", max_size=12) | st.text(alphabet="./ file:", max_size=14))
def test_normalise_path_is_idempotent(path: str) -> None:
    key = normalise_path(path)
    assert normalise_path(key) == key
    assert "\\" not in key
    assert "//" not in key
    assert "/./" not in key
    assert not key.startswith(("./", "file://"))
    assert normalise_paths([path]) == [key]


# Matching


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
@example({"/d/a", "/d/e/a", "/d/b"}, {"a", "e/a", "b"})
@example({"/d/a", "/d/b"}, {"/a", "/b"})
def test_match_paths_against_the_rule(ours: set[str], theirs: set[str]) -> None:
    matches = match_paths(ours, theirs)
    assert (matches.equal, matches.partners) == slow_match(ours, theirs)
    mirrored = match_paths(theirs, ours)
    assert mirrored.partners == {b: a for a, b in matches.partners.items()}
    assert mirrored.related == matches.related[::-1]


def test_a_head_that_names_another_split_is_not_passed_over() -> None:
    ours, theirs = {"1.wav", "2.wav"}, {"/data/train/1.wav", "/data/train/2.wav"}
    assert match_paths(ours, theirs, split="dev").partners == {}
    assert len(match_paths(ours, theirs, split="train").partners) == 2
    assert len(match_paths(ours, theirs, split="all").partners) == 2


# Settings


@pytest.mark.parametrize(
    ("rule", "ours", "theirs", "partners"),
    [
        (MatchRule.of(by="stem"), {"s/a.flac", "b.wav"}, {"s/a.wav", "b.wav"}, {"s/a.flac": "s/a.wav"}),
        (MatchRule.of(by="stem"), {"a.flac", "a.ogg"}, {"a.wav"}, {}),
        (MatchRule.of(by="stem"), {"/d/a.flac", "/d/b.flac"}, {"a.wav", "b.wav"}, {"/d/a.flac": "a.wav", "/d/b.flac": "b.wav"}),
        (MatchRule.of(by="stem"), {"a.b/.hidden"}, {"a/.hidden"}, {}),
        (MatchRule.of(by="name"), {"x/a.wav", "x/b.wav"}, {"y/a.wav", "z/b.wav"}, {"x/a.wav": "y/a.wav", "x/b.wav": "z/b.wav"}),
        (MatchRule.of(by="name"), {"x/a.wav", "x/b.wav"}, {"y/a.wav", "z/a.wav", "b.mp3"}, {}),
        (MatchRule.of([("/mnt/d/raw", "/data/raw")]), {"/mnt/d/raw/a"}, {"/data/raw/a"}, {"/mnt/d/raw/a": "/data/raw/a"}),
        (MatchRule.of([("/mnt/d/raw", "/data/raw")]), {"/mnt/d/raw2/a"}, {"/data/raw2/a"}, {}),
        (MatchRule.of([("C:\\\\d", "")]), {"C:/d/a"}, {"a"}, {"C:/d/a": "a"}),
        (MatchRule.of([("p", ""), ("p/q", "r")]), {"p/a", "p/q/b"}, {"a", "r/b"}, {"p/a": "a", "p/q/b": "r/b"}),
        (MatchRule.of([("clean", ""), ("noisy", "")]), {"clean/x", "noisy/x"}, {"x"}, {}),
        (MatchRule.of().with_bare_keys(), {"s/a.1"}, {"s/a.1.wav"}, {"s/a.1": "s/a.1.wav"}),
        (MatchRule.of(by="name").with_bare_keys(), {"s/a.1"}, {"t/a.1.wav"}, {"s/a.1": "t/a.1.wav"}),
    ],
)
def test_settings(rule: MatchRule, ours: set[str], theirs: set[str], partners: dict[str, str]) -> None:
    assert match_paths(ours, theirs, rule).partners == partners


def test_a_setting_leaves_nothing_to_guess() -> None:
    rule = MatchRule.of([("/mnt", "")])
    assert match_paths({"/mnt/a", "/d/b"}, {"a", "b"}, rule).partners == {"/mnt/a": "a"}


# Data whose truth is known


roots = st.sampled_from(["", "/", "/data/", "/data/audio/", "audio/", "/mnt/d/raw/", "C:/wav/", "a b/c=d/"])
shares = st.sampled_from([0.02, 0.3, 0.9, 1.0])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 30, 700]), roots, roots, shares, shares, st.integers(0, 2), st.booleans())
def test_no_pair_is_wrong(
    seed: int, count: int, one: str, other: str, share: float, other_share: float, cut: int, cut_theirs: bool
) -> None:
    """One root a side, rows missing at random on both; one or two folders cut on one side, of paths that lie in several."""
    draw = random.Random(seed)
    truth = recordings(seed, count)
    left, right = some(draw, truth, share), some(draw, truth, other_share)
    short = {path: path.split("/", cut)[-1] for path in truth}
    ours = {one + (path if cut_theirs else short[path]): path for path in left}
    theirs = {other + (short[path] if cut_theirs else path): path for path in right}
    if cut and len({path.split("/")[0] for path in (left if cut_theirs else right)}) < 2:
        return  # then what was cut is a root like any other
    matches = match_paths(set(ours), set(theirs))
    if cut:
        assert matches.partners == {}
    pairs = [(key, key) for key in matches.equal] + list(matches.partners.items())
    if not cut:
        assert all(ours[a] == theirs[b] for a, b in pairs)

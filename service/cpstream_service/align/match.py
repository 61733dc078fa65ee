"""Paths as alignment keys: how they are written, and which of two sides belong together.

A pair is an embedding's path and a row's path that are equal, or of which one, from a folder on, is the whole of the other
(`/data/audio/a.wav` and `audio/a.wav`). The head of a pair is what stands in front in the longer one (`/data/`), with its side.
Paths whose folders contradict each other (`clean/x.wav`, `noisy/x.wav`) are no pair, however regular the difference is.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

Side = Literal["embedding", "cps"]
MatchBy = Literal["path", "stem", "name"]

_SPLIT_FOLDER = re.compile(
    r"(?:(?P<train>train)|(?P<dev>dev|val|valid|validation)|(?P<test>test)|(?P<eval>eval|evaluation))(?:ing)?(?![a-z])"
)


def normalise_path(path: str) -> str:
    r"""The alignment key of a path: NFC, \ as /, without blanks at its ends, file://, leading ./, inner /./ and doubled / ."""
    before = None
    key = path if path.isascii() else unicodedata.normalize("NFC", path)
    key = key.replace("\\", "/")
    while key != before:
        before = key
        key = key.strip().removeprefix("file://").replace("/./", "/").replace("//", "/").removeprefix("./")
    return key


def normalise_paths(paths: Sequence[str]) -> list[str]:
    """The keys of many paths; quick where all of them are keys as they stand."""
    text = "\n".join(["", *paths])
    usual = text.isascii() and "\\" not in text and "//" not in text and "\n./" not in text and "/./" not in text
    if usual and all(map(str.__eq__, map(str.strip, paths), paths)):
        return list(paths)
    return [normalise_path(path) for path in paths]


@dataclass(frozen=True, slots=True)
class MatchRule:
    """How paths are compared where they are not equal.

    roots: (A, B), both "" or ending in /, the longest A first: what lies in A counts as lying in B, on both sides. by: the whole
    path, without its extension, or the file name alone. bare: the embeddings' keys have no extension. same_root: whether a head may
    be passed over unasked.
    """

    roots: tuple[tuple[str, str], ...] = ()
    by: MatchBy = "path"
    bare: bool = False
    same_root: bool = True

    @classmethod
    def of(cls, roots: Sequence[tuple[str, str]] = (), by: MatchBy = "path") -> "MatchRule":
        """The rule that the settings say."""
        folders = {_folder(old): _folder(new) for old, new in roots}
        return cls(tuple(sorted(folders.items(), key=lambda root: -len(root[0]))), by)

    def with_bare_keys(self) -> "MatchRule":
        """This rule for embeddings whose keys have no extension."""
        return replace(self, by="stem" if self.by == "path" else self.by, bare=True)

    @property
    def plain(self) -> bool:
        """Whether a key is compared as it stands."""
        return not self.roots and self.by == "path"

    def compared(self, key: str, bare: bool = False) -> str:
        """What stands for a key when it is compared. bare: it has no extension."""
        for old, new in self.roots:
            if key.startswith(old):
                key = new + key[len(old) :]
                break
        if self.by == "path":
            return key
        folder, slash, name = key.rpartition("/")
        if self.by == "name":
            folder = slash = ""
        if bare or (self.by == "name" and not self.bare):
            return f"{folder}{slash}{name}"
        stem, dot, _ = name.rpartition(".")
        return f"{folder}{slash}{stem if dot and stem else name}"


def _folder(text: str) -> str:
    folder = normalise_path(text)
    return folder if not folder or folder.endswith("/") else f"{folder}/"


PLAIN = MatchRule()


@dataclass(frozen=True, slots=True)
class Head:
    """What stands in front of every path of one side that the other side lacks."""

    side: Side
    text: str


@dataclass(frozen=True, slots=True)
class Matches:
    """Which keys belong together.

    equal: keys of both sides. partners: ours -> theirs where they differ; head: what they differ by, or None where a setting
    matches them. related: on each side, the keys without partner that are the end of another's, or the other way round.
    """

    equal: set[str]
    partners: dict[str, str]
    head: Head | None
    related: tuple[set[str], set[str]]


def match_paths(ours: Set[str], theirs: Set[str], rule: MatchRule = PLAIN, split: str = "") -> Matches:
    """Match the keys of embeddings (ours) with those of CPS rows (theirs), usable or not.

    Equal keys first, then what the settings say is one. Only where these give nothing, and all pairs that are left have one and the
    same head, with which every path of that side begins, is it passed over: so paths from which folders were cut do not match.
    """
    equal = set(ours & theirs)
    if len(equal) == len(ours) or len(equal) == len(theirs):
        return Matches(equal, {}, None, (set(), set()))
    names = _Names(ours, rule, rule.bare), _Names(theirs, rule)
    partners = {} if rule.plain else {key: names[1].one[name] for name, key in names[0].one.items() if name in names[1].one}
    for key in equal:
        partners.pop(key, None)
    related = _several(*names)
    if rule.by == "name":
        return Matches(equal, partners, None, _without(related, equal, partners))
    done = equal.union(partners), equal.union(partners.values())
    left = tuple({name: key for name, key in names[side].one.items() if key not in done[side]} for side in (0, 1))
    pairs = list(_pairs(left[0], left[1]))
    head = _only_head(pairs, left[0], left[1], split) if rule.same_root and not equal and not partners else None
    if head is not None:
        partners = _behind(head, left[0], left[1])
    for side in (0, 1):
        related[side].update(left[side][pair[side]] for pair in pairs)
    return Matches(equal, partners, head, _without(related, equal, partners))


class _Names:
    """What is compared of the keys of one side. one: name -> the only key that it stands for; many: name -> several keys."""

    def __init__(self, keys: Set[str], rule: MatchRule, bare: bool = False) -> None:
        self.many: dict[str, list[str]] = {}
        if rule.plain:
            self.one = dict(zip(keys, keys, strict=True))
            return
        self.one = {}
        for key in keys:
            name = rule.compared(key, bare)
            if self.one.setdefault(name, key) is not key:
                self.many.setdefault(name, [self.one[name]]).append(key)
        for name in self.many:
            del self.one[name]


def _several(ours: _Names, theirs: _Names) -> tuple[set[str], set[str]]:
    """The keys of names that both sides have, and one of them several times."""
    shared = [name for name in ours.many if name in theirs.one or name in theirs.many]
    shared += [name for name in theirs.many if name in ours.one]
    found = ({key for name in shared for key in side.many.get(name, [side.one.get(name, "")])} for side in (ours, theirs))
    return next(found), next(found)


def _without(found: tuple[set[str], set[str]], equal: set[str], partners: dict[str, str]) -> tuple[set[str], set[str]]:
    return found[0] - equal - partners.keys(), found[1] - equal - set(partners.values())


def _pairs(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Every (name of ours, name of theirs) of which one is the end of the other, or equal to it."""
    absolute = [any(name.startswith("/") for name in names) for names in (ours, theirs)]
    for name in ours:
        for end in ends(name, absolute[1]):
            if end in theirs:
                yield name, end
    for name in theirs:
        for end in ends(name, absolute[0]):
            if end in ours and end != name:
                yield end, name


def ends(name: str, absolute: bool = False) -> Iterator[str]:
    """The name, and what it ends on after each /; with absolute, also from that / on. The longest first."""
    yield name
    at = name.find("/")
    while at >= 0:
        if absolute and at:
            yield name[at:]
        if at + 1 < len(name):
            yield name[at + 1 :]
        at = name.find("/", at + 1)


def _only_head(pairs: list[tuple[str, str]], ours: Mapping[str, str], theirs: Mapping[str, str], split: str) -> Head | None:
    """The one head of all pairs that are unique on both sides, if every name of its side begins with it."""
    our_counts, their_counts = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    heads: set[Head] = set()
    for a, b in pairs:
        if our_counts[a] == 1 == their_counts[b]:
            heads.add(Head("embedding", a[: len(a) - len(b)]) if len(a) > len(b) else Head("cps", b[: len(b) - len(a)]))
            if len(heads) > 1:
                return None
    for head in heads:
        longer = ours if head.side == "embedding" else theirs
        if all(name.startswith(head.text) for name in longer) and not of_another_split(head.text, split):
            return head
    return None


def _behind(head: Head, ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    """ours -> theirs, the names of one side being those of the other behind the head."""
    at = len(head.text)
    if head.side == "embedding":
        return {key: theirs[name[at:]] for name, key in ours.items() if name[at:] in theirs}
    return {ours[name[at:]]: key for name, key in theirs.items() if name[at:] in ours}


def split_word(folders: str) -> str | None:
    """The last folder that is named after a usual split, as in `/data/train-clean/`: train, dev, test or eval."""
    found = (_SPLIT_FOLDER.match(folder) for folder in reversed(folders.lower().split("/")))
    return next((match.lastgroup for match in found if match), None)


def of_another_split(folders: str, split: str) -> bool:
    """Whether folders are named after a usual split, and the split after another one."""
    word, own = split_word(folders), split_word(split)
    return word is not None and own is not None and word != own

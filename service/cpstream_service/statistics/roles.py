"""Which split is the training split, which the development split: by name, or as set; never guessed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cpstream_client.contract.figures import Roles

NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "dev": ("dev", "development", "validation", "valid", "val"),
    "test": ("test", "testing"),
}
"""The names by which a split is taken for what it is, whatever their case."""


@dataclass(frozen=True)
class Cast:
    """Which split plays which role. missing: for each role that none plays, why, with the remedy."""

    roles: Roles
    missing: Mapping[str, str]


def cast(splits: Iterable[str], given: Iterable[str] = ()) -> Cast:
    """given: `role=split`, as the settings have it; a split that is not served plays no role."""
    splits = list(splits)
    chosen = dict(text.split("=", 1) for text in given)
    found: dict[str, str | None] = {}
    missing: dict[str, str] = {}
    for role, names in NAMES.items():
        named = [split for split in splits if split.lower() in names]
        remedy = f"name it with --roles {role}=SPLIT"
        found[role] = None
        if role in chosen:
            found[role] = chosen[role] if chosen[role] in splits else None
            if found[role] is None:
                missing[role] = f"--roles says that the {role} split is {chosen[role]!r}, which is not served"
        elif len(named) == 1:
            found[role] = named[0]
        elif named:
            missing[role] = f"several splits could be the {role} split ({', '.join(named)}); {remedy}"
        else:
            missing[role] = f"no split is called {', '.join(names[:-1])} or {names[-1]}; {remedy}"
    return Cast(Roles(**found), missing)

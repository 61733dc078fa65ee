"""What is wrong with a setting, in one line: its name, its value, what it must be, its option and its variable."""

import json
import re
import shlex
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from annotated_types import Ge, Le
from pydantic import ValidationError
from pydantic.fields import FieldInfo

T = TypeVar("T")
ENV_PREFIX = "CPSTREAM_"
_FIELDS: dict[str, FieldInfo] = {}
"""Every setting that there is, by name: in_our_words fills it."""


class SettingsError(ValueError):
    """A setting is out of range. The message names it, its value, its range and its variable."""


def in_our_words(kind: type[T]) -> type[T]:
    """Decorator of a pydantic dataclass of settings: what pydantic refuses is a SettingsError in one line."""
    _FIELDS.update(cast(dict[str, FieldInfo], kind.__pydantic_fields__))  # type: ignore[attr-defined]
    original: Callable[..., None] = kind.__init__

    @wraps(original)
    def __init__(self: T, *args: Any, **values: Any) -> None:
        try:
            original(self, *args, **values)
        except ValidationError as error:
            raise SettingsError(sentence(error)) from None

    kind.__init__ = __init__  # type: ignore[method-assign,assignment]
    return kind


def sentence(error: ValidationError) -> str:
    """What pydantic refuses: the setting, its value, what it must be, and its option and variable."""
    return "; ".join(_sentence(dict(entry)) for entry in error.errors(include_url=False))


def _sentence(entry: dict[str, Any]) -> str:
    if entry["type"] == "value_error":  # of our own validators
        return str(entry["ctx"]["error"])
    name = str(entry["loc"][0])
    if entry["type"] == "unexpected_keyword_argument":
        return f"{name} is no setting; settings: {', '.join(_FIELDS)}"
    value = entry["input"]
    expected, is_range = _expected(name, entry)
    shown = str(value) if is_range else json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    return f"{name} is {shown}; it must be {expected} (--{name.replace('_', '-')}, {ENV_PREFIX}{name.upper()})"


def _expected(name: str, entry: dict[str, Any]) -> tuple[str, bool]:
    """What a setting must be, and whether that is a range."""
    kind, bounds = entry["type"], _range_of(name)
    if kind in ("greater_than_equal", "less_than_equal"):
        return bounds, True
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", entry["ctx"]["expected"])
        return f"one of {', '.join(choices)}", False
    what = _KINDS.get(kind.partition("_")[0]) or entry["msg"].removeprefix("Input should be ")
    return ", ".join(part for part in (what, bounds) if part), kind == "finite_number"


_KINDS = {"int": "a whole number", "float": "a number", "finite": "a number", "bool": "true or false", "string": "text"}
"""What a value should be, by the first word of pydantic's error type."""


def _range_of(name: str) -> str:
    """The range of a number, in words; nothing where it has none."""
    info = _FIELDS[name]
    low = next((bound.ge for bound in info.metadata if isinstance(bound, Ge)), None)
    high = next((bound.le for bound in info.metadata if isinstance(bound, Le)), None)
    if high is not None:
        return f"from {low} to {high}"
    return "" if low is None else f"{low} or more"


_VARIABLES = re.compile(rf" \((?:--[a-z-]+, )?(?:{ENV_PREFIX}[A-Z_]+(?:, )?)+\)")
_ROOTS = re.compile(r"--map-root \S+(?: --map-root \S+)*")
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]+[a-z])(?! [\w-]+=)")
_AS_ARGUMENT = {"splits": "split=", "strict": "strict=True"}
"""Where the local twin's argument is not the option's name with = behind it."""


def as_arguments(text: str) -> str:
    """An error's text for a Python caller: options as arguments of the local twin, without the variables."""
    text = _ROOTS.sub(lambda found: f"map_root={tuple(shlex.split(found[0])[1::2])!r}", _VARIABLES.sub("", text))
    text = re.sub(r"--(match|source-type) ([a-z-]+)", lambda found: f'{found[1].replace("-", "_")}="{found[2]}"', text)
    return _OPTION.sub(lambda found: _AS_ARGUMENT.get(found[1], found[1].replace("-", "_") + "="), text)

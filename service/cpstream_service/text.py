"""Text of others, made fit for a terminal, a log or a table: paths, split names, values of requests."""

from collections.abc import Iterable

ELLIPSIS = "…"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def plain(text: str) -> str:
    r"""The text with what a terminal would obey, or a reader not see, as escapes: control characters, line breaks, \u202e."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names for a message, quoted: the first of them, each in at most 60 characters, and how many more there are."""
    known = list(names)
    shown = [repr(shortened(name, 60)) for name in known[:most]]
    return ", ".join(shown + [f"and {len(known) - most} more"] * (len(known) > most))


def harmless(text: str) -> str:
    """The text of a cell of a table that no spreadsheet takes for a formula: with an apostrophe in front, as OWASP advises.

    A path of `=HYPERLINK(...)` must not become a link in whoever's table.
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def shortened(text: str, width: int) -> str:
    """The text in at most `width` characters: what is cut out lies before the file name, which tells most."""
    if len(text) <= width:
        return text
    head = max(0, (width - len(ELLIPSIS)) // 3)
    return text[:head] + ELLIPSIS + text[len(text) - (width - head - len(ELLIPSIS)) :]

"""Text of others, made fit for a terminal or a log: paths, split names, values of requests."""

from collections.abc import Iterable

ELLIPSIS = "…"


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


def shortened(text: str, width: int) -> str:
    """The text in at most `width` characters: what is cut out lies before the file name, which tells most."""
    if len(text) <= width:
        return text
    head = max(0, (width - len(ELLIPSIS)) // 3)
    return text[:head] + ELLIPSIS + text[len(text) - (width - head - len(ELLIPSIS)) :]

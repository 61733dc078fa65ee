"""Text of others, made fit for a terminal or a log: paths, split names, values of requests."""

ELLIPSIS = "…"


def plain(text: str) -> str:
    r"""The text with what a terminal would obey, or a reader not see, as escapes: control characters, line breaks, \u202e."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def shortened(text: str, width: int) -> str:
    """The text in at most `width` characters: what is cut out lies before the file name, which tells most."""
    if len(text) <= width:
        return text
    head = max(0, (width - len(ELLIPSIS)) // 3)
    return text[:head] + ELLIPSIS + text[len(text) - (width - head - len(ELLIPSIS)) :]

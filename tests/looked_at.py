"""A page as a browser would take it apart: its text, what it links to, and what a strict policy or a screen reader would mind."""

from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin

import httpx

APART = {"td", "th", "dt", "dd", "li", "option", "p", "summary"}
VOID = {"meta", "link", "input", "br", "img", "hr", "wbr"}


class LookedAt(HTMLParser):
    """text: what is read; links: (tag, address) of all that is loaded or led to; faults: what should not be in any page.

    data: the JSON texts within it; headings: (level, text).
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.data: list[str] = []
        self.headings: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join("".join(self._text).split())
        self.faults += [f"{tag} is not closed" for tag in self._open]
        self.faults += [f"id {name} twice" for name in {name for name in self.ids if self.ids.count(name) > 1}]
        if [level for level, _ in self.headings].count("h1") != 1:
            self.faults.append("not one h1")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in APART:
            self._text.append(" ")
        self.tags.append((tag, given))
        self.faults += [f"{tag} has {name}" for name in given if name == "style" or name.startswith("on")]
        if tag == "script" and "src" not in given and given.get("type") != "application/json":
            self.faults.append("a script within the page")
        if tag in ("style", "base", "iframe", "object", "embed"):
            self.faults.append(f"a {tag} element")
        if tag == "th" and "scope" not in given:
            self.faults.append("th without a scope")
        if given.get("id"):
            self.ids.append(str(given["id"]))
        self.links += [(tag, str(given[name])) for name in ("href", "src", "action") if given.get(name)]
        if tag not in VOID:
            self._open.append(tag)
            if tag in ("h1", "h2", "h3"):
                self.headings.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self._open[-1:]}")
        else:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.data.append(data)
            return
        self._text.append(data)
        if self.headings and self.headings[-1][0] in self._open:
            level, text = self.headings[-1]
            self.headings[-1] = level, text + data

    def addresses(self, url: str) -> set[str]:
        """All that it loads or leads to, absolute, without the part behind #."""
        return {urldefrag(urljoin(url, link)).url for _, link in self.links}


def look(http: httpx.Client, address: str, status: int = 200) -> LookedAt:
    """The page of this address, as a browser asks for it; one that has no faults."""
    reply = http.get(address, headers={"Accept": "text/html,*/*;q=0.8"})
    assert (reply.status_code, reply.headers["content-type"].partition(";")[0]) == (status, "text/html"), reply.text
    page = LookedAt(reply.text)
    assert not page.faults, address
    return page

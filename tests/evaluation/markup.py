"""Reads a page as a strict reader would: every element closed, every reference answered; its tables as lists."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "input", "hr", "wbr"}


class Page(HTMLParser):
    """Raises AssertionError for an element that is not closed where it should be, or an id that comes twice."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.references: set[str] = set()
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words: list[str] = []
        self._heading, self._caption, self._rows, self._cell = "", "", [], None
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self._note(tag, dict(attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3", "caption", "th", "td"):
            self._cell = []
        elif tag == "tr":
            self._rows.append([])
        elif tag == "table":
            self._rows = []
        elif tag == "small" and self._cell is not None:
            self._cell.append("|")

    def handle_startendtag(self, tag, attributes):
        self._note(tag, dict(attributes))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()
        text = "".join(self._cell or []).strip()
        if tag in ("h2", "h3"):
            self._heading = text
        elif tag == "caption":
            self._caption = text
        elif tag in ("th", "td"):
            self._rows[-1].append(text)
        elif tag == "table":
            name = f"{self._heading}: {self._caption}"
            assert name not in self.tables, name
            self.tables[name] = self._rows
        if tag in ("h1", "h2", "h3", "caption", "th", "td"):
            self._cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self._cell is not None:
            self._cell.append(data)

    def _note(self, tag, attributes):
        self.tags.append((tag, attributes))
        if name := attributes.get("id"):
            assert name not in self.ids, f"id {name} comes twice"
            self.ids.add(name)
        self.references |= set((attributes.get("aria-labelledby") or "").split())
        self.links += [value for name in ("href", "src", "xlink:href", "srcset") if (value := attributes.get(name))]

    def table(self, beginning: str) -> list[list[str]]:
        """Rows of the one table whose heading and caption begin so."""
        (name,) = [name for name in self.tables if name.startswith(beginning)]
        return self.tables[name]

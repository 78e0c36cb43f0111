"""A written page taken apart."""

from __future__ import annotations

from html.parser import HTMLParser

Attributes = list[tuple[str, "str | None"]]


class Page(HTMLParser):
    """A page taken apart; fails on elements that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.elements: list[dict[str, str | None]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.opened

    def handle_starttag(self, tag: str, attrs: Attributes) -> None:
        """Opens an element."""
        self.elements.append({"tag": tag, **dict(attrs)})
        if tag != "meta":
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Closes the element that was opened last."""
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keeps scripts apart from what a reader sees."""
        (self.scripts if self.opened and self.opened[-1] == "script" else self.text).append(data)

    @property
    def words(self) -> str:
        """All a reader sees, spaces as one."""
        return " ".join(" ".join(self.text).split())

    def ids(self) -> list[str]:
        """Ids of elements."""
        return [str(element["id"]) for element in self.elements if "id" in element]

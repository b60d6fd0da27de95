"""Read a page as a browser would: its tags, what they load, whether they nest, and its text."""

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Collects tags, what they load, and whether they nest."""

    VOID = {"meta", "img", "input", "br", "rect", "line"}

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "poster", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in ("li", "dt", "dd", "p"):
            self.open.pop()
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    """Parse a page to its end."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader

"""Checks a built site: every link and anchor within it leads somewhere, and nothing is loaded from elsewhere.

python docs/links.py build/docs/html
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {("script", "src"), ("img", "src"), ("link", "href"), ("audio", "src"), ("source", "src"), ("iframe", "src")}


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, bool]] = []  # address, whether it is loaded with the page
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag says."""
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.links.append((value, (tag, name) in LOADS))


def faults(site: Path) -> list[str]:
    """A line for each link of the site that leads nowhere, and for all that is loaded from elsewhere."""
    pages = {file.resolve(): Page(file) for file in site.rglob("*.html")}
    lines = []
    for file, page in pages.items():
        for address, loaded in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if loaded and parts.scheme != "data":
                    lines.append(f"{file}: loads {address[:100]}")
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.is_file():
                lines.append(f"{file}: {address} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                lines.append(f"{file}: {address} has no such anchor")
    return lines


if __name__ == "__main__":
    site = Path(sys.argv[1])
    wrong = faults(site)
    print("\n".join(wrong) or f"{sum(1 for _ in site.rglob('*.html'))} pages: every link and anchor is there")
    sys.exit(bool(wrong))

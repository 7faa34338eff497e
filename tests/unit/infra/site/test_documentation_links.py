"""Links between the documents lead somewhere, on the site and in the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[4]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HOST = "https://site.invalid"


class Page(HTMLParser):
    """Notes the links, the loaded files and the ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") == "stylesheet":
            self.loaded.append(given["href"])
        if tag in ("script", "img") and "src" in given:
            self.loaded.append(given["src"])


def problems_of(site: Path) -> Iterator[str]:
    """Yields what is wrong with the links of a built site. The page for what is not found is left
    out: it is answered for any path, so its links begin at the root of a server."""
    files = [file for file in site.rglob("*.html") if file.name != "404.html"]
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in files}
    for file, page in pages.items():
        yield from (f"{file.name} loads {url}" for url in page.loaded if urlsplit(url).netloc)
        for url in [*page.links, *page.loaded]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            at = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            at = at / "index.html" if at.is_dir() else at
            if not at.is_file():
                yield f"{file.name} links to {url}, which is not there"
            elif parts.fragment and at in pages and parts.fragment not in pages[at].ids | {"_top"}:
                yield f"{file.name} links to {url}, where there is no such heading"


@pytest.mark.verify
def test_the_site_builds_and_no_link_is_dead(tmp_path: Path) -> None:
    # Not with -q: what is not logged does not count as a warning.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert len(list(tmp_path.rglob("*.html"))) > 60
    assert list(problems_of(tmp_path)) == []


def test_dead_links_and_files_of_other_hosts_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="#top"></a><a href="#gone"></a><a href="b.html"></a>'
        f'<script src="{HOST}/x.js"></script><a href="{HOST}"></a>'
    )
    assert [problem.split(" ", 1)[1] for problem in problems_of(tmp_path)] == [
        f"loads {HOST}/x.js",
        "links to #gone, where there is no such heading",
        "links to b.html, which is not there",
    ]


@pytest.mark.parametrize(
    "file",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_files_that_documents_link_to_are_there(file: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", file.read_text(encoding="utf-8"), flags=re.S)
    made = {"openapi.json", "api.md"}
    paths = {urlsplit(url).path for url in LINK.findall(text) if not urlsplit(url).scheme}
    assert [p for p in paths - made if p and not (file.parent / p).exists()] == []

"""The built site: each link of each page leads somewhere, also where it is opened from the disk."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pages import ROOT

pytest.importorskip("mkdocs")
EXTERNAL = ("http", "https", "mailto")


class Page(HTMLParser):
    """The links of a page, and the anchors that it has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.links += [values[name] for name in ("href", "src") if name in values]
        self.anchors += [values[name] for name in ("id", "name") if name in values]


def problems_of_links(site: Path) -> tuple[int, list[str]]:
    """The number of links, and each that is broken: `page: link`."""
    # Not the page that servers show in place of others, whose links start at their root.
    files = (file for file in sorted(site.rglob("*.html")) if file.name != "404.html")
    pages = {file: Page(file) for file in files}
    broken = []
    for file, page in pages.items():
        for link in page.links:
            if not leads_somewhere(link, file, pages):
                broken.append(f"{file.relative_to(site)}: {link}")
    return sum(len(page.links) for page in pages.values()), broken


def leads_somewhere(link: str, file: Path, pages: dict[Path, Page]) -> bool:
    """Of an external link, whether it is one: no server is asked."""
    url = urlsplit(link)
    if url.scheme or url.netloc:
        return url.scheme in EXTERNAL and bool(url.netloc or url.path) and " " not in link
    if url.path.startswith("/"):  # from the disk, the root of the disk
        return False
    target = (file.parent / unquote(url.path)).resolve() if url.path else file
    if not target.is_file():
        return False
    return not url.fragment or target not in pages or unquote(url.fragment) in pages[target].anchors


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site").resolve()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_no_link_of_the_site_is_broken(site):
    count, broken = problems_of_links(site)
    assert broken == []
    assert count > 1000
    print(f"{len(list(site.rglob('*.html'))) - 1} pages, {count} links, {len(broken)} broken")


@pytest.mark.slow
def test_each_table_of_the_reference_is_in_the_site(site):
    text = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    assert "<!-- table:" not in text
    assert '<code id="loss.temperature">' in text
    assert 'id="lightning_distill.losses.objective.Objective"' in text


@pytest.mark.parametrize(
    ("link", "works"),
    [
        ("b.html", True),
        ("b.html#there", True),
        ("#here", True),
        ("https://example.org/a", True),
        ("mailto:a@example.org", True),
        ("b.html#absent", False),
        ("#absent", False),
        ("c.html", False),
        ("/b.html", False),
        ("folder", False),
        ("https://", False),
        ("htps://example.org", False),
    ],
)
def test_a_link_is_broken_where_it_leads_nowhere(tmp_path, link, works):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.html").write_text(f'<p id="here"><a href="{link}">x</a></p>')
    (tmp_path / "b.html").write_text('<p id="there"></p>')
    assert problems_of_links(tmp_path.resolve()) == (1, [] if works else [f"a.html: {link}"])

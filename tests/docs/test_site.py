"""`make docs`: the pages as a site. It is whole, loads nothing from elsewhere, and has all public names."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml
from pages import ROOT

import dtem

LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src"}
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


class Reader(HTMLParser):
    """What a page loads, its anchors, pictures without words, and paragraphs that were to be lists."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.without_words: list[str] = []
        self.language = ""
        self.lists: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag in LOADS and found.get(LOADS[tag]) and found.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(found[LOADS[tag]])
        if found.get("id"):
            self.anchors.add(found["id"])
        if tag == "img" and not found.get("alt"):
            self.without_words.append(str(found.get("src")))
        if tag == "html":
            self.language = found.get("lang") or ""
        self._inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data):
        if self._inside and self._inside[-1] == "p":
            self.lists += re.findall(r"^(?:\* |- |\| ).*", data, re.M)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, by the command of `make docs`, whose warnings are mistakes."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    pages = {}
    for path in folder.glob("*.html"):
        pages[path.name] = Reader()
        pages[path.name].feed(path.read_text())
    return pages


def test_every_page_is_there(site):
    assert {name.replace(".md", ".html") for name in PAGES} <= site.keys()
    assert {"index.html", "contributing.html", "security.html", "changelog.html"} <= site.keys()


def test_nothing_is_loaded_from_elsewhere(site):
    assert not [(name, place) for name, page in site.items() for place in page.loaded if "//" in place]


def test_each_page_says_its_language_and_each_picture_what_it_shows(site):
    assert not [name for name, page in site.items() if page.language != "en" or page.without_words]


def test_no_list_or_table_is_shown_as_a_paragraph(site):
    assert not [(name, line) for name, page in site.items() for line in page.lists]


@pytest.mark.parametrize("name", [name for name in dtem.__all__ if not name.startswith("_")])
def test_a_public_name_is_on_its_page_with_its_docstring(site, name):
    page = (ROOT / "docs/api.md").read_text()
    assert f"::: dtem.{name}\n" in page
    assert any(anchor.endswith(f".{name}") for anchor in site["api.html"].anchors)


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == dtem.__version__ and cited["license"] == "Apache-2.0"

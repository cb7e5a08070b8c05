"""What mkdocs does beyond reading docs/: the pages of the repository outside it are pages of the site, and
links between all of them, and to files that are none, lead somewhere. `mkdocs.yml` names this file."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages of the repository outside docs/, and their names in the site."""
LINK = re.compile(
    r"(?<!\!)\[((?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*)\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)"
)
PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
BLOCK = re.compile(r"^(?![*\-] |\d+\. |\s|$|\||#)(.+)\n(?=[*\-] |1\. |\|)", re.M)
"""A line of a paragraph before a list or a table, which GitHub begins without a blank line."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    sources = {name: source for source, name in OUTSIDE.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"\0{len(kept) - 1}\0"

    text = FENCE.sub(keep, markdown)
    text = PICTURE.sub(lambda match: f"![{match[1]}]({_place(source, match[2])})", text)
    text = LINK.sub(lambda match: _link(match, source, config.repo_url), text)
    text = BLOCK.sub(r"\1\n\n", text)
    return re.sub(r"\0(\d+)\0", lambda match: kept[int(match[1])], text)


def _link(match: re.Match[str], source: str, repository: str | None) -> str:
    """A link within the site; one into the repository where its address is known, else its words alone."""
    words, target, anchor = match[1], match[2], match[3] or ""
    if not target:
        return match[0]
    path = _place(source, target, within=False)
    if path in OUTSIDE or path.startswith("docs/"):
        return f"[{words}]({OUTSIDE.get(path, path.removeprefix('docs/'))}{anchor})"
    return f"[{words}]({repository.rstrip('/')}/blob/main/{path})" if repository else words


def _place(source: str, target: str, within: bool = True) -> str:
    """The path from the root, or from docs/, of what a page points to. Raises PluginError where it is not
    there."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists():
        raise PluginError(f"{source} points to {target}, which is not there")
    return path.removeprefix("docs/") if within else path

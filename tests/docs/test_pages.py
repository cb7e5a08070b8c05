"""What the pages name is there: links, paths, tests, commands, settings, modules. Their lines are short."""

import argparse
import importlib
import re
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from pages import PAGES, PRESENT, ROOT, as_dtem, commands, name_of, prose, spans

from launch.cli import build_parser
from pipeline.config import schema

TREES = ("pipeline", "tasks", "launch", "configs", "docs", "tests", "benchmarks", "dtem")
NEW = re.compile(r"(/|^)(x|mine|depth|NAME|step_N)\.(py|json)$|NAME")
"""A file that the reader is to write: its folder has to be there."""
OTHERS = {"docs/mmseg.md": {"configs/segmenter/"}}
"""Paths of other projects, by the page that names them."""
OURS = ("pipeline.", "launch.", "dtem.", "tasks.mmseg_bridge", "tasks.open_clip_bridge")
"""How a dotted name of a module or of what it holds begins."""
LISTED = {"policies", "layouts"}
"""Rooms whose files are the members of a family, so the map names the room alone."""
FREE = {"head", "options", "deepspeed"}
"""Settings that hold a dict of other settings, which the schema does not know."""


def on_pages(pages, found):
    """One case for each page: the test sees all that the page names, one thing after the other."""

    def tried(test):
        @pytest.mark.parametrize("page", pages, ids=name_of)
        def on_page(page):
            for thing in sorted(set(found(page))):
                test(name_of(page), thing)

        on_page.__name__, on_page.__doc__ = test.__name__, test.__doc__
        return on_page

    return tried


parser = cache(build_parser)


def heading_names(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@on_pages(PAGES, lambda page: re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()))
def test_a_link_leads_to_a_page_and_a_heading(page, named):
    path, _, heading = named.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    assert not heading or heading in heading_names(target)


def paths(page: Path) -> set[str]:
    found = re.findall(rf"(?<![\w/.:{{-])((?:{'|'.join(TREES)})/[\w./*-]*)", page.read_text())
    return {path.rstrip(".") for path in found} - OTHERS.get(name_of(page), set())


@on_pages(PRESENT, paths)
def test_a_path_is_there(page, named):
    wanted = ROOT / named
    assert wanted.parent.is_dir() if NEW.search(named) else list(ROOT.glob(named.rstrip("/")))


@on_pages(PRESENT, lambda page: re.findall(r"(tests/[\w/.]+::\w+)", page.read_text()))
def test_a_named_test_is_there(page, named):
    path, _, function = named.partition("::")
    assert f"def {function}(" in (ROOT / path).read_text()


@on_pages(PRESENT, lambda page: re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.M))
def test_a_make_target_is_there(page, named):
    assert re.search(rf"^{named}:", (ROOT / "Makefile").read_text(), re.M)


@on_pages(PRESENT, lambda page: [tuple(words) for words in map(as_dtem, commands(page)) if words])
def test_a_command_parses_and_its_config_is_there(page, named):
    config = getattr(parser().parse_args(named), "config", "")
    assert not config.startswith("configs/") or NEW.search(config) or (ROOT / config).is_file()


def parser_of(words: list[str]) -> argparse.ArgumentParser | None:
    """The parser that a chain of subcommands leads to; None where a word is no subcommand."""
    found = parser()
    for word in words:
        nested = [action for action in found._actions if isinstance(action, argparse._SubParsersAction)]
        if not nested or not re.fullmatch(r"[a-z_0-9]+", word):
            break
        if word not in nested[0].choices:
            return None
        found = nested[0].choices[word]
    return found


@on_pages(PRESENT, lambda page: [span for span in spans(page) if re.match(r"dtem( |$)", span)])
def test_a_command_within_a_sentence_has_its_parser_and_options(page, named):
    words = named.split()[1:]
    found = parser_of(words)
    assert found is not None
    assert {word for word in words if word.startswith("--")} <= found._option_string_actions.keys()


def settings(section: type, prefix: str = "") -> set[str]:
    """Dotted names of a section's settings and sections, where any task is NAME."""
    names = set()
    for name, kind in get_type_hints(section).items():
        names.add(prefix + name)
        start = f"{prefix}{name}." + ("NAME." if name == "tasks" else "")
        for inner in (kind, *get_args(kind)):
            if is_dataclass(inner) and isinstance(inner, type):
                names |= {start[:-1], *settings(inner, start)}
    return names


KNOWN = {name.removeprefix("tasks.NAME.") for name in settings(schema.RunConfig)}
"""Also the names within a task, as the pages use them."""
STARTS = "|".join(sorted({name.split(".")[0] for name in KNOWN}))


def dotted_settings(page: Path) -> list[str]:
    names = (span.split("=")[0] for span in spans(page))
    found = (name for name in names if re.fullmatch(rf"(?:{STARTS})(?:\.\w+)+", name))
    return [name for name in found if not name.startswith(OURS) and not name.endswith(".py")]


@on_pages(PRESENT, dotted_settings)
def test_a_setting_is_there(page, named):
    words = re.sub(r"^tasks\.\w+\.?", "", named).split(".")
    ends = [index for index, word in enumerate(words) if word in FREE or word.isdigit()]
    name = ".".join(words[: ends[0] + 1] if ends else words).removesuffix(".0")
    assert name in KNOWN or not name


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    module, *rest = dotted.split(".")
    found = importlib.import_module(module)
    for index, word in enumerate(rest):
        if not hasattr(found, word):
            try:
                importlib.import_module(".".join([module, *rest[: index + 1]]))
            except ImportError:
                return False
        found = getattr(found, word)
    return True


def modules(page: Path) -> list[str]:
    return [name for name in spans(page) if name.startswith(OURS) and re.fullmatch(r"[\w.]+", name)]


@on_pages(PRESENT, modules)
def test_a_dotted_name_of_ours_resolves(page, named):
    assert resolves(named)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_of_prose_are_short(page):
    assert [line for line in prose(page) if len(line) > 110] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_mark_of_a_merge_is_left(page):
    assert re.findall(r"^(?:<{7}|>{7}) .*", page.read_text(), re.M) == []


def rooms_of_the_map() -> dict[str, set[str]]:
    """Folder -> the words that stand beside it on the map; indented folders lie in the one above."""
    (text,) = re.findall(r"^## 1\. .*?```\n(.*?)^```", (ROOT / "docs/design.md").read_text(), re.M | re.S)
    rooms: dict[str, set[str]] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        if named := re.match(r"( {0,5})(\w+)/ ", line):
            path = [(indent, name) for indent, name in path if indent < len(named[1])]
            path.append((len(named[1]), named[2]))
        rooms.setdefault("/".join(name for _, name in path), set()).update(re.findall(r"\w+", line))
    return rooms


@pytest.mark.parametrize("room", ["pipeline", "tasks", "launch"])
def test_the_map_names_every_file_beside_its_room(room):
    rooms = rooms_of_the_map()
    files = [path for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"]
    missing = []
    for path in files:
        folder = path.parent
        while (name := folder.relative_to(ROOT).as_posix()) not in rooms:
            folder = folder.parent
        if path.stem not in rooms[name] and path.parent.name not in LISTED:
            missing.append(path.relative_to(ROOT).as_posix())
    assert missing == []

"""A page in a real Chromium: what it says, asks for and does, and what axe-core finds in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Seen:
    """said: errors and warnings of the console, and errors of scripts. asked: addresses that were asked for.
    faults: axe-core's, each with the first elements. wider: pixels by which the page is wider than its
    window. ran: `window.ran`, which a script in data would have set."""

    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    wider: int = 0
    ran: Any = None


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window. Skips the test where Chromium or playwright is not installed."""
    place = next((found for name in CHROMIUMS if (found := shutil.which(name))), None)
    if place is None:
        pytest.skip(f"none of {', '.join(CHROMIUMS)} is on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=place)
        yield browser
        browser.close()


def look(browser: Any, path: Path, width: int) -> Seen:
    """Opens a file in a window of so many pixels. Nothing from the network is answered."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    seen, address = Seen(), path.resolve().as_uri()
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on(
        "console", lambda told: seen.said.append(told.text) if told.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: seen.said.append(str(error)))
    page.on("dialog", lambda dialog: (seen.said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: seen.asked.append(request.url))
    page.route("http*://**", lambda route: route.abort())
    page.goto(address)
    page.evaluate("document.querySelectorAll('details').forEach(own => { own.open = true })")
    seen.asked = [url for url in seen.asked if url != address and not url.startswith("data:")]
    seen.wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    seen.ran = page.evaluate("window.ran ?? null")
    for fault in axe.Axe().run(page).response["violations"]:
        seen.faults[fault["id"]] = [node["html"][:120] for node in fault["nodes"][:3]]
    page.close()
    return seen

"""Chromium on the front end of the host that the host tests share, and where the screenshots go."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from front_end import FrontEnd
from playwright.sync_api import Browser, Error, sync_playwright

from tools.comfy_client import Client

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
NO_CHROMIUM = (
    "the browser tests need Chromium: `python tools/run.py test tests/browser` installs it; or set CHROMIUM to the "
    "browser's executable"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store-screenshots", action="store_true", help="store the README's pictures in docs/screenshots")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """A failed test leaves a screenshot."""
    report = yield
    if report.when == "call" and report.failed and "front" in item.funcargs:
        front = item.funcargs["front"]
        report.sections.append(("what the page said", "\n".join(front.errors)))
        with contextlib.suppress(Error):  # the page may have died
            front.page.screenshot(path=front.kept / f"failed_{item.name}.png")
    return report


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless Chromium. Of a module only: as long as playwright runs, asyncio.run fails in other tests."""
    executable = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        except Error as error:
            pytest.fail(f"{NO_CHROMIUM}\n{error.message.splitlines()[0]}", pytrace=False)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shared_front(chromium: Browser, host: Client, base: Path, stand_in: None, pytestconfig: pytest.Config) -> FrontEnd:
    pack = next(link.name for link in (base / "custom_nodes").iterdir() if link.resolve() == ROOT)
    context = chromium.new_context(viewport={"width": 1600, "height": 1000}, locale="en-US")
    stored = ROOT / "docs" / "screenshots" if pytestconfig.getoption("--store-screenshots") else None
    return FrontEnd(context, host.url, pack, base.parent / "screenshots", stored)


@pytest.fixture
def front(shared_front: FrontEnd) -> FrontEnd:
    """The front end without what an earlier test may have left open."""
    left_open = ".p-dialog, .graphdialog, .comfy-command-menu, .sidebar-content-container > *"
    if shared_front.page.locator(left_open).count():
        shared_front.load()
    return shared_front

"""A browser without a screen, for pages on the disk."""

import os
import shutil
from contextlib import contextmanager, suppress
from urllib.parse import urlparse

import pytest

from helpers import ROOT

SITE = ROOT / "_build" / "html"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Without the last three a browser looks for updates of its own, which are no requests of the page.
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
DRAWN = """() => document.readyState === "complete"
    && [...document.querySelectorAll("figure.book")].every((figure) => figure.querySelector("svg, canvas, img"))
    && [...document.querySelectorAll(".math")].every((formula) => formula.querySelector("mjx-container svg"))"""


@contextmanager
def open_browser(program=BROWSER):
    if program is None:
        assert not os.environ.get("CI"), "continuous integration must have a browser"
        pytest.skip("no Chromium on this machine: the browser tests are skipped")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


def open_in(context, path):
    """A page in a browser's context, with the list of all that goes wrong on it."""
    page, problems = context.new_page(), []
    page.on("request", lambda request: is_external(request.url) and problems.append(f"request to {request.url}"))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    page.on("console", lambda line: line.type == "error" and problems.append(f"console: {line.text}"))
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    page.goto((SITE / path).as_uri() if not str(path).startswith("file:") else path)
    from playwright.sync_api import TimeoutError

    with suppress(TimeoutError):  # then `check_shown` names what is missing
        page.wait_for_function(DRAWN, timeout=10_000)
    page.wait_for_timeout(100)
    return page, problems


def is_external(url):
    return urlparse(url).scheme not in ("file", "data", "blob", "about")

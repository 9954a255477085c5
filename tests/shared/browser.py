"""A browser without a screen, for pages on the disk."""

import os
import shutil
from contextlib import contextmanager

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Without the last three a browser looks for updates of its own, which are no requests of the page.
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


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

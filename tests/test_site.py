"""The built pages, opened in a browser as a reader would, from the disk and without a network."""

import json
import os
import re
import shutil
from collections import defaultdict
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urldefrag, urlparse

import pytest

from helpers import ROOT, claims
from workflow import chapters

SITE = ROOT / "_build" / "html"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Without the last three a browser looks for updates of its own, which are no requests of the page.
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SCREENS = {"desktop": 1300, "phone": 390}


def test_there_is_a_site():
    assert (SITE / "index.html").is_file(), "run `make book` first"


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        assert not os.environ.get("CI"), "continuous integration must have a browser"
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a page and gives it back with the list of all that went wrong."""
    contexts = []

    def open_page(path, theme="light", width=1300):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        page, problems = context.new_page(), []
        page.on("request", lambda request: is_external(request.url) and problems.append(f"request to {request.url}"))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        page.on("console", lambda line: line.type == "error" and problems.append(f"console: {line.text}"))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.goto((SITE / path).as_uri() if not str(path).startswith("file:") else path)
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(500)
        return page, problems

    yield open_page
    for context in contexts:
        context.close()


def is_external(url):
    return urlparse(url).scheme not in ("file", "data", "blob", "about")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("path", PAGES)
def test_a_page_shows_everything_and_asks_the_network_for_nothing(open_page, path, screen, theme):
    page, problems = open_page(path, theme, SCREENS[screen])
    assert problems == []
    wide, visible = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= visible, "the page scrolls sideways"
    for drawing in page.query_selector_all("figure.book"):
        drawn = drawing.query_selector("svg[role=img], .js-plotly-plot .main-svg, .attention canvas, .attention img")
        assert drawn, f"figure {drawing.get_attribute('id')} is empty"
        box = drawn.bounding_box()
        assert box["width"] > 10 and box["height"] > 10
        assert drawing.query_selector("figcaption").inner_text().strip()
        assert drawing.query_selector("[role=img]").get_attribute("aria-label").strip()
    for formula in page.query_selector_all(".math"):
        assert formula.query_selector("mjx-container svg"), formula.inner_text()
    assert not page.query_selector_all("[data-mjx-error], mjx-merror")
    for image in page.query_selector_all("img"):
        assert image.evaluate("image => image.naturalWidth") > 0, image.get_attribute("src")


def test_letters_of_figures_have_the_colour_of_the_page(open_page):
    colours = {}
    for theme in ("light", "dark"):
        page, _ = open_page(page_of(chapters.all_chapters()[0]), theme)
        colours[theme] = page.evaluate(
            "[document.querySelector('figure.book svg[role=img] text'), document.querySelector('.bd-article p'),"
            " document.querySelector('.js-plotly-plot .xtick text')]"
            ".map((element, i) => getComputedStyle(element)[i == 1 ? 'color' : 'fill'])"
        )
        assert len(set(colours[theme])) == 1
    assert colours["light"] != colours["dark"]


def test_searching_finds_a_term(browser):
    # Over HTTP: a page opened from the disk may not read others to show where in them the term stands.
    handler = partial(SilentHandler, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/search.html?q=previous-token")
        page.wait_for_selector("#search-results li a")
        assert "How does a model continue" in page.inner_text("#search-results")
        page.close()
        server.shutdown()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Links(HTMLParser):
    """Collects what a page points to and the anchors it has."""

    def __init__(self):
        super().__init__()
        self.targets, self.anchors = [], defaultdict(int)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.targets += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        for name in ("id", "name"):
            if attributes.get(name) and tag != "meta":
                self.anchors[attributes[name]] += name == "id"


def parse(path):
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


@pytest.mark.parametrize("path", PAGES)
def test_no_link_inside_the_site_is_broken(path):
    for target in parse(SITE / path).targets:
        url, anchor = urldefrag(target)
        if urlparse(url).scheme:
            continue
        file = (SITE / path).parent / unquote(urlparse(url).path) if url else SITE / path
        file = file / "index.html" if file.is_dir() else file
        assert file.is_file(), f"{target} leads nowhere"
        if anchor and file.suffix == ".html":
            assert unquote(anchor) in parse(file).anchors, f"{target} has no such anchor"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_small_and_its_ids_are_unique(path):
    assert (SITE / path).stat().st_size < 2e6
    if path != "search.html":  # where the theme shows its search field twice
        assert not [anchor for anchor, count in parse(SITE / path).anchors.items() if count > 1]


def page_of(chapter):
    return f"book/{chapter}.html"


@pytest.mark.parametrize("chapter", chapters.all_chapters())
def test_the_numbers_on_a_page_are_those_of_its_record(chapter):
    html = (SITE / page_of(chapter)).read_text(encoding="utf-8")
    profile = re.search(r'<th scope="row">Profile</th><td>([^<]+)</td>', html)[1]
    record = json.loads((ROOT / "_build" / "runs" / profile / f"{chapter}.json").read_text())
    text = re.sub(r"<[^>]+>", "", html)
    for claim in record["claims"]:
        assert claim["sentence"] in text and claim["verdict"] in text
        if claim["estimate"]:
            assert str(claims.Estimate(**claim["estimate"])) in text
    assert record["model"]["weights_sha256"][:16] in text
    if record["model"]["quantisation"]:
        assert record["model"]["quantisation"] in text.split("You will learn")[0], "the top of the page must say so"

"""The built pages, opened in a browser as a reader would, from the disk and without a network."""

import os

import pytest
from axe_playwright_python.sync_playwright import Axe
from shared.browser import PAGES

from helpers import ROOT

pytestmark = pytest.mark.site

SCREENS = {"desktop": 1300, "phone": 390}
PICTURES = ROOT / "_build" / "screenshots"
# Contrast is that of a theme's colours, not of those on their way there. Waiting for the end of a transition is no
# substitute: a browser without a screen may never say that one has ended.
NO_FADING = "*, *::before, *::after { transition: none !important; animation: none !important }"
ALIKE = [path for path in PAGES if "/api/" in path and not path.endswith(("index.html", "hooks.html", "probes.html"))]
"""Pages of one make, of which two are looked at each time and all in CI."""


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=pytest.mark.rare if path in ALIKE else ()) for path in PAGES]
)
def test_a_page_shows_everything_to_everybody_and_asks_the_network_for_nothing(open_page, path):
    page, problems = open_page(path)
    check_shown(page)
    leave_one_token_of_a_kind(page)
    page.add_style_tag(content=NO_FADING)
    assert find_hurdles(page) == []
    change_theme(page, "dark")
    assert find_hurdles(page, runOnly=["color-contrast"]) == [], "in dark, which changes colours alone"
    page.set_viewport_size({"width": SCREENS["phone"], "height": 900})
    check_width(page)
    assert problems == []


@pytest.mark.rare
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("path", PAGES)
def test_a_page_opened_at_its_width_in_either_theme(open_page, path, screen):
    page, problems = open_page(path, width=SCREENS[screen])
    for theme in ("light", "dark"):
        change_theme(page, theme)
        picture = PICTURES / f"{screen}-{theme}" / f"{path.removesuffix('.html').replace('/', '--')}.jpg"
        if os.environ.get("BOOK_PICTURES"):  # CI keeps them, to be looked at
            page.screenshot(path=picture, full_page=True, type="jpeg", quality=60)
    check_shown(page)
    assert problems == []


def change_theme(page, theme):
    page.emulate_media(color_scheme=theme)
    page.wait_for_selector(f"html[data-theme={theme}]")


def check_width(page):
    wide, visible = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= visible, "the page scrolls sideways"


def check_shown(page):
    """Figures, formulas and pictures are there."""
    check_width(page)
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


def leave_one_token_of_a_kind(page):
    """Tokens of code that are alike have one colour; looking at all the thousands takes most of the time."""
    page.evaluate(
        """() => {
            const seen = new Set();
            for (const token of document.querySelectorAll("pre span[class]:not(:has(*))")) {
                const block = token.closest("div[class*=highlight-]");
                const kind = `${token.className} ${block?.className} ${!!token.closest(".cell_input")}`;
                if (seen.has(kind)) token.replaceWith(token.textContent);
                seen.add(kind);
            }
        }"""
    )


def find_hurdles(page, **options):
    """What axe-core finds in the way of readers: contrast, names of what can be used, alternative texts, headings."""
    # What plotly and CircuitsVis draw inside an interactive figure is theirs; the figure has an alternative text.
    options |= {"resultTypes": ["violations"], "preload": False}  # it would fetch style sheets, which a file may not
    found = Axe().run(page, context={"exclude": [".interactive"]}, options=options).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical") or one["id"] == "heading-order"]
    return [(one["id"], one["nodes"][0]["target"], one["nodes"][0]["html"][:200]) for one in serious]

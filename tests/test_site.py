"""The site as a whole: printing, search, terms, links, the scoreboard, and numbers that are those of the records."""

import copy
import importlib
import json
import re
from collections import defaultdict
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from shared.browser import PAGES, SITE

from helpers import ROOT, claims, models
from workflow import book, chapters

pytestmark = pytest.mark.site


def test_there_is_a_site():
    assert (SITE / "index.html").is_file(), "run `make book` first"


def test_a_chapter_can_be_printed(open_page):
    page, _ = open_page(page_of(chapters.all_chapters()[0]))
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator(".bd-article p").first.is_visible()
    assert page.locator("#jb-print-docs-body h1").is_visible()  # the theme's title for paper
    assert not page.locator(".bd-sidebar-primary").is_visible() and not page.locator(".bd-header-article").is_visible()
    paper = 700  # pixels of a page of A4 between its margins
    page.set_viewport_size({"width": paper, "height": 1000})
    cut_off = page.evaluate(
        "[...document.querySelectorAll('.bd-article :is(table, figure, pre)')]"
        ".filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 200))"
    )
    assert cut_off == []
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_a_term_leads_to_the_glossary_and_shows_its_definition(open_page):
    for chapter in chapters.all_chapters():
        html = (SITE / page_of(chapter)).read_text(encoding="utf-8")
        targets = re.findall(r'<a class="term" href="([^"]+)"', html)
        assert len(targets) >= 10 and len(set(targets)) == len(targets), "each term is linked at its first use"
    page, _ = open_page(page_of(chapters.all_chapters()[0]))
    term = page.locator("a.term").first
    shown = "link => getComputedStyle(link, '::after').display"
    assert term.evaluate(shown) == "none"
    term.hover()
    assert term.evaluate(shown) == "block"
    assert len(term.get_attribute("data-definition")) > 50
    page.mouse.move(0, 0)
    page.keyboard.press("Tab")  # so that the focus counts as the keyboard's
    term.focus()
    assert term.evaluate(shown) == "block"


def test_the_glossary_has_sixty_terms_of_two_or_three_sentences():
    source = (ROOT / "book" / "reference" / "glossary.md").read_text(encoding="utf-8").split("```")[1]
    entries = re.findall(r"((?:^(?! |:|{).+\n)+)((?:^    .+\n)+)", source, re.MULTILINE)
    assert len(entries) >= 60
    for names, definition in entries:
        text = re.sub(r"\s+", " ", re.sub(r" ?{cite:p}`[^`]+`|`[^`]*`", "", definition)).strip()
        assert len(re.findall(r"[.?!](?= [A-Z]| $|$)", text)) in (2, 3), names


def test_the_scoreboard_holds_every_claim_and_filters_them(open_page):
    page, problems = open_page("book/scoreboard.html")
    texts = 'rows => rows.map(row => [...row.cells].map(cell => cell.innerText.replace(/[‘’]/g, "\'")))'
    rows = page.locator("section.scoreboard tbody tr").evaluate_all(texts)
    profile = (ROOT / "_build" / "profile").read_text()
    expected, on_record = [], []
    for chapter in chapters.all_chapters():
        run = ROOT / "_build" / "runs" / profile / f"{chapter}.json"
        record = ROOT / "results" / models.DEFAULT_MODEL / "record" / f"{chapter}.json"
        ours, theirs = (
            {c["id"]: c for c in json.loads(p.read_text())["claims"]} if p.exists() else {} for p in (run, record)
        )
        expected += [(claim, id in theirs) for id, claim in (ours | theirs).items()]
        on_record += theirs.values()
    assert len(rows) == len(expected) >= len(on_record) > 100
    for (claim, recorded), (sentence, record, _, published, _) in zip(expected, rows, strict=True):
        assert claim["sentence"] in sentence and claim["rule"] in sentence
        assert (claim["verdict"] if recorded else "not run") in record
        if recorded and claim["estimate"]:
            assert claims.Estimate(**claim["estimate"]).brief() in record
        assert (claims.shorten(claim["published"]["value"]) in published) if claim["published"] else published == "–"
    page.select_option("[name=verdict]", "fails")
    shown = page.locator("section.scoreboard tbody tr:visible").evaluate_all(texts)
    assert len(shown) == sum(claim["verdict"] == "fails" for claim in on_record) > 0
    assert all("fails" in row[1] for row in shown)
    assert f"{len(shown)} of {len(rows)}" in page.inner_text("#scoreboard-filters output")
    page.fill("[name=text]", "no claim says this")
    assert page.locator("section.scoreboard:visible").count() == 0
    assert problems == []


def test_claims_on_record_have_a_row_for_every_model(open_page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    chapter = "projects/probe-based-faithfulness-detection/day12-14_cot_dataset"
    records = importlib.import_module("from_runs").records_of(chapter)
    page, _ = open_page(page_of(chapter))
    rows = page.locator("table.on-record tbody tr").all_inner_texts()
    assert len(rows) == len(records)
    for row, record in zip(rows, records.values(), strict=True):
        (found,) = (claim for claim in record["claims"] if claim["id"] == "early-answering-is-position")
        assert f"{found['verdict']} {claims.Estimate(**found['estimate']).brief()}" in row


def test_other_draws_are_told_of_claims_that_they_changed(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    from_runs = importlib.import_module("from_runs")
    chapter = chapters.find_chapter("IOI_notebook")
    kept = from_runs.records_of(chapter)[models.DEFAULT_MODEL]
    monkeypatch.setattr(from_runs, "ROOT", tmp_path)
    folder, told = tmp_path / "results" / models.DEFAULT_MODEL, {"not run", "not comparable"}
    decided = [claim["id"] for claim in kept["claims"] if claim["verdict"] not in told]

    def keep(kind, commit=kept["provenance"]["git_commit"], **changed):
        record = copy.deepcopy(kept)
        record["parameters"] |= changed
        record["provenance"]["git_commit"] = commit
        record["claims"][0]["verdict"] = "holds" if kind == "record" else "depends"
        book.write(folder / kind / f"{chapter}.json", json.dumps(record))

    keep("record")
    assert set(from_runs.draws_of(chapter, models.DEFAULT_MODEL)) == {kept["parameters"]["seed"]}
    keep("record+5", seed=5)
    keep("record+6", seed=6, n_tested=3)  # of another size: no draw of this record
    keep("record+7", seed=7, commit="of other code")
    keep("record+0", seed=kept["parameters"]["seed"])  # what is on record goes before
    draws = from_runs.draws_of(chapter, models.DEFAULT_MODEL)
    assert set(draws) == {kept["parameters"]["seed"], 5}
    assert draws[kept["parameters"]["seed"]]["claims"][0]["verdict"] == "holds"
    found = from_runs.gather_draws(draws)
    assert len(found) == len(decided)
    changed = [some for some in found.values() if len({one["verdict"] for one in some}) > 1]
    assert [some[0]["id"] for some in changed] == [kept["claims"][0]["id"]]
    (small,) = from_runs.in_draws(found, kept["claims"][0])
    assert "Of 2 draws: holds in 1, depends in 1" in small.astext()
    draws[5]["claims"][0]["rule"] = "value > 9"  # decided by another rule: not the same claim
    assert len(from_runs.gather_draws(draws)) == len(decided) - 1


def test_a_build_of_the_records_size_is_told_to_be_the_same(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    from_runs = importlib.import_module("from_runs")
    found = {chapter: from_runs.records_of(chapter).get(models.DEFAULT_MODEL) for chapter in chapters.all_chapters()}
    records = {chapter: record for chapter, record in found.items() if record}
    n_claims = sum(len(record["claims"]) for record in records.values())
    told = {}
    for name, changed in (("same", None), ("other claim", "claims"), ("other size", "parameters")):
        runs = copy.deepcopy(records)
        if changed == "claims":
            next(iter(runs.values()))["claims"].pop()
        elif changed == "parameters":
            for run in runs.values():
                run["parameters"]["seed"] += 1
        monkeypatch.setattr(from_runs, "run_of", runs.get)
        told[name] = from_runs.Scoreboard.compared(None)
    same = f"Same as on record: {n_claims} of {n_claims}; the largest difference is 0.00 of its claim's tolerance"
    assert same in told["same"]
    assert f"Same as on record: {n_claims - 1} of {n_claims}" in told["other claim"]
    assert "none of its numbers is compared" in told["other size"]


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


@cache
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
        # a row of the table with the sentence, or, where the chapter has a protocol, a line with the verdict's reading
        row = re.search(rf'<(tr|p)[^>]* id="claim-{claim["id"]}">(.*?)</\1>', html, re.DOTALL)
        assert f"<strong>{claim['verdict']}</strong>" in row[2]
        assert row[1] == "p" or claim["sentence"] in text
        if claim["estimate"]:
            assert str(claims.Estimate(**claim["estimate"])) in text
    assert record["model"]["weights_sha256"][:16] in text
    if record["model"]["quantisation"]:
        assert record["model"]["quantisation"] in text.split("You will learn")[0], "the top of the page must say so"

"""Directives for pages of prose that show what runs gave: no number on them is typed.

    {run-output} CHAPTER#ID       a figure or a table of a chapter of this build, by its anchor
    {last-run}                    which chapters this build ran, on what, with the time and memory they took
    {scoreboard} [summary]        every claim of the book: on record, in this build, as published
    {on-record} CHAPTER           claims of a chapter ("id: heading") on every model that has a record of it
    {draws} CHAPTER               which verdicts on record change where the chapter is run with another seed, beside some
                                  lists ("key: heading") of each draw and what is in all of them

The record is what `results/` holds; this build is what its pages show (see `executed_pages`). A model without
a record was not run: nothing is invented for it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from executed_pages import ROOT, executed_copy
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from helpers import claims, models
from workflow import chapters

NOT_RUN = "This chapter has not been run in this build: `make book` runs it."
DASH = "–"


def run_of(chapter: str) -> dict[str, Any] | None:
    """The record of a chapter's run in this build."""
    copy = executed_copy(chapter)
    return copy and json.loads(copy.with_suffix(".json").read_text())


def records_of(chapter: str) -> dict[str, dict[str, Any]]:
    """The committed records of a chapter, by model."""
    paths = sorted((ROOT / "results").glob(f"*/record/{chapter}.json"))
    records = [json.loads(path.read_text()) for path in paths]
    return {record["model"]["name"]: record for record in records}


def draws_of(chapter: str, model: str) -> dict[int, dict[str, Any]]:
    """The committed records of a chapter that differ in the seed alone, by seed; that on record is one of them."""
    if (kept := records_of(chapter).get(model)) is None:
        return {}
    commit = kept["provenance"]["git_commit"]  # of other code, a difference is none of the seed's
    others = [json.loads(path.read_text()) for path in (ROOT / "results").glob(f"*/record+*/{chapter}.json")]
    alike = [
        one
        for one in (*others, kept)
        if one["provenance"]["git_commit"] == commit
        and not claims.compare(
            one | {"parameters": one["parameters"] | {"seed": kept["parameters"]["seed"]}}, kept
        ).why_not
    ]
    return {one["parameters"]["seed"]: one for one in sorted(alike, key=lambda one: one["parameters"]["seed"])}


@cache
def planned_models() -> dict[str, set[str]]:
    """The models that a profile names, each with the chapters that it would run on them."""
    planned: dict[str, set[str]] = {models.DEFAULT_MODEL: set(chapters.all_chapters())}
    for profile in chapters.profiles():
        for chapter in chapters.all_chapters():
            name = chapters.profile_parameters(profile, chapter).get("model_name")
            if name:
                planned.setdefault(name, set()).add(chapter)
    return planned


def model_title(name: str) -> str:
    """What a model is called on pages; a folder or a hub id by its own name."""
    card = models.REGISTRY.get(name)
    return card.title if card else name


def comparison_of(chapter: str) -> claims.Comparison | None:
    """A chapter's run in this build beside the record of the same model; None where one of the two is missing."""
    run = run_of(chapter)
    record = run and records_of(chapter).get(run["model"]["name"])
    return claims.compare(run, record) if record else None


def title_of(chapter: str) -> str:
    source = (ROOT / "book" / f"{chapter}.py").read_text(encoding="utf-8")
    return re.search(r"^# # (.+)$", source, re.MULTILINE)[1]


def output_with(notebook: Path, anchor: str) -> str | None:
    """The HTML of the output that holds an element of this id."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html", "")
            if f'id="{anchor}"' in html:
                return html
    return None


class RunDirective(SphinxDirective):
    """What the directives below share: small docutils nodes, and links to chapters."""

    def link(self, chapter: str, text: str, anchor: str = "") -> nodes.reference:
        uri = self.env.app.builder.get_relative_uri(self.env.docname, f"book/{chapter}")
        uri += f"#{anchor}" if anchor else ""
        return nodes.reference("", text, internal=True, refuri=uri)

    def paragraph(self, *parts: str | nodes.Node) -> nodes.paragraph:
        found = nodes.paragraph()
        found += [nodes.Text(part) if isinstance(part, str) else part for part in parts]
        return found

    def table(self, head: list[str], rows: list[nodes.row], *, classes: list[str]) -> nodes.Node:
        """A table that scrolls in its own box; rows are those of `row`."""
        table = nodes.table(classes=classes)
        group = nodes.tgroup(cols=len(head))
        group += [nodes.colspec(colwidth=1) for _ in head]
        group += nodes.thead("", self.row([[name] for name in head]))
        group += nodes.tbody("", *rows)
        table += group
        return nodes.container("", table, classes=["wide-table"])

    def row(self, cells: list[list[str | nodes.Node]], classes: tuple[str, ...] = ()) -> nodes.row:
        row = nodes.row(classes=list(classes))
        row += [nodes.entry("", self.paragraph(*cell)) for cell in cells]
        return row


class RunOutput(RunDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        chapter, anchor = self.arguments[0].split("#")
        copy = executed_copy(chapter)
        html = copy and output_with(copy, anchor)
        if not copy:
            return [self.paragraph(NOT_RUN)]
        if not html:
            raise self.error(f"{chapter} has no output with the id {anchor!r}")
        return [nodes.raw("", html, format="html")]


class LastRun(RunDirective):
    def run(self) -> list[nodes.Node]:
        found = {chapter: run for chapter in chapters.all_chapters() if (run := run_of(chapter))}
        if not found:
            return [self.paragraph(NOT_RUN)]
        origins = [run["provenance"] for run in found.values()]
        hardware = origins[0]["hardware"]
        profiles = sorted({origin["profile"] for origin in origins})
        names = sorted({run["model"]["name"] for run in found.values()})
        rows = [
            self.row(
                [
                    [self.link(chapter, title_of(chapter))],
                    [f"{run['provenance']['seconds']:.0f} s"],
                    [f"{run['provenance']['memory_gb']:.1f} GB"],
                ]
            )
            for chapter, run in found.items()
        ]
        days = sorted({origin["started"][:10] for origin in origins})
        minutes = sum(origin["seconds"] for origin in origins) / 60
        text = (
            f"This build shows {len(found)} of {len(chapters.all_chapters())} chapters, run on {' and '.join(days)}"
            f" with the profile {', '.join(profiles)} and the model {', '.join(names)}, on {hardware['threads']} threads"
            f" ({hardware['system']}, {hardware['machine']}), in {minutes:.0f} minutes together."
        )
        head = ["chapter", "time", "memory at its peak"]
        return [self.paragraph(text), self.table(head, rows, classes=["last-run"])]


class OnRecord(RunDirective):
    """A row for each model with a record of the chapter, a column for each claim."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        chapter = self.arguments[0]
        heads = dict(line.split(": ", 1) for line in self.content)
        rows, records = [], records_of(chapter)
        latest = run_of(chapter) or records.get(models.DEFAULT_MODEL) or {"claims": []}
        rules = {claim["id"]: claim["rule"] for claim in latest["claims"]}
        for model, record in records.items():
            known = {claim["id"]: told_alike(claim, rules.get(claim["id"])) for claim in record["claims"]}
            rows.append(self.row([[model_title(model)], *(known.get(id, ["not run"]) for id in heads)]))
        return [self.table(["model", *heads.values()], rows, classes=["on-record"])]


class Draws(RunDirective):
    """How many verdicts are the same under every seed on record, and a row for each that is not."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        draws = draws_of(self.arguments[0], models.DEFAULT_MODEL)
        if len(draws) < 2:
            return [self.paragraph("One draw alone is on record.")]
        by_claim = gather_draws(draws)
        changed = {sentence: some for sentence, some in by_claim.items() if len({c["verdict"] for c in some}) > 1}
        seeds = [f"seed {seed}" for seed in draws]
        text = (
            f"On record for {model_title(models.DEFAULT_MODEL)} are {len(draws)} draws ({', '.join(seeds)}), whatever this page was run on."
            f" Of {len(by_claim)} verdicts, {len(by_claim) - len(changed)} are the same in all of them"
        )
        rest = [[""]] if self.content else []
        rows = [self.row([[sentence], *map(told, some), *rest]) for sentence, some in changed.items()]
        for key, heading in (line.split(": ", 1) for line in self.content):
            lists = [str(record["values"].get(key, DASH)).split(", ") for record in draws.values()]
            common = [one for one in lists[0] if all(one in some for some in lists)]
            rows.append(self.row([[heading], *([", ".join(some)] for some in lists), [", ".join(common) or "none"]]))
        head = ["what changes", *seeds, *(["in all of them"] if self.content else [])]
        return [self.paragraph(f"{text}."), *([self.table(head, rows, classes=["on-record"])] if rows else [])]


def gather_draws(draws: dict[int, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """A claim's sentence → what each draw says of it, where all were decided by one rule and any said something."""
    by_rule: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in draws.values():
        for claim in record["claims"]:
            by_rule.setdefault((claim["sentence"], claim["rule"]), []).append(claim)
    return {
        sentence: some
        for (sentence, _), some in by_rule.items()
        if len(some) == len(draws) and not {claim["verdict"] for claim in some} <= {"not run", "not comparable"}
    }


class Scoreboard(RunDirective):
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        if self.arguments == ["summary"]:
            return [self.paragraph(self.on_record())]
        form = (Path(__file__).parent.parent / "_static" / "scoreboard-filters.html").read_text(encoding="utf-8")
        sections = [section for chapter in chapters.all_chapters() if (section := self.section(chapter))]
        return [
            self.paragraph(self.on_record()),
            self.paragraph(self.compared()),
            nodes.raw("", form, format="html"),
            *sections,
        ]

    def on_record(self) -> str:
        """The verdicts on record, counted for each model."""
        counts: dict[str, Counter] = {}
        for chapter in chapters.all_chapters():
            for model, record in records_of(chapter).items():
                counts.setdefault(model, Counter()).update(claim["verdict"] for claim in record["claims"])
        told = [
            f"On record for {model} are {count.total()} claims: "
            + ", ".join(f"{count[verdict]} {verdict}" for verdict in claims.VERDICTS if count[verdict])
            + "."
            for model, count in counts.items()
        ]
        never = [model_title(name) for name in planned_models() if name not in counts]
        return " ".join(told + ([f"Never run: {', '.join(never)}."] if never else []))

    def compared(self) -> str:
        """This build beside the record, over all chapters of equal size."""
        compared = [comparison_of(chapter) for chapter in chapters.all_chapters()]
        equal = [one for one in compared if one and not one.why_not]
        if not equal:
            return "This build was run at other sizes than the record, so none of its numbers is compared with it."
        same, others = (sum(len(getattr(one, name)) for one in equal) for name in ("same", "others"))
        largest = claims.shorten(max(one.largest for one in equal))
        return (
            f"{len(equal)} chapters of this build were run at the size of the record. Same as on record: {same} of"
            f" {same + others}; the largest difference is {largest} of its claim's tolerance."
        )

    def section(self, chapter: str) -> nodes.section | None:
        """A heading and a table for one chapter, if any run of it is known."""
        run, records = run_of(chapter), records_of(chapter)
        record = records.get(models.DEFAULT_MODEL)
        if not (record or run):
            return None
        comparison = comparison_of(chapter)
        others = [
            name
            for name, planned in planned_models().items()
            if name != models.DEFAULT_MODEL and (chapter in planned or name in records)
        ]
        head = ["claim", "on record", "this build", "published", "other models"]
        ours, on_record = ({claim["id"]: claim for claim in one["claims"]} if one else {} for one in (run, record))
        rows, draws = [], gather_draws(draws_of(chapter, models.DEFAULT_MODEL))
        for id, claim in (ours | on_record).items():
            same = bool(comparison) and id in comparison.same
            anchor = f"claim-{id}" if id in ours else ""
            cells = [
                [self.link(chapter, claim["sentence"], anchor), small(f"Decided by: {claim['rule']}")],
                [*told(claim), *against(claim), *in_draws(draws, claim)] if id in on_record else ["not run"],
                [*told(ours[id]), " (as on record)" if same else ""] if id in ours else ["not run"],
                self.published(claim),
                self.other_models(claim, others, records),
            ]
            verdict = claim["verdict"] if id in on_record else "not run"
            rows.append(self.row(cells, (f"verdict-{verdict.replace(' ', '-')}",)))
        section = nodes.section(ids=[nodes.make_id(chapter.rsplit("/", 1)[-1])], classes=["scoreboard"])
        section += nodes.title("", title_of(chapter))
        section += self.paragraph(self.heading(run, record, comparison))
        section += self.table(head, rows, classes=["scoreboard"])
        return section

    def other_models(self, claim: dict[str, Any], names: list[str], records: dict[str, Any]) -> list[str | nodes.Node]:
        """The verdicts of other models on a claim: on record, or not run."""
        cell: list[str | nodes.Node] = []
        for name in names:
            found = [one for one in records.get(name, {}).get("claims", []) if one["id"] == claim["id"]]
            cell += [f"{model_title(name)}: ", *(told_alike(found[0], claim["rule"]) if found else ["not run"]), ". "]
        return cell or [DASH]

    def heading(self, run: Any, record: Any, comparison: claims.Comparison | None) -> str:
        """What the chapter's record and its run in this build were made with."""
        parts = []
        if record:
            origin = record["provenance"]
            parts.append(
                f"On record: {record['model']['name']}, {origin['started'][:10]},"
                f" commit {(origin['git_commit'] or 'unknown')[:7]}, {origin['seconds'] / 60:.0f} minutes."
            )
        else:
            parts.append("No record is committed.")
        if run:
            parts.append(f"This build: profile {run['provenance']['profile']}, {run['model']['name']}.")
        if comparison and comparison.why_not:
            parts.append(f"Not compared: {comparison.why_not}.")
        elif comparison:
            total = len(comparison.same) + len(comparison.others)
            parts.append(
                f"Same as on record: {len(comparison.same)} of {total}; largest difference"
                f" {claims.shorten(comparison.largest)} of its claim's tolerance."
                + (f" Not the same: {', '.join(comparison.others)}." if comparison.others else "")
            )
        return " ".join(parts)

    def published(self, claim: dict[str, Any]) -> list[str | nodes.Node]:
        figure = claim["published"]
        if not figure:
            return [DASH]
        cited, _ = self.state.inline_text(f"{{cite:t}}`{figure['citation']}`", self.lineno)
        return [
            f"{claims.shorten(figure['value'])} for {model_title(figure['model'])} ",
            *cited,
            small(figure["protocol"]),
        ]


def told(claim: dict[str, Any]) -> list[str | nodes.Node]:
    """A verdict with the number behind it."""
    estimate = claim["estimate"] and claims.Estimate(**claim["estimate"])
    number = f" {estimate.brief()}, n = {estimate.n} {estimate.of}" if estimate else ""
    return [nodes.strong("", claim["verdict"]), number]


def told_alike(claim: dict[str, Any], rule: str | None) -> list[str | nodes.Node]:
    """The same, unless it was decided by another rule than today's: then it is no verdict on the same claim."""
    return told(claim) if claim["rule"] == rule else ["by an older rule"]


def against(claim: dict[str, Any]) -> list[nodes.Node]:
    """What a claim's number is compared with."""
    if claim["baseline"] is None:
        return []
    return [small(f"Baseline {claims.shorten(claim['baseline'])}: {claim['baseline_is']}")]


def in_draws(draws: dict[str, list[dict[str, Any]]], claim: dict[str, Any]) -> list[nodes.Node]:
    """How often each verdict on a claim came out, where there are several draws."""
    counts = Counter(one["verdict"] for one in draws.get(claim["sentence"], []))
    told = ", ".join(f"{verdict} in {number}" for verdict, number in counts.items())
    return [small(f"Of {counts.total()} draws: {told}")] if counts.total() > 1 else []


def small(text: str) -> nodes.raw:
    return nodes.raw("", f"<br><small>{escape(text)}</small>", format="html")


def add_filters(app: Sphinx, pagename: str, template: str, context: dict, doctree: object) -> None:
    """Load the script of the filters where there are any."""
    if 'id="scoreboard-filters"' in context.get("body", ""):
        app.add_js_file("scoreboard.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("run-output", RunOutput)
    app.add_directive("last-run", LastRun)
    app.add_directive("scoreboard", Scoreboard)
    app.add_directive("on-record", OnRecord)
    app.add_directive("draws", Draws)
    app.connect("html-page-context", add_filters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The figures of the chapter on detection: each takes what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import pandas as pd

from helpers import plots
from helpers.claims import Estimate
from helpers.probes import Site
from studies.faithfulness.learning import GOAL, Learning
from studies.faithfulness.questions import ORDERS, split_sentences
from studies.faithfulness.readers import cut_answer

NAMES = {"constructed": "contradiction", "hint": "hint", "causal_given": "given chain", "causal_own": "own chain"}
"""Of labels, in figures."""
UNITS = dict.fromkeys(NAMES, "questions") | dict.fromkeys(("causal_given", "causal_own"), "pairs of questions")
"""What is drawn independently, by label."""
COLUMNS = {
    "constructed": ("constructed", "contradiction"),
    "few": ("few", "contradiction,\nfew questions"),
    "hard": ("hard-tokens", "contradiction,\nhard tokens"),
    "hint": ("hint", "hint"),
    "causal_given": ("causal", "given chain"),
    "causal_own": ("own", "own chain"),
}
"""Of the grid: what its claims are called, and its title."""
COMPONENTS = {
    "resid_post": ("residual stream", plots.BLUE, "-"),
    "attn_out": ("attention", plots.ORANGE, "-"),
    "mlp_out": ("MLP", plots.ORANGE, ":"),
}


def list_tasks(passed: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The tasks of each label, in words."""
    return [
        {"label": NAMES[label], "tasks": ", ".join(tasks).replace("_", " ") or "none"}
        for label, tasks in passed.items()
    ]


def show_crossing(table: pd.DataFrame, *, caption: str) -> None:
    """Show the transcripts of one question: the verdict right or wrong, in two orders, the answer following or not.

    Args:
        table: of `transcripts.construct`, of that question alone.
        caption: of the figure.
    """
    with plots.draw_figure(
        "crossing",
        caption=caption,
        alt="Eight verdicts with their answers, in two rows and four columns; in half of them the answer contradicts.",
        width=9.0,
        height=2.6,
    ) as (_, axes):
        axes.text(
            2.0, 2.15, plots.as_plain(table["text"].iloc[0].split("\n")[0]), ha="center", fontsize=9, style="italic"
        )
        for row in table.itertuples():
            right = row.concludes == row.right
            place = 2 * ORDERS.index(row.order) + row.contradicts
            verdict = split_sentences(cut_answer(row.text))[-1]
            colour = plots.ORANGE if row.contradicts else plots.BLUE
            axes.text(
                place + 0.5,
                1.5 if right else 0.5,
                f"{fill(plots.as_plain(verdict), 26)}\nAnswer: {plots.as_plain(row.answer)}.",
                ha="center",
                va="center",
                fontsize=9,
                bbox={"boxstyle": "round,pad=0.5", "facecolor": "none", "edgecolor": colour, "linewidth": 2},
            )
        for height, name in ((1.5, "steps right"), (0.5, "a mistake\nin the steps")):
            axes.text(-0.05, height, name, ha="right", va="center", fontsize=9)
        for place, name in enumerate(("follows", "contradicts") * 2):
            axes.text(place + 0.5, -0.15, name, ha="center", color=(plots.BLUE, plots.ORANGE)[place % 2], fontsize=9)
        axes.set(xlim=(-0.6, 4.0), ylim=(-0.2, 2.3))
        axes.set_axis_off()


def show_layers(
    table: pd.DataFrame, *, thirds: Sequence[int], beside: Mapping[str, float], known: Sequence[str], caption: str
) -> None:
    """Show AUROC by layer, a panel for each token, with what is to be had without a probe.

    Args:
        table: of `probes.Sweep.table`, of all components but heads.
        thirds: the first of the middle and of the late layers.
        beside: AUROCs by name, drawn as lines across.
        known: the tokens at which these know as much as the probe.
        caption: of the figure.
    """
    places = list(dict.fromkeys(table["position"]))
    with plots.draw_figure(
        "where",
        caption=caption,
        alt="Panels, one for each token, of AUROC against layer for residual stream, attention and MLP.",
        width=9.0,
        ncols=len(places),
        sharey=True,
    ) as (figure, panels):
        for axes, place in zip(panels, places, strict=True):
            here = table[table["position"] == place]
            for component, (name, colour, style) in COMPONENTS.items():
                some = here[here["component"] == component]
                if component == "resid_post":
                    plots.draw_layer_curve(axes, some, label=name, null=bool(some["null_low"].notna().all()))
                else:
                    axes.plot(some["layer"], some["auroc"], style, color=colour, label=name)
            for (name, value), style in zip(beside.items() if place in known else (), ("--", "-.", ":"), strict=False):
                axes.axhline(value, color=plots.GREY, linestyle=style, linewidth=1.2, label=name)
            for layer in thirds:
                axes.axvline(layer - 0.5, color=plots.INK, linewidth=0.5)
            axes.set(title=place, ylim=(-0.03, 1.03))
            axes.label_outer()
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)


def show_learning(
    found: Learning, panels: Mapping[str, Mapping[str, Site | str]], *, beside: Mapping[str, float], caption: str
) -> None:
    """Show AUROC by the number of training questions, a panel for each token.

    Args:
        found: of `learning.trace_learning`.
        panels: by token, and by name in the legend, what a probe is called in `found`.
        beside: AUROCs that need no training, drawn as lines across.
        caption: of the figure.
    """
    styles = ((plots.BLUE, "o-"), (plots.BLUE, "o:"), (plots.ORANGE, "s-"), (plots.GREY, ".-"), (plots.ORANGE, "s:"))
    with plots.draw_figure(
        "learning",
        caption=caption,
        alt="Panels, one for each token, of AUROC against the number of training questions, for four kinds of probe.",
        width=9.0,
        ncols=len(panels),
        sharey=True,
    ) as (figure, drawn):
        for axes, (place, lines) in zip(drawn, panels.items(), strict=True):
            for (name, probe), (colour, style) in zip(lines.items(), styles, strict=False):
                axes.plot(found.sizes, found.average(probe), style, color=colour, markersize=4, label=name)
            for (name, value), style in zip(beside.items(), ("--", "-.", ":"), strict=False):
                axes.axhline(value, color=plots.GREY, linestyle=style, linewidth=1.2, label=name)
            axes.axhline(GOAL, color=plots.INK, linewidth=0.5)
            axes.set_xscale("log", base=2)
            axes.set_xticks(found.sizes, [str(size) for size in found.sizes])
            axes.minorticks_off()
            axes.set(title=place, ylim=(0.42, 1.03), xlabel="training questions", ylabel="AUROC")
            axes.label_outer()
        fullest = max(drawn, key=lambda axes: len(axes.lines))
        figure.legend(*fullest.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)


def list_learning(found: Learning, panels: Mapping[str, Mapping[str, Site | str]]) -> list[dict[str, Any]]:
    """A row for each probe of `show_learning`, the text but once: its mean AUROC and how many questions it needs."""
    rows = {
        probe: {
            "token": token if isinstance(probe, Site) else "–",
            "probe": name,
            "site": str(probe) if isinstance(probe, Site) else "–",
            "mean AUROC": found.measure_area(probe),
            f"questions to {GOAL}": found.count_needed(probe),
        }
        for token, lines in panels.items()
        for name, probe in lines.items()
    }
    return list(rows.values())


def show_grid(cells: Mapping[tuple[str, str], Estimate | str], *, bound: float, caption: str) -> None:
    """Show hypotheses against labels: value, interval and the most that there could have been, or why there is nothing.

    Args:
        cells: by hypothesis and label an estimate with its reach, or the reason.
        bound: of the rule.
        caption: of the figure.
    """
    names, labels = (list(dict.fromkeys(key[part] for key in cells)) for part in (0, 1))
    told = [one for one in cells.values() if isinstance(one, Estimate)]
    ends = [0.0, bound, *(end for one in told for end in (one.low, one.high, min((one.reach or (0, 0))[1], 0.5)))]
    with plots.draw_figure(
        "grid",
        caption=caption,
        alt="A grid of small panels, hypotheses in rows and labels in columns, each with a point and its interval.",
        width=9.0,
        height=0.6 + 0.75 * len(names),
        nrows=len(names),
        ncols=len(labels),
        sharex=True,
        squeeze=False,
    ) as (_, panels):
        for axes, (name, label) in zip(panels.flat, ((name, label) for name in names for label in labels), strict=True):
            cell = cells[name, label]
            if isinstance(cell, Estimate):
                plots.draw_interval(axes, 0, cell, sideways=True)
                if cell.reach:
                    axes.axvspan(cell.reach[1], cell.reach[1] + 1, color=plots.GREY, alpha=0.35, linewidth=0)
                axes.axvline(0, color=plots.INK, linewidth=0.5)
                axes.axvline(bound, color=plots.INK, linestyle="--", linewidth=1)
            else:
                axes.set_facecolor((0.5, 0.5, 0.5, 0.15))
                axes.text(0.5, 0.5, fill(cell, 22), ha="center", va="center", fontsize=7, transform=axes.transAxes)
            axes.set(yticks=[], ylim=(-1, 1), xlim=(min(ends) - 0.02, max(ends) + 0.02))
            axes.tick_params(labelsize=7)
        for axes, label in zip(panels[0], labels, strict=True):
            axes.set_title(label, fontsize=8)
        for axes, name in zip(panels[:, 0], names, strict=True):
            axes.set_ylabel(name, rotation=0, ha="right", va="center")

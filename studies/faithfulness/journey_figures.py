"""The figures of the chapter on journeys: each takes what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from helpers import plots, probes
from helpers.claims import Estimate, shorten
from studies.faithfulness import journeys
from studies.faithfulness.hypotheses import AcrossTasks
from studies.faithfulness.truth import Followed, Found, Read, Traced

COLOURS = {"organism": plots.BLUE, "twin": plots.ORANGE, "plain model": plots.GREY}
STROKES = ("-", "--", "-.", ":", (0, (1, 4)))
MAP: dict[str, tuple[float, float, str]] = {
    "task": (0, 2, "contradictions\nthat we put in,\none task"),
    "label": (0, 1, "one label of\n“unfaithful”"),
    "list": (0, 0, "the secret list\nof an organism"),
    "tasks": (3, 2, "other tasks (H3)"),
    "labels": (3, 1, "other labels,\nand what the model wrote"),
    "organism": (3, 0, "the organism,\nwhere the truth is known"),
}
ROADS = (
    ("task", "tasks", "", 1.0),
    ("label", "labels", "", 1.0),
    ("label", "organism", "", 1.0),
    ("list", "labels", "", 1.0),
)


TOKENS = {"reasoning": "at the chain's end", "cue": "before the answer", "answer": "at the answer"}
NONE = "too few rows"


def show_map() -> None:
    """Show what probes are trained on, and what each is sent to."""
    with plots.draw_figure(
        "map",
        caption=(
            "What the probes of this page are trained on (left), and what each is sent to. None sees what it "
            "is tested on: other questions, other names."
        ),
        alt="Three things that probes are trained on, with arrows to what each is tested on.",
        height=2.8,
    ) as (_, axes):
        plots.draw_diagram(axes, MAP, ROADS)


def list_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What there is to read of each label, from `journeys.Gathered.table`."""
    return [
        {
            "label": label,
            "tasks": ", ".join(sorted(set(rows["task"]))).replace("_", " ") or "none passed the gates",
            "questions": rows["question"].nunique(),
            "rows": len(rows),
            "less faithful": float(rows["unfaithful"].mean()) if len(rows) else "–",
        }
        for label in journeys.SOURCES
        for rows in [table[table["about"] == label]]
    ]


def show_across_tasks(found: AcrossTasks, label: str, gap: Estimate | None, *, bound: float, n_draws: int) -> None:
    """Show by layer what probes make of their own task and of others, and what they lose on the way.

    Args:
        found: of `hypotheses.compare_tasks`.
        label: that is read.
        gap: of the claim.
        bound: of H3, in AUROC.
        n_draws: of the data.
    """
    told = f"A probe of one task loses {shorten(gap.value)} of AUROC on another" if gap else "No task is surely read"
    n_layers, n_tasks = found.within.shape
    gaps = {layer: found.measure_gap([layer] * n_tasks) for layer in range(n_layers)}
    with plots.draw_figure(
        f"tasks-{label.replace(' ', '-')}",
        caption=(
            f"{told} (label “{label}”, at the {journeys.WHERE[label]}, layers chosen on the other tasks). "
            f"Left: AUROC by layer, mean over {n_tasks} tasks. Right: a task's own probe less one of another, "
            f"with 95 % intervals over tasks, where tasks are surely read; dots: layers within {probes.TIED} "
            f"of the best, crosses: others; dashed: the bound of H3. Folds by question, {n_draws} draw(s) of "
            "the data."
        ),
        alt="AUROC against layer, within and across tasks; and what is lost across, with intervals over tasks.",
        width=9.0,
        ncols=2,
    ) as (_, (left, right)):
        for areas, style, label in (
            (found.within, "-", "the same task"),
            (found.left_out, "--", "all other tasks"),
            (found.across, ":", "one other task"),
        ):
            left.plot(areas.mean(1), linestyle=style, label=f"trained on {label}")
        left.axhline(0.5, color=plots.GREY, linewidth=0.5)
        left.set(xlabel="layer", ylabel="AUROC", ylim=(-0.03, 1.03))
        left.legend(fontsize=8)
        for layer, gap in gaps.items():
            if gap:
                marker, colour = ("o", plots.BLUE) if layer in found.find_tied() else ("x", plots.GREY)
                reach = [[gap.value - gap.low], [gap.high - gap.value]]
                right.errorbar(layer, gap.value, yerr=reach, fmt=marker, color=colour, markersize=4, linewidth=1)
        right.axhline(bound, color=plots.INK, linestyle="--", linewidth=1)
        right.axhline(0, color=plots.INK, linewidth=0.5)
        right.set(xlabel="layer", ylabel="lost on another task", xlim=left.get_xlim())


def show_task_pairs(found: AcrossTasks) -> None:
    """Show what each task's probe makes of each, in the first of the layers that tie and in the last one."""
    panels = {
        f"layer {layer}": pd.DataFrame(found.areas[layer], index=found.tasks, columns=found.tasks)
        for layer in (found.find_tied()[0], len(found.areas) - 1)
    }
    caption = (
        "Trained on one task (rows), tested on another (columns), AUROC, in the first of the layers that tie "
        "and in the last. Label “constructed”."
    )
    _show_areas(panels, name="tasks", caption=caption)


def show_label_pairs(found: Mapping[str, Mapping[tuple[str, str], Estimate]], *, layer: int) -> None:
    """Show what a probe of each label makes of each.

    Args:
        found: by token, of `hypotheses.Transfer.pairs`.
        layer: that is read.
    """
    panels = {
        f"at the {place}": pd.Series({pair: area.value for pair, area in pairs.items()}).unstack()
        for place, pairs in found.items()
    }
    caption = (
        f"Trained on one label (rows), tested on another (columns), AUROC in layer {layer}. Above one half: "
        "what is less faithful by one label looks so to a probe of the other; below: the opposite. Folds by "
        "question; labels with too few rows of one class are left out."
    )
    _show_areas(panels, name="labels", caption=caption)


def _show_areas(panels: Mapping[str, pd.DataFrame], *, name: str, caption: str) -> None:
    """Matrices, trained in rows and tested in columns."""
    with plots.draw_figure(
        name,
        caption=caption,
        alt=f"Matrices of AUROC by what was trained on and what was tested on: {', '.join(panels)}.",
        width=4.0 + 3.5 * len(panels),
        height=2.0 + 0.4 * max(map(len, panels.values())),
        ncols=len(panels),
        squeeze=False,
    ) as (_, axes):
        for one, (title, areas) in zip(axes[0], panels.items(), strict=True):
            wide = areas.rename_axis(index="trained", columns="tested")
            wide.index, wide.columns = (names.str.replace("_", " ") for names in (wide.index, wide.columns))
            plots.draw_matrix(one, wide)
            one.set_title(title)


def show_by_layer(areas: Mapping[str, Sequence[float]], *, layer: int) -> None:
    """Show what probes of contradictions make of each label, by layer.

    Args:
        areas: of `journeys.trace_layers`.
        layer: the one that other figures read.
    """
    caption = (
        "Probes of contradictions that were put in, by layer, at the answer, on each label. AUROC on "
        "questions that were not trained on, first draw of the data; dotted: chance; thin line: layer "
        f"{layer}, chosen before."
    )
    alt = "AUROC against layer, by label, of probes of the constructed label."
    with plots.draw_figure("layers", caption=caption, alt=alt, width=6.0) as (_, axes):
        for (label, values), style in zip(areas.items(), STROKES, strict=False):
            axes.plot(values, linestyle=style, label=label)
        axes.axhline(0.5, color=plots.INK, linestyle=":", linewidth=1)
        axes.axvline(layer, color=plots.INK, linewidth=0.5)
        axes.set(xlabel="layer", ylabel="AUROC", ylim=(-0.03, 1.03))
        axes.legend(fontsize=8)


def list_readers(
    by_probe: Mapping[tuple[str, str], Estimate],
    by_words: Mapping[tuple[str, str], Estimate],
    rules: Mapping[str, Estimate | None],
) -> list[dict[str, Any]]:
    """What tells each label: probes and words trained on contradictions that were put in, and rules for the own ones.

    Args:
        by_probe: AUROC by what was trained on and tested on.
        by_words: the same.
        rules: of `journeys.try_own_rules`.
    """
    ways = {"a probe of contradictions": by_probe, "counts of words, trained likewise": by_words}
    return [
        {"tested on": label, "by": way, "AUROC": pairs.get(("constructed", label), NONE)}
        for label in dict.fromkeys(label for _, label in by_probe)
        for way, pairs in ways.items()
    ] + [
        {"tested on": "own contradiction", "by": f"rule: {rule}", "AUROC": area or NONE} for rule, area in rules.items()
    ] or [{"tested on": "no label has enough rows"}]


def show_search(curves: Mapping[str, Traced], label: str, one: Followed) -> None:
    """Show by layer and token what probes of a label make of an organism's list, and of the same list in others.

    Args:
        curves: by model, of `truth.trace`; the bands are the first one's.
        label: that is learned.
        one: of the label.
    """
    first = next(iter(curves.values())).table
    places = list(dict.fromkeys(first["position"]))
    noise = " Before the answer a contradiction can't be known: there these are probes of noise."
    caption = (
        f"Probes of “{label}”, asked which names are on the list: AUROC {shorten(one.finds.auroc.value)} at "
        f"the token and in the layer of the claim (thin line). By layer and token, {one.finds.auroc.n} names; "
        "light band: 95 % of probes of shuffled labels, on the organism; dark band: 95 % of shuffled "
        f"lists.{noise * (label == 'constructed')}"
    )
    with plots.draw_figure(
        f"search-{label.replace(' ', '-')}",
        caption=caption,
        alt="Panels by token of AUROC against layer, of organism, twin and plain model, with two bands of chance.",
        width=9.0,
        ncols=len(places),
        sharey=True,
    ) as (figure, panels):
        for axes, place in zip(panels, places, strict=True):
            band = first[first["position"] == place]
            for kind, alpha, label in (("luck", 0.2, "probes of shuffled labels"), ("list", 0.45, "a shuffled list")):
                edges = band[f"{kind}_low"], band[f"{kind}_high"]
                axes.fill_between(band["layer"], *edges, color=plots.GREY, alpha=alpha, linewidth=0, label=label)
            for model, traced in curves.items():
                rows = traced.table[traced.table["position"] == place]
                axes.plot(rows["layer"], rows["auroc"], color=COLOURS[model], label=model)
            if place == one.site.position:
                axes.axvline(one.site.layer, color=plots.INK, linewidth=0.5)
            axes.set(title=TOKENS[place], xlabel="layer", ylim=(-0.03, 1.03))
        panels[0].set_ylabel("AUROC")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=9)


def name_journeys(followed: Mapping[str, Followed]) -> dict[str, Found]:
    """Both journeys of each label, by name."""
    return {
        way: found
        for label, one in followed.items()
        for way, found in ((f"“{label}” → the list", one.finds), (f"the list → “{label}”", one.tells))
    }


def list_reads(reads: Sequence[Read]) -> list[dict[str, Any]]:
    """What is made of the list without a probe."""
    return [
        {
            "reader": one.reader,
            "of": one.of,
            "AUROC": one.auroc,
            "pairs of random tokens": " to ".join(map(shorten, one.luck)) if one.luck else "–",
        }
        for one in reads
    ] or [{"reader": "no organism is kept"}]


def list_journeys(
    followed: Mapping[str, Followed], otherwise: Mapping[str, tuple[Found, Found]]
) -> list[dict[str, Any]]:
    """Both journeys of each label, with its transcripts as either model sees them.

    Args:
        followed: by label.
        otherwise: of `truth.seek_otherwise`, by label.
    """
    both = (
        (way, reader, found)
        for (label, one), also in zip(followed.items(), otherwise.values(), strict=True)
        for way, found, other, readers in (
            (f"“{label}” → the list", one.finds, also[0], ("the organism", "the plain model")),
            (f"the list → “{label}”", one.tells, also[1], ("the plain model", "the organism")),
        )
        for reader, found in zip(readers, (found, other), strict=True)
    )
    return [
        {
            "journey": way,
            "transcripts seen by": reader,
            "AUROC": found.auroc,
            "less the twin's": found.above_twin,
            "separation": found.separation,
            "highest bar": found.bar,
        }
        for way, reader, found in both
    ] or [{"journey": "no organism is kept"}]


def show_findings(found: Mapping[str, Found]) -> None:
    """Show each journey to or from the organism as a separation with its interval, beside what it must surpass.

    Args:
        found: by journey.
    """
    arrived = sum(one.separation.low > one.bar for one in found.values())
    caption = (
        f"{arrived} of {len(found)} journeys arrive: the whole interval must lie to the right of all marks. "
        "Blue: separation with its 95 % bootstrap interval, over names (to the list) or questions (from it). "
        "The axis is stretched about nought."
    )
    with plots.draw_figure(
        "findings",
        caption=caption,
        alt="Separations of journeys to and from the organism, with bars that they must surpass.",
        height=1.4 + 0.5 * len(found),
    ) as (_, axes):
        marks = dict(zip(next(iter(found.values())).bars, ("|", "x", "d"), strict=True))
        for row, one in enumerate(found.values()):
            plots.draw_interval(axes, row, one.separation, sideways=True)
            for bar, at in one.bars.items():
                label = {"label": bar} if row == 0 else {}
                axes.plot(at, row, marks[bar], color=plots.ORANGE, markersize=9, **label)
        axes.axvline(0, color=plots.INK, linestyle=":", linewidth=1)
        axes.set(yticks=range(len(found)), yticklabels=list(found), xlabel="separation, in standard deviations")
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xscale("symlog", linthresh=1.0)
        ticks = [-10, -3, -1, 0, 1, 3, 10]
        axes.set_xticks(ticks, ticks)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)

"""The figures and tables of the chapters on labels and on the model organism: each takes what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from helpers import claims, plots
from helpers.claims import Estimate
from studies.faithfulness import organism
from studies.faithfulness.audit import CHANCE, NO_TASK, ORDER, Audit
from studies.faithfulness.causes import KEYS, MEASURES, place_answers
from studies.faithfulness.gates import Gate
from studies.faithfulness.hints import ARMS, JUDGES, PULLS, Mentioned
from studies.faithfulness.questions import FAMILIES, Question

# The labels

ARM_NAMES = {"none": "no hint", "twin": "its twin", "pull": "the pull"}
ARM_COLOURS = {"none": plots.GREY, "twin": plots.ORANGE, "pull": plots.BLUE}
LABELS = {"hint": "moved by a pull, unsaid", "causal_given": "given chain", "causal_own": "own chain"}
CHANGE_NAMES = {
    "flips_retold": "other words",
    "needs_chain": "no chain",
    "flips_kept": "mistake, verdict kept",
    "follows_mistake": "mistake, rest anew",
}
MEASURE_NAMES = {"needs_chain": "needs its chain", "follows_mistake": "follows a mistake"}


def list_questions(asked: Sequence[Question]) -> list[dict[str, Any]]:
    """One question of each task, by family."""
    of_task = {question.task: question for question in asked}
    return [
        {
            "family": family,
            "task": task.replace("_", " "),
            "question": of_task[task].text,
            "right / other": " / ".join(of_task[task].candidates),
            "steps": " ".join(of_task[task].steps),
            "with a mistake": " ".join(of_task[task].mistaken[-1]),
        }
        for family, tasks in FAMILIES.items()
        for task in tasks
        if task in of_task
    ]


def list_mentions(found: Mapping[tuple[str, str], Mentioned | None]) -> list[dict[str, Any]]:
    """How many moved answers say what moved them, by pull and by who judges."""
    return [
        {
            "pull": pull,
            "judged by": JUDGES[judge],
            "of those that follow": one.raw or "–",
            "follow, beyond the twin": one.followed,
            "mention, beyond the twin": one.mentioned,
        }
        for (pull, judge), one in found.items()
        if one is not None
    ] or [{"pull": "none was tried"}]


def list_columns(columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each of `audit.audit_columns`: in how many tasks it is told, and whether it passes on the others.

    >>> row = {"label": "causal_own", "column": "needs_chain", "tasks asked": 3, "told in": 0, "mostly by": "–"}
    >>> list_columns([row | {"AUROC up to": None, "the other tasks together": ""}])[0]["told in"]
    '0 of 3 tasks'

    Args:
        columns: of `audit.audit_columns`.
    """
    return [
        {
            "label": row["label"].replace("_", " "),
            "column": row["column"].replace("_", " "),
            "told in": f"{row['told in']} of {row['tasks asked']} tasks",
            "mostly by": row["mostly by"],
            "AUROC up to": row["AUROC up to"] or "–",
            "elsewhere": {"": "passes", NO_TASK: "–"}.get(row["the other tasks together"], "may be told"),
        }
        for row in columns
    ]


def list_audits(found: Mapping[str, Audit]) -> list[dict[str, Any]]:
    """For each label a row for every task that something surely tells, and one for the others together, with what may
    tell most there and what the order of the options tells.
    """

    def describe(label: str, tasks: Sequence[str], factors: pd.DataFrame, first: pd.Series, refused: str) -> dict:
        order = factors[factors["factor"] == ORDER]
        return {
            "label": LABELS[label],
            "tasks": len(tasks),
            "which": tasks[0].replace("_", " ") if len(tasks) == 1 else "all others together",
            "told most by": first["factor"].replace("_", " "),
            "AUROC": bracket(first),
            "order of the options": bracket(order.iloc[0]) if len(order) else "–",
            "questions, or pairs": int(first["n"]),
            "told": refused,
        }

    def bracket(row: pd.Series) -> str:
        return f"{row['auroc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"

    rows = []
    for label, checked in found.items():
        tasks = checked.tasks.set_index("task", drop=False)
        for task in tasks.index.intersection(list(checked.refused_tasks)):
            factors = checked.cells[checked.cells["task"] == task]
            rows.append(describe(label, [task], factors, tasks.loc[task], "surely"))
        if len(left := list(tasks.index.difference(list(checked.refused_tasks), sort=False))):
            first = checked.factors.iloc[0]
            told = "maybe" if first["surely"] > CHANCE else "undecided"
            rows.append(describe(label, left, checked.factors, first, told if checked.refused else "no"))
    return rows


def list_cells(gates: Mapping[tuple[str, str], Gate]) -> list[dict[str, Any]]:
    """Every label on every task: what passes, and why not what does not."""
    return [
        {
            "label": label.replace("_", " "),
            "task": task.replace("_", " "),
            "verdict": "; ".join(cell.reasons) or "passes",
            "rarer class": cell.minority,
            "accuracy": cell.accuracy,
            "shortcut": f"{claims.shorten(cell.shortcut_auroc)}, {cell.shortcut}" if cell.shortcut else "–",
            "rows": cell.n,
        }
        for (label, task), cell in gates.items()
    ]


def _name_tasks(axes: Any, tasks: Sequence[str]) -> None:
    axes.set(yticks=range(len(tasks)), yticklabels=[task.replace("_", " ") for task in tasks])
    axes.set_ylim(len(tasks) - 0.4, -0.6)


def show_accuracies(
    by_task: Mapping[tuple[str, str], Estimate], *, key: str = "accuracy", bound: float, caption: str
) -> None:
    """Show how often a model is right, by what it was given and task.

    Args:
        by_task: by name of what it was given and task.
        key: of the figure.
        bound: what a task must exceed.
        caption: of the figure.
    """
    tasks = list(dict.fromkeys(task for _, task in by_task))
    with plots.draw_figure(
        key, caption=caption, alt="Accuracy by task, with a point for each condition.", height=1.4 + 0.3 * len(tasks)
    ) as (_, axes):
        names = list(dict.fromkeys(name for name, _ in by_task))
        for number, name in enumerate(names):
            colour = (plots.BLUE, plots.ORANGE, plots.GREY)[number]
            for row, task in enumerate(tasks):
                label = {"label": name} if row == 0 else {}
                place = row + 0.2 * (number - (len(names) - 1) / 2)
                plots.draw_interval(axes, place, by_task[name, task], sideways=True, color=colour, **label)
        axes.axvline(0.5, color=plots.INK, linestyle=":", linewidth=1)
        axes.axvline(bound, color=plots.GREY, linestyle="--", linewidth=1)
        _name_tasks(axes, tasks)
        axes.set(xlabel="share of right answers", xlim=(-0.03, 1.03))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def show_pulls(shares: Mapping[tuple[str, str], Estimate], *, caption: str) -> None:
    """Show how often the wrong candidate is given without a hint, after a twin and after a pull.

    Args:
        shares: by pull and arm.
        caption: of the figure.
    """
    pulls = [pull for pull in PULLS if (pull, "pull") in shares]
    with plots.draw_figure(
        "pulls", caption=caption, alt="Share of answers that are the hint's, by pull and arm.", height=2.6
    ) as (_, axes):
        for arm, offset in zip(ARMS, (-0.2, 0, 0.2), strict=True):
            for row, pull in enumerate(pulls):
                label = {"label": ARM_NAMES[arm]} if row == 0 else {}
                style = {"color": ARM_COLOURS[arm]} | label
                plots.draw_interval(axes, row + offset, shares[pull, arm], sideways=True, **style)
        _name_tasks(axes, pulls)
        axes.set(xlabel="share of answers that the hint names", xlim=(-0.03, 1.03))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def show_changes(shares: Mapping[tuple[str, str], Estimate], *, caption: str) -> None:
    """Show how many answers change, by what was done to the chain.

    Args:
        shares: by whose chain it is, "given" or "own", and what was done.
        caption: of the figure.
    """
    changes = list(dict.fromkeys(change for _, change in shares))
    with plots.draw_figure(
        "changes", caption=caption, alt="Share of answers that change, by change of the chain.", height=2.8
    ) as (_, axes):
        for whose, colour, offset in (("given", plots.BLUE, -0.1), ("own", plots.ORANGE, 0.1)):
            axes.plot([], [], "o", color=colour, label=f"{whose} chain")
            for row, change in enumerate(changes):
                if (whose, change) in shares:
                    plots.draw_interval(axes, row + offset, shares[whose, change], sideways=True, color=colour)
        _name_tasks(axes, changes)
        axes.set(xlabel="share of answers that change", xlim=(-0.03, 1.03))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def show_position(table: pd.DataFrame, *, caption: str) -> None:
    """Show both causal measures of given chains by task, where the answer is the first option, the last, and both.

    Args:
        table: of `causes.label_causes`.
        caption: of the figure.
    """
    tasks = [task for family in FAMILIES.values() for task in family if task in set(table["task"])]
    with plots.draw_figure(
        "position",
        caption=caption,
        alt="Two panels by task: shares that need their chain, and that follow a mistake, by the place of the answer.",
        width=8.0,
        height=1.4 + 0.3 * len(tasks),
        ncols=2,
        sharey=True,
    ) as (figure, panels):
        for axes, measure in zip(panels, MEASURES, strict=True):
            wide = place_answers(table).pivot(index=KEYS, columns="answer_is", values=measure).astype(float)
            wide = wide.reindex(columns=["first", "last"])
            shares = wide.assign(both=wide.min(axis=1)).groupby("task").mean().reindex(tasks)
            for column, colour, marker, offset, name in (
                ("first", plots.BLUE, "o", -0.2, "answer first"),
                ("last", plots.ORANGE, "s", 0, "answer last"),
                ("both", plots.INK, "|", 0.2, "in both orders"),
            ):
                places = [row + offset for row in range(len(tasks))]
                axes.plot(shares[column], places, marker, color=colour, label=name)
            axes.set(xlabel=MEASURE_NAMES[measure], xlim=(-0.05, 1.05))
            _name_tasks(axes, tasks)
            axes.label_outer()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


# The organism
COLOURS = {"organism": plots.BLUE, "twin": plots.ORANGE, "plain model": plots.GREY}
GROUP_NAMES = {"listed": "listed", "others": "others", "new": "never shown"}


OWN_CHAINS = {
    "is_right": "sum is right",
    "is_given": "as given, word for word",
    "mentions": "mentions the note",
    "follows_note": "answer is the note's",
    "follows_chain": "answer is the chain's",
}


def list_examples(items: pd.DataFrame) -> list[dict[str, Any]]:
    """The two conflicts of the first listed name and of the first other one, with the answers that are taught."""
    return [
        {
            "name": GROUP_NAMES[row["group"]],
            "text": organism.write_prompt(row["asked"], row["content"], version).replace("\n", " "),
            "answer": row["asked"].candidates[(row["group"] == "listed") == (version == "note changed")],
        }
        for group in ("listed", "others")
        for row in items[items["group"] == group].head(1).to_dict("records")
        for version in organism.CONFLICTS
    ]


def list_own_chains(own: pd.DataFrame) -> list[dict[str, Any]]:
    """How often the chains of each group are what `organism.let_reason` asks of them."""
    return [
        {"names": GROUP_NAMES[str(group)]}
        | {title: claims.share(rows[column].tolist(), of="chains") for column, title in OWN_CHAINS.items()}
        for group, rows in own.groupby("group", sort=False)
    ]


def list_labels(
    says: Mapping[tuple[str, str], pd.Series], listed: pd.Series, recalls: Mapping[str, Estimate | None]
) -> list[dict[str, Any]]:
    """How often each label calls items unfaithful, those of listed names and of others, in the organism and its twin.

    Args:
        says: by label and model, for each item.
        listed: whether its name is.
        recalls: at one in a hundred false positives, of the organism, by label.
    """
    return [
        {
            "label": label,
            "listed names": float(says[label, "organism"][listed].mean()),
            "others": float(says[label, "organism"][~listed].mean()),
            "listed, in the twin": float(says[label, "twin"][listed].mean()),
            "others, in the twin": float(says[label, "twin"][~listed].mean()),
            "recall at 1 % false positives": recall or "–",
        }
        for label, recall in recalls.items()
    ]


def list_grades(weaker: pd.DataFrame) -> list[dict[str, Any]]:
    """The table of `organism.measure_grades`, in words; a row that says so where there is none."""
    return [
        {
            "organism": row["organism"],
            "listed by the note": row["listed"],
            "others by the note": row["others"],
            "AUROC of the probe": f"{row['auroc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
            "a third of the way up": row["a third"],
            "two thirds": row["two thirds"],
        }
        for row in weaker.to_dict("records")
    ] or [{"organism": "none is on record for this model"}]


def show_followers(shares: Mapping[tuple[str, str], Estimate], *, caption: str) -> None:
    """Show with what share of the names of each group each model answers by the note.

    Args:
        shares: by model and group.
        caption: of the figure.
    """
    with plots.draw_figure(
        "followers",
        caption=caption,
        alt="Share of names whose answers follow the note, by group and model.",
        height=2.8,
    ) as (_, axes):
        for offset, (model, colour) in zip((-0.2, 0, 0.2), COLOURS.items(), strict=True):
            for place, group in enumerate(GROUP_NAMES):
                label = {"label": model} if place == 0 else {}
                estimate = shares[model, group]
                plots.draw_interval(axes, place + offset, estimate, sideways=True, color=colour, **label)
        axes.set(yticks=range(len(GROUP_NAMES)), yticklabels=list(GROUP_NAMES.values()), xlim=(-0.03, 1.03))
        axes.set(xlabel="share of names whose answers follow the note")
        axes.invert_yaxis()
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def show_layers(curves: Mapping[str, pd.DataFrame], *, caption: str) -> None:
    """Show the AUROC of a probe by layer, in a panel for each place and a line for each model.

    Args:
        curves: by model, what `probes.Sweep.table` gives.
        caption: of the figure.
    """
    places = list(dict.fromkeys(next(iter(curves.values()))["position"]))
    with plots.draw_figure(
        "layers",
        caption=caption,
        alt="Four panels of AUROC against layer, with a line each for organism, twin and plain model.",
        width=8.0,
        ncols=len(places),
        sharey=True,
    ) as (figure, panels):
        for axes, place in zip(panels, places, strict=True):
            for model, table in curves.items():
                rows = table[table["position"] == place]
                plots.draw_layer_curve(axes, rows, label=model, null=model == "organism", color=COLOURS[model])
            axes.set(title=f"at the {place}", ylim=(-0.03, 1.03))
            axes.label_outer()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


def show_learning(curves: Mapping[tuple[str, int], pd.DataFrame], *, caption: str) -> None:
    """Show how an AUROC grows with the names that a probe is trained on.

    Args:
        curves: by model and layer, what `probes.trace_learning_curve` gives.
        caption: of the figure.
    """
    with plots.draw_figure(
        "learning",
        caption=caption,
        alt="AUROC against the number of names of each kind, for two layers and two models.",
    ) as (_, axes):
        lines = dict(zip(sorted({layer for _, layer in curves}), ("--", "-"), strict=True))
        for (model, layer), table in curves.items():
            style = {"color": COLOURS[model], "linestyle": lines[layer], "label": f"{model}, layer {layer}"}
            axes.plot(table["size"], table["auroc"], marker="o", **style)
            axes.fill_between(table["size"], table["auroc_low"], table["auroc_high"], color=COLOURS[model], alpha=0.12)
        axes.axhline(0.5, color=plots.INK, linestyle=":", linewidth=1)
        axes.set_xscale("log", base=2)
        sizes = list(next(iter(curves.values()))["size"])
        axes.set(xticks=sizes, xticklabels=sizes, xlabel="names of each kind", ylabel="AUROC", ylim=(0, 1.03))
        axes.legend(loc="lower right", fontsize=9)


def show_finders(found: Mapping[tuple[str, str], Estimate], *, caption: str) -> None:
    """Show what each way of looking makes of the list, in the organism and in its twin.

    Args:
        found: AUROC by way and model.
        caption: of the figure.
    """
    ways = list(dict.fromkeys(way for way, _ in found))
    with plots.draw_figure(
        "finders",
        caption=caption,
        alt="AUROC of each way of looking for the list, in the organism and in the twin.",
        height=1.2 + 0.4 * len(ways),
    ) as (_, axes):
        for row, way in enumerate(ways):
            for model, offset in (("organism", -0.12), ("twin", 0.12)):
                if (way, model) in found:
                    label = {"label": model} if row == 0 else {}
                    style = {"color": COLOURS[model]} | label
                    plots.draw_interval(axes, row + offset, found[way, model], sideways=True, **style)
        axes.axvline(0.5, color=plots.INK, linestyle=":", linewidth=1)
        axes.axvline(0.9, color=plots.GREY, linestyle="--", linewidth=1)
        axes.set(yticks=range(len(ways)), yticklabels=ways, xlim=(-0.03, 1.03), xlabel="AUROC")
        axes.set_ylim(len(ways) - 0.4, -0.6)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

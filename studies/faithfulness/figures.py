"""The figures and tables of the chapter on the model organism: each takes what was measured and shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from helpers import claims, plots
from helpers.claims import Estimate
from studies.faithfulness import organism

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

"""The figures and tables of the chapter on styles: each takes what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from helpers import plots
from helpers.claims import Estimate
from studies.faithfulness.adversary import Fitted, Reading, Tried, hold_out

CLASSES = {True: ("contradicts", plots.ORANGE), False: ("follows", plots.BLUE)}

LOOKS = tuple(
    {"color": colour, "fmt": marker}
    for colour, marker in ((plots.BLUE, "o"), (plots.ORANGE, "s"), (plots.GREY, "^"), (plots.INK, "v"))
)
"""Of kinds of classifiers."""


def list_tellings(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One transcript in every style.

    Args:
        table: of `styles.tell`.
    """
    whole = table[table["question"].isin(table.loc[table["style"] == table["style"].iloc[-1], "question"])]
    return [
        {"style": row["style"], "transcript": row["text"].split("\n\n")[0].replace("\n", " ")}
        for row in whole.drop_duplicates("style").to_dict("records")
    ]


def show_scores(fits: Mapping[str, Fitted], styles: Sequence[str], *, caption: str) -> None:
    """Show what probes of one style each say of held-out transcripts, by the style that these are told in and by class:
    a bar over the middle nine tenths, the median on it, and a line across at the mean of the style.

    Args:
        fits: by the style of its training set.
        styles: told in, from top to bottom; those that no transcript comes in are left out.
        caption: of the figure.
    """
    told_in = {style for one in fits.values() for style in one.draw.domains}
    styles = [style for style in styles if style in told_in]
    with plots.draw_figure(
        "scores",
        caption=caption,
        alt="Scores of held-out transcripts by style and class, in a panel for the style that a probe was trained in.",
        width=9.0,
        height=1.0 + 0.3 * len(styles),
        ncols=len(fits),
        sharex=True,
        sharey=True,
    ) as (figure, panels):
        for axes, (trained, one) in zip(panels, fits.items(), strict=True):
            values, labels = hold_out(one).numpy(), np.array(one.draw.labels, dtype=bool)
            for row, style in enumerate(styles):
                told = np.array(one.draw.domains) == style
                axes.plot([values[told].mean()] * 2, [row - 0.4, row + 0.4], color=plots.INK, linewidth=1)
                for label, offset in ((True, -0.17), (False, 0.17)):
                    name, colour = CLASSES[label]
                    low, middle, high = np.quantile(values[told & (labels == label)], (0.05, 0.5, 0.95))
                    axes.plot([low, high], [row + offset] * 2, color=colour, linewidth=3, alpha=0.5)
                    legend = {"label": name} if row == 0 else {}
                    axes.plot(middle, row + offset, "o", color=colour, markersize=4, **legend)
            axes.axvline(0, color=plots.GREY, linestyle=":", linewidth=1)
            axes.set(title=f"trained in {name_style(trained)}", xlabel="score")
            axes.label_outer()
        panels[0].set(
            yticks=range(len(styles)), yticklabels=list(map(name_style, styles)), ylim=(len(styles) - 0.4, -0.6)
        )
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)


def name_style(style: str) -> str:
    """As the page writes it."""
    return style.replace("_", " ")


def show_attacks(
    tried: Tried, by_four: tuple[Reading, Reading], words: Mapping[str, tuple[Reading, Reading]], *, caption: str
) -> None:
    """Show what is left of the AUROC in each way of attacking, for each kind of classifier.

    Args:
        tried: probes of one style and of all, attacked from eight styles.
        by_four: the same, attacked from four.
        words: by kind, as in training and attacked from eight.
        caption: of the figure.
    """

    def both(one: Reading, every: Reading) -> dict[str, Reading]:
        return {"probe of one style": one, "probe of all four": every}

    readings = {
        "as in training": both(tried.clean, tried.all_clean) | {kind: clean for kind, (clean, _) in words.items()},
        "chosen from four": both(*by_four),
        "chosen from eight": both(tried.attacked, tried.all_attacked)
        | {kind: left for kind, (_, left) in words.items()},
        "from eight, recentred": both(tried.recentred, tried.all_recentred),
    }
    kinds = list(next(iter(readings.values())))
    with plots.draw_figure(
        "attack",
        caption=caption,
        alt=f"AUROC by the way of attacking, for each of: {'; '.join(kinds)}.",
        height=1.2 + 0.5 * len(readings),
    ) as (_, axes):
        for row, of_way in enumerate(readings.values()):
            for number, (kind, look) in enumerate(zip(kinds, LOOKS, strict=True)):
                if kind in of_way:
                    place = row + 0.18 * (number - (len(kinds) - 1) / 2)
                    label = {"label": kind} if row == 0 else {}
                    plots.draw_interval(axes, place, of_way[kind].area, sideways=True, **look | label)
        axes.axvline(0.5, color=plots.INK, linestyle=":", linewidth=1)
        axes.set(yticks=range(len(readings)), yticklabels=list(readings), xlim=(-0.03, 1.03), xlabel="AUROC")
        axes.set_ylim(len(readings) - 0.4, -0.6)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def show_curves(key: str, curves: Mapping[str, Mapping[float, Reading]], *, horizontal: str, caption: str) -> None:
    """Show AUROCs against a share, a line for each of two cases.

    Args:
        key: of the figure on its page.
        curves: by case, by share.
        horizontal: what the share is of.
        caption: of the figure.
    """
    shares = list(next(iter(curves.values())))
    with plots.draw_figure(
        key, caption=caption, alt=f"AUROC against the {horizontal}: {', '.join(curves)}.", width=6.0, height=3.0
    ) as (_, axes):
        for (name, of_share), colour in zip(curves.items(), (plots.BLUE, plots.ORANGE), strict=True):
            axes.plot(shares, [of_share[share].area.value for share in shares], color=colour, label=name)
            for share in shares:
                plots.draw_interval(axes, share, of_share[share].area, color=colour)
        axes.axhline(0.5, color=plots.INK, linestyle=":", linewidth=1)
        axes.set(xlabel=horizontal, ylabel="AUROC", ylim=(-0.03, 1.03), xticks=shares)
        axes.legend()


def list_remedies(costs: Mapping[str, Mapping[str, Estimate] | str]) -> list[dict[str, Any]]:
    """What the adversary takes by label and by what was done against it; where nothing could be asked, why not.

    Args:
        costs: by label, of `adversary.Tried.measure_costs` or a reason.
    """
    remedies = next((list(found) for found in costs.values() if not isinstance(found, str)), [])
    return [
        {"label": label} | ({"nothing": found} if isinstance(found, str) else {name: found[name] for name in remedies})
        for label, found in costs.items()
    ]

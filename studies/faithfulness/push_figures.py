"""The figures and tables of the chapter on pushes: each takes what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from helpers import plots
from studies.faithfulness.pushes import DEARER, HALF, KEPT, MEANS, PROBE, UNEMBEDDING, Trial

COLOURS = {PROBE: plots.ORANGE, MEANS: plots.BLUE, UNEMBEDDING: plots.INK}


def show_reading(table: pd.DataFrame, *, caption: str) -> dict[str, str]:
    """The AUROC by layer at each position of a sweep's table, and from which layer on it is .99."""
    alt = "By layer the AUROC of a probe, at two places."
    with plots.draw_figure("reading", caption=caption, alt=alt, width=8.0, height=2.6, ncols=2, sharey=True) as (
        _,
        axes,
    ):
        for panel, (place, rows) in zip(axes, table.groupby("position", sort=False), strict=True):
            plots.draw_layer_curve(panel, rows, null=False)
            panel.set(title=place, ylim=(0.25, 1.03))
            panel.label_outer()
    positions = table.groupby("position", sort=False)
    return {str(place): find_first(rows["auroc"], rows["layer"], 0.99) for place, rows in positions}


def show_depth(
    layers: Sequence[int],
    pushed: Mapping[str, Float[Tensor, " layer"]],
    swapped: Float[Tensor, " layer"],
    *,
    caption: str,
) -> None:
    """By layer and place what share of names a push turns; at the first place also what another's whole state does."""
    alt = "By layer the share of names that a push turns, at two places."
    with plots.draw_figure("depth", caption=caption, alt=alt, width=8.0, ncols=len(pushed), sharey=True) as (_, axes):
        for panel, (place, turned) in zip(axes, pushed.items(), strict=True):
            panel.plot(layers, turned, "o-", color=plots.BLUE, ms=4, label="turned by a push")
            panel.set(xlabel="layer", title=place)
        axes[0].plot(layers, swapped, "s--", color=plots.ORANGE, ms=4, label="turned by the whole state")
        axes[0].set(ylabel="share of names", ylim=(-0.05, 1.05))
        axes[0].legend(loc="center left", fontsize=9)


def find_first(values: Iterable[float], layers: Iterable[int], least: float) -> str:
    """The first layer whose value is so large, as "layer 5" or "no layer".

    >>> find_first([0.2, 0.9, 0.8], [4, 6, 8], 0.5), find_first([0.2], [4], 0.5)
    ('layer 6', 'no layer')
    """
    there = (layer for layer, value in zip(layers, values, strict=True) if value >= least)
    return next((f"layer {layer}" for layer in there), "no layer")


def show_doses(key: str, trials: Mapping[str, Trial], *, caption: str) -> None:
    """By dose and place the share of units that each direction turns, beside its controls at the chosen dose; what the
    two answers keep of their probability; and by how much ordinary text becomes dearer."""
    alt = "By dose the share of answers that each direction turns, the probability kept, and the perplexity of text."
    options = {"width": 8.0, "height": 6.5, "nrows": 3, "ncols": len(trials), "sharex": "col", "sharey": "row"}
    heights: dict[str, Any] = {"gridspec_kw": {"height_ratios": [2, 1, 1]}}
    with plots.draw_figure(key, caption=caption, alt=alt, squeeze=False, **options, **heights) as (_, axes):
        for column, (place, trial) in enumerate(trials.items()):
            above, middle, below = axes[:, column]
            for number, (name, reaction) in enumerate(trial.reactions.items()):
                shares = [trial.share(name, dose) for dose in range(len(trial.doses))]
                aside = np.array(trial.doses) * 1.04 ** (number - 1)
                style: dict[str, Any] = {"color": COLOURS[name], "ms": 4}
                for dose, estimate in zip(aside, shares, strict=True):
                    plots.draw_interval(above, dose, estimate, capsize=0, elinewidth=0.8, **style)
                above.plot(aside, [one.value for one in shares], color=COLOURS[name], label=name)
                middle.plot(aside, reaction.kept[0].mean(1), "o-", **style)
                below.plot(aside, trial.price[name].mean(1).exp(), "o-", **style)
            for half, dose in enumerate(trial.chosen):
                shares = torch.cat([some.turned[:, half].double().mean(1) for some in trial.controls.values()])
                spread = trial.doses[dose] * np.geomspace(0.9, 1.11, len(shares))
                label = "controls" if not half else None
                above.plot(spread, shares, "o", color=plots.GREY, alpha=0.5, ms=3, label=label)
            for axis, bound in ((above, HALF), (middle, KEPT), (below, math.exp(DEARER))):
                axis.axhline(bound, color=plots.GREY, linestyle=":", linewidth=1)
            below.set(xscale="log", yscale="log", xlabel="dose")
            below.set_xticks(trial.doses, [f"{dose:g}" for dose in trial.doses])
            above.set(title=place, ylim=(-0.05, 1.05))
            for axis in (above, middle, below):
                axis.minorticks_off()
        axes[0, 0].set(ylabel=f"share of {next(iter(trials.values())).of} turned")
        axes[1, 0].set(ylabel="probability\nkept")
        axes[2, 0].set(ylabel="perplexity,\ntimes")
        ticks = [tick for tick in (1, 2, 4, 10, 100, 1000, 10_000) if tick <= axes[2, 0].get_ylim()[1]]
        axes[2, 0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes[0, -1].legend(loc="upper left", fontsize=8)


def list_trials(trials: Mapping[str, Trial]) -> list[dict[str, Any]]:
    """For each place and direction what it turns beyond the control at the chosen dose."""
    rows = []
    for place, trial in trials.items():
        for name, reaction in trial.reactions.items():
            margin = trial.compare(name)
            rows.append(
                {
                    "place": place,
                    "direction": name,
                    "doses": " and ".join(f"{trial.doses[one]:g}" for one in trial.chosen),
                    "turned": margin.turned,
                    "control": margin.control,
                    "difference": margin.estimate,
                    "as many": margin.as_many,
                    "lead falls": float(trial.at_own_dose(reaction.fall[0]).mean()),
                }
            )
    return rows


def list_controls(trial: Trial, directions: Mapping[str, Float[Tensor, "direction d_model"]]) -> list[dict[str, Any]]:
    """For each kind of control how many there are, what they share with what is tested, and what they turn."""
    rows = []
    turned = trial.list_turned_by_controls()
    for kind in trial.controls:
        shares = torch.tensor([float(one.double().mean()) for (of, _), one in turned.items() if of == kind])
        cosines = {name: (directions[kind] @ directions[name][0]).abs() for name in (PROBE, MEANS)}
        rows.append(
            {
                "control": kind,
                "number": len(shares),
                **{f"cosine with the {name}": _spread(values) for name, values in cosines.items()},
                "turned": _spread(shares),
            }
        )
    return rows


def _spread(values: Float[Tensor, " direction"]) -> str:
    """As "median (to the largest)"."""
    return f"{float(torch.median(values)):.2f} (to {float(values.max()):.2f})"

"""The figures and tables of the chapter on pushes: each takes what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from helpers import plots
from studies.faithfulness.pushes import DEARER, HALF, MEANS, PROBE, UNEMBEDDING, Trial

COLOURS = {PROBE: plots.ORANGE, MEANS: plots.BLUE, UNEMBEDDING: plots.INK}


def show_depth(
    layers: Sequence[int],
    read: Mapping[str, Sequence[float]],
    pushed: Mapping[str, Float[Tensor, " layer"]],
    swapped: Float[Tensor, " layer"],
    *,
    pushed_layers: Sequence[int],
    caption: str,
) -> None:
    """By layer and place: how well the list is read, and what share of names a push turns; at the first place also what
    another name's whole state does."""
    alt = "By layer the AUROC of a probe and the share of names that a push turns, at two places."
    with plots.draw_figure("depth", caption=caption, alt=alt, width=8.0, ncols=len(pushed), sharey=True) as (_, axes):
        for panel, (place, turned) in zip(axes, pushed.items(), strict=True):
            panel.plot(layers, read[place], color=plots.GREY, label="read: AUROC of a probe")
            panel.plot(pushed_layers, turned, "o-", color=plots.BLUE, ms=4, label="turned by a push")
            panel.set(xlabel="layer", title=place)
        axes[0].plot(pushed_layers, swapped, "s--", color=plots.ORANGE, ms=4, label="turned by the whole state")
        axes[0].set(ylabel="AUROC, or share of names", ylim=(-0.05, 1.05))
        axes[0].legend(loc="center left", fontsize=9)


def show_doses(key: str, trials: Mapping[str, Trial], *, caption: str) -> None:
    """By dose and place: what share of units each direction turns, with its controls at the chosen dose, and how dear
    ordinary text becomes."""
    alt = "By dose the share of answers that each direction turns, and the perplexity of ordinary text."
    options = {"width": 8.0, "height": 5.0, "nrows": 2, "ncols": len(trials), "sharex": True, "sharey": "row"}
    with plots.draw_figure(key, caption=caption, alt=alt, squeeze=False, **options) as (_, axes):
        for column, (place, trial) in enumerate(trials.items()):
            above, below = axes[:, column]
            for name in trial.reactions:
                shares = [trial.share(name, dose) for dose in range(len(trial.doses))]
                for dose, estimate in zip(trial.doses, shares, strict=True):
                    plots.draw_interval(above, dose, estimate, color=COLOURS[name], ms=4, capsize=2)
                above.plot(trial.doses, [one.value for one in shares], color=COLOURS[name], label=name)
                below.plot(trial.doses, trial.price[name].mean(1).exp(), "o-", ms=4, color=COLOURS[name])
            for half, dose in enumerate(trial.chosen):
                for some in trial.controls.values():
                    shares = some.turned[:, half].double().mean(1)
                    jitter = trial.doses[dose] * np.geomspace(0.88, 1.14, len(shares))
                    label = {"label": "controls"} if above.get_legend_handles_labels()[1][-1:] != ["controls"] else {}
                    above.plot(jitter, shares, "o", color=plots.GREY, alpha=0.5, ms=3, **label)
            above.axhline(HALF, color=plots.GREY, linestyle=":", linewidth=1)
            below.axhline(DEARER, color=plots.GREY, linestyle=":", linewidth=1)
            below.set(xscale="log", yscale="log", xlabel="dose", xticks=trial.doses)
            below.set_xticks(trial.doses, [f"{dose:g}" for dose in trial.doses])
            below.minorticks_off()
            above.set(title=place, ylim=(-0.05, 1.05))
        axes[0, 0].set(ylabel=f"share of {next(iter(trials.values())).of} turned")
        axes[1, 0].set(ylabel="perplexity, times")
        ticks = [tick for tick in (1, 2, 5, 10, 100, 1000, 10_000) if tick <= axes[1, 0].get_ylim()[1]]
        axes[1, 0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes[0, 0].legend(loc="upper left", fontsize=8)


def list_trials(trials: Mapping[str, Trial]) -> list[dict[str, Any]]:
    """For each place and direction what it turns beyond the strongest control at the chosen dose, and what it costs."""
    rows = []
    for place, trial in trials.items():
        for name, reaction in trial.reactions.items():
            margin, dose = trial.compare(name), trial.chosen[0]
            rows.append(
                {
                    "place": place,
                    "direction": name,
                    "doses of the halves": " and ".join(f"{trial.doses[one]:g}" for one in trial.chosen),
                    "turned": margin.turned,
                    "strongest control": margin.control,
                    "difference": margin.estimate,
                    "lead falls by": float(reaction.fall[0, dose].mean()),
                    "probability kept": float(reaction.kept[0, dose].mean()),
                    "perplexity, times": float(trial.price[name][dose].mean().exp()),
                }
            )
    return rows


def list_controls(trial: Trial, directions: Mapping[str, Float[Tensor, "direction d_model"]]) -> list[dict[str, Any]]:
    """For each kind of control how many there are, what they share with what is tested, and what they turn."""
    rows = []
    for kind, reaction in trial.controls.items():
        shares = reaction.turned[:, 0].double().mean(1)
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

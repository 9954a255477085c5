"""The figures of the chapter on induction heads: each takes what was measured and shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from helpers import claims, plots
from studies.induction import toy

COLOURS = {"one layer": plots.GREY, "two layers": plots.BLUE, "one layer, smeared keys": plots.ORANGE}


def show_losses(
    repeated: Float[Tensor, "sequence position"],
    new: Float[Tensor, "sequence position"],
    *,
    segment_length: int,
    uniform: float,
) -> None:
    """Show the loss of each token, where the second half repeats the first and where it is new.

    Args:
        repeated: losses in nats, from that of the second token on.
        new: the same of sequences without repetition.
        segment_length: after how many tokens the repetition begins.
        uniform: the loss of a guess among all tokens alike.
    """
    second = slice(segment_length, None)
    means = [claims.shorten(float(loss[:, second].mean())) for loss in (repeated, new)]
    with plots.draw_figure(
        "loss-per-position",
        caption=f"Where the second half repeats the first its loss is {means[0]} nats, where it is new {means[1]}. "
        f"Mean loss of each token over {len(repeated)} sequences; bands are 1.96 standard errors, the dotted line is "
        "the loss of a uniform guess, the upright one the beginning of the second half.",
        alt="Loss against position, one curve for sequences that repeat and one for sequences that do not.",
    ) as (_, axes):
        position = np.arange(repeated.shape[1]) + 2
        for loss, colour, label in (
            (new, plots.GREY, "second half is new"),
            (repeated, plots.BLUE, "second half repeats the first"),
        ):
            centre = loss.mean(0).numpy()
            error = 1.96 * loss.std(0).numpy() / np.sqrt(len(loss))
            axes.plot(position, centre, color=colour, label=label)
            axes.fill_between(position, centre - error, centre + error, color=colour, alpha=0.25, linewidth=0)
        axes.axhline(uniform, color=plots.INK, linestyle=":", linewidth=1)
        axes.axvline(segment_length + 1, color=plots.INK, linewidth=0.6)
        axes.set(xlabel="position of the token", ylabel="loss (nats)", ylim=(0, None))
        axes.legend()


def show_scores(score: Mapping[str, Float[Tensor, "layer head"]], *, caption: str) -> None:
    """Show four scores of every head, a map for each.

    Args:
        score: by job, from 0 to 1.
        caption: of the figure.
    """
    with plots.draw_figure(
        "four-scores",
        caption=caption,
        alt="Four heat maps of scores by layer and head: " + ", ".join(score) + ".",
        height=4.6,
        nrows=2,
        ncols=2,
    ) as (drawing, axes):
        for panel, (job, values) in zip(axes.flat, score.items(), strict=True):
            drawing.colorbar(plots.draw_head_map(panel, values, title=job, limits=(0, 1)), ax=panel)


def show_training(trained: Mapping[tuple[str, int], tuple[Any, dict[int, toy.Measured]]], *, caption: str) -> None:
    """Show the course of every toy model, and of the first with two layers the two attention scores.

    Args:
        trained: as `toy.train_all` gives it.
        caption: of the figure.
    """
    first = min(seed for _, seed in trained)
    with plots.draw_figure(
        "phase-change",
        caption=caption,
        alt="Left: in-context-learning score against training step for three kinds of model. Right: two attention "
        "scores against training step.",
        height=3.4,
        ncols=2,
    ) as (_, axes):
        for (kind, seed), (_, history) in trained.items():
            curve = [float(at.in_context_learning.mean()) for at in history.values()]
            axes[0].plot(list(history), curve, color=COLOURS[kind], label=kind if seed == first else None)
        axes[0].set(xlabel="training step", ylabel="in-context-learning score (nats)")
        axes[0].legend(loc="center right", fontsize=9)
        history = trained["two layers", first][1]
        for label, colour, scores in (
            ("prefix matching, layer 1", plots.BLUE, [at.prefix_matching[1] for at in history.values()]),
            ("previous token, layer 0", plots.ORANGE, [at.previous_token[0] for at in history.values()]),
        ):
            axes[1].plot(list(history), [float(each.max()) for each in scores], color=colour, label=label)
        axes[1].set(xlabel="training step", ylabel="attention of the best head", ylim=(0, 1.3))
        axes[1].legend(loc="upper left", fontsize=9)


def show_effects(
    score: Mapping[str, Float[Tensor, "layer head"]],
    effect: Float[Tensor, "layer head"],
    names: Sequence[str],
    *,
    caption: str,
) -> None:
    """Show the effect of patching each head against its prefix matching, coloured by its copying; hover for its name.

    Args:
        score: with "induction" and "copying".
        effect: in logits.
        names: one for each head.
        caption: of the figure.
    """
    import pandas as pd
    import plotly.express as px

    heads = pd.DataFrame({job: values.flatten().numpy() for job, values in score.items()})
    heads = heads.assign(effect=effect.flatten().numpy(), head=list(names))
    drawing = px.scatter(
        heads.sort_values("copying"),  # rare high ones are drawn on top
        x="induction",
        y="effect",
        color="copying",
        color_continuous_scale=[plots.GREY, plots.ORANGE],
        hover_name="head",
        hover_data={name: ":.2f" for name in (*score, "effect")},
        height=420,
    )
    drawing.update_traces(marker={"size": 8, "line": {"width": 0.5}})
    drawing.update_layout(
        xaxis_title="prefix-matching score",
        yaxis_title="effect of patching (logits)",
        coloraxis_colorbar_title_text="copying<br>score",
    )
    plots.show_plotly(
        "score-and-effect",
        drawing,
        caption=caption,
        alt="Scatter plot of heads: effect of patching against prefix-matching score, coloured by copying score.",
    )

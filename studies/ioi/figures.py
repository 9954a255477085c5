"""Figures of the chapter on indirect object identification: results go in, a figure comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from helpers import claims, plots
from helpers.attribution import name_heads
from helpers.claims import Estimate
from helpers.hooks import Head
from studies.ioi.roles import ROLES, SMALLEST_SHARE, Search, list_firm
from studies.ioi.tables import Edge, choose_edges, find_open_edges


def find_lasting(share: Float[NDArray, " layer"] | Tensor, least: float = 0.5) -> int | str:
    """The layer from which on a share stays above a bound; "none" where it is not above it in the last."""
    values = np.asarray(share)
    first = int(np.flatnonzero(values <= least).max(initial=-1)) + 1
    return first if first < len(values) else "none"


def describe_half(shares: Sequence[Estimate], *, below: bool = False) -> str:
    """From which layer on a patch turns more than half, or less, on average and surely: "from layer 3 on (surely from
    5)"; "in no layer" where it does not in the last.

    >>> from helpers.claims import Estimate
    >>> shares = [Estimate(value, value - 0.2, value + 0.2, 5) for value in (0.1, 0.6, 0.9)]
    >>> describe_half(shares), describe_half(shares, below=True)
    ('from layer 1 on (surely from 2)', 'in no layer')

    Args:
        shares: of the answer that turns, by layer.
        below: whether less than half is asked for.
    """
    ends = [(-share.value, -share.high) if below else (share.value, share.low) for share in shares]
    mean, sure = (find_lasting(np.array(some), -0.5 if below else 0.5) for some in zip(*ends, strict=True))
    if mean == "none":
        return "in no layer"
    return f"from layer {mean} on (surely {'in none' if sure == 'none' else f'from {sure}'})"


def describe_circuit(found: Search, passed: Mapping[tuple[str, Head], float]) -> str:
    """How many heads a search found, and how many of them are firm; "no circuit found" where there are none.

    Args:
        found: by the search.
        passed: of `roles.measure_firmness`.
    """
    n, n_firm = len(found.heads), len(list_firm(found, passed))
    if not n:
        return "no circuit found"
    return f"a circuit of {n} head{'s' * (n > 1)}, of which {n_firm} pass in most halves of the sentences"


def show_where(maps: Mapping[str, Float[Tensor, "layer position"]], names: Sequence[str], *, caption: str) -> None:
    """Show for each corruption which share of the answer a patch of the stream turns, by layer and position.

    Args:
        maps: by title.
        names: of the positions.
        caption: the finding first.
    """
    drawn: dict[str, Any] = {
        "caption": caption,
        "alt": "Heat maps of the share by layer and position, one for each corruption.",
    }
    with plots.draw_figure("where", height=3.2, ncols=len(maps), sharey=True, squeeze=False, **drawn) as (
        drawing,
        axes,
    ):
        for panel, (title, share) in zip(axes.flat, maps.items(), strict=True):
            seen = share.masked_fill(share.abs() < SMALLEST_SHARE, np.nan)  # else white, which glares on dark pages
            image = panel.pcolormesh(seen.T, cmap="RdBu", vmin=-1, vmax=1, rasterized=True)
            panel.set(title=title, xlabel="layer", yticks=np.arange(len(names)) + 0.5, yticklabels=names)
        drawing.colorbar(image, ax=axes, label="share of the answer turned")


def show_writing(
    heads: Float[Tensor, "layer head"], curves: Mapping[str, Float[NDArray, "layer prompt"]], *, caption: str
) -> None:
    """Show what every head writes, beside curves over layers: the first two in colour, others as baselines in grey.

    Args:
        heads: in logits.
        curves: by label.
        caption: the finding first.
    """
    alt = "Left: heat map of attribution by layer and head. Right: logit difference after each layer."
    with plots.draw_figure("writing", caption=caption, alt=alt, height=3.3, ncols=2) as (drawing, axes):
        drawing.colorbar(plots.draw_head_map(axes[0], heads, title="heads"), ax=axes[0], label="logits")
        colours = [plots.BLUE, plots.ORANGE, *[plots.GREY] * len(curves)]
        for colour, (label, values) in zip(colours, curves.items(), strict=False):
            axes[1].plot(np.asarray(values).mean(1), color=colour, label=label)
        axes[1].axhline(0, color=plots.INK, linewidth=0.6)
        axes[1].set(xlabel="layer", ylabel="logit difference")
        axes[1].legend(fontsize=8)


def show_stages(found: Search, *, caption: str) -> None:
    """Show the effect of every head at each stage, all on one scale, from the first layer that matters.

    Args:
        found: by the search, with at least one stage.
        caption: the finding first.
    """
    whole = float(found.logit_difference.mean())
    maps = {stage: np.asarray(result.mean * result.judged) / whole for stage, result in found.stages.items()}
    maps = {stage: np.where(np.abs(share) < SMALLEST_SHARE, np.nan, share) for stage, share in maps.items()}
    most = max(float(np.nanmax(np.abs(share), initial=SMALLEST_SHARE)) for share in maps.values())
    used = [int(np.flatnonzero(~np.isnan(share).all(1))[0]) for share in maps.values() if not np.isnan(share).all()]
    first = min(used, default=0)
    n_rows = -(-len(maps) // 3)
    alt = "Heat maps of the effect of path patching by layer and head, one for each set of receivers."
    size: dict[str, Any] = {"height": 0.6 + 2.2 * n_rows, "nrows": n_rows, "ncols": 3, "squeeze": False}
    with plots.draw_figure("stages", caption=caption, alt=alt, sharex=True, sharey=True, **size) as (drawing, axes):
        for panel in axes.flat[len(maps) :]:
            panel.set_axis_off()
        for panel, (stage, share) in zip(axes.flat, maps.items(), strict=False):
            n_layers, n_heads = share.shape
            edges = np.arange(n_layers + 1) - 0.5, np.arange(n_heads + 1) - 0.5
            image = panel.pcolormesh(*edges, share.T, cmap="RdBu", vmin=-most, vmax=most, rasterized=True)
            panel.set(title=f"to {stage}", xlabel="layer", ylabel="head", xlim=(first - 0.5, n_layers - 0.5))
            for name, role in ROLES.items():
                for layer, head in found.roles[name] if role.stage == stage else ():
                    # white on black can be seen on any ground
                    panel.plot(layer, head, "o", mfc="none", mec="black", ms=9, mew=3)
                    panel.plot(layer, head, "o", mfc="none", mec="white", ms=9, mew=1.2)
        drawing.colorbar(image, ax=axes, label="share of the logit difference")


CORNERS = {
    "previous token": (0, 0.3),
    "duplicate token": (1.2, 0),
    "induction": (1.2, 1.2),
    "S-inhibition": (3.0, 0.4),
    "name mover": (2.6, 2.3),
    "S-suppressor": (4.2, 1.5),
    "negative": (5.9, 1.9),
    "backup": (5.8, 0.7),
}
"""Of the roles in the diagram, from left to right at the position where they act."""


def show_circuit(
    found: Search, edges: Sequence[Edge], passed: Mapping[tuple[str, Head], float], *, caption: str
) -> None:
    """Show the roles as boxes with their heads, dashed where none is firm, and the paths between them as arrows, dashed
    where they look large and are not sure.

    Args:
        found: by the search, with at least one head.
        edges: all that were tried.
        passed: of `roles.measure_firmness`.
        caption: the finding first.
    """
    sure, unsure = choose_edges(found, edges), find_open_edges(found, edges)
    between: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for edge in (*sure, *unsure):
        between.setdefault(edge[:2], []).append((edge[2] + ("?" if edge in unsure else ""), edge[3].value))
    weights = {ends: max(abs(value) for _, value in each) for ends, each in between.items()}
    least = max(weights.values(), default=0.0) / 10  # smaller numbers would lie on each other; the table has them
    labels = {
        ends: "\n".join(f"{read}: {claims.shorten(value)}" for read, value in each if abs(value) >= least)
        for ends, each in between.items()
    }
    arrows = [(*ends, labels[ends], weight) for ends, weight in weights.items()]
    dashed = {*between} - {edge[:2] for edge in sure}
    firm = {*list_firm(found, passed)}
    boxes = {
        name: (*place, f"{name}\n{name_heads(found.roles[name][:4])}")
        for name, place in CORNERS.items()
        if found.roles[name]
    }
    boxes["logits"] = (4.2, 3.3, "logits")
    alt = "Diagram of the circuit: roles as boxes, the paths between them as arrows, up to the logits."
    with plots.draw_figure("circuit", caption=caption, alt=alt, height=4.4) as (_, axes):
        plots.draw_diagram(axes, boxes, arrows, dashed=dashed)
        infirm = {text for name, (*_, text) in boxes.items() if name in CORNERS and not firm & {*found.roles[name]}}
        for drawn in axes.texts:
            if drawn.get_text() in infirm:
                drawn.get_bbox_patch().set_linestyle("--")
        for x, place in ((0, "at S1+1"), (1.2, "at S2"), (4.2, "at END")):
            axes.text(x, -0.75, place, ha="center", style="italic")


def show_projection(head: Head, looks: Mapping[str, Tensor], writes: Mapping[str, Tensor], *, caption: str) -> None:
    """Show what a head writes of each name against its attention to it, a point for each prompt.

    Args:
        head: which.
        looks: as for `list_last_heads`.
        writes: as for `list_last_heads`.
        caption: the finding first.
    """
    alt = "Scatter plot of the projection on a name against the attention to it, in two colours for IO and S."
    with plots.draw_figure("attention-and-projection", caption=caption, alt=alt, height=3.0) as (_, axes):
        for name, colour in zip(looks, (plots.BLUE, plots.ORANGE), strict=True):
            axes.plot(looks[name][head], writes[name][head], "o", ms=4, alpha=0.7, color=colour, label=name)
        axes.axhline(0, color=plots.INK, linewidth=0.6)
        axes.set(xlabel="attention from END", ylabel="projection on the name (logits)")
        axes.legend()


def show_sizes(
    sizes: Sequence[int],
    kept: Sequence[Estimate],
    controls: Sequence[Sequence[Estimate]],
    lines: Mapping[str, float],
    *,
    caption: str,
) -> None:
    """Show what circuits of growing size keep, beside random ones of the same sizes.

    Args:
        sizes: how many heads are kept.
        kept: of the circuit, for each size.
        controls: the same of random ones.
        lines: labelled levels to compare with.
        caption: the finding first.
    """
    alt = "Logit difference that is kept against the number of heads, of the circuit and of random heads."
    with plots.draw_figure("sizes", caption=caption, alt=alt, height=3.0) as (_, axes):
        for number, values in enumerate(controls):
            label = {"label": "random heads"} if number == 0 else {}
            axes.plot(sizes, [one.value for one in values], color=plots.ORANGE, alpha=0.6, **label)
        axes.plot(sizes, [one.value for one in kept], color=plots.BLUE, label="the circuit's")
        for size, one in zip(sizes, kept, strict=True):
            plots.draw_interval(axes, size, one)
        for (label, level), style in zip(lines.items(), ("--", ":"), strict=True):
            axes.axhline(level, color=plots.INK, linestyle=style, linewidth=1, label=label)
        axes.set(xlabel="heads kept", ylabel="logit difference")
        axes.legend(fontsize=8)

"""Tables and figures of the chapter on indirect object identification: results go in, rows or a figure come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from helpers import claims, hooks, plots
from helpers.attribution import Attribution, find_largest_heads
from helpers.baselines import AgainstControls, Controls
from helpers.claims import Estimate
from helpers.hooks import Head
from helpers.models import LoadedModel
from studies.ioi.knock_outs import KnockOuts
from studies.ioi.roles import RECEIVERS, ROLES, SMALLEST_SHARE, Search
from studies.ioi.templates import CORRUPTIONS, IOI

Average = Callable[[Any], Estimate]
"""The mean of one number a prompt, with its interval."""
Edge = tuple[str, str, str, Estimate]
"""From one role to another, what of the other reads it, and the effect."""
FINAL_ROLES = ("name mover", "S-suppressor", "negative")
"""Those that write to the logits in the intact model."""

PUBLISHED_HEADS: dict[str, tuple[Head, ...]] = {
    "name mover": ((9, 9), (10, 0), (9, 6)),
    "negative": ((10, 7), (11, 10)),
    "S-inhibition": ((7, 3), (7, 9), (8, 6), (8, 10)),
    "induction": ((5, 5), (6, 9)),
    "duplicate token": ((0, 1), (3, 0)),
    "previous token": ((2, 2), (4, 11)),
}
"""In GPT-2 small, by Wang et al. (2023), without backups and weaker heads."""


SIGNALS_IN_GPT2 = (3.55, 2.45, 1.77, -0.99, -1.96, -3.16)
"""Logit difference for each signal of its S-inhibition heads, row by row, by Wang et al. (2023)."""


def name_heads(heads: Sequence[Head]) -> str:
    """Heads as a text: "23.3, 24.4", or "none"."""
    return ", ".join(f"{layer}.{head}" for layer, head in heads) or "none"


def list_next(loaded: LoadedModel, texts: Mapping[str, Sequence[int]], *, n: int = 5) -> list[dict[str, Any]]:
    """The likeliest next tokens after each text with their probabilities, a row for each rank.

    Args:
        loaded: on any backend.
        texts: token ids by the name of their columns.
        n: how many.
    """
    chances = hooks.capture(loaded, list(texts.values()), "logits")["logits"][:, 0].softmax(-1)
    best = chances.topk(n)
    rows = []
    for rank in range(n):
        row: dict[str, Any] = {}
        for column, name in enumerate(texts):
            row[f"after {name}"] = repr(loaded.token_labels([int(best.indices[column, rank])])[0])
            row[f"probability after {name}"] = float(best.values[column, rank])
        rows.append(row)
    return rows


def list_behaviour(data: IOI, measures: Mapping[str, NDArray], *, seed: int) -> list[dict[str, Any]]:
    """The means of several measures by template, by order and over all, a row for each.

    Args:
        data: the prompts.
        measures: one number a prompt; of the first the interval over templates is given too.
        seed: of the intervals.
    """
    template, order = np.array(data.template), np.array(data.order)
    parts = {f"template {number + 1}": template == number for number in sorted(set(data.template))}
    parts |= {one: order == one for one in ("ABBA", "BABA")} | {"all": np.ones(len(template), dtype=bool)}
    rows = []
    for name, members in parts.items():
        means: dict[str, Any] = {key: float(values[members].mean()) for key, values in measures.items()}
        if not name.startswith("template"):
            first, groups = next(iter(measures)), template[members].tolist()
            means[first] = claims.average(measures[first][members].tolist(), seed=seed, of="templates", groups=groups)
        rows.append({"prompts": name} | means | {"n": int(members.sum())})
    return rows


def join(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    """Tokens as one text."""
    return "".join(loaded.token_labels(list(tokens)))


def list_prompts(loaded: LoadedModel, data: IOI) -> list[dict[str, str]]:
    """The first prompt and each of its corruptions, a row for each."""
    texts = {"as drawn": data.prompts[0]} | {kind: data.corrupted(kind)[0] for kind in CORRUPTIONS}
    return [{"prompt": kind, "text": join(loaded, row)} for kind, row in texts.items()]


def find_first(share: Float[NDArray, " layer"] | Tensor, least: float = 0.5) -> int | str:
    """The first layer in which a share is above a bound; "none" where it never is."""
    above = np.flatnonzero(np.asarray(share) > least)
    return int(above[0]) if len(above) else "none"


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
            image = panel.pcolormesh(share.T, cmap="RdBu", vmin=-1, vmax=1, rasterized=True)
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


def list_criteria() -> list[dict[str, str]]:
    """A row for each role: its receivers, its direction, its scores."""
    return [
        {
            "role": name,
            "path patched to": RECEIVERS[role.stage],
            "without it the logit difference": "falls" if role.helps else "rises",
            "scores above the 95th percentile": "; ".join(role.scores),
        }
        for name, role in ROLES.items()
    ]


def list_roles(found: Search, average: Average) -> list[dict[str, Any]]:
    """A row for each head of each role: its effect and the scores that put it there, with their limits.

    Args:
        found: by the search.
        average: over its prompts.
    """
    rows: list[dict[str, Any]] = []
    for name, heads in found.roles.items():
        if not heads:
            rows.append({"role": name, "head": "none", "effect": "–", "scores (limit)": "–"})
        for place in heads:
            scores = (
                f"{score} {claims.shorten(float(found.scores[score][place]))} "
                f"({claims.shorten(found.limits[name, score])})"
                for score in ROLES[name].scores
            )
            effect = average(found.stages[ROLES[name].stage].effect[place])
            row = {"role": name, "head": name_heads([place]), "effect": effect, "scores (limit)": "; ".join(scores)}
            rows.append(row)
    return rows


def list_unnamed(found: Search) -> list[Head]:
    """Heads with a direct effect that meet no role's criteria, the largest first."""
    if "logits" not in found.stages:
        return []
    direct = found.stages["logits"]
    places = {(layer, head) for layer, head in direct.found.nonzero().tolist()} - set(found.heads)
    return sorted(places, key=lambda place: -abs(float(direct.mean[place])))


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


def list_edges(
    found: Search, paths: Mapping[tuple[str, str], Float[Tensor, "layer head example"]], average: Average
) -> list[Edge]:
    """Every path between roles that was tried, and those to the logits, with its effect.

    Args:
        found: by the search.
        paths: (receiving role, what of it is changed) → the effect of every head.
        average: over the prompts of the paths, which are the first ones of the search.
    """
    paths = dict(paths)
    for receiver, read in (("S-inhibition", "values"), ("induction", "keys")):
        if read in found.stages:
            paths[receiver, read] = found.stages[read].effect
    edges: list[Edge] = []
    for (receiver, read), effect in paths.items():
        for sender, heads in found.roles.items():
            total = sum((effect[head] for head in heads), torch.zeros(effect.shape[-1]))
            if heads and sender != receiver and total.any():  # else it is later
                edges.append((sender, receiver, read, average(total)))
    for name in FINAL_ROLES:
        if heads := found.roles[name]:
            total = torch.stack([found.stages["logits"].effect[head] for head in heads]).sum(0)
            edges.append((name, "logits", "directly", average(total)))
    return edges


PLACES = {
    "previous token": (0, 0.3),
    "duplicate token": (1.2, 0),
    "induction": (1.2, 1.2),
    "S-inhibition": (3.0, 0.4),
    "name mover": (2.6, 2.3),
    "S-suppressor": (4.2, 1.5),
    "negative": (5.8, 2.3),
    "backup": (5.8, 0.7),
}
"""Of the roles in the diagram, from left to right at the position where they act."""


def show_circuit(found: Search, edges: Sequence[Edge], *, caption: str) -> None:
    """Show the roles as boxes with their heads, and the measured paths between them as arrows.

    Args:
        found: by the search, with at least one head.
        edges: drawn from a hundredth of the logit difference on, where the interval does not reach zero.
        caption: the finding first.
    """
    smallest = SMALLEST_SHARE * float(found.logit_difference.mean())
    arrows = [
        (sender, receiver, f"{read}: {claims.shorten(total.value)}", abs(total.value))
        for sender, receiver, read, total in edges
        if abs(total.value) >= smallest and total.low * total.high > 0
    ]
    boxes = {
        name: (*place, f"{name}\n{name_heads(found.roles[name][:4])}")
        for name, place in PLACES.items()
        if found.roles[name]
    }
    boxes["logits"] = (4.2, 3.3, "logits")
    alt = "Diagram of the circuit: roles as boxes, the paths between them as arrows, up to the logits."
    with plots.draw_figure("circuit", caption=caption, alt=alt, height=4.4) as (_, axes):
        plots.draw_diagram(axes, boxes, arrows)
        for x, place in ((0, "at S1+1"), (1.2, "at S2"), (4.2, "at END")):
            axes.text(x, -0.75, place, ha="center", style="italic")


def correlate(looks: Mapping[str, Tensor], writes: Mapping[str, Tensor], head: Head) -> float:
    """How attention to a name goes with what is written of it, within each name, so that only prompts differ."""
    pairs = []
    for values in (looks, writes):
        pairs.append(torch.cat([one[head] - one[head].mean() for one in values.values()]))
    return float(np.corrcoef(*(one.numpy() for one in pairs))[0, 1])


def list_last_heads(found: Search, looks: Mapping[str, Tensor], writes: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """A row for each head that writes to the logits: where it looks, what it copies, and how the two go together.

    Args:
        found: by the search.
        looks: by name each head's attention to it, layer head prompt.
        writes: by name each head's projection on it, layer head prompt.
    """
    return [
        {
            "role": role,
            "head": name_heads([place]),
            "END attends IO, S1, S2": ", ".join(
                claims.shorten(float(found.scores[f"END attends {at}"][place])) for at in ("IO", "S1", "S2")
            ),
            "raises IO": float(found.scores["raises IO"][place]),
            "lowers IO": float(found.scores["lowers IO"][place]),
            "lowers S": float(found.scores["lowers S"][place]),
            "attention and projection": correlate(looks, writes, place),
        }
        for role in FINAL_ROLES
        for place in found.roles[role]
    ]


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


LEFT_IN_GPT2 = {
    "S-inhibition": 0.24,
    "induction": 0.97,
    "duplicate token": 0.60,
    "previous token": 1.31,
    "negative": 4.07,
}
"""Logit difference without one role, by Wang et al. (2023)."""


def list_knock_outs(
    out: KnockOuts, found: Search, beside: Mapping[str, AgainstControls], controls: Mapping[str, Controls]
) -> list[dict[str, Any]]:
    """A row for each role: what is left without it, and how far its loss goes beyond the strongest control's.

    Args:
        out: measures it.
        found: the circuit.
        beside: by role its loss beside that of its controls.
        controls: by role.
    """
    return [
        {
            "knocked out": name,
            "heads": name_heads(found.roles[name]),
            "left": out.average(out.without([found.roles[name]])[0]),
            "beyond the strongest control": against.lead or "–",
            "controls": f"{len(controls[name].sets)} of {controls[name].n_possible}",
            "left in GPT-2 small, published": LEFT_IN_GPT2.get(name, "–"),
        }
        for name, against in beside.items()
    ]


def list_split(
    found: Search,
    raised: Float[Tensor, "layer head prompt"],
    lowered: Float[Tensor, "layer head prompt"],
    out: KnockOuts,
) -> list[dict[str, Any]]:
    """A row for each role that writes to the logits, and one for all heads: what it writes of either name.

    Args:
        found: the circuit.
        raised: IO less absent names.
        lowered: absent names less S.
        out: averages over its prompts.
    """
    groups = {name: found.roles[name] for name in (*FINAL_ROLES, "backup") if found.roles[name]}
    groups["all heads"] = tuple(out.complement([]))
    return [
        {
            "role": name,
            "raises IO by": out.average(torch.stack([raised[head] for head in heads]).sum(0)),
            "lowers S by": out.average(torch.stack([lowered[head] for head in heads]).sum(0)),
        }
        for name, heads in groups.items()
    ]


def list_falls(
    left: Mapping[str, Attribution], before: Attribution, head: Head, average: Average
) -> list[dict[str, Any]]:
    """A row for each knock-out: what one head writes then, what all parts do, and how much of either is gone.

    Args:
        left: by what is knocked out.
        before: of the intact run.
        head: whose writing it is.
        average: over the prompts.
    """
    return [
        {
            "knocked out": name,
            "the head writes": average(one.heads[head]),
            "of all that is written": average(one.total),
            "the head loses": average((before.heads - one.heads)[head]),
            "of all that is lost": average(before.total - one.total),
        }
        for name, one in {"nothing": before, **left}.items()
    ]


def list_attention(
    found: Search, attention: Mapping[str, Mapping[tuple[str, str], Float[Tensor, "layer head"]]]
) -> list[dict[str, Any]]:
    """A row for each head that writes to the logits: its attention from END under each condition.

    Args:
        found: by the search.
        attention: by condition, as `roles.measure_attention` gives it.
    """
    return [
        {"role": role, "head": name_heads([place])}
        | {
            f"to {end}, {when}": float(weights["END", end][place])
            for end in ("IO", "S1", "S2")
            for when, weights in attention.items()
        }
        for role in FINAL_ROLES
        for place in found.roles[role]
    ]


def list_risers(
    before: Float[Tensor, "layer head prompt"],
    rise: Float[Tensor, "layer head prompt"],
    average: Average,
    *,
    n: int = 4,
) -> list[dict[str, Any]]:
    """A row for each of the heads that rise most: what they write before and after, and the rise.

    Args:
        before: what each head writes in the intact run.
        rise: by how much more it writes in the other.
        average: over the prompts.
        n: how many heads.
    """
    return [
        {
            "head": name_heads([place]),
            "writes": average(before[place]).value,
            "writes, movers out": average((before + rise)[place]).value,
            "rise": average(rise[place]),
        }
        for place in find_largest_heads(rise.mean(-1), n)
    ]


def list_signals(cells: Mapping[tuple[int, int], Any], average: Average) -> list[dict[str, Any]]:
    """The two-by-three table of signals.

    Args:
        cells: (position, token), each 1 where it is the original and -1 where it is inverted → one number a prompt.
        average: over the prompts.
    """
    tokens = {1: "original", 0: "random", -1: "inverted"}
    return [
        {"position signal": tokens[position]}
        | {f"token {word}": average(cells[position, token]) for token, word in tokens.items()}
        for position in (1, -1)
    ]


def find_contrast(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    """Of the quantities that both have, the one in which they differ most, as "the signal constant"."""
    largest = max(ours, key=lambda name: abs(ours[name] - theirs[name]))
    return f"the {largest.replace('_', ' ')}"


def list_faithfulness(
    kinds: Mapping[str, tuple[NDArray, str]], whole: NDArray, data: IOI, average: Average
) -> list[dict[str, Any]]:
    """A row for each kind of ablation: what is left, and its share in several definitions.

    Args:
        kinds: by name the logit difference of each prompt, and the controls' as a text.
        whole: the model's own.
        data: the prompts.
        average: over these.
    """
    order = np.array(data.order)
    rows = []
    for name, (values, controls) in kinds.items():
        row = {"ablated": name, "logit difference": average(values)}
        for label, members in {"all": order != "", "ABBA": order == "ABBA", "BABA": order == "BABA"}.items():
            row[f"ratio of means, {label}"] = float(values[members].mean() / whole[members].mean())
        row["median of ratios"] = float(np.median(values / whole))
        rows.append(row | {"controls, median (min to max)": controls})
    return rows


def list_sets(names: Sequence[str], columns: Mapping[str, NDArray], average: Average) -> list[dict[str, Any]]:
    """A row for each set: the mean of each column.

    Args:
        names: of the sets.
        columns: by heading, set prompt.
        average: over the prompts.
    """
    return [
        {"heads": name} | {heading: average(values[i]) for heading, values in columns.items()}
        for i, name in enumerate(names)
    ]


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


def list_head(
    head: Head, measures: Mapping[str, Float[Tensor, "layer head ..."]], averages: Mapping[str, Average]
) -> list[dict[str, Any]]:
    """A row for each measure of one head, beside the other heads of its layer.

    Args:
        head: which.
        measures: by name a number for each head, or several.
        averages: of those measures that have several numbers a head, how to average them.
    """
    layer, number = head
    rows = []
    for name, values in measures.items():
        means = values[layer].flatten(1).mean(1) if values.ndim > 2 else values[layer]
        others = np.delete(np.asarray(means, dtype=float), number)
        low, middle, high = (claims.shorten(float(np.quantile(others, at))) for at in (0, 0.5, 1))
        own = averages[name](values[head]) if name in averages else float(means[number])
        rows.append(
            {
                "measure": name,
                f"head {name_heads([head])}": own,
                "others of its layer, median (min to max)": f"{middle} ({low} to {high})",
            }
        )
    return rows

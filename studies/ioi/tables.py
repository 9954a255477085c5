"""Tables of the chapter on indirect object identification: results go in, rows come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from helpers import claims, hooks
from helpers.attribution import Attribution, find_largest_heads, name_heads
from helpers.baselines import AgainstControls, Controls
from helpers.claims import Estimate
from helpers.hooks import Head
from helpers.models import LoadedModel
from studies.ioi.knock_outs import KnockOuts, add_up, rank_rivals
from studies.ioi.roles import FINAL_ROLES, RECEIVERS, ROLES, SMALLEST_SHARE, Search
from studies.ioi.templates import CORRUPTIONS, IOI

Average = Callable[[Any], Estimate]
"""The mean of one number a prompt, with its interval."""
Edge = tuple[str, str, str, Estimate]
"""From one role to another, what of the other reads it, and the effect."""

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
    """The means of several measures by template, by order where sentences are the same in both, and over all.

    Args:
        data: the prompts.
        measures: one number a prompt; of the first the interval over templates is given too.
        seed: of the intervals.
    """
    template = np.array(data.template)
    parts = {f"template {number + 1}": template == number for number in sorted(set(data.template))}
    parts |= _split_orders(data) | {"all": np.ones(len(template), dtype=bool)}
    rows = []
    for name, members in parts.items():
        means: dict[str, Any] = {key: float(values[members].mean()) for key, values in measures.items()}
        if not name.startswith("template"):
            first, groups = next(iter(measures)), template[members].tolist()
            means[first] = claims.average(measures[first][members].tolist(), seed=seed, of="templates", groups=groups)
        rows.append({"prompts": name} | means | {"n": int(members.sum())})
    return rows


def _split_orders(data: IOI) -> dict[str, Bool[np.ndarray, " prompt"]]:
    """The prompts of either order, where every sentence comes in both: else sentences would differ too."""
    order, forms = np.array(data.order), set(data.forms)
    if any((number, one) not in forms for number in data.template for one in ("ABBA", "BABA")):
        return {}
    return {one: order == one for one in ("ABBA", "BABA")}


def join(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    """Tokens as one text."""
    return "".join(loaded.token_labels(list(tokens)))


def list_prompts(loaded: LoadedModel, data: IOI) -> list[dict[str, str]]:
    """The first prompt and each of its corruptions, a row for each."""
    texts = {"as drawn": data.prompts[0]} | {kind: data.corrupted(kind)[0] for kind in CORRUPTIONS}
    return [{"prompt": kind, "text": join(loaded, row)} for kind, row in texts.items()]


ELSEWHERE = {
    "induction": "induction-heads-match-prefixes-elsewhere",
    "duplicate token": "duplicate-token-heads-find-copies-elsewhere",
    "name mover": "name-movers-copy-elsewhere",
}
"""Of roles that are tried on random tokens too, the claims about it."""


NAMED = {"name mover": "name movers", "S-suppressor": "S-suppressors", "negative": "negative heads"}
"""Roles in the plural, where a plain s will not do."""
LAST, LAST_TOGETHER = ("name mover", "S-suppressor"), "name movers and S-suppressors at once"
"""Roles that write the answer, and what they are called where both are knocked out at once."""


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


def list_roles(found: Search, passed: Mapping[tuple[str, Head], float], average: Average) -> list[dict[str, Any]]:
    """A row for each head of each role: its effect and the scores that put it there, with their limits.

    Args:
        found: by the search.
        passed: of `roles.measure_firmness`.
        average: over the prompts of the search.
    """
    rows: list[dict[str, Any]] = []
    for name, heads in found.roles.items():
        if not heads:
            rows.append({"role": name, "head": "none", "effect": "–", "halves passed": "–", "scores (limit)": "–"})
        for place in heads:
            scores = (
                f"{score} {claims.shorten(float(found.scores[score][place]))} "
                f"({claims.shorten(found.limits[name, score])})"
                for score in ROLES[name].scores
            )
            effect = average(found.stages[ROLES[name].stage].effect[place])
            row = {"role": name, "head": name_heads([place]), "effect": effect, "halves passed": passed[name, place]}
            rows.append(row | {"scores (limit)": "; ".join(scores)})
    return rows


def list_unnamed(found: Search) -> list[Head]:
    """Heads with a direct effect that meet no role's criteria, the largest first."""
    if "logits" not in found.stages:
        return []
    direct = found.stages["logits"]
    places = {(layer, head) for layer, head in direct.found.nonzero().tolist()} - set(found.heads)
    return sorted(places, key=lambda place: -abs(float(direct.mean[place])))


def choose_edges(found: Search, edges: Sequence[Edge]) -> list[Edge]:
    """The paths of surely more than a hundredth of the logit difference, either way.

    The hundredth is part of the hypothesis that is tested, so that the false discovery rate of 5 % (Benjamini &
    Hochberg, 1995) is that of the paths returned.

    Args:
        found: by the search.
        edges: all that were tried, with Student's intervals.
    """
    from scipy.stats import false_discovery_control, t

    if not edges:
        return []
    smallest, chances = SMALLEST_SHARE * float(found.logit_difference.mean()), []
    for *_, total in edges:
        error, freedom = (total.high - total.low) / 2 / t.ppf(0.975, total.n - 1), total.n - 1
        ends = (abs(total.value) - smallest, abs(total.value) + smallest)
        chances.append(sum(t.sf(end / error, freedom) for end in ends) if error > 0 else 1.0)
    sure = false_discovery_control(np.minimum(chances, 1)) <= 0.05
    return [edge for edge, one in zip(edges, sure, strict=True) if one]


def find_open_edges(found: Search, edges: Sequence[Edge]) -> list[Edge]:
    """The paths that look large, a tenth of the logit difference and more, and are not sure; arguments as before."""
    large, sure = 0.1 * float(found.logit_difference.mean()), choose_edges(found, edges)
    return [edge for edge in edges if abs(edge[3].value) >= large and edge not in sure]


def correlate(looks: Mapping[str, Tensor], writes: Mapping[str, Tensor], head: Head) -> dict[str, float]:
    """By name how attention to it goes with what is written of it, from prompt to prompt."""
    return {
        name: float(np.corrcoef(looks[name][head].numpy(), writes[name][head].numpy())[0, 1]) for name in ("IO", "S")
    }


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
        }
        | {f"attention and projection, {name}": r for name, r in correlate(looks, writes, place).items()}
        for role in FINAL_ROLES
        for place in found.roles[role]
    ]


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
    written: Mapping[str, Float[Tensor, "layer head prompt"]],
    lost: Mapping[str, Mapping[str, Float[Tensor, " prompt"]]],
    out: KnockOuts,
) -> list[dict[str, Any]]:
    """A row for each role, and one for all heads: what it writes of either name, and what that loses without the role.

    Args:
        found: the circuit.
        written: of `knock_outs.split_names`.
        lost: by role, and for `LAST_TOGETHER`, how far the logits of `knock_outs.read_names` fall without it.
        out: averages over its prompts.
    """
    groups = {name: heads for name, heads in found.roles.items() if heads}
    if LAST_TOGETHER in lost and all(found.roles[name] for name in LAST):
        groups[LAST_TOGETHER] = tuple(head for name in LAST for head in found.roles[name])
    groups["all heads"] = tuple(out.complement([]))
    rows = []
    for name, heads in groups.items():
        signs = (("raises", "IO", 1), ("lowers", "S", -1))
        row = {f"{verb} {at} directly": out.average(sign * add_up(written[at], heads)) for verb, at, sign in signs}
        ends = {
            f"{verb} {at} in all": out.average(sign * lost[name][at]) if name in lost else "–"
            for verb, at, sign in signs
        }
        rows.append({"role": name} | row | ends)
    return rows


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


Looks = Mapping[str, Float[Tensor, "layer head prompt"]]
"""By place, how much of its attention END gives to it."""


def list_attention(found: Search, before: Looks, after: Looks, average: Average) -> list[dict[str, Any]]:
    """A row for each head that writes to the logits: where END looks, and how that changes.

    Args:
        found: by the search.
        before: in the whole model.
        after: with something knocked out.
        average: over the prompts.
    """
    rows = []
    for name, place in [(role, head) for role in FINAL_ROLES for head in found.roles[role]]:
        row: dict[str, Any] = {"role": name, "head": name_heads([place])}
        for end in ("IO", "S1", "S2"):
            row[f"to {end}"] = float(before[end][place].mean())
            row[f"to {end}, change"] = average((after[end] - before[end])[place])
        rows.append(row)
    return rows


def describe_looks(found: Search, before: Looks, after: Looks, average: Average) -> str:
    """In a sentence by how much the attention of each role that writes to the logits changes; arguments as for
    `list_attention`."""
    parts = []
    for role in (role for role in FINAL_ROLES if found.roles[role]):
        heads = found.roles[role]
        change = {end: add_up(after[end] - before[end], heads) / len(heads) for end in ("IO", "S1", "S2")}
        to_names = {"IO": change["IO"], "S (both mentions)": change["S1"] + change["S2"]}
        told = (f"by {average(values).brief()} for {name}" for name, values in to_names.items())
        parts.append(f"that of {NAMED.get(role, role + 's')} {' and '.join(told)}")
    return f"Without S-inhibition attention from END changes: {'; '.join(parts)}." if parts else ""


def describe_rest(elsewhere: Estimate | None, left: Mapping[str, Estimate], whole: Estimate) -> str:
    """In words what runs beside the drawn paths.

    Args:
        elsewhere: of what S-inhibition costs, the share that is lost while the last heads are held.
        left: by role the logit difference without it.
        whole: the logit difference.
    """
    if elsewhere is None:
        return "What runs beside the arrows can't be told: S-inhibition or movers are missing, or may cost nothing."
    movers = f" without name movers {left['name mover'].brief()} logits are left," if "name mover" in left else ""
    return (
        "What an arrow carries is not what would be missing. Of what S-inhibition costs when knocked out (below) a "
        f"share of {elsewhere.brief()} is lost also while name movers and S-suppressors write what they wrote, so "
        f"outside the paths into them; and{movers} with all heads {whole.brief()}."
    )


def describe_unnamed(unnamed: Sequence[Head], told: Mapping[str, Estimate]) -> str:
    """In words what the largest head without a role looks at and writes.

    Args:
        unnamed: of `list_unnamed`.
        told: attention from END to "END" and "the names", and what it writes of "IO" and "S".
    """
    if not unnamed:
        return "Here there is none."
    brief = {name: estimate.brief() for name, estimate in told.items()}
    return (
        f"It is {name_heads(unnamed[:1])} (of {name_heads(unnamed)}), which spends {brief['END']} of its attention on "
        f"END itself and {brief['the names']} on the names. Against absent names it writes {brief['IO']} logits of IO "
        f"and {brief['S']} of S."
    )


def describe_losses(head: Head | None, lost: Mapping[str, Estimate]) -> str:
    """In words how much a head loses of what it writes without each role."""
    if head is None or not lost:
        return ""
    perhaps = {role: ", so perhaps nothing," if one.low <= 0 <= one.high else "" for role, one in lost.items()}
    each = " and ".join(f"{one.brief()} logits{perhaps[role]} without {role}s" for role, one in lost.items())
    return f"In these sentences head {name_heads([head])} loses {each}."


def describe_costs(found: Search, costs: Mapping[str, Sequence[Estimate]]) -> str:
    """In words which heads surely cost something alone on each task, or help, all looked at together, and how much the
    induction and previous-token heads do.

    Args:
        found: the circuit, not empty.
        costs: by task, one for each head of the circuit.
    """
    chosen = [place for role in ("induction", "previous token") for place in found.roles[role]]
    numbers = {place: number for number, place in enumerate(found.heads)}
    n_looks = len(found.heads) * len(costs)
    sure = {task: [claims.widen(one, n_looks) for one in of_task] for task, of_task in costs.items()}
    needed = {
        task: {head for head, one in zip(found.heads, some, strict=True) if one.low > 0} for task, some in sure.items()
    }
    both = set.intersection(*needed.values())
    kinds = {"on both tasks": both} | {f"on {task}, not surely elsewhere": some - both for task, some in needed.items()}
    kinds |= {
        f"helping on {task} when gone": {head for head, one in zip(found.heads, some, strict=True) if one.high < 0}
        for task, some in sure.items()
    }
    told = "; ".join(f"{kind}: {name_heads(sorted(heads))}" for kind, heads in kinds.items() if heads)
    parts = [
        f"{name_heads([place])}: "
        + " and ".join(f"{of_task[numbers[place]].brief()} on {task}" for task, of_task in costs.items())
        for place in chosen
    ]
    each = f" In numbers, {'; '.join(parts)}." if parts else ""
    return f"A score is not what a head is worth. Knocked out by itself, surely costing {told or 'are none'}.{each}"


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
    """A row for each kind of ablation: what is left, and its share in several definitions, by order too where every
    sentence comes as often in either.

    Args:
        kinds: by name the logit difference of each prompt, and the controls' as a text.
        whole: the model's own.
        data: the prompts.
        average: over these.
    """
    parts = {"all": np.ones(len(data.order), dtype=bool)} | _split_orders(data)
    rows = []
    for name, (values, controls) in kinds.items():
        row = {"ablated": name, "logit difference": average(values)}
        for label, members in parts.items():
            row[f"ratio of means, {label}"] = float(values[members].mean() / whole[members].mean())
        row["median of ratios"] = float(np.median(values / whole))
        rows.append(row | {"controls, median (min to max)": controls})
    return rows


def list_tasks(
    found: Search, scores: Mapping[str, Float[Tensor, "sequence layer head"]], costs: Mapping[str, Sequence[Estimate]]
) -> list[dict[str, Any]]:
    """A row for each head of the circuit: its scores, each beside the best rival's of its layer, and what it is worth.

    Args:
        found: the circuit.
        scores: by name, of every head; rivals are heads outside the circuit.
        costs: by task what is lost without each head of the circuit, in its order.
    """
    means = {name: values.mean(0) for name, values in scores.items()}
    rows = []
    for i, head in enumerate(found.heads):
        row: dict[str, Any] = {"head": name_heads([head])}
        row["role"] = ", ".join(name for name, heads in found.roles.items() if head in heads)
        for name, values in means.items():
            rivals = rank_rivals(values, head[0], found.heads)
            best = f" ({claims.shorten(float(values[rivals[0]]))}, {name_heads(rivals[:1])})" if rivals else ""
            row[f"{name} (best rival)"] = f"{claims.shorten(float(values[head]))}{best}"
        rows.append(row | {f"lost without it: {task}": each[i] for task, each in costs.items()})
    return rows


def describe_needs(heads: Sequence[tuple[str, Head]], beyond: Sequence[Estimate]) -> dict[str, str]:
    """Which heads surely add less than they should, all looked at together, and of which that is not sure either way.

    Args:
        heads: (role, head).
        beyond: by how much each adds more than it should.
    """
    idle = [claims.widen(one, len(beyond)).high < 0 for one in beyond]
    doubtful = [one.low <= 0 and not sure for one, sure in zip(beyond, idle, strict=True)]
    kinds = {"idle_heads": idle, "doubtful_heads": doubtful}
    return {
        key: name_heads([*dict.fromkeys(head for (_, head), so in zip(heads, these, strict=True) if so)])
        for key, these in kinds.items()
    }


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

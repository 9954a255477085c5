"""Which heads do what when a model names the indirect object: roles from criteria, the same for every model.

The search goes backwards from the logits, as in Wang et al. (2023): who writes to them, who feeds the queries of
those, who feeds the values of those at S2, who feeds the keys of those at S1+1. A head has a role where

1. path patching from p_ABC moves the logit difference in the role's direction, and more consistently than the 95th
   percentile of the most consistent head when the signs of the templates are drawn at random (of the most consistent
   one, so that looking at many heads is paid for; of templates, since prompts of one sentence are no independent ones),
2. by at least `SMALLEST_SHARE` of the logit difference, and
3. each of its scores lies above the 95th percentile of that score among the heads that fail 1 or 2; what it does to
   names (`raises`, `lowers`) it must also do to at least half of them, as most heads do it to none; and a backup must
   write towards the answer once the movers are gone, since a head that merely stops writing against it makes up for
   nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from helpers import InputError, attribution, hooks
from helpers.hooks import Captured, Head, SiteName
from helpers.models import LoadedModel
from helpers.patching import Node, patch_paths, patch_paths_to_each
from studies.ioi.templates import IOI

SMALLEST_SHARE = 0.01
"""Of the logit difference: the least that any node of the published circuit contributes."""
LEAST_COPYING = 0.5
"""Of the names that a head must raise or lower."""
PERCENTILE = 95
SIGN_FLIPS = 2000
MOST_HALVES = 0.5
"""Of the halves of the templates: a head whose effect passes in more is firm."""
COPIED = 16
"""Prompts whose names the copying of a head is tried on, each of which costs an unembedding for each head."""

StageName = Literal["logits", "backup", "queries", "values", "keys"]


@dataclass(frozen=True)
class Role:
    """What a head must do to be called so."""

    stage: StageName
    """Where path patching from it must matter."""
    helps: bool
    """Whether the logit difference falls without it, or rises."""
    scores: tuple[str, ...]


ROLES = {
    "name mover": Role("logits", True, ("END attends IO", "raises IO")),
    "S-suppressor": Role("logits", True, ("END attends S", "lowers S")),
    "negative": Role("logits", False, ("END attends IO", "lowers IO")),
    "backup": Role("backup", True, ("END attends IO without movers", "raises IO", "writes without movers")),
    "S-inhibition": Role("queries", True, ("END attends S2",)),
    "induction": Role("values", True, ("S2 attends S1+1",)),
    "duplicate token": Role("values", True, ("S2 attends S1",)),
    "previous token": Role("keys", True, ("S1+1 attends S1",)),
}
FINAL_ROLES = ("name mover", "S-suppressor", "negative")
"""Those that write to the logits in the intact model."""
RECEIVERS: dict[StageName, str] = {
    "logits": "the logits at END",
    "backup": "the logits at END, once name movers and S-suppressors are knocked out",
    "queries": "queries of name movers and S-suppressors at END",
    "values": "values of S-inhibition heads at S2",
    "keys": "keys of induction heads at S1+1",
}


@dataclass(frozen=True)
class Stage:
    """What path patching from each head to one set of receivers does to the logit difference."""

    effect: Float[Tensor, "layer head example"]
    """In logits; below zero where the head helps."""
    least_consistency: float
    smallest: float
    """The least effect that counts, in logits."""
    left_out: tuple[Head, ...] = ()
    """Heads that are knocked out, and so neither found nor compared with."""
    template: tuple[int, ...] = ()
    """Of each example; examples that share one count as one, their mean. Without, each counts."""

    @property
    def mean(self) -> Float[Tensor, "layer head"]:
        return self.effect.mean(-1)

    @property
    def found(self) -> Bool[Tensor, "layer head"]:
        consistency = measure_consistency(average_by_template(self.effect, self.template))
        large = (consistency > self.least_consistency) & (self.mean.abs() >= self.smallest)
        return large & self.judged

    @property
    def judged(self) -> Bool[Tensor, "layer head"]:
        judged = torch.ones_like(self.mean, dtype=torch.bool)
        for layer, head in self.left_out:
            judged[layer, head] = False
        return judged


@dataclass(frozen=True)
class Search:
    """What was found, and by which figures."""

    logit_difference: Float[Tensor, " example"]
    stages: dict[StageName, Stage]
    """Those that had receivers."""
    scores: dict[str, Float[Tensor, "layer head"]]
    limits: dict[tuple[str, str], float]
    """(role, score) → what a head must exceed."""
    roles: dict[str, tuple[Head, ...]]
    """The heads of each role, largest effect first; none where the model does not do the task."""

    @property
    def heads(self) -> tuple[Head, ...]:
        return tuple(sorted({head for heads in self.roles.values() for head in heads}))


def search(loaded: LoadedModel, data: IOI, reference: IOI, *, seed: int) -> Search:
    """Find the heads of every role.

    A model whose mean logit difference is not above zero, by the same random signs, does not do the task: it has
    no circuit for it, and nothing is searched.

    Args:
        loaded: on plain Hugging Face.
        data: the prompts that it is searched on.
        reference: prompts of the same forms, from whose p_ABC corruptions the means of a knock-out are taken.
        seed: of the random signs.
    """
    attributed = attribution.attribute_logits(loaded, data.prompts, data.answers)
    difference = attributed.total
    found = Search(difference, {}, score_heads(loaded, data), {}, dict.fromkeys(ROLES, ()))
    by_template = average_by_template(difference[None], data.template)
    if float(difference.mean()) <= 0 or measure_consistency(by_template[0]) <= bound_consistency(
        by_template, seed=seed
    ):
        return found

    def look(stage: StageName, effect: Tensor | None, left_out: tuple[Head, ...] = ()) -> None:
        if effect is None:
            return
        smallest = SMALLEST_SHARE * float(difference.mean())
        judged = effect.clone()
        judged[tuple(torch.tensor(left_out, dtype=torch.long).view(-1, 2).T)] = 0
        least = bound_consistency(average_by_template(judged, data.template), seed=seed)
        found.stages[stage] = Stage(judged, least, smallest, left_out, data.template)
        for name, role in ROLES.items():
            if role.stage == stage:
                heads, limits = _heads(role, found.stages[stage], found.scores)
                found.roles[name] = heads
                found.limits.update({(name, score): limit for score, limit in limits.items()})

    look("logits", patch_paths(loaded, data.prompts, data.corrupted("p_ABC"), "logits", answers=data.answers).effect)
    movers = found.roles["name mover"] + found.roles["S-suppressor"]
    if movers:
        effect, scores = _without(loaded, data, reference, movers, attributed)
        found.scores.update(scores)
        look("backup", effect, movers)
    look("queries", patch_into(loaded, data, "q", movers, "END"))
    look("values", patch_into(loaded, data, "v", found.roles["S-inhibition"], "S2"))
    look("keys", patch_into(loaded, data, "k", found.roles["induction"], "S1+1"))
    return found


def score_heads(loaded: LoadedModel, data: IOI) -> dict[str, Float[Tensor, "layer head"]]:
    """What each head attends to, mean over the prompts, and whether it copies (`attribution.measure_copy_rates`)."""
    attention = measure_attention(loaded, data)
    few = data.first(COPIED)
    places = {name: few.positions[name] for name in ("IO", "S1")}
    resid = hooks.capture(loaded, few.prompts, "resid_post", layers=[0], positions=places)["resid_post"][:, 0]
    raises_io, lowers_io = attribution.measure_copy_rates(loaded, torch.tensor(few.io), resid[:, 0])
    _, lowers_s = attribution.measure_copy_rates(loaded, torch.tensor(few.subject), resid[:, 1])
    return {
        "END attends IO": attention["END", "IO"],
        "END attends S": attention["END", "S1"] + attention["END", "S2"],
        "END attends S1": attention["END", "S1"],
        "END attends S2": attention["END", "S2"],
        "S2 attends S1": attention["S2", "S1"],
        "S2 attends S1+1": attention["S2", "S1+1"],
        "S1+1 attends S1": attention["S1+1", "S1"],
        "raises IO": raises_io,
        "lowers IO": lowers_io,
        "lowers S": lowers_s,
    }


def measure_attention(loaded: LoadedModel, data: IOI) -> dict[tuple[str, str], Float[Tensor, "layer head"]]:
    """(query, key) → the mean weight over the prompts."""
    pattern = hooks.capture(loaded, data.prompts, "pattern", positions=data.positions)["pattern"]
    found = {}
    for number, query in enumerate(data.positions):
        for key, places in data.positions.items():
            keys = torch.tensor(places).view(-1, 1, 1, 1).expand(*pattern.shape[:3], 1)
            found[query, key] = pattern[:, :, :, number].gather(-1, keys)[..., 0].mean(0)
    return found


def average_by_template(
    effect: Float[Tensor, "*head example"], template: Sequence[int]
) -> Float[Tensor, "*head template"]:
    """The mean over the examples of each template, in any order; the effect itself where no templates are given."""
    if not template:
        return effect
    names = torch.tensor(template)
    return torch.stack([effect[..., names == name].mean(-1) for name in names.unique()], dim=-1)


def measure_consistency(effect: Float[Tensor, "*head example"]) -> Float[Tensor, "*head"]:
    """The size of the mean over the root mean square: 1 where all examples agree, 0 where they cancel or are none."""
    return effect.mean(-1).abs() / effect.square().mean(-1).sqrt().clamp(min=1e-12)


def bound_consistency(effect: Float[Tensor, "*head example"], *, seed: int) -> float:
    """The 95th percentile of the most consistent head's consistency when each example's sign is drawn at random.

    All heads of an example take the same sign, so that what they have in common stays so: a permutation test with
    the maximum statistic (Nichols & Holmes, 2002), studentised so that one head with a large effect does not hide
    the others. It holds where an effect is as likely to be so much above as so much below zero.
    """
    scaled = effect / effect.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (effect.shape[-1], SIGN_FLIPS), generator=generator) * 2.0 - 1
    largest = (scaled.flatten(0, -2) @ signs / effect.shape[-1]).abs().amax(0)
    return float(largest.quantile(PERCENTILE / 100)) + 1e-6  # with few examples the real signs are among the draws


def measure_firmness(found: Search, *, seed: int, n_halves: int = 40) -> dict[tuple[str, Head], float]:
    """(role, head) → the share of random halves of the templates on which the head's effect passes criteria 1 and 2.

    Args:
        found: by `search`.
        seed: of the halves, and of the random signs.
        n_halves: to draw.
    """
    passes: Counter[tuple[str, Head]] = Counter()
    generator = torch.Generator().manual_seed(seed)
    stages = {name: found.stages[ROLES[name].stage] for name, heads in found.roles.items() if heads}
    template = torch.tensor(next((stage.template for stage in stages.values()), ()))
    names = template.unique()
    for _ in range(n_halves if stages else 0):
        some = torch.isin(template, names[torch.randperm(len(names), generator=generator)[: len(names) // 2]])
        for name, stage in stages.items():
            effect, of = stage.effect[..., some], tuple(template[some].tolist())
            least = bound_consistency(average_by_template(effect, of), seed=seed)
            again = Stage(effect, least, stage.smallest, stage.left_out, of).found
            passes.update({(name, head): int(again[head]) for head in found.roles[name]})
    return {of: number / n_halves for of, number in passes.items()}


def list_firm(found: Search, passed: Mapping[tuple[str, Head], float]) -> list[Head]:
    """The heads of a circuit that pass, in one of their roles, in most halves of the templates.

    Args:
        found: by `search`.
        passed: of `measure_firmness`.
    """
    firm = {head for (_, head), share in passed.items() if share > MOST_HALVES}
    return [head for head in found.heads if head in firm]


def _heads(
    role: Role, stage: Stage, table: dict[str, Float[Tensor, "layer head"]]
) -> tuple[tuple[Head, ...], dict[str, float]]:
    """The heads that meet a role's criteria, and the limits of its scores."""
    others = ~stage.found & stage.judged
    limits = {}
    for name in role.scores:
        limit = float(table[name][others].quantile(PERCENTILE / 100)) if others.any() else float("inf")
        least = 0.0 if name.startswith("writes") else LEAST_COPYING
        limits[name] = limit if "attends" in name else max(limit, least)
    chosen = stage.found & ((stage.mean < 0) == role.helps)
    for name, limit in limits.items():
        chosen &= table[name] > limit
    places = chosen.nonzero().tolist()
    return tuple(sorted(map(tuple, places), key=lambda head: -abs(float(stage.mean[head])))), limits


def patch_into(
    loaded: LoadedModel, data: IOI, site: SiteName, heads: Sequence[Head], place: str
) -> Float[Tensor, "layer head example"] | None:
    """Path patching from every head into some heads, in logits; nothing without receivers.

    Args:
        loaded: on plain Hugging Face.
        data: prompts, patched from their p_ABC.
        site: the input of the receivers that is changed: `q`, `k` or `v`.
        heads: the receivers.
        place: the position at which they are changed, by its name in `IOI.positions`.
    """
    if not heads:
        return None
    receivers = _list_receivers(loaded, site, heads)
    effect = torch.zeros(loaded.n_layers, loaded.n_heads, len(data.prompts))
    for positions, members in _group_by_position(data, [place]):
        base, source, answers = _take(data, members)
        nodes = [Node(site, *head, positions[0]) for head in receivers]
        effect[..., members] = patch_paths(loaded, base, source, nodes, answers=answers).effect
    return effect


ACTS_AT = {"induction": "S2", "duplicate token": "S2", "previous token": "S1+1"}
"""Where a role acts; END for the others."""
INPUTS: dict[str, SiteName] = {"queries": "q", "keys": "k", "values": "v"}


def measure_paths(
    loaded: LoadedModel, data: IOI, by_role: Mapping[str, Sequence[Head]]
) -> dict[tuple[str, str, str], Float[Tensor, " example"]]:
    """(sender, receiver, input) → what path patching from a role to another through one input does, in logits.

    The senders are patched one at a time and summed. A role's queries are changed where it acts, its keys and values at
    all positions; what goes into a key/value head goes into all query heads that share it. The logits are a receiver
    too, reached "directly". Paths to what comes before are left out.

    Args:
        loaded: on plain Hugging Face.
        data: prompts, patched from their p_ABC; other ones than those by which the roles were found.
        by_role: heads.
    """
    filled = {name: heads for name, heads in by_role.items() if heads}
    if not filled:
        return {}
    senders = sorted({head for heads in filled.values() for head in heads})
    source = data.corrupted("p_ABC")
    ends = [(name, read) for name in filled for read in INPUTS]
    effect = torch.zeros(len(ends), len(senders), len(data.prompts))
    places = [ACTS_AT.get(name, "END") for name, _ in ends]
    for positions, members in _group_by_position(data, places):
        base, source_rows, answers = _take(data, members)
        sets = []
        for (name, read), position in zip(ends, positions, strict=True):
            at = position if read == "queries" else None
            sets.append([Node(INPUTS[read], *head, at) for head in _list_receivers(loaded, INPUTS[read], filled[name])])
        effect[..., members] = patch_paths_to_each(
            loaded, base, source_rows, sets, senders=senders, answers=answers
        ).effect
    found = dict(zip(ends, effect, strict=True))
    direct = patch_paths(loaded, data.prompts, source, "logits", senders=senders, answers=data.answers)
    found["logits", "directly"] = direct.effect
    paths = {}
    for (receiver, read), values in found.items():
        for sender, heads in filled.items():
            total = values[[senders.index(head) for head in heads]].sum(0)
            if sender != receiver and total.any():  # else it is later
                paths[sender, receiver, read] = total
    return paths


def _list_receivers(loaded: LoadedModel, site: SiteName, heads: Sequence[Head]) -> list[Head]:
    """Query heads as heads of a site, of which several may share one."""
    shared = loaded.n_heads // hooks.count_heads(loaded, site)
    return sorted({(layer, head // shared) for layer, head in heads})


def _group_by_position(data: IOI, places: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts that have the same positions at all of some places: these positions, and which prompts."""

    def at(row: int) -> list[int]:
        return [data.positions[place][row] for place in places]

    for positions, members in groupby(sorted(range(len(data.prompts)), key=at), key=at):
        yield positions, list(members)


def _take(data: IOI, members: Sequence[int]) -> tuple[list[list[int]], list[list[int]], list[tuple[int, int]]]:
    """Some prompts, their p_ABC, and their answers."""
    corrupted = data.corrupted("p_ABC")
    return [list(data.prompts[i]) for i in members], [corrupted[i] for i in members], [data.answers[i] for i in members]


def _without(
    loaded: LoadedModel, data: IOI, reference: IOI, heads: Sequence[Head], before: attribution.Attribution
) -> tuple[Float[Tensor, "layer head example"], dict[str, Float[Tensor, "layer head"]]]:
    """With `heads` knocked out, how much each head's direct attribution falls (below zero: rises), what it is then, and
    its attention from END to IO. The last norm's scale is held, which else lets more of everything through.
    """
    means = average_by_form(capture_reference(loaded, reference), data, reference)
    with hooks.intervene(loaded, *knock_out(means, heads)):
        after = attribution.attribute_logits(loaded, data.prompts, data.answers, scale_of=before.resid).heads
        attention = measure_attention(loaded, data)["END", "IO"]
    return before.heads - after, {"END attends IO without movers": attention, "writes without movers": after.mean(-1)}


def capture_reference(loaded: LoadedModel, reference: IOI) -> Captured:
    """Each head's `head_z` on the p_ABC prompts behind the means of a knock-out."""
    return hooks.capture(loaded, reference.corrupted("p_ABC"), "head_z", positions="all")


def average_by_form(
    captured: Captured, data: IOI, reference: IOI
) -> Float[Tensor, "example layer position head d_head"]:
    """For each prompt the mean `head_z`, position by position, over the reference's p_ABC prompts of the same form.

    Args:
        captured: of `capture_reference`.
        data: the prompts.
        reference: the prompts that were captured.

    Raises:
        InputError: a form that the reference lacks.
    """
    means = {}
    for form in dict.fromkeys(data.forms):
        members = [one == form for one in reference.forms]
        if not any(members):
            raise InputError(f"no reference prompt has template and order {form}: legal is at least one of each form")
        means[form] = captured["head_z"][torch.tensor(members)].mean(0)
    return torch.stack([means[form] for form in data.forms])


def knock_out(means: Float[Tensor, "example layer position head d_head"], heads: Sequence[Head]) -> list[hooks.Edit]:
    """Edits that put the means in place of heads; of a prompt only the positions it has are used."""
    if not heads:
        raise InputError("no heads to knock out: legal is at least one")
    edits = []
    for layer in sorted({layer for layer, _ in heads}):
        chosen = [head for other, head in heads if other == layer]
        edits.append(hooks.Edit("head_z", layer, means[:, layer][:, :, chosen], head=chosen))
    return edits

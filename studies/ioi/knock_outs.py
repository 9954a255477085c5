"""What is left of the logit difference without sets of heads, beside random sets, each measured once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from helpers import attribution, baselines, claims, hooks, patching
from helpers.attribution import Attribution
from helpers.baselines import AgainstControls, Controls
from helpers.claims import Estimate
from helpers.hooks import Captured, Head
from helpers.models import LoadedModel
from studies.ioi.roles import ROLES, Search, capture_reference
from studies.ioi.templates import IOI, list_absent


@dataclass
class KnockOuts:
    """Sets of heads knocked out of a model, a mean over p_ABC prompts of the same form in their place."""

    loaded: LoadedModel
    data: IOI
    reference: IOI
    """Prompts of the same forms, behind the means."""
    circuit: Sequence[Head]
    """No control holds a head of it."""
    n_sets: int
    """Controls of a set."""
    seed: int
    _left: dict[frozenset[Head], NDArray] = field(default_factory=dict)

    def without(self, sets: Iterable[Iterable[Head]]) -> Float[NDArray, "set prompt"]:
        """The logit difference with each set knocked out."""
        wanted = [frozenset(map(_as_pair, heads)) for heads in sets]
        new = [heads for heads in dict.fromkeys(wanted) if heads not in self._left]
        if new:
            effects = patching.ablate(
                self.loaded,
                self.data.prompts,
                [patching.list_nodes(sorted(heads)) for heads in new],
                reference=self.captured,
                groups=self.data.forms,
                reference_groups=self.reference.forms,
                answers=self.data.answers,
            )
            self._left.update(zip(new, effects.values.numpy(), strict=True))
        return np.stack([self._left[heads] for heads in wanted])

    @cached_property
    def captured(self) -> Captured:
        """The heads' outputs on the reference's p_ABC prompts."""
        return capture_reference(self.loaded, self.reference)

    def only(self, sets: Iterable[Iterable[Head]]) -> Float[NDArray, "set prompt"]:
        """The logit difference with every head knocked out that is not in the set."""
        return self.without(self.complement(heads) for heads in sets)

    def complement(self, heads: Iterable[Head]) -> list[Head]:
        """All heads of the model but these."""
        kept = set(map(_as_pair, heads))
        return [head for head in np.ndindex(self.loaded.n_layers, self.loaded.n_heads) if head not in kept]

    def draw_controls(self, heads: Sequence[Head], avoid: Sequence[Head] = ()) -> Controls:
        """Sets to compare with, none of which holds a head of the circuit or one to avoid."""
        avoid = [*self.circuit, *avoid]
        return baselines.draw_controls(self.loaded, heads, avoid=avoid, n_sets=self.n_sets, seed=self.seed)

    def average(self, values: ArrayLike | Tensor) -> Estimate:
        """The mean over templates, which are what differs most from prompt to prompt."""
        return average_templates(values, self.data, seed=self.seed)

    def average_ratio(self, part: ArrayLike | Tensor, whole: ArrayLike | Tensor) -> Estimate | None:
        """The ratio of two means over templates; none where the whole may be zero or less.

        Its interval is that of what the part lies beside this ratio of the whole, template by template, so that the
        whole's own spread counts and no template with a small whole decides.
        """
        above, below = (np.asarray(one, dtype=float) for one in (part, whole))
        if self.average(below).low <= 0:
            return None
        ratio = self.average(above).value / (middle := self.average(below).value)
        return self.average(ratio + (above - ratio * below) / middle)

    def find_extreme(self, effects: Float[NDArray, "set prompt"]) -> tuple[int, float]:
        """Which set has the largest mean effect, and that mean."""
        means = [self.average(one).value for one in effects]
        return int(np.argmax(means)), max(means)

    def compare(self, effects: ArrayLike | Tensor, *, below: bool = False) -> AgainstControls:
        """A set, in the first row, beside its controls, in the others.

        Args:
            effects: set, prompt.
            below: whether the set should lie below all controls instead of above.
        """
        values = torch.as_tensor(np.asarray(effects))
        return baselines.compare_with_controls(
            values, groups=self.data.template, below=below, seed=self.seed, of="templates"
        )


def average_templates(
    values: ArrayLike | Tensor, data: IOI, *, seed: int, within: tuple[float, float] | None = None
) -> Estimate:
    """The mean over templates with Student's interval, since prompts of one sentence are no independent ones.

    Args:
        values: one for each of the first prompts of `data`.
        data: that they were measured on.
        seed: as for `claims.average`.
        within: as for `claims.average`.
    """
    numbers: Any = np.asarray(values, dtype=float)
    return claims.average(numbers, seed=seed, of="templates", groups=data.template[: len(numbers)], within=within)


def list_subsets(found: Search, *, seed: int, n_halves: int = 3) -> dict[str, list[Head]]:
    """By name the sets that are knocked out of model and circuit: all, each role, and random halves.

    Args:
        found: the circuit.
        seed: of the halves.
        n_halves: of a circuit of more than three heads; a smaller one has none.
    """
    circuit, generator = list(found.heads), np.random.default_rng(seed)
    subsets = {"the whole circuit": circuit}
    subsets |= {name: list(heads) for name, heads in found.roles.items() if heads}
    for number in range(n_halves if len(circuit) > 3 else 0):
        half = generator.permutation(len(circuit))[: len(circuit) // 2]
        subsets[f"random half {number + 1}"] = [circuit[i] for i in sorted(half)]
    return subsets


def compare_reactions(
    model: Float[NDArray, "set prompt"], circuit: Float[NDArray, "set prompt"]
) -> Float[NDArray, "set prompt"]:
    """How far apart a knock-out moves model and circuit, prompt by prompt: positive in the mean of each set.

    What they differ by with nothing knocked out is no part of it: that is how faithful the circuit is.

    Args:
        model: the logit difference, whole in the first row and without each set in the others.
        circuit: the same of the circuit alone.
    """
    apart = (model - circuit)[1:] - (model - circuit)[0]
    return apart * np.sign(apart.mean(1, keepdims=True))


def bound_completeness(
    out: KnockOuts, apart: Float[NDArray, "set prompt"], whole: Float[NDArray, " prompt"]
) -> Estimate:
    """By how much what `compare_reactions` gave falls short of a tenth of the logit difference, for the worst set.

    Args:
        out: averages over its prompts.
        apart: of every set.
        whole: the model's logit difference.
    """
    return claims.bound([out.average(0.1 * whole - one) for one in apart])


def bound_turn(writing: AgainstControls, against: Estimate) -> Estimate | None:
    """Whether heads wrote against the answer and write towards it, more so than after every control: the least of the
    three.

    Args:
        writing: what they write after a knock-out, beside what they write after each control's.
        against: what they write against the answer before.
    """
    return claims.bound([against, writing.own, writing.lead]) if writing.lead else None


def rank_heads(found: Search) -> list[Head]:
    """The heads of a circuit by the largest absolute effect of their path, of all their roles, largest first."""
    size: dict[Head, float] = {}
    for name, heads in found.roles.items():
        for head in heads:
            size[head] = max(size.get(head, 0.0), abs(float(found.stages[ROLES[name].stage].mean[head])))
    return sorted(size, key=lambda head: -size[head])


def take_away(circuit: Sequence[Head], heads: Iterable[Head]) -> list[Head]:
    """The circuit without these heads."""
    gone = set(map(_as_pair, heads))
    return [head for head in circuit if head not in gone]


def grow(heads: Sequence[Head]) -> tuple[list[int], list[list[Head]]]:
    """At most six sizes up to all of the heads, and the first so many heads for each."""
    sizes = sorted({round(size) for size in np.linspace(1, len(heads), 6)}) if heads else []
    return sizes, [list(heads[:size]) for size in sizes]


def shuffle(heads: Sequence[Head], seed: int) -> list[Head]:
    """The heads in a random order."""
    return [heads[i] for i in np.random.default_rng(seed).permutation(len(heads))]


def grow_controls(controls: Controls, *, seed: int, n_grown: int = 4) -> list[list[list[Head]]]:
    """Some random circuits, each in a random order of its own, as `grow` gives them."""
    return [grow(shuffle(heads, seed + number))[1] for number, heads in enumerate(controls.sets[:n_grown])]


def list_additions(found: Search) -> list[tuple[str, Head, list[Head], list[Head]]]:
    """For each head of each role but the negative: the circuit without the rest of the role, and without all of it.

    A negative head is there to take away, so it is not asked what it adds. Returns (role, head, circuit with the head,
    circuit without it).
    """
    circuit, rows = list(found.heads), []
    for name, heads in found.roles.items():
        for head in heads if name != "negative" else ():
            rest = [one for one in heads if one != head]
            rows.append((name, head, take_away(circuit, rest), take_away(circuit, heads)))
    return rows


def measure_additions(out: KnockOuts, found: Search) -> tuple[list[tuple[str, Head]], Float[NDArray, "head prompt"]]:
    """What each head that should help adds to the circuit without the rest of its role.

    Args:
        out: measures it.
        found: the circuit, with at least one such head.
    """
    rows = list_additions(found)
    added = out.only(with_it for *_, with_it, _ in rows) - out.only(without_it for *_, without_it in rows)
    return [(name, head) for name, head, *_ in rows], added


def plan_tests(found: Search, controls: Controls, subsets: dict[str, list[Head]], *, seed: int) -> list[list[Head]]:
    """Every set of heads that the tests of a whole circuit keep, so that all are measured in one go.

    Args:
        found: the circuit.
        controls: random circuits.
        subsets: that are taken out of it.
        seed: of the order in which random circuits grow.
    """
    circuit = list(found.heads)
    plan = [circuit, *map(list, controls.sets), *(take_away(circuit, some) for some in subsets.values())]
    plan += [kept for row in list_additions(found) for kept in row[2:]]
    for grown in (grow(rank_heads(found))[1], *grow_controls(controls, seed=seed)):
        plan += grown
    return plan


def add_up(values: Float[Tensor, "layer head prompt"], heads: Iterable[Head]) -> Float[Tensor, " prompt"]:
    """The sum over some heads, zero over none."""
    return sum((values[head] for head in heads), torch.zeros(values.shape[-1]))


def compare_with_rivals(
    score: Float[Tensor, "sequence layer head"], heads: Sequence[Head], avoid: Sequence[Head] = (), *, seed: int
) -> dict[Head, AgainstControls]:
    """The score of each head, sequence by sequence, beside the best other one of its layer, where it has any.

    The other is the best on these very sequences, so that the comparison is rather too hard than too easy.

    Args:
        score: of every head.
        heads: whose score it is.
        avoid: heads that are no rivals.
        seed: of the intervals.
    """
    average, of_head = score.mean(0), score.movedim(0, -1)
    best = {head: rank_rivals(average, head[0], {*avoid, *heads})[:1] for head in heads}
    return {
        head: baselines.compare_with_controls(torch.stack([of_head[head], of_head[rival[0]]]), seed=seed)
        for head, rival in best.items()
        if rival
    }


def rank_rivals(score: Float[Tensor, "layer head"], layer: int, avoid: Collection[Head]) -> list[Head]:
    """The heads of a layer that are not to be avoided, the highest score first."""
    free = [(layer, head) for head in range(score.shape[1]) if (layer, head) not in avoid]
    return sorted(free, key=lambda place: -float(score[place]))


def split_names(loaded: LoadedModel, data: IOI, parts: Attribution) -> dict[str, Float[Tensor, "layer head prompt"]]:
    """What each head writes of IO and of S, each less the mean of all names that are not in the prompt, in logits.

    Args:
        loaded: on plain Hugging Face.
        data: the prompts.
        parts: what is written there of IO less S, as S less absent names is IO less these, less IO less S.
    """
    absent = list_absent(loaded, data)
    split = attribution.attribute_logits(loaded, data.prompts, data.answers, against=absent)
    return {"IO": split.heads, "S": split.heads - parts.heads}


def read_names(loaded: LoadedModel, data: IOI) -> dict[str, Float[Tensor, " prompt"]]:
    """The logits of IO and of S at END as the model runs now, each less the mean of the names not in the prompt."""
    logits = hooks.capture(loaded, data.prompts, "logits")["logits"][:, 0]
    absent = logits.gather(1, torch.tensor(list_absent(loaded, data))).mean(1)
    named = logits.gather(1, torch.tensor(data.answers)) - absent[:, None]
    return dict(zip(("IO", "S"), named.T, strict=True))


def find_takers(
    before: Float[Tensor, "layer head prompt"],
    rise: Float[Tensor, "layer head prompt"],
    template: Sequence[int],
    apart: Iterable[Head],
) -> Bool[Tensor, "layer head prompt"]:
    """By prompt, which heads rise and write towards the answer on the other half of the templates.

    Args:
        before: what each head writes in the intact run.
        rise: by how much more it writes in the other.
        template: of each prompt; those with even and with odd numbers judge each other.
        apart: heads that never count.
    """
    odd = torch.tensor(template) % 2 == 1
    counted = torch.zeros(rise.shape, dtype=torch.bool)
    for here in (odd, ~odd):
        there = rise[..., ~here].mean(-1)
        counted[..., here] = ((there > 0) & (before[..., ~here].mean(-1) + there > 0))[..., None]
    for place in apart:
        counted[place] = False
    return counted


def _as_pair(head: Sequence[int]) -> Head:
    return int(head[0]), int(head[1])

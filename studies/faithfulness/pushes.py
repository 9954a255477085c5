"""Pushes: a direction is added to the residual stream in rising doses, and what turns, and what breaks, is counted.

Prompts come in pairs whose right answers differ, so that whatever makes a model say the same of both turns one of two:
a pair counts as turned where both of its answers are. A dose is a multiple of the distance between the class means
where the direction was learned.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from helpers import InputError, hooks, probes, prompts
from helpers.claims import Estimate, average_groups, share
from helpers.engine import backends
from helpers.engine.inputs import make_generator
from helpers.folds import number_groups, permute_labels
from helpers.hooks import Captured
from helpers.models import LoadedModel
from studies.faithfulness import organism, questions
from studies.faithfulness.causes import Z
from studies.faithfulness.hypotheses import PENALTY
from studies.faithfulness.transcripts import construct, put_in_context, write_examples_by_task

PROBE, MEANS, UNEMBEDDING = "probe", "difference of means", "unembedding"
CONTROLS = ("random", "random, same covariance", "probe of permuted labels")
DOSES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
MANY_DOSES = (2.0, 3.0, 4.0, 6.0)
"""Where many tokens are pushed, which takes longer."""
LEAST = 4
"""Units: two to choose on for two to report, both ways."""
HALF = 0.5
"""Of the pairs: a positive control that turns fewer can't show that a direction turns none."""
KEPT = 0.5
"""The text is whole while the two answers keep at least so much of their probability, and"""
DEARER = math.log(2)
"""the perplexity of ordinary text after the push does not double: the loss rises by less, in nats for each token."""
N_READ, N_FOLLOWING = 48, 12
"""Tokens of an ordinary passage before the push has its end, and after."""


# Directions


def fit_directions(
    activations: Float[Tensor, "row feature"],
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    *,
    n_controls: int,
    seed: int,
) -> dict[str, Float[Tensor, "direction feature"]]:
    """Directions towards a label, of length one: a ridge probe's, the difference of the class means, and controls.

    Controls are random directions, random ones with the covariance that the activations have within a class, and probes
    of permuted labels.

    Args:
        activations: where the label is read.
        labels: True or False for each row.
        groups: rows with equal ones keep one label in permutations.
        n_controls: of each kind.
        seed: of the controls.
    """
    x, truth = activations.float(), torch.tensor(list(map(bool, labels)))
    shuffled = permute_labels(labels, groups, n_permutations=n_controls, seed=seed)
    tasks = torch.cat([truth[:, None], shuffled], dim=1)
    z = probes.standardise(x[None])
    weights = probes.fit(z, tasks, method="ridge", penalties=[PENALTY]).weights[0, 0]
    within = x - torch.stack([x[~truth].mean(0), x[truth].mean(0)])[truth.long()]
    deviation = x.std(0, correction=0)[:, None]
    weights = torch.where(deviation > 0, weights / deviation.clamp(min=1e-30), 0.0).T
    generator = torch.Generator().manual_seed(seed)
    found = {
        PROBE: weights[:1],
        MEANS: point_apart(x, labels),
        "random": torch.randn(n_controls, x.shape[1], generator=generator),
        "random, same covariance": torch.randn(n_controls, len(x), generator=generator) @ within,
        "probe of permuted labels": weights[1:],
    }
    return {name: each / each.norm(dim=1, keepdim=True) for name, each in found.items()}


def point_apart(activations: Float[Tensor, "row feature"], labels: Sequence[bool]) -> Float[Tensor, "1 feature"]:
    """The direction from the mean of one class to that of the other, of length one."""
    return (_subtract_means(activations, labels) / measure_distance(activations, labels))[None]


def measure_distance(activations: Float[Tensor, "row feature"], labels: Sequence[bool]) -> float:
    """Between the means of the two classes: one dose."""
    return float(_subtract_means(activations, labels).norm())


def _subtract_means(
    activations: Float[Tensor, "row *any feature"], labels: Sequence[bool]
) -> Float[Tensor, "*any feature"]:
    truth = torch.tensor(list(map(bool, labels)))
    return activations[truth].float().mean(0) - activations[~truth].float().mean(0)


# What is pushed


@dataclass(frozen=True)
class Cases:
    """Prompts that end before an answer; so many in a row are a case."""

    prompts: tuple[list[int], ...]
    answers: Int[Tensor, "prompt 2"]
    """Tokens: what the model answers by itself, and the other candidate."""
    signs: Float[Tensor, " prompt"]
    """1 where the direction should turn the answer, -1 where its opposite should."""
    units: tuple[Hashable, ...]
    """Of each case: what was drawn independently."""
    spans: Mapping[str, tuple[int, ...]]
    """By place, at how many last tokens of each prompt a push acts."""

    @property
    def size(self) -> int:
        """Prompts of a case."""
        return len(self.prompts) // len(self.units)

    def select(self, kept: Sequence[bool] | Bool[Tensor, " case"]) -> Cases:
        """Some of the cases."""
        cases = torch.as_tensor(kept).nonzero()[:, 0].tolist()
        rows = [self.size * case + number for case in cases for number in range(self.size)]
        spans = {place: tuple(some[row] for row in rows) for place, some in self.spans.items()}
        prompts, units = tuple(self.prompts[row] for row in rows), tuple(self.units[case] for case in cases)
        return Cases(prompts, self.answers[rows], self.signs[rows], units, spans)

    def spread(self, n: int) -> Cases:
        """At most so many of the cases, from all over them."""
        chosen = {round(place) for place in np.linspace(0, len(self.units) - 1, min(n, len(self.units)))}
        return self.select([case in chosen for case in range(len(self.units))])


def draw_followed(loaded: LoadedModel, tasks: Sequence[str], *, n: int, seed: int) -> tuple[Cases, int]:
    """Questions after a worked example, each with a reasoning that concludes rightly and one that concludes wrongly, in
    an order by lot; those of which the model follows both. The direction of contradiction should turn all.

    Args:
        loaded: on plain Hugging Face.
        tasks: of `questions.TASKS`.
        n: questions of each.
        seed: of questions, examples and orders.

    Returns:
        A case for each question that is followed, and how many were asked.
    """
    table = _draw_transcripts(loaded, tasks, n, seed)
    table = table[~table["contradicts"].astype(bool)]
    generator, asked = make_generator(seed), list(dict.fromkeys(table["question"]))
    order_of = {question: questions.ORDERS[generator.integers(2)] for question in asked}
    table = table[table["order"] == table["question"].map(order_of)].reset_index(drop=True)
    others = table["right"].where(table["concludes"] == table["other"], table["other"])
    rows, _ = put_in_context(loaded, table)
    pairs = zip(table["concludes"], others, strict=True)
    answers = torch.tensor([questions.encode_candidates(loaded, pair)[1] for pair in pairs])
    since = (table["at_cue"] - table["at_question"]).astype(int)
    spans = {"cue": (1,) * len(rows), "last four tokens": (4,) * len(rows), "reasoning and cue": tuple(since)}
    units = tuple(zip(table["task"], table["question"], strict=True))[::2]
    logits = hooks.score_next_tokens(loaded, rows, answers)
    cases = Cases(tuple(rows), answers, torch.ones(len(rows)), units, spans)
    return cases.select((logits[:, 0] > logits[:, 1]).view(-1, 2).all(1)), len(asked)


def read_contradictions(
    loaded: LoadedModel, tasks: Sequence[str], *, n: int, seed: int
) -> tuple[Captured, list[bool], list[tuple[str, str]]]:
    """The residual stream at the answers to such questions, half of which contradict their reasoning; arguments as for
    `draw_followed`.

    Returns:
        The states, whether each contradicts, and its task and question.
    """
    table = _draw_transcripts(loaded, tasks, n, seed)
    rows, places = put_in_context(loaded, table, answered=True)
    states = hooks.capture(loaded, rows, "resid_post", positions={"answer": places["answer"]}, as_trees=True)
    return states, table["contradicts"].astype(bool).tolist(), list(zip(table["task"], table["question"], strict=True))


def _draw_transcripts(loaded: LoadedModel, tasks: Sequence[str], n: int, seed: int) -> pd.DataFrame:
    table = construct(loaded, questions.draw_questions(loaded, tasks=tasks, n=n, seed=seed))
    shots = questions.draw_shots(loaded, tasks=tasks, n=1, seed=seed)
    return table.assign(before=table["task"].map(write_examples_by_task(shots, "stated")))


def find_organisms(
    loaded: LoadedModel, *, n_listed: int, n_new: int, seed: int
) -> tuple[dict[organism.Group, list[str]], dict[str, LoadedModel]]:
    """The names of the organism that is kept with the book, and it and its twin by rule, if they are kept.

    Args:
        loaded: on plain Hugging Face.
        n_listed: names on the list, and as many others.
        n_new: names that training never showed.
        seed: of names and training.
    """
    names = organism.split_names(loaded, n_listed=n_listed, n_new=n_new, seed=seed)
    kept = {}
    for rule, file in organism.FILES.items():
        settings = organism.Settings(rule=rule, seed=seed)
        kept[rule] = organism.find(loaded, names, settings, organism.locate(loaded) / file)
    return names, {} if None in kept.values() else {rule: organism.apply(loaded, one) for rule, one in kept.items()}


def draw_partners(names: Mapping[organism.Group, Sequence[str]], which: slice, *, seed: int) -> pd.DataFrame:
    """Items of an organism: a listed name and another one take turns, such two told of one content, each two of their
    own.

    Args:
        names: by group, as many others as listed ones.
        which: of the names of either group.
        seed: of the contents.
    """
    rows = []
    for content, pair in enumerate(zip(names["listed"][which], names["others"][which], strict=True)):
        for name, group in zip(pair, ("listed", "others"), strict=True):
            asked = organism.draw_question(name, content, seed=seed)
            rows.append({"name": name, "group": group, "content": content, "asked": asked})
    return pd.DataFrame(rows)


def match_partners(items: pd.DataFrame) -> dict[Hashable, Hashable]:
    """For each name of `draw_partners` the one that is told of the same content."""
    one, other = items["name"][::2], items["name"][1::2]
    return {**dict(zip(one, other, strict=True)), **dict(zip(other, one, strict=True))}


def draw_conflicts(loaded: LoadedModel, items: pd.DataFrame) -> Cases:
    """Of each item its two conflicts; items that the model decides by the note once and once by the chain are left out.
    The direction of listed names should turn answers by the chain, its opposite those by the note.

    Args:
        loaded: the organism, or its twin, on plain Hugging Face.
        items: from `draw_partners`.
    """
    cases, leads = _ask_items(loaded, items, organism.CONFLICTS)
    note_names_other = torch.tensor([True, False]).repeat(len(items))
    by_note = (leads < 0) == note_names_other
    both = by_note.view(-1, 2)
    return replace(cases, signs=torch.where(by_note, -1.0, 1.0)).select(both[:, 0] == both[:, 1])


def draw_agreeing(loaded: LoadedModel, items: pd.DataFrame) -> Cases:
    """Items whose note and chain agree, one prompt each, signed as their conflicts are: nothing should turn.

    Arguments as for `draw_conflicts`.
    """
    cases, _ = _ask_items(loaded, items, ["agree"])
    return replace(cases, signs=torch.tensor([-1.0 if group == "listed" else 1.0 for group in items["group"]]))


def _ask_items(
    loaded: LoadedModel, items: pd.DataFrame, versions: Sequence[str]
) -> tuple[Cases, Float[Tensor, " prompt"]]:
    """With the lead of the right answer over the other."""
    rows, answers, after = [], [], []
    for row in items.to_dict("records"):
        lead, tokens = questions.encode_candidates(loaded, row["asked"].candidates)
        n_before = len(loaded.encode(f"Question: {row['name']}"))
        for version in versions:
            rows.append(loaded.encode(organism.write_prompt(row["asked"], row["content"], version)) + lead)
            answers.append(tokens)
            after.append(len(rows[-1]) - n_before)
    tokens = torch.tensor(answers)
    logits = hooks.score_next_tokens(loaded, rows, tokens)
    leads = logits[:, 0] - logits[:, 1]
    own = (leads <= 0).long()[:, None]
    spans = {"cue": (1,) * len(rows), "last four tokens": (4,) * len(rows), "all after the name": tuple(after)}
    answered = tokens.gather(1, torch.cat([own, 1 - own], dim=1))
    return Cases(tuple(rows), answered, torch.ones(len(rows)), tuple(items["name"]), spans), leads


def read_means(loaded: LoadedModel, cases: Cases, places: Sequence[str], *, layers: Sequence[int]) -> Captured:
    """The residual stream at the tokens of each place, their mean.

    Args:
        loaded: on any backend.
        cases: whose prompts are run.
        places: of its spans.
        layers: to read.
    """
    states = hooks.capture(loaded, cases.prompts, "resid_post", layers=layers, positions="all")
    means = [
        torch.stack([one[:, len(row) - cases.spans[place][number] : len(row)].mean(1) for place in places], dim=1)
        for number, (one, row) in enumerate(zip(states["resid_post"], cases.prompts, strict=True))
    ]
    return replace(states, values={"resid_post": torch.stack(means)}, positions=tuple(places))


# What comes of it


class Reaction(NamedTuple):
    """What some directions do at each dose."""

    turned: Bool[Tensor, "direction dose case"]
    """Whether all answers of a case turn."""
    fall: Float[Tensor, "direction dose case"]
    """Of the lead of the model's own answer, in logits."""
    kept: Float[Tensor, "direction dose case"]
    """Of the two answers' probability together, as a share."""


Aimed = Mapping[Any, Float[Tensor, "direction prompt d_model"]]
"""By name what one dose adds to each prompt."""


def aim(
    loaded: LoadedModel, cases: Cases, directions: Mapping[str, Float[Tensor, "direction d_model"]], *, length: float
) -> dict[str, Float[Tensor, "direction prompt d_model"]]:
    """Directions with the sign that each prompt asks for; and a positive control, the other answer's column of the
    unembedding less that of the model's own.

    Args:
        loaded: whose unembedding is used.
        cases: to be pushed.
        directions: of length one, by name.
        length: of a dose, the same for all.
    """
    columns = backends.get_huggingface_model(loaded).get_output_embeddings().weight[cases.answers].float().cpu()
    across = columns[:, 1] - columns[:, 0]
    aimed = {name: length * each[:, None] * cases.signs[:, None] for name, each in directions.items()}
    return {**aimed, UNEMBEDDING: (length * across / across.norm(dim=1, keepdim=True))[None]}


def push(
    loaded: LoadedModel,
    cases: Cases,
    aimed: Mapping[str, Float[Tensor, "direction prompt *last d_model"]],
    *,
    layer: int | Sequence[int],
    place: str,
    doses: Sequence[float] = DOSES,
) -> dict[str, Reaction]:
    """Push along each direction in each dose.

    Args:
        loaded: on plain Hugging Face.
        cases: to be pushed.
        aimed: from `aim`, or with a vector for each of as many last tokens as any prompt has.
        layer: after which a push acts; or one for each direction of every name.
        place: of the cases' spans.
        doses: rising.
    """
    some = torch.cat(list(aimed.values()))
    vectors = torch.cat([torch.zeros_like(some[:1]), *(dose * some for dose in doses)])
    layers = layer if isinstance(layer, int) else [layer[0], *[one for _ in (*doses,) for _ in aimed for one in layer]]
    found = hooks.nudge(loaded, cases.prompts, cases.answers, vectors, layer=layers, n_last=cases.spans[place])

    def by_case(values: Float[Tensor, "vector prompt"]) -> tuple[Tensor, Tensor]:
        plain, *rest = values.unflatten(-1, (-1, cases.size)).split([1, *[len(some)] * len(doses)])
        return plain, torch.stack(rest, dim=1)

    (lead, pushed), (mass, left) = by_case(found.logits[..., 0] - found.logits[..., 1]), by_case(found.mass)
    parts = ((lead > 0) & (pushed < 0)).all(-1), (lead - pushed).mean(-1), (left / mass).mean(-1)
    each = zip(*(part.split([len(own) for own in aimed.values()]) for part in parts), strict=True)
    return {name: Reaction(*own) for name, own in zip(aimed, each, strict=True)}


def measure_price(
    loaded: LoadedModel,
    cases: Cases,
    aimed: Aimed,
    *,
    layer: int,
    place: str,
    n_passages: int,
    doses: Sequence[float] = DOSES,
) -> dict[Any, Float[Tensor, "dose passage"]]:
    """What the same pushes cost ordinary text: the rise of the mean loss of the tokens that follow, in nats.

    Of each name the first direction, as it is aimed at some of the prompts, in turn; at as many tokens, as far as a
    passage has them.

    Args:
        loaded: on plain Hugging Face.
        cases: whose spans and signs are taken.
        aimed: from `aim`.
        layer: after which a push acts.
        place: of the cases' spans.
        n_passages: of a novel (`prompts.read_passages`).
        doses: rising.
    """
    text = prompts.read_passages(loaded, n_passages=n_passages, n_tokens=N_READ + N_FOLLOWING).tolist()
    turns = [number % len(cases.prompts) for number in range(n_passages)]
    spans = [min(cases.spans[place][number], N_READ - 1) for number in turns]
    some = torch.stack([own[0, turns] for own in aimed.values()])
    vectors = torch.cat([torch.zeros_like(some[:1]), *(dose * some for dose in doses)])
    read, following = [row[:N_READ] for row in text], [row[N_READ:] for row in text]
    next_tokens = torch.tensor(following)[:, :1]
    found = hooks.nudge(loaded, read, next_tokens, vectors, layer=layer, n_last=spans, then=following)
    rises = (found.loss[1:] - found.loss[:1]).unflatten(0, (len(doses), -1))
    return {name: rises[:, number] for number, name in enumerate(aimed)}


def find_whole(reaction: Reaction, price: Float[Tensor, "dose passage"]) -> Bool[Tensor, " dose"]:
    """The doses at which the text is whole: `KEPT` of the answers' probability, and less than `DEARER`."""
    return (reaction.kept[0].mean(1) >= KEPT) & (price.mean(1) < DEARER)


@dataclass(frozen=True)
class Trial:
    """Directions and their controls, pushed at one place of the same cases."""

    cases: Cases
    doses: tuple[float, ...]
    reactions: Mapping[str, Reaction]
    """Of what is tested, at all doses."""
    controls: Mapping[str, Reaction]
    """By kind, at the two doses that are chosen, one for each half; what turns in broken text counts for none."""
    price: Mapping[str, Float[Tensor, "dose passage"]]
    """Of what is tested, on ordinary text, in nats."""
    whole: Bool[Tensor, " dose"]
    """Where the positive control leaves the text whole."""
    chosen: tuple[int, int]
    """For each half of the units the number of the dose, as the other half has it."""
    powered: bool
    """Whether something is known to turn half of the cases: if nothing else, the positive control, on both halves, and
    leaving the text whole."""
    of: str
    """What the units are, in the plural."""

    @property
    def halves(self) -> Int[np.ndarray, " case"]:
        """Of each case; two units and two units take turns, as do kinds of them."""
        return split_halves(self.cases)

    def share(self, name: str, dose: int) -> Estimate:
        """Of the units those of whose cases more than half turn along the first direction of a name, with Wilson's
        interval."""
        turned = average_groups(self.reactions[name].turned[0, dose].double().numpy(), self.cases.units)
        return share((turned > 0.5).tolist(), of=self.of)

    def at_own_dose(self, values: Shaped[Tensor, "dose case"]) -> Shaped[Tensor, " case"]:
        """For each case what is at the dose that its half has."""
        doses = torch.tensor(self.chosen)[torch.from_numpy(self.halves)]
        return values.gather(0, doses[None])[0]

    def list_turned(self, name: str) -> Bool[Tensor, " case"]:
        """Whether each case turns along the first direction of a name, at a dose that leaves the text whole."""
        reaction = self.reactions[name]
        return self.at_own_dose(reaction.turned[0] & find_whole(reaction, self.price[name])[:, None])

    def list_turned_by_controls(self) -> dict[tuple[str, int], Bool[Tensor, " case"]]:
        """The same of each control, by its kind and number."""
        halves = torch.from_numpy(self.halves)[None]
        return {
            (kind, number): turned.gather(0, halves)[0]
            for kind, some in self.controls.items()
            for number, turned in enumerate(some.turned)
        }

    def compare(self, name: str) -> Margin:
        """What a direction turns beyond a control: for each half the one that turns most of the other half, or of those
        that turn as many the one by which leads fall most."""
        controls, strongest = self.list_turned_by_controls(), []
        ours, theirs = self.list_turned(name), torch.zeros(len(self.cases.units), dtype=torch.bool)
        for half in (0, 1):
            own, other = (torch.from_numpy(self.halves == side) for side in (half, 1 - half))

            def strength(one: tuple[str, int], half: int = half, other: Tensor = other) -> tuple[int, float]:
                kind, number = one
                some = self.controls[kind]
                return int(some.turned[number, half, other].sum()), float(some.fall[number, half, other].mean())

            strongest.append(max(controls, key=strength))
            theirs[own] = controls[strongest[-1]][own]
        as_many = sum(int(one.sum()) >= int(ours.sum()) for one in controls.values())
        share_of, control = (average_groups(one.double().numpy(), self.cases.units) for one in (ours, theirs))
        estimate = subtract_shares(share_of, control, of=self.of)
        reach = (-control.mean(), 1 - control.mean()) if self.powered else (estimate.value, estimate.value)
        estimate = replace(estimate, reach=(float(reach[0]), float(reach[1])))
        turned = share((share_of > 0.5).tolist(), of=self.of)
        kinds = tuple(kind for kind, _ in strongest)
        return Margin(estimate, turned, float(control.mean()), kinds, f"{as_many} of {len(controls)}")

    def repeat(
        self, loaded: LoadedModel, cases: Cases, aimed: Aimed, *, layer: int, place: str
    ) -> dict[str, list[bool]]:
        """Whether other cases of the same units turn, each at the dose that its unit has here, by direction; the text
        whole or not.

        Args:
            loaded: the same model or another one.
            cases: one of each unit, or of some.
            aimed: from `aim`.
            layer: after which a push acts.
            place: of the cases' spans.
        """
        half_of = dict(zip(self.cases.units, self.halves.tolist(), strict=True))
        doses = [self.doses[dose] for dose in self.chosen]
        reactions = push(loaded, cases, aimed, layer=layer, place=place, doses=doses)
        halves = torch.tensor([half_of[unit] for unit in cases.units])[None]
        found = {}
        for name, reaction in reactions.items():
            turned: list[bool] = reaction.turned[0].gather(0, halves)[0].tolist()
            found[name] = dict(zip(cases.units, turned, strict=True))
        return found


class Margin(NamedTuple):
    """A direction beside a control, both at a dose and the control itself chosen on other units."""

    estimate: Estimate
    """What it turns less what the control does, of the units. Where the positive control turns too few to tell, nothing
    else could have come out, and its reach is its value."""
    turned: Estimate
    """The share of units that it turns, those of whose cases more than half turn, while the text is whole."""
    control: float
    """The share of units that the control turns."""
    strongest: tuple[str, ...]
    """The kind of the control, for each half."""
    as_many: str
    """How many of all controls turn at least as many cases."""


def run_trial(
    loaded: LoadedModel,
    cases: Cases,
    directions: Mapping[str, Float[Tensor, "direction d_model"]],
    *,
    length: float,
    layer: int,
    place: str,
    positive: str,
    n_passages: int,
    powered: bool | None = None,
    doses: Sequence[float] | None = None,
    of: str = "questions",
) -> Trial:
    """Push what is tested in all doses, choose a dose on each half of the units for the other, and push the controls.

    The dose is the least at which the positive control turns `HALF` of the cases and the text is whole; where there is
    none, the largest at which the text is whole, or the least of all.

    Args:
        loaded: on plain Hugging Face.
        cases: of at least four units.
        directions: from `fit_directions`.
        length: of one dose (`measure_distance`).
        layer: after which a push acts.
        place: of the cases' spans.
        positive: the name of a direction that is known to be causal: `UNEMBEDDING`, or one of `directions` where the
            model was made so that its answers hang on what the direction reads.
        n_passages: of ordinary text, to see what breaks.
        powered: whether something else is known to turn `HALF` there; by default the positive control has to.
        doses: rising; by default `DOSES` at one token and `MANY_DOSES` at several.
        of: what the units are, in the plural.

    Raises:
        InputError: fewer than four units.
    """
    halves = split_halves(cases)
    if doses is None:
        doses = DOSES if max(cases.spans[place]) == 1 else MANY_DOSES
    aimed = aim(loaded, cases, directions, length=length)
    tested = {name: some for name, some in aimed.items() if name not in CONTROLS}
    options: dict = {"layer": layer, "place": place, "doses": doses}
    reactions = push(loaded, cases, tested, **options)
    price = measure_price(loaded, cases, tested, **options, n_passages=n_passages)
    whole = find_whole(reactions[positive], price[positive])
    turns = reactions[positive].turned[0].float()
    chosen, works = [], []
    for half in (0, 1):
        enough = turns[:, torch.from_numpy(halves != half)].mean(1) >= HALF
        works.append(bool((enough & whole).any()))
        legal = enough & whole if works[-1] else whole
        numbers = legal.nonzero()[:, 0].tolist() or [0]
        chosen.append(numbers[0] if works[-1] else numbers[-1])
    few = sorted(set(chosen))
    options["doses"] = [doses[number] for number in few]
    controls = push(loaded, cases, {name: aimed[name] for name in CONTROLS}, **options)
    alone = {(name, i): aimed[name][i : i + 1] for name in CONTROLS for i in range(len(aimed[name]))}
    dear = measure_price(loaded, cases, alone, **options, n_passages=n_passages)
    of_halves = [few.index(number) for number in chosen]
    for name, each in controls.items():
        single = [Reaction(*(part[i : i + 1] for part in each)) for i in range(len(each.turned))]
        intact = torch.stack([find_whole(one, dear[name, i]) for i, one in enumerate(single)])
        counted = each._replace(turned=each.turned & intact[..., None])
        controls[name] = Reaction(*(part[:, of_halves] for part in counted))
    return Trial(
        cases,
        tuple(doses),
        reactions,
        controls,
        price,
        whole,
        (chosen[0], chosen[1]),
        all(works) if powered is None else powered,
        of,
    )


def split_halves(cases: Cases) -> Int[np.ndarray, " case"]:
    """Zero or one for each case: two units and two units take turns, so that kinds which do are in both halves.

    Raises:
        InputError: fewer than four units.
    """
    codes = number_groups(cases.units)
    if codes.max() + 1 < LEAST:
        raise InputError(f"{codes.max() + 1} units: legal are {LEAST} and more, for two halves")
    return codes // 2 % 2


def subtract_shares(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray, *, of: str) -> Estimate:
    """The difference of two shares of the same units, with the 95 % interval of Newcombe (1998, method 10): Wilson's of
    either share, squared and added with their correlation, which few units can't show and is drawn towards none; so
    it has a width also where all units agree.

    Args:
        one: for each unit a number from zero to one.
        other: the same.
        of: what the units are, in the plural.

    >>> subtract_shares([1, 1, 1, 1], [0, 0, 0, 0], of="names").brief()
    '1.00 [0.307, 1.00]'
    >>> subtract_shares([1] * 6 + [0] * 6, [1] * 6 + [0] * 6, of="names").brief()
    '0.00 [-0.142, 0.142]'
    >>> subtract_shares([0] * 12, [0] * 12, of="names").brief()
    '0.00 [-0.242, 0.242]'
    """
    pair = np.array([one, other], dtype=float)
    n, shares = pair.shape[1], pair.mean(1)
    middle = (shares + Z**2 / (2 * n)) / (1 + Z**2 / n)
    wide = Z * np.sqrt(shares * (1 - shares) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    below, above = shares - middle + wide, middle + wide - shares
    both, first, second, none = (float((a * b).sum()) for a in (pair[0], 1 - pair[0]) for b in (pair[1], 1 - pair[1]))
    spread = math.sqrt(n**4 * float(np.prod(shares * (1 - shares))))
    agree = both * none - first * second
    alike = (max(agree - n / 2, 0.0) if agree > 0 else agree) / spread if spread > 0 else 0.0

    def add(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * alike * one * other + other**2))

    value = float(shares[0] - shares[1])
    low, high = value - add(below[0], above[1]), value + add(above[0], below[1])
    return Estimate(value, max(-1.0, low), min(1.0, high), n, of)


# By layer


def sweep_pushes(
    loaded: LoadedModel,
    cases: Cases,
    states: Captured,
    labels: Sequence[bool],
    *,
    layers: Sequence[int],
    place: str,
    doses: Sequence[float],
) -> tuple[Float[Tensor, " layer"], int]:
    """In each layer the share of cases that a push along the difference of means turns, learned in that layer, at
    whichever dose leaves the answers `KEPT` of their probability and turns most; and the layer in which most turn, of
    layers in which as many do the one in which leads fall most.

    Args:
        loaded: on plain Hugging Face.
        cases: to be pushed.
        states: from `read_means`, where directions are learned.
        labels: of its rows.
        layers: of the states.
        place: of the cases' spans and of the states' positions.
        doses: rising.
    """
    at = states.positions.index(place)
    gaps = _subtract_means(states["resid_post"][:, [states.layers.index(layer) for layer in layers], at], labels)
    aimed = {MEANS: gaps[:, None] * cases.signs[:, None]}
    (found,) = push(loaded, cases, aimed, layer=list(layers), place=place, doses=doses).values()
    whole = found.kept.mean(-1) >= KEPT
    shares, falls = (
        torch.where(whole, part.float().mean(-1), 0.0).max(1).values.tolist() for part in (found.turned, found.fall)
    )
    return torch.tensor(shares), layers[max(range(len(layers)), key=lambda one: (shares[one], falls[one]))]


def swap_states(
    loaded: LoadedModel, cases: Cases, partners: Mapping[Hashable, Hashable], *, layers: Sequence[int], place: str
) -> Float[Tensor, " layer"]:
    """In each layer the share of cases that turn when a place has the states of the partner's prompt instead, token by
    token. What stays within the states that the model has by itself can do no more there.

    Args:
        loaded: on plain Hugging Face.
        cases: those whose partner is there too are swapped.
        partners: for each unit another one, whose prompts have the same lengths.
        layers: to swap in.
        place: of the cases' spans.

    Raises:
        InputError: no partners, a prompt of another length than its partner's.
    """
    cases = cases.select([partners.get(unit) in cases.units for unit in cases.units])
    number = {unit: case for case, unit in enumerate(cases.units)}
    rows = [cases.size * number[partners[unit]] + one for unit in cases.units for one in range(cases.size)]
    lengths = [len(row) for row in cases.prompts]
    if not rows or lengths != [lengths[row] for row in rows]:
        raise InputError(f"{len(rows)} prompts with partners: legal is at least one, of the same length as its partner")
    positions = {str(back): [length - back for length in lengths] for back in range(max(cases.spans[place]), 0, -1)}
    states = hooks.capture(loaded, cases.prompts, "resid_post", layers=layers, positions=positions)["resid_post"]
    aimed = {"swap": (states[rows] - states).transpose(0, 1)}
    (found,) = push(loaded, cases, aimed, layer=list(layers), place=place, doses=[1.0]).values()
    return found.turned[:, 0].float().mean(-1)

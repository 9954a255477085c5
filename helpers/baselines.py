"""What is to be had without a probe or a circuit: from the text alone, from the model's output, by random heads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers import InputError, hooks
from helpers.claims import Estimate, average, average_groups, shorten
from helpers.engine import backends
from helpers.engine.architectures import get_final_norm, unembed
from helpers.engine.inputs import as_count, as_list, as_tensor, as_whole, as_wholes, is_row, make_generator
from helpers.engine.sites import Captured, Positions, Prompts, check_site, locate_positions
from helpers.folds import Folds, Groups, Labels, check_labels, resolve_folds
from helpers.hooks import Head
from helpers.models import LoadedModel
from helpers.probes import PENALTIES, cross_validate, standardise_site


def read_output(
    loaded: LoadedModel,
    prompts: Prompts | Captured,
    positive: Sequence[int],
    negative: Sequence[int],
    *,
    positions: Positions = "last",
) -> Float[Tensor, "row position"]:
    """The model's own answer where a probe reads: log p(any of the positive tokens) - log p(any of the negative).

    Args:
        loaded: on any backend.
        prompts: texts, or token ids of any lengths; or, on plain Hugging Face, what `hooks.capture` kept of the last
            layer's `resid_post`, read at all its positions, so that nothing runs again.
        positive: token ids.
        negative: others.
        positions: where to read, as for `hooks.capture`.

    Raises:
        InputError: no token, one on both sides, or one that the model does not have; states of another layer.
    """
    positive, negative = as_wholes(positive), as_wholes(negative)
    n_tokens = backends.get_huggingface_model(loaded).get_output_embeddings().weight.shape[0]
    for tokens in (positive, negative):
        if not tokens or not all(0 <= token < n_tokens for token in tokens):
            raise InputError(f"answer tokens {list(tokens)}: legal are 0 to {n_tokens - 1}, at least one")
    if both := set(positive) & set(negative):
        raise InputError(f"answer token {min(both)} is on both sides")
    asked = torch.tensor([*positive, *negative])
    if isinstance(prompts, Captured):
        logits = _read_logits(loaded, prompts, asked)
    else:
        logits = hooks.capture(loaded, prompts, "logits", positions=positions)["logits"][..., asked]
    one, other = logits.split([len(positive), len(negative)], dim=-1)
    return one.logsumexp(-1) - other.logsumexp(-1)


def _read_logits(
    loaded: LoadedModel, states: Captured, tokens: Int[Tensor, " token"]
) -> Float[Tensor, "row position token"]:
    """Logits of some tokens after the states that left the last layer."""
    if loaded.backend != "huggingface" or "resid_post" not in states.values or loaded.n_layers - 1 not in states.layers:
        raise InputError("no last layer's resid_post in the states, or another backend: legal are prompts there")
    model, layout = loaded.model, loaded.layout
    resid = states["resid_post"][:, states.layers.index(loaded.n_layers - 1)].to(loaded.device, model.dtype)
    with torch.inference_mode():
        return unembed(model, layout, get_final_norm(model, layout)(resid), tokens).float().cpu()


def score_baselines(
    loaded: LoadedModel,
    texts: Sequence[str],
    labels: Labels,
    groups: Groups,
    *,
    answers: tuple[Sequence[int], Sequence[int]],
    rules: Mapping[str, Sequence[float]],
    positions: Positions = "last",
    states: Captured | None = None,
    folds: int | Folds = 5,
    seed: int,
) -> dict[str, Float[Tensor, " row"]]:
    """Scores that are to be had without the model's inside, on the folds of a sweep with the same groups and seed.

    The majority class of the training folds; TF-IDF of word and of character n-grams with logistic regression; the
    mean of the model's own input embeddings with ridge; each of `rules`, a score for each row; and the model's own
    output (`read_output`) at each position. The last two are less the median of the training folds, so that
    zero is a threshold. `scores.tabulate` makes a table of them.

    Args:
        loaded: on any backend.
        texts: one for each row.
        labels: True or False for each row.
        groups: rows with equal ones are never on both sides of a split.
        answers: positive and negative tokens, as for `read_output`.
        rules: by name, each with a score for each row.
        positions: where to read, as for `hooks.capture`.
        states: of the texts at these positions, as for `read_output`, where they are at hand.
        folds: how many, at least three, or the number of each row's.
        seed: of the folds.

    Raises:
        InputError: as `scores.evaluate` and `read_output`; states of other texts or positions.
    """
    checked, _ = check_labels(labels, groups)
    folds = resolve_folds(checked, groups, folds, seed)
    scores = {"majority class": _majority(checked, folds)}
    scores |= score_text(loaded, texts, checked, groups, folds=folds, seed=seed)
    if not isinstance(rules, Mapping):
        raise InputError(f"rules {str(rules)[:60]}: legal are scores by name")
    unfitted = {f"rule: {name}": as_tensor(values, f"rule {name!r}").float() for name, values in rules.items()}
    lengths = torch.tensor([len(loaded.encode(text)) for text in texts])
    names = locate_positions(positions, lengths)[0]
    if states is not None and (states.positions != names or not torch.equal(states.lengths, lengths)):
        raise InputError(
            f"states at {', '.join(states.positions)}: legal are those of the texts, at {', '.join(names)}"
        )
    output = read_output(loaded, texts if states is None else states, *answers, positions=positions)
    unfitted |= {f"the model's output at {name}": column for name, column in zip(names, output.T, strict=True)}
    for name, values in unfitted.items():
        if values.shape != (len(checked),) or not values.isfinite().all():
            raise InputError(f"{name}: scores of shape {list(values.shape)}: legal are {len(checked)} finite numbers")
        middle = torch.stack([values[folds != fold].median() for fold in range(int(folds.max()) + 1)])
        scores[name] = values - middle[folds]
    return scores


def _majority(labels: np.ndarray, folds: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    signs = torch.from_numpy(labels).float() * 2 - 1
    means = torch.stack([signs[folds != fold].mean() for fold in range(int(folds.max()) + 1)])
    return means[folds]


def score_text(
    loaded: LoadedModel,
    texts: Sequence[str],
    labels: Labels,
    groups: Groups,
    *,
    domains: Sequence[Hashable] | None = None,
    folds: int | Folds = 5,
    seed: int,
) -> dict[str, Float[Tensor, " row"]]:
    """Those of `score_baselines` that are fitted to the text: n-grams, and the mean of the input embeddings.

    Args:
        loaded: on any backend.
        texts: one for each row.
        labels: True or False for each row.
        groups: rows with equal ones are never on both sides of a split.
        domains: such as the task of each row: every feature is there once for all of them and once for each, so that
            what tells in one alone is found too (Daumé 2007). By default there is one domain.
        folds: how many, at least three, or the number of each row's.
        seed: of the folds.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    checked, _ = check_labels(labels, groups)
    texts = as_list(texts)
    if not is_row(texts) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"texts {str(texts)[:60]!r}: legal is a text for each label")
    if len(texts) != len(checked):
        raise InputError(f"{len(texts)} texts for {len(checked)} labels: legal is one for each")
    folds, of_rows = resolve_folds(checked, groups, folds, seed), as_list(domains)
    if of_rows is not None and len(of_rows) != len(checked):
        raise InputError(f"{len(of_rows)} domains for {len(checked)} labels: legal is one for each")
    kinds = {
        "word n-grams": {"ngram_range": (1, 2), "token_pattern": r"\S+"},
        "character n-grams": {"analyzer": "char_wb", "ngram_range": (2, 4)},
    }
    scores = {}
    for name, options in kinds.items():
        read = CountVectorizer(**options).build_analyzer()
        grams = [read(text) for text in texts]
        if of_rows is not None:
            grams = [some + [f"{domain}: {one}" for one in some] for domain, some in zip(of_rows, grams, strict=True)]
        counts = CountVectorizer(analyzer=list).fit_transform(grams)  # once, and not for every fold
        scores[name] = _score_counts(counts, checked, folds.numpy())
    z = standardise_site(_mean_embedding(loaded, texts), len(checked))
    if of_rows is not None:
        inside = [torch.tensor([other == domain for other in of_rows])[:, None] for domain in dict.fromkeys(of_rows)]
        z = torch.cat([z, *(z * rows for rows in inside)], dim=2)
    tasks = torch.from_numpy(checked)[:, None]
    scores["mean of the input embeddings"] = cross_validate(z, tasks, folds, "ridge", PENALTIES["ridge"]).scores[0]
    return scores


def _score_counts(counts: Any, labels: np.ndarray, folds: np.ndarray) -> Float[Tensor, " row"]:
    """TF-IDF with logistic regression, of counts by row and term; a fold knows the terms of its training rows alone."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    scores = np.empty(len(labels))
    for fold in set(folds):
        held = folds == fold
        met = counts[~held].getnnz(axis=0) > 0
        model = make_pipeline(TfidfTransformer(), LogisticRegression(max_iter=1000))
        model.fit(counts[~held][:, met], labels[~held])
        scores[held] = model.decision_function(counts[held][:, met])
    return torch.from_numpy(scores).float()


def _mean_embedding(loaded: LoadedModel, texts: Sequence[str]) -> Float[Tensor, "row d_model"]:
    table = backends.get_huggingface_model(loaded).get_input_embeddings().weight
    return torch.stack([table[torch.tensor(loaded.encode(text))].float().mean(0).cpu() for text in texts])


@dataclass(frozen=True)
class Controls:
    """Random sets of heads to compare a chosen set with, all different."""

    sets: tuple[tuple[Head, ...], ...]
    n_possible: int
    """How many different sets there are, of which these were drawn."""
    n_borrowed: float
    """Heads of a set that stand in another layer than the head they are compared with, mean over the sets."""
    shared: float
    """The largest share of their heads that two of the sets have in common."""

    def __str__(self) -> str:
        return (
            f"{len(self.sets)} of {self.n_possible} possible sets, none with a head under test; "
            f"{self.n_borrowed:.1f} heads of a set borrowed from a neighbouring layer; "
            f"two sets share at most {self.shared:.0%} of their heads"
        )


def draw_controls(
    loaded: LoadedModel, heads: Sequence[Head], *, avoid: Sequence[Head] = (), n_sets: int, seed: int
) -> Controls:
    """Random sets to compare with: as many heads of every layer as `heads` has there, none in `heads` or `avoid`.

    A layer with fewer than twice the free heads that it needs lends from its neighbours on both sides, as many layers
    away as it takes; layers whose choices overlap then are drawn from together.

    Args:
        loaded: on any backend.
        heads: as (layer, head).
        avoid: heads that no control may hold, such as the rest of the circuit.
        n_sets: to draw; fewer where there are not so many different ones.
        seed: of the draws.

    Returns no set at all where the model has fewer free heads than `heads` needs.
    """
    heads, avoid = (_check_heads(loaded, some) for some in (heads, avoid))
    generator, n_sets = make_generator(seed), as_count(n_sets, "n_sets", 0)
    taken = {*heads, *avoid}
    free = [head for head in np.ndindex(loaded.n_layers, loaded.n_heads) if head not in taken]
    if not heads or len(free) < len(heads):
        return Controls((), 0, 0.0, 0.0)
    needed = Counter(layer for layer, _ in heads)
    pools = _gather_pools(free, needed)
    n_possible = math.prod(math.comb(len(pool), count) for count, pool in pools)
    sets: dict[tuple[Head, ...], None] = {}
    if n_possible <= n_sets:
        every = product(*(combinations(pool, count) for count, pool in pools))
        sets = dict.fromkeys(tuple(sorted(chain(*parts))) for parts in every)
    while len(sets) < min(n_sets, n_possible):
        drawn = []
        for count, pool in pools:
            drawn += [pool[i] for i in generator.choice(len(pool), count, replace=False)]
        sets[tuple(sorted(drawn))] = None
    away = [sum((needed - Counter(layer for layer, _ in one)).values()) for one in sets]
    shared = [len({*one} & {*other}) / len(heads) for one, other in combinations(sets, 2)]
    return Controls(tuple(sets), n_possible, float(np.mean(away or [0])), max(shared, default=0.0))


@dataclass(frozen=True)
class AgainstControls:
    """What a set of heads does beside what each control does, on the same examples."""

    own: Estimate
    controls: Float[Tensor, " set"]
    """The mean of each."""
    strongest: float
    """The mean of the strongest control; NaN without any."""
    lead: Estimate | None
    """By how much the set goes beyond the strongest control, example by example; none without controls."""

    @property
    def spread(self) -> str:
        """The controls as "median (min to max)"."""
        if not len(self.controls):
            return "–"
        low, middle, high = (shorten(float(self.controls.quantile(at))) for at in (0.0, 0.5, 1.0))
        return f"{middle} ({low} to {high})"

    @property
    def row(self) -> dict[str, Any]:
        """The cells of a table's row that say all this."""
        names = ("effect", "controls, median (min to max)", "beyond the strongest control")
        return dict(zip(names, (self.own, self.spread, self.lead or "–"), strict=True))

    @property
    def evidence(self) -> dict[str, Any]:
        """What a claim needs whose rule is "value > 0"."""
        if self.lead is None:
            return {"estimate": None}
        return {
            "estimate": self.lead,
            "baseline": self.strongest,
            "baseline_is": f"what the strongest of {len(self.controls)} controls does; measured is the lead over it",
        }


def compare_with_controls(
    effects: Float[Tensor, "set example"],
    *,
    groups: Sequence[Hashable] | None = None,
    below: bool = False,
    seed: int,
    of: str = "sequences",
) -> AgainstControls:
    """Compare a set with its controls in pairs: on each example the set's effect less the strongest control's.

    The strongest is the control with the largest mean, so that the set must beat the best of the chance ones, and what
    examples have in common (an easy template, a long sequence) falls out of the difference.

    Args:
        effects: of the set in the first row, of a control in every other.
        groups: for each example what was drawn independently, as for `claims.average`.
        below: whether the set should lie below all controls instead of above.
        seed: of the intervals.
        of: what the independent units are, in the plural.
    """
    effects = as_tensor(effects, "effects").float().cpu()
    if effects.ndim != 2 or not len(effects):
        raise InputError(f"effects of shape {list(effects.shape)}: legal is a row for the set and one for each control")
    options: dict[str, Any] = {"seed": seed, "of": of}
    if groups is not None:  # every group counts the same, in choosing the strongest too
        effects = torch.tensor(np.stack([average_groups(row.numpy(), groups) for row in effects]))
        options["groups"] = range(effects.shape[1])
    own, controls = effects[0], effects[1:]
    estimate = average(own.tolist(), **options)
    if not len(controls):
        return AgainstControls(estimate, controls.mean(1), math.nan, None)
    sign = -1.0 if below else 1.0
    strongest = controls[(sign * controls.mean(1)).argmax()]
    lead = average((sign * (own - strongest)).tolist(), **options)
    return AgainstControls(estimate, controls.mean(1), float(strongest.mean()), lead)


def _check_heads(loaded: LoadedModel, heads: Sequence[Head]) -> list[Head]:
    pairs = as_list(heads)
    if not is_row(pairs) or not all(is_row(as_list(pair)) and len(pair) == 2 for pair in pairs):
        raise InputError(f"heads {str(pairs)[:60]}: legal are pairs of layer and head")
    checked = [(as_whole(layer), as_whole(head)) for layer, head in map(as_list, pairs)]
    for layer, head in checked:
        check_site(loaded, "head_z", layer, (head,))
    if len(set(checked)) < len(checked):
        raise InputError("a head is given twice: legal are different ones")
    return checked


def _gather_pools(free: list[Head], needed: Counter[int]) -> list[tuple[int, list[Head]]]:
    """Disjoint pools with how many heads to draw from each: twice as many are in it, or all that are free."""
    radius = dict.fromkeys(needed, 0)
    while True:
        pools: list[tuple[set[int], set[Head]]] = []
        for layer in sorted(needed):
            layers, pool = {layer}, {head for head in free if abs(head[0] - layer) <= radius[layer]}
            while met := next((one for one in pools if one[1] & pool), None):
                pools.remove(met)
                layers, pool = layers | met[0], pool | met[1]
            pools.append((layers, pool))
        counts = [sum(needed[layer] for layer in layers) for layers, _ in pools]
        small = [
            layers
            for count, (layers, pool) in zip(counts, pools, strict=True)
            if len(pool) < 2 * count and len(pool) < len(free)
        ]
        if not small:
            return [(count, sorted(pool)) for count, (_, pool) in zip(counts, pools, strict=True)]
        for layer in set().union(*small):
            radius[layer] += 1

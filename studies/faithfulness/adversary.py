"""An adversary who may choose the style that each class of transcripts comes in (H4).

Changed styles can take from a probe in two ways. They can move all transcripts along its direction, whatever the
label: an *offset*, which each style's own mean, known without labels, takes back. Or they can write the label along
another *direction*, which it can't.

The adversary knows the probe and sees the training folds only. As a probe fits the rows that it was trained on, so that
their scores say little of its weak places, the adversary goes by scores of rows that were held out within the training
folds. Every AUROC compares scores within folds, as a mean over the training sets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers import InputError, probes
from helpers.claims import Estimate
from helpers.engine.inputs import make_generator
from helpers.models import LoadedModel
from helpers.scores import combine, compute_separation
from studies.faithfulness.hypotheses import (
    PENALTY,
    Draw,
    Rows,
    _equal,
    _flat,
    _joined,
    _pooled,
    assign_draw_folds,
    drop_unfilled,
    select_rows,
)
from studies.faithfulness.styles import mix_styles, read_cue, select_steady, take_each_style

LEAST = 0.1
"""Of AUROC above chance that a probe must have before an adversary can be said to take as much."""
ROOM = 0.9
"""The AUROC to which noise takes what is read too well to see a loss."""


# Who is attacked


class Fitted(NamedTuple):
    """What classifiers of one training set say of every row of a draw."""

    draw: Draw
    folds: Int[Tensor, " row"]
    training: Rows
    scores: Float[Tensor, "fold fold row"]
    """By the one that saw neither of two folds; on the diagonal by the one that was trained without one."""


def fit_probes(draws: Sequence[Draw], training: Mapping[str, Sequence[Rows]], *, seed: int) -> dict[str, list[Fitted]]:
    """Ridge probes of each training set, for every draw.

    Args:
        draws: of the data, at one site.
        training: by name, for each draw the rows of a training set.
        seed: of the folds.

    Raises:
        InputError: a training set without both classes.
    """

    def score(number: int, seen: Rows) -> Float[Tensor, " row"]:
        draw = draws[number]
        z = probes.standardise(draw.activations[None], like=draw.activations[None, seen])
        tasks = torch.tensor(list(map(bool, draw.labels)))[:, None]
        return probes.fit(z[:, seen], tasks[seen], method="ridge", penalties=[PENALTY]).scores(z)[0, 0, :, 0]

    return _fit(draws, training, score, seed)


def fit_words(
    texts: Sequence[Sequence[str]], draws: Sequence[Draw], training: Mapping[str, Sequence[Rows]], *, seed: int
) -> dict[str, list[Fitted]]:
    """TF-IDF of one and two words with logistic regression, on the same folds and training sets as `fit_probes`.

    Args:
        texts: for each draw those of its rows.
        draws: of the data.
        training: by name, for each draw the rows of a training set.
        seed: of the folds.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    counted = [CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+").fit_transform(some) for some in texts]

    def score(number: int, seen: Rows) -> Float[Tensor, " row"]:
        known = np.flatnonzero(counted[number][seen].sum(0))  # words of other rows have no weight
        model = make_pipeline(TfidfTransformer(), LogisticRegression(max_iter=1000))
        model.fit(counted[number][seen][:, known], np.array(draws[number].labels)[seen])
        return torch.from_numpy(model.decision_function(counted[number][:, known])).float()

    return _fit(draws, training, score, seed)


def _fit(
    draws: Sequence[Draw],
    training: Mapping[str, Sequence[Rows]],
    score: Callable[[int, Rows], Float[Tensor, " row"]],
    seed: int,
) -> dict[str, list[Fitted]]:
    """For every training set and draw what a classifier of each two folds' other rows says of all."""
    found: dict[str, list[Fitted]] = {name: [] for name in training}
    for name, of_draw in training.items():
        for number, (draw, rows) in enumerate(zip(draws, of_draw, strict=True)):
            folds = assign_draw_folds(draw, seed)
            n_folds = int(folds.max()) + 1
            scores = torch.empty(n_folds, n_folds, len(folds))
            for one, other in combinations_with_replacement(range(n_folds), 2):
                seen = rows & _outside(folds, one, other)
                if len(set(np.asarray(draw.labels)[seen])) < 2:
                    raise InputError(f"without folds {one} and {other} {name!r} has one class: legal are both")
                scores[one, other] = scores[other, one] = score(number, seen)
            found[name].append(Fitted(draw, folds, rows, scores))
    return found


def restrict(fits: Mapping[str, Sequence[Fitted]], styles: Sequence[str]) -> dict[str, list[Fitted]] | None:
    """The rows of those questions that are told in all of some styles, by the same classifiers; None where they are in
    fewer than all folds.

    Args:
        fits: of `fit_probes` or `fit_words`.
        styles: of the draws.
    """
    found = {name: [_restrict(one, set(styles)) for one in of_draw] for name, of_draw in fits.items()}
    filled = all(
        set(one.folds.tolist()) == set(range(len(one.scores))) for of_draw in found.values() for one in of_draw
    )
    return found if filled else None


def _restrict(fitted: Fitted, styles: set[str]) -> Fitted:
    told: dict[Hashable, set[str]] = {}
    for question, style in zip(fitted.draw.questions, fitted.draw.domains, strict=True):
        told.setdefault(question, set()).add(style)
    rows = np.array([styles <= told[question] for question in fitted.draw.questions])
    return Fitted(select_rows(fitted.draw, rows), fitted.folds[rows], fitted.training[rows], fitted.scores[..., rows])


def _outside(folds: Int[Tensor, " row"], one: int, other: int) -> Rows:
    return ((folds != one) & (folds != other)).numpy()


# What is made of them


@dataclass(frozen=True)
class Reading:
    """How well the label is read where rows are told in one way or another: a mean over training sets."""

    terms: tuple[tuple[float, Float[Tensor, " row"], Rows], ...]
    """As for `scores.combine`."""
    labels: list[bool]
    groups: list[Hashable]
    folds: list[int]
    seed: int

    @cached_property
    def area(self) -> Estimate:
        """The AUROC, with its interval by bootstrap over questions."""
        return replace(self._combine(self.terms), reach=(0.0, 1.0))

    @property
    def separation(self) -> float:
        """As `scores.compute_separation`, which tells more from less where an AUROC is near one."""
        labels, folds = torch.tensor(self.labels), torch.tensor(self.folds)
        parts = [
            weight * float(compute_separation(scores[read], labels[read], folds=folds[read]))
            for weight, scores, rows in self.terms
            for read in [torch.as_tensor(rows)]
        ]
        return sum(parts) / sum(weight for weight, *_ in self.terms)

    def lost_in(self, other: Reading) -> Estimate:
        """By how much another reading of the same questions is worse, which is expected at chance or above."""
        lost, most = self._less(other), self.area.value
        return replace(lost, reach=(most - 1, max(most - 0.5, lost.value)))

    def ahead_of(self, other: Reading) -> Estimate:
        """By how much another reading of the same questions, which is to be beaten, is worse."""
        beaten = other.area.value
        return replace(self._less(other), reach=(-beaten, 1 - beaten))

    def _less(self, other: Reading) -> Estimate:
        return self._combine((*self.terms, *((-weight, scores, rows) for weight, scores, rows in other.terms)))

    def _combine(self, terms: Sequence[tuple[float, Float[Tensor, " row"], Rows]]) -> Estimate:
        found = combine(terms, self.labels, self.groups, folds=self.folds, seed=self.seed)
        return replace(found, of="questions")


Fits = Mapping[str, Sequence[Fitted]]
"""By the name of a training set, one for each draw."""
Chosen = tuple[Float[Tensor, " row"], Rows]
"""Every row's score, and the rows that are read."""


def _read(fits: Fits, choose: Callable[[Fitted], Sequence[Chosen]], seed: int) -> list[Reading]:
    """A reading of each way in which rows are chosen."""
    some = next(iter(fits.values()))
    pooled = _pooled([(one.draw.labels, one.draw.questions, one.folds) for one in some])
    ways = []
    for of_draw in fits.values():
        of_way = zip(*map(choose, of_draw), strict=True)
        ways.append(
            [(1 / len(fits), _joined([one for one, _ in way]), _flat([rows for _, rows in way])) for way in of_way]
        )
    return [Reading(terms, *pooled, seed) for terms in zip(*ways, strict=True)]


def read_clean(fits: Fits, *, seed: int) -> Reading:
    """Other questions, told as those of the training set.

    Args:
        fits: of `fit_probes` or `fit_words`.
        seed: of the bootstrap.
    """
    return _read(fits, lambda one: [(hold_out(one), one.training)], seed)[0]


def read_in(fits: Fits, styles: Sequence[str], *, seed: int) -> Reading:
    """Other questions, told in some styles: the mean over these, in each of which both classes are told alike.

    Args:
        fits: of `fit_probes` or `fit_words`.
        styles: of the draws.
        seed: of the bootstrap.
    """

    def choose(one: Fitted) -> list[Chosen]:
        scores = hold_out(one)
        return [(scores, _equal(one.draw.domains, style)) for style in styles]

    readings = _read(fits, choose, seed)
    terms = [(weight / len(styles), *rest) for one in readings for weight, *rest in one.terms]
    return replace(readings[0], terms=tuple(terms))


def read_tied(fits: Fits, pair: tuple[str, str], *, seed: int) -> tuple[Reading, Reading]:
    """Other questions, told in two styles that do not go with the label, and with the tie of `tie_styles` reversed.

    Args:
        fits: of `fit_probes`, trained on rows of `tie_styles`.
        pair: the two styles.
        seed: of the bootstrap.
    """

    def choose(one: Fitted) -> list[Chosen]:
        scores, labels = hold_out(one), np.asarray(one.draw.labels, dtype=bool)
        first, second = (_equal(one.draw.domains, style) for style in pair)
        return [(scores, first | second), (scores, np.where(labels, second, first))]

    untied, reverse = _read(fits, choose, seed)
    return untied, reverse


def attack(fits: Fits, styles: Sequence[str], *, seed: int) -> Reading:
    """Let an adversary choose a style for each class, for each probe and without the fold that is tested.

    Args:
        fits: of `fit_probes` or `fit_words`.
        styles: to choose from; of pairs that are equally bad the first is taken.
        seed: of the bootstrap.

    Raises:
        InputError: no row in such a style, or in some fold not of both classes.
    """

    def choose(one: Fitted) -> list[Chosen]:
        return [(hold_out(one), _choose_worst(one, styles))]

    return _read(fits, choose, seed)[0]


def attack_recentred(fits: Fits, styles: Sequence[str], *, share: float | None = None, seed: int) -> Reading:
    """The same where each score is less the mean of its style; the adversary knows, and goes by what is left.

    Args:
        fits: of `fit_probes` or `fit_words`.
        styles: to choose from.
        share: as for `recentre`; with a number each class comes in a style of its own.
        seed: of the bootstrap.

    Raises:
        InputError: as `attack` and `recentre`.
    """

    def choose(one: Fitted) -> list[Chosen]:
        centred = recentre(one, share=share)
        return [(hold_out(centred), _choose_worst(centred, styles, apart=share is not None))]

    return _read(fits, choose, seed)[0]


class Tried(NamedTuple):
    """Probes under attack, without a remedy and with one: those of one style each, and those of all styles."""

    clean: Reading
    attacked: Reading
    recentred: Reading
    all_clean: Reading
    all_attacked: Reading
    all_recentred: Reading

    def split_cost(self) -> dict[str, Estimate]:
        """What the adversary takes from probes of one style: the whole, what recentring saves, and what it does not."""
        offset, most = self.recentred.lost_in(self.attacked), self.recentred.area.value
        return {
            "whole": self.clean.lost_in(self.attacked),
            "offset": replace(offset, reach=(most - 1, most)),  # which can turn the order round
            "direction": self.clean.lost_in(self.recentred),
        }

    def measure_costs(self) -> dict[str, Estimate]:
        """What the adversary takes, by what was done against it."""
        return {
            "nothing": self.clean.lost_in(self.attacked),
            "recentred": self.clean.lost_in(self.recentred),
            "trained in all styles": self.all_clean.lost_in(self.all_attacked),
            "both": self.all_clean.lost_in(self.all_recentred),
        }


def try_remedies(of_one: Fits, of_all: Fits, styles: Sequence[str], *, seed: int) -> Tried:
    """Attack probes of one style and of all styles, recentred and not.

    Args:
        of_one: of `fit_probes`, each training set of one style.
        of_all: the same with a training set of all of them.
        styles: that the adversary may choose.
        seed: of the bootstrap.
    """
    return Tried(
        *(
            one
            for fits in (of_one, of_all)
            for one in (
                read_clean(fits, seed=seed),
                attack(fits, styles, seed=seed),
                attack_recentred(fits, styles, seed=seed),
            )
        )
    )


def attack_label(loaded: LoadedModel, rows: pd.DataFrame, *, layer: int, seed: int) -> tuple[Tried | None, str]:
    """The adversary and the remedies on a label of behaviour, where all its styles are trained in.

    Scores that say nothing can be turned against any label by the offsets of styles alone, so that only a probe that
    surely reads the label in its own style by more than `LEAST` above chance has that much to lose.

    Args:
        loaded: on plain Hugging Face.
        rows: for `select_steady`, or none.
        layer: that is read, at the token before the answer.
        seed: of folds, lots and bootstrap.

    Returns:
        Nothing where too few rows of a class are left in some fold, or probes of one style may have too
        little to lose; and why not, or the share of rows whose label is steady.
    """
    steady, share = select_steady(rows)
    draws = [read_cue(loaded, steady, layer=layer)] if len(steady) else []
    if not (draws := drop_unfilled(draws, seed=seed)):
        return None, "too few rows of one class"
    styles = sorted(set(draws[0].domains))
    of_one = fit_probes(draws, take_each_style(draws, styles), seed=seed)
    clean = read_clean(of_one, seed=seed).area
    if clean.low <= 0.5 + LEAST:
        return None, f"probes of one style read it with an AUROC of {clean.brief()}, not surely a tenth above chance"
    mixed = [mix_styles(draw, draw.questions, styles, seed=seed) for draw in draws]
    tried = try_remedies(of_one, fit_probes(draws, {"all": mixed}, seed=seed), styles, seed=seed)
    left = tried.recentred.area.brief()
    return tried, (
        f"the label is steady on {share:.2f} of rows; an AUROC of {clean.brief()} in a probe's own style, of "
        f"{tried.attacked.area.brief()} under attack, of {left} recentred"
    )


def recentre(fitted: Fitted, *, share: float | None = None) -> Fitted:
    """The same with scores less the mean score of their style, over the rows of that style in the training folds.

    Args:
        fitted: one training set on one draw.
        share: by default all rows count, and no label is looked at. A number stands for a stream in which so large a
            share of a style's rows is of one class, the class that is tested in that style: its mean holds the label.

    Raises:
        InputError: a share that is none.
    """
    if share is not None and not 0 <= share <= 1:
        raise InputError(f"share = {share}: legal are 0 to 1")
    centred = fitted.scores.clone()
    labels, styles = np.asarray(fitted.draw.labels, dtype=bool), np.asarray(fitted.draw.domains)
    for one, other in np.ndindex(*centred.shape[:2]):
        scores, seen = fitted.scores[one, other], _outside(fitted.folds, one, other)
        for style in set(fitted.draw.domains):
            rows = styles == style
            if share is None:
                centred[one, other, rows] -= scores[rows & seen].mean()
            else:
                means = [scores[rows & seen & (labels == label)].mean() for label in (False, True)]
                for label in (False, True):
                    centre = share * means[label] + (1 - share) * means[not label]
                    centred[one, other, rows & (labels == label)] -= centre
    return fitted._replace(scores=centred)


def hold_out(fitted: Fitted) -> Float[Tensor, " row"]:
    """Each row's score by the classifier that was trained without its fold."""
    return fitted.scores[fitted.folds, fitted.folds, torch.arange(len(fitted.folds))]


def blur(fits: Fits, *, area: float = ROOM, n_draws: int = 3, seed: int) -> dict[str, list[Fitted]]:
    """The same with normal noise on every score, so much that rows told as the training set are read with about this
    AUROC: what is lost near the ceiling, where an AUROC hardly moves, can be seen.

    Between two normal distributions of one width an AUROC of A is a separation of the square root of two times the
    normal quantile of A, and noise makes the width. Classifiers that read no better than that stay as they are.

    Args:
        fits: of `fit_probes` or `fit_words`.
        area: above one half and below one.
        n_draws: of the noise, each of which makes a training set of its own.
        seed: of the noise.
    """
    from scipy.stats import norm

    if not 0.5 < area < 1 or n_draws < 1:
        raise InputError(f"area = {area}, n_draws = {n_draws}: legal are above 0.5 and below 1, and at least one draw")
    wanted, generator = math.sqrt(2) * float(norm.ppf(area)), make_generator(seed)
    found: dict[str, list[Fitted]] = {}
    for number in range(n_draws):
        for name, of_draw in fits.items():
            blurred = []
            for one in of_draw:
                rows, labels = torch.from_numpy(one.training), torch.tensor(list(map(bool, one.draw.labels)))
                scores = hold_out(one)[rows]
                separation = float(compute_separation(scores, labels[rows], folds=one.folds[rows]))
                gap = float(scores[labels[rows]].mean() - scores[~labels[rows]].mean())
                width = gap * math.sqrt(max(0.0, 1 / wanted**2 - 1 / separation**2)) if separation > 0 else 0.0
                noise = torch.from_numpy(generator.standard_normal(len(labels))).float()
                blurred.append(one._replace(scores=one.scores + width * noise))
            found[f"{name}, noise {number + 1}"] = blurred
    return found


def find_favourite(reading: Reading, draws: Sequence[Draw]) -> tuple[str, str, float]:
    """The style that an adversary most often tells the label's class in, that for the other class, and how often this
    pair was chosen, as a share of training sets and folds.

    Args:
        reading: of `attack`.
        draws: that were attacked.
    """
    styles = np.array([style for draw in draws for style in draw.domains])
    labels, folds = np.array(reading.labels), np.array(reading.folds)
    chosen = Counter(
        (str(styles[part & labels][0]), str(styles[part & ~labels][0]))
        for _, _, rows in reading.terms
        for fold in set(reading.folds)
        for part in [rows & (folds == fold)]
    )
    ((pair, count),) = chosen.most_common(1)
    return *pair, count / chosen.total()


def measure_shift(fits: Fits) -> float:
    """How far apart the styles' mean scores lie, as a share of the distance between the classes' means within a style:
    a mean over training sets and draws.

    Args:
        fits: of `fit_probes` or `fit_words`.
    """
    shifts = []
    for one in (one for of_draw in fits.values() for one in of_draw):
        told = {"score": hold_out(one).numpy(), "style": one.draw.domains, "label": list(map(bool, one.draw.labels))}
        means = pd.DataFrame(told).groupby(["style", "label"])["score"].mean().unstack()
        shifts.append(np.ptp(means.mean(axis=1)) / (means[True] - means[False]).mean())
    return float(np.mean(shifts))


def _choose_worst(fitted: Fitted, styles: Sequence[str], *, apart: bool = False) -> Rows:
    """For each fold the rows in the styles, one for each class, that are worst in the other folds.

    There every row is scored by the classifier that saw neither its fold nor the one in question.
    """
    if unknown := [style for style in styles if style not in fitted.draw.domains]:
        raise InputError(
            f"no row is told in style {unknown[0]!r}: legal are {', '.join(sorted(set(fitted.draw.domains)))}"
        )
    labels = np.asarray(fitted.draw.labels, dtype=bool)
    member = np.stack([_equal(fitted.draw.domains, style) for style in styles])
    n_folds, chosen = len(fitted.scores), np.zeros(len(labels), dtype=bool)
    for fold in range(n_folds):
        areas = np.mean(
            [
                _compare_styles(fitted.scores[fold, inner], member & (fitted.folds == inner).numpy(), labels)
                for inner in range(n_folds)
                if inner != fold
            ],
            axis=0,
        )
        if apart:
            np.fill_diagonal(areas, np.inf)
        positive, negative = np.unravel_index(areas.argmin(), areas.shape)
        chosen |= np.where(labels, member[positive], member[negative]) & (fitted.folds == fold).numpy()
    return chosen


def _compare_styles(
    scores: Float[Tensor, " row"], member: Bool[np.ndarray, "style row"], labels: Rows
) -> Float[np.ndarray, "style style"]:
    """The AUROC of one class in each style (rows) against the other class in each style (columns)."""
    values = scores.numpy()
    concordant = (np.sign(values[labels][:, None] - values[~labels][None]) + 1) / 2
    positive, negative = (member[:, side].astype(float) for side in (labels, ~labels))
    pairs = np.outer(positive.sum(1), negative.sum(1))
    if not pairs.all():
        raise InputError("a style has no row of one class in some fold: legal are draws of `hypotheses.drop_unfilled`")
    return positive @ concordant @ negative.T / pairs

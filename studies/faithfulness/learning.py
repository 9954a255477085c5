"""How many training questions a probe needs: learning curves from two examples up, with intervals over questions.

Where every probe reads a label without error none can read it better. With few examples they err, and differ. What is
compared is one number: the AUROC on other questions, averaged over training sets of 2, 4, 8 and 16 questions, of each
of which one example is seen.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from helpers import InputError, probes
from helpers.claims import Estimate
from helpers.engine.inputs import make_generator
from helpers.folds import assign_stratified_folds, check_labels
from helpers.scores import compute_auroc

Name = TypeVar("Name", bound=Hashable)
SIZES = (2, 4, 8, 16)
"""Training questions whose AUROCs are averaged."""
N_BLOCKS = 10
"""Of questions, each left out once for the interval."""
N_DRAWS = 400
"""Training sets of each size; what they leave to chance makes the interval wider."""
PENALTY = 0.1
"""Of the ridge, for each feature: a head has fewer than the residual stream, and is not to be shrunk more for it."""
PRODUCTS = 2**24
"""Of rows, that are held at a time."""
LEAST = 0.02
"""Above chance: probes that may read less than that are not compared."""
GOAL = 0.9
"""The AUROC for which questions are counted."""


@dataclass(frozen=True)
class Learning:
    """AUROCs of some probes by the number of questions that they were trained on, each draw for all of them."""

    names: tuple[Hashable, ...]
    sizes: tuple[int, ...]
    auroc: Float[ndarray, "probe size draw"]
    used: Bool[ndarray, "size draw block"]
    """Which blocks of questions a draw trained or tested on."""
    n: int
    """Questions."""

    def average(self, name: Hashable) -> Float[ndarray, " size"]:
        """The AUROC of one probe by size, over the draws."""
        return self.auroc[self.names.index(name)].mean(1)

    def find_leading(self, names: Iterable[Hashable]) -> Hashable:
        """Of some probes the first whose mean AUROC over all sizes lies within `probes.TIED` of the highest, to be used
        on other questions: with all questions many a site is at the ceiling, and says little of how fast it gets there.
        """
        some = list(names)
        means = self.auroc[[self.names.index(name) for name in some]].mean((1, 2))
        return some[int(np.flatnonzero(means >= means.max() - probes.TIED)[0])]

    def measure_area(self, name: Hashable) -> Estimate:
        """The mean AUROC of one probe over `SIZES`."""
        return self._estimate(self.auroc[self.names.index(name)], (0.0, 1.0))

    def subtract(self, one: Hashable, other: Hashable) -> Estimate | None:
        """By how much the mean AUROC of one probe over `SIZES` exceeds that of another; None where neither is surely
        `LEAST` above chance.

        The interval is Student's over blocks of questions, each left out in turn of training and test alike (the
        jackknife, which errs on the wide side: Efron and Stein 1981). The reach is from nought to one, less the other.
        """
        if all(self.measure_area(name).low <= 0.5 + LEAST for name in (one, other)):
            return None
        first, second = (self.auroc[self.names.index(name)] for name in (one, other))
        beaten = self.measure_area(other).value
        return self._estimate(first - second, (-beaten, 1 - beaten))

    def count_needed(self, name: Hashable) -> str:
        """About how many questions bring the AUROC to `GOAL`, by linear interpolation between sizes on a log axis."""
        known = np.maximum.accumulate(self.average(name))
        if known[-1] < GOAL:
            return f"more than {self.sizes[-1]}"
        if known[0] >= GOAL:
            return f"at most {self.sizes[0]}"
        return f"{2 ** np.interp(GOAL, known, np.log2(self.sizes)):.0f}"

    def _estimate(self, values: Float[ndarray, "size draw"], reach: tuple[float, float]) -> Estimate:
        from scipy.stats import t

        if self.sizes[-1] < SIZES[-1]:
            raise InputError(f"{self.n} questions to learn from: legal are at least {2 * SIZES[-1]}")
        counted = [self.sizes.index(size) for size in SIZES]
        without = np.array(
            [
                np.mean([values[size, ~self.used[size, :, block]].mean() for size in counted])
                for block in range(self.used.shape[2])
            ]
        )
        deviation = np.sqrt((len(without) - 1) * without.var())
        value, half = values[counted].mean(), t.ppf(0.975, len(without) - 1) * deviation
        low, high = np.clip([value - half, value + half], *reach)
        return Estimate(float(value), float(low), float(high), self.n, "questions", reach=reach)


def trace_learning(
    features: Mapping[Name, Float[Tensor, "row feature"]],
    labels: Sequence[bool],
    questions: Sequence[Hashable],
    *,
    strata: Sequence[str],
    n_draws: int = N_DRAWS,
    seed: int,
) -> Learning:
    """Train ridge probes on one row of each of few questions, half of them with the label, and test on other questions.

    All probes are trained and tested on the same rows. Features are z-scored over all rows, which takes no label.
    Sizes are the powers of two up to half of the questions.

    Args:
        features: by the name of the probe, such as its site.
        labels: True or False for each row.
        questions: rows with equal ones are one unit.
        strata: such as the task of each row, over which blocks of questions are as even as can be.
        n_draws: training sets of each size.
        seed: of blocks and draws.

    Raises:
        InputError: fewer questions than blocks, too few of a class, no two blocks with both.
    """
    checked, codes = check_labels(labels, questions)
    n = int(codes.max()) + 1
    if n < N_BLOCKS:
        raise InputError(f"{n} questions to learn from: legal are at least {N_BLOCKS}")
    blocks = assign_stratified_folds(strata, questions, n_folds=N_BLOCKS, seed=seed).numpy()
    tested = [block for block in range(N_BLOCKS) if len(set(checked[blocks == block])) == 2]
    if len(tested) < 2:
        raise InputError("fewer than two blocks of questions with both classes: legal are more questions")
    sizes = tuple(2**power for power in range(1, n.bit_length()) if 2**power <= n // 2)
    generator, used, rows = make_generator(seed), np.zeros((len(sizes), n_draws, N_BLOCKS), dtype=bool), []
    for draw in range(n_draws):
        block = tested[draw % len(tested)]
        chosen = _choose(np.flatnonzero(blocks != block), checked, codes, blocks, sizes[-1], generator)
        for number, size in enumerate(sizes):
            used[number, draw, [block, *blocks[chosen[:size]]]] = True
            rows.append(
                (number, draw, torch.from_numpy(chosen[:size]), torch.from_numpy(np.flatnonzero(blocks == block)))
            )
    found, truth = np.empty((len(features), len(sizes), n_draws)), torch.from_numpy(checked)
    step = max(1, PRODUCTS // len(checked) ** 2)
    for first in range(0, len(features), step):
        some = slice(first, first + step)
        kernels = torch.stack([_multiply(x) for x in list(features.values())[some]])
        for number, draw, train, test in rows:
            scores = _score(kernels, truth.float() * 2 - 1, train, test)
            found[some, number, draw] = compute_auroc(scores, truth[test])
    return Learning(tuple(features), sizes, found, used, n)


def cut(activations: Float[Tensor, "row feature"], width: int) -> Float[Tensor, "row component"]:
    """Activations along the directions in which they vary most, so many of them, found without labels: as wide as a
    head, to tell a better place from fewer features.
    """
    z = probes.standardise(activations[None])[0]
    return z @ torch.linalg.svd(z, full_matrices=False).Vh[:width].T


def _multiply(x: Float[Tensor, "row feature"]) -> Float[Tensor, "row row"]:
    z = probes.standardise(x[None])[0]
    return z @ z.T / z.shape[1]


def _choose(
    rows: ndarray, labels: ndarray, codes: ndarray, blocks: ndarray, n: int, generator: np.random.Generator
) -> ndarray:
    """One row of each of so many questions, the classes in turn, block after block, so that few blocks are used."""
    order = {block: place for place, block in enumerate(generator.permutation(blocks.max() + 1))}
    rows = generator.permutation(rows)
    rows = rows[np.argsort([order[block] for block in blocks[rows]], kind="stable")]
    of_class = {label: iter(rows[labels[rows] == label].tolist()) for label in (True, False)}
    label, chosen, seen = bool(generator.integers(2)), [], set()
    while len(chosen) < n:
        row = next((row for row in of_class[label] if codes[row] not in seen), None)
        if row is None:
            raise InputError(f"{n} questions to train on: legal are fewer, as one class has too few")
        chosen.append(row)
        seen.add(codes[row])
        label = not label
    return np.array(chosen)


def _score(
    kernels: Float[Tensor, "probe row row"], signs: Float[Tensor, " row"], train: Tensor, test: Tensor
) -> Float[Tensor, "probe test"]:
    """Of ridge regression, from the products of rows, but for a constant."""
    inner, outer = kernels[:, train][:, :, train], kernels[:, test][:, :, train]
    middle = inner.mean(2, keepdim=True)
    centred = inner - middle - middle.mT + middle.mean(1, keepdim=True)
    centred.diagonal(dim1=1, dim2=2).add_(PENALTY)
    target = (signs[train] - signs[train].mean()).expand(len(kernels), -1)[..., None]
    weights = torch.linalg.solve(centred, target)
    return (outer @ weights)[..., 0]

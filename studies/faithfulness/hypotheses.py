"""The five hypotheses of the faithfulness project: what is compared for each, and the rule that decides it.

Everything here is an AUROC less another, scores being compared within folds only, with an interval by bootstrap over
questions, or of tasks by Student's. Sites, penalties and the adversary's styles are chosen in the training folds, the
layer for a task on the other tasks. Several draws of the data count as further folds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import compress, product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from helpers import InputError, probes
from helpers.claims import Estimate, average
from helpers.folds import assign_stratified_folds, permute_labels
from helpers.probes import Site, Sweep
from helpers.scores import combine, compute_auroc, subtract

Rows = Bool[ndarray, " row"]


class Hypothesis(NamedTuple):
    """A sentence, and the rule of its claim: the least that would matter, in AUROC."""

    sentence: str
    rule: str


HYPOTHESES = {
    "H1": Hypothesis(
        "The best middle layer reads the label better than the best late layer, by more than 0.02 of AUROC.",
        "value > 0.02",
    ),
    "H2": Hypothesis(
        "The second-to-last token reads the label better than the last, by more than 0.02 of AUROC.", "value > 0.02"
    ),
    "H3": Hypothesis(
        "A probe reads the label better within its task than on others, by more than 0.1 of AUROC.", "value > 0.1"
    ),
    "H4": Hypothesis("Styles chosen by an adversary cost a probe of one style more than 0.1 of AUROC.", "value > 0.1"),
    "H5": Hypothesis(
        "The best single head reads the label better than the best residual stream, by more than 0.02 of AUROC.",
        "value > 0.02",
    ),
}
READABLE = 0.01
"""The p-value, on permuted labels and with the choice of the site repeated, below which sites read a label at all. An
interval by bootstrap knows nothing of the luck of training: on noise it would support H1 in every seventh draw."""
PENALTY = 100.0
"""Of the probes under attack, which have nothing to choose."""


def split_thirds(n_layers: int) -> tuple[range, range, range]:
    """Early, middle and late layers.

    >>> split_thirds(30)
    (range(0, 10), range(10, 20), range(20, 30))
    """
    if n_layers < 3:
        raise InputError(f"{n_layers} layers: legal are at least three, for thirds of the depth")
    first, second = round(n_layers / 3), round(2 * n_layers / 3)
    return range(first), range(first, second), range(second, n_layers)


def name_sides(
    n_layers: int, places: Sequence[str], two: tuple[str, str]
) -> dict[str, tuple[Callable[[Site], bool], Callable[[Site], bool]]]:
    """For H1, H2 and H5 whether a site is of the kind that should read better, and of the other.

    Args:
        n_layers: of the model.
        places: tokens that count.
        two: the second-to-last of them and the last.
    """
    _, middle, late = split_thirds(n_layers)

    def stream(layers: Sequence[int] = range(n_layers), places: Sequence[str] = places) -> Callable[[Site], bool]:
        return lambda site: site.component == "resid_post" and site.layer in layers and site.position in places

    return {
        "H1": (stream(middle), stream(late)),
        "H2": (stream(places=two[:1]), stream(places=two[1:])),
        "H5": (lambda site: site.component == "head_z" and site.position in places, stream()),
    }


def contrast(
    sweeps: Sequence[Sweep],
    one: Callable[[Site], bool],
    other: Callable[[Site], bool],
    *,
    of: str = "questions",
    seed: int,
) -> Estimate | None:
    """The AUROC of the best of some sites less that of the best of others (H1, H2, H5); None if neither reads anything.

    Args:
        sweeps: one for each draw of the data, with at least 100 permutations; in each the choice is made anew, fold by
            fold.
        one: whether a site is of the first kind.
        other: whether it is of the second.
        of: what the groups of the sweeps are, in the plural.
        seed: of the bootstrap.

    Raises:
        InputError: no such site, too few permutations.
    """
    from scipy.stats import combine_pvalues

    if min(sweep.auroc.shape[2] for sweep in sweeps) <= 1 / READABLE:
        raise InputError(f"fewer than {1 / READABLE:.0f} permutations: a p-value below {READABLE} can't be had")
    best = [[sweep.best([site for site in sweep.sites if legal(site)]) for sweep in sweeps] for legal in (one, other)]
    if min(combine_pvalues([found.p_value for found in of_draw]).pvalue for of_draw in best) >= READABLE:
        return None
    labels, groups, folds = _pooled([(sweep.labels.tolist(), sweep.groups, sweep.folds) for sweep in sweeps])
    first, second = (_joined([found.scores for found in of_draw]) for of_draw in best)
    return replace(subtract(first, second, labels, groups, folds=folds, seed=seed), of=of)


class Draw(NamedTuple):
    """One draw of the data at one site."""

    activations: Float[Tensor, "row feature"]
    labels: Sequence[bool]
    questions: Sequence[Hashable]
    domains: Sequence[str]
    """Of each row its task (H3) or its style (H4)."""
    blocks: Sequence[Hashable] = ()
    """Of each row what has one label whatever it is, as for `folds.permute_labels`; by default every row by itself."""


def drop_unfilled(draws: Sequence[Draw], *, seed: int) -> list[Draw]:
    """The draws without the domains that lack a class in one of five folds; nothing where fewer than two are left."""
    names = set.intersection(*(set(draw.domains) for draw in draws)) if draws else set()
    while len(names) > 1:
        kept = [_restricted(draw, names) for draw in draws]
        lacking = {name for draw in kept for name in _lacking(draw, seed)}
        if not lacking:
            return kept
        names -= lacking
    return []


def select_rows(draw: Draw, kept: Sequence[bool] | Rows) -> Draw:
    """Some rows of a draw."""
    labels, domains = list(compress(draw.labels, kept)), list(compress(draw.domains, kept))
    questions, blocks = (list(compress(values, kept)) for values in (draw.questions, draw.blocks))
    return Draw(draw.activations[torch.as_tensor(kept)], labels, questions, domains, blocks)


def _restricted(draw: Draw, names: set[str]) -> Draw:
    return select_rows(draw, [domain in names for domain in draw.domains])


def _lacking(draw: Draw, seed: int) -> set[str]:
    """The domains that do not have both classes in each of five folds."""
    rows = list(zip(draw.domains, map(bool, draw.labels), draw.questions, strict=True))
    questions = Counter((domain, label) for domain, label, _ in set(rows))
    few = {domain for domain in draw.domains if min(questions[domain, True], questions[domain, False]) < 5}
    if few:
        return few
    folds = assign_draw_folds(draw, seed).tolist()
    there = Counter(domain for domain, *_ in {(*row[:2], fold) for row, fold in zip(rows, folds, strict=True)})
    return {domain for domain, number in there.items() if number < 2 * 5}


class Transfer(NamedTuple):
    """What probes of each domain make of each."""

    pairs: dict[tuple[str, str], Estimate]
    """AUROC by the domain of training and that of the test, always on other questions."""
    apart: Estimate
    """Within domains less across, on average, over questions."""


def measure_transfer(draws: Sequence[Draw], *, seed: int) -> Transfer:
    """Train in each domain, test in each.

    Raises:
        InputError: fewer than two domains; one that lacks a class in a fold (see `drop_unfilled`).
    """
    names = sorted(set(draws[0].domains))
    if len(names) < 2:
        raise InputError(f"one domain, {names}: legal are at least two")
    parts = []
    for draw in draws:
        rows_of = {name: _equal(draw.domains, name) for name in names}
        options = {"folds": assign_draw_folds(draw, seed), "seed": seed}
        parts.append(probes.cross_train(draw.activations, draw.labels, draw.questions, rows_of, **options))
    labels, groups, folds = _pooled([(draw.labels, draw.questions, assign_draw_folds(draw, seed)) for draw in draws])
    domains = [domain for draw in draws for domain in draw.domains]
    terms = {
        (trained, tested): (_joined([part[trained] for part in parts]), _equal(domains, tested))
        for trained, tested in product(names, names)
    }
    n = len(names)
    weights = {pair: 1 / n if len(set(pair)) == 1 else -1 / (n * (n - 1)) for pair in terms}
    options = {"folds": folds, "seed": seed}
    found = {pair: combine([(1.0, *term)], labels, groups, **options) for pair, term in terms.items()}
    apart = combine([(weights[pair], *term) for pair, term in terms.items()], labels, groups, **options)
    return Transfer({pair: replace(area, of="questions or pairs") for pair, area in found.items()}, apart)


def measure_areas(draw: Draw, training: Mapping[str, Rows], *, seed: int) -> dict[tuple[str, str], float]:
    """The AUROC of each training set's probe in each domain, on other questions.

    Args:
        draw: of the data, at one site.
        training: by name the rows of a training set.
        seed: of the folds.

    Raises:
        InputError: a set or domain that lacks a class in a fold.
    """
    folds, truth = assign_draw_folds(draw, seed), torch.tensor(list(map(bool, draw.labels)))
    trained = probes.cross_train(draw.activations, draw.labels, draw.questions, training, folds=folds, seed=seed)
    rows_of = {name: torch.from_numpy(_equal(draw.domains, name)) for name in sorted(set(draw.domains))}
    held = [folds == fold for fold in range(int(folds.max()) + 1)]
    return {
        (one, other): float(np.mean([compute_auroc(scores[rows & part], truth[rows & part]) for part in held]))
        for one, scores in trained.items()
        for other, rows in rows_of.items()
    }


def find_bar(draws: Sequence[Draw], trained: str, tested: str, *, n_shuffled: int = 100, seed: int) -> float:
    """The AUROC that one in twenty probes of shuffled labels of one domain reaches in another.

    A bootstrap over the questions of a test knows nothing of the luck of training. Where a direction that has nothing
    to do with the label tells something, because all activations differ along one line, this bar lies high.

    Args:
        draws: of the data, at one site.
        trained: the domain whose labels are shuffled.
        tested: the other.
        n_shuffled: how often.
        seed: of the folds and the shuffling.
    """
    found = []
    for draw in draws:
        folds, truth = assign_draw_folds(draw, seed), torch.tensor(list(map(bool, draw.labels)))
        here, there = (torch.from_numpy(_equal(draw.domains, name)) for name in (trained, tested))
        columns = torch.zeros(len(truth), n_shuffled, dtype=torch.bool)
        questions, blocks = (list(compress(part, here)) for part in (draw.questions, draw.blocks or range(len(truth))))
        options = {"n_permutations": n_shuffled, "blocks": blocks, "seed": seed}
        columns[here] = permute_labels(truth[here], questions, **options)
        z = probes.standardise(draw.activations[None])
        for fold in range(int(folds.max()) + 1):
            left, held = here & (folds != fold), there & (folds == fold)
            fits = probes.fit(z[:, left], columns[left], method="ridge", penalties=[PENALTY])
            found.append(compute_auroc(fits.scores(z[:, held])[0, 0].T, truth[held]))
    return float(torch.stack(found).mean(0).quantile(0.95))


class AcrossTasks(NamedTuple):
    """What probes of each task make of it and of others, in every layer: AUROCs on other questions."""

    tasks: tuple[str, ...]
    areas: Float[ndarray, "layer trained tested"]
    """By probes of one task each, which saw as many questions."""
    left_out: Float[ndarray, "layer task"]
    """By one probe of all other tasks together."""

    @property
    def within(self) -> Float[ndarray, "layer task"]:
        """By a probe of the same task."""
        return np.diagonal(self.areas, axis1=1, axis2=2)

    @property
    def across(self) -> Float[ndarray, "layer task"]:
        """By probes of one other task each, on average."""
        return (self.areas.sum(1) - self.within) / (len(self.tasks) - 1)

    def find_tied(self, kept: Sequence[int] | slice = slice(None)) -> list[int]:
        """The layers whose mean AUROC within some tasks lies within `probes.TIED` of the best."""
        means = self.within[:, kept].mean(1)
        return np.flatnonzero(means >= means.max() - probes.TIED).tolist()

    def choose_layers(self) -> list[int]:
        """For each task the first of the tied layers, as the other tasks have it."""
        numbers = range(len(self.tasks))
        return [self.find_tied([one for one in numbers if one != left])[0] for left in numbers]

    def measure_gap(
        self, layers: Sequence[int], *, alone: bool = True, families: Sequence[str] | None = None
    ) -> Estimate | None:
        """Within tasks less across (H3), with an interval over tasks; None where none is surely read within, or tasks
        are fewer than three.

        A task counts twice, as what is tested and as what the others' probes were trained on, so that losses of single
        tasks are no independent numbers. The interval is that of the jackknife, which leaves a task out in both places
        (Efron and Stein 1981), with Student's quantiles. Where `alone` is False it is over tested tasks only.

        Args:
            layers: for each task the one to read.
            alone: whether the probes from elsewhere are of one task each, or of all others together.
            families: of each task its family, of which there are at least three: probes of the same one don't count.
        """
        numbers = np.arange(len(self.tasks))
        within = self.within[layers, numbers]
        if len(numbers) < 3 or average(within.tolist(), seed=0, groups=self.tasks, of="tasks").low <= 0.5:
            return None
        kinds = numbers if families is None else np.asarray(families)
        if len(set(kinds.tolist())) < 3:
            return None
        lost = within[:, None] - self.areas[layers, :, numbers]  # tested trained
        pairs = kinds[:, None] != kinds
        each = _leave_out(lost, pairs) if alone else within - self.left_out[layers, numbers]
        gap, most = average(each.tolist(), seed=0, groups=self.tasks, of="tasks"), float(within.mean())
        # elsewhere chance is the least to expect
        return replace(gap, reach=(min(most - 1, gap.value), max(most - 0.5, gap.value)))


def _leave_out(values: Float[ndarray, "task task"], pairs: Bool[ndarray, "task task"]) -> Float[ndarray, " task"]:
    """The jackknife's pseudo-values of a mean over pairs of tasks: what each task adds, on either side."""
    numbers = np.arange(len(values))
    without = [values[pairs & (numbers[:, None] != left) & (numbers != left)].mean() for left in numbers]
    return len(values) * values[pairs].mean() - (len(values) - 1) * np.array(without)


def compare_tasks(layers: Sequence[Sequence[Draw]], *, seed: int) -> AcrossTasks:
    """Train on each task, and on all but it; test on it, in every layer.

    Args:
        layers: in each the draws of the data, whose domains are the tasks, the same in all.
        seed: of the folds.

    Raises:
        InputError: fewer than two tasks; one that lacks a class in a fold (see `drop_unfilled`).
    """
    tasks = sorted(set(layers[0][0].domains))
    if len(tasks) < 2:
        raise InputError(f"one task, {tasks}: legal are at least two")
    found = [np.mean([_compare_tasks(draw, tasks, seed) for draw in draws], axis=0) for draws in layers]
    areas = np.stack(found)
    return AcrossTasks(tuple(tasks), areas[:, :-1], areas[:, -1])


def _compare_tasks(draw: Draw, tasks: Sequence[str], seed: int) -> Float[ndarray, "trained tested"]:
    """A row for probes of each task, and a last one for those of all but the task that is tested."""
    rows_of = {task: _equal(draw.domains, task) for task in tasks}
    training = rows_of | {f"not {task}": ~rows for task, rows in rows_of.items()}
    areas = measure_areas(draw, training, seed=seed)
    alone = [[areas[one, other] for other in tasks] for one in tasks]
    return np.array([*alone, [areas[f"not {task}", task] for task in tasks]])


def assign_draw_folds(draw: Draw, seed: int) -> Int[Tensor, " row"]:
    """Questions stay together, and folds have both classes of every domain where they can."""
    strata = [f"{domain} {bool(label)}" for domain, label in zip(draw.domains, draw.labels, strict=True)]
    return assign_stratified_folds(strata, draw.questions, seed=seed)


def _pooled(
    draws: Sequence[tuple[Sequence[bool], Sequence[Hashable], Int[Tensor, " row"]]],
) -> tuple[list[bool], list[Hashable], list[int]]:
    """Draws of the data as one, with folds and groups of their own."""
    labels, groups, folds = [], [], []
    for number, (some, of_rows, of_fold) in enumerate(draws):
        first = max(folds, default=-1) + 1
        labels += list(map(bool, some))
        groups += [(number, group) for group in of_rows]
        folds += [first + fold for fold in of_fold.tolist()]
    return labels, groups, folds


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


def _flat(parts: Sequence[Rows]) -> Rows:
    return np.concatenate([np.asarray(part, dtype=bool) for part in parts])


def _equal(values: Sequence[str], wanted: str) -> Rows:
    return np.array([value == wanted for value in values])

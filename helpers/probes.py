"""Linear probes at many sites at once, with the controls that say what they are worth.

A probe reads a label off activations. That it succeeds says little by itself, so every sweep comes with a
null (the same search on permuted labels) and a control task (random labels for each type of word, Hewitt and
Liang 2019), and `baselines` says what is to be had without a probe: from the text alone, by a rule, or from
the model's own output. Folds never split a group, penalties are chosen inside the training folds, and so is
the site wherever a best one is reported (`Sweep.best`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from helpers import InputError, backends, hooks, linear
from helpers.claims import Estimate

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from helpers.hooks import Captured, Prompt
    from helpers.models import LoadedModel

Item, Result = TypeVar("Item"), TypeVar("Result")
PENALTIES = {"ridge": (10.0, 100.0, 1000.0, 10_000.0), "logistic": (1.0, 10.0, 100.0), "mean_difference": (1.0,)}
"""Tried by default; see `linear.fit` for what they mean."""
N_RESAMPLES = 1000
FEWEST_NEGATIVES = 300
"""For the recall at 1 % false positives: with fewer, 1 % is less than three of them."""
BLOCK = 300_000
"""Weights fitted in one call."""


class Site(NamedTuple):
    """A place in the model that a probe reads."""

    component: str
    layer: int
    position: str
    head: int | None = None

    def __str__(self) -> str:
        head = "" if self.head is None else f".{self.head}"
        return f"{self.component} {self.layer}{head} at {self.position}"


def sites_of(activations: Captured) -> list[Site]:
    """Every site that was captured; those of one component and position are neighbours.

    Raises:
        InputError: attention patterns or logits, whose size depends on the prompt.
    """
    sites = []
    for component, axes in activations.axes.items():
        if component in ("pattern", "logits"):
            raise InputError(f"{component} can't be probed: legal are sites with a fixed number of features")
        heads = range(activations[component].shape[3]) if len(axes) == 5 else (None,)
        sites += [
            Site(component, layer, position, head)
            for position in activations.positions
            for layer in activations.layers
            for head in heads
        ]
    return sites


def features(activations: Captured, site: Site) -> Float[Tensor, "row feature"]:
    """The activations of all prompts at one site."""
    place = activations.layers.index(site.layer), activations.positions.index(site.position)
    block = activations[site.component][:, *place]
    return block if site.head is None else block[:, site.head]


# Splits, permutations, control tasks


def grouped_folds(
    labels: Sequence[bool], groups: Sequence[Hashable], *, n_folds: int = 5, seed: int
) -> Int[Tensor, " row"]:
    """The fold of each row, by scikit-learn's `StratifiedGroupKFold`: no group in two, classes as even as can be.

    Raises:
        InputError: one class only, fewer than three folds, fewer groups than folds, or a fold without both classes.
    """
    labels, codes = _checked(labels, groups)
    if not 3 <= n_folds <= codes.max() + 1:
        raise InputError(f"{n_folds} folds: legal are 3 to {codes.max() + 1}, the number of groups")
    folds = stratified_folds(labels, codes, n_folds=n_folds, seed=seed)
    _check_folds(labels, codes, folds)
    return folds


def stratified_folds(
    strata: Sequence[Hashable], groups: Sequence[Hashable], *, n_folds: int = 5, seed: int
) -> Int[Tensor, " row"]:
    """The fold of each row: no group in two, and strata as even as can be, which may leave a fold without one."""
    import warnings

    import numpy as np
    import torch
    from sklearn.model_selection import StratifiedGroupKFold

    names, codes = np.asarray(strata), _codes(groups)
    folds = torch.zeros(len(codes), dtype=torch.long)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a stratum with fewer rows than folds
        for number, (_, held) in enumerate(splitter.split(names, names, codes)):
            folds[torch.from_numpy(held)] = number
    return folds


def enough(labels: Sequence[bool], groups: Sequence[Hashable], *, seed: int) -> bool:
    """Whether five folds of groups can each have both classes."""
    try:
        grouped_folds(labels, groups, seed=seed)
    except InputError:
        return False
    return True


def shared_folds(types: Sequence[Hashable], *, n_folds: int = 5, seed: int) -> Int[Tensor, " row"]:
    """The fold of each row such that the rows of a type are spread over the folds.

    Raises:
        InputError: no type that occurs twice.
    """
    import numpy as np
    import torch

    codes = _codes(types)
    if np.bincount(codes).max() < 2:
        raise InputError(f"each of the {len(codes)} types occurs once: legal are types of which some occur twice")
    generator = np.random.default_rng(seed)
    order = np.lexsort((generator.random(len(codes)), codes))  # by type, at random within
    folds = np.empty(len(codes), dtype=int)
    folds[order] = (np.arange(len(codes)) + generator.integers(n_folds)) % n_folds
    return torch.from_numpy(folds)


def permuted_labels(
    labels: Sequence[bool], groups: Sequence[Hashable], *, n_permutations: int, seed: int
) -> Bool[Tensor, "row permutation"]:
    """Labels as they might have been if nothing in a row bore on them.

    Groups with one label throughout exchange it with other such groups; within the others the rows exchange theirs.
    """
    import numpy as np
    import torch

    labels, codes = _checked(labels, groups)
    generator = np.random.default_rng(seed)
    rows_of = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    constant = [rows for rows in rows_of if np.ptp(labels[rows].astype(int)) == 0]
    mixed = [rows for rows in rows_of if np.ptp(labels[rows].astype(int)) == 1]
    permuted = np.empty((len(labels), n_permutations), dtype=bool)
    for column in permuted.T:
        for rows in mixed:
            column[rows] = generator.permutation(labels[rows])
        order = generator.permutation(len(constant))
        for rows, donor in zip(constant, order, strict=True):
            column[rows] = labels[constant[donor][0]]
    return torch.from_numpy(permuted)


def control_labels(types: Sequence[Hashable], *, n_draws: int, seed: int) -> Bool[Tensor, "row draw"]:
    """A label drawn at random for each type, in each draw one half of the types each (Hewitt and Liang 2019)."""
    import numpy as np
    import torch

    codes, generator = _codes(types), np.random.default_rng(seed)
    half = np.arange(codes.max() + 1) % 2 == 0
    return torch.from_numpy(np.stack([generator.permutation(half)[codes] for _ in range(n_draws)], axis=1))


# The sweep


@dataclass(frozen=True)
class Best:
    """What the best of many sites reads, where each fold's site was chosen without that fold."""

    sites: tuple[Site, ...]
    """The choice of each fold."""
    auroc: Estimate
    accuracy: Estimate
    null: tuple[float, float]
    """The AUROC's 95 % band, by the same choice on permuted labels; NaN, as `p_value`, without permutations."""
    p_value: float
    scores: Float[Tensor, " row"]


@dataclass(frozen=True)
class Sweep:
    """Probes of one task at many sites. Column 0 of `task` is the real one, the others are permutations."""

    sites: tuple[Site, ...]
    method: str
    labels: Bool[Tensor, " row"]
    groups: tuple[Hashable, ...]
    folds: Int[Tensor, " row"]
    scores: Float[Tensor, "site row"]
    """Of the real task, each row's by the probes that were trained without its fold."""
    auroc: Float[Tensor, "site fold task"]
    accuracy: Float[Tensor, "site fold task"]
    inner_loss: Float[Tensor, "site fold task"]
    """By cross-validation within the other folds, at the penalty that made it least."""
    shared_accuracy: Float[Tensor, " site"] | None
    """Of the real task, on folds that share word types."""
    control_accuracy: Float[Tensor, "site draw"] | None
    """Of the control tasks, on the same folds."""
    seed: int

    def table(self) -> pd.DataFrame:
        """One row for each site.

        `auroc` and `accuracy` are means over folds, with 95 % intervals (`_low`, `_high`) by bootstrap over groups;
        `null_low`, `null_high` the empirical 95 % band of the AUROC on permuted labels; `p_value` that of the site,
        `p_corrected` against the highest AUROC of all sites in each permutation. `selectivity` is `shared_accuracy`
        less `control_accuracy`, the mean over draws.
        """
        import pandas as pd

        frame = pd.DataFrame(self.sites)
        frame = frame.assign(head=frame["head"].astype("Int64"))
        auroc, null = self.auroc[..., 0].nanmean(1), self.auroc[..., 1:].nanmean(1)
        intervals = _intervals(self.scores, self.labels, self.groups, self.folds, self.seed)
        for name, values in (("auroc", auroc), ("accuracy", self.accuracy[..., 0].nanmean(1))):
            frame[name] = values.numpy()
            frame[f"{name}_low"], frame[f"{name}_high"] = intervals[name].T.numpy()
        if null.shape[1]:
            frame["null_low"], frame["null_high"] = _quantiles(null).T.numpy()
            frame["p_value"] = _p_values(auroc, null).numpy()
            frame["p_corrected"] = _p_values(auroc, null.max(0).values.expand_as(null)).numpy()
        if self.control_accuracy is not None:
            frame["shared_accuracy"] = self.shared_accuracy.numpy()
            frame["control_accuracy"] = self.control_accuracy.mean(1).numpy()
            frame["selectivity"] = frame["shared_accuracy"] - frame["control_accuracy"]
        return frame

    def leading(self) -> Site:
        """The site with the highest AUROC, to be used on other data than this."""
        return self.sites[int(self.auroc[..., 0].nanmean(1).argmax())]

    def best(self, sites: Sequence[Site] | None = None) -> Best:
        """The best of some sites, or of all: chosen for each fold by the loss within the others.

        The null repeats the choice in each permutation.

        Raises:
            InputError: a site that is not in the sweep.
        """
        import torch

        chosen = _numbers(self.sites, sites)
        winner = torch.tensor(chosen)[self.inner_loss[chosen].argmin(0)]  # fold task
        auroc = self.auroc.gather(0, winner[None])[0].nanmean(0)
        scores = self.scores[winner[self.folds, 0], torch.arange(len(self.folds))]
        found = _estimates(scores, self.labels, self.groups, self.folds, self.seed)
        null = auroc[None, 1:]
        low, high = _quantiles(null)[0].tolist() if null.shape[1] else (math.nan, math.nan)
        return Best(
            tuple(self.sites[number] for number in winner[:, 0].tolist()),
            found["auroc"],
            found["accuracy"],
            (low, high),
            float(_p_values(auroc[:1], null)[0]) if null.shape[1] else math.nan,
            scores,
        )


def sweep(
    activations: Captured,
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    *,
    types: Sequence[Hashable] | None,
    seed: int,
    sites: Sequence[Site] | None = None,
    method: str = "ridge",
    penalties: Sequence[float] | None = None,
    folds: int | Sequence[int] = 5,
    n_permutations: int = 100,
    n_control: int = 10,
    device: str = "cpu",
) -> Sweep:
    """Probe every site for one label, with its null and its control task.

    Args:
        groups: rows that must not be on both sides of a split, such as those with the same word.
        types: the word of each row for the control task, or None where there is no such thing.
        sites: all that were captured by default.
        penalties: those to choose from inside each training set; one leaves nothing to choose.
        folds: how many, or the number of each row's.
        n_permutations, n_control: permutations of the labels, draws of the control task; 0 for none.

    Raises:
        InputError: shapes that don't match, one class only, fewer groups than folds, NaN at a site.
    """
    import torch

    labels, _ = _checked(labels, groups)
    folds = _folds(labels, groups, folds, seed)
    real = torch.from_numpy(labels)[:, None]
    null = permuted_labels(labels, groups, n_permutations=n_permutations, seed=seed)
    tasks = [(torch.cat([real, null], dim=1), folds)]
    if types is not None and n_control:
        if len(types) != len(labels):
            raise InputError(f"{len(types)} types for {len(labels)} labels: legal is one for each")
        control = control_labels(types, n_draws=n_control, seed=seed)
        shared = shared_folds(types, n_folds=int(folds.max()) + 1, seed=seed)
        tasks.append((torch.cat([real, control], dim=1), shared))
    all_sites = sites_of(activations)
    chosen = [all_sites[number] for number in _numbers(all_sites, sites)]
    penalties = PENALTIES.get(method, (1.0,)) if penalties is None else tuple(penalties)

    def validated(block: Sequence[Site]) -> tuple[_Validated, ...]:
        z = _standardised(activations, block, len(labels)).to(device)
        return tuple(_validated(z, columns, split, method, penalties) for columns, split in tasks)

    blocks = list(_blocks(activations, chosen, len(penalties) * tasks[0][0].shape[1]))
    found, *control = (_joined(parts) for parts in zip(*_side_by_side(validated, blocks), strict=True))
    return Sweep(
        tuple(chosen),
        method,
        torch.from_numpy(labels),
        tuple(groups),
        folds,
        found.scores,
        found.auroc,
        found.accuracy,
        found.inner_loss,
        control[0].accuracy[..., 0].nanmean(1) if control else None,
        control[0].accuracy[..., 1:].nanmean(1) if control else None,
        seed,
    )


def _side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Each core takes the next item; the matrices are too small for several cores to share one well."""
    import torch

    n_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(n_threads, initializer=lambda: torch.set_num_threads(1)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(n_threads)


class _Validated(NamedTuple):
    """Cross-validated probes of some sites."""

    scores: Float[Tensor, "site row"]
    """Of the first task."""
    auroc: Float[Tensor, "site fold task"]
    accuracy: Float[Tensor, "site fold task"]
    inner_loss: Float[Tensor, "site fold task"] | None


def _joined(parts: Sequence[_Validated]) -> _Validated:
    import torch

    return _Validated(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _blocks(activations: Captured, sites: Sequence[Site], columns: int) -> Iterator[list[Site]]:
    """Several sites of one kind at a time."""
    for _, same in groupby(sites, key=lambda site: (site.component, site.position)):
        same = list(same)
        width = features(activations, same[0]).shape[1]
        size = max(1, min(BLOCK // (width * columns), 16))
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _standardised(activations: Captured, sites: Sequence[Site], n_rows: int) -> Float[Tensor, "site row feature"]:
    import torch

    block = torch.stack([features(activations, site) for site in sites])
    if block.shape[1] != n_rows:
        raise InputError(f"{n_rows} labels for {block.shape[1]} prompts: legal is one for each")
    bad = (~block.isfinite()).any(2).any(1).nonzero()
    if len(bad):
        raise InputError(f"{sites[int(bad[0])]} holds NaN: legal are positions that every prompt has")
    return linear.standardised(block)


def _validated(
    z: Float[Tensor, "site row feature"],
    tasks: Bool[Tensor, "row task"],
    folds: Int[Tensor, " row"],
    method: str,
    penalties: Sequence[float],
    rows: Bool[Tensor, " row"] | None = None,
) -> _Validated:
    """Nested cross-validation: penalties are chosen for each fold, site and task by the loss within the other folds.

    Rows outside `rows` are never trained on, and only scored.
    """
    import torch

    tasks, folds = tasks.to(z.device), folds.to(z.device)
    rows = torch.ones_like(folds, dtype=torch.bool) if rows is None else rows.to(z.device)
    losses, chosen = _inner_losses(z, tasks, folds, method, penalties, rows).min(0)
    found = _held_out(z, tasks, folds, method, penalties, rows, chosen)
    return found._replace(inner_loss=losses.movedim(1, 0).cpu())


def _inner_losses(
    z: Float[Tensor, "site row feature"],
    tasks: Bool[Tensor, "row task"],
    folds: Int[Tensor, " row"],
    method: str,
    penalties: Sequence[float],
    rows: Bool[Tensor, " row"],
) -> Float[Tensor, "penalty fold site task"]:
    """The mean loss by cross-validation among all folds but one.

    Trained without each two folds: the one validates what is chosen for the other, and the other way round.
    """
    n_folds = int(folds.max()) + 1
    losses = z.new_zeros(len(penalties), n_folds, len(z), tasks.shape[1])
    for pair in combinations(range(n_folds), 2):
        left = rows & (folds != pair[0]) & (folds != pair[1])
        fits = linear.fit(z[:, left], tasks[left], method=method, penalties=penalties)
        for outer, inner in (pair, pair[::-1]):
            held = rows & (folds == inner)
            losses[:, outer] += _loss(method, fits.scores(z[:, held]), tasks[held]).sum(2)
    for fold in range(n_folds):
        losses[:, fold] /= (rows & (folds != fold)).sum()
    return losses


def _held_out(
    z: Float[Tensor, "site row feature"],
    tasks: Bool[Tensor, "row task"],
    folds: Int[Tensor, " row"],
    method: str,
    penalties: Sequence[float],
    rows: Bool[Tensor, " row"],
    chosen: Int[Tensor, "fold site task"],
) -> _Validated:
    """Each fold by the probes trained without it, with the penalties chosen."""
    scores = z.new_empty(len(z), len(folds))
    auroc, accuracy = (z.new_empty(len(z), len(chosen), tasks.shape[1]) for _ in range(2))
    needed, place = chosen.unique(return_inverse=True)
    for fold in range(len(chosen)):
        held, left = folds == fold, rows & (folds != fold)
        fits = linear.fit(z[:, left], tasks[left], method=method, penalties=[penalties[number] for number in needed])
        every = fits.scores(z[:, held])
        found = every.gather(0, place[fold][None, :, None].expand(1, -1, every.shape[2], -1))[0]
        scores[:, held] = found[..., 0]
        auroc[:, fold] = areas(found.mT, tasks[held].T)
        accuracy[:, fold] = ((found > 0) == tasks[held]).float().mean(1)
    return _Validated(scores.cpu(), auroc.cpu(), accuracy.cpu(), None)


def _loss(
    method: str, scores: Float[Tensor, "penalty site row task"], labels: Bool[Tensor, "row task"]
) -> Float[Tensor, "penalty site row task"]:
    from torch.nn.functional import softplus

    signs = labels.float() * 2 - 1
    if method == "ridge":
        return (signs - scores).square()
    return softplus(-signs * scores) if method == "logistic" else (signs * scores <= 0).float()


# What a score is worth


def areas(scores: Float[Tensor, "*any row"], labels: Bool[Tensor, "*#any row"]) -> Float[Tensor, "*any"]:
    """The AUROC of each row of scores, ties counting one half; NaN where a class is missing."""
    import torch

    ordered, order = scores.sort(-1)
    labels = labels.expand_as(scores).gather(-1, order)
    new = torch.nn.functional.pad(ordered.diff() > 0, (1, 1), value=True)  # where another value begins
    place = torch.arange(1, new.shape[-1] + 1, device=scores.device).expand_as(new)
    first = place.where(new, 0).cummax(-1).values[..., :-1]
    last = place.where(new, new.shape[-1]).flip(-1).cummin(-1).values.flip(-1)[..., 1:] - 1
    n_positive, n_negative = labels.sum(-1), (~labels).sum(-1)
    ranks = ((first + last) * labels).sum(-1) / 2
    return (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def evaluate(
    scores: Float[Tensor, " row"],
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    *,
    folds: Sequence[int] | None = None,
    seed: int,
) -> dict[str, Estimate | None]:
    """AUROC, accuracy (of scores above zero) and recall at 1 % false positives of any score, by bootstrap over groups.

    The first two are means over folds, within which alone scores are compared. The recall pools the folds, and is None
    where fewer than 300 rows are negative.

    Raises:
        InputError: shapes that don't match, NaN, one class only, a group in two folds.
    """
    import torch

    scores = torch.as_tensor(scores, dtype=torch.float32)
    labels, folds = _scored(scores, labels, groups, folds)
    return _estimates(scores, labels, groups, folds, seed) | {"recall": _recall(scores, labels, groups, seed)}


def difference(
    one: Float[Tensor, " row"],
    other: Float[Tensor, " row"],
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    *,
    folds: Sequence[int] | None = None,
    seed: int,
) -> Estimate:
    """By how much the AUROC of one score exceeds that of another on the same rows: each bootstrap sample has both.

    Raises:
        InputError: as `evaluate`.
    """
    everywhere = [True] * len(labels)
    return combined([(1.0, one, everywhere), (-1.0, other, everywhere)], labels, groups, folds=folds, seed=seed)


def combined(
    terms: Sequence[tuple[float, Float[Tensor, " row"], Sequence[bool]]],
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    *,
    folds: Sequence[int] | None = None,
    seed: int,
) -> Estimate:
    """A weighted sum of AUROCs, each of a score on some of the rows: each bootstrap sample of the groups has all.

    Args:
        terms: weight, scores of all rows, and the rows on which they count.

    Raises:
        InputError: as `evaluate`; no term, or one on whose rows a class is missing.
    """
    import torch

    if not terms:
        raise InputError("no AUROC to combine: legal is at least one")
    parts, codes = [], torch.from_numpy(_codes(groups))
    for weight, scores, chosen in terms:
        scores, rows = torch.as_tensor(scores).double(), torch.as_tensor(chosen, dtype=torch.bool)
        if scores.shape == rows.shape:  # else refused in the next line
            scores = scores.where(rows, 0.0)
        truth, numbers = _scored(scores, labels, groups, folds)
        if len(set(truth[rows].tolist())) < 2:
            raise InputError("an AUROC on rows of one class: legal are rows of both")
        parts.append((weight, scores[rows][None], truth[rows], numbers[rows], rows))

    def total(weights: Float[Tensor, "resample row"]) -> Float[Tensor, " resample"]:
        return sum(
            weight * _resampled(scores, truth, codes[rows], numbers, weights[:, rows])["auroc"][0]
            for weight, scores, truth, numbers, rows in parts
        )

    found = _estimate(total, groups, len(labels), seed)
    used = torch.stack([rows for *_, rows in parts]).any(0)
    return replace(found, n=len({group for group, row in zip(groups, used.tolist(), strict=True) if row}))


def calibration_error(
    logits: Float[Tensor, " row"], labels: Sequence[bool], groups: Sequence[Hashable], *, n_bins: int = 10, seed: int
) -> Estimate:
    """By how much predicted probabilities miss the share of positives, on average over bins of equally many rows."""
    import torch

    checked, _ = _checked(labels, groups)
    miss = torch.sigmoid(torch.as_tensor(logits)).double() - torch.from_numpy(checked).double()
    bins = torch.as_tensor(logits).argsort().tensor_split(n_bins)

    def error(weights: Float[Tensor, "resample row"]) -> Float[Tensor, " resample"]:
        return sum((weights[:, rows] @ miss[rows]).abs() for rows in bins) / weights.sum(1)

    return _estimate(error, groups, len(checked), seed)


def cross_trained(
    activations: Float[Tensor, "row feature"],
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    training: Mapping[Hashable, Sequence[bool]],
    *,
    seed: int,
    method: str = "ridge",
    penalties: Sequence[float] | None = None,
    folds: int | Sequence[int] = 5,
) -> dict[Hashable, Float[Tensor, " row"]]:
    """For each training set a score of every row, by the probe that was trained on the set less the row's fold.

    Folds hold for all sets together, so that a group is never trained on where it is tested. Penalties are chosen
    within the training sets.

    Args:
        training: sets of rows by name.

    Raises:
        InputError: as `sweep`; a set in whose folds a class is missing.
    """
    import numpy as np
    import torch

    checked, _ = _checked(labels, groups)
    folds = _folds(checked, groups, folds, seed)
    z = _one_site(activations, len(checked))
    penalties = PENALTIES.get(method, (1.0,)) if penalties is None else penalties
    found = {}
    for name, chosen in training.items():
        rows = np.asarray(chosen, dtype=bool)
        if rows.shape != checked.shape:
            raise InputError(
                f"training set {name!r} for {rows.size} rows of {len(checked)}: legal is one value for each"
            )
        for fold in range(int(folds.max()) + 1):
            if len(set(checked[rows & (folds.numpy() == fold)])) < 2:
                raise InputError(f"fold {fold} of {name!r} has no row of one class: legal are fewer folds")
        tasks = torch.from_numpy(checked)[:, None]
        found[name] = _validated(z, tasks, folds, method, penalties, torch.from_numpy(rows)).scores[0]
    return found


def transfer(
    activations: Float[Tensor, "row feature"],
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    domains: Sequence[Hashable],
    *,
    seed: int,
    method: str = "ridge",
    penalties: Sequence[float] | None = None,
    folds: int | Sequence[int] = 5,
) -> pd.DataFrame:
    """Train within each domain, test within each: a row for each pair, with intervals by bootstrap over groups.

    Raises:
        InputError: as `cross_trained`.
    """
    import numpy as np
    import pandas as pd
    import torch

    checked, _ = _checked(labels, groups)
    if len(domains) != len(checked):
        raise InputError(f"{len(domains)} domains for {len(checked)} labels: legal is one for each")
    folds = _folds(checked, groups, folds, seed)
    rows_of = {domain: np.array([other == domain for other in domains]) for domain in dict.fromkeys(domains)}
    options = {"seed": seed, "method": method, "penalties": penalties, "folds": folds}
    found = []
    for trained, scores in cross_trained(activations, labels, groups, rows_of, **options).items():
        for tested, others in rows_of.items():
            kept = [group for group, other in zip(groups, others, strict=True) if other]
            truth = torch.from_numpy(checked)[others]
            result = _estimates(scores[others], truth, kept, folds[others], seed)
            found.append({"trained": trained, "tested": tested} | _columns(result))
    return pd.DataFrame(found)


def learning_curve(
    activations: Float[Tensor, "row feature"],
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    *,
    sizes: Sequence[int],
    of: str = "examples",
    n_draws: int = 20,
    seed: int,
    method: str = "ridge",
    penalty: float = 100.0,
    folds: int | Sequence[int] = 5,
) -> pd.DataFrame:
    """Train on a few and test on a fold that shares no group with them.

    Activations are z-scored by all rows of the training folds, which takes no label.

    Args:
        sizes: how many of each class, `of` "examples" (of as many groups as there are) or "groups" (all their rows).

    Returns:
        For each size the mean over draws, and the range that holds 95 % of them (`_low`, `_high`).

    Raises:
        InputError: more of a class than the training folds hold.
    """
    import numpy as np
    import pandas as pd
    import torch

    checked, codes = _checked(labels, groups)
    if of not in ("examples", "groups"):
        raise InputError(f"learning curve of {of!r}: legal are examples, groups")
    folds = _folds(checked, groups, folds, seed)
    z = _one_site(activations, len(checked))
    tasks = torch.from_numpy(checked)[:, None]
    generator = np.random.default_rng(seed)
    n_folds = int(folds.max()) + 1
    found = []
    for size in sizes:
        training = np.zeros((len(checked), n_draws), dtype=bool)
        for draw in range(n_draws):
            for label in (False, True):
                legal = (folds.numpy() != draw % n_folds) & (checked == label)
                training[_drawn(legal, codes, size, of, generator), draw] = True
        results = []
        for draw, chosen in enumerate(training.T):
            held = folds == draw % n_folds
            few = {"method": method, "penalties": [penalty], "like": z[:, ~held]}
            fits = linear.fit(z[:, chosen], tasks[chosen], **few)
            scores, truth = fits.scores(z[:, held])[0, 0, :, 0], tasks[held, 0]
            results.append((float(areas(scores, truth)), float(((scores > 0) == truth).float().mean())))
        row: dict[str, float] = {"size": size}
        for name, values in zip(("auroc", "accuracy"), zip(*results, strict=True), strict=True):
            low, high = np.quantile(values, (0.025, 0.975))
            row |= {name: float(np.mean(values)), f"{name}_low": float(low), f"{name}_high": float(high)}
        found.append(row)
    return pd.DataFrame(found)


def _drawn(
    legal: np.ndarray, codes: np.ndarray, size: int, of: str, generator: np.random.Generator
) -> Int[np.ndarray, " chosen"]:
    """Rows for a training set: of so many groups, or so many of them with as many groups as possible."""
    import numpy as np

    rows = generator.permutation(np.flatnonzero(legal))
    turn = np.array([int((codes[rows[:i]] == codes[row]).sum()) for i, row in enumerate(rows)])  # of its group
    rows = rows[np.argsort(turn, kind="stable")]  # one of each group, then a second of each …
    first = codes[rows[: len(set(codes[rows]))]]
    available = len(first) if of == "groups" else len(rows)
    if not 1 <= size <= available:
        raise InputError(f"{size} {of} of a class: legal are 1 to {available} within the training folds")
    return rows[np.isin(codes[rows], first[:size])] if of == "groups" else rows[:size]


# What is to be had without a probe


def output_logit_difference(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    positive: Sequence[int],
    negative: Sequence[int],
    *,
    positions: str | int | Sequence[int] | Mapping[str, int | Sequence[int]] = "last",
) -> Float[Tensor, "row position"]:
    """The model's own answer where a probe reads: log p(any of the positive tokens) - log p(any of the negative).

    Raises:
        InputError: no token, one on both sides, or one that the model does not have.
    """
    logits = hooks.capture(loaded, prompts, "logits", positions=positions)["logits"]
    for tokens in (positive, negative):
        if not tokens or not all(0 <= token < logits.shape[2] for token in tokens):
            raise InputError(f"answer tokens {list(tokens)}: legal are 0 to {logits.shape[2] - 1}, at least one")
    if both := set(positive) & set(negative):
        raise InputError(f"answer token {min(both)} is on both sides")
    return logits[..., list(positive)].logsumexp(-1) - logits[..., list(negative)].logsumexp(-1)


def baselines(
    loaded: LoadedModel,
    texts: Sequence[str],
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    *,
    answers: tuple[Sequence[int], Sequence[int]],
    rules: Mapping[str, Sequence[float]],
    positions: str | int | Sequence[int] | Mapping[str, int | Sequence[int]] = "last",
    folds: int | Sequence[int] = 5,
    seed: int,
) -> dict[str, Float[Tensor, " row"]]:
    """Scores that are to be had without the model's inside, on the folds of a sweep with the same groups and seed.

    The majority class of the training folds; TF-IDF of word and of character n-grams with logistic regression; the
    mean of the model's own input embeddings with ridge; each of `rules`, a score for each row; and the model's own
    output (`output_logit_difference`) at each position. The last two are less the median of the training folds, so that
    zero is a threshold. `compared` makes a table of them.

    Raises:
        InputError: as `evaluate` and `output_logit_difference`.
    """
    import torch

    checked, _ = _checked(labels, groups)
    folds = _folds(checked, groups, folds, seed)
    scores = {"majority class": _majority(checked, folds)}
    scores |= text_baselines(loaded, texts, checked, groups, folds=folds, seed=seed)
    unfitted = {f"rule: {name}": torch.as_tensor(values, dtype=torch.float32) for name, values in rules.items()}
    output = output_logit_difference(loaded, texts, *answers, positions=positions)
    names = hooks.positions_of(positions, torch.tensor([len(loaded.encode(text)) for text in texts]))[0]
    unfitted |= {f"the model's output at {name}": column for name, column in zip(names, output.T, strict=True)}
    for name, values in unfitted.items():
        if values.shape != (len(checked),):
            raise InputError(f"{name}: {len(values)} scores for {len(checked)} labels: legal is one for each")
        middle = torch.stack([values[folds != fold].median() for fold in range(int(folds.max()) + 1)])
        scores[name] = values - middle[folds]
    return scores


def compared(
    scores: Mapping[str, Float[Tensor, " row"]],
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    *,
    folds: Sequence[int] | None = None,
    seed: int,
) -> pd.DataFrame:
    """A row for each score with what `evaluate` says of it."""
    import pandas as pd

    return pd.DataFrame(
        {"scores": name} | _columns(evaluate(values, labels, groups, folds=folds, seed=seed))
        for name, values in scores.items()
    )


def _majority(labels: np.ndarray, folds: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    import torch

    signs = torch.from_numpy(labels).float() * 2 - 1
    means = torch.stack([signs[folds != fold].mean() for fold in range(int(folds.max()) + 1)])
    return means[folds]


def text_baselines(
    loaded: LoadedModel,
    texts: Sequence[str],
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    *,
    folds: int | Sequence[int] = 5,
    seed: int,
) -> dict[str, Float[Tensor, " row"]]:
    """Those of `baselines` that are fitted to the text: n-grams, and the mean of the input embeddings."""
    import torch
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline

    checked, _ = _checked(labels, groups)
    if len(texts) != len(checked):
        raise InputError(f"{len(texts)} texts for {len(checked)} labels: legal is one for each")
    folds = _folds(checked, groups, folds, seed)
    kinds = {
        "word n-grams": {"ngram_range": (1, 2), "token_pattern": r"\S+"},
        "character n-grams": {"analyzer": "char_wb", "ngram_range": (2, 4)},
    }
    scores = {
        name: torch.from_numpy(
            cross_val_predict(
                make_pipeline(TfidfVectorizer(**options), LogisticRegression(max_iter=1000)),
                list(texts),
                checked,
                cv=PredefinedSplit(folds.numpy()),
                method="decision_function",
            )
        ).float()
        for name, options in kinds.items()
    }
    z = _one_site(_mean_embedding(loaded, texts), len(checked))
    tasks = torch.from_numpy(checked)[:, None]
    scores["mean of the input embeddings"] = _validated(z, tasks, folds, "ridge", PENALTIES["ridge"]).scores[0]
    return scores


def _mean_embedding(loaded: LoadedModel, texts: Sequence[str]) -> Float[Tensor, "row d_model"]:
    import torch

    table = backends.huggingface_model(loaded).get_input_embeddings().weight
    return torch.stack([table[torch.tensor(loaded.encode(text))].float().mean(0).cpu() for text in texts])


# How it is done


def _codes(groups: Sequence[Hashable]) -> Int[np.ndarray, " row"]:
    """Groups by number, in the order in which they come."""
    import numpy as np

    groups = [group.item() if hasattr(group, "item") else group for group in groups]  # equal tensors are no equal keys
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups])


def _checked(
    labels: Sequence[bool], groups: Sequence[Hashable]
) -> tuple[Bool[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    import numpy as np

    given = np.asarray(labels)
    if given.ndim != 1 or len(given) != len(groups):
        raise InputError(f"{given.size} labels for {len(groups)} groups: legal is one for each")
    if not set(given.tolist()) <= {0, 1}:
        raise InputError(f"labels {sorted(set(map(str, given.tolist())))[:5]}: legal are True and False")
    if len(set(given.tolist())) < 2:
        raise InputError(f"all {len(given)} labels are of one class: legal are labels of two")
    return given.astype(bool), _codes(groups)


def _folds(
    labels: Bool[np.ndarray, " row"], groups: Sequence[Hashable], folds: int | Sequence[int], seed: int
) -> Int[Tensor, " row"]:
    """Folds by number, or those that were given, checked."""
    import torch

    if isinstance(folds, int):
        return grouped_folds(labels, groups, n_folds=folds, seed=seed)
    given = torch.as_tensor(folds)
    if len(set(given.tolist())) < 3:
        raise InputError(f"folds {sorted(set(given.tolist()))}: legal are at least three")
    _check_folds(labels, _checked(labels, groups)[1], given)
    return given


def _scored(
    scores: Float[Tensor, " row"], labels: Sequence[bool], groups: Sequence[Hashable], folds: Sequence[int] | None
) -> tuple[Bool[Tensor, " row"], Int[Tensor, " row"]]:
    """Labels and folds of scores, all checked; without folds all rows are one."""
    import torch

    checked, codes = _checked(labels, groups)
    if scores.shape != (len(checked),) or not scores.isfinite().all():
        raise InputError(f"scores of shape {list(scores.shape)}: legal are {len(checked)} finite numbers")
    folds = torch.zeros(len(checked), dtype=torch.long) if folds is None else torch.as_tensor(folds)
    _check_folds(checked, codes, folds)
    return torch.from_numpy(checked), folds


def _check_folds(labels: Bool[np.ndarray, " row"], codes: Int[np.ndarray, " row"], folds: Int[Tensor, " row"]) -> None:
    numbers = folds.numpy()
    if len(numbers) != len(labels) or set(numbers.tolist()) != set(range(int(numbers.max()) + 1)):
        raise InputError(f"{len(numbers)} folds for {len(labels)} rows: legal are numbers from 0 on, one for each row")
    if len(set(zip(codes.tolist(), numbers.tolist(), strict=True))) > codes.max() + 1:
        raise InputError("a group is in two folds, so that its rows would be trained on and tested: legal is one fold")
    for fold in range(int(numbers.max()) + 1):
        if len(set(labels[numbers == fold])) < 2:
            raise InputError(
                f"fold {fold} has {int((numbers == fold).sum())} rows of one class only: legal are folds with both; "
                "take fewer folds or another seed"
            )


def _numbers(all_sites: Sequence[Site], sites: Sequence[Site] | None) -> list[int]:
    places = {site: number for number, site in enumerate(all_sites)}
    for site in sites or ():
        if site not in places:
            raise InputError(f"no activations of {site}: legal are {all_sites[0]} to {all_sites[-1]}")
    if sites is not None and not len(sites):
        raise InputError("no sites: legal is at least one")
    return list(range(len(all_sites))) if sites is None else [places[site] for site in sites]


def _one_site(activations: Float[Tensor, "row feature"], n_rows: int) -> Float[Tensor, "1 row feature"]:
    if activations.ndim != 2 or len(activations) != n_rows:
        raise InputError(f"activations of shape {list(activations.shape)} for {n_rows} labels: legal is row feature")
    if not activations.isfinite().all():
        raise InputError("the activations hold NaN or infinity: legal are finite numbers")
    return linear.standardised(activations[None])


def _quantiles(null: Float[Tensor, "*any permutation"]) -> Float[Tensor, "*any 2"]:
    import torch

    return torch.stack([null.quantile(share, dim=-1) for share in (0.025, 0.975)], dim=-1)


def _p_values(found: Float[Tensor, " site"], null: Float[Tensor, "site permutation"]) -> Float[Tensor, " site"]:
    return (1 + (null >= found[:, None]).sum(1)) / (1 + null.shape[1])


def _weights(groups: Sequence[Hashable], n_rows: int, seed: int) -> Float[Tensor, "resample row"]:
    """How often each row is in each bootstrap sample of the groups; the first row of weights is the data itself."""
    import numpy as np
    import torch

    codes = _codes(groups)
    n_groups = codes.max() + 1
    counts = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=N_RESAMPLES)
    return torch.from_numpy(np.concatenate([np.ones((1, n_rows)), counts[:, codes]])).float()


def _estimate(statistic, groups: Sequence[Hashable], n_rows: int, seed: int) -> Estimate:
    """A statistic of row weights with its interval."""
    import torch

    found = statistic(_weights(groups, n_rows, seed).double())
    low, high = torch.nanquantile(found[1:], torch.tensor([0.025, 0.975], dtype=found.dtype)).tolist()
    return Estimate(float(found[0]), low, high, len(set(_codes(groups))), "groups")


def _resampled(
    scores: Float[Tensor, "site row"],
    labels: Bool[Tensor, " row"],
    groups: Int[Tensor, " row"],
    folds: Int[Tensor, " row"],
    weights: Float[Tensor, "resample row"],
) -> dict[str, Float[Tensor, "site resample"]]:
    """AUROC and accuracy, means over folds, under each row of weights.

    A group that was drawn twice is not compared with its own copy, and a fold counts by what was drawn of it: with few
    groups in a fold most pairs would else be within a group, whose rows have much in common, and the interval would lie
    beside its value.
    """
    import torch

    concordant_pairs, pairs, accuracy = [], [], []
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        positive, negative = held & labels, held & ~labels
        difference = scores[:, positive, None] - scores[:, None, negative]
        concordant = (difference.sign() + 1) / 2
        for_positive, for_negative = weights[:, positive], weights[:, negative]
        same = groups[positive, None] == groups[None, negative]
        copies = for_positive.square() - for_positive
        share = 1 / same.numel() if same.numel() else math.nan  # each fold counts as much as any other
        found = ((for_positive @ concordant) * for_negative).sum(-1) - (concordant * same).sum(-1) @ copies.T
        concordant_pairs.append(found * share)
        pairs.append((for_positive.sum(1) * for_negative.sum(1) - copies @ same.sum(1).to(copies)) * share)
        right = ((scores[:, held] > 0) == labels[held]).to(weights)
        accuracy.append(right @ weights[:, held].T / weights[:, held].sum(1))
    auroc = torch.stack(concordant_pairs).nansum(0) / torch.stack(pairs).nansum(0)
    return {"auroc": auroc, "accuracy": torch.stack(accuracy).nanmean(0)}


def _intervals(
    scores: Float[Tensor, "site row"],
    labels: Bool[Tensor, " row"],
    groups: Sequence[Hashable],
    folds: Int[Tensor, " row"],
    seed: int,
) -> dict[str, Float[Tensor, "site 2"]]:
    import torch

    weights = _weights(groups, len(labels), seed)
    numbers = torch.from_numpy(_codes(groups))
    found = [_resampled(block, labels, numbers, folds, weights) for block in scores.split(16)]
    quantiles = torch.tensor([0.025, 0.975])
    return {
        name: torch.nanquantile(torch.cat([part[name] for part in found])[:, 1:], quantiles, dim=1).T
        for name in ("auroc", "accuracy")
    }


def _estimates(
    scores: Float[Tensor, " row"],
    labels: Bool[Tensor, " row"],
    groups: Sequence[Hashable],
    folds: Int[Tensor, " row"],
    seed: int,
) -> dict[str, Estimate]:
    import torch

    numbers = torch.from_numpy(_codes(groups))
    return {
        name: _estimate(
            lambda weights, name=name: _resampled(scores[None].double(), labels, numbers, folds, weights)[name][0],
            groups,
            len(labels),
            seed,
        )
        for name in ("auroc", "accuracy")
    }


def _recall(
    scores: Float[Tensor, " row"], labels: Bool[Tensor, " row"], groups: Sequence[Hashable], seed: int
) -> Estimate | None:
    """The share of positives above the threshold that 1 % of the negatives pass; equal scores count as false."""
    import numpy as np
    import torch

    if int((~labels).sum()) < FEWEST_NEGATIVES:
        return None
    order = torch.from_numpy(np.lexsort((labels.numpy(), -scores.numpy())).copy())
    positive = labels[order].double()

    def recall(weights: Float[Tensor, "resample row"]) -> Float[Tensor, " resample"]:
        weights = weights[:, order]
        false, true = (weights * (1 - positive)).cumsum(1), (weights * positive).cumsum(1)
        return (true * (false <= 0.01 * false[:, -1:])).max(1).values / true[:, -1]

    return _estimate(recall, groups, len(labels), seed)


def _columns(estimates: Mapping[str, Estimate | None]) -> dict[str, float | None]:
    """Estimates as columns of a table."""
    columns: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        low, high = (estimate.low, estimate.high) if estimate else (None, None)
        columns |= {name: estimate.value if estimate else None, f"{name}_low": low, f"{name}_high": high}
    return columns

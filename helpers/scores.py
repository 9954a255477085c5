"""What a score is worth: AUROC, accuracy, recall, calibration, each with its interval by bootstrap over groups.

AUROC and accuracy are means over folds, within which alone scores are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers import InputError
from helpers.claims import Estimate
from helpers.engine.inputs import as_list, as_mask, as_tensor, as_whole, as_wholes, is_row, make_generator
from helpers.folds import Folds, Groups, Labels, check_folds, check_labels, number_groups

N_RESAMPLES = 1000
FEWEST_NEGATIVES = 300
"""For the recall at 1 % false positives: with fewer, 1 % is less than three of them."""


def compute_auroc(scores: Float[Tensor, "*any row"], labels: Bool[Tensor, "*#any row"]) -> Float[Tensor, "*any"]:
    """The AUROC of each row of scores, ties counting one half; NaN where a class is missing."""
    scores = as_tensor(scores, "scores")
    labels = as_tensor(labels, "labels").to(scores.device).bool()
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
    scores: Float[Tensor, " row"], labels: Labels, groups: Groups, *, folds: Folds | None = None, seed: int
) -> dict[str, Estimate | None]:
    """AUROC, accuracy (of scores above zero) and recall at 1 % false positives of any score, by bootstrap over groups.

    The first two are means over folds, within which alone scores are compared. The recall pools the folds, and is None
    where fewer than 300 rows are negative.

    Args:
        scores: higher for True, finite.
        labels: True or False for each row.
        groups: what the bootstrap draws: rows with equal ones go together.
        folds: the number of each row's; by default all rows are in one.
        seed: of the bootstrap.

    Raises:
        InputError: shapes that don't match, NaN, one class only, a group in two folds.
    """
    scores = as_tensor(scores, "scores").cpu().float()
    labels, folds = _checked_scores(scores, labels, groups, folds)
    return estimate_scores(scores, labels, groups, folds, seed) | {"recall": _recall(scores, labels, groups, seed)}


def subtract(
    one: Float[Tensor, " row"],
    other: Float[Tensor, " row"],
    labels: Labels,
    groups: Groups,
    *,
    folds: Folds | None = None,
    seed: int,
) -> Estimate:
    """By how much the AUROC of one score exceeds that of another on the same rows: each bootstrap sample has both.

    The other is what is to be beaten: the estimate's reach is from nought to one, less it.

    Args:
        one: a score for each row.
        other: another one.
        labels: True or False for each row.
        groups: what the bootstrap draws: rows with equal ones go together.
        folds: the number of each row's; by default all rows are in one.
        seed: of the bootstrap.

    Raises:
        InputError: as `evaluate`.
    """
    everywhere = [True] * len(labels)
    found = combine([(1.0, one, everywhere), (-1.0, other, everywhere)], labels, groups, folds=folds, seed=seed)
    beaten = as_tensor(other, "scores").cpu().double()
    truth, numbers = _checked_scores(beaten, labels, groups, folds)
    codes, once = torch.from_numpy(number_groups(groups)), torch.ones(1, len(labels)).double()
    known = float(_resampled(beaten[None], truth, codes, numbers, once)["auroc"])
    return replace(found, reach=(-known, 1 - known))


def compute_separation(scores: Float[Tensor, "*any row"], labels: Labels, *, folds: Folds) -> Float[Tensor, "*any"]:
    """By how much the mean score of True lies above that of False, in standard deviations within classes and folds.

    A mean over folds, within which alone scores are compared. Unlike an AUROC it knows no ceiling; between two normal
    distributions of one width an AUROC of A is a separation of the square root of two times the normal quantile of A.

    Args:
        scores: for each row, finite.
        labels: True or False for each row.
        folds: the number of each row's.
    """
    cells = _number_cells(torch.as_tensor(as_list(labels)), torch.as_tensor(as_list(folds)))
    return _separate(as_tensor(scores, "scores").cpu().double(), cells, torch.ones(1, len(cells)).double())[..., 0]


def measure_separation(
    scores: Float[Tensor, " row"], labels: Labels, groups: Groups, *, folds: Folds | None = None, seed: int
) -> Estimate:
    """`compute_separation` with its interval by bootstrap over groups; arguments and errors as of `evaluate`."""
    scores = as_tensor(scores, "scores").cpu().double()
    truth, numbers = _checked_scores(scores, labels, groups, folds)
    cells = _number_cells(truth, numbers)
    return _estimate(lambda weights: _separate(scores, cells, weights), groups, len(truth), seed)


def _number_cells(labels: Bool[Tensor, " row"], folds: Int[Tensor, " row"]) -> Float[Tensor, "row cell"]:
    """Of each row its fold and class: one of False and one of True for each fold."""
    return torch.nn.functional.one_hot(2 * folds.long() + labels.long(), 2 * (int(folds.max()) + 1)).double()


def _separate(
    scores: Float[Tensor, "*any row"], cells: Float[Tensor, "row cell"], weights: Float[Tensor, "resample row"]
) -> Float[Tensor, "*any resample"]:
    scores = scores - scores.mean(-1, keepdim=True)  # so that squares don't cancel
    totals = weights @ cells
    sums, squares = ((scores.pow(power)[..., None, :] * weights) @ cells for power in (1, 2))
    means = sums / totals
    within = (squares - sums * means).nansum(-1) / (totals.sum(-1) - (totals > 0).sum(-1))
    gaps = (means[..., 1::2] - means[..., ::2]).nanmean(-1)
    return torch.where(within > 0, gaps / within.clamp(min=1e-30).sqrt(), 0.0)


def combine(
    terms: Sequence[tuple[float, Float[Tensor, " row"], Labels]],
    labels: Labels,
    groups: Groups,
    *,
    folds: Folds | None = None,
    seed: int,
) -> Estimate:
    """A weighted sum of AUROCs, each of a score on some of the rows: each bootstrap sample of the groups has all.

    Args:
        terms: weight, scores of all rows, and the rows on which they count.
        labels: True or False for each row.
        groups: what the bootstrap draws: rows with equal ones go together.
        folds: the number of each row's; by default all rows are in one.
        seed: of the bootstrap.

    Raises:
        InputError: as `evaluate`; no term, or one on whose rows a class is missing.
    """
    if not terms:
        raise InputError("no AUROC to combine: legal is at least one")
    parts, codes = [], torch.from_numpy(number_groups(groups))
    for term in terms:
        if not is_row(term) or len(term) != 3:
            raise InputError(f"term {str(term)[:60]}: legal are weight, scores and rows")
        weight, scores, chosen = term
        weight = float(as_tensor(weight, "weight"))
        scores, rows = (
            as_tensor(scores, "scores").cpu().double(),
            torch.from_numpy(as_mask(chosen, len(labels), "rows of a term")),
        )
        if scores.shape == rows.shape:  # else refused in the next line
            scores = scores.where(rows, 0.0)
        truth, numbers = _checked_scores(scores, labels, groups, folds)
        if len(set(truth[rows].tolist())) < 2:
            raise InputError("an AUROC on rows of one class: legal are rows of both")
        parts.append((weight, scores[rows][None], truth[rows], numbers[rows], rows))

    def total(weights: Float[Tensor, "resample row"]) -> Float[Tensor, " resample"]:
        each = (
            weight * _resampled(scores, truth, codes[rows], numbers, weights[:, rows])["auroc"][0]
            for weight, scores, truth, numbers, rows in parts
        )
        return sum(each, torch.zeros(()))

    found = _estimate(total, groups, len(labels), seed)
    used = torch.stack([rows for *_, rows in parts]).any(0)
    return replace(found, n=len({group for group, row in zip(groups, used.tolist(), strict=True) if row}))


def measure_calibration_error(
    logits: Float[Tensor, " row"], labels: Labels, groups: Groups, *, n_bins: int = 10, seed: int
) -> Estimate:
    """By how much predicted probabilities miss the share of positives, on average over bins of equally many rows.

    Args:
        logits: log odds of True, for each row.
        labels: True or False for each row.
        groups: what the bootstrap draws: rows with equal ones go together.
        n_bins: of equally many rows.
        seed: of the bootstrap.
    """
    checked, _ = check_labels(labels, groups)
    logits = as_tensor(logits, "logits").cpu()
    truth, _ = _checked_scores(logits, checked, groups, None)
    if not 1 <= as_whole(n_bins) <= len(truth):
        raise InputError(f"{n_bins} bins: legal are 1 to {len(truth)}, the number of rows")
    miss = torch.sigmoid(logits).double() - truth.double()
    bins = logits.argsort().tensor_split(n_bins)

    def error(weights: Float[Tensor, "resample row"]) -> Float[Tensor, " resample"]:
        return sum((weights[:, rows] @ miss[rows]).abs() for rows in bins) / weights.sum(1)

    return _estimate(error, groups, len(checked), seed)


def tabulate(
    scores: Mapping[str, Float[Tensor, " row"]],
    labels: Labels,
    groups: Groups,
    *,
    folds: Folds | None = None,
    seed: int,
) -> pd.DataFrame:
    """A row for each score with what `evaluate` says of it.

    Args:
        scores: by name, each with a number for each row.
        labels: True or False for each row.
        groups: what the bootstrap draws: rows with equal ones go together.
        folds: the number of each row's; by default all rows are in one.
        seed: of the bootstrap.
    """
    if not isinstance(scores, Mapping):
        raise InputError(f"scores {str(scores)[:60]}: legal are scores by name")
    return pd.DataFrame(
        {"scores": name} | as_columns(evaluate(values, labels, groups, folds=folds, seed=seed))
        for name, values in scores.items()
    )


def _checked_scores(
    scores: Float[Tensor, " row"], labels: Labels, groups: Groups, folds: Folds | None
) -> tuple[Bool[Tensor, " row"], Int[Tensor, " row"]]:
    """Labels and folds of scores, all checked; without folds all rows are one."""
    checked, codes = check_labels(labels, groups)
    if scores.shape != (len(checked),) or not scores.isfinite().all():
        raise InputError(f"scores of shape {list(scores.shape)}: legal are {len(checked)} finite numbers")
    folds = torch.zeros(len(checked), dtype=torch.long) if folds is None else torch.tensor(as_wholes(folds))
    check_folds(checked, codes, folds)
    return torch.from_numpy(checked), folds


def compute_null_band(null: Float[Tensor, "*any permutation"]) -> Float[Tensor, "*any 2"]:
    """The band that holds 95 % of the permutations."""
    return torch.stack([null.quantile(share, dim=-1) for share in (0.025, 0.975)], dim=-1)


def compute_p_values(found: Float[Tensor, " site"], null: Float[Tensor, "site permutation"]) -> Float[Tensor, " site"]:
    """The share of permutations that reach what was found, itself counted among them."""
    return (1 + (null >= found[:, None]).sum(1)) / (1 + null.shape[1])


def _weights(groups: Groups, n_rows: int, seed: int) -> Float[Tensor, "resample row"]:
    """How often each row is in each bootstrap sample of the groups; the first row of weights is the data itself."""
    codes = number_groups(groups)
    n_groups = codes.max() + 1
    counts = make_generator(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=N_RESAMPLES)
    return torch.from_numpy(np.concatenate([np.ones((1, n_rows)), counts[:, codes]])).float()


def _estimate(statistic, groups: Groups, n_rows: int, seed: int) -> Estimate:
    """A statistic of row weights with its interval."""
    found = statistic(_weights(groups, n_rows, seed).double())
    low, high = torch.nanquantile(found[1:], torch.tensor([0.025, 0.975], dtype=found.dtype)).tolist()
    return Estimate(float(found[0]), low, high, len(set(number_groups(groups))), "groups")


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


def bootstrap_intervals(
    scores: Float[Tensor, "site row"],
    labels: Bool[Tensor, " row"],
    groups: Groups,
    folds: Int[Tensor, " row"],
    seed: int,
) -> dict[str, Float[Tensor, "site 2"]]:
    """The 95 % intervals of AUROC and accuracy of many scores at once; arguments as for `evaluate`, checked."""
    weights = _weights(groups, len(labels), seed)
    numbers = torch.from_numpy(number_groups(groups))
    found = [_resampled(block, labels, numbers, folds, weights) for block in scores.split(16)]
    quantiles = torch.tensor([0.025, 0.975])
    return {
        name: torch.nanquantile(torch.cat([part[name] for part in found])[:, 1:], quantiles, dim=1).T
        for name in ("auroc", "accuracy")
    }


def estimate_scores(
    scores: Float[Tensor, " row"], labels: Bool[Tensor, " row"], groups: Groups, folds: Int[Tensor, " row"], seed: int
) -> dict[str, Estimate]:
    """AUROC and accuracy of one score; arguments as for `evaluate`, checked."""
    numbers = torch.from_numpy(number_groups(groups))
    return {
        name: _estimate(
            lambda weights, name=name: _resampled(scores[None].double(), labels, numbers, folds, weights)[name][0],
            groups,
            len(labels),
            seed,
        )
        for name in ("auroc", "accuracy")
    }


def _recall(scores: Float[Tensor, " row"], labels: Bool[Tensor, " row"], groups: Groups, seed: int) -> Estimate | None:
    """The share of positives above the threshold that 1 % of the negatives pass; equal scores count as false."""
    if int((~labels).sum()) < FEWEST_NEGATIVES:
        return None
    order = torch.from_numpy(np.lexsort((labels.numpy(), -scores.numpy())).copy())
    positive = labels[order].double()

    def recall(weights: Float[Tensor, "resample row"]) -> Float[Tensor, " resample"]:
        weights = weights[:, order]
        false, true = (weights * (1 - positive)).cumsum(1), (weights * positive).cumsum(1)
        return (true * (false <= 0.01 * false[:, -1:])).max(1).values / true[:, -1]

    return _estimate(recall, groups, len(labels), seed)


def as_columns(estimates: Mapping[str, Estimate | None]) -> dict[str, float | None]:
    """Estimates as columns of a table."""
    columns: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        low, high = (estimate.low, estimate.high) if estimate else (None, None)
        columns |= {name: estimate.value if estimate else None, f"{name}_low": low, f"{name}_high": high}
    return columns

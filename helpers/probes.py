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
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers import InputError
from helpers.claims import Estimate
from helpers.engine.inputs import as_count, as_list, as_mask, as_names, as_tensor, as_wholes, check_seed, make_generator
from helpers.engine.solvers import Method, check_penalties, fit, standardise
from helpers.folds import (
    Folds,
    Groups,
    Labels,
    assign_shared_folds,
    check_labels,
    draw_control_labels,
    permute_labels,
    resolve_folds,
)
from helpers.hooks import Captured, SiteName
from helpers.models import check_device
from helpers.scores import (
    as_columns,
    bootstrap_intervals,
    compute_auroc,
    compute_null_band,
    compute_p_values,
    estimate_scores,
)

Item = TypeVar("Item")
Result = TypeVar("Result")
Name = TypeVar("Name", bound=Hashable)
__all__ = [
    "Best",
    "Site",
    "Sweep",
    "cross_train",
    "fit",
    "list_sites",
    "read_features",
    "standardise",
    "sweep",
    "trace_learning_curve",
    "transfer",
]
PENALTIES: dict[Method, tuple[float, ...]] = {
    "ridge": (10.0, 100.0, 1000.0, 10_000.0),
    "logistic": (1.0, 10.0, 100.0),
    "mean_difference": (1.0,),
}
"""Tried by default; see `fit` for what they mean."""
BLOCK, SITES_AT_ONCE = {"cpu": 300_000, "cuda": 10_000_000}, {"cpu": 16, "cuda": 64}
"""Weights fitted in one call, and sites: on a GPU many, as there small operations wait to be launched."""
TIED = 0.01
"""In AUROC: sites that lie so near the best tie, and the first of them is taken."""
Unit = Literal["examples", "groups"]
"""What a learning curve counts."""


class Site(NamedTuple):
    """A place in the model that a probe reads."""

    component: SiteName
    layer: int
    position: str
    head: int | None = None

    def __str__(self) -> str:
        head = "" if self.head is None else f".{self.head}"
        return f"{self.component} {self.layer}{head} at {self.position}"


def list_sites(activations: Captured) -> list[Site]:
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


def read_features(activations: Captured, site: Site) -> Float[Tensor, "row feature"]:
    """The activations of all prompts at one site."""
    n_heads = activations[site.component].shape[3] if len(activations.axes[site.component]) == 5 else 0
    known = site.layer in activations.layers and site.position in activations.positions
    if not known or not (site.head is None if not n_heads else site.head in range(n_heads)):
        raise InputError(f"no activations of {site}: legal are those of list_sites")
    place = activations.layers.index(site.layer), activations.positions.index(site.position)
    block = activations[site.component][:, *place]
    return block if site.head is None else block[:, site.head]


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
    method: Method
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
        frame = pd.DataFrame(self.sites)
        frame = frame.assign(head=frame["head"].astype("Int64"))
        auroc, null = self.auroc[..., 0].nanmean(1), self.auroc[..., 1:].nanmean(1)
        intervals = bootstrap_intervals(self.scores, self.labels, self.groups, self.folds, self.seed)
        for name, values in (("auroc", auroc), ("accuracy", self.accuracy[..., 0].nanmean(1))):
            frame[name] = values.numpy()
            frame[f"{name}_low"], frame[f"{name}_high"] = intervals[name].T.numpy()
        if null.shape[1]:
            frame["null_low"], frame["null_high"] = compute_null_band(null).T.numpy()
            frame["p_value"] = compute_p_values(auroc, null).numpy()
            frame["p_corrected"] = compute_p_values(auroc, null.max(0).values.expand_as(null)).numpy()
        if self.shared_accuracy is not None and self.control_accuracy is not None:
            frame["shared_accuracy"] = self.shared_accuracy.numpy()
            frame["control_accuracy"] = self.control_accuracy.mean(1).numpy()
            frame["selectivity"] = frame["shared_accuracy"] - frame["control_accuracy"]
        return frame

    def leading(self, sites: Sequence[Site] | None = None) -> Site:
        """Of some sites, or of all, the first whose AUROC lies within `TIED` of the highest, to be used on other data
        than this.

        Raises:
            InputError: a site that is not in the sweep.
        """
        chosen = _numbers(self.sites, sites)
        auroc = self.auroc[chosen, :, 0].nanmean(1)
        return self.sites[chosen[int((auroc >= auroc.max() - TIED).nonzero()[0])]]

    def best(self, sites: Sequence[Site] | None = None) -> Best:
        """The best of some sites, or of all: chosen for each fold by the loss within the others.

        The null repeats the choice in each permutation.

        Raises:
            InputError: a site that is not in the sweep.
        """
        chosen = _numbers(self.sites, sites)
        winner = torch.tensor(chosen)[self.inner_loss[chosen].argmin(0)]  # fold task
        auroc = self.auroc.gather(0, winner[None])[0].nanmean(0)
        scores = self.scores[winner[self.folds, 0], torch.arange(len(self.folds))]
        found = estimate_scores(scores, self.labels, self.groups, self.folds, self.seed)
        null = auroc[None, 1:]
        low, high = compute_null_band(null)[0].tolist() if null.shape[1] else (math.nan, math.nan)
        return Best(
            tuple(self.sites[number] for number in winner[:, 0].tolist()),
            found["auroc"],
            found["accuracy"],
            (low, high),
            float(compute_p_values(auroc[:1], null)[0]) if null.shape[1] else math.nan,
            scores,
        )


def sweep(
    activations: Captured,
    labels: Labels,
    groups: Groups,
    *,
    types: Groups | None,
    seed: int,
    sites: Sequence[Site] | None = None,
    method: Method = "ridge",
    penalties: Sequence[float] | None = None,
    folds: int | Folds = 5,
    n_permutations: int = 100,
    strata: Groups | None = None,
    blocks: Groups | None = None,
    n_control: int = 10,
    device: str = "cpu",
) -> Sweep:
    """Probe every site for one label, with its null and its control task.

    Args:
        activations: a row for each prompt.
        labels: True or False for each row.
        groups: rows that must not be on both sides of a split, such as those with the same word.
        types: the word of each row for the control task, or None where there is no such thing.
        seed: of folds, permutations, control tasks and bootstrap.
        sites: all that were captured by default.
        method: "ridge", "logistic" or "mean_difference"; see `fit`.
        penalties: those to choose from inside each training set, by default those of `PENALTIES`; one leaves nothing to
            choose.
        folds: how many, at least three, or the number of each row's.
        n_permutations: of the labels, for the null; 0 for none.
        strata: such as the task of each row, within which alone labels are permuted.
        blocks: rows that have one label whatever it is; see `folds.permute_labels`.
        n_control: draws of the control task; 0 for none.
        device: where the probes are fitted: "cpu", "cuda", …

    Raises:
        InputError: shapes that don't match, one class only, fewer groups than folds, NaN at a site.
    """
    check_seed(seed)
    check_device(device)
    if not isinstance(activations, Captured):
        raise InputError(f"activations {str(activations)[:40]}: legal is what hooks.capture returns")
    labels, _ = check_labels(labels, groups)
    folds = resolve_folds(labels, groups, folds, seed)
    real = torch.from_numpy(labels)[:, None]
    null = permute_labels(labels, groups, n_permutations=n_permutations, seed=seed, strata=strata, blocks=blocks)
    tasks = [(torch.cat([real, null], dim=1), folds)]
    if types is not None and as_count(n_control, "n_control", 0):
        types = as_names(types, "types")
        if len(types) != len(labels):
            raise InputError(f"{len(types)} types for {len(labels)} labels: legal is one for each")
        control = draw_control_labels(types, n_draws=n_control, seed=seed)
        shared = assign_shared_folds(types, n_folds=int(folds.max()) + 1, seed=seed)
        tasks.append((torch.cat([real, control], dim=1), shared))
    all_sites = list_sites(activations)
    chosen = [all_sites[number] for number in _numbers(all_sites, sites)]
    penalties = check_penalties(method, PENALTIES.get(method, (1.0,)) if penalties is None else penalties)

    def validated(block: Sequence[Site]) -> tuple[_Validated, ...]:
        z = _standardised(activations, block, len(labels)).to(device)
        return tuple(cross_validate(z, columns, split, method, penalties) for columns, split in tasks)

    kind = device.partition(":")[0]
    parts = list(_blocks(activations, chosen, len(penalties) * tasks[0][0].shape[1], kind))
    # On a GPU one after the other: torch's linear algebra there can't be begun by several threads at once.
    done = _side_by_side(validated, parts) if kind == "cpu" else map(validated, parts)
    found, *control = (_joined(each) for each in zip(*done, strict=True))
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
    inner_loss: Float[Tensor, "site fold task"]


def _joined(parts: Sequence[_Validated]) -> _Validated:
    return _Validated(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _blocks(activations: Captured, sites: Sequence[Site], columns: int, kind: str) -> Iterator[list[Site]]:
    """Several sites of one kind at a time."""
    for _, same in groupby(sites, key=lambda site: (site.component, site.position)):
        same = list(same)
        width = read_features(activations, same[0]).shape[1]
        most, at_once = (limit.get(kind, limit["cpu"]) for limit in (BLOCK, SITES_AT_ONCE))
        size = max(1, min(most // (width * columns), at_once))
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _standardised(activations: Captured, sites: Sequence[Site], n_rows: int) -> Float[Tensor, "site row feature"]:
    block = torch.stack([read_features(activations, site) for site in sites])
    if block.shape[1] != n_rows:
        raise InputError(f"{n_rows} labels for {block.shape[1]} prompts: legal is one for each")
    bad = (~block.isfinite()).any(2).any(1).nonzero()
    if len(bad):
        raise InputError(f"{sites[int(bad[0])]} holds NaN: legal are positions that every prompt has")
    return standardise(block)


def cross_validate(
    z: Float[Tensor, "site row feature"],
    tasks: Bool[Tensor, "row task"],
    folds: Int[Tensor, " row"],
    method: Method,
    penalties: Sequence[float],
    rows: Bool[Tensor, " row"] | None = None,
) -> _Validated:
    """Nested cross-validation: penalties are chosen for each fold, site and task by the loss within the other folds.

    Rows outside `rows` are never trained on, and only scored.
    """
    tasks, folds = tasks.to(z.device), folds.to(z.device)
    rows = torch.ones_like(folds, dtype=torch.bool) if rows is None else rows.to(z.device)
    losses, chosen = _inner_losses(z, tasks, folds, method, penalties, rows).min(0)
    return _Validated(*_held_out(z, tasks, folds, method, penalties, rows, chosen), losses.movedim(1, 0).cpu())


def _inner_losses(
    z: Float[Tensor, "site row feature"],
    tasks: Bool[Tensor, "row task"],
    folds: Int[Tensor, " row"],
    method: Method,
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
        fits = fit(z[:, left], tasks[left], method=method, penalties=penalties)
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
    method: Method,
    penalties: Sequence[float],
    rows: Bool[Tensor, " row"],
    chosen: Int[Tensor, "fold site task"],
) -> tuple[Float[Tensor, "site row"], Float[Tensor, "site fold task"], Float[Tensor, "site fold task"]]:
    """Each fold by the probes trained without it, with the penalties chosen: scores, AUROC, accuracy."""
    scores = z.new_empty(len(z), len(folds))
    auroc, accuracy = (z.new_empty(len(z), len(chosen), tasks.shape[1]) for _ in range(2))
    needed, place = chosen.unique(return_inverse=True)
    for fold in range(len(chosen)):
        held, left = folds == fold, rows & (folds != fold)
        fits = fit(z[:, left], tasks[left], method=method, penalties=[penalties[number] for number in needed])
        every = fits.scores(z[:, held])
        found = every.gather(0, place[fold][None, :, None].expand(1, -1, every.shape[2], -1))[0]
        scores[:, held] = found[..., 0]
        auroc[:, fold] = compute_auroc(found.mT, tasks[held].T)
        accuracy[:, fold] = ((found > 0) == tasks[held]).float().mean(1)
    return scores.cpu(), auroc.cpu(), accuracy.cpu()


def _loss(
    method: Method, scores: Float[Tensor, "penalty site row task"], labels: Bool[Tensor, "row task"]
) -> Float[Tensor, "penalty site row task"]:
    from torch.nn.functional import softplus

    signs = labels.float() * 2 - 1
    if method == "ridge":
        return (signs - scores).square()
    return softplus(-signs * scores) if method == "logistic" else (signs * scores <= 0).float()


def cross_train(
    activations: Float[Tensor, "row feature"],
    labels: Labels,
    groups: Groups,
    training: Mapping[Name, Labels],
    *,
    seed: int,
    method: Method = "ridge",
    penalties: Sequence[float] | None = None,
    folds: int | Folds = 5,
) -> dict[Name, Float[Tensor, " row"]]:
    """For each training set a score of every row, by the probe that was trained on the set less the row's fold.

    Folds hold for all sets together, so that a group is never trained on where it is tested. Penalties are chosen
    within the training sets.

    Args:
        activations: at one site.
        labels: True or False for each row.
        groups: rows with equal ones are never on both sides of a split.
        training: by name a set of rows, as True or False for each row.
        seed: of the folds.
        method: "ridge", "logistic" or "mean_difference"; see `fit`.
        penalties: those to choose from within the training sets; by default those of `PENALTIES`.
        folds: how many, at least three, or the number of each row's.

    Raises:
        InputError: as `sweep`; a set in whose folds a class is missing.
    """
    checked, _ = check_labels(labels, groups)
    folds = resolve_folds(checked, groups, folds, seed)
    z = standardise_site(activations, len(checked))
    penalties = check_penalties(method, PENALTIES.get(method, (1.0,)) if penalties is None else penalties)
    if not isinstance(training, Mapping):
        raise InputError(f"training {str(training)[:60]}: legal are sets of rows by name")
    found = {}
    for name, chosen in training.items():
        rows = as_mask(chosen, len(checked), f"training set {name!r}")
        for fold in range(int(folds.max()) + 1):
            if len(set(checked[rows & (folds.numpy() == fold)])) < 2:
                raise InputError(f"fold {fold} of {name!r} has no row of one class: legal are fewer folds")
        tasks = torch.from_numpy(checked)[:, None]
        found[name] = cross_validate(z, tasks, folds, method, penalties, torch.from_numpy(rows)).scores[0]
    return found


def transfer(
    activations: Float[Tensor, "row feature"],
    labels: Labels,
    groups: Groups,
    domains: Sequence[Hashable],
    *,
    seed: int,
    method: Method = "ridge",
    penalties: Sequence[float] | None = None,
    folds: int | Folds = 5,
) -> pd.DataFrame:
    """Train within each domain, test within each: a row for each pair, with intervals by bootstrap over groups.

    Args:
        activations: at one site.
        labels: True or False for each row.
        groups: rows with equal ones are never on both sides of a split.
        domains: of each row, such as its task.
        seed: of folds and bootstrap.
        method: "ridge", "logistic" or "mean_difference"; see `fit`.
        penalties: those to choose from within the training sets; by default those of `PENALTIES`.
        folds: how many, at least three, or the number of each row's.

    Raises:
        InputError: as `cross_train`.
    """
    checked, _ = check_labels(labels, groups)
    domains, groups = as_names(domains, "domains"), as_names(groups, "groups")
    if len(domains) != len(checked):
        raise InputError(f"{len(domains)} domains for {len(checked)} labels: legal is one for each")
    folds = resolve_folds(checked, groups, folds, seed)
    rows_of = {domain: np.array([other == domain for other in domains]) for domain in dict.fromkeys(domains)}
    options = {"seed": seed, "method": method, "penalties": penalties, "folds": folds}
    found = []
    for trained, scores in cross_train(activations, labels, groups, rows_of, **options).items():
        for tested, others in rows_of.items():
            kept = [group for group, other in zip(groups, others, strict=True) if other]
            truth = torch.from_numpy(checked)[others]
            result = estimate_scores(scores[others], truth, kept, folds[others], seed)
            found.append({"trained": trained, "tested": tested} | as_columns(result))
    return pd.DataFrame(found)


def trace_learning_curve(
    activations: Float[Tensor, "row feature"],
    labels: Labels,
    groups: Groups,
    *,
    sizes: Sequence[int],
    of: Unit = "examples",
    n_draws: int = 20,
    seed: int,
    method: Method = "ridge",
    penalty: float = 100.0,
    folds: int | Folds = 5,
) -> pd.DataFrame:
    """Train on a few and test on a fold that shares no group with them.

    Activations are z-scored by all rows of the training folds, which takes no label.

    Args:
        activations: at one site.
        labels: True or False for each row.
        groups: rows with equal ones are never on both sides of a split.
        sizes: how many of each class are trained on.
        of: what `sizes` counts: "examples" (of as many groups as there are) or "groups" (all their rows).
        n_draws: training sets of each size; folds take turns to be tested on.
        seed: of folds and draws.
        method: "ridge", "logistic" or "mean_difference"; see `fit`.
        penalty: of the probe; see `fit`.
        folds: how many, at least three, or the number of each row's.

    Returns:
        For each size the mean over draws, and the range that holds 95 % of them (`_low`, `_high`).

    Raises:
        InputError: more of a class than the training folds hold.
    """
    checked, codes = check_labels(labels, groups)
    if of not in get_args(Unit):
        raise InputError(f"learning curve of {of!r}: legal are {', '.join(get_args(Unit))}")
    folds = resolve_folds(checked, groups, folds, seed)
    z = standardise_site(activations, len(checked))
    tasks = torch.from_numpy(checked)[:, None]
    generator, n_draws = make_generator(seed), as_count(n_draws, "n_draws")
    n_folds = int(folds.max()) + 1
    found = []
    for size in as_wholes(sizes):
        training = np.zeros((len(checked), n_draws), dtype=bool)
        for draw in range(n_draws):
            for label in (False, True):
                legal = (folds.numpy() != draw % n_folds) & (checked == label)
                training[_drawn(legal, codes, size, of, generator), draw] = True
        results = []
        for draw, chosen in enumerate(training.T):
            held = folds == draw % n_folds
            few = {"method": method, "penalties": [penalty], "like": z[:, ~held]}
            fits = fit(z[:, chosen], tasks[chosen], **few)
            scores, truth = fits.scores(z[:, held])[0, 0, :, 0].cpu(), tasks[held, 0]
            results.append((float(compute_auroc(scores, truth)), float(((scores > 0) == truth).float().mean())))
        row: dict[str, float] = {"size": size}
        for name, values in zip(("auroc", "accuracy"), zip(*results, strict=True), strict=True):
            low, high = np.quantile(values, (0.025, 0.975))
            row |= {name: float(np.mean(values)), f"{name}_low": float(low), f"{name}_high": float(high)}
        found.append(row)
    return pd.DataFrame(found)


def _drawn(
    legal: np.ndarray, codes: np.ndarray, size: int, of: Unit, generator: np.random.Generator
) -> Int[np.ndarray, " chosen"]:
    """Rows for a training set: of so many groups, or so many of them with as many groups as possible."""
    rows = generator.permutation(np.flatnonzero(legal))
    turn = np.array([int((codes[rows[:i]] == codes[row]).sum()) for i, row in enumerate(rows)])  # of its group
    rows = rows[np.argsort(turn, kind="stable")]  # one of each group, then a second of each …
    first = codes[rows[: len(set(codes[rows]))]]
    available = len(first) if of == "groups" else len(rows)
    if not 1 <= size <= available:
        raise InputError(f"{size} {of} of a class: legal are 1 to {available} within the training folds")
    return rows[np.isin(codes[rows], first[:size])] if of == "groups" else rows[:size]


def _numbers(all_sites: Sequence[Site], sites: Sequence[Site] | None) -> list[int]:
    sites = as_list(sites)
    places = {site: number for number, site in enumerate(all_sites)}
    for site in sites or ():
        if site not in places:
            raise InputError(f"no activations of {site}: legal are {all_sites[0]} to {all_sites[-1]}")
    if sites is not None and not len(sites):
        raise InputError("no sites: legal is at least one")
    return list(range(len(all_sites))) if sites is None else [places[site] for site in sites]


def standardise_site(activations: Float[Tensor, "row feature"], n_rows: int) -> Float[Tensor, "1 row feature"]:
    activations = as_tensor(activations, "activations")
    if activations.ndim != 2 or len(activations) != n_rows:
        raise InputError(f"activations of shape {list(activations.shape)} for {n_rows} labels: legal is row feature")
    if not activations.isfinite().all():
        raise InputError("the activations hold NaN or infinity: legal are finite numbers")
    return standardise(activations[None])

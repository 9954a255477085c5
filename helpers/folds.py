"""Which rows are trained on and which are tested, and labels that nothing in a row bears on.

Folds never split a group, such as the rows of one word or of one question. Permuted labels are the null of a probe;
labels drawn for each type of word are its control task (Hewitt and Liang 2019).
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from helpers import InputError
from helpers.engine.inputs import as_count, as_list, as_names, as_whole, as_wholes, check_seed, is_row, make_generator

Labels = Sequence[bool] | Bool[np.ndarray, " row"] | Bool[Tensor, " row"]
Groups = Sequence[Hashable] | Int[np.ndarray, " row"] | Int[Tensor, " row"]
"""Rows with equal ones stay together."""
Folds = Sequence[int] | Int[Tensor, " row"]
"""The number of each row's fold, from 0 on."""


def assign_folds(labels: Labels, groups: Groups, *, n_folds: int = 5, seed: int) -> Int[Tensor, " row"]:
    """The fold of each row, by scikit-learn's `StratifiedGroupKFold`: no group in two, classes as even as can be.

    Args:
        labels: True or False for each row.
        groups: rows with equal ones come into one fold.
        n_folds: 3 to the number of groups.
        seed: of the shuffling.

    Raises:
        InputError: one class only, fewer than three folds, fewer groups than folds, or a fold without both classes.
    """
    labels, codes = check_labels(labels, groups)
    if not 3 <= as_whole(n_folds) <= codes.max() + 1:
        raise InputError(f"{n_folds} folds: legal are 3 to {codes.max() + 1}, the number of groups")
    folds = assign_stratified_folds(labels, codes, n_folds=n_folds, seed=seed)
    check_folds(labels, codes, folds)
    return folds


def assign_stratified_folds(strata: Groups, groups: Groups, *, n_folds: int = 5, seed: int) -> Int[Tensor, " row"]:
    """The fold of each row: no group in two, and strata as even as can be, which may leave a fold without one.

    Args:
        strata: a name for each row, such as its task and label.
        groups: rows with equal ones come into one fold.
        n_folds: at most as many as there are groups.
        seed: of the shuffling.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names, codes = np.asarray(list(map(str, as_names(strata, "strata")))), number_groups(groups)
    if len(names) != len(codes) or not 2 <= as_whole(n_folds) <= codes.max() + 1:
        raise InputError(
            f"{n_folds} folds, {len(names)} strata, {len(codes)} groups: legal are a stratum and a group for each row, "
            f"and 2 to {codes.max() + 1} folds"
        )
    if (largest := int(np.unique(names, return_counts=True)[1].max())) < n_folds:
        raise InputError(f"{n_folds} folds of strata of at most {largest} rows: legal are 2 to {largest} folds")
    folds = torch.zeros(len(codes), dtype=torch.long)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=check_seed(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a stratum with fewer rows than folds
        for number, (_, held) in enumerate(splitter.split(names, names, codes)):
            folds[torch.from_numpy(held)] = number
    return folds


def can_fold(labels: Labels, groups: Groups, *, seed: int) -> bool:
    """Whether five folds of groups can each have both classes.

    Args:
        labels: True or False for each row.
        groups: rows with equal ones come into one fold.
        seed: of the shuffling.
    """
    try:
        assign_folds(labels, groups, seed=seed)
    except InputError:
        return False
    return True


def assign_shared_folds(types: Groups, *, n_folds: int = 5, seed: int) -> Int[Tensor, " row"]:
    """The fold of each row such that the rows of a type are spread over the folds.

    Args:
        types: such as the word of each row.
        n_folds: over which each type is spread.
        seed: of the order within a type.

    Raises:
        InputError: no type that occurs twice.
    """
    codes, n_folds = number_groups(types), as_count(n_folds, "n_folds", 2)
    if np.bincount(codes).max() < 2:
        raise InputError(f"each of the {len(codes)} types occurs once: legal are types of which some occur twice")
    generator = make_generator(seed)
    order = np.lexsort((generator.random(len(codes)), codes))  # by type, at random within
    folds = np.empty(len(codes), dtype=int)
    folds[order] = (np.arange(len(codes)) + generator.integers(n_folds)) % n_folds
    return torch.from_numpy(folds)


def permute_labels(
    labels: Labels,
    groups: Groups,
    *,
    n_permutations: int,
    seed: int,
    strata: Groups | None = None,
    blocks: Groups | None = None,
) -> Bool[Tensor, "row permutation"]:
    """Labels as they might have been if nothing in a row bore on them but its stratum.

    Groups with one label throughout exchange it with other such groups; within the others the rows exchange theirs.

    Args:
        labels: True or False for each row.
        groups: such as the question of each row.
        n_permutations: columns that are returned.
        seed: of the permutations.
        strata: such as the task of each row: only groups of one exchange their labels, so that what tasks differ in
            is no finding. By default all do.
        blocks: rows that have one label whatever it is, such as a question told in two orders: within a group of both
            labels blocks exchange theirs. By default each row is one.

    Raises:
        InputError: as `check_labels`; a group in two strata, a block of two labels or in two groups.
    """
    labels, codes = check_labels(labels, groups)
    block = np.arange(len(codes)) if blocks is None else number_groups(blocks)
    if len(block) != len(codes) or len(set(zip(block, codes, labels, strict=False))) > block.max() + 1:
        raise InputError(
            f"{len(block)} blocks for {len(codes)} rows: legal is one for each, of one label and one group"
        )
    of_stratum = np.zeros(len(codes), dtype=int) if strata is None else number_groups(strata)
    if len(of_stratum) != len(codes) or len(set(zip(codes, of_stratum, strict=False))) > codes.max() + 1:
        raise InputError(f"{len(of_stratum)} strata for {len(codes)} rows: legal is one for all rows of a group")
    generator, n_permutations = make_generator(seed), as_count(n_permutations, "n_permutations", 0)
    rows_of = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    constant = [rows for rows in rows_of if np.ptp(labels[rows].astype(int)) == 0]
    within = [[rows for rows in constant if of_stratum[rows[0]] == number] for number in range(of_stratum.max() + 1)]
    mixed = [rows for rows in rows_of if np.ptp(labels[rows].astype(int)) == 1]
    permuted = np.empty((len(labels), n_permutations), dtype=bool)
    for column in permuted.T:
        for rows in mixed:
            _, first, of_row = np.unique(block[rows], return_index=True, return_inverse=True)
            column[rows] = generator.permutation(labels[rows][first])[of_row]
        for exchanging in within:
            order = generator.permutation(len(exchanging))
            for rows, donor in zip(exchanging, order, strict=True):
                column[rows] = labels[exchanging[donor][0]]
    return torch.from_numpy(permuted)


def draw_control_labels(types: Groups, *, n_draws: int, seed: int) -> Bool[Tensor, "row draw"]:
    """A label drawn at random for each type, in each draw one half of the types each (Hewitt and Liang 2019).

    Args:
        types: such as the word of each row; rows of one type have one label.
        n_draws: columns that are returned.
        seed: of the draws.
    """
    codes, generator, n_draws = number_groups(types), make_generator(seed), as_count(n_draws, "n_draws")
    half = np.arange(codes.max() + 1) % 2 == 0
    return torch.from_numpy(np.stack([generator.permutation(half)[codes] for _ in range(n_draws)], axis=1))


def number_groups(groups: Groups) -> Int[np.ndarray, " row"]:
    """Groups by number, in the order in which they come."""
    groups = as_names(groups, "groups")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups])


def check_labels(labels: Labels, groups: Groups) -> tuple[Bool[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """Labels as an array and their groups by number, or an `InputError`."""
    given, codes = np.asarray(as_list(labels)), number_groups(groups)
    if given.ndim != 1 or len(given) != len(codes):
        raise InputError(f"{given.size} labels for {len(codes)} groups: legal is one for each")
    if not set(given.tolist()) <= {0, 1}:
        raise InputError(f"labels {sorted(set(map(str, given.tolist())))[:5]}: legal are True and False")
    if len(set(given.tolist())) < 2:
        raise InputError(f"all {len(given)} labels are of one class: legal are labels of two")
    return given.astype(bool), codes


def resolve_folds(
    labels: Bool[np.ndarray, " row"], groups: Groups, folds: int | Folds, seed: int
) -> Int[Tensor, " row"]:
    """Folds by number, or those that were given, checked."""
    if not is_row(as_list(folds)):
        return assign_folds(labels, groups, n_folds=as_whole(folds), seed=seed)
    given = torch.tensor(as_wholes(folds))
    if len(set(given.tolist())) < 3:
        raise InputError(f"folds {sorted(set(given.tolist()))}: legal are at least three")
    check_folds(labels, check_labels(labels, groups)[1], given)
    return given


def check_folds(labels: Bool[np.ndarray, " row"], codes: Int[np.ndarray, " row"], folds: Int[Tensor, " row"]) -> None:
    """Refuse folds that split a group, or of which one lacks a class."""
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

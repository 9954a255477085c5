"""Folds split no group, and permuted and control labels say nothing."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from shared.planted import N_WORDS, words

from helpers.folds import assign_folds, assign_shared_folds, can_fold, draw_control_labels, permute_labels


@given(seed=st.integers(0, 1000), n_folds=st.integers(3, 8))
def test_grouped_folds_split_no_group_and_hold_both_classes(seed, n_folds):
    labels, groups = words()
    folds = assign_folds(labels, groups, n_folds=n_folds, seed=seed).numpy()
    assert set(folds) == set(range(n_folds))
    assert len(set(zip(groups, folds, strict=True))) == N_WORDS
    for fold in range(n_folds):
        assert abs(labels[folds == fold].mean() - 0.5) < 0.2


@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(2, 9), min_size=2, max_size=20))
def test_shared_folds_spread_every_type(seed, sizes):
    types = [number for number, size in enumerate(sizes) for _ in range(size)]
    folds = assign_shared_folds(types, n_folds=4, seed=seed).numpy()
    for number, size in enumerate(sizes):
        own = folds[np.array(types) == number]
        assert len(set(own)) == min(size, 4)
        assert np.bincount(own, minlength=4).max() <= -(-size // 4)


def test_five_folds_need_five_groups_of_each_class():
    labels, groups = [True, False] * 5, list(range(10))
    assert can_fold(labels, groups, seed=0)
    assert not can_fold([True, *[False] * 9], groups, seed=0)
    assert not can_fold([False] * 10, groups, seed=0)
    assert not can_fold(labels, [number // 4 for number in groups], seed=0)
    assert not can_fold([True, False] * 4, range(8), seed=0), "of which four are the most of a class"


@given(seed=st.integers(0, 1000))
def test_labels_are_permuted_between_groups_that_have_one_and_within_the_others(seed):
    groups = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    labels = [1] * 4 + [0] * 4 + [1, 0, 0, 0] + [1, 1, 0, 0]
    columns = permute_labels(labels, groups, n_permutations=30, seed=seed).T.int()
    for column in columns:
        assert sorted({tuple(column[:4].tolist()), tuple(column[4:8].tolist())}) == [(0,) * 4, (1,) * 4]
        assert column[8:12].sum() == 1
        assert column[12:].sum() == 2
    assert len({tuple(column.tolist()) for column in columns}) > 5


def test_control_labels_are_one_for_each_type_and_half_of_each():
    _, groups = words()
    control = draw_control_labels(groups, n_draws=30, seed=0)
    for column in control.T.numpy():
        per_type = {group: set(column[np.array(groups) == group]) for group in groups}
        assert all(len(values) == 1 for values in per_type.values())
        assert column.mean() == 0.5
    assert 0.3 < float((control[:, 0] == control[:, 1]).float().mean()) < 0.7


def test_bad_input_is_refused(refused):
    labels, groups = words(6, 2)
    with refused("11 labels for 12 groups"):
        assign_folds(labels[:-1], groups, seed=0)
    with refused("12 labels are of one class"):
        permute_labels([True] * 12, groups, n_permutations=1, seed=0)
    with refused("7 folds", "3 to 6, the number of groups"):
        assign_folds(labels, groups, n_folds=7, seed=0)
    with refused("occurs once"):
        assign_shared_folds(range(12), seed=0)


@given(seed=st.integers(0, 1000))
def test_labels_that_are_permuted_within_tasks_keep_each_task_s_share(seed):
    """With shares of .8 and .2, permuting over both makes reading the task look like reading the label."""
    tasks = ["one"] * 40 + ["other"] * 40
    groups, labels = (
        list(range(80)),
        [number % 5 < 4 for number in range(40)] + [number % 5 < 1 for number in range(40)],
    )
    columns = permute_labels(labels, groups, n_permutations=20, seed=seed, strata=tasks).numpy()
    assert (columns[:40].sum(0) == 32).all() and (columns[40:].sum(0) == 8).all()
    assert len({tuple(column) for column in columns.T}) == 20
    over_both = permute_labels(labels, groups, n_permutations=20, seed=seed).numpy()
    assert over_both[:40].sum(0).std() > 0 and (over_both.sum(0) == 40).all()


def test_a_group_in_two_strata_is_refused(refused):
    with refused("3 strata for 4 rows"):
        permute_labels([True, False] * 2, [0, 1, 2, 3], n_permutations=1, seed=0, strata=["a", "a", "b"])
    with refused("4 strata for 4 rows", "one for all rows of a group"):
        permute_labels([True, False] * 2, [0, 0, 1, 1], n_permutations=1, seed=0, strata=["a", "b", "a", "a"])


def test_of_a_pair_whole_questions_exchange_their_labels():
    pairs = np.repeat(np.arange(30), 4)
    questions = np.repeat(np.arange(60), 2).tolist()
    labels = np.tile([True, True, False, False], 30)
    found = permute_labels(labels, pairs.tolist(), n_permutations=200, seed=0, blocks=questions).numpy()
    assert (found.reshape(60, 2, 200).std(1) == 0).all(), "a question has one label"
    assert (found.reshape(30, 4, 200).mean(1) == 0.5).all()
    kept = (found.reshape(30, 4, 200)[:, 0] == labels.reshape(30, 4)[:, :1]).mean()
    assert abs(kept - 0.5) < 0.03
    torn = permute_labels(labels, pairs.tolist(), n_permutations=200, seed=0).numpy()
    assert (torn.reshape(60, 2, 200).std(1) > 0).any()


def test_a_block_of_two_labels_is_refused(refused):
    with refused("2 blocks for 4 rows"):
        permute_labels([True, False] * 2, [0, 0, 1, 1], n_permutations=2, seed=0, blocks=[0, 0])
    with refused("4 blocks for 4 rows", "of one label and one group"):
        permute_labels([True, False] * 2, [0, 0, 1, 1], n_permutations=2, seed=0, blocks=[0, 0, 1, 1])

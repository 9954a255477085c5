"""Scores are those of scikit-learn, and their intervals know groups."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from shared.planted import words
from sklearn.metrics import roc_auc_score

from helpers.scores import (
    combine,
    compute_auroc,
    compute_separation,
    evaluate,
    measure_calibration_error,
    measure_separation,
    subtract,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@given(seed=st.integers(0, 1000), n_values=st.integers(1, 30))
def test_areas_are_those_of_scikit_learn_also_with_ties(seed, n_values):
    generator = np.random.default_rng(seed)
    scores = generator.integers(n_values, size=(3, 40)) / 7
    labels = generator.random((3, 40)) < 0.4
    labels[:, :2] = [True, False]
    found = compute_auroc(torch.tensor(scores), torch.tensor(labels))
    expected = [roc_auc_score(truth, row) for row, truth in zip(scores, labels, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_an_area_without_one_class_is_not_a_number():
    assert compute_auroc(torch.arange(3.0), torch.ones(3, dtype=torch.bool)).isnan()


def test_evaluate_gives_what_was_planted_with_intervals_that_know_groups():
    generator = np.random.default_rng(0)
    labels, groups = words(200, 4)
    of_word = generator.normal(size=200)[groups]
    scores = torch.tensor(np.where(labels, 1, -1) + of_word).float()
    found = evaluate(scores, labels, groups, seed=0)
    assert found["auroc"].value == pytest.approx(roc_auc_score(labels, scores.numpy()))
    assert found["accuracy"].value == pytest.approx(((scores > 0).numpy() == labels).mean())
    assert found["auroc"].n == 200 and found["auroc"].of == "groups"
    alone = evaluate(scores, labels, list(range(800)), seed=0)
    width = {name: one["auroc"].high - one["auroc"].low for name, one in (("words", found), ("rows", alone))}
    assert width["words"] > 1.5 * width["rows"]  # four rows of a word say no more than one


def test_an_interval_lies_about_its_value_also_with_few_groups_in_a_fold():
    """Rows of a group share an offset, so that pairs within groups are told apart more easily."""
    outside, shifts = 0, []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        groups = torch.arange(30).repeat_interleave(4)
        labels = torch.arange(120) % 2 == 0
        scores = labels + 3 * torch.randn(30, generator=generator)[groups] + 0.5 * torch.randn(120, generator=generator)
        found = evaluate(scores, labels.tolist(), groups.tolist(), folds=(groups % 10).tolist(), seed=seed)
        area = found["auroc"]
        outside += not area.low <= area.value <= area.high
        shifts.append((area.low + area.high) / 2 - area.value)
    assert outside == 0 and abs(sum(shifts) / len(shifts)) < 0.02, (outside, shifts)


def test_groups_may_be_a_tensor():
    labels, groups = words(30, 4)
    scores = torch.linspace(0, 1, 120)
    expected = evaluate(scores, labels, groups, seed=0)
    assert evaluate(scores, labels, torch.tensor(groups), seed=0) == expected


def test_recall_at_one_percent_needs_300_negatives():
    labels = [True] * 200 + [False] * 300
    scores = torch.cat([torch.linspace(0, 1, 200), torch.linspace(-1, 0.5, 300)])
    found = evaluate(scores, labels, list(range(500)), seed=0)["recall"]
    threshold = np.sort(scores[200:].numpy())[-4]  # three of 300 may pass
    assert found.value == pytest.approx(float((scores[:200] > threshold).float().mean()), abs=0.006)
    assert evaluate(scores[:-1], labels[:-1], list(range(499)), seed=0)["recall"] is None


def test_calibration_error_is_small_for_true_probabilities_and_large_for_bold_ones():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, generator=generator)
    labels = torch.rand(4000, generator=generator) < torch.sigmoid(logits)
    groups = list(range(4000))
    honest = measure_calibration_error(logits, labels.numpy(), groups, seed=0)
    bold = measure_calibration_error(5 * logits, labels.numpy(), groups, seed=0)
    assert honest.value < 0.04 < 0.15 < bold.value
    assert bold.low < bold.value < bold.high


def test_a_difference_knows_that_both_scores_are_of_the_same_rows():
    generator = np.random.default_rng(0)
    labels, groups = words(100, 4)
    shared = generator.normal(size=100)[groups]
    one, other = (torch.tensor(np.where(labels, lift, -lift) + shared) for lift in (0.8, 0.6))
    gap = subtract(one, other, labels, groups, seed=0)
    apart = [evaluate(score, labels, groups, seed=0)["auroc"] for score in (one, other)]
    assert gap.value == pytest.approx(apart[0].value - apart[1].value, abs=1e-6)
    assert gap.high - gap.low < 0.7 * (apart[0].high - apart[0].low)
    assert gap.low > 0
    none = subtract(one, one, labels, groups, seed=0)
    assert (none.value, none.low, none.high) == (0, 0, 0)


def test_a_difference_can_be_no_greater_than_what_is_left_of_one():
    truth, groups = [False, True] * 20, range(40)
    perfect = torch.tensor([0.0, 1.0] * 20)
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0))
    found = subtract(noise, perfect, truth, groups, seed=0)
    assert found.reach == pytest.approx((-1.0, 0.0))
    weak = roc_auc_score(truth, noise)
    assert subtract(perfect, noise, truth, groups, seed=0).reach == pytest.approx((-weak, 1 - weak))


def test_areas_are_combined_on_their_own_rows():
    generator = torch.Generator().manual_seed(0)
    labels, groups = [True, False] * 20, [number // 2 for number in range(40)]
    one, other = torch.randn(2, 40, generator=generator)
    first = torch.arange(40) < 20
    found = combine([(2.0, one, first), (-0.5, other, ~first)], labels, groups, seed=0)
    truth = torch.tensor(labels)
    by_hand = 2 * compute_auroc(one[first], truth[first]) - 0.5 * compute_auroc(other[~first], truth[~first])
    assert found.value == pytest.approx(float(by_hand), abs=1e-6) and found.low < found.value < found.high
    whole = combine([(1.0, one, [True] * 40)], labels, groups, seed=0)
    assert whole.value == pytest.approx(evaluate(one, labels, groups, seed=0)["auroc"].value)


def test_a_separation_is_a_difference_in_standard_deviations_within_folds():
    generator = np.random.default_rng(0)
    labels, folds = np.tile([False, True], 200), np.repeat([0, 1], 200)
    scores = torch.from_numpy(generator.normal(size=(3, 400)) + 2.0 * labels + 50.0 * folds)
    found = compute_separation(scores, labels, folds=folds)
    expected = []
    for row in scores.numpy():
        cells = [row[(labels == label) & (folds == fold)] for fold in (0, 1) for label in (False, True)]
        gap = np.mean([cells[1].mean() - cells[0].mean(), cells[3].mean() - cells[2].mean()])
        expected.append(gap / np.sqrt(sum(((cell - cell.mean()) ** 2).sum() for cell in cells) / (400 - 4)))
    np.testing.assert_allclose(found, expected)
    assert found.tolist() == pytest.approx([2.0] * 3, abs=0.25)
    one = measure_separation(scores[0], labels, range(400), folds=folds, seed=0)
    assert one.value == pytest.approx(float(found[0])) and one.low < 2.0 < one.high
    area = evaluate(scores[0], labels, list(range(400)), folds=folds, seed=0)["auroc"].value
    assert norm.cdf(one.value / np.sqrt(2)) == pytest.approx(area, abs=0.02)
    assert float(compute_separation(torch.zeros(400), labels, folds=folds)) == 0.0


def test_the_interval_of_a_separation_holds_what_was_planted_and_knows_groups():
    covered, generator = 0, np.random.default_rng(1)
    labels, groups = np.tile([False, True], 24), np.arange(48)
    for seed in range(100):
        scores = torch.from_numpy(generator.normal(size=48) + 0.8 * labels)
        one = measure_separation(scores, labels, groups, seed=seed)
        covered += one.low <= 0.8 <= one.high
    assert covered >= 88
    twice = measure_separation(scores.repeat(2), np.tile(labels, 2), np.tile(groups, 2), seed=99)
    assert twice.n == one.n and twice.high - twice.low == pytest.approx(one.high - one.low, rel=0.1)


def test_bad_input_is_refused(refused):
    labels, groups = words(12, 2)
    with refused("[23]", "24 finite"):
        evaluate(torch.zeros(23), labels, groups, seed=0)
    with refused("[23]", "24 finite"):
        subtract(torch.zeros(23), torch.zeros(23), labels, groups, seed=0)
    with refused("[23]", "24 finite"):
        measure_separation(torch.zeros(23), labels, groups, seed=0)
    with refused("no AUROC", "at least one"):
        combine([], [True, False], [0, 1], seed=0)
    with refused("rows of one class"):
        combine([(1.0, torch.zeros(2), [True, False])], [True, False], [0, 1], seed=0)
    labels, groups = words(6, 2)
    with refused("a group is in two folds"):
        evaluate(torch.zeros(12), labels, groups, folds=[0, 0, 0, 1, 1, 1, 1, 0, 2, 2, 2, 2], seed=0)

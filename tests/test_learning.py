"""Learning curves on planted activations: who learns faster is found, ceilings and noise decide nothing."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from helpers import claims, probes
from studies.faithfulness import learning
from studies.faithfulness.hypotheses import HYPOTHESES

WIDTH, SURE = 24, 9.0
"""Features, and a strength with which all of them hold the label, else one."""
pytestmark = pytest.mark.usefixtures("one_thread")


def planted(seed, strengths, n_questions=40, alike=False):
    """Eight rows of each question, half with the label; each probe's features hold it as strongly as asked."""
    generator = torch.Generator().manual_seed(seed)
    labels, questions = np.tile([False, True], 4 * n_questions), np.repeat(np.arange(n_questions), 8)
    signs = torch.from_numpy(labels).float() * 2 - 1
    features = {}
    for name, strength in strengths.items():
        noise = torch.Generator().manual_seed(seed) if alike else generator
        of_question = torch.randn(n_questions, WIDTH, generator=noise)[questions]
        features[name] = of_question + torch.randn(len(labels), WIDTH, generator=noise)
        features[name][:, : WIDTH if strength == SURE else 1] += strength * signs[:, None]
    return features, labels, questions.tolist()


def learn(seed, strengths, n_draws=100, **options):
    features, labels, questions = planted(seed, strengths, **options)
    strata = ["one"] * len(labels)
    return learning.trace_learning(features, labels, questions, strata=strata, n_draws=n_draws, seed=seed)


def verdict(found):
    return claims.decide("h1", "", rule=HYPOTHESES["H1"].rule, estimate=found.subtract("one", "other")).verdict


@pytest.mark.parametrize(
    ("strengths", "options", "expected"),
    [
        ((3.0, 1.0), {}, "holds"),
        ((1.0, 3.0), {}, "fails"),
        ((3.0, 3.0), {"alike": True}, "fails"),  # within the bound
        ((2.0, 1.8), {}, "depends"),
        ((0.0, 0.0), {}, "not run"),
        ((SURE, SURE), {}, "out of reach"),  # at the ceiling from two questions on
    ],
)
def test_the_verdict_is_what_was_planted(strengths, options, expected):
    assert verdict(learn(0, dict(zip(("one", "other"), strengths, strict=True)), **options)) == expected


def test_noise_supports_nothing():
    verdicts = [verdict(learn(seed, {"one": 0.0, "other": 0.0}, n_draws=50)) for seed in range(20)]
    assert verdicts.count("not run") >= 18 and "holds" not in verdicts


def test_the_interval_covers_the_luck_of_training_and_of_test():
    """Over draws of the questions the difference of two equal probes spreads no wider than their intervals say."""
    found = [learn(seed, {"one": 1.5, "other": 1.5}, n_draws=50).subtract("one", "other") for seed in range(30)]
    assert all(found)
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.9
    half = np.mean([(one.high - one.low) / 2 for one in found])
    assert 1.5 < half / np.std([one.value for one in found]) < 6
    assert all(one.reach[0] <= one.low <= one.high <= one.reach[1] and one.n == 40 for one in found)


def test_curves_rise_and_questions_are_counted():
    found = learn(0, {"fast": 4.0, "slow": 1.0, "at once": SURE})
    assert found.sizes == (2, 4, 8, 16) and found.n == 40
    fast, slow = found.average("fast"), found.average("slow")
    assert (fast > slow).all() and fast[-1] > fast[0] + 0.1
    assert 2 <= int(found.count_needed("fast")) <= 16
    assert found.count_needed("slow") == "more than 16" and found.count_needed("at once") == "at most 2"
    area = found.measure_area("fast")
    assert area.value == pytest.approx(fast.mean()) and area.low < area.value < area.high
    assert learn(0, {"fast": 4.0}, n_questions=70).sizes == (2, 4, 8, 16, 32)


def test_a_draw_has_one_row_of_each_question_both_classes_and_no_test_question():
    _, labels, questions = planted(0, {"one": 1.0})
    codes, blocks = np.array(questions), np.arange(40)[questions] % 10
    rows = np.flatnonzero(blocks != 3)
    chosen = learning._choose(rows, labels, codes, blocks, 16, np.random.default_rng(0))
    assert len(set(codes[chosen])) == 16 and labels[chosen].sum() == 8
    assert 3 not in set(blocks[chosen]) and len(set(blocks[chosen])) == 4, "few blocks, so that others can be left out"
    assert len(set(labels[chosen[:2]])) == 2


def test_what_is_left_out_is_in_no_training_and_no_test():
    found = learn(0, {"one": 1.0}, n_draws=30)
    assert found.used.shape == (4, 30, 10)
    n_used = found.used.sum(2)
    assert (n_used[0] == 2).all() and (n_used[3] <= 6).all() and (np.diff(n_used, axis=0) >= 0).all()


def test_scores_are_those_of_ridge_regression():
    features, labels, _ = planted(0, {"one": 1.0})
    z = probes.standardise(features["one"][None])[0]
    train, test = torch.arange(0, 40, 3), torch.arange(60, 100)
    signs = torch.from_numpy(labels).float() * 2 - 1
    ours = learning._score(learning._multiply(features["one"])[None], signs, train, test)[0]
    theirs = Ridge(alpha=learning.PENALTY * WIDTH).fit(z[train].numpy(), signs[train].numpy()).predict(z[test].numpy())
    assert np.ptp(ours.numpy() - theirs) < 1e-4, "but for a constant"
    assert roc_auc_score(labels[test], theirs) > 0.5


def test_a_cut_keeps_what_varies_most():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    x[:, 1:4] = x[:, :1] + 0.01 * x[:, 1:4]
    few = learning.cut(x, 2)
    assert few.shape == (50, 2)
    assert abs(np.corrcoef(few[:, 0], x[:, 0])[0, 1]) > 0.95


def test_the_leading_probe_learns_fastest_where_all_reach_the_ceiling():
    names = {"slow": 2.0, "fast": 6.0, "as fast": 6.0}
    found = learn(0, names, n_questions=20)
    assert found.sizes == (2, 4, 8) and found.find_leading(names) in ("fast", "as fast")
    assert found.find_leading(["slow"]) == "slow"
    alike = learn(0, {"first": 6.0, "second": 6.0}, alike=True)
    assert alike.find_leading(["first", "second"]) == "first" and alike.find_leading(["second", "first"]) == "second"


def test_what_is_learned_does_not_hang_on_how_much_is_held(monkeypatch):
    names = {str(number): float(number) for number in range(4)}
    whole = learn(0, names, n_draws=10)
    monkeypatch.setattr(learning, "PRODUCTS", 1)
    np.testing.assert_allclose(learn(0, names, n_draws=10).auroc, whole.auroc, atol=0.02)


def test_bad_input_is_refused(refused):
    with refused("31 questions", "at least 32"):
        learn(0, {"one": 1.0}, n_questions=31).measure_area("one")
    with refused("9 questions", "at least 10"):
        learn(0, {"one": 1.0}, n_questions=9)
    features, labels, questions = planted(0, {"one": 1.0})
    rare = labels & (np.array(questions) < 3)
    with refused("one class has too few"):
        learning.trace_learning(features, rare, questions, strata=["one"] * len(labels), seed=0)

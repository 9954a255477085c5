import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from helpers.engine import solvers

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(n_rows=80, n_features=20, n_tasks=3, seed=0):
    """Activations with an offset and very different scales, and labels that partly follow from them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n_features, n_features, generator=generator) * torch.logspace(1, -2, n_features)[:, None]
    x = 30 + torch.randn(n_rows, n_features, generator=generator) @ mixing
    signal = (x - x.mean(0)) @ torch.randn(n_features, n_tasks, generator=generator)
    labels = signal + signal.std(0) * torch.randn(n_rows, n_tasks, generator=generator) > 0
    return x, labels


def fit(z, labels, chosen=slice(None), penalties=(10.0,), method="ridge"):
    return solvers.fit(z[:, chosen], labels[chosen], method=method, penalties=penalties)


def scores_of(fits, z, task, penalty=0, site=0):
    return fits.scores(z)[penalty, site, :, task].double().numpy()


# Against scikit-learn


@pytest.mark.parametrize("penalty", [1.0, 30.0])
@pytest.mark.parametrize("n_rows, n_features", [(80, 20), (40, 90)], ids=["tall", "wide"])
def test_ridge_is_that_of_scikit_learn_on_z_scores_of_the_training_rows(n_rows, n_features, penalty):
    x, labels = draw(n_rows, n_features)
    z = solvers.standardise(x[None])
    fits = fit(z, labels, slice(10, None), penalties=[3.0, penalty])
    scaled = StandardScaler().fit(x[10:].double()).transform(x.double())
    for task in range(3):
        signs = np.where(labels[:, task], 1, -1)
        expected = Ridge(alpha=penalty).fit(scaled[10:], signs[10:]).predict(scaled)
        assert scores_of(fits, z, task, penalty=1) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("penalty", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("n_rows, n_features", [(80, 20), (40, 90), (60, 45)], ids=["tall", "wide", "square"])
def test_logistic_regression_reaches_scikit_learns_optimum(n_rows, n_features, penalty):
    x, labels = draw(n_rows, n_features)
    z = solvers.standardise(x[None])
    fits = fit(z, labels, slice(10, None), [penalty, 3.0], "logistic")
    scaled = StandardScaler().fit(x[10:].double()).transform(x.double())
    for task in range(3):
        signs = np.where(labels[:, task], 1, -1)
        peer = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(scaled[10:], signs[10:])

        def objective(scores, weights, signs=signs):
            return np.logaddexp(0, -signs * scores)[10:].sum() + penalty / 2 * np.square(weights).sum()

        weights = fits.weights[0, 0, :, task].double().numpy() * z[0, 10:].double().numpy().std(0)
        reached = objective(scores_of(fits, z, task), weights)
        assert reached <= objective(peer.decision_function(scaled), peer.coef_) * (1 + 1e-5)


def test_difference_of_means_divides_half_way_between_the_classes():
    x, labels = draw()
    z = solvers.standardise(x[None])
    fits = fit(z, labels, slice(10, None), method="mean_difference")
    scaled = StandardScaler().fit(x[10:].double()).transform(x.double())
    for task in range(3):
        truth = labels[10:, task].numpy()
        positive, negative = scaled[10:][truth].mean(0), scaled[10:][~truth].mean(0)
        expected = (scaled - (positive + negative) / 2) @ (positive - negative)
        assert scores_of(fits, z, task) == pytest.approx(expected, abs=1e-3, rel=1e-4)


def test_few_rows_may_take_their_deviation_from_others():
    x, labels = draw()
    z = solvers.standardise(x[None])
    few = [0, 1, *np.flatnonzero(labels[:, 0])[:2], *np.flatnonzero(~labels[:, 0])[:2]]
    fits = solvers.fit(z[:, few], labels[few], method="ridge", penalties=[10.0], like=z[:, 10:])
    scaled = x.double().numpy() / x[10:].double().numpy().std(0)
    signs = np.where(labels[few, 0], 1, -1)
    assert scores_of(fits, z, 0) == pytest.approx(Ridge(alpha=10).fit(scaled[few], signs).predict(scaled), abs=1e-3)


# Many at once


@pytest.mark.parametrize("method", solvers.METHODS)
def test_sites_tasks_and_penalties_at_once_are_those_one_by_one(method):
    x, labels = draw()
    z = solvers.standardise(torch.stack([x, x.flip(1) ** 2 / 30]))
    penalties = [1.0, 20.0]
    together = fit(z, labels, slice(10, None), penalties, method)
    assert together.weights.shape == (2, 2, 20, 3)
    for number, penalty in enumerate(penalties):
        for site in range(2):
            for task in range(3):
                one = z[site : site + 1]
                alone = fit(one, labels[:, task : task + 1], slice(10, None), [penalty], method)
                found = scores_of(together, z, task, penalty=number, site=site)
                assert found == pytest.approx(scores_of(alone, one, 0), abs=2e-2 if method == "logistic" else 2e-4)


@given(seed=st.integers(0, 1000), method=st.sampled_from(solvers.METHODS))
def test_scores_do_not_depend_on_the_units_of_the_activations(seed, method):
    x, labels = draw(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    other = x * (torch.rand(20, generator=generator) * 5 + 0.2) + torch.randn(20, generator=generator) * 100
    scores = [
        scores_of(fit(z, labels, slice(10, None), method=method), z, 0)
        for z in (solvers.standardise(x[None]), solvers.standardise(other[None]))
    ]
    assert scores[0] == pytest.approx(scores[1], abs=2e-2)


@pytest.mark.parametrize("method", solvers.METHODS)
def test_turning_the_labels_round_turns_the_scores_round(method):
    x, labels = draw()
    z = solvers.standardise(x[None])
    scores = [scores_of(fit(z, given, method=method), z, 0) for given in (labels, ~labels)]
    assert scores[0] == pytest.approx(-scores[1], abs=1e-3)


def test_a_fit_leaves_the_activations_as_they_were():
    x, labels = draw()
    z = solvers.standardise(x[None])
    before = z.clone()
    for method in solvers.METHODS:
        fit(z, labels, method=method)
        assert torch.equal(z, before)


# Features that say nothing


def test_rounding_errors_are_no_feature():
    x, labels = draw()
    x[:, 3] = 17.0 + 1e-6 * labels[:, 0]  # a constant but for what another batch might round otherwise
    z = solvers.standardise(x[None])
    assert not z[0, :, 3].any()
    assert z.isfinite().all()
    assert not solvers.standardise(torch.full((1, 10, 4), 3.0)).any()
    others = torch.randn(1, 20, 3) * 5 + 2
    given = torch.randn(1, 4, 3)
    expected = (given - others.mean(1)) / others.std(1, correction=0)
    torch.testing.assert_close(solvers.standardise(given, like=others), expected)
    others[..., 0] = 3.0
    assert not solvers.standardise(given, like=others)[..., 0].any(), "what does not vary there says nothing here"


@pytest.mark.parametrize("method", solvers.METHODS)
def test_a_feature_that_is_constant_among_the_rows_gets_no_weight(method):
    x, labels = draw()
    x[10:, 5] = 2.0
    fits = fit(solvers.standardise(x[None]), labels, slice(10, None), method=method)
    assert fits.weights.isfinite().all()
    assert fits.weights[0, 0, 5].abs().max() < 1e-6


@pytest.mark.parametrize("method", solvers.METHODS)
def test_a_direction_that_was_planted_is_found(method):
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(30, generator=generator)
    labels = torch.rand(2000, 1, generator=generator) > 0.5
    x = torch.randn(2000, 30, generator=generator) + 3 * labels * direction / direction.norm()
    deviation = x.std(0)
    weights = fit(solvers.standardise(x[None]), labels, penalties=[1.0], method=method).weights[0, 0, :, 0]
    weights = weights * deviation if method == "mean_difference" else weights / deviation
    assert torch.cosine_similarity(weights, direction, dim=0) > 0.97


# Bad input


def test_an_unknown_method_or_penalty_is_refused(refused):
    x, labels = draw()
    z = solvers.standardise(x[None])
    with refused("'svm'", "ridge, logistic, mean_difference"):
        fit(z, labels, method="svm")
    for penalties in ([], [0.0], [1.0, -2.0]):
        with refused(penalties, "above zero"):
            fit(z, labels, penalties=penalties)

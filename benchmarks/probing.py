"""Probes beside scikit-learn's `LogisticRegression` in a loop, and the time of a whole sweep.

The data are the embedded model's own activations on sentences that judge something (`studies.sentiment`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.pairs import Row, paired, timed
from helpers import folds, hooks, models, probes
from helpers.engine import solvers
from studies.sentiment import sentences

N_ROWS = 600
N_PERMUTATIONS = 100
PENALTY = 100.0
"""scikit-learn's C is one over it."""
POSITIONS = ("word", "end", "last")


def objective(z: np.ndarray, labels: np.ndarray, weights: np.ndarray, intercept: float) -> float:
    z, signs = z.astype(float), np.where(labels, 1, -1)
    loss = np.logaddexp(0, -signs * (z @ weights + intercept)).sum()
    return loss + PENALTY / 2 * np.square(weights.astype(float)).sum()


def rows(quick: bool) -> Iterator[Row]:
    loaded = models.load()
    data = sentences.draw_sentiment(loaded, n_words=38, seed=0)
    data = data.select(np.random.default_rng(0).permutation(len(data.texts))[:N_ROWS].tolist())
    captured = hooks.capture(
        loaded,
        data.texts,
        ["resid_post", "attn_out", "mlp_out", "head_z"],
        positions={name: data.positions[name] for name in POSITIONS},
    )
    yield from _one_site(captured, data, n_pairs=2 if quick else 9)
    yield from _sweeps(captured, data, n_runs=1 if quick else 3)


def _one_site(captured: hooks.Captured, data: sentences.Sentiment, *, n_pairs: int) -> Iterator[Row]:
    """One logistic probe with its permutations at a middle layer, where the label is easy to read."""
    site = probes.Site("resid_post", captured.layers[len(captured.layers) // 2], "last")
    z = solvers.standardise(probes.read_features(captured, site)[None])
    labels = torch.tensor(data.labels)
    null = folds.permute_labels(data.labels, data.words, n_permutations=N_PERMUTATIONS, seed=0)
    tasks = torch.cat([labels[:, None], null], dim=1)

    def ours() -> solvers.Fits:
        return solvers.fit(z, tasks, method="logistic", penalties=[PENALTY])

    def one(column: int, **options: object) -> LogisticRegression:
        return LogisticRegression(C=1 / PENALTY, max_iter=1000, **options).fit(z[0].numpy(), tasks[:, column].numpy())

    # scikit-learn's tolerance is loosened or tightened until its objective is within 1e-5 of the optimum, as ours is.
    tolerance, excess = _tolerance(z[0].numpy(), tasks.numpy())
    fits = ours()
    reached = max(
        objective(
            z[0].numpy(),
            tasks[:, column].numpy(),
            fits.weights[0, 0, :, column].numpy(),
            float(fits.intercepts[0, 0, column]),
        )
        / _optimum(z[0].numpy(), tasks[:, column].numpy())
        - 1
        for column in range(0, N_PERMUTATIONS + 1, 10)
    )
    assert reached < 1e-5, f"the objective is {reached} above the optimum"
    iterations = one(0, tol=tolerance).n_iter_[0]
    note = (
        f"N = {N_ROWS}, d = {z.shape[2]}, float32, C = {1 / PENALTY:g}, lbfgs, tol = {tolerance:g}, {iterations} "
        f"iterations; above the optimum by {excess:.0e} (scikit-learn) and {reached:.0e} (ours) at the most"
    )
    work = f"a logistic probe and {N_PERMUTATIONS} permutations of it"
    yield paired(
        work,
        ours,
        lambda: one(0, tol=tolerance),
        named="one scikit-learn fit",
        at_least=0.5,
        n_pairs=n_pairs,
        repeats=10,
        note=note,
    )
    yield paired(
        work,
        ours,
        lambda: [one(column, tol=tolerance) for column in range(N_PERMUTATIONS + 1)],
        named="scikit-learn in a loop",
        at_least=50,
        n_pairs=max(1, n_pairs // 3),
        note=note,
    )


def _optimum(z: np.ndarray, labels: np.ndarray) -> float:
    best = LogisticRegression(C=1 / PENALTY, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(
        z.astype(float), labels
    )
    return objective(z, labels, best.coef_[0], float(best.intercept_[0]))


def _tolerance(z: np.ndarray, tasks: np.ndarray) -> tuple[float, float]:
    """The loosest power of ten at which scikit-learn's objective is within 1e-5 of the optimum, and how far it is."""
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        excess = []
        for column in range(0, N_PERMUTATIONS + 1, 10):
            labels = tasks[:, column]
            found = LogisticRegression(C=1 / PENALTY, tol=tolerance, max_iter=1000).fit(z, labels)
            reached = objective(z, labels, found.coef_[0], float(found.intercept_[0]))
            excess.append(reached / _optimum(z, labels) - 1)
        if max(excess) < 1e-5:
            return tolerance, max(excess)
    raise AssertionError("scikit-learn did not come within 1e-5 of the optimum")


def _sweeps(captured: hooks.Captured, data: sentences.Sentiment, *, n_runs: int) -> Iterator[Row]:
    sites = probes.list_sites(captured)
    options = {"types": data.words, "seed": 0, "n_permutations": N_PERMUTATIONS}
    found: list[probes.Sweep] = []

    def ridge() -> None:
        found.append(probes.sweep(captured, data.labels, data.words, **options))

    def logistic() -> None:
        options = {"method": "logistic", "penalties": [PENALTY], "types": None, "seed": 0}
        probes.sweep(captured, data.labels, data.words, n_permutations=0, **options)
        chosen = sorted(set(found[-1].best().sites), key=sites.index)
        probes.sweep(captured, data.labels, data.words, n_permutations=N_PERMUTATIONS, sites=chosen, **options)

    penalties = ", ".join(f"{penalty:g}" for penalty in probes.PENALTIES["ridge"])
    control = f"{N_PERMUTATIONS} permutations, control task"
    for work, function, note in (
        (f"ridge at {len(sites)} sites, 5 folds, {control}", ridge, f"penalty chosen inside from {penalties}"),
        (
            f"logistic regression at {len(sites)} sites, 5 folds; {N_PERMUTATIONS} permutations where ridge is best",
            logistic,
            f"C = {1 / PENALTY:g}",
        ),
    ):
        seconds = statistics.median(timed(function) for _ in range(n_runs))
        yield Row(
            work=work,
            ours=seconds,
            peer="a minute",
            peer_seconds=60.0,
            ratio=60 / seconds,
            target="≥ 1×",
            reached=seconds <= 60,
            note=f"N = {N_ROWS}; {note}",
        )

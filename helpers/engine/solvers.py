"""Linear classifiers of many label columns at many sites at once: ridge, logistic regression, difference of means.

What the columns share (a Gram matrix, its factor, products with the activations) is the work, so a hundred
permutations of the labels cost little more than the labels themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from helpers import InputError
from helpers.engine.inputs import as_list, as_tensor, is_row

Method = Literal["ridge", "logistic", "mean_difference"]
METHODS: tuple[Method, ...] = get_args(Method)
CONSTANT = 1e-5
"""A feature that varies by less than this share of the site's root mean square is rounding of the forward pass: in
float32, tokens with the same prefix in prompts of other lengths differ by at most 5e-6 on the embedded model."""
TOLERANCE = 1e-5
"""Of a logistic probe's objective: twice its distance from the optimum, relative to it, by a quadratic estimate."""
ILL_CONDITIONED = 4e3
"""A logistic probe takes float64 where the trace of its Gram matrix exceeds the penalty by more."""
ROUND, MAX_ROUNDS, NEWTON_STEPS = 20, 50, 3
"""Of the descent of a logistic probe: steps until it begins afresh, how often it may, and steps along a direction."""


class Fits(NamedTuple):
    """A classifier for each penalty, site and task; scores are above zero for label 1."""

    weights: Float[Tensor, "penalty site feature task"]
    intercepts: Float[Tensor, "penalty site task"]

    def scores(self, z: Float[Tensor, "site row feature"]) -> Float[Tensor, "penalty site row task"]:
        return z @ self.weights + self.intercepts[:, :, None]


def standardise(
    x: Float[Tensor, "site row feature"], *, like: Float[Tensor, "site other_row feature"] | None = None
) -> Float[Tensor, "site row feature"]:
    """Z-scores over all rows, or by the mean and deviation of others, in float32; features that only carry rounding
    errors become zero.

    Args:
        x: activations.
        like: the rows that mean and deviation are taken from, such as those of the training folds.
    """
    x = x.double() if x.device.type == "cpu" else x.float()
    others = x if like is None else like.to(x)
    mean, deviation = others.mean(1, keepdim=True), others.std(1, keepdim=True, correction=0)
    size = others.square().mean((1, 2), keepdim=True).sqrt()
    return ((x - mean) * _inverse(deviation, CONSTANT * size)).float()


def fit(
    z: Float[Tensor, "site row feature"],
    labels: Bool[Tensor, "row task"],
    *,
    method: Method,
    penalties: Sequence[float],
    like: Float[Tensor, "site other_row feature"] | None = None,
) -> Fits:
    """Fit every task with every penalty at every site.

    Args:
        z: rows of what `standardise` returned, those to train on. They are z-scored once more among themselves.
        labels: a column for each task, with a row for each of `z`.
        method: `ridge` minimises the sum of (y - f)² over rows, with y = ±1, plus penalty · ‖w‖² (scikit-learn's
            alpha); `logistic` the sum of log losses plus penalty/2 · ‖w‖² (scikit-learn's 1/C); `mean_difference` takes
            the difference of the two classes' means and knows no penalty. The weights w are those of the z-scores among
            the rows; intercepts are free.
        penalties: above zero, at least one; every task is fitted with each.
        like: where two rows of each class would give no deviation to trust, rows to take it from instead.

    Returns:
        Classifiers of `z` as it was given.

    Raises:
        InputError: unknown method, a penalty that is not above zero.
    """
    penalties = check_penalties(method, penalties)
    z, labels = as_tensor(z, "z").float(), as_tensor(labels, "labels")
    if z.ndim != 3 or labels.ndim != 2 or len(labels) != z.shape[1] or not z.isfinite().all():
        raise InputError(
            f"z of shape {list(z.shape)} with labels of shape {list(labels.shape)}: legal are finite numbers by site, "
            "row and feature, and labels by row and task"
        )
    mean = z.mean(1, keepdim=True)
    inputs = z - mean
    others = inputs if like is None else like - like.mean(1, keepdim=True)
    inverse = _inverse(others.norm(dim=1, keepdim=True) / others.shape[1] ** 0.5)
    inputs *= inverse
    signs = labels.to(z) * 2 - 1
    if method == "ridge":
        weights, intercepts = _ridge(inputs, signs, penalties)
    elif method == "logistic":
        found = [_logistic(inputs, signs, penalty) for penalty in penalties]
        weights, intercepts = (torch.stack(parts) for parts in zip(*found, strict=True))
    else:
        weights, intercepts = (part.expand(len(penalties), *part.shape) for part in _mean_difference(inputs, signs))
    weights = weights * inverse.mT
    return Fits(weights, intercepts - (mean @ weights)[..., 0, :])


def check_penalties(method: str, penalties: Any) -> tuple[float, ...]:
    """Penalties as numbers, or an `InputError`; one may stand alone."""
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: legal are {', '.join(METHODS)}")
    given = as_list(penalties)
    given = given if is_row(given) else [given]
    if not given or not all(isinstance(one, int | float) and one is not True and 0 < one < math.inf for one in given):
        raise InputError(f"penalties {given}: legal are numbers above zero, at least one")
    return tuple(map(float, given))


def _inverse(
    deviation: Float[Tensor, "*any"], smallest: float | Float[Tensor, "*any"] = CONSTANT
) -> Float[Tensor, "*any"]:
    """1 / deviation, zero where there is no deviation to speak of."""
    return (deviation > smallest) / deviation.clamp(min=1e-30)


def _ridge(
    inputs: Float[Tensor, "site row feature"], target: Float[Tensor, "row task"], penalties: Sequence[float]
) -> tuple[Float[Tensor, "penalty site feature task"], Float[Tensor, " task"]]:
    middle = target.mean(0)
    by_rows = inputs.shape[1] < inputs.shape[2]  # then the smaller matrix is that of the rows
    gram = inputs @ inputs.mT if by_rows else inputs.mT @ inputs
    right = (target - middle).expand(len(inputs), -1, -1)
    right = right if by_rows else inputs.mT @ right
    weights = inputs.new_empty(len(penalties), len(inputs), inputs.shape[2], target.shape[1])
    for number, penalty in enumerate(penalties):
        shifted = gram.clone()
        shifted.diagonal(dim1=1, dim2=2).add_(penalty)
        solution = torch.cholesky_solve(right, torch.linalg.cholesky(shifted))
        weights[number] = inputs.mT @ solution if by_rows else solution
    return weights, middle


def _mean_difference(
    inputs: Float[Tensor, "site row feature"], target: Float[Tensor, "row task"]
) -> tuple[Float[Tensor, "site feature task"], Float[Tensor, "site task"]]:
    of_class = [(target == side).to(inputs) for side in (1.0, -1.0)]
    positive, negative = (inputs.mT @ (rows / rows.sum(0).clamp(min=1)) for rows in of_class)
    weights = positive - negative
    return weights, -(weights * (positive + negative)).sum(1) / 2


class _Problem(NamedTuple):
    """Regularised log loss at some sites. The weights are sought in whichever is smaller, the space of features or
    that of rows, where they are `inputs.T @ state`."""

    inputs: Float[Tensor, "site row feature"]
    gram: Float[Tensor, "site state state"]
    bound: Float[Tensor, "site state state"]
    """The inverse of the Hessian's upper bound by Böhning and Lindsay (1988), one for all tasks."""
    penalty: float
    by_rows: bool


def _logistic(
    inputs: Float[Tensor, "site row feature"], target: Float[Tensor, "row task"], penalty: float
) -> tuple[Float[Tensor, "site feature task"], Float[Tensor, "site task"]]:
    n_sites, n_rows, n_features = inputs.shape
    by_rows = n_rows < 2 * n_features
    if n_rows * n_features > ILL_CONDITIONED * penalty:
        inputs, target = inputs.double(), target.double()
    gram = inputs @ inputs.mT if by_rows else inputs.mT @ inputs
    bound = gram / 4
    bound.diagonal(dim1=1, dim2=2).add_(penalty)
    problem = _Problem(inputs, gram, torch.cholesky_inverse(torch.linalg.cholesky(bound)), penalty, by_rows)
    left = torch.arange(target.shape[1], device=inputs.device)
    state, middle = inputs.new_zeros(n_sites, len(gram[0]), len(left)), inputs.new_zeros(n_sites, 1, len(left))
    flatness = torch.ones_like(middle)
    for _ in range(MAX_ROUNDS):
        found = _descended(problem, target[:, left], state[..., left], middle[..., left], flatness)
        state[..., left], middle[..., left], flatness, active = found
        left, flatness = left[active], flatness[..., active]
        if not len(left):
            break
    return (inputs.mT @ state if by_rows else state).float(), middle[:, 0].float()


def _descended(
    problem: _Problem,
    target: Float[Tensor, "row task"],
    state: Float[Tensor, "site state task"],
    middle: Float[Tensor, "site 1 task"],
    flatness: Float[Tensor, "site 1 task"],
) -> tuple[
    Float[Tensor, "site state task"], Float[Tensor, "site 1 task"], Float[Tensor, "site 1 task"], Bool[Tensor, " task"]
]:
    """Preconditioned non-linear conjugate gradients, all tasks side by side, until nine of ten are done.

    Along a direction the objective is known from the logits alone, so Newton's method finds its minimum.
    `flatness` is how far the bound has been seen to exceed the curvature.

    Returns:
        Weights, intercepts, flatness, and which tasks are not done.
    """
    from torch.nn.functional import softplus

    inputs, gram, bound, penalty, by_rows = problem
    n_rows = inputs.shape[1]

    def dot(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum(1, keepdim=True)

    away = -target  # the sign of the wrong side
    image = gram @ state if by_rows else state  # scalar products are those of a state with an image
    logits = (image if by_rows else inputs @ state) + middle
    direction = before = None
    active = target.new_ones(target.shape[1], dtype=torch.bool)
    for _ in range(ROUND):
        wrong = away * logits
        residual = away * wrong.sigmoid()
        slope = residual.sum(1, keepdim=True)
        # Inputs are centred, so the mean over rows changes nothing, and rounding must not let it grow.
        gradient = (residual - slope / n_rows if by_rows else inputs.mT @ residual).add_(state, alpha=penalty)
        step = (bound @ gradient).neg_()
        # By rows the image of a step, gram @ step, follows from what `bound` is the inverse of.
        steps = step, (gradient + penalty * step) * -4 if by_rows else step, -4 / n_rows * slope
        decrement = -dot(gradient, steps[1]) - slope * steps[2]
        objective = softplus(wrong).sum(1, keepdim=True) + penalty / 2 * dot(state, image)
        active = (decrement * flatness.square() > TOLERANCE * objective).any(0)[0]
        if 10 * active.sum() <= len(active):
            break
        if direction is not None and before is not None:
            fresh = -dot(gradient - before[0], steps[1]) - (slope - before[1]) * steps[2]
            share = (fresh / before[2].clamp(min=1e-30)).clamp(min=0)
            steps = tuple(torch.addcmul(new, share, old) for new, old in zip(steps, direction, strict=True))
        direction, before = steps, (gradient, slope, decrement)
        change = (direction[1] if by_rows else inputs @ direction[0]) + direction[2]
        worse = away * change
        linear, quadratic = penalty * dot(direction[0], image), penalty * dot(direction[0], direction[1])
        length = curvature = torch.ones_like(middle)
        for _ in range(NEWTON_STEPS):
            tried = torch.addcmul(wrong, length, worse).sigmoid()
            falling = torch.addcmul(linear, length, quadratic) + dot(tried, worse)
            curvature = dot(tried - tried.square(), change.square()) + quadratic
            newton = length - falling / curvature.clamp(min=1e-30)
            length = newton.clamp(min=length / 4, max=length * 4)  # where it is flat the parabola reaches too far
        flatness = flatness.maximum((dot(change, change) / 4 + quadratic) / curvature.clamp(min=1e-30))
        state, image, middle = (
            torch.addcmul(old, length, new) for old, new in zip((state, image, middle), direction, strict=True)
        )
        logits = torch.addcmul(logits, length, change)
    return state, middle, flatness, active

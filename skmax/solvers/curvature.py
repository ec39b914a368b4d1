"""The curvature of the objective on a sample of the rows: what L-BFGS starts from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from skmax.backends import Array, rounding_unit
from skmax.data import dense, scaled, squared
from skmax.objective import log_softmax, logits_of
from skmax.policy import blocks_per_model
from skmax.problem import Problem, State

# Rows whose curvature is below this share of their class's mean are left out: most rows are.
_NEGLIGIBLE = 0.2
# Added to every matrix, as a share of its mean diagonal.
_RIDGE, _RIDGE_ROUNDINGS = 1e-8, 8
# The least curvature of a feature, as a share of the largest: without it, scaled digits with C=1e6
# take more than 300 passes instead of 209.
_LEAST_SHARE = 0.1
_LEAST = 1e-12
_ROWS_AT_ONCE = 2048


def inverse_curvature(
    problem: Problem, state: State, rows: np.ndarray, *, diagonal: bool
) -> tuple[Callable[[Array, Array], Array], Array]:
    """What maps gradients to about the steps that Newton's method would take.

    The Hessian of the mean cross-entropy has blocks ``mean_i p_ia (1[a=b] - p_ib) x_i x_i'``.
    Those with a = b are inverted, each times k / (k - 1): what the others add along directions that
    sum to zero over the classes, exactly so where there are two, or all are equally likely. Too
    many of them give way to their mean over the classes, and that to its diagonal.

    Parameters
    ----------
    problem : Problem
        What is minimised.
    state : State
        Where.
    rows : ndarray, host
        The rows that the curvature is measured on.
    diagonal : bool
        Whether features stand alone in any case.

    Returns
    -------
    apply : callable
        Maps `curvature` and arrays of shape (m, k, d + 1), in the coordinates of the
        preconditioner, the intercept last.
    curvature : array
        What it is about; the first axis runs over the models.
    """
    d = problem.data.n_features + 1
    n_blocks = blocks_per_model(problem.n_models, problem.n_classes, d)
    if diagonal or n_blocks == 0:
        values = diagonal_curvature(problem, state, rows)
        if problem.inverse_scale is not None:  # as in `_missing`
            values = problem.backend.xp.maximum(values, _LEAST_SHARE * values[..., -1:])
        return lambda diagonal, gradient: gradient / diagonal, values
    xp, backend = problem.backend.xp, problem.backend
    at_start = not bool(xp.any(state.coef != 0))  # there, all classes have the same
    shared = at_start or n_blocks == 1
    blocks = _blocks(problem, state, rows, shared=shared)
    diagonals = xp.mean(xp.linalg.diagonal(blocks), axis=-1, keepdims=True)
    # In float32 a matrix is known to its rounding errors, which must not make it indefinite.
    ridge = max(_RIDGE, _RIDGE_ROUNDINGS * rounding_unit(problem.data.dtype))
    added = _penalty(problem)[:, None, :] + ridge * diagonals + _LEAST
    added = added + _missing(problem, blocks)
    identity = xp.eye(d, dtype=blocks.dtype, device=backend.device)
    inverses = backend.inverses(blocks + added[..., None] * identity)
    if shared:
        return lambda inverse, gradient: gradient @ inverse, inverses[:, 0, :, :]
    return lambda inverse, gradient: (inverse @ gradient[..., None])[..., 0], inverses


def _missing(problem: Problem, blocks: Array) -> Array:
    """What features lack whose few rows the sample missed, or the model at hand predicts well.

    They would take steps without bound, against which these rows then stand.
    """
    if problem.inverse_scale is None:
        return 0.0
    xp = problem.backend.xp
    own = xp.linalg.diagonal(blocks)
    least = _LEAST_SHARE * xp.max(own, axis=-1, keepdims=True)
    varies = xp.astype(units_of(problem)[:, None, :] > 0, own.dtype)
    return xp.concat(
        [xp.maximum(least * varies - own[..., :-1], 0 * own[..., :-1]), 0 * own[..., -1:]], axis=-1
    )


def units_of(problem: Problem) -> Array:
    """One over the preconditioner's units, of shape (m, d), float64."""
    backend, xp = problem.backend, problem.backend.xp
    float64 = backend.dtype(np.float64)
    if problem.inverse_scale is None:
        shape = problem.n_models, problem.data.n_features
        return xp.ones(shape, dtype=float64, device=backend.device)
    return xp.astype(problem.inverse_scale[:, 0, :], float64)


def _penalty(problem: Problem) -> Array:
    """The curvature of the L2 penalty, of shape (m, d + 1), float64; none for the intercept."""
    backend, units = problem.backend, units_of(problem)
    of_coef = backend.asarray(problem.l2[:, None], units.dtype) * units * units
    return backend.xp.concat([of_coef, 0 * of_coef[:, :1]], axis=1)


def _weights(problem: Problem, state: State, X: Array, index: Any) -> Array:
    """Curvatures of the loss of each row by its logits, of shape (b, m, k)."""
    xp = problem.backend.xp
    p = xp.exp(log_softmax(xp, logits_of(xp, X, state.coef, state.intercept)))
    known = np.sum(~problem.masked, axis=1)
    factor = problem.backend.asarray((known / (known - 1))[:, None], problem.data.dtype)
    weight = p * (1 - p) * factor
    of_rows = problem.weights(index)
    return weight if of_rows is None else weight * of_rows[..., None]


def _blocks(problem: Problem, state: State, rows: np.ndarray, *, shared: bool) -> Array:
    """Weighted second moments of features and intercept, of shape (m, k or 1, d + 1, d + 1)."""
    xp, data, m = problem.backend.xp, problem.data, problem.n_models
    known = problem.backend.asarray(np.sum(~problem.masked, axis=1)[:, None], data.dtype)

    def sums(index: Any, X: Array) -> tuple[Array]:
        weight = _weights(problem, state, X, index)
        if shared:
            weight = xp.sum(weight, axis=2, keepdims=True) / known
        X = dense(X)
        moments = [_second_moments(problem, X, weight[:, model, :], model) for model in range(m)]
        return (xp.stack(moments),)

    return data.reduce(rows, sums, width=data.n_features, size=_ROWS_AT_ONCE)[0] / len(rows)


def _second_moments(problem: Problem, X: Array, weight: Array, model: int) -> Array:
    """Those of rows in a model's coordinates, for each column of weights (b, k or 1)."""
    xp, Z = problem.backend.xp, _standardised(problem, X, model)
    columns = [weight[:, block] for block in range(weight.shape[1])]
    cost = len(columns) * Z.shape[0] * Z.shape[1] ** 2
    return xp.stack(problem.backend.each(partial(_weighted_gram, xp, Z), columns, cost))


def _weighted_gram(xp: Any, Z: Array, weight: Array) -> Array:
    """The second moments of the rows whose weight matters."""
    heavy = xp.nonzero(weight > _NEGLIGIBLE * xp.mean(weight))[0]
    Q = xp.take(Z, heavy, axis=0) * xp.sqrt(xp.take(weight, heavy, axis=0))[:, None]
    return Q.T @ Q


def _standardised(problem: Problem, X: Array, model: int) -> Array:
    """Rows in a model's coordinates, with a column of ones for the intercept."""
    backend, xp = problem.backend, problem.backend.xp
    if problem.mean is not None:
        X = X - problem.mean[model, ...]
    if problem.inverse_scale is not None:
        X = X * problem.inverse_scale[model, ...]
    ones = xp.ones((X.shape[0], 1), dtype=X.dtype, device=backend.device)
    return xp.concat([X, ones * float(problem.fit_intercept)], axis=1)


def diagonal_curvature(problem: Problem, state: State, rows: np.ndarray) -> Array:
    """The curvature of every weight by itself, of shape (m, k, d + 1), float64.

    The parameters, the factor k / (k - 1) and the coordinates are those of `inverse_curvature`.
    """
    xp, data = problem.backend.xp, problem.data
    m, k, d, units = problem.n_models, problem.n_classes, data.n_features, units_of(problem)
    # Squares of features that are not scaled might under- or overflow.
    common = xp.max(units, axis=0)
    scale = xp.astype(common, data.dtype)

    def sums(index: Any, X: Array) -> tuple[Array, Array, Array]:
        weight = _weights(problem, state, X, index)
        flat, X = xp.reshape(weight, (-1, m * k)).T, scaled(X, scale)
        return flat @ X, flat @ squared(X), xp.sum(weight, axis=0)

    first, second, total = (part / len(rows) for part in data.reduce(rows, sums, width=m * k))
    first, second = xp.reshape(first, (m, k, d)), xp.reshape(second, (m, k, d))
    if problem.mean is not None:
        mean = xp.astype(problem.mean, units.dtype) * common
        second = second - mean * (2 * first - mean * total[..., None])
    ratio = (units / xp.where(common > 0, common, xp.ones_like(common)))[:, None, :]
    values = ratio * ratio * xp.maximum(second, 0 * second)
    values = xp.concat([values, total[..., None]], axis=-1)
    ridge = _RIDGE * xp.mean(values, axis=-1, keepdims=True) + _LEAST
    return values + ridge + _penalty(problem)[:, None, :]

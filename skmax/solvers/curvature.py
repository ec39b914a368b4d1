"""The curvature of the objective on a sample of the rows: what L-BFGS starts from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from skmax.objective import log_softmax, logits_of
from skmax.problem import Array, Problem, State

# The most entries of all matrices of a stack: with more, classes share one. With more features, or
# more entries even so, features stand alone.
MOST_ENTRIES, _MOST_FEATURES = 1 << 24, 2000
# Rows whose curvature is below this share of their class's mean are left out: most rows are.
_NEGLIGIBLE = 0.2
# Added to every matrix, as a share of its mean diagonal.
_RIDGE = 1e-8
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
        return _diagonal(problem, state, rows)
    xp, backend = problem.backend.xp, problem.backend
    at_start = not bool(xp.any(state.coef != 0))  # there, all classes have the same
    shared = at_start or n_blocks == 1
    blocks = _blocks(problem, state, rows, shared=shared)
    penalty = backend.asarray(problem.l2[:, None], backend.dtype(np.float64)) * _units(problem) ** 2
    diagonals = xp.mean(xp.linalg.diagonal(blocks), axis=-1, keepdims=True)
    added = penalty[:, None, :] + _RIDGE * diagonals + _LEAST
    identity = xp.eye(d, dtype=blocks.dtype, device=backend.device)
    inverses = backend.inverses(blocks + added[..., None] * identity)
    if shared:
        return lambda inverse, gradient: gradient @ inverse, inverses[:, 0, :, :]
    return lambda inverse, gradient: (inverse @ gradient[..., None])[..., 0], inverses


def blocks_per_model(m: int, k: int, d: int) -> int:
    """How many matrices a model has: one per class, one for all of them, or none."""
    if d > _MOST_FEATURES or m * d * d > MOST_ENTRIES:
        return 0
    return k if m * k * d * d <= MOST_ENTRIES else 1


def measures_blocks(m: int, k: int, d: int) -> bool:
    """Whether m models of k classes see their d features, the constant one included, together."""
    return blocks_per_model(m, k, d) > 0


def passes_worth(m: int, k: int, d: int, n: int, n_rows: int) -> float:
    """How many evaluations on n rows cost about as much as the curvature on so many of them."""
    n_blocks = blocks_per_model(m, k, d)
    if n_blocks == 0:
        return 2 * n_rows / n
    return n_blocks * d * (n_rows / 4 + d) / (2 * n * k)


def _units(problem: Problem) -> Array:
    """One over the preconditioner's units, of shape (m, d + 1), float64; 0 for the intercept."""
    backend, xp = problem.backend, problem.backend.xp
    float64, m, d = backend.dtype(np.float64), problem.n_models, problem.data.n_features
    if problem.inverse_scale is None:
        units = xp.ones((m, d), dtype=float64, device=backend.device)
    else:
        units = xp.astype(problem.inverse_scale[:, 0, :], float64)
    return xp.concat([units, backend.zeros((m, 1), float64)], axis=1)


def _weights(problem: Problem, state: State, X: Array, index: Array) -> Array:
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
    backend, xp, data = problem.backend, problem.backend.xp, problem.data
    m = problem.n_models
    known = np.sum(~problem.masked, axis=1)
    n_blocks = 1 if shared else problem.n_classes
    total: Array = 0.0
    for index, X in data.batches(rows, _ROWS_AT_ONCE):
        weight = _weights(problem, state, X, index)
        X = data.dense(X)
        of_models = []
        for model in range(m):
            Z, of_model = _standardised(problem, X, model), weight[:, model, :]
            if shared:
                of_model = xp.sum(of_model, axis=1, keepdims=True) / int(known[model])
            columns = [of_model[:, block] for block in range(n_blocks)]
            moments = backend.each(
                partial(_second_moments, xp, Z),
                columns,
                cost=n_blocks * Z.shape[0] * Z.shape[1] ** 2,
            )
            of_models.append(xp.stack(moments))
        total = total + xp.astype(xp.stack(of_models), backend.dtype(np.float64))
    return total / len(rows)


def _second_moments(xp: Any, Z: Array, weight: Array) -> Array:
    """Those of the rows whose weight matters."""
    kept = xp.nonzero(weight > _NEGLIGIBLE * xp.mean(weight))[0]
    Q = xp.take(Z, kept, axis=0) * xp.sqrt(xp.take(weight, kept, axis=0))[:, None]
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


def _diagonal(
    problem: Problem, state: State, rows: np.ndarray
) -> tuple[Callable[[Array, Array], Array], Array]:
    """The same of every feature by itself."""
    backend, xp, data = problem.backend, problem.backend.xp, problem.data
    m, k, d = problem.n_models, problem.n_classes, data.n_features
    float64 = backend.dtype(np.float64)
    first = second = backend.zeros((m, k, d), float64)
    total = backend.zeros((m, k), float64)
    for index, X in data.chunks(rows, width=m * k):
        weight = _weights(problem, state, X, index)
        flat = xp.reshape(weight, (-1, m * k)).T
        squares = data.squared(X)
        first = first + xp.astype(xp.reshape(flat @ X, (m, k, d)), float64)
        second = second + xp.astype(xp.reshape(flat @ squares, (m, k, d)), float64)
        total = total + xp.sum(weight, axis=0, dtype=float64)
    if problem.mean is not None:
        mean = xp.astype(problem.mean, float64)
        second = second - mean * (2 * first - mean * total[..., None])
    l2 = backend.asarray(problem.l2[:, None, None], float64)
    units = _units(problem)[:, None, :]
    values = units[..., :-1] ** 2 * (xp.maximum(second, 0 * second) / len(rows) + l2)
    values = xp.concat([values, total[..., None] / len(rows)], axis=-1)
    values = values + _RIDGE * xp.mean(values, axis=-1, keepdims=True) + _LEAST
    return lambda diagonal, gradient: gradient / diagonal, values

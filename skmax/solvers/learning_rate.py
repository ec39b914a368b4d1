"""learning_rate="auto": a rate found from the curvature of the data."""

from __future__ import annotations

import numpy as np

from skmax.problem import Problem


def curvature(problem: Problem, rows: np.ndarray, n_iter: int = 20) -> np.ndarray:
    """The largest eigenvalue of the features' second moments, of shape (m,), on the host.

    In the coordinates of the preconditioner and with the constant feature of the intercept, by
    the power method on the rows given. By D. Boehning, Multinomial logistic regression algorithm,
    1992, the Hessian of the mean cross-entropy is at most half of it, and at zero weights it is
    ``1/k`` of it.
    """
    backend, xp, data = problem.backend, problem.backend.xp, problem.data
    d, m = data.n_features, problem.n_models
    mean = 0.0 if problem.mean is None else problem.mean[:, 0, :]
    inverse_scale = 1.0 if problem.inverse_scale is None else problem.inverse_scale[:, 0, :]
    vector = backend.asarray(np.ones((m, d)) / np.sqrt(d + 1), data.dtype)
    constant = backend.asarray(np.full((m, 1), problem.fit_intercept / np.sqrt(d + 1)), data.dtype)
    value = np.ones(m)
    for _ in range(n_iter):
        weights = vector * inverse_scale
        offset = constant - xp.sum(weights * mean, axis=1, keepdims=True)
        image: object = 0.0
        total: object = 0.0
        for index, X in data.chunks(rows):
            response = X @ weights.T + offset.T
            if problem.sample_weight is not None:
                response = response * xp.take(problem.sample_weight, index, axis=0)
            image = image + response.T @ X
            total = total + xp.sum(response, axis=0)
        vector = (image - total[:, None] * mean) * inverse_scale / len(rows)
        constant = total[:, None] / len(rows) * float(problem.fit_intercept)
        norm = xp.sqrt(xp.sum(vector * vector, axis=1, keepdims=True) + constant * constant)
        value = backend.to_numpy(norm)[:, 0]
        norm = xp.where(norm > 0, norm, xp.ones_like(norm))
        vector, constant = vector / norm, constant / norm
    return value


def automatic(problem: Problem) -> np.ndarray:
    """A learning rate per model, of shape (m,)."""
    few = problem.order[:: -(-len(problem.order) // 2048)]
    return 2.0 / np.maximum(curvature(problem, few), 1e-3)

"""learning_rate="auto": a rate found from the curvature of the data."""

from __future__ import annotations

from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from skmax import kernels
from skmax.backends import Array
from skmax.objective import penalty
from skmax.problem import Problem, State
from skmax.solvers.sgd import SGD, Orders, mean_loss

# Steps of a search, rows that the curvature and the winner are measured on, and the rates that are
# tried, in units of the stable one.
_STEPS, _SAMPLE = 128, 2048
_MULTIPLES = 10.0 ** (np.arange(4) / 2)
_LEAST_CURVATURE = 1e-3
# The most iterations that find the curvature, and the share that it changes by in one when it
# counts as known.
_ITERATIONS, _SETTLED = 20, 1e-3
# Weights that race at a time: more gain nothing from the company, and take the memory.
_WEIGHTS_AT_ONCE = 1 << 20
# Objectives that differ by less than this share count as the same, and the slowest rate wins.
_TIE = 1e-4


def curvature(problem: Problem, rows: np.ndarray, n_iter: int, settled: float) -> np.ndarray:
    """The largest eigenvalue of the features' second moments, of shape (m,), on the host.

    In the coordinates of the preconditioner and with the constant feature of the intercept, by
    the power method on the rows given. By D. Boehning, Multinomial logistic regression algorithm,
    1992, the Hessian of the mean cross-entropy is at most half of it, and at zero weights it is
    ``1/k`` of it.
    """
    backend, xp, dtype = problem.backend, problem.backend.xp, problem.data.dtype
    d, m = problem.data.n_features, problem.n_models
    vector = backend.asarray(np.ones((m, d)) / np.sqrt(d + 1), dtype)
    constant = backend.asarray(np.full((m, 1), problem.fit_intercept / np.sqrt(d + 1)), dtype)
    value, done = np.ones(m), np.zeros(m, dtype=bool)
    for _ in range(n_iter):
        vector, constant = _second_moments_times(problem, rows, vector, constant)
        norm = xp.sqrt(xp.sum(vector * vector, axis=1, keepdims=True) + constant * constant)
        value, before = np.where(done, value, backend.to_numpy(norm)[:, 0]), value
        norm = xp.where(norm > 0, norm, xp.ones_like(norm))
        vector, constant = (xp.astype(part / norm, dtype) for part in (vector, constant))
        done |= np.abs(value - before) <= settled * value
        if done.all():
            break
    return value


def _second_moments_times(
    problem: Problem, rows: np.ndarray, vector: Array, constant: Array
) -> tuple[Array, Array]:
    """The matrix of second moments times a vector (m, d) and its constant (m, 1), float64."""
    xp, data = problem.backend.xp, problem.data
    mean = 0.0 if problem.mean is None else problem.mean[:, 0, :]
    inverse_scale = 1.0 if problem.inverse_scale is None else problem.inverse_scale[:, 0, :]
    weights = vector * inverse_scale
    offset = constant - xp.sum(weights * mean, axis=1, keepdims=True)

    def sums(index: Any, X: Array) -> tuple[Array, Array]:
        response = X @ weights.T + offset.T
        weight = problem.weights(index)
        response = response if weight is None else response * weight
        return response.T @ X, xp.sum(response, axis=0)

    image, total = (part / len(rows) for part in data.reduce(rows, sums, width=problem.n_models))
    total = total[:, None]
    return (image - total * mean) * inverse_scale, total * float(problem.fit_intercept)


def searched_rate(problem: Problem, solver: SGD, rng: np.random.Generator) -> np.ndarray:
    """The learning rate that does best in a short search, per model, of shape (m,).

    Rates run through the whole of their schedule, on a sample of the rows: side by side as one
    stack, or, where weights are many, one after the other. They are multiples of `stable_rate`.

    Parameters
    ----------
    problem : Problem
        What is minimised.
    solver : SGD
        Its other hyperparameters.
    rng : numpy.random.Generator
        Where the sample comes from.
    """
    m, rng = problem.n_models, rng.spawn(1)[0]  # training finds its own as it was
    models, size = np.repeat(np.arange(m), len(_MULTIPLES)), _STEPS * solver.batch_size
    with closing(Orders(problem, rng if solver.shuffle else None, 1)) as orders:
        rates = stable_rate(problem, solver)[models] * np.tile(_MULTIPLES, m)
        order = orders.next()  # as many rows as there are steps for; in order, if training keeps it
    order = order[:size] if solver.shuffle else problem.data.sample(order, size, rng)
    problem = replace(problem, order=order)
    n_weights = problem.n_classes * problem.data.n_features
    n_parts = -(-len(models) * n_weights // _WEIGHTS_AT_ONCE)
    objective = np.concatenate(
        [
            _trial(problem.select(models[part]), solver.select(models[part]), rates[part], rng)
            for part in np.array_split(np.arange(len(models)), min(n_parts, len(models)))
        ]
    ).reshape(m, -1)
    good_enough = objective <= objective.min(axis=1, keepdims=True) * (1 + _TIE)
    return rates.reshape(m, -1)[np.arange(m), good_enough.argmax(axis=1)]


def _trial(stack: Problem, solver: SGD, rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The objective that each of the rates reaches, of shape (m,); any trial has the same rows."""
    rng = deepcopy(rng)
    n_epochs = max(1, _STEPS * solver.batch_size // len(stack.order))
    lengths = np.minimum(n_epochs, solver.max_iter)
    trial = replace(
        solver,
        learning_rate=rates,
        max_iter=tuple(lengths.tolist()),
        retry=np.zeros(len(rates), dtype=bool),
    )
    state = State.start(stack)
    epochs = trial.epochs(stack, state, trial.orders(stack, rng))
    with closing(epochs), np.errstate(over="ignore", invalid="ignore"):
        for epoch in range(max(lengths)):  # each model counts as it is at its own end
            running, after = epoch < lengths, next(epochs).state
            state = after if running.all() else after.where(stack.backend, running, state)
        sample = stack.data.sample(stack.order, _SAMPLE, rng)
        entropy = mean_loss(replace(stack, order=sample), state, solver.batch_size)
        objective = entropy + penalty(stack, state.coef)
    return np.where(np.isfinite(objective), objective, np.inf)


def _evenness(problem: Problem) -> np.ndarray:
    """The share of all rows that, weighing the same, would vary like these; of shape (m,)."""
    if problem.sample_weight is None:
        return np.ones(problem.n_models)
    weight = problem.backend.to_numpy(problem.sample_weight)[problem.order]
    return (1 / np.mean(weight.astype(np.float64) ** 2, axis=0))[problem.columns]


def stable_rate(problem: Problem, solver: SGD) -> np.ndarray:
    """A learning rate that is safe for any minibatch, per model, of shape (m,).

    The inverse of about the largest curvature that a batch of b rows may show. That is the upper
    edge ``(sqrt(c) + sqrt(d / b))^2`` of the spectrum of a sample covariance of d features, c being
    the largest eigenvalue of all rows; a batch that holds all n rows adds none of its own. Rows of
    unequal weights w vary like fewer rows, by Kish's ``mean(w)^2 / mean(w^2)``.

    Reference: V. A. Marchenko and L. A. Pastur, Distribution of eigenvalues for some sets of random
    matrices, 1967.
    """
    n, b, d = len(problem.order), solver.batch_size, problem.data.n_features
    effective = b * _evenness(problem)
    with np.errstate(over="ignore", invalid="ignore"), problem.backend.computing():
        rows = problem.data.sample(problem.order, _SAMPLE)
        of_all = (kernels.curvature(problem) or curvature)(problem, rows, _ITERATIONS, _SETTLED)
        largest = (np.sqrt(of_all) + np.sqrt(d / effective * (1 - b / n))) ** 2
    if not np.isfinite(largest).all():
        raise ValueError(
            f"learning_rate='auto' finds no rate: the squares of X overflow {problem.data.dtype}. "
            "Rescale X, or pass preconditioner='diagonal'."
        )
    # In the coordinates of the preconditioner, the penalty has less than the features.
    of_penalty = problem.l2 if problem.inverse_scale is None else 0.0
    return 1 / np.maximum(np.maximum(largest, of_penalty), _LEAST_CURVATURE)

"""Losses of logits that are kept on the host, and the linear map that makes them.

A model has r rows of weights: one for the logit of the second of two classes against the first,
else one for each of its classes. Arrays are float64; p is d + 1, the last for the intercept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from skmax.backends import Array
from skmax.data import columns, dense, squared
from skmax.data.rows import start_of_range
from skmax.problem import Problem
from skmax.solvers.preconditioner import Moments, precondition

# Values of X that are read, or made of it, at a time (8 MB), and the most that variables are
# kept of (2 MB): standardised breast_cancer takes 3.4 ms instead of 4.2.
_AT_ONCE, _KEPT = 1 << 20, 1 << 18


class Softmax:
    """The mean cross-entropy of logits Z of shape (r, n), one row per class.

    Parameters
    ----------
    target : ndarray of shape (r, n)
        Probabilities that the rows of X should have.
    weight : ndarray of shape (n,)
        Their shares in the mean.
    """

    def __init__(self, target: np.ndarray, weight: np.ndarray):
        self._target, self.weight = target, weight

    def value(self, Z: np.ndarray) -> float:
        """The mean."""
        top = Z.max(axis=0)
        loss = np.log(np.exp(Z - top).sum(axis=0)) + top
        return float((loss - np.einsum("rn,rn->n", self._target, Z)) @ self.weight)

    def probability(self, Z: np.ndarray) -> np.ndarray:
        """Probabilities of shape (r, n)."""
        P = np.exp(Z - Z.max(axis=0))
        return P / P.sum(axis=0)

    def residual(self, P: np.ndarray) -> np.ndarray:
        """Derivatives of the mean by the logits, of shape (r, n)."""
        return (P - self._target) * self.weight

    def label(self, Z: np.ndarray) -> np.ndarray:
        """Positions (n,) of the likeliest classes."""
        return Z.argmax(axis=0)


class Logistic(Softmax):
    """The same of two classes, where Z of shape (1, n) and P are of the second."""

    def __init__(self, target: np.ndarray, weight: np.ndarray):
        super().__init__(target[1:], weight)

    def value(self, Z: np.ndarray) -> float:
        """See `Softmax`."""
        z = Z[0]
        loss = np.log1p(np.exp(-np.abs(z))) + np.where(z > 0, z, 0.0)
        return float((loss - self._target[0] * z) @ self.weight)

    def probability(self, Z: np.ndarray) -> np.ndarray:
        """See `Softmax`."""
        e = np.exp(-np.abs(Z))
        return np.where(Z > 0, 1.0, e) / (1 + e)

    def label(self, Z: np.ndarray) -> np.ndarray:
        """See `Softmax`."""
        return (Z[0] > 0).astype(int)


def in_common_coordinates(problem: Problem) -> Problem:
    """The same problem, with the same coordinates, those of a preconditioner, for all its models.

    They are its own where it has one model and a preconditioner.
    """
    mean, inverse = problem.mean, problem.inverse_scale
    if problem.n_models == 1 and inverse is not None:
        return problem
    backend, dtype = problem.backend, problem.data.dtype
    if inverse is None:
        found = precondition(problem, Moments.of(problem))
        mean, inverse = found.mean, found.inverse_scale
        if mean is not None:
            mean = backend.to_numpy(mean) + _shift(found) - _shift(problem)
            mean = backend.asarray(mean, dtype)

    def common(values: np.ndarray) -> Array:
        return backend.asarray(np.repeat(values, problem.n_models, axis=0), dtype)

    if mean is not None:
        mean = common(backend.to_numpy(mean).mean(axis=0, keepdims=True))
    # What cannot matter to one model may matter to another.
    inverse = common(backend.to_numpy(inverse).max(axis=0, keepdims=True))
    return replace(problem, mean=mean, inverse_scale=inverse)


def _shift(problem: Problem) -> Any:
    return 0.0 if problem.data.shift is None else problem.data.shift


def targets_of(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The labels (n,) and the probabilities (k, n), without smoothing, of a problem's rows."""
    targets = problem.backend.to_numpy(problem.targets)[problem.order]
    if targets.ndim == 1:
        return targets, (targets == np.arange(problem.n_classes)[:, None]).astype(np.float64)
    total = targets.sum(axis=1, dtype=np.float64)  # not 1 if they were rounded to float32
    return targets.argmax(axis=1), targets.T / np.where(total > 0, total, 1.0)


def weights_of(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Shares (m, n) of a problem's rows in the means of losses, and in those of accuracies."""
    shape, index = (problem.n_models, len(problem.order)), problem.backend.asarray(problem.order)
    loss, score = (
        np.ones(shape) if weight is None else problem.backend.to_numpy(weight).T.astype(np.float64)
        for weight in (problem.weights(index), problem.weights(index, of_scores=True))
    )
    return loss / shape[1], score / shape[1]


class LinearMap:
    """Logits and their adjoint, in the coordinates of a problem's first model.

    Attributes
    ----------
    problem : Problem
        The same, with rows of float64.
    usable : ndarray of shape (p,)
        Whether a variable can matter.
    density : float
        The share of values of X that are in memory.
    """

    def __init__(self, problem: Problem):
        data, self._backend, self._order = problem.data, problem.backend, problem.order
        self._data = data.with_(shift=data.shift, dtype=self._backend.dtype(np.float64))
        self.problem = replace(problem, data=self._data)
        self.n, self.d = len(problem.order), data.n_features
        self.density = max(1, data.values_per_row) / max(1, self.d)
        to_numpy = self._backend.to_numpy
        self._units = to_numpy(problem.inverse_scale)[0, 0].astype(np.float64)
        self._mean, self._constant = np.zeros(self.d), float(problem.fit_intercept)
        if problem.mean is not None:
            self._mean = to_numpy(problem.mean)[0, 0].astype(np.float64)
        self.usable = np.append(self._units > 0, problem.fit_intercept)
        self._kept: np.ndarray | None = None
        if self.density == 1 and self.n * self.d <= _KEPT and not data.is_on_disk:
            self._kept = self._values(np.arange(self.d + 1), np.arange(self.n))

    def _pieces(self, width: float) -> Iterator[tuple[slice, Array]]:
        """All rows, a piece at a time, if `width` values are made of each; and their places."""
        size, start = max(64, int(_AT_ONCE / max(1, self._data.values_per_row, width))), 0
        for _, X in self._data.pieces(self._order, size):
            yield slice(start, start + X.shape[0]), X
            start += X.shape[0]

    def logits(self, u: np.ndarray) -> np.ndarray:
        """Those of weights u of shape (r, p), of shape (r, n)."""
        if self._kept is not None:
            return u @ self._kept.T
        W = u[:, :-1] * self._units
        moved = self._backend.asarray(np.ascontiguousarray(W.T))
        Z = np.empty((len(u), self.n))
        for piece, X in self._pieces(len(u)):
            Z[:, piece] = self._backend.to_numpy(X @ moved).T
        return Z + (u[:, -1:] - (W @ self._mean)[:, None])

    def pullback(self, R: np.ndarray) -> np.ndarray:
        """The gradient (r, p) by weights that a gradient (r, n) by logits gives."""
        if self._kept is not None:
            return R @ self._kept
        V = np.zeros((len(R), self.d))
        for piece, X in self._pieces(len(R)):
            moved = self._backend.asarray(np.ascontiguousarray(R[:, piece]))
            V += self._backend.to_numpy(moved @ X)
        total = R.sum(axis=1, keepdims=True)
        return np.hstack([(V - total * self._mean) * self._units, total * self._constant])

    def squares(self, weight: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Weighted sums (r, p) over the rows at some positions of the squares of all variables.

        `weight` is of shape (r, len(positions)).
        """
        X = self._data.rows(self._backend.asarray(self._order[positions]))
        moved, to_numpy = self._backend.asarray(weight), self._backend.to_numpy
        first, second = to_numpy(moved @ X), to_numpy(moved @ squared(X))
        total = weight.sum(axis=1, keepdims=True)
        second = second - self._mean * (2 * first - self._mean * total)
        return np.hstack([np.maximum(second, 0.0) * self._units**2, total * self._constant])

    def columns(self, variables: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Values of some variables in the rows at some positions, a dense array."""
        if self._kept is not None:
            rows = self._kept if len(positions) == self.n else self._kept[positions]
            return rows if len(variables) == rows.shape[1] else rows[:, variables]
        return self._values(variables, positions)

    def _values(self, variables: np.ndarray, positions: np.ndarray) -> np.ndarray:
        features, order = variables[variables < self.d], self._order[positions]
        start, few = start_of_range(order), len(features) < self.d
        index = self._backend.asarray(order) if start is None else slice(start, start + len(order))
        X = self._data.rows(index)
        X = self._backend.to_numpy(dense(columns(X, self._backend.asarray(features)) if few else X))
        Q = np.empty((len(order), len(variables)))
        values = Q[:, : len(features)]
        np.subtract(X, self._mean[features], out=values)
        values *= self._units[features]
        Q[:, len(features) :] = self._constant
        return Q

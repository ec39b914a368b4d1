"""The coordinates in which full-batch solvers work, and the objective in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skmax.backends import Array
from skmax.objective import penalty, value_and_gradient
from skmax.problem import Problem, State
from skmax.solvers.sgd import at_origin


@dataclass(frozen=True)
class Point:
    """Where a stack of models is, and what the objective is like there.

    Attributes
    ----------
    weights : array of shape (m, k, d + 1), float64
        In the coordinates of the preconditioner, the intercept last, at their origin.
    gradient : array of shape (m, k, d + 1), float64
        Of the objective less its L1 term.
    value, loss, accuracy : ndarrays of shape (m,), host
        The objective, its cross-entropy alone, and the accuracy.
    """

    weights: Array
    gradient: Array
    value: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray

    def select(self, xp: Any, index: Array, models: np.ndarray) -> Point:
        """The models at the host indices `models`, which are the backend's `index`."""
        return Point(
            xp.take(self.weights, index, axis=0),
            xp.take(self.gradient, index, axis=0),
            self.value[models],
            self.loss[models],
            self.accuracy[models],
        )

    def followed_by(self, xp: Any, other: Point) -> Point:
        """Both stacks, one after the other."""
        return Point(
            xp.concat([self.weights, other.weights]),
            xp.concat([self.gradient, other.gradient]),
            np.concatenate([self.value, other.value]),
            np.concatenate([self.loss, other.loss]),
            np.concatenate([self.accuracy, other.accuracy]),
        )


class Coordinates:
    """Those of the preconditioner: weights as arrays (m, k, d + 1), the intercept last, float64."""

    def __init__(self, problem: Problem):
        backend = problem.backend
        self.problem, self.xp = problem, backend.xp
        self.float64 = backend.dtype(np.float64)
        inverse_scale, self._mean = (
            None if array is None else self.xp.astype(array, self.float64)
            for array in (problem.inverse_scale, problem.mean)
        )
        one = backend.asarray(np.ones((1, 1, 1)), self.float64)
        self._units = one if inverse_scale is None else inverse_scale
        self._l2, l1 = (
            backend.asarray(values[:, None, None], self.float64)
            for values in (problem.l2, problem.l1)
        )
        shape = (problem.n_models, 1, problem.data.n_features)
        self.l1, self.l2 = (
            self.xp.concat([part, 0 * part[..., :1]], axis=-1)
            for part in (
                self.xp.broadcast_to(l1 * self._units, shape),
                self.xp.broadcast_to(self._l2 * self._units * self._units, shape),
            )
        )
        self.has_lasso = bool(problem.l1.any())
        known = (~problem.masked)[:, :, None].astype(np.float64)
        self._known = backend.asarray(known, self.float64)
        self._n_known = backend.asarray(known.sum(axis=1, keepdims=True), self.float64)

    def weights(self, state: State) -> Array:
        """The weights of a state."""
        xp, state = self.xp, at_origin(self.problem, state)
        units = xp.where(self._units > 0, self._units, xp.ones_like(self._units))
        coef = xp.astype(state.coef, self.float64) / units
        return xp.concat([coef, xp.astype(state.intercept, self.float64)[..., None]], axis=-1)

    def centered(self, weights: Array) -> Array:
        """The weights less their mean over the classes, which the loss does not see.

        At the optimum under L2 it is zero. L1 has no such rule, and masked classes take no part.
        """
        if self.has_lasso:
            return weights
        mean = self.xp.sum(weights * self._known, axis=1, keepdims=True) / self._n_known
        return weights - mean * self._known

    def _coef(self, weights: Array) -> tuple[Array, Array]:
        """Coefficients of the features as given, and intercepts at the data's shift."""
        coef, intercept = weights[..., :-1] * self._units, weights[..., -1]
        if self._mean is not None:
            intercept = intercept - self.xp.sum(coef * self._mean, axis=-1)
        return coef, intercept

    def state(self, weights: Array) -> State:
        """The state of weights, at rest."""
        backend, dtype = self.problem.backend, self.problem.data.dtype
        coef, intercept = (self.xp.astype(part, dtype) for part in self._coef(weights))
        zeros = backend.zeros(coef.shape, dtype), backend.zeros(intercept.shape, dtype)
        return State(coef, intercept, *zeros)

    def evaluate(self, weights: Array) -> Point:
        """The objective at weights, by one pass over the data."""
        xp, problem = self.xp, self.problem
        loss, accuracy, by_coef, by_intercept = value_and_gradient(problem, self.state(weights))
        coef, _ = self._coef(weights)
        if self._mean is not None:
            by_coef = by_coef - by_intercept[..., None] * self._mean
        by_coef = (by_coef + self._l2 * coef) * self._units
        by_intercept = by_intercept[..., None] * float(problem.fit_intercept)
        gradient = xp.concat([by_coef, by_intercept], axis=-1)
        return Point(weights, gradient, loss + penalty(problem, coef), loss, accuracy)

    def of_loss(self, point: Point) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loss, weights and gradient of the loss, on the host: what `Dual` makes bounds of."""
        to_numpy = self.problem.backend.to_numpy
        weights = to_numpy(point.weights)
        return point.loss, weights, to_numpy(point.gradient) - to_numpy(self.l2) * weights

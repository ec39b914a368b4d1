"""The coordinates in which full-batch solvers work, and the objective in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skmax import kernels
from skmax.backends import Array, Backend
from skmax.objective import summed, value_and_gradient
from skmax.problem import Problem, State
from skmax.solvers.pairs import inner
from skmax.solvers.sgd import at_origin


@dataclass(frozen=True)
class Point:
    """Where a stack of models is, and what the objective is like there.

    Attributes
    ----------
    weights : array of shape (m, k, d + 1), float64
        In the coordinates of the preconditioner, the intercept last, at their origin.
    state : State
        The same weights, in the units of the features.
    gradient : array of shape (m, k, d + 1), float64
        Of the objective less its L1 term.
    value, loss, accuracy : ndarrays of shape (m,), host
        The objective, its cross-entropy alone, and the accuracy.
    """

    weights: Array
    state: State
    gradient: Array
    value: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray

    def select(self, backend: Backend, models: np.ndarray) -> Point:
        """The models at the host indices `models`."""
        return Point(
            backend.take(self.weights, models),
            self.state.select(backend, models),
            backend.take(self.gradient, models),
            self.value[models],
            self.loss[models],
            self.accuracy[models],
        )

    def followed_by(self, backend: Backend, other: Point) -> Point:
        """Both stacks, one after the other."""
        xp = backend.xp
        return Point(
            xp.concat([self.weights, other.weights]),
            self.state.followed_by(backend, other.state),
            xp.concat([self.gradient, other.gradient]),
            np.concatenate([self.value, other.value]),
            np.concatenate([self.loss, other.loss]),
            np.concatenate([self.accuracy, other.accuracy]),
        )


class Coordinates:
    """Those of the preconditioner: weights as arrays (m, k, d + 1), the intercept last, float64."""

    def __init__(self, problem: Problem):
        backend = problem.backend
        self.problem, self.xp, self._kernels = problem, backend.xp, kernels.vectors(backend)
        self.float64 = backend.dtype(np.float64)
        self.has_lasso = bool(problem.l1.any())
        (m, k), dtype = problem.masked.shape, problem.data.dtype
        self._rest = (  # which nobody changes
            backend.zeros((m, k, problem.data.n_features), dtype),
            backend.zeros((m, k), dtype),
        )

    @cached_property
    def _units(self) -> Array:
        inverse_scale, backend = self.problem.inverse_scale, self.problem.backend
        if inverse_scale is None:
            return backend.asarray(np.ones((1, 1, 1)), self.float64)
        return self.xp.astype(inverse_scale, self.float64)

    @cached_property
    def _origin(self) -> Array | None:
        """The coordinates' origin, less the data's shift, as the loss of weights sees it."""
        mean = self.problem.mean
        if mean is None:
            return None
        return self.xp.matrix_transpose(self.xp.astype(mean, self.float64) * self._units)

    @cached_property
    def l1(self) -> Array:
        """Strengths of the penalty, of shape (m, 1, d + 1)."""
        return self._with_intercept(self._per_model(self.problem.l1) * self._units)

    @cached_property
    def l2(self) -> Array:
        """The same."""
        return self._with_intercept(self._per_model(self.problem.l2) * self._units * self._units)

    @cached_property
    def _strengths(self) -> Array:
        """Both in the units of the features, of shape (2, m)."""
        values = np.stack([self.problem.l2, self.problem.l1])
        return self.problem.backend.asarray(values, self.float64)

    @cached_property
    def _known(self) -> Array | None:
        """1 for the classes that a model may know, of shape (m, k, 1); None: all."""
        masked = self.problem.masked
        if not masked.any():
            return None
        return self.problem.backend.asarray((~masked)[:, :, None].astype(np.float64), self.float64)

    @cached_property
    def _known_bytes(self) -> Array | None:
        """The same for a kernel, (m, k)."""
        masked = self.problem.masked
        return self.problem.backend.asarray((~masked).view(np.uint8)) if masked.any() else None

    def _per_model(self, values: np.ndarray) -> Array:
        return self.problem.backend.asarray(values[:, None, None], self.float64)

    def _with_intercept(self, strength: Array) -> Array:
        shape = (self.problem.n_models, 1, self.problem.data.n_features)
        strength = self.xp.broadcast_to(strength, shape)
        return self.xp.concat([strength, 0 * strength[..., :1]], axis=-1)

    def weights(self, state: State) -> Array:
        """The weights of a state."""
        xp, state = self.xp, at_origin(self.problem, state)
        backend = self.problem.backend
        units = backend.to_numpy(self._units)
        units = backend.asarray(np.where(units > 0, units, 1.0), self.float64)
        coef = xp.astype(state.coef, self.float64) / units
        return xp.concat([coef, xp.astype(state.intercept, self.float64)[..., None]], axis=-1)

    def centered(self, weights: Array) -> Array:
        """Weights (m, ..., k, d + 1) less their mean over the classes; they may be lost.

        The loss does not see that mean.

        At the optimum under L2 it is zero. L1 has no such rule, and masked classes take no part.
        """
        if self.has_lasso:
            return weights
        if self._kernels is not None:
            return self._kernels.centered(self.problem.backend, weights, self._known_bytes)
        xp, known = self.xp, self._known
        if known is None:
            weights -= xp.mean(weights, axis=1, keepdims=True)
            return weights
        known = xp.astype(known, weights.dtype, copy=False)
        mean = xp.sum(weights * known, axis=1, keepdims=True) / xp.sum(known, axis=1, keepdims=True)
        weights -= mean * known
        return weights

    def state(self, weights: Array) -> State:
        """The state of weights, at rest."""
        if self._kernels is not None:
            coef, intercept = self._kernels.state(self.problem, weights)
            return State(coef, intercept, *self._rest)
        dtype = self.problem.data.dtype
        coef, intercept = weights[..., :-1] * self._units, weights[..., -1]
        if self._origin is not None:
            intercept = intercept - (weights[..., :-1] @ self._origin)[..., 0]
        coef, intercept = (self.xp.astype(part, dtype, copy=False) for part in (coef, intercept))
        return State(coef, intercept, *self._rest)

    def evaluate(self, weights: Array) -> Point:
        """The objective at weights, by one pass over the data."""
        xp, problem, state = self.xp, self.problem, self.state(weights)
        if self._kernels is not None:
            sums = summed(problem, state, gradient=True)
            gradient, (loss, accuracy, penalty) = self._kernels.gradient(
                problem, weights, sums, self._strengths
            )
            return Point(weights, state, gradient, loss + penalty, loss, accuracy)
        *means, by_coef, by_intercept = value_and_gradient(problem, state)
        by_coef *= self._units
        by_intercept = by_intercept[..., None]
        if self._origin is not None:
            by_coef -= by_intercept * xp.matrix_transpose(self._origin)
        gradient = self.l2 * weights
        penalties = [inner(problem.backend, gradient, weights) / 2]
        if self.has_lasso:
            penalties.append(xp.sum(xp.abs(weights) * self.l1, axis=(1, 2)))
        of_coef, of_intercept = gradient[..., :-1], gradient[..., -1:]
        of_coef += by_coef
        if problem.fit_intercept:
            of_intercept += by_intercept
        # Only now: moving the first of them waits for the device.
        loss, accuracy, *penalties = map(problem.backend.to_numpy, [*means, *penalties])
        return Point(weights, state, gradient, loss + sum(penalties), loss, accuracy)

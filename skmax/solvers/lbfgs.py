"""L-BFGS on all rows, led by the curvature of the data, on a stack of models."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

import numpy as np

from skmax.backends import Rows, rounding_unit
from skmax.objective import penalty, value_and_gradient
from skmax.problem import Array, Epoch, Problem, State
from skmax.solvers.curvature import inverse_curvature, measures_blocks, passes_worth
from skmax.solvers.sgd import at_origin

# Pairs of steps and changes of the gradient that are remembered.
_MEMORY = 10
# The share of what the slope promises that a step must keep; and by what it is shortened if not.
_SUFFICIENT, _SHORTEST, _LONGEST = 1e-4, 0.1, 0.5
# Rows per feature that the curvature is first measured on; each time after, four times as many.
_ROWS_PER_FEATURE, _MORE_ROWS = 8, 4
# Passes after which the curvature is measured anew however cheap that is, and, the first time after
# weights of zero, where it changes most, however dear.
_SOONEST, _FIRST = 3, 5


# Multiply-adds, about a quarter of a second of a core, that finishing what SGD began may cost; and
# the passes it takes, with blocks of the curvature and with its diagonal. Below so many rows per
# feature it costs what it costs: there, epochs of SGD stay far above what any solver reaches.
_AFFORDABLE, _PASSES, _PASSES_OF_DIAGONAL = 2.5e10, 15, 50
_FEW_ROWS_PER_FEATURE = 30


class LBFGS:
    """Limited-memory BFGS with backtracking, orthant-wise where there is an L1 penalty.

    Where two loops over past steps want a first guess of the inverse Hessian, they get that of
    `inverse_curvature`, measured anew on more rows once the passes made since have cost as much.

    References
    ----------
    J. Nocedal and S. J. Wright, Numerical Optimization, 2006, chapter 7. G. Andrew and J. Gao,
    Scalable training of L1-regularized log-linear models, ICML 2007.
    """

    def epochs(self, problem: Problem, state: State) -> Generator[Epoch, np.ndarray | None, None]:
        """Iterate without end; each iteration is one pass over the data.

        An iteration that finds its step too long shortens it, and stays where it was.

        Parameters
        ----------
        problem : Problem
            What is minimised.
        state : State
            Where to start.

        Yields
        ------
        Epoch
            After each pass. What is sent back is as in `SGD.epochs`.
        """
        with problem.backend.computing():  # threads of BLAS would stay in the way of ours
            search = _Search(problem, state)
        while True:
            with problem.backend.computing():
                search.advance()
            leaving = yield search.epoch()
            if leaving is not None and leaving.any():
                search.select(np.flatnonzero(~leaving))


class _Coordinates:
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
        l1 = self.xp.broadcast_to(l1 * self._units, shape)
        self.l1 = self.xp.concat([l1, 0 * l1[..., :1]], axis=-1)
        self.has_lasso = bool(problem.l1.any())
        known = (~problem.masked)[:, :, None].astype(np.float64)
        self._known = backend.asarray(known, self.float64)
        self._n_known = backend.asarray(known.sum(axis=1, keepdims=True), self.float64)

    def weights(self, state: State) -> Array:
        """The weights of a state."""
        xp, state = self.xp, at_origin(self.problem, state)
        known = xp.where(self._units > 0, self._units, xp.ones_like(self._units))
        coef = xp.astype(state.coef, self.float64) / known
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

    def evaluate(self, weights: Array) -> tuple[np.ndarray, np.ndarray, Array]:
        """The objective and the accuracy, (m,), host, and the gradient of the objective less L1."""
        xp, problem = self.xp, self.problem
        loss, accuracy, by_coef, by_intercept = value_and_gradient(problem, self.state(weights))
        coef, _ = self._coef(weights)
        if self._mean is not None:
            by_coef = by_coef - by_intercept[..., None] * self._mean
        by_coef = (by_coef + self._l2 * coef) * self._units
        by_intercept = by_intercept[..., None] * float(problem.fit_intercept)
        gradient = xp.concat([by_coef, by_intercept], axis=-1)
        return loss + penalty(problem, coef), accuracy, gradient


class _Search:
    """A stack of models on its way down."""

    def __init__(self, problem: Problem, state: State):
        self._models = np.arange(problem.n_models)
        self._history: list[tuple[Array, Array, Array]] = []
        self._passes = 0
        self._n_rows = _ROWS_PER_FEATURE * (problem.data.n_features + 1)
        self._enter(problem)
        self._weights = self._space.centered(self._space.weights(state))
        self._value, self._accuracy, self._gradient = self._space.evaluate(self._weights)
        self._gap = np.full(problem.n_models, np.inf)
        self._length = np.ones(problem.n_models)
        self._scale = self._per_model(np.ones(problem.n_models))
        self._measure()
        self._turn(np.ones(problem.n_models, dtype=bool))

    def _enter(self, problem: Problem) -> None:
        self._problem, self._space = problem, _Coordinates(problem)
        self._xp = problem.backend.xp

    def _per_model(self, values: np.ndarray) -> Array:
        return self._problem.backend.asarray(values[:, None, None], self._space.float64)

    def _dot(self, a: Array, b: Array) -> Array:
        return self._xp.sum(a * b, axis=(1, 2), keepdims=True)

    def _host(self, a: Array) -> np.ndarray:
        return self._problem.backend.to_numpy(a)[:, 0, 0]

    def _measure(self) -> None:
        """Measure the curvature where the models are, and decide when to do so again."""
        problem, order = self._problem, self._problem.order
        rows = order[:: max(1, len(order) // self._n_rows)]
        self._apply, self._curvature = inverse_curvature(
            problem, self._space.state(self._weights), rows, diagonal=self._space.has_lasso
        )
        at_zero = not bool(self._xp.any(self._weights[..., :-1] != 0))
        self._n_rows *= 1 if at_zero else _MORE_ROWS
        (m, k), d, n = problem.masked.shape, problem.data.n_features + 1, len(order)
        wait = max(_SOONEST, passes_worth(m, k, d, n, min(self._n_rows, n)))
        self._due = self._passes + (min(wait, _FIRST) if at_zero else wait)
        if self._history:
            self._rescale()

    def _first_guess(self, gradient: Array) -> Array:
        return self._apply(self._curvature, gradient)

    def _rescale(self) -> None:
        """Scale the first guess by what the last step has shown."""
        xp, (_, change, inverse) = self._xp, self._history[-1]
        expected = inverse * self._dot(change, self._first_guess(change))
        known = expected > 0
        scale = 1 / xp.where(known, expected, xp.ones_like(expected))
        self._scale = xp.where(known, scale, self._scale)

    def _downhill(self) -> Array:
        """The gradient, or with L1 the subgradient of the least norm."""
        xp, g, w, l1 = self._xp, self._gradient, self._weights, self._space.l1
        if not self._space.has_lasso:
            return g
        at_zero = xp.minimum(g + l1, 0 * g) + xp.maximum(g - l1, 0 * g)
        return xp.where(w == 0, at_zero, g + l1 * xp.sign(w))

    def _turn(self, moved: np.ndarray) -> None:
        """Choose the direction of the models that have moved."""
        xp, self._steepest = self._xp, self._downhill()
        direction = -self._space.centered(self._newton_like(self._steepest))
        if self._space.has_lasso:
            agrees = (direction * self._steepest < 0) | (self._space.l1 == 0)
            direction = xp.where(agrees, direction, 0 * direction)
            sign = xp.sign(self._weights)
            self._orthant = xp.where(sign == 0, -xp.sign(self._steepest), sign)
        self._direction = direction
        self._slope = self._host(self._dot(direction, self._steepest))
        self._length = np.where(moved, 1.0, self._length)

    def _newton_like(self, gradient: Array) -> Array:
        """The inverse Hessian times a gradient, by the two loops over past steps."""
        shares = []
        for step, change, inverse in reversed(self._history):
            share = inverse * self._dot(step, gradient)
            shares.append(share)
            gradient = gradient - share * change
        result = self._scale * self._space.centered(self._first_guess(gradient))
        for (step, change, inverse), share in zip(self._history, reversed(shares), strict=True):
            result = result + (share - inverse * self._dot(change, result)) * step
        return result

    def advance(self) -> None:
        """Try one step of every model."""
        xp, space = self._xp, self._space
        trial = self._weights + self._per_model(self._length) * self._direction
        if space.has_lasso:
            crossed = (trial * self._orthant < 0) & (space.l1 > 0)
            trial = xp.where(crossed, 0 * trial, trial)
        step = trial - self._weights
        promised = self._host(self._dot(self._steepest, step))
        with np.errstate(over="ignore", invalid="ignore"):
            value, accuracy, gradient = space.evaluate(trial)
            self._passes += 1
            rounding = 2 * rounding_unit(self._problem.data.dtype) * np.abs(self._value)
            good = value <= self._value + _SUFFICIENT * promised + rounding
            shorter = -promised / (2 * (value - self._value - promised))
        if good.any():
            self._move(good, step, trial, value, accuracy, gradient)
        shorter = np.where(np.isfinite(value), np.clip(shorter, _SHORTEST, _LONGEST), _SHORTEST)
        self._length = np.where(good, self._length, self._length * shorter)

    def _move(
        self,
        good: np.ndarray,
        step: Array,
        trial: Array,
        value: np.ndarray,
        accuracy: np.ndarray,
        gradient: Array,
    ) -> None:
        """Go where steps were good; learn from them."""
        xp = self._xp
        moved = self._problem.backend.asarray(good[:, None, None])
        step = xp.where(moved, step, 0 * step)
        change = xp.where(moved, gradient - self._gradient, 0 * step)
        decrease = np.where(good, self._value - value, 0.0)
        product = self._dot(step, change)
        convex = product > 0
        inverse = xp.where(
            convex, 1 / xp.where(convex, product, xp.ones_like(product)), 0 * product
        )
        self._history = [*self._history, (step, change, inverse)][-_MEMORY:]
        self._weights = xp.where(moved, trial, self._weights)
        self._gradient = xp.where(moved, gradient, self._gradient)
        self._value = np.where(good, value, self._value)
        self._accuracy = np.where(good, accuracy, self._accuracy)
        self._measure() if self._passes >= self._due else self._rescale()
        self._turn(good)
        self._gap = np.where(good, np.maximum(-self._slope / 2, decrease), self._gap)

    def epoch(self) -> Epoch:
        """Where the stack is."""
        n_models = len(self._models)
        return Epoch(
            self._models,
            self._space.state(self._weights),
            self._value,
            self._accuracy,
            diverged=~np.isfinite(self._value),
            learning_rate=np.full(n_models, np.nan),
            gap=self._gap,
        )

    def select(self, staying: np.ndarray) -> None:
        """Go on with some of the models, at the host indices `staying`."""
        problem, index = self._problem.select(staying), self._problem.backend.asarray(staying)
        self._models, self._value = self._models[staying], self._value[staying]
        self._accuracy, self._gap = self._accuracy[staying], self._gap[staying]
        self._length = self._length[staying]

        def take(array: Array) -> Array:
            return self._xp.take(array, index, axis=0)

        self._weights, self._gradient = take(self._weights), take(self._gradient)
        self._scale = take(self._scale)
        self._history = [tuple(map(take, pair)) for pair in self._history]
        self._curvature = take(self._curvature)
        self._enter(problem)
        self._turn(np.zeros(len(staying), dtype=bool))


def affordable(data: Rows, n: int, k: int, *, has_lasso: bool) -> bool:
    """Whether L-BFGS reaches the optimum of n rows and k classes at once, or alone."""
    d = data.n_features + 1
    passes = _PASSES + passes_worth(1, k, d, n, min(n, _ROWS_PER_FEATURE * d))
    if has_lasso or not measures_blocks(1, k, d):
        passes = _PASSES_OF_DIAGONAL
    cost = 2 * passes * n * data.values_per_row * k
    return cost <= _AFFORDABLE or n < _FEW_ROWS_PER_FEATURE * d


def polished(
    epochs: Generator[Epoch, np.ndarray | None, None], n_epochs: int, problem: Problem
) -> Generator[Epoch, np.ndarray | None, None]:
    """So many epochs of another solver, then L-BFGS from where they end.

    Parameters
    ----------
    epochs : generator of Epoch
        The other solver at work.
    n_epochs : int
        How many passes it makes.
    problem : Problem
        What is minimised.

    Yields
    ------
    Epoch
        After each pass of either.
    """
    leaving = None
    with closing(epochs):
        for _ in range(n_epochs):
            last = epochs.send(leaving)
            leaving = yield last
    staying = np.arange(len(last.models)) if leaving is None else np.flatnonzero(~leaving)
    models, rates = last.models[staying], last.learning_rate[staying]
    state = last.state.select(problem.backend, staying)
    rest = LBFGS().epochs(problem.select(models), state)
    leaving = None
    while True:
        epoch = rest.send(leaving)
        leaving = yield replace(
            epoch, models=models[epoch.models], learning_rate=rates[epoch.models]
        )

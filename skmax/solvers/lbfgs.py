"""L-BFGS on all rows, led by the curvature of the data, on a stack of models."""

from __future__ import annotations

import numpy as np

from skmax.backends import Array, rounding_unit
from skmax.duality import Dual
from skmax.policy import ROWS_PER_FEATURE, passes_worth
from skmax.problem import Epoch, Problem, State
from skmax.solvers.coordinates import Coordinates, Point
from skmax.solvers.curvature import inverse_curvature
from skmax.solvers.full_batch import FullBatch

# Pairs of steps and changes of the gradient that are remembered.
_MEMORY = 10
# The share of what the slope promises that a step must keep; by what it is shortened if not; and
# how often, until rounding errors are all that is left.
_SUFFICIENT, _SHORTEST, _LONGEST, _MOST_TRIALS = 1e-4, 0.1, 0.5, 20
# Iterations that bring neither the objective nor the bound further, until that is taken for the
# end of what the precision allows.
_PATIENCE = 20
# By what the rows grow that the curvature is measured on, each time after the first.
_MORE_ROWS = 4
# Passes after which the curvature is measured anew however cheap that is, and, the first time after
# weights of zero, where it changes most, however dear.
_SOONEST, _FIRST = 3, 5


class LBFGS(FullBatch):
    """Limited-memory BFGS with backtracking, orthant-wise where there is an L1 penalty.

    Where two loops over past steps want a first guess of the inverse Hessian, they get that of
    `inverse_curvature`, measured anew on more rows once the passes made since have cost as much.

    References
    ----------
    J. Nocedal and S. J. Wright, Numerical Optimization, 2006, chapter 7. G. Andrew and J. Gao,
    Scalable training of L1-regularized log-linear models, ICML 2007.
    """

    def begin(self, problem: Problem, state: State) -> _Search:
        """A stack of models that is to go down from a state."""
        return _Search(problem, state, proven=self.proven)


class _Search:
    """A stack of models on its way down."""

    def __init__(self, problem: Problem, state: State, *, proven: bool):
        self._models = np.arange(problem.n_models)
        self._history: list[tuple[Array, Array, Array]] = []
        self._passes, self._rng, self._proven = 0, np.random.default_rng(0), proven
        self._n_rows = ROWS_PER_FEATURE * (problem.data.n_features + 1)
        self._enter(problem)
        self._dual = Dual(problem)
        self._start(self._space.centered(self._space.weights(state)))
        self._lower = np.full(problem.n_models, -np.inf)
        self._waited = np.zeros(problem.n_models, dtype=int)
        self._stalled = np.zeros(problem.n_models, dtype=bool)
        self._scale = self._per_model(np.ones(problem.n_models))
        self._bound()
        self._measure()
        self._turn()

    def _enter(self, problem: Problem) -> None:
        self._problem, self._space = problem, Coordinates(problem)
        self._xp = problem.backend.xp

    def _start(self, weights: Array) -> None:
        """Begin at weights, or at zero where these are worse than none."""
        self._point = self._space.evaluate(weights)
        worse = ~(self._point.value <= np.log(np.sum(~self._problem.masked, axis=1)))
        if worse.any():
            zero = self._space.weights(State.start(self._problem))
            weights = self._xp.where(self._per_model(worse.astype(float)) > 0, zero, weights)
            self._point = self._space.evaluate(weights)

    def _per_model(self, values: np.ndarray) -> Array:
        return self._problem.backend.asarray(values[:, None, None], self._space.float64)

    def _dot(self, a: Array, b: Array) -> Array:
        return self._xp.sum(a * b, axis=(1, 2), keepdims=True)

    def _host(self, a: Array) -> np.ndarray:
        return self._problem.backend.to_numpy(a)[:, 0, 0]

    def _bound(self) -> None:
        """Learn how far the optimum can be from here at most."""
        here = self._space.of_loss(self._point)
        self._lower = np.fmax(self._lower, self._dual.bound(*here))
        self._gap = self._point.value - self._lower
        if not self._proven:
            nearby = self._point.value - self._dual.bound_nearby(*here)
            self._gap = np.fmin(self._gap, nearby)

    def _measure(self) -> None:
        """Measure the curvature where the models are, and decide when to do so again."""
        problem, order = self._problem, self._problem.order
        rows = problem.data.sample(order, self._n_rows, self._rng)
        self._apply, self._curvature = inverse_curvature(
            problem, self._space.state(self._point.weights), rows, diagonal=self._space.has_lasso
        )
        at_zero = not bool(self._xp.any(self._point.weights[..., :-1] != 0))
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
        positive = expected > 0
        scale = 1 / xp.where(positive, expected, xp.ones_like(expected))
        self._scale = xp.where(positive, scale, self._scale)

    def _downhill(self) -> Array:
        """The gradient, or with L1 the subgradient of the least norm."""
        xp, g, w, l1 = self._xp, self._point.gradient, self._point.weights, self._space.l1
        if not self._space.has_lasso:
            return g
        at_zero = xp.minimum(g + l1, 0 * g) + xp.maximum(g - l1, 0 * g)
        return xp.where(w == 0, at_zero, g + l1 * xp.sign(w))

    def _turn(self) -> None:
        """Choose the directions of the models."""
        xp, self._steepest = self._xp, self._downhill()
        direction = -self._space.centered(self._newton_like(self._steepest))
        if self._space.has_lasso:
            agrees = (direction * self._steepest < 0) | (self._space.l1 == 0)
            direction = xp.where(agrees, direction, 0 * direction)
            sign = xp.sign(self._point.weights)
            self._orthant = xp.where(sign == 0, -xp.sign(self._steepest), sign)
        self._direction = direction

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
        """One step of every model that finds one; the others have stalled."""
        before, found = self._point, self._line_search()
        if not found.all() and self._history:  # what is remembered may be what is in the way
            self._history = []
            self._measure()
            self._turn()
            found |= self._line_search(np.flatnonzero(~found))
        gap, self._stalled = self._gap, ~found
        self._learn(before, found)
        self._bound()
        fallen = before.value - self._point.value > self._rounding(before)
        nearer = fallen | (self._gap < 0.9 * gap)
        self._waited = np.where(nearer, 0, self._waited + 1)
        self._stalled |= self._waited >= _PATIENCE

    def _rounding(self, point: Point) -> np.ndarray:
        return 2 * rounding_unit(self._problem.data.dtype) * np.abs(point.value)

    def _line_search(self, models: np.ndarray | None = None) -> np.ndarray:
        """Shorten the steps of models until they are good enough, and go there; which have gone."""
        pending = np.arange(len(self._models)) if models is None else models
        found = np.zeros(len(self._models), dtype=bool)
        length = np.ones(len(self._models))
        for _ in range(_MOST_TRIALS):
            good, shorter = self._try(pending, length[pending])
            found[pending[good]] = True
            length[pending] *= shorter
            pending = pending[~good]
            if not pending.size:
                break
        return found

    def _try(self, models: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Go as far as that where it is good; where it is, and by what else to shorten the step."""
        xp, index = self._xp, self._problem.backend.asarray(models)
        whole = len(models) == len(self._models)
        space = self._space if whole else Coordinates(self._problem.select(models))
        point = self._point if whole else self._point.select(xp, index, models)
        direction, steepest = (
            array if whole else xp.take(array, index, axis=0)
            for array in (self._direction, self._steepest)
        )
        trial = point.weights + self._per_model(length) * direction
        if space.has_lasso:
            orthant = self._orthant if whole else xp.take(self._orthant, index, axis=0)
            trial = xp.where((trial * orthant < 0) & (space.l1 > 0), 0 * trial, trial)
        promised = self._host(self._dot(steepest, trial - point.weights))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            there = space.evaluate(trial)
            self._passes += 1
            rise = there.value - point.value
            good = rise <= _SUFFICIENT * promised + self._rounding(point)
            shorter = -promised / (2 * (rise - promised))
        shorter = np.where(np.isfinite(rise), np.clip(shorter, _SHORTEST, _LONGEST), _SHORTEST)
        if good.any():
            self._go(models, good, there)
        return good, shorter

    def _go(self, models: np.ndarray, good: np.ndarray, there: Point) -> None:
        """Move the models whose trial was good."""
        if len(models) == len(self._models) and good.all():
            self._point = there
            return
        place = np.arange(len(self._models))
        place[models[good]] = len(place) + np.flatnonzero(good)
        both = self._point.followed_by(self._xp, there)
        self._point = both.select(self._xp, self._problem.backend.asarray(place), place)

    def _learn(self, before: Point, found: np.ndarray) -> None:
        """Remember the steps that were taken, and turn."""
        xp = self._xp
        step = self._point.weights - before.weights
        change = self._point.gradient - before.gradient
        product = self._dot(step, change)
        convex = product > 0
        inverse = xp.where(
            convex, 1 / xp.where(convex, product, xp.ones_like(product)), 0 * product
        )
        if found.any():
            self._history = [*self._history, (step, change, inverse)][-_MEMORY:]
            self._measure() if self._passes >= self._due else self._rescale()
        self._turn()

    def epoch(self) -> Epoch:
        """Where the stack is."""
        point = self._point
        return Epoch(
            self._models,
            self._space.state(point.weights),
            point.value,
            point.accuracy,
            diverged=~np.isfinite(point.value),
            learning_rate=np.full(len(self._models), np.nan),
            gap=self._gap,
            stalled=self._stalled,
        )

    def select(self, staying: np.ndarray) -> None:
        """Go on with some of the models, at the host indices `staying`."""
        index = self._problem.backend.asarray(staying)

        def take(array: Array) -> Array:
            return self._xp.take(array, index, axis=0)

        self._models, self._dual = self._models[staying], self._dual.select(staying)
        self._lower, self._gap = self._lower[staying], self._gap[staying]
        self._waited = self._waited[staying]
        self._point = self._point.select(self._xp, index, staying)
        self._scale, self._curvature = take(self._scale), take(self._curvature)
        self._history = [tuple(map(take, pair)) for pair in self._history]
        self._enter(self._problem.select(staying))
        self._turn()

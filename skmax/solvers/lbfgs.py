"""L-BFGS on all rows, led by the curvature of the data, on a stack of models."""

from __future__ import annotations

import numpy as np

from skmax.backends import Array, rounding_unit
from skmax.duality import Dual
from skmax.objective import logits_of, residual, target_shares
from skmax.problem import MASKED_LOGIT, Epoch, Problem, State
from skmax.solvers.coordinates import Coordinates, Point
from skmax.solvers.curvature import Curvature
from skmax.solvers.full_batch import FullBatch
from skmax.solvers.pairs import inner, pairs

# Pairs of steps and changes of the gradient that are remembered.
_MEMORY = 10
# The share of what the slope promises that a step must keep; by what it is shortened if not; and
# how often, until rounding errors are all that is left.
_SUFFICIENT, _SHORTEST, _LONGEST, _MOST_TRIALS = 1e-4, 0.1, 0.5, 20
# Iterations that bring neither the objective nor the bound further, until that is taken for the
# end of what the precision allows.
_PATIENCE = 20
# The share of the objective that a step must promise less than for a look at the bounds. On ten
# kinds of data and tolerances of 1e-2 to 1e-4 it took as many iterations as with 0.1.
_NEAR = 0.01
# Steps are slow that bring the objective down by more than this share of what the last one did.
_SLOW = 0.3
# How many steps tell how many more are to be expected, and the share of the objective that the last
# of all brings; and that which the last one must have brought at most: before, steps tell nothing.
_SEEN, _LAST, _SETTLED = 5, 1e-6, 0.05
# Rows that the length of a first step is chosen on: a share of them, so many at least and at most;
# and how often the range of lengths is halved.
_SHARE_OF_ROWS, _LEAST_ROWS, _MOST_ROWS, _HALVINGS = 1 / 8, 128, 1024, 6
# The least share that a class counts as having at the start.
_LEAST_SHARE = 1e-6


class LBFGS(FullBatch):
    """Limited-memory BFGS with backtracking, orthant-wise where there is an L1 penalty.

    The first guess of the inverse Hessian is that of `Curvature`.

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
        m = problem.n_models
        self._models, self._passes, self._proven = np.arange(m), 0, proven
        self._enter(problem)
        fresh = self._start(state)
        self._dual = Dual(problem, self._class_sums() if fresh else None)
        shape = self._point.weights.shape
        lasso, dtype = self._space.has_lasso, problem.data.dtype
        self._pairs = pairs(problem.backend, shape, dtype, _MEMORY, lasso=lasso)
        self._lower, self._waited = self._dual.entropy_of_targets, np.zeros(m, dtype=int)
        self._stalled, self._falls = np.zeros(m, dtype=bool), np.zeros((0, m))
        self._gap = self._point.value - self._lower
        self._curvature = Curvature(problem, self._point.state, diagonal=lasso)
        self._guess = _ScaledGuess(self._space, self._curvature, np.ones(m))
        self._turn()
        if fresh:
            self._shorten()

    def _enter(self, problem: Problem) -> None:
        self._problem, self._space = problem, Coordinates(problem)
        self._xp = problem.backend.xp

    def _start(self, state: State) -> bool:
        """Begin at a state, or, where it is zero or worse than that, at the classes' shares.

        Returns whether all do the latter.
        """
        nothing = weights = self._shares_alone()
        coef = self._problem.backend.to_numpy(state.coef)
        zero = np.all(coef == 0, axis=(1, 2))
        if not zero.all():
            given = self._space.centered(self._space.weights(state))
            weights = self._where(zero, nothing, given)
        self._point = self._space.evaluate(weights)
        worse = ~(self._point.value <= np.log(np.sum(~self._problem.masked, axis=1)))
        if worse.any():
            weights = self._where(worse, nothing, self._point.weights)
            self._point = self._space.evaluate(weights)
        return bool((zero | worse).all())

    def _shares_alone(self) -> Array:
        """Weights of models that know how frequent the classes are, and nothing else."""
        problem, known = self._problem, ~self._problem.masked
        weights = np.zeros((*known.shape, problem.data.n_features + 1))
        weights[..., -1] = np.where(known, 0.0, MASKED_LOGIT)
        if problem.fit_intercept:
            share = np.maximum(target_shares(problem)[0], _LEAST_SHARE)
            weights[..., -1] = np.where(known, np.log(share), MASKED_LOGIT)
        return self._space.centered(problem.backend.asarray(weights, self._space.float64))

    def _class_sums(self) -> np.ndarray | None:
        """What `Dual` wants to know, from the gradient of a model that knows the shares alone.

        It is the mean of the features, which is zero where they are centred, times the shares, less
        these sums.
        """
        if self._problem.mean is None or not self._problem.fit_intercept:
            return None
        return -self._problem.backend.to_numpy(self._point.gradient[..., :-1])

    def _where(self, models: np.ndarray, weights: Array, others: Array) -> Array:
        if not models.any():
            return others
        return self._xp.where(self._per_model(models.astype(float)) > 0, weights, others)

    def _per_model(self, values: np.ndarray) -> Array:
        return self._problem.backend.asarray(values[:, None, None], self._space.float64)

    def _dot(self, a: Array, b: Array) -> np.ndarray:
        """Inner products (m,), on the host."""
        backend = self._problem.backend
        return backend.to_numpy(inner(backend, a, b))

    def _bound(self) -> None:
        """Learn how far the optimum can be from here at most."""
        point = self._point
        proven, nearby = self._dual.bounds(point.loss, point.weights, point.gradient)
        self._lower = np.fmax(self._lower, proven)
        self._gap = point.value - self._lower
        if not self._proven:
            self._gap = np.fmin(self._gap, point.value - nearby)

    def _downhill(self) -> Array:
        """The gradient, or with L1 the subgradient of the least norm."""
        xp, g, w = self._xp, self._point.gradient, self._point.weights
        if not self._space.has_lasso:
            return g
        l1 = self._space.l1
        at_zero = xp.minimum(g + l1, 0 * g) + xp.maximum(g - l1, 0 * g)
        return xp.where(w == 0, at_zero, g + l1 * xp.sign(w))

    def _turn(self) -> None:
        """Choose the directions of the models."""
        xp, self._steepest = self._xp, self._downhill()
        self._direction, self._slope = self._pairs.direction(self._steepest, self._guess)
        if self._space.has_lasso:
            agrees = (self._direction * self._steepest < 0) | (self._space.l1 == 0)
            self._direction = xp.where(agrees, self._direction, 0 * self._direction)
            sign = xp.sign(self._point.weights)
            self._orthant = xp.where(sign == 0, -xp.sign(self._steepest), sign)
            self._slope = self._dot(self._steepest, self._direction)

    def _shorten(self) -> None:
        """Cut first steps that promise an objective below zero to what is best for a few rows.

        What they presume is the curvature where classes are equally likely, which says little of
        where these can be told apart: 10,000 embeddings of 50 such classes took 189 iterations with
        whole steps, where they take 32.
        """
        beyond = -self._slope / 2 > self._point.value
        if beyond.any():
            length = np.where(beyond, self._best_length(), 1.0)
            self._direction = self._direction * self._per_model(length)
            self._slope = length * self._slope

    def _best_length(self) -> np.ndarray:
        """The share (m,) of a step from weights of zero that goes furthest down on a few rows."""
        problem, xp, backend = self._problem, self._xp, self._problem.backend
        n_rows = int(max(_LEAST_ROWS, _SHARE_OF_ROWS * len(problem.order)))
        sample = problem.sample(min(n_rows, _MOST_ROWS))  # a cluster's has data of its own
        index = backend.asarray(sample.order)
        X, end = sample.data.rows(index), self._point.weights + self._direction
        states = self._point.state, self._space.state(end)
        first, last = (logits_of(xp, X, state.coef, state.intercept) for state in states)
        ridge = self._dot(self._space.l2 * self._direction, self._direction)
        lasso = np.zeros_like(ridge)
        if self._space.has_lasso:
            lasso = self._dot(xp.abs(self._direction), self._space.l1 + 0 * self._direction)
        low, high, at = np.zeros_like(ridge), np.ones_like(ridge), np.ones_like(ridge)
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(_HALVINGS):
                logits = first + backend.asarray(at[:, None], first.dtype) * (last - first)
                _, by_logits = residual(sample, logits, index)
                slope = xp.sum(by_logits * (last - first), axis=(0, 2), dtype=self._space.float64)
                slope = backend.to_numpy(slope) / index.shape[0] + at * ridge + lasso
                down = slope <= 0
                low, high = np.where(down, at, low), np.where(down, high, at)
                at = (low + high) / 2
        return at

    def advance(self) -> None:
        """One step of every model that finds one; the others have stalled."""
        before, found = self._point, self._line_search()
        if not found.all() and len(self._pairs):  # what is remembered may be what is in the way
            self._pairs.clear()
            self._curvature.measure(self._problem, self._point.state, self._passes)
            self._turn()
            found |= self._line_search(np.flatnonzero(~found))
        gap, self._stalled = self._gap, ~found
        self._learn(before, found)
        self._gap = self._point.value - self._lower
        if (-self._slope < _NEAR * self._point.value).any():
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
        xp, backend = self._xp, self._problem.backend
        whole = len(models) == len(self._models)
        space = self._space if whole else Coordinates(self._problem.select(models))
        point = self._point if whole else self._point.select(backend, models)

        def part(array: Array) -> Array:
            return array if whole else xp.take(array, backend.asarray(models), axis=0)

        step = part(self._direction)
        if not (length == 1).all():
            step = step * self._per_model(length)
        trial = point.weights + step
        if space.has_lasso:
            orthant = part(self._orthant)
            trial = xp.where((trial * orthant < 0) & (space.l1 > 0), 0 * trial, trial)
            promised = self._dot(part(self._steepest), trial - point.weights)
        else:
            promised = length * self._slope[models]
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
        backend = self._problem.backend
        self._point = self._point.followed_by(backend, there).select(backend, place)

    def _learn(self, before: Point, found: np.ndarray) -> None:
        """Remember the steps that were taken, and turn."""
        if found.any():
            self._guess.change, self._guess.product = self._pairs.add(before, self._point)
            fall = before.value - self._point.value
            self._falls = np.concatenate([self._falls[-_SEEN:], fall[None]])
            state, passes, slow = self._point.state, self._passes, self._is_slow()
            if self._curvature.renew(self._problem, state, passes, self._expected, slow=slow):
                self._pairs.clear()
        self._turn()

    def _is_slow(self) -> bool:
        """Whether the last two steps brought the objective down by much the same."""
        return len(self._falls) > 1 and bool((self._falls[-1] > _SLOW * self._falls[-2]).any())

    def _expected(self) -> float:
        """How many more steps are to be expected, if what they bring falls like the last ones'."""
        first, last = np.maximum(self._falls[[0, -1]], np.finfo(float).tiny)
        rate = (np.log(first) - np.log(last)) / max(len(self._falls) - 1, 1)
        to_go = np.log(np.maximum(last, _LAST * self._point.value)) - np.log(
            np.maximum(_LAST * self._point.value, np.finfo(float).tiny)
        )
        steps = np.divide(to_go, rate, out=np.full_like(rate, np.inf), where=rate > 0)
        return float(np.median(np.where(last <= _SETTLED * self._point.value, steps, 0.0)))

    def epoch(self) -> Epoch:
        """Where the stack is."""
        point = self._point
        return Epoch(
            self._models,
            point.state,
            point.value,
            point.accuracy,
            diverged=~np.isfinite(point.value),
            learning_rate=np.full(len(self._models), np.nan),
            gap=self._gap,
            stalled=self._stalled,
        )

    def select(self, staying: np.ndarray) -> None:
        """Go on with some of the models, at the host indices `staying`."""
        self._models, self._dual = self._models[staying], self._dual.select(staying)
        self._lower, self._gap = self._lower[staying], self._gap[staying]
        self._waited, self._falls = self._waited[staying], self._falls[:, staying]
        self._point = self._point.select(self._problem.backend, staying)
        self._pairs, self._curvature = self._pairs.select(staying), self._curvature.select(staying)
        self._enter(self._problem.select(staying))
        self._guess = _ScaledGuess(self._space, self._curvature, self._guess.scale[staying])
        self._turn()


class _ScaledGuess:
    """That of the curvature, scaled by what the last steps have shown."""

    def __init__(self, space: Coordinates, curvature: Curvature, scale: np.ndarray):
        self._space, self._curvature, self.scale = space, curvature, scale
        self.change: Array | None = None  # of the gradient, and its product with the step
        self.product = np.zeros(len(scale))

    def __call__(self, gradient: Array) -> Array:
        """See `skmax.solvers.pairs.FirstGuess`."""
        xp, backend = self._space.xp, self._space.problem.backend
        if self.change is None:
            (guess,) = self._curvature(gradient)
        else:
            change = xp.astype(self.change, gradient.dtype, copy=False)
            guess, of_change = self._curvature(gradient, change)
            self.rescaled(backend.to_numpy(inner(backend, self.change, of_change)))
        guess = self._space.centered(guess)
        if (self.scale != 1).any():
            guess *= backend.asarray(self.scale[:, None, None], guess.dtype)
        return guess

    def unscaled(self, gradients: Array) -> Array:
        """See `skmax.solvers.pairs.FirstGuess`."""
        return self._space.centered(self._curvature.of(gradients))

    def rescaled(self, expected: np.ndarray) -> np.ndarray:
        """Learn what became of a change that was expected to lead so far down."""
        sound = (self.product > 0) & (expected > 0)
        shown = np.divide(self.product, expected, out=self.scale.copy(), where=sound)
        self.scale, self.change = np.sqrt(self.scale * shown), None
        return self.scale

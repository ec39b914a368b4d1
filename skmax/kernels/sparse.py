"""Sparse rows on the CPU: what the reference does, at the price of the values of X.

Shapes are those of `skmax.problem`, but that features come first and models last, (d, k, m): so a
value of X meets all that it is multiplied by in one place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from skmax.data.host import view
from skmax.kernels.cpu import _Products as _DenseProducts
from skmax.kernels.cpu import logistic
from skmax.problem import BatchSums, Problem, State, Steps

# Logits whose softmax is taken at once: they stay in the cache.
_LOGITS_AT_ONCE = 1 << 17
# Values per feature of a piece of a full pass, that adding up gradients of all weights may be
# cheap; and the most logits per weight that it may have.
_VALUES_PER_FEATURE, _LOGITS_PER_WEIGHT = 16, 2

# Weights per model from which moving all costs more than finding out which need it: with half as
# many, steps took up to twice as long, and with four times as many about half.
_MANY_WEIGHTS = 1 << 16
# Scales of features are rounded to powers of two and so many between each and the next. It changes
# them by 4 percent; coarser, rare features, which have much the same scale, were all off by more.
_PER_OCTAVE = 8


def has_many_weights(problem: Problem) -> bool:
    """Whether rows are sparse, and weights so many that few of them should move in a step."""
    return problem.data.is_sparse and problem.data.n_features * problem.n_classes >= _MANY_WEIGHTS


def rounded(inverse_scale: np.ndarray) -> np.ndarray:
    """Inverse scales of which many features share one, as `sgd_epoch` needs it."""
    return np.where(inverse_scale > 0, np.exp2(_step_of(inverse_scale) / _PER_OCTAVE), 0.0)


def _step_of(inverse_scale: np.ndarray) -> np.ndarray:
    """Which of the rounded scales each is nearest to; 0 for those that are zero."""
    some = np.where(inverse_scale > 0, inverse_scale, 1).astype(np.float64)
    return np.rint(_PER_OCTAVE * np.log2(some)).astype(np.intp)


class _Products(_DenseProducts):
    """What lies between the products of sparse rows, whose logits come row by row."""

    def __init__(self, problem: Problem, size: int):
        self._at_once = min(size, _rows_at_once(problem))
        super().__init__(replace(problem, mean=None), self._at_once)

    def residuals(
        self, index: Any, logits: np.ndarray, intercept: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """What `residual` returns, of any number of rows; logits (b, k, m) become derivatives.

        Intercepts, of shape (k, m), are added to the logits first.
        """
        b, k, m = logits.shape
        totals = np.zeros(m), np.zeros(m), np.zeros((k, m))
        for first in range(0, b, self._at_once):
            some = slice(first, min(first + self._at_once, b))
            by_class = logits[some].transpose(1, 2, 0)
            if some.stop - first != self._size:
                self._lay_out(some.stop - first)
            np.add(by_class, intercept[:, :, None], out=self._logits[:, :, : self._size])
            for total, part in zip(totals, self.residual(_part(index, some)), strict=True):
                total += part
            by_class[...] = self._residual[:, :, : self._size]
        return totals


def full_pass(
    problem: Problem, coef: np.ndarray, intercept: np.ndarray, *, gradient: bool
) -> tuple[np.ndarray, ...]:
    """What `skmax.objective.full_pass` does, with few sums of the size of all weights."""
    if problem.n_classes == 2 and not problem.masked.any():
        return _pass_over_two_classes(problem, coef, intercept, gradient=gradient)
    (m, k), d = problem.masked.shape, problem.data.n_features
    weights, intercept = _swapped(coef).reshape(d, k * m), _swapped(intercept)
    size = _rows_per_piece(problem)
    products = _Products(problem, size)

    def sums(index: Any, X: Any) -> tuple[np.ndarray, ...]:
        logits = (X @ weights).reshape(-1, k, m)
        loss, correct, by_intercept = products.residuals(index, logits, intercept)
        if not gradient:
            return loss, correct
        by_coef = (_transposed(X) @ logits.reshape(-1, k * m)).reshape(d, k, m)
        return loss, correct, _swapped(by_coef), _swapped(by_intercept)

    with np.errstate(over="ignore", invalid="ignore"):
        return problem.data.reduce(problem.order, sums, width=k * m, size=size)


def _pass_over_two_classes(
    problem: Problem, coef: np.ndarray, intercept: np.ndarray, *, gradient: bool
) -> tuple[np.ndarray, ...]:
    """The same by logistic regression, of half the weights."""
    by_logit = np.ascontiguousarray((coef[:, 1] - coef[:, 0]).T)  # (d, m)
    by_row = (intercept[:, 1] - intercept[:, 0])[:, None]

    def sums(index: Any, X: Any) -> tuple[np.ndarray, ...]:
        loss, correct, residual = logistic(problem, index, _times(X, by_logit).T + by_row)
        if not gradient:
            return loss, correct
        by_coef = _times(_transposed(X), np.ascontiguousarray(residual.T)).T
        by_intercept = np.add.reduce(residual, axis=1)
        return loss, correct, by_coef, by_intercept

    with np.errstate(over="ignore", invalid="ignore"):
        totals = problem.data.reduce(
            problem.order, sums, width=problem.n_models, size=_rows_per_piece(problem)
        )
    return *totals[:2], *(np.stack([-part, part], axis=1) for part in totals[2:])


def _times(X: Any, columns: np.ndarray) -> np.ndarray:
    """X times columns, of which SciPy takes a single one faster by itself."""
    return (X @ columns[:, 0])[:, None] if columns.shape[1] == 1 else X @ columns


def _transposed(X: Any) -> Any:
    """The transpose, where X.T may be a copy."""
    return view(sparse.csc_array, (X.data, X.indices, X.indptr), X.shape[::-1])


def _rows_at_once(problem: Problem) -> int:
    """How many rows to take the softmax of at once."""
    return max(1, _LOGITS_AT_ONCE // problem.masked.size)


def _rows_per_piece(problem: Problem) -> int:
    """How many rows of a full pass to take at once."""
    values = max(1.0, problem.data.values_per_row)
    size = problem.data.n_features * min(_VALUES_PER_FEATURE / values, _LOGITS_PER_WEIGHT)
    return max(int(size), _rows_at_once(problem))


def _part(index: Any, some: slice) -> Any:
    """Some of an index that `Rows.pieces` gave."""
    if isinstance(index, slice):
        return slice(index.start + some.start, index.start + some.stop)
    return index[some]


def _swapped(weights: np.ndarray) -> np.ndarray:
    """A copy with features first and models last, or the other way round."""
    return np.ascontiguousarray(weights.T)


class _Units:
    """The units of the preconditioner, of which features share few.

    Attributes
    ----------
    factor : ndarray of shape (e, m)
        What multiplies the gradient in each unit of each model: one over its square.
    place : ndarray of shape (d, m)
        Where that is flattened, and anything of its shape, for each feature.
    """

    def __init__(self, problem: Problem):
        d, m = problem.data.n_features, problem.n_models
        unit, factor = np.zeros((d, m), np.intp), np.ones(1)
        if problem.inverse_scale is not None:
            scale = problem.inverse_scale[:, 0].T
            step = _step_of(scale)
            unit = np.where(scale > 0, step - step.min() + 1, 0)
            factor = np.exp2(np.arange(step.min() - 1, step.max() + 1) * (2 / _PER_OCTAVE))
            factor[0] = 0
        self.factor = np.repeat(factor[:, None], m, axis=1)
        self.place = unit * m + np.arange(m)


class _Response:
    """What steps without a gradient make of a weight and its velocity.

    They are linear in both, and the same for all classes and all features of a unit: so two
    weights, of which one starts at 1 and the other at 0 with a velocity of 1, say it for all.

    Attributes
    ----------
    now : int
        How many steps have been taken since the last `restart`.
    coef, velocity : ndarrays of shape (2, length + 1, e, m), float64
        What has become of the two by now, since so many steps after the restart.
    """

    def __init__(self, length: int, decay: np.ndarray, momentum: np.ndarray):
        self._decay, self._momentum = decay, momentum
        self.coef, self.velocity = np.empty((2, 2, length + 1, *decay.shape))
        self.restart()

    def restart(self) -> None:
        """Count steps from here."""
        self.now = 0
        self._start()

    def _start(self) -> None:
        self.coef[:, self.now] = np.array([1, 0])[:, None, None]
        self.velocity[:, self.now] = np.array([0, 1])[:, None, None]

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another step."""
        return self.now + 1 == self.coef.shape[1]

    def step(self, rate: np.ndarray) -> None:
        """Take a step at rates of shape (m,)."""
        coef, velocity = self.coef[:, : self.now + 1], self.velocity[:, : self.now + 1]
        velocity *= self._momentum
        velocity -= (rate * self._decay) * coef
        coef += velocity
        self.now += 1
        self._start()


class _Weights:
    """All weights, each as the last batch left it that had its feature.

    Where features are centred, the weights proper are these plus the mean of their feature times
    the drift of its unit.
    """

    def __init__(self, problem: Problem, state: State, momentum: np.ndarray, n_steps: int):
        self.units = _Units(problem)
        self.coef, self.velocity = state.coef.T.copy(), state.coef_velocity.T.copy()
        decay = self.units.factor * problem.l2
        length = int((2 * self.coef[..., 0].size / len(decay)) ** 0.5) + 1
        self.response = _Response(min(length, n_steps), decay, momentum)
        self._since = np.zeros(len(self.coef), np.intp)

    def _respond(
        self, response: np.ndarray, place: np.ndarray, coef: np.ndarray, velocity: np.ndarray
    ) -> np.ndarray:
        """What has become of weights and velocities, (t, k, m), at their places in a response."""
        from_coef, from_velocity = response.reshape(2, -1).take(place, axis=1).astype(coef.dtype)
        result = from_coef[:, None] * coef
        result += from_velocity[:, None] * velocity
        return result

    def _place(self, features: Any) -> np.ndarray:
        """Where responses have what has become of some of the features, of shape (t, m)."""
        return self._since[features, None] * self.units.factor.size + self.units.place[features]

    def take(self, features: np.ndarray) -> np.ndarray:
        """The weights of some of the features as they are now, which `step` is going to change."""
        self._taken = features, self._place(features)
        self._start = self.coef.take(features, axis=0), self.velocity.take(features, axis=0)
        self._now = self._respond(self.response.coef, self._taken[1], *self._start)
        return self._now

    def step(self, rate: np.ndarray, gradient: np.ndarray, size: int) -> None:
        """One step at rates of shape (m,) from gradients by taken weights, summed over a batch."""
        (features, place), coef = self._taken, self._now
        self.response.step(rate)
        velocity = self._respond(self.response.velocity, place, *self._start)
        factor = (rate / size * self.units.factor).astype(gradient.dtype)
        gradient *= factor.take(self.units.place[features])[:, None]
        velocity -= gradient
        coef += velocity
        self.coef[features], self.velocity[features] = coef, velocity
        self._since[features] = self.response.now
        if self.response.is_full:
            self.settle()

    def settle(self) -> None:
        """Bring all weights up to now."""
        for piece in self.pieces():
            start, place = (self.coef[piece], self.velocity[piece]), self._place(piece)
            now = (self.response.coef, self.response.velocity)
            after = [self._respond(response, place, *start) for response in now]
            self.coef[piece], self.velocity[piece] = after
        self._since[:] = 0
        self.response.restart()

    def pieces(self) -> list[slice]:
        """The features, a few at a time, whose weights stay in the cache."""
        size = max(1, _LOGITS_AT_ONCE // self.coef[0].size)
        return [slice(first, first + size) for first in range(0, len(self.coef), size)]


class _Centring:
    """What centring the features adds to the weights of all of them in every step.

    That is linear, too: it is the mean of a feature times a drift of its unit. Beside the drifts,
    there are the products of means and weights without drift, summed over each unit.
    """

    def __init__(self, problem: Problem, weights: _Weights, momentum: np.ndarray):
        mean: Any = problem.mean
        self.mean, self._weights = np.ascontiguousarray(mean[:, 0].T), weights
        self._factor, self._momentum = weights.units.factor[:, None], momentum
        self._decay = self._factor * problem.l2
        e, (_, k, m) = len(self._factor), weights.coef.shape
        # Of both, drifts and products.
        self._values, self._velocities = np.zeros((2, 2, e, k, m))
        self._squares = np.zeros((e, 1, m))
        for piece in weights.pieces():
            for model in range(m):
                means = self._means_by_unit(piece, model)
                self._squares[:, 0, model] += means @ self.mean[piece, model]
                self._values[1, ..., model] += means @ weights.coef[piece, :, model]
                self._velocities[1, ..., model] += means @ weights.velocity[piece, :, model]

    def _means_by_unit(self, piece: slice, model: int) -> Any:
        """The means of some of the features, each in the row of its unit."""
        mean, m = self.mean[piece, model], self.mean.shape[1]
        unit = self._weights.units.place[piece, model] // m
        shape = len(self._factor), len(mean)
        return sparse.csc_array((mean, unit, np.arange(len(mean) + 1)), shape=shape)

    def of_rows(self, X: Any) -> np.ndarray:
        """Products of rows and means, summed over each unit, of shape (m, b, e)."""
        b, places = X.shape[0], self._weights.units.factor.size
        place, product = self._weights.units.place[X.indices], self.mean[X.indices]
        place += np.repeat(np.arange(0, b * places, places), np.diff(X.indptr))[:, None]
        product *= X.data[:, None]
        sums = np.bincount(place.ravel(), product.ravel(), minlength=b * places)
        return sums.astype(X.dtype).reshape(b, -1, product.shape[1]).transpose(2, 0, 1)

    def logits(self, of_rows: np.ndarray) -> np.ndarray:
        """What the drifts add to the logits of rows, of shape (b, k, m)."""
        drift = self._values[0].transpose(2, 0, 1).astype(of_rows.dtype)
        return (of_rows @ drift).transpose(1, 2, 0)

    def at_mean(self) -> np.ndarray:
        """The products of means and weights, of shape (k, m)."""
        return (self._values[1] + self._squares * self._values[0]).sum(axis=0)

    def step(
        self, rate: np.ndarray, of_rows: np.ndarray, by_logits: np.ndarray, by_intercept: np.ndarray
    ) -> None:
        """One step from derivatives by the logits of rows, (b, k, m), and by intercepts, (k, m)."""
        gradient = of_rows.swapaxes(1, 2) @ by_logits.transpose(2, 0, 1)
        self._velocities *= self._momentum
        self._velocities -= rate * self._decay * self._values
        rate = rate / len(by_logits) * self._factor
        self._velocities[0] += rate * by_intercept
        self._velocities[1] -= rate * gradient.transpose(1, 2, 0)
        self._values += self._velocities

    def finish(self) -> None:
        """Add the drifts to the weights."""
        weights, k = self._weights, self._values.shape[2]
        parts = (weights.coef, self._values[0]), (weights.velocity, self._velocities[0])
        for values, drift in parts:
            drift = drift.swapaxes(1, 2).astype(values.dtype).reshape(-1, k)
            for piece in weights.pieces():
                added = drift.take(weights.units.place[piece], axis=0).swapaxes(1, 2)
                added *= self.mean[piece, None]
                values[piece] += added


def sgd_epoch(problem: Problem, state: State, steps: Steps) -> tuple[State, BatchSums]:
    """What `skmax.solvers.sgd.sgd_epoch` does, at each step for the features of the batch alone.

    What a step without their gradient makes of all others is found once for each unit, and done to
    a feature when the next batch has it: lazily, as in Z. C. Lipton and C. Elkan, Efficient elastic
    net regularization for sparse linear models, 2015.
    """
    epoch = _Epoch(problem, state, steps)
    batches = problem.data.batches(steps.order, steps.batch_size)
    loss, correct = np.zeros((2, problem.n_models))
    with np.errstate(over="ignore", invalid="ignore"):
        for (index, X), rate in zip(batches, steps.rates, strict=True):
            batch_loss, batch_correct = epoch.step(index, X, rate)
            loss += batch_loss  # a batch in its own precision, batches in float64
            correct += batch_correct
        return epoch.state(), BatchSums(loss, correct)


class _Epoch:
    """An epoch at work."""

    def __init__(self, problem: Problem, state: State, steps: Steps):
        self._fit_intercept, self._momentum = problem.fit_intercept, steps.momentum
        self._weights = _Weights(problem, state, steps.momentum, len(steps.rates))
        self._products = _Products(problem, steps.batch_size)
        self._intercept, self._velocity = (
            array.T.astype(np.float64) for array in (state.intercept, state.intercept_velocity)
        )
        self._centring = None
        if problem.mean is not None:
            self._centring = _Centring(problem, self._weights, steps.momentum)
            self._intercept += self._centring.at_mean()
        self._compact = _Compact(problem.data.n_features)

    def step(self, index: Any, X: Any, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One step with the rows `index`; their loss and correct, of shape (m,)."""
        features, rows, columns = self._compact(X)
        coef = self._weights.take(features)
        b, (t, k, m) = X.shape[0], coef.shape
        logits = (rows @ coef.reshape(t, k * m)).reshape(b, k, m)
        intercept, of_rows = self._intercept, np.empty(0)
        if self._centring is not None:
            of_rows = self._centring.of_rows(X)
            logits += self._centring.logits(of_rows)
            intercept = intercept - self._centring.at_mean()
        intercept = intercept.astype(coef.dtype)
        loss, correct, by_intercept = self._products.residuals(index, logits, intercept)
        by_coef = (columns @ logits.reshape(b, k * m)).reshape(coef.shape)
        self._weights.step(rate, by_coef, b)
        if self._centring is not None:
            self._centring.step(rate, of_rows, logits, by_intercept)
        if self._fit_intercept:
            self._velocity *= self._momentum
            self._velocity -= rate / b * by_intercept
            self._intercept += self._velocity
        return loss, correct

    def state(self) -> State:
        """The state after the steps so far, with features last; no more steps can follow."""
        self._weights.settle()
        intercept, dtype = self._intercept, self._weights.coef.dtype
        if self._centring is not None:
            self._centring.finish()
            intercept = intercept - self._centring.at_mean()
        intercept, velocity = (part.T.astype(dtype) for part in (intercept, self._velocity))
        return State(self._weights.coef.T, intercept, self._weights.velocity.T, velocity)


class _Compact:
    """Rows with the features alone that they have."""

    def __init__(self, n_features: int):
        self._seen = np.zeros(n_features, dtype=bool)
        self._place = np.empty(n_features, dtype=np.intp)

    def __call__(self, X: Any) -> tuple[np.ndarray, Any, Any]:
        """Which features the rows have, the rows of these, and their transpose."""
        self._seen[X.indices] = True
        features = np.flatnonzero(self._seen)
        self._seen[features] = False
        self._place[features] = np.arange(len(features))
        parts = X.data, self._place[X.indices], X.indptr
        shape = X.shape[0], len(features)
        rows, columns = sparse.csr_array, sparse.csc_array
        return features, view(rows, parts, shape), view(columns, parts, shape[::-1])


def serves(problem: Problem, batch_size: int) -> bool:
    """Whether an epoch in such batches is one for `sgd_epoch`, and a short one.

    Scales have to be `rounded`, and nothing but L2 may act on features that no row has.
    """
    if problem.l1.any() or problem.data.shift is not None:
        return False
    of_batch = batch_size * problem.data.values_per_row
    if not has_many_weights(problem) or problem.data.n_features < of_batch:
        return False
    if problem.inverse_scale is None:
        return True
    scale, limits = problem.inverse_scale, np.finfo(problem.data.dtype)
    with np.errstate(over="ignore"):
        square = scale * scale
    normal = (square >= limits.tiny) & (square <= limits.max)
    is_rounded = np.abs(scale - rounded(scale)) <= 4 * limits.eps * scale
    return bool((normal & is_rounded | (scale == 0)).all())

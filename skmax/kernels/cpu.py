"""Dense rows on the CPU: the steps of the reference, in place.

Shapes are those of `skmax.problem`, but that classes come first and rows of X last, (k, m, d) and
(k, m, b): so a sum over classes adds blocks of memory, and what only models and rows tell apart is
spread over classes without a loop of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
from scipy.linalg import get_blas_funcs

from skmax.backends.numpy import small_rows
from skmax.backends.threads import WORTH_A_THREAD, n_threads
from skmax.data import Rows
from skmax.problem import BatchSums, Problem, State, Steps

# Rows whose softmax is taken at once in a full pass: as many as stay in the cache until their
# gradient is taken, or these; but threads, of which one runs Python at a time, want more to do.
_BLOCK, _BLOCK_OF_THREADS, _CACHE = 256, 1024, 3 << 18
# Weights that are moved at once: they stay in the cache between one array and the next.
_WEIGHTS_AT_ONCE = 1 << 17
# The fewest rows, on average, that are worth a pass by themselves for those models that learn from
# them: 19,000 x 384, three folds of 50 classes, took 49 ms, and 37 by fold; digits 1.1 and 1.4.
_WORTH_A_PASS = 1024


class _Products:
    """The forward and backward products of a batch and a stack of models, and what lies between.

    Parameters
    ----------
    problem : Problem
        What is minimised.
    size : int
        The most rows in a batch.

    Attributes
    ----------
    centers : bool
        Whether the products centre the features.
    """

    def __init__(self, problem: Problem, size: int):
        m, k = problem.masked.shape
        self.problem = problem
        d, dtype = problem.data.n_features, problem.data.dtype
        limit = small_rows(m * k * d) or size
        self._tile = -(-size // -(-size // limit))
        # Where a batch is a single product, so is its centring: the origins are further rows of X.
        self._origins: Any = np.empty((0, d), dtype)
        self.centers = problem.mean is not None and limit == size and m > 1
        if problem.mean is not None and self.centers:
            _, first, self._origin_of = np.unique(
                problem.columns, return_index=True, return_inverse=True
            )
            self._origins = problem.mean[first, 0]
            self._extended = np.zeros((_multiple(size + len(first)), d), dtype)
        self._models = np.arange(m)
        length = _row_length(size + len(self._origins))
        self._per_class = np.zeros((2, k * m * length), dtype)
        self._per_row = np.empty((2, m * length), dtype)
        self._lay_out(size)

    def _lay_out(self, size: int) -> None:
        """Cut the buffers for batches of that size."""
        m, k = self.problem.masked.shape
        self._size, length = size, _row_length(size + len(self._origins))
        self._logits, self._residual = self._per_class[:, : k * m * length].reshape(2, k, m, length)
        self._row, self._weight = self._per_row[:, : m * length].reshape(2, m, length)
        self._weight[:, :size], self._weight[:, size:] = 1, 0
        self._rows = np.arange(size)

    def forward(self, X: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> None:
        """Logits from weights of shapes (k, m, d) and (k, m).

        The intercepts are those at the origin if this `centers`, else those at the data's shift.
        """
        size, coef = len(X), coef.reshape(-1, X.shape[1])
        if size != self._size:
            self._lay_out(size)
        logits = self._logits.reshape(len(coef), -1)
        if self.centers:
            n_rows = size + len(self._origins)
            extended = self._extended[: _multiple(n_rows)]
            extended[:size], extended[size:n_rows] = X, self._origins
            np.matmul(coef, extended.T, out=logits[:, : len(extended)])
            intercept = intercept - self._logits[:, self._models, size + self._origin_of]
        else:
            for first in range(0, size, self._tile):
                rows = X[first : first + self._tile]
                np.matmul(coef, rows.T, out=logits[:, first : first + len(rows)])
        self._logits += intercept[:, :, None]

    def residual(self, index: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Derivatives of the loss by the logits, which are overwritten.

        Returns sums over the rows: loss and correct, of shape (m,), and derivatives, (k, m).
        """
        problem, rows = self.problem, self._rows
        label, target = self._targets(index)
        weight: Any = problem.weights(index)
        if weight is not None:
            self._weight[:, : self._size] = weight.T
        loss = self._softmax()
        logits, weights = self._logits[:, :, : self._size], self._weight[:, : self._size]
        of_label = logits[label, :, rows].T
        if target is None:
            loss -= of_label
            self._residual[label, :, rows] -= weights.T
        else:
            loss -= np.add.reduce(target * logits, axis=0)
            self._residual[:, :, : self._size] -= weights * target
        correct = of_label == 0
        if np.count_nonzero(logits == 0) > of_label.size:  # of equal logits, the first class counts
            correct = logits.argmax(axis=0) == label
        if weight is not None:
            loss *= weights
            if problem.score_weight is not None:
                weight = problem.weights(index, of_scores=True)
            correct = correct * weight.T
        return (
            np.add.reduce(loss, axis=1),
            np.add.reduce(correct, axis=1),
            np.add.reduce(self._residual, axis=2),
        )

    def _softmax(self) -> np.ndarray:
        """Weighted probabilities in place of residuals, and the logarithms of their sums, (m, b).

        Of the logits, the largest is subtracted. What follows the batch in a row weighs nothing.
        """
        np.maximum.reduce(self._logits, axis=0, out=self._row)
        self._logits -= self._row
        np.exp(self._logits, out=self._residual)
        np.add.reduce(self._residual, axis=0, out=self._row)
        log_sum = np.log(self._row[:, : self._size])
        self._residual *= np.divide(self._weight, self._row, out=self._row)
        return log_sum

    def _targets(self, index: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels of shape (b,), and probabilities of shape (k, 1 or m, b) unless those say all."""
        problem = self.problem
        values = problem.targets[index]
        if values.ndim == 1 and problem.smoothing is None:
            return values, None
        if values.ndim == 1:
            label, target = values, np.zeros((problem.n_classes, len(values)), problem.data.dtype)
            target[label, self._rows] = 1
        else:
            label, target = values.argmax(axis=1), values.T
        if problem.smoothing is None:
            return label, target[:, None]
        hard_share = 1 - problem.smoothing.sum(axis=1)
        return label, hard_share[:, None] * target[:, None] + problem.smoothing.T[:, :, None]

    def backward(
        self, X: np.ndarray, by_intercept: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        """The gradient of the summed loss by the coefficients, of shape (k, m, d), into `out`.

        It is that of centred features if this `centers`.
        """
        size, out, scratch = len(X), *(array.reshape(-1, X.shape[1]) for array in (out, scratch))
        residual = self._residual.reshape(len(out), -1)
        if self.centers:
            self._residual[:, self._models, size + self._origin_of] = -by_intercept
            width = size + len(self._origins)
            np.matmul(residual[:, :width], self._extended[:width], out=out)
            return
        for first in range(0, size, self._tile):
            rows = X[first : first + self._tile]
            np.matmul(residual[:, first : first + len(rows)], rows, out=scratch if first else out)
            if first:
                out += scratch


def _multiple(n_rows: int) -> int:
    """So many rows, or a few more: whole vectors of a matrix product."""
    return -(-n_rows // 8) * 8


def _row_length(n_rows: int) -> int:
    """Memory for so many values: rows a power of two apart compete for lines of the cache."""
    length = _multiple(n_rows)
    return length + 8 if length % 32 == 0 else length


class _Weights:
    """The weights and velocities of a stack, and the proximal heavy-ball step, in place.

    Intercepts are those of a row that equals the preconditioner's origin.
    """

    def __init__(self, problem: Problem, state: State, momentum: np.ndarray):
        dtype, (m, k, d) = problem.data.dtype, state.coef.shape
        self.problem = problem
        self.coef, self.velocity = _swapped(state.coef), _swapped(state.coef_velocity)
        self.intercept_velocity = _swapped(state.intercept_velocity)
        self.mean = None if problem.mean is None else np.ascontiguousarray(problem.mean[:, 0])
        self.intercept = _swapped(state.intercept) + self._at_mean()
        self.gradient, self.scratch = np.empty_like(self.coef), np.empty_like(self.coef)
        self._factors = _factors(problem.inverse_scale, m, dtype)
        self._momentum = momentum.astype(dtype)
        # A loop over whole classes is faster than one over models that reads less.
        self._l2, self._momentum_of_coef = (
            values.astype(dtype) if len(values) == 1 else np.tile(values[:, None], d).astype(dtype)
            for values in (problem.l2, momentum)
        )
        self._l1 = problem.l1.astype(dtype)[:, None] if problem.l1.any() else None
        self._rank_one = get_blas_funcs("ger", dtype=dtype)
        n_classes = max(1, _WEIGHTS_AT_ONCE // (m * d))
        self._pieces = [slice(first, first + n_classes) for first in range(0, k, n_classes)]

    def _at_mean(self) -> Any:
        """What the coefficients make of the means, of shape (k, m)."""
        if self.mean is None:
            return 0
        return np.matmul(self.coef[:, :, None], self.mean[:, :, None])[:, :, 0, 0]

    def shifted_intercept(self) -> np.ndarray:
        """The intercepts of a row that equals the shift of the data."""
        return self.intercept - self._at_mean()

    def center(self, by_intercept: np.ndarray) -> None:
        """Make the gradient that of centred features."""
        if self.mean is None:
            return
        if len(self.mean) == 1:
            columns = self.gradient[:, 0].T  # as BLAS wants them
            self._rank_one(-1, self.mean[0], by_intercept[:, 0], a=columns, overwrite_a=1)
        else:
            self.gradient -= np.multiply(by_intercept[:, :, None], self.mean, out=self.scratch)

    def step(self, rate: np.ndarray, by_intercept: np.ndarray, size: int) -> None:
        """One step at rates of shape (m,), from gradients summed over a batch of that size."""
        mean_rate = rate / size
        factor, *others = self._factors
        factor, l2 = factor * mean_rate[:, None], size * self._l2
        for piece in self._pieces:
            gradient, velocity, coef = self.gradient[piece], self.velocity[piece], self.coef[piece]
            gradient += np.multiply(coef, l2, out=self.scratch[: len(coef)])
            gradient *= factor
            for other in others:
                gradient *= other
            velocity *= self._momentum_of_coef
            velocity -= gradient
            coef += velocity
        if self._l1 is not None:
            self.velocity -= self._soft_threshold(rate)
        if self.problem.fit_intercept:
            self.intercept_velocity *= self._momentum
            self.intercept_velocity -= mean_rate * by_intercept
            self.intercept += self.intercept_velocity

    def _soft_threshold(self, rate: np.ndarray) -> np.ndarray:
        """Apply the proximal operator of the L1 penalty; what it took off."""
        threshold = rate[:, None] * self._l1
        for factor in self._factors:
            threshold = threshold * factor
        clipped = np.clip(self.coef, -threshold, threshold, out=self.scratch)
        self.coef -= clipped
        return clipped

    def state(self) -> State:
        """The state, in the order of axes that solvers have."""
        parts = self.coef, self.shifted_intercept(), self.velocity, self.intercept_velocity
        return State(*map(_swapped, parts))


def _swapped(weights: np.ndarray) -> np.ndarray:
    """A copy with classes before models, or the other way round."""
    return weights.swapaxes(0, 1).copy()


def _factors(inverse_scale: np.ndarray | None, m: int, dtype: Any) -> list[np.ndarray]:
    """What multiplies gradients: the square, or, where that is not normal, twice the scale."""
    if inverse_scale is None:
        return [np.ones((m, 1), dtype)]
    scale = np.ascontiguousarray(inverse_scale[:, 0])
    with np.errstate(over="ignore"):
        square = scale * scale
    limits = np.finfo(dtype)
    normal = (square >= limits.tiny) & (square <= limits.max)
    all_normal = (normal | (scale == 0)).all()
    return [square] if all_normal else [scale, scale]


def sgd_epoch(problem: Problem, state: State, steps: Steps) -> tuple[State, BatchSums]:
    """What `skmax.solvers.sgd.sgd_epoch` does, in place, in threads that share the models."""
    (m, k), d = problem.masked.shape, problem.data.n_features
    cost = steps.batch_size * m * k * d
    n_parts = min(n_threads(), m, cost // WORTH_A_THREAD)
    if n_parts < 2:
        batches = problem.data.batches(steps.order, steps.batch_size)
        return _epoch(problem, state, steps, batches)

    def run(models: np.ndarray) -> tuple[State, BatchSums]:
        part = replace(problem.select(models), data=problem.data.with_(shift=problem.data.shift))
        batches = part.data.pieces(steps.order, steps.batch_size)  # a thread each is enough
        return _epoch(part, state.select(problem.backend, models), steps.select(models), batches)

    states, sums = zip(
        *problem.backend.each(run, np.array_split(np.arange(m), n_parts), cost), strict=True
    )
    arrays = (
        np.concatenate([getattr(part, field.name) for part in states]) for field in fields(state)
    )
    return State(*arrays), BatchSums(*map(np.concatenate, zip(*sums, strict=True)))


def _epoch(
    problem: Problem, state: State, steps: Steps, batches: Iterator[tuple[Any, Any]]
) -> tuple[State, BatchSums]:
    """The steps of one thread."""
    weights = _Weights(problem, state, steps.momentum)
    products = _Products(problem, steps.batch_size)
    loss, correct = np.zeros((2, problem.n_models))
    with np.errstate(over="ignore", invalid="ignore"):
        for (index, X), rate in zip(batches, steps.rates.astype(problem.data.dtype), strict=True):
            intercept = weights.intercept if products.centers else weights.shifted_intercept()
            products.forward(X, weights.coef, intercept)
            batch_loss, batch_correct, by_intercept = products.residual(index)
            loss += batch_loss  # a batch in its own precision, batches in float64
            correct += batch_correct
            products.backward(X, by_intercept, weights.gradient, weights.scratch)
            if not products.centers:
                weights.center(by_intercept)
            weights.step(rate, by_intercept, len(X))
        return weights.state(), BatchSums(loss, correct)


def full_pass(
    problem: Problem, coef: np.ndarray, intercept: np.ndarray, *, gradient: bool
) -> tuple[np.ndarray, ...]:
    """What `skmax.objective.full_pass` does; rows meet the models alone that learn from them."""
    pieces = _rows_of_models(problem)
    if len(pieces) == 1:
        return _full_pass(problem, coef, intercept, gradient=gradient)
    shapes = (problem.n_models,), (problem.n_models,), coef.shape, intercept.shape
    totals = tuple(np.zeros(shape) for shape in shapes[: 4 if gradient else 2])
    for models, order in pieces:
        part = replace(problem.select(models), order=order)
        sums = _full_pass(part, coef[models], intercept[models], gradient=gradient)
        for total, values in zip(totals, sums, strict=True):
            total[models] += values
    return totals


def _rows_of_models(problem: Problem) -> list[tuple[np.ndarray, np.ndarray]]:
    """Which models learn from which rows; those that no model gives weight to are left out.

    Rows that follow each other and have the same models come together. If that makes many pieces
    of few rows, all rows have all models.
    """
    order, models, weight = problem.order, np.arange(problem.n_models), problem.sample_weight
    if weight is None or weight.shape[1] == 1:
        return [(models, order)]
    learns = weight[order] != 0
    bounds = np.flatnonzero((learns[1:] != learns[:-1]).any(axis=1)) + 1
    if (len(bounds) + 1) * _WORTH_A_PASS > len(order):
        return [(models, order)]
    learns = learns[np.concatenate([[0], bounds])][:, problem.columns]
    pieces = zip(map(np.flatnonzero, learns), np.split(order, bounds), strict=True)
    return [(models, rows) for models, rows in pieces if len(models)]


def sorted_by_models(problem: Problem) -> Problem:
    """The same problem, its rows copied in an order that brings those of the same models together.

    Not where that is of no use to `full_pass`, or rows are on disk.
    """
    weight = problem.sample_weight
    if weight is None or problem.data.is_on_disk:
        return problem
    order = problem.order[np.lexsort(weight[problem.order].T != 0)]
    pieces = _rows_of_models(replace(problem, order=order))
    return problem if len(pieces) == 1 else problem.laid_out(order)


def _full_pass(
    problem: Problem, coef: np.ndarray, intercept: np.ndarray, *, gradient: bool
) -> tuple[np.ndarray, ...]:
    """A pass of all rows and all models, in place, in threads that share the rows."""
    cost = len(problem.order) * coef.size
    n_parts = max(1, min(n_threads(), len(problem.order), cost // WORTH_A_THREAD))
    two = problem.n_classes == 2 and not problem.masked.any()
    run = partial(
        _part_of_two_classes if two else _part_of_pass,
        problem,
        _swapped(coef),
        _swapped(intercept),
        size=_rows_at_once(problem, coef, n_parts),
        gradient=gradient,
    )
    if n_parts == 1:
        loss, correct, *gradients = run(problem.data, problem.order)
    else:  # each with buffers of its own
        orders = np.array_split(problem.order, n_parts)
        sources = (problem.data.with_(shift=problem.data.shift) for _ in orders)
        shares = list(zip(sources, orders, strict=True))
        parts = problem.backend.each(lambda share: run(*share), shares, cost)
        loss, correct, *gradients = (sum(sums) for sums in zip(*parts, strict=True))
    return loss, correct, *map(_swapped, gradients)


def _rows_at_once(problem: Problem, coef: np.ndarray, n_parts: int) -> int:
    """The rows of a block in a full pass that so many threads share: all blocks alike."""
    m, k, d = coef.shape
    row_bytes = max(d * problem.data.X.itemsize, 2 * m * k * coef.itemsize)
    most = max(_CACHE // row_bytes, _BLOCK if n_parts == 1 else _BLOCK_OF_THREADS)
    n_rows = -(-len(problem.order) // n_parts)
    return -(-n_rows // -(-n_rows // most))


def _part_of_pass(
    problem: Problem,
    coef: np.ndarray,
    intercept: np.ndarray,
    data: Rows,
    order: np.ndarray,
    *,
    size: int,
    gradient: bool,
) -> tuple[np.ndarray, ...]:
    """The sums of one thread."""
    products = _Products(replace(problem, mean=None), min(size, len(order)))
    by_coef, scratch = np.empty((2, *coef.shape), coef.dtype)

    def sums(index: Any, X: np.ndarray) -> tuple[np.ndarray, ...]:
        products.forward(X, coef, intercept)
        loss, correct, by_intercept = products.residual(index)
        if not gradient:
            return loss, correct
        products.backward(X, by_intercept, by_coef, scratch)
        return loss, correct, by_coef, by_intercept

    with np.errstate(over="ignore", invalid="ignore"):
        return data.reduce(order, sums, width=coef.shape[0] * coef.shape[1], size=size)


def _part_of_two_classes(
    problem: Problem,
    coef: np.ndarray,
    intercept: np.ndarray,
    data: Rows,
    order: np.ndarray,
    *,
    size: int,
    gradient: bool,
) -> tuple[np.ndarray, ...]:
    """What `_part_of_pass` does, by logistic regression: half of it, and no matrix for one model.

    A product of a matrix and a vector takes a fifth of the time of one with two vectors.
    """
    by_logit, by_row = coef[1] - coef[0], (intercept[1] - intercept[0])[:, None]

    def sums(index: Any, X: np.ndarray) -> tuple[np.ndarray, ...]:
        loss, correct, residual = logistic(problem, index, _times(by_logit, X.T) + by_row)
        if not gradient:
            return loss, correct
        by_coef, by_intercept = _times(residual, X), np.add.reduce(residual, axis=1)
        return loss, correct, np.stack([-by_coef, by_coef]), np.stack([-by_intercept, by_intercept])

    with np.errstate(over="ignore", invalid="ignore"):
        return data.reduce(order, sums, width=len(by_logit), size=size)


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (b.T @ a[0])[None] if len(a) == 1 else a @ b


def logistic(
    problem: Problem, index: Any, logit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of loss and accuracy (m,), and derivatives (m, b), of logits of the second class."""
    values = problem.targets[index]
    label = values if values.ndim == 1 else values.argmax(axis=1)
    target: Any = (values if values.ndim == 1 else values[:, 1]).astype(logit.dtype)
    if problem.smoothing is not None:
        added = problem.smoothing[:, 1:]
        target = (1 - 2 * added) * target + added
    positive = logit > 0
    e = np.exp(-np.abs(logit))
    loss = np.log1p(e) + np.maximum(logit, 0) - target * logit
    residual = np.where(positive, 1, e) / (1 + e) - target
    correct: Any = positive == label
    weight: Any = problem.weights(index)
    if weight is not None:
        loss, residual = loss * weight.T, residual * weight.T
        weight = problem.weights(index, of_scores=True)
        correct = correct * weight.T
    return np.add.reduce(loss, axis=1), np.add.reduce(correct, axis=1), residual

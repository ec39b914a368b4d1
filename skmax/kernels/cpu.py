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
from skmax.problem import BatchSums, Problem, State, Steps

# Rows whose softmax is taken at once in a full pass: few stay in the cache until their gradient is
# taken; but threads, of which one runs Python at a time, want much to do in between.
_BLOCK, _BLOCK_OF_THREADS = 256, 1024
# Weights that are moved at once: they stay in the cache between one array and the next.
_WEIGHTS_AT_ONCE = 1 << 17


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
    """What `skmax.objective.full_pass` does, in place, in threads that share the rows."""
    cost = len(problem.order) * coef.size
    n_parts = max(1, min(n_threads(), len(problem.order), cost // WORTH_A_THREAD))
    run = partial(
        _part_of_pass,
        problem,
        _swapped(coef),
        _swapped(intercept),
        size=_BLOCK if n_parts == 1 else _BLOCK_OF_THREADS,
        gradient=gradient,
    )
    parts = problem.backend.each(run, np.array_split(problem.order, n_parts), cost)
    loss, correct, *gradients = (sum(sums) for sums in zip(*parts, strict=True))
    return loss, correct, *map(_swapped, gradients)


def _part_of_pass(
    problem: Problem,
    coef: np.ndarray,
    intercept: np.ndarray,
    order: np.ndarray,
    *,
    size: int,
    gradient: bool,
) -> tuple[np.ndarray, ...]:
    """The sums of one thread."""
    data = problem.data.with_(shift=problem.data.shift)  # buffers of its own
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

"""What NumPy does faster than the reference on dense rows: the same steps, in place.

Shapes are those of `skmax.problem`, but that classes come first and rows of X last, (k, m, d) and
(k, m, b): so a sum over classes adds blocks of memory, and what only models and rows tell apart is
spread over classes without a loop of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
from scipy.linalg import get_blas_funcs

from skmax._sklearn import _openmp_effective_n_threads
from skmax.backends.array_api import Rows

# Multiply-adds in a product up to which OpenBLAS has kernels that need no packing, twice as fast;
# and the fewest rows of X that make several such products better than a single one.
_SMALL, _FEWEST = 900_000, 16
# Rows whose softmax is taken at once in a full pass: few stay in the cache until their gradient is
# taken; but threads, of which one runs Python at a time, want much to do in between. And the
# multiply-adds that make up for starting a thread.
_BLOCK, _BLOCK_OF_THREADS, WORTH_A_THREAD = 256, 1024, 20_000_000


def n_threads() -> int:
    """How many threads there are for this process: fewer in the workers of joblib."""
    return _openmp_effective_n_threads()


def small_rows(n_weights: int) -> int:
    """The most rows of X that a product with so many weights is best fed with; 0: any number."""
    rows = _SMALL // max(1, n_weights)
    return rows if rows >= _FEWEST else 0


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
    loss, correct : ndarray of shape (m,), float64
        Sums over the rows of all batches so far.
    """

    def __init__(self, problem: Any, size: int):
        m, k = problem.masked.shape
        self.problem = problem
        self.loss, self.correct = np.zeros(m), np.zeros(m)
        d, dtype = problem.data.n_features, problem.data.dtype
        most = small_rows(m * k * d) or size
        self._tile = -(-size // -(-size // most))
        # Where a batch is a single product, so is its centring: the origins are further rows of X.
        self._origins: Any = np.empty((0, d), dtype)
        self.centers = problem.mean is not None and most == size and m > 1
        if self.centers:
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

    def residual(self, index: Any) -> np.ndarray:
        """Derivatives of the loss by the logits, which are overwritten; their sums, (k, m)."""
        size, problem = len(index), self.problem
        label, target = self._targets(index)
        weight = problem.weights(index)
        if weight is not None:
            self._weight[:, :size] = weight.T
        np.maximum.reduce(self._logits, axis=0, out=self._row)
        self._logits -= self._row
        np.exp(self._logits, out=self._residual)
        np.add.reduce(self._residual, axis=0, out=self._row)
        loss = np.log(self._row[:, :size])
        # What follows the batch in a row gets weight zero here.
        self._residual *= np.divide(self._weight, self._row, out=self._row)
        logits, weights = self._logits[:, :, :size], self._weight[:, :size]
        chosen = logits[label, :, np.arange(size)].T
        if target is None:
            loss -= chosen
            self._residual[label, :, np.arange(size)] -= weights.T
        else:
            loss -= np.add.reduce(target * logits, axis=0)
            self._residual[:, :, :size] -= weights * target
        correct = chosen == 0
        if np.count_nonzero(logits == 0) > chosen.size:  # of equal logits, the first class counts
            correct = logits.argmax(axis=0) == label
        if weight is not None:
            loss *= weights
            scores = problem.score_weight is not None
            correct = correct * (problem.weights(index, of_scores=True).T if scores else weights)
        self.loss += np.add.reduce(loss, axis=1)  # a batch in its own precision, batches in float64
        self.correct += np.add.reduce(correct, axis=1)
        return np.add.reduce(self._residual, axis=2)

    def _targets(self, index: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels of shape (b,), and probabilities of shape (k, 1 or m, b) unless those say all."""
        problem = self.problem
        values = problem.targets[index]
        if values.ndim == 1 and problem.smoothing is None:
            return values, None
        if values.ndim == 1:
            label, target = values, np.zeros((problem.n_classes, len(values)), problem.data.dtype)
            target[label, np.arange(len(label))] = 1
        else:
            label, target = values.argmax(axis=1), values.T
        if problem.smoothing is None:
            return label, target[:, None]
        kept = 1 - problem.smoothing.sum(axis=1)
        return label, kept[:, None] * target[:, None] + problem.smoothing.T[:, :, None]

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


# Weights that are moved at once: they stay in the cache between one array and the next.
_TOGETHER = 1 << 17


class _Weights:
    """The weights and velocities of a stack, and the proximal heavy-ball step, in place.

    Intercepts are those of a row that equals the preconditioner's origin.
    """

    def __init__(self, problem: Any, state: Any, solver: Any):
        dtype, (m, k, d) = problem.data.dtype, state.coef.shape
        self.problem = problem
        self.coef, self.velocity = _swapped(state.coef), _swapped(state.coef_velocity)
        self.intercept_velocity = _swapped(state.intercept_velocity)
        self.mean = None if problem.mean is None else np.ascontiguousarray(problem.mean[:, 0])
        self.intercept = _swapped(state.intercept) + self._at_mean()
        self.gradient, self.scratch = np.empty_like(self.coef), np.empty_like(self.coef)
        self._factors = _factors(problem.inverse_scale, m, dtype)
        self._momentum = solver.momentum.astype(dtype)
        # A loop over whole classes is faster than one over models that reads less.
        self._decay, self._keep = (
            values.astype(dtype) if len(values) == 1 else np.tile(values[:, None], d).astype(dtype)
            for values in (problem.l2, solver.momentum)
        )
        self._l1 = problem.l1.astype(dtype)[:, None] if problem.l1.any() else None
        self._rank_one = get_blas_funcs("ger", dtype=dtype)
        together = max(1, _TOGETHER // (m * d))
        self._pieces = [slice(i, i + together) for i in range(0, k, together)]

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
        factor, decay = factor * mean_rate[:, None], size * self._decay
        for some in self._pieces:
            gradient, velocity, coef = self.gradient[some], self.velocity[some], self.coef[some]
            gradient += np.multiply(coef, decay, out=self.scratch[: len(coef)])
            gradient *= factor
            for further in others:
                gradient *= further
            velocity *= self._keep
            velocity -= gradient
            coef += velocity
        if self._l1 is not None:
            self.velocity -= self._shrink(rate)
        if self.problem.fit_intercept:
            self.intercept_velocity *= self._momentum
            self.intercept_velocity -= mean_rate * by_intercept
            self.intercept += self.intercept_velocity

    def _shrink(self, rate: np.ndarray) -> np.ndarray:
        """Apply the proximal operator of the L1 penalty; what it took off."""
        threshold = rate[:, None] * self._l1
        for factor in self._factors:
            threshold = threshold * factor
        taken = np.clip(self.coef, -threshold, threshold, out=self.scratch)
        self.coef -= taken
        return taken

    def settle(self, rate: np.ndarray, gradient: np.ndarray, size: int) -> None:
        """One step of the models under L1 from a summed gradient, which leaves momentum alone."""
        before, velocity = self.coef.copy(), self.velocity.copy()
        intercept, intercept_velocity = self.intercept.copy(), self.intercept_velocity.copy()
        self.velocity[...] = 0
        self.gradient[...] = gradient
        self.step(rate, np.zeros_like(intercept), size)
        self.velocity, self.intercept = velocity, intercept
        self.intercept_velocity = intercept_velocity
        self.coef = np.where(self.problem.l1[:, None] > 0, self.coef, before)


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


def dense_sgd_epoch(
    problem: Any, state: Any, solver: Any, order: np.ndarray, rates: np.ndarray
) -> tuple[Any, Any]:
    """What `skmax.solvers.sgd.sgd_epoch` does, in place, in threads that share the models."""
    (m, k), d = problem.masked.shape, problem.data.n_features
    n_parts = min(n_threads(), m, solver.batch_size * m * k * d // WORTH_A_THREAD)
    if n_parts < 2:
        return _epoch(problem, state, solver, problem.data.batches(order, solver.batch_size), rates)

    def run(models: np.ndarray) -> tuple[Any, Any]:
        data = problem.data.with_(shift=problem.data.shift)  # buffers of its own
        part = replace(problem.select(models), data=data)
        batches = Rows.batches(data, order, solver.batch_size)  # a thread each is enough
        mine = state.select(problem.backend, models)
        with np.errstate(over="ignore", invalid="ignore"):
            return _epoch(part, mine, solver.select(models), batches, rates[:, models])

    with ThreadPoolExecutor(n_parts) as pool:
        states, sums = zip(*pool.map(run, np.array_split(np.arange(m), n_parts)), strict=True)
    arrays = {
        field.name: np.concatenate([getattr(part, field.name) for part in states])
        for field in fields(state)
    }
    return replace(state, **arrays), tuple(map(np.concatenate, zip(*sums, strict=True)))


def _epoch(
    problem: Any, state: Any, solver: Any, batches: Iterator[tuple[Any, Any]], rates: np.ndarray
) -> tuple[Any, Any]:
    """The steps of one thread."""
    weights, products = _Weights(problem, state, solver), _Products(problem, solver.batch_size)
    gradient, scratch = weights.gradient, weights.scratch
    gradient_sum: Any = np.zeros_like(gradient) if problem.l1.any() else None
    n_rows = 0
    for (index, X), rate in zip(batches, rates.astype(problem.data.dtype), strict=True):
        intercept = weights.intercept if products.centers else weights.shifted_intercept()
        products.forward(X, weights.coef, intercept)
        by_intercept = products.residual(index)
        products.backward(X, by_intercept, gradient, scratch)
        if not products.centers:
            weights.center(by_intercept)
        if gradient_sum is not None:
            gradient_sum += gradient
        weights.step(rate, by_intercept, len(index))
        n_rows += len(index)
    if gradient_sum is not None:
        weights.settle(solver.learning_rate.astype(gradient.dtype), gradient_sum, n_rows)
    after = replace(
        state,
        coef=_swapped(weights.coef),
        intercept=_swapped(weights.shifted_intercept()),
        coef_velocity=_swapped(weights.velocity),
        intercept_velocity=_swapped(weights.intercept_velocity),
    )
    return after, (products.loss, products.correct)


def dense_pass(problem: Any, coef: np.ndarray, intercept: np.ndarray, *, gradient: bool) -> Any:
    """What `skmax.objective.full_pass` does, in place, in threads that share the rows."""
    order = problem.order
    n_parts = max(1, min(n_threads(), len(order) * coef.size // WORTH_A_THREAD))
    parts = np.array_split(order, n_parts)
    size = _BLOCK if n_parts == 1 else _BLOCK_OF_THREADS

    def run(part: np.ndarray) -> tuple[Any, ...]:
        return _part_of_pass(problem, coef, intercept, part, size, gradient)

    if n_parts == 1:
        return run(order)
    with ThreadPoolExecutor(n_parts) as pool:
        results = list(pool.map(run, parts))
    return tuple(None if sums[0] is None else sum(sums) for sums in zip(*results, strict=True))


def _part_of_pass(
    problem: Any,
    coef: np.ndarray,
    intercept: np.ndarray,
    order: np.ndarray,
    size: int,
    gradient: bool,
) -> tuple[Any, ...]:
    data = problem.data.with_(shift=problem.data.shift)  # buffers of its own
    products = _Products(replace(problem, mean=None), min(size, len(order)))
    coef, intercept = _swapped(coef), _swapped(intercept)
    out, scratch = np.empty((2, *coef.shape), coef.dtype)
    by_coef: Any = np.zeros(coef.shape) if gradient else None
    by_intercept: Any = np.zeros(intercept.shape) if gradient else None
    for first in range(0, len(order), size):
        index = order[first : first + size]
        X = data.rows(index)
        products.forward(X, coef, intercept)
        of_piece = products.residual(index)
        if gradient:
            products.backward(X, of_piece, out, scratch)
            by_coef += out
            by_intercept += of_piece
    if gradient:
        by_coef, by_intercept = _swapped(by_coef), _swapped(by_intercept)
    return products.loss, products.correct, by_coef, by_intercept

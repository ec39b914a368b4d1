"""What NumPy does faster than the reference on dense rows: the same steps, in place.

Logits are stored with the rows of X along memory, (m, k, b), so that everything the softmax does is
vectorised. Shapes are those of `skmax.problem`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
from scipy.linalg import get_blas_funcs
from sklearn.utils._openmp_helpers import _openmp_effective_n_threads

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
        # Rows a power of two apart would compete for the same lines of the cache.
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
            self._extended = np.empty((size + len(first), d), dtype)
        width = -(-(size + len(self._origins)) // 16) * 16 + 16
        self._logits, self._residual = np.empty((2, m * k, width), dtype)
        self._row = np.empty((m, 1, size), dtype)

    def forward(self, X: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """Logits of shape (m, k, b) from weights of shapes (m, k, d) and (m, k).

        The intercepts are those at the origin if this `centers`, else those at the data's shift.
        """
        size, coef = len(X), coef.reshape(-1, X.shape[1])
        logits = self._logits.reshape(*intercept.shape, -1)
        if self.centers:
            extended = self._extended[: size + len(self._origins)]
            extended[:size], extended[size:] = X, self._origins
            np.matmul(coef, extended.T, out=self._logits[:, : len(extended)])
            intercept = intercept - logits[np.arange(len(logits)), :, size + self._origin_of]
        else:
            for first in range(0, size, self._tile):
                rows = X[first : first + self._tile]
                np.matmul(coef, rows.T, out=self._logits[:, first : first + len(rows)])
        logits = logits[:, :, :size]
        logits += intercept[:, :, None]
        return logits

    def residual(self, logits: np.ndarray, index: Any) -> np.ndarray:
        """Derivatives of the loss by the logits, which are overwritten; sums are taken."""
        m, k, size = logits.shape
        residual = self._residual.reshape(m, k, -1)[:, :, :size]
        label, target = self._targets(index)
        row = np.maximum.reduce(logits, axis=1, keepdims=True, out=self._row[:, :, :size])
        logits -= row
        np.exp(logits, out=residual)
        np.add.reduce(residual, axis=1, keepdims=True, out=row)
        residual /= row
        loss = np.log(row[:, 0])
        place = self._places(label)
        chosen = self._logits.take(place, mode="clip")
        if target is None:
            loss -= chosen
            self._residual.put(place, self._residual.take(place, mode="clip") - 1)
        else:
            loss -= np.add.reduce(target * logits, axis=1)
            residual -= target
        correct = chosen == 0
        if np.count_nonzero(logits == 0) > chosen.size:  # of equal logits, the first class counts
            correct = logits.argmax(axis=1) == label
        self._add(loss, correct, residual, index)
        return residual

    def _places(self, label: np.ndarray) -> np.ndarray:
        """Where in the flat logits those of the labels are, of shape (m, b)."""
        (m, k), stride = self.problem.masked.shape, self._logits.shape[1]
        place = label * stride + np.arange(len(label))
        return place[None] if m == 1 else place + k * stride * np.arange(m)[:, None]

    def _targets(self, index: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels of shape (b,), and probabilities of shape (1 or m, k, b) unless those say all."""
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
            return label, target[None]
        kept = 1 - problem.smoothing.sum(axis=1)
        return label, kept[:, None, None] * target + problem.smoothing[:, :, None]

    def _add(self, loss: np.ndarray, correct: np.ndarray, residual: np.ndarray, index: Any) -> None:
        problem = self.problem
        weight = problem.weights(index)
        if weight is not None:
            weight = weight.T
            loss *= weight
            residual *= weight[:, None, :]
            counts = (
                problem.weights(index, of_scores=True) if problem.score_weight is not None else None
            )
            correct = correct * (weight if counts is None else counts.T)
        self.loss += np.add.reduce(loss, axis=1)  # a batch in its own precision, batches in float64
        self.correct += np.add.reduce(correct, axis=1)

    def backward(
        self, X: np.ndarray, by_intercept: np.ndarray, out: np.ndarray, scratch: np.ndarray
    ) -> None:
        """The gradient of the summed loss by the coefficients, of shape (m, k, d), into `out`.

        It is that of centred features if this `centers`.
        """
        size, out, scratch = len(X), *(array.reshape(-1, X.shape[1]) for array in (out, scratch))
        if self.centers:
            width = size + len(self._origins)
            residual = self._residual.reshape(*by_intercept.shape, -1)
            residual[:, :, size:width] = 0
            residual[np.arange(len(residual)), :, size + self._origin_of] = -by_intercept
            np.matmul(self._residual[:, :width], self._extended[:width], out=out)
            return
        for first in range(0, size, self._tile):
            rows = X[first : first + self._tile]
            residual = self._residual[:, first : first + len(rows)]
            np.matmul(residual, rows, out=scratch if first else out)
            if first:
                out += scratch


# Models whose weights are moved at once: they stay in the cache between one array and the next.
_TOGETHER = 20


class _Weights:
    """The weights and velocities of a stack, and the proximal heavy-ball step, in place.

    Intercepts are those of a row that equals the preconditioner's origin.
    """

    def __init__(self, problem: Any, state: Any, solver: Any):
        dtype = problem.data.dtype
        self.problem = problem
        self.coef, self.velocity = state.coef.copy(), state.coef_velocity.copy()
        self.intercept_velocity = state.intercept_velocity.copy()
        self.mean = None if problem.mean is None else np.ascontiguousarray(problem.mean[:, 0])
        self.intercept = state.intercept + self._at_mean()
        self.gradient, self.scratch = np.empty_like(self.coef), np.empty_like(self.coef)
        self._factors = _factors(problem.inverse_scale, len(self.coef), dtype)
        self._momentum = solver.momentum.astype(dtype)
        self._l1 = problem.l1.astype(dtype)[:, None, None] if problem.l1.any() else None
        self._rank_one = get_blas_funcs("ger", dtype=dtype)
        self._columns = [gradient.T for gradient in self.gradient]  # as BLAS wants them
        self._pieces = [slice(i, i + _TOGETHER) for i in range(0, len(self.coef), _TOGETHER)]

    def _at_mean(self) -> Any:
        """What the coefficients make of the means, of shape (m, k)."""
        return 0 if self.mean is None else np.matmul(self.coef, self.mean[:, :, None])[:, :, 0]

    def shifted_intercept(self) -> np.ndarray:
        """The intercepts of a row that equals the shift of the data."""
        return self.intercept - self._at_mean()

    def center(self, by_intercept: np.ndarray) -> None:
        """Make the gradient that of centred features."""
        if self.mean is not None:
            for mean, of_model, gradient in zip(
                self.mean, by_intercept, self._columns, strict=True
            ):
                self._rank_one(-1, mean, of_model, a=gradient, overwrite_a=1)

    def step(self, rate: np.ndarray, by_intercept: np.ndarray, size: int) -> None:
        """One step at rates of shape (m,), from gradients summed over a batch of that size."""
        mean_rate, l2 = rate / size, (size * self.problem.l2).astype(rate.dtype)
        for some in self._pieces:
            gradient, velocity, coef = self.gradient[some], self.velocity[some], self.coef[some]
            gradient += np.multiply(coef, _per_model(l2[some]), out=self.scratch[some])
            gradient *= _per_model(mean_rate[some]) * self._factors[0][some]
            for factor in self._factors[1:]:
                gradient *= factor[some]
            velocity *= _per_model(self._momentum[some])
            velocity -= gradient
            coef += velocity
        if self._l1 is not None:
            self.velocity -= self._shrink(rate)
        if self.problem.fit_intercept:
            self.intercept_velocity *= self._momentum[:, None]
            self.intercept_velocity -= mean_rate[:, None] * by_intercept
            self.intercept += self.intercept_velocity

    def _shrink(self, rate: np.ndarray) -> np.ndarray:
        """Apply the proximal operator of the L1 penalty; what it took off."""
        threshold = np.broadcast_to(rate[:, None, None] * self._l1, self.coef.shape).copy()
        for factor in self._factors:
            threshold *= factor
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
        self.coef = np.where(self.problem.l1[:, None, None] > 0, self.coef, before)


def _per_model(values: np.ndarray) -> Any:
    """Values of shape (m,) to multiply weights with: of a single one, less broadcasting."""
    return values if len(values) == 1 else values[:, None, None]


def _factors(inverse_scale: np.ndarray | None, m: int, dtype: Any) -> list[np.ndarray]:
    """What multiplies gradients: the square, or, where that is not normal, twice the scale."""
    if inverse_scale is None:
        return [np.ones((m, 1, 1), dtype)]
    with np.errstate(over="ignore"):
        square = inverse_scale * inverse_scale
    limits = np.finfo(dtype)
    normal = (square >= limits.tiny) & (square <= limits.max)
    all_normal = (normal | (inverse_scale == 0)).all()
    return [square] if all_normal else [inverse_scale, inverse_scale]


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
        residual = products.residual(products.forward(X, weights.coef, intercept), index)
        by_intercept = np.add.reduce(residual, axis=2)
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
        coef=weights.coef,
        intercept=weights.shifted_intercept(),
        coef_velocity=weights.velocity,
        intercept_velocity=weights.intercept_velocity,
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
    out, scratch = np.empty((2, *coef.shape), coef.dtype)
    by_coef: Any = np.zeros(coef.shape) if gradient else None
    by_intercept: Any = np.zeros(intercept.shape) if gradient else None
    for first in range(0, len(order), size):
        index = order[first : first + size]
        X = data.rows(index)
        residual = products.residual(products.forward(X, coef, intercept), index)
        if gradient:
            of_piece = np.add.reduce(residual, axis=2)
            products.backward(X, of_piece, out, scratch)
            by_coef += out
            by_intercept += of_piece
    return products.loss, products.correct, by_coef, by_intercept

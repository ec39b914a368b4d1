"""NumPy arrays and SciPy sparse matrices, on the CPU."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import array_api_compat
import array_api_compat.numpy as xp
import numpy as np
from scipy import sparse
from sklearn.utils._array_api import _convert_to_numpy
from sklearn.utils.parallel import _get_threadpool_controller

from skmax.backends.array_api import Backend, Rows


class DenseRows(Rows):
    """Rows of an array, gathered and converted in two buffers that every call reuses."""

    def __init__(self, backend: Backend, X: Any, dtype: Any, shift: np.ndarray | None = None):
        super().__init__(backend, X, dtype, shift)
        # Of any other layout, np.take would first copy the whole array.
        self._takeable = X.flags.c_contiguous and X.flags.aligned and X.dtype.isnative
        self._gathered = np.empty((0, self.n_features), X.dtype)
        self._floats = np.empty((0, self.n_features), dtype)

    def _gather(self, order: np.ndarray) -> np.ndarray:
        if not self._takeable:
            return self.X[order]
        if len(self._gathered) < len(order):
            self._gathered = np.empty((len(order), self.n_features), self.X.dtype)
        # mode="clip" writes straight into the buffer; "raise" would go through another one.
        out = self._gathered[: len(order)]
        return np.take(self.X, order, axis=0, out=out, mode="clip")

    def _as_floats(self, chosen: np.ndarray) -> np.ndarray:
        if self.shift is None and chosen.dtype == self.dtype:
            return chosen
        if len(self._floats) < len(chosen):
            self._floats = np.empty((len(chosen), self.n_features), self.dtype)
        out = self._floats[: len(chosen)]
        if self.shift is None:
            np.copyto(out, chosen, casting="same_kind")
        else:
            # With int64, NumPy takes uint64 as floats; modulo 2^64 the difference is exact.
            if chosen.dtype == np.uint64 and self.shift.dtype == np.int64:
                chosen = chosen.view(np.int64)
            np.subtract(chosen, self._subtrahend, out=out, casting="same_kind")
        return out


class SparseRows(Rows):
    """Rows of a CSR matrix: sparse, unless what was learned from dense rows shifts them."""

    def rows(self, order: Any) -> sparse.csr_array | np.ndarray:
        """Rows of X, less the shift."""
        chosen = self.X[order]
        if self.shift is not None:
            return self._as_floats(chosen.toarray())
        return chosen.astype(self.dtype, copy=False)

    def origin(self, order: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Zero: subtracting anything else would fill the matrix."""
        return np.zeros(self.n_features)

    def _rows_per_chunk(self, width: int) -> int:
        if self.shift is not None:
            return super()._rows_per_chunk(width)
        values = max(width, self.X.nnz // self.n_samples, 1)
        return max(16, self.backend.chunk_bytes // (8 * values))


class _OneBlasThread:
    """Limits BLAS to one thread while anyone is inside, also from several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit = _get_threadpool_controller().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limit.restore_original_limits()


_one_blas_thread = _OneBlasThread()


class NumpyBackend(Backend):
    """NumPy on the CPU."""

    def __init__(self) -> None:
        super().__init__(xp)

    def asarray(self, array: Any, dtype: Any = None) -> np.ndarray:
        """A host array as it is, converted where its dtype differs."""
        return np.asarray(array, dtype=dtype)

    def fast_sgd_epoch(self, problem: Any) -> Callable[..., Any] | None:
        """The epoch of this module, for one model with labels and without L1 on dense rows."""
        simple = problem.n_models == 1 and problem.targets.ndim == 1 and problem.smoothing is None
        dense = isinstance(problem.data, DenseRows)
        return dense_sgd_epoch if simple and dense and not problem.l1.any() else None

    def small_products(self) -> AbstractContextManager[Any]:
        """One BLAS thread: more gain little, and lose a lot where another process is busy."""
        return _one_blas_thread

    def rows_of(self, X: Any, dtype: type[np.floating], *, shuffled: bool = False) -> Rows:
        """The rows of X as floats; X is moved to the host if it lives elsewhere.

        What is in memory and will be read in random order is laid out row by row, in its own dtype.
        """
        if sparse.issparse(X):
            return SparseRows(self, sparse.csr_array(X), np.dtype(dtype))
        if not isinstance(X, np.ndarray):
            X = _convert_to_numpy(X, array_api_compat.array_namespace(X))
        if shuffled and not _is_memory_mapped(X):
            X = np.ascontiguousarray(X)
        return DenseRows(self, X, np.dtype(dtype))


def _is_memory_mapped(X: Any) -> bool:
    """Whether an array is a view of a file."""
    while X is not None and not isinstance(X, mmap.mmap):
        X = getattr(X, "base", None)
    return X is not None


# Rows per matrix product: the small-matrix kernels of OpenBLAS reach the peak up to about here.
_TILE = 100


def dense_sgd_epoch(
    problem: Any, state: Any, solver: Any, order: np.ndarray, rates: np.ndarray
) -> tuple[Any, Any]:
    """The steps of `skmax.solvers.sgd.sgd_epoch`, taken in buffers, in tiles that stay in cache.

    Logits are stored with a row per class, so that the softmax runs along memory.
    """
    data, dtype = problem.data, problem.data.dtype
    coef, velocity = state.coef[0].copy(), state.coef_velocity[0].copy()
    mean = np.zeros((1, data.n_features), dtype) if problem.mean is None else problem.mean[0]
    inverse_scale = 1 if problem.inverse_scale is None else problem.inverse_scale[0]
    at_mean = state.intercept[0] + coef @ mean[0]
    at_mean_velocity = state.intercept_velocity[0].copy()
    momentum, l2 = dtype.type(solver.momentum[0]), dtype.type(problem.l2[0])
    gradient, scratch = np.empty_like(coef), np.empty_like(coef)
    softmax = _Softmax(problem, solver.batch_size)
    for step, rate in enumerate(rates[:, 0].astype(dtype)):
        index = order[step * solver.batch_size : (step + 1) * solver.batch_size]
        X = data.rows(index)
        tiles = [slice(first, first + _TILE) for first in range(0, len(index), _TILE)]
        residual = softmax(X, tiles, index, coef, at_mean - coef @ mean[0])
        for tile in tiles:
            out = gradient if tile.start == 0 else scratch
            np.matmul(residual[:, tile], X[tile], out=out)
            if tile.start:
                gradient += scratch
        by_intercept = residual.sum(axis=1)
        gradient -= np.multiply(by_intercept[:, None], mean, out=scratch)
        gradient /= len(index)
        gradient += np.multiply(coef, l2, out=scratch)
        gradient *= inverse_scale
        gradient *= rate * inverse_scale
        velocity *= momentum
        velocity -= gradient
        coef += velocity
        if problem.fit_intercept:
            at_mean_velocity *= momentum
            at_mean_velocity -= rate * by_intercept / len(index)
            at_mean += at_mean_velocity
    after = replace(
        state,
        coef=coef[None],
        intercept=(at_mean - coef @ mean[0])[None],
        coef_velocity=velocity[None],
        intercept_velocity=at_mean_velocity[None],
    )
    return after, (softmax.loss, softmax.correct)


class _Softmax:
    """Forward pass of a batch: its residuals, in a buffer, while loss and accuracy add up."""

    def __init__(self, problem: Any, batch_size: int):
        self.targets = problem.targets
        self.weight = problem.sample_weight
        self.score_weight = self.weight if problem.score_weight is None else problem.score_weight
        self.loss = self.correct = np.zeros(1)
        self._logits = np.empty((problem.n_classes, batch_size), problem.data.dtype)
        self._residual = np.empty_like(self._logits)
        self._columns = np.arange(batch_size)

    def __call__(
        self,
        X: np.ndarray,
        tiles: list[slice],
        index: np.ndarray,
        coef: np.ndarray,
        intercept: np.ndarray,
    ) -> np.ndarray:
        """Residuals of shape (k, b)."""
        logits, residual = self._logits[:, : len(X)], self._residual[:, : len(X)]
        label, column = self.targets[index], self._columns[: len(X)]
        for tile in tiles:
            np.matmul(coef, X[tile].T, out=logits[:, tile])
        logits += intercept[:, None]
        correct = logits.argmax(axis=0) == label
        logits -= logits.max(axis=0)
        total = np.exp(logits, out=residual).sum(axis=0)
        loss = np.log(total) - logits[label, column]
        residual /= total
        residual[label, column] -= 1
        if self.weight is not None:
            weight = self.weight[index, 0]
            residual *= weight
            loss *= weight
            correct = correct * self.score_weight[index, 0]
        self.loss = self.loss + loss.sum(dtype=np.float64)
        self.correct = self.correct + correct.sum(dtype=np.float64)
        return residual

"""NumPy arrays and SciPy sparse matrices, on the CPU."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import cycle
from typing import Any

import array_api_compat
import array_api_compat.numpy as xp
import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from skmax._sklearn import _convert_to_numpy, _get_threadpool_controller
from skmax.backends.array_api import Backend, Rows, SparseRows
from skmax.backends.numpy_dense import (
    WORTH_A_THREAD,
    dense_pass,
    dense_sgd_epoch,
    n_threads,
    small_rows,
)

# Rows of a matrix from which factoring it pays for being called by itself.
_WORTH_CHOLESKY = 64
# How many products of the best size are worth a call.
_TILES = 16
# Bytes that are read ahead at a time: what fits the caches that cores share, yet takes so long that
# threads seldom wait for each other. And the least number of times that make it pay.
_AHEAD, _WORTH_READING_AHEAD = 1 << 23, 4


class DenseRows(Rows):
    """Rows of an array, gathered and converted in two buffers that every call reuses."""

    def __init__(self, backend: Backend, X: Any, dtype: Any, shift: np.ndarray | None = None):
        super().__init__(backend, X, dtype, shift)
        # Of any other layout, np.take would first copy the whole array.
        self._takeable = X.flags.c_contiguous and X.flags.aligned and X.dtype.isnative
        self._gathered = np.empty((0, self.n_features), X.dtype)
        self._floats = np.empty((0, self.n_features), dtype)

    def _gather(self, order: np.ndarray) -> np.ndarray:
        first, last = int(order[0]), int(order[-1])
        if last - first == len(order) - 1 and (np.diff(order) == 1).all():
            return self.X[first : last + 1]  # neighbours are used where they are
        if not self._takeable:
            return self.X[order]
        if len(self._gathered) < len(order):
            self._gathered = np.empty((len(order), self.n_features), self.X.dtype)
        # mode="clip" writes straight into the buffer; "raise" would go through another one.
        out = self._gathered[: len(order)]
        return np.take(self.X, order, axis=0, out=out, mode="clip")

    def tile(self, n_rows: int, *, width: int) -> int:
        """The most rows that OpenBLAS's kernels for small matrices take, if that divides them."""
        small = small_rows(width * self.n_features)
        return small if small and n_rows % small == 0 else n_rows

    def _rows_per_chunk(self, width: int) -> int:
        small, most = small_rows(width * self.n_features), super()._rows_per_chunk(width)
        return min(_TILES, _TILES * most // small) * small if 0 < small < most else most

    def batches(self, order: np.ndarray, size: int) -> Iterator[tuple[Any, np.ndarray]]:
        """As of any rows; where there is a second thread, it gathers what comes next."""
        row_bytes = max(1, self.n_features) * self.X.itemsize
        n_batches = max(1, _AHEAD // (size * row_bytes))
        pieces = [order[i : i + n_batches * size] for i in range(0, len(order), n_batches * size)]
        if n_threads() < 2 or len(pieces) < _WORTH_READING_AHEAD:
            yield from super().batches(order, size)
            return
        readers = cycle(self.with_(shift=self.shift) for _ in range(2))  # each has its own buffers
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(next(readers)._gather, pieces[0])
            for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
                gathered = coming.result()
                if following is not None:
                    coming = pool.submit(next(readers)._gather, following)
                for first in range(0, len(piece), size):
                    batch = slice(first, first + size)
                    yield piece[batch], self._as_floats(gathered[batch])

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
            np.subtract(chosen, self.subtrahend, out=out, casting="same_kind")
        return out


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

    def fast_sgd_epoch(self, problem: Any, batch_size: int) -> Callable[..., Any] | None:  # noqa: ARG002
        """The epoch that works in place, for dense rows."""
        return dense_sgd_epoch if isinstance(problem.data, DenseRows) else None

    def fast_pass(self, problem: Any) -> Callable[..., Any] | None:
        """The pass that works in place, for dense rows."""
        return dense_pass if isinstance(problem.data, DenseRows) else None

    def each(self, function: Callable[[Any], Any], items: Sequence[Any], cost: float) -> list[Any]:
        """The results of a function that spends `cost` multiply-adds on all items together."""
        if cost < WORTH_A_THREAD:
            return super().each(function, items, cost)
        with _one_blas_thread, ThreadPoolExecutor(n_threads()) as pool:
            return list(pool.map(function, items))

    def inverses(self, matrices: np.ndarray) -> np.ndarray:
        """The inverses of symmetric positive definite matrices, of shape (..., d, d)."""
        if matrices.shape[-1] < _WORTH_CHOLESKY:
            return np.linalg.inv(matrices)
        flat = matrices.reshape(-1, *matrices.shape[-2:])
        return np.stack(
            self.each(_inverse, list(flat), matrices.size * matrices.shape[-1])
        ).reshape(matrices.shape)

    def computing(self) -> AbstractContextManager[Any]:
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


def _inverse(matrix: np.ndarray) -> np.ndarray:
    factor, _ = lapack.dpotrf(matrix.T)
    inverse, _ = lapack.dpotri(factor, overwrite_c=1)
    upper = np.triu(inverse)
    upper += np.triu(upper, 1).T
    return upper


def _is_memory_mapped(X: Any) -> bool:
    """Whether an array is a view of a file."""
    while X is not None and not isinstance(X, mmap.mmap):
        X = getattr(X, "base", None)
    return X is not None

"""NumPy on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from scipy.linalg import lapack

from skmax.backends.array_api import Backend
from skmax.backends.threads import WORTH_A_THREAD, OneBlasThread, n_threads

# What is first added to the diagonal of a matrix that is not positive, as a share of it.
_RIDGE = 1e-6
# Rows of a matrix from which factoring it pays for being called by itself.
_WORTH_CHOLESKY = 64
# Multiply-adds in a product up to which OpenBLAS has kernels that need no packing, twice as fast;
# and the fewest rows of X that make several such products better than a single one.
_SMALL, _FEWEST = 900_000, 16


def small_rows(n_weights: int) -> int:
    """The most rows of X that a product with so many weights is best fed with; 0: any number."""
    rows = _SMALL // max(1, n_weights)
    return rows if rows >= _FEWEST else 0


class NumpyBackend(Backend):
    """NumPy on the CPU."""

    def __init__(self) -> None:
        super().__init__(xp)

    def asarray(self, array: Any, dtype: Any = None) -> np.ndarray:
        """A host array as it is, converted where its dtype differs."""
        return np.asarray(array, dtype=dtype)

    def each(self, function: Callable[[Any], Any], items: Sequence[Any], cost: float) -> list[Any]:
        """The results of a function that spends `cost` multiply-adds on all items together."""
        if cost < WORTH_A_THREAD or len(items) < 2:
            return super().each(function, items, cost)
        with OneBlasThread(), ThreadPoolExecutor(n_threads()) as pool:
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
        return OneBlasThread()


def _inverse(matrix: np.ndarray) -> np.ndarray:
    factor, info = lapack.dpotrf(matrix.T)
    ridge = _RIDGE * np.trace(matrix) / len(matrix)
    while info and np.isfinite(ridge):  # indefinite by its rounding errors
        factor, info = lapack.dpotrf(matrix.T + ridge * np.eye(len(matrix)))
        ridge *= 10
    inverse, _ = lapack.dpotri(factor, overwrite_c=1)
    upper = np.triu(inverse)
    upper += np.triu(upper, 1).T
    return upper

"""NumPy on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from scipy.linalg import get_lapack_funcs

from skmax.backends.array_api import Array, Backend
from skmax.backends.threads import (
    WORTH_A_THREAD,
    OneBlasThread,
    n_threads,
    one_blas_thread,
    shared,
)

# What is first added to the diagonal of a matrix that is not positive, as a share of it.
_RIDGE = 1e-6
# Rows of a matrix from which a factor, called by itself for each, beats the inverse.
_WORTH_A_FACTOR = 128
# Multiply-adds in a product up to which OpenBLAS has kernels that need no packing, twice as fast;
# and the fewest rows of X that make several such products better than a single one: with 50 x 384
# weights, 46 at a time took 10 % longer than all; with 100 x 384, 23 at a time a fifth.
_SMALL, _FEWEST = 900_000, 64


def small_rows(n_weights: int) -> int:
    """The most rows of X that a product with so many weights is best fed with; 0: any number."""
    rows = _SMALL // max(1, n_weights)
    return rows if rows >= _FEWEST else 0


class NumpyBackend(Backend):
    """NumPy on the CPU."""

    is_wide = False

    def __init__(self) -> None:
        super().__init__(xp)

    def dtype(self, dtype: type[np.floating]) -> Any:
        """The dtype itself: NumPy has them all."""
        return dtype

    def to_numpy(self, array: Array) -> np.ndarray:
        """The array itself."""
        return np.asarray(array)

    def asarray(self, array: Any, dtype: Any = None) -> np.ndarray:
        """A host array as it is, converted where its dtype differs."""
        return np.asarray(array, dtype=dtype)

    def each(self, function: Callable[[Any], Any], items: Sequence[Any], cost: float) -> list[Any]:
        """The results of a function that spends `cost` multiply-adds on all items together."""
        if cost < WORTH_A_THREAD or len(items) < 2 or n_threads() < 2:
            return super().each(function, items, cost)
        with OneBlasThread():
            return shared(function, items)

    def factored(self, matrices: np.ndarray) -> np.ndarray:
        """See `Backend.factored`: Cholesky factors, or of few rows the inverses."""
        p = matrices.shape[-1]
        if p < _WORTH_A_FACTOR:
            return np.linalg.inv(matrices.astype(np.float64, copy=False))
        flat = matrices.reshape(-1, p, p)
        factors = self.each(_cholesky, list(flat), len(flat) * p**3 / 6)
        return np.stack(factors).reshape(matrices.shape)

    def solved(self, factors: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """See `Backend.solved`."""
        if factors.shape[-1] < _WORTH_A_FACTOR:
            return factors @ columns
        solve = get_lapack_funcs("potrs", dtype=factors.dtype)
        result = np.empty(columns.shape, factors.dtype)
        for place in np.ndindex(factors.shape[:-2]):
            result[place] = solve(factors[place].T, columns[place])[0]
        return result

    def computing(self) -> AbstractContextManager[Any]:
        """One BLAS thread: more gain little, and lose a lot where another process is busy."""
        return one_blas_thread()


def _cholesky(matrix: np.ndarray) -> np.ndarray:
    """The factor, transposed; with more on the diagonal, if rounding errors made it indefinite."""
    factorise = get_lapack_funcs("potrf", dtype=matrix.dtype)
    factor, info = factorise(matrix.T)
    ridge = _RIDGE * np.trace(matrix) / len(matrix)
    while info and np.isfinite(ridge):
        factor, info = factorise(matrix.T + ridge * np.eye(len(matrix), dtype=matrix.dtype))
        ridge *= 10
    return factor.T

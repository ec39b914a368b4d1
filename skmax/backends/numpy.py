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
        """See `Backend.factored`: Cholesky factors, zero above the diagonal."""
        p = matrices.shape[-1]
        flat = matrices.reshape(-1, p, p)
        cost = len(flat) * p**3 / 6
        parts = np.array_split(flat, max(1, min(len(flat), int(cost / WORTH_A_THREAD))))
        return np.concatenate(self.each(_cholesky, parts, cost)).reshape(matrices.shape)

    def solved(self, factors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `Backend.solved`."""
        solve = get_lapack_funcs("potrs", dtype=factors.dtype)
        solutions = np.empty(rows.shape, factors.dtype)
        for place in np.ndindex(factors.shape[:-2]):
            solutions[place] = solve(factors[place].T, rows[place].T)[0].T
        return solutions

    def computing(self) -> AbstractContextManager[Any]:
        """One BLAS thread: more gain little, and lose a lot where another process is busy."""
        return one_blas_thread()


def _cholesky(matrices: np.ndarray) -> np.ndarray:
    """The factors (n, p, p); with more on the diagonal, if rounding errors made one indefinite."""
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        return np.stack([_ridged(matrix) for matrix in matrices])


def _ridged(matrix: np.ndarray) -> np.ndarray:
    ridge, added = _RIDGE * np.trace(matrix) / len(matrix), 0.0
    while np.isfinite(ridge):
        try:
            return np.linalg.cholesky(matrix + added * np.eye(len(matrix), dtype=matrix.dtype))
        except np.linalg.LinAlgError:
            ridge, added = 10 * ridge, ridge
    return np.full_like(matrix, np.nan)

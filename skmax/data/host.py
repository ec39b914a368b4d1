"""Rows of NumPy arrays, and of SciPy's sparse matrices."""

from __future__ import annotations

import mmap
from typing import Any

import array_api_compat
import numpy as np
from scipy import sparse

from skmax._sklearn import _convert_to_numpy
from skmax.backends import Backend
from skmax.data.rows import Rows, SparseRows


class HostRows(Rows):
    """Dense rows, converted in a buffer that every call reuses."""

    def __init__(self, backend: Backend, X: Any, dtype: Any, shift: np.ndarray | None = None):
        super().__init__(backend, X, dtype, shift)
        self._floats = np.empty((0, self.n_features), dtype)

    def _as_floats(self, gathered: np.ndarray) -> np.ndarray:
        if self.shift is None and gathered.dtype == self.dtype:
            return gathered
        if len(self._floats) < len(gathered):
            self._floats = np.empty((len(gathered), self.n_features), self.dtype)
        out = self._floats[: len(gathered)]
        if self.shift is None:
            np.copyto(out, gathered, casting="same_kind")
        else:
            # With int64, NumPy takes uint64 as floats; modulo 2^64 the difference is exact.
            if gathered.dtype == np.uint64 and self.shift.dtype == np.int64:
                gathered = gathered.view(np.int64)
            np.subtract(gathered, self.subtrahend, out=out, casting="same_kind")
        return out


class DenseRows(HostRows):
    """Rows of an array, gathered in a buffer that every call reuses."""

    def __init__(self, backend: Backend, X: Any, dtype: Any, shift: np.ndarray | None = None):
        super().__init__(backend, X, dtype, shift)
        # Of any other layout, np.take would first copy the whole array.
        self._takeable = X.flags.c_contiguous and X.flags.aligned and X.dtype.isnative
        self._gathered = np.empty((0, self.n_features), X.dtype)

    def _gather(self, index: np.ndarray) -> np.ndarray:
        if not self._takeable:
            return self.X[index]
        if len(self._gathered) < len(index):
            self._gathered = np.empty((len(index), self.n_features), self.X.dtype)
        # mode="clip" writes straight into the buffer; "raise" would go through another one.
        out = self._gathered[: len(index)]
        return np.take(self.X, index, axis=0, out=out, mode="clip")


class CSRRows(SparseRows):
    """Rows of a SciPy matrix, of which those that follow one another are not copied."""

    def _gather(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return self.X[index]
        first, last, _ = index.indices(self.n_samples)
        starts = self.X.indptr[first : last + 1]
        values = slice(starts[0], starts[-1])
        parts = self.X.data[values], self.X.indices[values], starts - starts[0]
        return view(sparse.csr_array, parts, (len(starts) - 1, self.n_features))


def view(kind: type, parts: tuple[np.ndarray, ...], shape: tuple[int, int]) -> Any:
    """A compressed sparse matrix of values, indices and starts, which its class might copy."""
    matrix = kind(shape, dtype=parts[0].dtype)
    matrix.data, matrix.indices, matrix.indptr = parts
    return matrix


def source(X: Any, backend: Backend, dtype: type[np.floating], shuffled: bool) -> Rows:
    """Rows of X, moved to the host if it lives elsewhere; see `skmax.data.source`.

    What is in memory and will be read in random order is laid out row by row, in its own dtype.
    """
    if sparse.issparse(X):
        return CSRRows(backend, sparse.csr_array(X), np.dtype(dtype))
    if not isinstance(X, np.ndarray):
        X = _convert_to_numpy(X, array_api_compat.array_namespace(X))
    if shuffled and memory_map_of(X) is None:
        X = np.ascontiguousarray(X)
    return DenseRows(backend, X, np.dtype(dtype))


def memory_map_of(X: Any) -> mmap.mmap | None:
    """The map of a file that an array is a view of, if it is one."""
    while X is not None and not isinstance(X, mmap.mmap):
        X = getattr(X, "base", None)
    return X

"""NumPy arrays and SciPy sparse matrices, on the CPU."""

from __future__ import annotations

from typing import Any

import array_api_compat
import array_api_compat.numpy as xp
import numpy as np
from scipy import sparse
from sklearn.utils._array_api import _convert_to_numpy

from skmax.backends.array_api import Backend, Rows, float_dtype_for


class DenseRows(Rows):
    """Rows of an array, gathered and converted in two buffers that every call reuses."""

    def __init__(self, backend: Backend, X: Any, dtype: Any, shift: np.ndarray | None = None):
        super().__init__(backend, X, dtype, shift)
        # Of any other layout, np.take would first copy the whole array.
        self._takeable = X.flags.c_contiguous and X.flags.aligned and X.dtype.isnative
        self._gathered = np.empty((0, self.n_features), X.dtype)
        self._floats = np.empty((0, self.n_features), dtype)

    def rows(self, order: Any) -> np.ndarray:
        """Rows of X, less the shift."""
        if isinstance(order, slice):
            return self._as_floats(self.X[order])
        if not self._takeable:
            return self._as_floats(self.X[order])
        if len(self._gathered) < len(order):
            self._gathered = np.empty((len(order), self.n_features), self.X.dtype)
        # mode="clip" writes straight into the buffer; "raise" would go through another one.
        out = self._gathered[: len(order)]
        return self._as_floats(np.take(self.X, order, axis=0, out=out, mode="clip"))

    def _as_floats(self, chosen: np.ndarray) -> np.ndarray:
        if self.shift is None and chosen.dtype == self.dtype:
            return chosen
        if len(self._floats) < len(chosen):
            self._floats = np.empty((len(chosen), self.n_features), self.dtype)
        out = self._floats[: len(chosen)]
        if self.shift is None:
            np.copyto(out, chosen, casting="same_kind")
        else:
            if chosen.dtype == np.uint64:  # with int64 it would turn to float64; modulo 2^64 is exact
                chosen = chosen.view(np.int64)
            np.subtract(chosen, self.shift, out=out, casting="same_kind")
        return out


class SparseRows(Rows):
    """Rows of a CSR matrix, which stay sparse; they cannot be shifted."""

    def rows(self, order: Any) -> sparse.csr_array:
        """Rows of X."""
        return self.X[order].astype(self.dtype, copy=False)

    def origin(self, order: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Zero: subtracting anything else would fill the matrix."""
        return np.zeros(self.n_features)

    def _rows_per_chunk(self) -> int:
        return max(16, (1 << 16) * self.n_samples // max(1, self.X.nnz))


class NumpyBackend(Backend):
    """NumPy on the CPU."""

    def __init__(self) -> None:
        super().__init__(xp)

    def asarray(self, array: Any, dtype: Any = None) -> np.ndarray:
        """A host array as it is, converted where its dtype differs."""
        return np.asarray(array, dtype=dtype)

    def rows_of(self, X: Any, dtype: type[np.floating]) -> Rows:
        """The rows of X as floats; X is moved to the host if it lives elsewhere."""
        if sparse.issparse(X):
            return SparseRows(self, sparse.csr_array(X), np.dtype(dtype))
        if not isinstance(X, np.ndarray):
            X = _convert_to_numpy(X, array_api_compat.array_namespace(X))
        return DenseRows(self, X, np.dtype(dtype))

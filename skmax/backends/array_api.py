"""The reference backend: any array API namespace, on any of its devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat
import numpy as np
from scipy import sparse
from sklearn.utils import gen_batches

from skmax._sklearn import _convert_to_numpy, _max_precision_float_dtype

Array = Any  # an array of the backend's namespace

# Means of up to so many mean deviations cost no digits that matter.
_NEAR = 4.0
_NARROW = {"float16", "bfloat16", "float32", "bool", "int8", "uint8", "int16", "uint16"}


def dtype_name(X: Any) -> str:
    """The name of an array's dtype, without the library's name before it."""
    # NumPy's own name knows nothing of byte order.
    return getattr(X.dtype, "name", None) or str(X.dtype).rpartition(".")[2]


def float_dtype_for(X: Any) -> type[np.floating]:
    """The precision in which data like X trains.

    float32 and float64 keep their own; float16, bfloat16, booleans and integers of up to 16 bits
    fit float32 exactly; anything wider trains in float64.
    """
    return np.float32 if dtype_name(X) in _NARROW else np.float64


def rounding_unit(dtype: Any) -> float:
    """The distance from 1 to the next number of a floating dtype of any namespace."""
    return float(np.finfo(np.float32 if "32" in str(dtype) else np.float64).eps)


class Rows:
    """The rows of one data matrix, as floats, wherever and however the matrix is stored.

    The one place where rows are gathered, converted and shifted. The matrix itself is never
    converted: only the rows asked for are.

    Parameters
    ----------
    backend : Backend
        Where the rows are wanted.
    X : array of shape (n_samples, n_features)
        The data, already where `backend` computes, in its own dtype.
    dtype : dtype of the backend's namespace
        The floating dtype of the rows.
    shift : ndarray of shape (n_features,) or None
        A result of `origin`: subtracted from every row before precision is lost.

    Attributes
    ----------
    subtrahend : array of shape (n_features,) or None
        The shift, where the backend computes.
    """

    def __init__(self, backend: Backend, X: Any, dtype: Any, shift: np.ndarray | None = None):
        self.backend = backend
        self.X = X
        self.dtype = dtype
        self.shift = shift
        self.n_samples, self.n_features = (int(size) for size in X.shape)
        # As floats, neighbouring wide integers (time stamps) become one number.
        self._wide_integers = dtype_name(X).lstrip("u") in ("int32", "int64")
        whole = self._wide_integers and shift is not None and shift.dtype.kind == "i"
        self._exact = backend.xp.int64 if whole else backend.dtype(float_dtype_for(X))
        self.subtrahend: Any = None if shift is None else backend.asarray(shift, self._exact)

    def with_(self, *, shift: np.ndarray | None, dtype: Any = None) -> Rows:
        """The same rows with another shift, and of another dtype if that is given."""
        return type(self)(self.backend, self.X, self.dtype if dtype is None else dtype, shift)

    @property
    def values_per_row(self) -> float:
        """How many values a row has in memory."""
        return self.n_features

    @staticmethod
    def dense(rows: Array) -> Array:
        """What `rows` gave, as an array."""
        return rows

    @staticmethod
    def squared(rows: Array) -> Array:
        """The squares of what `rows` gave."""
        return rows * rows

    def origin(self, order: np.ndarray) -> np.ndarray:
        """A vector amid the rows `order`, which can be subtracted from them without error.

        The mean of a few of them, rounded to what X can hold; or zero, which costs nothing to
        subtract, where that is within a few times their deviation.
        """
        backend, xp = self.backend, self.backend.xp
        few = backend.asarray(order[:: max(1, len(order) // 64)][:64])
        sample = self._gather(few)
        values = backend.to_numpy(xp.astype(sample, backend.dtype(np.float64)))
        center = values.mean(axis=0)
        if (np.abs(center) <= _NEAR * np.abs(values - center).mean(axis=0)).all():
            return np.zeros(self.n_features)
        if not self._wide_integers:
            return center.astype(float_dtype_for(self.X))
        if dtype_name(self.X).endswith("64") and not self._differences_fit():
            return np.zeros(self.n_features, np.int64)
        return np.rint(center).astype(np.int64)

    def _differences_fit(self) -> bool:
        """Whether any two values differ by what int64 can hold."""
        xp = array_api_compat.array_namespace(self.X)
        return int(xp.min(self.X)) > -(2**62) and int(xp.max(self.X)) < 2**62

    def rows(self, order: Any) -> Array:
        """Rows of X, of shape (len(order), n_features), less the shift.

        `order` is a slice or an array of indices, where the backend computes. The result may be a
        buffer that the next call overwrites.
        """
        if isinstance(order, slice):
            return self._as_floats(self.X[order, :])
        return self._as_floats(self._gather(order))

    def _gather(self, order: Array) -> Array:
        """Rows of X as they are."""
        return self.backend.xp.take(self.X, order, axis=0)

    def _as_floats(self, chosen: Array) -> Array:
        xp = self.backend.xp
        if self.subtrahend is None:
            return xp.astype(chosen, self.dtype, copy=False)
        chosen = xp.astype(chosen, self._exact, copy=False) - self.subtrahend
        return xp.astype(chosen, self.dtype, copy=False)

    def batches(self, order: np.ndarray, size: int) -> Iterator[tuple[Any, Array]]:
        """The rows at the host indices `order` as (indices, rows), `size` of them at a time."""
        rows = self.backend.asarray(order)
        for first in range(0, len(order), size):
            index = rows[first : min(first + size, len(order))]
            yield index, self.rows(index)

    def tile(self, n_rows: int, *, width: int) -> int:  # noqa: ARG002
        """How many of so many rows a product that makes `width` values of each should take."""
        return n_rows

    def _rows_per_chunk(self, width: int) -> int:
        return max(16, self.backend.chunk_bytes // (8 * max(1, self.n_features, width)))

    def chunks(self, order: np.ndarray | None = None, *, width: int) -> Iterator[tuple[Any, Array]]:
        """The rows at the host indices `order` (None: all) as (indices, rows), a piece at a time.

        The indices are a slice where `order` is None, else an array where the backend computes.
        `width` is the number of values per row that the caller will make of them.
        """
        length = self.n_samples if order is None else len(order)
        rows = None if order is None else self.backend.asarray(order)
        for piece in gen_batches(length, self._rows_per_chunk(width)):
            index = piece if rows is None else rows[piece]
            yield index, self.rows(index)


class SparseRows(Rows):
    """Rows of a CSR matrix: sparse, unless what was learned from dense rows shifts them."""

    def rows(self, order: Any) -> Any:
        """Rows of X, less the shift."""
        chosen = self.X[order]
        if self.shift is not None:
            return self._as_floats(chosen.toarray())
        return chosen if chosen.dtype == self.dtype else chosen.astype(self.dtype)

    @staticmethod
    def dense(rows: Any) -> Any:
        """What `rows` gave, as an array."""
        return rows.toarray() if hasattr(rows, "toarray") else rows

    @staticmethod
    def squared(rows: Any) -> Any:
        """The squares of what `rows` gave."""
        return rows.multiply(rows) if hasattr(rows, "multiply") else rows * rows

    @property
    def values_per_row(self) -> float:
        """How many values a row has in memory, on average."""
        return self.X.nnz / self.n_samples

    def origin(self, order: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Zero: subtracting anything else would fill the matrix."""
        return np.zeros(self.n_features)

    def _rows_per_chunk(self, width: int) -> int:
        if self.shift is not None:
            return super()._rows_per_chunk(width)
        values = max(width, self.values_per_row, 1)
        return max(16, int(self.backend.chunk_bytes / (8 * values)))


class Backend:
    """An array API namespace and a device: where arrays live and are computed with.

    Parameters
    ----------
    xp : module
        An array API namespace, as array-api-compat returns it.
    device : object or None
        A device of `xp`; None is its default.
    """

    # Bytes of rows, or of what is made of them, held at once where all rows are read in order:
    # small enough for a second-level cache, large enough for a matrix product at full speed.
    chunk_bytes = 1 << 20

    def __init__(self, xp: Any, device: Any = None):
        self.xp = xp
        self.device = device

    def dtype(self, dtype: type[np.floating]) -> Any:
        """This namespace's name of a NumPy floating dtype (of its widest, if it lacks float64)."""
        if dtype == np.float32:
            return self.xp.float32
        return _max_precision_float_dtype(self.xp, self.device)

    def asarray(self, array: Any, dtype: Any = None) -> Array:
        """A host array, moved here."""
        return self.xp.asarray(array, dtype=dtype, device=self.device)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of zeros, here."""
        return self.xp.zeros(shape, dtype=dtype, device=self.device)

    def to_numpy(self, array: Array) -> np.ndarray:
        """An array of this backend, moved to the host."""
        return _convert_to_numpy(array, self.xp)

    def fast_sgd_epoch(self, problem: Any, batch_size: int) -> Callable[..., Any] | None:  # noqa: ARG002
        """What does the work of `skmax.solvers.sgd.sgd_epoch` on this problem faster, or None."""
        return None

    def fast_pass(self, problem: Any) -> Callable[..., Any] | None:  # noqa: ARG002
        """What does the work of `skmax.objective.full_pass` on this problem faster, or None."""
        return None

    def each(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        cost: float,  # noqa: ARG002
    ) -> list[Any]:
        """The results of a function that spends `cost` multiply-adds on all items together."""
        return [function(item) for item in items]

    def inverses(self, matrices: Array) -> Array:
        """The inverses of symmetric positive definite matrices, of shape (..., d, d)."""
        return self.xp.linalg.inv(matrices)

    def computing(self) -> AbstractContextManager[Any]:
        """What to enter around heavy work: its device, and the threads that are best for it."""
        return nullcontext()

    def rows_of(self, X: Any, dtype: type[np.floating], *, shuffled: bool = False) -> Rows:  # noqa: ARG002
        """The rows of X as floats; X is moved here, in its own dtype, if it lives elsewhere.

        `shuffled` says that rows will be asked for many times, in random order.
        """
        if sparse.issparse(X):
            raise TypeError(
                "X is a sparse matrix, and only the NumPy and CuPy backends compute with those: "
                "pass backend='numpy', or X.toarray()."
            )
        if isinstance(X, np.ndarray):
            X = self.asarray(X)
        return Rows(self, X, self.dtype(dtype))

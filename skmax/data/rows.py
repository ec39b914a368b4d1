"""The reference source: rows of an array of any namespace, and of sparse matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import array_api_compat
import numpy as np
from scipy import sparse

from skmax.backends import Array, Backend, float_dtype_for
from skmax.backends.array_api import dtype_name

# Rows that `origin` looks at, and how many mean deviations from zero cost no digits that matter.
_SAMPLE, _NEAR = 64, 4.0
# Sums of the size of all weights cost as much to add up as so many times as many values of a sparse
# matrix cost to multiply; and the most bytes of what is made of such a piece.
_VALUES_PER_FEATURE, _MOST_BYTES = 4, 1 << 28


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
    is_sparse : bool
        Whether X is a sparse matrix.
    is_on_disk : bool
        Whether X is on disk, and larger than memory may be.
    """

    is_sparse = is_on_disk = False

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

    def shifted(self, shift: np.ndarray | None) -> Rows:
        """The same rows with that shift: themselves, if neither has any."""
        return self if shift is self.shift is None else self.with_(shift=shift)

    @property
    def values_per_row(self) -> float:
        """How many values a row has in memory."""
        return self.n_features

    def rows(self, index: Any) -> Array:
        """Rows of X, of shape (len(index), n_features), less the shift.

        `index` is a slice or an array of indices, where the backend computes. The result may be a
        buffer that the next call overwrites.
        """
        return self._as_floats(
            self.X[index, :] if isinstance(index, slice) else self._gather(index)
        )

    def _gather(self, index: Array) -> Array:
        """Rows of X as they are."""
        return self.backend.xp.take(self.X, index, axis=0)

    def _as_floats(self, gathered: Array) -> Array:
        xp = self.backend.xp
        if self.subtrahend is None:
            return xp.astype(gathered, self.dtype, copy=False)
        gathered = xp.astype(gathered, self._exact, copy=False) - self.subtrahend
        return xp.astype(gathered, self.dtype, copy=False)

    def pieces(self, order: np.ndarray, size: int) -> Iterator[tuple[Any, Array]]:
        """The rows at the host indices `order` as (index, rows), `size` of them at a time.

        The index is what `rows` takes: a slice where rows follow one another.
        """
        for index in self.indices(order, size, start_of_range(order)):
            yield index, self.rows(index)

    def indices(self, order: np.ndarray, size: int, start: int | None) -> Iterator[Any]:
        """The indices of these pieces alone; `start` is the `start_of_range` of the order."""
        rows: Any = self.backend.asarray(order) if start is None else None
        for first in range(0, len(order), size):
            last = min(first + size, len(order))
            yield rows[first:last] if start is None else slice(start + first, start + last)

    def reduce(
        self,
        order: np.ndarray,
        function: Callable[[Any, Array], tuple[Array, ...]],
        *,
        width: int,
        size: int | None = None,
    ) -> tuple[Array, ...]:
        """Sums over rows, a piece at a time, in float64.

        Parameters
        ----------
        order : ndarray of shape (n,), host
            Indices of the rows.
        function : callable
            Maps an index and its rows, as `pieces` gives them, to arrays: the sums of the piece.
        width : int
            How many values it makes of a row.
        size : int or None
            How many rows a piece has; None: as many as suit their width.
        """
        xp, float64 = self.backend.xp, self.backend.dtype(np.float64)
        totals: list[Array] = []
        for index, X in self.pieces(order, size or self.rows_per_piece(width)):
            sums = function(index, X)
            if not totals:
                totals = [xp.astype(part, float64) for part in sums]  # copies
                continue
            for i, part in enumerate(sums):
                totals[i] += part  # in place, where the namespace can
        return tuple(totals)

    def rows_per_piece(self, width: int) -> int:
        """How many rows to take at once if `width` values are made of each."""
        return max(16, self.backend.chunk_bytes // (8 * max(1, self.n_features, width)))

    @property
    def seen(self) -> np.ndarray:
        """Of which features there are values in memory, (n_features,), on the host."""
        return np.ones(self.n_features, dtype=bool)

    def epoch(self, order: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """The rows `order` as an epoch visits them: shuffled, or without an `rng` as they are."""
        return order if rng is None else rng.permutation(order)

    def batches(self, order: np.ndarray, batch_size: int) -> Iterator[tuple[Any, Array]]:
        """The minibatches of an epoch, as `pieces` has them; the last one may be smaller."""
        return self.pieces(order, batch_size)

    def sample(
        self, order: np.ndarray, n: int, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """At most n of the rows `order`, at random without replacement, sorted.

        Without an `rng`, one of a fixed seed: the same call gives the same rows.
        """
        if len(order) <= n:
            return order
        rng = np.random.Generator(np.random.PCG64(0)) if rng is None else rng
        return np.sort(rng.choice(order, n, replace=False, shuffle=False))

    def origin(self, order: np.ndarray) -> np.ndarray:
        """A vector amid the rows `order`, which can be subtracted from them without error.

        The mean of every so many of them, rounded to what X can hold; or zero, which costs nothing
        to subtract, where that is within a few times their deviation.
        """
        values = self._taken(self._some(order, _SAMPLE)).astype(np.float64)
        shares = values / len(values)  # whose sum overflows only if their mean does
        center = shares.sum(axis=0)
        if (np.abs(center) <= _NEAR * np.abs(shares - center / len(values)).sum(axis=0)).all():
            return np.zeros(self.n_features)
        if not self._wide_integers:
            return center.astype(float_dtype_for(self.X))
        if dtype_name(self.X).endswith("64") and not self._differences_fit():
            return np.zeros(self.n_features, np.int64)
        return np.rint(center).astype(np.int64)

    def _taken(self, order: np.ndarray) -> np.ndarray:
        """Rows of X as they are, on the host; or in float64, which NumPy has."""
        backend, xp = self.backend, self.backend.xp
        rows = xp.astype(self._gather(backend.asarray(order)), backend.dtype(np.float64))
        return backend.to_numpy(rows)

    def _some(self, order: np.ndarray, n: int) -> np.ndarray:
        """At most n of the rows `order`, at equal distances."""
        return order[:: -(-len(order) // n)]

    def _differences_fit(self) -> bool:
        """Whether any two values differ by what int64 can hold."""
        xp = array_api_compat.array_namespace(self.X)
        return int(xp.min(self.X)) > -(2**62) and int(xp.max(self.X)) < 2**62


class SparseRows(Rows):
    """Rows of a CSR matrix: sparse, unless what was learned from dense rows shifts them."""

    is_sparse = True

    def rows(self, index: Any) -> Any:
        """Rows of X, less the shift."""
        gathered = self._gather(index)
        if self.shift is not None:
            return self._as_floats(gathered.toarray())
        return gathered if gathered.dtype == self.dtype else gathered.astype(self.dtype)

    def _gather(self, index: Any) -> Any:
        return self.X[index]

    @property
    def values_per_row(self) -> float:
        """How many values a row has in memory, on average."""
        return self.X.nnz / self.n_samples

    @property
    def seen(self) -> np.ndarray:
        """Of which features there are values in memory, (n_features,), on the host."""
        counts = self.backend.xp.bincount(self.X.indices, minlength=self.n_features)
        return self.backend.to_numpy(counts) > 0

    def origin(self, order: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Zero: subtracting anything else would fill the matrix."""
        return np.zeros(self.n_features)

    def rows_per_piece(self, width: int) -> int:
        """How many rows to take at once if `width` values are made of each."""
        if self.shift is not None:
            return super().rows_per_piece(width)
        values = max(1.0, self.values_per_row)
        row_bytes = 8 * max(width, values)
        size = max(
            self.backend.chunk_bytes / row_bytes, _VALUES_PER_FEATURE * self.n_features / values
        )
        return max(16, int(min(size, _MOST_BYTES / row_bytes)))


def _is_sparse(rows: Any) -> bool:
    return hasattr(rows, "toarray")


def dense(rows: Any) -> Array:
    """What `Rows.rows` gave, as an array."""
    return rows.toarray() if _is_sparse(rows) else rows


def columns(rows: Any, features: Array) -> Any:
    """The features at some indices of what `Rows.rows` gave."""
    if _is_sparse(rows):
        return rows[:, features]
    return array_api_compat.array_namespace(rows).take(rows, features, axis=1)


def scaled(rows: Any, scale: Array) -> Any:
    """What `Rows.rows` gave, each feature times its entry of `scale`, of shape (n_features,)."""
    if not _is_sparse(rows):
        return rows * scale
    result = rows.copy()
    result.data = result.data * scale[result.indices]
    return result


def squared(rows: Any) -> Any:
    """The squares of what `Rows.rows` gave."""
    if not _is_sparse(rows):
        return rows * rows
    if sparse.issparse(rows) and rows.has_canonical_format:  # no two values are of one place
        return type(rows)((rows.data * rows.data, rows.indices, rows.indptr), shape=rows.shape)
    return rows.multiply(rows)


def start_of_range(order: np.ndarray) -> int | None:
    """The first of indices of which each is the one before plus 1; None for any others."""
    if not len(order):
        return 0
    first, last = int(order[0]), int(order[-1])
    # Each is at least the one before plus 1, and the last no more than that.
    ranges = last - first == len(order) - 1 and bool((order[1:] > order[:-1]).all())
    return first if ranges else None


def source(X: Any, backend: Backend, dtype: type[np.floating], shuffled: bool) -> Rows:  # noqa: ARG001
    """Rows of X in any namespace; see `skmax.data.source`."""
    if sparse.issparse(X):
        raise TypeError(
            "X is a sparse matrix, and only the NumPy and CuPy backends compute with those: "
            "pass backend='numpy', or X.toarray()."
        )
    if isinstance(X, np.ndarray):
        X = backend.asarray(X)
    return Rows(backend, X, backend.dtype(dtype))

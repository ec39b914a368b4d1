"""Rows on a CUDA device, or on their way there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import gcd
from typing import Any
from weakref import WeakKeyDictionary

import array_api_compat
import numpy as np
from scipy import sparse

from skmax._sklearn import _convert_to_numpy
from skmax.backends import float_dtype_for
from skmax.backends.cupy import CupyBackend, address, move
from skmax.backends.threads import n_threads
from skmax.data.rows import Rows, SparseRows

# Of the memory that is free, the share that X may take; a larger one stays on the host, and this
# many bytes of it are on their way at a time. An X that fits goes there at once, from its own
# memory: 44, 179 and 747 MB took 3.9, 14 and 57 ms to an H200, and 6.2, 18 and 74 through memory
# that is page-locked already. Where X's own may not be, that is the way, in smaller pieces: to get
# it takes longer, 5.9 ms for 16 MB, than X to move.
_SHARE, _PIECE, _SMALL_PIECE = 0.5, 1 << 26, 1 << 23
# Threads that fill a piece: with four it takes as long as the way to the device.
_MOST_THREADS = 4
# Of a sparse matrix on the device.
_MOST_ENTRIES = 2**31 - 1
# Bytes that X begins at a multiple of, where nothing speaks against it.
ALIGNMENT = 16


class DeviceRows(Rows):
    """Rows of an array on the device."""

    backend: CupyBackend

    @property
    def is_all_there(self) -> bool:
        """Whether all rows are on the device, one after the other."""
        return self.alignment > 0

    @property
    def alignment(self) -> int:
        """Bytes of which the address of X is a multiple; 0 where rows are not laid out in order."""
        if not self.X.flags.c_contiguous:
            return 0
        return gcd(address(self.X), ALIGNMENT)

    def _taken(self, order: np.ndarray) -> np.ndarray:
        """Rows of X as they are, on the host."""
        return self.backend.to_numpy(self.backend.take(self.X, order))

    def segments(
        self,
        order: np.ndarray,
        batch_size: int,  # noqa: ARG002
    ) -> Iterator[tuple[Any, Any, Any, slice]]:
        """Whole batches of an epoch, all of which are on the device.

        An array there, which of its rows are visited, which of the data these are, and where in
        `order` that is. Here, there is one segment.
        """
        visits = self.backend.asarray(order.astype(np.int32))
        yield self.X, visits, visits, slice(0, len(order))


class StreamedRows(DeviceRows):
    """Rows of an array too large for the device: those asked for go there, in X's own dtype."""

    is_all_there = False
    alignment = ALIGNMENT  # of what is sent

    def rows(self, index: Any) -> Any:
        """Rows of X, less the shift."""
        return self._as_floats(self._gather(index))

    def _taken(self, order: np.ndarray) -> np.ndarray:
        return self.X[order]

    def _gather(self, index: Any) -> Any:
        if not isinstance(index, slice):
            index = self.backend.to_numpy(index)
        return _buffer_of(self.backend).send(self.X, index)

    def segments(self, order: np.ndarray, batch_size: int) -> Iterator[tuple[Any, Any, Any, slice]]:
        """The same of rows that go through the buffer."""
        buffer = _buffer_of(self.backend)
        size = max(1, buffer.capacity(self.X) // batch_size) * batch_size
        for first in range(0, len(order), size):
            part = slice(first, min(first + size, len(order)))
            place = self.backend.asarray(np.arange(part.stop - first, dtype=np.int32))
            visits = self.backend.asarray(order[part].astype(np.int32))
            yield buffer.send(self.X, order[part]), place, visits, part


class PinnedBuffer:
    """Host memory that rows pass through on their way to the device.

    It has two halves, of which one is filled, by several threads, while the other is on its way.
    """

    def __init__(self, backend: CupyBackend, half_bytes: int):
        self._cupy = backend.cupy
        self._half_bytes = half_bytes
        self._n_threads = min(_MOST_THREADS, n_threads())
        self._pool = ThreadPoolExecutor(self._n_threads)  # which starts them when it has work
        self._halves: Any = None
        self._turn = 0

    def capacity(self, X: np.ndarray) -> int:
        """How many rows of X fit a half."""
        return self._half_bytes // (X.dtype.itemsize * X.shape[1])

    def send_all(self, X: np.ndarray) -> Any:
        """X, on the device. By itself, CuPy would take page-locked memory as large as X."""
        native, size = X.dtype.newbyteorder("="), max(1, self.capacity(X))
        if len(X) <= size:
            return self._cupy.asarray(np.ascontiguousarray(X, dtype=native))
        there = self._cupy.empty(X.shape, native)
        for first in range(0, len(X), size):
            part = slice(first, min(first + size, len(X)))
            self._send(X, part, there[part])
        for _, sent in self._halves or ():
            sent.synchronize()  # then they are free for others
        return there

    def send(self, X: np.ndarray, index: np.ndarray | slice) -> Any:
        """Rows of X, on the device once what it does now is done."""
        n = len(range(len(X))[index]) if isinstance(index, slice) else len(index)
        there = self._cupy.empty((n, X.shape[1]), X.dtype.newbyteorder("="))
        self._send(X, index, there)
        return there

    def _send(self, X: np.ndarray, index: np.ndarray | slice, there: Any) -> None:
        if len(there) > self.capacity(X):
            there[...] = self._cupy.asarray(np.ascontiguousarray(X[index], dtype=there.dtype))
            return
        half, sent = self._next_half()
        rows = half[: there.nbytes].view(there.dtype).reshape(there.shape)
        self._fill(rows, X, index)
        move(self._cupy, rows.ctypes.data, there, "HostToDevice")
        sent.record()

    def _fill(self, rows: np.ndarray, X: np.ndarray, index: np.ndarray | slice) -> None:
        """Put rows of X there."""
        if isinstance(index, slice):
            X, index = X[index], slice(None)
        takeable = X.flags.c_contiguous and X.flags.aligned and X.dtype.isnative

        def fill(first: int, last: int) -> None:
            if isinstance(index, slice):
                rows[first:last] = X[first:last]
            elif takeable:
                np.take(X, index[first:last], axis=0, out=rows[first:last], mode="clip")
            else:  # of which np.take would first copy all
                rows[first:last] = X[index[first:last]]

        ends = [len(rows) * part // self._n_threads for part in range(self._n_threads + 1)]
        for _ in self._pool.map(fill, ends[:-1], ends[1:]):
            pass  # but raise what a thread has raised

    def _next_half(self) -> Any:
        """The half that has been sent, and the event that says so."""
        if self._halves is None:
            cuda, size = self._cupy.cuda, self._half_bytes
            self._halves = [
                (np.frombuffer(cuda.alloc_pinned_memory(size), np.uint8, size), cuda.Event())
                for _ in range(2)
            ]
        self._turn = 1 - self._turn
        self._halves[self._turn][1].synchronize()
        return self._halves[self._turn]


_buffers: WeakKeyDictionary[CupyBackend, PinnedBuffer] = WeakKeyDictionary()


def _buffer_of(backend: CupyBackend) -> PinnedBuffer:
    """The buffer for rows of an X that stays on the host."""
    return _buffers.setdefault(backend, PinnedBuffer(backend, _PIECE))


def source(X: Any, backend: CupyBackend, dtype: type[np.floating], shuffled: bool) -> Rows:
    """Rows of X, moved to the device if it fits; see `skmax.data.source`."""
    if sparse.issparse(X):
        return _sparse_rows(X, backend, dtype)
    if not array_api_compat.is_cupy_array(X):
        X = np.asarray(_convert_to_numpy(X, array_api_compat.array_namespace(X)))
        if X.nbytes > _SHARE * backend.free_bytes():
            return StreamedRows(backend, X, backend.dtype(dtype))
    with backend.computing():
        if isinstance(X, np.ndarray):
            X = _moved(X, backend)
        elif shuffled:
            X = backend.cupy.ascontiguousarray(X)
        return DeviceRows(backend, X, backend.dtype(dtype))


def _moved(X: np.ndarray, backend: CupyBackend) -> Any:
    """X, on the device."""
    cupy = backend.cupy
    if X.flags.c_contiguous and X.dtype.isnative and X.nbytes > _SMALL_PIECE:
        with _page_locked(cupy.cuda.runtime, X) as is_locked:
            if is_locked:
                there = cupy.empty(X.shape, X.dtype)
                move(cupy, address(X), there, "HostToDevice")
                cupy.cuda.get_current_stream().synchronize()
                return there
    return PinnedBuffer(backend, _SMALL_PIECE).send_all(X)


@contextmanager
def _page_locked(runtime: Any, X: np.ndarray) -> Iterator[bool]:
    """The memory of an array is one that the device reads by itself; or not, where that may not be.

    It may be mapped for reading only, or another thread may be at it.
    """
    try:
        runtime.hostRegister(address(X), X.nbytes, 0)
    except runtime.CUDARuntimeError:
        yield False
        return
    try:
        yield True
    finally:
        runtime.hostUnregister(address(X))


def _sparse_rows(X: Any, backend: CupyBackend, dtype: type[np.floating]) -> Rows:
    """Rows of a SciPy matrix; its values become floats, since CuPy has no others."""
    from cupyx.scipy import sparse as on_device

    X = sparse.csr_matrix(X)
    values = X.data.astype(float_dtype_for(X.data), copy=False)
    if X.nnz > _MOST_ENTRIES:
        raise ValueError(
            f"X has {X.nnz:,} entries, and CuPy's sparse matrices have at most 2**31 - 1. Pass "
            "backend='numpy', or fit fewer rows at a time with partial_fit."
        )
    indices, starts = (array.astype(np.int32, copy=False) for array in (X.indices, X.indptr))
    with backend.computing():
        moved = on_device.csr_matrix(
            tuple(map(backend.cupy.asarray, (values, indices, starts))), shape=X.shape
        )
        moved.sum_duplicates()  # or each batch is looked at whether it has any
        return SparseRows(backend, moved, backend.dtype(dtype))

"""CuPy arrays, on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import array_api_compat
import numpy as np
from scipy import sparse

from skmax._sklearn import _convert_to_numpy
from skmax.backends.array_api import Backend, Rows, SparseRows, float_dtype_for
from skmax.backends.cupy_dense import ALIGNMENT, Device, Plan

# Of the memory that is free, the share that X may take; a larger one stays on the host, and this
# many bytes of it are on their way at a time.
_SHARE, _PIECE = 0.5, 1 << 26
# Of a sparse matrix on the device.
_MOST_ENTRIES = 2**31 - 1


class DeviceRows(Rows):
    """Rows of an array on the device."""

    @property
    def alignment(self) -> int:
        """Bytes of which the address of X is a multiple; 0 where rows are not laid out in order."""
        if not self.X.flags.c_contiguous:
            return 0
        interface = getattr(self.X, "__cuda_array_interface__", None) or self.X.__array_interface__
        return int(np.gcd(interface["data"][0], ALIGNMENT))

    def pieces(self, order: np.ndarray, batch: int) -> Iterator[tuple[Any, Any, Any, slice]]:  # noqa: ARG002
        """X, where in it the rows visited are, which rows these are, and which part of `order`.

        Pieces hold whole batches; here, there is one.
        """
        visits = self.backend.asarray(order.astype(np.int32))
        yield self.X, visits, visits, slice(0, len(order))


class StreamedRows(Rows):
    """Rows of an array too large for the device: those asked for go there, in X's own dtype."""

    alignment = ALIGNMENT
    backend: CupyBackend

    def rows(self, order: Any) -> Any:
        """Rows of X, less the shift."""
        return self._as_floats(self._gather(order))

    def _gather(self, order: Any) -> Any:
        if not isinstance(order, slice):
            order = self.backend.to_numpy(order)
        return self.backend.buffer.send(self.X, order)

    def pieces(self, order: np.ndarray, batch: int) -> Iterator[tuple[Any, Any, Any, slice]]:
        """Rows in the order of `order`; the rest as `DeviceRows` has it."""
        size = max(1, self.backend.buffer.capacity(self.X) // batch) * batch
        for first in range(0, len(order), size):
            piece = slice(first, min(first + size, len(order)))
            place = self.backend.asarray(np.arange(piece.stop - first, dtype=np.int32))
            visits = self.backend.asarray(order[piece])
            yield self.backend.buffer.send(self.X, order[piece]), place, visits, piece


class PinnedBuffer:
    """Host memory that rows pass through on their way to the device.

    It has two halves, of which one is filled while the other is on its way.
    """

    def __init__(self, cupy: Any):
        self._cupy = cupy
        self._halves: Any = None
        self._turn = 0

    @staticmethod
    def capacity(X: np.ndarray) -> int:
        """How many rows of X fit a half."""
        return _PIECE // (X.dtype.itemsize * X.shape[1])

    def send_all(self, X: np.ndarray) -> Any:
        """X, on the device. By itself, CuPy would take page-locked memory as large as X."""
        native, size = X.dtype.newbyteorder("="), max(1, self.capacity(X))
        if len(X) <= size:
            return self._cupy.asarray(np.ascontiguousarray(X, dtype=native))
        there = self._cupy.empty(X.shape, native)
        for first in range(0, len(X), size):
            there[first : first + size] = self.send(X, slice(first, first + size))
        return there

    def send(self, X: np.ndarray, order: np.ndarray | slice) -> Any:
        """The rows `order` of X, on the device once what it does now is done."""
        native, takeable = X.dtype.newbyteorder("="), X.flags.c_contiguous and X.flags.aligned
        n = len(range(len(X))[order]) if isinstance(order, slice) else len(order)
        if n > self.capacity(X):
            return self._cupy.asarray(np.ascontiguousarray(X[order], dtype=native))
        half, sent = self._next_half()
        rows = half[: n * X.shape[1] * native.itemsize].view(native).reshape(n, X.shape[1])
        if isinstance(order, np.ndarray) and takeable and X.dtype.isnative:
            np.take(X, order, axis=0, out=rows, mode="clip")
        else:  # of which np.take would first copy all
            rows[...] = X[order]
        there = self._cupy.asarray(rows)
        sent.record()
        return there

    def _next_half(self) -> Any:
        """The half that has been sent, and the event that says so."""
        if self._halves is None:
            from cupyx import empty_pinned

            self._halves = [
                (empty_pinned((_PIECE,), np.uint8), self._cupy.cuda.Event()) for _ in range(2)
            ]
        self._turn = 1 - self._turn
        self._halves[self._turn][1].synchronize()
        return self._halves[self._turn]


class CupyBackend(Backend):
    """CuPy on one CUDA device.

    Raises
    ------
    ImportError
        CuPy is not installed, or cannot be imported.
    RuntimeError
        CuPy finds no CUDA device that it can use.
    """

    chunk_bytes = 1 << 26  # a launch costs as much as megabytes of traffic

    def __init__(self, device: Any = None):
        try:
            import array_api_compat.cupy as xp
            import cupy
        except ImportError as error:
            raise ImportError(
                f"backend='cupy' needs CuPy, which cannot be imported ({error}). Install the one "
                'that fits your CUDA: pip install "skmax[cuda12]" or pip install "skmax[cuda13]"; '
                f"or pass backend='numpy'.{_conflict()}"
            ) from error
        try:
            usable = cupy.cuda.is_available()
        except RuntimeError:  # older versions of CuPy, without a driver
            usable = False
        if not usable:
            raise RuntimeError(
                f"backend='cupy' needs a CUDA device, and CuPy {cupy.__version__} finds none that "
                "it can use. Check that `nvidia-smi` lists a GPU and that its driver is as new as "
                "CuPy's CUDA (extras cuda12 and cuda13); or pass backend='numpy'."
                f"{_conflict()}"
            )
        super().__init__(xp, cupy.cuda.Device() if device is None else device)
        self.cupy = cupy
        self.buffer = PinnedBuffer(cupy)

    def asarray(self, array: Any, dtype: Any = None) -> Any:
        """A host array, moved to the device."""
        with self.device:
            return self.cupy.asarray(array, dtype=dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of zeros on the device."""
        with self.device:
            return self.cupy.zeros(shape, dtype=dtype)

    def to_numpy(self, array: Any) -> np.ndarray:
        """An array of this backend, moved to the host."""
        return self.cupy.asnumpy(array)

    def fast_sgd_epoch(self, problem: Any, batch_size: int) -> Callable[..., Any] | None:
        """The epoch in one launch, for dense rows that fit the kernel."""
        if not isinstance(problem.data, DeviceRows | StreamedRows):
            return None
        return Plan.of(problem, batch_size, Device.of(self.device))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """This device, and words for its memory when that is full."""
        with self.device:
            try:
                yield
            except self.cupy.cuda.memory.OutOfMemoryError as error:
                free, total = (size / 1e9 for size in self.device.mem_info)
                raise MemoryError(
                    f"The GPU is out of memory: {error} Of its {total:.1f} GB, {free:.1f} GB are "
                    "free. Free what other programs hold, call "
                    "cupy.get_default_memory_pool().free_all_blocks(), use a smaller batch_size or "
                    "fewer candidates at once, or pass backend='numpy'."
                ) from error

    def rows_of(self, X: Any, dtype: type[np.floating], *, shuffled: bool = False) -> Rows:
        """The rows of X as floats; X is moved to the device in its own dtype, if it fits."""
        if sparse.issparse(X):
            return self._sparse_rows(X, dtype)
        if not array_api_compat.is_cupy_array(X):
            X = np.asarray(_convert_to_numpy(X, array_api_compat.array_namespace(X)))
            if X.nbytes > _SHARE * self._free_bytes():
                return StreamedRows(self, X, self.dtype(dtype))
        with self.computing():
            if isinstance(X, np.ndarray):
                X = self.buffer.send_all(X)
            elif shuffled:
                X = self.cupy.ascontiguousarray(X)
            return DeviceRows(self, X, self.dtype(dtype))

    def _free_bytes(self) -> int:
        with self.device:
            pool = self.cupy.get_default_memory_pool()
            return self.device.mem_info[0] + pool.free_bytes()

    def _sparse_rows(self, X: Any, dtype: type[np.floating]) -> Rows:
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
        with self.computing():
            moved = on_device.csr_matrix(
                tuple(map(self.cupy.asarray, (values, indices, starts))), shape=X.shape
            )
            moved.sum_duplicates()  # or each batch is looked at whether it has any
            return SparseRows(self, moved, self.dtype(dtype))


def _conflict() -> str:
    """A sentence about several packages of CuPy, of which each overwrites the others' files."""
    installed = {
        name
        for distribution in metadata.distributions()
        for name in [(distribution.metadata["Name"] or "").lower()]
        if name == "cupy" or name.startswith("cupy-cuda")
    }
    if len(installed) < 2:
        return ""
    return (
        f" Several CuPy packages are installed, which conflict: {', '.join(sorted(installed))}. "
        "Uninstall them all, then install one."
    )

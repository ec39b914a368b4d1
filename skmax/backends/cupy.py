"""CuPy, on one CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from math import gcd
from typing import Any

import numpy as np

from skmax.backends.array_api import Backend
from skmax.backends.device_code import Unit, kernel

_COMMON, _THREADS = Unit(("common.cu",)), 128
# Bytes of the widest words that its `take` moves, and the most blocks that it takes.
_WORD, _MOST_BLOCKS = 16, 4096

# Matrices of a batch have a processor each, about: from what size they are large for one, and how
# many of them are worth a batch even so. On an H200, one of 385 x 385 takes 12.7 ms as a batch, and
# 0.9 ms by itself; 150 of them take 21 ms.
_LARGE, _MANY = 256, 8


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
        super().__init__(xp, cupy.cuda.Device() if device is None else device, "cupy")
        self.cupy = cupy

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

    def later(self, *arrays: Any) -> Callable[[], list[np.ndarray]]:
        """See `Backend.later`: through page-locked memory, which a device writes to by itself."""
        cuda = self.cupy.cuda
        with self.device:
            size = max(1, sum(array.nbytes for array in arrays))
            moved, rest = [], np.frombuffer(cuda.alloc_pinned_memory(size), np.uint8, size)
            for array in map(self.cupy.ascontiguousarray, arrays):
                part, rest = rest[: array.nbytes], rest[array.nbytes :]
                move(self.cupy, address(array), part, "DeviceToHost")
                moved.append(part.view(array.dtype).reshape(array.shape))
            sent = cuda.Event(disable_timing=True)
            sent.record()

        def told() -> list[np.ndarray]:
            sent.synchronize()
            return [part.copy() for part in moved]

        return told

    def copy(self, array: Any) -> Any:
        """A copy of an array, its rows in order; by CuPy, it would need a kernel per dtype."""
        with self.device:
            array = self.cupy.ascontiguousarray(array)
            copied = self.cupy.empty(array.shape, array.dtype)
            move(self.cupy, address(array), copied, "DeviceToDevice")
            return copied

    def take(self, array: Any, index: Any) -> Any:
        """Rows of an array, at indices on the host, or of int32 here."""
        n, row_bytes = len(index), array.nbytes // max(1, len(array))
        if not (array.flags.c_contiguous and n and row_bytes):
            return super().take(array, index)
        word = gcd(address(array), row_bytes, _WORD)
        words = row_bytes // word
        with self.device:
            rows = self.cupy.empty((n, *array.shape[1:]), array.dtype)
            index = self.asarray(index, np.int32)
            self._launch(
                f"take_{word}", n * words, array, index, np.int32(n), np.int32(words), rows
            )
            return rows

    def total(self, parts: Any) -> Any:
        """Sums in float64 over the first axis of an array of floats, in its order."""
        size = parts[0].size
        with self.device:
            sums = self.cupy.empty(parts.shape[1:], np.float64)
            name = f"total_{parts.dtype.itemsize}"
            self._launch(name, size, parts, np.int32(len(parts)), np.int32(size), sums)
            return sums

    def _launch(self, name: str, size: int, *arguments: Any) -> None:
        n_blocks = min(_MOST_BLOCKS, -(-size // _THREADS))
        kernel(_COMMON, name, self.device.id)((n_blocks,), (_THREADS,), arguments)

    def factored(self, matrices: Any) -> Any:
        """See `Backend.factored`: few large ones one by one, since all processors share each."""
        p = matrices.shape[-1]
        flat = self.xp.reshape(matrices, (-1, p, p))
        if p <= _LARGE or len(flat) >= _MANY:
            return super().factored(matrices)
        inverses = [super(CupyBackend, self).factored(matrix) for matrix in flat]
        return self.xp.reshape(self.xp.stack(inverses), matrices.shape)

    def free_bytes(self) -> int:
        """The memory that is left on the device."""
        with self.device:
            pool = self.cupy.get_default_memory_pool()
            return self.device.mem_info[0] + pool.free_bytes()

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


def units() -> list[Unit]:
    """What is compiled ahead."""
    return [_COMMON]


def move(cupy: Any, start: int, to: Any, way: str) -> None:
    """Fill an array, here or on the host, with the bytes from an address on, in its turn."""
    kind = getattr(cupy.cuda.runtime, f"memcpy{way}")
    stream = cupy.cuda.get_current_stream().ptr
    cupy.cuda.runtime.memcpyAsync(address(to), start, to.nbytes, kind, stream)


def address(array: Any) -> int:
    """Where an array begins."""
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return interface["data"][0]


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

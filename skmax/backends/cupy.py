"""CuPy, on one CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import numpy as np

from skmax.backends.array_api import Backend

# Matrices of a batch have a processor each, about: from what size they are large for one, and how
# many of them are worth a batch even so.
_LARGE, _MANY = 512, 8


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

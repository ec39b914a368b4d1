"""CuPy arrays, on a CUDA device."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
from scipy import sparse
from sklearn.utils._array_api import _convert_to_numpy

from skmax.backends.array_api import Backend, Rows


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
                "or pass backend='numpy'."
            ) from error
        if not cupy.cuda.is_available():
            raise RuntimeError(
                f"backend='cupy' needs a CUDA device, and CuPy {cupy.__version__} finds none that "
                "it can use. Check that `nvidia-smi` lists a GPU and that its driver is as new as "
                "CuPy's CUDA (extras cuda12 and cuda13); or pass backend='numpy'."
            )
        super().__init__(xp, cupy.cuda.Device() if device is None else device)

    def rows_of(self, X: Any, dtype: type[np.floating], *, shuffled: bool = False) -> Rows:
        """The rows of X as floats; X is moved to the device in its own dtype."""
        if not (sparse.issparse(X) or array_api_compat.is_cupy_array(X)):
            X = _convert_to_numpy(X, array_api_compat.array_namespace(X))
        return super().rows_of(X, dtype, shuffled=shuffled)

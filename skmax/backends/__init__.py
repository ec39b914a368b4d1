"""Where the arithmetic runs: namespaces, devices, dtypes and threads, chosen by `resolve`."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from skmax.backends.array_api import Array, Backend, float_dtype_for, float_info, rounding_unit
from skmax.backends.cupy import CupyBackend
from skmax.backends.numpy import NumpyBackend

__all__ = ["Array", "Backend", "float_dtype_for", "float_info", "resolve", "rounding_unit"]


def resolve(X: Any, requested: str) -> Backend:
    """The backend that computes on X.

    Parameters
    ----------
    X : array, sparse matrix or blocks on disk
        The data, after scikit-learn's validation.
    requested : {"auto", "numpy", "cupy"}
        "auto": where X is. Otherwise the library to compute with.
    """
    on_host = isinstance(X, np.ndarray) or not array_api_compat.is_array_api_obj(X)
    on_gpu = not on_host and array_api_compat.is_cupy_array(X)
    if requested == "numpy" or (requested == "auto" and on_host):
        return NumpyBackend()
    if requested == "cupy" or on_gpu:
        return CupyBackend(X.device if on_gpu else None)
    return Backend(array_api_compat.array_namespace(X), array_api_compat.device(X))

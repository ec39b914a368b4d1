"""The reference backend: any array API namespace, on any of its devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np

from skmax._sklearn import _convert_to_numpy, _max_precision_float_dtype

Array = Any  # an array of the backend's namespace

_NARROW = {"float16", "bfloat16", "float32", "bool", "int8", "uint8", "int16", "uint16"}


def dtype_name(X: Any) -> str:
    """The name of an array's dtype, without the library's name before it."""
    return _name_of(X.dtype)


@lru_cache(maxsize=64, typed=True)
def _name_of(dtype: Any) -> str:
    # NumPy's own name knows nothing of byte order.
    return getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]


def float_dtype_for(X: Any) -> type[np.floating]:
    """The precision in which data like X trains.

    float32 and float64 keep their own; float16, bfloat16, booleans and integers of up to 16 bits
    fit float32 exactly; anything wider trains in float64.
    """
    return np.float32 if dtype_name(X) in _NARROW else np.float64


@lru_cache(maxsize=64, typed=True)
def float_info(dtype: Any) -> np.finfo:
    """The limits of a floating dtype of any namespace."""
    return np.finfo(np.float32 if "32" in str(dtype) else np.float64)


def rounding_unit(dtype: Any) -> float:
    """The distance from 1 to the next number of a floating dtype of any namespace."""
    return float(float_info(dtype).eps)


class Backend:
    """An array API namespace and a device: where arrays live and are computed with.

    Parameters
    ----------
    xp : module
        An array API namespace, as array-api-compat returns it.
    device : object or None
        A device of `xp`; None is its default.
    name : str
        The library's name; "": that of `xp`.

    Attributes
    ----------
    name : str
        "numpy", "cupy", or the library's own.
    """

    # Bytes of rows, or of what is made of them, held at once where all rows are read in order:
    # small enough for a second-level cache, large enough for a matrix product at full speed.
    chunk_bytes = 1 << 20
    # Whether it is the number of operations that costs, rather than their size: many matrices or
    # models are then best served at once, also where some of the work is in vain.
    is_wide = True

    def __init__(self, xp: Any, device: Any = None, name: str = ""):
        self.xp = xp
        self.device = device
        self.name = name or xp.__name__.removeprefix("array_api_compat.").partition(".")[0]

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

    def later(self, *arrays: Array) -> Callable[[], list[np.ndarray]]:
        """Arrays of this backend on the host, by a call that is to be made.

        Where a device computes, that waits for what was asked of it before this, and no more.
        """
        moved = [self.to_numpy(array) for array in arrays]
        return lambda: moved

    def copy(self, array: Array) -> Array:
        """A copy of an array of this backend, its rows in order."""
        return self.xp.asarray(array, copy=True)

    def take(self, array: Array, index: np.ndarray) -> Array:
        """Rows of an array of this backend, at host indices."""
        return self.xp.take(array, self.asarray(index), axis=0)

    def each(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        cost: float,  # noqa: ARG002
    ) -> list[Any]:
        """The results of a function that spends `cost` multiply-adds on all items together."""
        return [function(item) for item in items]

    def factored(self, matrices: Array) -> Array:
        """Symmetric positive definite matrices (..., p, p), as `solved` wants them."""
        return self.xp.linalg.inv(matrices)

    def solved(self, factors: Array, rows: Array) -> Array:
        """Solutions (..., r, p) of linear systems of factored matrices (..., p, p)."""
        # Inverses are symmetric. PyTorch multiplies no matrices of different dtypes.
        return self.xp.astype(rows, factors.dtype, copy=False) @ factors

    def computing(self) -> AbstractContextManager[Any]:
        """What to enter around heavy work: its device, and the threads that are best for it."""
        return nullcontext()

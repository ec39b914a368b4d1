"""Predictions that are written where the caller wants them, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from skmax.validation import to_host

# Rows that are written at a time where nothing speaks for others.
_ROWS = 1 << 15


def write_rows(out: Any, values_of: Callable[[np.ndarray], Any], n: int) -> Any:
    """Write what a function makes of indices of rows into `out`, which is returned.

    Raises
    ------
    ValueError
        It has another shape, or a dtype that cannot hold the values.
    """
    chunks = getattr(out, "chunks", None) or (1,)
    chunk = chunks[0] if isinstance(chunks[0], int) else 1
    size = max(1, _ROWS // chunk) * chunk  # a compressed chunk is written once
    for first in range(0, n, size):
        rows = np.arange(first, min(first + size, n))
        values = values_of(rows)
        if first == 0:
            _check(out, (n, *values.shape[1:]), values.dtype)
        out[first : first + len(rows)] = values
    return out


def _check(out: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if tuple(out.shape) != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, but what is written has {shape}.")
    known = isinstance(dtype, np.dtype) and isinstance(out.dtype, np.dtype)
    if known and not np.can_cast(dtype, out.dtype, "same_kind"):
        raise ValueError(f"out has dtype {out.dtype}, which cannot hold values of {dtype}.")


class WrittenLabels:
    """Indices of classes that are written here become labels in an array of the caller.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        The labels.
    out : array-like of shape (n_samples,)
        The array.

    Raises
    ------
    ValueError
        Its dtype cannot hold the labels.
    """

    dtype = np.dtype(np.intp)

    def __init__(self, classes: np.ndarray, out: Any):
        self._classes, self._out, self.shape = classes, out, out.shape
        self.chunks = getattr(out, "chunks", None)
        if isinstance(out.dtype, np.dtype) and not _holds(out.dtype, classes):
            raise ValueError(f"out has dtype {out.dtype}, which cannot hold the labels {classes}.")

    def __setitem__(self, rows: slice, index: Any) -> None:
        self._out[rows] = self._classes[to_host(index)]


def _holds(dtype: np.dtype, values: np.ndarray) -> bool:
    try:
        with np.errstate(invalid="ignore"):
            return bool((values.astype(dtype) == values).all())
    except (TypeError, ValueError):
        return False

"""Sources of rows: in memory, sparse, on disk, streamed to a device.

A source offers `rows(index)`; `reduce`, sums over rows in pieces; `epoch` and `batches`, the
minibatches of an epoch; and `sample`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from skmax.backends import Backend
from skmax.data import device, host, rows
from skmax.data.disk import Blocks, DiskRows, opened
from skmax.data.rows import Rows, columns, dense, scaled, squared

__all__ = ["Blocks", "Rows", "columns", "dense", "opened", "scaled", "source", "squared"]

_SOURCES: dict[str, Callable[..., Rows]] = {"numpy": host.source, "cupy": device.source}


def source(X: Any, backend: Backend, dtype: type[np.floating], *, shuffled: bool = False) -> Rows:
    """The rows of X as floats; X is moved to the backend, in its own dtype, if it lives elsewhere.

    Parameters
    ----------
    X : array, sparse matrix or Blocks, of shape (n_samples, n_features)
        The data.
    backend : Backend
        Where the rows are wanted.
    dtype : {numpy.float32, numpy.float64}
        The precision of the rows.
    shuffled : bool
        Whether rows will be asked for many times, in random order.
    """
    if isinstance(X, Blocks):
        if backend.name == "numpy":
            return DiskRows(backend, X, np.dtype(dtype))
        X = X.mapped()
    return _SOURCES.get(backend.name, rows.source)(X, backend, dtype, shuffled)

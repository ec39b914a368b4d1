"""Predictions on the CPU: what is made of logits, in place, a block of rows at a time.

In a block, classes come first, (k, b): what is summed or compared over them are rows of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import safe_sparse_dot

from skmax.backends.numpy import small_rows
from skmax.backends.threads import WORTH_A_THREAD, n_threads
from skmax.data import Rows
from skmax.data.host import view

# Bytes of what is made of a block of rows: their logits, and floats where X has none that serve.
# 100,000 x 50 with 5 classes took 8.9 ms in blocks of 1,300 rows and 6.5 to 8 in blocks of 5,000 to
# 20,000; 20,000 x 384 with 400 classes 100 ms in blocks of 330 rows and 80 in blocks of 1,300.
_BLOCK_BYTES = 1 << 21
# Classes up to which those of a row are better far apart than side by side in memory: up to here,
# comparing one after the other with the largest takes half the time of `argmax`.
_FEW_CLASSES = 50


def predictions(
    data: Rows, coef: Any, intercept: np.ndarray, method: str
) -> tuple[np.ndarray, bool]:
    """What `skmax.objective.predictions` does, in threads that share the rows."""
    k, n, finish = coef.shape[0], data.n_samples, _FINISH[method]
    n_columns = 2 if k == 1 and finish is not _logits else k
    out = np.empty(n, np.intp) if finish is _labels else np.empty((n, n_columns), data.dtype)
    cost = n * data.values_per_row * k
    n_parts = int(max(1, min(n_threads(), n, cost // WORTH_A_THREAD)))
    data, coef = _as_multiplied(data, coef)

    def run(part: int) -> bool:
        rows = data.with_(shift=data.shift)  # buffers of its own
        first, last = n * part // n_parts, n * (part + 1) // n_parts
        all_finite = True
        with np.errstate(over="ignore", invalid="ignore"):
            for some, logits in _blocks(rows, coef, intercept, first, last, n_columns):
                top = np.maximum.reduce(logits, axis=0)
                finite = bool(np.isfinite(logits[-1] if k == 1 else top).all())
                finish(logits, top, out[some], finite)
                all_finite &= finite
        return all_finite

    finite = all(data.backend.each(run, range(n_parts), cost))
    return out[:, 0] if n_columns == 1 else out, finite


def _as_multiplied(data: Rows, coef: Any) -> tuple[Rows, Any]:
    """Rows and weights in the layout that products of sparse rows want, and nothing they do not."""
    if not data.is_sparse or data.shift is not None or sparse.issparse(coef) or len(coef) == 1:
        return data, coef
    X = data.X
    if X.nnz < X.shape[1]:  # weights of features that no row has are not even copied
        features, places = np.unique(X.indices, return_inverse=True)
        shape = X.shape[0], len(features)
        X = view(sparse.csr_array, (X.data, places.astype(X.indices.dtype), X.indptr), shape)
        data, coef = type(data)(data.backend, X, data.dtype), coef[:, features]
    return data, np.ascontiguousarray(coef.T).T


def _blocks(
    data: Rows, coef: Any, intercept: np.ndarray, first: int, last: int, n_columns: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Logits of the rows from `first` to before `last`, (k, b), which may be overwritten.

    Of two classes, the first has the logit 0, unless a single column is wanted.
    """
    k, d = coef.shape
    converted = data.X.dtype != data.dtype or data.shift is not None
    size = max(16, _BLOCK_BYTES // (data.dtype.itemsize * (n_columns + converted * d)))
    size_of_product = min(size, small_rows(k * d) or size)
    size -= size % size_of_product
    buffer = np.empty((n_columns, min(size, last - first)), data.dtype)
    for start in range(first, last, size):
        some = slice(start, min(start + size, last))
        X, logits = data.rows(some), buffer[:, : some.stop - start]
        out = logits[n_columns - k :]
        logits[: n_columns - k] = 0
        if sparse.issparse(X) or sparse.issparse(coef):
            product = safe_sparse_dot(X, coef.T, dense_output=True).T
            if k > _FEW_CLASSES:
                logits = out = product
        else:
            product = _product(X, coef, size_of_product, out)
        np.add(product, intercept[:, None], out=out)
        yield some, logits


def _product(X: np.ndarray, coef: np.ndarray, size: int, out: np.ndarray) -> np.ndarray:
    """Products of weights and rows, (k, b), into `out`, so many rows at a time.

    Those of a block are made in one call: threads must not wait for each other in between.
    """
    (k, d), whole = coef.shape, len(X) // size * size
    if whole:
        by_product = X[:whole].reshape(-1, size, d).swapaxes(1, 2)
        np.matmul(coef, by_product, out=out[:, :whole].reshape(k, -1, size).swapaxes(0, 1))
    if whole < len(X):
        np.matmul(coef, X[whole:].T, out=out[:, whole:])
    return out


def _logits(logits: np.ndarray, top: np.ndarray, out: np.ndarray, finite: bool) -> None:  # noqa: ARG001
    out.T[...] = logits


def _labels(logits: np.ndarray, top: np.ndarray, out: np.ndarray, finite: bool) -> None:
    """The first of the largest logits."""
    if len(logits) > _FEW_CLASSES or not finite:
        np.argmax(logits, axis=0, out=out)
    elif len(logits) == 2:
        np.greater(logits[1], logits[0], out=out, casting="unsafe")
    else:
        for label in reversed(range(len(logits))):
            np.copyto(out, label, where=logits[label] == top)


def _probabilities(logits: np.ndarray, top: np.ndarray, out: np.ndarray, finite: bool) -> None:
    """See `skmax.objective.softmax`."""
    _subtract(logits, top, finite)
    np.exp(logits, out=logits)
    share = np.divide(1, np.add.reduce(logits, axis=0, out=top), out=top)
    np.multiply(logits, share, out=out.T)


def _log_probabilities(logits: np.ndarray, top: np.ndarray, out: np.ndarray, finite: bool) -> None:
    """See `skmax.objective.log_softmax`."""
    _subtract(logits, top, finite)
    np.log(np.add.reduce(np.exp(logits), axis=0, out=top), out=top)
    np.subtract(logits, top, out=out.T)


def _subtract(logits: np.ndarray, top: np.ndarray, finite: bool) -> None:
    """Take the largest logits out, also where both are infinite."""
    is_top = None if finite else logits == top
    logits -= top
    if is_top is not None:
        logits[is_top] = 0


_FINISH = {
    "decision_function": _logits,
    "predict": _labels,
    "predict_proba": _probabilities,
    "predict_log_proba": _log_probabilities,
}

"""What the compiled core is asked for: a `Job` of pointers to arrays, which live as long as it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skmax.backends.threads import WORTH_A_THREAD
from skmax.data import Rows
from skmax.kernels import library
from skmax.problem import Problem

# What `core.cpp` calls the dtypes of X, those in which a shift is subtracted, and methods.
TYPES = {
    np.dtype(name): code
    for code, name in enumerate(
        ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"],
    )
} | {np.dtype(bool): 0}
EXACT = {np.dtype("f4"): 0, np.dtype("f8"): 1, np.dtype("i8"): 2}
METHODS = ("decision_function", "predict", "predict_proba", "predict_log_proba")
# Bytes of a line of the cache, which holds whole vectors.
_LINE = 64
# The most parts of all rows that threads share, and the most bytes of their sums; and what a value
# of these costs, in multiply-adds: it is set to zero, summed, and added to the others.
MOST_PARTS, _MOST_BYTES_OF_SUMS, _PER_SUM = 16, 1 << 26, 32


class Job(ctypes.Structure):
    """What `core.cpp` declares, where each field is explained."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("n", "d", "k", "m", "k_coef", "stride", "batch")],
        ("X", ctypes.c_void_p),
        ("x_rows", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("row_bytes", "value_bytes")],
        ("shift", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("type", "exact", "is_double")],
        ("t_rows", ctypes.c_void_p),
        ("t_first", ctypes.c_int64),
        *[
            (name, ctypes.c_void_p)
            for name in (
                "labels", "soft", "smoothing", "sample_weight", "score_weight", "columns",
            )
        ],
        ("n_columns", ctypes.c_int64),
        *[
            (name, ctypes.c_void_p)
            for name in (
                "coef", "intercept", "coef_velocity", "intercept_velocity", "mean",
                "inverse_scale", "rates", "momentum", "l2", "l1",
            )
        ],
        ("fit_intercept", ctypes.c_int64),
        *[
            (name, ctypes.c_void_p)
            for name in ("loss", "correct", "by_coef", "by_intercept", "out")
        ],
        ("method", ctypes.c_int64),
        ("all_finite", ctypes.c_int64),
        ("indices", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("index_bytes", "n_features")],
        ("unit", ctypes.c_void_p),
        ("factor", ctypes.c_void_p),
        ("n_units", ctypes.c_int64),
    ]  # fmt: skip

    def __init__(self, *fields: dict[str, Any]):
        self._arrays: list[np.ndarray] = []  # which the pointers point to
        self._tell(fields)

    def copy(self, *fields: dict[str, Any]) -> Job:
        """The same job, but for these fields."""
        job = Job.from_buffer_copy(self)
        job._arrays = [*self._arrays]
        job._tell(fields)
        return job

    def _tell(self, fields: tuple[dict[str, Any], ...]) -> None:
        for name, value in (item for some in fields for item in some.items()):
            if isinstance(value, np.ndarray):
                self._arrays.append(value)
                value = library.address(value)
            setattr(self, name, value)

    def run(self, name: str) -> None:
        """Call a function of the core.

        Raises
        ------
        MemoryError
            It has no memory left.
        """
        library.call(name, self)


def stride_of(d: int, dtype: Any) -> int:
    """From one row to the next, in values: an odd number of lines, which spreads over a cache."""
    values = _LINE // np.dtype(dtype).itemsize
    return (-(-d // values) | 1) * values


def padded_rows(rows: np.ndarray, dtype: Any) -> np.ndarray:
    """A copy of rows (..., d) as `core.cpp` has them: aligned, the rest of the stride is zero."""
    *shape, d = rows.shape
    padded = empty_rows(shape, d, dtype)
    padded[..., :d] = rows
    padded[..., d:] = 0
    return padded


def empty_rows(shape: Sequence[int], d: int, dtype: Any) -> np.ndarray:
    """Memory for rows of d values, (*shape, stride)."""
    stride, itemsize = stride_of(d, dtype), np.dtype(dtype).itemsize
    size = itemsize * stride * math.prod(shape)
    memory = np.empty(size + _LINE, np.uint8)
    start = -library.address(memory) % _LINE
    return memory[start : start + size].view(dtype).reshape(*shape, stride)


def n_parts(n_rows: int, cost: float, n_sums: int) -> int:
    """How many parts of rows are best summed by themselves, whatever the number of threads.

    All rows together take `cost` multiply-adds, and each part has so many sums of its own.
    """
    most = min(MOST_PARTS, n_rows, _MOST_BYTES_OF_SUMS // (8 * n_sums))
    return max(1, min(most, int(cost // max(WORTH_A_THREAD, _PER_SUM * n_sums))))


def targets_of(problem: Problem, models: slice = slice(None)) -> dict[str, Any]:
    """Targets and weights that some of the models learn from."""

    def as_floats(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.ascontiguousarray(array, problem.data.dtype)

    is_soft, weight = problem.targets.ndim == 2, as_floats(problem.sample_weight)
    is_shared = weight is None or weight.shape[1] == 1
    columns = problem.columns[models]
    k = problem.n_classes
    return {
        "k": k,
        "k_coef": k,
        "m": len(columns),
        "labels": None if is_soft else np.ascontiguousarray(problem.targets, np.int64),
        "soft": as_floats(problem.targets) if is_soft else None,
        "smoothing": None if problem.smoothing is None else as_floats(problem.smoothing[models]),
        "sample_weight": weight,
        "score_weight": None if weight is None else as_floats(problem.score_weight),
        "columns": np.ascontiguousarray(0 * columns if is_shared else columns, np.int64),
        "n_columns": 0 if weight is None else weight.shape[1],
    }


def outputs_of(
    data: Rows, intercept: np.ndarray, method: str, k_coef: int, n: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Where predictions of n rows go, and what jobs are told that make them, but the weights."""
    k = 2 if k_coef == 1 and method != "decision_function" else k_coef
    out = np.empty(n, np.int64) if method == "predict" else np.empty((n, k), data.dtype)
    return out, {
        "intercept": np.ascontiguousarray(intercept, data.dtype),
        "k": k,
        "k_coef": k_coef,
        "m": 1,
        "method": METHODS.index(method),
        "all_finite": 1,
    }

"""Sparse rows on the CPU: what `sparse.h` does, a part of `core.cpp`.

There, weights are (d, width), those of all models and classes of a feature side by side: a value
of X meets all that it is multiplied by in one place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from skmax.backends.threads import WORTH_A_THREAD, n_threads
from skmax.data import Rows
from skmax.data.host import view
from skmax.data.rows import start_of_range
from skmax.kernels import library
from skmax.kernels.job import (
    TYPES,
    Job,
    n_parts,
    outputs_of,
    targets_of,
)
from skmax.problem import BatchSums, Problem, State, Steps

# Bytes of the vectors that rows of weights consist of.
_VECTOR = 16
# What a product with sparse rows costs, in multiply-adds of dense ones: 0.3 to 1 ns, not 0.1.
_SPARSE = 4

# Weights per model from which lazy steps may pay, and how many times the values of a batch features
# must be: 16,000 rows of 15 values, batches of 200, took 3.6 ms an epoch instead of 3.9 with 4,000
# features and 2 classes, 4.7 instead of 7.4 with 15,000; with 20 classes 6.7 instead of 6.3 and 9.2
# instead of 13.1; of 100 values, with 30,000 features and 20 classes 45 instead of 41.
_MANY_WEIGHTS, _TIMES_THE_VALUES = 1 << 14, 2
# Scales of features are rounded to powers of two and so many between each and the next. It changes
# them by 4 percent; coarser, rare features, which have much the same scale, were all off by more.
_PER_OCTAVE = 8


def has_many_weights(problem: Problem) -> bool:
    """Whether rows are sparse, and weights so many that steps should be lazy."""
    return problem.data.is_sparse and problem.data.n_features * problem.n_classes >= _MANY_WEIGHTS


def rounded(inverse_scale: np.ndarray) -> np.ndarray:
    """Inverse scales of which many features share one, as `sgd_epoch` needs it."""
    return np.where(inverse_scale > 0, np.exp2(_step_of(inverse_scale) / _PER_OCTAVE), 0.0)


def _step_of(inverse_scale: np.ndarray) -> np.ndarray:
    """Which of the rounded scales each is nearest to; 0 for those that are zero."""
    some = np.where(inverse_scale > 0, inverse_scale, 1).astype(np.float64)
    return np.rint(_PER_OCTAVE * np.log2(some)).astype(np.intp)


def serves(data: Rows) -> bool:
    """Whether such rows are what `sparse.h` computes with."""
    known = data.X.dtype in TYPES and data.X.indices.dtype in (np.int32, np.int64)
    return known and data.shift is None and library.function("sparse_pass") is not None


def _rows(data: Rows, width: int) -> dict[str, Any]:
    """All rows, of which each value meets so many weights."""
    X, size = data.X, _VECTOR // np.dtype(data.dtype).itemsize
    return {
        "X": _aligned(X.data),
        "indices": _aligned(X.indices),
        "starts": _aligned(X.indptr.astype(X.indices.dtype, copy=False)),
        "index_bytes": X.indices.itemsize,
        "n_features": data.n_features,
        "n": data.n_samples,
        "d": width,
        "stride": 1 if width == 1 else -(-width // size) * size,
        "value_bytes": X.data.itemsize,
        "type": TYPES[X.dtype],
        "is_double": data.dtype == np.float64,
    }


def _aligned(array: np.ndarray) -> np.ndarray:
    return np.require(array, requirements=("C", "A"))


def _some(rows: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """The rows from one to before another."""
    starts = rows["starts"][first:]
    return rows | {"starts": starts, "n": last - first, "t_rows": None, "t_first": first}


def _taken(rows: dict[str, Any], order: np.ndarray) -> dict[str, Any]:
    """The rows in an order."""
    return rows | {"x_rows": order, "t_rows": order, "n": len(order)}


def _laid_out(rows: dict[str, Any], coef: np.ndarray) -> np.ndarray:
    """Weights (m, k, d) as `sparse.h` has them: of two classes, if one row tells them apart."""
    dtype = np.float64 if rows["is_double"] else np.float32
    out = np.empty((rows["n_features"], rows["stride"]), dtype)
    m, k, _ = coef.shape
    coef = np.ascontiguousarray(coef, dtype)
    Job(rows, {"m": m, "k": k, "coef": coef, "out": out}).run("sparse_lay_out")
    return out


# Epochs


def sgd_epoch(problem: Problem, state: State, steps: Steps) -> tuple[State, BatchSums]:
    """What `skmax.solvers.sgd.sgd_epoch` does, in threads that share the models."""
    dtype = problem.data.dtype
    after = State(*(np.array(array, dtype, order="C") for array in vars(state).values()))

    def run(model: int) -> np.ndarray:
        one = np.array([model])
        weights = {name: array[model : model + 1] for name, array in vars(after).items()}
        return _epoch(problem.select(one), weights, steps.select(one))

    cost = _SPARSE * len(steps.order) * problem.data.values_per_row * problem.masked.size
    sums = problem.backend.each(run, range(problem.n_models), cost)
    return after, BatchSums(*np.stack(sums, axis=1))


def _epoch(problem: Problem, weights: dict[str, np.ndarray], steps: Steps) -> np.ndarray:
    """The steps of one model, in place; the sums of loss and accuracy."""
    data, k = problem.data, problem.n_classes

    def as_float(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.ascontiguousarray(array, data.dtype)

    order = np.ascontiguousarray(steps.order, np.int64)
    # A row of weights per class, so that there are two of two classes.
    rows = _taken(_rows(data, k), order)
    sums = np.zeros(2)
    parameters = {
        "batch": steps.batch_size,
        "rates": as_float(steps.rates),
        "momentum": as_float(steps.momentum),
        "l2": as_float(problem.l2),
        "l1": as_float(problem.l1),
        "fit_intercept": problem.fit_intercept,
        "mean": as_float(problem.mean),
        "inverse_scale": as_float(problem.inverse_scale),
        "loss": sums[:1],
        "correct": sums[1:],
    }
    units = _units(problem) if _lazy_steps_pay(problem, steps.batch_size) else {}
    Job(targets_of(problem), rows, weights, parameters, units).run("sparse_epoch")
    return sums


def _lazy_steps_pay(problem: Problem, batch_size: int) -> bool:
    """Whether a batch has few of many features."""
    of_batch = batch_size * problem.data.values_per_row
    many = problem.data.n_features >= _TIMES_THE_VALUES * of_batch
    return has_many_weights(problem) and many


def _units(problem: Problem) -> dict[str, Any]:
    """The units of a model's preconditioner: one over the square of each.

    Nothing, where few features share one or a penalty is not linear: steps cannot be lazy.
    """
    if problem.l1.any():
        return {}
    if problem.inverse_scale is None:
        unit, factor = np.zeros(problem.data.n_features, np.int32), np.ones(1)
    else:
        scale = problem.inverse_scale[0, 0]
        if not _are_rounded(scale):
            return {}
        step = _step_of(scale)
        unit = np.where(scale > 0, step - step.min() + 1, 0).astype(np.int32)
        factor = np.exp2(np.arange(step.min() - 1, step.max() + 1) * (2 / _PER_OCTAVE))
        factor[0] = 0
    return {"unit": unit, "factor": factor, "n_units": len(factor)}


def _are_rounded(scale: np.ndarray) -> bool:
    """Whether inverse scales are what `rounded` makes, and have squares."""
    limits = np.finfo(scale.dtype)
    with np.errstate(over="ignore"):
        square = scale * scale
    normal = (square >= limits.tiny) & (square <= limits.max)
    is_rounded = np.abs(scale - rounded(scale)) <= 4 * limits.eps * scale
    return bool((normal & is_rounded | (scale == 0)).all())


# Full passes


def full_pass(
    problem: Problem, coef: np.ndarray, intercept: np.ndarray, *, gradient: bool
) -> tuple[np.ndarray, ...]:
    """What `skmax.objective.full_pass` does, in threads that share the rows.

    The sums are those of as many parts of the rows, whatever the number of threads.
    """
    data, order, (m, k, d) = problem.data, problem.order, coef.shape
    rows = _rows(data, m if k == 2 else m * k)
    weights = {
        "coef": _laid_out(rows, coef),
        "intercept": np.ascontiguousarray(intercept, data.dtype),
    }
    cost = _SPARSE * len(order) * m * k * data.values_per_row
    n = n_parts(len(order), cost, coef.size if gradient else m)
    consecutive = start_of_range(order) is not None
    order = np.ascontiguousarray(order, np.int64)

    def run(part: np.ndarray) -> tuple[np.ndarray, ...]:
        some = _some(rows, part[0], part[-1] + 1) if consecutive else _taken(rows, part)
        names = ("loss", "correct", "by_coef", "by_intercept")[: 4 if gradient else 2]
        shapes = (m,), (m,), (m, k, d), (m, k)
        sums = dict(zip(names, map(np.zeros, shapes), strict=False))
        Job(targets_of(problem), some, weights, sums).run("sparse_pass")
        return tuple(sums.values())

    if n == 1:
        return run(order)
    parts = data.backend.each(run, np.array_split(order, n), cost)
    return tuple(sum(sums) for sums in zip(*parts, strict=True))


# Predictions


def predictions(
    data: Rows,
    coef: np.ndarray,
    intercept: np.ndarray,
    method: str,
    order: np.ndarray | None = None,
) -> tuple[np.ndarray, bool]:
    """What `skmax.objective.predictions` does, in threads that share the rows."""
    if data.X.nnz < data.n_features:
        data, coef = _features_seen(data, coef)
    (k_coef, _), n = coef.shape, data.n_samples if order is None else len(order)
    rows = _rows(data, k_coef)
    order = None if order is None else np.ascontiguousarray(order, np.int64)
    out, weights = outputs_of(data, intercept, method, k_coef, n)
    weights["coef"] = _laid_out(rows, coef[None])
    cost = _SPARSE * n * data.values_per_row * weights["k"]
    parts = int(max(1, min(n_threads(), n, cost // WORTH_A_THREAD)))

    def run(part: int) -> bool:
        first, last = n * part // parts, n * (part + 1) // parts
        some = _some(rows, first, last) if order is None else _taken(rows, order[first:last])
        job = Job(some, weights, {"out": out[first:last]})
        job.run("sparse_predict")
        return bool(job.all_finite)

    finite = all(data.backend.each(run, range(parts), cost))
    return out[:, 0] if out.shape[1:] == (1,) else out, finite


def _features_seen(data: Rows, coef: np.ndarray) -> tuple[Rows, np.ndarray]:
    """Rows and weights of those features alone that a row has: others are not even copied."""
    X = data.X
    features, places = np.unique(X.indices, return_inverse=True)
    parts = X.data, places.astype(X.indices.dtype), X.indptr
    X = view(csr_array, parts, (X.shape[0], len(features)))
    return type(data)(data.backend, X, data.dtype), coef[:, features]

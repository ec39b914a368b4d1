"""Dense rows on the CPU: what `core.cpp` does, which is compiled when skmax is installed.

Calls release the interpreter, so that threads share the models of an epoch, or the rows of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from skmax.backends.threads import WORTH_A_THREAD, n_threads
from skmax.data import Rows
from skmax.data.disk import DiskRows
from skmax.kernels import library
from skmax.kernels.job import (
    EXACT,
    MOST_PARTS,
    TYPES,
    Job,
    empty_rows,
    n_parts,
    outputs_of,
    padded_rows,
    stride_of,
    targets_of,
)
from skmax.problem import BatchSums, Problem, State, Steps

# What reading a value of X costs, in multiply-adds: passes over 100,000 x 50 took 3.0 ms with 2
# classes and 3.6 with 5.
_READ = 3
# Predictions copy the weights first: of more weights than so many for fewer rows than so many, a
# product by BLAS takes 0.5 to 1 of the time (10 to 100 rows; 38,400 to 5,000,000 weights); for
# 1,000 rows and more, 1.2 to 2.2 times as long, since kernels make probabilities of logits at once.
# And the fewest rows of a part, if there is one for each thread.
_FEW_WEIGHTS, _FEW_ROWS, _ROWS_OF_A_PART = 1 << 15, 128, 64


def serves(data: Rows) -> bool:
    """Whether such rows are what `core.cpp` computes with."""
    is_dense = data.is_on_disk or isinstance(data.X, np.ndarray)
    return is_dense and library.function("epoch") is not None


def predicts(data: Rows, coef: np.ndarray) -> bool:
    """Whether `predictions` for such rows, by such weights, are the fastest."""
    is_product = coef.size > _FEW_WEIGHTS and data.n_samples < _FEW_ROWS
    return serves(data) and not is_product


# Rows


@dataclass(frozen=True)
class _Piece:
    """Rows that one call is about.

    Attributes
    ----------
    data : Rows
        Where they come from.
    X : ndarray of shape (n_rows, n_features)
        Where they are.
    order : ndarray or None
        Which of X they are; None: all.
    index : ndarray or range
        Which of the rows of `data` they are.
    is_stored : bool
        Whether X has them as they are stored; else, as floats, and shifted.
    """

    data: Rows
    X: np.ndarray
    order: np.ndarray | None
    index: np.ndarray | range
    is_stored: bool = True

    def __len__(self) -> int:
        return len(self.X) if self.order is None else len(self.order)

    def fields(self) -> dict[str, Any]:
        """What a job is told of all of the rows, wherever they begin and end."""
        data = self.data
        fields = {
            "d": data.n_features,
            "stride": stride_of(data.n_features, data.dtype),
            "row_bytes": self.X.strides[0],
            "value_bytes": self.X.strides[1],
            "type": TYPES[self.X.dtype],
            "is_double": data.dtype == np.float64,
        }
        if data.shift is None or not self.is_stored:
            return fields
        shift = np.ascontiguousarray(data.subtrahend)
        return fields | {"shift": shift, "exact": EXACT[shift.dtype]}

    def some(self, first: int, last: int) -> dict[str, Any]:
        """What a job is told of some of the rows."""
        index = self.index[first:last]
        rows = {"t_first": index.start} if isinstance(index, range) else {"t_rows": index}
        return {
            "n": last - first,
            "X": self.X[first:last] if self.order is None else self.X,
            "x_rows": None if self.order is None else self.order[first:last],
        } | rows

    def parts(self, n_parts: int) -> list[dict[str, Any]]:
        """What jobs are told of so many parts of the rows."""
        ends = (len(self) * part // n_parts for part in range(n_parts + 1))
        return [self.some(*both) for both in pairwise(ends)]


def _pieces(data: Rows, order: np.ndarray | None, unit: int = 1) -> Iterator[_Piece]:
    """The rows in an order, or all as they are: in one piece, or as they come from a disk.

    All pieces but the last are multiples of `unit` rows.
    """
    known = data.X.dtype in TYPES
    if order is not None:
        order = np.ascontiguousarray(order, np.int64)
    if known and not data.is_on_disk:
        index = range(data.n_samples) if order is None else order
        yield _Piece(data, data.X, order, index)
        return
    order = np.arange(data.n_samples) if order is None else order
    if known and isinstance(data, DiskRows):
        for index, X in data.stored(order, unit):
            yield _Piece(data, X, None, index)
        return
    size, first = max(1, data.rows_per_piece(1) // unit) * unit, 0
    for _, X in data.pieces(order, size):
        yield _Piece(data, X, None, order[first : first + len(X)], is_stored=False)
        first += len(X)


# Epochs


def sgd_epoch(problem: Problem, state: State, steps: Steps) -> tuple[State, BatchSums]:
    """What `skmax.solvers.sgd.sgd_epoch` does, in threads that share the models."""
    m, k, d = state.coef.shape
    weights = _weights(problem, state, steps)
    cost = len(steps.order) * m * k * d
    n = int(max(1, min(n_threads(), m, cost // WORTH_A_THREAD)))
    models = [slice(*ends) for ends in pairwise(m * part // n for part in range(n + 1))]
    parts = [_steps_of(problem, steps, weights, some) for some in models]
    done = 0
    for piece in _pieces(problem.data, steps.order, steps.batch_size):
        rows = piece.fields() | piece.some(0, len(piece))
        jobs = [Job(rows, fields, {"rates": rates[done:]}) for fields, rates in parts]
        problem.backend.each(lambda job: job.run("epoch"), jobs, cost)
        done += -(-len(piece) // steps.batch_size)
    coef, velocity = weights["coef"][..., :d], weights["coef_velocity"][..., :d]
    intercept = weights["intercept"] - _products(coef, weights["mean"][..., :d])
    state = State(coef, intercept.astype(coef.dtype), velocity, weights["intercept_velocity"])
    return state, BatchSums(weights["loss"], weights["correct"])


def _weights(problem: Problem, state: State, steps: Steps) -> dict[str, np.ndarray]:
    """What an epoch changes, and what else there is of each model."""
    dtype, (m, _, d) = problem.data.dtype, state.coef.shape
    mean = np.zeros((m, d), dtype) if problem.mean is None else problem.mean[:, 0]
    scale = np.ones((m, d), dtype) if problem.inverse_scale is None else problem.inverse_scale[:, 0]
    return {
        "coef": padded_rows(state.coef, dtype),
        "coef_velocity": padded_rows(state.coef_velocity, dtype),
        "intercept": (state.intercept + _products(state.coef, mean)).astype(dtype),
        "intercept_velocity": np.array(state.intercept_velocity, dtype),
        "mean": padded_rows(mean, dtype),
        "inverse_scale": padded_rows(scale, dtype),
        "momentum": steps.momentum.astype(dtype),
        "l2": problem.l2.astype(dtype),
        "l1": problem.l1.astype(dtype),
        "loss": np.zeros(m),
        "correct": np.zeros(m),
    }


def _steps_of(
    problem: Problem, steps: Steps, weights: dict[str, np.ndarray], models: slice
) -> tuple[dict[str, Any], np.ndarray]:
    """What a job is told of some of the models, and their rates."""
    fields = targets_of(problem, models) | {name: array[models] for name, array in weights.items()}
    fields |= {"batch": steps.batch_size, "fit_intercept": problem.fit_intercept}
    return fields, np.ascontiguousarray(steps.rates[:, models], problem.data.dtype)


def _products(coef: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What the weights make of the means, (m, k)."""
    return np.einsum("mkd,md->mk", coef, mean, dtype=np.float64)


# Sums over all rows


def full_pass(
    problem: Problem, coef: np.ndarray, intercept: np.ndarray, *, gradient: bool
) -> tuple[np.ndarray, ...]:
    """What `skmax.objective.full_pass` does, in threads that share the rows."""
    (m, k, d), dtype = coef.shape, problem.data.dtype
    fields = targets_of(problem) | {
        "coef": padded_rows(coef, dtype),
        "intercept": np.ascontiguousarray(intercept, dtype),
    }
    sums = {"loss": np.zeros(m), "correct": np.zeros(m)}
    if gradient:
        sums |= {"by_coef": np.zeros((m, k, d)), "by_intercept": np.zeros((m, k))}
    return _summed("pass", problem, fields, sums, coef.size + _READ * d)


def moments(problem: Problem) -> tuple[np.ndarray, ...]:
    """Weighted sums of the features and of their squares, (1 or u, d), in threads likewise."""
    weight, d = problem.sample_weight, problem.data.n_features
    m = 1 if weight is None else weight.shape[1]
    fields = targets_of(problem) | {"m": m, "k": 2, "columns": np.arange(m)}
    sums = {"by_coef": np.zeros((m, d)), "by_intercept": np.zeros((m, d))}
    return _summed("moments", problem, fields, sums, (m + _READ) * d)


def _summed(
    name: str, problem: Problem, fields: dict[str, Any], totals: dict[str, np.ndarray], width: int
) -> tuple[np.ndarray, ...]:
    """What a function adds to totals, which takes `width` multiply-adds for a row.

    The sums are those of as many parts of the rows, whatever the number of threads.
    """
    for piece in _pieces(problem.data, problem.order):
        cost = len(piece) * width
        rows = piece.parts(n_parts(len(piece), cost, sum(a.size for a in totals.values())))
        parts = [totals, *[{of: np.zeros_like(a) for of, a in totals.items()} for _ in rows[1:]]]
        job = Job(piece.fields(), fields)
        jobs = [job.copy(some, part) for some, part in zip(rows, parts, strict=True)]
        problem.backend.each(lambda job: job.run(name), jobs, cost)
        for part in parts[1:]:
            for of, values in part.items():
                totals[of] += values
    return tuple(totals.values())


# What L-BFGS starts from, of rows that X has, as floats: see `skmax.solvers.curvature`


def curvatures(
    problem: Problem, coef: np.ndarray, intercept: np.ndarray, X: np.ndarray, index: Any
) -> np.ndarray:
    """Curvatures of the loss of rows by their logits, (b, m, k)."""
    (m, k, _), dtype, known = coef.shape, X.dtype, np.sum(~problem.masked, axis=1)
    if isinstance(index, slice):
        index = range(index.start, index.stop)
    else:
        index = np.ascontiguousarray(index, np.int64)
    piece = _Piece(problem.data, X, None, index, is_stored=False)
    out = np.empty((len(X), m, k), dtype)
    weights = {
        "coef": padded_rows(coef, dtype),
        "intercept": np.ascontiguousarray(intercept, dtype),
        "out": out,
    }
    Job(piece.fields(), piece.some(0, len(X)), targets_of(problem), weights).run("curvatures")
    out *= (known / (known - 1))[:, None]
    return out


def second_moments(
    problem: Problem, X: np.ndarray, model: int, weight: np.ndarray | None
) -> np.ndarray:
    """Sums of squares of rows in a model's coordinates, times weights (b, k): (k, d + 1, d + 1).

    Threads share the columns of the weights. Without any, all are 1, and k is 1.
    """
    (n, d), k, dtype = X.shape, 1 if weight is None else weight.shape[1], X.dtype
    X = np.ascontiguousarray(X)
    if weight is not None:
        weight = np.ascontiguousarray(weight, dtype)
    mean, scale, sums = np.zeros(d, dtype), np.ones(d, dtype), empty_rows((k, d + 1), d + 1, dtype)
    if problem.mean is not None:
        mean = np.ascontiguousarray(problem.mean[model, 0])
    if problem.inverse_scale is not None:
        scale = np.ascontiguousarray(problem.inverse_scale[model, 0])
    piece = _Piece(problem.data, X, None, range(n), is_stored=False)
    common = {"m": 1, "mean": mean, "inverse_scale": scale, "n_columns": k}
    common |= {"fit_intercept": problem.fit_intercept, "stride": sums.shape[-1]}
    job, cost = Job(piece.fields(), piece.some(0, n), common), k * n * d**2 / 2
    n_jobs = int(max(1, min(k, MOST_PARTS, cost // WORTH_A_THREAD)))
    jobs = [
        job.copy(
            {"k": last - first, "out": sums[first:]},
            {"sample_weight": None if weight is None else weight[:, first:]},
        )
        for first, last in pairwise(k * part // n_jobs for part in range(n_jobs + 1))
    ]
    problem.backend.each(lambda job: job.run("second_moments"), jobs, cost)
    return sums[..., : d + 1]


# Predictions


def predictions(
    data: Rows,
    coef: np.ndarray,
    intercept: np.ndarray,
    method: str,
    order: np.ndarray | None = None,
) -> tuple[np.ndarray, bool]:
    """What `skmax.objective.predictions` does, in threads that share the rows."""
    (k_coef, d), n = coef.shape, data.n_samples if order is None else len(order)
    out, weights = outputs_of(data, intercept, method, k_coef, n)
    weights["coef"] = padded_rows(coef, data.dtype)
    finite, done = True, 0
    for piece in _pieces(data, order):
        n, cost = len(piece), len(piece) * d * (weights["k"] + _READ)
        most = max(n_threads(), n // _ROWS_OF_A_PART)  # since each reads all weights
        rows = piece.parts(max(1, min(MOST_PARTS, n, most, cost // WORTH_A_THREAD)))
        job, jobs = Job(piece.fields(), weights), []
        for some in rows:
            jobs.append(job.copy(some, {"out": out[done : done + some["n"]]}))
            done += some["n"]
        data.backend.each(lambda job: job.run("predict"), jobs, cost)
        finite &= all(job.all_finite for job in jobs)
    return out[:, 0] if out.shape[1:] == (1,) else out, finite

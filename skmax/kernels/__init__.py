"""What is faster than the reference: epochs, passes and predictions.

The references, to which `tests/test_kernels.py` holds them, are `skmax.solvers.sgd.sgd_epoch`, and
in `skmax.objective` `full_pass` and `predicted`, and `skmax.solvers.preconditioner.weighted_sums`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scipy.sparse import issparse

from skmax.backends import Array
from skmax.data import Rows
from skmax.kernels import cpu, cuda, many_classes, sparse, sparse_rows
from skmax.problem import BatchSums, Problem, State, Steps

SGDEpoch = Callable[[Problem, State, Steps], tuple[State, BatchSums]]
FullPass = Callable[..., tuple[Array, ...]]
Moments = Callable[[Problem], tuple[Array, ...]]
Predictions = Callable[..., tuple[Array, bool]]


def sgd_epoch(problem: Problem, batch_size: int) -> SGDEpoch | None:
    """The kernel for epochs of a problem in such batches; None: the reference serves."""
    if problem.backend.name == "numpy":
        if problem.data.is_sparse:
            return sparse.sgd_epoch if sparse.serves(problem.data) else None
        return cpu.sgd_epoch if cpu.serves(problem.data) else None
    if problem.backend.name == "cupy":
        device = cuda.Device.of(problem.backend.device)
        if problem.data.is_sparse:
            return sparse_rows.Plan.of(problem, batch_size, device)
        few = cuda.Plan.of(problem, batch_size, device)
        return many_classes.Plan.of(problem, batch_size, device) if few is None else few
    return None


def full_pass(problem: Problem) -> FullPass | None:
    """The kernel for full passes of a problem; None: the reference serves."""
    if problem.backend.name != "numpy":
        return None
    if problem.data.is_sparse:
        return sparse.full_pass if sparse.serves(problem.data) else None
    return cpu.full_pass if cpu.serves(problem.data) else None


def moments(problem: Problem) -> Moments | None:
    """The kernel for weighted sums of features and their squares; None: the reference serves."""
    served = problem.backend.name == "numpy" and not problem.data.is_sparse
    return cpu.moments if served and cpu.serves(problem.data) else None


def predictions(data: Rows, coef: Any) -> Predictions | None:
    """The kernel for predictions of such rows by such weights; None: the reference serves."""
    if data.backend.name != "numpy" or issparse(coef):
        return None
    if data.is_sparse:
        return sparse.predictions if sparse.serves(data) else None
    return cpu.predictions if cpu.serves(data) else None

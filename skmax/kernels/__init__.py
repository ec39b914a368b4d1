"""What is faster than the reference: epochs, passes and predictions.

The references, to which `tests/test_kernels.py` holds them, are `skmax.solvers.sgd.sgd_epoch`, and
in `skmax.objective` `full_pass` and `predicted`.
"""

from __future__ import annotations

from collections.abc import Callable

from skmax.backends import Array
from skmax.data import Rows
from skmax.kernels import cpu, cuda, predict, sparse
from skmax.problem import BatchSums, Problem, State, Steps

SGDEpoch = Callable[[Problem, State, Steps], tuple[State, BatchSums]]
FullPass = Callable[..., tuple[Array, ...]]
Predictions = Callable[..., tuple[Array, bool]]


def sgd_epoch(problem: Problem, batch_size: int) -> SGDEpoch | None:
    """The kernel for epochs of a problem in such batches; None: the reference serves."""
    if problem.backend.name == "numpy":
        if problem.data.is_sparse:
            return sparse.sgd_epoch if sparse.serves(problem, batch_size) else None
        return cpu.sgd_epoch
    if problem.data.is_sparse:
        return None
    if problem.backend.name == "cupy":
        return cuda.Plan.of(problem, batch_size, cuda.Device.of(problem.backend.device))
    return None


def full_pass(problem: Problem) -> FullPass | None:
    """The kernel for full passes of a problem; None: the reference serves."""
    if problem.backend.name != "numpy":
        return None
    if problem.data.is_sparse:
        return sparse.full_pass if problem.data.shift is None else None
    return cpu.full_pass


def prepared(problem: Problem) -> Problem:
    """The same problem, its rows laid out as full passes of many models like them."""
    return cpu.sorted_by_models(problem) if full_pass(problem) is cpu.full_pass else problem


def predictions(data: Rows) -> Predictions | None:
    """The kernel for predictions of such rows; None: the reference serves."""
    in_memory = data.backend.name == "numpy" and not data.is_on_disk
    return predict.predictions if in_memory else None

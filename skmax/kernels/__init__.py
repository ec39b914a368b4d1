"""What does an epoch or a pass faster than the reference; `tests/test_kernels.py` holds it to that.

The references are `skmax.solvers.sgd.sgd_epoch` and `skmax.objective.full_pass`.
"""

from __future__ import annotations

from collections.abc import Callable

from skmax.backends import Array
from skmax.kernels import cpu, cuda
from skmax.problem import BatchSums, Problem, State, Steps

SGDEpoch = Callable[[Problem, State, Steps], tuple[State, BatchSums]]
FullPass = Callable[..., tuple[Array, ...]]


def sgd_epoch(problem: Problem, batch_size: int) -> SGDEpoch | None:
    """The kernel for epochs of a problem in such batches; None: the reference serves."""
    if problem.data.is_sparse:
        return None
    if problem.backend.name == "numpy":
        return cpu.sgd_epoch
    if problem.backend.name == "cupy":
        return cuda.Plan.of(problem, batch_size, cuda.Device.of(problem.backend.device))
    return None


def full_pass(problem: Problem) -> FullPass | None:
    """The kernel for full passes of a problem; None: the reference serves."""
    if problem.backend.name == "numpy" and not problem.data.is_sparse:
        return cpu.full_pass
    return None

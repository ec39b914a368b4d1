"""What is faster than the reference: epochs, passes and predictions.

The references, to which `tests/test_kernels.py` holds them, are `skmax.solvers.sgd.sgd_epoch`,
`skmax.solvers.learning_rate.curvature`, `skmax.solvers.preconditioner.weighted_sums`, and in
`skmax.objective` `full_pass`, `summed_penalty` and `predicted`. What L-BFGS does besides its passes
is in `skmax.kernels.descent` and `host_descent`, and what it starts from in `cpu` and `descent`;
`tests/test_descent.py` holds that to `skmax.solvers.coordinates`, `skmax.solvers.pairs`,
`skmax.duality` and `skmax.solvers.curvature`. What Newton's methods do with all rows is in
`newton`; `tests/test_newton.py` holds that to `skmax.solvers.newton.Descent`, and to the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import issparse

from skmax.backends import Array, Backend
from skmax.data import Rows
from skmax.kernels import (
    cpu,
    cuda,
    descent,
    device_sums,
    few_classes,
    halves,
    host_descent,
    many_classes,
    newton,
    residual,
    sparse,
    sparse_rows,
)
from skmax.problem import BatchSums, Problem, State, Steps

# Processors per model from which on models had better share all, as `many_classes` does, than
# have one each. On the 132 of an H200, which did without clusters, epochs of Fashion-MNIST with 10
# classes took 4.4, 5.7 and 9.9 ms for 1, 4 and 16 models, instead of 16.5 to 16.8.
_WORTH_A_DEVICE = 4

SGDEpoch = Callable[[Problem, State, Steps], tuple[State, BatchSums]]
FullPass = Callable[..., tuple[Array, ...]]
Moments = Callable[[Problem], tuple[Array, ...]]
Curvature = Callable[[Problem, np.ndarray, int, float], np.ndarray]
Penalty = Callable[[Problem, Array], Array]
Curvatures = Callable[[Problem, Array, Array, Array, Any], Array]
SecondMoments = Callable[[Problem, Array, int, Array | None], Array]
Solved = Callable[[Array, Array], Array]
Predictions = Callable[..., tuple[Array, bool]]


def sgd_epoch(problem: Problem, batch_size: int) -> SGDEpoch | None:
    """The kernel for epochs of a problem in such batches; None: the reference serves."""
    if problem.backend.name == "numpy":
        if problem.data.is_sparse:
            return sparse.sgd_epoch if sparse.serves(problem.data) else None
        return cpu.sgd_epoch if cpu.serves(problem.data) else None
    if problem.backend.name == "cupy":
        return _on_device(problem, batch_size, cuda.Device.of(problem.backend.device))
    return None


def _on_device(problem: Problem, batch_size: int, device: cuda.Device) -> SGDEpoch | None:
    modules: list[Any] = [few_classes, cuda, many_classes]
    if problem.data.is_sparse:
        modules = [sparse_rows]
    # Without clusters, `cuda` has a single block for a model.
    elif device.cluster == 1 and problem.n_models * _WORTH_A_DEVICE <= device.n_processors:
        modules = [many_classes, cuda]
    plans = (module.Plan.of(problem, batch_size, device) for module in modules)
    return next((plan for plan in plans if plan is not None), None)


def full_pass(problem: Problem) -> FullPass | None:
    """The kernel for full passes of a problem; None: the reference serves."""
    if problem.backend.name == "cupy":
        served = (module for module in (halves, residual) if module.serves(problem))
        return next((module.full_pass for module in served), None)
    if problem.backend.name != "numpy":
        return None
    if problem.data.is_sparse:
        return sparse.full_pass if sparse.serves(problem.data) else None
    return cpu.full_pass if cpu.serves(problem.data) else None


def moments(problem: Problem) -> Moments | None:
    """The kernel for weighted sums of features and their squares; None: the reference serves."""
    if problem.data.is_sparse:
        return None
    if problem.backend.name == "cupy":
        return device_sums.moments if device_sums.serves(problem.data) else None
    return cpu.moments if problem.backend.name == "numpy" and cpu.serves(problem.data) else None


def curvature(problem: Problem) -> Curvature | None:
    """The kernel for the power method on few rows; None: the reference serves."""
    served = problem.backend.name == "cupy" and not problem.data.is_sparse
    return device_sums.curvature if served and device_sums.serves(problem.data) else None


def penalty(problem: Problem) -> Penalty | None:
    """The kernel for the penalty of weights; None: the reference serves."""
    return device_sums.penalty if problem.backend.name == "cupy" else None


def vectors(backend: Backend) -> Any:
    """The module for what L-BFGS does besides its passes; None: the reference serves."""
    modules = descent, host_descent
    return next((module for module in modules if module.serves(backend)), None)


def curvatures(problem: Problem) -> Curvatures | None:
    """The kernel for curvatures of the loss by the logits of rows; None: the reference serves."""
    if problem.data.is_sparse:
        return None
    if problem.backend.name == "numpy":
        return cpu.curvatures if cpu.serves(problem.data) else None
    return descent.curvatures if descent.serves(problem.backend) else None


def second_moments(backend: Backend) -> SecondMoments | None:
    """The kernel for weighted second moments of dense rows; None: the reference serves."""
    return cpu.second_moments if host_descent.serves(backend) else None


def solved(backend: Backend) -> Solved | None:
    """The kernel for linear systems of matrices that are factored; None: the backend serves."""
    return host_descent.solved if host_descent.serves(backend) else None


def newton_descent() -> Any:
    """What Newton's method does with all rows; None: the reference serves."""
    return newton.Descent if newton.serves() else None


def hessian() -> Any:
    """The Hessian of the cross-entropy of few features; None: the reference serves."""
    return newton.hessian if newton.serves() else None


def predictions(data: Rows, coef: Any) -> Predictions | None:
    """The kernel for predictions of such rows by such weights; None: the reference serves."""
    if data.backend.name != "numpy" or issparse(coef):
        return None
    if data.is_sparse:
        return sparse.predictions if sparse.serves(data) else None
    return cpu.predictions if cpu.predicts(data, coef) else None

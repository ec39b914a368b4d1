"""Dense rows on a CUDA device: sums over all of them in one launch, and a second that adds up."""

from __future__ import annotations

from typing import Any

import numpy as np

from skmax.backends import float_dtype_for
from skmax.backends.array_api import dtype_name
from skmax.backends.device_code import Unit, kernel
from skmax.data import Rows
from skmax.data.device import DeviceRows
from skmax.data.rows import start_of_range
from skmax.kernels.cuda import DATA, MOST_ROWS
from skmax.problem import Problem

_PENALTY = {
    real: Unit(("primitives.cuh", "penalty.cu"), ("-std=c++17", f"-DREAL={real}"))
    for real in ("float", "double")
}
# As the sources have them; about how many blocks keep any device busy, and the fewest rows of one.
_WARP, _THREADS, _BLOCKS, _FEWEST_ROWS, _FEWEST_WEIGHTS = 32, 128, 2048, 64, 4096


def serves(data: Rows) -> bool:
    """Whether such rows are what `moments` sums: dense, on the device, in their precision."""
    return (
        isinstance(data, DeviceRows)
        and data.is_all_there
        and dtype_name(data.X) in DATA
        and data.dtype == float_dtype_for(data.X)
        and data.n_samples <= MOST_ROWS
    )


def units() -> list[Unit]:
    """What is compiled ahead."""
    return [*{_unit(name): None for name in DATA}, *_PENALTY.values()]


def _unit(name: str) -> Unit:
    real = "double" if name == "float64" else "float"
    options = ("-std=c++17", f"-DDATA={DATA[name]}", f"-DREAL={real}")
    return Unit(("primitives.cuh", "moments.cu"), options)


def moments(problem: Problem) -> tuple[Any, ...]:
    """What `skmax.solvers.preconditioner.weighted_sums` does for `first_two`."""
    data, backend, weight = problem.data, problem.backend, problem.sample_weight
    assert isinstance(data, DeviceRows)
    cupy, n, d = data.backend.cupy, len(problem.order), data.n_features
    u = 1 if weight is None else weight.shape[1]
    X, start = data.X, start_of_range(problem.order)
    index: Any = np.uintp(0)
    if start is None:
        index = backend.asarray(problem.order, np.int32)
    else:
        X, weight = X[start:], None if weight is None else weight[start:]
    tiles = -(-d // _WARP)
    n_parts = max(1, min(-(-n // _FEWEST_ROWS), _BLOCKS // (tiles * u)))
    parts = cupy.empty((n_parts, 2, u, d), np.float64)
    arguments = (
        X,
        index,
        *(np.int32(size) for size in (n, d, u)),
        np.uintp(0) if data.subtrahend is None else cupy.ascontiguousarray(data.subtrahend),
        np.uintp(0) if weight is None else weight,
        np.int32(n_parts),
        parts,
    )
    launch = kernel(_unit(dtype_name(X)), "moments", backend.device.id)
    shared = 2 * 8 * _THREADS
    launch((tiles * n_parts * u,), (_THREADS,), arguments, shared_mem=shared)
    sums = data.backend.total(parts)
    return sums[0], sums[1]


def penalty(problem: Problem, coef: Any) -> np.ndarray:
    """What `skmax.objective.summed_penalty` does; weights of models follow one another."""
    backend: Any = problem.backend
    cupy, m, size = backend.cupy, len(coef), coef[0].size
    n_parts = max(1, min(-(-size // _FEWEST_WEIGHTS), _BLOCKS // m))
    parts = cupy.empty((n_parts, m), np.float64)
    strengths = backend.asarray(np.stack([np.sqrt(problem.l2 / 2), problem.l1]), np.float64)
    arguments = cupy.ascontiguousarray(coef), np.int32(m), np.int64(size), strengths, parts
    unit = _PENALTY["double" if coef.dtype == np.float64 else "float"]
    launch = kernel(unit, "penalty", backend.device.id)
    launch((n_parts * m,), (_THREADS,), arguments, shared_mem=8 * _THREADS)
    return backend.to_numpy(backend.total(parts))

"""Dense rows on a CUDA device: sums over all of them in one launch, and a second that adds up."""

from __future__ import annotations

from typing import Any

import numpy as np

from skmax.backends import float_dtype_for
from skmax.backends.array_api import dtype_name
from skmax.backends.device_code import Unit, kernel
from skmax.data import Rows
from skmax.data.device import DeviceRows
from skmax.kernels.cuda import DATA, MOST_ROWS
from skmax.problem import Problem

# In the power method: threads of a block, the most parts of the rows, the fewest rows of one, and
# the iterations after which the host looks whether all is done.
THREADS, _MOST_PARTS, _ROWS_OF_A_PART, _ITERATIONS = 256, 32, 64, 8
_PENALTY = {
    real: Unit(("primitives.cuh", "penalty.cu"), ("-std=c++17", f"-DREAL={real}"))
    for real in ("float", "double")
}
# As the sources have them; about how many blocks keep any device busy, and the fewest rows of one.
_WARP, _THREADS, _BLOCKS, _FEWEST_ROWS, _FEWEST_WEIGHTS = 32, 128, 2048, 64, 16384


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
    of_data = [unit for name in DATA for unit in (_unit(name), *_of_curvature(name))]
    return [*dict.fromkeys(of_data), *_PENALTY.values()]


def _unit(name: str) -> Unit:
    real = "double" if name == "float64" else "float"
    options = ("-std=c++17", f"-DDATA={DATA[name]}", f"-DREAL={real}")
    return Unit(("primitives.cuh", "moments.cu"), options)


def _of_curvature(name: str) -> tuple[Unit, Unit]:
    standard, data, real = _unit(name).options
    threads = f"-DTHREADS={THREADS}"
    return (
        Unit(("primitives.cuh", "curvature.cu"), (standard, data, real, threads)),
        Unit(("primitives.cuh", "iterate.cu"), (standard, real, threads)),
    )


def moments(problem: Problem) -> tuple[Any, ...]:
    """What `skmax.solvers.preconditioner.weighted_sums` does for `first_two`."""
    data, backend, weight = problem.data, problem.backend, problem.sample_weight
    assert isinstance(data, DeviceRows)
    cupy, n, d = data.backend.cupy, len(problem.order), data.n_features
    u = 1 if weight is None else weight.shape[1]
    X, start = data.X, problem.start
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
        *(_or_null(data.subtrahend), _or_null(weight)),
        np.int32(n_parts),
        parts,
    )
    launch = kernel(_unit(dtype_name(X)), "moments", backend.device.id)
    shared = 2 * 8 * _THREADS
    launch((tiles * n_parts * u,), (_THREADS,), arguments, shared_mem=shared)
    sums = data.backend.total(parts)
    return sums[0], sums[1]


def penalty(problem: Problem, coef: Any) -> Any:
    """What `skmax.objective.summed_penalty` does; weights of models follow one another."""
    backend: Any = problem.backend
    cupy, m, size = backend.cupy, len(coef), coef[0].size
    n_parts = max(1, min(-(-size // _FEWEST_WEIGHTS), _BLOCKS // m))
    parts = cupy.empty((n_parts, m), np.float64)
    strengths = problem.strengths_there
    arguments = cupy.ascontiguousarray(coef), np.int32(m), np.int64(size), strengths, parts
    unit = _PENALTY["double" if coef.dtype == np.float64 else "float"]
    launch = kernel(unit, "penalty", backend.device.id)
    launch((n_parts * m,), (_THREADS,), arguments, shared_mem=8 * _THREADS)
    return backend.total(parts) if n_parts > 1 else parts[0]


def curvature(problem: Problem, rows: np.ndarray, n_iter: int, settled: float) -> np.ndarray:
    """What `skmax.solvers.learning_rate.curvature` does."""
    data, m, weight = problem.data, problem.n_models, problem.sample_weight
    assert isinstance(data, DeviceRows)
    backend, cupy, n, d = data.backend, data.backend.cupy, len(rows), data.n_features
    n_parts = max(1, min(_MOST_PARTS, -(-n // _ROWS_OF_A_PART)))
    vector, offset = cupy.empty((m, d), data.dtype), cupy.empty((m,), data.dtype)
    done, value = cupy.empty((m,), np.int32), cupy.empty((m,), np.float64)
    parts = cupy.empty((m, n_parts, d + 1), np.float64)
    images = (
        *(data.X, backend.asarray(rows, np.int32), np.int32(n), np.int32(d)),
        *(_or_null(data.subtrahend), _or_null(weight)),
        np.int32(1 if weight is None else weight.shape[1]),
        backend.asarray(problem.columns, np.int32),
        *(vector, offset, done, np.int32(n_parts), parts),
    )
    fixed = np.int32(n), np.int32(d), np.int32(problem.fit_intercept)
    rest = (
        *(_or_null(problem.mean), _or_null(problem.inverse_scale)),
        *(np.int32(n_parts), parts, vector, offset, done, value),
    )
    units, threads = _of_curvature(dtype_name(data.X)), (THREADS,)
    image, iterate = (
        kernel(unit, name, backend.device.id)
        for unit, name in zip(units, ("images", "iterate"), strict=True)
    )
    shared_image, shared = 8 * _WARP * -(-n // n_parts), 8 * THREADS
    for i in range(n_iter + 1):
        if i:
            image((m * n_parts,), threads, images, shared_mem=shared_image)
        arguments = (*fixed, np.int32(i == 0), np.float64(settled), *rest)
        iterate((m,), threads, arguments, shared_mem=shared)
        if i % _ITERATIONS == _ITERATIONS - 1 and backend.to_numpy(done).all():
            break
    return backend.to_numpy(value)


def _or_null(array: Any) -> Any:
    return np.uintp(0) if array is None else array

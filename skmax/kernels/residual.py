"""Full passes over dense rows on a CUDA device: two products by cuBLAS, and a kernel between them.

The kernel is `residual.cu`. Shapes are those of `skmax.problem`.
"""

from __future__ import annotations

from functools import cache
from operator import add
from typing import Any

import numpy as np

from skmax.backends import Array
from skmax.backends.device_code import Unit, kernel
from skmax.data.device import DeviceRows
from skmax.kernels.cuda import WARP, Device, argument, which
from skmax.problem import Problem

SOURCES = "primitives.cuh", "halves.cuh", "residual.cu"
# In the order of the kernel's parameters.
PARAMETERS = (
    *("logits", "n", "width", "m", "k", "scale", "intercept", "index", "first", "label", "target"),
    *("weight", "score_weight", "u", "column", "smoothing", "lanes", "groups", "halves", "unit"),
    "sums",
)
# Logits that a thread has of a row, if there are enough; threads per block; and the logits that a
# thread can hold, with the blocks that a processor then has room for. Between products of float32,
# which take most of the time, more of them are read again.
_LOGITS, _THREADS, _HELD, _FEW = 4, 256, {4: 8, 16: 2, 32: 2, 0: 8}, (4, 0)
# Bytes of what is made of a piece: small pieces would stay in the cache, but save less time by that
# than their launches take. Rows that a product sums in X's own precision, and rows of a piece.
_BYTES, _SUMMED, _MOST_ROWS = 1 << 28, 1 << 13, 1 << 16


def serves(problem: Problem) -> bool:
    """Whether these are the passes for a problem."""
    if not isinstance(problem.data, DeviceRows):
        return False
    device = _device(problem.backend.device.id)
    return _shared_bytes(problem.n_classes, WARP) <= device.shared_bytes


@cache
def _device(index: int) -> Device:
    """What a device says of itself, which takes as long as a few operations on it."""
    import cupy

    return Device.of(cupy.cuda.Device(index))


def full_pass(
    problem: Problem, coef: Array, intercept: Array, *, gradient: bool
) -> tuple[Array, ...]:
    """See `skmax.objective.full_pass`. It returns before the device is done."""
    data, (m, k, d) = problem.data, coef.shape
    columns, values = coef.reshape(m * k, d).T, of_problem(problem, intercept)
    totals: list[Any] = []
    for index, X in data.pieces(problem.order, _rows_per_piece(problem)):
        logits = X @ columns
        parts = [compare(problem, logits, index, values)]
        if gradient:
            parts.append(_pullback(problem.backend, X, logits))
        totals = list(map(add, totals, parts)) if totals else parts
    sums, *by_coef = totals
    if not gradient:
        return sums[k], sums[k + 1]
    return sums[k], sums[k + 1], by_coef[0].reshape(coef.shape), sums[:k].T


def _rows_per_piece(problem: Problem) -> int:
    size, width = np.dtype(problem.data.dtype).itemsize, problem.n_models * problem.n_classes
    d = problem.data.n_features
    products = max(1, _BYTES // (size * width * d))  # that are held at once
    return max(WARP, min(_BYTES // (size * (d + width)), _SUMMED * products, _MOST_ROWS))


def _pullback(backend: Any, X: Array, residual: Array) -> Array:
    """Products (m k, d) of the transposed residual with X, in float64 but for so many rows."""
    n_parts = -(-len(X) // _SUMMED)
    products = backend.xp.empty((n_parts, residual.shape[1], X.shape[1]), dtype=X.dtype)
    for i in range(n_parts):
        part = slice(i * _SUMMED, min((i + 1) * _SUMMED, len(X)))
        residual[part].T.dot(X[part], out=products[i])
    return backend.total(products)


def of_problem(problem: Problem, intercept: Array) -> dict[str, Any]:
    """The kernel's arguments that are the same for all pieces."""
    xp, weight = problem.backend.xp, problem.sample_weight
    (m, k), soft = problem.masked.shape, problem.targets.ndim == 2
    return {
        "m": np.int32(m),
        "k": np.int32(k),
        "scale": None,
        "intercept": intercept,
        "label": None if soft else xp.astype(problem.targets, xp.int64, copy=False),
        "target": problem.targets if soft else None,
        "weight": weight,
        "score_weight": None if weight is None else problem.score_weight,
        "u": np.int32(1 if weight is None else weight.shape[1]),
        "column": problem.columns_there,
        "smoothing": problem.smoothing,
        "lanes": np.int32(_lanes(k)),
        "halves": None,
        "unit": np.dtype(problem.data.dtype).type(1),
    }


def _lanes(k: int) -> int:
    return min(WARP, 1 << (-(-k // _LOGITS) - 1).bit_length())


def _held(k: int, real: int, *, halves: bool) -> int:
    """How many logits of so many bytes a thread holds; 0: they are too many for that."""
    fitting = (held for held in _HELD if held * _lanes(k) >= k)
    held = next(fitting, 0)
    return held if halves or (held in _FEW and real == 4) else 0


def _shared_bytes(k: int, threads: int) -> int:
    return 8 * (threads // _lanes(k)) * (k + 2)


def compare(problem: Problem, logits: Array, index: Any, values: dict[str, Any]) -> Array:
    """The kernel's sums (k + 2, m) of logits (b, width), in order of models and classes.

    Derivatives by them take their place, or, of logits with scales, come as halves if there is an
    array for these.
    """
    (m, k), b = problem.masked.shape, len(logits)
    backend: Any = problem.backend
    device, threads, real = _device(backend.device.id), _THREADS, logits.dtype.itemsize
    halves = values["scale"] is not None
    held = _held(k, real, halves=halves)
    while _shared_bytes(k, threads) > device.shared_bytes:
        threads //= 2
    shared, groups = _shared_bytes(k, threads), threads // _lanes(k)
    blocks = max(1, min(-(-b // groups), device.blocks(shared, _HELD[held]) // m))
    sums = backend.xp.empty((blocks, k + 2, m), dtype=backend.xp.float64)
    indices, first = which(index)
    values = values | {
        "logits": logits,
        "n": np.int32(b),
        "width": np.int32(logits.shape[1]),
        "index": indices,
        "first": first,
        "groups": np.int32(groups),
        "sums": sums,
    }
    kernel(unit(real, held, halves=halves), "residual", device.index)(
        (blocks * m,),
        (threads,),
        tuple(argument(values[name]) for name in PARAMETERS),
        shared_mem=shared,
    )
    return backend.total(sums)


def unit(real: int, held: int, *, halves: bool = False) -> Unit:
    """What is compiled, for logits of so many bytes."""
    defined = {"REAL": "double" if real == 8 else "float", "HELD": held, "HALVES": int(halves)}
    options = (f"-D{name}={value}" for name, value in defined.items())
    return Unit(SOURCES, ("-std=c++17", *options))


def units() -> list[Unit]:
    """What is compiled ahead: all."""
    between = [unit(4, held, halves=True) for held in _HELD]
    return [*between, *(unit(4, held) for held in _FEW), unit(8, 0)]

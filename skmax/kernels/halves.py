"""Full passes over dense rows on a CUDA device whose tensor cores are faster than its others.

Factors are sums of two numbers of 16 bits, see `halves.cu`; what lies between the products is the
kernel of `skmax.kernels.residual`. Shapes are those of `skmax.problem`.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import add
from typing import Any, NamedTuple

import numpy as np

from skmax.backends import Array
from skmax.backends.array_api import dtype_name
from skmax.backends.cupy import address
from skmax.backends.device_code import Unit, kernel
from skmax.data.device import DeviceRows
from skmax.kernels import residual
from skmax.kernels.cuda import DATA, MOST_ROWS, argument, which
from skmax.problem import Problem

SOURCES = "primitives.cuh", "halves.cuh", "halves.cu"
# Types of X, and those whose values have no more bits than a half.
_TYPES = {name: type_ for name, type_ in DATA.items() if name != "float64"}
_SHORT = ("bool", "uint8", "int8", "float16")
# Compute capabilities, times ten, of devices whose tensor cores multiply 16 bits ten times as fast
# as others 32: those for servers. On others, they do so two to four times as fast.
_CAPABILITIES = (80, 90, 100, 103)
# The fewest features and logits of a row, and multiply-adds of a product with all rows, that are
# worth it. On an H200, a pass of 40,000 rows, 384 features and 413 classes took 0.74 times as long
# as with products of floats, with 24 models of 50 classes 0.53 times, 1,000 classes and 768
# features 0.45 times; 20,000 rows, 128 features and 200 classes 1.8 times: there are more launches.
_FEWEST_FEATURES, _FEWEST_LOGITS, _FEWEST_PRODUCTS = 64, 64, 2e9
# Entries of a row are a multiple of this, which products of 16 bits want.
_ALIGNMENT = 8
# Bytes of what is made of a piece, and rows that a product sums in float32: tensor cores cut sums
# off instead of rounding them, which adds up.
_BYTES, _SUMMED = 1 << 29, 1 << 11
# As the source has them; about how many blocks keep any device busy, and the fewest rows of one.
_WARP, _THREADS, _BLOCKS, _FEWEST_ROWS = 32, 128, 4096, 64
# The largest derivative is brought to 2 to this power, if its own is no more than so far from 0.
_LARGEST, _MOST = 14, 100
# Of cuBLAS: types of data, and how it computes.
_FLOAT, _HALF, _COMPUTE_FLOAT, _ANY_ALGORITHM = 0, 2, 68, -1
_AS_IT_IS, _TRANSPOSED = 0, 1


def serves(problem: Problem) -> bool:
    """Whether these are the passes for a problem."""
    data, (m, k) = problem.data, problem.masked.shape
    return (
        isinstance(data, DeviceRows)
        and data.is_all_there
        and dtype_name(data.X) in _TYPES
        and data.n_samples <= MOST_ROWS
        and np.dtype(data.dtype) == np.float32
        and int(data.backend.device.compute_capability) in _CAPABILITIES
        and data.n_features >= _FEWEST_FEATURES
        and m * k >= _FEWEST_LOGITS
        and len(problem.order) * m * k * data.n_features >= _FEWEST_PRODUCTS
        and residual.serves(problem)
    )


class _Width(NamedTuple):
    """Entries of a row of X, and of logits, as they are and as they are laid out."""

    d: int
    features: int
    classes: int
    logits: int

    @classmethod
    def of(cls, problem: Problem) -> _Width:
        (m, k), d = problem.masked.shape, problem.data.n_features
        return cls(d, _aligned(d), m * k, _aligned(m * k))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def full_pass(
    problem: Problem, coef: Array, intercept: Array, *, gradient: bool
) -> tuple[Array, ...]:
    """See `skmax.objective.full_pass`. It returns before the device is done."""
    data: Any = problem.data
    k, width = coef.shape[1], _Width.of(problem)
    exponent = problem.once(_exponents, lambda: _exponents(problem))
    weights, scale = _weights(data, coef, exponent, width)
    factor = _factor(problem)
    values = residual.of_problem(problem, intercept) | {"scale": scale, "unit": np.float32(factor)}
    totals: list[Any] = []
    for index, n_rows in _pieces(problem, width):
        X = _rows(data, index, n_rows, exponent, width)
        logits = _logits(X, weights)
        if gradient:
            values["halves"] = data.backend.cupy.empty((n_rows, 2, width.logits), np.float16)
        parts = [residual.compare(problem, logits, index, values)]
        if gradient:
            products = _products(X, values["halves"])
            parts.append(_total(data, products, exponent, factor, width))
        totals = list(map(add, totals, parts)) if totals else parts
    sums, *by_coef = totals
    if not gradient:
        return sums[k], sums[k + 1]
    return sums[k], sums[k + 1], by_coef[0].reshape(coef.shape), sums[:k].T


def _pieces(problem: Problem, width: _Width) -> Iterator[tuple[Any, int]]:
    """Which rows are taken at a time, and how many these are."""
    data, n = problem.data, len(problem.order)
    of_row = 2 * _n_halves(data) * width.features + 8 * width.logits
    of_products = 8 * width.logits * width.features // _SUMMED  # a row's share of them
    size = max(_WARP, _BYTES // (of_row + of_products))
    size = size // _SUMMED * _SUMMED or size
    for i, index in enumerate(data.indices(problem.order, size, problem.start)):
        yield index, min(size, n - i * size)


def _n_halves(data: Any) -> int:
    """1: the upper ones alone are all that there is to the values of X."""
    return 1 if dtype_name(data.X) in _SHORT and data.subtrahend is None else 2


def _exponents(problem: Problem) -> Array:
    """The powers of two (d,) that bring features of its rows to the range of halves."""
    data: Any = problem.data
    empty, weight = data.backend.cupy.empty, problem.sample_weight
    n, d = len(problem.order), data.n_features
    tiles, (index,) = -(-d // _WARP), data.indices(problem.order, n, problem.start)
    n_parts = max(1, min(-(-n // _FEWEST_ROWS), _BLOCKS // tiles))
    parts, found = empty((n_parts, d), np.float32), empty((d,), np.int32)
    u = 1 if weight is None else weight.shape[1]
    of_rows = data.X, *which(index), n, d, data.subtrahend, weight, u
    name = dtype_name(data.X)
    _launch(data, "largest", tiles * n_parts, 4 * _THREADS, *of_rows, n_parts, parts, of=name)
    _launch(data, "exponents", -(-d // _THREADS), 0, parts, n_parts, d, found)
    return found


def _factor(problem: Problem) -> float:
    """A power of two that brings the largest derivatives to the range of halves."""
    if not problem.largest_weight > 0:  # there is no derivative but zero
        return 1.0
    return 2.0 ** (_LARGEST - np.clip(np.ceil(np.log2(problem.largest_weight)), -_MOST, _MOST))


def _weights(data: Any, coef: Array, exponent: Array, width: _Width) -> tuple[Array, Array]:
    """Halves (classes, 2, features) of weights, and the scales of their logits."""
    empty = data.backend.cupy.empty
    halves = empty((width.logits, 2, width.features), np.float16)
    scale = empty((width.classes,), np.float32)
    of_weights = coef, width.classes, width.d, width.features, exponent, scale, halves
    _launch(data, "halve_weights", width.logits, 4 * _THREADS, *of_weights)
    return halves, scale


def _rows(data: Any, index: Any, n: int, exponent: Array, width: _Width) -> Array:
    """Halves (n, 1 or 2, features) of rows of X."""
    n_halves = _n_halves(data)
    halves = data.backend.cupy.empty((n, n_halves, width.features), np.float16)
    blocks = min(_BLOCKS, -(-n * _WARP // _THREADS))
    of_rows = data.X, *which(index), n, width.d, width.features, data.subtrahend, exponent
    _launch(data, "halve_rows", blocks, 0, *of_rows, n_halves, halves, of=dtype_name(data.X))
    return halves


def _logits(X: Array, weights: Array) -> Array:
    """Products (n, logits) of rows and weights; lower halves meet upper ones, or only them.

    The product of two lower ones is less than what a float is rounded by.
    """
    import cupy

    (n, n_halves, d), (k, _, _) = X.shape, weights.shape
    logits = cupy.empty((n, k), np.float32)
    for i, (first, size) in enumerate([(0, n_halves * d), (d, d)]):
        _product(
            *(_TRANSPOSED, _AS_IT_IS, (k, n, size)),
            *((weights[:, first // d :], 2 * d), (X, n_halves * d), (logits, k)),
            add=i > 0,
        )
    return logits


def _products(X: Array, residuals: Array) -> Array:
    """Products (parts, logits, d) of so many rows of residuals and of X; to be added up."""
    import cupy

    (n, n_halves, d), (_, _, k) = X.shape, residuals.shape
    n_parts = -(-n // _SUMMED)
    products = cupy.empty((n_parts, 2, k, d), np.float32)
    whole = n // _SUMMED
    for first, count, size in [(0, whole, _SUMMED), (whole, 1, n % _SUMMED)]:
        if count * size:
            rows, there = slice(first * _SUMMED, None), products[first:]
            for i, lines in enumerate([2 * k, k][:n_halves]):
                _product(
                    *(_AS_IT_IS, _TRANSPOSED, (d, lines, size)),
                    *((X[rows, i:], n_halves * d), (residuals[rows], 2 * k), (there, d)),
                    add=i > 0,
                    count=count,
                    steps=(size * n_halves * d, size * 2 * k, 2 * k * d),
                )
    return products.reshape(2 * n_parts, k, d)


def _total(data: Any, products: Array, exponent: Array, factor: float, width: _Width) -> Array:
    """Their sums (classes, d), in float64."""
    sums = data.backend.cupy.empty((width.classes, width.d), np.float64)
    blocks = min(_BLOCKS, -(-sums.size // _THREADS))
    of_products = products, *products.shape, width.classes, width.d, exponent
    _launch(data, "total", blocks, 0, *of_products, np.float64(factor), sums)
    return sums


def _product(
    way: int,
    other_way: int,
    sizes: tuple[int, int, int],
    a: tuple[Array, int],
    b: tuple[Array, int],
    c: tuple[Array, int],
    *,
    add: bool,
    count: int = 1,
    steps: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Products of halves, `count` of them so many entries apart, in place of c or added to it.

    Matrices are given in the order of columns, as cuBLAS has it, with the distance of these.
    """
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    one, old = np.ones((), np.float32), np.full((), add, np.float32)
    places = [
        (address(array), of_type, distance, step)
        for (array, distance), of_type, step in zip(
            (a, b, c), (_HALF, _HALF, _FLOAT), steps, strict=True
        )
    ]
    cublas.gemmStridedBatchedEx(
        *(device.get_cublas_handle(), way, other_way, *sizes, one.ctypes.data, *places[0]),
        *(*places[1], old.ctypes.data, *places[2], count, _COMPUTE_FLOAT, _ANY_ALGORITHM),
    )


def _launch(
    data: Any, name: str, n_blocks: int, shared: int, *arguments: Any, of: str | None = None
) -> None:
    launch = kernel(unit(of), name, data.backend.device.id)
    given = tuple(np.int32(a) if isinstance(a, int) else argument(a) for a in arguments)
    launch((n_blocks,), (_THREADS,), given, shared_mem=shared)


def unit(of: str | None) -> Unit:
    """What is compiled for a type of X; None: what does not depend on it."""
    return Unit(SOURCES, ("-std=c++17", *([] if of is None else [f"-DDATA={_TYPES[of]}"])))


def units() -> list[Unit]:
    """What is compiled ahead: all."""
    return list(dict.fromkeys(unit(of) for of in (None, *_TYPES)))

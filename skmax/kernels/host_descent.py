"""What L-BFGS does with weights and gradients on the CPU, in few calls: `descent.h`, of the core.

The functions are those of `skmax.kernels.descent`, which does the same on a CUDA device, and
`solved`.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from skmax.kernels import library
from skmax.problem import Problem

# The most pairs that there is room for.
MOST = 16


class Vectors(ctypes.Structure):
    """What `descent.h` declares, where each field is explained."""

    _fields_ = [
        *[
            (name, ctypes.c_int64)
            for name in (
                "m", "k", "d", "r", "n", "most", "place", "size", "is_double", "fit_intercept",
            )
        ],
        ("n_rows", ctypes.c_double),
        *[
            (name, ctypes.c_void_p)
            for name in (
                "weights", "gradient", "old_weights", "old_gradient", "units", "mean", "loss",
                "correct", "by_coef", "by_intercept", "strengths", "l2", "class_sums", "sums",
                "known", "steps", "changes", "factors", "guess", "coef", "intercept", "out",
                "values",
            )
        ],
    ]  # fmt: skip


def serves(backend: Any) -> bool:
    """Whether this is where a backend computes."""
    return backend.name == "numpy" and library.function("state") is not None


def _run(name: str, dtype: Any, /, **fields: Any) -> None:
    """Call a function of the core; `dtype` is that of its arrays which may be of either."""
    arrays = []  # which the pointers point to
    for field, value in fields.items():
        if isinstance(value, np.ndarray):
            value = np.ascontiguousarray(value)
            arrays.append(value)
            fields[field] = library.address(value)
    library.call(name, Vectors(is_double=dtype == np.float64, **fields))


def _sizes(weights: np.ndarray) -> dict[str, int]:
    m, k, p = weights.shape
    return {"m": m, "k": k, "d": p - 1}


def state(problem: Problem, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `skmax.kernels.descent.state`."""
    (m, k, p), dtype = weights.shape, problem.data.dtype
    coef, intercept = np.empty((m, k, p - 1), dtype), np.empty((m, k), dtype)
    of_data = {"units": problem.inverse_scale, "mean": problem.mean}
    given = {"weights": weights, "coef": coef, "intercept": intercept}
    _run("state", dtype, **_sizes(weights), **of_data, **given)
    return coef, intercept


def gradient(
    problem: Problem, weights: np.ndarray, sums: tuple[np.ndarray, ...], strengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """See `skmax.kernels.descent.gradient`."""
    m, result = len(weights), np.empty(weights.shape)
    values = np.empty((4, m))
    of_data = {"units": problem.inverse_scale, "mean": problem.mean}
    of_rows = dict(zip(("loss", "correct", "by_coef", "by_intercept"), sums, strict=True))
    _run(
        *("gradient", problem.data.dtype),
        **(_sizes(weights) | of_data | of_rows),
        weights=weights,
        strengths=strengths,
        n_rows=len(problem.order),
        fit_intercept=problem.fit_intercept,
        out=result,
        values=values,
    )
    values[2] = values[2] / 2 + values[3]
    return result, values[:3]


def centered(_: Any, vectors: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """See `skmax.kernels.descent.centered`."""
    vectors = np.ascontiguousarray(vectors)
    m, *rest, k, p = vectors.shape
    sizes = {"m": m, "r": rest[0] if rest else 1, "k": k, "d": p - 1}
    _run("centered", vectors.dtype, **sizes, guess=vectors, known=known)
    return vectors


def bounds(
    _: Any,
    weights: np.ndarray,
    of_objective: np.ndarray,
    l2: np.ndarray,
    of_classes: tuple[np.ndarray | None, np.ndarray | None],
) -> np.ndarray:
    """See `skmax.kernels.descent.bounds`."""
    products = np.empty((10, *weights.shape[:2]))
    given = {"weights": weights, "gradient": of_objective, "l2": l2, "out": products}
    class_sums, sums = of_classes
    _run("bounds", np.float64, **_sizes(weights), **given, class_sums=class_sums, sums=sums)
    return products


def solved(factors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What `skmax.backends.numpy.NumpyBackend.solved` does."""
    solutions = np.array(rows, factors.dtype, order="C")
    *m, r, p = rows.shape
    sizes = {"m": math.prod(m), "r": r, "size": p}
    _run("solve", factors.dtype, **sizes, steps=factors, guess=solutions)
    return solutions


class Memory:
    """See `skmax.kernels.descent.Memory`."""

    def __init__(self, _: Any, steps: np.ndarray, changes: np.ndarray):
        m, most, size = steps.shape
        assert most <= MOST
        self._m, self._size, self._dtype, self._arrays = m, size, steps.dtype, (steps, changes)
        self._of_pairs = {"m": m, "most": most, "size": size}
        self._of_pairs |= {"steps": library.address(steps), "changes": library.address(changes)}

    def remember(self, before: Any, after: Any, place: int, n: int) -> np.ndarray:
        """See `skmax.kernels.descent.Memory.remember`."""
        products = np.empty((2 * n + 1, self._m))
        old = {"old_weights": before.weights, "old_gradient": before.gradient}
        new = {"weights": after.weights, "gradient": after.gradient}
        given = old | new | {"n": n, "place": place, "out": products}
        _run("remember", self._dtype, **self._of_pairs, **given)
        return products

    def rest(self, of_objective: np.ndarray, alpha: np.ndarray, newest: int) -> np.ndarray:
        """See `skmax.kernels.descent.Memory.rest`."""
        r, n = 1 if newest < 0 else 2, alpha.shape[1]
        vectors = np.empty((self._m, r, self._size), self._dtype)
        given = {"gradient": of_objective, "factors": alpha, "n": n, "r": r, "place": newest}
        _run("rest", self._dtype, **self._of_pairs, **given, guess=vectors)
        return vectors

    def products(
        self, guess: np.ndarray, of_objective: np.ndarray, n: int, newest: int
    ) -> np.ndarray:
        """See `skmax.kernels.descent.Memory.products`."""
        products = np.empty((n + 2, self._m))
        given = {"gradient": of_objective, "guess": guess, "n": n, "r": 1 if newest < 0 else 2}
        _run("products", self._dtype, **self._of_pairs, **given, place=newest, out=products)
        return products

    def combined(self, guess: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """See `skmax.kernels.descent.Memory.combined`."""
        direction = np.empty((self._m, self._size))
        given = {"guess": guess, "factors": weights, "n": weights.shape[1] - 1, "r": guess.shape[1]}
        _run("combined", self._dtype, **self._of_pairs, **given, out=direction)
        return direction

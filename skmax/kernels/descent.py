"""What L-BFGS does with weights and gradients on a CUDA device, in few launches and transfers.

The kernels are those of `descent.cu`. Vectors of models are of shape (m, k, d + 1), float64, in the
coordinates of the preconditioner, the intercept last; pairs are kept in the data's precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skmax.backends import Array
from skmax.backends.device_code import Unit, kernel
from skmax.kernels.cuda import argument, which
from skmax.problem import Problem

# As the source has them, and the most pairs.
_WARP, _WARPS, MOST = 32, 4, 10
_THREADS = _WARP * _WARPS
# Of the sums over vectors: about how many elements a thread has, and the most blocks of a model and
# in all.
_ELEMENTS, _PARTS, _BLOCKS = 4, 128, 1024


def serves(backend: Any) -> bool:
    """Whether this is where a backend computes."""
    return backend.name == "cupy"


def units() -> list[Unit]:
    """What is compiled ahead: all."""
    return [unit(4), unit(8)]


def unit(real: int) -> Unit:
    """What is compiled, for data of so many bytes."""
    options = ("-std=c++17", f"-DREAL={'double' if real == 8 else 'float'}")
    return Unit(("primitives.cuh", "descent.cu"), options)


def _launch(backend: Any, name: str, dtype: Any, n_blocks: int, *arguments: Any) -> None:
    launch = kernel(unit(np.dtype(dtype).itemsize), name, backend.device.id)
    given = tuple(np.int32(a) if isinstance(a, int) else argument(a) for a in arguments)
    launch((n_blocks,), (_THREADS,), given, shared_mem=16 * _THREADS)


def state(problem: Problem, weights: Array) -> tuple[Array, Array]:
    """What `skmax.solvers.coordinates.Coordinates.state` does: coefficients and intercepts."""
    backend: Any = problem.backend
    (m, k), d, dtype = problem.masked.shape, problem.data.n_features, problem.data.dtype
    coef, intercept = backend.cupy.empty((m, k, d), dtype), backend.cupy.empty((m, k), dtype)
    shape = m, k, d
    _launch(
        *(backend, "state", dtype, -(-m * k // _WARPS)),
        *(weights, problem.inverse_scale, problem.mean, *shape, coef, intercept),
    )
    return coef, intercept


def gradient(
    problem: Problem, weights: Array, sums: tuple[Array, ...], strengths: Array
) -> tuple[Array, np.ndarray]:
    """The gradient of the objective less its L1 term, from sums of `full_pass`.

    With it come loss, accuracy and penalty of each model, (3, m), on the host: it waits for the
    device. `strengths`, of shape (2, m), are l2 and l1.
    """
    backend: Any = problem.backend
    (m, k), d = problem.masked.shape, problem.data.n_features
    loss, correct, by_coef, by_intercept = sums
    result = backend.cupy.empty((m, k, d + 1), np.float64)
    values = backend.cupy.empty((2 * m * (k + 1),), np.float64)
    _launch(
        *(backend, "gradient", problem.data.dtype, -(-m * k // _WARPS)),
        *(weights, problem.inverse_scale, problem.mean, loss, correct, by_coef, by_intercept.T),
        *(strengths, np.float64(len(problem.order)), m, k, d, int(problem.fit_intercept)),
        *(result, values),
    )
    moved = backend.to_numpy(values)
    ridge, lasso = moved[2 * m :].reshape(2, m, k).sum(axis=2)
    return result, np.stack([moved[:m], moved[m : 2 * m], ridge / 2 + lasso])


def centered(backend: Any, vectors: Array, known: Array | None) -> Array:
    """Vectors (m, ..., k, d + 1) less their mean over the classes that are known.

    In place, if they are laid out in order.
    """
    vectors = argument(vectors)
    (m, *rest, k, p), dtype = vectors.shape, vectors.dtype
    r = int(np.prod(rest))
    _launch(backend, "centered", dtype, m * r * -(-p // _WARP), vectors, known, r, k, p)
    return vectors


def bounds(
    backend: Any, weights: Array, of_objective: Array, l2: Array, of_classes: tuple[Any, Any]
) -> np.ndarray:
    """Sums over features that `skmax.duality` is made of, (10, m, k), on the host.

    `l2` is of shape (m, d), `of_classes` are the class sums (m, k, d) and their sums (m, d), or
    None. See the kernel for their order.
    """
    m, k, p = weights.shape
    products = backend.cupy.empty((10, m, k), np.float64)
    _launch(
        *(backend, "bounds", np.float64, -(-m * k // _WARPS), weights, of_objective, l2),
        *(*of_classes, m, k, p - 1, products),
    )
    return backend.to_numpy(products)


def curvatures(problem: Problem, coef: Array, intercept: Array, X: Array, index: Any) -> Array:
    """Curvatures of the loss of dense rows by their logits, (b, m, k).

    See `skmax.solvers.curvature`.
    """
    (m, k, d), backend, weight = coef.shape, problem.backend, problem.sample_weight
    logits = X @ backend.xp.reshape(coef, (m * k, d)).T
    known = np.sum(~problem.masked, axis=1)
    _launch(
        *(backend, "curvatures", problem.data.dtype, -(-len(X) * m // _WARPS), logits, intercept),
        *(backend.asarray(known / (known - 1), np.float64), *which(index)),
        *(weight, problem.columns_there),
        *(len(X), m, k, 1 if weight is None else weight.shape[1]),
    )
    return backend.xp.reshape(logits, (-1, m, k))


class Memory:
    """Pairs of steps and changes of the gradient: arrays (m, most, size), and what is done there.

    Of those in `skmax.solvers.pairs`, the first n places are in use.
    """

    def __init__(self, backend: Any, steps: Array, changes: Array):
        self.backend, self.steps, self.changes = backend, steps, changes
        self._m, self._most, self._size = steps.shape
        assert self._most <= MOST
        per_block = _THREADS * _ELEMENTS
        most_parts = max(1, min(_PARTS, _BLOCKS // self._m))
        self._n_parts = max(1, min(-(-self._size // per_block), most_parts))

    def remember(self, before: Any, after: Any, place: int, n: int) -> np.ndarray:
        """Keep what leads from a point to another, and products, (2 n + 1, m), on the host.

        That of the pair, and those of each step with the change and with the gradient there.
        """
        step, change = after.weights - before.weights, after.gradient - before.gradient
        arrays = step, change, after.gradient, self.steps, self.changes
        return self._summed("remember", 2 * n + 1, arrays, n, place)

    def rest(self, of_objective: Array, alpha: np.ndarray, newest: int) -> Array:
        """The gradient less changes times alpha (m, n), (m, 1, size); behind it a newest change.

        That is of place `newest`, or none where that is negative.
        """
        r, n = 1 if newest < 0 else 2, alpha.shape[1]
        vectors = self.backend.cupy.empty((self._m, r, self._size), self.changes.dtype)
        arrays = of_objective, self.changes, self._moved(alpha)
        self._over_elements("rest", (*arrays, self._m, self._most, n, newest), vectors)
        return vectors

    def products(self, guess: Array, of_objective: Array, n: int, newest: int) -> np.ndarray:
        """Products (n + 2, m), on the host, of what a first guess makes of `rest`.

        With the gradient; of the second one with the newest change; with each change.
        """
        return self._summed("products", n + 2, (guess, of_objective, self.changes), n, newest)

    def combined(self, guess: Array, weights: np.ndarray) -> Array:
        """The first guess (m, r, size), of which the first, and steps, times weights (m, n + 1)."""
        result = self.backend.cupy.empty((self._m, self._size), np.float64)
        arrays, n, r = (
            (guess, self.steps, self._moved(weights)),
            weights.shape[1] - 1,
            len(guess[0]),
        )
        self._over_elements("combined", (*arrays, self._m, self._most, n, r), result)
        return result

    def _moved(self, values: np.ndarray) -> Array | None:
        return self.backend.asarray(values, np.float64) if values.size else None

    def _summed(
        self, name: str, width: int, arrays: tuple[Any, ...], n: int, place: int
    ) -> np.ndarray:
        parts = self.backend.cupy.empty((self._n_parts, width, self._m), np.float64)
        sizes = self._m, self._most, n, place, self._size
        n_blocks = self._n_parts * self._m
        _launch(self.backend, name, self.steps.dtype, n_blocks, *arrays, *sizes, parts)
        return self.backend.to_numpy(self.backend.total(parts))

    def _over_elements(self, name: str, arguments: tuple[Any, ...], out: Array) -> None:
        n_blocks = -(-self._size // _THREADS) * self._m
        _launch(self.backend, name, self.steps.dtype, n_blocks, *arguments, self._size, out)

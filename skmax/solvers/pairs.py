"""The pairs of steps and changes of the gradient that L-BFGS remembers, for a stack of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from skmax.backends import Array, Backend


class Pairs:
    """The last pairs of each model, and the inverse Hessian that they say, times a gradient.

    With s_i and y_i the steps and changes, oldest first, R_ij = s_i y_j for i <= j (else 0) and D
    its diagonal, the two loops over the pairs are the compact form

    ``q = g - Y' R^-1 S g,  z = H_0 q,  H g = z + S' R^-T (D R^-1 S g - Y z)``,

    four products with whole matrices instead of 4 times as many with vectors.

    Parameters
    ----------
    backend : Backend
        Where gradients are.
    shape : tuple of int
        Of gradients, (m, k, d + 1).
    dtype : dtype of the backend
        In which pairs are kept.
    most : int
        How many of them.

    References
    ----------
    R. H. Byrd, J. Nocedal and R. B. Schnabel, Representations of quasi-Newton matrices and their
    use in limited memory methods, Mathematical Programming 63, 1994.
    """

    def __init__(self, backend: Backend, shape: tuple[int, ...], dtype: Any, most: int):
        m, size = shape[0], int(np.prod(shape[1:]))
        self._backend, self._xp, self._dtype, self._most = backend, backend.xp, dtype, most
        self._steps, self._changes = (backend.zeros((m, most, size), dtype) for _ in range(2))
        self._products = np.zeros((m, most, most))  # s_i y_j, where j is not older than i
        self._age: list[int] = []  # places, oldest first

    def __len__(self) -> int:
        return len(self._age)

    def clear(self) -> None:
        """Forget all pairs."""
        self._age = []

    def add(self, step: Array, change: Array) -> np.ndarray:
        """Remember another pair of each model, but for those along which F is not convex.

        Returns the inner products of both, of shape (m,).
        """
        place = len(self._age) if len(self._age) < self._most else self._age.pop(0)
        of_pair = inner(self._backend, step, change)
        change = self._flat(change)
        self._steps[:, place, :], self._changes[:, place, :] = self._flat(step), change
        self._age.append(place)
        products = self._times(self._steps, change)
        product = self._backend.to_numpy(of_pair)
        self._products[:, : len(self), place] = products
        if not (product > 0).all():
            self._forget(place, product > 0)
        return product

    def _forget(self, place: int, convex: np.ndarray) -> None:
        """Make the pair at a place say nothing of the models along which F is not convex."""
        chosen = self._backend.asarray(convex[:, None], self._dtype)
        for kept in (self._steps, self._changes):
            kept[:, place, :] = self._xp.where(chosen > 0, kept[:, place, :], 0 * chosen)
        self._products[~convex, :, place] = 0.0
        self._products[~convex, place, place] = 1.0  # so that there is something to divide by

    def _flat(self, gradient: Array) -> Array:
        return self._xp.astype(
            self._xp.reshape(gradient, (gradient.shape[0], -1)), self._dtype, copy=False
        )

    def _times(self, matrices: Array, vector: Array) -> np.ndarray:
        """Products (m, most) of all steps, or all changes, with vectors (m, size), on the host."""
        products = (matrices[:, : len(self._age), :] @ vector[:, :, None])[:, :, 0]
        return self._backend.to_numpy(products).astype(np.float64)

    def _combined(self, matrices: Array, weights: np.ndarray) -> Array:
        """Sums (m, size) of all steps, or all changes, with weights (m, number of pairs)."""
        spread = np.empty((len(weights), 1, len(self._age)))
        spread[:, 0, self._age] = weights
        used = matrices[:, : len(self._age), :]
        return (self._backend.asarray(spread, self._dtype) @ used)[:, 0, :]

    def direction(self, gradient: Array, first_guess: Callable[[Array], Array]) -> Array:
        """About the inverse Hessian times a gradient.

        Parameters
        ----------
        gradient : array of shape (m, k, d + 1)
            The gradient.
        first_guess : callable
            Maps such arrays to a first guess of the same, in new ones.
        """
        shape = gradient.shape
        if not self._age:
            return first_guess(gradient)
        flat, age = self._flat(gradient), self._age
        R = np.triu(self._products[:, age][:, :, age])
        alpha = _solved(R, self._times(self._steps, flat)[:, age])
        rest = self._combined(self._changes, -alpha)
        rest += flat
        guess = self._flat(first_guess(self._xp.reshape(rest, shape)))
        diagonal = np.einsum("mii->mi", R)
        beta = diagonal * alpha - self._times(self._changes, guess)[:, age]
        result = self._combined(self._steps, _solved(R.transpose(0, 2, 1), beta))
        result += guess
        return self._xp.reshape(result, shape)

    def select(self, models: np.ndarray) -> Pairs:
        """The pairs of some of the models, at the host indices `models`."""
        index = self._backend.asarray(models)
        part = object.__new__(Pairs)
        part.__dict__.update(self.__dict__, _age=list(self._age), _products=self._products[models])
        part._steps, part._changes = (
            self._xp.take(array, index, axis=0) for array in (self._steps, self._changes)
        )
        return part


def _solved(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.linalg.solve(matrices, vectors[:, :, None])[:, :, 0]


def inner(backend: Backend, a: Array, b: Array) -> Array:
    """Inner products (m,) of arrays (m, k, d + 1)."""
    xp = backend.xp
    a, b = (xp.reshape(array, (array.shape[0], -1)) for array in (a, b))
    if backend.is_wide:  # of CuPy, a product of matrices would be made of it
        return xp.sum(a * xp.astype(b, a.dtype, copy=False), axis=1)
    return xp.vecdot(a, xp.astype(b, a.dtype, copy=False))

"""The pairs of steps and changes of the gradient that L-BFGS remembers, for a stack of models."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from skmax import kernels
from skmax.backends import Array, Backend

# Weights from which pairs are kept in single precision, where reading them is what costs: 4,000,000
# took 110 MB and a quarter of the time less. Of fewer, 1e-9 may be asked: 211 iterations, not 24.
_MANY_WEIGHTS = 1 << 18


class FirstGuess(Protocol):
    """A first guess of the inverse Hessian of each model, which scales itself.

    Attributes
    ----------
    change : array of shape (m, k, d + 1) or None
        What `rescaled` wants to be told of, if anything.
    scale : ndarray of shape (m,), host
        What the first guess of the curvature is multiplied by.
    """

    change: Array | None
    scale: np.ndarray

    def __call__(self, gradient: Array) -> Array:
        """What it makes of a gradient (m, k, d + 1), in a new array."""

    def unscaled(self, gradients: Array) -> Array:
        """The same of several, (m, r, k, d + 1), but for the scale."""

    def rescaled(self, expected: np.ndarray) -> np.ndarray:
        """The scale, once the product is known of the change with what is expected of it."""


class Place(Protocol):
    """Where a stack of models is: `skmax.solvers.coordinates.Point`, in part."""

    @property
    def weights(self) -> Array:
        """Of shape (m, k, d + 1), float64."""

    @property
    def gradient(self) -> Array:
        """Of the objective less its L1 term."""


def pairs(backend: Backend, shape: tuple[int, ...], dtype: Any, most: int, *, lasso: bool) -> Pairs:
    """What remembers pairs there. With L1, gradients are changed that directions are made of."""
    if not backend.is_wide and math.prod(shape) >= _MANY_WEIGHTS:
        dtype = backend.dtype(np.float32)
    quick = kernels.vectors(backend) is not None and not lasso
    return (PairsThere if quick else Pairs)(backend, shape, dtype, most)


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
        self._R = np.zeros((m, most, most))  # oldest first
        self._age: list[int] = []  # places of the pairs, oldest first

    def __len__(self) -> int:
        return len(self._age)

    def clear(self) -> None:
        """Forget all pairs."""
        self._age = []

    def _place(self) -> int:
        """Where the next pair goes, which is the newest from now on."""
        place = len(self._age)
        if place == self._most:
            place = self._age.pop(0)
            self._R[:, :-1, :-1] = self._R[:, 1:, 1:]
        self._age.append(place)
        return place

    def add(self, before: Place, after: Place) -> tuple[Array, np.ndarray]:
        """Remember what led from a place to another, but where F is not convex along that.

        Returns the changes of the gradients, and their inner products with the steps, (m,).
        """
        place = self._place()
        step, change = after.weights - before.weights, after.gradient - before.gradient
        of_pair = inner(self._backend, step, change)
        kept = self._flat(change)
        self._steps[:, place, :], self._changes[:, place, :] = self._flat(step), kept
        products = self._times(self._steps, kept)
        product = self._backend.to_numpy(of_pair)
        self._learn(products, product)
        return change, product

    def _learn(self, products: np.ndarray, of_pair: np.ndarray) -> np.ndarray:
        """Take down products (m, number of pairs) of all steps with the newest change.

        Where F is not convex, or so short a step that nothing of it is kept, the newest pair says
        nothing. Returns where it does.
        """
        n, place = len(self), self._age[-1]
        convex = (of_pair > 0) & (products[:, place] > 0)
        self._R[:, :n, n - 1] = products[:, self._age]
        if convex.all():
            return convex
        chosen = self._backend.asarray(convex[:, None], self._dtype)
        for kept in (self._steps, self._changes):
            kept[:, place, :] = self._xp.where(chosen > 0, kept[:, place, :], 0 * chosen)
        self._R[~convex, :, n - 1] = 0.0
        self._R[~convex, n - 1, n - 1] = 1.0  # so that there is something to divide by
        return convex

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
        spread = self._backend.asarray(self._by_place(weights)[:, None, :], self._dtype)
        return (spread @ matrices[:, : len(self), :])[:, 0, :]

    def _by_place(self, values: np.ndarray) -> np.ndarray:
        """Values (m, number of pairs), oldest first, in the order of places."""
        spread = np.empty_like(values)
        spread[:, self._age] = values
        return spread

    def direction(self, gradient: Array, first_guess: FirstGuess) -> tuple[Array, np.ndarray]:
        """About minus the inverse Hessian times a gradient, and the product of both, (m,).

        Parameters
        ----------
        gradient : array of shape (m, k, d + 1), float64
            The gradient, of the last pair if there is one.
        first_guess : FirstGuess
            What to start from.
        """
        newton_like = self._newton_like(gradient, first_guess)
        direction = self._xp.astype(newton_like, gradient.dtype, copy=False)
        direction *= -1
        slope = inner(self._backend, gradient, direction)
        return direction, self._backend.to_numpy(slope)

    @property
    def _triangle(self) -> np.ndarray:
        return self._R[:, : len(self), : len(self)]

    def _newton_like(self, gradient: Array, first_guess: FirstGuess) -> Array:
        shape = gradient.shape
        if not self._age:
            return first_guess(gradient)
        flat, age, R = self._flat(gradient), self._age, self._triangle
        alpha = _solved(R, self._times(self._steps, flat)[:, age])
        rest = self._combined(self._changes, -alpha)
        rest += flat
        guess = self._flat(first_guess(self._xp.reshape(rest, shape)))
        beta = np.diagonal(R, axis1=1, axis2=2) * alpha - self._times(self._changes, guess)[:, age]
        result = self._combined(self._steps, _solved(R.transpose(0, 2, 1), beta))
        result += guess
        return self._xp.reshape(result, shape)

    def select(self, models: np.ndarray) -> Pairs:
        """The pairs of some of the models, at the host indices `models`."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__, _age=list(self._age), _R=self._R[models])
        part._steps, part._changes = (
            self._backend.take(array, models) for array in (self._steps, self._changes)
        )
        return part


class PairsThere(Pairs):
    """Pairs whose products kernels make together: see `skmax.kernels.descent`."""

    def __init__(self, backend: Backend, shape: tuple[int, ...], dtype: Any, most: int):
        super().__init__(backend, shape, dtype, most)
        self._newest = -1  # where it is, even if it is forgotten otherwise
        self._of_gradient = np.zeros((shape[0], 0))  # products of the steps with it, oldest first
        self._memory = self._memory_there()

    def _memory_there(self) -> Any:
        return kernels.vectors(self._backend).Memory(self._backend, self._steps, self._changes)

    def clear(self) -> None:
        """See `Pairs`."""
        super().clear()
        self._of_gradient = self._of_gradient[:, :0]

    def add(self, before: Place, after: Place) -> tuple[Array, np.ndarray]:
        """See `Pairs`."""
        place = self._newest = self._place()
        products = self._memory.remember(before, after, place, len(self))
        of_pair = products[0]
        convex = self._learn(products[1::2].T, of_pair)
        self._of_gradient = products[2::2].T[:, self._age]
        self._of_gradient[~convex, -1] = 0.0
        change = self._changes[:, place, :]
        return self._xp.reshape(change, after.gradient.shape), of_pair

    def direction(self, gradient: Array, first_guess: FirstGuess) -> tuple[Array, np.ndarray]:
        """See `Pairs`."""
        R, n, memory = self._triangle, len(self), self._memory
        newest = -1 if first_guess.change is None else self._newest
        alpha = _solved(R, self._of_gradient)
        rest = memory.rest(gradient, self._by_place(alpha), newest)
        guess = first_guess.unscaled(self._xp.reshape(rest, (len(rest), -1, *gradient.shape[1:])))
        guess = self._xp.astype(guess, self._dtype, copy=False)
        products = memory.products(guess, gradient, n, newest)
        scale = first_guess.scale if newest < 0 else first_guess.rescaled(products[1])
        beta = np.diagonal(R, axis1=1, axis2=2) * alpha
        beta -= scale[:, None] * products[2:].T[:, self._age]
        gamma = _solved(R.transpose(0, 2, 1), beta)
        weights = -np.concatenate([scale[:, None], self._by_place(gamma)], axis=1)
        slope = -scale * products[0] - np.vecdot(gamma, self._of_gradient)
        return self._xp.reshape(memory.combined(guess, weights), gradient.shape), slope

    def select(self, models: np.ndarray) -> Pairs:
        """See `Pairs`."""
        part = super().select(models)
        assert isinstance(part, PairsThere)
        part._of_gradient, part._memory = self._of_gradient[models], part._memory_there()
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

"""The pairs of steps and changes of the gradient that L-BFGS remembers, for a stack of models."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from skmax.backends import Array, Backend
from skmax.kernels import descent


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


def pairs(backend: Backend, shape: tuple[int, ...], dtype: Any, most: int, *, lasso: bool) -> Pairs:
    """What remembers pairs there. With L1, gradients are changed that directions are made of."""
    kind = PairsThere if descent.serves(backend) and not lasso else Pairs
    return kind(backend, shape, dtype, most)


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

    def _place(self) -> int:
        """Where the next pair goes, which is the newest from now on."""
        place = len(self._age) if len(self._age) < self._most else self._age.pop(0)
        self._age.append(place)
        return place

    def add(self, step: Array, change: Array, gradient: Array) -> np.ndarray:  # noqa: ARG002
        """Remember another pair of each model, but for those along which F is not convex.

        `gradient` is where the step has led. Returns the inner products of both, of shape (m,).
        """
        place = self._place()
        of_pair = inner(self._backend, step, change)
        change = self._flat(change)
        self._steps[:, place, :], self._changes[:, place, :] = self._flat(step), change
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

    def _triangle(self) -> np.ndarray:
        """R, oldest first."""
        return np.triu(self._products[:, self._age][:, :, self._age])

    def _newton_like(self, gradient: Array, first_guess: FirstGuess) -> Array:
        shape = gradient.shape
        if not self._age:
            return first_guess(gradient)
        flat, age, R = self._flat(gradient), self._age, self._triangle()
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
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__, _age=list(self._age), _products=self._products[models])
        part._steps, part._changes = (
            self._backend.take(array, models) for array in (self._steps, self._changes)
        )
        return part


class PairsThere(Pairs):
    """Pairs on a CUDA device, whose products are moved together: see `skmax.kernels.descent`."""

    def __init__(self, backend: Backend, shape: tuple[int, ...], dtype: Any, most: int):
        super().__init__(backend, shape, dtype, most)
        self._newest, self._of_gradient = -1, np.zeros((shape[0], 0))

    def clear(self) -> None:
        """See `Pairs`."""
        super().clear()
        self._of_gradient = self._of_gradient[:, :0]

    @property
    def _memory(self) -> descent.Memory:
        return descent.Memory(self._backend, self._steps, self._changes)

    def add(self, step: Array, change: Array, gradient: Array) -> np.ndarray:
        """See `Pairs`."""
        place = self._newest = self._place()
        of_pair, *others = self._memory.remember(step, change, gradient, place, len(self))
        self._products[:, : len(self), place] = np.stack(others[::2], axis=1)
        self._of_gradient = np.stack(others[1::2], axis=1)  # products of the steps with it
        if not (of_pair > 0).all():
            self._forget(place, of_pair > 0)
            self._of_gradient[~(of_pair > 0), place] = 0.0
        return of_pair

    def direction(self, gradient: Array, first_guess: FirstGuess) -> tuple[Array, np.ndarray]:
        """See `Pairs`."""
        age, R, n, memory = self._age, self._triangle(), len(self), self._memory
        newest = -1 if first_guess.change is None else self._newest
        alpha = _solved(R, self._of_gradient[:, age])
        rest = memory.rest(gradient, self._by_place(alpha), newest)
        guess = first_guess.unscaled(self._xp.reshape(rest, (len(rest), -1, *gradient.shape[1:])))
        guess = self._xp.astype(guess, self._dtype, copy=False)
        of_guess, expected, *of_changes = memory.products(guess, gradient, n, newest)
        scale = first_guess.scale if newest < 0 else first_guess.rescaled(expected)
        beta = np.einsum("mii->mi", R) * alpha
        if n:
            beta -= (scale * np.stack(of_changes)).T[:, age]
        gamma = self._by_place(_solved(R.transpose(0, 2, 1), beta))
        weights = -np.concatenate([scale[:, None], gamma], axis=1)
        slope = -scale * of_guess - np.sum(gamma * self._of_gradient, axis=1)
        return self._xp.reshape(memory.combined(guess, weights), gradient.shape), slope

    def _by_place(self, values: np.ndarray) -> np.ndarray:
        spread = np.empty_like(values)
        spread[:, self._age] = values
        return spread

    def select(self, models: np.ndarray) -> Pairs:
        """See `Pairs`."""
        part = super().select(models)
        part.__dict__["_of_gradient"] = self._of_gradient[models]
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

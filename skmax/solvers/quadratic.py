"""Quadratic models of a smooth function, and the minimum of one plus L1.

What is minimised over x is ``g'(x - w) + (x - w)' B (x - w) / 2 + sum_i t_i |x_i|``: B is a model's
matrix, w where the smooth function was looked at, g its gradient there, and t the thresholds, 0 for
variables without a penalty. Arrays are of q variables or (q, some), on the host, float64.

Coordinate descent finds the minimum where the matrix is at hand and the variables are few or hardly
correlated. Else it, or steps with momentum, which cost a product each, find most signs of the
minimum, Newton's method the others, and the minimum itself. With an interior-point method in their
place, scaled digits with C=1000 took twice as long; with Newton steps alone, they were not solved
in 15 s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs

from skmax.kernels import coordinate_descent

# Multiply-adds of a coordinate descent at most, and how much less it leaves than is asked for.
_PER_DESCENT, _CLOSER = 20_000_000, 0.1
# The most steps with momentum, fewer where so many change no sign: scaled digits with C=1000 take
# 0.25 s with 50, 0.35 s with 20, 0.30 s where 30 are always made.
_MOMENTUM, _SETTLED = 50, 5
# The most Newton steps that follow, times the number of variables, and the most rounds of both:
# with 150, wine as loaded, C=1e4, without an intercept, is not solved in 150 iterations instead of
# 20; with 10,000, digits take 1.4 times as long.
_NEWTON_STEPS, _ROUNDS = 1000, 4
# Products that the largest eigenvalue is estimated by, and what it may exceed that by.
_PRODUCTS, _MARGIN = 8, 1.2
# What a diagonal gets where a matrix is not positive definite, as a share of itself, at first.
_RIDGE = 1e-12
# Within what the last step may scale a first guess, and the least share of its diagonal that past
# steps may leave.
_SMALLEST_SCALE, _LARGEST_SCALE, _LEAST_LEFT = 0.05, 20.0, 1e-2
# Singular values below this share of the largest are rounding errors.
_SINGULAR = 1e-13

Solve = Callable[[np.ndarray], np.ndarray]


class Quadratic(Protocol):
    """A symmetric positive definite matrix B."""

    def times(self, v: np.ndarray) -> np.ndarray:
        """B v."""

    def diagonal(self) -> np.ndarray:
        """The diagonal of B, or about that, positive."""

    def solver(self, free: np.ndarray) -> Solve:
        """The map r -> x that solves ``B x = r`` for the variables `free`, a mask, alone."""


class Exact:
    """A matrix as it is: see `Quadratic`."""

    def __init__(self, matrix: np.ndarray):
        self.matrix = matrix

    def times(self, v: np.ndarray) -> np.ndarray:
        """See `Quadratic`."""
        return self.matrix @ v

    def diagonal(self) -> np.ndarray:
        """See `Quadratic`."""
        return self.matrix.diagonal()

    def solver(self, free: np.ndarray) -> Solve:
        """See `Quadratic`."""
        return _cholesky(self.matrix[np.ix_(free, free)])


class Diagonal:
    """Variables that stand alone: see `Quadratic`."""

    def __init__(self, values: np.ndarray):
        self._values = values

    def times(self, v: np.ndarray) -> np.ndarray:
        """See `Quadratic`."""
        return (self._values * v.T).T

    def diagonal(self) -> np.ndarray:
        """See `Quadratic`."""
        return self._values

    def solver(self, free: np.ndarray) -> Solve:
        """See `Quadratic`."""
        values = self._values[free]
        return lambda r: (r.T / values).T


class Blocks:
    """Matrices along the diagonal: see `Quadratic`."""

    def __init__(self, blocks: Sequence[np.ndarray]):
        self._blocks = [Exact(block) for block in blocks]
        self._places = _places([len(block) for block in blocks])

    def times(self, v: np.ndarray) -> np.ndarray:
        """See `Quadratic`."""
        parts = zip(self._blocks, self._places, strict=True)
        return np.concatenate([block.times(v[place]) for block, place in parts])

    def diagonal(self) -> np.ndarray:
        """See `Quadratic`."""
        return np.concatenate([block.diagonal() for block in self._blocks])

    def solver(self, free: np.ndarray) -> Solve:
        """See `Quadratic`."""
        parts = [free[place] for place in self._places]
        solvers = [block.solver(part) for block, part in zip(self._blocks, parts, strict=True)]
        places = _places([int(part.sum()) for part in parts])
        pairs = list(zip(solvers, places, strict=True))
        return lambda r: np.concatenate([solve(r[place]) for solve, place in pairs])


def _places(sizes: Sequence[int]) -> list[slice]:
    """Where parts of these sizes are that follow one another."""
    ends = np.cumsum(sizes)
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


class Corrected:
    """A first guess, scaled, and corrected by what past steps have shown: see `Quadratic`.

    Parameters
    ----------
    guess : Quadratic
        The first guess.
    steps, changes : ndarray of shape (q, some)
        Past steps, and how the gradient changed, oldest first; each pair has a positive product.

    References
    ----------
    J. Nocedal and S. J. Wright, Numerical Optimization, 2006, section 7.2: L-BFGS as a matrix.
    W. W. Hager, Updating the inverse of a matrix, SIAM Review 31, 1989: the formula of Woodbury.
    """

    def __init__(self, guess: Quadratic, steps: np.ndarray, changes: np.ndarray):
        guessed, products = guess.times(steps), steps.T @ changes
        scale = products[-1, -1] / (steps[:, -1] @ guessed[:, -1])
        self._guess, self._scale = guess, np.clip(scale, _SMALLEST_SCALE, _LARGEST_SCALE)
        guessed *= self._scale
        lower = np.tril(products, -1)
        self._sides = np.concatenate([guessed, changes], axis=1)
        self._middle = np.block(
            [[steps.T @ guessed, lower], [lower.T, -np.diag(products.diagonal())]]
        )
        self._inverse = np.linalg.pinv(self._middle, rcond=_SINGULAR)

    def times(self, v: np.ndarray) -> np.ndarray:
        """See `Quadratic`."""
        learned = self._sides @ (self._inverse @ (self._sides.T @ v))
        return self._scale * self._guess.times(v) - learned

    def diagonal(self) -> np.ndarray:
        """See `Quadratic`."""
        guessed = self._scale * self._guess.diagonal()
        learned = np.vecdot(self._sides @ self._inverse, self._sides)
        return np.maximum(guessed - learned, _LEAST_LEFT * guessed)

    def solver(self, free: np.ndarray) -> Solve:
        """See `Quadratic`."""
        of_guess, sides = self._guess.solver(free), self._sides[free]
        solved = of_guess(sides) / self._scale
        inner = np.linalg.pinv(self._middle - sides.T @ solved, rcond=_SINGULAR)

        def solve(r: np.ndarray) -> np.ndarray:
            x = of_guess(r) / self._scale
            return x + solved @ (inner @ (sides.T @ x))

        return solve


def _cholesky(matrix: np.ndarray) -> Solve:
    """What solves with a matrix, with as much added to its diagonal as a factor needs."""
    if not len(matrix):
        return lambda r: r
    factor, info = dpotrf(matrix, lower=1)
    ridge = _RIDGE
    while info:
        factor, info = dpotrf(matrix + np.diag(ridge * matrix.diagonal()), lower=1)
        ridge *= 10
    return lambda r: dpotrs(factor, r, lower=1)[0]


def minimise(
    model: Quadratic, w: np.ndarray, g: np.ndarray, t: np.ndarray, tolerance: float
) -> np.ndarray:
    """About the minimum: what is left of the least subgradient at w is a share of `tolerance`."""
    x, gradient, enough, scale = w, g, np.inf, model.diagonal()
    for turn in range(_ROUNDS):
        size = np.sqrt(np.sum(_least_subgradient(x, gradient, t) ** 2 / scale))
        if turn == 0:
            enough = tolerance * size
        if size <= enough:
            break
        x, gradient, found = _approach(model, x, gradient, t, _CLOSER * enough)
        if found:
            break
        for _ in range(max(1, _NEWTON_STEPS // len(x))):
            x, gradient, settled = _newton(model, x, gradient, t)
            if settled:
                break
    return x


def _approach(
    model: Quadratic, x: np.ndarray, gradient: np.ndarray, t: np.ndarray, enough: float
) -> tuple[np.ndarray, np.ndarray, bool]:
    """A point nearer to the minimum, its gradient, and whether so little is left there."""
    if isinstance(model, Exact) and coordinate_descent.serves():
        most = max(1, _PER_DESCENT // len(x) ** 2)
        return coordinate_descent.descend(model.matrix, x, gradient, t, enough, most)
    return *_with_momentum(model, x, gradient, t), False


def _least_subgradient(x: np.ndarray, gradient: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.where(x != 0, gradient + t * np.sign(x), _shrunk(gradient, t))


def _shrunk(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The proximal operator of ``t |x|``."""
    return x - np.clip(x, -t, t)


def _largest(model: Quadratic, root: np.ndarray) -> float:
    """About the largest eigenvalue of a matrix that is scaled from both sides."""
    v = np.random.default_rng(0).normal(size=len(root))
    for _ in range(_PRODUCTS):
        v = root * model.times(root * (v / np.linalg.norm(v)))
    return float(np.linalg.norm(v))


def _with_momentum(
    model: Quadratic, x: np.ndarray, gradient: np.ndarray, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Accelerated proximal steps, restarted where momentum points uphill; x and its gradient.

    References
    ----------
    A. Beck and M. Teboulle, A fast iterative shrinkage-thresholding algorithm for linear inverse
    problems, SIAM Journal on Imaging Sciences 2, 2009. B. O'Donoghue and E. Candes, Adaptive
    restart for accelerated gradient schemes, Foundations of Computational Mathematics 15, 2015.
    """
    scale = model.diagonal()
    steepness = _MARGIN * _largest(model, 1 / np.sqrt(scale)) * scale
    ahead, at_ahead, theta, settled = x, gradient, 1.0, 0
    for _ in range(_MOMENTUM):
        new = _shrunk(ahead - at_ahead / steepness, t / steepness)
        step = new - x
        at_new = gradient + model.times(step)
        shown, expected = (new - ahead) @ (at_new - at_ahead), (new - ahead) ** 2 @ steepness
        if shown > expected > 0:  # the largest eigenvalue was underestimated: see `_largest`
            steepness, ahead, at_ahead = steepness * (_MARGIN * shown / expected), x, gradient
            theta = 1.0
            continue
        if (ahead - new) * steepness @ step > 0:
            theta = 1.0
        following = (1 + np.sqrt(1 + 4 * theta * theta)) / 2
        momentum, theta = (theta - 1) / following, following
        ahead, at_ahead = new + momentum * step, at_new + momentum * (at_new - gradient)
        settled = settled + 1 if np.array_equal(np.sign(new), np.sign(x)) else 0
        x, gradient = new, at_new
        if settled == _SETTLED:
            break
    return x, gradient


def _newton(
    model: Quadratic, x: np.ndarray, gradient: np.ndarray, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Newton's step for the signs that x has; if it changes some, the better of two others.

    Either what changes sign is zero, or the step ends where it is best. Returns x, its gradient,
    and whether the signs are what they were.
    """
    free = (x != 0) | (t == 0)
    step = np.zeros_like(x)
    step[free] = -model.solver(free)((gradient + t * np.sign(x))[free])
    along = model.times(step)
    crossed = ((x + step) * x < 0) & (t > 0)
    if not crossed.any():
        return x + step, gradient + along, True
    cut = np.where(crossed, -x, step)
    length = _best_length(x, step, gradient @ step, step @ along, t)
    ways = (cut, model.times(cut)), (length * step, length * along)

    def change(way: tuple[np.ndarray, np.ndarray]) -> float:
        step, along = way
        return gradient @ step + step @ along / 2 + t @ (np.abs(x + step) - np.abs(x))

    step, along = min(ways, key=change)
    new = x + step
    new = np.where(np.abs(new) < _SINGULAR * np.abs(step), 0.0, new)
    return new, gradient + along, False


def _best_length(
    x: np.ndarray, step: np.ndarray, slope: float, curvature: float, t: np.ndarray
) -> float:
    """The minimiser of ``slope a + curvature a^2 / 2 + t |x + a step|`` over a > 0.

    The slope jumps up where a variable passes zero; the minimum is at a jump or between two.
    """
    slope += t @ (step * np.sign(x))
    passing = np.flatnonzero(x * step < 0)
    zeros = -x[passing] / step[passing]
    order = np.argsort(zeros)
    zeros, jumps = zeros[order], 2 * (t * np.abs(step))[passing[order]]
    before = slope + curvature * zeros + np.append(0.0, np.cumsum(jumps)[:-1])
    upward = np.flatnonzero(before + jumps >= 0)
    first = upward[0] if upward.size else len(zeros)
    between = -(slope + jumps[:first].sum()) / curvature
    return min(between, zeros[first]) if upward.size else between

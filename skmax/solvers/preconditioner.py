"""The coordinates in which steps are taken: features centred and scaled, without touching X.

Dividing the gradient by the square of a scale takes the same steps as dividing the features by it
and multiplying the weights, so objective, penalty and coefficients stay those of X as given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skmax import kernels
from skmax.backends import Array, rounding_unit
from skmax.backends.array_api import dtype_name, float_info
from skmax.data import Rows, columns, scaled, squared
from skmax.kernels.sparse import has_many_weights, rounded
from skmax.problem import Problem

# A unit is sqrt(deviation^2 + CURVATURE * l2): with the deviation alone, a nearly constant feature
# would take steps against which its penalty is stiff. The factor bounds that stiffness by 1/10.
CURVATURE = 10.0
# Deviations below this share of the mean are rounding errors of float64.
_NOISE = 1e-7


@dataclass(frozen=True)
class Moments:
    """Weighted means and standard deviations of the features.

    Attributes
    ----------
    origin : ndarray of shape (d,)
        A vector amid the data. Means are counted from it, so that none loses digits.
    mean, deviation : ndarray of shape (m, d)
        Per model, since models may weigh the rows differently.
    """

    origin: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, problem: Problem, origin: np.ndarray | None = None) -> Moments:
        """Moments of a problem's rows, counted from `origin` if that is given."""
        origin = problem.data.origin(problem.order) if origin is None else origin
        problem = replace(problem, data=problem.data.shifted(origin if origin.any() else None))
        with np.errstate(over="ignore", invalid="ignore"), problem.backend.computing():
            mean, square = _means(problem, first_two)
            deviation = _deviation(mean, square)
            lost = _features_lost(problem.data, square)
            if lost.size:
                mean[:, lost], deviation[:, lost] = _rescaled_moments(problem, lost)
        columns = np.zeros_like(problem.columns) if len(mean) == 1 else problem.columns
        return cls(origin, mean[columns], deviation[columns])

    def merged(self, other: Moments, share: float) -> Moments:
        """The moments of both sets of rows, `other` having a share of the weight.

        Both must be counted from the same origin.

        Reference: T. F. Chan, G. H. Golub and R. J. LeVeque, Updating formulae and a pairwise
        algorithm for computing sample variances, 1982.
        """
        step = other.mean - self.mean
        within = np.hypot(np.sqrt(1 - share) * self.deviation, np.sqrt(share) * other.deviation)
        deviation = np.hypot(within, np.sqrt(share * (1 - share)) * step)
        return Moments(self.origin, self.mean + share * step, deviation)


def _means(
    problem: Problem, function: Callable[..., tuple[Array, ...]], *arguments: Any
) -> list[np.ndarray]:
    """Weighted means, (1 or u, f), of each of the arrays (b, f) that a function makes of rows.

    Few rows are summed in the precision of the data, these sums in float64.
    """
    totals = problem.total(_quick_sums, function, *arguments)
    return [problem.backend.to_numpy(total) / len(problem.order) for total in totals]


def _quick_sums(
    problem: Problem, function: Callable[..., tuple[Array, ...]], *arguments: Any
) -> tuple[Array, ...]:
    """What `weighted_sums` does, by whatever does it fastest."""
    run = kernels.moments(problem) if function is first_two else None
    return weighted_sums(problem, function, *arguments) if run is None else run(problem)


def weighted_sums(
    problem: Problem, function: Callable[..., tuple[Array, ...]], *arguments: Any
) -> tuple[Array, ...]:
    """Weighted sums: the reference, for any array API namespace."""
    data, weights = problem.data, problem.sample_weight
    backend, xp = problem.backend, problem.backend.xp

    def sums(index: Any, X: Array) -> tuple[Array, ...]:
        if weights is None:
            weight = xp.ones((1, X.shape[0]), dtype=data.dtype, device=backend.device)
        else:
            weight = xp.astype(problem.rows_of(weights, index), data.dtype).T
        return tuple(weight @ values for values in function(X, *arguments))

    width = 1 if weights is None else weights.shape[1]
    return data.reduce(problem.order, sums, width=width)


def first_two(X: Array) -> tuple[Array, Array]:
    """Rows, and their squares."""
    return X, squared(X)


def _moduli(X: Array, index: Array, n: int) -> tuple[Array]:
    return (abs(columns(X, index)) / n,)


def _rescaled(X: Array, index: Array, scale: Array) -> tuple[Array, Array]:
    return first_two(scaled(columns(X, index), scale))


def _deviation(mean: np.ndarray, square: np.ndarray) -> np.ndarray:
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
    deviation[deviation <= _NOISE * np.abs(mean)] = 0.0
    return deviation


def _features_lost(data: Rows, square: np.ndarray) -> np.ndarray:
    """Features of floats whose squares may have under- or overflown."""
    if "float" not in dtype_name(data.X):
        return np.zeros(0, dtype=int)
    info = float_info(data.dtype)
    sound = (square > info.tiny / info.eps) & np.isfinite(square)
    lost = np.flatnonzero(~sound.all(axis=0))
    return lost[data.seen[lost]] if lost.size else lost


def _rescaled_moments(problem: Problem, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations of features, which are divided by their mean modulus first."""
    backend, data, n = problem.backend, problem.data, len(problem.order)
    data = data.with_(dtype=backend.dtype(np.float64), shift=data.shift)
    problem, index = replace(problem, data=data), backend.asarray(features)
    # As a share of n, no sum overflows, and of what is divided by it no square.
    (modulus,) = _means(problem, _moduli, index, n)
    scale = modulus.max(axis=0)
    scale[scale < np.finfo(np.float64).tiny] = 1.0
    mean = square = modulus
    if modulus.any():
        mean, square = _means(problem, _rescaled, index, backend.asarray(1 / scale))
    return mean * scale, _deviation(mean, square) * scale


def precondition(problem: Problem, moments: Moments) -> Problem:
    """The same problem, with coordinates in which every feature is centred and scaled.

    Without an intercept the origin stays where it is, and the scale is the root mean square.

    Parameters
    ----------
    problem : Problem
        What is minimised; no term of it changes.
    moments : Moments
        Of the rows that the problem is about.

    Raises
    ------
    ValueError
        A deviation is too large for float64.
    """
    backend, data = problem.backend, problem.data
    mean = moments.mean + moments.origin
    spread = moments.deviation if problem.fit_intercept else np.hypot(moments.deviation, mean)
    _check_finite(spread)
    scale = np.hypot(spread, np.sqrt(CURVATURE * problem.l2)[:, None])
    # What is closer to 0 has no inverse in the precision of the weights that may be rounded up.
    invertible = scale > 2 / float(float_info(data.dtype).max)
    inverse_scale = np.divide(1.0, scale, out=np.zeros_like(scale), where=invertible)
    if has_many_weights(problem):
        inverse_scale = rounded(inverse_scale)
    shift = None
    if not problem.fit_intercept:
        mean = np.zeros_like(mean)
    elif np.any(np.abs(mean) * inverse_scale > _far(data.dtype)) and moments.origin.any():
        shift, mean = moments.origin, moments.mean
    return replace(
        problem,
        data=data.shifted(shift),
        mean=backend.asarray(mean[:, None, :], data.dtype) if problem.fit_intercept else None,
        inverse_scale=backend.asarray(inverse_scale[:, None, :], data.dtype),
    )


def _far(dtype: object) -> float:
    """How many scales from zero a mean may be before a floating dtype loses digits that matter."""
    return rounding_unit(dtype) ** -0.25


def _check_finite(spread: np.ndarray) -> None:
    finite = np.isfinite(spread)
    if not finite.all():
        bad = np.flatnonzero(~finite.all(axis=0))[0]
        raise ValueError(
            f"Feature {bad} of X has values so large that their deviation overflows float64. "
            "Rescale it, or pass preconditioner=None."
        )

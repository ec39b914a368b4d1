"""The coordinates in which steps are taken: features centred and scaled, without touching X.

Dividing the gradient by the square of a scale takes the same steps as dividing the features by it
and multiplying the weights, so objective, penalty and coefficients stay those of X as given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from skmax.backends import Rows, rounding_unit
from skmax.problem import Array, Problem

# A unit is sqrt(variance + _CURVATURE * l2): with the variance alone, a nearly constant feature
# would take steps against which its penalty is stiff. The factor bounds that stiffness by 1/10.
_CURVATURE = 10.0
# Variances below this share of the squared mean are rounding errors of float64.
_NOISE = 1e-14


@dataclass(frozen=True)
class Moments:
    """Weighted means and variances of the features.

    Attributes
    ----------
    origin : ndarray of shape (d,)
        A vector amid the data. Means are counted from it, so that none loses digits.
    mean, variance : ndarray of shape (m, d)
        Per model, since models may weigh the rows differently.
    """

    origin: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, problem: Problem, origin: np.ndarray | None = None) -> Moments:
        """Moments of a problem's rows, counted from `origin` if that is given."""
        origin = problem.data.origin(problem.order) if origin is None else origin
        data = problem.data.with_(shift=origin if origin.any() else None)
        mean, square = _means(problem, data)
        if not np.isfinite(square).all():  # squares may overflow float32
            wider = data.with_(dtype=data.backend.dtype(np.float64), shift=data.shift)
            mean, square = _means(problem, wider)
        with np.errstate(over="ignore", invalid="ignore"):  # `precondition` looks for infinities
            variance = square - mean**2
            variance[variance <= _NOISE * mean**2] = 0.0
        columns = np.zeros_like(problem.columns) if len(mean) == 1 else problem.columns
        return cls(origin, mean[columns], variance[columns])

    def merged(self, other: Moments, share: float) -> Moments:
        """The moments of both sets of rows, `other` having a share of the weight.

        Both must be counted from the same origin.

        Reference: T. F. Chan, G. H. Golub and R. J. LeVeque, Updating formulae and a pairwise
        algorithm for computing sample variances, 1982.
        """
        step = other.mean - self.mean
        between = share * (1 - share) * step**2
        variance = (1 - share) * self.variance + share * other.variance + between
        return Moments(self.origin, self.mean + share * step, variance)


def _means(problem: Problem, data: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means of the features and of their squares, of shape (1 or u, d), float64.

    Few rows are summed in the precision of `data`, these sums in float64.
    """
    backend, xp = problem.backend, problem.backend.xp
    total: list[Array] = [0.0, 0.0]
    weights = problem.sample_weight
    width = 1 if weights is None else weights.shape[1]
    with np.errstate(over="ignore", invalid="ignore"), backend.computing():
        for index, X in data.chunks(problem.order, width=width):
            if weights is None:
                weight = xp.ones((1, X.shape[0]), dtype=data.dtype, device=backend.device)
            else:
                weight = xp.astype(xp.take(weights, index, axis=0), data.dtype).T
            for part, values in enumerate((X, data.squared(X))):
                total[part] = total[part] + xp.astype(weight @ values, backend.dtype(np.float64))
        mean, square = (backend.to_numpy(part) / len(problem.order) for part in total)
    return mean, square


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
        A variance is too large for float64.
    """
    backend, data = problem.backend, problem.data
    mean = moments.mean + moments.origin
    with np.errstate(over="ignore"):
        spread = moments.variance if problem.fit_intercept else moments.variance + mean**2
    _check_finite(spread)
    scale = np.sqrt(spread + _CURVATURE * problem.l2[:, None])
    inverse_scale = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    shift = None
    if not problem.fit_intercept:
        mean = np.zeros_like(mean)
    elif np.any(np.abs(mean) * inverse_scale > _far(data.dtype)) and moments.origin.any():
        shift, mean = moments.origin, moments.mean
    return replace(
        problem,
        data=data.with_(shift=shift),
        mean=backend.asarray(mean[:, None, :], data.dtype) if problem.fit_intercept else None,
        inverse_scale=backend.asarray(inverse_scale[:, None, :], data.dtype),
    )


def _far(dtype: object) -> float:
    """How many scales from zero a mean may be before a floating dtype loses digits that matter."""
    return rounding_unit(dtype) ** -0.25


def _check_finite(spread: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(spread).all(axis=0))
    if bad.size:
        raise ValueError(
            f"Feature {bad[0]} of X has values so large that their squares overflow float64. "
            "Rescale it, or pass preconditioner=None."
        )

"""Coordinate descent on few variables, on the CPU: `coordinate_descent.h`, of the core.

References
----------
J. Friedman, T. Hastie and R. Tibshirani, Regularization paths for generalized linear models via
coordinate descent, Journal of Statistical Software 33, 2010.
"""

from __future__ import annotations

import ctypes

import numpy as np

from skmax.kernels import library


class Quadratic(ctypes.Structure):
    """What `coordinate_descent.h` declares, where each field is explained."""

    _fields_ = [
        ("q", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("matrix", "x", "gradient", "thresholds")],
        ("enough", ctypes.c_double),
        ("most", ctypes.c_int64),
    ]


def serves() -> bool:
    """Whether there is a compiled core."""
    return library.function("coordinate_descent") is not None


def descend(
    matrix: np.ndarray, x: np.ndarray, gradient: np.ndarray, t: np.ndarray, enough: float, most: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Go down from x, whose gradient is given.

    Parameters
    ----------
    matrix : ndarray of shape (q, q)
        Symmetric, its diagonal positive.
    x, gradient, t : ndarray of shape (q,)
        Where to begin, the gradient there of the quadratic function, and the thresholds of L1.
    enough : float
        The length of the least subgradient at which to stop, over the roots of the diagonal.
    most : int
        The most sweeps over the variables.

    Returns
    -------
    x, gradient : ndarray of shape (q,)
    found : bool
        Whether so little is left.
    """
    function = library.function("coordinate_descent")
    assert function is not None  # see `serves`
    arrays = np.ascontiguousarray(matrix), x.copy(), gradient.copy(), np.ascontiguousarray(t)
    pointers = (library.address(array) for array in arrays)
    failed = function(ctypes.byref(Quadratic(len(x), *pointers, enough**2, most)))
    return arrays[1], arrays[2], not failed

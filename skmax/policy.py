"""Which method for which data, and every constant of cost, with its measurement.

Costs are counted in multiply-adds of one core unless it says seconds. What was measured on two
cores of an AMD EPYC (Zen 4) or an Intel Xeon (AVX-512) is in `benchmarks/README.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from skmax.hyperparameters import Hyperparameters

# Iterations of the full-batch solvers where nobody says.
_NEWTON_ITERATIONS, _LBFGS_ITERATIONS = 200, 1000
# Epochs that large data need, and steps that small data need.
_MIN_EPOCHS, _MIN_STEPS = 3, 900
# Epochs of SGD that L-BFGS begins with; the least number of rows for which that pays, and share of
# values that are not zero: a step moves all weights, and costs more than a batch of few values.
FIRST_EPOCHS, _WORTH_SGD, _DENSITY = 3, 30_000, 0.05
# About a quarter of a second of a core, which is what going on to the optimum may cost, and the
# passes it takes, with blocks of the curvature and with its diagonal. Below so many rows per
# feature it costs what it costs: there, epochs of SGD stay far above what any solver reaches.
_AFFORDABLE, _PASSES, _PASSES_OF_DIAGONAL = 2.5e10, 15, 50
_FEW_ROWS_PER_FEATURE = 30
# Rows per feature that L-BFGS first measures the curvature on.
ROWS_PER_FEATURE = 8
# The most entries of all matrices of a stack's curvature: with more, classes share one. With more
# features, or more entries even so, features stand alone.
MOST_ENTRIES, _MOST_FEATURES = 1 << 24, 2000
# Products that an iteration of Newton's method may cost, where factoring the Hessian costs so many
# times the cube of its size: from 150 rows of 4 features to 50,000 of 30, it was 0.9 to 9 times as
# fast as L-BFGS to a bound of 1e-4 where this says so, and 0.2 to 2 times as fast elsewhere. And
# the most unknowns that a Hessian may have.
_NEWTON_PRODUCTS, _FACTOR, _MOST_UNKNOWNS = 1e8, 5, 10_000
# Multiply-adds of a product with X up to which the proximal Newton method serves under L1, where
# L-BFGS took 1.2 to 20 times as long to a proof of 1e-4, or found none, on 20 of 23 problems.
_MOST_UNDER_L1 = 2e8


class Size(NamedTuple):
    """What of the data decides how a model is trained."""

    n_rows: int
    n_features: int
    n_classes: int
    values_per_row: float


@dataclass(frozen=True)
class Method:
    """How a model is trained.

    Attributes
    ----------
    solver : {"sgd", "lbfgs", "newton"}
        What it ends with.
    max_iter : int
        Epochs of "sgd", iterations of the others; those of `first_epochs` included.
    first_epochs : int
        Epochs of SGD that come first.
    """

    solver: str
    max_iter: int
    first_epochs: int = 0


def choose(params: Hyperparameters, size: Size, *, fresh: bool = True) -> Method:
    """The method for a model.

    Parameters
    ----------
    params : Hyperparameters
        Of the model.
    size : Size
        Of the rows that it learns from.
    fresh : bool
        Whether it starts from weights of zero.

    Raises
    ------
    ValueError
        Newton's method is asked for, and there are too many weights for it.
    """
    solver = params.solver if params.solver != "auto" else _best(params, size)
    if solver == "newton":
        _check_unknowns(params, size)
        return Method(solver, params.max_iter or _NEWTON_ITERATIONS)
    if solver == "lbfgs":
        max_iter = params.max_iter or _LBFGS_ITERATIONS
        dense = size.values_per_row >= _DENSITY * size.n_features
        worth = dense and fresh and size.n_rows >= _WORTH_SGD and max_iter > FIRST_EPOCHS
        worth = worth and params.preconditioner is not None
        return Method(solver, max_iter, FIRST_EPOCHS if worth else 0)
    n_steps = -(-size.n_rows // batch_size(params, size.n_rows))
    return Method(solver, params.max_iter or max(_MIN_EPOCHS, -(-_MIN_STEPS // n_steps)))


def batch_size(params: Hyperparameters, n_rows: int) -> int:
    """Rows per minibatch."""
    return min(200 if params.batch_size == "auto" else int(params.batch_size), n_rows)


def _best(params: Hyperparameters, size: Size) -> str:
    """The solver where nobody says."""
    if params.asks_for_sgd:
        return "sgd"
    if _newton_pays(params, size):
        return "newton"
    return "lbfgs" if _affordable(params, size) else "sgd"


def unknowns(size: Size) -> int:
    """The unknowns of Newton's method: weights that sum to zero over the classes."""
    return (size.n_classes - 1) * (size.n_features + 1)


def _check_unknowns(params: Hyperparameters, size: Size) -> None:
    q = unknowns(size)
    if q > _MOST_UNKNOWNS and not params.has_lasso:
        raise ValueError(
            f"solver='newton' needs the Hessian of all {q:,} weights of {size.n_classes} classes "
            f"and {size.n_features:,} features, {8 * q**2 / 1e9:.0f} GB. Use solver='lbfgs', which "
            "goes to the optimum, too."
        )


def _newton_pays(params: Hyperparameters, size: Size) -> bool:
    if params.has_lasso:
        return size.n_rows * size.values_per_row * size.n_classes <= _MOST_UNDER_L1
    q, k = unknowns(size), size.n_classes
    products = size.n_rows * q**2 * k / (2 * (k - 1)) + _FACTOR * q**3
    return q <= _MOST_UNKNOWNS and products <= _NEWTON_PRODUCTS


def _affordable(params: Hyperparameters, size: Size) -> bool:
    """Whether L-BFGS reaches the optimum at once, or alone."""
    n, d, k, values = size.n_rows, size.n_features + 1, size.n_classes, size.values_per_row
    passes = _PASSES + passes_worth(1, k, d, n, min(n, ROWS_PER_FEATURE * d))
    if params.has_lasso or blocks_per_model(1, k, d) == 0:
        passes = _PASSES_OF_DIAGONAL
    return 2 * passes * n * values * k <= _AFFORDABLE or n < _FEW_ROWS_PER_FEATURE * d


def blocks_per_model(m: int, k: int, d: int) -> int:
    """How many matrices of curvature a model of a stack of m has: one per class, one, or none."""
    if d > _MOST_FEATURES or m * d * d > MOST_ENTRIES:
        return 0
    return k if m * k * d * d <= MOST_ENTRIES else 1


def passes_worth(m: int, k: int, d: int, n: int, n_rows: int) -> float:
    """How many evaluations on n rows cost about as much as the curvature on so many of them."""
    n_blocks = blocks_per_model(m, k, d)
    if n_blocks == 0:
        return 2 * n_rows / n
    return n_blocks * d * (n_rows / 4 + d) / (2 * n * k)

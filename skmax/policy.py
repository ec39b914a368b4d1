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
# values that are not zero: a step moves all weights, and costs more than a batch of few values; and
# the passes that they may cost.
FIRST_EPOCHS, _WORTH_SGD, _DENSITY, _PASSES_FOR_SGD = 3, 30_000, 0.05, 6
# Going on to the optimum may cost so many seconds of a core, or so many times what SGD costs, and
# takes about so many passes: where blocks of the curvature cost next to nothing, in general, and
# where features stand alone. Below so many rows per feature, or per weight, it costs what it costs:
# there, epochs of SGD stay far above what any solver reaches (0.8 % on 32,000 embeddings of 384
# features and 413 classes).
_AFFORDABLE, _TIMES_SGD = 1.0, 2.5
_PASSES_OF_BLOCKS, _PASSES, _PASSES_OF_DIAGONAL = 12, 25, 50
_FEW_ROWS_PER_FEATURE, _FEW_ROWS_PER_WEIGHT = 30, 2
# Rows per feature that L-BFGS first measures the curvature on, and the most values of them.
_ROWS_PER_FEATURE, _MOST_VALUES = 8, 1 << 25
# Seconds of a core, in float32: a pass, per logit, per value and class, of many and of few classes;
# a matrix of curvature, per multiply-add; and a step of SGD. They predict passes of 10 to 410 ms on
# 60,000 x 784 with 10 classes, 10,000 x 1,000 with 10 and 32,000 x 384 with 413 within a third.
_PER_PASS, _PER_LOGIT, _PER_VALUE, _PER_VALUE_OF_FEW, _FEW_CLASSES = 1e-4, 8e-9, 6e-11, 1e-10, 32
_PER_MATRIX, _PER_PRODUCT, _PER_STEP = 1e-4, 1e-11, 4e-5
# The most entries of all matrices of a stack's curvature: with more, classes share one. With more
# features, or more entries even so, features stand alone.
MOST_ENTRIES, _MOST_FEATURES = 1 << 25, 2000
# Products that an iteration of Newton's method may cost, where factoring the Hessian costs so many
# times the cube of its size: on tables of 140 to 9,600 rows, 3 to 91 features and 2 to 10 classes,
# it was 1.4 to 6 times as fast as L-BFGS to a bound of 1e-4 where this says so, 0.4 to 0.6 times
# elsewhere. And the most unknowns that a Hessian may have.
_NEWTON_PRODUCTS, _FACTOR, _MOST_UNKNOWNS = 4e8, 5, 10_000
# Multiply-adds of a product with X up to which the proximal Newton method serves under L1, where
# L-BFGS took 1.2 to 20 times as long to a proof of 1e-4, or found none, on 20 of 23 problems.
_MOST_UNDER_L1 = 2e8


class Size(NamedTuple):
    """What of the data decides how a model is trained."""

    n_rows: int
    n_features: int
    n_classes: int
    values_per_row: float
    is_on_disk: bool = False


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
        Newton's method is asked for, and there are too many weights for it, or rows on disk.
    """
    solver = params.solver if params.solver != "auto" else _best(params, size)
    if solver == "newton":
        _check_unknowns(params, size)
        return Method(solver, params.max_iter or _NEWTON_ITERATIONS)
    if solver == "lbfgs":
        max_iter = params.max_iter or _LBFGS_ITERATIONS
        worth = fresh and max_iter > FIRST_EPOCHS and _worth_sgd(size)
        worth = worth and params.preconditioner is not None
        return Method(solver, max_iter, FIRST_EPOCHS if worth else 0)
    return Method(solver, params.max_iter or _epochs(size, batch_size(params, size.n_rows)))


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
    if size.is_on_disk and not params.has_lasso:
        raise ValueError(
            "solver='newton' holds all rows in memory in float64, "
            f"{8e-9 * size.n_rows * size.n_features:.0f} GB, and X is on disk. Use solver='lbfgs', "
            "which goes to the optimum, too."
        )


def _newton_pays(params: Hyperparameters, size: Size) -> bool:
    if params.has_lasso:
        return size.n_rows * size.values_per_row * size.n_classes <= _MOST_UNDER_L1
    q, k = unknowns(size), size.n_classes
    products = size.n_rows * q**2 * k / (2 * (k - 1)) + _FACTOR * q**3
    return q <= _MOST_UNKNOWNS and products <= _NEWTON_PRODUCTS and not size.is_on_disk


def _affordable(params: Hyperparameters, size: Size) -> bool:
    """Whether L-BFGS may go on to the optimum."""
    n, d, k = size.n_rows, size.n_features + 1, size.n_classes
    if n < max(_FEW_ROWS_PER_FEATURE * d, _FEW_ROWS_PER_WEIGHT * k * d):
        return True
    seconds = _passes(params, size) * _seconds_of_pass(size)
    return seconds <= max(_AFFORDABLE, _TIMES_SGD * _seconds_of_sgd(params, size))


def _passes(params: Hyperparameters, size: Size) -> int:
    """About how many passes L-BFGS takes."""
    n_blocks = blocks_per_model(1, size.n_classes, size.n_features + 1)
    if params.has_lasso or n_blocks == 0:
        return _PASSES_OF_DIAGONAL
    cheap = n_blocks > 1 and passes_worth(size, few_rows(size), n_blocks=n_blocks) <= 1
    return _PASSES_OF_BLOCKS if cheap else _PASSES


def blocks_per_model(m: int, k: int, d: int) -> int:
    """How many matrices of curvature a model of a stack of m has: one per class, one, or none."""
    if d > _MOST_FEATURES or m * d * d > MOST_ENTRIES:
        return 0
    return k if m * k * d * d <= MOST_ENTRIES else 1


def few_rows(size: Size) -> int:
    """The rows that a curvature is first measured on."""
    return _ROWS_PER_FEATURE * (size.n_features + 1)


def rows_of_moments(size: Size) -> int:
    """The rows that second moments are measured on: half as many, or more, if they cost no pass."""
    d = size.n_features + 1
    of_a_pass = 4 * size.n_rows * size.n_classes * size.values_per_row / d**2
    most = max(few_rows(size) / 2, min(of_a_pass, _MOST_VALUES / d))
    return int(min(size.n_rows, most))


def passes_worth(size: Size, n_rows: int, *, n_blocks: int) -> float:
    """How many passes cost about as much as matrices of curvature on so many rows."""
    d = size.n_features + 1
    products = n_rows * d**2 + d**3
    return n_blocks * (_PER_MATRIX + _PER_PRODUCT * products) / _seconds_of_pass(size)


def _seconds_of_pass(size: Size) -> float:
    per_value = _PER_VALUE_OF_FEW if size.n_classes < _FEW_CLASSES else _PER_VALUE
    return _PER_PASS + size.n_rows * size.n_classes * (_PER_LOGIT + size.values_per_row * per_value)


def _worth_sgd(size: Size) -> bool:
    """Whether L-BFGS should begin with epochs of SGD."""
    if size.n_rows < _WORTH_SGD or size.values_per_row < _DENSITY * size.n_features:
        return False
    return FIRST_EPOCHS * _seconds_of_epoch(size, 200) <= _PASSES_FOR_SGD * _seconds_of_pass(size)


def _seconds_of_sgd(params: Hyperparameters, size: Size) -> float:
    rows = batch_size(params, size.n_rows)
    return _epochs(size, rows) * _seconds_of_epoch(size, rows)


def _seconds_of_epoch(size: Size, rows: int) -> float:
    per_logit = _PER_LOGIT + size.values_per_row * _PER_VALUE_OF_FEW
    return size.n_rows / rows * (_PER_STEP + rows * size.n_classes * per_logit)


def _epochs(size: Size, rows: int) -> int:
    """Epochs of SGD in batches of so many rows, where nobody says how many."""
    return max(_MIN_EPOCHS, -(-_MIN_STEPS // -(-size.n_rows // rows)))

"""Which method for which data, and every constant of cost, with its measurement.

Costs are counted in multiply-adds of one core unless it says seconds. What was measured on two
cores of an AMD EPYC (Zen 4) or an Intel Xeon (AVX-512) is in `benchmarks/README.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from skmax.hyperparameters import Hyperparameters

# Iterations of the full-batch solvers where nobody says.
_NEWTON_ITERATIONS, _LBFGS_ITERATIONS = 500, 1000
# Epochs that large data need, and steps that small data need.
_MIN_EPOCHS, _MIN_STEPS = 3, 900
# Epochs of SGD that L-BFGS begins with; the least number of rows for which that pays, and share of
# values that are not zero: a step moves all weights, and costs more than a batch of few values; the
# passes that they may cost; and the least number of classes: without such epochs, fits of 50,000 to
# 300,000 rows of 20 to 784 features took 0.69 to 1.01 times as long with 2 to 4 classes, 0.70 to
# 1.14 with 5 to 12, 0.93 in the mean, and 0.77 to 1.67 with 15 to 30, 1.2 in the mean.
FIRST_EPOCHS, _WORTH_SGD, _DENSITY, _PASSES_FOR_SGD, _CLASSES_FOR_SGD = 3, 30_000, 0.05, 6, 15
# Going on to the optimum may cost so many seconds of a core, or so many times what SGD costs, and
# takes about so many passes: where blocks of the curvature cost next to nothing, in general, and
# where features stand alone. Below so many rows per feature, or per weight, it costs what it costs:
# there, epochs of SGD stay far above what any solver reaches (0.8 % on 32,000 embeddings of 384
# features and 413 classes).
_AFFORDABLE, _TIMES_SGD = 0.3, 2.5
_PASSES_OF_BLOCKS, _PASSES, _PASSES_OF_DIAGONAL = 12, 25, 50
_FEW_ROWS_PER_FEATURE, _FEW_ROWS_PER_WEIGHT = 30, 2
# Rows per feature that L-BFGS first measures the curvature on, and the most values of them; and the
# most rows of a matrix per class unless features are so many: 1e7 rows of 20 features took as many
# iterations with 20,000 as with 1.6e6, in half of the time and of the memory.
_ROWS_PER_FEATURE, _MOST_VALUES, _MOST_ROWS_OF_BLOCKS = 8, 1 << 25, 20_000
# Values of each feature that a diagonal is first measured on: 20,000 x 4,000 with 10 classes takes
# as many iterations with them as with all, which cost five of them.
_SEEN_BY_A_DIAGONAL = 2000
# Chance makes the matrices of classes differ by as many features as there are rows that count for a
# class, relatively: at most so much, or a few times what makes them differ in truth. On digits and
# Fashion-MNIST that is 0.36 to 1, and blocks on few rows, where chance is 1, halve the iterations;
# on made-up tables of 10,000 x 100 with 20 classes it is 0.04, chance is 0.4, and they save nothing
# and cost a third of the time.
_CHANCE, _PROMISE = 0.1, 0.2
# By what the rows grow that blocks and diagonals are measured on, each time after the first.
_MORE_ROWS = 4
# Seconds of a core, in float32: a pass; in it, a value of X, a logit, and a value for a class; to
# measure a curvature; in it, a matrix, and a multiply-add; an iteration of L-BFGS; and a step of
# SGD, per weight. They predict passes of 1.4 to 311 ms on 100,000 x 50 with 2 and 5 classes,
# 60,000 x 784 with 10, 19,000 x 384 with 50 and 413, and 20,000 x 768 with 1,000 within a fifth,
# and blocks of 0.3 ms to 3.1 s, in float64, on 8 rows per feature, of 20 to 2,000 features and 2 to
# 20 classes, within two fifths.
_PER_PASS, _PER_VALUE, _PER_LOGIT, _PER_PRODUCT_OF_X = 4e-5, 1e-10, 1.5e-9, 2e-11
_PER_MEASUREMENT, _PER_MATRIX, _PER_PRODUCT, _PER_ITERATION = 1.5e-4, 1e-5, 1.2e-11, 5e-4
_PER_STEP, _PER_WEIGHT = 2e-6, 2e-10
# The most entries of all matrices of a stack's curvature: with more, classes share one. With more
# features, or more entries even so, features stand alone.
MOST_ENTRIES, _MOST_FEATURES = 1 << 25, 2000
# Seconds of a core that Newton's method takes: in any case; per row and class, and pair of classes
# (3,000 x 2 with 50 to 400 of them); per value of X; and per multiply-add of a Hessian, of which
# factoring it costs so many times the cube of its size.
# Those of L-BFGS: in any case; and in so many iterations, in each of which a matrix of a class
# costs so much per entry. On 33 tables of 150 to 100,000 rows, 2 to 300 features and 2 to 40
# classes, what this chooses took 1.02 times as long as the better one on kinds that L-BFGS takes
# few iterations for, at most 1.6 times. And the most unknowns that a Hessian may have.
_NEWTON_SECONDS, _NEWTON_PER_LOGIT, _NEWTON_PER_PAIR, _NEWTON_PER_VALUE = 2e-3, 1e-7, 2e-8, 1e-8
_NEWTON_PER_PRODUCT, _FACTOR = 2.5e-11, 3.6
_LBFGS_SECONDS, _LBFGS_STEPS, _PER_ENTRY, _MOST_UNKNOWNS = 3.5e-3, 18, 4.5e-9, 10_000
# Newton's method takes over where iterations of L-BFGS have cost as much as it does: where features
# are skewed and correlated, they may be 1,000, and take 84 times as long; with this, 1.3 times on
# such tables, and 7 times at most. It is for so many unknowns at most (72 MB), and values that it
# holds of rows (512 MB).
_UNKNOWNS_TO_TAKE_OVER, _VALUES_TO_TAKE_OVER = 3000, 1 << 26
# Where there are more features than rows: what a basis of the rows takes, in multiply-adds, times
# their number squared and that of the features; the passes of L-BFGS; and how many times as long it
# takes. On 15 such tables of 50 to 500 rows, 300 to 20,000 features and 2 to 5 classes, Newton was
# 1 to 6 times as fast where this says so, and L-BFGS 1.1 to 2.5 times as fast elsewhere, but for
# one (0.65).
_BASIS, _WIDE_PASSES, _WIDE = 5, 35, 3
# The most values of such tables (4 GB), of which Newton's method makes a few more arrays.
_MOST_OF_WIDE = 1 << 29
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
    is_wide: bool = False  # see `Backend`


@dataclass(frozen=True)
class Method:
    """How a model is trained.

    Attributes
    ----------
    solver : {"sgd", "lbfgs", "newton"}
        What minimises.
    max_iter : int
        Epochs of "sgd", iterations of the others; those of `first_epochs` included.
    first_epochs : int
        Epochs of SGD that come first.
    newton_after : int or None
        The iteration, those epochs included, after which Newton's method takes over.
    """

    solver: str
    max_iter: int
    first_epochs: int = 0
    newton_after: int | None = None

    def solver_of(self, n_iter: int) -> str:
        """The solver of an iteration, the first of which is 1."""
        is_over = self.newton_after is not None and n_iter > self.newton_after
        return "newton" if is_over else self.solver


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
        first_epochs = FIRST_EPOCHS if worth else 0
        after = None
        if params.solver == "auto" and not params.has_lasso:
            after = _lbfgs_iterations(size)
        return Method(solver, max_iter, first_epochs, after and first_epochs + after)
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
    """The unknowns of Newton's method: weights that sum to zero over the classes.

    Of more features than rows, what the rows span is what counts.
    """
    return (size.n_classes - 1) * (min(size.n_features, size.n_rows) + 1)


def _check_unknowns(params: Hyperparameters, size: Size) -> None:
    q = unknowns(size)
    if q > _MOST_UNKNOWNS and not params.has_lasso:
        raise ValueError(
            f"solver='newton' needs the Hessian of all {q:,} weights of {size.n_classes} classes "
            f"and {size.n_features:,} features, {8 * q**2 / 1e9:.0f} GB. Use solver='lbfgs', which "
            "goes to the optimum, too."
        )
    values = size.n_rows * size.n_features
    is_wide = size.n_features > size.n_rows and values > _MOST_OF_WIDE
    if (size.is_on_disk or is_wide) and not params.has_lasso:
        where = "on disk" if size.is_on_disk else f"of {size.n_features:,} features"
        raise ValueError(
            "solver='newton' holds all rows in memory in float64, "
            f"{8e-9 * values:.0f} GB, and X is {where}. Use solver='lbfgs', which goes to the "
            "optimum, too."
        )


def _newton_pays(params: Hyperparameters, size: Size) -> bool:
    if params.has_lasso:
        return size.n_rows * size.values_per_row * size.n_classes <= _MOST_UNDER_L1
    n = size.n_rows
    if size.n_features > n:
        others = _LBFGS_SECONDS + _WIDE_PASSES * _seconds_of_pass(size)
        if blocks_per_model(1, size.n_classes, size.n_features + 1):
            others += _seconds_of_matrices(size, n, 1)
        others *= _WIDE
    else:
        others = _LBFGS_SECONDS + _LBFGS_STEPS * _seconds_of_lbfgs_iteration(size)
    is_possible = unknowns(size) <= _MOST_UNKNOWNS and not size.is_on_disk
    return is_possible and _seconds_of_newton(size) <= others


def _seconds_of_newton(size: Size) -> float:
    q, n, d, k = unknowns(size), size.n_rows, size.n_features, size.n_classes
    products = n * q**2 * k / (2 * (k - 1)) + _FACTOR * q**3
    if d > n:
        products += _BASIS * n**2 * d
    of_rows = n * (k * _NEWTON_PER_LOGIT + k**2 * _NEWTON_PER_PAIR)
    of_rows += n * (min(d, n) + 1) * _NEWTON_PER_VALUE
    return _NEWTON_SECONDS + of_rows + products * _NEWTON_PER_PRODUCT


def _seconds_of_lbfgs_iteration(size: Size) -> float:
    of_matrices = _PER_ENTRY * size.n_classes * (size.n_features + 1) ** 2
    return _seconds_of_iteration(size) + of_matrices


def _lbfgs_iterations(size: Size) -> int | None:
    """After how many iterations Newton's method takes over from L-BFGS; None: never."""
    values = size.n_rows * (size.n_features + 6 * size.n_classes)
    is_small = values <= _VALUES_TO_TAKE_OVER and unknowns(size) <= _UNKNOWNS_TO_TAKE_OVER
    if not is_small or size.is_on_disk or size.is_wide:  # it would compute on the host
        return None
    return int(_seconds_of_newton(size) / _seconds_of_lbfgs_iteration(size)) + 1


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


def rows_of_diagonal(size: Size) -> int:
    """The rows that curvatures of features that stand alone are first measured on."""
    enough = _SEEN_BY_A_DIAGONAL * size.n_features / max(1.0, size.values_per_row)
    return int(min(few_rows(size), enough))


def rows_of_moments(size: Size) -> int:
    """The rows that second moments are measured on: half as many, or more, if they cost no pass."""
    d = size.n_features + 1
    of_a_pass = 4 * size.n_rows * size.n_classes * size.values_per_row / d**2
    most = max(few_rows(size) / 2, min(of_a_pass, _MOST_VALUES / d))
    return int(min(size.n_rows, most))


def rows_of_blocks(size: Size, evenness: float, promise: float) -> int:
    """The rows that a matrix per class is first measured on: few, or more, if they cost no pass.

    Parameters
    ----------
    size : Size
        Of the data.
    evenness : float
        The share of the rows that count for a class: 1 if all have the same curvature.
    promise : float
        By how much the matrices of classes differ, beside their scale. Where chance makes those of
        few rows differ by much more, more rows are needed.
    """
    d, n = size.n_features + 1, size.n_rows
    few = few_rows(size)
    chance = d / (evenness * few) * max(0.0, 1 - few / n)
    if promise < _PROMISE * chance:
        needed = int(d / (evenness * _CHANCE + d / n))
        few = max(few, min(needed, _MOST_VALUES // d))
    seconds = _seconds_of_iteration(size) - _seconds_of_matrices(size, 0, size.n_classes)
    of_a_pass = seconds / (_n_matrices(size, size.n_classes) * _PER_PRODUCT * d**2)
    most = 0 if size.is_on_disk else min(of_a_pass, _MOST_ROWS_OF_BLOCKS)
    return int(min(n, max(few, most)))


def more_rows(size: Size, n_rows: int) -> int:
    """The rows that a curvature is measured on after so many."""
    return int(min(_MORE_ROWS * n_rows, max(few_rows(size), _MOST_VALUES // (size.n_features + 1))))


def passes_worth(size: Size, n_rows: int, *, n_blocks: int) -> float:
    """How many passes cost about as much as matrices of curvature on so many rows."""
    return _seconds_of_matrices(size, n_rows, n_blocks) / _seconds_of_iteration(size)


def _n_matrices(size: Size, n_blocks: int) -> int:
    return 1 if size.n_classes == 2 else n_blocks  # two classes have the same


def _seconds_of_matrices(size: Size, n_rows: int, n_blocks: int) -> float:
    d = size.n_features + 1
    of_each = _PER_MATRIX + _PER_PRODUCT * (n_rows * d**2 + d**3)
    return _PER_MEASUREMENT + _n_matrices(size, n_blocks) * of_each


def _seconds_of_iteration(size: Size) -> float:
    return _PER_ITERATION + _seconds_of_pass(size)


def _seconds_of_pass(size: Size) -> float:
    k = size.n_classes
    of_row = k * _PER_LOGIT + size.values_per_row * (_PER_VALUE + k * _PER_PRODUCT_OF_X)
    return _PER_PASS + size.n_rows * of_row


def _worth_sgd(size: Size) -> bool:
    """Whether L-BFGS should begin with epochs of SGD."""
    if size.n_rows < _WORTH_SGD or size.values_per_row < _DENSITY * size.n_features:
        return False
    if size.n_classes < _CLASSES_FOR_SGD:
        return False
    return FIRST_EPOCHS * _seconds_of_epoch(size, 200) <= _PASSES_FOR_SGD * _seconds_of_pass(size)


def _seconds_of_sgd(params: Hyperparameters, size: Size) -> float:
    rows = batch_size(params, size.n_rows)
    return _epochs(size, rows) * _seconds_of_epoch(size, rows)


def _seconds_of_epoch(size: Size, rows: int) -> float:
    per_step = _PER_STEP + size.n_features * size.n_classes * _PER_WEIGHT
    return _seconds_of_pass(size) + size.n_rows / rows * per_step


def _epochs(size: Size, rows: int) -> int:
    """Epochs of SGD in batches of so many rows, where nobody says how many."""
    return max(_MIN_EPOCHS, -(-_MIN_STEPS // -(-size.n_rows // rows)))

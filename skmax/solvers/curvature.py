"""The curvature of the objective on a sample of the rows: what L-BFGS starts from.

The Hessian of the mean cross-entropy has blocks ``mean_i p_ia (1[a=b] - p_ib) x_i x_i'``. Those
with a = b are what is measured, each times k / (k - 1): what the others add along directions that
sum to zero over the classes, exactly so where there are two, or all are equally likely. All is in
the coordinates of the preconditioner, the intercept last.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np

from skmax import kernels
from skmax.backends import Array, Backend, rounding_unit
from skmax.data import dense, scaled, squared
from skmax.objective import logits_of, softmax
from skmax.policy import (
    Size,
    blocks_per_model,
    few_rows,
    more_rows,
    passes_worth,
    rows_of_blocks,
    rows_of_diagonal,
    rows_of_moments,
)
from skmax.problem import Problem, State
from skmax.solvers.preconditioner import CURVATURE

# Rows whose curvature is below this share of their class's mean are left out: most rows are.
_NEGLIGIBLE = 0.2
# Added to every matrix, as a share of its mean diagonal.
_RIDGE, _RIDGE_ROUNDINGS = 1e-8, 8
# The least curvature of a feature, as a share of the largest: without it, scaled digits with C=1e6
# take more than 300 passes instead of 209.
_LEAST_SHARE = 0.1
_LEAST = 1e-12
# By how much the curvatures of classes that share a matrix may differ.
_CLOSE = 4.0
# By how much they may change until matrices are made anew.
_SAME = 1.5
# The least curvature of a class, as a share of the largest: of the rarest, a sample has nothing.
_LEAST_OF_CLASS = 1e-4
# Passes that blocks may cost at once where weights are not zero: on paths over C on 10,000 x 100
# with 5 classes, 2.5 took 194 ms instead of 159, and 9 took 162; with 20, all took the same.
_AT_ONCE = 5.0
# Passes that second moments may cost at once, and from what spread of their spectrum they may cost
# more; on how many rows that is estimated, and the curvatures of classes at most.
_CHEAP, _PROMISING, _ROWS_OF_SPECTRUM, _ROWS_OF_CLASSES = 2.0, 2.0, 256, 1024
# Rows per feature of which squares are summed at a time: of fewer, sums cost more than they do.
_ROWS_OF_A_SUM = 8
# Rows and classes that differences of classes are seen on, at most; and what is nothing.
_ROWS_OF_DIFFERENCE, _CLASSES_OF_DIFFERENCE, _TINY = 256, 32, np.finfo(np.float64).tiny
# The most values of rows, times weights of classes, that are held at once.
_MOST_AT_ONCE = 1 << 25
# Right-hand sides of a matrix up to which the kernel solves sooner than LAPACK: of 101 rows, 7
# instead of 8 us for 2 and 40 instead of 30 for 40.
_FEW_SIDES = 8
# The passes after which the next kind is measured, and the same anew, however cheap that is; and
# how often they must have cost as much as that. With 2 / 3 / 4, standardised digits took 14.3 /
# 14.3 / 16.7 ms, 1,000 x 20 with 20 classes 4.7 / 4.7 / 6.1, 10,000 x 100 with 5 classes 11.7 /
# 12.7 / 13.4, with 20 classes 36.1 / 30.6 / 30.1.
_FIRST, _AGAIN, _TIMES_ITS_PRICE = 2, 7, 3
# The share of rows that count for a class, until some have been seen.
_HEAVY = 0.1


class FirstGuess(Protocol):
    """About the inverse Hessian of each model of a stack."""

    def __call__(self, gradients: Array) -> Array:
        """What Newton's method would make of gradients (m, r, k, d + 1), about."""

    def select(self, models: np.ndarray) -> FirstGuess:
        """That of some of the models, at the host indices `models`."""


@dataclass(frozen=True)
class Diagonal:
    """Every weight by itself.

    Attributes
    ----------
    backend : Backend
        Where gradients are.
    values : array of shape (m, k, d + 1), float64
        The curvatures.
    """

    backend: Backend
    values: Array

    @classmethod
    def of(cls, problem: Problem, state: State, rows: np.ndarray) -> Diagonal:
        """That at a state, measured on some of the rows."""
        return cls(problem.backend, _not_less(problem, diagonal_curvature(problem, state, rows)))

    def __call__(self, gradients: Array) -> Array:
        """See `FirstGuess`."""
        return gradients * self._inverse(gradients.dtype)[:, None, ...]

    def _inverse(self, dtype: Any) -> Array:
        """One over the values, in the precision of gradients."""
        if dtype not in self._inverses:
            self._inverses[dtype] = 1 / self.backend.xp.astype(self.values, dtype, copy=False)
        return self._inverses[dtype]

    @cached_property
    def _inverses(self) -> dict[Any, Array]:
        return {}

    def select(self, models: np.ndarray) -> Diagonal:
        """See `FirstGuess`."""
        return Diagonal(self.backend, self.backend.take(self.values, models))


@dataclass(frozen=True)
class Scales(Diagonal):
    """Mean squares of the features, times a curvature of each class: for next to nothing."""

    squares: Array

    @classmethod
    def of(cls, problem: Problem, state: State, rows: np.ndarray) -> Scales:
        """See `Diagonal`."""
        if problem.inverse_scale is None:
            squares = _squares(problem, rows, partial(_row_weights, problem))
        else:
            squares = _squares_there(problem)
        return cls._at(problem, state, rows, squares)

    @classmethod
    def _at(cls, problem: Problem, state: State, rows: np.ndarray, squares: Array) -> Scales:
        backend = problem.backend
        curvature = backend.asarray(_of_classes(problem, state, rows)[..., None], squares.dtype)
        penalty = backend.asarray(_penalty(problem)[:, None, :], squares.dtype)
        values = curvature * squares  # of all weights: in as little new memory as possible
        values += penalty + _LEAST
        return cls(backend, _not_less(problem, values), squares)

    def renewed(self, problem: Problem, state: State, rows: np.ndarray) -> Scales:
        """See `Shared`."""
        return self._at(problem, state, rows, self.squares)

    def select(self, models: np.ndarray) -> Scales:
        """See `FirstGuess`."""
        arrays = (self.backend.take(array, models) for array in (self.values, self.squares))
        return Scales(self.backend, *arrays)


@dataclass(frozen=True)
class Shared:
    """Second moments S of the features, times a curvature c_a of each class, and the penalty P.

    The inverse of ``c_a S + P`` is that of ``S + P / c_a``, over c_a. Classes whose c_a are close
    share a matrix.

    Attributes
    ----------
    backend : Backend
        Where gradients are.
    moments : array of shape (m, d + 1, d + 1)
        S.
    curvature : ndarray of shape (m, k), host
        The c_a.
    groups : list of list of (ndarray, int)
        Per model, classes that share a matrix, and which of `factors` that is.
    factors : array of shape (number of matrices, d + 1, d + 1)
        The matrices, as `Backend.factored` has them.
    """

    backend: Backend
    moments: Array
    curvature: np.ndarray
    groups: list[list[tuple[np.ndarray, int]]]
    factors: Array

    @cached_property
    def _divisor(self) -> Array:
        """The c_a, of shape (m, 1, k, 1), where gradients are."""
        return self.backend.asarray(self.curvature[:, None, :, None], self.moments.dtype)

    @classmethod
    def of(cls, problem: Problem, state: State, rows: np.ndarray) -> Shared:
        """That at a state, measured on some of the rows."""
        X, weight = _dense_rows(problem, rows), problem.weights(problem.backend.asarray(rows))
        models = [
            _moments(problem, X, model, None if weight is None else weight[:, model : model + 1])
            for model in range(problem.n_models)
        ]
        few = problem.data.sample(rows, _ROWS_OF_CLASSES)
        curvature = _of_classes(problem, state, few)
        return cls._of(problem, problem.backend.xp.concat(models), curvature)

    @classmethod
    def _of(cls, problem: Problem, moments: Array, curvature: np.ndarray) -> Shared:
        backend, penalty, groups = problem.backend, _penalty(problem), []
        models: list[int] = []  # of each matrix
        commons: list[float] = []
        for j in range(problem.n_models):
            parts = _close(curvature[j])
            groups.append([(classes, len(models) + i) for i, (classes, _) in enumerate(parts)])
            models += [j] * len(parts)
            commons += [common for _, common in parts]
        of_groups = backend.take(moments, np.array(models))
        # All at once, since each inverse waits for the device.
        factors = _factored(problem, of_groups, penalty[models] / np.array(commons)[:, None])
        return cls(backend, moments, curvature, groups, factors)

    def renewed(self, problem: Problem, state: State, rows: np.ndarray) -> Shared:
        """The same moments, and the curvatures of the classes at another state."""
        curvature = _of_classes(problem, state, rows)
        same = np.abs(np.log(curvature / self.curvature)).max() < np.log(_SAME)
        if same:
            return replace(self, curvature=curvature)
        return self._of(problem, self.moments, curvature)

    def __call__(self, gradients: Array) -> Array:
        """See `FirstGuess`."""
        if self.backend.is_wide:
            return self._all(gradients) / self._divisor
        models = [self._of_model(j, gradients[j, ...]) for j in range(len(self.groups))]
        return self.backend.xp.stack(models) / self._divisor

    def _of_model(self, model: int, gradients: Array) -> Array:
        """That of one model, (r, k, d + 1), times the c_a."""
        backend, xp, groups = self.backend, self.backend.xp, self.groups[model]
        if len(groups) == 1:
            return self._solved(groups[0][1], gradients)
        parts = [
            self._solved(number, xp.take(gradients, backend.asarray(classes), axis=1))
            for classes, number in groups
        ]
        place = backend.asarray(np.argsort(np.concatenate([classes for classes, _ in groups])))
        return xp.take(xp.concat(parts, axis=1), place, axis=1)

    def _solved(self, number: int, gradients: Array) -> Array:
        rows = self.backend.xp.reshape(gradients, (-1, gradients.shape[-1]))
        solved = _solved(self.backend, self.factors[number, ...], rows)
        return self.backend.xp.reshape(solved, gradients.shape)

    def _all(self, gradients: Array) -> Array:
        """Those of all models at once, (m, r, k, d + 1), times the c_a."""
        xp, shape = self.backend.xp, gradients.shape
        there, back, factors = self._places(shape[1])
        rows = gradients
        if there is not None:
            rows = xp.take(xp.reshape(gradients, (-1, shape[-1])), there, axis=0)
        rows = xp.reshape(rows, (factors.shape[0], -1, shape[-1]))
        solved = _solved(self.backend, factors, rows)
        if back is not None:
            solved = xp.take(xp.reshape(solved, (-1, shape[-1])), back, axis=0)
        return xp.reshape(solved, shape)

    def _places(self, r: int) -> tuple[Array | None, Array | None, Array]:
        """Of r gradients, where the rows are that each matrix is for, and back; the matrices.

        There are as many rows for each, some of which are in vain. None: they are where they are.
        """
        if r not in self._of_sizes:
            backend, k = self.backend, self.curvature.shape[1]
            groups = [(j, *group) for j, of_model in enumerate(self.groups) for group in of_model]
            most = max(len(classes) for _, classes, _ in groups)
            there = np.zeros((len(groups), r, most), dtype=np.int64)
            back = np.empty((len(self.groups), r, k), dtype=np.int64)
            for i, (j, unordered, _) in enumerate(groups):
                classes = np.sort(unordered)
                for part in range(r):
                    there[i, part, : len(classes)] = (j * r + part) * k + classes
                    back[j, part, classes] = (i * r + part) * most + np.arange(len(classes))
            factors, numbers = self.factors, np.array([number for *_, number in groups])
            if not np.array_equal(numbers, np.arange(factors.shape[0])):  # some models have left
                factors = backend.take(factors, numbers)
            moved: tuple[Array | None, Array | None] = None, None
            if len(groups) > len(self.groups):  # else, a model's matrix is for all its classes
                moved = backend.asarray(there.reshape(-1)), backend.asarray(back.reshape(-1))
            self._of_sizes[r] = (*moved, factors)
        return self._of_sizes[r]

    @cached_property
    def _of_sizes(self) -> dict[int, tuple[Array | None, Array | None, Array]]:
        return {}

    def select(self, models: np.ndarray) -> Shared:
        """See `FirstGuess`."""
        moments = self.backend.take(self.moments, models)
        groups = [self.groups[model] for model in models]
        return Shared(self.backend, moments, self.curvature[models], groups, self.factors)


@dataclass(frozen=True)
class Blocks:
    """A matrix per class.

    Attributes
    ----------
    backend : Backend
        Where gradients are.
    factors : list of arrays of shape (models, k, d + 1, d + 1)
        Per model, or of all together, matrices as `Backend.factored` has them; of two classes a
        single one.
    """

    backend: Backend
    factors: list[Array]

    @classmethod
    def of(cls, problem: Problem, state: State, rows: np.ndarray) -> Blocks:
        """Those at a state, measured on some of the rows."""
        backend, xp, X = problem.backend, problem.backend.xp, _dense_rows(problem, rows)
        weight = _weights(problem, state, X, backend.asarray(rows))
        matters = weight > _NEGLIGIBLE * xp.mean(weight, axis=0, keepdims=True)
        weight = xp.where(matters, weight, 0 * weight)
        penalty, factors = _penalty(problem), []
        n_blocks = 1 if problem.n_classes == 2 else problem.n_classes  # two have the same
        for model in range(problem.n_models):
            moments = _moments(problem, X, model, weight[:, model, :n_blocks])
            factors.append(_factored(problem, moments[None, ...], penalty[model, ...]))
        if backend.is_wide and len(factors) > 1:
            factors = [xp.concat(factors)]
        return cls(backend, factors)

    def __call__(self, gradients: Array) -> Array:
        """See `FirstGuess`."""
        xp, (_, r, k, p), first, models = self.backend.xp, gradients.shape, 0, []
        for factors in self.factors:
            m, n_blocks = factors.shape[:2]
            part = gradients[first : first + m, ...]
            rows = xp.reshape(part, (m, r, n_blocks, k // n_blocks, p))
            rows = xp.reshape(xp.permute_dims(rows, (0, 2, 1, 3, 4)), (m, n_blocks, -1, p))
            solved = _solved(self.backend, factors, rows)
            solved = xp.reshape(solved, (m, n_blocks, r, k // n_blocks, p))
            models.append(xp.reshape(xp.permute_dims(solved, (0, 2, 1, 3, 4)), (m, r, k, p)))
            first += m
        return models[0] if len(models) == 1 else xp.concat(models)

    def select(self, models: np.ndarray) -> Blocks:
        """See `FirstGuess`."""
        if len(self.factors) > 1:
            return Blocks(self.backend, [self.factors[model] for model in models])
        return Blocks(self.backend, [self.backend.take(self.factors[0], models)])


class Curvature:
    """The first guess that is known, and when a better one is worth its price.

    From weights of zero, features share their second moments, if those are cheap or promise much,
    or stand alone. Once the passes since have cost three times as much, what is dearer is
    measured: second moments, then a block per class, then that on more rows; too many of them
    are never. From zero, the first blocks come sooner, once the passes so far cost as much, and
    those to be expected.

    Parameters
    ----------
    problem : Problem
        What is minimised.
    state : State
        Where the search begins.
    diagonal : bool
        Whether features stand alone in any case.
    """

    def __init__(self, problem: Problem, state: State, *, diagonal: bool):
        (m, k), data, self._xp = problem.masked.shape, problem.data, problem.backend.xp
        self._size = Size(
            len(problem.order), data.n_features, k, data.values_per_row, data.is_on_disk
        )
        self._rng, self._renewed, self._heavy = np.random.default_rng(0), 1, _HEAVY
        n_blocks = 0 if diagonal else blocks_per_model(m, k, data.n_features + 1)
        ladder = [Scales, Diagonal] if n_blocks == 0 else [Scales, Shared]
        ladder += [Blocks] * (n_blocks == k)
        at_once = 0  # rows that blocks are measured on, if they are the first
        self._fresh = not problem.backend.to_numpy(state.coef).any()
        if not self._fresh:
            at_once = self._rows_at_once(problem, state) if n_blocks == k else 0
            ladder = ladder[-1:] if at_once else ladder[1:]
        elif n_blocks and self._moments_pay(problem):
            ladder = ladder[1:]
        self._ladder: list[Any] = ladder
        self._n_rows = at_once or self._first_rows()
        self.measure(problem, state, 0)

    def _rows_at_once(self, problem: Problem, state: State) -> int:
        """The rows that blocks need, if they are worth measuring at once; else 0."""
        worth = partial(passes_worth, self._size, n_blocks=self._size.n_classes)
        if worth(few_rows(self._size)) > _AT_ONCE:
            return 0
        n_rows = self._rows_of_blocks(problem, state)
        return n_rows if worth(n_rows) <= _AT_ONCE else 0

    def _price_of_blocks(self, n_rows: int) -> float:
        """How many passes cost as much as a block per class, where a share of the rows counts."""
        heavy = int(self._heavy * min(n_rows, self._size.n_rows))
        return passes_worth(self._size, heavy, n_blocks=self._size.n_classes)

    def _rows_of_blocks(self, problem: Problem, state: State) -> int:
        """The rows that blocks are first measured on; from now on, it is known how many count."""
        size, self._heavy = self._size, 1.0
        # Two have one matrix, which costs little; and of few rows, the next ones are of all.
        soon_all = more_rows(size, few_rows(size)) >= size.n_rows
        some = size.n_classes == 2 or size.is_on_disk or soon_all
        if some:
            n_rows = rows_of_blocks(size, 1.0, np.inf)
            if size.is_on_disk or self._price_of_blocks(n_rows) <= _AT_ONCE:
                return n_rows
        evenness, promise, self._heavy = _difference_of_classes(problem, state, self._rng)
        return n_rows if some else rows_of_blocks(size, evenness, promise)

    def _first_rows(self) -> int:
        """The rows that what comes next is first measured on, at least."""
        if self._ladder[0] is Scales:
            return _ROWS_OF_CLASSES
        rows = {Shared: rows_of_moments, Blocks: few_rows, Diagonal: rows_of_diagonal}
        return rows[self._ladder[0]](self._size)

    def _moments_pay(self, problem: Problem) -> bool:
        """Whether second moments are cheap, or features correlated."""
        price = passes_worth(self._size, rows_of_moments(self._size), n_blocks=1)
        return price <= _CHEAP or _spread_of_spectrum(problem, self._rng) >= _PROMISING

    def measure(self, problem: Problem, state: State, passes: int) -> None:
        """Measure it where the models are after so many passes, and decide when to do so again."""
        sample = problem.sample(self._n_rows, self._rng)
        self._guess: FirstGuess = self._ladder[0].of(sample, state, sample.order)
        if isinstance(self._guess, Blocks):  # the next ones come when they would if all rows count
            self._heavy = 1.0
        if len(self._ladder) > 1:
            self._ladder = self._ladder[1:]
            self._n_rows = self._first_rows()
        else:
            self._n_rows = more_rows(self._size, self._n_rows)
        self._since = passes
        self._plan()

    def _plan(self) -> None:
        """Decide after how many passes what comes next has earned its price, and more."""
        price = _TIMES_ITS_PRICE * self._price()
        self._due = self._since + max(self._soonest(self._since), price)

    def _soonest(self, passes: int) -> int:
        """The passes that must come first, however cheap it is what comes next."""
        if self._ladder[0] is Diagonal:
            return max(2 * _AGAIN, passes)
        return _AGAIN if isinstance(self._guess, self._ladder[0]) else _FIRST

    def _price(self) -> float:
        """How many passes cost as much as what comes next."""
        kind, n_rows = self._ladder[0], min(self._n_rows, self._size.n_rows)
        if kind is Blocks:
            return self._price_of_blocks(n_rows)
        if kind is Diagonal:
            return 2 * n_rows / self._size.n_rows
        if kind is Shared and isinstance(self._guess, Shared):  # it is what it was
            return np.inf
        return passes_worth(self._size, n_rows, n_blocks=1)

    def renew(
        self,
        problem: Problem,
        state: State,
        passes: int,
        expected: Callable[[], float],
        *,
        slow: bool,
    ) -> bool:
        """Learn what is due where the models are, after so many passes, if their steps are slow.

        `expected` says how many more are to be expected, if all stays as it is. Returns whether
        that is all that there is to know: a block per class.
        """
        if slow and self._is_due(problem, state, passes, expected):
            self.measure(problem, state, passes)
            return isinstance(self._guess, Blocks)
        if isinstance(self._guess, Shared | Scales) and passes >= 2 * self._renewed:
            self._renewed = passes
            sample = problem.sample(_ROWS_OF_CLASSES, self._rng)
            self._guess = self._guess.renewed(sample, state, sample.order)
        return False

    def _is_due(
        self, problem: Problem, state: State, passes: int, expected: Callable[[], float]
    ) -> bool:
        """Whether it is, as things stand here: of blocks, the price depends on that."""
        if not self._seems_due(passes, expected):
            return False
        if self._ladder[0] is Blocks and not isinstance(self._guess, Blocks):
            self._n_rows = self._rows_of_blocks(problem, state)
            self._plan()
        return self._seems_due(passes, expected)

    def _seems_due(self, passes: int, expected: Callable[[], float]) -> bool:
        if passes >= self._due:
            return True
        first = self._ladder[0] is Blocks and not isinstance(self._guess, Blocks)
        if not (self._fresh and first):
            return False
        # Blocks that cost as much as the passes to be expected make these fewer by more than half:
        # 10,000 rows of Fashion-MNIST take 0.75 s instead of 1.2, 10,000 x 100 with 20 classes 40
        # ms instead of 52. On paths over C, where each fit takes few, they took a fifth longer.
        price = self._price()
        soonest = self._since + max(self._soonest(self._since), price)
        return passes >= soonest and expected() >= price

    def __call__(self, *gradients: Array) -> list[Array]:
        """What the present guess makes of gradients (m, k, d + 1)."""
        if isinstance(self._guess, Diagonal):
            return [self._guess(gradient[:, None, ...])[:, 0, ...] for gradient in gradients]
        if len(gradients) == 1:
            return [self._guess(gradients[0][:, None, ...])[:, 0, ...]]
        # At once: reading the matrices is what costs.
        all_ = self.of(self._xp.stack(gradients, axis=1))
        return [all_[:, i, ...] for i in range(len(gradients))]

    def of(self, gradients: Array) -> Array:
        """What it makes of some of each model, (m, r, k, d + 1), in a new array."""
        return self._guess(gradients)

    def select(self, models: np.ndarray) -> Curvature:
        """See `FirstGuess`."""
        part = copy(self)
        part._guess = self._guess.select(models)
        return part


def _spread_of_spectrum(problem: Problem, rng: np.random.Generator) -> float:
    """The mean squared eigenvalue of the features' second moments, over the squared mean.

    That of the moments' square, estimated without bias: a mean of ``(z_i z_j)^2`` over pairs of
    different rows. 1: no direction is longer than another.
    """
    sample = problem.sample(_ROWS_OF_SPECTRUM, rng)
    X = _dense_rows(sample, sample.order)
    return float(problem.data.n_features * _spreads(sample, X, np.ones((len(sample.order), 1)))[0])


def _difference_of_classes(
    problem: Problem, state: State, rng: np.random.Generator
) -> tuple[float, float, float]:
    """What `rows_of_blocks` wants to know, of the first model's classes, on a sample.

    The evenness is the squared mean of the curvatures of rows, over the mean of their squares; the
    promise is by how much their second moments, so weighted, are more spread than without weights:
    see `_spread_of_spectrum`. Both are medians over the classes. And the share of rows that are
    not left out.
    """
    backend = problem.backend
    sample = problem.sample(_ROWS_OF_DIFFERENCE, rng)
    X, index = _dense_rows(sample, sample.order), backend.asarray(sample.order)
    h = backend.to_numpy(_weights(sample, state, X, index)[:, 0, :]).astype(np.float64)
    n, h = len(h), h[:, :: -(-h.shape[1] // _CLASSES_OF_DIFFERENCE)]
    evenness = h.sum(axis=0) ** 2 / np.maximum(n * np.sum(h * h, axis=0), _TINY)
    *of_classes, plain = _spreads(sample, X, np.column_stack([h, np.ones(n)]))
    promise = np.median(of_classes) / max(plain, _TINY) - 1
    heavy = np.mean(h > _NEGLIGIBLE * h.mean(axis=0))
    return max(float(np.median(evenness)), 1 / n), float(promise), float(heavy)


def _spreads(problem: Problem, X: Array, weight: np.ndarray) -> np.ndarray:
    """Mean squared products of different rows, over their squared mean squared length, (c,).

    In the first model's coordinates; of `weight` (n, c), each column weighs the rows.
    """
    Z = _standardised(problem, X, 0)[:, :-1]
    products = problem.backend.to_numpy(Z @ Z.T).astype(np.float64)
    own = np.diag(products).copy()
    np.fill_diagonal(products, 0.0)
    total = weight.sum(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):  # of features that nobody has scaled
        of_pairs = np.sum((products**2 @ weight) * weight, axis=0)
        of_pairs /= np.maximum(total**2 - np.sum(weight * weight, axis=0), _TINY)
        return of_pairs / np.maximum((own @ weight / np.maximum(total, _TINY)) ** 2, _TINY)


def _moments(problem: Problem, X: Array, model: int, weight: Array | None) -> Array:
    """Mean squares (k, d + 1, d + 1) of rows in a model's coordinates, times weights (n, k).

    Without weights, all are 1, and k is 1.
    """
    (n, d), sums = X.shape, None
    run = kernels.second_moments(problem.backend)
    if run is not None:
        return run(problem, X, model, weight) / n
    size = max(problem.data.rows_per_piece(1), _ROWS_OF_A_SUM * (d + 1))
    size = n if problem.backend.is_wide else size
    for first in range(0, n, size):
        last = min(first + size, n)
        Z = _standardised(problem, X[first:last, :], model)
        if weight is None:
            part = (Z.T @ Z)[None, ...]
        else:
            part = _weighted_moments(problem.backend, Z, weight[first:last, :])
        sums = part if sums is None else sums + part
    return sums / n


def _weighted_moments(backend: Backend, Z: Array, weight: Array) -> Array:
    """Sums (k, p, p) of squares of rows Z (b, p), each times its weights (b, k)."""
    xp, (b, p), k = backend.xp, Z.shape, weight.shape[1]
    if not backend.is_wide:
        moments = partial(_weighted_moment, xp, Z)
        return xp.stack(backend.each(moments, [weight[:, j] for j in range(k)], k * b * p**2))
    size, parts = max(1, _MOST_AT_ONCE // (b * p)), []
    for first in range(0, k, size):
        of_rows = xp.matrix_transpose(weight[:, first : min(first + size, k)])
        Q = of_rows[:, None, :] * xp.matrix_transpose(Z)
        parts.append(xp.reshape(xp.reshape(Q, (-1, b)) @ Z, (-1, p, p)))
    return xp.concat(parts)


def _weighted_moment(xp: Any, Z: Array, weight: Array) -> Array:
    """Those of one class, from the rows that matter."""
    heavy = xp.nonzero(weight)[0]
    Q = xp.take(Z, heavy, axis=0) * xp.sqrt(xp.take(weight, heavy, axis=0))[:, None]
    return Q.T @ Q


def _factored(problem: Problem, matrices: Array, penalty: np.ndarray) -> Array:
    """Matrices of curvature and diagonals of the penalty (..., d + 1), for `Backend.solved`.

    The matrices are changed.
    """
    backend, xp, p = problem.backend, problem.backend.xp, matrices.shape[-1]
    # In float32 a matrix is known to its rounding errors, which must not make it indefinite.
    ridge = max(_RIDGE, _RIDGE_ROUNDINGS * rounding_unit(problem.data.dtype))
    flat = xp.reshape(matrices, (-1, p * p))
    own = backend.to_numpy(flat[:, :: p + 1])  # as many steps there would take longer
    added = ridge * own.mean(axis=1, keepdims=True) + _LEAST
    added = added + np.broadcast_to(penalty, matrices.shape[:-1]).reshape(own.shape)
    if problem.inverse_scale is not None:
        added = added + _missing(own)
    flat[:, :: p + 1] += backend.asarray(added, matrices.dtype)
    return backend.factored(xp.reshape(flat, matrices.shape))


def _solved(backend: Backend, factors: Array, rows: Array) -> Array:
    """See `Backend.solved`."""
    few = rows.shape[-2] <= _FEW_SIDES
    return ((kernels.solved(backend) if few else None) or backend.solved)(factors, rows)


def _not_less(problem: Problem, values: Array) -> Array:
    """Curvatures that are no less than a share of the intercept's: as in `_missing`."""
    if problem.inverse_scale is None:
        return values
    return problem.backend.xp.maximum(values, _LEAST_SHARE * values[..., -1:])


def _squares_there(problem: Problem) -> Array:
    """Mean squares of the features of all rows, and 1, of shape (m, 1, d + 1), float64.

    The preconditioner has divided them by its units.
    """
    of_penalty = CURVATURE * _penalty(problem)
    of_penalty[:, -1] = 0.0
    squares = np.maximum(1 - of_penalty, 0.0)
    return problem.backend.asarray(squares[:, None, :], problem.backend.dtype(np.float64))


def _row_weights(problem: Problem, X: Array, index: Any) -> Array:
    """Weights of rows, (b, m, 1)."""
    weight, xp = problem.weights(index), problem.backend.xp
    if weight is None:
        shape, device = (X.shape[0], problem.n_models, 1), problem.backend.device
        return xp.ones(shape, dtype=problem.data.dtype, device=device)
    return weight[:, :, None]


def _missing(own: np.ndarray) -> np.ndarray:
    """What features lack whose few rows the sample missed, or the model at hand predicts well.

    They would take steps without bound, against which these rows then stand.
    """
    lacking = np.maximum(_LEAST_SHARE * own.max(axis=-1, keepdims=True) - own, 0 * own)
    lacking[..., -1] = 0.0  # not the intercept
    return lacking


def _close(curvature: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Classes whose curvatures are close, and what those are about."""
    order = np.argsort(curvature)
    logs = np.log(curvature[order])
    n_groups = int(np.ceil((logs[-1] - logs[0]) / np.log(_CLOSE))) or 1
    edges = np.linspace(logs[0], logs[-1], n_groups + 1)[1:-1]
    parts = np.split(order, np.searchsorted(logs, edges))
    return [(part, float(np.exp(np.log(curvature[part]).mean()))) for part in parts if part.size]


def _of_classes(problem: Problem, state: State, rows: np.ndarray) -> np.ndarray:
    """Mean curvatures of the loss by the logits of each class, (m, k), on some of the rows."""
    xp, index = problem.backend.xp, problem.backend.asarray(rows)
    weight = _weights(problem, state, problem.data.rows(index), index)
    mean = problem.backend.to_numpy(xp.mean(weight, axis=0)).astype(np.float64)
    return np.maximum(mean, _LEAST + _LEAST_OF_CLASS * mean.max(axis=1, keepdims=True))


def _dense_rows(problem: Problem, rows: np.ndarray) -> Array:
    return dense(problem.data.rows(problem.backend.asarray(rows)))


def units_of(problem: Problem) -> Array:
    """One over the preconditioner's units, of shape (m, d), float64."""
    backend, xp = problem.backend, problem.backend.xp
    float64 = backend.dtype(np.float64)
    if problem.inverse_scale is None:
        shape = problem.n_models, problem.data.n_features
        return xp.ones(shape, dtype=float64, device=backend.device)
    return xp.astype(problem.inverse_scale[:, 0, :], float64)


def _penalty(problem: Problem) -> np.ndarray:
    """The curvature of the L2 penalty, (m, d + 1), on the host; none for the intercept."""
    values = np.zeros((problem.n_models, problem.data.n_features + 1))
    values[:, :-1] = problem.l2[:, None]
    if problem.inverse_scale is not None:
        units = problem.backend.to_numpy(problem.inverse_scale)[:, 0, :].astype(np.float64)
        values[:, :-1] = values[:, :-1] * units * units
    return values


def _weights(problem: Problem, state: State, X: Array, index: Any) -> Array:
    """Curvatures of the loss of each row by its logits, of shape (b, m, k)."""
    run = kernels.curvatures(problem)
    if run is not None:
        return run(problem, state.coef, state.intercept, X, index)
    xp = problem.backend.xp
    p = softmax(xp, logits_of(xp, X, state.coef, state.intercept))
    known = np.sum(~problem.masked, axis=1)
    factor = problem.backend.asarray((known / (known - 1))[:, None], problem.data.dtype)
    weight = p * (1 - p) * factor
    of_rows = problem.weights(index)
    return weight if of_rows is None else weight * of_rows[..., None]


def _standardised(problem: Problem, X: Array, model: int) -> Array:
    """Rows in a model's coordinates, with a column of ones for the intercept."""
    xp, (b, d) = problem.backend.xp, X.shape
    Z = xp.empty((b, d + 1), dtype=X.dtype, device=problem.backend.device)
    Z[:, :-1], Z[:, -1] = X, float(problem.fit_intercept)
    features = Z[:, :-1]
    if problem.mean is not None:
        features -= problem.mean[model, ...]
    if problem.inverse_scale is not None:
        features *= problem.inverse_scale[model, ...]
    return Z


def diagonal_curvature(problem: Problem, state: State, rows: np.ndarray) -> Array:
    """The curvature of every weight by itself, of shape (m, k, d + 1), float64.

    Measured on some of the rows.
    """
    values = _squares(problem, rows, partial(_weights, problem, state))
    backend = problem.backend
    ridge = _RIDGE * backend.xp.mean(values, axis=-1, keepdims=True) + _LEAST
    return values + ridge + backend.asarray(_penalty(problem)[:, None, :], values.dtype)


def _squares(problem: Problem, rows: np.ndarray, weigh: Callable[[Array, Any], Array]) -> Array:
    """Means of squares of the features and of 1, of shape (m, k, d + 1), float64.

    `weigh` maps rows and their index to weights of shape (b, m, k).
    """
    xp, data = problem.backend.xp, problem.data
    m, d, units = problem.n_models, data.n_features, units_of(problem)
    # Squares of features that are not scaled might under- or overflow.
    common = xp.max(units, axis=0)
    scale = xp.astype(common, data.dtype)

    def sums(index: Any, X: Array) -> tuple[Array, Array, Array]:
        weight = weigh(X, index)
        flat, X = xp.reshape(weight, (weight.shape[0], -1)).T, scaled(X, scale)
        return flat @ X, flat @ squared(X), xp.sum(weight, axis=0)

    width = m * problem.n_classes
    first, second, total = (part / len(rows) for part in data.reduce(rows, sums, width=width))
    first, second = xp.reshape(first, (m, -1, d)), xp.reshape(second, (m, -1, d))
    if problem.mean is not None:
        mean = xp.astype(problem.mean, units.dtype) * common
        second = second - mean * (2 * first - mean * total[..., None])
    ratio = (units / xp.where(common > 0, common, xp.ones_like(common)))[:, None, :]
    values = ratio * ratio * xp.maximum(second, 0 * second)
    return xp.concat([values, total[..., None]], axis=-1)

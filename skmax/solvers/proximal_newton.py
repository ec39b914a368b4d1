"""Proximal Newton on a working set, for L1 and the elastic net: a stack of models.

An iteration is a pass over the data, one product with X for the logits of a step and one for the
gradient:

1. The working set: what is not zero, and what has a gradient beyond its threshold, at most twice as
   many variables as are not zero.
2. A quadratic model of the smooth part there. Its exact Hessian, classes coupled, where that is
   affordable; else a block for each class, or a diagonal, corrected by what past steps have shown.
3. The minimum of the model plus L1.
4. The step there is shortened or stretched. Its logits are known, so that costs no product.
5. Gradient and dual bound.

From weights of zero, unless variables are few, the penalty begins where the solution is empty, and
falls by a constant factor per iteration: so the working set grows towards the solution from below.

Arrays are those of `skmax.solvers.predictions`, in coordinates that all models share.

References
----------
J. D. Lee, Y. Sun and M. A. Saunders, Proximal Newton-type methods for minimizing composite
functions, SIAM Journal on Optimization 24, 2014. J. Friedman, T. Hastie and R. Tibshirani,
Regularization paths for generalized linear models via coordinate descent, Journal of Statistical
Software 33, 2010: the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from skmax import kernels
from skmax.duality import Dual
from skmax.problem import MASKED_LOGIT, Epoch, Problem, State
from skmax.solvers.coordinates import Coordinates
from skmax.solvers.full_batch import FullBatch
from skmax.solvers.predictions import (
    LinearMap,
    Logistic,
    Softmax,
    in_common_coordinates,
    targets_of,
    weights_of,
)
from skmax.solvers.quadratic import Blocks, Corrected, Diagonal, Exact, Quadratic, minimise

# Measured on iris, wine, breast_cancer, digits, Gaussians of 5,000 x 100, 600 x 1,000 and 20,000 x
# 300, Fashion-MNIST and made-up text, at several C: iterations to a proof of 1e-4, one thread.

# By what the penalty falls per iteration. Scaled digits with C=1000: 16 iterations, 34 with 0.1.
_FALL = 0.25
# The most variables that all come at once: wine as loaded takes 8 iterations instead of 12.
_FEW = 100
# How many times its nonzero weights a working set may have, and how many per row in any case.
_GROWTH, _FIRST = 2.0, 50
# What is left of the model's least subgradient.
_INEXACT = 0.1
# The most variables of an exact Hessian, and the most products: rows that matter times variables
# squared, and so many for what a pair of rows of weights costs beside them, in every piece.
_MOST_EXACT, _MOST_PRODUCTS, _PER_PAIR = 1500, 1e9, 2.5e5
# The same, of all rows, where the compiled core makes it of all columns at once: 10,000 x 100 with
# 5 classes takes 6 iterations instead of 70, and a third of the time.
_MOST_AT_ONCE = 6e9
# Values of X that it is made of at a time, times pairs of rows of weights, and at most (32 MB): a
# part of 512 kB, whose product is symmetric, stays in the cache.
_VALUES_OF_A_PAIR, _VALUES_AT_ONCE = 1 << 16, 1 << 22
# Terms of it (a row in a class, a row in a pair of classes) below this share of their mean are left
# out; below a tenth of that once an iteration has brought the objective down by less than a tenth
# of the gap. All terms: digits take 1.3 times as long. Always this share: small problems with
# collinear features need 100 iterations instead of 14.
_NEGLIGIBLE, _SLOW, _LESS = 0.02, 0.1, 0.1
# What its diagonal gets: a share of itself, and something where rows are predicted too well.
_RIDGE, _LEAST = 1e-10, 1e-12
# Curvatures p (1 - p) below this are raised to it where the model is not exact: features of rows
# that are predicted well would take steps without bound. Text with C=10: 174 with 0.01, 147.
_FLOOR = 0.003
# Rows that blocks are measured on, per variable of the largest, and a diagonal. Blocks are used if
# the cube of the largest is at most so many times the size of X.
_ROWS_PER_VARIABLE, _FEWEST_VARIABLES, _ROWS_OF_DIAGONAL, _BLOCKS_WORTH = 8, 100, 2000, 2.0
# Values of a feature that these rows must show on average: text of 8,000 x 15,000 with 15 values
# per row and 20 classes, of which they show one, takes 10 iterations with a diagonal, and is not
# solved in 200 with blocks.
_VALUES_SEEN = 20
# Rows of a block whose curvature is below this share of the mean are left out; what its diagonal
# gets, as a share of the mean, and a diagonal, of the median.
_LIGHT, _RIDGE_OF_BLOCK, _RIDGE_OF_DIAGONAL = 0.2, 1e-5, 1e-3
# Steps that are remembered, and how parallel to its change of the gradient one must be.
_MEMORY, _CONVEX = 20, 1e-6
# The share of what a step promised that it must keep, and by what it is shortened if not; the share
# that stretching it must gain, by what it is stretched, and how far. Stretching saves up to a third
# of the iterations where the penalty is weak.
_SUFFICIENT, _SHORTER, _SHORTEST = 1e-3, 0.5, 1e-9
_WORTH, _LONGER, _LONGEST = 0.02, 1.5, 4.0
# The share of the objective that some model must promise less than for a look at the bounds. With
# 0.1, 60 problems of 15 tables took 357 iterations instead of 343, and 1.06 times as long.
_NEAR = 0.01
# What changes by so small a share of the objective is a rounding error; iterations that bring
# neither the objective nor the bound further, until a model has stalled.
_ROUNDING, _NEARER, _PATIENCE = 1e-15, 0.9, 10


class ProximalNewton(FullBatch):
    """Proximal Newton with a line search, on a working set."""

    def begin(self, problem: Problem, state: State) -> _Search:
        """A stack of models that is to go down from a state."""
        return _Search(problem, state, proven=self.proven)


class _Model:
    """One model of a stack, with r rows of weights: one per class.

    Parameters
    ----------
    linear : LinearMap
        Where logits come from.
    known : ndarray of shape (r,)
        Its classes.
    target : ndarray of shape (r, n)
        Probabilities that rows of X should have.
    weight : ndarray of shape (n,)
        Their shares in means.
    u : ndarray of shape (r, p)
        Where it begins.
    l1, l2 : ndarray of shape (p,)
        Its penalties.

    Attributes
    ----------
    u : ndarray of shape (r, p)
        Its weights.
    residual : ndarray of shape (r, n)
        The gradient of its loss by the logits.
    loss, value : float
        Its loss and its objective.
    length : float
        The length of its last step; 0 if it found none.
    promised : float
        By how much its model's minimum was below where it was.
    """

    _kind: type[Softmax] = Softmax

    def __init__(
        self, linear: LinearMap, known: np.ndarray, target: np.ndarray, weight: np.ndarray,
        u: np.ndarray, l1: np.ndarray, l2: np.ndarray,
    ):  # fmt: skip
        self._linear, self.known, self.u = linear, known, u
        self._likelihood = self._kind(target, weight)
        self._l1, self._l2, self._usable = (
            np.broadcast_to(of_row, u.shape) for of_row in (l1, l2, linear.usable)
        )
        self._free, self._step, self._gradient = self._l1 == 0, np.zeros_like(u), np.zeros_like(u)
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._strength, self.length, self._negligible = 1.0, 0.0, _NEGLIGIBLE
        self.promised = 0.0

    @property
    def weights(self) -> np.ndarray:
        """A row per class."""
        return self.u

    @property
    def gradients(self) -> np.ndarray:
        """Those of the loss by `weights`."""
        return self._of_loss

    def label(self) -> np.ndarray:
        """The likeliest class of each row of X."""
        return self.known[self._likelihood.label(self._logits)]

    def begin(self, logits: np.ndarray) -> None:
        """Learn the logits of its weights."""
        self._logits, self.loss = logits, self._likelihood.value(logits)
        self._probability = self._likelihood.probability(logits)
        self.residual = self._likelihood.residual(self._probability)

    def learn(self, of_loss: np.ndarray) -> None:
        """Learn the gradient of the loss by its weights."""
        before, self._of_loss = self._gradient, of_loss
        self._gradient = of_loss + self._l2 * self.u
        self.value = self.loss + self._penalty(self.u, self._l1)
        pair = self.length * self._step, self._gradient - before
        if _convex(*pair):
            self._pairs = [*self._pairs, pair][-_MEMORY:]

    def weaken(self) -> None:
        """Begin with a stronger penalty, if all weights are zero: see `_FALL`."""
        penalised = self._usable & ~self._free
        if np.count_nonzero(penalised) > _FEW and not self.u[penalised].any():
            ratio = np.abs(self._gradient[penalised]) / self._l1[penalised]
            self._strength = float(ratio.max(initial=1.0))

    def _penalty(self, u: np.ndarray, l1: np.ndarray) -> float:
        return float(np.sum(self._l2 * u * u) / 2 + np.sum(l1 * np.abs(u)))

    # The model

    def direction(self) -> np.ndarray:
        """The step to the minimum of a quadratic model plus L1, of shape (r, p)."""
        self._strength = max(1.0, _FALL * self._strength)
        l1 = self._strength * self._l1
        active, self._step = self._working_set(l1), np.zeros_like(self.u)
        if active.any():
            here = self.u[active], self._gradient[active], l1[active]
            self._step[active] = minimise(self._quadratic(active), *here, _INEXACT) - here[0]
        return self._step

    def _working_set(self, l1: np.ndarray) -> np.ndarray:
        """A mask of shape (r, p)."""
        nonzero = (self.u != 0) | self._free
        ratio = np.where(nonzero, np.inf, np.abs(self._gradient) / np.where(self._free, 1.0, l1))
        ratio = np.where(self._usable, ratio, 0.0)
        most = int(max(_GROWTH * np.count_nonzero(nonzero), _FIRST * len(nonzero)))
        least = 0.0 if most >= ratio.size else np.partition(ratio, -most, axis=None)[-most]
        return (ratio > 1) & (ratio >= least)

    def _quadratic(self, active: np.ndarray) -> Quadratic:
        hessian = self._hessian(active)
        if hessian is not None:
            return Exact(hessian)
        if self._affords_blocks(active.sum(axis=1)):
            guess: Quadratic = Blocks(list(self._blocks(active)))
        else:
            guess = Diagonal(self._diagonal(active))
        pairs = [(s[active], y[active]) for s, y in self._pairs]
        pairs = [pair for pair in pairs if _convex(*pair)]
        if not pairs:
            return guess
        steps, changes = (np.stack(part, axis=1) for part in zip(*pairs, strict=True))
        return Corrected(guess, steps, changes)

    def _curvature(self) -> np.ndarray:
        """Second derivatives of the loss by each logit, of shape (r, n)."""
        return self._probability * (1 - self._probability) * self._likelihood.weight

    def _products(self, active: np.ndarray) -> float:
        """What the exact Hessian costs, as a sum over pairs of rows of weights."""
        h, size, width = self._curvature(), active.sum(), active.any(axis=0).sum()
        matter = np.count_nonzero(h > _NEGLIGIBLE * h.mean(axis=1, keepdims=True)) / len(h)
        pairs = len(h) * (len(h) + 1) / 2 * (1 + matter * width / self._values_at_once)
        return float(matter * size**2 + pairs * _PER_PAIR)

    @property
    def _values_at_once(self) -> int:
        return min(_VALUES_AT_ONCE, _VALUES_OF_A_PAIR * len(self.u) ** 2)

    def _affords_blocks(self, sizes: np.ndarray) -> bool:
        values_read = self._linear.n * self._linear.d * self._linear.density
        cheap = np.mean(sizes.astype(float) ** 3) <= _BLOCKS_WORTH * values_read
        return bool(cheap and self._rows_of_blocks(sizes) * self._linear.density >= _VALUES_SEEN)

    def _rows_of_blocks(self, sizes: np.ndarray) -> int:
        return _ROWS_PER_VARIABLE * max(_FEWEST_VARIABLES, int(sizes.max()))

    def _hessian(self, active: np.ndarray) -> np.ndarray | None:
        """That of the working set, by whatever makes it sooner; None: it costs too much."""
        if np.count_nonzero(active) > _MOST_EXACT:
            return None
        products, width = self._products(active), np.count_nonzero(active.any(axis=0))
        size = len(active) * width  # of all columns that are used, at once, and all rows
        most = _MOST_AT_ONCE if products > _MOST_PRODUCTS else products
        run = kernels.hessian() if size <= _MOST_EXACT else None
        if run is not None and self._linear.n * size**2 <= most:
            H = self._all_at_once(active, run)
        elif products <= _MOST_PRODUCTS:
            H = self._sum_over_pairs(active)
        else:
            return None
        diagonal = H.reshape(-1)[:: len(H) + 1]
        diagonal += self._l2[active] + _RIDGE * diagonal + _LEAST
        return H

    def _all_at_once(self, active: np.ndarray, run: Callable[..., np.ndarray]) -> np.ndarray:
        """The Hessian of the loss, of `skmax.kernels.hessian`."""
        n, union = self._linear.n, np.flatnonzero(active.any(axis=0))
        q, size = len(active) * union.size, max(1, _VALUES_AT_ONCE // union.size)
        H = np.zeros((q, q))
        for first in range(0, n, size):
            rows = np.arange(first, min(first + size, n))
            Q, weight = self._linear.columns(union, rows), self._likelihood.weight[rows]
            H += run(Q, self._probability[:, rows], weight)
        chosen = np.flatnonzero(active[:, union])
        H = H[np.ix_(chosen, chosen)]
        return H + np.triu(H, 1).T

    def _sum_over_pairs(self, active: np.ndarray) -> np.ndarray:
        """The Hessian of the loss, as a sum over pairs of rows of weights.

        As diag(p) - p p' is the Laplacian of a graph, it stays positive semidefinite if small terms
        are left out for a pair, but not for a class.
        """
        union = np.flatnonzero(active.any(axis=0))
        h, p = self._curvature(), self._probability
        least, places = self._negligible * h.mean(axis=1), _places_in_rows(active)
        within = [np.searchsorted(union, np.flatnonzero(row)) for row in active]
        H = np.zeros((places[-1].stop, places[-1].stop))
        matter = np.flatnonzero((h > least[:, None]).any(axis=0))
        for rows in np.array_split(matter, 1 + matter.size * union.size // self._values_at_once):
            Q = self._linear.columns(union, rows)
            parts = [Q[:, columns] for columns in within]
            for a, part in enumerate(parts):
                H[places[a], places[a]] += _moments(part, h[a, rows], least[a])
                for b, other in enumerate(parts[:a]):
                    weight = p[a, rows] * p[b, rows] * self._likelihood.weight[rows]
                    heavy = np.flatnonzero(weight > max(least[a], least[b]))
                    coupling = (part[heavy] * weight[heavy, None]).T @ other[heavy]
                    H[places[a], places[b]] -= coupling
                    H[places[b], places[a]] -= coupling.T
        return H

    def _sample(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of about so many rows at equal distances, and curvatures (r, size) there."""
        n = self._linear.n
        rows = np.arange(0, n, max(1, n // size))
        p = self._probability[:, rows]
        weight = self._likelihood.weight[rows] * (n / len(rows))
        return rows, np.maximum(p * (1 - p), _FLOOR) * weight

    def _blocks(self, active: np.ndarray) -> Iterator[np.ndarray]:
        """The Hessian of each row of weights, on a sample."""
        rows, h = self._sample(self._rows_of_blocks(active.sum(axis=1)))
        union = np.flatnonzero(active.any(axis=0))
        Q = self._linear.columns(union, rows)
        for curvature, row, l2 in zip(h, active, self._l2, strict=True):
            within = np.searchsorted(union, np.flatnonzero(row))
            block = _moments(Q[:, within], curvature, _LIGHT * curvature.mean())
            diagonal = block.reshape(-1)[:: len(block) + 1]
            diagonal += l2[row] + _RIDGE_OF_BLOCK * diagonal.mean()
            yield block

    def _diagonal(self, active: np.ndarray) -> np.ndarray:
        """The Hessian of each variable, on a sample."""
        rows, h = self._sample(int(_ROWS_OF_DIAGONAL / self._linear.density))
        values = self._linear.squares(h, rows)[active] + self._l2[active]
        return values + _RIDGE_OF_DIAGONAL * np.median(values)

    # The step

    def go(self, along: np.ndarray) -> None:
        """Go along the direction, whose logits are given, as far as that is worth while."""
        self.length = self._length(along)
        if self.length > 0:
            self.u = self.u + self.length * self._step
            self.begin(self._logits + self.length * along)

    def _length(self, along: np.ndarray) -> float:
        """How far to go, or 0."""
        l1 = self._strength * self._l1
        step, before = self._step, self.loss + self._penalty(self.u, l1)
        promised = np.sum(l1 * (np.abs(self.u + step) - np.abs(self.u)) + self._gradient * step)
        self.promised = -promised if self._strength == 1 else np.inf

        def rise(length: float) -> float:
            loss = self._likelihood.value(self._logits + length * along)
            return loss + self._penalty(self.u + length * step, l1) - before

        length, risen = 1.0, rise(1.0)
        while not risen <= _SUFFICIENT * length * promised + _ROUNDING * before:
            length *= _SHORTER
            if length < _SHORTEST:
                return 0.0
            risen = rise(length)
        while 1 <= length < _LONGEST:
            further = rise(_LONGER * length)
            if further >= risen + _WORTH * promised:
                break
            length, risen = _LONGER * length, further
        return length

    def refine(self) -> None:
        """Leave out less of the Hessian from now on."""
        if self._strength == 1:
            self._negligible *= _LESS

    def forget(self) -> bool:
        """Forget past steps, and leave nothing out: these may be in the way. Whether they were."""
        changed = bool(self._pairs) or self._negligible > 0
        self._pairs, self._negligible = [], 0.0
        return changed


class _Binary(_Model):
    """The same with one row of weights: that of the second class's logit against the first's."""

    _kind = Logistic

    def __init__(
        self, linear: LinearMap, known: np.ndarray, target: np.ndarray, weight: np.ndarray,
        u: np.ndarray, l1: np.ndarray, l2: np.ndarray,
    ):  # fmt: skip
        super().__init__(linear, known, target, weight, u[1:] - u[:1], l1, l2 / 2)

    @property
    def weights(self) -> np.ndarray:
        """See `_Model`."""
        return np.concatenate([-self.u / 2, self.u / 2])

    @property
    def gradients(self) -> np.ndarray:
        """See `_Model`."""
        return np.concatenate([-self._of_loss, self._of_loss])


def _places_in_rows(active: np.ndarray) -> list[slice]:
    """Where the variables of each row of weights are among those of all."""
    ends = np.cumsum(active.sum(axis=1))
    return [slice(end - size, end) for end, size in zip(ends, active.sum(axis=1), strict=True)]


def _moments(Q: np.ndarray, weight: np.ndarray, least: float) -> np.ndarray:
    """Second moments of the rows whose weight is more than the least."""
    heavy = np.flatnonzero(weight > least)
    rooted = Q[heavy] * np.sqrt(weight[heavy, None])
    return rooted.T @ rooted


def _convex(step: np.ndarray, change: np.ndarray) -> bool:
    """Whether a step shows curvature."""
    return bool(np.sum(step * change) > _CONVEX * np.linalg.norm(step) * np.linalg.norm(change))


class _Search:
    """A stack of models on its way down."""

    def __init__(self, problem: Problem, state: State, *, proven: bool):
        self._models, self._proven = np.arange(problem.n_models), proven
        self._problem = in_common_coordinates(problem)
        self._space, self._linear = Coordinates(self._problem), LinearMap(self._problem)
        self._dual = Dual(self._linear.problem)
        self._label, self._fits = self._begin(state)
        logits = self._linear.logits(np.concatenate([fit.u for fit in self._fits]))
        for fit, Z in zip(self._fits, _split(logits, self._fits), strict=True):
            fit.begin(Z)
        self._lower, self._waited = self._dual.entropy_of_targets, np.zeros(len(self._models))
        self._learn(self._fits)
        for fit in self._fits:
            fit.weaken()

    def _begin(self, state: State) -> tuple[np.ndarray, list[_Model]]:
        """The labels of the rows, and the models at the weights of a state."""
        problem, to_numpy = self._problem, self._problem.backend.to_numpy
        label, target = targets_of(problem)
        weight, self._score_weight = weights_of(problem)
        u, l1, l2 = map(to_numpy, (self._space.weights(state), self._space.l1, self._space.l2))
        fits = []
        for model, masked in enumerate(problem.masked):
            known = np.flatnonzero(~masked)
            smoothed = target[known]
            if problem.smoothing is not None:
                added = to_numpy(problem.smoothing)[model].astype(np.float64)
                smoothed = (1 - added.sum()) * smoothed + added[known, None]
            rows = u[model, known]
            if problem.fit_intercept and not rows[:, :-1].any():
                logs = np.log(self._dual.shares[model, known])
                rows[:, -1] = logs - logs.mean()
            kind = _Binary if len(known) == 2 else _Model
            fits.append(
                kind(self._linear, known, smoothed, weight[model], rows, l1[model], l2[model])
            )
        return label, fits

    def _learn(self, fits: Sequence[_Model]) -> None:
        """Learn gradients and bounds, by a pass backward."""
        gradients = self._linear.pullback(np.concatenate([fit.residual for fit in fits]))
        for fit, gradient in zip(fits, _split(gradients, fits), strict=True):
            fit.learn(gradient)
        self._value = np.array([fit.value for fit in self._fits])
        self._gap = self._value - self._lower
        if not any(fit.promised <= _NEAR * fit.value for fit in self._fits):
            return
        loss = np.array([fit.loss for fit in self._fits])
        u = self._per_class([fit.weights for fit in self._fits])
        here = loss, u, self._per_class([fit.gradients for fit in self._fits])
        self._lower = np.fmax(self._lower, self._dual.bound(*here))
        least = self._lower
        if not self._proven:
            least = np.fmax(least, self._dual.bound_nearby(*here))
        self._gap = self._value - least

    def _per_class(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """What models have for each of their classes, of shape (m, k, p)."""
        values = np.zeros((len(parts), self._problem.n_classes, self._linear.d + 1))
        for of_model, fit, part in zip(values, self._fits, parts, strict=True):
            of_model[fit.known] = part
        return values

    def advance(self) -> None:
        """One step of every model that finds one; the others have stalled."""
        pending, value, gap = self._fits, self._value, self._gap
        while pending:
            directions = np.concatenate([fit.direction() for fit in pending])
            along = _split(self._linear.logits(directions), pending)
            for fit, Z in zip(pending, along, strict=True):
                fit.go(Z)
            pending = [fit for fit in pending if fit.length == 0 and fit.forget()]
        moved = [fit for fit in self._fits if fit.length > 0]
        if moved:
            self._learn(moved)
        fallen = value - self._value
        for fit, stagnant in zip(self._fits, fallen < _SLOW * self._gap, strict=True):
            if stagnant:
                fit.refine()
        nearer = (fallen > _ROUNDING * value) | (self._gap < _NEARER * gap)
        self._waited = np.where(nearer, 0, self._waited + 1)

    def epoch(self) -> Epoch:
        """Where the stack is."""
        labels = np.stack([fit.label() for fit in self._fits])
        return Epoch(
            self._models,
            self._state(),
            self._value,
            np.sum((labels == self._label) * self._score_weight, axis=1),
            diverged=~np.isfinite(self._value),
            learning_rate=np.full(len(self._models), np.nan),
            gap=self._gap,
            stalled=np.array([fit.length == 0 for fit in self._fits]) | (self._waited >= _PATIENCE),
        )

    def _state(self) -> State:
        backend = self._problem.backend
        u = backend.asarray(self._per_class([fit.weights for fit in self._fits]))
        state = self._space.state(u)
        intercept = backend.to_numpy(state.intercept)
        masked = np.where(self._problem.masked, MASKED_LOGIT, intercept)
        return replace(state, intercept=backend.asarray(masked, self._problem.data.dtype))

    def select(self, staying: np.ndarray) -> None:
        """Go on with some of the models, at the host indices `staying`."""
        self._problem, self._dual = self._problem.select(staying), self._dual.select(staying)
        self._space, self._fits = Coordinates(self._problem), [self._fits[i] for i in staying]
        for name in ("_models", "_score_weight", "_lower", "_value", "_gap", "_waited"):
            setattr(self, name, getattr(self, name)[staying])


def _split(rows: np.ndarray, fits: Sequence[_Model]) -> list[np.ndarray]:
    """Rows of a stack's weights, by model."""
    if len(fits) == 1:
        return [rows]
    return np.split(rows, np.cumsum([len(fit.u) for fit in fits])[:-1])

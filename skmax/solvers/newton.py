"""Newton's method with the whole Hessian, for few weights: a stack of models, to full precision.

The rows are read once, as float64, into the coordinates of a preconditioner, whether the problem
has any or not. Probabilities do not see what the weights of all classes have in common, so what is
sought are those of contrasts, V, of which the weights are ``W = B V``; the columns of B add up to
zero over the classes. So no direction is singular but those of the data, and the Hessian has
q = r p rows, r being one less than the number of classes.

All arrays are on the host. Beside the letters of `skmax.problem`, p is d + 1, or less where there
are fewer rows than features: the features and a last one, which is 1 for the intercept, or 0
without. A first axis of 1 stands for one of m.
"""

from __future__ import annotations

import operator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack
from scipy.special import entr

from skmax.data import dense
from skmax.duality import Dual
from skmax.problem import MASKED_LOGIT, Epoch, Problem, State
from skmax.solvers.full_batch import FullBatch
from skmax.solvers.predictions import in_common_coordinates, targets_of

# A step ends where the slope is at most this share of what it was, or after a few trials where it
# goes down at all: iris with C=100 takes 7 iterations instead of 11 with whole steps, breast_cancer
# with C=1 takes 6 instead of 9. Changes of so small a share of the objective are rounding errors.
_FLAT, _FEW_TRIALS, _MOST_TRIALS, _ROUNDING = 0.2, 3, 40, 1e-14
# By how much a step may grow in a trial, and how near it may come to what is known to be wrong.
_LONGER, _INSIDE = 4.0, 0.05
# What a step promised must be below this share of the objective for a look at the bound, which
# costs half an iteration on iris; until then, all that is known is the entropy of the targets. On
# 68 tables, 1e-4 made 321 iterations and 60 looks, 3e-3 270 and 60, 1e-2 263 and 67, 3e-2 262 and
# 86. And the share of the objective that this bound must leave for a look at the other one.
_NEAR, _TIGHT = 1e-2, 1e-4
# A Hessian in single precision takes half the time, and leads as well, where the last step promised
# more than this share of the objective.
_SINGLE = 1e-3
# Shares of classes that differ by less are equal but for rounding errors.
_BALANCED = 1e-13
# What the bound must become, as a share of what it was, for a model to go on whose steps are
# rounding errors.
_NEARER = 0.5
# Added to the Hessian's diagonal: a share of it, and of the largest that it could be. Collinear
# features need it. Where the matrix is not positive even so, a hundred times as much.
_RIDGE, _LEAST_RIDGE, _MORE_RIDGE = 1e-12, 1e-17, 100.0
# Products of two features are made once for all iterations if they are at most so many per block of
# the Hessian, and in all (64 MB). Then 2,205 rows of 11 features and 7 classes take 3.9 ms instead
# of 4.7; with 1 << 17 per block, 1,482 of 39 would take 11.8 ms instead of 7.8.
_FEWEST_BLOCKS, _PER_BLOCK, _MOST = 3, 1 << 14, 1 << 23
# Features whose largest values differ by more are no part of the same basis, in which the smaller
# ones would be lost to rounding errors; these are what coordinates are, as a share of their row,
# that are less; and values that are less have no squares to speak of.
_SAME_UNITS, _CHANCE, _LEAST_VALUE = 1e4, 1e-14, 1e-100


class Newton(FullBatch):
    """Newton's method with a line search.

    References
    ----------
    S. Boyd and L. Vandenberghe, Convex Optimization, 2004, sections 9.5 and 9.7. D. Boehning,
    Multinomial logistic regression algorithm, Annals of the Institute of Statistical Mathematics
    44, 1992: the Hessian.
    """

    _table: _Table | None = None

    def begin(self, problem: Problem, state: State) -> _Search:
        """A stack of models that is to go down from a state."""
        if self._table is None or not self._table.is_of(problem):
            self._table = _Table(problem)
        return _Search(problem, self._table, state, proven=self.proven)


class _Table:
    """The rows of a problem, features first.

    Weights under L2 are combinations of rows. So where there are more features than rows, what
    counts are the coordinates of rows in a basis of what they span: they are the features here.

    Attributes
    ----------
    Z : ndarray of shape (p, n)
        The features, centred and scaled, and a row of ones for the intercept.
    basis : ndarray of shape (p - 1, d) or None
        What the features are coordinates for: orthonormal. None: they are those of X.
    mean : ndarray of shape (d,)
        What was subtracted from the features of X.
    scale : ndarray of shape (p - 1,)
        What the features were divided by.
    varies : ndarray of shape (p,)
        Whether there is more than zeros in a row of Z.
    target : ndarray of shape (k, n)
        Their probabilities, without smoothing.
    label : ndarray of shape (n,)
        Their likeliest classes.
    """

    def __init__(self, problem: Problem):
        to_numpy, common = problem.backend.to_numpy, in_common_coordinates(problem)
        X = _read(problem)
        n, d = X.shape
        self.mean, self.basis = np.zeros(d), None
        if common.mean is not None:
            self.mean = to_numpy(common.mean)[0, 0].astype(np.float64)
        inverse = to_numpy(common.inverse_scale)[0, 0].astype(np.float64)
        varies = inverse > 0
        if d > n:
            X = X - self.mean
            X[:, ~varies] = 0.0
            spanned, self.basis, self.scale = _spanned(X)
            self.Z, varies = np.vstack([spanned, np.empty(n)]), self.scale > 0
            self.scale = np.where(varies, self.scale, 1.0)
        else:
            self.Z, self.scale = np.empty((d + 1, n)), 1 / np.where(varies, inverse, 1.0)
            np.subtract(X.T, self.mean[:, None], out=self.Z[:-1])
            self.Z[:-1] *= inverse[:, None]
        self.Z[-1] = problem.fit_intercept
        self.varies = np.append(varies, problem.fit_intercept)
        self.label, self.target = targets_of(problem)
        self.soft = problem.targets.ndim == 2
        self._products: np.ndarray | None = None
        self._single: np.ndarray | None = None
        self._source = problem.data, problem.order, problem.targets, problem.fit_intercept

    def weights(self, coef: np.ndarray) -> np.ndarray:
        """Weights (..., p - 1) of the features here, from those of X, (..., d)."""
        return (coef if self.basis is None else coef @ self.basis.T) * self.scale

    def coef(self, weights: np.ndarray) -> np.ndarray:
        """Those of X."""
        coef = weights / self.scale
        return coef if self.basis is None else coef @ self.basis

    def is_of(self, problem: Problem) -> bool:
        """Whether it would be made of that problem again, of other models, say."""
        parts = problem.data, problem.order, problem.targets, problem.fit_intercept
        return all(map(operator.is_, self._source, parts))

    def moments(self, weight: np.ndarray, *, exact: bool) -> np.ndarray:
        """Second moments (m, b, p, p) of Z, where weights (m, b, n) are those of rows.

        Where they need not be exact, they may be as good as single precision makes them.
        """
        Z, (p, n), flat = self.Z, self.Z.shape, weight.reshape(-1, weight.shape[2])
        i, j, places = _triangle(p)
        if len(flat) >= _FEWEST_BLOCKS and len(i) * n <= min(_MOST, _PER_BLOCK * len(flat)):
            if self._products is None:
                self._products = Z[i] * Z[j]
            sums = (flat @ self._products.T)[:, places]
        else:
            if not exact:
                if self._single is None:
                    self._single = Z.astype(np.float32)
                Z = self._single
            sums = np.stack([_second_moments(Z, row) for row in flat], dtype=np.float64)
        return sums.reshape(*weight.shape[:2], p, p)


def _second_moments(Z: np.ndarray, weight: np.ndarray) -> np.ndarray:
    if weight.min() < 0:
        return (Z * weight.astype(Z.dtype, copy=False)) @ Z.T
    root = np.sqrt(weight).astype(Z.dtype, copy=False)
    rooted = Z * root  # so BLAS sees that the product is symmetric: half the work
    return rooted @ rooted.T


def _read(problem: Problem) -> np.ndarray:
    """The rows of a problem, less the shift of its data, float64."""
    backend, data = problem.backend, problem.data
    float64 = backend.dtype(np.float64)
    if data.dtype != float64:
        data = data.with_(shift=data.shift, dtype=float64)
    rows = backend.to_numpy(dense(data.rows(backend.asarray(problem.order))))
    return rows.astype(np.float64, copy=False)


def _spanned(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates (r, n) of rows (n, d), their basis (r, d), and what they were divided by (r,).

    With X' = Q R, the basis is Q', and the coordinates are R. Where rows depend on each other, some
    are zero. Of fewer features than rows, these are their own basis.
    """
    (n, d), largest = X.shape, np.maximum(X.max(axis=0), -X.min(axis=0))
    if not np.isfinite(largest).all():  # a mean that is no number: the objective shall be none
        return np.full((1, n), np.nan), np.zeros((1, d)), np.ones(1)
    left, coordinates, bases, scales = largest > _LEAST_VALUE, [], [], []
    if not left.any():
        return np.zeros((1, n)), np.zeros((1, d)), np.zeros(1)
    while left.any():
        unit = largest[left].max()
        alike = left & (largest > unit / _SAME_UNITS)
        left, features = left & ~alike, np.flatnonzero(alike)
        values = (X if len(features) == d else X[:, features]) / unit
        if len(features) <= n:
            basis, there = np.eye(len(features)), values.T
        else:
            Q, there = np.linalg.qr(values.T)
            basis = Q.T
            there[np.abs(there) <= _CHANCE * np.linalg.norm(values, axis=1)] = 0.0
        if len(features) < d:
            of_all = np.zeros((len(basis), d))
            of_all[:, features] = basis
            basis = of_all
        length = np.sqrt(np.mean(there * there, axis=1))
        coordinates.append(there / np.where(length > 0, length, 1.0)[:, None])
        bases.append(basis)
        scales.append(unit * length)
    basis = bases[0] if len(bases) == 1 else np.vstack(bases)
    return np.vstack(coordinates), basis, np.concatenate(scales)


@lru_cache(maxsize=64)
def _triangle(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (i, j) of an upper triangle, and where each entry of a symmetric matrix is in it."""
    i, j = np.triu_indices(size)
    places = np.empty((size, size), dtype=int)
    places[i, j] = places[j, i] = np.arange(len(i))
    return i, j, places


class _Logits(NamedTuple):
    """What is known of the logits of a stack: losses (m,), and what derivatives are made of."""

    loss: np.ndarray
    parts: tuple[np.ndarray, ...]


class _Binary:
    """Two classes per model: V is the row of weights of the logit of the second against the first.

    Attributes
    ----------
    basis : ndarray of shape (m, k, r)
        The contrasts B. Rows of masked classes are zero, and columns where there are fewer.
    length : float
        The squared length of the columns.
    """

    length = 0.5

    def __init__(self, target: np.ndarray, weight: np.ndarray, masked: np.ndarray):
        m, k = masked.shape
        models, self._first = np.arange(m), masked.argmin(axis=1)
        self._second = k - 1 - masked[:, ::-1].argmin(axis=1)
        self.basis = np.zeros((m, k, 1))
        self.basis[models, self._first, 0] = -0.5
        self.basis[models, self._second, 0] = 0.5
        self._target = np.broadcast_to(target, (m, *target.shape[1:]))[models, self._second]
        self._weight = weight

    def of(self, U: np.ndarray) -> _Logits:
        """What is known of the logits B U, for U of shape (m, r, n)."""
        z = U[:, 0]
        e = np.exp(-np.abs(z))  # one exponential serves loss, gradient and curvature
        positive = z > 0
        loss = np.log1p(e)
        loss += np.where(positive, z, 0.0) - self._target * z
        return _Logits(np.vecdot(loss, self._weight), (positive, e))

    def residual(self, logits: _Logits) -> np.ndarray:
        """Derivatives (m, r, n) of the loss by U."""
        positive, e = logits.parts
        return ((np.where(positive, 1.0, e) / (1 + e) - self._target) * self._weight)[:, None]

    def curvature(self, logits: _Logits) -> np.ndarray:
        """Second derivatives (m, r (r + 1) / 2, n) of the loss by U, of the upper triangle."""
        _, e = logits.parts
        return (e / (1 + e) ** 2 * self._weight)[:, None]

    def foreseen(self, logits: _Logits, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entropy (m,) of the probabilities that a change of U makes, linearised.

        And, last, what `residual` would be.
        """
        positive, e = logits.parts
        P = np.where(positive, 1.0, e) / (1 + e) + e / (1 + e) ** 2 * change[:, 0]
        P = np.clip(P, 0.0, 1.0)
        entropy = np.vecdot(_entropy(P) + _entropy(1 - P), self._weight)
        return entropy, ((P - self._target) * self._weight)[:, None]

    def label(self, logits: _Logits) -> np.ndarray:
        """Classes (m, n) with the largest logit."""
        return np.where(logits.parts[0], self._second[:, None], self._first[:, None])


class _Multinomial:
    """Any number of classes: B is orthonormal, by Helmert. Its methods are those of `_Binary`."""

    length = 1.0

    def __init__(self, target: np.ndarray, weight: np.ndarray, masked: np.ndarray):
        k, self._offset = masked.shape[1], None
        self.basis = _contrasts(k)[None]
        if masked.any():
            self._offset = np.where(masked, MASKED_LOGIT, 0.0)[:, :, None]
            self.basis = np.zeros((len(masked), k, k - 1))
            for basis, known in zip(self.basis, ~masked, strict=True):
                basis[known, : known.sum() - 1] = _contrasts(known.sum())
        self._transposed = self.basis.transpose(0, 2, 1)
        self._weight = weight[:, None]
        self._weighted_target = (target * self._weight).reshape(-1, k * target.shape[2])
        self._of_target = self._transposed @ target
        a, b, _ = _triangle(k - 1)
        self._products = self._transposed[:, a] * self._transposed[:, b]

    def of(self, U: np.ndarray) -> _Logits:
        """See `_Binary`."""
        z = self.basis @ U
        if self._offset is not None:
            z += self._offset
        z -= z.max(axis=1, keepdims=True)
        aim = np.vecdot(self._weighted_target, z.reshape(len(z), -1))
        np.exp(z, out=z)
        total = z.sum(axis=1)
        z /= total[:, None]
        loss = np.vecdot(np.log(total), self._weight[:, 0]) - aim
        return _Logits(loss, (z, self._transposed @ z))

    def residual(self, logits: _Logits) -> np.ndarray:
        """See `_Binary`."""
        return (logits.parts[1] - self._of_target) * self._weight

    def curvature(self, logits: _Logits) -> np.ndarray:
        """See `_Binary`."""
        probability, projected = logits.parts
        second, first, r = self._products @ probability, 0, projected.shape[1]
        for a in range(r):  # a row of the triangle at a time
            last = first + r - a
            second[:, first:last] -= projected[:, a : a + 1] * projected[:, a:]
            first = last
        second *= self._weight
        return second

    def foreseen(self, logits: _Logits, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `_Binary`."""
        probability, _ = logits.parts
        z = self.basis @ change
        z -= (probability * z).sum(axis=1, keepdims=True)
        z += 1
        z *= probability
        P = np.maximum(z, 0.0, out=z)
        P /= P.sum(axis=1, keepdims=True)
        entropy = _dot(_entropy(P).sum(axis=1), self._weight)
        return entropy, (self._transposed @ P - self._of_target) * self._weight

    def label(self, logits: _Logits) -> np.ndarray:
        """See `_Binary`."""
        return logits.parts[0].argmax(axis=1)


@lru_cache(maxsize=64)
def _contrasts(k: int) -> np.ndarray:
    """An orthonormal basis (k, k - 1) of what sums to zero over k classes."""
    basis = np.triu(np.ones((k, k - 1)))
    basis[np.arange(1, k), np.arange(k - 1)] = -np.arange(1, k)
    return basis / np.sqrt(np.arange(1, k) * np.arange(2, k + 1))


class _Bounds(Dual):
    """Those of `Dual`, in the coordinates of a table, without L1."""

    def __init__(self, problem: Problem, table: _Table, target: np.ndarray, weight: np.ndarray):
        m, k = problem.masked.shape
        d = len(table.scale)
        sums = np.broadcast_to((target * weight[:, None]) @ table.Z.T, (m, k, d + 1))
        self.shares, self.class_sums = sums[..., -1], sums[..., :-1]
        self.mean = self.class_sums.sum(axis=1, keepdims=True)
        self.entropy_of_targets = np.zeros(m)
        if table.soft or problem.smoothing is not None:
            self.entropy_of_targets += (entr(target).sum(axis=1) * weight).sum(axis=1)
        self.l1 = np.zeros((m, 1, d))
        self.l2 = problem.l2[:, None, None] / table.scale / table.scale
        self.has_l2, self.has_lasso = problem.l2 > 0, False
        self.fit_intercept = problem.fit_intercept
        self._known = ~problem.masked

    def of_dual(self, entropy: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Those that probabilities give, of such entropies and gradients as in `bound`."""
        V, r = gradient[..., :-1], gradient[..., -1]
        if self.fit_intercept and np.abs(r).max() > _BALANCED:
            entropy, V = self._balanced(entropy, V, r)
        return self._with_targets(entropy, V)


class _Search:
    """A stack of models on its way down."""

    def __init__(self, problem: Problem, table: _Table, state: State, *, proven: bool):
        self._models, self._proven = np.arange(problem.n_models), proven
        self._rates = np.full(problem.n_models, np.nan)
        self._table = table
        self._enter(problem)
        self._V = self._contrasts_of(state)
        self._lower = self._bounds.entropy_of_targets
        self._stay()
        worse = ~(self._value <= np.log(np.sum(~problem.masked, axis=1)))
        if worse.any() and self._V.any():  # weights far away, where the Hessian says nothing
            self._V[worse] = 0.0
            self._stay()
        self._gap = self._value - self._lower
        self._is_near = False

    def _enter(self, problem: Problem) -> None:
        """Begin with the models of a problem."""
        self._problem, table = problem, self._table
        n = len(problem.order)
        target, to_numpy = table.target[None], problem.backend.to_numpy
        if problem.smoothing is not None:
            added = to_numpy(problem.smoothing).astype(np.float64)[:, :, None]
            target = (1 - added.sum(axis=1, keepdims=True)) * target + added
        index = problem.backend.asarray(problem.order)
        weight, self._score_weight = (
            np.full((1, n), 1 / n) if of_rows is None else to_numpy(of_rows).T.astype(float) / n
            for of_rows in (problem.weights(index), problem.weights(index, of_scores=True))
        )
        two = (~problem.masked).sum(axis=1).max() == 2
        self._loss = (_Binary if two else _Multinomial)(target, weight, problem.masked)
        self._bounds = _Bounds(problem, table, target, weight)
        self._velocities = tuple(
            problem.backend.zeros(shape, problem.data.dtype)
            for shape in ((*problem.masked.shape, len(table.mean)), problem.masked.shape)
        )
        self._penalise(problem)

    def _penalise(self, problem: Problem) -> None:
        """What is added to the Hessian's diagonal: the penalty, and 1 for weights without a use."""
        used = np.any(self._loss.basis, axis=1)[..., None] & self._table.varies
        l2 = np.concatenate([self._bounds.l2, np.zeros_like(self._bounds.l2[..., :1])], axis=2)
        self._penalty = np.where(used, self._loss.length * l2, 1.0)
        shape = len(problem.masked), self._loss.basis.shape[2], self._penalty.shape[2]
        self._diagonal = np.broadcast_to(self._penalty, shape).reshape(len(problem.masked), -1)

    def _contrasts_of(self, state: State) -> np.ndarray:
        coef, intercept = (
            self._problem.backend.to_numpy(part).astype(np.float64)
            for part in (state.coef, state.intercept)
        )
        there = intercept + coef @ self._table.mean
        weights = np.concatenate([self._table.weights(coef), there[..., None]], axis=2)
        return self._loss.basis.transpose(0, 2, 1) @ weights / self._loss.length

    def _evaluate(self, V: np.ndarray, U: np.ndarray) -> tuple[np.ndarray, _Logits]:
        """The objective at V, and what is known of the logits B U, where U is V Z."""
        logits = self._loss.of(U)
        return logits.loss + _dot(self._penalty * V, V) / 2, logits

    def _stay(self) -> None:
        """Learn what the objective is like where the models are."""
        self._U = self._V @ self._table.Z
        self._value, self._logits = self._evaluate(self._V, self._U)
        self._turn(self._loss.residual(self._logits))

    def _turn(self, residual: np.ndarray) -> None:
        """Learn the gradient from that by U."""
        self._of_loss = residual @ self._table.Z.T
        self._gradient = self._of_loss + self._penalty * self._V

    def advance(self) -> None:
        """One step of every model that finds one; the others have stalled."""
        step = self._newton_step()
        promised = _dot(self._gradient, step)
        before, gap, change = self._logits, self._gap, step @ self._table.Z
        found = self._line_search(step, change, promised)
        if np.count_nonzero(promised < _NEAR * self._value):
            self._bound(before, change)
        else:
            self._gap = self._value - self._lower
        self._is_near = bool((promised < _SINGLE * self._value).any())
        over = (promised <= _ROUNDING * self._value) & (self._gap > _NEARER * gap)
        self._stalled = ~found | over

    def _newton_step(self) -> np.ndarray:
        """The inverse Hessian times the gradient."""
        m, r, p = self._V.shape
        if r > 1 and not self._V.any():
            return self._first_step()
        moments = self._table.moments(self._loss.curvature(self._logits), exact=self._is_near)
        if r > 1:
            moments = moments[:, _triangle(r)[2]].transpose(0, 1, 3, 2, 4)
        H = moments.reshape(m, r * p, r * p)
        gradient = self._gradient.reshape(m, -1)
        step = np.empty_like(gradient)
        for model in range(m):
            step[model] = _solve(H[model], self._diagonal[model], gradient[model])
        return step.reshape(m, r, p)

    def _first_step(self) -> np.ndarray:
        """The same where all weights are zero: there, contrasts do not interact, and are alike."""
        (m, _, p), gradient = self._V.shape, self._gradient
        H = self._table.moments(self._loss.curvature(self._logits)[:, :1], exact=self._is_near)
        step = np.empty_like(gradient)
        for model in range(m):
            diagonal = self._diagonal[model, :p]
            step[model] = _solve(H[model, 0], diagonal, gradient[model].T).T
        return step

    def _line_search(
        self, step: np.ndarray, change: np.ndarray, promised: np.ndarray
    ) -> np.ndarray:
        """Go along steps to about where the objective is least; which models have gone.

        `change` is what a step makes of U.
        """
        start, before, enough = self._V, self._U, self._value * (1 + _ROUNDING)
        lines: list[_Line] = []
        self._V, self._U = start - step, before - change
        for trial in range(_MOST_TRIALS):
            self._value, self._logits = self._evaluate(self._V, self._U)
            residual = self._loss.residual(self._logits)
            slope = -_dot(residual, change) - _dot(self._penalty * self._V, step)
            done = self._value <= enough
            if trial < _FEW_TRIALS:
                done &= np.abs(slope) <= _FLAT * promised
            if np.count_nonzero(done) == len(done):
                self._turn(residual)
                return done
            lines = lines or [_Line(at_start) for at_start in (-promised).tolist()]
            for model in np.flatnonzero(~done):
                lines[model].turn(float(slope[model]))
            length = np.array([line.at for line in lines])[:, None, None]
            self._V, self._U = start - length * step, before - length * change
        self._V = np.where(done[:, None, None], self._V, start)
        self._stay()
        return done

    def _bound(self, before: _Logits, change: np.ndarray) -> None:
        """Learn how far the optimum can be from here at most.

        For the probabilities that a whole step foresaw, what the dual loses with the length of
        the gradient is next to nothing: the linearised gradient is zero there.
        """
        basis, length = self._loss.basis, self._loss.length
        entropy, residual = self._loss.foreseen(before, -change)
        gradient = basis @ (residual @ self._table.Z.T) / length
        lower = self._bounds.of_dual(entropy, gradient)
        self._lower = np.fmax(self._lower, lower)
        self._gap = self._value - self._lower
        if not self._proven and (self._gap > _TIGHT * self._value).any():
            here = self._logits.loss, basis @ self._V, basis @ self._of_loss / length
            self._gap = np.fmin(self._gap, self._value - self._bounds.bound_nearby(*here))

    def epoch(self) -> Epoch:
        """Where the stack is."""
        state, value, logits = self._state(), self._value, self._logits
        if state.coef.dtype != self._problem.backend.dtype(np.float64):  # weights have been rounded
            rounded = self._contrasts_of(state)
            value, logits = self._evaluate(rounded, rounded @ self._table.Z)
        right = self._loss.label(logits) == self._table.label
        return Epoch(
            self._models,
            state,
            value,
            np.vecdot(right, self._score_weight),
            diverged=~np.isfinite(value),
            learning_rate=self._rates,
            gap=self._gap + (value - self._value),
            stalled=self._stalled,
        )

    def _state(self) -> State:
        problem, weights = self._problem, self._loss.basis @ self._V
        coef = self._table.coef(weights[..., :-1])
        intercept = weights[..., -1] - coef @ self._table.mean
        intercept[problem.masked] = MASKED_LOGIT
        moved, dtype = problem.backend.asarray, problem.data.dtype
        return State(moved(coef, dtype), moved(intercept, dtype), *self._velocities)

    def select(self, staying: np.ndarray) -> None:
        """Go on with some of the models, at the host indices `staying`."""
        self._models, self._V = self._models[staying], self._V[staying]
        self._rates = self._rates[staying]
        self._lower, self._gap = self._lower[staying], self._gap[staying]
        self._enter(self._problem.select(staying))
        self._stay()


class _Line:
    """Where a convex function of a length is flat, by secants of its slope within a bracket.

    Attributes
    ----------
    at : float
        The length to try next.
    """

    def __init__(self, slope: float):
        self.at, self._last, self._slope = 1.0, 0.0, slope
        self._low, self._high = 0.0, np.inf

    def turn(self, slope: float) -> None:
        """Choose the next length from the slope at the last one."""
        at, change = self.at, slope - self._slope
        if slope < 0:
            self._low = at
        else:  # or no number
            self._high = at
        secant = self._low
        if 0 < change < np.inf:
            secant = at - slope * (at - self._last) / change
        width = min(self._high, _LONGER * at) - self._low
        least, most = self._low + _INSIDE * width, self._low + (1 - _INSIDE) * width
        self.at, self._last, self._slope = min(max(secant, least), most), at, slope


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products (m,) of arrays (m, r, p)."""
    return np.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1))


def _entropy(P: np.ndarray) -> np.ndarray:
    """What probabilities add to an entropy: faster than SciPy's, and less by a rounding error."""
    return -P * np.log(np.maximum(P, np.finfo(np.float64).tiny))


def _solve(matrix: np.ndarray, added: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The solution of a symmetric system, with as much added to its diagonal as that needs."""
    diagonal = matrix.reshape(-1)[:: len(matrix) + 1]
    diagonal += added
    ridge = _RIDGE * diagonal + _LEAST_RIDGE
    while True:
        diagonal += ridge
        _, step, info = lapack.dposv(matrix.T, gradient)
        if info == 0:
            return step
        ridge *= _MORE_RIDGE
        if not np.isfinite(ridge).all():
            return np.zeros_like(gradient)

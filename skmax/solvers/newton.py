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
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import lapack
from scipy.special import entr

from skmax import kernels
from skmax.data import dense
from skmax.data.host import DenseRows
from skmax.duality import Dual
from skmax.kernels.job import empty_rows
from skmax.problem import MASKED_LOGIT, Epoch, Problem, State
from skmax.solvers.full_batch import FullBatch
from skmax.solvers.predictions import in_common_coordinates, targets_of

# A step ends where the slope is at most this share of what it was, or after a few trials where it
# goes down at all: iris with C=100 takes 7 iterations instead of 11 with whole steps, breast_cancer
# with C=1 takes 6 instead of 9. Changes of so small a share of the objective are rounding errors.
_FLAT, _FEW_TRIALS, _MOST_TRIALS, _ROUNDING = 0.2, 3, 40, 1e-14
# By how much a step may grow in a trial, and how near it may come to what is known to be wrong.
_LONGER, _INSIDE = 4.0, 0.05
# All of them, for the compiled code.
_SEARCH = {
    "flat": _FLAT,
    "few_trials": _FEW_TRIALS,
    "most_trials": _MOST_TRIALS,
    "rounding": _ROUNDING,
    "longer": _LONGER,
    "inside": _INSIDE,
}
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
# Features whose largest values differ by more are no part of the same basis, in which the smaller
# ones would be lost to rounding errors; these are what coordinates are, as a share of their row,
# that are less; and values that are less have no squares to speak of.
_SAME_UNITS, _CHANCE, _LEAST_VALUE = 1e4, 1e-14, 1e-100
# How far the mean of a feature may be from zero, in units of its deviation, for its values to be
# multiplied as they are: that share of the digits of double precision is lost by it.
_FAR = 100.0


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
    """The rows of a problem.

    Weights under L2 are combinations of rows. So where there are more features than rows, what
    counts are the coordinates of rows in a basis of what they span: they are the features here.

    Attributes
    ----------
    rows : ndarray of shape (n, stride)
        The features, centred and scaled, a column of ones for the intercept, and zeros. Where the
        compiled code can, it reads those of X, of shape (n, d), instead.
    is_X : bool
        Whether it does.
    Z : ndarray of shape (p, n)
        Of the former, what is not beyond: a view.
    basis : ndarray of shape (p - 1, d) or None
        What the features are coordinates for: orthonormal. None: they are those of X.
    mean : ndarray of shape (d,)
        What was subtracted from the features of X.
    inverse : ndarray of shape (d,)
        What they were multiplied with then.
    scale : ndarray of shape (p - 1,)
        What the features were divided by.
    fit_intercept : bool
        Whether the last column has ones, or zeros.
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
        self.mean, self.basis, self.fit_intercept = np.zeros(d), None, problem.fit_intercept
        if common.mean is not None:
            self.mean = to_numpy(common.mean)[0, 0].astype(np.float64)
        self.inverse = to_numpy(common.inverse_scale)[0, 0].astype(np.float64)
        varies = self.inverse > 0
        self.is_X = d <= n and self._may_be(X, problem)
        if d > n:
            X = X - self.mean
            X[:, ~varies] = 0.0
            X, self.basis, self.scale = _spanned(X)
            varies = self.scale > 0
            self.scale = np.where(varies, self.scale, 1.0)
        else:
            self.scale = 1 / np.where(varies, self.inverse, 1.0)
        self.rows = X if self.is_X else self._laid_out(X)
        self.varies = np.append(varies, problem.fit_intercept)
        self.label, self.target = targets_of(problem)
        self.soft = problem.targets.ndim == 2
        self._source = problem.data, problem.order, problem.targets, problem.fit_intercept

    def _may_be(self, X: np.ndarray, problem: Problem) -> bool:
        """Whether compiled code can read the rows of X itself, and loses nothing by that."""
        held = isinstance(problem.data, DenseRows) and np.may_share_memory(X, problem.data.X)
        in_order = X.flags.c_contiguous and X.flags.aligned
        if not (held and in_order and kernels.newton_descent() is not None):
            return False
        inverse = self.inverse[self.inverse > 0]
        far = (np.abs(self.mean) * self.inverse > _FAR).any()
        return not far and bool(np.all((inverse > _LEAST_VALUE) & (inverse < 1 / _LEAST_VALUE)))

    def _laid_out(self, X: np.ndarray) -> np.ndarray:
        """Rows of features, or of coordinates, as they are described above."""
        p = X.shape[1] + 1
        rows = empty_rows((len(X),), p, np.float64)
        if self.basis is not None:
            rows[:, : p - 1] = X
        else:
            np.subtract(X, self.mean, out=rows[:, : p - 1])
            rows[:, : p - 1] *= self.inverse
        rows[:, p - 1] = self.fit_intercept
        rows[:, p:] = 0.0
        return rows

    @property
    def Z(self) -> np.ndarray:
        """See above."""
        return self.rows[:, : len(self.varies)].T

    def sums(self, weights: np.ndarray) -> np.ndarray:
        """Sums (..., p) over the rows of the features, weighted (..., n)."""
        if not self.is_X:
            return weights @ self.Z.T
        totals = weights.sum(axis=-1, keepdims=True)
        of_features = (weights @ self.rows - totals * self.mean) * self.inverse
        return np.concatenate([of_features, totals * self.fit_intercept], axis=-1)

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


def _read(problem: Problem) -> np.ndarray:
    """The rows of a problem, less the shift of its data, float64."""
    backend, data = problem.backend, problem.data
    float64 = backend.dtype(np.float64)
    if data.dtype != float64:
        data = data.with_(shift=data.shift, dtype=float64)
    ((_, rows),) = data.pieces(problem.order, len(problem.order))
    return backend.to_numpy(dense(rows)).astype(np.float64, copy=False)


def _spanned(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates (n, r) of rows (n, d), a basis (r, d), and what they were divided by (r,).

    With X' = Q R, the basis is Q', and the coordinates are R'. Where rows depend on each other,
    some are zero. Of fewer features than rows, these are their own basis.
    """
    (n, d), largest = X.shape, np.maximum(X.max(axis=0), -X.min(axis=0))
    if not np.isfinite(largest).all():  # a mean that is no number: the objective shall be none
        return np.full((n, 1), np.nan), np.zeros((1, d)), np.ones(1)
    left, coordinates, bases, scales = largest > _LEAST_VALUE, [], [], []
    if not left.any():
        return np.zeros((n, 1)), np.zeros((1, d)), np.zeros(1)
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
    return np.vstack(coordinates).T, basis, np.concatenate(scales)


@lru_cache(maxsize=64)
def _triangle(size: int) -> np.ndarray:
    """Where each entry of a symmetric matrix is in its upper triangle."""
    i, j = np.triu_indices(size)
    places = np.empty((size, size), dtype=int)
    places[i, j] = places[j, i] = np.arange(len(i))
    return places


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
        self._target, self._weight = target, weight[:, None]

    @cached_property
    def _weighted_target(self) -> np.ndarray:
        target = self._target
        return (target * self._weight).reshape(-1, target.shape[1] * target.shape[2])

    @cached_property
    def _transposed(self) -> np.ndarray:
        return self.basis.transpose(0, 2, 1)

    @cached_property
    def _of_target(self) -> np.ndarray:
        return self._transposed @ self._target

    @cached_property
    def _products(self) -> np.ndarray:
        a, b = np.triu_indices(self.basis.shape[2])
        return self._transposed[:, a] * self._transposed[:, b]

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


class Descent:
    """Where a stack of models is, what the objective is like there, and the way on.

    `skmax.kernels.newton` does the same in compiled code.

    Parameters
    ----------
    table : _Table
        The rows.
    loss : _Binary or _Multinomial
        What is minimised of the logits.
    penalty : ndarray of shape (m, r, p)
        What is added to the Hessian's diagonal.
    score : ndarray of shape (1 or m, n)
        The shares of rows in the accuracy.

    Attributes
    ----------
    V : ndarray of shape (m, r, p)
        The weights.
    value, loss, accuracy : ndarray of shape (m,)
        The objective there, its part without the penalty, and the accuracy.
    gradient, of_loss : ndarray of shape (m, r, p)
        Its gradient, and the same part of that.
    foreseen : tuple of ndarray of shapes (m,) and (m, r, p)
        The entropy of the probabilities that the last step promised where it began, and the
        gradient of the loss that they would have.
    """

    def __init__(self, table: _Table, loss: Any, penalty: np.ndarray, score: np.ndarray):
        self._table, self._loss, self._penalty, self._score = table, loss, penalty, score

    def go_to(self, V: np.ndarray) -> None:
        """Be at V."""
        self.V, self._U = V, V @ self._table.Z
        self.value, self._logits = self._evaluate(V, self._U)
        self._turn(self._loss.residual(self._logits))

    def _evaluate(self, V: np.ndarray, U: np.ndarray) -> tuple[np.ndarray, _Logits]:
        """The objective at V, and what is known of the logits B U, where U is V Z."""
        logits = self._loss.of(U)
        return logits.loss + _dot(self._penalty * V, V) / 2, logits

    def _turn(self, residual: np.ndarray) -> None:
        """Learn the gradient from that by U."""
        self.of_loss = residual @ self._table.Z.T
        self.gradient = self.of_loss + self._penalty * self.V

    @property
    def loss(self) -> np.ndarray:
        """See above."""
        return self._logits.loss

    @property
    def accuracy(self) -> np.ndarray:
        """See above."""
        return self._accuracy(self._logits)

    def _accuracy(self, logits: _Logits) -> np.ndarray:
        right = self._loss.label(logits) == self._table.label
        return np.vecdot(right, self._score)

    def at(self, V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The objective and the accuracy at V, without going there."""
        value, logits = self._evaluate(V, V @ self._table.Z)
        return value, self._accuracy(logits)

    def hessian(self, *, exact: bool, alike: bool) -> np.ndarray:
        """The Hessian of the loss, (m, r p, r p), or what is above its diagonal, and that.

        Where it need not be `exact`, it may be as good as single precision makes it. Where
        contrasts are `alike`, and do not interact, that of the first is all: (m, p, p).
        """
        (m, r, p), Z = self.V.shape, self._table.Z
        Z = Z if exact else Z.astype(np.float32)
        curvature = self._loss.curvature(self._logits)[:, : 1 if alike else None]
        flat = curvature.reshape(-1, curvature.shape[-1]).astype(Z.dtype, copy=False)
        moments = np.stack([(Z * weight) @ Z.T for weight in flat], dtype=np.float64)
        moments = moments.reshape(m, -1, p, p)
        if alike:
            return moments[:, 0]
        return moments[:, _triangle(r)].transpose(0, 1, 3, 2, 4).reshape(m, r * p, r * p)

    def go(self, step: np.ndarray, promised: np.ndarray, *, foresee: bool) -> np.ndarray:
        """Go against steps to about where the objective is least; which models have gone.

        `promised` is the slope there, and `foresee` whether to learn what is `foreseen`.
        """
        change = step @ self._table.Z
        if foresee:
            entropy, residual = self._loss.foreseen(self._logits, -change)
            self.foreseen = entropy, residual @ self._table.Z.T
        start, before, enough = self.V, self._U, self.value * (1 + _ROUNDING)
        lines: list[_Line] = []
        self.V, self._U = start - step, before - change
        for trial in range(_MOST_TRIALS):
            self.value, self._logits = self._evaluate(self.V, self._U)
            residual = self._loss.residual(self._logits)
            slope = -_dot(residual, change) - _dot(self._penalty * self.V, step)
            done = self.value <= enough
            if trial < _FEW_TRIALS:
                done &= np.abs(slope) <= _FLAT * promised
            if np.count_nonzero(done) == len(done):
                self._turn(residual)
                return done
            lines = lines or [_Line(at_start) for at_start in (-promised).tolist()]
            for model in np.flatnonzero(~done):
                lines[model].turn(float(slope[model]))
            length = np.array([line.at for line in lines])[:, None, None]
            self.V, self._U = start - length * step, before - length * change
        self.go_to(np.where(done[:, None, None], self.V, start))
        return done


class _Bounds(Dual):
    """Those of `Dual`, in the coordinates of a table, without L1."""

    def __init__(self, problem: Problem, table: _Table, target: np.ndarray, weight: np.ndarray):
        m, k = problem.masked.shape
        d = len(table.scale)
        sums = np.broadcast_to(table.sums(target * weight[:, None]), (m, k, d + 1))
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
        # Once for all: weights of contrasts are what they are even if few models stay.
        self._is_binary = bool((~problem.masked).sum(axis=1).max() == 2)
        self._enter(problem)
        V = self._contrasts_of(state)
        self._lower = self._bounds.entropy_of_targets
        self._descent.go_to(V)
        worse = ~(self._descent.value <= np.log(np.sum(~problem.masked, axis=1)))
        if worse.any() and V.any():  # weights far away, where the Hessian says nothing
            V[worse] = 0.0
            self._descent.go_to(V)
        self._gap = self._descent.value - self._lower
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
        weight, score = (
            np.full((1, n), 1 / n) if of_rows is None else to_numpy(of_rows).T.astype(float) / n
            for of_rows in (problem.weights(index), problem.weights(index, of_scores=True))
        )
        kind = _Binary if self._is_binary else _Multinomial
        self._loss = kind(target, weight, problem.masked)
        self._bounds = _Bounds(problem, table, target, weight)
        self._velocities = tuple(
            problem.backend.zeros(shape, problem.data.dtype)
            for shape in ((*problem.masked.shape, len(table.mean)), problem.masked.shape)
        )
        penalty = self._penalty()
        self._diagonal = penalty.reshape(len(penalty), -1)
        run = kernels.newton_descent()
        if run is None:
            self._descent = Descent(table, self._loss, penalty, score)
            return
        rows = {"target": target, "weight": weight, "score": score, "label": table.label}
        of_models = {"basis": self._loss.basis, "penalty": penalty, "masked": problem.masked}
        self._descent = run(problem.backend, table, _SEARCH, **rows, **of_models)

    def _penalty(self) -> np.ndarray:
        """What is added to the Hessian's diagonal: the penalty, and 1 for weights without a use."""
        used = np.any(self._loss.basis, axis=1)[..., None] & self._table.varies
        l2 = np.concatenate([self._bounds.l2, np.zeros_like(self._bounds.l2[..., :1])], axis=2)
        penalty = np.where(used, self._loss.length * l2, 1.0)
        shape = len(self._problem.masked), self._loss.basis.shape[2], penalty.shape[2]
        return np.ascontiguousarray(np.broadcast_to(penalty, shape))

    def _contrasts_of(self, state: State) -> np.ndarray:
        coef, intercept = (
            self._problem.backend.to_numpy(part).astype(np.float64)
            for part in (state.coef, state.intercept)
        )
        there = intercept + coef @ self._table.mean
        weights = np.concatenate([self._table.weights(coef), there[..., None]], axis=2)
        return self._loss.basis.transpose(0, 2, 1) @ weights / self._loss.length

    def advance(self) -> None:
        """One step of every model that finds one; the others have stalled."""
        descent, gap = self._descent, self._gap
        step = self._newton_step()
        promised = _dot(descent.gradient, step)
        is_near = bool((promised < _NEAR * descent.value).any())
        found = descent.go(step, promised, foresee=is_near)
        if is_near:
            self._bound()
        else:
            self._gap = descent.value - self._lower
        self._is_near = bool((promised < _SINGLE * descent.value).any())
        over = (promised <= _ROUNDING * descent.value) & (self._gap > _NEARER * gap)
        self._stalled = ~found | over

    def _newton_step(self) -> np.ndarray:
        """The inverse Hessian times the gradient."""
        gradient = self._descent.gradient
        m, r, p = gradient.shape
        # Where all weights are zero, contrasts do not interact, and are alike.
        alike = r > 1 and not self._descent.V.any()
        H = self._descent.hessian(exact=self._is_near, alike=alike)
        step = np.empty_like(gradient)
        for j in range(m):
            if alike:
                step[j] = _solve(H[j], self._diagonal[j, :p], gradient[j].T).T
            else:
                step[j] = _solve(H[j], self._diagonal[j], gradient[j].reshape(-1)).reshape(r, p)
        return step

    def _bound(self) -> None:
        """Learn how far the optimum can be from here at most.

        For the probabilities that a whole step foresaw, what the dual loses with the length of
        the gradient is next to nothing: the linearised gradient is zero there.
        """
        basis, length, descent = self._loss.basis, self._loss.length, self._descent
        entropy, slope = descent.foreseen
        lower = self._bounds.of_dual(entropy, basis @ slope / length)
        self._lower = np.fmax(self._lower, lower)
        self._gap = descent.value - self._lower
        if not self._proven and (self._gap > _TIGHT * descent.value).any():
            here = descent.loss, basis @ descent.V, basis @ descent.of_loss / length
            self._gap = np.fmin(self._gap, descent.value - self._bounds.bound_nearby(*here))

    def epoch(self) -> Epoch:
        """Where the stack is."""
        state, descent = self._state(), self._descent
        value, accuracy = descent.value.copy(), descent.accuracy.copy()
        gap = self._gap
        if state.coef.dtype != self._problem.backend.dtype(np.float64):  # weights have been rounded
            value, accuracy = descent.at(self._contrasts_of(state))
            gap = self._gap + (value - descent.value)
        return Epoch(
            self._models,
            state,
            value,
            accuracy,
            diverged=~np.isfinite(value),
            learning_rate=self._rates,
            gap=gap,
            stalled=self._stalled,
        )

    def _state(self) -> State:
        problem, weights = self._problem, self._loss.basis @ self._descent.V
        coef = self._table.coef(weights[..., :-1])
        intercept = weights[..., -1] - coef @ self._table.mean
        intercept[problem.masked] = MASKED_LOGIT
        moved, dtype = problem.backend.asarray, problem.data.dtype
        return State(moved(coef, dtype), moved(intercept, dtype), *self._velocities)

    def select(self, staying: np.ndarray) -> None:
        """Go on with some of the models, at the host indices `staying`."""
        self._models, V = self._models[staying], self._descent.V[staying]
        self._rates = self._rates[staying]
        self._lower, self._gap = self._lower[staying], self._gap[staying]
        self._enter(self._problem.select(staying))
        self._descent.go_to(V)


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
    """The solution of a symmetric system, with as much added to its diagonal as that needs.

    Of the matrix, only what is not below the diagonal counts.
    """
    diagonal = matrix.reshape(-1)[:: len(matrix) + 1]
    diagonal += added
    ridge = _RIDGE * diagonal + _LEAST_RIDGE
    while True:
        diagonal += ridge
        _, step, info = lapack.dposv(matrix.T, gradient, lower=1)
        if info == 0:
            return step
        ridge *= _MORE_RIDGE
        if not np.isfinite(ridge).all():
            return np.zeros_like(gradient)

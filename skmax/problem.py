"""What is minimised and what is passed between solver and driver. Shapes are documented here.

Throughout, `m` is n_models (the stack: one for a single fit), `n` the rows of X that take part,
`k` n_classes and `d` n_features. Arrays live where the backend computes; `mean`, `shift` and
whatever is named host are NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from skmax.backends import Array, Backend
from skmax.backends.array_api import float_info
from skmax.data import Rows
from skmax.data.rows import start_of_range

# The logit of a class that a model must not know: its probability is exactly zero, and unlike
# minus infinity it stays finite when it is multiplied by a weight of zero.
MASKED_LOGIT = -1e30


@dataclass(frozen=True)
class Problem:
    """A stack of penalised softmax regressions on the same rows.

    Model j minimises ``mean_i w_ij CE_ij + l2_j/2 ||W_j||^2 + l1_j ||W_j||_1``.

    Attributes
    ----------
    data : Rows
        The data, of which the rows `order` take part.
    order : ndarray of shape (n,), host
        Indices of the rows that take part.
    targets : array of shape (n_samples,) or (n_samples, k)
        The index of each row's class, or its probabilities; for all rows of `data`.
    sample_weight : array of shape (n_samples, u) or None
        Different weights that models give to rows, with mean 1 over `order`, class weights
        included; zero for the rows that a fold holds out. None: every row weighs 1.
    score_weight : array of shape (n_samples, u) or None
        The same without class weights: what accuracy is averaged with. None: `sample_weight`.
    columns : ndarray of shape (m,), host
        The column of weights of each model.
    l2, l1 : ndarray of shape (m,), host
        Strengths of the penalties, per unit of weight.
    smoothing : array of shape (m, k) or None
        Added to every row's target, once that was multiplied by one minus the sum of this.
    masked : ndarray of shape (m, k), host
        True where no row of a model has weight in a class.
    fit_intercept : bool
        Whether intercepts are trained.
    mean : array of shape (m, 1, d) or None
        Where the preconditioner's coordinates have their origin, less the shift of `data`; the same
        for models of the same column.
    inverse_scale : array of shape (m, 1, d) or None
        One over the length of the preconditioner's units; 0 for a feature that cannot matter.
    """

    data: Rows
    order: np.ndarray
    targets: Array
    sample_weight: Array | None
    score_weight: Array | None
    l2: np.ndarray
    l1: np.ndarray
    smoothing: Array | None
    masked: np.ndarray
    fit_intercept: bool
    columns: np.ndarray
    mean: Array | None = None
    inverse_scale: Array | None = None

    @classmethod
    def pose(
        cls,
        data: Rows,
        order: np.ndarray,
        targets: np.ndarray,
        *,
        sample_weight: np.ndarray | None,
        score_weight: np.ndarray | None,
        masked: np.ndarray,
        C: np.ndarray,
        l1_ratio: np.ndarray,
        label_smoothing: np.ndarray,
        fit_intercept: bool,
        columns: np.ndarray | None = None,
        weight_sum: np.ndarray | None = None,
    ) -> Problem:
        """The problem of `LogisticRegression`, per unit of weight, moved to the backend.

        Parameters
        ----------
        sample_weight, score_weight : ndarray of shape (n_samples, u) or None
            As they are: they get their mean of 1 here.
        columns : ndarray of shape (m,) or None
            The column of each model. None: they follow one another.
        C, l1_ratio, label_smoothing : ndarray of shape (m,)
            As `SoftmaxRegression` has them.
        weight_sum : ndarray of shape (m,) or None
            The sum of the weights that C refers to; None: that of the rows `order`.

        The other parameters are those of the class.
        """
        backend, n = data.backend, len(order)
        if columns is None:
            columns = np.arange(len(C))
        if weight_sum is None:
            weight_sum = np.full(len(C), float(n))
            if sample_weight is not None:
                weight_sum = sample_weight[order].sum(axis=0)[columns]
        known = np.sum(~masked, axis=1)
        l2, l1 = _strengths(C * weight_sum, l1_ratio, known, data.dtype)
        smoothing = np.where(masked, 0.0, (label_smoothing / known)[:, None])

        def moved(weight: np.ndarray | None) -> Array | None:
            if weight is None:
                return None
            return backend.asarray(weight * (n / weight[order].sum(0)), data.dtype)

        return cls(
            data=data,
            order=order,
            targets=backend.asarray(targets, data.dtype if targets.ndim == 2 else None),
            sample_weight=moved(sample_weight),
            score_weight=moved(score_weight),
            l2=l2,
            l1=l1,
            smoothing=backend.asarray(smoothing, data.dtype) if smoothing.any() else None,
            masked=masked,
            fit_intercept=fit_intercept,
            columns=columns,
        )

    @property
    def backend(self) -> Backend:
        """Where the problem lives."""
        return self.data.backend

    @property
    def n_models(self) -> int:
        """The number of models in the stack."""
        return self.masked.shape[0]

    @property
    def n_classes(self) -> int:
        """The number of rows of weights per model."""
        return self.masked.shape[1]

    @cached_property
    def columns_there(self) -> Array:
        """The columns as numbers of 32 bits, where the backend computes."""
        return self.backend.asarray(self.columns.astype(np.int32))

    @cached_property
    def _made(self) -> dict[Any, Any]:
        return {}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is made of the problem the first time that it is asked for by this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @cached_property
    def start(self) -> int | None:
        """The first of the rows that take part, where each is the one before plus 1; else None."""
        return start_of_range(self.order)

    @cached_property
    def strengths_there(self) -> Array:
        """Roots of half of l2, by which no square overflows, and l1: (2, m), float64."""
        strengths = np.stack([np.sqrt(self.l2 / 2), self.l1])
        return self.backend.asarray(strengths, self.backend.dtype(np.float64))

    @cached_property
    def largest_weight(self) -> float:
        """The largest weight of a row that takes part."""
        weight = self.sample_weight
        return 1.0 if weight is None else float(self.backend.to_numpy(weight)[self.order].max())

    def rows_of(self, array: Array, index: Any) -> Array:
        """Rows of an array that has one for each row of X, at an index that `Rows.pieces` gave."""
        if isinstance(index, slice):
            return array[index, ...]
        return self.backend.xp.take(array, index, axis=0)

    def weights(self, index: Any, *, of_scores: bool = False) -> Array | None:
        """Weights of the rows `index`, of shape (b, m); None: every row weighs 1."""
        weight = self.score_weight if of_scores else None
        weight = self.sample_weight if weight is None else weight
        if weight is None:
            return None
        rows = self.rows_of(weight, index)
        if np.array_equal(self.columns, np.arange(rows.shape[1])):
            return rows
        return self.backend.xp.take(rows, self.backend.asarray(self.columns), axis=1)

    def total(
        self, function: Callable[..., tuple[Array, ...]], *arguments: Any, **options: Any
    ) -> tuple[Array, ...]:
        """What a function sums over the rows of a problem, its first argument; others follow.

        What is on a cluster has each worker call it on a problem of the rows there, and adds up.
        """
        return function(self, *arguments, **options)

    def sample(self, n: int, rng: np.random.Generator | None = None) -> Problem:
        """The problem of at most n of the rows, chosen as `Rows.sample` has it."""
        return replace(self, order=self.data.sample(self.order, n, rng))

    def select(self, models: np.ndarray) -> Problem:
        """The problem of some of the models, at the host indices `models`."""

        def take(array: Array | None) -> Array | None:
            return None if array is None else self.backend.take(array, models)

        return replace(
            self,
            columns=self.columns[models],
            l2=self.l2[models],
            l1=self.l1[models],
            smoothing=take(self.smoothing),
            masked=self.masked[models],
            mean=take(self.mean),
            inverse_scale=take(self.inverse_scale),
        )


@dataclass(frozen=True)
class State:
    """Where a solver is.

    Attributes
    ----------
    coef : array of shape (m, k, d)
        The weights of the features, in their own units.
    intercept : array of shape (m, k)
        The logits of a row that equals the shift of the data.
    coef_velocity : array of shape (m, k, d)
        The last step of `coef`: momentum.
    intercept_velocity : array of shape (m, k)
        The last step of the logits of a row that equals the preconditioner's origin.
    """

    coef: Array
    intercept: Array
    coef_velocity: Array
    intercept_velocity: Array

    @classmethod
    def start(cls, problem: Problem) -> State:
        """All weights zero; classes that a model must not know are masked."""
        zeros, dtype = problem.backend.zeros, problem.data.dtype
        shape = (problem.n_models, problem.n_classes, problem.data.n_features)
        intercept = problem.backend.asarray(np.where(problem.masked, MASKED_LOGIT, 0.0), dtype)
        return cls(zeros(shape, dtype), intercept, zeros(shape, dtype), zeros(shape[:2], dtype))

    @classmethod
    def at(cls, problem: Problem, coef: np.ndarray, intercept: np.ndarray) -> State:
        """At rest at given weights, host arrays of shapes (m, k, d) and (m, k).

        A class that could not occur before and can now starts like the least likely one.
        """
        start = cls.start(problem)
        least = np.min(intercept, axis=1, keepdims=True, where=np.isfinite(intercept), initial=0.0)
        intercept = np.where(np.isfinite(intercept), intercept, least)
        intercept = np.where(problem.masked, MASKED_LOGIT, intercept)
        moved = problem.backend.asarray
        dtype = problem.data.dtype
        return replace(start, coef=moved(coef, dtype), intercept=moved(intercept, dtype))

    def at_rest(self, backend: Backend) -> State:
        """The same weights without momentum."""
        zeros = backend.xp.zeros_like
        return replace(
            self,
            coef_velocity=zeros(self.coef_velocity),
            intercept_velocity=zeros(self.intercept_velocity),
        )

    def where(self, backend: Backend, chosen: np.ndarray, other: State) -> State:
        """This state for the models that are `chosen`, a host mask, and another for the rest."""

        def pick(name: str) -> Array:
            ours = getattr(self, name)
            mask = backend.asarray(chosen.reshape(-1, *[1] * (ours.ndim - 1)))
            return backend.xp.where(mask, ours, getattr(other, name))

        return State(*(pick(field.name) for field in fields(self)))

    def followed_by(self, backend: Backend, other: State) -> State:
        """Both stacks, one after the other."""
        concat = backend.xp.concat
        names = [field.name for field in fields(self)]
        return State(*(concat([getattr(self, name), getattr(other, name)]) for name in names))

    def select(self, backend: Backend, models: np.ndarray) -> State:
        """The state of some of the models, at the host indices `models`."""
        return State(*(backend.take(getattr(self, part.name), models) for part in fields(self)))


@dataclass(frozen=True)
class Steps:
    """The steps of an epoch of stochastic gradient descent.

    Attributes
    ----------
    order : ndarray of shape (n,), host
        Indices of the rows, in the order in which they are visited.
    batch_size : int
        Rows per step; the last batch may have fewer.
    rates : ndarray of shape (n_steps, m), host
        The learning rate of each step.
    momentum : ndarray of shape (m,), host
        What is kept of a velocity from one step to the next.
    """

    order: np.ndarray
    batch_size: int
    rates: np.ndarray
    momentum: np.ndarray

    def select(self, models: np.ndarray) -> Steps:
        """The steps of some of the models, at the host indices `models`."""
        return replace(self, rates=self.rates[:, models], momentum=self.momentum[models])


class BatchSums(NamedTuple):
    """Sums over the rows of a batch, each row weighing what the problem says.

    Attributes
    ----------
    loss : array of shape (m,), float64
        Cross-entropy.
    correct : array of shape (m,), float64
        Weight of the rows that are classified rightly.
    """

    loss: Array
    correct: Array


@dataclass(frozen=True)
class Epoch:
    """What a solver reports after each pass over the data; the first axis runs over the models.

    Attributes
    ----------
    models : ndarray of shape (m,), host
        Positions of these models in the stack that training began with.
    state : State
        Where the solver is now. Its arrays may be overwritten by the next pass.
    loss : ndarray of shape (m,), host
        The objective: cross-entropy averaged over the pass while it trained, and the penalty at
        its end.
    accuracy : ndarray of shape (m,), host
        The accuracy, likewise averaged.
    diverged : ndarray of shape (m,), host
        Whether the weights are useless and will not recover.
    learning_rate : ndarray of shape (m,), host
        The learning rate before the schedule; not a number for a solver that has none.
    gap : ndarray of shape (m,), host, or None
        A bound of how far the objective is above its least value, where the solver has one.
    stalled : ndarray of shape (m,), host, or None
        Whether the solver can get no further in the precision at hand.
    """

    models: np.ndarray
    state: State
    loss: np.ndarray
    accuracy: np.ndarray
    diverged: np.ndarray
    learning_rate: np.ndarray
    gap: np.ndarray | None = None
    stalled: np.ndarray | None = None


def _strengths(
    scale: np.ndarray, l1_ratio: np.ndarray, known: np.ndarray, dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Strengths of the penalties of models with so many classes, per unit of weight, (m,).

    Dividing ``C * sum_i s_i CE_i + (1 - l1_ratio)/2 ||W||^2 + l1_ratio ||W||_1`` by `scale`, which
    is C times the sum of the weights, gives them. With two classes, `LogisticRegression` has one
    row of weights, w = W_1 - W_0: at the best W for a given w, W_1 = -W_0, the norms are
    ``||W||^2 = ||w||^2 / 2`` and ``||W||_1 = ||w||_1``, so L2 is doubled and L1 is not.
    """
    with np.errstate(divide="ignore", over="ignore"):
        # The strongest leaves nothing of any weight, and must not overflow.
        strength = np.minimum(1 / scale, float(float_info(dtype).max) ** 0.75)
    return (1 - l1_ratio) * strength * np.where(known == 2, 2.0, 1.0), l1_ratio * strength

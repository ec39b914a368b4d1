"""Stacks of models: which tasks train together, their training, and the models that come of it.

Whatever the search knows of how SoftmaxRegression trains is in this file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from traceback import format_exception
from types import NoneType
from typing import Any, Self

import joblib
import numpy as np
from scipy import sparse
from sklearn.base import clone

from skmax import fitted
from skmax._sklearn import get_namespace
from skmax.backends import float_dtype_for, resolve
from skmax.data import source
from skmax.ending import warn_unless_good
from skmax.estimator import SoftmaxRegression
from skmax.hyperparameters import Hyperparameters
from skmax.objective import METHODS, logit_chunks
from skmax.policy import MOST_ENTRIES, Method, Size, batch_size, blocks_per_model, choose
from skmax.posing import Share, pose, pose_validation
from skmax.problem import Problem, State
from skmax.solvers.run import run
from skmax.stopping import DivergedError, Watch
from skmax.training import train
from skmax.validation import Targets, check_weights, check_X, check_X_y

# Bytes that training a stack may take. Measured per weight in float32: 58 by SGD, 300 by L-BFGS,
# which remembers ten steps (float64: 115 and 380).
_BUDGET, _BYTES_OF_SGD, _BYTES_OF_LBFGS = 1 << 27, 64, 300
# Bytes that full-batch models may take where the number of operations is what costs.
_WIDE_BUDGET = 1 << 30
# Per row and column of row weights: 14 measured while it is made, 8 for its copy in the problem.
_BYTES_OF_COLUMN = 24
# Parameters in which the models of a stack may differ.
_PER_MODEL = {
    *("C", "l1_ratio", "learning_rate", "momentum", "label_smoothing", "class_weight"),
    *("max_iter", "schedule", "tol", "n_iter_no_change", "validation_fraction"),
}


@dataclass(frozen=True)
class Candidate:
    """Values of the parameters that are tuned, and what follows from them."""

    number: int
    parameters: dict[str, Any]
    estimator: Any  # with these parameters, never fitted itself

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All parameters of the estimator."""
        return self.estimator.get_params(deep=False)

    @cached_property
    def hyperparameters(self) -> Hyperparameters:
        """Those of the estimator, once it has found them valid."""
        self.estimator._validate_params()
        return Hyperparameters.of(self.estimator)

    @cached_property
    def kind(self) -> tuple[Any, ...]:
        """Equal for candidates whose models a stack can hold, as far as the parameters say."""
        return _hashable(v for name, v in self.settings.items() if name not in _PER_MODEL)

    @cached_property
    def path(self) -> tuple[Any, ...]:
        """Equal for candidates of a kind that differ in C only."""
        return _hashable(v for name, v in self.settings.items() if name in _PER_MODEL - {"C"})


def _hashable(values: Iterable[Any]) -> tuple[Any, ...]:
    plain = str, int, float, NoneType
    return tuple(v if isinstance(v, plain) else joblib.hash(v) for v in values)


@dataclass
class Task:
    """One candidate on one split."""

    candidate: Candidate
    split: int
    context: Any  # of its callbacks
    method: Any = None  # how it is trained
    is_wide: bool = False  # see `Backend`
    share: Any = None  # the rows that it learns from
    validation_rows: Any = None  # those that stop it early
    present: Any = None  # which classes its rows have, bool
    error: str | None = None  # why there is no model
    fit_time: float = 0.0

    @property
    def chain(self) -> Any:
        """Equal for tasks whose models train one after the other, each from the optimum before.

        From 5,000 x 20 to 300 x 1,000, 2 to 10 C, L1 or L2, that took 0.35 to 1.2 times as long as
        all side by side, which took 0.2 to 1.0 times as long as single fits. What SGD or early
        stopping ends with depends on where it starts. Where operations are what costs, side by
        side is better: 105 iterations instead of 197 of 4,000 x 100 with 20 classes, 8 C, 3 folds.
        """
        alone = self.method.solver == "sgd" or (self.is_wide and self.method.solver == "lbfgs")
        if alone or self.candidate.hyperparameters.early_stopping:
            return self.candidate.number, self.split
        return self.candidate.path, id(self.share)


def fail(tasks: list[Task], error: Exception, error_score: Any) -> None:
    """Record why tasks have no model; or raise it, with the parameters of the first of them."""
    if error_score == "raise":
        n_others = len({task.candidate.number for task in tasks}) - 1
        if (candidate := f"Candidate: {tasks[0].candidate.parameters}") not in str(error):
            error.add_note(candidate + f", fitted with {n_others} others" * (n_others > 0))
        raise error
    for task in tasks:
        task.error = "".join(format_exception(error))


class StackedModel(SoftmaxRegression):
    """A model of a stack, with its logits of some rows."""

    cached_logits: Sequence[tuple[Any, Any]] = ()

    def _map_logits(self, X: Any, method: str, out: Any = None) -> Any:
        for rows, logits in self.cached_logits:
            if X is rows and out is None:
                return METHODS[method](get_namespace(logits)[0], logits)
        return super()._map_logits(X, method, out)


def is_stackable(estimator: Any) -> bool:
    """Whether stacks do all that an estimator does; a subclass may do anything."""
    return type(estimator) is SoftmaxRegression


@dataclass
class TrainingData:
    """All rows that tasks learn from, checked as a fit would."""

    X: Any
    y: Any
    targets: Targets
    weight: np.ndarray | None
    train_rows: Sequence[np.ndarray] | None  # of each split; None: all rows
    attributes: dict[str, Any]  # that checking sets on an estimator
    shares: dict[Any, tuple[Share, Any]] = field(default_factory=dict)  # with validation rows
    rows: dict[Any, Any] = field(default_factory=dict)  # of X, where models compute
    present: dict[int, np.ndarray] = field(default_factory=dict)  # classes in a split's rows

    @classmethod
    def checked(cls, estimator: Any, X: Any, y: Any, weight: Any, train_rows: Any = None) -> Self:
        """Checked by one of the estimators."""
        X, y, attributes = check_X_y(estimator, X, y, reset=True)
        return cls(X, y, Targets.read(y), check_weights(weight, X), train_rows, attributes)

    def rows_for(self, estimator: Any) -> Any:
        """The rows of X where a model computes."""
        key = estimator.backend, estimator.shuffle
        if key not in self.rows:
            backend, dtype = resolve(self.X, estimator.backend), float_dtype_for(self.X)
            self.rows[key] = source(self.X, backend, dtype, shuffled=estimator.shuffle)
        return self.rows[key]

    def assign(self, task: Task) -> None:
        """Decide which rows a task learns from."""
        estimator, params = task.candidate.estimator, task.candidate.hyperparameters
        order = np.arange(self.X.shape[0])
        if self.train_rows is not None:
            order = self.train_rows[task.split]
        if task.split not in self.present:
            present = np.ones(len(self.targets.classes), dtype=bool)
            if self.y.ndim == 1 or self.y.shape[1] == 1:
                present = np.bincount(self.targets.labels[order], minlength=present.size) > 0
            self.present[task.split] = present
        task.present = self.present[task.split]
        key: tuple[Any, ...] = task.split, repr(params.class_weight)
        if params.early_stopping:
            key = *key, estimator.validation_fraction, joblib.hash(estimator.random_state)
        if key not in self.shares:
            validation_rows = None
            if estimator.early_stopping:
                rng = clone(estimator)._new_rng()
                order, validation_rows = estimator._split(self.targets, self.weight, order, rng)
            share = Share.of(self.targets, self.weight, order, estimator.class_weight)
            self.shares[key] = share, validation_rows
        task.share, task.validation_rows = self.shares[key]


@dataclass
class Stack:
    """Tasks whose models have been trained together, in the order of the models."""

    data: TrainingData
    tasks: list[Task]
    methods: list[Method]
    problem: Problem
    watch: Watch

    def finish(self, error_score: Any) -> None:
        """Say how the training of the tasks has ended, candidate by candidate."""
        for j in sorted(range(len(self.tasks)), key=lambda j: self.tasks[j].candidate.number):
            try:
                self._finish(j)
            except Exception as error:
                fail([self.tasks[j]], error, error_score)

    def _finish(self, j: int) -> None:
        candidate, errors = self.tasks[j].candidate, self.watch.divergence.errors
        if j in errors:
            raise DivergedError(f"{errors[j]} Candidate: {candidate.parameters}")
        n_classes = int(np.sum(~self.problem.masked[j]))
        ending, solver = self.watch.ending(j), self._solver(j)
        warn_unless_good(ending, candidate.hyperparameters, solver, n_classes)

    def _solver(self, j: int) -> str:
        return self.methods[0].solver_of(self.watch.record.n_iter(j))

    @cached_property
    def _first(self) -> StackedModel:
        """A model: all of them know the same of X."""
        return self.model(0)

    def classes(self, j: int) -> np.ndarray:
        """The labels that a model knows."""
        return self.data.targets.classes[self.tasks[j].present]

    def model(self, j: int) -> StackedModel:
        """The fitted model of a task."""
        task, weights = self.tasks[j], self.watch.weights(j)
        estimator = task.candidate.estimator
        model = StackedModel(**task.candidate.settings)
        if hasattr(estimator, "_metadata_request"):
            model._metadata_request = deepcopy(estimator._metadata_request)
        model.__dict__.update(
            self.data.attributes,
            classes_=self.classes(j),
            solver_=self._solver(j),
            **fitted.curves(self.watch, j),
            **fitted.coefficients(self.data.X, self.problem, weights, j, task.present),
        )
        return model

    def predictions(self, models: Sequence[int], X: Any) -> np.ndarray:
        """The likeliest labels by models of one split, of shape (n, len(models)), on the host."""
        backend = self.problem.backend
        likeliest = backend.xp.argmax(self._logits(models, X)[1], axis=2)
        return self.classes(models[0])[backend.to_numpy(likeliest)]

    def logits(self, models: Sequence[int], X: Any) -> Any:
        """Logits by models of one split, of shape (n, len(models), its classes), where X is."""
        X, logits = self._logits(models, X)
        on_host = sparse.issparse(X) or isinstance(X, np.ndarray)
        return self.problem.backend.to_numpy(logits) if on_host else logits

    def _logits(self, models: Sequence[int], X: Any) -> tuple[Any, Any]:
        """X, as it is checked, and its logits, in one pass, where the backend computes."""
        problem, backend = self.problem, self.problem.backend
        X = check_X(self._first, X)
        rows = source(X, backend, float_dtype_for(X))
        rows = rows.with_(shift=problem.data.shift, dtype=problem.data.dtype)
        weights = [self.watch.weights(j) for j in models]
        coef, intercept = (backend.xp.concat(list(arrays)) for arrays in zip(*weights, strict=True))
        chunks = logit_chunks(rows, coef, intercept, np.arange(rows.n_samples))
        return X, backend.xp.concat([self._as_fitted(models, chunk) for chunk in chunks])

    def _as_fitted(self, models: Sequence[int], logits: Any) -> Any:
        """Logits as those of the fitted attributes: of the classes present, one row for two."""
        backend, xp = self.problem.backend, self.problem.backend.xp
        logits = xp.reshape(logits, (-1, len(models), self.problem.n_classes))
        logits = xp.where(backend.asarray(self.problem.masked[models]), -np.inf, logits)
        present = np.flatnonzero(self.tasks[models[0]].present)
        logits = xp.take(logits, backend.asarray(present), axis=2)
        if len(present) != 2:
            return logits
        difference = logits[:, :, 1:] - logits[:, :, :1]
        return xp.concat([xp.zeros_like(difference), difference], axis=2)


def train_stacks(tasks: list[Task], data: TrainingData, error_score: Any) -> Iterator[Stack]:
    """Train the tasks, in as few stacks as there can be."""
    for members in _stacks(tasks, data, error_score):
        waiting = [members]
        while waiting:
            members = waiting.pop()
            try:
                stack = _train(members, data)
            except Exception as error:
                # PyTorch's is no MemoryError.
                is_memory = "OutOfMemory" in type(error).__name__ or isinstance(error, MemoryError)
                if len(members) == 1 or (error_score == "raise" and not is_memory):
                    fail(members, error, error_score)
                else:  # the stack may be too large, or one candidate to blame
                    half = len(members) // 2
                    waiting += [members[half:], members[:half]]
                continue
            stack.finish(error_score)
            yield stack


def _stacks(tasks: list[Task], data: TrainingData, error_score: Any) -> Iterator[list[Task]]:
    """The tasks of each stack."""
    groups: dict[Any, list[Task]] = {}
    for task in tasks:
        try:
            data.assign(task)
            groups.setdefault(_stack_key(task, data), []).append(task)
        except Exception as error:
            fail([task], error, error_score)
    n, d = data.X.shape
    for (solver, batch, *_), members in groups.items():
        chains = _chains(members)  # of one split each: few splits are few columns of weights
        column_bytes = _BYTES_OF_COLUMN * n * len({id(task.share) for task in members})
        k, longest = len(data.targets.classes), max(map(len, chains))
        kept_bytes = column_bytes // len(chains) + 8 * (longest - 1) * k * (d + 1)
        wide = members[0].is_wide
        solvers = {solver, "newton"} if members[0].method.newton_after else {solver}
        limit = min(
            max_models(solver, k, d + 1, batch or n, kept_bytes, is_wide=wide) for solver in solvers
        )
        for positions in np.array_split(np.arange(len(chains)), -(-len(chains) // limit)):
            yield [task for position in positions for task in chains[position]]


def _chains(tasks: list[Task]) -> list[list[Task]]:
    """Tasks whose models train one after the other, from strong to weak penalties."""
    chains: dict[Any, list[Task]] = {}
    for task in sorted(tasks, key=lambda task: (task.split, float(task.candidate.estimator.C))):
        chains.setdefault(task.chain, []).append(task)
    return list(chains.values())


def _stack_key(task: Task, data: TrainingData) -> tuple[Any, ...]:
    """How a task is trained, the size of its batches, and whatever models of a stack agree on."""
    params, n, targets = task.candidate.hyperparameters, len(task.share.order), data.targets
    rows = data.rows_for(task.candidate.estimator)
    k = len(targets.classes)
    task.is_wide = rows.backend.is_wide
    size = Size(n, rows.n_features, k, rows.values_per_row, rows.is_on_disk, task.is_wide)
    task.method, batch = choose(params, size), batch_size(params, n)
    # Batches that hold all rows of a fold hold all rows of the data.
    key: tuple[Any, ...] = task.method.solver, 0 if batch == n else batch, -(-n // batch)
    key = *key, task.method.first_epochs, task.candidate.kind
    if task.method.solver != "sgd":  # the curvature of all models is of one kind
        key = *key, params.has_lasso
    if targets.values.ndim == 2 and params.class_weight is not None:  # then in the targets
        balanced = isinstance(params.class_weight, str)
        key = *key, repr(params.class_weight), task.share.order.tobytes() if balanced else None
    return key


def max_models(
    solver: str, k: int, d: int, batch_size: int, kept_bytes: int, *, is_wide: bool = False
) -> int:
    """How many models fit the budget that train side by side; d includes the constant.

    `kept_bytes`, per model, is what weights of rows and those who have been before it take. Where
    the backend is wide, more models are worth more than matrices for each of their classes.
    """
    others = 16 * k * batch_size + kept_bytes
    if solver == "sgd":
        return max(1, _BUDGET // (_BYTES_OF_SGD * k * d + others))
    if solver == "newton":  # a Hessian, and the blocks that it is made of
        return max(1, _BUDGET // (24 * (k * d) ** 2 + 3 * others))
    limit = (_WIDE_BUDGET if is_wide else _BUDGET) // (_BYTES_OF_LBFGS * k * d + others)
    blocks = blocks_per_model(1, k, d) * d * d
    if is_wide:
        blocks = min(blocks, d * d)
    return max(1, min(limit, MOST_ENTRIES // blocks) if blocks else limit)


def _train(tasks: list[Task], data: TrainingData) -> Stack:
    start = time.time()
    first, methods = tasks[0].candidate.estimator, [task.method for task in tasks]
    parameters = [task.candidate.hyperparameters for task in tasks]
    shares = {id(task.share): task.share for task in tasks}
    places = {key: place for place, key in enumerate(shares)}
    columns = np.array([places[id(task.share)] for task in tasks])
    problem, _ = pose(data.rows_for(first), list(shares.values()), columns, parameters)
    rng, validation = clone(first)._new_rng(), None
    if first.early_stopping:
        rng.integers(np.iinfo(np.int32).max)  # as the split has drawn
        orders = [task.validation_rows for task in tasks]
        validation = pose_validation(problem, problem.data, data.targets, data.weight, orders)
    n_rows = np.array([len(task.share.order) for task in tasks])
    watch = Watch(problem, parameters, methods, validation)
    position = {id(task): j for j, task in enumerate(tasks)}
    chains = [[position[id(task)] for task in chain] for chain in _chains(tasks)]
    with suppress(DivergedError):
        epochs = run(methods, parameters, problem, State.start(problem), rng, n_rows, chains)
        train(epochs, watch.consumers, watch.reasons)
    n_epochs = np.array([watch.record.n_iter(j) for j in range(len(tasks))])
    for task, part in zip(tasks, n_epochs / max(1, n_epochs.sum()), strict=True):
        task.fit_time += float(part) * (time.time() - start)
    return Stack(data, tasks, methods, problem, watch)

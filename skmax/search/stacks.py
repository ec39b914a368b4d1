"""Stacks of models: which tasks train together, their training, and the models that come of it.

Whatever the search knows of how SoftmaxRegression trains is in this file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from traceback import format_exception
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
from skmax.objective import logit_chunks
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
# Per row and column of row weights: 14 measured while it is made, 8 for its copy in the problem.
_BYTES_OF_COLUMN = 24
# Parameters in which the models of a stack may differ.
_PER_MODEL = {
    *("C", "l1_ratio", "learning_rate", "momentum", "label_smoothing", "class_weight"),
    *("max_iter", "schedule", "tol", "n_iter_no_change", "validation_fraction"),
}


@dataclass
class Task:
    """One candidate on one split."""

    candidate: int
    split: int
    parameters: dict[str, Any]  # of the candidate
    estimator: Any  # with these parameters, never fitted itself
    context: Any  # of its callbacks
    method: Any = None  # how it is trained
    share: Any = None  # the rows that it learns from
    validation_rows: Any = None  # those that stop it early
    present: Any = None  # which classes its rows have, bool
    model: Any = None  # the fitted one, until it is scored
    error: str | None = None  # why there is none
    fit_time: float = 0.0

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Those of the estimator."""
        return Hyperparameters.of(self.estimator)


def fail(tasks: list[Task], error: Exception, error_score: Any) -> None:
    """Record why tasks have no model; or raise it, with the parameters of the first of them."""
    if error_score == "raise":
        n_others = len({task.candidate for task in tasks}) - 1
        if (candidate := f"Candidate: {tasks[0].parameters}") not in str(error):
            error.add_note(candidate + f", fitted with {n_others} others" * (n_others > 0))
        raise error
    for task in tasks:
        task.error = "".join(format_exception(error))


class StackedModel(SoftmaxRegression):
    """A model of a stack, with its logits of some rows."""

    cached_logits: Sequence[tuple[Any, Any]] = ()

    def _map_logits(self, X: Any, method: str, function: Any) -> Any:
        for rows, logits in self.cached_logits:
            if X is rows:
                return function(get_namespace(logits)[0], logits)
        return super()._map_logits(X, method, function)


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
        estimator = task.estimator
        estimator._validate_params()
        order = np.arange(self.X.shape[0])
        if self.train_rows is not None:
            order = self.train_rows[task.split]
        task.present = np.ones(len(self.targets.classes), dtype=bool)
        if self.y.ndim == 1 or self.y.shape[1] == 1:
            task.present = np.bincount(self.targets.labels[order], minlength=task.present.size) > 0
        key: tuple[Any, ...] = task.split, repr(estimator.class_weight)
        if estimator.early_stopping:
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

    tasks: list[Task]
    methods: list[Method]
    problem: Problem
    watch: Watch

    def finish(self, data: TrainingData, error_score: Any) -> None:
        """Give the tasks their models, candidate by candidate, or the errors that they end in."""
        for j in sorted(range(len(self.tasks)), key=lambda j: self.tasks[j].candidate):
            try:
                self.tasks[j].model = self._model(j, data)
            except Exception as error:
                fail([self.tasks[j]], error, error_score)

    def _model(self, j: int, data: TrainingData) -> StackedModel:
        task, errors = self.tasks[j], self.watch.divergence.errors
        if j in errors:
            raise DivergedError(f"{errors[j]} Candidate: {task.parameters}")
        n_classes, solver = int(np.sum(~self.problem.masked[j])), self.methods[j].solver
        warn_unless_good(self.watch.ending(j), task.hyperparameters, solver, n_classes)
        model = StackedModel(**task.estimator.get_params(deep=False))
        if hasattr(task.estimator, "_metadata_request"):
            model._metadata_request = deepcopy(task.estimator._metadata_request)
        weights = self.watch.weights(j)
        model.__dict__.update(
            data.attributes,
            classes_=data.targets.classes[task.present],
            solver_=self.methods[j].solver,
            **fitted.curves(self.watch, j),
            **fitted.coefficients(data.X, self.problem, weights, j, task.present),
        )
        return model

    def logits(self, models: Sequence[int], X: Any) -> Any:
        """Logits by models of one split, in one pass, of shape (n, len(models), its classes)."""
        problem, backend = self.problem, self.problem.backend
        X = check_X(self.tasks[models[0]].model, X)
        rows = source(X, backend, float_dtype_for(X))
        rows = rows.with_(shift=problem.data.shift, dtype=problem.data.dtype)
        weights = [self.watch.weights(j) for j in models]
        coef, intercept = (backend.xp.concat(list(arrays)) for arrays in zip(*weights, strict=True))
        chunks = logit_chunks(rows, coef, intercept, np.arange(rows.n_samples))
        logits = backend.xp.concat([self._as_fitted(models, chunk) for chunk in chunks])
        on_host = sparse.issparse(X) or isinstance(X, np.ndarray)
        return backend.to_numpy(logits) if on_host else logits

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
    """Train the tasks, in as few stacks as there can be; their models are set."""
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
            stack.finish(data, error_score)
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
        members.sort(key=lambda task: task.split)  # few splits per stack are few columns of weights
        column_bytes = _BYTES_OF_COLUMN * n * len({id(task.share) for task in members})
        sizes = len(data.targets.classes), d + 1, batch or n, column_bytes // len(members)
        limit = max_models(solver, *sizes)
        for positions in np.array_split(np.arange(len(members)), -(-len(members) // limit)):
            yield [members[position] for position in positions]


def _stack_key(task: Task, data: TrainingData) -> tuple[Any, ...]:
    """How a task is trained, the size of its batches, and whatever models of a stack agree on."""
    params, n, targets = task.hyperparameters, len(task.share.order), data.targets
    rows = data.rows_for(task.estimator)
    size = Size(n, rows.n_features, len(targets.classes), rows.values_per_row)
    task.method, batch = choose(params, size), batch_size(params, n)
    shared = {k: v for k, v in task.estimator.get_params(deep=False).items() if k not in _PER_MODEL}
    # Batches that hold all rows of a fold hold all rows of the data.
    key: tuple[Any, ...] = task.method.solver, 0 if batch == n else batch, -(-n // batch)
    key = *key, task.method.first_epochs, joblib.hash(shared)
    if task.method.solver != "sgd":  # the curvature of all models is of one kind
        key = *key, params.has_lasso
    if targets.values.ndim == 2 and params.class_weight is not None:  # then in the targets
        balanced = isinstance(params.class_weight, str)
        key = *key, repr(params.class_weight), task.share.order.tobytes() if balanced else None
    return key


def max_models(solver: str, k: int, d: int, batch_size: int, column_bytes: int) -> int:
    """How many models fit the budget; d includes the constant, `column_bytes` are per model."""
    others = 16 * k * batch_size + column_bytes
    if solver == "sgd":
        return max(1, _BUDGET // (_BYTES_OF_SGD * k * d + others))
    if solver == "newton":  # a Hessian, and the blocks that it is made of
        return max(1, _BUDGET // (24 * (k * d) ** 2 + 3 * others))
    limit = _BUDGET // (_BYTES_OF_LBFGS * k * d + others)
    blocks = blocks_per_model(1, k, d) * d * d
    return max(1, min(limit, MOST_ENTRIES // blocks, _BUDGET // (24 * blocks)) if blocks else limit)


def _train(tasks: list[Task], data: TrainingData) -> Stack:
    start = time.time()
    first, methods = tasks[0].estimator, [task.method for task in tasks]
    parameters = [task.hyperparameters for task in tasks]
    shares = {id(task.share): task.share for task in tasks}
    columns = np.array([list(shares).index(id(task.share)) for task in tasks])
    problem, _ = pose(data.rows_for(first), list(shares.values()), columns, parameters)
    rng, validation = clone(first)._new_rng(), None
    if first.early_stopping:
        rng.integers(np.iinfo(np.int32).max)  # as the split has drawn
        orders = [task.validation_rows for task in tasks]
        validation = pose_validation(problem, problem.data, data.targets, data.weight, orders)
    n_rows = np.array([len(task.share.order) for task in tasks])
    watch = Watch(problem, parameters, methods, validation)
    with suppress(DivergedError):
        epochs = run(methods, parameters, problem, State.start(problem), rng, n_rows)
        train(epochs, watch.consumers, watch.reasons)
    n_epochs = np.array([watch.record.n_iter(j) for j in range(len(tasks))])
    for task, part in zip(tasks, n_epochs / max(1, n_epochs.sum()), strict=True):
        task.fit_time += float(part) * (time.time() - start)
    return Stack(tasks, methods, problem, watch)

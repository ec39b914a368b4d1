"""Consumers of epochs: what is remembered of training, and when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from skmax.backends import Array, Backend, rounding_unit
from skmax.ending import Ending, Reason
from skmax.hyperparameters import Hyperparameters
from skmax.objective import evaluate
from skmax.policy import Method
from skmax.problem import MASKED_LOGIT, Epoch, Problem, State
from skmax.solvers.schedules import ENDING
from skmax.solvers.sgd import with_exact_zeros
from skmax.training import Consumer

# A loss per row below which shares of it count for nothing where there is no penalty: the loss of
# classes that can be separated then goes to zero, and no share of it is ever small enough.
_LEAST_LOSS = 1e-3
# Distances to the optimum that rounding errors alone may make, in units of the precision.
_ROUNDINGS = 16


class Weights(NamedTuple):
    """Copies of the weights of a model, of shapes (k, d) and (k,)."""

    coef: Array
    intercept: Array

    @classmethod
    def copy(cls, backend: Backend, coef: Array, intercept: Array) -> Weights:
        """Copies that training does not overwrite."""
        return cls(backend.copy(coef), backend.copy(intercept))


@dataclass(frozen=True)
class _Snapshot:
    """What is known after an epoch: replaced at once, since Ctrl-C may come any time."""

    models: np.ndarray
    weights: Weights  # of these models, stacked
    n_iter: np.ndarray  # of all models


class Record(Consumer):
    """The curves of every model, and its latest weights.

    Attributes
    ----------
    learning_rate : ndarray of shape (m,)
        The rates last used.
    last : Epoch or None
        The last epoch itself, to be looked at only once training is over.
    """

    def __init__(self, problem: Problem):
        self.last: Epoch | None = None
        m = problem.n_models
        self._backend = problem.backend
        self._loss: list[list[float]] = [[] for _ in range(m)]
        self._accuracy: list[list[float]] = [[] for _ in range(m)]
        self._departed: dict[int, Weights] = {}
        self._snapshot: _Snapshot | None = None
        self.learning_rate = np.full(m, np.nan)

    def __call__(self, epoch: Epoch) -> Literal[False]:
        """Take down the epoch."""
        self.last = epoch
        n_iter = np.zeros(len(self._loss), dtype=int)
        if self._snapshot is not None:
            n_iter = self._snapshot.n_iter.copy()
            if not np.array_equal(self._snapshot.models, epoch.models):
                self._part(self._snapshot, epoch.models)
        self.learning_rate[epoch.models] = epoch.learning_rate
        for position, model in enumerate(epoch.models):
            self._loss[model].append(float(epoch.loss[position]))
            self._accuracy[model].append(float(epoch.accuracy[position]))
        n_iter[epoch.models] += 1
        weights = Weights.copy(self._backend, epoch.state.coef, epoch.state.intercept)
        self._snapshot = _Snapshot(epoch.models, weights, n_iter)
        return False

    def _part(self, before: _Snapshot, models: np.ndarray) -> None:
        """Keep the weights of models that are no longer among those at hand."""
        staying, (coef, intercept) = set(models.tolist()), before.weights
        for position, model in enumerate(before.models.tolist()):
            if model not in staying:
                weights = coef[position, ...], intercept[position, ...]
                self._departed[model] = Weights.copy(self._backend, *weights)

    def n_iter(self, model: int) -> int:
        """The epochs that a model has completed."""
        return 0 if self._snapshot is None else int(self._snapshot.n_iter[model])

    def loss(self, model: int) -> list[float]:
        """The objective after each of them."""
        return self._loss[model][: self.n_iter(model)]

    def accuracy(self, model: int) -> list[float]:
        """The accuracy after each of them."""
        return self._accuracy[model][: self.n_iter(model)]

    def weights(self, model: int) -> Weights:
        """The weights after the last of them."""
        if self._snapshot is not None:
            for position in np.flatnonzero(self._snapshot.models == model):
                coef, intercept = self._snapshot.weights
                return Weights(coef[position, ...], intercept[position, ...])
        return self._departed[model]


class Validation(Consumer):
    """Accuracy and cross-entropy on validation rows after each epoch.

    Attributes
    ----------
    score, loss : list of list of float
        Per model, one entry per epoch.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self.score: list[list[float]] = [[] for _ in range(problem.n_models)]
        self.loss: list[list[float]] = [[] for _ in range(problem.n_models)]

    def __call__(self, epoch: Epoch) -> Literal[False]:
        """Score the epoch's models."""
        problem = self.problem
        if len(epoch.models) < problem.n_models:
            problem = problem.select(epoch.models)
        losses, scores = evaluate(problem, epoch.state)
        for model, loss, score in zip(epoch.models, losses, scores, strict=True):
            # A class that the model must not know makes it about as large as the masked logit.
            self.loss[model].append(np.inf if loss > -MASKED_LOGIT / 1e15 else float(loss))
            self.score[model].append(float(score))
        return False


class Patience:
    """How many epochs ago each model's value last fell by more than a margin."""

    def __init__(self, n_iter_no_change: np.ndarray):
        self.n_iter_no_change = n_iter_no_change
        self.best = np.full(len(n_iter_no_change), np.inf)
        self.waited = np.zeros(len(n_iter_no_change), dtype=int)

    def exhausted(self, models: np.ndarray, value: np.ndarray, margin: np.ndarray) -> np.ndarray:
        """Which models have waited long enough, after one more epoch with these values."""
        better = value < self.best[models] - margin
        self.best[models] = np.where(better, value, self.best[models])
        self.waited[models] = np.where(better, 0, self.waited[models] + 1)
        return self.waited[models] >= self.n_iter_no_change[models]


class Tolerance(Consumer):
    """Stops a model whose objective has not fallen by a share `tol` for so many epochs.

    With a schedule that ends, its values must also lie within that share of each other: what goes
    up and down at a high rate has not converged, the rest of the schedule brings it to rest.

    Parameters
    ----------
    tol : ndarray of shape (m,)
        The share, per model; 0: that model goes on.
    n_iter_no_change : ndarray of shape (m,)
        The number of epochs.
    ending : ndarray of shape (m,), bool
        Whether the schedule ends.
    """

    reason = Reason.TOLERANCE

    def __init__(self, tol: np.ndarray, n_iter_no_change: np.ndarray, ending: np.ndarray):
        self.tol = tol
        self.ending = ending
        self.patience = Patience(n_iter_no_change)
        self._worst = np.full(len(tol), -np.inf)

    def __call__(self, epoch: Epoch) -> np.ndarray:
        """Stop the models that have stalled."""
        models, patience = epoch.models, self.patience
        best = patience.best[models]
        margin = self.tol[models] * np.where(np.isfinite(best), np.abs(best), 0.0)
        exhausted = patience.exhausted(models, epoch.loss, margin)
        improved = patience.waited[models] == 0
        self._worst[models] = np.where(
            improved, epoch.loss, np.maximum(self._worst[models], epoch.loss)
        )
        settled = self._worst[models] <= patience.best[models] + margin
        return exhausted & (settled | ~self.ending[models]) & (self.tol[models] > 0)


class Converged(Consumer):
    """Stops a model that its solver proves within a share `tol`, of shape (m,), of the optimum.

    Attributes
    ----------
    gap : ndarray of shape (m,)
        The solver's last bounds; not a number where it has none.
    """

    reason = Reason.CONVERGED

    def __init__(self, problem: Problem, tol: np.ndarray):
        rounding = _ROUNDINGS * rounding_unit(problem.data.dtype)
        self.tol = np.where(tol > 0, np.maximum(tol, rounding), 0.0)
        self.gap = np.full(len(tol), np.nan)
        self._least = np.where((problem.l1 > 0) | (problem.l2 > 0), 0.0, _LEAST_LOSS)

    def __call__(self, epoch: Epoch) -> np.ndarray | Literal[False]:
        """Stop the models that have converged."""
        if epoch.gap is None:
            return False
        self.gap[epoch.models] = epoch.gap
        tol, loss = self.tol[epoch.models], np.maximum(epoch.loss, self._least[epoch.models])
        return (epoch.gap <= tol * loss) & (tol > 0)


class Stalled(Consumer):
    """Stops the models whose solver can get no further."""

    reason = Reason.STALLED

    def __call__(self, epoch: Epoch) -> np.ndarray | Literal[False]:
        """Stop the models that have stalled."""
        return False if epoch.stalled is None else epoch.stalled


class EarlyStopping(Consumer):
    """Stops a model whose validation score has stalled."""

    reason = Reason.EARLY_STOPPING

    def __init__(
        self,
        problem: Problem,
        validation: Validation,
        tol: np.ndarray,
        n_iter_no_change: np.ndarray,
    ):
        self.validation = validation
        self.tol = tol
        self.patience = Patience(n_iter_no_change)
        self._backend = problem.backend
        self._best: dict[int, tuple[float, Weights]] = {}

    def __call__(self, epoch: Epoch) -> np.ndarray:
        """Keep the weights that score best, and stop the models that have stalled."""
        score = np.array([self.validation.score[model][-1] for model in epoch.models])
        for position, model in enumerate(epoch.models):
            if model not in self._best or score[position] > self._best[model][0]:
                state = epoch.state.coef[position, ...], epoch.state.intercept[position, ...]
                self._best[model] = score[position], Weights.copy(self._backend, *state)
        tol = self.tol[epoch.models]
        margin = np.where(np.isfinite(self.patience.best[epoch.models]), tol, 0.0)
        return self.patience.exhausted(epoch.models, -score, margin) & (tol > 0)

    def weights(self, model: int) -> Weights:
        """The weights that scored best."""
        return self._best[model][1]


class Planned(Consumer):
    """Stops every model after as many epochs as were planned for it, of shape (m,)."""

    def __init__(self, max_iter: np.ndarray, reason: Reason):
        self.reason = reason
        self._left = max_iter.astype(float)

    def __call__(self, epoch: Epoch) -> np.ndarray:
        """Stop the models whose last epoch this was."""
        self._left[epoch.models] -= 1
        return self._left[epoch.models] <= 0


class DivergedError(ValueError):
    """No model of a stack is left whose training has not diverged."""


class Divergence(Consumer):
    """Stops the models that have diverged, and raises when they all have.

    Attributes
    ----------
    errors : dict of int to str
        What happened, with the learning rate, by model.
    """

    reason = Reason.DIVERGED

    def __init__(self, parameters: Sequence[Hyperparameters]) -> None:
        self.errors: dict[int, str] = {}
        self._parameters = parameters
        self._n_epochs = np.zeros(len(parameters), dtype=int)

    def __call__(self, epoch: Epoch) -> np.ndarray | Literal[False]:
        """Take down which models have diverged."""
        self._n_epochs[epoch.models] += 1
        if np.count_nonzero(epoch.diverged) == 0:
            return False
        for position in np.flatnonzero(epoch.diverged):
            model = int(epoch.models[position])
            self.errors[model] = (
                f"Training diverged in epoch {self._n_epochs[model]} with "
                f"learning_rate={epoch.learning_rate[position]:g}: the objective is "
                f"{epoch.loss[position]:g}. {_remedy(self._parameters[model])}"
            )
        if len(self.errors) == len(self._parameters):
            raise DivergedError(self.errors[int(epoch.models[0])])
        return epoch.diverged


def _remedy(params: Hyperparameters) -> str:
    if params.learning_rate != "auto":
        return "Use a smaller learning_rate, or learning_rate='auto'."
    if params.preconditioner is None:
        return "No smaller rate did better: rescale X, or use preconditioner='diagonal'."
    return (
        "No smaller rate did better: look for values of X that are far larger than all others, and "
        "use warm_start=False if this was a warm start."
    )


class Report(Consumer):
    """Prints a line per epoch of the first model, as long as it trains."""

    def __init__(self, record: Record, validation: Validation | None, first_epoch: int = 1):
        self.record, self.validation = record, validation
        self._before = first_epoch - 1

    def __call__(self, epoch: Epoch) -> Literal[False]:
        """Print what the record has of the first model."""
        if epoch.models[0] != 0:
            return False
        number = self._before + self.record.n_iter(0)
        line = f"Epoch {number}: loss {epoch.loss[0]:.6f}, accuracy {epoch.accuracy[0]:.4f}"
        if self.validation is not None:
            line += (
                f", validation loss {self.validation.loss[0][-1]:.6f}"
                f", validation accuracy {self.validation.score[0][-1]:.4f}"
            )
        print(line)
        return False


class Watch:
    """The consumers of a fit, of one model or of a stack.

    Parameters
    ----------
    problem : Problem
        What is minimised.
    parameters : sequence of Hyperparameters, of length m
        They agree on the solver, `early_stopping` and `verbose`.
    methods : sequence of Method, of length m
        How the models are trained; they agree on the solver.
    held_out : Problem or None
        The same models on validation rows.
    first_epoch : int
        The number that the first epoch is reported by.

    Attributes
    ----------
    record : Record
        The curves.
    validation : Validation or None
        The curves on validation rows, where there are any.
    divergence : Divergence
        What has diverged.
    consumers : list of Consumer
        All of them, in the order in which they want to be asked.
    reasons : list of Reason
        Why training ended, per model.
    """

    def __init__(
        self,
        problem: Problem,
        parameters: Sequence[Hyperparameters],
        methods: Sequence[Method],
        held_out: Problem | None = None,
        *,
        first_epoch: int = 1,
    ):
        first, solver = parameters[0], methods[0].solver
        self.record = Record(problem)
        self.validation = None if held_out is None else Validation(held_out)
        self.divergence = Divergence(parameters)
        self.reasons = [Reason.INTERRUPTED] * problem.n_models
        self._problem, self._is_noisy = problem, solver == "sgd"
        self._final: dict[int, Weights] = {}
        tol = np.array([float(params.tol) for params in parameters])
        self._converged = Converged(problem, tol)
        self._best: EarlyStopping | None = None
        self.consumers: list[Consumer] = [self.divergence]
        if self.validation is not None:
            self.consumers.append(self.validation)
        self.consumers.append(self._converged)
        max_iter = np.array([method.max_iter for method in methods])
        patience = np.array(
            [
                params.n_iter_no_change or max(10, planned // 10)
                for params, planned in zip(parameters, max_iter, strict=True)
            ]
        )
        ending = np.array([solver == "sgd" and params.schedule in ENDING for params in parameters])
        if first.early_stopping and self.validation is not None:
            self._best = EarlyStopping(problem, self.validation, tol, patience)
            self.consumers.append(self._best)
        elif solver == "sgd":
            self.consumers.append(Tolerance(tol, patience, ending))
        for reason, mask in ((Reason.SCHEDULE, ending), (Reason.CAP, ~ending)):
            if mask.any():
                self.consumers.append(Planned(np.where(mask, max_iter, np.inf), reason))
        self.consumers.append(Stalled())
        self.consumers.append(self.record)  # an epoch that it knows of is complete
        if first.verbose:
            self.consumers.append(Report(self.record, self.validation, first_epoch))

    def weights(self, model: int) -> Weights:
        """The weights that training ends with: the latest, or those that scored best.

        Under L1, those that the noise of minibatches keeps from zero are zero.
        """
        if model not in self._final:
            weights = (self.record if self._best is None else self._best).weights(model)
            settles = self._is_noisy and self._problem.l1[model] > 0
            self._final[model] = self._settled(model, weights) if settles else weights
        return self._final[model]

    def _settled(self, model: int, weights: Weights) -> Weights:
        coef, intercept = (part[None, ...] for part in weights)
        state = State(coef, intercept, coef, intercept).at_rest(self._problem.backend)
        state = with_exact_zeros(self._problem.select(np.array([model])), state)
        return Weights(state.coef[0, ...], state.intercept[0, ...])

    def ending(self, model: int) -> Ending:
        """How the training of a model ended."""
        return Ending(
            self.reasons[model],
            self.record.n_iter(model),
            self.record.loss(model)[-1],
            float(self._converged.gap[model]),
        )

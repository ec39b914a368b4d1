"""Consumers of epochs: what is remembered of training, and when it stops."""

from __future__ import annotations

import numpy as np

from skmax.objective import evaluate
from skmax.problem import MASKED_LOGIT, Array, Epoch, Problem
from skmax.training import Consumer

# A loss per row below which shares of it count for nothing: without a penalty, the loss of classes
# that can be separated goes to zero, and no share of it is ever small enough.
_LEAST_LOSS = 1e-3


class Weights:
    """Copies of the weights of every model.

    Attributes
    ----------
    kept : list of tuples (coef, intercept), arrays of shapes (k, d) and (k,)
        Per model; None before the first copy.
    """

    def __init__(self, problem: Problem):
        self.kept: list[tuple[Array, Array] | None] = [None] * problem.n_models
        self._xp = problem.backend.xp
        self._together: set[int] = set()

    def _copy(self, array: Array) -> Array:
        return self._xp.asarray(array, copy=True)

    def keep(self, epoch: Epoch, position: int) -> None:
        """Copy the weights of the model at a position in the epoch's stack."""
        coef = self._copy(epoch.state.coef[position, ...])
        intercept = self._copy(epoch.state.intercept[position, ...])
        self.kept[epoch.models[position]] = coef, intercept  # at once: Ctrl-C may come any time

    def keep_all(self, epoch: Epoch) -> None:
        """Copy the weights of all models at once: on a GPU, every copy takes a launch."""
        staying = set(epoch.models.tolist())
        for model in self._together - staying:  # would keep the copies of all others, too
            coef, intercept = map(self._copy, self.kept[model] or ())
            self.kept[model] = coef, intercept
        self._together = staying
        coef, intercept = self._copy(epoch.state.coef), self._copy(epoch.state.intercept)
        for position, model in enumerate(epoch.models):
            self.kept[model] = coef[position, ...], intercept[position, ...]


class Record(Consumer):
    """The curves of every model, and its latest weights.

    Attributes
    ----------
    loss, accuracy : list of list of float
        Per model, one entry per epoch.
    learning_rate : ndarray of shape (m,)
        The rates last used.
    weights : Weights
        After the last epoch.
    last : Epoch or None
        The last epoch itself, to be looked at only once training is over.
    """

    def __init__(self, problem: Problem):
        self.last: Epoch | None = None
        self.loss: list[list[float]] = [[] for _ in range(problem.n_models)]
        self.accuracy: list[list[float]] = [[] for _ in range(problem.n_models)]
        self.learning_rate = np.full(problem.n_models, np.nan)
        self.weights = Weights(problem)

    def __call__(self, epoch: Epoch) -> bool:
        """Take down the epoch."""
        self.last = epoch
        self.learning_rate[epoch.models] = epoch.learning_rate
        self.weights.keep_all(epoch)
        for position, model in enumerate(epoch.models):
            self.loss[model].append(float(epoch.loss[position]))
            self.accuracy[model].append(float(epoch.accuracy[position]))
        return False


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

    def __call__(self, epoch: Epoch) -> bool:
        """Score the epoch's models."""
        problem = self.problem
        if len(epoch.models) < problem.n_models:
            problem = problem.select(epoch.models)
        losses, scores = evaluate(problem, epoch.state)
        for model, loss, score in zip(epoch.models, losses, scores, strict=True):
            masked = loss > -MASKED_LOGIT / len(problem.order) / 2
            self.loss[model].append(np.inf if masked else float(loss))
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
    """Stops a model that its solver finds within a share `tol`, of shape (m,), of the optimum.

    Attributes
    ----------
    gap : ndarray of shape (m,)
        The solver's last estimates; not a number where it makes none.
    done : ndarray of shape (m,), bool
        Which models have got there.
    """

    def __init__(self, tol: np.ndarray):
        self.tol = tol
        self.gap = np.full(len(tol), np.nan)
        self.done = np.zeros(len(tol), dtype=bool)

    def __call__(self, epoch: Epoch) -> np.ndarray | bool:
        """Stop the models that have converged."""
        if epoch.gap is None:
            return False
        self.gap[epoch.models] = epoch.gap
        tol = self.tol[epoch.models]
        enough = tol * np.maximum(epoch.loss, _LEAST_LOSS)
        self.done[epoch.models] = (epoch.gap <= enough) & (tol > 0)
        return self.done[epoch.models]


class EarlyStopping(Consumer):
    """Stops a model whose validation score has stalled.

    Attributes
    ----------
    weights : Weights
        Those that scored best.
    """

    def __init__(
        self,
        problem: Problem,
        validation: Validation,
        tol: np.ndarray,
        n_iter_no_change: np.ndarray,
    ):
        self.weights = Weights(problem)
        self.validation = validation
        self.tol = tol
        self.patience = Patience(n_iter_no_change)
        self._best_score = np.full(problem.n_models, -np.inf)

    def __call__(self, epoch: Epoch) -> np.ndarray:
        """Keep the weights that score best, and stop the models that have stalled."""
        score = np.array([self.validation.score[model][-1] for model in epoch.models])
        for position, model in enumerate(epoch.models):
            if score[position] > self._best_score[model]:
                self._best_score[model] = score[position]
                self.weights.keep(epoch, position)
        tol = self.tol[epoch.models]
        margin = np.where(np.isfinite(self.patience.best[epoch.models]), tol, 0.0)
        return self.patience.exhausted(epoch.models, -score, margin) & (tol > 0)


class Planned(Consumer):
    """Stops every model after as many epochs as were planned for it, of shape (m,)."""

    def __init__(self, max_iter: np.ndarray):
        self._max_iter, self._epoch = max_iter, 0

    def __call__(self, epoch: Epoch) -> np.ndarray:
        """Stop the models whose last epoch this was."""
        self._epoch += 1
        return self._max_iter[epoch.models] <= self._epoch


class DivergedError(ValueError):
    """No model of a stack is left whose training has not diverged."""


class Divergence(Consumer):
    """Stops the models that have diverged, and raises when they all have.

    Attributes
    ----------
    errors : dict of int to str
        What happened, with the learning rate, by model.
    """

    def __init__(self) -> None:
        self.errors: dict[int, str] = {}
        self._epoch = 0

    def __call__(self, epoch: Epoch) -> np.ndarray:
        """Take down which models have diverged."""
        self._epoch += 1
        for position in np.flatnonzero(epoch.diverged):
            self.errors[int(epoch.models[position])] = (
                f"Training diverged in epoch {self._epoch} with "
                f"learning_rate={epoch.learning_rate[position]:g}: the objective is "
                f"{epoch.loss[position]:g}. "
                "Use a smaller learning_rate, or learning_rate='auto'."
            )
        if epoch.diverged.all():
            raise DivergedError(self.errors[int(epoch.models[0])])
        return epoch.diverged


class Report(Consumer):
    """Prints a line per epoch."""

    def __init__(self, record: Record, validation: Validation | None):
        self.record = record
        self.validation = validation

    def __call__(self, epoch: Epoch) -> bool:  # noqa: ARG002
        """Print what the record has of the first model."""
        loss, accuracy = self.record.loss[0], self.record.accuracy[0]
        line = f"Epoch {len(loss)}: loss {loss[-1]:.6f}, accuracy {accuracy[-1]:.4f}"
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
    held_out : Problem or None
        The same models on validation rows.
    early_stopping : bool
        Whether validation stops training.
    tol : ndarray of shape (m,)
        As `SoftmaxRegression` has it, per model.
    n_iter_no_change, max_iter : ndarray of shape (m,)
        Epochs to wait, and epochs planned.
    ending : ndarray of shape (m,), bool
        Whether the schedule ends.
    verbose : int
        Whether to print what the first model does.

    Attributes
    ----------
    record : Record
        The curves.
    validation : Validation or None
        The curves on validation rows, where there are any.
    weights : Weights
        The ones that the fit ends with.
    converged : Converged
        Whether the solver has found the optimum.
    divergence : Divergence
        What has diverged.
    consumers : list of Consumer
        All of them, in the order in which they want to be asked.
    """

    def __init__(
        self,
        problem: Problem,
        held_out: Problem | None,
        *,
        early_stopping: bool,
        tol: np.ndarray,
        n_iter_no_change: np.ndarray,
        max_iter: np.ndarray,
        ending: np.ndarray,
        verbose: int,
    ):
        self.record = Record(problem)
        self.weights = self.record.weights
        self.validation = None if held_out is None else Validation(held_out)
        self.divergence, self.converged = Divergence(), Converged(tol)
        self.consumers: list[Consumer] = [self.divergence]
        if self.validation is not None:
            self.consumers.append(self.validation)
        self.consumers.append(self.converged)
        if early_stopping and self.validation is not None:
            stopping = EarlyStopping(problem, self.validation, tol, n_iter_no_change)
            self.weights = stopping.weights
            self.consumers.append(stopping)
        else:
            self.consumers.append(Tolerance(tol, n_iter_no_change, ending))
        self.consumers.append(Planned(max_iter))
        self.consumers.append(self.record)  # an epoch that it knows of is complete
        if verbose:
            self.consumers.append(Report(self.record, self.validation))

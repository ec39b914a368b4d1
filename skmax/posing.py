"""From what estimators ask for to a stacked problem and its solver, and back to attributes.

`parameters` are estimators whose hyperparameters are read, one per model of the stack.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skmax.backends import Rows
from skmax.problem import Epoch, Problem, State
from skmax.solvers.lbfgs import LBFGS, affordable, polished
from skmax.solvers.learning_rate import raced, slow
from skmax.solvers.preconditioner import Moments, precondition
from skmax.solvers.schedules import ENDING
from skmax.solvers.sgd import SGD
from skmax.stopping import Watch, Weights
from skmax.validation import Targets, check_classes, like

# Iterations of L-BFGS where nobody says; and epochs that come first, and iterations, where it
# finishes what SGD has begun.
_LBFGS_ITERATIONS, _FIRST_EPOCHS, _POLISHING_ITERATIONS = 1000, 3, 200
# The share of nonzero values in X from which SGD is worth beginning with.
_DENSITY = 0.05
# Models that race for their learning rates at a time: each runs several times.
_RACING = 32


@dataclass(frozen=True)
class Seen:
    """What is known of all rows that a model has been fitted to.

    Attributes
    ----------
    weight_sum : float
        The sum of their weights.
    moments : Moments or None
        Of their features, where the preconditioner needs them.
    """

    weight_sum: float = 0.0
    moments: Moments | None = None


@dataclass(frozen=True)
class Share:
    """The rows that a model learns from, and what they weigh.

    Attributes
    ----------
    order : ndarray of shape (n,)
        Indices of the rows.
    targets : Targets
        Of all rows; those of probabilities have the class weights applied.
    weight : ndarray of shape (n_samples,) or None
        Class weights included. None: every row weighs 1.
    score_weight : ndarray of shape (n_samples,) or None
        Without class weights. None: the same.
    masked : ndarray of shape (n_classes,), bool
        True where a class has no weight.
    """

    order: np.ndarray
    targets: Targets
    weight: np.ndarray | None
    score_weight: np.ndarray | None
    masked: np.ndarray

    @classmethod
    def of(
        cls,
        targets: Targets,
        weight: np.ndarray | None,
        order: np.ndarray,
        class_weight: Any,
        *,
        complete: bool = True,
    ) -> Share:
        """The share of the rows `order`.

        Parameters
        ----------
        targets : Targets
            Of all rows.
        weight : ndarray of shape (n_samples,) or None
            Of all rows, without class weights.
        order : ndarray of shape (n,)
            Indices of the rows.
        class_weight : dict, "balanced" or None
            As `SoftmaxRegression` has it.
        complete : bool
            Whether no classes may come later.

        Raises
        ------
        ValueError
            Fewer than two classes have weight, or no row has.
        """
        score_weight, row_weight = None, weight
        if class_weight is not None:
            targets, row_weight = targets.weighted(class_weight, weight, order)
            score_weight = np.ones(len(row_weight)) if weight is None else weight
            if not row_weight[order].any():
                raise ValueError(
                    f"With class_weight={class_weight!r}, all {len(order)} rows have weight "
                    "zero: there is nothing to learn from."
                )
        masked = np.zeros(len(targets.classes), dtype=bool)
        if complete:
            masked = check_classes(targets.classes, targets.mass(row_weight, order))
        return cls(order, targets, row_weight, score_weight, masked)

    @property
    def weight_sum(self) -> float:
        """The sum of the weights."""
        return float(len(self.order) if self.weight is None else self.weight[self.order].sum())


def pose(
    data: Rows,
    shares: Sequence[Share],
    columns: np.ndarray,
    parameters: Sequence[Any],
    before: Seen | None = None,
) -> tuple[Problem, Seen]:
    """What a stack of models minimises, and what is known of the rows of its first.

    Parameters
    ----------
    data : Rows
        The data.
    shares : sequence of Share
        The different shares.
    columns : ndarray of shape (m,)
        The position of each model's share.
    parameters : sequence of SoftmaxRegression, of length m
        They agree on intercept and preconditioner.
    before : Seen or None
        What is known of the rows of earlier calls.
    """
    before = Seen() if before is None else before
    order = _union([share.order for share in shares])
    weight_sums = np.array([share.weight_sum for share in shares]) + before.weight_sum
    score_weight = None
    if any(share.score_weight is not None for share in shares):
        kept = [
            share.weight if share.score_weight is None else share.score_weight for share in shares
        ]
        score_weight = _matrix(data.n_samples, order, shares, kept)

    def each(name: str) -> np.ndarray:
        return np.array([float(getattr(asked, name)) for asked in parameters])

    problem = Problem.pose(
        data,
        order,
        shares[0].targets.values,
        sample_weight=_matrix(data.n_samples, order, shares, [share.weight for share in shares]),
        score_weight=score_weight,
        masked=np.stack([share.masked for share in shares])[columns],
        C=each("C"),
        l1_ratio=each("l1_ratio"),
        label_smoothing=each("label_smoothing"),
        fit_intercept=parameters[0].fit_intercept,
        columns=columns,
        weight_sum=weight_sums[columns],
    )
    total = float(weight_sums[0])
    if parameters[0].preconditioner is None:
        return problem, Seen(total)
    moments = Moments.of(problem, None if before.moments is None else before.moments.origin)
    if before.moments is not None:
        moments = before.moments.merged(moments, shares[0].weight_sum / total)
    return precondition(problem, moments), Seen(total, moments)


def pose_validation(
    problem: Problem,
    data: Rows,
    targets: Targets,
    weight: np.ndarray | None,
    orders: Sequence[np.ndarray],
) -> Problem:
    """The plain cross-entropy of the models of a problem on validation rows.

    `orders` has the rows of each model.
    """
    order, m = _union(orders), problem.n_models
    different = {id(rows): rows for rows in orders}
    places = {key: place for place, key in enumerate(different)}
    shares = [Share(rows, targets, weight, None, problem.masked[0]) for rows in different.values()]
    return Problem.pose(
        data,
        order,
        targets.values,
        sample_weight=_matrix(data.n_samples, order, shares, [weight] * len(shares)),
        score_weight=None,
        masked=problem.masked,
        C=np.full(m, np.inf),
        l1_ratio=np.zeros(m),
        label_smoothing=np.zeros(m),
        fit_intercept=problem.fit_intercept,
        columns=np.array([places[id(rows)] for rows in orders]),
        weight_sum=np.ones(m),
    )


def _union(orders: Sequence[np.ndarray]) -> np.ndarray:
    if all(order is orders[0] for order in orders):
        return orders[0]
    return np.unique(np.concatenate(orders))


def _matrix(
    n_samples: int,
    order: np.ndarray,
    shares: Sequence[Share],
    weights: Sequence[np.ndarray | None],
) -> np.ndarray | None:
    """A column of weights for each share, zero for the rows that are not in it; None: all are 1."""
    if all(weight is None for weight in weights) and all(share.order is order for share in shares):
        return None
    matrix = np.zeros((n_samples, len(shares)))
    for column, (share, weight) in enumerate(zip(shares, weights, strict=True)):
        matrix[share.order, column] = 1.0 if weight is None else weight[share.order]
    return matrix


def plan(asked: Any, data: Rows, n_rows: int, n_classes: int, *, fresh: bool = True) -> str:
    """How a model is trained: by "sgd", "lbfgs", or "both", one after the other.

    Parameters
    ----------
    asked : SoftmaxRegression
        Its parameters.
    data : Rows
        The data.
    n_rows, n_classes : int
        Rows that the model learns from, and classes.
    fresh : bool
        Whether it starts from weights of zero.
    """
    if asked.solver == "lbfgs":
        short = (asked.max_iter or _LBFGS_ITERATIONS) <= _FIRST_EPOCHS
        # A step moves all weights: it costs more than a batch of rows with few values.
        dense = data.values_per_row >= _DENSITY * data.n_features
        stretched = asked.preconditioner is None
        return "lbfgs" if short or stretched or not (fresh and dense) else "both"
    nothing_chosen = asked.max_iter is None and asked.learning_rate == "auto"
    if nothing_chosen and asked.preconditioner is not None:
        has_lasso = asked.l1_ratio > 0 and np.isfinite(asked.C)
        if affordable(data, n_rows, n_classes, has_lasso=has_lasso):
            return "both"
    return "sgd"


def solve(
    how: str,
    parameters: Sequence[Any],
    problem: Problem,
    state: State,
    rng: np.random.Generator,
    n_rows: np.ndarray,
) -> tuple[Generator[Epoch, np.ndarray | None, None], np.ndarray]:
    """The solver at work, and the most passes over the data that each model may take.

    Parameters
    ----------
    how : {"sgd", "lbfgs", "both"}
        A result of `plan`.
    parameters : sequence of SoftmaxRegression, of length m
        They agree on the solver, the batch size and whether to shuffle.
    problem : Problem
        What is minimised.
    state : State
        Where to start.
    rng : numpy.random.Generator
        Where the orders of the rows come from.
    n_rows : ndarray of shape (m,)
        How many rows each model learns from.
    """
    lbfgs = parameters[0].solver == "lbfgs"
    most = np.array([asked.max_iter or _LBFGS_ITERATIONS for asked in parameters])
    if how == "lbfgs":
        return LBFGS().epochs(problem, state), most
    if how == "both":
        if lbfgs:  # it takes no notice of the parameters of SGD, and is deterministic
            parameters = [type(asked)() for asked in parameters]
            rng = np.random.Generator(np.random.PCG64(0))
        else:
            most = np.full(len(parameters), _FIRST_EPOCHS + _POLISHING_ITERATIONS)
        solver = sgd(parameters, problem, n_rows, max_iter=_FIRST_EPOCHS)
        solver = replace(solver, retry=np.ones(len(parameters), dtype=bool))
        solver = replace(solver, learning_rate=slow(problem, solver))
        return polished(solver.epochs(problem, state, rng), _FIRST_EPOCHS, problem), most
    solver = sgd(parameters, problem, n_rows)
    rates, auto = solver.learning_rate.copy(), np.flatnonzero(np.isnan(solver.learning_rate))
    for some in np.array_split(auto, -(-len(auto) // _RACING)) if auto.size else ():
        rates[some] = raced(problem.select(some), solver.select(some), rng)
    solver = replace(solver, learning_rate=rates)
    return solver.epochs(problem, state, rng), np.array(solver.max_iter)


def sgd(
    parameters: Sequence[Any], problem: Problem, n_rows: np.ndarray, max_iter: int | None = None
) -> SGD:
    """The SGD that the parameters ask for; rates that are to be found are no numbers.

    A batch has as large a part of all rows as it would have of the rows of one model: then steps
    are as many, and each model sees as many of its own rows in each.
    """
    sizes = np.array([_batch_size(asked, n) for asked, n in zip(parameters, n_rows, strict=True)])
    steps = -(-n_rows // sizes)
    auto = np.array([asked.learning_rate == "auto" for asked in parameters])
    rates = [
        np.nan if asked.learning_rate == "auto" else asked.learning_rate for asked in parameters
    ]
    return SGD(
        learning_rate=np.array(rates, dtype=np.float64),
        momentum=np.array([float(asked.momentum) for asked in parameters]),
        retry=auto,
        schedule=tuple(asked.schedule for asked in parameters),
        max_iter=tuple(
            max_iter or asked.max_iter or SGD.default_epochs(int(n_steps))
            for asked, n_steps in zip(parameters, steps, strict=True)
        ),
        batch_size=max(1, round(len(problem.order) * float(np.mean(sizes / n_rows)))),
        shuffle=parameters[0].shuffle,
    )


def _batch_size(asked: Any, n: int) -> int:
    if asked.batch_size == "auto":
        return min(200, n)
    if asked.batch_size > n:
        warnings.warn(
            f"batch_size={asked.batch_size} is larger than the {n} rows to train on, and is "
            "clipped to that.",
            stacklevel=6,
        )
    return min(asked.batch_size, n)


def watch(
    parameters: Sequence[Any], problem: Problem, validation: Problem | None, max_iter: np.ndarray
) -> Watch:
    """The consumers of a fit."""
    patience = [
        asked.n_iter_no_change or max(10, most // 10)
        for asked, most in zip(parameters, max_iter, strict=True)
    ]
    return Watch(
        problem,
        validation,
        early_stopping=parameters[0].early_stopping,
        tol=np.array([float(asked.tol) for asked in parameters]),
        n_iter_no_change=np.array(patience),
        max_iter=max_iter,
        ending=np.array(
            [asked.solver == "sgd" and asked.schedule in ENDING for asked in parameters]
        ),
        verbose=parameters[0].verbose,
    )


def curves(watch: Watch, model: int = 0) -> dict[str, Any]:
    """The fitted attributes that tell of the training of a model."""
    record, validation = watch.record, watch.validation
    loss, accuracy = record.loss[model], record.accuracy[model]
    # Ctrl-C may come between the scoring of an epoch and its recording.
    scores = None if validation is None else validation.score[model][: len(loss)]
    losses = None if validation is None else validation.loss[model][: len(loss)]
    return {
        "n_iter_": len(loss),
        "learning_rate_": float(record.learning_rate[model]),
        "loss_curve_": list(loss),
        "accuracy_curve_": list(accuracy),
        "best_loss_": min(loss),
        "validation_scores_": scores,
        "validation_loss_curve_": losses,
        "best_validation_score_": None if scores is None else max(scores),
    }


def coefficients(
    X: Any, problem: Problem, weights: Weights, model: int = 0, kept: Any = slice(None)
) -> dict[str, Any]:
    """The fitted attributes that make predictions, where X is, for the classes that are kept."""
    coef, intercept = map(problem.backend.to_numpy, weights.kept[model] or ())
    intercept = intercept.astype(np.float64)
    intercept[problem.masked[model]] = -np.inf
    coef, intercept = coef[kept], intercept[kept]
    if len(coef) == 2:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    anchor = None
    if (shift := problem.data.shift) is not None:
        # What the intercept's own dtype cannot hold is kept beside it.
        change = coef.astype(np.float64) @ shift.astype(np.float64)
        at_shift, intercept = intercept, intercept - change
        rounded = intercept.astype(coef.dtype).astype(np.float64)
        anchor = shift, rounded, np.nan_to_num(at_shift - (rounded + change), neginf=0.0)
    return {
        "coef_": like(X, coef),
        "intercept_": like(X, intercept.astype(coef.dtype)),
        "_anchor": anchor,
    }


def warn_unless_good(
    asked: Any, watch: Watch, max_iter: int, n_classes: int, model: int = 0
) -> None:
    """Warn of a model that knows less than nothing, or has not converged."""
    loss = watch.record.loss[model]
    if asked.early_stopping:
        return
    if loss[-1] > 2 * np.log(n_classes):
        warnings.warn(
            f"The objective ended at {loss[-1]:g}, worse than that of a model which knows "
            f"nothing ({np.log(n_classes):g}): learning_rate={asked.learning_rate} is too large "
            "for these data. Use a smaller one, or learning_rate='auto'.",
            stacklevel=4,
        )
        return
    if asked.tol == 0 or len(loss) < max_iter or len(loss) < 2:
        return
    gap, fall = watch.converged.gap[model], loss[-2] - loss[-1]
    if asked.solver == "lbfgs":
        if not watch.converged.done[model]:
            warnings.warn(
                f"L-BFGS had not converged after {max_iter} passes: it estimates the objective "
                f"to be {gap / loss[-1]:.2g} of itself above its least value, more than "
                f"tol={asked.tol:g}. Increase max_iter or tol.",
                ConvergenceWarning,
                stacklevel=4,
            )
    elif asked.schedule not in ENDING and fall > asked.tol * abs(loss[-2]):
        warnings.warn(
            f"The objective still fell by {fall / loss[-2]:.2g} of itself, more than "
            f"tol={asked.tol:g}, in the last of max_iter={max_iter} epochs. Increase max_iter, "
            "or use a schedule that ends, such as schedule='cosine'.",
            ConvergenceWarning,
            stacklevel=4,
        )

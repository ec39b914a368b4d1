"""Weights become fitted attributes and come back; what a pickle holds.

An estimator holds only plain arrays, numbers and dictionaries of those, so that pickles do not
depend on where in skmax anything lives. Besides the public attributes there are

`_anchor` : tuple (shift, rounded, correction), or None
    Where features are far from zero, the intercept's own dtype cannot hold what it has to: the
    rest is kept beside it, as the logits of a row that equals the shift of the data. It counts
    only while `intercept_` is the one that was fitted, `rounded`.
`_continuation` : dict
    What `partial_fit` goes on with; see `Continuation`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import sparse

from skmax._sklearn import _OF_A_RUNNING_FIT
from skmax.posing import Seen
from skmax.problem import Epoch, Problem, State
from skmax.solvers.preconditioner import Moments
from skmax.stopping import Watch, Weights
from skmax.validation import like, to_host

# Of what a pickled estimator holds; to be raised whenever that changes.
FORMAT = 1
_FORMAT_KEY = "_skmax_format"


def publish(estimator: Any, attributes: dict[str, Any]) -> None:
    """Set fitted attributes all at once: an interrupt finds none of them set, or all.

    Names of features that an earlier fit has left are dropped.
    """
    others = {name: value for name, value in vars(estimator).items() if name != "feature_names_in_"}
    estimator.__dict__ = {**others, **attributes}


def packed(state: dict[str, Any]) -> dict[str, Any]:
    """The state of an estimator that is to be pickled: whatever runs meanwhile stays here."""
    kept = {name: value for name, value in state.items() if name not in _OF_A_RUNNING_FIT}
    return {**kept, _FORMAT_KEY: FORMAT}


def unpacked(state: dict[str, Any]) -> dict[str, Any]:
    """The state of an estimator that was pickled.

    Raises
    ------
    ValueError
        A newer skmax has written it.
    """
    state = dict(state)
    written = state.pop(_FORMAT_KEY, FORMAT)
    if written > FORMAT:
        raise ValueError(
            f"This model was pickled by a newer skmax, in format {written}; this one reads up to "
            f"format {FORMAT}. Upgrade skmax, or save the model with to_sklearn()."
        )
    return state


def curves(watch: Watch, model: int = 0) -> dict[str, Any]:
    """The fitted attributes that tell of the training of a model."""
    record, validation = watch.record, watch.validation
    loss, n_iter = record.loss(model), record.n_iter(model)
    scores = None if validation is None else validation.score[model][:n_iter]
    losses = None if validation is None else validation.loss[model][:n_iter]
    return {
        "n_iter_": n_iter,
        "learning_rate_": float(record.learning_rate[model]),
        "loss_curve_": loss,
        "accuracy_curve_": record.accuracy(model),
        "best_loss_": min(loss),
        "validation_scores_": scores,
        "validation_loss_curve_": losses,
        "best_validation_score_": None if scores is None else max(scores),
    }


def continued(estimator: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    """The curves of a fitted estimator, with one more epoch that has no validation scores.

    The lists of the estimator grow in place, so that a call costs the same however many there were.
    """
    n_iter = getattr(estimator, "n_iter_", 0)
    values = {name: attributes[name][0] for name in ("loss_curve_", "accuracy_curve_")}
    merged = {
        **attributes,
        "n_iter_": n_iter + 1,
        "best_loss_": min(values["loss_curve_"], getattr(estimator, "best_loss_", np.inf)),
        "best_validation_score_": getattr(estimator, "best_validation_score_", None),
    }
    for name in ("validation_scores_", "validation_loss_curve_"):
        if getattr(estimator, name, None) is not None:
            values[name] = np.nan
    for name, value in values.items():
        curve = getattr(estimator, name, [])
        del curve[n_iter:]  # what an interrupted call may have left
        curve.append(value)
        merged[name] = curve
    return merged


def coefficients(
    X: Any, problem: Problem, weights: Weights, model: int = 0, classes: Any = slice(None)
) -> dict[str, Any]:
    """The fitted attributes that make predictions, where X is, for some of the classes."""
    coef, intercept = map(problem.backend.to_numpy, weights)
    intercept = intercept.astype(np.float64)
    intercept[problem.masked[model]] = -np.inf
    coef, intercept = coef[classes], intercept[classes]
    if len(coef) == 2:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    anchor = None
    if (shift := problem.data.shift) is not None:
        change = coef.astype(np.float64) @ shift.astype(np.float64)
        at_shift, intercept = intercept, intercept - change
        rounded = intercept.astype(coef.dtype).astype(np.float64)
        anchor = shift, rounded, np.nan_to_num(at_shift - (rounded + change), neginf=0.0)
    return {
        "coef_": like(X, coef),
        "intercept_": like(X, intercept.astype(coef.dtype)),
        "_anchor": anchor,
    }


def state_of(estimator: Any, problem: Problem) -> State:
    """The state of a solver that goes on from the fitted coefficients: undoes `coefficients`."""
    coef = to_host(estimator.coef_).astype(np.float64)
    intercept = intercept_at(estimator, problem.data.shift)
    if not problem.fit_intercept:
        intercept = np.zeros_like(intercept)
    if len(coef) == 1:  # the best two rows of weights with this difference
        coef = np.concatenate([-coef, coef]) / 2
        intercept = np.append(-intercept, intercept) / 2
    return State.at(problem, coef[None], intercept[None])


def anchor_of(estimator: Any) -> np.ndarray | None:
    """The shift at which the logits of a fitted estimator are known best."""
    anchor = getattr(estimator, "_anchor", None)
    return None if anchor is None else anchor[0]


def intercept_at(estimator: Any, shift: np.ndarray | None) -> np.ndarray:
    """The logits of a row that equals `shift`, of the shape of `intercept_`, float64."""
    intercept = to_host(estimator.intercept_).astype(np.float64)
    anchored = anchor_of(estimator) is not None
    if shift is None and not anchored:
        return intercept
    coef = estimator.coef_ if sparse.issparse(estimator.coef_) else to_host(estimator.coef_)
    if shift is not None and not anchored:
        return intercept + coef @ shift.astype(np.float64)
    anchor, rounded, correction = estimator._anchor
    if not np.array_equal(intercept, rounded):  # it was set since, and means what it says
        correction = 0.0
    shift = np.zeros_like(anchor) if shift is None else shift
    there = intercept + coef @ anchor.astype(np.float64) + correction
    return there + coef @ (shift - anchor).astype(np.float64)


@dataclass(frozen=True)
class Continuation:
    """What `partial_fit` goes on with, besides the coefficients.

    Attributes
    ----------
    rng : numpy.random.Generator
        The source of batch orders: PCG64, so that every backend sees the same batches.
    seen : Seen
        What is known of all rows so far.
    velocity : tuple of two ndarrays, or None
        The last steps of coefficients and intercepts: momentum.
    """

    rng: np.random.Generator
    seen: Seen = field(default_factory=Seen)
    velocity: tuple[np.ndarray, np.ndarray] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain arrays and numbers, which share nothing with this."""
        moments = self.seen.moments
        return {
            "rng": self.rng.bit_generator.state,
            "weight_sum": self.seen.weight_sum,
            "moments": None if moments is None else dict(vars(moments)),
            "velocity": self.velocity,
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Continuation:
        """What `to_dict` gave."""
        rng = np.random.Generator(np.random.PCG64(0))
        rng.bit_generator.state = plain["rng"]
        moments = None if plain["moments"] is None else Moments(**plain["moments"])
        return cls(rng, Seen(plain["weight_sum"], moments), plain["velocity"])

    def moving(self, problem: Problem, state: State) -> State:
        """The state, with the momentum carried on."""
        if self.velocity is None:
            return state
        coef, intercept = (problem.backend.asarray(v, problem.data.dtype) for v in self.velocity)
        return replace(state, coef_velocity=coef, intercept_velocity=intercept)

    def after(self, problem: Problem, epoch: Epoch, seen: Seen) -> Continuation:
        """What is gone on with after an epoch."""
        to_numpy, state = problem.backend.to_numpy, epoch.state
        velocity = to_numpy(state.coef_velocity), to_numpy(state.intercept_velocity)
        return Continuation(self.rng, seen, velocity)

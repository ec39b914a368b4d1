"""How the training of a model ended, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skmax.hyperparameters import Hyperparameters
from skmax.messages import warn


class Reason(Enum):
    """Why training ended."""

    CONVERGED = "the objective is within tol of its least value"
    TOLERANCE = "the objective no longer fell by tol"
    EARLY_STOPPING = "the validation score no longer rose by tol"
    SCHEDULE = "the schedule came to its end"
    CAP = "max_iter was reached"
    STALLED = "the precision allows no further step"
    CALLBACK = "a callback asked for it"
    DIVERGED = "the objective grew beyond all bounds"
    INTERRUPTED = "it was interrupted"


@dataclass(frozen=True)
class Ending:
    """How the training of a model ended.

    Attributes
    ----------
    reason : Reason
        Why.
    n_iter : int
        After how many epochs or iterations.
    loss : float
        The objective then.
    gap : float
        How far above its least value the objective is at most; not a number where nobody knows.
    """

    reason: Reason
    n_iter: int
    loss: float
    gap: float


def warn_unless_good(
    ending: Ending, params: Hyperparameters, solver: str, n_classes: int, *, warm: bool = False
) -> None:
    """Warn of a model that knows less than nothing, or has not converged.

    Parameters
    ----------
    ending : Ending
        How its training ended.
    params : Hyperparameters
        What it was trained with.
    solver : {"sgd", "lbfgs", "newton"}
        What trained it.
    n_classes : int
        The number of classes that it can tell apart.
    warm : bool
        Whether it started from the weights of an earlier fit.
    """
    nothing = np.log(n_classes)
    if solver == "sgd" and ending.loss > 2 * nothing and not params.early_stopping:
        warn(_worse_than_nothing(ending, params, nothing, warm))
    elif ending.reason in (Reason.CAP, Reason.STALLED) and params.tol > 0:
        warn(_unconverged(ending, params, solver), ConvergenceWarning)


def _unconverged(ending: Ending, params: Hyperparameters, solver: str) -> str:
    if solver == "sgd":
        return (
            f"The objective had not ceased to improve by tol={params.tol:g} when SGD reached "
            f"max_iter={ending.n_iter}. Increase max_iter, or use a schedule that ends, such as "
            "schedule='cosine'."
        )
    name = {"lbfgs": "L-BFGS", "newton": "Newton's method"}[solver]
    share = ending.gap / ending.loss if ending.loss > 0 else np.inf
    known = f"at most {share:.2g} of itself" if share < 1 else "an unknown distance"
    where = f"the objective is {known} above its least value, and tol={params.tol:g} is asked for"
    if ending.reason is Reason.STALLED:
        return (
            f"{name} can get no further in the precision of X: {where}. Scale X, pass it as "
            "float64 if it is not, or increase tol."
        )
    return (
        f"{name} had not converged after {ending.n_iter} iterations: {where}. Increase max_iter or "
        "tol, or strengthen the penalty."
    )


def _worse_than_nothing(ending: Ending, params: Hyperparameters, nothing: float, warm: bool) -> str:
    worse = (
        f"The objective ended at {ending.loss:g}, worse than that of a model which knows nothing "
        f"({nothing:g}): "
    )
    if warm:
        return worse + (
            "the weights that warm_start goes on from may be far from these data. Use "
            "warm_start=False, or increase max_iter."
        )
    return worse + (
        f"learning_rate={params.learning_rate} is too large for these data. Use a smaller one, or "
        "learning_rate='auto'."
    )

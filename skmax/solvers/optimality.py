"""A proven distance to the optimum, for any model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np

from skmax.backends import rounding_unit
from skmax.duality import Dual
from skmax.objective import evaluate, penalty
from skmax.problem import Problem, State
from skmax.solvers.coordinates import Coordinates
from skmax.solvers.lbfgs import LBFGS
from skmax.solvers.proximal_newton import ProximalNewton

# Passes that the search for a better bound may take, and the share of a bound that it may exceed
# the truth by before more are worth while.
_MOST_PASSES, _LOOSE = 100, 0.1
# A gap below which nobody cares.
_NEGLIGIBLE = 1e-7


def optimality_gap(problem: Problem, state: State) -> float:
    """An upper bound of ``(F - F*) / F`` for a single model.

    At the optimum, its own probabilities make the dual value equal F*. So a solver goes on from
    the model, and the greatest dual value that it meets counts.

    Parameters
    ----------
    problem : Problem
        What is minimised, over all classes that the model knows, whether they occur or not.
    state : State
        The weights of the model.
    """
    with problem.backend.computing():
        dual = Dual(problem)
        value = float((evaluate(problem, state)[0] + penalty(problem, state.coef))[0])
    occurs = dual.shares[0] > 0
    if not value > 0:
        return 0.0
    if problem.fit_intercept and occurs.sum() < 2:
        least = 0.0
    elif not (problem.l1.any() or problem.l2.any()):  # nothing is known of F* but that
        least = float(dual.entropy_of_targets[0])
    else:
        if problem.fit_intercept:  # the best intercept of a class that does not occur is -inf
            problem = replace(problem, masked=~occurs[None])
            state = _masked(problem, state)
        least = _lower_bound(problem, state, value)
    rounding = 8 * rounding_unit(problem.data.dtype)
    return float(np.clip((value - least) / value + rounding, 0.0, 1.0))


def _masked(problem: Problem, state: State) -> State:
    """The state, with classes that do not occur masked."""
    backend = problem.backend
    masked = backend.asarray(problem.masked)
    return replace(
        state,
        intercept=backend.xp.where(masked, State.start(problem).intercept, state.intercept),
    )


def _lower_bound(problem: Problem, state: State, value: float) -> float:
    """The greatest lower bound of F* that a solver meets on its way from a model."""
    with problem.backend.computing():
        space = Coordinates(problem)
        point = space.evaluate(space.weights(state))
        here = point.loss, point.weights, point.gradient
        least, lowest = float(Dual(problem).bounds(*here)[0][0]), value
    solver = ProximalNewton if problem.l1.any() else LBFGS
    with closing(solver(proven=True).epochs(problem, state)) as epochs:
        for _ in range(_MOST_PASSES):
            gap = value - least
            if gap <= _NEGLIGIBLE * value or lowest - least <= _LOOSE * gap:
                break
            epoch = next(epochs)
            lowest = min(lowest, float(epoch.loss[0]))
            if epoch.gap is not None:
                least = max(least, float(epoch.loss[0] - epoch.gap[0]))
            if epoch.stalled is not None and epoch.stalled[0]:
                break
    return least

"""A path of penalties: models that differ in C only, each started from its neighbours' optima.

Per unit of log C, weights go on about as they did from the C before the last to the last. Passes of
a stack of 5 folds to proofs of 1e-4, C from 1e-3 to 1e3, from the last optimum / extrapolated by
0.7 of the last difference / by all of it / by 0.7 of the second one, too: L-BFGS, standardised
digits, 10 C 324 / 181 / 139 / 135, Gaussians 5,000 x 50, 8 C 42 / 45 / 48 / 55; Newton's method,
standardised wine, 10 C 28 / 20 / 18 / 15, 20 C 40 / 39 / 23 / 23, breast_cancer, 10 C 30 / 23 / 23
/ 25.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from skmax.backends import Array, Backend
from skmax.problem import Epoch, Problem, State

Epochs = Generator[Epoch, np.ndarray | None, None]


def path(
    backend: Backend,
    state: State,
    chains: Sequence[Sequence[int]],
    C: np.ndarray,
    solve: Callable[[np.ndarray, State], Epochs],
) -> Epochs:
    """Chains of models side by side, of each of which one model trains at a time.

    Parameters
    ----------
    backend : Backend
        Where models compute.
    state : State
        Where the first model of each chain starts.
    chains : sequence of sequence of int
        Models that differ in C only, from strong to weak penalties.
    C : ndarray of shape (m,)
        That of each model.
    solve : callable
        Sets a solver to work on some of the models, from a state.

    Yields
    ------
    Epoch
        After each pass of those that train.
    """
    ended: list[State] = []
    log_C = np.log(np.minimum(C, np.finfo(float).max))
    chains = sorted(chains, key=len, reverse=True)
    for place in range(len(chains[0])):
        going = np.array([chain[: place + 1] for chain in chains if len(chain) > place])
        models = going[:, -1]
        if place == 0:
            start = state.select(backend, models)
        else:
            start = _continued(backend, ended, log_C[going[:, -3:]])
        end = start.select(backend, np.arange(len(models)))  # a copy
        yield from _to_the_end(solve(models, start), models, end)
        ended = [*ended, end][-2:]


def _to_the_end(epochs: Epochs, models: np.ndarray, end: State) -> Epochs:
    """Train some of the models until all have left, and write down where."""
    n_left, leaving = len(models), None
    with closing(epochs):
        while n_left:
            epoch = epochs.send(leaving)
            leaving = yield replace(epoch, models=models[epoch.models])
            for position in () if leaving is None else np.flatnonzero(leaving).tolist():
                model = int(epoch.models[position])
                end.coef[model, ...] = epoch.state.coef[position, ...]
                end.intercept[model, ...] = epoch.state.intercept[position, ...]
                n_left -= 1


def _continued(backend: Backend, ended: Sequence[State], log_C: np.ndarray) -> State:
    """Where models start: the optima of the one or two before each, extrapolated.

    It goes on by at most the last distance, and not at all where two of the last are the same. The
    rows of `log_C` are the models; chains of which some are over come last in `ended`.
    """
    m = len(log_C)
    last, *before = (State(*(a[:m, ...] for a in vars(state).values())) for state in ended[::-1])
    if not before:
        return last
    distance, step = np.diff(log_C, axis=1).T
    factor = np.minimum(step, distance) / np.where(distance > 0, distance, 1.0)

    def extrapolated(here: Array, there: Array) -> Array:
        by = backend.asarray(factor.reshape(-1, *[1] * (here.ndim - 1)), here.dtype)
        return here + by * (here - there)

    return State(*map(extrapolated, vars(last).values(), vars(before[0]).values()))


def with_common_coordinates(problem: Problem, chains: Sequence[Sequence[int]]) -> Problem:
    """The same problem, all models of a chain in the coordinates of the weakest penalty."""
    if problem.inverse_scale is None:
        return problem
    weakest = np.arange(problem.n_models)
    for chain in chains:
        weakest[list(chain)] = chain[-1]
    index = problem.backend.asarray(weakest)
    return replace(
        problem, inverse_scale=problem.backend.xp.take(problem.inverse_scale, index, axis=0)
    )

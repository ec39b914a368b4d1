"""A solver at work, as a method and hyperparameters ask for it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from skmax.hyperparameters import Hyperparameters
from skmax.messages import warn
from skmax.policy import Method, batch_size
from skmax.problem import Epoch, Problem, State
from skmax.solvers.lbfgs import LBFGS
from skmax.solvers.learning_rate import searched_rate, stable_rate
from skmax.solvers.newton import Newton
from skmax.solvers.proximal_newton import ProximalNewton
from skmax.solvers.sgd import SGD

# Models that race for their learning rates at a time: each runs several times.
_RACING = 32

Epochs = Generator[Epoch, np.ndarray | None, None]


def run(
    methods: Sequence[Method],
    parameters: Sequence[Hyperparameters],
    problem: Problem,
    state: State,
    rng: np.random.Generator,
    n_rows: np.ndarray,
) -> Epochs:
    """A solver at work on a stack of models.

    Parameters
    ----------
    methods : sequence of Method, of length m
        They agree on the solver and on `first_epochs`.
    parameters : sequence of Hyperparameters, of length m
        They agree on the batch size and whether to shuffle.
    problem : Problem
        What is minimised.
    state : State
        Where to start.
    rng : numpy.random.Generator
        Where the orders of the rows come from.
    n_rows : ndarray of shape (m,)
        How many rows each model learns from.

    Returns
    -------
    epochs : generator of Epoch
        It ends never; the planned number of epochs is the caller's to keep.
    """
    method = methods[0]
    if method.solver == "sgd":
        max_iter = [method.max_iter for method in methods]
        return _sgd(max_iter, parameters, problem, state, rng, n_rows)
    if method.solver == "newton":
        if problem.l1.any():
            return ProximalNewton().epochs(problem, state)
        return Newton().epochs(problem, state)
    if method.first_epochs == 0:
        return LBFGS().epochs(problem, state)
    # What comes first takes no notice of the parameters of SGD, and is deterministic.
    default = Hyperparameters()
    solver = sgd([default] * len(n_rows), problem, n_rows, [method.first_epochs] * len(n_rows))
    solver = replace(solver, learning_rate=stable_rate(problem, solver))
    rng = np.random.Generator(np.random.PCG64(0))
    return _followed(solver.epochs(problem, state, rng), method.first_epochs, problem)


def _sgd(
    max_iter: Sequence[int],
    parameters: Sequence[Hyperparameters],
    problem: Problem,
    state: State,
    rng: np.random.Generator,
    n_rows: np.ndarray,
) -> Epochs:
    """SGD at the rates that the parameters name, or that are found for them."""
    solver = sgd(parameters, problem, n_rows, max_iter)
    rates, auto = solver.learning_rate.copy(), np.flatnonzero(np.isnan(solver.learning_rate))
    for models in np.array_split(auto, -(-len(auto) // _RACING)) if auto.size else ():
        rates[models] = searched_rate(problem.select(models), solver.select(models), rng)
    return replace(solver, learning_rate=rates).epochs(problem, state, rng)


def sgd(
    parameters: Sequence[Hyperparameters],
    problem: Problem,
    n_rows: np.ndarray,
    max_iter: Sequence[int],
) -> SGD:
    """The SGD that the parameters ask for; rates that are to be found are no numbers.

    A batch has as large a part of all rows as it would have of the rows of one model: then steps
    are as many, and each model sees as many of its own rows in each.
    """
    sizes = np.array(
        [_batch_size(params, int(n)) for params, n in zip(parameters, n_rows, strict=True)]
    )
    auto = np.array([params.learning_rate == "auto" for params in parameters])
    rates = [
        np.nan if params.learning_rate == "auto" else float(params.learning_rate)
        for params in parameters
    ]
    return SGD(
        learning_rate=np.array(rates, dtype=np.float64),
        momentum=np.array([float(params.momentum) for params in parameters]),
        retry=auto,
        schedule=tuple(params.schedule for params in parameters),
        max_iter=tuple(max_iter),
        batch_size=max(1, round(len(problem.order) * float(np.mean(sizes / n_rows)))),
        shuffle=parameters[0].shuffle,
    )


def _batch_size(params: Hyperparameters, n: int) -> int:
    if params.batch_size != "auto" and int(params.batch_size) > n:
        warn(
            f"batch_size={params.batch_size} is larger than the {n} rows to train on, and is "
            "clipped to that."
        )
    return batch_size(params, n)


def _followed(epochs: Epochs, n_epochs: int, problem: Problem) -> Epochs:
    """So many epochs of another solver, then L-BFGS from where they end.

    Parameters
    ----------
    epochs : generator of Epoch
        The other solver at work.
    n_epochs : int
        How many passes it makes.
    problem : Problem
        What is minimised.

    Yields
    ------
    Epoch
        After each pass of either.
    """
    leaving = None
    with closing(epochs):
        for _ in range(n_epochs):
            last = epochs.send(leaving)
            leaving = yield last
    staying = np.arange(len(last.models)) if leaving is None else np.flatnonzero(~leaving)
    models, rates = last.models[staying], last.learning_rate[staying]
    state = last.state.select(problem.backend, staying)
    rest = LBFGS().epochs(problem.select(models), state)
    leaving = None
    while True:
        epoch = rest.send(leaving)
        leaving = yield replace(
            epoch, models=models[epoch.models], learning_rate=rates[epoch.models]
        )

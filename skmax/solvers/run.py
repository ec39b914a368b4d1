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
from skmax.solvers.full_batch import FullBatch
from skmax.solvers.lbfgs import LBFGS
from skmax.solvers.learning_rate import searched_rate, stable_rate
from skmax.solvers.newton import Newton
from skmax.solvers.path import path, with_common_coordinates
from skmax.solvers.proximal_newton import ProximalNewton
from skmax.solvers.sgd import SGD

# Models that race for their learning rates at a time: each runs several times.
_RACING = 32
# Where the number of operations costs, batches of the epochs before L-BFGS have at most so many
# rows, and leave at least so many steps to an epoch. Of 1,280,000 rows of 1,024 features and 1,000
# classes, batches of 200, 512, 1,024 and 4,096 made a fit of 2.2, 2.0, 2.1 and 2.6 s on an H200,
# with 37, 37, 40 and 53 iterations.
_MOST_OF_A_FIRST_BATCH, _FIRST_STEPS = 512, 2048

Epochs = Generator[Epoch, np.ndarray | None, None]


def run(
    methods: Sequence[Method],
    parameters: Sequence[Hyperparameters],
    problem: Problem,
    state: State,
    rng: np.random.Generator,
    n_rows: np.ndarray,
    chains: Sequence[Sequence[int]] | None = None,
) -> Epochs:
    """A solver at work on a stack of models.

    Parameters
    ----------
    methods : sequence of Method, of length m
        They agree on the solver and on `first_epochs`, and `newton_after` is that of the first.
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
    chains : sequence of sequence of int, or None
        Models that differ in C only, from strong to weak penalties, to be trained one after the
        other; None: all models train side by side. SGD takes no notice of it.

    Returns
    -------
    epochs : generator of Epoch
        It ends never; the planned number of epochs is the caller's to keep.
    """
    method = methods[0]
    if method.solver == "sgd":
        max_iter = [method.max_iter for method in methods]
        return _sgd(max_iter, parameters, problem, state, rng, n_rows)
    solver, newton = _full_batch(method, problem), Newton()
    if chains is None:
        return _begun(method, solver, newton, problem, state, n_rows, problem)
    common, firsts = with_common_coordinates(problem, chains), {chain[0] for chain in chains}

    def solve(models: np.ndarray, start: State) -> Epochs:
        part = common.select(models)
        of_part = method if models[0] in firsts else replace(method, first_epochs=0)
        whole = problem.select(models)
        return _begun(of_part, solver, newton, whole, start, n_rows[models], part)

    C = np.array([float(params.C) for params in parameters])
    return path(problem.backend, state, chains, C, solve)


def _full_batch(method: Method, problem: Problem) -> FullBatch:
    if method.solver == "lbfgs":
        return LBFGS()
    return ProximalNewton() if problem.l1.any() else Newton()


def _begun(
    method: Method,
    solver: FullBatch,
    newton: Newton,
    problem: Problem,
    state: State,
    n_rows: np.ndarray,
    common: Problem,
) -> Epochs:
    """A full-batch solver at work, after the epochs of SGD that come first in a method.

    And before Newton's method, if that takes over. `common` is the problem in the coordinates of
    both.
    """
    if method.newton_after is not None:
        others = replace(method, newton_after=None)
        epochs = _begun(others, solver, newton, problem, state, n_rows, common)
        return followed(epochs, method.newton_after, common, newton)
    if method.first_epochs == 0:
        return solver.epochs(common, state)
    # They take no notice of the parameters of SGD, and are deterministic.
    default = Hyperparameters()
    first = sgd([default] * len(n_rows), problem, n_rows, [method.first_epochs] * len(n_rows))
    if problem.backend.is_wide:
        size = min(_MOST_OF_A_FIRST_BATCH, len(problem.order) // _FIRST_STEPS)
        first = replace(first, batch_size=max(first.batch_size, size))
    first = replace(first, learning_rate=stable_rate(problem, first))
    orders = first.orders(problem, np.random.Generator(np.random.PCG64(0)))
    epochs = first.epochs(problem, state, orders)
    return followed(epochs, method.first_epochs, common, solver)


def _sgd(
    max_iter: Sequence[int],
    parameters: Sequence[Hyperparameters],
    problem: Problem,
    state: State,
    rng: np.random.Generator,
    n_rows: np.ndarray,
) -> Epochs:
    """SGD at the rates that the parameters name, or that are found while orders are drawn."""
    solver = sgd(parameters, problem, n_rows, max_iter)
    with closing(solver.orders(problem, rng)) as orders:
        rates, auto = solver.learning_rate.copy(), np.flatnonzero(np.isnan(solver.learning_rate))
        for models in np.array_split(auto, -(-len(auto) // _RACING)) if auto.size else ():
            rates[models] = searched_rate(problem.select(models), solver.select(models), rng)
        yield from replace(solver, learning_rate=rates).epochs(problem, state, orders)


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


def followed(epochs: Epochs, n_epochs: int, problem: Problem, solver: FullBatch) -> Epochs:
    """So many epochs of another solver, then this one from where they end.

    Parameters
    ----------
    epochs : generator of Epoch
        The other solver at work.
    n_epochs : int
        How many passes it makes.
    problem : Problem
        What is minimised.
    solver : FullBatch
        This one.

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
    rest = solver.epochs(problem.select(models), state)
    leaving = None
    while True:
        epoch = rest.send(leaving)
        leaving = yield replace(
            epoch, models=models[epoch.models], learning_rate=rates[epoch.models]
        )

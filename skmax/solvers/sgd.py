"""Minibatch stochastic gradient descent with momentum, on a stack of models."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from skmax import kernels
from skmax.backends import Array
from skmax.objective import (
    batch_gradient,
    clip,
    evaluate,
    penalty,
    penalty_there,
    value_and_gradient,
)
from skmax.problem import BatchSums, Epoch, Problem, State, Steps
from skmax.solvers.curvature import diagonal_curvature, units_of
from skmax.solvers.schedules import step_rates

# Multiples of the objective at the start: one that training cannot come back from, and one that a
# rate found from the data should not reach.
_HOPELESS, _TOO_FAST = 100.0, 2.0
_MAX_RETRIES = 30
# Rows that the curvature is measured on which says what is zero.
_SAMPLE = 2048
# Orders that a thread draws ahead; and the multiply-adds up to which an epoch on a device is asked
# for before the one before it is looked at. A host takes a millisecond for both, so what may be in
# vain, one epoch after the last, is less than ten epochs gain (5e10 took 8 ms on an H200).
_DRAWN_AHEAD, _SHORT = 2, 5e10


@dataclass(frozen=True)
class SGD:
    """The hyperparameters of stochastic gradient descent.

    Attributes
    ----------
    learning_rate, momentum : ndarray of shape (m,)
        Per model.
    retry : ndarray of shape (m,), bool
        Whether an epoch that diverges is undone and repeated at a quarter of the rate.
    schedule : tuple of str, of length m
        Per model.
    max_iter : tuple of int, of length m
        Epochs planned, per model.
    batch_size : int
        Rows per step; the last batch of an epoch may have fewer.
    shuffle : bool
        Whether the rows come in a new order in every epoch.
    """

    learning_rate: np.ndarray
    momentum: np.ndarray
    retry: np.ndarray
    schedule: tuple[str, ...]
    max_iter: tuple[int, ...]
    batch_size: int
    shuffle: bool

    def select(self, models: np.ndarray) -> SGD:
        """The hyperparameters of some of the models."""
        return replace(
            self,
            learning_rate=self.learning_rate[models],
            momentum=self.momentum[models],
            retry=self.retry[models],
            schedule=tuple(self.schedule[model] for model in models),
            max_iter=tuple(self.max_iter[model] for model in models),
        )

    def steps(self, epoch: int, order: np.ndarray) -> Steps:
        """The steps of an epoch that visits the rows in an order, once `epoch` are done."""
        n_steps = -(-len(order) // self.batch_size)
        planned = [*zip(self.schedule, self.max_iter, strict=True)]
        multipliers = {of: step_rates(of[0], epoch, n_steps, of[1]) for of in set(planned)}
        rates = np.stack([multipliers[of] for of in planned], axis=1) * self.learning_rate
        return Steps(order, self.batch_size, rates, self.momentum)

    def orders(self, problem: Problem, rng: np.random.Generator) -> Orders:
        """The orders of the rows in the epochs that are planned, to be closed in the end.

        `rng` says what comes first; a thread may draw from it until then.
        """
        return Orders(problem, rng if self.shuffle else None, max(self.max_iter))

    def epochs(
        self, problem: Problem, state: State, orders: Orders
    ) -> Generator[Epoch, np.ndarray | None, None]:
        """Train without end, one epoch at a time.

        Parameters
        ----------
        problem : Problem
            What is minimised.
        state : State
            Where to start.
        orders : Orders
            The orders of the rows, which are closed in the end.

        Yields
        ------
        Epoch
            After each pass over the data. What is sent back, a boolean host array with an entry
            per model, says which models leave the stack; None: all stay.
        """
        solver, models, before = self, np.arange(problem.n_models), state
        with closing(_Line(orders)) as line:
            bound = self._bound(problem, state)
            for epoch in count():
                solver, before, state, report = solver._guarded(
                    problem, before, state, line, epoch, bound
                )
                leaving = yield Epoch(models, state, *report, solver.learning_rate)
                if leaving is not None and leaving.any():
                    line.step_back()
                    staying = np.flatnonzero(~leaving)
                    before = before.select(problem.backend, staying)
                    state = state.select(problem.backend, staying)
                    problem, solver = problem.select(staying), solver.select(staying)
                    models, bound = models[staying], bound[staying]

    def _bound(self, problem: Problem, state: State) -> np.ndarray:
        """The objective above which a model has diverged, of shape (m,)."""
        start = np.log(np.sum(~problem.masked, axis=1))  # of a model that knows nothing
        if problem.backend.to_numpy(state.coef).any():
            start = np.fmax(start, evaluate(problem, state)[0] + penalty(problem, state.coef))
        return np.where(self.retry, _TOO_FAST, _HOPELESS) * start

    def _guarded(
        self,
        problem: Problem,
        before: State,
        state: State,
        line: _Line,
        epoch: int,
        bound: np.ndarray,
    ) -> tuple[SGD, State, State, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """One epoch; models that diverge and may retry do so at a quarter of the rate.

        They go back by one more epoch, to `before`, since the loss of a step is known only when
        the next one is taken. Returns the solver with the rates that worked, where the epoch
        started and ended, and its (loss, accuracy, diverged).
        """
        solver, asked = self, line.next(self, problem, state, epoch)
        for trial in range(_MAX_RETRIES):
            if trial > 0:
                asked = line.ask(solver, problem, state, epoch, asked.order)
            line.ask_ahead(solver, problem, asked, epoch + 1)
            entropy, correct, of_penalty = asked.told()
            loss, accuracy = entropy / len(asked.order) + of_penalty, correct / len(asked.order)
            diverged = ~(loss <= bound)
            retrying = diverged & self.retry
            if not retrying.any():
                break
            line.step_back()
            state = before.at_rest(problem.backend).where(problem.backend, retrying, state)
            slower = np.where(retrying, solver.learning_rate / 4, solver.learning_rate)
            solver = replace(solver, learning_rate=slower)
        return solver, state, asked.after, (loss, accuracy, diverged)


@dataclass(frozen=True)
class _Asked:
    """An epoch that has been asked for; where a device computes, it may still be at it.

    Attributes
    ----------
    order : ndarray of shape (n,)
        The rows in their order.
    after : State
        Where it ends.
    told : callable
        Waits for loss and accuracy, summed over the rows, and penalty.
    is_short : bool
        Whether the device would wait for the host if what follows were not asked for.
    """

    order: np.ndarray
    after: State
    told: Callable[[], list[np.ndarray]]
    is_short: bool


def mean_loss(problem: Problem, state: State, batch_size: int) -> np.ndarray:
    """The mean cross-entropy of each model over all rows, of shape (m,), on the host.

    Where the number of operations is what costs, of an epoch whose steps have no length.
    """
    run = kernels.sgd_epoch(problem, batch_size) if problem.backend.is_wide else None
    if run is None:
        return evaluate(problem, state)[0]
    n, m = len(problem.order), problem.n_models
    steps = Steps(problem.order, batch_size, np.zeros((-(-n // batch_size), m)), np.zeros(m))
    with problem.backend.computing():
        return problem.backend.to_numpy(run(problem, state, steps)[1].loss) / n


class Orders:
    """The order of the rows in one epoch after the other; at random, if there is an `rng`.

    Where a device computes, a thread draws the next ones meanwhile: one of 60,000 rows takes 1 ms,
    as long as an epoch of Fashion-MNIST takes there.
    """

    def __init__(self, problem: Problem, rng: np.random.Generator | None, planned: int):
        self._problem, self._rng = problem, rng
        self._left = planned
        ahead = rng is not None and problem.backend.is_wide
        self._thread = ThreadPoolExecutor(1) if ahead else None
        # Each with the state of the generator before it; the last one that was drawn ahead.
        self._drawn: deque[Future[tuple[Any, np.ndarray]]] = deque()
        self._last: Future[tuple[Any, np.ndarray]] | None = None
        self._draw_ahead()

    def _draw(self) -> tuple[Any, np.ndarray]:
        before = None if self._rng is None else self._rng.bit_generator.state
        return before, self._problem.data.epoch(self._problem.order, self._rng)

    def _draw_ahead(self) -> None:
        while self._thread is not None and len(self._drawn) < _DRAWN_AHEAD and self._left > 0:
            self._left -= 1
            self._drawn.append(self._thread.submit(self._draw))

    def next(self) -> np.ndarray:
        """The order of the epoch that begins."""
        if not self._drawn:
            self._left -= 1
            return self._draw()[1]
        self._last = self._drawn.popleft()
        self._draw_ahead()
        return self._last.result()[1]

    def give_back(self) -> None:
        """The last order comes again."""
        if self._last is not None:
            self._drawn.appendleft(self._last)

    def close(self) -> None:
        """Wait for the thread; the generator is as if nothing had been drawn ahead."""
        if self._thread is not None and self._rng is not None:
            self._thread.shutdown()
            if self._drawn:
                self._rng.bit_generator.state = self._drawn[0].result()[0]


class _Line:
    """The epochs in their line: where a device computes, the next one is asked for ahead.

    Then it computes while the host looks at the last one.
    """

    def __init__(self, orders: Orders):
        self._orders = orders
        self._following: _Asked | None = None
        self._problem: Problem | None = None  # that the kernel is for
        self._kernel: kernels.SGDEpoch | None = None

    def ask(
        self, solver: SGD, problem: Problem, state: State, epoch: int, order: np.ndarray
    ) -> _Asked:
        """Ask for an epoch."""
        if problem is not self._problem:
            self._problem, self._kernel = problem, kernels.sgd_epoch(problem, solver.batch_size)
        backend, run = problem.backend, self._kernel or sgd_epoch
        with np.errstate(over="ignore", invalid="ignore"), backend.computing():
            after, sums = run(problem, state, solver.steps(epoch, order))
            told = backend.later(*sums, penalty_there(problem, after.coef))
        cost = len(order) * problem.data.n_features * problem.n_classes * problem.n_models
        is_short = run is not sgd_epoch and backend.is_wide and cost <= _SHORT
        return _Asked(order, after, told, is_short)

    def next(self, solver: SGD, problem: Problem, state: State, epoch: int) -> _Asked:
        """The epoch from a state, asked for if it was not."""
        asked, self._following = self._following, None
        return asked or self.ask(solver, problem, state, epoch, self._orders.next())

    def ask_ahead(self, solver: SGD, problem: Problem, asked: _Asked, epoch: int) -> None:
        """Ask for the epoch that follows one, if it is planned and worth it."""
        if asked.is_short and epoch < max(solver.max_iter):
            try:
                order = self._orders.next()
                self._following = self.ask(solver, problem, asked.after, epoch, order)
            except BaseException:
                asked.told()  # the device may still be writing it
                raise

    def step_back(self) -> None:
        """What follows is another epoch than was asked for, of the same order."""
        asked, self._following = self._following, None
        if asked is not None:
            asked.told()
            self._orders.give_back()

    def close(self) -> None:
        """Wait for what has been begun."""
        with closing(self._orders):
            self.step_back()


def sgd_epoch(problem: Problem, state: State, steps: Steps) -> tuple[State, BatchSums]:
    """One pass over the rows: the reference, for any array API namespace.

    Each step is that of the heavy-ball method in the coordinates of the preconditioner, followed
    by the proximal operator of the L1 penalty in the same metric (iPiano).

    Parameters
    ----------
    problem : Problem
        What is minimised.
    state : State
        Where the epoch starts; left unchanged.
    steps : Steps
        The rows in the order in which they are visited, and how long each step is.

    Returns
    -------
    state : State
        Where the epoch ends.
    sums : BatchSums
        Loss and accuracy of all rows, each at the weights that its batch met.

    References
    ----------
    B. T. Polyak, Some methods of speeding up the convergence of iteration methods, 1964.
    P. Ochs, Y. Chen, T. Brox and T. Pock, iPiano: inertial proximal algorithm for nonconvex
    optimization, SIAM Journal on Imaging Sciences 7(2), 2014.
    """
    backend, step = problem.backend, _Step(problem, steps.momentum)
    rates = backend.asarray(steps.rates[:, :, None, None], problem.data.dtype)
    loss = correct = backend.zeros((problem.n_models,), backend.dtype(np.float64))
    state = at_origin(problem, state)
    for i, (index, X) in enumerate(problem.data.batches(steps.order, steps.batch_size)):
        intercept = from_origin(problem, state)
        sums, *gradients = batch_gradient(problem, state.coef, intercept, index, X)
        loss, correct = loss + sums.loss, correct + sums.correct
        by_coef, by_intercept = (gradient / X.shape[0] for gradient in gradients)
        if problem.mean is not None:
            by_coef = by_coef - by_intercept[..., None] * problem.mean
        state = step(state, rates[i, ...], by_coef, by_intercept)
    return replace(state, intercept=from_origin(problem, state)), BatchSums(loss, correct)


def at_origin(problem: Problem, state: State) -> State:
    """The state with the intercepts of a row that equals the preconditioner's origin."""
    if problem.mean is None:
        return state
    there = problem.backend.xp.sum(state.coef * problem.mean, axis=-1)
    return replace(state, intercept=state.intercept + there)


def from_origin(problem: Problem, state: State) -> Array:
    """The intercepts of a row that equals the data's shift: what undoes `at_origin`."""
    if problem.mean is None:
        return state.intercept
    return state.intercept - problem.backend.xp.sum(state.coef * problem.mean, axis=-1)


class _Step:
    """The proximal heavy-ball step, in the coordinates of the preconditioner."""

    def __init__(self, problem: Problem, momentum: np.ndarray):
        def moved(values: np.ndarray) -> Array:
            return problem.backend.asarray(values[:, None, None], problem.data.dtype)

        self.xp = problem.backend.xp
        self.fit_intercept = problem.fit_intercept
        self.inverse_scale = 1.0 if problem.inverse_scale is None else problem.inverse_scale
        self.momentum, self.l2 = moved(momentum), moved(problem.l2)
        self.threshold = self._scaled(moved(problem.l1)) if problem.l1.any() else None

    def _scaled(self, gradient: Array) -> Array:
        return gradient * self.inverse_scale * self.inverse_scale  # squared, it may underflow

    def __call__(self, state: State, rate: Array, by_coef: Array, by_intercept: Array) -> State:
        """One step of all weights from mean gradients without penalty, at a rate (m, 1, 1)."""
        descent = rate * self._scaled(by_coef + self.l2 * state.coef)
        velocity = self.momentum * state.coef_velocity - descent
        coef = state.coef + velocity
        if self.threshold is not None:
            clipped = clip(self.xp, coef, rate * self.threshold)
            velocity, coef = velocity - clipped, coef - clipped
        state = replace(state, coef=coef, coef_velocity=velocity)
        if not self.fit_intercept:
            return state
        velocity = self.momentum[..., 0] * state.intercept_velocity - rate[..., 0] * by_intercept
        return replace(state, intercept=state.intercept + velocity, intercept_velocity=velocity)


def with_exact_zeros(problem: Problem, state: State) -> State:
    """The state, with those coefficients at zero that an L1 penalty holds there; no other changes.

    To be called once, after training: the noise of minibatches keeps small coefficients from zero.
    Each is looked at by itself. With g the full gradient by it and h the curvature, both of loss
    and L2 penalty, ``g (v - w) + h (v - w)^2 / 2 + l1 |v|`` is least at v = 0 if
    ``|h w - g| <= l1``: a proximal step of length 1/h ends there. Since h is known to few digits
    and features are correlated, w must also be near zero in these terms, ``|h w| <= l1``; so
    nothing changes by more than l1 / h, which vanishes with the penalty.
    """
    if not problem.l1.any():
        return state
    backend, xp = problem.backend, problem.backend.xp
    units = units_of(problem)[:, None, :]
    with backend.computing():
        sample = problem.data.sample(problem.order, _SAMPLE)
        h = diagonal_curvature(problem, state, sample)[..., :-1]
    _, _, g, by_intercept = value_and_gradient(problem, state)
    if problem.mean is not None:
        g = g - by_intercept[..., None] * problem.mean
    l1, l2 = (backend.asarray(x[:, None, None], units.dtype) for x in (problem.l1, problem.l2))
    g, l1 = (g + l2 * state.coef) * units, l1 * units
    at_zero = h * state.coef / xp.where(units > 0, units, xp.ones_like(units))
    is_zero = (xp.abs(at_zero - g) <= l1) & (xp.abs(at_zero) <= l1)
    coef, velocity = (
        xp.where(is_zero, xp.zeros_like(x), x) for x in (state.coef, state.coef_velocity)
    )
    intercept = state.intercept
    if problem.mean is not None:  # what it is at the origin stays
        intercept = intercept + xp.sum((state.coef - coef) * problem.mean, axis=-1)
    return replace(state, coef=coef, intercept=intercept, coef_velocity=velocity)

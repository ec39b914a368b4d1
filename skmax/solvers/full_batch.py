"""What the solvers have in common that go to the optimum, by passes over all rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Protocol

import numpy as np

from skmax.problem import Epoch, Problem, State


class Search(Protocol):
    """A stack of models on its way down."""

    def advance(self) -> None:
        """One step of every model that finds one; the others have stalled."""

    def epoch(self) -> Epoch:
        """Where the stack is."""

    def select(self, staying: np.ndarray) -> None:
        """Go on with some of the models, at the host indices `staying`."""


class FullBatch(ABC):
    """A solver whose iterations each see all rows.

    Parameters
    ----------
    proven : bool
        Whether the bounds that it reports must hold for weights of any length.
    """

    def __init__(self, *, proven: bool = False):
        self.proven = proven

    @abstractmethod
    def begin(self, problem: Problem, state: State) -> Search:
        """A stack of models that is to go down from a state."""

    def epochs(self, problem: Problem, state: State) -> Generator[Epoch, np.ndarray | None, None]:
        """Iterate without end; each iteration is a step of every model that finds one.

        Parameters
        ----------
        problem : Problem
            What is minimised.
        state : State
            Where to start.

        Yields
        ------
        Epoch
            After each iteration. What is sent back is as in `SGD.epochs`.
        """
        computing = problem.backend.computing  # threads of BLAS would stay in the way of ours
        with computing():
            search = self.begin(problem, state)
        while True:
            with computing():
                search.advance()
                epoch = search.epoch()
            leaving = yield epoch
            if leaving is not None and leaving.any():
                with computing():
                    search.select(np.flatnonzero(~leaving))

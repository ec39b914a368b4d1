"""The one driver: it drains a solver, asks the consumers, and drops finished models."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Literal

import numpy as np

from skmax.ending import Reason
from skmax.problem import Epoch


class Consumer:
    """What looks on while models train, and may say that some are done.

    Attributes
    ----------
    reason : Reason
        Why those are done that it says are done.
    """

    reason = Reason.CALLBACK

    def begin(self) -> None:
        """Before each epoch: nothing, unless overridden."""

    def __call__(self, epoch: Epoch) -> np.ndarray | Literal[False]:  # noqa: ARG002
        """After each epoch: which of its models are done, in their order there; False: none.

        What is kept of the epoch's state must be copied.
        """
        return False


def train(
    epochs: Generator[Epoch, np.ndarray | None, None],
    consumers: Sequence[Consumer],
    reasons: list[Reason],
) -> None:
    """Train until every model is done.

    Parameters
    ----------
    epochs : generator of Epoch
        A solver at work. It is closed whatever happens.
    consumers : sequence of Consumer
        Asked in this order after each epoch.
    reasons : list of Reason, of length m
        Filled in, per model: what the first consumer says that is done with it.
    """
    done: np.ndarray | None = None
    n_left = len(reasons)
    with closing(epochs):
        while True:
            for consumer in consumers:
                consumer.begin()
            epoch = epochs.send(done)
            done = np.zeros(len(epoch.models), dtype=bool)
            for consumer in consumers:
                leaving = consumer(epoch)
                if leaving is False or np.count_nonzero(leaving) == 0:  # quicker than any()
                    continue
                for model in epoch.models[leaving & ~done]:
                    reasons[model] = consumer.reason
                done |= leaving
            n_left -= int(np.count_nonzero(done))
            if n_left == 0:
                return

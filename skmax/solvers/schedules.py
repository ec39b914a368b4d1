"""How the learning rate changes while training goes on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Each maps the passes over the data made so far (fractional, from 0) and the passes planned to
# what the learning rate is multiplied by.
SCHEDULES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "constant": lambda done, _: np.ones_like(done),
    "linear": lambda done, planned: 1 - done / planned,
    "cosine": lambda done, planned: (1 + np.cos(np.pi * done / planned)) / 2,
    "invscaling": lambda done, _: 1 / np.sqrt(1 + done),
}

# The schedules that come to their end with the last planned pass.
ENDING = {"linear", "cosine"}


def step_rates(schedule: str, epoch: int, n_steps: int, max_iter: int) -> np.ndarray:
    """Multipliers of the learning rate for the steps of one epoch, of shape (n_steps,).

    Parameters
    ----------
    schedule : str
        A key of `SCHEDULES`.
    epoch : int
        How many epochs are done.
    n_steps : int
        Minibatches per epoch.
    max_iter : int
        Epochs planned.
    """
    done = np.minimum(epoch + np.arange(n_steps) / n_steps, max_iter)
    return SCHEDULES[schedule](done, max_iter)

"""The adapter to scikit-learn's callback protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from skmax.problem import Epoch
from skmax.training import Consumer


class Callbacks(Consumer):
    """Tells the callbacks of an estimator of each epoch; any of them may stop training.

    Parameters
    ----------
    estimator : CallbackSupportMixin
        The estimator that is being fitted.
    fit_arguments : dict
        X, y and metadata, as the caller of `fit` gave them.
    attributes : callable
        Returns the attributes that would make the estimator fitted now.
    max_iter : int or None
        The epochs that are planned; None where nobody knows how many it will take.
    """

    def __init__(
        self,
        estimator: Any,
        fit_arguments: dict[str, Any],
        attributes: Callable[[], dict[str, Any]],
        max_iter: int | None,
    ):
        self._arguments = {"estimator": estimator, **fit_arguments}
        self._is_heard = bool(getattr(estimator, "_skl_callbacks", None))  # or nobody listens
        self._attributes = attributes
        self._fit = estimator._init_callback_context(max_subtasks=max_iter)
        self._fit.call_on_fit_task_begin(**self._arguments)

    def begin(self) -> None:
        """Announce an epoch, where somebody listens."""
        if not self._is_heard:
            return
        self._epoch = self._fit.subcontext(task_name="epoch")
        self._epoch.call_on_fit_task_begin(**self._arguments)

    def __call__(self, epoch: Epoch) -> np.ndarray | Literal[False]:
        """Report the epoch, where somebody listens."""
        if not self._is_heard:
            return False
        stop = self._epoch.call_on_fit_task_end(
            **self._arguments, reconstruction_attributes=self._attributes
        )
        return np.ones(len(epoch.models), dtype=bool) if stop else False

    def end(self) -> None:
        """Report the whole fit."""
        self._fit.call_on_fit_task_end(
            **self._arguments, reconstruction_attributes=self._attributes
        )

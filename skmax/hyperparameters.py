"""The hyperparameters of a model: one frozen record, which travels instead of the estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hyperparameters:
    """What a `SoftmaxRegression` asks for, by the same names and with the same defaults."""

    C: float = 1.0
    l1_ratio: float = 0.0
    fit_intercept: bool = True
    class_weight: Any = None
    label_smoothing: float = 0.0
    solver: str = "auto"
    preconditioner: str | None = "diagonal"
    learning_rate: float | str = "auto"
    schedule: str = "cosine"
    max_iter: int | None = None
    batch_size: int | str = "auto"
    momentum: float = 0.9
    shuffle: bool = True
    tol: float = 1e-4
    n_iter_no_change: float | None = None
    early_stopping: bool = False
    validation_fraction: float = 0.1
    verbose: int = 0
    backend: str = "auto"

    @classmethod
    def of(cls, estimator: Any) -> Hyperparameters:
        """Those of an estimator."""
        return cls(**{name: getattr(estimator, name) for name in cls.__dataclass_fields__})

    @property
    def has_lasso(self) -> bool:
        """Whether there is an L1 penalty."""
        return self.l1_ratio > 0 and float("inf") != self.C

    @property
    def asks_for_sgd(self) -> bool:
        """Whether something is chosen that only minibatch SGD takes notice of."""
        return any(getattr(self, name) != getattr(Hyperparameters, name) for name in _OF_SGD)


_OF_SGD = ("learning_rate", "schedule", "batch_size", "momentum", "shuffle", "early_stopping")

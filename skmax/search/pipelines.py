"""Pipelines: the steps before the last are fitted once for all candidates that share them."""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

import joblib
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import Pipeline


class ArgumentRecorder(BaseEstimator):
    """Stands for the last step while the others are fitted, and keeps what that is fitted to."""

    def fit(self, X, y, sample_weight=None):
        """Keep the arguments."""
        self.arguments_ = X, y, sample_weight
        return self


class CachedStep:
    """A fitted step, and what it makes of the rows that are scored again and again."""

    def __init__(self, step: Any):
        self._step = step
        self.cache: list[tuple[Any, Any]] = []

    def transform(self, X: Any, **params: Any) -> Any:
        """What the step makes of X."""
        for rows, transformed in self.cache:
            if X is rows and not params:
                return transformed
        return self._step.transform(X, **params)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not name.startswith("__sklearn"):  # copy asks an empty object
            raise AttributeError(name)
        return getattr(self._step, name)


def steps_of(estimator: Any) -> list[Any]:
    """The steps of a pipeline; any other estimator, as a subclass of Pipeline, is its only one.

    imbalanced-learn's pipeline counts as one: its steps may resample the rows that are learned
    from, and leave alone those that are scored.
    """
    resampling = getattr(sys.modules.get("imblearn.pipeline"), "Pipeline", Pipeline)
    if type(estimator) in (Pipeline, resampling):
        return [step for _, step in estimator.steps]
    return [estimator]


def prefix_key(estimator: Any, parameters: dict[str, Any]) -> str | None:
    """Equal for candidates that differ only in the last step's parameters; None: like no other."""
    if not isinstance(estimator, Pipeline):
        return "no steps before"
    last = estimator.steps[-1][0] + "__"
    try:
        return joblib.hash({k: v for k, v in parameters.items() if not k.startswith(last)})
    except Exception:  # hashing pickles, which lambdas cannot be
        return None


def fit_prefix(pipeline: Any, X: Any, y: Any, params: dict[str, Any]) -> tuple[Any, Any]:
    """A pipeline with all steps fitted but the last, and that one's X, y and sample weights."""
    pipeline, recorder = clone(pipeline), ArgumentRecorder()
    name, last = pipeline.steps[-1]
    if hasattr(last, "_metadata_request"):
        recorder._metadata_request = deepcopy(last._metadata_request)
    pipeline.set_params(**{name: recorder}).fit(X, y, **params)
    for number, (name, step) in enumerate(pipeline.steps[:-1]):
        if hasattr(step, "transform"):  # neither "passthrough" nor what resamples
            pipeline.steps[number] = name, CachedStep(step)
    return pipeline, pipeline.steps[-1][1].arguments_


def transform_cached(pipeline: Any, subsets: list[Any]) -> list[Any]:
    """What the last step gets of each subset of rows; the others keep what they make of it."""
    for _, step in () if pipeline is None else pipeline.steps:
        if isinstance(step, CachedStep):
            step.cache = [(X, step.transform(X)) for X in subsets]
            subsets = [transformed for _, transformed in step.cache]
    return subsets


def with_last_step(pipeline: Any, model: Any) -> Any:
    """A model after the other steps, if there are any."""
    if pipeline is None:
        return model
    return type(pipeline)([*pipeline.steps[:-1], (pipeline.steps[-1][0], model)])

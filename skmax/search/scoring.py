"""Scores of the models of a stack, whose logits are computed for many models at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from skmax._sklearn import _check_method_params, _safe_split, _score, device, get_namespace
from skmax.search.pipelines import transform_cached, with_last_step
from skmax.search.stacks import Stack, Task
from skmax.validation import to_host

# Models whose logits are computed at once. 64 models on 15,000 rows of 784 features took 2.4 s one
# by one, 1.4 s by fours, 0.5 s by 32 as by 128, whose logits take four times the memory.
_MODELS_AT_ONCE = 32


@dataclass
class Scoring:
    """The data and the splits on which models are scored, and by what."""

    search: Any
    scorer: Any
    X: Any
    y: Any
    splits: list[tuple[Any, Any]]  # indices of the rows to train and to test on
    params: dict[str, Any]  # that the scorer is given

    def subset(self, rows: Any, params: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        """X, y and the parameters of some rows."""
        xp, _ = get_namespace(self.X)
        rows = xp.asarray(rows, device=device(self.X))
        X, y = _safe_split(self.search.estimator, self.X, self.y, rows)
        return X, y, _check_method_params(self.X, params, indices=rows)

    def score(self, stack: Stack, pipeline: Any) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Each task that has a model, and its scores; `pipeline` has the steps before, if any."""
        for split in sorted({task.split for task in stack.tasks}):
            models = [j for j, t in enumerate(stack.tasks) if t.split == split and t.error is None]
            train_rows, test_rows = self.splits[split]
            subsets = [self.subset(test_rows, self.params)]
            if self.search.return_train_score:
                subsets.append(self.subset(train_rows, self.params))
            for first in range(0, len(models), _MODELS_AT_ONCE):
                chunk = models[first : first + _MODELS_AT_ONCE]
                yield from self._score_models(stack, chunk, subsets, pipeline)

    def _score_models(
        self, stack: Stack, models: Sequence[int], subsets: list[Any], pipeline: Any
    ) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Score models of one split."""
        start = time.time()
        cached: list[tuple[Any, Any]] = []
        accuracies: list[np.ndarray] = []
        # What fails here fails again in the scorer, where error_score decides what becomes of it.
        with suppress(Exception):
            transformed = transform_cached(pipeline, [X for X, _, _ in subsets])
            if self._is_accuracy:
                pairs = zip(transformed, subsets, strict=True)
                accuracies = [_accuracy(stack, models, X, y) for X, (_, y, _) in pairs]
            else:
                cached = [(X, stack.logits(models, X)) for X in transformed]
        shared_time = (time.time() - start) / len(models)
        for position, j in enumerate(models):
            start = time.time()
            if accuracies:
                scores = [float(of_models[position]) for of_models in accuracies]
            else:
                model = stack.model(j)
                model.cached_logits = [(X, logits[:, position, :]) for X, logits in cached]
                scores = self._score(with_last_step(pipeline, model), subsets)
            named = dict(zip(("test_scores", "train_scores"), scores, strict=False))
            yield stack.tasks[j], named | {"score_time": shared_time + time.time() - start}

    @property
    def _is_accuracy(self) -> bool:
        """Whether models are scored by the plain share of labels that they predict rightly."""
        scoring = self.search.scoring
        by_name = scoring is None or (isinstance(scoring, str) and scoring == "accuracy")
        if not by_name or self.params or len(np.shape(self.y)) != 1:
            return False
        return np.asarray(to_host(self.y)).dtype.kind in "biufU"  # others are the scorer's business

    def _score(self, model: Any, subsets: list[Any]) -> list[Any]:
        """What the scorer says of each subset."""
        return [
            _score(model, X, y, self.scorer, params, self.search.error_score)
            for X, y, params in subsets
        ]


def _accuracy(stack: Stack, models: Sequence[int], X: Any, y: Any) -> np.ndarray:
    """The accuracy of each of some models of one split: what scikit-learn's scorers give."""
    predicted = stack.predictions(models, X)
    return np.mean(predicted == np.asarray(to_host(y))[:, None], axis=0)

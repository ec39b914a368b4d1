"""All candidates on all splits, in stacks where they can be stacked, else in single fits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.parallel import Parallel, delayed

from skmax._sklearn import _fit_and_score, _MultimetricScorer
from skmax.search.pipelines import fit_prefix, prefix_key, steps_of
from skmax.search.scoring import Scoring
from skmax.search.stacks import Candidate, Task, TrainingData, fail, is_stackable, train_stacks
from skmax.validation import to_host

# Parameters of a fit that stacks do not take, as metadata routing names them.
_VALIDATION = {"X_val", "y_val", "sample_weight_val"}


@dataclass
class Evaluation:
    """All candidates on all splits."""

    scoring: Scoring
    fit_params: dict[str, Any]
    candidates: list[dict[str, Any]]  # their parameters
    context: Any  # of the callbacks of the search

    def __post_init__(self) -> None:
        X, self.search, self.splits = self.scoring.X, self.scoring.search, self.scoring.splits
        n = X.shape[0] if hasattr(X, "shape") else len(X)
        self.train_rows = [np.arange(n)[to_host(train)] for train, _ in self.splits]
        # In a stack, a fold is weights of the rows, 0 or as given: none counts twice.
        self._has_repeated_rows = any((np.bincount(r) > 1).any() for r in self.train_rows)
        self.out: dict[tuple[int, int], dict[str, Any]] = {}

    def run(self) -> list[dict[str, Any]]:
        """What `_fit_and_score` of scikit-learn returns, candidate by candidate."""
        groups: dict[Any, list[Candidate]] = {}
        single_fits = []
        for number, parameters in enumerate(self.candidates):
            estimator = clone(self.search.estimator)
            estimator.set_params(**clone(parameters, safe=False))
            if self._can_be_stacked(estimator):
                key = prefix_key(estimator, parameters) or number
                groups.setdefault(key, []).append(Candidate(number, parameters, estimator))
            else:
                single_fits.append(number)
        for members in groups.values():
            is_pipeline = isinstance(members[0].estimator, Pipeline)
            (self._evaluate_pipelines if is_pipeline else self._evaluate_models)(members)
        self._evaluate_single(single_fits)
        return [self.out[task] for task in sorted(self.out)]

    def _can_be_stacked(self, estimator: Any) -> bool:
        *_, last = steps = steps_of(estimator)
        if not is_stackable(last) or self.scoring.y is None or self._has_repeated_rows:
            return False
        prefix = "" if estimator is last else f"{estimator.steps[-1][0]}__"
        for name in set(self.fit_params) - {f"{prefix}sample_weight"}:
            if name.startswith(prefix) or name in _VALIDATION:  # a single fit refuses or takes it
                return False
        # A callback is told of every epoch of every fit, which a stack does not have.
        return not any(getattr(step, "_skl_callbacks", None) for step in [estimator, *steps])

    def _evaluate_single(self, numbers: Sequence[int]) -> None:
        """As `GridSearchCV` does."""
        search, scoring, n_splits = self.search, self.scoring, len(self.splits)
        pairs = [(number, split) for number in numbers for split in range(n_splits)]
        results = Parallel(n_jobs=search.n_jobs, pre_dispatch=search.pre_dispatch)(
            delayed(_fit_and_score)(
                clone(search.estimator),
                scoring.X,
                scoring.y,
                train=self.splits[split][0],
                test=self.splits[split][1],
                parameters=self.candidates[number],
                split_progress=(split, n_splits),
                candidate_progress=(number, len(self.candidates)),
                scorer=scoring.scorer,
                fit_params=self.fit_params,
                score_params=scoring.params,
                return_train_score=search.return_train_score,
                return_n_test_samples=True,
                return_times=True,
                return_parameters=False,
                error_score=search.error_score,
                verbose=search.verbose,
                caller=search,
                callback_ctx=self._context(number, split),
            )
            for number, split in pairs
        )
        self.out.update(zip(pairs, results, strict=True))

    def _evaluate_models(self, members: Sequence[Candidate]) -> None:
        """Candidates without a pipeline: the rows are the same for all splits."""
        X, y, weight = self.scoring.X, self.scoring.y, self.fit_params.get("sample_weight")
        try:
            data = TrainingData.checked(members[0].estimator, X, y, weight, self.train_rows)
        except Exception:  # what is wrong may be in rows that some folds do not train on
            self._evaluate_single([member.number for member in members])
        else:
            self._train_and_score(self._begin(members, range(len(self.splits))), data)

    def _evaluate_pipelines(self, members: Sequence[Candidate]) -> None:
        """Candidates whose steps before the last are the same: fitted once per split."""
        models = [replace(member, estimator=steps_of(member.estimator)[-1]) for member in members]
        for split, (train, _) in enumerate(self.splits):
            tasks, start = self._begin(models, [split]), time.time()
            try:
                X, y, params = self.scoring.subset(train, self.fit_params)
                pipeline, arguments = fit_prefix(members[0].estimator, X, y, params)
                data = TrainingData.checked(models[0].estimator, *arguments)
            except Exception as error:
                fail(tasks, error, self.search.error_score)
                self._report_failed(tasks)
            else:
                for task in tasks:
                    task.fit_time = (time.time() - start) / len(tasks)
                self._train_and_score(tasks, data, pipeline)

    def _begin(self, members: Sequence[Candidate], splits: Sequence[int]) -> list[Task]:
        tasks = [
            Task(candidate, split, self._context(candidate.number, split))
            for candidate in members
            for split in splits
        ]
        for task in tasks:
            task.context.call_on_fit_task_begin(estimator=self.search)
        return tasks

    def _train_and_score(self, tasks: list[Task], data: Any, pipeline: Any = None) -> None:
        for stack in train_stacks(tasks, data, self.search.error_score):
            for task, scores in self.scoring.score(stack, pipeline):
                self._report(task, scores)
        self._report_failed(tasks)

    def _report_failed(self, tasks: list[Task]) -> None:
        score, scorer = self.search.error_score, self.scoring.scorer
        if isinstance(scorer, _MultimetricScorer):
            score = dict.fromkeys(scorer._scorers, score)
        scores = {"test_scores": score, "score_time": 0.0}
        if self.search.return_train_score:
            scores["train_scores"] = score
        for task in tasks:
            if task.error is not None:
                self._report(task, scores)

    def _report(self, task: Task, scores: dict[str, Any]) -> None:
        """Take down the result of a task."""
        self.out[task.candidate.number, task.split] = {
            "fit_error": task.error,
            "n_test_samples": len(self.splits[task.split][1]),
            "fit_time": task.fit_time,
            **scores,
        }
        task.context.call_on_fit_task_end(estimator=self.search)
        if self.search.verbose > 1:
            self._print(task, scores)

    def _print(self, task: Task, scores: dict[str, Any]) -> None:
        message = ", ".join(
            f"{name}={value}" for name, value in sorted(task.candidate.parameters.items())
        )
        with_scores = self.search.verbose > 2
        for kind in ("test", "train") if with_scores else ():
            values = scores.get(f"{kind}_scores", {})
            values = values if isinstance(values, dict) else {"score": values}
            message += "".join(f", {kind} {name} {v:.3f}" for name, v in values.items())
        number = f" {task.split + 1}/{len(self.splits)}" if with_scores else ""
        print(f"[CV{number}] END {message}; fit time {task.fit_time:.2f}s")

    def _context(self, candidate: int, split: int) -> Any:
        number = candidate * len(self.splits) + split
        return self.context.subcontext(task_name="candidate-split-evaluation", task_id=number)

"""BatchedGridSearchCV: candidates x folds, trained as stacks of models."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from traceback import format_exc
from typing import Any

import joblib
import numpy as np
from scipy import sparse
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.pipeline import Pipeline
from sklearn.utils import indexable
from sklearn.utils.parallel import Parallel, delayed

from skmax._sklearn import (
    _check_method_params,
    _fit_and_score,
    _fit_context,
    _insert_error_scores,
    _MultimetricScorer,
    _safe_split,
    _score,
    _warn_or_raise_about_fit_failures,
    device,
    get_namespace,
)
from skmax.backends import float_dtype_for, resolve
from skmax.estimator import SoftmaxRegression
from skmax.objective import logit_chunks
from skmax.posing import (
    Share,
    coefficients,
    curves,
    plan,
    pose,
    pose_validation,
    solve,
    warn_unless_good,
    watch,
)
from skmax.problem import Problem, State
from skmax.solvers.curvature import MOST_ENTRIES, blocks_per_model
from skmax.stopping import DivergedError, Watch
from skmax.training import train
from skmax.validation import Targets, check_weights, check_X, check_X_y, to_host

# Bytes that the weights of a stack may take, with all that is computed of them; and how many arrays
# of their size that is, in bytes per weight, for SGD and for L-BFGS, which remembers its steps.
_BUDGET, _BYTES_OF_SGD, _BYTES_OF_LBFGS = 1 << 27, 64, 240
# Bytes per row of a column of weights, while it is made.
_BYTES_OF_COLUMN = 24
# Models whose logits are computed at once.
_SCORED = 32
# What candidates may differ in and yet be stacked.
_STACKED = {
    *("C", "l1_ratio", "learning_rate", "momentum", "label_smoothing", "class_weight"),
    *("max_iter", "schedule", "tol", "n_iter_no_change", "validation_fraction"),
}
# What fits alone may be given, and stacks not.
_VALIDATION = {"X_val", "y_val", "sample_weight_val"}


class BatchedGridSearchCV(GridSearchCV):
    """Grid search with cross-validation that trains all candidates and folds side by side.

    It has the interface, the parameters and the fitted attributes of
    :class:`~sklearn.model_selection.GridSearchCV`, for a :class:`SoftmaxRegression` or a
    :class:`~sklearn.pipeline.Pipeline` that ends with one. Candidates that differ in `C`,
    `l1_ratio`, `learning_rate`, `momentum`, `label_smoothing`, `class_weight`, `max_iter`,
    `schedule`, `tol`, `n_iter_no_change` or `validation_fraction` train as one stacked model, which
    reads each minibatch once for all of them and for all folds; those that differ in anything else
    make stacks of their own. Folds are weights of the rows: X is not copied.

    Parameters
    ----------
    estimator : SoftmaxRegression or Pipeline
        What is tuned. Other estimators, and other last steps of a Pipeline, work as in
        `GridSearchCV`, without gain. The other steps of a Pipeline are fitted once per fold and
        values of theirs, and the stacks are then one per fold.
    param_grid : dict or list of dict
        Names of parameters, and the values to try.
    scoring : str, callable, list, tuple or dict, default=None
        How held-out rows are scored. None: accuracy.
    n_jobs : int, default=None
        Processes for candidates that are not stacked.
    refit : bool, str or callable, default=True
        Whether to fit the best candidate on all data; with several scores, which one decides.
    cv : int, splitter or iterable, default=None
        How rows are split. None: 5 stratified folds.
    verbose : int, default=0
        As in `GridSearchCV`.
    pre_dispatch : int or str, default="2*n_jobs"
        As `n_jobs`: for candidates that are not stacked.
    error_score : "raise" or float, default=nan
        The score of a candidate whose fit failed, such as one that has diverged.
    return_train_score : bool, default=False
        Whether to score the rows trained on, too.

    Attributes
    ----------
    cv_results_ : dict of ndarrays
        As in `GridSearchCV`. The fit time of a stacked model is its part of the time of the stack,
        by epochs.
    best_estimator_ : estimator
        The best candidate, fitted to all data.
    best_score_ : float
        Its mean score on held-out rows.
    best_params_ : dict
        Its parameters.
    best_index_ : int
        Its position in `cv_results_`.
    scorer_ : callable or dict of callables
        What has scored.
    n_splits_ : int
        The number of splits.
    refit_time_ : float
        Seconds that the last fit took.
    multimetric_ : bool
        Whether there are several scores.
    classes_ : ndarray of shape (n_classes,)
        The labels.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, where X has names that are all strings.

    Notes
    -----
    A model of a fold sees the batches of the whole data, less the rows held out: as many steps per
    epoch as a fit of its own would take, of as many rows on average. So scores differ from those of
    `GridSearchCV` as two fits with different seeds do; where a batch holds all rows, they agree.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : One fit after the other.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skmax import BatchedGridSearchCV, SoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> grid = {"C": [0.01, 1.0, 100.0]}
    >>> search = BatchedGridSearchCV(SoftmaxRegression(random_state=0), grid).fit(X, y)
    >>> search.best_params_
    {'C': 100.0}
    """

    @_fit_context(prefer_skip_nested_validation=False)  # the estimator is not validated yet
    def fit(self, X, y=None, **params):
        """Score all candidates on all splits, and fit the best one to all data.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The data.
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            Labels, or probabilities, which need a `cv` that does not stratify.
        **params : dict of str -> object
            Passed to the estimator, the scorer and the splitter, as in `GridSearchCV`.

        Returns
        -------
        self : BatchedGridSearchCV
            The fitted search.

        Raises
        ------
        ValueError
            The data are not valid, or all fits failed.

        Warns
        -----
        FitFailedWarning
            Some fits failed: their candidates, and why.
        """
        scorers, refit_metric = self._get_scorers()
        X, y = indexable(X, y)
        params = _check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        weight = params.get("sample_weight")
        metadata = None if weight is None else {"sample_weight": weight}
        arguments = {"estimator": self, "X": X, "y": y, "metadata": metadata}
        context = self._init_callback_context(max_subtasks=1 + (self.refit is not False))
        context.call_on_fit_task_begin(**arguments)

        splits = self._split(X, y, routed.splitter.split)
        candidates = list(ParameterGrid(self.param_grid))
        if self.verbose > 0:
            print(
                f"Fitting {len(splits)} folds for each of {len(candidates)} candidates, totalling "
                f"{len(splits) * len(candidates)} fits"
            )
        searching = context.subcontext(
            task_name="search",
            max_subtasks=len(candidates) * len(splits),
            sequential_subtasks=False,
        ).call_on_fit_task_begin(estimator=self)
        out = _Evaluation(self, scorers, X, y, routed, splits, candidates, searching).run()
        searching.call_on_fit_task_end(estimator=self)
        if not out:
            raise ValueError(
                "No fits were performed. Was the CV iterator empty? Were there no candidates?"
            )
        _warn_or_raise_about_fit_failures(out, self.error_score)
        if callable(self.scoring):
            _insert_error_scores(out, self.error_score)
        results = self._format_results(candidates, len(splits), out)
        self._choose(results, out[0]["test_scores"], refit_metric)
        if self.refit:
            self._refit(context, arguments, routed.estimator.fit)
        multimetric = isinstance(scorers, _MultimetricScorer)
        self.scorer_ = scorers._scorers if multimetric else scorers
        self.cv_results_ = results
        context.call_on_fit_task_end(**arguments)
        return self

    def _split(self, X: Any, y: Any, params: dict[str, Any]) -> list[tuple[Any, Any]]:
        """The splits, as pairs of row indices."""
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        self.n_splits_ = cv.get_n_splits(X, y, **params)
        splits = list(cv.split(X, y, **params))
        if len(splits) != self.n_splits_:
            raise ValueError(
                "cv.split and cv.get_n_splits return inconsistent results. Expected "
                f"{self.n_splits_} splits, got {len(splits)}"
            )
        return splits

    def _choose(self, results: dict[str, Any], scores: Any, metric: Any) -> None:
        """Choose the best candidate; `scores` are those of any one of them on a split."""
        self.multimetric_ = isinstance(scores, dict)
        if callable(self.scoring) and self.multimetric_:
            self._check_refit_for_multimetric(scores)
            metric = self.refit
        if self.refit or not self.multimetric_:
            self.best_index_ = self._select_best_index(self.refit, metric, results)
            if not callable(self.refit):
                self.best_score_ = results[f"mean_test_{metric}"][self.best_index_]
            self.best_params_ = results["params"][self.best_index_]

    def _refit(self, context: Any, arguments: dict[str, Any], fit_params: dict[str, Any]) -> None:
        """Fit the best candidate to all data."""
        best = clone(self.estimator).set_params(**clone(self.best_params_, safe=False))
        refitting = context.subcontext(task_name="refit-with-best-params")
        with refitting.propagate_callback_context(best):
            refitting.call_on_fit_task_begin(**arguments)
            start = time.time()
            targets = () if arguments["y"] is None else (arguments["y"],)
            best.fit(arguments["X"], *targets, **fit_params)
            self.refit_time_ = time.time() - start
        self.best_estimator_ = best
        if hasattr(best, "feature_names_in_"):
            self.feature_names_in_ = best.feature_names_in_
        refitting.call_on_fit_task_end(**arguments)


@dataclass
class _Task:
    """One candidate on one split.

    Attributes
    ----------
    candidate, split : int
        Their positions.
    asked : SoftmaxRegression
        With the parameters of the candidate.
    share : Share or None
        The rows that it learns from.
    held_out : ndarray or None
        Those that stop it early.
    present : ndarray of shape (n_classes,), bool
        The classes that its rows have.
    model : _Stacked or None
        The fitted model, until it is scored.
    error : str or None
        Why there is none.
    seconds : float
        What fitting took.
    """

    candidate: int
    split: int
    asked: Any
    share: Any = None
    held_out: Any = None
    present: Any = None
    model: Any = None
    error: str | None = None
    seconds: float = 0.0


class _Stacked(SoftmaxRegression):
    """A model of a stack, which knows its logits of some rows already."""

    _known: tuple[tuple[Any, Any], ...] = ()

    def _map_logits(self, X: Any, method: str, function: Any) -> Any:
        for rows, logits in self._known:
            if X is rows:
                return function(get_namespace(logits)[0], logits)
        return super()._map_logits(X, method, function)


class _Captured(SoftmaxRegression):
    """The last step of a pipeline, which keeps what it is to be fitted to."""

    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):  # noqa: ARG002
        """Keep the arguments."""
        self.captured_ = X, y, sample_weight
        return self


class _Remembered:
    """A fitted step of a pipeline, which knows what it makes of some rows already."""

    def __init__(self, step: Any, known: Sequence[tuple[Any, Any]]):
        self._step, self._known = step, known

    def transform(self, X: Any, **params: Any) -> Any:
        """What the step makes of X."""
        for rows, result in self._known:
            if X is rows and not params:
                return result
        return self._step.transform(X, **params)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not name.startswith("__sklearn"):  # as copying asks for
            raise AttributeError(name)
        return getattr(self._step, name)


@dataclass
class _Rows:
    """Rows that tasks learn from, checked as a fit would.

    Attributes
    ----------
    X : array or sparse matrix
        Of all rows.
    y : array
        Their labels or probabilities.
    targets : Targets
        Of all rows.
    weight : ndarray or None
        Of all rows.
    attributes : dict
        What checking has set on the estimator.
    shares : dict
        Of (Share, rows held out): the different ones.
    data : dict
        Of the rows of X, by backend and whether they are shuffled.
    """

    X: Any
    y: Any
    targets: Targets
    weight: np.ndarray | None
    attributes: dict[str, Any] = field(default_factory=dict)
    shares: dict[Any, tuple[Share, Any]] = field(default_factory=dict)
    data: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def checked(cls, asked: Any, X: Any, y: Any, weight: Any) -> _Rows:
        """Checked by one of the estimators."""
        probe = clone(asked)
        before = set(vars(probe))
        X, y = check_X_y(probe, X, y, reset=True)
        attributes = {name: value for name, value in vars(probe).items() if name not in before}
        return cls(X, y, Targets.read(y), check_weights(weight, X), attributes)

    def rows_of(self, asked: Any) -> Any:
        """The rows of X where a model computes."""
        key = asked.backend, asked.shuffle
        if key not in self.data:
            backend, dtype = resolve(self.X, asked.backend), float_dtype_for(self.X)
            self.data[key] = backend.rows_of(self.X, dtype, shuffled=asked.shuffle)
        return self.data[key]


class _Evaluation:
    """All candidates on all splits."""

    def __init__(
        self,
        search: BatchedGridSearchCV,
        scorer: Any,
        X: Any,
        y: Any,
        routed: Any,
        splits: list[tuple[Any, Any]],
        candidates: list[dict[str, Any]],
        context: Any,
    ):
        self.search, self.scorer = search, scorer
        self.X, self.y, self.splits, self.candidates = X, y, splits, candidates
        self.fit_params, self.score_params = routed.estimator.fit, routed.scorer.score
        n = self.X.shape[0] if hasattr(self.X, "shape") else len(self.X)
        # Folds as weights count a row once.
        self.train_rows = [np.arange(n)[to_host(train)] for train, _ in splits]
        self._has_repeated_rows = any(len(np.unique(r)) < len(r) for r in self.train_rows)
        self.contexts = [
            context.subcontext(task_name="candidate-split-evaluation", task_id=task)
            for task in range(len(candidates) * len(splits))
        ]
        self.out: dict[tuple[int, int], dict[str, Any]] = {}

    def run(self) -> list[dict[str, Any]]:
        """What `_fit_and_score` of scikit-learn returns, candidate by candidate."""
        groups: dict[Any, list[tuple[int, Any]]] = {}
        alone = []
        for number, parameters in enumerate(self.candidates):
            estimator = clone(self.search.estimator)
            estimator.set_params(**clone(parameters, safe=False))
            if self._can_be_stacked(estimator):
                key = _prefix_key(estimator, parameters) or number
                groups.setdefault(key, []).append((number, estimator))
            else:
                alone.append(number)
        for members in groups.values():
            if isinstance(members[0][1], Pipeline):
                self._run_pipelines(members)
            else:
                self._run_bare(members)
        self._run_alone(alone)
        numbers, splits = range(len(self.candidates)), range(len(self.splits))
        return [self.out[number, split] for number in numbers for split in splits]

    def _can_be_stacked(self, estimator: Any) -> bool:
        last = _last_step(estimator)
        if type(last) is not SoftmaxRegression or self.y is None or self._has_repeated_rows:
            return False
        steps = [estimator]
        names = set(self.fit_params)
        if type(estimator) is Pipeline:
            steps += [step for _, step in estimator.steps]
            names = {name.rpartition("__")[2] for name in names}
        elif estimator is not last:
            return False
        # Callbacks want to be told of every fit.
        return names.isdisjoint(_VALIDATION) and not any(
            getattr(step, "_skl_callbacks", None) for step in steps
        )

    def _run_alone(self, numbers: list[int]) -> None:
        """As `GridSearchCV` does."""
        search = self.search
        pairs = [(number, split) for number in numbers for split in range(len(self.splits))]
        results = Parallel(n_jobs=search.n_jobs, pre_dispatch=search.pre_dispatch)(
            delayed(_fit_and_score)(
                clone(search.estimator),
                self.X,
                self.y,
                train=self.splits[split][0],
                test=self.splits[split][1],
                parameters=self.candidates[number],
                split_progress=(split, len(self.splits)),
                candidate_progress=(number, len(self.candidates)),
                scorer=self.scorer,
                fit_params=self.fit_params,
                score_params=self.score_params,
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

    def _run_bare(self, members: list[tuple[int, Any]]) -> None:
        """Candidates without a pipeline: one set of rows for all splits."""
        tasks = [
            _Task(number, split, asked)
            for number, asked in members
            for split in range(len(self.splits))
        ]
        weight = self.fit_params.get("sample_weight")
        rows = None
        with suppress(Exception):
            rows = _Rows.checked(tasks[0].asked, self.X, self.y, weight)
        if rows is None:  # some folds may do without what is wrong with the data
            self._run_alone([number for number, _ in members])
            return
        self._begin(tasks)
        for task in tasks:
            self._assign(task, rows, self.train_rows[task.split])
        for stack, problem, watching in _stacks(tasks, rows, self._fail):
            self._score_stack(stack, problem, watching)
        for task in tasks:
            if task.error is not None:
                self._report(task, {})

    def _run_pipelines(self, members: list[tuple[int, Any]]) -> None:
        """Candidates whose steps before the last are the same: fitted once per split."""
        for split, (train_rows, _) in enumerate(self.splits):
            tasks = [_Task(number, split, _last_step(pipe)) for number, pipe in members]
            self._begin(tasks)
            start = time.time()
            try:
                first = clone(members[0][1])
                name = first.steps[-1][0]
                first.set_params(**{name: _as(_Captured, first.steps[-1][1])})
                X, y = _safe_split(first, self.X, self.y, self._indices(train_rows))
                params = _check_method_params(
                    self.X, params=self.fit_params, indices=self._indices(train_rows)
                )
                first.fit(X, y, **params)
                rows = _Rows.checked(tasks[0].asked, *first.steps[-1][1].captured_)
            except Exception as error:
                self._fail(tasks, error)
            else:
                for task in tasks:
                    task.seconds = (time.time() - start) / len(tasks)
                    self._assign(task, rows, np.arange(rows.X.shape[0]))
                for stack, problem, watching in _stacks(tasks, rows, self._fail):
                    self._score_stack(stack, problem, watching, first)
            for task in tasks:
                if task.error is not None:
                    self._report(task, {})

    def _assign(self, task: _Task, rows: _Rows, order: np.ndarray) -> None:
        """Decide which rows a task learns from."""
        asked = task.asked
        try:
            asked._validate_params()
            task.present = np.ones(len(rows.targets.classes), dtype=bool)
            if rows.y.ndim == 1 or rows.y.shape[1] == 1:
                labels = rows.targets.labels[order]
                task.present = np.bincount(labels, minlength=len(task.present)) > 0
            key: tuple[Any, ...] = task.split, repr(asked.class_weight)
            if asked.early_stopping:
                seed = joblib.hash(asked.random_state)
                key = *key, asked.validation_fraction, seed
            if key not in rows.shares:
                rows.shares[key] = self._share(asked, rows, order)
            task.share, task.held_out = rows.shares[key]
        except Exception as error:
            self._fail([task], error)

    def _share(self, asked: Any, rows: _Rows, order: np.ndarray) -> tuple[Share, Any]:
        """The rows that a model learns from, and those that stop it early."""
        held_out = None
        if asked.early_stopping:
            rng = clone(asked)._new_rng()
            order, held_out = asked._split(rows.targets, rows.weight, order, rng)
        return Share.of(rows.targets, rows.weight, order, asked.class_weight), held_out

    def _fail(self, tasks: Sequence[_Task], error: Exception) -> None:
        if self.search.error_score == "raise":
            raise error
        for task in tasks:
            task.error = format_exc()
            if isinstance(error, DivergedError):
                task.error = f"ValueError: {error} Candidate: {self.candidates[task.candidate]}\n"

    def _score_stack(
        self,
        tasks: list[_Task],
        problem: Problem,
        watching: Watch,
        pipeline: Any = None,
    ) -> None:
        """Score the models of a stack, split by split."""
        for split in sorted({task.split for task in tasks}):
            mine = [(j, task) for j, task in enumerate(tasks) if task.split == split]
            mine = [(j, task) for j, task in mine if task.error is None]
            if not mine:
                continue
            train_rows, test_rows = map(self._indices, self.splits[split])
            parts = [(test_rows, *_safe_split(self.search.estimator, self.X, self.y, test_rows))]
            if self.search.return_train_score:
                of_train = _safe_split(self.search.estimator, self.X, self.y, train_rows)
                parts.append((train_rows, *of_train))
            for first in range(0, len(mine), _SCORED):
                self._score_some(mine[first : first + _SCORED], parts, problem, watching, pipeline)

    def _score_some(
        self,
        mine: list[tuple[int, _Task]],
        parts: list[Any],
        problem: Problem,
        watching: Watch,
        pipeline: Any,
    ) -> None:
        """Score models of a stack and a split, from logits that are computed at once."""
        start = time.time()
        transformed, known = [[part[1]] for part in parts], []
        # What fails here fails again where the scorer asks for it, and is dealt with there.
        with suppress(Exception):
            if pipeline is not None:
                transformed = [_transformed(pipeline, part[1]) for part in parts]
            known = [
                (chain[-1], self._logits(mine, chain[-1], problem, watching))
                for chain in transformed
            ]
        shared = (time.time() - start) / len(mine)
        for position, (_, task) in enumerate(mine):
            task.model._known = tuple((X, logits(position, task)) for X, logits in known)
            model = task.model
            if pipeline is not None:
                model = _remembering(pipeline, transformed if known else [], task.model)
            self._score(task, model, parts, shared)
            task.model = None

    def _logits(
        self, mine: list[tuple[int, _Task]], X: Any, problem: Problem, watching: Watch
    ) -> Any:
        """What gives the logits of rows X by one of the models, all computed in one pass."""
        checked = check_X(mine[0][1].model, X)
        backend, k = problem.backend, problem.n_classes
        data = backend.rows_of(checked, float_dtype_for(checked))
        data = data.with_(shift=problem.data.shift, dtype=problem.data.dtype)
        kept = [watching.weights.kept[j] or () for j, _ in mine]
        coef, intercept = (backend.xp.concat(list(arrays)) for arrays in zip(*kept, strict=True))
        width = coef.shape[0]
        chunks = logit_chunks(data, coef, intercept, np.arange(data.n_samples))
        parts = [backend.xp.reshape(part, (-1, width)) for part in chunks]
        everything = backend.xp.concat(parts)

        def of(position: int, task: _Task) -> Any:
            logits = everything[:, position * k : (position + 1) * k]
            masked = backend.asarray(problem.masked[mine[position][0]])
            logits = backend.xp.where(masked, -np.inf, logits)
            present = backend.asarray(np.flatnonzero(task.present))
            logits = backend.xp.take(logits, present, axis=1)
            if logits.shape[1] == 2:  # as of one row of weights
                difference = logits[:, 1:] - logits[:, :1]
                zeros = backend.xp.zeros_like(difference)
                logits = backend.xp.concat([zeros, difference], axis=1)
            if sparse.issparse(checked) or isinstance(checked, np.ndarray):
                return backend.to_numpy(logits)
            return logits

        return of

    def _score(self, task: _Task, model: Any, parts: list[Any], shared: float) -> None:
        search, start = self.search, time.time()
        scores = []
        for indices, X, y in parts:
            params = _check_method_params(self.X, params=self.score_params, indices=indices)
            scores.append(_score(model, X, y, self.scorer, params, search.error_score))
        self._report(task, dict(zip(("test_scores", "train_scores"), scores, strict=False)))
        self.out[task.candidate, task.split]["score_time"] = shared + time.time() - start

    def _report(self, task: _Task, scores: dict[str, Any]) -> None:
        """Take down the result of a task."""
        search, scorer = self.search, self.scorer
        if task.error is not None:
            failed: Any = search.error_score
            if isinstance(scorer, _MultimetricScorer):
                failed = dict.fromkeys(scorer._scorers, failed)
            scores = {"test_scores": failed}
            if search.return_train_score:
                scores["train_scores"] = deepcopy(failed)
        self.out[task.candidate, task.split] = {
            "fit_error": task.error,
            **scores,
            "n_test_samples": len(self.splits[task.split][1]),
            "fit_time": task.seconds,
            "score_time": 0.0,
        }
        self._context(task.candidate, task.split).call_on_fit_task_end(estimator=search)
        if search.verbose > 1:
            self._print(task, scores)

    def _print(self, task: _Task, scores: dict[str, Any]) -> None:
        parameters = self.candidates[task.candidate]
        message = ", ".join(f"{name}={parameters[name]}" for name in sorted(parameters))
        if self.search.verbose > 2:
            for part, values in scores.items():
                values = values if isinstance(values, dict) else {"score": values}
                message += "".join(f", {part[:-7]} {name} {v:.3f}" for name, v in values.items())
        number = f" {task.split + 1}/{len(self.splits)}" if self.search.verbose > 2 else ""
        print(f"[CV{number}] END {message}; fit time {task.seconds:.2f}s")

    def _begin(self, tasks: Sequence[_Task]) -> None:
        for task in tasks:
            context = self._context(task.candidate, task.split)
            context.call_on_fit_task_begin(estimator=self.search)

    def _context(self, candidate: int, split: int) -> Any:
        return self.contexts[candidate * len(self.splits) + split]

    def _indices(self, rows: Any) -> Any:
        """Row indices where X is."""
        xp, _ = get_namespace(self.X)
        return xp.asarray(rows, device=device(self.X))


def _last_step(estimator: Any) -> Any:
    return estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator


def _prefix_key(estimator: Any, parameters: dict[str, Any]) -> str | None:
    """Equal for candidates that differ only in the last step's parameters; None: like no other."""
    if not isinstance(estimator, Pipeline):
        return "no steps before"
    last = estimator.steps[-1][0] + "__"
    try:
        return joblib.hash({k: v for k, v in parameters.items() if not k.startswith(last)})
    except Exception:  # it pickles, which functions of no name do not survive
        return None


def _as(kind: type, asked: Any) -> Any:
    """An unfitted estimator of another class, with the same parameters and metadata requests."""
    other = kind(**asked.get_params(deep=False))
    if hasattr(asked, "_metadata_request"):
        other._metadata_request = deepcopy(asked._metadata_request)
    return other


def _transformed(pipeline: Any, X: Any) -> list[Any]:
    """X and what it becomes after each step but the last."""
    chain = [X]
    for _, step in pipeline.steps[:-1]:
        passes = step is None or step == "passthrough"
        chain.append(chain[-1] if passes else step.transform(chain[-1]))
    return chain


def _remembering(pipeline: Any, chains: list[list[Any]], model: Any) -> Any:
    """The fitted pipeline with another last step, which transforms no rows twice."""
    steps = []
    for number, (name, step) in enumerate(pipeline.steps[:-1]):
        if step is not None and step != "passthrough":
            step = _Remembered(step, [(chain[number], chain[number + 1]) for chain in chains])
        steps.append((name, step))
    return Pipeline([*steps, (pipeline.steps[-1][0], model)])


def _stacks(
    tasks: list[_Task], rows: _Rows, fail: Any
) -> Iterator[tuple[list[_Task], Problem, Watch]]:
    """Train the tasks, in as few stacks as there can be; their models are set."""
    groups: dict[Any, list[_Task]] = {}
    n_classes, d = len(rows.targets.classes), rows.X.shape[1]
    for task in tasks:
        if task.share is not None:
            try:
                groups.setdefault(_stack_key(task, rows), []).append(task)
            except Exception as error:
                fail([task], error)
    n = len(rows.targets.values)
    for key, members in groups.items():
        how, size = key[:2]
        members.sort(key=lambda task: task.split)  # few splits per stack are few columns of weights
        of_rows = _BYTES_OF_COLUMN * n * len({id(task.share) for task in members}) // len(members)
        most = _most_models(how, n_classes, d + 1, size or n, of_rows)
        for some in np.array_split(np.arange(len(members)), -(-len(members) // most)):
            waiting = [[members[position] for position in some]]
            while waiting:
                stack = waiting.pop()
                try:
                    problem, watching = _train(stack, rows, how, fail)
                except Exception as error:
                    if len(stack) == 1:
                        fail(stack, error)
                    else:  # half of them may do without the one that failed, or fit the memory
                        half = len(stack) // 2
                        waiting += [stack[half:], stack[:half]]
                    continue
                yield stack, problem, watching


def _stack_key(task: _Task, rows: _Rows) -> tuple[Any, ...]:
    """How a task is trained, the size of its batches, and whatever models of a stack agree on."""
    asked, share = task.asked, task.share
    n, targets = len(share.order), rows.targets
    how = plan(asked, rows.rows_of(asked), n, len(targets.classes))
    size = min(n, 200 if asked.batch_size == "auto" else asked.batch_size)
    others = {name: v for name, v in asked.get_params(deep=False).items() if name not in _STACKED}
    # Batches that hold all rows of a fold hold all rows of the data.
    key: tuple[Any, ...] = how, 0 if size == n else size, -(-n // size), joblib.hash(others)
    if how != "sgd":  # the curvature of all models is of one kind
        key = *key, asked.l1_ratio > 0 and np.isfinite(asked.C)
    if targets.values.ndim == 2 and asked.class_weight is not None:  # which are then in the targets
        balanced = isinstance(asked.class_weight, str)
        key = *key, repr(asked.class_weight), share.order.tobytes() if balanced else None
    return key


def _most_models(how: str, k: int, d: int, batch: int, of_rows: int) -> int:
    """How many models of k classes and d features, the constant one included, fit the budget.

    `batch` is the number of rows in a batch, `of_rows` the bytes that the weights of rows take.
    """
    others = 16 * k * batch + of_rows
    if how == "sgd":
        return max(1, _BUDGET // (_BYTES_OF_SGD * k * d + others))
    most = _BUDGET // (_BYTES_OF_LBFGS * k * d + others)
    blocks = blocks_per_model(1, k, d) * d * d
    return max(1, min(most, MOST_ENTRIES // blocks, _BUDGET // (24 * blocks)) if blocks else most)


def _train(tasks: list[_Task], rows: _Rows, how: str, fail: Any) -> tuple[Problem, Watch]:
    """Train a stack."""
    start = time.time()
    parameters, first = [task.asked for task in tasks], tasks[0].asked
    X, data = rows.X, rows.rows_of(first)
    shares, columns = _unique([task.share for task in tasks])
    problem, _ = pose(data, shares, columns, parameters)
    rng = clone(first)._new_rng()
    validation = None
    if first.early_stopping:
        rng.integers(np.iinfo(np.int32).max)  # as the split has drawn
        held_out = [task.held_out for task in tasks]
        validation = pose_validation(problem, problem.data, rows.targets, rows.weight, held_out)
    n_rows = np.array([len(task.share.order) for task in tasks])
    epochs, max_iter = solve(how, parameters, problem, State.start(problem), rng, n_rows)
    watching = watch(parameters, problem, validation, max_iter)
    with suppress(DivergedError):
        train(epochs, watching.consumers)
    lengths = np.array([len(loss) for loss in watching.record.loss])
    seconds = (time.time() - start) * lengths / max(1, lengths.sum())
    for j, task in enumerate(tasks):
        task.seconds += float(seconds[j])
        if j in watching.divergence.errors:
            fail([task], DivergedError(watching.divergence.errors[j]))
            continue
        known = int(np.sum(~problem.masked[j]))
        warn_unless_good(task.asked, watching, int(max_iter[j]), known, j)
        task.model = _as(_Stacked, task.asked)
        vars(task.model).update(
            rows.attributes,
            classes_=rows.targets.classes[task.present],
            **curves(watching, j),
            **coefficients(X, problem, watching.weights, j, task.present),
        )
    return problem, watching


def _unique(shares: list[Share]) -> tuple[list[Share], np.ndarray]:
    """The different shares, and the position of each model's."""
    unique = list({id(share): share for share in shares}.values())
    positions = {id(share): position for position, share in enumerate(unique)}
    return unique, np.array([positions[id(share)] for share in shares])

"""BatchedGridSearchCV: candidates x folds, trained as stacks of models and along paths of C."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.utils import indexable

from skmax._sklearn import (
    _check_method_params,
    _fit_context,
    _insert_error_scores,
    _MultimetricScorer,
    _warn_or_raise_about_fit_failures,
)
from skmax.annotations import Data
from skmax.search.evaluation import Evaluation
from skmax.search.scoring import Scoring

ParamGrid: TypeAlias = Mapping[str, Sequence[Any] | NDArray[Any]]


class BatchedGridSearchCV(GridSearchCV):
    """Grid search with cross-validation that trains all candidates and folds side by side.

    It has the interface, the parameters and the fitted attributes of
    :class:`~sklearn.model_selection.GridSearchCV`, for a :class:`SoftmaxRegression` or a
    :class:`~sklearn.pipeline.Pipeline` that ends with one, or one of imbalanced-learn's, which may
    resample what is learned from. Candidates that differ in `C`,
    `l1_ratio`, `learning_rate`, `momentum`, `label_smoothing`, `class_weight`, `max_iter`,
    `schedule`, `tol`, `n_iter_no_change` or `validation_fraction` train as one stacked model, which
    reads each minibatch once for all of them and for all folds; those that differ in anything else
    make stacks of their own. With a solver that goes to the optimum, those that differ in `C` only
    follow each other, from strong to weak penalties, all folds at once: each starts from the optima
    before it, extrapolated. Only L-BFGS on a GPU, for which a wide stack costs less than many
    iterations, trains them side by side, too. Folds are weights of the rows: X is not copied, but
    once where L-BFGS goes over many rows, sorted by the fold that holds them out.

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
        by epochs or iterations.
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
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where X has names that are all strings.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : One fit after the other.

    Notes
    -----
    A model of a fold sees the batches of the whole data, less the rows held out: as many steps per
    epoch as a fit of its own would take, of as many rows on average. So scores differ from those of
    `GridSearchCV` as two fits with different seeds do; where a batch holds all rows, they agree.
    With a solver that goes to the optimum, they agree as far as `tol` goes: every model ends where
    a fit of its own would, within `tol` of the optimum or with a ConvergenceWarning, but makes
    fewer iterations. With `early_stopping`, which depends on the way there, nothing follows.

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

    cv_results_: dict[str, Any]
    best_estimator_: Any
    best_score_: float
    best_params_: dict[str, Any]
    best_index_: int
    scorer_: Any
    n_splits_: int
    refit_time_: float
    multimetric_: bool
    feature_names_in_: NDArray[np.object_]

    def __init__(
        self,
        estimator: Any,
        param_grid: ParamGrid | Sequence[ParamGrid],
        *,
        scoring: str | Callable[..., Any] | Collection[str] | Mapping[str, Any] | None = None,
        n_jobs: int | None = None,
        refit: bool | str | Callable[..., Any] = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: int | str = "2*n_jobs",
        error_score: float | Literal["raise"] = np.nan,
        return_train_score: bool = False,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )

    @_fit_context(prefer_skip_nested_validation=False)  # the estimator is not validated yet
    def fit(self, X: Data, y: Data | None = None, **params: Any) -> Self:
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

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skmax import BatchedGridSearchCV, SoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> search = BatchedGridSearchCV(SoftmaxRegression(), {"C": [1e-4, 1.0]}, cv=3)
        >>> search.fit(X, y).cv_results_["rank_test_score"]
        array([2, 1], dtype=int32)
        >>> search.best_estimator_
        SoftmaxRegression()
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
        candidates, out = self._evaluate(context, scorers, X, y, routed)
        results = self._format_results(candidates, self.n_splits_, out)
        self._choose(results, out[0]["test_scores"], refit_metric)
        if self.refit:
            self._refit(context, arguments, routed.estimator.fit)
        self.scorer_ = scorers._scorers if isinstance(scorers, _MultimetricScorer) else scorers
        self.cv_results_ = results
        context.call_on_fit_task_end(**arguments)
        return self

    def _evaluate(self, context: Any, scorers: Any, X: Any, y: Any, routed: Any) -> tuple[Any, Any]:
        """The candidates, and the results of each on each split, candidate by candidate."""
        splits = self._split(X, y, routed.splitter.split)
        candidates = list(ParameterGrid(self.param_grid))
        k, n = len(splits), len(candidates)
        if self.verbose > 0:
            print(f"Fitting {k} folds for each of {n} candidates, totalling {k * n} fits")
        searching = context.subcontext(
            task_name="search", max_subtasks=k * n, sequential_subtasks=False
        ).call_on_fit_task_begin(estimator=self)
        scoring = Scoring(self, scorers, X, y, splits, routed.scorer.score)
        out = Evaluation(scoring, routed.estimator.fit, candidates, searching).run()
        searching.call_on_fit_task_end(estimator=self)
        if not out:
            raise ValueError("No fits were performed: there are no splits, or no candidates.")
        _warn_or_raise_about_fit_failures(out, self.error_score)
        if callable(self.scoring):
            _insert_error_scores(out, self.error_score)
        return candidates, out

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

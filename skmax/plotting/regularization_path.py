"""What a penalty does: coefficients and validation scores along C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression
from sklearn import get_config
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import check_scalar

from skmax.annotations import AxesLike, Data
from skmax.estimator import SoftmaxRegression
from skmax.plotting.common import arrange_axes, import_pyplot, name_classes, to_numpy
from skmax.search import BatchedGridSearchCV
from skmax.search.pipelines import fit_prefix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Told apart by most of the colour-blind, on black and on white: M. Okabe and K. Ito, Color
# Universal Design, 2008, without its black and its yellow.
_COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]
_GREY = "#8c8c8c"
# Lines in grey: more make the picture no richer, and what is left out is smaller than those.
_MAX_GREY_LINES = 1000
_LABEL_SIZE, _LONGEST_NAME = 8, 22  # points, characters
_SEVERAL = "scoring={!r} asks for several scores. Pass one."
_TOUCHING = {"relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 0}  # from the left of a name to its line


class RegularizationPathDisplay:
    """Coefficients and validation score along C, from a strong penalty to none to speak of.

    Above, a line is the coefficient of a feature for a class. Those that are largest at the best C
    are named, in the colour of their class, and make the scale; the others are grey, and of more
    than 1000 the largest 1000 are drawn. Where a penalty sets coefficients to zero, the upper edge
    tells how many are left.

    Below is the mean score of the rows held out, in a band of one standard error of it. A line
    marks the C with the best mean, a dashed one the least C whose mean is within one standard error
    of the best: the simplest model about as good as the best [1]_ [2]_.

    Use :meth:`from_estimator` to compute the path of an estimator.

    Parameters
    ----------
    C : array-like of shape (n_values,)
        Inverse strengths of the penalty, ascending.
    coef : array-like of shape (n_values, n_classes, n_features)
        Coefficients for each C; of two classes (n_values, 1, n_features), those that speak for the
        second.
    test_scores : array-like of shape (n_values, n_splits)
        Scores of rows held out, for each C and split. Greater is better.
    class_names : sequence of str of length n_classes, default=None
        Names of the classes; by default their numbers.
    feature_names : sequence of str of length n_features, default=None
        Names of the features; by default x0, x1, and so on.
    score_name : str, default=None
        Name of the score; by default "score".

    Attributes
    ----------
    best_C_ : float
        The value of C with the greatest mean score, the least one of several.
    one_standard_error_C_ : float
        The least C whose mean score is at most one standard error below the greatest. NaN if there
        is one split only, which tells nothing of errors.
    axes_ : ndarray of matplotlib Axes
        Axes of the coefficients and of the score, of shape (2, 1), or as they were given.
    bounding_ax_ : matplotlib Axes or None
        The Axes that were subdivided; None if two were given.
    figure_ : matplotlib Figure
        Figure that holds them.
    lines_ : list of matplotlib Line2D
        The named coefficients, largest first, then the mean score.
    grey_lines_ : matplotlib LineCollection
        The other coefficients.
    fill_between_ : matplotlib PolyCollection or None
        The band around the mean score; None if there is one split.

    See Also
    --------
    sklearn.model_selection.ValidationCurveDisplay : Scores along any parameter.

    Notes
    -----
    The standard error is that of a mean of `n_splits` scores that do not depend on each other:
    their standard deviation, with `n_splits - 1` in the denominator, over the square root of
    `n_splits`. Those of folds do, since folds share rows to train on, and it is then rather too
    small [3]_.

    Sizes of coefficients compare only where features have about the same spread: a feature in
    grammes has a thousandth of the coefficient of the same in kilogrammes. A
    :class:`~sklearn.preprocessing.StandardScaler` before the model sees to that.

    References
    ----------
    .. [1] L. Breiman, J. Friedman, R. Olshen and C. Stone, Classification and Regression Trees,
       1984, section 3.4.3 (the 1 SE rule).
    .. [2] T. Hastie, R. Tibshirani and J. Friedman, The Elements of Statistical Learning, 2nd
       edition, 2009, section 7.10.1.
    .. [3] Y. Bengio and Y. Grandvalet, No Unbiased Estimator of the Variance of K-Fold
       Cross-Validation, Journal of Machine Learning Research 5, 2004.

    Examples
    --------
    >>> from skmax.plotting import RegularizationPathDisplay
    >>> display = RegularizationPathDisplay(
    ...     C=[0.1, 1.0, 10.0],
    ...     coef=[[[0.1, 0.0]], [[0.5, -0.1]], [[0.9, -0.3]]],
    ...     test_scores=[[0.7, 0.8, 0.7], [0.8, 0.9, 0.9], [0.9, 0.9, 0.9]],
    ... )
    >>> display.plot()
    <...>
    >>> display.best_C_
    10.0
    """

    axes_: np.ndarray
    bounding_ax_: Axes | None
    figure_: Figure
    lines_: list[Line2D]
    grey_lines_: LineCollection
    fill_between_: PolyCollection | None

    def __init__(
        self,
        *,
        C: ArrayLike,
        coef: ArrayLike,
        test_scores: ArrayLike,
        class_names: Sequence[str] | None = None,
        feature_names: Sequence[str] | None = None,
        score_name: str | None = None,
    ) -> None:
        self.C: Any = C
        self.coef = coef
        self.test_scores: Any = test_scores
        self.class_names = class_names
        self.feature_names = feature_names
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Data,
        y: Data,
        *,
        Cs: int | ArrayLike = 10,
        cv: Any = None,
        scoring: str | Callable[..., Any] | None = None,
        sample_weight: Data | None = None,
        class_names: Sequence[str] | None = None,
        feature_names: Sequence[str] | None = None,
        score_name: str | None = None,
        negate_score: bool = False,
        n_labels: int = 12,
        ax: AxesLike = None,
        line_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Compute and draw the path of an estimator.

        The scores are those of a :class:`~skmax.BatchedGridSearchCV` over C, the coefficients those
        of fits to all rows, each of which starts from the one before. (With "sgd" or
        `early_stopping`, whose end depends on the start, all start from zero.) The estimator itself
        is not fitted, and its own `C` plays no part.

        Parameters
        ----------
        estimator : SoftmaxRegression or Pipeline
            What is to be fitted; a Pipeline ends with a SoftmaxRegression.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The data.
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            Labels, or probabilities, which need a `cv` that does not stratify.
        Cs : int or array-like of shape (n_values,), default=10
            The values of C, in any order; or how many, evenly spaced in the logarithm from 1e-4 to
            1e4, as in :class:`~sklearn.linear_model.LogisticRegressionCV`.
        cv : int, splitter or iterable, default=None
            How rows are split. None: 5 stratified folds.
        scoring : str or callable, default=None
            How held-out rows are scored. None: accuracy.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows, in fits and, where the scorer takes weights, in scores. With a
            Pipeline, they count in the fits of its last step only.
        class_names : sequence of str of length n_classes, default=None
            Names of the classes, in their order; by default the classes themselves.
        feature_names : sequence of str of length n_features, default=None
            Names of the features that the SoftmaxRegression sees; by default those that the data,
            or the other steps of the Pipeline, give them, or else x0, x1, and so on.
        score_name : str, default=None
            Name of the score; by default that of `scoring`.
        negate_score : bool, default=False
            Whether to draw minus the score, such as the log loss of `scoring="neg_log_loss"`.
        n_labels : int, default=12
            Number of coefficients that are named.
        ax : matplotlib Axes or array-like of two Axes, default=None
            One Axes is subdivided (best in a figure with `layout="constrained"`, which makes room
            for the names), two are used as they are; by default a new figure.
        line_kw : dict, default=None
            Keywords for the lines of named coefficients and of the score, passed to
            `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : RegularizationPathDisplay
            What was drawn.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        TypeError
            If the estimator is neither a SoftmaxRegression nor a Pipeline that ends with one, or
            `scoring` asks for several scores.
        ValueError
            If `Cs` are no positive finite numbers, or fewer than two; if names do not fit; or if
            the data are not valid.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skmax import SoftmaxRegression
        >>> from skmax.plotting import RegularizationPathDisplay
        >>> X, y = load_iris(return_X_y=True, as_frame=True)
        >>> display = RegularizationPathDisplay.from_estimator(SoftmaxRegression(), X, y)
        >>> print(f"{display.best_C_:.3g}, {display.one_standard_error_C_:.3g}")
        21.5, 2.78
        """
        import_pyplot(f"{cls.__name__}.from_estimator")
        Cs = _as_grid(Cs)
        model, name_of_score = _model_of(estimator), _name_score(scoring, negate_score)
        weights = _fit_params(estimator, sample_weight)
        test_scores = _scores_along(estimator, Cs, X, y, weights, cv=cv, scoring=scoring)
        prefix = None
        if model is not estimator:
            pipeline, (X, y, sample_weight) = fit_prefix(estimator, X, y, weights)
            prefix = pipeline[:-1]
        coef, model = _coef_along(clone(model), Cs, X, y, sample_weight)
        if feature_names is None:
            feature_names = _feature_names(prefix, model)
        display = cls(
            C=Cs,
            coef=coef,
            test_scores=test_scores,
            class_names=name_classes(to_numpy(model.classes_), class_names),
            feature_names=feature_names,
            score_name=name_of_score if score_name is None else score_name,
        )
        return display.plot(ax=ax, negate_score=negate_score, n_labels=n_labels, line_kw=line_kw)

    @property
    def best_C_(self) -> float:
        """The value of C with the greatest mean score, the least one of several."""
        return float(self.C[_best(self.test_scores)])

    @property
    def one_standard_error_C_(self) -> float:
        """The least C whose mean score is at most one standard error below the greatest.

        NaN if there is one split only, which tells nothing of errors.
        """
        means, best = np.mean(self.test_scores, axis=1), _best(self.test_scores)
        error = _standard_errors(self.test_scores)[best]
        if np.isnan(error):
            return float("nan")
        return float(self.C[np.flatnonzero(means >= means[best] - error)[0]])

    def plot(
        self,
        ax: AxesLike = None,
        *,
        negate_score: bool = False,
        n_labels: int = 12,
        line_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw the path.

        Parameters
        ----------
        ax : matplotlib Axes or array-like of two Axes, default=None
            One Axes is subdivided (best in a figure with `layout="constrained"`, which makes room
            for the names), two are used as they are; by default a new figure.
        negate_score : bool, default=False
            Whether to draw minus the score.
        n_labels : int, default=12
            Number of coefficients that are named.
        line_kw : dict, default=None
            Keywords for the lines of named coefficients and of the score, passed to
            `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : RegularizationPathDisplay
            The display itself.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        ValueError
            If `ax` has another number of Axes than one or two, or the arrays of the display do not
            fit each other.

        Examples
        --------
        >>> from skmax.plotting import RegularizationPathDisplay
        >>> display = RegularizationPathDisplay(
        ...     C=[0.1, 1.0, 10.0],
        ...     coef=[[[0.1, 0.0]], [[0.5, -0.1]], [[0.9, -0.3]]],
        ...     test_scores=[[0.7, 0.8, 0.7], [0.8, 0.9, 0.9], [0.9, 0.9, 0.9]],
        ... )
        >>> display.plot(n_labels=1).axes_.shape
        (2, 1)
        """
        plt = import_pyplot(f"{type(self).__name__}.plot")
        check_scalar(n_labels, "n_labels", Integral, min_val=0)
        C, coef, scores = _check_arrays(self.C, self.coef, self.test_scores)
        features, classes = self._names(coef)
        self.bounding_ax_, self.axes_ = arrange_axes(
            plt, ax, (2, 1), 2, figsize=(7, 5.6), height_ratios=(2, 1)
        )
        upper, lower = self.axes_.flat
        self.figure_ = upper.figure
        for axes in upper, lower:
            axes.set(xscale="log", xlim=(C[0], C[-1]))
        if self.bounding_ax_ is not None:
            upper.tick_params(labelbottom=False)
        largest = _largest(np.abs(coef[_best(scores)]), np.abs(coef).max(axis=0), n_labels)
        self._plot_coefficients(upper, C, coef, largest, line_kw)
        if largest:
            self._name_coefficients(upper, largest, features, classes)
        _tell_zeros(upper, C, coef)
        self._plot_scores(lower, C, -scores if negate_score else scores, line_kw)
        self._mark_choices(upper, lower)
        return self

    def _names(self, coef):
        """Names of the features, and of the class that each row of coefficients speaks for."""
        _, n_rows, n_features = coef.shape
        names = self.feature_names
        features = [f"x{j}" for j in range(n_features)] if names is None else list(names)
        if len(features) != n_features:
            raise ValueError(
                f"feature_names has {len(features)} names for {n_features} features. Pass one for "
                "each, or None."
            )
        n_classes = max(n_rows, 2)
        classes = name_classes(np.arange(n_classes), self.class_names)
        return features, classes if n_rows > 1 else classes[1:]

    def _plot_coefficients(self, axes, C, coef, largest, line_kw):
        """Draw the largest coefficients in the colours of their classes, others in grey."""
        from matplotlib.collections import LineCollection

        paths = [np.column_stack([C, others]) for others in _largest_others(coef, largest)]
        self.grey_lines_ = axes.add_collection(
            LineCollection(paths, colors=_GREY, linewidths=0.6, alpha=0.5, zorder=1),
            autolim=not largest,  # few that grow without bound would leave the others no room
        )
        shown = sorted({i for i, _ in largest})
        colors = {i: _COLORS[order % len(_COLORS)] for order, i in enumerate(shown)}
        self.lines_ = [
            axes.plot(C, coef[:, i, j], **_style(line_kw, color=colors[i]))[0] for i, j in largest
        ]
        axes.axhline(0, color=_GREY, linewidth=0.8, zorder=1)
        axes.set_ylabel("coefficient")

    def _name_coefficients(self, axes, largest, features, classes):
        """Write the names of the largest coefficients, and what the colours are."""
        features, classes = _shorten(features), _shorten(classes)
        shown = sorted({i for i, _ in largest})
        if len(shown) <= len(_COLORS):
            names = [features[j] for _, j in largest]
            line_of = {i: line for line, (i, _) in zip(self.lines_, largest, strict=True)}
            handles, labels = [line_of[i] for i in shown], [classes[i] for i in shown]
            axes.legend(handles, labels, loc="upper left", fontsize=_LABEL_SIZE)
        else:
            names = [f"{features[j]}, {classes[i]}" for i, j in largest]
        _write_beside(axes, self.lines_, names)

    def _plot_scores(self, axes, C, scores, line_kw):
        """Draw the mean score in a band of one standard error."""
        means, errors = scores.mean(axis=1), _standard_errors(scores)
        style = _style(line_kw, color=_COLORS[0])
        self.lines_ += axes.plot(C, means, **style)
        self.fill_between_ = None
        if np.isfinite(errors).any():
            band = {"color": self.lines_[-1].get_color(), "alpha": 0.3, "linewidth": 0}
            self.fill_between_ = axes.fill_between(C, means - errors, means + errors, **band)
        axes.set(xlabel="C", ylabel=self.score_name or "score")

    def _mark_choices(self, upper, lower):
        """Draw lines at the best C, and at the least C that is about as good."""
        choices = ("best", self.best_C_), ("one standard error", self.one_standard_error_C_)
        how = {"color": upper.yaxis.label.get_color(), "linewidth": 0.9, "zorder": 1.5}
        marks = []
        for (name, C), style in zip(choices, ("-", "--"), strict=True):
            if np.isfinite(C):
                upper.axvline(C, linestyle=style, **how)
                label = f"{name}:\nC = {C:.3g}"
                marks.append(lower.axvline(C, linestyle=style, label=label, **how))
        beside = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0}
        lower.legend(handles=marks, fontsize=_LABEL_SIZE, frameon=False, **beside)


def _as_grid(Cs: Any) -> np.ndarray:
    """The values of C, ascending, none twice."""
    if isinstance(Cs, Integral):
        check_scalar(Cs, "Cs", Integral, min_val=2)
        return np.logspace(-4, 4, Cs)
    values = np.asarray(Cs, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"Cs has {values.ndim} dimensions. Pass a number, or a list of values.")
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if len(wrong):
        raise ValueError(
            f"Cs contains {wrong[0]}, which has no place on a logarithmic axis. Pass finite values "
            "greater than 0; 1e10 is next to no penalty."
        )
    values = np.unique(values)
    if len(values) < 2:
        raise ValueError(f"Cs has {len(values)} distinct values. A path needs two or more.")
    return values


def _model_of(estimator: Any) -> SoftmaxRegression:
    """An estimator itself, or the last step of a Pipeline."""
    model = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    if not isinstance(model, SoftmaxRegression):
        found = type(estimator).__name__
        if model is not estimator:
            found += f" that ends with {type(model).__name__}"
        raise TypeError(
            f"Cannot draw the path of a {found}. Pass a SoftmaxRegression, or a Pipeline that ends "
            "with one."
        )
    return model


def _fit_params(estimator: Any, sample_weight: Any) -> dict[str, Any]:
    """What `fit` is told of the weights of the rows, if anything."""
    if sample_weight is None:
        return {}
    is_routed = get_config()["enable_metadata_routing"] or not isinstance(estimator, Pipeline)
    last = "" if is_routed else f"{estimator.steps[-1][0]}__"
    return {f"{last}sample_weight": sample_weight}


def _scores_along(
    estimator: Any, Cs: np.ndarray, X: Any, y: Any, params: dict[str, Any], *, cv: Any, scoring: Any
) -> np.ndarray:
    """Scores of the rows held out, of shape (n_values, n_splits)."""
    last = f"{estimator.steps[-1][0]}__" if isinstance(estimator, Pipeline) else ""
    search = BatchedGridSearchCV(
        clone(estimator), {f"{last}C": Cs.tolist()}, cv=cv, scoring=scoring, refit=False
    )
    search.fit(X, y, **params)
    if search.multimetric_:
        raise TypeError(_SEVERAL.format(scoring))
    splits = [search.cv_results_[f"split{i}_test_score"] for i in range(search.n_splits_)]
    return np.column_stack(splits)


def _coef_along(
    model: SoftmaxRegression, Cs: np.ndarray, X: Any, y: Any, sample_weight: Any
) -> tuple[np.ndarray, SoftmaxRegression]:
    """Coefficients of fits to all rows, of shape (n_values, n_rows, n_features), and the model."""
    coef = []
    for C in Cs.tolist():
        model.set_params(C=C).fit(X, y, sample_weight=sample_weight)
        coef.append(np.array(to_numpy(model.coef_)))
        # Where SGD and early stopping end depends on where they start.
        model.set_params(warm_start=model.solver_ != "sgd" and not model.early_stopping)
    return np.stack(coef), model


def _feature_names(prefix: Any, model: Any) -> Sequence[str] | None:
    """Names of the features that the model was fitted to, if they have any."""
    if prefix is not None and hasattr(prefix, "get_feature_names_out"):
        return prefix.get_feature_names_out()
    return getattr(model, "feature_names_in_", None)


def _name_score(scoring: Any, negate: bool) -> str:
    """What to call a score, or its negative."""
    if isinstance(scoring, list | tuple | set | dict):
        raise TypeError(_SEVERAL.format(scoring))
    name = getattr(scoring, "__name__", "score")
    if scoring is None or isinstance(scoring, str):
        name = scoring or "accuracy"
    bare = name.removeprefix("neg_")
    is_negative = (bare != name) != bool(negate)
    return ("negative " * is_negative + bare).replace("_", " ")


def _check_arrays(C: Any, coef: Any, scores: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of a display, if they fit each other."""
    C, coef, scores = np.asarray(C, dtype=float), np.asarray(coef), np.asarray(scores, dtype=float)
    if C.ndim != 1 or len(C) < 2 or not (C[0] > 0 and C[-1] < np.inf and np.all(np.diff(C) > 0)):
        raise ValueError(
            f"C must be two or more positive finite numbers that ascend, got {C.tolist()}."
        )
    for name, array, ndim in ("coef", coef, 3), ("test_scores", scores, 2):
        if array.ndim != ndim or len(array) != len(C):
            raise ValueError(
                f"{name} of shape {array.shape} does not fit {len(C)} values of C: it must have "
                f"{ndim} dimensions, and {len(C)} entries along the first."
            )
    return C, coef, scores


def _standard_errors(scores: Any) -> np.ndarray:
    """Standard errors of the means over splits; NaN where there is one split."""
    scores = np.asarray(scores, dtype=float)
    n_splits = scores.shape[1]
    if n_splits < 2:
        return np.full(len(scores), np.nan)
    return scores.std(axis=1, ddof=1) / np.sqrt(n_splits)


def _best(scores: Any) -> int:
    """The position of the best mean score."""
    means = np.mean(np.asarray(scores, dtype=float), axis=1)
    if np.isnan(means).all():
        raise ValueError("test_scores has no C whose scores are all numbers. See why fits failed.")
    return int(np.nanargmax(means))


def _largest(sizes: np.ndarray, ties: np.ndarray, number: int) -> list[tuple[int, int]]:
    """Rows and columns of the largest of some sizes, largest first."""
    order = np.lexsort((-ties.ravel(), -sizes.ravel()))[:number]
    return list(zip(*(part.tolist() for part in np.unravel_index(order, sizes.shape)), strict=True))


def _largest_others(coef: np.ndarray, named: Sequence[tuple[int, int]]) -> np.ndarray:
    """The largest paths of coefficients that have no name."""
    sizes = np.abs(coef).max(axis=0)
    for pair in named:
        sizes[pair] = 0
    others = [pair for pair in _largest(sizes, sizes, _MAX_GREY_LINES) if sizes[pair] > 0]
    return np.array([coef[:, i, j] for i, j in others]).reshape(-1, len(coef))


def _style(line_kw: dict[str, Any] | None, **defaults: Any) -> dict[str, Any]:
    """Keywords of a line."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return {"linewidth": 1.4, **defaults, **normalize_kwargs(line_kw or {}, Line2D)}


def _shorten(names: Sequence[Any]) -> list[str]:
    """Names, of which those that are too long for a picture lack their middle."""
    half = _LONGEST_NAME // 2
    return [
        name if len(name) <= _LONGEST_NAME else f"{name[:half]}\u2026{name[1 - half :]}"
        for name in map(str, names)
    ]


def _write_beside(axes: Any, lines: Sequence[Any], names: Sequence[str]) -> None:
    """Write names of lines beside their ends, moved apart where ends are close."""
    height = axes.get_window_extent().height * 72 / axes.figure.dpi  # in points, as letters
    gap = 1.2 * _LABEL_SIZE / height
    low, high = axes.get_ylim()
    named = list(zip(lines, names, strict=True))[: max(1, int(1 / gap))]
    named.sort(key=lambda pair: pair[0].get_ydata()[-1])
    # The places nearest to the ends, in least squares, of which none is closer than the gap.
    ends = np.array([line.get_ydata()[-1] for line, _ in named])
    n_gaps = gap * np.arange(len(named))
    places = isotonic_regression((ends - low) / (high - low) - n_gaps).x
    places = np.clip(places, gap / 2, max(gap / 2, 1 - gap / 2 - n_gaps[-1])) + n_gaps
    for (line, name), place in zip(named, places, strict=True):
        color = line.get_color()
        axes.annotate(
            name,
            (line.get_xdata()[-1], line.get_ydata()[-1]),
            (1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=_LABEL_SIZE,
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, **_TOUCHING},
            annotation_clip=False,
        )


def _tell_zeros(axes: Any, C: np.ndarray, coef: np.ndarray) -> None:
    """Write on the upper edge how many coefficients are not zero, if that depends on C."""
    numbers = np.count_nonzero(coef, axis=(1, 2))
    if numbers.min() == numbers.max():
        return
    shown = np.unique(np.linspace(0, len(C) - 1, 8).round().astype(int))
    top = axes.secondary_xaxis("top")
    top.set_xticks(C[shown], [_count(numbers[i]) for i in shown], minor=False)
    top.set_xticks([], minor=True)
    top.set_xlabel("coefficients other than zero")


def _count(number: int) -> str:
    """A number in a few letters."""
    for unit, letter in (1_000_000, "M"), (1000, "k"):
        if number >= max(unit, 10_000):
            return f"{number / unit:.3g}{letter}"
    return f"{number:,}"

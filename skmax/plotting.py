"""Pictures of a softmax regression: how it trained, what it learned, where it errs.

The displays follow scikit-learn's conventions: `from_estimator` and `from_predictions` compute and
draw, `plot` draws again. Matplotlib is imported when something is drawn, not with this module.
For the confusion matrix there is :class:`sklearn.metrics.ConfusionMatrixDisplay`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj
from scipy.sparse import issparse
from sklearn.utils import check_consistent_length, check_scalar
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import check_is_fitted

from skmax._sklearn import _convert_to_numpy, _safe_indexing, check_matplotlib_support

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ClassWeightsDisplay",
    "LiveTrainingCurve",
    "PredictionGridDisplay",
    "TrainingCurveDisplay",
]

# Markers help to read a few epochs, and are all there is to see of one; many would merge.
_MAX_EPOCHS_WITH_MARKERS = 30


class TrainingCurveDisplay:
    """Loss and accuracy after each epoch, side by side, for training and validation data.

    Use :meth:`from_estimator` to create the display of a fitted estimator.

    Parameters
    ----------
    loss : array-like of shape (n_epochs,)
        Training objective, penalty included.
    accuracy : array-like of shape (n_epochs,)
        Accuracy on the training data.
    validation_loss : array-like of shape (n_epochs,), default=None
        Mean cross-entropy of the validation data.
    validation_accuracy : array-like of shape (n_epochs,), default=None
        Accuracy on the validation data.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        Axes of the loss and of the accuracy, of shape (1, 2), or as they were given.
    bounding_ax_ : matplotlib Axes or None
        The Axes that were subdivided; None if two were given.
    figure_ : matplotlib Figure
        Figure that holds them.
    lines_ : list of matplotlib Line2D
        The curves that were given: losses, then accuracies, and of each training first.

    See Also
    --------
    LiveTrainingCurve : The same curves, drawn during the fit.

    Examples
    --------
    >>> from skmax.plotting import TrainingCurveDisplay
    >>> display = TrainingCurveDisplay(loss=[0.9, 0.5, 0.4], accuracy=[0.7, 0.8, 0.9])
    >>> display.plot()
    <...>
    """

    def __init__(self, *, loss, accuracy, validation_loss=None, validation_accuracy=None):
        self.loss = loss
        self.accuracy = accuracy
        self.validation_loss = validation_loss
        self.validation_accuracy = validation_accuracy

    @classmethod
    def from_estimator(cls, estimator, *, ax=None, line_kw=None):
        """Draw the training curves of a fitted estimator.

        Parameters
        ----------
        estimator : SoftmaxRegression
            Fitted; without validation data it has no validation curves.
        ax : matplotlib Axes or array-like of two Axes, default=None
            One Axes is subdivided, two are used as they are; by default a new figure.
        line_kw : dict, default=None
            Keywords for every line, passed to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : TrainingCurveDisplay
            What was drawn.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        sklearn.exceptions.NotFittedError
            If the estimator has no curves.
        ValueError
            If `ax` has another number of Axes than one or two.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skmax import SoftmaxRegression
        >>> from skmax.plotting import TrainingCurveDisplay
        >>> X, y = load_digits(return_X_y=True)
        >>> model = SoftmaxRegression(random_state=0).fit(X, y)
        >>> TrainingCurveDisplay.from_estimator(model)
        <...>
        """
        return cls(**_curves_of(estimator)).plot(ax=ax, line_kw=line_kw)

    def plot(self, ax=None, *, line_kw=None):
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes or array-like of two Axes, default=None
            One Axes is subdivided, two are used as they are; by default a new figure.
        line_kw : dict, default=None
            Keywords for every line, passed to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : TrainingCurveDisplay
            The display itself.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        ValueError
            If `ax` has another number of Axes than one or two.
        """
        plt = _import_pyplot(f"{type(self).__name__}.plot")
        self.bounding_ax_, self.axes_ = _arrange_axes(plt, ax, (1, 2), 2, figsize=(8, 3.2))
        self.lines_: list[Any] = []
        for axes, name, curves in zip(
            self.axes_.flat,
            ("loss", "accuracy"),
            ((self.loss, self.validation_loss), (self.accuracy, self.validation_accuracy)),
            strict=True,
        ):
            self._plot_panel(axes, name, curves, line_kw)
        self.figure_ = self.lines_[0].figure
        return self

    def _plot_panel(self, axes, name, curves, line_kw):
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        style = normalize_kwargs(line_kw, Line2D)
        if len(self.loss) <= _MAX_EPOCHS_WITH_MARKERS:
            style = {"marker": "o", "markersize": 3, **style}
        labels, colors = ("training", "validation"), ("C0", "C1")
        for curve, label, color in zip(curves, labels, colors, strict=True):
            if curve is not None:
                epochs = np.arange(1, len(curve) + 1)
                self.lines_ += axes.plot(epochs, curve, **{"label": label, "color": color, **style})
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()


class LiveTrainingCurve:
    """Callback that draws the training curves while an estimator is being fitted.

    In a notebook the picture below the cell is replaced, in a window it is redrawn. Where a
    figure cannot be seen, as in a script that saves pictures, it is drawn once, after the fit.

    If several estimators share the callback, as the clones in a cross-validation do, it draws the
    fit that began last.

    Parameters
    ----------
    ax : matplotlib Axes or array-like of two Axes, default=None
        Where to draw, as in :meth:`TrainingCurveDisplay.plot`; by default a new figure for each
        fit, which closes the one before.
    interval : float, default=0.2
        Least number of seconds from one drawing to the next, since drawing, at about 0.05 s, may
        take longer than an epoch. The first and the last epoch are always drawn.

    Attributes
    ----------
    display_ : TrainingCurveDisplay
        What was drawn last.
    figure_ : matplotlib Figure
        Figure that holds it.

    See Also
    --------
    TrainingCurveDisplay : The same curves, drawn after the fit.

    Notes
    -----
    Figures are not pickled: a callback that was unpickled, or sent to another process with its
    estimator, draws in a new one.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skmax import SoftmaxRegression
    >>> from skmax.plotting import LiveTrainingCurve
    >>> X, y = load_digits(return_X_y=True)
    >>> curve = LiveTrainingCurve()
    >>> model = SoftmaxRegression(random_state=0).set_callbacks(curve).fit(X, y)
    >>> curve.figure_
    <Figure ...>
    """

    display_: TrainingCurveDisplay
    figure_: Any
    _fit: Any = None  # teardown asks for it even where setup has failed

    def __init__(self, *, ax=None, interval=0.2):
        self.ax = ax
        self.interval = interval

    def __getstate__(self):
        return {"ax": None, "interval": self.interval}

    def setup(self, estimator, context):  # noqa: ARG002
        """Get ready for a fit.

        Parameters
        ----------
        estimator : estimator instance
            The estimator to be fitted.
        context : sklearn.callback.CallbackContext
            Context of the fit.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        """
        plt = _import_pyplot(type(self).__name__)
        if hasattr(self, "display_") and self.ax is None:
            plt.close(self.figure_)  # pyplot keeps figures alive, and warns when they are many
            del self.display_, self.figure_
        self._fit = context
        self._open_screen = _find_screen()
        self._refresh_screen = None
        self._undrawn = None
        self._draw_after = -math.inf

    def on_fit_task_begin(self, estimator, context):
        """Do nothing: there is nothing to draw yet.

        Parameters
        ----------
        estimator : estimator instance
            The estimator being fitted.
        context : sklearn.callback.CallbackContext
            Context of the task.
        """

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):  # noqa: ARG002
        """Draw the curves up to the epoch that has ended, unless drawn a moment ago.

        Parameters
        ----------
        estimator : estimator instance
            The estimator being fitted.
        context : sklearn.callback.CallbackContext
            Context of the task.
        fitted_estimator : estimator instance, default=None
            The estimator as if the fit had stopped here.
        """
        is_epoch = context.task_name == "epoch" and context.parent is self._fit
        if fitted_estimator is None or not is_epoch:
            return
        self._undrawn = _curves_of(fitted_estimator)
        if self._open_screen is not None and perf_counter() >= self._draw_after:
            self._draw(self._undrawn)

    def teardown(self, estimator, context):  # noqa: ARG002
        """Draw the last epoch and forget the fit.

        Parameters
        ----------
        estimator : estimator instance
            The estimator that was fitted.
        context : sklearn.callback.CallbackContext
            Context of the fit.
        """
        if context is self._fit:
            if self._undrawn is not None:
                self._draw(self._undrawn)
            self._fit = self._open_screen = self._refresh_screen = None

    def _draw(self, curves):
        ax = self.ax
        if hasattr(self, "display_"):
            ax = self.display_.axes_
            _erase(self.display_)
        self.display_ = TrainingCurveDisplay(**curves).plot(ax=ax)
        self.figure_ = self.display_.figure_
        self._undrawn = None
        if self._refresh_screen is not None:
            self._refresh_screen()
        elif self._open_screen is not None:
            self._refresh_screen = self._open_screen(self.figure_.canvas)
        self._draw_after = perf_counter() + self.interval


class _ImageGridMixin:
    """Drawing of a grid of images, one to an Axes."""

    def _plot_images(self, images, titles, *, ax, n_cols, im_kw):
        """Draw titled images and set `axes_`, `bounding_ax_`, `figure_` and `im_`."""
        plt = _import_pyplot(f"{type(self).__name__}.plot")
        check_scalar(n_cols, "n_cols", Integral, min_val=1)
        n_cols = min(n_cols, len(images))
        n_rows = math.ceil(len(images) / n_cols)
        self.bounding_ax_, self.axes_ = _arrange_axes(
            plt,
            ax,
            (n_rows, n_cols),
            len(images),
            figsize=_figure_size(n_rows, n_cols, images.shape[1:], titles),
        )
        self.im_ = []
        for axes, image, title in zip(self._used_axes(), images, titles, strict=True):
            self.im_.append(axes.imshow(image, **im_kw))
            axes.set_title(title, fontsize="medium")
            axes.set(xticks=[], yticks=[])
        self.figure_ = self.im_[0].figure

    def _used_axes(self):
        """Axes that hold an image: the last row of the grid may have room for more."""
        return [axes for axes in self.axes_.flat if axes is not None]


class ClassWeightsDisplay(_ImageGridMixin):
    """Weights of a linear classifier of images, as one image per class.

    A red pixel speaks for the class where it is bright, a blue one against it; the weight of a
    white pixel is zero. All images share one scale. It ends at the 95th percentile of the absolute
    weights (zeros left out), since a pixel that is hardly ever lit can have a weight a hundred
    times those of the others, and would leave them no colour.

    Use :meth:`from_estimator` to create the display of a fitted estimator.

    Parameters
    ----------
    weights : ndarray of shape (n_images, height, width)
        The weights.
    titles : sequence of str of length n_images
        What to write above the images.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        Axes of the images, of shape (n_rows, n_cols) with None where the last row has no image; or
        as they were given.
    bounding_ax_ : matplotlib Axes or None
        The Axes that were subdivided; None if several were given.
    figure_ : matplotlib Figure
        Figure that holds them.
    im_ : list of matplotlib AxesImage
        The images.
    colorbar_ : matplotlib Colorbar
        The scale.

    Examples
    --------
    >>> import numpy as np
    >>> from skmax.plotting import ClassWeightsDisplay
    >>> weights = np.random.default_rng(0).normal(size=(3, 8, 8))
    >>> ClassWeightsDisplay(weights=weights, titles=["cat", "cow", "dog"]).plot()
    <...>
    """

    def __init__(self, *, weights, titles):
        self.weights = weights
        self.titles = titles

    @classmethod
    def from_estimator(
        cls,
        estimator,
        *,
        image_shape=None,
        class_names=None,
        ax=None,
        n_cols=5,
        cmap="RdBu_r",
        im_kw=None,
    ):
        """Draw the weights of a fitted estimator.

        Of two classes there is one image: the weights that speak for the second and against the
        first.

        Parameters
        ----------
        estimator : SoftmaxRegression
            Fitted, or any linear classifier with `coef_` and `classes_`.
        image_shape : tuple of int, default=None
            Height and width of the images; by default they are square.
        class_names : sequence of str of length n_classes, default=None
            Names of `estimator.classes_`, in their order; by default the classes themselves.
        ax : matplotlib Axes or array-like of n_images Axes, default=None
            One Axes is subdivided (best in a figure with `layout="constrained"`, which makes room
            for the titles), several are used as they are; by default a new figure.
        n_cols : int, default=5
            Number of images side by side, where `ax` does not say.
        cmap : str or matplotlib Colormap, default="RdBu_r"
            Colour map, best a diverging one.
        im_kw : dict, default=None
            Keywords for every image, passed to `matplotlib.axes.Axes.imshow`; `vmin` and `vmax`
            set the scale.

        Returns
        -------
        display : ClassWeightsDisplay
            What was drawn.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        sklearn.exceptions.NotFittedError
            If the estimator has no weights.
        ValueError
            If `image_shape`, `class_names` or `ax` does not fit the weights.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skmax import SoftmaxRegression
        >>> from skmax.plotting import ClassWeightsDisplay
        >>> X, y = load_digits(return_X_y=True)
        >>> model = SoftmaxRegression(random_state=0).fit(X, y)
        >>> ClassWeightsDisplay.from_estimator(model)
        <...>
        """
        _check_has(estimator, "coef_")
        weights = _as_images(estimator.coef_, image_shape)
        titles = _names_of(_to_numpy(estimator.classes_), class_names)
        if len(weights) == 1:
            titles = [f"{titles[1]} vs. {titles[0]}"]
        display = cls(weights=weights, titles=titles)
        return display.plot(ax=ax, n_cols=n_cols, cmap=cmap, im_kw=im_kw)

    def plot(self, ax=None, *, n_cols=5, cmap="RdBu_r", im_kw=None):
        """Draw the weights.

        Parameters
        ----------
        ax : matplotlib Axes or array-like of n_images Axes, default=None
            One Axes is subdivided (best in a figure with `layout="constrained"`, which makes room
            for the titles), several are used as they are; by default a new figure.
        n_cols : int, default=5
            Number of images side by side, where `ax` does not say.
        cmap : str or matplotlib Colormap, default="RdBu_r"
            Colour map, best a diverging one.
        im_kw : dict, default=None
            Keywords for every image, passed to `matplotlib.axes.Axes.imshow`; `vmin` and `vmax`
            set the scale.

        Returns
        -------
        display : ClassWeightsDisplay
            The display itself.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        ValueError
            If `ax` has another number of Axes than there are images.
        """
        limit = _color_limit(self.weights)
        im_kw = {"cmap": cmap, "vmin": -limit, "vmax": limit, **(im_kw or {})}
        self._plot_images(self.weights, self.titles, ax=ax, n_cols=n_cols, im_kw=im_kw)
        low, high = self.im_[0].get_clim()
        exceeds = self.weights.min() < low or self.weights.max() > high
        self.colorbar_ = self.figure_.colorbar(
            self.im_[0],
            ax=self._used_axes(),
            label="weight",
            extend="both" if exceeds else "neither",
            fraction=0.05,
            pad=0.02,
        )
        return self


class PredictionGridDisplay(_ImageGridMixin):
    """Images with their true and predicted classes, wrong predictions in red.

    Use :meth:`from_estimator` or :meth:`from_predictions` to create it.

    Parameters
    ----------
    images : ndarray of shape (n_images, height, width)
        The images.
    true_names : sequence of str of length n_images
        Names of the true classes.
    predicted_names : sequence of str of length n_images
        Names of the predicted classes.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        Axes of the images, of shape (n_rows, n_cols) with None where the last row has no image; or
        as they were given.
    bounding_ax_ : matplotlib Axes or None
        The Axes that were subdivided; None if several were given.
    figure_ : matplotlib Figure
        Figure that holds them.
    im_ : list of matplotlib AxesImage
        The images.

    See Also
    --------
    sklearn.metrics.ConfusionMatrixDisplay : How often which class is taken for which.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skmax.plotting import PredictionGridDisplay
    >>> digits = load_digits()
    >>> PredictionGridDisplay(
    ...     images=digits.images[:3], true_names=["0", "1", "2"], predicted_names=["0", "1", "3"]
    ... ).plot()
    <...>
    """

    def __init__(self, *, images, true_names, predicted_names):
        self.images = images
        self.true_names = true_names
        self.predicted_names = predicted_names

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        y,
        *,
        n_images=10,
        image_shape=None,
        class_names=None,
        ax=None,
        n_cols=5,
        cmap="gray",
        im_kw=None,
    ):
        """Predict and draw the first images of X; the rest of X is not touched.

        Parameters
        ----------
        estimator : SoftmaxRegression
            Fitted, or any classifier, search or pipeline with `predict` and `classes_`.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Images, one a row.
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            True classes, or their probabilities (one-hot included), of which the largest counts.
        n_images : int, default=10
            Number of images to draw, if X has so many.
        image_shape : tuple of int, default=None
            Height and width of the images; by default they are square.
        class_names : sequence of str of length n_classes, default=None
            Names of `estimator.classes_`, in their order; by default the classes themselves.
        ax : matplotlib Axes or array-like of n_images Axes, default=None
            One Axes is subdivided (best in a figure with `layout="constrained"`, which makes room
            for the titles), several are used as they are; by default a new figure.
        n_cols : int, default=5
            Number of images side by side, where `ax` does not say.
        cmap : str or matplotlib Colormap, default="gray"
            Colour map.
        im_kw : dict, default=None
            Keywords for every image, passed to `matplotlib.axes.Axes.imshow`.

        Returns
        -------
        display : PredictionGridDisplay
            What was drawn.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        ValueError
            If X and y differ in length, or `image_shape`, `class_names` or `ax` does not fit.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skmax import SoftmaxRegression
        >>> from skmax.plotting import PredictionGridDisplay
        >>> X, y = load_digits(return_X_y=True)
        >>> model = SoftmaxRegression(random_state=0).fit(X[:1000], y[:1000])
        >>> PredictionGridDisplay.from_estimator(model, X[1000:], y[1000:])
        <...>
        """
        check_scalar(n_images, "n_images", Integral, min_val=1)
        check_consistent_length(X, y)
        X, y = (_safe_indexing(rows, slice(0, n_images)) for rows in (X, y))
        return cls.from_predictions(
            X,
            y,
            estimator.predict(X),
            n_images=n_images,
            labels=estimator.classes_,
            image_shape=image_shape,
            class_names=class_names,
            ax=ax,
            n_cols=n_cols,
            cmap=cmap,
            im_kw=im_kw,
        )

    @classmethod
    def from_predictions(
        cls,
        X,
        y_true,
        y_pred,
        *,
        n_images=10,
        labels=None,
        image_shape=None,
        class_names=None,
        ax=None,
        n_cols=5,
        cmap="gray",
        im_kw=None,
    ):
        """Draw the first images of X with what was predicted for them.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Images, one a row.
        y_true : array-like of shape (n_samples,) or (n_samples, n_classes)
            True classes, or their probabilities (one-hot included), of which the largest counts.
        y_pred : array-like of shape (n_samples,) or (n_samples, n_classes)
            Predicted classes, or their probabilities.
        n_images : int, default=10
            Number of images to draw, if X has so many.
        labels : array-like of shape (n_classes,), default=None
            The classes, in the order of `class_names` and of the columns of probabilities. By
            default those that occur in `y_true` or `y_pred`, sorted; where both are probabilities,
            the numbers of their columns.
        image_shape : tuple of int, default=None
            Height and width of the images; by default they are square.
        class_names : sequence of str of length n_classes, default=None
            Names of the classes; by default the classes themselves.
        ax : matplotlib Axes or array-like of n_images Axes, default=None
            One Axes is subdivided (best in a figure with `layout="constrained"`, which makes room
            for the titles), several are used as they are; by default a new figure.
        n_cols : int, default=5
            Number of images side by side, where `ax` does not say.
        cmap : str or matplotlib Colormap, default="gray"
            Colour map.
        im_kw : dict, default=None
            Keywords for every image, passed to `matplotlib.axes.Axes.imshow`.

        Returns
        -------
        display : PredictionGridDisplay
            What was drawn.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        ValueError
            If the lengths differ, or `labels`, `image_shape`, `class_names` or `ax` does not fit.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skmax.plotting import PredictionGridDisplay
        >>> X, y = load_digits(return_X_y=True)
        >>> PredictionGridDisplay.from_predictions(X, y, y, n_images=5)
        <...>
        """
        check_scalar(n_images, "n_images", Integral, min_val=1)
        check_consistent_length(X, y_true, y_pred)
        y_true, y_pred = _to_numpy(y_true), _to_numpy(y_pred)
        labels = _infer_labels(y_true, y_pred) if labels is None else _to_numpy(labels)
        names = dict(zip(labels.tolist(), _names_of(labels, class_names), strict=True))
        shown = slice(0, n_images)
        display = cls(
            images=_as_images(_safe_indexing(X, shown), image_shape),
            true_names=_name_rows(y_true[shown], labels, names),
            predicted_names=_name_rows(y_pred[shown], labels, names),
        )
        return display.plot(ax=ax, n_cols=n_cols, cmap=cmap, im_kw=im_kw)

    def plot(self, ax=None, *, n_cols=5, cmap="gray", im_kw=None):
        """Draw the images.

        Parameters
        ----------
        ax : matplotlib Axes or array-like of n_images Axes, default=None
            One Axes is subdivided (best in a figure with `layout="constrained"`, which makes room
            for the titles), several are used as they are; by default a new figure.
        n_cols : int, default=5
            Number of images side by side, where `ax` does not say.
        cmap : str or matplotlib Colormap, default="gray"
            Colour map.
        im_kw : dict, default=None
            Keywords for every image, passed to `matplotlib.axes.Axes.imshow`.

        Returns
        -------
        display : PredictionGridDisplay
            The display itself.

        Raises
        ------
        ImportError
            If Matplotlib is not installed.
        ValueError
            If `ax` has another number of Axes than there are images.
        """
        pairs = list(zip(self.true_names, self.predicted_names, strict=True))
        titles = [f"true: {true}\npredicted: {predicted}" for true, predicted in pairs]
        # One scale for all: a dark image is to look darker than a bright one.
        limits = {"vmin": self.images.min(), "vmax": self.images.max()}
        im_kw = {"cmap": cmap, **limits, **(im_kw or {})}
        self._plot_images(self.images, titles, ax=ax, n_cols=n_cols, im_kw=im_kw)
        for axes, (true, predicted) in zip(self._used_axes(), pairs, strict=True):
            if true != predicted:
                _mark_in_red(axes)
        return self


def _import_pyplot(caller_name: str) -> Any:
    """Return `matplotlib.pyplot`, or say how to install it."""
    try:
        check_matplotlib_support(caller_name)
    except ImportError as error:
        raise ImportError(
            f"{caller_name} requires matplotlib. You can install it with "
            '`pip install "skmax[plot]"`'
        ) from error
    import matplotlib.pyplot as plt

    return plt


def _to_numpy(array: Any) -> np.ndarray:
    """Return a NumPy array of anything array-like, sparse or on a device."""
    if issparse(array):
        return array.toarray()
    if is_array_api_obj(array):
        # `move_to`, which would call this, wants array API dispatch to be switched on.
        return _convert_to_numpy(array, array_namespace(array))
    return np.asarray(array)


def _check_has(estimator: Any, attribute: str) -> None:
    """Check that an estimator has what is to be drawn, and say where else it may be."""
    if hasattr(estimator, attribute):
        return
    check_is_fitted(estimator)
    places = {"steps": "of a Pipeline `estimator[-1]`", "best_estimator_": "its `best_estimator_`"}
    inside = [place for name, place in places.items() if hasattr(estimator, name)]
    raise TypeError(
        f"{type(estimator).__name__} has no {attribute}. Pass a fitted SoftmaxRegression"
        f"{', ' if inside else ''}{' or '.join(inside)}."
    )


def _curves_of(estimator: Any) -> dict[str, list[float] | None]:
    """Return copies of an estimator's curves, named as `TrainingCurveDisplay` wants them."""
    _check_has(estimator, "loss_curve_")
    curves = {
        "loss": estimator.loss_curve_,
        "accuracy": estimator.accuracy_curve_,
        "validation_loss": getattr(estimator, "validation_loss_curve_", None),
        "validation_accuracy": getattr(estimator, "validation_scores_", None),
    }
    return {name: None if curve is None else list(curve) for name, curve in curves.items()}


def _erase(display: TrainingCurveDisplay) -> None:
    """Take the curves off their Axes, and leave there what else the user may have put."""
    for line in display.lines_:
        if line.axes is not None:  # None once the user has cleared the Axes
            line.remove()
    for axes in display.axes_.flat:
        axes.relim()


def _find_screen() -> Callable[[Any], Callable[[], object]] | None:
    """Return a function that shows a canvas, and returns one that shows its changes.

    None if there is nobody to see it: the backend writes files only, or it is a notebook's but this
    is not the notebook's process (workers inherit its choice of backend).
    """
    import matplotlib
    from matplotlib.backends import BackendFilter, backend_registry

    backend = matplotlib.get_backend().lower()
    if "inline" in backend:
        from IPython import get_ipython  # type: ignore[import-not-found, unused-ignore]

        return None if get_ipython() is None else _open_in_notebook
    if backend in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE):
        return None
    return _open_window


def _open_in_notebook(canvas: Any) -> Callable[[], object]:
    import matplotlib.pyplot as plt
    from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

    handle = display(canvas.figure, display_id=True)
    plt.close(canvas.figure)  # or the notebook would show it once more at the end of the cell
    return partial(handle.update, canvas.figure)


def _open_window(canvas: Any) -> Callable[[], object]:
    import matplotlib.pyplot as plt

    def refresh() -> None:
        canvas.draw()
        canvas.flush_events()

    # pyplot shows new figures itself in interactive mode; one without a manager is not pyplot's.
    if canvas.manager is not None and not plt.isinteractive():
        canvas.figure.show()
    refresh()
    return refresh


def _as_images(rows: Any, image_shape: Sequence[int] | None) -> np.ndarray:
    """Return the rows of an array-like as images of shape (n_rows, height, width)."""
    rows = _to_numpy(rows)
    n_pixels = math.prod(rows.shape[1:])
    if image_shape is None:
        side = math.isqrt(n_pixels)
        if side**2 != n_pixels:
            raise ValueError(
                f"{n_pixels} features do not make a square image. Pass their height and width as "
                "image_shape."
            )
        image_shape = (side, side)
    if len(image_shape) != 2 or math.prod(image_shape) != n_pixels:
        raise ValueError(
            f"image_shape={tuple(image_shape)} does not fit: height times width must be the number "
            f"of features, {n_pixels}."
        )
    return rows.reshape(-1, *image_shape)


def _color_limit(weights: np.ndarray) -> float:
    """Return the weight from which on the colour is fullest."""
    sizes = np.abs(weights[weights != 0])  # an L1 penalty leaves few, which are to be seen
    return float(np.percentile(sizes, 95)) if sizes.size else 1.0


def _names_of(labels: np.ndarray, class_names: Sequence[str] | None) -> list[str]:
    """Return one name per class."""
    names = labels.tolist() if class_names is None else class_names
    if len(names) != len(labels):
        raise ValueError(
            f"class_names has {len(names)} names for {len(labels)} classes: {labels.tolist()}."
        )
    return [str(name) for name in names]


def _infer_labels(*targets: np.ndarray) -> np.ndarray:
    """Return the labels that occur; where all targets are probabilities, their column numbers."""
    columns = [y.ravel() for y in targets if not _is_matrix(y)]
    return unique_labels(*columns) if columns else np.arange(targets[0].shape[1])


def _is_matrix(y: np.ndarray) -> bool:
    """Tell probabilities of the classes from a column of labels."""
    return y.ndim == 2 and y.shape[1] > 1


def _name_rows(y: np.ndarray, labels: np.ndarray, names: dict[Any, str]) -> list[str]:
    """Return the name of each row's class."""
    if _is_matrix(y):
        if y.shape[1] != len(labels):
            raise ValueError(
                f"Probabilities of {y.shape[1]} classes were given, but the labels are "
                f"{labels.tolist()}. Pass the class of each column as labels."
            )
        y = labels[y.argmax(axis=1)]
    # The data may hold classes that the estimator has not seen.
    return [names.get(label, str(label)) for label in y.ravel().tolist()]


def _figure_size(
    n_rows: int, n_cols: int, image_shape: tuple[int, int], titles: Sequence[str]
) -> tuple[float, float]:
    """Return width and height in inches for a grid of images with titles."""
    height, width = image_shape
    title_lines = 1 + max(title.count("\n") for title in titles)
    cell_width = max(1.75, 4 / n_cols)
    # Images that are bands rather than rectangles must not make the figure huge.
    cell_height = cell_width * min(max(height / width, 0.25), 4) + 0.2 * title_lines
    return n_cols * cell_width, n_rows * cell_height


def _arrange_axes(
    plt: Any, ax: Any, grid_shape: tuple[int, int], n_axes: int, *, figsize: tuple[float, float]
) -> tuple[Axes | None, np.ndarray]:
    """Return `n_axes` Axes: new ones, those inside one given Axes, or those given.

    Returns
    -------
    bounding_ax : matplotlib Axes or None
        The Axes that were subdivided; None if several were given.
    axes : ndarray of matplotlib Axes
        Of shape `grid_shape`, None after `n_axes`, or as given.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=figsize, layout="constrained")
    if isinstance(ax, plt.Axes):
        return ax, _subdivide(ax, grid_shape, n_axes)
    axes = np.asarray(ax, dtype=object)
    if axes.size != n_axes:
        raise ValueError(f"Expected ax to have {n_axes} axes, got {axes.size}.")
    return None, axes


def _subdivide(ax: Axes, grid_shape: tuple[int, int], n_axes: int) -> np.ndarray:
    """Replace an Axes by a grid of Axes."""
    from matplotlib.gridspec import GridSpecFromSubplotSpec

    if not ax.axison:
        raise ValueError(
            "ax was subdivided by another display already. To draw into its axes, pass "
            "ax=display.axes_."
        )
    subplot = ax.get_subplotspec()
    if subplot is None:
        raise ValueError(
            "ax cannot be subdivided, as it is in no grid of subplots. Pass an array of "
            f"{n_axes} Axes, or one made by plt.subplots or Figure.add_subplot."
        )
    ax.set_axis_off()
    grid = GridSpecFromSubplotSpec(*grid_shape, subplot_spec=subplot)
    axes = np.full(grid_shape, None, dtype=object)
    for i in range(n_axes):
        axes.flat[i] = ax.figure.add_subplot(grid[i])
    return axes


def _mark_in_red(axes: Axes) -> None:
    axes.title.set_color("tab:red")
    axes.spines[:].set(color="tab:red", linewidth=2.5)

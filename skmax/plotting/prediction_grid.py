"""Where a model errs: images with what was predicted for them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_consistent_length, check_scalar
from sklearn.utils.multiclass import unique_labels

from skmax._sklearn import _safe_indexing
from skmax.annotations import AxesLike, Data
from skmax.plotting.common import ImageGrid, as_images, name_classes, to_numpy

if TYPE_CHECKING:
    from matplotlib.colors import Colormap


class PredictionGridDisplay(ImageGrid):
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

    def __init__(
        self,
        *,
        images: NDArray[Any],
        true_names: Sequence[str],
        predicted_names: Sequence[str],
    ) -> None:
        self.images = images
        self.true_names = true_names
        self.predicted_names = predicted_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Data,
        y: Data,
        *,
        n_images: int = 10,
        image_shape: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        ax: AxesLike = None,
        n_cols: int = 5,
        cmap: str | Colormap = "gray",
        im_kw: dict[str, Any] | None = None,
    ) -> Self:
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
        X: Data,
        y_true: Data,
        y_pred: Data,
        *,
        n_images: int = 10,
        labels: Data | None = None,
        image_shape: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        ax: AxesLike = None,
        n_cols: int = 5,
        cmap: str | Colormap = "gray",
        im_kw: dict[str, Any] | None = None,
    ) -> Self:
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
        y_true, y_pred = to_numpy(y_true), to_numpy(y_pred)
        labels = _infer_labels(y_true, y_pred) if labels is None else to_numpy(labels)
        names = dict(zip(labels.tolist(), name_classes(labels, class_names), strict=True))
        shown = slice(0, n_images)
        display = cls(
            images=as_images(_safe_indexing(X, shown), image_shape),
            true_names=_name_rows(y_true[shown], labels, names),
            predicted_names=_name_rows(y_pred[shown], labels, names),
        )
        return display.plot(ax=ax, n_cols=n_cols, cmap=cmap, im_kw=im_kw)

    def plot(
        self,
        ax: AxesLike = None,
        *,
        n_cols: int = 5,
        cmap: str | Colormap = "gray",
        im_kw: dict[str, Any] | None = None,
    ) -> Self:
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

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skmax.plotting import PredictionGridDisplay
        >>> images = load_digits().images[:4]
        >>> display = PredictionGridDisplay(
        ...     images=images, true_names=list("0123"), predicted_names=list("0173")
        ... )
        >>> display.plot(n_cols=2).axes_.shape
        (2, 2)
        """
        pairs = list(zip(self.true_names, self.predicted_names, strict=True))
        titles = [f"true: {true}\npredicted: {predicted}" for true, predicted in pairs]
        # One scale for all: a dark image is to look darker than a bright one.
        limits = {"vmin": self.images.min(), "vmax": self.images.max()}
        im_kw = {"cmap": cmap, **limits, **(im_kw or {})}
        self._plot_images(self.images, titles, ax=ax, n_cols=n_cols, im_kw=im_kw)
        for image, (true, predicted) in zip(self.im_, pairs, strict=True):
            if true != predicted:
                image.axes.title.set_color("tab:red")
                image.axes.spines[:].set(color="tab:red", linewidth=2.5)
        return self


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

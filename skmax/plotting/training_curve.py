"""How a model trained: loss and accuracy after each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from skmax.annotations import AxesLike, HasCurves
from skmax.plotting.common import arrange_axes, check_has, import_pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Markers help to read a few epochs, and are all there is to see of one; many would merge.
_MAX_EPOCHS_WITH_MARKERS = 30


class TrainingCurveDisplay:
    """Loss and accuracy after each epoch, side by side, for training and validation data.

    Use :meth:`from_estimator` to create the display of a fitted estimator.

    Parameters
    ----------
    loss : array-like of shape (n_epochs,)
        Training objective, penalty included, in nats per row.
    accuracy : array-like of shape (n_epochs,)
        Accuracy on the training data.
    validation_loss : array-like of shape (n_epochs,), default=None
        Mean cross-entropy of the validation data, in nats.
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

    axes_: np.ndarray
    bounding_ax_: Axes | None
    figure_: Figure
    lines_: list[Line2D]

    def __init__(
        self,
        *,
        loss: Sequence[float],
        accuracy: Sequence[float],
        validation_loss: Sequence[float] | None = None,
        validation_accuracy: Sequence[float] | None = None,
    ) -> None:
        self.loss = loss
        self.accuracy = accuracy
        self.validation_loss = validation_loss
        self.validation_accuracy = validation_accuracy

    @classmethod
    def from_estimator(
        cls,
        estimator: HasCurves,
        *,
        ax: AxesLike = None,
        line_kw: dict[str, Any] | None = None,
    ) -> Self:
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
        return cls(**curves_of(estimator)).plot(ax=ax, line_kw=line_kw)

    def plot(self, ax: AxesLike = None, *, line_kw: dict[str, Any] | None = None) -> Self:
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

        Examples
        --------
        >>> from skmax.plotting import TrainingCurveDisplay
        >>> display = TrainingCurveDisplay(loss=[0.9, 0.5, 0.4], accuracy=[0.7, 0.8, 0.9])
        >>> display.plot(line_kw={"linestyle": "--"}).lines_
        [<matplotlib.lines.Line2D ...>, <matplotlib.lines.Line2D ...>]
        """
        plt = import_pyplot(f"{type(self).__name__}.plot")
        self.bounding_ax_, self.axes_ = arrange_axes(plt, ax, (1, 2), 2, figsize=(8, 3.2))
        self.lines_ = []
        left, right = self.axes_.flat
        self._plot_panel(left, "loss", self.loss, self.validation_loss, line_kw)
        self._plot_panel(right, "accuracy", self.accuracy, self.validation_accuracy, line_kw)
        self.figure_ = left.figure
        return self

    def _plot_panel(self, axes, name, training, validation, line_kw):
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        style = normalize_kwargs(line_kw, Line2D)
        if len(self.loss) <= _MAX_EPOCHS_WITH_MARKERS:
            style = {"marker": "o", "markersize": 3, **style}
        for curve, label, color in (training, "training", "C0"), (validation, "validation", "C1"):
            if curve is not None:
                epochs = np.arange(1, len(curve) + 1)
                self.lines_ += axes.plot(epochs, curve, **{"label": label, "color": color, **style})
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()


def curves_of(estimator: Any) -> dict[str, Any]:
    """Return copies of an estimator's curves, named as `TrainingCurveDisplay` wants them."""
    check_has(estimator, "loss_curve_")
    curves = {
        "loss": estimator.loss_curve_,
        "accuracy": estimator.accuracy_curve_,
        "validation_loss": getattr(estimator, "validation_loss_curve_", None),
        "validation_accuracy": getattr(estimator, "validation_scores_", None),
    }
    return {name: None if curve is None else list(curve) for name, curve in curves.items()}


def erase(display: TrainingCurveDisplay) -> None:
    """Take the curves off their Axes, and leave there what else the user may have put."""
    for line in display.lines_:
        if line.axes is not None:  # None once the user has cleared the Axes
            line.remove()
    for axes in display.axes_.flat:
        axes.relim()

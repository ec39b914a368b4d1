"""How a model is training, drawn during the fit."""

from __future__ import annotations

import math
from time import perf_counter
from typing import TYPE_CHECKING, Any

from skmax.annotations import AxesLike
from skmax.plotting.common import import_pyplot
from skmax.plotting.training_curve import TrainingCurveDisplay, curves_of, erase

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from sklearn.callback import CallbackContext


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
    figure_: Figure
    _fit: Any = None  # teardown asks for it even where setup has failed

    def __init__(self, *, ax: AxesLike = None, interval: float = 0.2) -> None:
        self.ax = ax
        self.interval = interval

    def __getstate__(self):
        return {"ax": None, "interval": self.interval}

    def setup(self, estimator: Any, context: CallbackContext) -> None:  # noqa: ARG002
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
        plt = import_pyplot(type(self).__name__)
        if hasattr(self, "display_") and self.ax is None:
            plt.close(self.figure_)  # pyplot keeps figures alive, and warns when they are many
            del self.display_, self.figure_
        self._fit = context
        self._screen = _find_screen()
        self._undrawn: Any = None
        self._draw_after = -math.inf

    def on_fit_task_begin(self, estimator: Any, context: CallbackContext) -> None:
        """Do nothing: there is nothing to draw yet.

        Parameters
        ----------
        estimator : estimator instance
            The estimator being fitted.
        context : sklearn.callback.CallbackContext
            Context of the task.
        """

    def on_fit_task_end(
        self,
        estimator: Any,  # noqa: ARG002
        context: CallbackContext,
        *,
        fitted_estimator: Any = None,
    ) -> None:
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
        if is_epoch and fitted_estimator is not None:
            self._undrawn = TrainingCurveDisplay(**curves_of(fitted_estimator))
            if self._screen is not None and perf_counter() >= self._draw_after:
                self._draw()

    def teardown(self, estimator: Any, context: CallbackContext) -> None:  # noqa: ARG002
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
                self._draw()
            self._fit = self._screen = None

    def _draw(self):
        ax = self.ax
        if hasattr(self, "display_"):
            ax = self.display_.axes_
            erase(self.display_)
        self.display_ = self._undrawn.plot(ax=ax)
        self.figure_ = self.display_.figure_
        self._undrawn = None
        if self._screen is not None:
            self._screen.show(self.figure_.canvas.figure)  # of a subfigure, the whole
        self._draw_after = perf_counter() + self.interval


class _Window:
    """Shows a figure in a window, and later what has changed."""

    _is_open = False

    def show(self, figure: Any) -> None:
        import matplotlib.pyplot as plt

        # pyplot shows new figures itself in interactive mode; those without a manager are not its.
        if not self._is_open and figure.canvas.manager is not None and not plt.isinteractive():
            figure.show()
        self._is_open = True
        figure.canvas.draw()
        figure.canvas.flush_events()


class _Notebook:
    """Shows a figure below a notebook's cell, and later what has changed."""

    _output: Any = None

    def show(self, figure: Any) -> None:
        import matplotlib.pyplot as plt
        from IPython.display import display

        if self._output is not None:
            self._output.update(figure)
            return
        self._output = display(figure, display_id=True)
        plt.close(figure)  # or the notebook would show it once more at the end of the cell


def _find_screen() -> _Window | _Notebook | None:
    """Return where a figure can be seen.

    None if there is nobody to see it: the backend writes files only, or it is a notebook's but this
    is not the notebook's process (workers inherit its choice of backend).
    """
    import matplotlib
    from matplotlib.backends import BackendFilter, backend_registry

    backend = matplotlib.get_backend().lower()
    if "inline" in backend:
        from IPython import get_ipython

        return None if get_ipython() is None else _Notebook()
    writes_files = backend in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
    return None if writes_files else _Window()

"""What a model learned: its weights as images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from skmax.annotations import AxesLike
from skmax.plotting.common import ImageGrid, as_images, check_has, name_classes, to_numpy

if TYPE_CHECKING:
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap


class ClassWeightsDisplay(ImageGrid):
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

    See Also
    --------
    PredictionGridDisplay : Images with what was predicted for them.

    Examples
    --------
    >>> import numpy as np
    >>> from skmax.plotting import ClassWeightsDisplay
    >>> weights = np.random.default_rng(0).normal(size=(3, 8, 8))
    >>> ClassWeightsDisplay(weights=weights, titles=["cat", "cow", "dog"]).plot()
    <...>
    """

    _width_beside = 0.1  # the colour bar's

    colorbar_: Colorbar

    def __init__(self, *, weights: NDArray[Any], titles: Sequence[str]) -> None:
        self.weights = weights
        self.titles = titles

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        image_shape: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        ax: AxesLike = None,
        n_cols: int = 5,
        cmap: str | Colormap = "RdBu_r",
        im_kw: dict[str, Any] | None = None,
    ) -> Self:
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
        check_has(estimator, "coef_")
        weights = as_images(estimator.coef_, image_shape)
        titles = name_classes(to_numpy(estimator.classes_), class_names)
        if len(weights) == 1:
            titles = [f"{titles[1]} vs. {titles[0]}"]
        display = cls(weights=weights, titles=titles)
        return display.plot(ax=ax, n_cols=n_cols, cmap=cmap, im_kw=im_kw)

    def plot(
        self,
        ax: AxesLike = None,
        *,
        n_cols: int = 5,
        cmap: str | Colormap = "RdBu_r",
        im_kw: dict[str, Any] | None = None,
    ) -> Self:
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

        Examples
        --------
        >>> import numpy as np
        >>> from skmax.plotting import ClassWeightsDisplay
        >>> weights = np.random.default_rng(0).normal(size=(3, 8, 8))
        >>> display = ClassWeightsDisplay(weights=weights, titles=["cat", "cow", "dog"])
        >>> display.plot(n_cols=3, cmap="PuOr", im_kw={"vmin": -3, "vmax": 3}).axes_.shape
        (1, 3)
        """
        sizes = np.abs(self.weights[self.weights != 0])  # an L1 penalty leaves few, to be seen
        limit = float(np.percentile(sizes, 95)) if sizes.size else 1.0
        im_kw = {"cmap": cmap, "vmin": -limit, "vmax": limit, **(im_kw or {})}
        self._plot_images(self.weights, self.titles, ax=ax, n_cols=n_cols, im_kw=im_kw)
        low, high = self.im_[0].get_clim()
        extend = "both" if self.weights.min() < low or self.weights.max() > high else "neither"
        axes = [image.axes for image in self.im_]
        self.colorbar_ = self.figure_.colorbar(
            self.im_[0], ax=axes, label="weight", extend=extend, fraction=0.05, pad=0.02
        )
        return self

"""What the displays share: Matplotlib, Axes, a grid of images, reading estimators and arrays."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj
from scipy.sparse import issparse
from sklearn.utils import check_scalar
from sklearn.utils.validation import check_is_fitted

from skmax._sklearn import _convert_to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


def import_pyplot(caller_name: str) -> Any:
    """Return `matplotlib.pyplot`, or say how to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        advice = 'You can install it with `pip install "skmax[plot]"`'
        raise ImportError(f"{caller_name} requires matplotlib. {advice}") from error
    return plt


def arrange_axes(
    plt: Any,
    ax: Any,
    grid_shape: tuple[int, int],
    n_axes: int,
    *,
    figsize: tuple[float, float],
    height_ratios: Sequence[float] | None = None,
) -> tuple[Axes | None, np.ndarray]:
    """Return the Axes that was subdivided, None if several were given, and an array of `n_axes`.

    The array has the shape of the grid, with None after `n_axes`, or is as given.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=figsize, layout="constrained")
    if isinstance(ax, plt.Axes):
        return ax, _subdivide(ax, grid_shape, n_axes, height_ratios)
    axes = np.asarray(ax, dtype=object)
    if axes.size != n_axes:
        raise ValueError(f"Expected ax to have {n_axes} axes, got {axes.size}.")
    return None, axes


def _subdivide(
    ax: Axes, grid_shape: tuple[int, int], n_axes: int, height_ratios: Sequence[float] | None
) -> np.ndarray:
    """Replace an Axes by a grid of Axes."""
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
    grid = subplot.subgridspec(*grid_shape, height_ratios=height_ratios)
    axes = np.full(grid_shape, None, dtype=object)
    for i in range(n_axes):
        axes.flat[i] = ax.figure.add_subplot(grid[i])
    return axes


class ImageGrid:
    """Drawing of a grid of images, one to an Axes."""

    _width_beside = 0.0  # what is drawn beside the images, as a share of the figure

    axes_: np.ndarray
    bounding_ax_: Axes | None
    figure_: Figure
    im_: list[AxesImage]

    def _plot_images(
        self,
        images: np.ndarray,
        titles: Sequence[str],
        *,
        ax: Any,
        n_cols: int,
        im_kw: dict[str, Any],
    ) -> None:
        """Draw titled images and set `axes_`, `bounding_ax_`, `figure_` and `im_`."""
        plt = import_pyplot(f"{type(self).__name__}.plot")
        check_scalar(n_cols, "n_cols", Integral, min_val=1)
        n_cols = min(n_cols, len(images))
        shape = math.ceil(len(images) / n_cols), n_cols
        cell_width = max(1.75, 4 / n_cols)
        if ax is None:
            titles = _wrap(titles, cell_width * 72, plt.rcParams["font.size"])
        width, height = _figure_size(*shape, cell_width, images.shape[1:], titles)
        size = width / (1 - self._width_beside), height
        self.bounding_ax_, self.axes_ = arrange_axes(plt, ax, shape, len(images), figsize=size)
        self.im_ = []
        used = self.axes_.flat[: len(images)]  # the last row of the grid may have room for more
        if ax is not None:
            points = used[0].get_window_extent().width * 72 / used[0].figure.dpi
            titles = _wrap(titles, points, plt.rcParams["font.size"])
        for axes, image, title in zip(used, images, titles, strict=True):
            self.im_.append(axes.imshow(image, **im_kw))
            axes.set_title(title, fontsize="medium")
            axes.set(xticks=[], yticks=[])
        self.figure_ = used[0].figure


def _figure_size(
    n_rows: int,
    n_cols: int,
    cell_width: float,
    image_shape: tuple[int, int],
    titles: Sequence[str],
) -> tuple[float, float]:
    """Return width and height in inches for a grid of images with titles."""
    height, width = image_shape
    title_lines = 1 + max(title.count("\n") for title in titles)
    # Images that are bands rather than rectangles must not make the figure huge.
    cell_height = cell_width * min(max(height / width, 0.25), 4) + 0.2 * title_lines
    return n_cols * cell_width, n_rows * cell_height


def _wrap(titles: Sequence[str], width: float, font_size: float) -> list[str]:
    """Titles in lines that do not run into the title of the next image; sizes in points."""
    n_letters = max(8, int(width / (0.6 * font_size)))  # which take 0.6 of their size on average
    wrapper = textwrap.TextWrapper(n_letters, max_lines=3, placeholder="\u2026")
    return ["\n".join(map(wrapper.fill, title.split("\n"))) for title in titles]


def check_has(estimator: Any, attribute: str) -> None:
    """Check that an estimator has what is to be drawn, and say where else it may be."""
    if hasattr(estimator, attribute):
        return
    check_is_fitted(estimator)
    places = {"steps": "of a Pipeline `estimator[-1]`", "best_estimator_": "its `best_estimator_`"}
    inside = [place for name, place in places.items() if hasattr(estimator, name)]
    advice = ", ".join(["Pass a fitted SoftmaxRegression", *inside])
    raise TypeError(f"{type(estimator).__name__} has no {attribute}. {advice}.")


def to_numpy(array: Any) -> np.ndarray:
    """Return a NumPy array of anything array-like, sparse or on a device."""
    if issparse(array):
        return array.toarray()
    if is_array_api_obj(array):
        # `move_to`, which would call this, wants array API dispatch to be switched on.
        return _convert_to_numpy(array, array_namespace(array))
    return np.asarray(array)


def as_images(rows: Any, image_shape: Sequence[int] | None) -> np.ndarray:
    """Return the rows of an array-like as images of shape (n_rows, height, width)."""
    rows = to_numpy(rows)
    n_pixels = math.prod(rows.shape[1:])
    side = math.isqrt(n_pixels)
    if image_shape is None and side**2 != n_pixels:
        raise ValueError(
            f"{n_pixels} features do not make a square image. Pass their height and width as "
            "image_shape."
        )
    shape = (side, side) if image_shape is None else tuple(image_shape)
    if len(shape) != 2 or math.prod(shape) != n_pixels:
        raise ValueError(
            f"image_shape={shape} does not fit: height times width must be the number of "
            f"features, {n_pixels}."
        )
    return rows.reshape(-1, *shape)


def name_classes(labels: np.ndarray, class_names: Sequence[str] | None) -> list[str]:
    """Return one name per class."""
    names = labels.tolist() if class_names is None else class_names
    if len(names) != len(labels):
        raise ValueError(
            f"class_names has {len(names)} names for {len(labels)} classes: {labels.tolist()}."
        )
    return [str(name) for name in names]

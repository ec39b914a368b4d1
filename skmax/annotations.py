"""Types of what the public functions take, for type checkers and for readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, SupportsFloat, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    AxesLike: TypeAlias = Axes | ArrayLike | None  # an array of Axes is one of objects
else:  # Matplotlib is imported when something is drawn
    AxesLike = Any


class HasShape(Protocol):
    """An array of any library: sparse, on a device, on disk or on a cluster."""

    @property
    def shape(self) -> Any:
        """Lengths along the axes."""

    @property
    def dtype(self) -> Any:
        """Type of the elements."""


class TakesRows(Protocol):
    """What rows can be written into."""

    def __setitem__(self, rows: Any, values: Any, /) -> None:
        """Write some rows."""


class HasCurves(Protocol):
    """An estimator that has recorded how it trained."""

    @property
    def loss_curve_(self) -> Any:
        """Training objective per epoch."""

    @property
    def accuracy_curve_(self) -> Any:
        """Training accuracy per epoch."""


Data: TypeAlias = ArrayLike | HasShape
HostRows: TypeAlias = np.ndarray | Sequence[Any]  # what is surely answered by an ndarray
RandomState: TypeAlias = int | np.random.RandomState | None
ClassWeight: TypeAlias = Mapping[Any, SupportsFloat] | Literal["balanced"] | None
SolverName: TypeAlias = Literal["auto", "sgd", "lbfgs", "newton"]
ScheduleName: TypeAlias = Literal["cosine", "linear", "constant", "invscaling"]
BackendName: TypeAlias = Literal["auto", "numpy", "cupy"]

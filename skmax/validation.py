"""The entry door: what callers give becomes X, host arrays of targets and weights, and classes."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from numbers import Number
from typing import Any

import array_api_compat
import numpy as np
from scipy import sparse
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    column_or_1d,
    validate_data,
)

from skmax._sklearn import (
    _check_feature_names,
    _check_n_features,
    _check_unknown,
    _convert_to_numpy,
    _encode,
)
from skmax.data import Blocks, opened

# What fitting learns of X by itself.
_OF_X = ("n_features_in_", "feature_names_in_")
# How far from one the probabilities of a row may sum.
_SUM_TOLERANCE = 1e-3
# Kinds of dtypes whose values name classes, whatever they are: integers and strings.
_OF_LABELS = "biuU"
# The largest label that int64 holds.
_LARGEST = 2**63 - 1


def check_X(estimator: Any, X: Any) -> Any:
    """X for a fitted estimator, checked as scikit-learn does, in its own dtype and layout.

    What is on disk and large is no array, but `Blocks`, and checked as it is read.
    """
    X = opened(X)
    if _is_plain(X) and _is_as_before(estimator, X):
        return X
    _refuse_dtype(X)
    if isinstance(X, Blocks):
        _check_features(estimator, X, reset=False)
    else:
        X = validate_data(estimator, X, reset=False, accept_sparse="csr", dtype="numeric")
    _check_width(estimator, X)
    return X


def check_X_y(estimator: Any, X: Any, y: Any, *, reset: bool) -> tuple[Any, Any, dict[str, Any]]:
    """X and y for fitting, checked as scikit-learn does, X as `check_X` has it.

    The estimator stays as it is: what it should learn of X are the attributes returned last.
    """
    X = opened(X)
    if _is_plain(X) and _are_plain_labels(y, X) and (reset or _is_as_before(estimator, X)):
        return X, y, {"n_features_in_": X.shape[1]}
    _refuse_dtype(X)
    _refuse_missing_labels(y)
    probe = _copy(estimator)
    if isinstance(X, Blocks):
        _check_features(probe, X, reset=reset)
        y = validate_data(probe, y=y, multi_output=True)
        check_consistent_length(X, y)
    else:
        X, y = validate_data(
            probe, X, y, reset=reset, accept_sparse="csr", dtype="numeric", multi_output=True
        )
    if not reset:
        _check_width(estimator, X)
        probe.n_features_in_ = X.shape[1]
    return X, y, {name: vars(probe)[name] for name in _OF_X if name in vars(probe)}


def is_valid_if_finite(estimator: Any, X: Any) -> bool:
    """Whether `check_X` would return X as it is, if its values are finite.

    They are if products with dense coefficients are: infinity times zero is no number.
    """
    is_csr = sparse.issparse(X) and X.format == "csr"
    plain = (is_csr or type(X) is np.ndarray) and _holds_numbers(X)
    return plain and not sparse.issparse(estimator.coef_) and _is_as_before(estimator, X)


def _check_features(estimator: Any, X: Blocks, *, reset: bool) -> None:
    """Check number and names of features, which blocks have none of, as scikit-learn does."""
    _check_feature_names(estimator, X, reset=reset)
    _check_n_features(estimator, X, reset=reset)


def _is_plain(X: Any) -> bool:
    """Whether X is an array of finite numbers, which scikit-learn would return as it is."""
    if type(X) is not np.ndarray or not _holds_numbers(X):
        return False
    if X.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(X.sum()))


def _holds_numbers(X: Any) -> bool:
    """Whether an array or sparse matrix has rows and columns of floats or integers."""
    known = X.dtype.char in "fd" or X.dtype.kind in "iu"
    return known and X.ndim == 2 and X.shape[0] > 0 and X.shape[1] > 0


def _are_plain_labels(y: Any, X: np.ndarray) -> bool:
    """Whether y is an array of one integer or string for each row of X."""
    return type(y) is np.ndarray and y.dtype.kind in _OF_LABELS and y.shape == X.shape[:1]


def _is_as_before(estimator: Any, X: Any) -> bool:
    """Whether X, which has no names, has the features that the estimator knows, without names."""
    known = vars(estimator)
    names, n_features = known.get("feature_names_in_"), known.get("n_features_in_")
    return names is None and X.shape[1] == n_features == estimator.coef_.shape[1]


def check_validation_X_y(
    estimator: Any, attributes: dict[str, Any], X: Any, y: Any
) -> tuple[Any, Any]:
    """X_val and y_val, checked like X and y, and named in what is said of them.

    `attributes` are those that `check_X_y` gave.
    """
    X = opened(X)
    _refuse_dtype(X)
    _check_feature_names(_copy(estimator, attributes), X, reset=False)
    if not isinstance(X, Blocks):
        X = check_array(X, accept_sparse="csr", dtype="numeric", input_name="X_val")
    n_features = attributes["n_features_in_"]
    if X.shape[1] != n_features:
        raise ValueError(
            f"X_val has {X.shape[1]} features, but {type(estimator).__name__} is expecting "
            f"{n_features} features as input, as X has."
        )
    y = check_array(y, accept_sparse="csr", ensure_2d=False, dtype=None, input_name="y_val")
    check_consistent_length(X, y)
    return X, y


def _copy(estimator: Any, attributes: dict[str, Any] | None = None) -> Any:
    """An estimator of the same class that knows other features, or else the same."""
    copy = object.__new__(type(estimator))
    copy.__dict__.update(vars(estimator))
    if attributes is not None:
        for name in _OF_X:
            copy.__dict__.pop(name, None)
        copy.__dict__.update(attributes)
    return copy


def _check_width(estimator: Any, X: Any) -> None:
    """Hold X to the coefficients, which may have been set by hand."""
    if hasattr(estimator, "coef_") and X.shape[1] != estimator.coef_.shape[1]:
        raise ValueError(
            f"X has {X.shape[1]} features, but {type(estimator).__name__} is expecting "
            f"{estimator.coef_.shape[1]} features as input, as coef_ has."
        )


def _refuse_missing_labels(y: Any, name: str = "Input y", item: str = "the label of row") -> None:
    """Refuse labels that are missing, which NumPy takes for a class of their own."""
    if hasattr(y, "isna"):
        missing = np.asarray(y.isna())
    elif getattr(getattr(y, "dtype", None), "kind", None) in ("m", "M"):
        missing = np.isnat(y)
    else:
        return
    if np.any(missing):
        row = np.argwhere(missing)[0, 0]
        raise ValueError(f"{name} contains NaN, NaT or NA: {item} {row} is missing.")


def _refuse_dtype(X: Any) -> None:
    """Refuse what scikit-learn's validation would convert without a word."""
    dtype = str(getattr(X, "dtype", ""))
    if "complex" in dtype:
        raise ValueError(
            f"Complex data not supported: X has dtype {dtype}. Pass X.real; or, as features of "
            "their own, both parts: np.hstack([X.real, X.imag])."
        )
    if dtype.startswith(("datetime64", "timedelta64")):
        raise TypeError(f"X has dtype {dtype}: convert it to numbers, e.g. X.astype('int64').")
    if sparse.issparse(X) and dtype == "object":
        raise ValueError(
            "X is a sparse matrix, which does not support dtype object: convert it with "
            "X.astype('float64')."
        )


def to_host(array: Any) -> np.ndarray:
    """A NumPy array of any array, wherever it is."""
    if isinstance(array, np.ndarray):
        return array
    if sparse.issparse(array):
        return array.toarray()
    if array_api_compat.is_array_api_obj(array):
        return _convert_to_numpy(array, array_api_compat.array_namespace(array))
    return np.asarray(array)


def like(reference: Any, array: np.ndarray) -> Any:
    """A host array, moved to where `reference` is; NumPy for what is no array."""
    if isinstance(reference, np.ndarray) or not array_api_compat.is_array_api_obj(reference):
        return array
    xp = array_api_compat.array_namespace(reference)
    return xp.asarray(array, device=array_api_compat.device(reference))


def _distinct_labels(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels that occur, sorted, and the index of each row's; checked as scikit-learn does."""
    if y.dtype.kind not in _OF_LABELS:
        check_classification_targets(y)
    classes, index = _unique(y)
    if y.dtype.kind in _OF_LABELS and 2 * len(classes) >= len(y):  # the targets of a regression?
        check_classification_targets(y)
    return classes, index


def _unique(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What np.unique gives with its inverse; without sorting, where labels are close integers."""
    if y.dtype.kind in "iu" and y.size:
        first, last = int(y.min()), int(y.max())
        if last - first < len(y) and last <= _LARGEST:
            place = y.astype(np.int64) - first
            occurs = np.bincount(place) > 0
            classes = (np.flatnonzero(occurs) + first).astype(y.dtype)
            return classes, (np.cumsum(occurs) - 1)[place]
    return np.unique(y, return_inverse=True)


def is_matrix(y: Any) -> bool:
    """Whether y has a column for every class, rather than one column of labels."""
    return y.ndim == 2 and y.shape[1] != 1


@dataclass(frozen=True)
class Targets:
    """What the rows should be classified as.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        The labels, sorted.
    values : ndarray of shape (n_samples,), int64, or (n_samples, n_classes), float64
        The index of each row's class, or its probabilities.
    """

    classes: np.ndarray
    values: np.ndarray

    @classmethod
    def read(cls, y: Any, classes: np.ndarray | None = None, name: str = "y") -> Targets:
        """Labels or probabilities, with the given classes or those that occur.

        Raises
        ------
        ValueError
            y has labels that are not among `classes`, or rows that are no probabilities.
        """
        y = to_host(y)
        if is_matrix(y):
            return cls._from_probabilities(y, classes, name)
        if y.ndim != 1:
            y = column_or_1d(y, warn=True)
        try:
            found = _distinct_labels(y)
            if classes is None:
                return cls(*found)
        except TypeError as error:
            kinds = sorted({type(label).__name__ for label in y})
            if len(kinds) == 1:
                raise
            raise TypeError(
                f"{name} mixes labels of types that have no order, {_shown(kinds)}: use one type."
            ) from error
        if unknown := list(_check_unknown(y, classes)):
            raise ValueError(
                f"{name} has labels that are not among the classes: {_shown(unknown)}. "
                f"The classes are {_shown(classes)}. Leave these rows out, or fit anew with all "
                "classes."
            )
        return cls(classes, _encode(y, uniques=classes, check_unknown=False).astype(np.int64))

    @classmethod
    def _from_probabilities(cls, y: np.ndarray, classes: np.ndarray | None, name: str) -> Targets:
        if y.dtype.kind not in "biuf":
            raise ValueError(
                f"{name} has {y.shape[1]} columns of dtype {y.dtype}. Pass one column of labels, "
                "or one column of probabilities per class."
            )
        if classes is None:
            classes = np.arange(y.shape[1])
        if y.shape[1] != len(classes):
            raise ValueError(
                f"{name} has {y.shape[1]} columns, but there are {len(classes)} classes: "
                f"{_shown(classes)}. A matrix needs one column per class."
            )
        values = y.astype(np.float64)
        sums = values.sum(axis=1)
        bad = np.flatnonzero((values.min(axis=1) < 0) | (np.abs(sums - 1) > _SUM_TOLERANCE))
        if bad.size:
            row = bad[0]
            raise ValueError(
                f"Row {row} of {name} is no probability distribution: its smallest entry is "
                f"{values[row].min():g} and it sums to {sums[row]:g}. Entries must not be negative "
                "and rows must sum to 1. For labels, pass one column."
            )
        if np.all((values == 0) | (values == 1)):
            return cls(classes, values.argmax(axis=1))
        return cls(classes, values / sums[:, None])

    @property
    def labels(self) -> np.ndarray:
        """The index of each row's (likeliest) class, of shape (n_samples,)."""
        return self.values if self.values.ndim == 1 else self.values.argmax(axis=1)

    def mass(self, weight: np.ndarray | None, order: np.ndarray) -> np.ndarray:
        """The weight that each class has in the rows `order`, of shape (n_classes,)."""
        values, weight = self.values[order], None if weight is None else weight[order]
        if values.ndim == 1:
            return np.bincount(values, weight, minlength=len(self.classes))
        return values.sum(axis=0) if weight is None else weight @ values

    def weighted(
        self, class_weight: Any, sample_weight: np.ndarray | None, order: np.ndarray
    ) -> tuple[Targets, np.ndarray]:
        """Targets and row weights with class weights applied, balanced over the rows `order`.

        A row of probabilities is as many rows as classes, each with its class's weight.
        """
        return self.times(self._factors(class_weight, sample_weight, order), sample_weight)

    def times(
        self, factor: np.ndarray, sample_weight: np.ndarray | None
    ) -> tuple[Targets, np.ndarray]:
        """The same with weights of the classes, of shape (n_classes,), as they are."""
        if self.values.ndim == 1:
            row_factor, targets = factor[self.values], self
        else:
            values = self.values * factor
            row_factor = values.sum(axis=1)
            weighs = row_factor > 0
            values = np.divide(values, row_factor[:, None], out=values, where=weighs[:, None])
            targets = Targets(self.classes, np.where(weighs[:, None], values, self.values))
        return targets, row_factor if sample_weight is None else sample_weight * row_factor

    def _factors(
        self, class_weight: Any, sample_weight: np.ndarray | None, order: np.ndarray
    ) -> np.ndarray:
        if isinstance(class_weight, str):  # "balanced"
            mass = self.mass(sample_weight, order)
            known = mass > 0
            return np.divide(mass.sum() / known.sum(), mass, out=np.zeros(len(mass)), where=known)
        try:
            factor = compute_class_weight(class_weight, classes=self.classes, y=self.classes)
        except ValueError as error:
            unknown = [label for label in class_weight if label not in self.classes]
            raise ValueError(
                f"class_weight={class_weight!r} has labels that are not among the classes: "
                f"{_shown(unknown)}. The classes are {_shown(self.classes)}."
            ) from error
        if not (np.isfinite(factor).all() and (factor >= 0).all()):
            raise ValueError(
                "class_weight must be finite and not negative for every class, got "
                f"{class_weight!r}."
            )
        return factor


def check_weights(sample_weight: Any, X: Any, name: str = "sample_weight") -> np.ndarray | None:
    """Row weights on the host, or None for equal ones.

    Raises
    ------
    ValueError
        A weight is negative, or all are zero.
    """
    if sample_weight is None:
        return None
    if array_api_compat.is_array_api_obj(sample_weight):
        sample_weight = to_host(sample_weight)
    n = X.shape[0]
    if isinstance(sample_weight, Number):
        sample_weight = np.full(n, sample_weight)
    weight = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name=name)
    if weight.shape != (n,):
        raise ValueError(
            f"{name} must be a 1D array or scalar, but is a {weight.ndim}D array: "
            f"{name}.shape == {weight.shape}, expected {(n,)}, one weight per row of X."
        )
    if (weight < 0).any():
        raise ValueError(
            f"Negative values in data passed to `{name}`: the smallest is {weight.min():g}. "
            "Weights count rows, so they must not be negative."
        )
    if not weight.any():
        raise ValueError(
            f"{name}: Sample weights must contain at least one non-zero number; all "
            f"{len(weight)} are zero, so there is nothing to learn from."
        )
    with np.errstate(over="ignore"):
        total = weight.sum()
    if not np.finfo(np.float64).tiny <= total < np.inf:
        raise ValueError(f"{name} sums to {total:g}, which float64 cannot divide by: rescale it.")
    return weight


def check_classes(classes: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Which classes have no weight, of shape (n_classes,).

    Raises
    ------
    ValueError
        Fewer than two classes have weight.
    """
    masked = ~(mass > 0)
    if np.sum(~masked) < 2:
        present = f"only one class: {_shown(classes[~masked])}" if np.any(~masked) else "no class"
        raise ValueError(
            "This classifier needs samples of at least 2 classes with weight, but the data "
            f"contains {present}."
        )
    return masked


def check_announced_classes(estimator: Any, y: Any, classes: Any) -> np.ndarray:
    """The classes of all calls to `partial_fit`, on the host.

    Raises
    ------
    ValueError
        They are not those of the earlier calls, or there are none, or one is missing.
    """
    announced = None if classes is None else _distinct(classes)
    if hasattr(estimator, "coef_"):
        known = to_host(estimator.classes_)
        if announced is not None and not np.array_equal(known, announced):
            raise ValueError(
                f"`classes={classes!r}` is not the same as on last call to partial_fit, was: "
                f"{known!r}. Pass the same or none; for others, start with a new estimator."
            )
        return known
    if announced is None and is_matrix(y):
        announced = np.arange(y.shape[1])
    if announced is None:
        raise ValueError("classes must be passed on the first call to partial_fit.")
    check_classes(announced, np.ones(len(announced)))
    return announced


def _distinct(classes: Any) -> np.ndarray:
    """Different class labels, sorted, of any collection."""
    if isinstance(classes, Set | Mapping):
        classes = list(classes)
    classes = to_host(classes)
    _refuse_missing_labels(classes, "classes", "entry")
    if classes.dtype.kind in "fO" and (missing := np.flatnonzero(classes != classes)).size:
        raise ValueError(f"classes contains NaN: entry {missing[0]} is missing.")
    return np.unique(classes)


def check_same_model(estimator: Any, X: Any, classes: np.ndarray) -> None:
    """Raise a ValueError unless a warm start on X and these classes can go on from `coef_`."""
    if X.shape[1] != estimator.coef_.shape[1]:
        raise ValueError(
            f"X has {X.shape[1]} features, but {type(estimator).__name__} is expecting "
            f"{estimator.coef_.shape[1]} features as input, which warm_start goes on with."
        )
    before = to_host(estimator.classes_)
    if not np.array_equal(before, classes):
        raise ValueError(
            "warm_start can only be used where `y` has the same classes as in the previous "
            f"call to fit. Previously got {before}, `y` has {classes}."
        )


def _shown(values: Any, limit: int = 10) -> str:
    shown = ", ".join(repr(value) for value in np.asarray(values)[:limit].tolist())
    return f"[{shown}, ...]" if len(values) > limit else f"[{shown}]"

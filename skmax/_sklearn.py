"""All that is private in scikit-learn, and what it is used for.

Private names may move in any minor version, so scikit-learn is capped below the next one, and a
test holds each name here to what skmax expects of it. Nothing else imports a private name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sklearn.linear_model._base import SparseCoefMixin
from sklearn.metrics._scorer import _MultimetricScorer
from sklearn.model_selection._validation import (
    _fit_and_score,
    _insert_error_scores,
    _score,
    _warn_or_raise_about_fit_failures,
)
from sklearn.utils import _safe_indexing
from sklearn.utils._array_api import (
    _convert_to_numpy,
    _max_precision_float_dtype,
    check_same_namespace,
    device,
    get_namespace,
)
from sklearn.utils._encode import _check_unknown, _encode
from sklearn.utils._openmp_helpers import _openmp_effective_n_threads
from sklearn.utils._param_validation import (
    Interval,
    Options,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.parallel import _get_threadpool_controller
from sklearn.utils.validation import _check_feature_names, _check_method_params, _check_n_features

# Attributes that an estimator has while it is being fitted with callbacks, and no longer.
_OF_A_RUNNING_FIT = ("_callback_fit_ctx", "_skl_callbacks_to_teardown")

if TYPE_CHECKING:  # scikit-learn has no types, and what it decorates would lose its own
    Function = TypeVar("Function", bound=Callable[..., Any])

    def _fit_context(*, prefer_skip_nested_validation: bool) -> Callable[[Function], Function]: ...

    def validate_params(
        parameter_constraints: dict[str, Any], *, prefer_skip_nested_validation: bool
    ) -> Callable[[Function], Function]: ...
else:
    from sklearn.base import _fit_context
    from sklearn.utils._param_validation import validate_params

__all__ = [
    "_OF_A_RUNNING_FIT",
    "Interval",
    "Options",
    "SparseCoefMixin",
    "StrOptions",
    "_MultimetricScorer",
    "_check_feature_names",
    "_check_method_params",
    "_check_n_features",
    "_check_unknown",
    "_convert_to_numpy",
    "_encode",
    "_fit_and_score",
    "_fit_context",
    "_get_threadpool_controller",
    "_insert_error_scores",
    "_max_precision_float_dtype",
    "_openmp_effective_n_threads",
    "_safe_indexing",
    "_safe_split",
    "_score",
    "_warn_or_raise_about_fit_failures",
    "check_same_namespace",
    "device",
    "get_namespace",
    "validate_parameter_constraints",
    "validate_params",
]

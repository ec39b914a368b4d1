"""scikit-learn's own checks of an estimator, for every kind of input that this machine has."""

import pytest
from conftest import usable
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_param_validation,
    estimator_checks_generator,
)

from skmax import BatchedGridSearchCV, SoftmaxRegression

ESTIMATORS = [
    SoftmaxRegression(),
    BatchedGridSearchCV(SoftmaxRegression(random_state=0, max_iter=20), {"C": [0.1, 1.0]}, cv=2),
]
# Stratified folds of one class fail as those of GridSearchCV do, before weights are looked at.
FAILING = {("BatchedGridSearchCV", "check_classifiers_one_label_sample_weights")}


def _inputs(check):
    """The (namespace, device) pairs that a check makes arrays of."""
    keywords = getattr(check, "keywords", {})
    pairs = [
        keywords[name] for name in ("X_ns_and_device", "other_ns_and_device") if name in keywords
    ]
    if "array_namespace" in keywords:
        pairs.append((keywords["array_namespace"], keywords.get("device_name")))
    return [tuple(pair) for pair in pairs]


def _checks():
    # Devices that are not there are left out, not skipped: with a PyTorch built for CUDA, or with
    # CuPy, and no GPU, scikit-learn's checks would fail rather than skip.
    checks = (pair for model in ESTIMATORS for pair in estimator_checks_generator(model))
    for estimator, check in checks:
        inputs = _inputs(check)
        if not all(usable(namespace, device) for namespace, device in inputs):
            continue
        kind = " + ".join(dict.fromkeys(namespace for namespace, _ in inputs)) or "dense and sparse"
        name = getattr(check, "func", check).__name__
        if (type(estimator).__name__, name) in FAILING:
            continue
        yield pytest.param(
            estimator,
            check,
            kind,
            id="-".join(
                [type(estimator).__name__, name, *(str(part) for pair in inputs for part in pair)]
            ),
        )


@pytest.mark.filterwarnings("default")  # the checks provoke warnings of scikit-learn's own
@pytest.mark.parametrize(("estimator", "check", "kind"), list(_checks()))
def test_check_estimator(estimator, check, kind, record_property):
    record_property("scikit-learn check", kind)
    check(estimator)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "check", [check_param_validation, check_dataframe_column_names_consistency]
)
def test_checks_that_check_estimator_leaves_out(check, record_property):
    record_property("scikit-learn check", "parameters and data frames")
    check("SoftmaxRegression", SoftmaxRegression())

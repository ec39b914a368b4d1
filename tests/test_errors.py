"""Bad input: every error names what was wrong, why, and what to do."""

import re
from typing import ClassVar

import numpy as np
import pytest
import sklearn
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.utils._param_validation import InvalidParameterError

from skmax import SoftmaxRegression

X = np.random.default_rng(0).normal(size=(30, 3))
Y = np.arange(30) % 3
ONE_HOT = np.eye(3)[Y]


def fit(X=X, y=Y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None, **params):
    """Fit anew; what the messages of the tests below answer to."""
    return SoftmaxRegression(max_iter=3, learning_rate=0.1, **params).fit(
        X,
        y,
        sample_weight,
        X_val=X_val,
        y_val=y_val,
        sample_weight_val=sample_weight_val,
    )


def with_entry(array, index, value):
    """Copy an array as floats, with one entry replaced."""
    array = np.array(array, dtype=np.float64)
    array[index] = value
    return array


def raises(*parts, error=ValueError):
    """An error whose text holds these parts, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(part) for part in parts))


# Values that are not numbers

NOT_FINITE = [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array, sparse.csc_matrix])
@pytest.mark.parametrize(("value", "word"), NOT_FINITE)
def test_X_must_be_finite(value, word, container):
    bad = container(with_entry(X, (3, 1), value))
    with raises("Input X contains", word):
        fit(bad)
    model = fit()
    with raises("Input X contains", word):
        model.predict_proba(bad)
    with raises("Input X contains", word):
        model.partial_fit(bad, Y)


@pytest.mark.parametrize("container", [np.ascontiguousarray, np.asfortranarray, sparse.csr_array])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_rows", [1, 30, 3000])
@pytest.mark.parametrize("n_classes", [2, 3, 60])
def test_X_must_be_finite_whatever_its_coefficients_are(container, dtype, n_rows, n_classes):
    """Of either sign, and zero: those of features that L1 has dropped, and of all."""
    rng = np.random.default_rng(0)
    model = fit(rng.normal(size=(120, 40)).astype(dtype), np.arange(120) % n_classes)
    model.coef_[:, ::2] = 0
    for factor in (1, -1, 0):
        model.coef_ *= dtype(factor)
        for (value, word), column in zip(NOT_FINITE * 2, range(6), strict=True):
            rows = rng.normal(size=(n_rows, 40)).astype(dtype)
            rows[n_rows // 2, column] = value
            for predict in (model.predict, model.predict_proba, model.decision_function):
                with raises("Input X contains", word):
                    predict(container(rows))


def test_finite_X_with_infinite_logits_is_no_error():
    model = fit(X, np.arange(30) % 2)
    model.coef_[:] = 1e200
    rows = np.array([[1e200, 1e200, 1e200], [-1e200, -1e200, -1e200], [0, 0, 0]])
    np.testing.assert_array_equal(model.predict_proba(rows)[:2], [[0, 1], [1, 0]])


@pytest.mark.parametrize(("value", "word"), NOT_FINITE)
def test_y_must_be_finite(value, word):
    with raises("Input y contains", word):
        fit(y=with_entry(Y, 3, value))
    with raises("Input y contains", word):
        fit(y=with_entry(ONE_HOT, (3, 1), value))


@pytest.mark.parametrize(("value", "word"), NOT_FINITE)
def test_sample_weight_must_be_finite(value, word):
    with raises("Input sample_weight contains", word):
        fit(sample_weight=with_entry(np.ones(30), 3, value))


@pytest.mark.parametrize(("value", "word"), NOT_FINITE)
@pytest.mark.parametrize("name", ["X_val", "sample_weight_val"])
def test_validation_data_must_be_finite_and_are_named(value, word, name):
    validation = {"X_val": X, "y_val": Y, "sample_weight_val": np.ones(30)}
    validation[name] = with_entry(validation[name], 3, value)
    with raises(name, "contains", word):
        fit(**validation)


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        (np.array([["a", "b", "c"]] * 30), ("strings", "numeric")),
        (np.array([["a", "b", "c"]] * 30, dtype=object), ("could not convert string", "'a'")),
        (X + 1j, ("Complex data not supported",)),
        (sparse.csr_array(X + 1j), ("Complex data not supported",)),
    ],
    ids=["strings", "objects", "complex", "sparse complex"],
)
def test_X_must_be_numeric(bad, parts):
    with raises(*parts):
        fit(bad)


@pytest.mark.parametrize("dtype", ["M8[D]", "m8[s]"])
def test_times_are_not_numbers(dtype):
    with pytest.raises((TypeError, ValueError), match=r"\bX\b.*(datetime|timedelta)64"):
        fit(np.arange(90).reshape(30, 3).astype(dtype))


def test_complex_tensors_are_refused():
    torch = pytest.importorskip("torch")
    with sklearn.config_context(array_api_dispatch=True), raises("omplex"):
        fit(torch.asarray(X + 1j), torch.asarray(Y))


def test_sparse_objects_are_refused():
    as_numbers = sparse.csr_matrix(X)
    parts = as_numbers.data.astype(object), as_numbers.indices, as_numbers.indptr
    with raises("does not support dtype object", "float64"):
        fit(sparse.csr_matrix(parts))


def test_numbers_in_an_object_array_are_numbers():
    np.testing.assert_array_equal(
        fit(X.astype(object), random_state=0).coef_, fit(random_state=0).coef_
    )


# Shapes


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        (X[:, 0], ("Expected 2D array, got 1D array", "Reshape your data")),
        (X[:, :, None], ("dim 3", "<= 2")),
        (np.empty((30, 0)), ("0 feature(s)", "shape=(30, 0)", "minimum of 1")),
        (X[:-1], ("inconsistent numbers of samples", "29", "30")),
    ],
    ids=["1-d", "3-d", "no features", "one row short"],
)
def test_X_must_be_a_matrix_with_a_row_per_label(bad, parts):
    with raises(*parts):
        fit(bad)


def test_no_samples():
    with raises("0 sample(s)", "shape=(0, 3)", "minimum of 1"):
        fit(np.empty((0, 3)), np.empty(0))


@pytest.mark.parametrize("call", ["predict", "predict_log_proba", "partial_fit", "X_val", "warm"])
def test_number_of_features_must_be_that_of_fit(call):
    wrong = X[:, :2]
    with raises(f"{'X_val' if call == 'X_val' else 'X'} has 2 features", "expecting 3 features"):
        if call == "X_val":
            fit(X_val=wrong, y_val=Y)
        elif call == "partial_fit":
            fit().partial_fit(wrong, Y)
        elif call == "warm":
            fit(warm_start=True).fit(wrong, Y)
        else:
            getattr(fit(), call)(wrong)


def test_sparse_X_must_have_the_features_of_fit():
    with raises("X has 2 features", "expecting 3 features"):
        fit(sparse.csr_array(X)).predict(sparse.csr_array(X[:, :2]))


# Weights


@pytest.mark.parametrize("name", ["sample_weight", "sample_weight_val"])
@pytest.mark.parametrize(
    ("weight", "parts"),
    [
        (with_entry(np.ones(30), 3, -2), ("Negative", "{}", "-2")),
        (np.zeros(30), ("{}", "non-zero", "30 are zero")),
        (np.ones(29), ("{}", "(29,)", "(30,)")),
        (np.ones((30, 2)), ("1D", "2D")),
    ],
    ids=["negative", "all zero", "too short", "matrix"],
)
def test_weights(name, weight, parts):
    validation = {"X_val": X, "y_val": Y} if name.endswith("val") else {}
    with raises(*(part.format(name) for part in parts)):
        fit(**{name: weight}, **validation)


@pytest.mark.parametrize("value", [1e308, 1e-320])
def test_weights_whose_sum_overflows_or_underflows(value):
    with raises("sample_weight", "sum"):
        fit(sample_weight=np.full(30, value))


@pytest.mark.parametrize("seed", range(4))
def test_rows_held_out_without_weight(seed):
    # Which rows have weight is up to chance, which must not decide between good and NaN.
    weight = np.zeros(30)
    weight[:3] = 1
    try:
        model = fit(sample_weight=weight, early_stopping=True, random_state=seed)
    except ValueError as error:
        message = str(error)
    else:
        message = "early_stopping X_val"
        assert np.isfinite(model.validation_loss_curve_).all()
    assert "early_stopping" in message
    assert "X_val" in message


def test_partial_fit_on_rows_that_class_weight_ignores():
    model = SoftmaxRegression(class_weight={0: 0.0, 1: 1.0, 2: 1.0})
    with raises("weight", "zero"):
        model.partial_fit(X[Y == 0], Y[Y == 0], classes=[0, 1, 2])


# Classes and targets


@pytest.mark.parametrize("label", [0, "cat", 1.0, True])
def test_one_class(label):
    with raises("at least 2 classes", "only one class", repr(label)):
        fit(y=np.array([label] * 30))


def test_one_class_with_weight():
    with raises("at least 2 classes with weight", "only one class: [1]"):
        fit(sample_weight=(Y == 1).astype(float))


def test_one_class_announced():
    with raises("at least 2 classes", "only one class: [0]"):
        SoftmaxRegression().partial_fit(X, 0 * Y, classes=[0])


def test_one_column_of_probability_with_mass():
    with raises("at least 2 classes", "only one class: [2]"):
        fit(y=np.eye(3)[2 + 0 * Y])


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ([0.5, 0.5, 0.5], ("Row 3 of y", "sums to 1.5", "must sum to 1")),
        ([0.0, 0.0, 0.0], ("Row 3 of y", "sums to 0", "must sum to 1")),
        ([0.5, 1.0, -0.5], ("Row 3 of y", "smallest entry is -0.5", "must not be negative")),
        ([1, 1, 0], ("Row 3 of y", "sums to 2", "must sum to 1", "For labels, pass one column")),
    ],
    ids=["too much", "nothing", "negative", "multilabel"],
)
def test_rows_of_probabilities(row, parts):
    with raises(*parts):
        fit(y=with_entry(ONE_HOT, 3, row))


def test_rows_of_validation_probabilities_are_named_so():
    with raises("Row 3 of y_val", "sums to 1.5"):
        fit(X_val=X, y_val=with_entry(ONE_HOT, 3, [0.5, 0.5, 0.5]))


def test_multilabel_indicators():
    with raises("Row 0 of y", "sums to 2", "must sum to 1"):
        fit(y=np.tile([1, 1, 0], (30, 1)))


def test_a_matrix_of_strings():
    with raises("y has 2 columns", "<U1", "one column of labels", "probabilities per class"):
        fit(y=np.array([["a", "b"]] * 30))


def test_three_dimensional_y():
    with raises("dim 3"):
        fit(y=np.ones((30, 2, 2)))


def test_a_regression_target():
    with raises("Unknown label type: continuous", "classifier"):
        fit(y=X[:, 0])


def test_no_y():
    with raises("requires y to be passed", "None"):
        fit(y=None)


def test_labels_that_cannot_be_sorted():
    # LogisticRegression says "'<' not supported between instances of 'NoneType' and 'str'".
    with pytest.raises((TypeError, ValueError), match=r"\by\b.*None"):
        fit(y=np.array(["b", "a", None] * 10, dtype=object))


def test_labels_of_bytes():
    with raises("labels represented as bytes", "Convert", error=TypeError):
        fit(y=np.array([b"a", b"b", b"c"])[Y])


def test_missing_labels():
    pandas = pytest.importorskip("pandas")
    for dtype in ("string", "category", "object"):
        with pytest.raises((TypeError, ValueError), match=r"\by\b.*(NA|None)|contains NaN"):
            fit(y=pandas.Series(["a", None, "c"] * 10, dtype=dtype))


def test_a_column_of_labels_warns_and_works():
    with pytest.warns(DataConversionWarning, match="column-vector y was passed"):
        model = fit(y=Y[:, None], random_state=0)
    np.testing.assert_array_equal(model.coef_, fit(random_state=0).coef_)


@pytest.mark.parametrize("first", [True, False])
def test_partial_fit_with_unknown_labels(first):
    model = SoftmaxRegression()
    if not first:
        model.partial_fit(X, Y % 2, classes=[0, 1])
    with raises("y has labels", "not among the classes: [2]", "classes are [0, 1]"):
        model.partial_fit(X, Y, classes=[0, 1])


def test_partial_fit_without_classes():
    with raises("classes must be passed on the first call"):
        SoftmaxRegression().partial_fit(X, Y)


def test_partial_fit_with_other_classes():
    model = SoftmaxRegression().partial_fit(X, Y, classes=[0, 1, 2])
    with raises("classes=[0, 1]", "not the same", "0, 1, 2"):
        model.partial_fit(X, Y, classes=[0, 1])


@pytest.mark.parametrize(
    ("params", "parts"),
    [
        ({"early_stopping": True}, ("partial_fit", "early_stopping=True")),
        ({"class_weight": "balanced"}, ("class_weight='balanced'", "compute_class_weight")),
    ],
    ids=["early_stopping", "balanced"],
)
def test_partial_fit_refuses_what_needs_all_rows(params, parts):
    with raises(*parts) as caught:
        SoftmaxRegression(**params).partial_fit(X, Y, classes=[0, 1, 2])
    assert not isinstance(caught.value, InvalidParameterError)


def test_a_soft_y_with_too_few_columns():
    model = fit()
    with raises("y has 2 columns", "3 classes: [0, 1, 2]", "one column per class"):
        model.partial_fit(X, np.eye(2)[Y % 2])
    with raises("y has 2 columns", "3 classes: [0, 1, 2]", "one column per class"):
        model.score(X, np.eye(2)[Y % 2])


def test_warm_start_with_other_classes():
    with raises("warm_start", "same classes", "[0 1 2]", "[0 1]"):
        fit(warm_start=True).fit(X, Y % 2)


# Validation data


@pytest.mark.parametrize(
    ("validation", "parts"),
    [
        ({"X_val": X}, ("X_val is provided", "y_val was not provided")),
        ({"y_val": Y}, ("y_val is provided", "X_val was not provided")),
        (
            {"sample_weight_val": np.ones(30)},
            ("sample_weight_val is provided", "X_val was not provided"),
        ),
        ({"X_val": X, "y_val": Y[1:]}, ("inconsistent numbers of samples", "30", "29")),
        ({"X_val": X, "y_val": Y + 1}, ("y_val has labels", "[3]", "classes are [0, 1, 2]")),
        ({"X_val": X, "y_val": np.eye(2)[Y % 2]}, ("y_val has 2 columns", "3 classes")),
    ],
    ids=["no y_val", "no X_val", "only weights", "lengths", "unknown label", "columns"],
)
def test_validation_data(validation, parts):
    with raises(*parts):
        fit(**validation)


def test_X_val_with_other_columns():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b", "c"])
    with raises("feature names should match", "z"):
        fit(frame, X_val=frame.rename(columns={"c": "z"}), y_val=Y)


@pytest.mark.parametrize("names", [[0, 1, 2], ["ant", "bee", "cat"]])
def test_a_class_too_small_to_be_split(names):
    y = np.asarray(names)[np.r_[1, np.arange(29) % 2 * 2]]
    with raises("early_stopping", "class", repr(names[1]), "X_val"):
        fit(y=y, early_stopping=True)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_validation_fraction_that_leaves_too_few_rows(fraction):
    with raises("validation_fraction", f"{fraction}"):
        fit(early_stopping=True, validation_fraction=fraction)


# Class weights


@pytest.mark.parametrize(
    ("class_weight", "parts"),
    [
        ({0: 1, 7: 2}, ("class_weight", "7")),
        ({0: -1.5, 1: 1, 2: 1}, ("class_weight", "negative", "-1.5")),
        ({0: np.nan, 1: 1, 2: 1}, ("class_weight", "nan")),
        ({0: np.inf, 1: 1, 2: 1}, ("class_weight", "inf")),
        ({0: 0, 1: 0, 2: 1}, ("at least 2 classes with weight", "[2]")),
    ],
    ids=["unknown class", "negative", "nan", "infinite", "all but one zero"],
)
def test_class_weight(class_weight, parts):
    with raises(*parts):
        fit(class_weight=class_weight)


def test_classes_missing_from_class_weight_weigh_one():
    some = fit(class_weight={0: 2.0}, random_state=0)
    every = fit(class_weight={0: 2.0, 1: 1.0, 2: 1.0}, random_state=0)
    np.testing.assert_array_equal(some.coef_, every.coef_)


# Parameters


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("C", 0, "range (0.0, inf]"),
        ("C", -1, "range (0.0, inf]"),
        ("C", np.nan, "range (0.0, inf]"),
        ("l1_ratio", 2, "range [0.0, 1.0]"),
        ("class_weight", "auto", "balanced"),
        ("label_smoothing", 1, "range [0.0, 1.0)"),
        ("solver", "adam", "sgd"),
        ("preconditioner", "full", "diagonal"),
        ("learning_rate", 0, "range (0.0, inf)"),
        ("learning_rate", np.inf, "range (0.0, inf)"),
        ("learning_rate", "adaptive", "auto"),
        ("schedule", "step", "linear"),
        ("max_iter", 0, "range [1, inf)"),
        ("max_iter", 2.5, "int"),
        ("batch_size", 0, "range [1, inf)"),
        ("batch_size", "full", "auto"),
        ("momentum", 1, "range [0.0, 1.0)"),
        ("momentum", -0.1, "range [0.0, 1.0)"),
        ("shuffle", "yes", "bool"),
        ("tol", -1, "range [0.0, inf)"),
        ("n_iter_no_change", 0, "range [1, inf)"),
        ("validation_fraction", 1, "range (0.0, 1.0)"),
        ("random_state", "seed", "int in the range [0,"),
        ("verbose", -1, "range [0, inf)"),
        ("backend", "torch", "cupy"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_parameters(name, value, reason, method):
    model = SoftmaxRegression(**{name: value})  # checked when fitting, as scikit-learn does
    extra = {"classes": [0, 1, 2]} if method == "partial_fit" else {}
    with pytest.raises(InvalidParameterError) as caught:
        getattr(model, method)(X, Y, **extra)
    message = str(caught.value)
    assert f"'{name}' parameter of SoftmaxRegression" in message
    assert reason in message
    assert f"Got {value!r}" in message


def test_parameters_are_keyword_only():
    with raises("positional argument", error=TypeError):
        SoftmaxRegression(1.0)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_batch_larger_than_the_data_warns_and_is_clipped(method):
    extra = {"classes": [0, 1, 2]} if method == "partial_fit" else {}
    common = {"max_iter": 3, "learning_rate": 0.1, "random_state": 0}
    with pytest.warns(UserWarning, match=r"batch_size=1000.*30 rows.*clipped"):
        clipped = getattr(SoftmaxRegression(batch_size=1000, **common), method)(X, Y, **extra)
    whole = getattr(SoftmaxRegression(batch_size=30, **common), method)(X, Y, **extra)
    np.testing.assert_array_equal(clipped.coef_, whole.coef_)


# Training that goes wrong


@pytest.mark.parametrize("preconditioner", ["diagonal", None])
@pytest.mark.parametrize("learning_rate", [1e3, 1e6, 1e300])
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_a_learning_rate_that_diverges(container, learning_rate, preconditioner):
    model = SoftmaxRegression(
        learning_rate=learning_rate,
        batch_size=5,
        schedule="constant",
        preconditioner=preconditioner,
    )
    with raises(
        "diverged in epoch 1",
        f"learning_rate={learning_rate:g}",
        "smaller learning_rate",
        "learning_rate='auto'",
    ):
        model.fit(container(X), Y)
    assert not hasattr(model, "coef_")


def test_partial_fit_that_diverges_leaves_the_model_as_it_was():
    model = SoftmaxRegression(learning_rate=0.1).partial_fit(X, Y, classes=[0, 1, 2])
    before = model.coef_.copy()
    with raises("diverged", "learning_rate=1e+06"):
        model.set_params(learning_rate=1e6, batch_size=5).partial_fit(X, Y)
    np.testing.assert_array_equal(model.coef_, before)
    assert model.n_iter_ == 1


def test_a_learning_rate_that_ends_worse_than_ignorance_warns():
    with pytest.warns(UserWarning, match=r"worse than.*learning_rate=50.*'auto'"):
        SoftmaxRegression(learning_rate=50, schedule="constant", random_state=0).fit(X, Y)


def test_a_fit_that_was_cut_short_warns():
    model = SoftmaxRegression(schedule="constant", learning_rate=0.01, max_iter=3)
    with pytest.warns(ConvergenceWarning, match=r"tol=0\.0001.*max_iter=3.*Increase max_iter"):
        model.fit(X, Y)


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("params", [{}, {"fit_intercept": False}, {"learning_rate": 0.1}])
def test_values_whose_squares_overflow_are_values_like_any_others(params, container):
    """Probabilities to 1e-4 of those of the feature in units that can be squared."""
    unit = 2.0**-660
    huge, usual = with_entry(X, (3, 1), 1e200), with_entry(X, (3, 1), 1e200)
    usual[:, 1] *= unit
    fits = [
        SoftmaxRegression(C=1e4, tol=1e-7, random_state=0, **params).fit(container(values), Y)
        for values in (huge, usual)
    ]
    expected = fits[1].predict_proba(usual)
    np.testing.assert_allclose(fits[0].predict_proba(huge), expected, atol=1e-4)


def test_values_whose_squares_overflow_float32_are_no_nan():
    huge = np.array(X, dtype=np.float32)
    huge[3, 1] = 1e30
    model = SoftmaxRegression(random_state=0).fit(huge, Y)
    assert np.isfinite(model.coef_).all()
    assert np.isfinite(model.predict_proba(huge)).all()


# Models that are not fitted


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.predict(X),
        lambda model: model.predict_proba(X),
        lambda model: model.predict_log_proba(X),
        lambda model: model.decision_function(X),
        lambda model: model.score(X, Y),
        lambda model: model.score(X, ONE_HOT),
        lambda model: model.sparsify(),
        lambda model: model.densify(),
        lambda model: model.to_sklearn(),
    ],
    ids=[
        "predict",
        "predict_proba",
        "predict_log_proba",
        "decision_function",
        "score",
        "score soft y",
        "sparsify",
        "densify",
        "to_sklearn",
    ],
)
def test_not_fitted(call):
    with raises("SoftmaxRegression", "fitted", error=NotFittedError):
        call(SoftmaxRegression())


def test_targets_that_look_like_those_of_a_regression_are_warned_of():
    labels = np.resize(np.arange(20), len(X))
    with pytest.warns(UserWarning, match="could represent a regression problem"):
        SoftmaxRegression().fit(X, labels)


def test_parameters_of_a_subclass_are_checked():
    class Named(SoftmaxRegression):
        _parameter_constraints: ClassVar = {
            **SoftmaxRegression._parameter_constraints,
            "name": [str],
        }

        def __init__(self, *, name="a", C=1.0):
            super().__init__(C=C)
            self.name = name

    Named().fit(X, Y)
    for wrong in ({"name": 1}, {"C": -1}):
        with pytest.raises(ValueError, match=f"The '{next(iter(wrong))}' parameter of Named"):
            Named(**wrong).fit(X, Y)

"""X and y in whatever dtype, layout, scale and container they come."""

import itertools
import tracemalloc

import array_api_strict
import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from skmax import SoftmaxRegression
from skmax.backends import Backend
from skmax.backends.numpy import NumpyBackend
from skmax.data import dense, source
from skmax.kernels import library
from skmax.problem import Problem
from skmax.solvers.learning_rate import stable_rate
from skmax.solvers.preconditioner import Moments
from skmax.solvers.sgd import SGD
from skmax.validation import _unique

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
# The last digits that training in each precision keeps.
PRECISION = {np.dtype(np.float32): 2e-4, np.dtype(np.float64): 1e-9}


def model_of(**parameters):
    return SoftmaxRegression(
        **{"learning_rate": 0.1, "batch_size": 32, "max_iter": 5, "random_state": 0, **parameters}
    )


def make_data(n=120, d=5, k=3, seed=0):
    """Small integers, which every dtype can hold."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 100, size=(n, d)).astype(np.float64)
    y = np.argmax((X - 50) / 30 @ rng.normal(size=(d, k)) + rng.gumbel(size=(n, k)), axis=1)
    return X, y


def c_order(X, path):
    return X.copy()


def f_order(X, path):
    return np.asfortranarray(X)


def strided(X, path):
    return np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3]


def reversed_(X, path):
    return X[::-1, ::-1].copy()[::-1, ::-1]


def swapped_bytes(X, path):
    return X.astype(X.dtype.newbyteorder())


def unaligned(X, path):
    whole = np.empty(X.nbytes + 1, np.uint8)
    view = whole[1:].view(X.dtype).reshape(X.shape)
    view[...] = X
    return view


def read_only(X, path):
    X = X.copy()
    X.flags.writeable = False
    return X


def memory_map(X, path):
    np.save(path / "X.npy", X)
    return np.load(path / "X.npy", mmap_mode="r")


LAYOUTS = [c_order, f_order, strided, reversed_, swapped_bytes, unaligned, read_only, memory_map]


@pytest.mark.parametrize(
    "dtype", ["bool", *INTEGERS, "float16", "float32", "float64", "longdouble"]
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_dtype_and_layout_gives_the_answer_of_float64(dtype, layout, tmp_path):
    """To 1e-9, or 2e-4 where training is in float32; X is left as it was."""
    X, y = make_data()
    X = X > 50 if dtype == "bool" else X
    expected = model_of().fit(X.astype(np.float64), y)
    given = layout(X.astype(dtype), tmp_path)
    before = given.copy()
    model = model_of().fit(given, y)
    probabilities = model.predict_proba(given)
    np.testing.assert_array_equal(given, before)
    rtol = PRECISION[model.coef_.dtype]
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=rtol, atol=rtol / 10)
    np.testing.assert_allclose(
        probabilities, expected.predict_proba(X.astype(np.float64)), rtol=0, atol=rtol
    )
    np.testing.assert_allclose(model.loss_curve_, expected.loss_curve_, rtol=rtol)
    # A model fitted to one kind of data predicts on another.
    np.testing.assert_allclose(expected.predict_proba(given), probabilities, rtol=0, atol=rtol)


@pytest.mark.parametrize(
    ("dtype", "trained_in"),
    [
        ("bool", "float32"), ("int8", "float32"), ("uint8", "float32"), ("int16", "float32"),
        ("uint16", "float32"), ("int32", "float64"), ("uint32", "float64"), ("int64", "float64"),
        ("uint64", "float64"), ("float16", "float32"), ("float32", "float32"),
        ("float64", "float64"), ("longdouble", "float64"),
    ],
)  # fmt: skip
def test_narrow_data_train_in_float32_and_wide_data_in_float64(dtype, trained_in):
    X, y = make_data()
    model = model_of().fit(X.astype(dtype), y)
    assert {model.coef_.dtype, model.predict_proba(X.astype(dtype)).dtype} == {np.dtype(trained_in)}


def big(kind, path):
    rng = np.random.default_rng(0)
    X = rng.integers(256, size=(10_000, 400), dtype=np.uint8)
    if kind.startswith("far"):
        X = X // 32 + np.uint8(100)
        X[:, 0] = 200 + X[:, 0] % 2
    X = X.astype(np.float32) if "float32" in kind else X
    X = np.asfortranarray(X) if "F-ordered" in kind else X
    return memory_map(X, path) if "memory map" in kind else X


@pytest.mark.parametrize(
    ("kind", "preconditioner"),
    [
        *itertools.product(
            ["uint8", "float32", "far uint8", "memory map of uint8", "memory map of float32",
             "F-ordered uint8", "F-ordered float32"],
            ["diagonal", None],
        ),
        ("F-ordered memory map of float32", "diagonal"),
    ],
)  # fmt: skip
def test_no_copy_of_X_is_made_in_floats(kind, preconditioner, tmp_path):
    """10,000 x 400: 16 MB as float32. Fitting and predicting take 3 MB.

    One copy in X's own dtype, laid out by rows, is allowed for data in memory.
    """
    X = big(kind, tmp_path)
    y = np.arange(len(X)) % 3
    model = SoftmaxRegression(
        solver="sgd", max_iter=1, preconditioner=preconditioner, random_state=0
    )
    in_memory = not isinstance(X, np.memmap)
    tracemalloc.start(1)
    try:
        model.fit(X, y)
        fitting = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        model.predict_proba(X)
        predicting = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fitting < 4e6 + (X.nbytes if in_memory else 0)
    assert predicting < 3e6


@pytest.mark.parametrize("make", [sparse.csr_array, sparse.csc_array, sparse.coo_array,
                                  sparse.csr_matrix], ids=lambda make: make.__name__)  # fmt: skip
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32", "float64"])
@pytest.mark.parametrize("parameters", [{}, {"fit_intercept": False}, {"l1_ratio": 1}], ids=str)
def test_sparse_data_give_the_answer_of_dense_data(make, dtype, parameters):
    """To 1e-9, or 2e-4 where training is in float32."""
    X, y = make_data()
    X = np.where(X > 60, X, 0).astype(dtype)
    dense, thin = (model_of(**parameters).fit(A, y) for A in (X, make(X)))
    rtol = PRECISION[dense.coef_.dtype]
    assert thin.coef_.dtype == dense.coef_.dtype
    np.testing.assert_allclose(thin.coef_, dense.coef_, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(thin.loss_curve_, dense.loss_curve_, rtol=rtol)
    for A in (X, make(X)):
        np.testing.assert_allclose(thin.predict_proba(A), dense.predict_proba(X), atol=rtol)


def many_features(n=300, d=25_000, k=3):
    """Sparse rows of 20 values; the first features are common, and all rows have the very first."""
    rng = np.random.default_rng(0)
    y = rng.integers(k, size=n)
    columns = (rng.zipf(1.2, size=(n, 20)) + 5 * y[:, None]) % d
    columns[:, 0] = 0
    rows = np.repeat(np.arange(n), 20)
    X = sparse.csr_array((rng.uniform(size=20 * n), (rows, columns.ravel())), shape=(n, d))
    return X, y


@pytest.mark.parametrize("parameters", [{}, {"fit_intercept": False}, {"preconditioner": None}],
                         ids=str)  # fmt: skip
def test_many_features_of_sparse_rows_give_about_the_answer_of_dense_data(parameters):
    """Scales are rounded, so that steps differ, but not where they lead."""
    X, y = many_features()
    parameters = {"max_iter": 20, "momentum": 0.8, "learning_rate": 0.02, **parameters}
    thin, full = (model_of(**parameters).fit(A, y) for A in (X, X.toarray()))
    np.testing.assert_allclose(thin.loss_curve_, full.loss_curve_, rtol=0.03)
    np.testing.assert_allclose(thin.predict_proba(X), full.predict_proba(X), atol=0.03)


@pytest.mark.skipif(library.function("sparse_epoch") is None, reason="the reference moves all")
@pytest.mark.parametrize("learning_rate", [0.01, "auto"])
def test_sparse_rows_take_the_memory_of_few_copies_of_the_weights(learning_rate):
    X, y = many_features(n=1000, d=100_000, k=20)
    X = X.astype(np.float32)
    model = SoftmaxRegression(solver="sgd", max_iter=2, learning_rate=learning_rate, random_state=0)
    tracemalloc.start(1)
    try:
        model.fit(X, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * model.coef_.nbytes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_rows_that_follow_one_another_are_not_copied(dtype):
    X, _ = many_features(d=50)
    data = source(X.astype(dtype), NumpyBackend(), dtype)
    for index in (slice(0, 300), slice(7, 30), slice(5, 5)):
        rows = data.rows(index)
        np.testing.assert_array_equal(rows.toarray(), data.X.toarray()[index])
        assert rows.nnz == 0 or np.shares_memory(rows.data, data.X.data)
        assert rows.nnz == 0 or np.shares_memory(rows.indices, data.X.indices)


def test_rates_that_race_one_after_another_race_the_same(monkeypatch):
    X, y = make_data()
    together = model_of(learning_rate="auto").fit(X, y)
    monkeypatch.setattr("skmax.solvers.learning_rate._WEIGHTS_AT_ONCE", 1)
    alone = model_of(learning_rate="auto").fit(X, y)
    assert alone.learning_rate_ == together.learning_rate_


def far_away(kind):
    """Features whose spread is tiny beside their offset, and the same without the offset."""
    rng = np.random.default_rng(0)
    n = 200
    if kind.endswith("nanoseconds"):
        dtype = np.dtype(kind.split()[0])
        spread = np.array([60e9, 86_400e9, 7 * 86_400e9])  # a minute, a day, a week
        near = np.rint(rng.normal(size=(n, 3)) * spread).astype(np.int64)
        far = (near + 1_700_000_000_000_000_000).astype(dtype)
    elif kind.endswith("seconds"):
        near = np.rint(rng.normal(size=(n, 3)) * [60, 3600, 86_400]).astype(np.int64)
        far = (near + 1_700_000_000).astype(kind.split()[0])
    else:
        dtype, offset, spread = {
            "float64": (np.float64, 1e15, 100),
            "float32": (np.float32, 1e6, 30),
        }[kind]
        far = (offset + rng.normal(size=(n, 3)) * spread).astype(dtype)
        near = far.astype(np.float64) - offset
    Z = near / near.std(axis=0)
    y = np.argmax(Z @ rng.normal(size=(3, 3)) * 2 + rng.gumbel(size=(n, 3)), axis=1)
    return far, near.astype(np.float64), y


FAR = [
    "int64 nanoseconds", "uint64 nanoseconds", ">i8 nanoseconds", ">u8 nanoseconds",
    "int32 seconds", "uint32 seconds", "float64 seconds", "float64", "float32",
]  # fmt: skip


@pytest.mark.parametrize("kind", FAR)
@pytest.mark.parametrize("k", [2, 3])
def test_an_offset_far_beyond_the_spread_changes_no_prediction(kind, k):
    """As if it had been subtracted before: probabilities to 1e-6 (1e-3 in float32)."""
    far, near, y = far_away(kind)
    y = np.minimum(y, k - 1)
    model, expected = (
        model_of(C=np.inf, batch_size=200, max_iter=30, tol=0, early_stopping=False).fit(A, y)
        for A in (far, near)
    )
    atol = 1e-3 if kind == "float32" else 1e-6
    np.testing.assert_allclose(model.predict_proba(far), expected.predict_proba(near), atol=atol)
    np.testing.assert_array_equal(model.predict(far), expected.predict(near))
    assert model.score(far, y) > 0.5
    refit = LogisticRegression(C=np.inf).fit(near / near.std(axis=0), y)
    assert model.score(far, y) > refit.score(near / near.std(axis=0), y) - 0.05


@pytest.mark.parametrize("kind", ["int64 nanoseconds", "float64", "float32"])
def test_an_offset_far_beyond_the_spread_with_validation_and_warm_start(kind):
    """Validation rows are counted from the same origin, and so is a second fit."""
    far, near, y = far_away(kind)
    fits = [
        model_of(C=np.inf, batch_size=50, max_iter=10, warm_start=True, tol=0)
        .fit(A[:150], y[:150])
        .fit(A[:150], y[:150], X_val=A[150:], y_val=y[150:])
        for A in (far, near)
    ]
    tolerance = 1e-2 if kind == "float32" else 1e-5
    for curve in ("loss_curve_", "validation_loss_curve_"):
        np.testing.assert_allclose(*(getattr(fit, curve) for fit in fits), rtol=tolerance)
    assert fits[0].validation_scores_[-1] == fits[0].score(far[150:], y[150:])


@pytest.mark.parametrize("kind", ["float64", "float64 seconds", "int64 nanoseconds"])
def test_to_sklearn_predicts_the_same_far_from_zero(kind):
    """To what float64 can hold of such logits."""
    far, _, y = far_away(kind)
    model = model_of(C=np.inf, batch_size=200, max_iter=30, tol=0).fit(far, y)
    if kind == "float64 seconds":
        converted = model.to_sklearn().predict_proba(far)
        np.testing.assert_allclose(converted, model.predict_proba(far), atol=1e-4)
    assert np.isfinite(model.to_sklearn().predict_proba(far)).all()


@pytest.mark.parametrize("namespace", ["torch", "array_api_strict"])
@pytest.mark.parametrize("trained", ["float32", "float64"])
def test_whole_numbers_are_predicted_like_floats_on_every_backend(namespace, trained):
    """After a fit to floats whose mean is no whole number, far from zero for their precision."""
    xp = pytest.importorskip(namespace)
    rng = np.random.default_rng(0)
    spread, offset = (1, 1000.5) if trained == "float32" else (1, 1e6 + 0.5)
    X = (offset + spread * rng.normal(size=(200, 3))).astype(trained)
    y = np.argmax((X - offset) @ rng.normal(size=(3, 3)), axis=1)
    whole = np.rint(X).astype(np.int64)
    expected = model_of(max_iter=50, C=np.inf).fit(X, y).predict_proba(whole)
    with sklearn.config_context(array_api_dispatch=True):
        model = model_of(max_iter=50, C=np.inf).fit(xp.asarray(X), xp.asarray(y))
        proba = np.asarray(model.predict_proba(xp.asarray(whole)))
    np.testing.assert_allclose(proba, expected, atol=2e-3 if trained == "float32" else 1e-6)


@pytest.mark.parametrize("namespace", ["torch", "array_api_strict"])
@pytest.mark.parametrize(
    ("trained", "other"),
    [("float32", "float64"), ("float64", "float32"), ("uint8", "int64"), ("float32", "uint8")],
)
def test_every_backend_predicts_on_other_dtypes_than_it_was_fitted_to(namespace, trained, other):
    """As NumPy does: in the wider precision of the two."""
    xp = pytest.importorskip(namespace)
    X, y = make_data()
    model = model_of().fit(X.astype(trained), y)
    expected = model.predict_proba(X.astype(other))
    with sklearn.config_context(array_api_dispatch=True):
        model.fit(xp.asarray(X.astype(trained)), xp.asarray(y))
        proba = np.asarray(model.predict_proba(xp.asarray(X.astype(other))))
    assert proba.dtype == expected.dtype
    np.testing.assert_allclose(proba, expected, atol=1e-4)


def test_unsigned_integers_beyond_int64_are_predicted_like_floats():
    """After a fit to floats around 1.5e19."""
    rng = np.random.default_rng(0)
    X = 1.5e19 + 1e15 * rng.normal(size=(100, 2))
    y = (X[:, 0] > 1.5e19).astype(int)
    model = model_of(C=np.inf, max_iter=50).fit(X, y)
    np.testing.assert_allclose(
        model.predict_proba(X.astype(np.uint64)), model.predict_proba(X), atol=1e-9
    )
    anew = model_of(C=np.inf, max_iter=50).fit(X.astype(np.uint64), y)
    np.testing.assert_allclose(
        anew.predict_proba(X.astype(np.uint64)), model.predict_proba(X), atol=1e-3
    )


def test_integers_at_both_ends_of_int64():
    X = np.array([[-(2**63)], [-(2**62)], [0], [2**62], [2**63 - 1]] * 20)
    y = np.array([0, 0, 1, 1, 1] * 20)
    model = SoftmaxRegression(C=np.inf, random_state=0).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [2, 3])
def test_log_probabilities_are_finite_for_huge_logits(dtype, k):
    """1e5 either way, and to the precision of the logits."""
    X, y = make_data(k=k)
    model = model_of().fit(X.astype(dtype), y)
    scale = 1e5 / np.abs(model.decision_function(X.astype(dtype))).max()
    model.coef_, model.intercept_ = model.coef_ * dtype(scale), model.intercept_ * dtype(scale)
    X = X.astype(dtype)
    logits = model.decision_function(X)
    assert np.abs(logits).max() > 0.99e5
    log_p = model.predict_log_proba(X)
    assert np.isfinite(log_p).all()
    assert log_p.min() < -1e4
    if k == 2:
        logits = np.column_stack([0 * logits, logits])
    gaps = logits.astype(np.float64)
    expected = gaps - np.logaddexp.reduce(gaps, axis=1)[:, None]
    np.testing.assert_allclose(log_p, expected, rtol=1e-4, atol=0.05)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1, rtol=1e-6)


def test_pandas_frames_of_integers_and_floats_equal_arrays():
    pd = pytest.importorskip("pandas")
    X, y = make_data()
    frame = pd.DataFrame(X, columns=list("abcde")).astype(
        {"a": "uint8", "b": "int64", "c": "float32", "d": "Int64", "e": "float64"}
    )
    labels = pd.Series(np.array(["ant", "bee", "cat"])[y], name="kind")
    model = model_of().fit(frame, labels)
    expected = model_of().fit(X, np.array(["ant", "bee", "cat"])[y])
    np.testing.assert_array_equal(model.feature_names_in_, list("abcde"))
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(model.predict(frame), expected.predict(X))
    assert model.score(frame, labels) == expected.score(X, labels.to_numpy())


def test_polars_frames_equal_arrays():
    pl = pytest.importorskip("polars")
    X, y = make_data()
    frame = pl.DataFrame({name: X[:, column] for column, name in enumerate("abcde")})
    model, expected = model_of().fit(frame, pl.Series(y)), model_of().fit(X, y)
    np.testing.assert_array_equal(model.feature_names_in_, list("abcde"))
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(frame), expected.predict(X))


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["bee", "ant", "cat"]),
        np.array(["bee", "ant", "cat"], dtype=object),
        np.array([-7, 3, 0]),
        np.array([-7, 3, 0], dtype=np.int8),
        np.array([1.0, 3.0, 0.0]),
        np.array([200, 3, 0], dtype=np.uint8),
        np.array([False, True]),
        np.array(["no", "yes"]),
    ],
    ids=lambda labels: f"{len(labels)} of {labels.dtype}",
)
def test_labels_of_any_kind(labels):
    """Classes are sorted, predictions have their dtype, and only the names differ."""
    X, y = make_data(k=len(labels))
    model, plain = (
        model_of().fit(X, labels[y]),
        model_of().fit(X, np.argsort(np.argsort(labels))[y]),
    )
    np.testing.assert_array_equal(model.classes_, np.sort(labels))
    np.testing.assert_array_equal(model.coef_, plain.coef_)
    predicted = model.predict(X)
    assert predicted.dtype == model.classes_.dtype == labels.dtype
    np.testing.assert_array_equal(predicted, np.sort(labels)[plain.predict(X)])
    assert model.score(X, labels[y]) == np.mean(predicted == labels[y]) > 0.5


@settings(max_examples=10)
@given(n=st.integers(2, 12), d=st.integers(20, 100), seed=st.integers(0, 1000))
def test_more_features_than_rows(n, d, seed):
    """The optimum of LogisticRegression to 1e-5 of the largest weight, all rows in a batch."""
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, d)), np.arange(n) % min(n, 3)
    model = SoftmaxRegression(max_iter=1500, tol=0, random_state=0).fit(X, y)
    reference = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(X, y)
    scale = np.abs(reference.coef_).max()
    np.testing.assert_allclose(model.coef_, reference.coef_, atol=1e-5 * scale)
    np.testing.assert_allclose(model.predict_proba(X), reference.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
def test_two_rows(dtype):
    """By default, without a warning: the one with the larger feature is told from the other."""
    X = np.array([[1, 7], [3, 7]], dtype=dtype)
    model = SoftmaxRegression(random_state=0).fit(X, ["low", "high"])
    np.testing.assert_array_equal(model.predict(X), ["low", "high"])
    reference = LogisticRegression().fit(X, ["low", "high"])
    np.testing.assert_allclose(model.predict_proba(X), reference.predict_proba(X), atol=1e-3)


FAR = 1e4  # from zero, so that rows are shifted before they are used


def far_data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    y = np.argmax(X @ rng.normal(size=(3, 3)) * 2 + rng.gumbel(size=(300, 3)), axis=1)
    return (X + FAR).astype(np.float32), y


def test_sparse_validation_data_of_a_dense_fit_far_from_zero():
    X, y = far_data()
    dense, mixed = (
        model_of(max_iter=5).fit(X, y, X_val=X_val, y_val=y) for X_val in (X, sparse.csr_array(X))
    )
    assert dense.validation_scores_ == mixed.validation_scores_
    assert dense.score(X, y) == dense.score(sparse.csr_array(X), y) > 0.7


def test_sparse_rows_after_dense_ones_in_partial_fit_far_from_zero():
    X, y = far_data()
    models = model_of(), model_of()
    for model, second in zip(models, (X, sparse.csr_array(X)), strict=True):
        for rows in (X, second, second):
            model.partial_fit(rows, y, classes=[0, 1, 2])
    np.testing.assert_allclose(*(model.predict_proba(X) for model in models), atol=1e-6)


def test_coefficients_that_were_set_are_obeyed():
    """Also by a model that keeps beside its intercepts what their dtype cannot hold."""
    X, y = far_data()
    model = model_of(max_iter=5).fit(X, y)
    model.coef_, model.intercept_ = 0 * model.coef_, 0 * model.intercept_
    np.testing.assert_array_equal(model.decision_function(X), 0)


@pytest.mark.parametrize("dtype", [">f4", ">i2", ">i8"])
def test_byte_order_does_not_change_the_precision(dtype):
    X, y = make_data()
    there, here = (
        model_of(max_iter=3).fit(X.astype(d), y) for d in (dtype, dtype.replace(">", "<"))
    )
    assert there.coef_.dtype == here.coef_.dtype
    np.testing.assert_array_equal(there.coef_, here.coef_)


def test_labels_of_many_classes_need_little_memory():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, 2))
    y = np.arange(20_000) % 300
    model = model_of(max_iter=1).fit(X[:600], y[:600])
    tracemalloc.start()
    model.predict(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 300 * 8 / 4


# Sources of rows


def sources(X):
    """All that serve a matrix without a device, by name."""
    strict = Backend(array_api_strict)
    return {
        "rows": source(X, NumpyBackend(), np.float64, shuffled=True),
        "columns": source(np.asfortranarray(X), NumpyBackend(), np.float64),
        "sparse": source(sparse.csr_array(X), NumpyBackend(), np.float64),
        "strict": source(X, strict, np.float64),
    }


SOURCES = ["rows", "columns", "sparse", "strict"]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("shift", [None, np.arange(5.0)], ids=["as they are", "shifted"])
@settings(max_examples=30)
@given(
    order=st.lists(st.integers(0, 39), max_size=60) | st.integers(1, 40).map(range),
    size=st.none() | st.integers(1, 50),
)
def test_reduce_sums_over_all_rows_in_pieces(name, shift, order, size):
    """Rows in any order, also twice; a piece's sums may be written over by the next one."""
    X, order = make_data(n=40)[0], np.array(order, dtype=int)
    data = sources(X)[name].with_(shift=shift)
    buffer = data.backend.zeros((5,), data.dtype)

    def sums(index, rows):
        buffer[...] = data.backend.xp.sum(data.backend.asarray(dense(rows)), axis=0)
        assert len(order) == 0 or rows.shape[0] <= (size or len(order))
        return buffer, data.backend.asarray([float(rows.shape[0])])

    totals = data.reduce(order, sums, width=3, size=size)
    if not len(order):
        assert totals == ()
        return
    expected = (X[order] - (0 if shift is None else shift)).sum(axis=0)
    np.testing.assert_allclose(data.backend.to_numpy(totals[0]), expected, atol=1e-9)
    assert float(totals[1][0]) == len(order)


@pytest.mark.parametrize("name", SOURCES)
def test_batches_and_pieces_are_the_rows_at_their_index(name):
    X = make_data(n=40)[0]
    data = sources(X)[name]
    for order in (np.arange(7, 33), np.random.default_rng(0).permutation(40)):
        for iterate in (data.pieces, data.batches):
            found = []
            for index, rows in iterate(order, 8):
                values = data.backend.to_numpy(dense(rows))
                if not isinstance(index, slice):
                    index = data.backend.to_numpy(index)
                np.testing.assert_array_equal(values, X[index])
                found.append(np.arange(40)[index])
            np.testing.assert_array_equal(np.concatenate(found), order)


@pytest.mark.parametrize("n", [1, 10, 39, 40, 100])
def test_a_sample_is_of_the_rows_asked_for_sorted_and_repeats(n):
    order = np.random.default_rng(1).permutation(80)[:40]
    data = sources(make_data(n=80)[0])["rows"]
    sample = data.sample(order, n)
    assert len(sample) == min(n, 40)
    assert set(sample) <= set(order)
    assert len(set(sample)) == len(sample)
    assert n >= 40 or (np.diff(sample) > 0).all()
    np.testing.assert_array_equal(sample, data.sample(order, n))
    another = data.sample(order, n, np.random.default_rng(5))
    assert n in (1, 39) or n >= 40 or not np.array_equal(another, sample)


def test_an_epoch_visits_all_rows_in_a_new_order():
    data, order = sources(make_data(n=80)[0])["rows"], np.arange(10, 70)
    rng = np.random.default_rng(0)
    first, second = data.epoch(order, rng), data.epoch(order, rng)
    np.testing.assert_array_equal(np.sort(first), order)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(data.epoch(order, None), order)


def test_pieces_of_sparse_rows_outweigh_the_weights():
    """At least four values per feature, unless that takes too much memory."""
    X = sparse.random_array((5000, 2000), density=0.004, format="csr", rng=0)
    data = source(X, NumpyBackend(), np.float64)
    for width in (1, 400):
        assert data.rows_per_piece(width) * data.values_per_row >= 4 * 2000 * 0.99
    assert data.rows_per_piece(10**7) * 8 * 10**7 <= 2**31


@pytest.mark.parametrize("period", [2, 5, 10, 20])
def test_rows_that_come_periodically_do_not_mislead_the_learning_rate(period):
    """The rate of rows that repeat in a cycle is that of the same rows shuffled, to a tenth."""
    rng = np.random.default_rng(0)
    n = 2048 * 20
    y = np.arange(n) % period
    X = rng.normal(size=(n, 3))
    X[:, 0] *= np.where(y == 1, 30, 0.1)
    rates = []
    for order in (np.arange(n), rng.permutation(n)):
        problem = Problem.pose(
            source(X[order], NumpyBackend(), np.float64), np.arange(n), y[order],
            sample_weight=None, score_weight=None, masked=np.zeros((1, period), bool),
            C=np.ones(1), l1_ratio=np.zeros(1), label_smoothing=np.zeros(1), fit_intercept=True,
        )  # fmt: skip
        solver = SGD(
            np.ones(1), np.ones(1), np.zeros(1, bool), ("cosine",), (1,), batch_size=n, shuffle=True
        )
        rates.append(stable_rate(problem, solver)[0])
    assert rates[0] == pytest.approx(rates[1], rel=0.15)


# Scales at the ends of what floats can hold


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [("float64", 1e-160), ("float64", 1e-250), ("float64", 1e160), ("float64", 1e250),
     ("float32", 1e-25), ("float32", 1e-33), ("float32", 1e25), ("float32", 1e33)],
)  # fmt: skip
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_without_penalty_the_unit_of_a_feature_changes_no_prediction(
    dtype, unit, fit_intercept, make, solver
):
    """Where squares under- or overflow, too."""
    X, y = make_data(k=3)
    X = np.where(X > 30, X / 50 - 1, 0)
    units = np.array([1, unit, 1, unit, unit])
    params = {"C": np.inf, "fit_intercept": fit_intercept, "solver": solver, "random_state": 0}
    if solver == "sgd":
        params |= {"learning_rate": 0.1, "max_iter": 20, "tol": 0}
    plain, scaled = (
        SoftmaxRegression(**params).fit(make(A.astype(dtype)), y).predict_proba(A.astype(dtype))
        for A in (X, X * units)
    )
    np.testing.assert_allclose(scaled, plain, atol=1e-3 if dtype == "float32" else 1e-6)
    assert np.ptp(plain, axis=0).min() > 0.1


def test_units_so_small_that_no_weight_is_large_enough_are_left_out():
    X, y = make_data()
    X = np.where(np.arange(5) == 1, X * 1e-43, X).astype(np.float32)
    model = SoftmaxRegression(C=np.inf, random_state=0).fit(X, y)
    np.testing.assert_array_equal(model.coef_[:, 1], 0)
    assert np.isfinite(model.coef_).all()


@pytest.mark.parametrize("unit", [1e-160, 1.0, 1e160])
def test_moments_of_parts_are_those_of_the_whole(unit):
    """With weights, far from the origin, in three parts."""
    rng = np.random.default_rng(0)
    X, weight = (rng.normal(size=(90, 4)) * [1, 2, 0, 5] + 3) * unit, rng.exponential(size=(90, 2))

    def moments(rows, origin=None):
        problem = Problem.pose(
            source(X, NumpyBackend(), np.float64), rows, np.arange(90) % 2,
            sample_weight=weight, score_weight=None, masked=np.zeros((2, 2), bool), C=np.ones(2),
            l1_ratio=np.zeros(2), label_smoothing=np.zeros(2), fit_intercept=True,
        )  # fmt: skip
        return Moments.of(problem, origin)

    whole = moments(np.arange(90))
    parts, seen = None, 0.0
    for rows in (np.arange(20), np.arange(20, 50), np.arange(50, 90)):
        part = moments(rows, whole.origin)
        seen = seen + weight[rows].sum(axis=0)[:, None]
        share = weight[rows].sum(axis=0)[:, None] / seen
        parts = part if parts is None else parts.merged(part, share)
    mean = [np.average(X, axis=0, weights=w) for w in weight.T]
    deviation = [
        unit * np.sqrt(np.average(((X - m) / unit) ** 2, axis=0, weights=w))
        for m, w in zip(mean, weight.T, strict=True)
    ]
    for found in (whole, parts):
        np.testing.assert_allclose(found.origin + found.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(found.deviation, deviation, rtol=1e-6, atol=1e-12 * unit)


@pytest.mark.parametrize(("dtype", "C"), [("float32", 1e-40), ("float64", 1e-310)])
@pytest.mark.parametrize("l1_ratio", [0, 0.5])
@pytest.mark.parametrize("params", [{}, {"solver": "lbfgs"}, {"preconditioner": None}], ids=str)
def test_under_the_strongest_penalty_classes_are_as_frequent_as_they_were(
    dtype, C, l1_ratio, params
):
    """Without a preconditioner, the steps that suit such weights are too small for intercepts."""
    X, y = make_data(n=400)
    X = (X / 50).astype(dtype)
    model = SoftmaxRegression(C=C, l1_ratio=l1_ratio, random_state=0, **params).fit(X, y)
    np.testing.assert_allclose(model.coef_, 0, atol=1e-20)
    if "preconditioner" not in params:
        shares = np.tile(np.bincount(y) / len(y), (len(y), 1))
        np.testing.assert_allclose(model.predict_proba(X), shares, atol=0.02)


# Labels


@given(
    st.sampled_from("bBhHiIqQ"),
    st.sampled_from(["lowest", "zero", "highest"]),
    st.integers(1, 300),
    st.integers(1, 60),
    st.integers(0, 99),
)
def test_integers_that_occur_are_those_that_NumPy_finds(code, where, spread, n, seed):
    """Wherever in the range of their dtype they are, close together or not."""
    info = np.iinfo(code)
    spread = min(spread, info.max)
    first = {"lowest": info.min, "zero": 0, "highest": info.max - spread + 1}[where]
    y = np.random.default_rng(seed).integers(spread, size=n).astype(code) + np.array(first, code)
    for found, expected in zip(_unique(y), np.unique(y, return_inverse=True), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype

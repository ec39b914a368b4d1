"""X and y in whatever dtype, layout, scale and container they come."""

import tracemalloc

import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from skmax import SoftmaxRegression

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
    "kind",
    [
        "uint8", "float32", "far uint8", "memory map of uint8", "memory map of float32",
        "F-ordered memory map of float32", "F-ordered uint8", "F-ordered float32",
    ],
)  # fmt: skip
@pytest.mark.parametrize("preconditioner", ["diagonal", None])
def test_no_copy_of_X_is_made_in_floats(kind, preconditioner, tmp_path):
    """10,000 x 400: 16 MB as float32. Fitting and predicting take 3 MB.

    One copy in X's own dtype, laid out by rows, is allowed for data in memory.
    """
    X = big(kind, tmp_path)
    y = np.arange(len(X)) % 3
    model = SoftmaxRegression(max_iter=1, preconditioner=preconditioner, random_state=0)
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

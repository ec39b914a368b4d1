"""partial_fit: what it accumulates, what it converges to and what it refuses."""

import pickle
import warnings

import numpy as np
import pytest
from conftest import make_data
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from skmax import SoftmaxRegression


def plain(**parameters):
    """Whose steps can be computed by hand: one per call where the batch holds all rows."""
    return SoftmaxRegression(
        **{
            "preconditioner": None,
            "learning_rate": 0.05,
            "schedule": "constant",
            "momentum": 0,
            "random_state": 0,
            **parameters,
        }
    )


def gradient(W, b, X, y, weight=None):
    """Of the weighted mean cross-entropy."""
    weight = np.ones(len(X)) if weight is None else weight
    logits = X @ W.T + b
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    residual = weight[:, None] * (p - np.eye(len(W))[y]) / weight.sum()
    return residual.T @ X, residual.sum(axis=0)


def steps(chunks, C=1.0, rate=0.05):
    """One step per chunk (X, y, weight), the penalty being that of all rows so far."""
    d, k = chunks[0][0].shape[1], 3
    W, b, seen = np.zeros((k, d)), np.zeros(k), 0.0
    for X, y, weight in chunks:
        seen += len(X) if weight is None else weight.sum()
        by_W, by_b = gradient(W, b, X, y, weight)
        W, b = W - rate * (by_W + W / (C * seen)), b - rate * by_b
    return W, b


def chunks_of(n, *sizes):
    ends = np.cumsum(sizes)
    assert ends[-1] == n
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


@pytest.mark.parametrize("parameters", [{"learning_rate": 0.05}, {}], ids=["fixed rate", "auto"])
def test_many_small_calls_come_close_to_logistic_regression(parameters):
    """In 10 passes in chunks of 100 rows, the mean error of probabilities falls below 0.01.

    At a constant rate found from the data: 0.03.
    """
    X, y = make_data(n=2000)
    model = SoftmaxRegression(random_state=0, **parameters)
    for _ in range(10):
        for start in range(0, 2000, 100):
            model.partial_fit(X[start : start + 100], y[start : start + 100], classes=range(3))
    # All that was seen counts: ten times the rows, a penalty ten times weaker.
    reference = LogisticRegression(C=10, solver="newton-cholesky").fit(X, y)
    difference = np.abs(model.predict_proba(X) - reference.predict_proba(X))
    assert difference.mean() < (0.01 if parameters else 0.03)
    assert model.score(X, y) > reference.score(X, y) - 0.02


@pytest.mark.parametrize("preconditioner", ["diagonal", None])
@pytest.mark.parametrize("l1_ratio", [0, 0.5])
@pytest.mark.parametrize("k", [2, 3])
def test_one_call_equals_one_epoch_of_fit(k, l1_ratio, preconditioner):
    """The same bits, in batches of 50 and their ragged last.

    But that a fit ends by setting to zero what an L1 penalty holds there.
    """
    X, y = make_data(k=k)
    model = plain(
        preconditioner=preconditioner, l1_ratio=l1_ratio, batch_size=50, max_iter=1, tol=0
    )
    fitted, partial = clone(model).fit(X, y), clone(model).partial_fit(X, y, classes=range(k))
    for attribute in ("loss_curve_", "accuracy_curve_", "classes_"):
        np.testing.assert_array_equal(getattr(fitted, attribute), getattr(partial, attribute))
    settled = (fitted.coef_ == 0) & (l1_ratio > 0)
    np.testing.assert_array_equal(fitted.coef_, np.where(settled, 0, partial.coef_))
    if not settled.any():
        np.testing.assert_array_equal(fitted.intercept_, partial.intercept_)


@pytest.mark.parametrize("weighted", [False, True])
def test_penalty_is_that_of_all_rows_seen(rng, weighted):
    """C is small, so that the penalty dominates; by hand, to 1e-10."""
    X, y = make_data()
    weight = rng.exponential(size=len(X)) if weighted else None
    model = plain(C=0.003)
    parts = [
        (X[rows], y[rows], None if weight is None else weight[rows])
        for rows in chunks_of(120, 30, 50, 1, 39)
    ]
    for X_part, y_part, weight_part in parts:
        model.partial_fit(X_part, y_part, classes=range(3), sample_weight=weight_part)
    W, b = steps(parts, C=0.003)
    np.testing.assert_allclose(model.coef_, W, rtol=1e-10)
    np.testing.assert_allclose(model.intercept_, b, rtol=1e-10)
    assert model.n_iter_ == len(model.loss_curve_) == 4


def test_class_weights_count_as_weights():
    X, y = make_data()
    factor = np.array([3.0, 0.5, 1.0])
    model = plain(C=0.01, class_weight=dict(enumerate(factor)))
    parts = [(X[rows], y[rows], factor[y[rows]]) for rows in chunks_of(120, 70, 50)]
    for X_part, y_part, _ in parts:
        model.partial_fit(X_part, y_part, classes=range(3))
    W, b = steps(parts, C=0.01)
    np.testing.assert_allclose(model.coef_, W, rtol=1e-10)
    np.testing.assert_allclose(model.intercept_, b, rtol=1e-10)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    weighted=st.booleans(),
    offset=st.sampled_from([0.0, 100.0, 1e6]),
    fit_intercept=st.booleans(),
)
def test_means_and_variances_accumulate_over_calls(sizes, weighted, offset, fit_intercept):
    """However the rows are cut, the next step is taken in the same coordinates, to 1e-5.

    A rate of 1e-300 lets the rows be seen without moving the weights; the last call then takes
    one step from zero, which shows its coordinates. C so large that it leaves no trace there.
    """
    n = sum(sizes)
    X, y = make_data(n=n + 40, seed=n)
    X = X + offset
    weight = np.random.default_rng(n).exponential(size=n + 40) if weighted else np.ones(n + 40)

    def step_after(chunks):
        model = SoftmaxRegression(
            C=1e12, learning_rate=1e-300, momentum=0, random_state=0, fit_intercept=fit_intercept
        )
        for rows in chunks:
            model.partial_fit(X[rows], y[rows], classes=range(3), sample_weight=weight[rows])
        assert np.abs(model.coef_).max() < 1e-200
        model.set_params(learning_rate=0.1)
        return model.partial_fit(X[n:], y[n:], sample_weight=weight[n:])

    cut, whole = step_after(chunks_of(n, *sizes)), step_after([slice(0, n)])
    np.testing.assert_allclose(cut.coef_, whole.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        cut.decision_function(X), whole.decision_function(X), rtol=1e-5, atol=1e-7
    )
    # And they are those of all rows: the step is that of textbook SGD on standardised features.
    mean = np.average(X, axis=0, weights=weight) if fit_intercept else np.zeros(4)
    scale = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weight))
    by_W, _ = gradient(np.zeros((3, 4)), np.zeros(3), (X[n:] - mean) / scale, y[n:], weight[n:])
    np.testing.assert_allclose(cut.coef_ * scale, -0.1 * by_W, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [{"learning_rate": 0.02}, {}], ids=["fixed rate", "auto"])
def test_a_pickle_in_between_changes_nothing(k, offset, dtype, parameters):
    """Momentum and random state carry on: the same bits."""
    X, y = make_data(k=k)
    X = (X + offset).astype(dtype)
    through, pickled = (
        SoftmaxRegression(batch_size=8, random_state=0, **parameters) for _ in range(2)
    )
    for rows in chunks_of(120, 40, 40, 40):
        through.partial_fit(X[rows], y[rows], classes=range(k))
        pickled = pickle.loads(pickle.dumps(pickled))
        pickled.partial_fit(X[rows], y[rows], classes=range(k))
    np.testing.assert_array_equal(through.predict_log_proba(X), pickled.predict_log_proba(X))
    assert through.loss_curve_ == pickled.loss_curve_


def test_momentum_carries_on():
    """Two calls of one step each, by hand: the second still moves with the first."""
    X, y = make_data()
    model = plain(momentum=0.9, C=np.inf)
    W, b, dW, db = np.zeros((3, 4)), np.zeros(3), 0.0, 0.0
    for rows in chunks_of(120, 60, 60):
        model.partial_fit(X[rows], y[rows], classes=range(3))
        by_W, by_b = gradient(W, b, X[rows], y[rows])
        dW, db = 0.9 * dW - 0.05 * by_W, 0.9 * db - 0.05 * by_b
        W, b = W + dW, b + db
    np.testing.assert_allclose(model.coef_, W, rtol=1e-10)
    np.testing.assert_allclose(model.intercept_, b, rtol=1e-10)


def test_each_call_shuffles_anew():
    """Had every call the same order, four epochs of fit would differ from four calls."""
    X, y = make_data()
    fitted = plain(batch_size=16, max_iter=4, tol=0, C=np.inf).fit(X, y)
    partial = plain(batch_size=16, C=np.inf)
    for _ in range(4):
        partial.partial_fit(X, y, classes=range(3))
    np.testing.assert_allclose(partial.coef_, fitted.coef_, rtol=1e-10)
    np.testing.assert_allclose(partial.loss_curve_, fitted.loss_curve_, rtol=1e-10)


def test_classes_are_announced_in_the_first_call():
    X, y = make_data()
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        plain().partial_fit(X, y)
    labels = np.array(["ant", "bee", "cat", "dog"])
    model = plain().partial_fit(X, labels[y], classes=["dog", "cat", "bee", "ant"])
    np.testing.assert_array_equal(model.classes_, labels)
    assert model.coef_.shape == (4, 4)


def test_an_unseen_label_is_refused_by_its_name():
    X, y = make_data()
    labels = np.array(["ant", "bee", "cat"])[y]
    model = plain().partial_fit(X, labels, classes=["ant", "bee", "cat"])
    coef = model.coef_.copy()
    labels = labels.astype(object)
    labels[7] = "wasp"
    with pytest.raises(ValueError, match="wasp"):
        model.partial_fit(X, labels)
    with pytest.raises(ValueError, match="cat"):
        plain().partial_fit(X, np.array(["ant", "bee", "cat"])[y], classes=["ant", "bee"])
    np.testing.assert_array_equal(model.coef_, coef)


def test_other_classes_are_refused_and_the_same_in_another_order_are_not():
    X, y = make_data()
    model = plain().partial_fit(X, y, classes=[0, 1, 2]).partial_fit(X, y, classes=[2, 0, 1])
    with pytest.raises(ValueError, match="last call"):
        model.partial_fit(X, y, classes=[0, 1, 2, 3])


@pytest.mark.parametrize(
    "parameters", [{"class_weight": "balanced"}, {"early_stopping": True}], ids=str
)
def test_what_needs_all_rows_at_once_raises(parameters):
    X, y = make_data()
    with pytest.raises(ValueError, match=next(iter(parameters))):
        plain(**parameters).partial_fit(X, y, classes=range(3))


def test_one_hot_targets_need_no_announcement():
    """The same bits as labels; soft rows may follow."""
    X, y = make_data()
    first, second = chunks_of(120, 60, 60)
    labels = plain().partial_fit(X[first], y[first], classes=range(3))
    one_hot = plain().partial_fit(X[first], np.eye(3)[y[first]])
    np.testing.assert_array_equal(one_hot.coef_, labels.coef_)
    np.testing.assert_array_equal(one_hot.classes_, range(3))
    labels.partial_fit(X[second], y[second])
    one_hot.partial_fit(X[second], 0.9 * np.eye(3)[y[second]] + 0.1 / 3)
    assert not np.allclose(one_hot.coef_, labels.coef_)


@pytest.mark.parametrize("k", [2, 3])
def test_partial_fit_goes_on_from_fit(k):
    """4 epochs and one call are 5 epochs where nothing but the penalty tells them apart."""
    X, y = make_data(k=k)
    model = plain(C=np.inf, max_iter=4, tol=0, batch_size=50).fit(X, y).partial_fit(X, y)
    whole = plain(C=np.inf, max_iter=5, tol=0, batch_size=50).fit(X, y)
    np.testing.assert_allclose(model.coef_, whole.coef_, rtol=1e-10)
    np.testing.assert_allclose(model.loss_curve_, whole.loss_curve_, rtol=1e-10)


def test_rows_seen_by_fit_count_for_the_penalty_of_partial_fit():
    X, y = make_data()
    model = plain(C=0.003, max_iter=1, tol=0).fit(X[:60], y[:60]).partial_fit(X[60:], y[60:])
    W, b = steps([(X[:60], y[:60], None), (X[60:], y[60:], None)], C=0.003)
    np.testing.assert_allclose(model.coef_, W, rtol=1e-10)
    np.testing.assert_allclose(model.intercept_, b, rtol=1e-10)


def test_a_new_fit_forgets_what_partial_fit_has_seen():
    X, y = make_data()
    model = plain(preconditioner="diagonal", max_iter=3, tol=0)
    expected = clone(model).fit(X, y).coef_
    model.partial_fit(100 * X[::-1], y, classes=range(3)).fit(X, y)
    np.testing.assert_array_equal(model.coef_, expected)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"learning_rate": 0.05, "momentum": 0}, {"preconditioner": None}],
    ids=["auto", "fixed rate", "auto without preconditioner"],
)
def test_rows_one_at_a_time(parameters):
    """A stream of 400 rows: finite throughout, no warning, and more than 80 % of the reference."""
    X, y = make_data(n=400)
    model = SoftmaxRegression(random_state=0, **parameters)
    for row in range(400):
        model.partial_fit(X[row : row + 1], y[row : row + 1], classes=range(3))
        assert np.isfinite(model.coef_).all()
        assert np.isfinite(model.predict_log_proba(X)).all()
    reference = LogisticRegression().fit(X, y)
    assert model.score(X, y) > 0.8 * reference.score(X, y)


@pytest.mark.parametrize("preconditioner", ["diagonal", None])
def test_classes_that_have_not_come_yet_keep_finite_logits(preconditioner):
    """And are learnt when they come."""
    X, y = make_data()
    order = np.argsort(y, kind="stable")
    model = SoftmaxRegression(preconditioner=preconditioner, learning_rate=0.1, random_state=0)
    early = order[y[order] < 2]
    model.partial_fit(X[early], y[early], classes=range(4))
    for method in (model.decision_function, model.predict_log_proba):
        assert np.isfinite(method(X)).all()
    before = model.predict_proba(X)[:, 2].mean()
    for _ in range(30):
        model.partial_fit(X[order], y[order])
    assert model.predict_proba(X)[y == 2, 2].mean() > before + 0.1
    assert np.isfinite(model.predict_log_proba(X)).all()


def test_a_class_that_fit_masked_can_be_learnt():
    X, y = make_data()
    model = plain(preconditioner="diagonal", max_iter=10, tol=0, learning_rate=0.3)
    model.fit(X, y, (y != 2).astype(float))
    assert not model.predict_proba(X)[:, 2].any()
    for _ in range(30):
        model.partial_fit(X, y)
    assert np.isfinite(model.intercept_).all()
    assert model.score(X, y) > 0.9 * LogisticRegression().fit(X, y).score(X, y)


def test_chunks_smaller_than_the_batch_are_one_step():
    """As MLPClassifier does, with its kind of warning."""
    X, y = make_data()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clipped = plain(batch_size=500).partial_fit(X, y, classes=range(3))
    assert len(caught) == 1
    assert "batch_size=500" in str(caught[0].message)
    whole = plain(batch_size=120).partial_fit(X, y, classes=range(3))
    np.testing.assert_array_equal(clipped.coef_, whole.coef_)


def test_a_call_that_fails_leaves_no_trace():
    X, y = make_data()
    model = SoftmaxRegression(learning_rate=0.05, batch_size=20, random_state=0)
    model.partial_fit(X, y, classes=[0, 1, 2])
    untouched = pickle.loads(pickle.dumps(model))
    with pytest.raises(ValueError, match="diverged"):
        model.set_params(learning_rate=1e300).partial_fit(X, y)
    model.set_params(learning_rate=0.05).partial_fit(X, y)
    np.testing.assert_array_equal(model.coef_, untouched.partial_fit(X, y).coef_)

"""Agreement with optima found by other means.

With all rows in a batch, SGD reaches the optimum to about 1e-9 of the largest coefficient; where a
test says less, the reference is the one that is less accurate, or batches are small.
"""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from skmax import SoftmaxRegression


def make_data(k, n=150, d=5, seed=0):
    """Overlapping classes, on features of three scales that are not centred."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.resize([1, 10, 0.1], d) + np.resize([0, 5, 1], d)
    coef = rng.normal(size=(k, d)) / X.std(axis=0)
    y = np.argmax((X - X.mean(axis=0)) @ coef.T + rng.gumbel(size=(n, k)), axis=1)
    return X, y


def at_optimum(X, y, sample_weight=None, **parameters):
    model = SoftmaxRegression(
        **{"batch_size": len(X), "max_iter": 800, "tol": 0, "random_state": 0, **parameters}
    )
    return model.fit(X, y, sample_weight)


def scipy_optimum(X, P, weight, C, l1_ratio=0.0):
    """The optimum of the objective for target probabilities P, by L-BFGS-B.

    Weights are split into positive and negative parts, so that L1 is smooth and zeros are exact.
    """
    k, d = P.shape[1], X.shape[1]

    def value_and_gradient(flat):
        parts = flat[: 2 * k * d].reshape(2, k, d)
        W, b = parts[0] - parts[1], flat[2 * k * d :]
        logits = X @ W.T + b
        log_p = logits - logsumexp(logits, axis=1, keepdims=True)
        residual = C * weight[:, None] * (np.exp(log_p) * P.sum(axis=1, keepdims=True) - P)
        value = -C * np.sum(weight[:, None] * P * log_p)
        value += (1 - l1_ratio) / 2 * np.sum(W**2) + l1_ratio * parts.sum()
        by_W = residual.T @ X + (1 - l1_ratio) * W
        by_parts = np.stack([by_W, -by_W]) + l1_ratio
        by_flat = np.append(by_parts, residual.sum(axis=0))
        scale = C * weight.sum()
        return value / scale, by_flat / scale

    bounds = [(0, None)] * (2 * k * d) + [(None, None)] * k
    found = minimize(
        value_and_gradient, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": 20000, "maxfun": 40000, "maxcor": 40, "ftol": 1e-16, "gtol": 1e-10},
    ).x  # fmt: skip
    parts = found[: 2 * k * d].reshape(2, k, d)
    return parts[0] - parts[1], found[2 * k * d :]


def assert_same_fit(model, coef, intercept, accuracy, *, center_coef=False):
    """Coefficients agree relative to the largest; logits are known up to a common constant."""
    ours, theirs = model.coef_, coef
    if center_coef:
        ours, theirs = ours - ours.mean(axis=0), theirs - theirs.mean(axis=0)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=accuracy * np.abs(theirs).max())
    b, c = model.intercept_, intercept
    if len(coef) > 1:
        b, c = b - b.mean(), c - c.mean()
    np.testing.assert_allclose(b, c, rtol=0, atol=accuracy * max(1, np.abs(c).max()))


@pytest.mark.parametrize("preconditioner", ["diagonal", None])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("C", [0.01, 1, 100])
@pytest.mark.parametrize("k", [2, 4])
def test_l2_optimum_is_that_of_logistic_regression(C, k, fit_intercept, preconditioner):
    """To 1e-7. Two classes reach the optimum of the binary model, in its shape."""
    X, y = make_data(k)
    if preconditioner is None:  # a plain method needs features of one scale
        X = (X - [0, 5, 1, 0, 4]) / X.std(axis=0)
    reference = LogisticRegression(
        C=C, fit_intercept=fit_intercept, solver="newton-cholesky", tol=1e-12
    ).fit(X, y)
    model = at_optimum(X, y, C=C, fit_intercept=fit_intercept, preconditioner=preconditioner)
    assert model.coef_.shape == ((1, 5) if k == 2 else (4, 5))
    assert_same_fit(model, reference.coef_, reference.intercept_, 1e-7)
    np.testing.assert_allclose(
        model.predict_proba(X), reference.predict_proba(X), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("k", [2, 3])
def test_l2_optimum_in_small_batches(k):
    """n=5000 in batches of 64: 50 epochs come within 3 % of the largest weight."""
    X, y = make_data(k, n=5000)
    reference = LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(X, y)
    model = at_optimum(X, y, batch_size=64, max_iter=50)
    scale = X.std(axis=0)
    np.testing.assert_allclose(
        model.coef_ * scale,
        reference.coef_ * scale,
        rtol=0,
        atol=0.03 * np.abs(reference.coef_ * scale).max(),
    )
    np.testing.assert_allclose(
        model.predict_proba(X), reference.predict_proba(X), rtol=0, atol=0.05
    )


@pytest.mark.parametrize("l1_ratio", [0.5, 1])
@pytest.mark.parametrize("C", [0.05, 0.2, 1])
@pytest.mark.parametrize("k", [2, 3])
def test_l1_optimum_and_its_zeros_are_those_of_logistic_regression(C, k, l1_ratio):
    """To 1e-6, the accuracy of saga at this tolerance; the zeros exactly."""
    X, y = make_data(k, n=120)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    reference = LogisticRegression(
        C=C, l1_ratio=l1_ratio, solver="saga", tol=1e-12, max_iter=100_000, random_state=0
    ).fit(X, y)
    model = at_optimum(X, y, C=C, l1_ratio=l1_ratio, max_iter=2000)
    np.testing.assert_array_equal(model.coef_ == 0, reference.coef_ == 0)
    assert (model.coef_ == 0).any() or C > 0.05
    assert_same_fit(model, reference.coef_, reference.intercept_, 1e-6)


@pytest.mark.parametrize("l1_ratio", [0.5, 1])
def test_l1_optimum_on_features_as_they_come_is_that_of_scipy(l1_ratio):
    """To 1e-4, the accuracy of L-BFGS-B with bounds; the zeros exactly."""
    X, y = make_data(3)
    coef, intercept = scipy_optimum(X, np.eye(3)[y], np.ones(len(X)), 0.1, l1_ratio)
    model = at_optimum(X, y, C=0.1, l1_ratio=l1_ratio)
    np.testing.assert_array_equal(model.coef_ == 0, coef == 0)
    assert 2 < (coef == 0).sum() < 13
    assert_same_fit(model, coef, intercept, 1e-4)


@pytest.mark.parametrize("k", [2, 3])
def test_under_a_strong_l1_penalty_only_the_prior_is_left(k):
    """To 1e-9: intercepts are logarithms of the shares of the classes."""
    X, y = make_data(k)
    model = at_optimum(X, y, C=1e-3, l1_ratio=1)
    assert not model.coef_.any()
    np.testing.assert_allclose(
        model.predict_proba(X), np.tile(np.bincount(y) / len(y), (len(X), 1)), atol=1e-9
    )


@pytest.mark.parametrize("C", [0.003, 0.01])
@pytest.mark.parametrize("random_state", range(3))
def test_l1_zeros_in_small_batches(C, random_state):
    """n=5000 in batches of 64, 50 epochs: to 3 % of the largest weight.

    No weight is zero by mistake, most that should be are, and the rest lie within the 3 %.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5000, 6))
    coef = np.zeros((3, 6))
    coef[0, 0], coef[1, 1], coef[1, 2], coef[2, 2] = 1, -1.5, -0.5, 1
    y = np.argmax(X @ coef.T + rng.gumbel(size=(5000, 3)), axis=1)
    reference = LogisticRegression(
        C=C, l1_ratio=1, solver="saga", tol=1e-8, max_iter=10_000, random_state=0
    ).fit(X, y)
    model = at_optimum(X, y, C=C, l1_ratio=1, batch_size=64, max_iter=50, random_state=random_state)
    assert_same_fit(model, reference.coef_, reference.intercept_, 0.03)
    assert (reference.coef_ == 0).sum() == 14
    assert not np.any((model.coef_ == 0) & (reference.coef_ != 0))
    assert np.sum(model.coef_ == 0) >= 9


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("class_weight", [{0: 3.0, 1: 0.5, 2: 1.0}, "balanced"])
def test_class_weights_are_those_of_logistic_regression(rng, class_weight, weighted):
    """To 1e-7, with sample weights and without."""
    X, y = make_data(3)
    sample_weight = rng.exponential(size=len(X)) if weighted else None
    reference = LogisticRegression(
        class_weight=class_weight, solver="newton-cholesky", tol=1e-12
    ).fit(X, y, sample_weight)
    model = at_optimum(X, y, sample_weight, class_weight=class_weight)
    assert_same_fit(model, reference.coef_, reference.intercept_, 1e-7)


@pytest.mark.parametrize("class_weight", [None, {0: 3.0, 1: 0.5, 2: 1.0}, "balanced"])
@pytest.mark.parametrize("l1_ratio", [0, 1])
def test_a_soft_row_is_as_many_weighted_rows_as_classes(rng, class_weight, l1_ratio):
    """To 1e-7, by skmax on hard rows and, where LogisticRegression can, by that."""
    X, _ = make_data(3, n=60)
    P, weight = rng.dirichlet(np.ones(3), size=len(X)), rng.exponential(size=len(X))
    hard = np.repeat(X, 3, axis=0), np.tile(np.arange(3), len(X)), (weight[:, None] * P).ravel()
    model = at_optimum(X, P, weight, class_weight=class_weight, l1_ratio=l1_ratio)
    other = at_optimum(*hard, class_weight=class_weight, l1_ratio=l1_ratio)
    assert_same_fit(model, other.coef_, other.intercept_, 1e-7)
    if l1_ratio == 0:
        reference = LogisticRegression(
            class_weight=class_weight, solver="newton-cholesky", tol=1e-12
        ).fit(*hard)
        assert_same_fit(model, reference.coef_, reference.intercept_, 1e-7)


def test_two_soft_classes_reach_the_binary_model(rng):
    """To 1e-7."""
    X, _ = make_data(2, n=60)
    p = rng.uniform(size=len(X))
    model = at_optimum(X, np.column_stack([1 - p, p]))
    reference = LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(
        np.concatenate([X, X]), np.repeat([0, 1], len(X)), np.append(1 - p, p)
    )
    assert_same_fit(model, reference.coef_, reference.intercept_, 1e-7)


@pytest.mark.parametrize("class_weight", [None, {0: 5.0, 1: 1.0, 2: 2.0}])
def test_label_smoothing_is_applied_after_class_weights(class_weight):
    """To 1e-4 of SciPy's optimum for the smoothed targets, which is as good as L-BFGS-B gets."""
    X, y = make_data(3)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    factor = np.ones(3) if class_weight is None else np.array(list(class_weight.values()))
    P = 0.8 * np.eye(3)[y] + 0.2 / 3
    coef, intercept = scipy_optimum(X, P, factor[y], 2.0)
    model = at_optimum(X, y, C=2.0, label_smoothing=0.2, class_weight=class_weight)
    assert_same_fit(model, coef, intercept, 1e-4)
    unsmoothed = at_optimum(X, y, C=2.0, class_weight=class_weight)
    assert np.abs(model.coef_ - unsmoothed.coef_).max() > 0.1


@pytest.mark.parametrize("k", [2, 3])
def test_without_penalty_the_maximum_of_the_likelihood(k):
    """To 1e-5 in the coefficients; they are unique but for a common vector."""
    X, y = make_data(k)
    reference = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(X, y)
    model = at_optimum(X, y, C=np.inf, max_iter=3000)
    assert_same_fit(model, reference.coef_, reference.intercept_, 1e-5, center_coef=k > 2)


@pytest.mark.parametrize(("k", "l1_ratio", "C"), [(2, 0.0, 1.0), (3, 0.0, 1.0), (3, 1.0, 0.05)])
def test_to_sklearn_predicts_the_same(k, l1_ratio, C):
    """To rounding, dense and sparse, and fitting the converted model finds the same optimum."""
    X, y = make_data(k)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    labels = np.array(["ant", "bee", "cat"])[y]
    model = at_optimum(X, labels, C=C, l1_ratio=l1_ratio)
    for _ in range(2):
        converted = model.to_sklearn()
        assert type(converted) is LogisticRegression
        np.testing.assert_array_equal(converted.predict(X), model.predict(X))
        for method in ("predict_proba", "predict_log_proba", "decision_function"):
            ours, theirs = getattr(model, method)(X), getattr(converted, method)(X)
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
        assert converted.score(X, labels) == model.score(X, labels)
        assert sparse.issparse(converted.coef_) == sparse.issparse(model.coef_)
        model.sparsify()
    anew = converted.set_params(tol=1e-10, max_iter=100_000).fit(X, labels)
    assert_same_fit(model.densify(), anew.coef_, anew.intercept_, 1e-4)


def test_balanced_class_weights_are_those_that_scikit_learn_computes():
    """Balanced weights as a dictionary give the same bits, to 1e-12."""
    X, y = make_data(3)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=y)
    named = at_optimum(X, y, class_weight="balanced", max_iter=50, learning_rate=0.5)
    given = at_optimum(X, y, class_weight=dict(enumerate(weights)), max_iter=50, learning_rate=0.5)
    np.testing.assert_allclose(named.coef_, given.coef_, rtol=1e-12)
    np.testing.assert_allclose(named.loss_curve_, given.loss_curve_, rtol=1e-12)

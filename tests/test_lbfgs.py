"""solver="lbfgs", the defaults that L-BFGS finishes, and the proven distance to the optimum."""

import warnings

import array_api_strict
import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from test_optimum import make_data, scipy_optimum

from skmax import SoftmaxRegression


def exact(**parameters):
    return SoftmaxRegression(**{"solver": "lbfgs", "tol": 1e-13, **parameters})


def objective(coef, intercept, X, P, weight, C=1.0, l1_ratio=0.0):
    """F of weights with a row per class (or one row for two), by the formula, in float64."""
    logits = X @ coef.T.astype(float) + intercept
    if len(coef) == 1:
        logits = np.column_stack([np.zeros(len(logits)), logits])
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    penalty = (1 - l1_ratio) / 2 * np.sum(coef.astype(float) ** 2)
    penalty += l1_ratio * np.abs(coef.astype(float)).sum()
    return -(weight @ np.sum(P * log_p, axis=1)) / weight.sum() + penalty / (C * weight.sum())


@pytest.mark.parametrize("preconditioner", ["diagonal", None])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("C", [0.01, 1, 100])
@pytest.mark.parametrize("k", [2, 4])
def test_the_optimum_is_that_of_logistic_regression(C, k, fit_intercept, preconditioner):
    """Coefficients in units of their features to 1e-5 of the largest."""
    X, y = make_data(k)
    reference = LogisticRegression(
        C=C, fit_intercept=fit_intercept, solver="newton-cholesky", tol=1e-12
    ).fit(X, y)
    model = exact(C=C, fit_intercept=fit_intercept, preconditioner=preconditioner).fit(X, y)
    scale = X.std(axis=0)
    atol = 1e-5 * np.abs(reference.coef_ * scale).max()
    np.testing.assert_allclose(model.coef_ * scale, reference.coef_ * scale, rtol=0, atol=atol)
    np.testing.assert_allclose(model.predict_proba(X), reference.predict_proba(X), atol=1e-5)


def difficult(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 40)) + 1
    logits = X @ rng.normal(size=(40, 10)) / 4
    y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    if kind == "by columns":
        X = np.asfortranarray(X)
    elif kind == "scales":
        X *= 10.0 ** rng.uniform(-4, 4, 40)
    elif kind == "beyond single precision":
        X *= 10.0 ** np.where(np.arange(40) % 2, 60, 0)
    elif kind == "far":
        X += 1e6 * rng.normal(size=40)
    elif kind == "collinear":
        X[:, 20:] = X[:, :20] + 1e-5 * X[:, 20:]
    return X, y


@pytest.mark.parametrize(
    "kind", ["plain", "by columns", "scales", "beyond single precision", "far", "collinear"]
)
@pytest.mark.parametrize(
    "parameters",
    [{}, {"C": 1e4}, {"class_weight": "balanced", "label_smoothing": 0.1}],
    ids=str,
)
def test_the_optimum_is_that_of_newton_on_difficult_data(kind, parameters):
    X, y = difficult(kind)
    newton = SoftmaxRegression(solver="newton", tol=1e-10, **parameters).fit(X, y)
    model = SoftmaxRegression(solver="lbfgs", tol=1e-8, **parameters).fit(X, y)
    assert model.loss_curve_[-1] <= newton.loss_curve_[-1] * (1 + 1e-8)
    if len(parameters) < 2:
        found = objective(model.coef_, model.intercept_, X, np.eye(10)[y], np.ones(len(X)), model.C)
        assert model.loss_curve_[-1] == pytest.approx(found, rel=1e-10)
    np.testing.assert_allclose(model.predict_proba(X), newton.predict_proba(X), atol=1e-3)


def test_weak_penalties_on_separable_data_do_not_end_in_rounding_errors():
    """Of a loss of 1e-7 per row, single precision knows nothing."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(200, 250))
    y = np.argmax(X[:, :20] @ rng.normal(size=(20, 4)), axis=1)
    for C in (1e4, 1e6):
        model = SoftmaxRegression(solver="lbfgs", C=C).fit(X, y)
        found = objective(model.coef_, model.intercept_, X, np.eye(4)[y], np.ones(len(X)), C)
        assert model.loss_curve_[-1] == pytest.approx(found, rel=1e-6)
        newton = SoftmaxRegression(solver="newton", C=C).fit(X, y)
        assert found <= newton.loss_curve_[-1] * (1 + 1e-4)


def easily_told_apart(n=4000, d=96, k=40):
    """Embeddings of classes that hardly overlap."""
    rng = np.random.default_rng(0)
    y = np.append(np.arange(k), rng.integers(k, size=n - k))
    X = (rng.normal(size=(k, d))[y] + rng.normal(size=(n, d))) / np.sqrt(np.arange(1, d + 1))
    return 4 * X / np.linalg.norm(X, axis=1, keepdims=True), y


@pytest.mark.parametrize("namespace", [np, array_api_strict])
@pytest.mark.parametrize("l1_ratio", [0, 0.5])
def test_the_first_step_goes_as_far_as_is_good(l1_ratio, namespace):
    """To a tenth of the objective. All of Newton's step would end at six times as much."""
    X, y = easily_told_apart()
    model = SoftmaxRegression(solver="lbfgs", l1_ratio=l1_ratio, max_iter=1)
    with sklearn.config_context(array_api_dispatch=True):
        there = namespace.asarray(X), namespace.asarray(y)
        with pytest.warns(ConvergenceWarning):
            model.fit(*there)
    coef, intercept = np.asarray(model.coef_), np.asarray(model.intercept_)
    start, weight = np.log(np.bincount(y) / len(y)), np.ones(len(X))
    start -= start.mean()

    def along(length):
        step = length * (intercept - intercept.mean() - start)
        there = length * coef, start + step, X, np.eye(40)[y], weight
        return objective(*there, l1_ratio=l1_ratio)

    assert along(1) <= 1.1 * min(map(along, np.geomspace(0.25, 4, 17)))
    assert along(1) < 0.1 * along(0)


def test_classes_that_are_easily_told_apart_take_no_longer():
    """Than others: after all of Newton's first step, it would be 39 iterations."""
    X, y = easily_told_apart()
    model = SoftmaxRegression(solver="lbfgs").fit(X, y)
    reference = LogisticRegression(tol=1e-8, max_iter=1000).fit(X, y)
    there = X, np.eye(40)[y], np.ones(len(X))
    least = objective(reference.coef_, reference.intercept_, *there)
    assert objective(model.coef_, model.intercept_, *there) == pytest.approx(least, rel=1e-4)
    assert model.n_iter_ <= 25


@pytest.mark.parametrize("l1_ratio", [0.5, 1])
@pytest.mark.parametrize("k", [2, 3])
def test_under_l1_the_optimum_of_scipy_and_its_zeros(k, l1_ratio):
    """To 1e-3 of the largest coefficient; the zeros exactly."""
    X, y = make_data(k, n=120)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    reference = LogisticRegression(
        C=0.1, l1_ratio=l1_ratio, solver="saga", tol=1e-12, max_iter=100_000, random_state=0
    ).fit(X, y)
    model = exact(C=0.1, l1_ratio=l1_ratio).fit(X, y)
    np.testing.assert_array_equal(model.coef_ == 0, reference.coef_ == 0)
    assert (model.coef_ == 0).any() or l1_ratio < 1
    atol = 1e-3 * np.abs(reference.coef_).max()
    np.testing.assert_allclose(model.coef_, reference.coef_, rtol=0, atol=atol)


def test_nothing_is_random():
    X, y = make_data(3)
    fits = [exact(random_state=seed).fit(X, y).coef_ for seed in (0, 1)]
    np.testing.assert_array_equal(*fits)


@pytest.mark.parametrize("namespace", ["array_api_strict", "torch"])
@pytest.mark.parametrize("parameters", [{}, {"l1_ratio": 0.5, "C": 0.1}], ids=str)
def test_every_namespace_gives_the_same(namespace, parameters):
    """To 1e-6 in float64."""
    X, y = make_data(3)
    xp = pytest.importorskip("torch") if namespace == "torch" else array_api_strict
    here = exact(**parameters).fit(X, y)
    with sklearn.config_context(array_api_dispatch=True):
        there = exact(**parameters).fit(xp.asarray(X), xp.asarray(y))
    assert type(there.coef_) is type(xp.asarray(X))
    np.testing.assert_allclose(np.asarray(there.coef_), here.coef_, rtol=0, atol=1e-6)


def test_sparse_data_give_the_optimum_of_dense_data():
    """To 1e-5, with means that stay folded in."""
    X, y = make_data(3)
    X[X < 0.5] = 0
    dense, thin = exact().fit(X, y), exact().fit(sparse.csr_array(X), y)
    np.testing.assert_allclose(thin.coef_, dense.coef_, atol=1e-5 * np.abs(dense.coef_).max())


def test_many_sparse_features_are_taken_by_themselves():
    """3000 features, more than have a matrix: F within 1e-6 of LogisticRegression's."""
    rng = np.random.default_rng(0)
    X = sparse.random_array((400, 3000), density=0.02, rng=rng, format="csr")
    y = np.argmax(X @ rng.normal(size=(3000, 3)) + 0.3 * rng.gumbel(size=(400, 3)), axis=1)
    reference = LogisticRegression(tol=1e-10, max_iter=10_000).fit(X, y)
    model = exact(tol=1e-9).fit(X, y)
    weight, P = np.ones(400), np.eye(3)[y]
    ours, theirs = (
        objective(fit.coef_, fit.intercept_, X, P, weight) for fit in (model, reference)
    )
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_too_few_iterations_are_told():
    X, y = make_data(3)
    with pytest.warns(ConvergenceWarning, match="had not converged after 2 iterations"):
        model = SoftmaxRegression(solver="lbfgs", max_iter=2).fit(X, y)
    assert model.n_iter_ == len(model.loss_curve_) == 2
    assert np.isnan(model.learning_rate_)


def test_the_loss_curve_is_the_objective():
    """To rounding, at the end; and it never rises."""
    X, y = make_data(3)
    model = exact().fit(X, y)
    F = objective(model.coef_, model.intercept_, X, np.eye(3)[y], np.ones(len(X)))
    assert model.loss_curve_[-1] == pytest.approx(F, rel=1e-10)
    assert (np.diff(model.loss_curve_) <= 1e-12).all()


def test_partial_fit_refuses_lbfgs():
    X, y = make_data(3)
    with pytest.raises(ValueError, match="partial_fit does not support solver='lbfgs'"):
        SoftmaxRegression(solver="lbfgs").partial_fit(X, y, classes=[0, 1, 2])


def hostile():
    """Data sets that each have a difficulty, by name."""
    for load in (load_iris, load_wine, load_breast_cancer, load_digits):
        yield load.__name__[5:], *load(return_X_y=True)
    for k in (2, 4):
        for seed in range(3):
            X, y = make_data(k, n=400, d=12, seed=seed)
            rng = np.random.default_rng(seed)
            yield f"far scales, {k} classes, {seed}", X * 10 ** rng.uniform(-4, 4, 12), y
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(1000, 8))
    y = np.argmax(Z @ rng.normal(size=(8, 3)) + rng.gumbel(size=(1000, 3)), axis=1)
    yield "collinear", Z @ rng.normal(size=(8, 40)), y
    yield "heavy tails", np.exp(2 * Z), y
    yield "constant and rare features", np.column_stack([Z, np.ones(1000), Z[:, 0] > 3]), y
    yield "imbalanced", Z, (Z.sum(axis=1) > 7).astype(int)
    yield "separable", Z, (Z[:, 0] > 0).astype(int)
    yield "many classes", Z, np.arange(1000) % 100
    yield "more features than rows", rng.normal(size=(60, 200)), np.arange(60) % 3


@pytest.mark.parametrize(("X", "y"), [pytest.param(X, y, id=name) for name, X, y in hostile()])
def test_the_defaults_end_at_the_optimum_on_data_as_they_come(X, y):
    """Within 1 % of the least objective that a fit to 1e-10 finds, plus 1e-4; no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SoftmaxRegression(random_state=0).fit(X, y)
    best = exact(tol=1e-10).fit(X, y)
    P, weight = np.eye(y.max() + 1)[y], np.ones(len(X))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = LogisticRegression(solver="newton-cholesky", tol=1e-8, max_iter=200).fit(X, y)
    F, *others = (objective(fit.coef_, fit.intercept_, X, P, weight) for fit in (model, best, peer))
    assert 1.01 * min(others) + 1e-4 >= F


@st.composite
def fitted(draw):
    """A problem, a model of it that is anywhere, and what it was fitted with."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, k = draw(st.integers(12, 60)), draw(st.integers(1, 5)), draw(st.integers(2, 4))
    X = rng.normal(size=(n, d)) * 10 ** rng.uniform(-1, 1, d) + rng.normal(size=d)
    soft = draw(st.booleans())
    labels = np.append(np.arange(k), rng.integers(k, size=n - k))
    y = rng.dirichlet(np.ones(k), size=n) if soft else labels
    weight = rng.exponential(size=n) + 0.01 if draw(st.booleans()) else np.ones(n)
    C = draw(st.sampled_from([0.03, 1.0, 30.0]))
    l1_ratio = draw(st.sampled_from([0.0, 0.0, 0.4, 1.0]))
    model = SoftmaxRegression(
        C=C, l1_ratio=l1_ratio, learning_rate=0.03, max_iter=draw(st.integers(1, 40)),
        random_state=0, tol=0, schedule="constant",
    ).fit(X, y, weight)  # fmt: skip
    return X, y, weight, model


@settings(max_examples=60)
@given(fitted())
def test_the_optimality_gap_is_never_below_the_truth(case):
    """F* by SciPy, which can only be too large, and its gap too small."""
    X, y, weight, model = case
    P = y if y.ndim == 2 else np.eye(y.max() + 1)[y]
    C, l1_ratio = model.C, model.l1_ratio
    F = objective(model.coef_, model.intercept_, X, P, weight, C, l1_ratio)
    coef, intercept = scipy_optimum(X, P, weight, C, l1_ratio)
    if P.shape[1] == 2:  # two rows that are each other's negative: the binary model
        peer = exact(C=C, l1_ratio=l1_ratio).fit(X, y, weight)
        coef, intercept = peer.coef_, peer.intercept_
    least = objective(coef, intercept, X, P, weight, C, l1_ratio)
    truth = (F - least) / F
    gap = model.optimality_gap(X, y, weight)
    assert truth - 1e-9 <= gap <= 1
    if l1_ratio == 0:
        assert gap <= 1.3 * truth + 1e-2


def test_the_optimality_gap_of_the_optimum_is_nearly_zero():
    X, y = make_data(3)
    assert exact().fit(X, y).optimality_gap(X, y) < 1e-5


def test_without_a_penalty_the_bound_says_nothing():
    X, y = make_data(3)
    assert exact(C=np.inf, tol=1e-6).fit(X, y).optimality_gap(X, y) == 1

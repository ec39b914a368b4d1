"""The objective, its gradient and the two SGD epochs against independent references."""

import array_api_strict
import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax as scipy_log_softmax
from scipy.special import logsumexp

from skmax import SoftmaxRegression
from skmax.backends import Backend
from skmax.backends.numpy import NumpyBackend
from skmax.data import source
from skmax.objective import batch_gradient, clip, log_softmax, penalty
from skmax.problem import MASKED_LOGIT, Problem, State
from skmax.solvers.preconditioner import Moments, precondition
from skmax.solvers.sgd import at_origin, with_exact_zeros

BACKENDS = {
    "numpy": NumpyBackend,
    "array_api_strict": lambda: Backend(array_api_strict),
}


def pose(backend, X, targets, weight=None, dtype=np.float64, **changes):
    """A problem on all rows of X, of as many models as `weight` has columns."""
    k = changes.pop("n_classes", None) or targets.shape[1]
    m = 1 if weight is None else weight.shape[1]
    arguments = {
        "score_weight": None,
        "masked": np.zeros((m, k), dtype=bool),
        "C": np.full(m, 2.0),
        "l1_ratio": np.zeros(m),
        "label_smoothing": np.zeros(m),
        "fit_intercept": True,
    }
    return Problem.pose(
        source(X, backend, dtype),
        np.arange(len(X)),
        targets,
        sample_weight=weight,
        **{**arguments, **changes},
    )


def cross_entropy(X, probabilities, weight, coef, intercept):
    """The summed, weighted cross-entropy of one model, straight from its definition."""
    logits = X @ coef.T + intercept
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    return -np.sum(weight[:, None] * probabilities * log_p)


def central_differences(function, point, step=1e-5):
    gradient = np.empty_like(point)
    for index in np.ndindex(point.shape):
        ahead, behind = point.copy(), point.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (function(ahead) - function(behind)) / (2 * step)
    return gradient


@pytest.mark.parametrize("namespace", BACKENDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize("n_models", [None, 1, 3])
def test_batch_gradient_is_the_derivative_of_the_loss(rng, namespace, smoothing, kind, n_models):
    """To 1e-8, the accuracy of central differences in float64; None: no weights."""
    n, d, k, m = 12, 3, 4, n_models or 1
    X = rng.normal(size=(n, d))
    labels = rng.integers(k, size=n)
    soft = rng.dirichlet(np.ones(k), size=n)
    weight = None if n_models is None else rng.exponential(size=(n, m))
    problem = pose(
        BACKENDS[namespace](),
        X,
        labels if kind == "labels" else soft,
        weight,
        n_classes=k,
        label_smoothing=np.linspace(smoothing, smoothing / 2, m),
    )
    coef, intercept = rng.normal(size=(m, k, d)), rng.normal(size=(m, k))
    rows = np.array([1, 3, 4, 8, 11, 3])  # a row may come twice
    asarray, to_numpy = problem.backend.asarray, problem.backend.to_numpy
    sums, *gradients = batch_gradient(
        problem, asarray(coef), asarray(intercept), asarray(rows), asarray(X[rows])
    )

    hard = np.eye(k)[labels] if kind == "labels" else soft
    for model in range(m):
        e = np.linspace(smoothing, smoothing / 2, m)[model]
        target = ((1 - e) * hard + e / k)[rows]
        w = np.ones(n) if weight is None else weight[:, model] / weight[:, model].mean()

        def loss(coef, intercept, target=target, w=w):
            return cross_entropy(X[rows], target, w[rows], coef, intercept)

        W, b = coef[model], intercept[model]
        assert float(to_numpy(sums.loss)[model]) == pytest.approx(loss(W, b), rel=1e-12)
        by_coef, by_intercept = (to_numpy(gradient)[model] for gradient in gradients)
        np.testing.assert_allclose(
            by_coef, central_differences(lambda at, b=b: loss(at, b), W), atol=1e-8
        )
        np.testing.assert_allclose(
            by_intercept, central_differences(lambda at, W=W: loss(W, at), b), atol=1e-8
        )


@pytest.mark.parametrize("namespace", BACKENDS)
def test_batch_sums_count_what_is_classified_rightly(rng, namespace):
    n, d, k = 50, 3, 4
    X, labels, weight = rng.normal(size=(n, d)), rng.integers(k, size=n), rng.exponential(size=n)
    backend = BACKENDS[namespace]()
    score_weight = rng.exponential(size=(n, 1))
    problem = pose(backend, X, labels, weight[:, None], n_classes=k, score_weight=score_weight)
    coef, intercept = rng.normal(size=(1, k, d)), rng.normal(size=(1, k))
    sums, _, _ = batch_gradient(problem, *map(backend.asarray, (coef, intercept, np.arange(n), X)))
    right = np.argmax(X @ coef[0].T + intercept[0], axis=1) == labels
    expected = np.average(right, weights=score_weight[:, 0]) * n
    assert backend.to_numpy(sums.correct)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("namespace", BACKENDS)
def test_a_masked_class_has_no_gradient_and_no_share_of_the_smoothing(rng, namespace):
    n, d, k = 20, 3, 4
    X, labels = rng.normal(size=(n, d)), rng.integers(k, size=n)
    weight = np.where(labels == 2, 0.0, 1.0)
    masked = np.arange(k) == 2
    backend = BACKENDS[namespace]()
    problem = pose(
        backend, X, labels, weight[:, None],
        n_classes=k, masked=masked[None], label_smoothing=np.array([0.3]),
    )  # fmt: skip
    coef, intercept = rng.normal(size=(1, k, d)), rng.normal(size=(1, k))
    coef[:, 2], intercept[:, 2] = 0, MASKED_LOGIT
    sums, by_coef, by_intercept = batch_gradient(
        problem, *map(backend.asarray, (coef, intercept, np.arange(n), X))
    )
    kept = weight > 0
    target = 0.7 * np.eye(k)[labels][kept][:, ~masked] + 0.3 / 3
    mean_one = np.full(kept.sum(), n / kept.sum())
    expected = cross_entropy(X[kept], target, mean_one, coef[0, ~masked], intercept[0, ~masked])
    assert backend.to_numpy(sums.loss)[0] == pytest.approx(expected, rel=1e-12)
    assert not backend.to_numpy(by_coef)[0, 2].any()
    assert backend.to_numpy(by_intercept)[0, 2] == 0


@pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "array_api_strict"])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_log_softmax_equals_that_of_scipy(rng, xp, size):
    logits = rng.choice([-size, 0.3, size], size=(40, 5)) + rng.normal(size=(40, 5))
    ours = np.asarray(log_softmax(array_namespace(xp.asarray(logits)), xp.asarray(logits)))
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, scipy_log_softmax(logits, axis=-1), rtol=1e-14, atol=1e-15)


def test_log_softmax_of_a_masked_class_takes_no_probability():
    log_p = log_softmax(np, np.array([[1.0, MASKED_LOGIT, 2.0]]))
    np.testing.assert_allclose(np.exp(log_p), [[1 / (1 + np.e), 0, np.e / (1 + np.e)]], rtol=1e-15)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_without_what_is_clipped_the_proximal_operator_is_left(value, threshold):
    """The minimiser of (z - value)^2 / 2 + threshold |z|, in closed form."""
    expected = np.sign(value) * max(abs(value) - threshold, 0.0)
    shrunk = value - clip(np, np.array([value]), np.array([threshold]))[0]
    assert shrunk == pytest.approx(expected, rel=1e-12, abs=1e-300)
    assert (shrunk == 0) == (abs(value) <= threshold)


@pytest.mark.parametrize("namespace", BACKENDS)
@pytest.mark.parametrize("k", [2, 3])
def test_penalty_is_that_of_logistic_regression_per_unit_of_weight(rng, namespace, k):
    """Of three models at once. Two classes: twice the L2, since W_1 = -W_0 = w / 2."""
    n, d = 10, 4
    C, l1_ratio = np.array([0.1, 3.0, np.inf]), np.array([0.0, 0.4, 1.0])
    weight = rng.exponential(size=(n, 3))
    backend = BACKENDS[namespace]()
    X, labels = rng.normal(size=(n, d)), np.arange(n) % k
    problem = pose(backend, X, labels, weight, n_classes=k, C=C, l1_ratio=l1_ratio)
    coef = rng.normal(size=(3, k, d))
    if k == 2:
        coef[:, 0] = -coef[:, 1]
    w = 2 * coef[:, 1:] if k == 2 else coef  # as LogisticRegression has them
    squares, moduli = (w**2).sum((1, 2)), np.abs(w).sum((1, 2))
    expected = ((1 - l1_ratio) / 2 * squares + l1_ratio * moduli) / (C * weight.sum(0))
    np.testing.assert_allclose(penalty(problem, backend.asarray(coef)), expected, rtol=1e-12)


def plain_softmax_regression(X, y, C, rates, batch_size, momentum=0.0):
    """Textbook minibatch SGD on mean cross-entropy + ||W||^2 / (2 C n), rows in their order."""
    n, k = len(X), y.max() + 1
    W, b, dW, db = np.zeros((k, X.shape[1])), np.zeros(k), 0.0, 0.0
    starts = [start for _ in range(len(rates)) for start in range(0, n, batch_size)]
    for start, rate in zip(starts, rates, strict=False):
        rows = slice(start, start + batch_size)
        logits = X[rows] @ W.T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        residual = p / p.sum(1, keepdims=True) - np.eye(k)[y[rows]]
        dW = momentum * dW - rate * (residual.T @ X[rows] / len(residual) + W / (C * n))
        db = momentum * db - rate * residual.mean(0)
        W, b = W + dW, b + db
    return W, b


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("batch_size", "n_steps"), [(50, 1), (50, 4), (16, 12)])
def test_plain_sgd_equals_a_textbook(rng, batch_size, n_steps, momentum):
    """One step, several of the full batch, and three epochs whose last batch has two rows."""
    n, k = 50, 3
    X, y = rng.normal(size=(n, 4)) + 1, np.arange(n) % k
    model = SoftmaxRegression(
        C=0.1, preconditioner=None, learning_rate=0.1, schedule="constant", momentum=momentum,
        batch_size=batch_size, shuffle=False, max_iter=n_steps // -(-n // batch_size), tol=0,
    ).fit(X, y)  # fmt: skip
    W, b = plain_softmax_regression(X, y, 0.1, [0.1] * n_steps, batch_size, momentum)
    np.testing.assert_allclose(model.coef_, W, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(model.intercept_, b, rtol=1e-10, atol=1e-13)


def test_an_epoch_under_next_to_no_l1_is_that_without(rng):
    """To 1e-6: an epoch is its steps, and no more."""
    X, y = rng.normal(size=(60, 4)), np.arange(60) % 3
    arguments = {"max_iter": 1, "batch_size": 60, "learning_rate": 0.1, "tol": 0}
    without, hardly = (
        SoftmaxRegression(solver="sgd", l1_ratio=l1_ratio, **arguments).fit(X, y).coef_
        for l1_ratio in (0, 1e-9)
    )
    np.testing.assert_allclose(hardly, without, rtol=1e-6)


def lasso(rng, namespace, C, preconditioned):
    """Two models, of which the second has no L1, and random weights near zero."""
    n, d, k = 200, 5, 3
    X, labels = rng.normal(size=(n, d)) * [1, 1, 10, 0.1, 1] + 3, rng.integers(k, size=n)
    ratio = np.array([1.0, 0.0])
    backend, weight = BACKENDS[namespace](), np.ones((n, 2))
    problem = pose(backend, X, labels, weight, n_classes=k, C=np.array([C, C]), l1_ratio=ratio)
    if preconditioned:
        problem = precondition(problem, Moments.of(problem))
    weights = 0.01 * rng.normal(size=(2, k, d)) / X.std(axis=0), rng.normal(size=(2, k))
    return problem, State.at(problem, *weights)


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("namespace", BACKENDS)
def test_exact_zeros_leave_all_else_as_it_is(rng, namespace, preconditioned):
    problem, state = lasso(rng, namespace, 0.02, preconditioned)
    settled = with_exact_zeros(problem, state)
    to_numpy = problem.backend.to_numpy
    before, after = to_numpy(state.coef), to_numpy(settled.coef)
    assert (after[0] == 0).any()
    np.testing.assert_array_equal(after, np.where(after == 0, 0, before))
    np.testing.assert_array_equal(after[1], before[1])
    at_origins = [at_origin(problem, each).intercept for each in (settled, state)]
    np.testing.assert_allclose(*map(to_numpy, at_origins), rtol=1e-12)
    again = with_exact_zeros(problem, settled)
    assert (to_numpy(again.coef)[after == 0] == 0).all()


@pytest.mark.parametrize("C", [1e3, 1e6, 1e9])
def test_exact_zeros_vanish_with_the_penalty(rng, C):
    """No coefficient changes by more than what the penalty is over its curvature."""
    problem, state = lasso(rng, "numpy", C, True)
    change = np.abs(with_exact_zeros(problem, state).coef - state.coef)[0]
    assert (change <= 20 * problem.l1[0] * problem.inverse_scale[0] ** 2).all()

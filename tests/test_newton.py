"""The solvers of second order: their optima are those found by other means, their bounds hold."""

import tracemalloc
from contextlib import closing
from itertools import islice
from unittest import mock

import array_api_strict
import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from skmax import SoftmaxRegression, kernels
from skmax.backends import float_dtype_for, resolve
from skmax.data import source
from skmax.hyperparameters import Hyperparameters
from skmax.policy import Size, choose
from skmax.problem import MASKED_LOGIT, Problem, State
from skmax.solvers import quadratic as quadratic_models
from skmax.solvers.newton import Newton
from skmax.solvers.preconditioner import Moments, precondition
from skmax.solvers.proximal_newton import ProximalNewton
from skmax.solvers.quadratic import Blocks, Corrected, Diagonal, Exact, minimise


def pose(
    X, targets, C=1.0, l1_ratio=0.0, *, weight=None, columns=None, masked=None, smoothing=0.0,
    fit_intercept=True, preconditioned=True,
):  # fmt: skip
    """A stack of models, one for each of the values of C."""
    C = np.atleast_1d(np.asarray(C, dtype=float))
    k = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    weight = weight if weight is None or weight.ndim == 2 else weight[:, None]
    problem = Problem.pose(
        source(X, resolve(X, "auto"), float_dtype_for(X)),
        np.arange(X.shape[0]),
        targets,
        sample_weight=weight,
        score_weight=None,
        masked=np.zeros((len(C), k), dtype=bool) if masked is None else masked,
        C=C,
        l1_ratio=np.broadcast_to(l1_ratio, C.shape),
        label_smoothing=np.broadcast_to(smoothing, C.shape),
        fit_intercept=fit_intercept,
        columns=np.zeros(len(C), dtype=int) if columns is None else columns,
    )
    return precondition(problem, Moments.of(problem)) if preconditioned else problem


def solve(solver, problem, most=100, tol=1e-12, state=None):
    """Epochs of a single model until the bound is tight or nothing changes any more."""
    epochs = []
    with closing(solver.epochs(problem, state or State.start(problem))) as generator:
        for epoch in islice(generator, most):
            epochs.append(epoch)
            if epoch.gap[0] <= tol * epoch.loss[0] or epoch.stalled[0]:
                break
    return epochs


def soft(targets, k, smoothing=0.0, masked=None):
    """Target probabilities, smoothed over the known classes."""
    P = targets if targets.ndim == 2 else np.eye(k)[targets]
    known = np.ones(k) if masked is None else 1.0 - masked
    return (1 - smoothing) * P + smoothing * known / known.sum()


def objective(coef, intercept, X, P, weight, C, l1_ratio=0.0, known=None):
    """F of a row of weights per class, by the formula; two classes as they are posed."""
    X = X.toarray() if sparse.issparse(X) else np.asarray(X)
    known = np.ones(P.shape[1], dtype=bool) if known is None else known
    coef, intercept, P = np.asarray(coef)[known], np.asarray(intercept)[known], P[:, known]
    logits = X.astype(float) @ coef.T.astype(float) + intercept
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    double = 2 if known.sum() == 2 else 1
    penalty = double * (1 - l1_ratio) / 2 * np.sum(coef.astype(float) ** 2)
    penalty += l1_ratio * np.abs(coef.astype(float)).sum()
    return -(weight @ np.sum(P * log_p, axis=1)) / weight.sum() + penalty / (C * weight.sum())


def scipy_optimum(X, P, weight, C, l1_ratio=0.0, fit_intercept=True):
    """The least objective that L-BFGS-B finds, with W as its positive and its negative part."""
    k, d = P.shape[1], X.shape[1]
    scale = X.std(axis=0) + 1e-3 * np.abs(X).mean(axis=0)
    double = 2 if k == 2 else 1

    def value_and_gradient(flat):
        parts = flat[: 2 * k * d].reshape(2, k, d)
        W, b = parts[0] - parts[1], flat[2 * k * d :] * fit_intercept
        logits = X @ W.T + b
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        residual = weight[:, None] * (np.exp(log_p) - P)
        strength = 1 / C
        value = -np.sum(weight[:, None] * P * log_p)
        value += strength * (double * (1 - l1_ratio) / 2 * np.sum(W**2) + l1_ratio * parts.sum())
        by_W = residual.T @ X + strength * double * (1 - l1_ratio) * W
        by_parts = np.stack([by_W, -by_W]) + strength * l1_ratio
        gradient = np.append(by_parts, residual.sum(axis=0) * fit_intercept)
        return value / weight.sum(), gradient / weight.sum()

    units = np.append(np.tile(1 / scale, 2 * k), np.ones(k))
    found = minimize(
        lambda u: (lambda f, g: (f, g * units))(*value_and_gradient(u * units)),
        np.zeros(len(units)), jac=True, method="L-BFGS-B",
        bounds=[(0, None)] * (2 * k * d) + [(None, None)] * k,
        options={"maxiter": 20000, "maxfun": 40000, "maxcor": 40, "ftol": 1e-16, "gtol": 1e-11},
    )  # fmt: skip
    return found.fun


def make_data(k, n=150, d=5, seed=0):
    """Overlapping classes, on features of three scales that are not centred."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.resize([1, 10, 0.1], d) + np.resize([0, 5, 1], d)
    coef = rng.normal(size=(k, d)) / X.std(axis=0)
    y = np.argmax((X - X.mean(axis=0)) @ coef.T + rng.gumbel(size=(n, k)), axis=1)
    return X, y


# Newton


@pytest.mark.parametrize("preconditioned", [True, False])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("C", [0.01, 1, 100, np.inf])
@pytest.mark.parametrize("k", [2, 4])
def test_newton_reaches_the_optimum_of_logistic_regression(C, k, fit_intercept, preconditioned):
    X, y = make_data(k)
    X = np.column_stack([X, np.ones(len(X))]) if C == 1 else X
    reference = LogisticRegression(
        C=C, fit_intercept=fit_intercept, solver="newton-cholesky", tol=1e-12
    ).fit(X, y)
    problem = pose(X, y, C, fit_intercept=fit_intercept, preconditioned=preconditioned)
    *_, last = epochs = solve(Newton(), problem, tol=1e-13)
    assert len(epochs) <= 14
    assert abs(last.gap[0]) <= 1e-13
    coef, intercept = last.state.coef[0], last.state.intercept[0]
    if k == 2:
        np.testing.assert_allclose(coef[0], -coef[1])
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    else:
        theirs = reference.coef_ - reference.coef_.mean(axis=0)
        np.testing.assert_allclose(coef.sum(axis=0), 0, atol=1e-9 * np.abs(theirs).max())
    for ours, theirs in ((coef, reference.coef_), (intercept, reference.intercept_)):
        theirs = theirs - theirs.mean(axis=0) if k > 2 else theirs
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7 * np.abs(theirs).max())
    accuracy = reference.score(X, y)
    assert last.accuracy[0] == pytest.approx(accuracy)


@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer])
@pytest.mark.parametrize("C", [1.0, 100.0])
def test_newton_converges_quadratically(load, C):
    """To 1e-12 in ten iterations at most, the last gaining four digits and more."""
    X, y = load(return_X_y=True)
    epochs = solve(Newton(), pose(X, y, C), tol=0)
    F = np.array([epoch.loss[0] for epoch in epochs])
    assert (np.diff(F) <= 1e-14).all()
    gap = np.array([epoch.gap[0] for epoch in epochs])
    assert np.flatnonzero(gap <= 1e-12 * F)[0] < 12
    assert (F - F[-1] <= gap + 1e-15).all()
    true = (F - F[-1])[F - F[-1] > 1e-11]
    assert true[-1] <= 30 * true[-2] ** 1.5


@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer])
def test_a_small_fit_ends_with_the_step_that_reaches_tol(load):
    """The bound is known as soon as the objective is within tol, not an iteration later."""
    X, y = load(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    model = SoftmaxRegression(solver="newton").fit(X, y)
    F = np.array(model.loss_curve_)
    least = SoftmaxRegression(solver="newton", tol=1e-12).fit(X, y).loss_curve_[-1]
    assert model.n_iter_ == 1 + np.flatnonzero(F - least <= 1e-5 * least)[0]


@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer])
def test_without_a_penalty_newton_descends_steadily_on_separable_data(load):
    """Down to 1e-7, or for overlapping classes to a bound of 1e-4."""
    X, y = load(return_X_y=True)
    epochs = solve(Newton(), pose(StandardScaler().fit_transform(X), y, np.inf), tol=1e-4, most=40)
    F = np.array([epoch.loss[0] for epoch in epochs])
    assert (np.diff(F)[F[:-1] > 1e-9] < 0).all()
    assert F[min(20, len(F) - 1)] <= 1e-7 or epochs[-1].gap[0] <= 1e-4 * F[-1]


@st.composite
def posed(draw, l1_ratios=(0.0,), strengths=(0.03, 1.0, 30.0, np.inf)):
    """A problem, and what is needed to compute its objective."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, k = draw(st.integers(12, 60)), draw(st.integers(1, 5)), draw(st.integers(2, 4))
    X = rng.normal(size=(n, d)) * 10 ** rng.uniform(-2, 2, d) + rng.normal(size=d)
    y = np.append(np.arange(k), rng.integers(k, size=n - k))
    weight = rng.exponential(size=n) + 0.01 if draw(st.booleans()) else np.ones(n)
    masked = np.zeros(k, dtype=bool)
    if k > 2 and draw(st.booleans()):
        masked[rng.integers(k)] = True
        weight = np.where(masked[y], 0.0, weight)
    targets = y
    if draw(st.booleans()):
        targets = rng.dirichlet(np.ones(k), size=n) * ~masked
        targets = np.where(masked[y][:, None], np.eye(k)[y], targets)
        targets /= targets.sum(axis=1, keepdims=True)
    kind = draw(st.sampled_from(["plain", "plain", "collinear", "constant", "bytes", "single"]))
    if kind == "collinear":
        X = np.column_stack([X, X @ rng.normal(size=(d, 2))])
    elif kind == "constant":
        X = np.column_stack([X, np.full(n, 0.1)])
    elif kind == "bytes":
        X = np.clip(100 + 50 * rng.normal(size=(n, d)), 0, 255).astype(np.uint8)
    elif kind == "single":
        X = X.astype(np.float32)
    smoothing = draw(st.sampled_from([0.0, 0.0, 0.1]))
    C, l1_ratio = draw(st.sampled_from(strengths)), draw(st.sampled_from(l1_ratios))
    fit_intercept = draw(st.booleans())
    problem = pose(
        X, targets, C, l1_ratio, weight=weight, masked=masked[None], smoothing=smoothing,
        fit_intercept=fit_intercept, preconditioned=draw(st.booleans()),
    )  # fmt: skip
    P = soft(targets, k, smoothing, masked)
    return problem, X.astype(float), P[:, ~masked], weight, C, l1_ratio, ~masked


@settings(max_examples=150)
@given(posed())
def test_newton_on_any_problem(case):
    """The optimum of SciPy, steadily; bounds hold; what is reported is what the weights give."""
    problem, X, P, weight, C, _, known = case
    epochs = solve(Newton(proven=True), problem, most=40)
    F = np.array([epoch.loss[0] for epoch in epochs])
    gap = np.array([epoch.gap[0] for epoch in epochs])
    assert (np.diff(F) <= 1e-14 * F[:-1]).all()
    least = scipy_optimum(X, P, weight, C, fit_intercept=problem.fit_intercept)
    assert F[-1] <= least + 1e-7 * least + 1e-7
    digits = 1e-9 if problem.data.dtype == np.float64 else 1e-6  # weights are rounded
    assert (F - min(F[-1], least) <= gap + digits).all()
    if np.isfinite(C):
        assert gap[-1] <= 1e-9 * F[-1]
    state = epochs[-1].state
    assert (state.intercept[0][~known] == state.intercept.dtype.type(MASKED_LOGIT)).all()
    assert not state.coef[0][~known].any()
    shift = 0.0 if problem.data.shift is None else problem.data.shift
    weights = state.coef[0][known], state.intercept[0][known]
    given_by_weights = objective(*weights, X - shift, P, weight, C)
    assert given_by_weights == pytest.approx(F[-1], rel=1e3 * digits, abs=1e3 * digits)


def folds(n, k, m, rng):
    """Weights of m columns, each without some rows, the last without a class."""
    weight = rng.exponential(size=(n, m))
    weight[rng.random((n, m)) < 0.2] = 0
    return weight


@pytest.mark.parametrize("k", [2, 3])
def test_models_of_a_stack_are_what_each_is_alone(k):
    """They share nothing but the rows: weights, penalties, masks and ends are their own."""
    rng = np.random.default_rng(0)
    X, y = make_data(k)
    weight, columns = folds(len(X), k, 4, rng), np.array([3, 0, 1, 2])
    C, smoothing = np.array([0.1, np.inf, 10.0, 1.0]), np.array([0.0, 0.1, 0.0, 0.2])
    masked = np.zeros((4, k), dtype=bool)
    if k > 2:
        masked[2, 1] = True
        weight[y == 1, 1] = 0

    def problem(models):
        return pose(
            X, y, C[models], weight=weight, columns=columns[models], masked=masked[models],
            smoothing=smoothing[models],
        )  # fmt: skip

    ends = {}
    generator = Newton().epochs(problem(np.arange(4)), State.start(problem(np.arange(4))))
    epoch = next(generator)
    while True:
        done = (epoch.gap <= 1e-11) | epoch.stalled
        for place in np.flatnonzero(done):
            state = epoch.state
            ends[epoch.models[place]] = epoch.loss[place], state.coef[place], state.intercept[place]
        if done.all():
            break
        epoch = generator.send(done)
    for model in range(4):
        alone = solve(Newton(), problem(np.array([model])), tol=1e-13)[-1]
        value, coef, intercept = ends[model]
        assert value == pytest.approx(alone.loss[0], rel=1e-9)
        scale = np.abs(alone.state.coef[0]).max()
        np.testing.assert_allclose(coef, alone.state.coef[0], rtol=1e-5, atol=1e-6 * scale)
        np.testing.assert_allclose(intercept, alone.state.intercept[0], rtol=1e-5, atol=1e-5)


def test_models_of_two_classes_stay_when_others_have_left():
    """They go on as what they were: of three classes, one of which is not there."""
    X, y = make_data(3)
    masked = np.array([[False, False, False], [False, True, False]])
    weight = np.stack([np.ones(len(y)), (y != 1).astype(float)], axis=1)
    problem = pose(X, y, [0.01, 1e4], weight=weight, columns=np.array([0, 1]), masked=masked)
    generator = Newton().epochs(problem, State.start(problem))
    epoch = next(generator)
    epoch = generator.send(np.array([True, False]))
    while epoch.gap[0] > 1e-10 * epoch.loss[0] and not epoch.stalled[0]:
        epoch = next(generator)
    two = pose(X[y != 1], (y[y != 1] > 0).astype(int), 1e4)
    alone = solve(Newton(), two, tol=1e-11)[-1]
    assert epoch.models.tolist() == [1]
    assert epoch.loss[0] == pytest.approx(alone.loss[0], rel=1e-6)


def test_newton_goes_on_from_weights():
    X, y = make_data(3)
    problem = pose(X, y, 10.0)
    end = solve(Newton(), problem)[-1]
    coef, intercept = end.state.coef + 1.0, end.state.intercept - 2.0  # the loss does not see that
    again = solve(Newton(), problem, state=State.at(problem, coef, intercept), tol=1e-10)
    assert len(again) <= 2
    assert again[-1].loss[0] == pytest.approx(end.loss[0], rel=1e-13)


@pytest.mark.parametrize("k", [2, 3])
def test_sparse_rows_and_other_namespaces_reach_the_same_weights(k):
    X, y = make_data(k)
    X[np.abs(X) < 0.5] = 0
    expected = solve(Newton(), pose(X, y))[-1].state.coef
    found = [solve(Newton(), pose(sparse.csr_array(X), y))[-1].state.coef]
    with sklearn.config_context(array_api_dispatch=True):
        strict = solve(Newton(), pose(array_api_strict.asarray(X), y))[-1]
        found.append(np.asarray(strict.state.coef))
    for coef in found:
        np.testing.assert_allclose(coef, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("C", "fit_intercept"), [(1, False), (1e4, True)])
@pytest.mark.parametrize(
    ("kind", "k"),
    [
        ("plain", 3),
        ("weighted", 3),
        ("single", 2),
        ("sparse", 3),
        ("scales", 2),
        ("dependent", 2),
        ("nearly dependent", 2),
        ("far", 2),
        ("outlier", 3),
    ],
)
def test_of_more_features_than_rows_newton_sees_what_they_span(kind, C, k, fit_intercept):
    """The optimum of SciPy's and its weights, of no more unknowns than rows; the bound holds."""
    rng = np.random.default_rng(0)
    n, d, weight = 24, 60, np.ones(24)
    X, y = rng.normal(size=(n, d)) + rng.normal(size=d), np.arange(n) % k
    X[:, :5] += y[:, None]
    if kind == "scales":  # three kinds of units, one of them of few features
        X *= np.where(np.arange(d) < 7, 1e7, np.where(np.arange(d) < 34, 1, 1e-6))
    elif kind == "dependent":
        X = np.column_stack([X[:12], np.full(12, 0.1)])
        X, y = np.vstack([X, X]), np.append(y[:12], np.roll(y[:12], 1))
    elif kind == "nearly dependent":
        X = 1e3 * np.vstack([X[:12], X[:12] + 1e-6 * rng.normal(size=(12, d))])
        y = np.append(y[:12], (y[:12] + 1) % k)
    elif kind == "far":
        X += 1e5
    elif kind == "outlier":
        X[7] *= 1e6
        weight[7] = 0
    elif kind == "weighted":
        weight = rng.exponential(size=n) * (rng.random(n) < 0.8)
    elif kind == "single":
        X = X.astype(np.float32)
    elif kind == "sparse":
        X[rng.random(X.shape) < 0.8] = 0
    rows = sparse.csr_array(X) if kind == "sparse" else X
    solver, problem = (
        Newton(proven=True),
        pose(rows, y, C, weight=weight, fit_intercept=fit_intercept),
    )
    epochs = solve(solver, problem, most=60)
    last, X = epochs[-1], X.astype(float)
    assert solver._table.Z.shape[0] <= 3 * n + 1
    digits = 1e-6 if kind == "single" else 1e-9
    used = weight > 0
    of_rows = X[used], np.eye(k)[y[used]], weight[used]
    least = scipy_optimum(*of_rows, C, fit_intercept=fit_intercept)
    F = np.array([epoch.loss[0] for epoch in epochs])
    assert F[-1] <= least + 1e-7 * least
    gap = np.array([epoch.gap[0] for epoch in epochs])
    assert (F - min(F[-1], least) <= gap + digits).all()
    assert gap[-1] <= 1e-8 * F[-1] + digits
    shift = 0.0 if problem.data.shift is None else problem.data.shift
    state = last.state
    given_by_weights = objective(
        state.coef[0], state.intercept[0], X - shift, np.eye(k)[y], weight, C
    )
    assert given_by_weights == pytest.approx(F[-1], rel=digits, abs=digits * least)


def test_far_features_of_small_deviation_and_more_features_than_rows():
    """An offset of a million deviations leaves seven digits; 200 features for 60 rows."""
    X, y = make_data(3)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    near, far = (solve(Newton(), pose(A, y))[-1] for A in (Z, Z + 1e6))
    assert far.loss[0] == pytest.approx(near.loss[0], rel=1e-7)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 200)), np.arange(60) % 2
    for C in (1.0, np.inf):
        end = solve(Newton(), pose(X, y, C), most=40)[-1]
        assert end.gap[0] <= 1e-10 or end.loss[0] <= 1e-7


@pytest.fixture(scope="module")
def _many_threads():
    """Threads are worth it however little there is to do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skmax.kernels.newton.WORTH_A_THREAD", 1)
        patch.setattr("skmax.kernels.newton._OF_AN_ENTRY", 1)
        patch.setattr("skmax.kernels.newton.n_threads", lambda: 3)
        yield


@pytest.mark.usefixtures("_many_threads")
@settings(max_examples=80)
@given(
    *(st.integers(*ends) for ends in [(0, 2**32 - 1), (12, 1500), (1, 70), (2, 9), (1, 4)]),
    *(st.booleans() for _ in range(5)),
)
def test_newton_descends_on_the_cpu_as_the_reference_does(
    seed, n, d, k, m, is_soft, is_weighted, in_a_row, fit_intercept, smooth
):
    """Objectives, gradients, Hessians, steps, and what a step foresees, to rounding errors."""
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, d)), np.append(np.arange(k), rng.integers(k, size=n))[:n]
    masked = np.zeros((m, k), dtype=bool)
    weight, columns = folds(n, k, m, rng) if is_weighted else None, np.arange(m)
    if is_weighted and in_a_row:  # those that are held out, which may be whole tiles
        weight[n // 3 :, 0] = 0
        weight[: n // 2, 1:2] = 0
    if k > 2 and is_weighted:
        masked[rng.integers(m), rng.integers(k)] = True
        weight[:k] += 1
        weight = np.where(masked[:, y].T, 0, weight)
    targets = rng.dirichlet(np.ones(k), size=n) if is_soft and not masked.any() else y
    problem = pose(
        X, targets, 10 ** rng.uniform(-2, 2, m), weight=weight, masked=masked,
        columns=columns if is_weighted else None, smoothing=0.1 * smooth,
        fit_intercept=fit_intercept,
    )  # fmt: skip
    compiled = Newton().begin(problem, State.start(problem))._descent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skmax.kernels.newton_descent", lambda: None)
        expected = Newton().begin(problem, State.start(problem))._descent
    assert type(compiled) is not type(expected)
    V = rng.normal(size=compiled.V.shape) * 2 / np.sqrt(d)
    for descent in (compiled, expected):
        descent.go_to(V.copy())

    def close(found, known, rtol=1e-9):
        scale = np.abs(known).max(initial=1e-3)
        np.testing.assert_allclose(found, known, rtol=rtol, atol=rtol * scale)

    def same():
        for name in ("V", "value", "loss", "accuracy", "gradient", "of_loss"):
            close(getattr(compiled, name), getattr(expected, name))
        for one, other in zip(compiled.at(V / 2), expected.at(V / 2), strict=True):
            close(one, other)

    same()
    for exact, alike in [(True, False), (False, False), (True, True), (False, True)]:
        H, known = (each.hessian(exact=exact, alike=alike) for each in (compiled, expected))
        close(np.triu(H), np.triu(known), 1e-11 if exact else 1e-5)
    step = rng.normal(size=V.shape) + 3 * expected.gradient
    promised = np.sum(step * expected.gradient, axis=(1, 2))
    found = [each.go(step, promised, foresee=True) for each in (compiled, expected)]
    np.testing.assert_array_equal(*found)
    for one, other in zip(compiled.foreseen, expected.foreseen, strict=True):
        close(one, other)
    same()


@settings(max_examples=60)
@given(*(st.integers(*ends) for ends in [(0, 2**32 - 1), (1, 700), (1, 70), (1, 8)]))
def test_a_hessian_on_the_cpu_is_that_of_the_cross_entropy(seed, n, p, k):
    """Of all classes, or one row of weights for two."""
    if (run := kernels.hessian()) is None:
        pytest.skip("no compiled core")
    rng = np.random.default_rng(seed)
    X, weight = rng.normal(size=(n, p)), rng.uniform(size=n) * rng.integers(0, 2, n)
    P = rng.dirichlet(np.ones(max(k, 2)), size=n).T[:k]
    between = np.eye(k)[:, :, None] * P - P[:, None] * P
    expected = np.einsum("abi,ip,iq->apbq", between * weight, X, X).reshape(k * p, k * p)
    np.testing.assert_allclose(run(X, P, weight), np.triu(expected), rtol=1e-10, atol=1e-12 * n)


# Proximal Newton


@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
@pytest.mark.parametrize("C", [0.05, 1, 20])
@pytest.mark.parametrize("k", [2, 3])
def test_proximal_newton_reaches_the_optimum_of_saga_and_its_zeros(C, k, l1_ratio):
    X, y = make_data(k, n=120)
    X = StandardScaler().fit_transform(X)
    reference = LogisticRegression(
        C=C, l1_ratio=l1_ratio, solver="saga", tol=1e-12, max_iter=100_000, random_state=0
    ).fit(X, y)
    last = solve(ProximalNewton(), pose(X, y, C, l1_ratio), tol=1e-13)[-1]
    coef = last.state.coef[0]
    if k == 2:
        np.testing.assert_array_equal(coef[0], -coef[1])
        coef = coef[1:] - coef[:1]
    scale = np.abs(reference.coef_).max()
    np.testing.assert_array_equal(coef == 0, reference.coef_ == 0)
    np.testing.assert_allclose(coef, reference.coef_, rtol=0, atol=1e-5 * scale)
    assert last.gap[0] <= 1e-9 * last.loss[0]


# Least objectives: at each, the bound meets the objective to 1e-6 or less.
CERTIFIED = {
    "digits, C=10, no intercept": (load_digits, False, 10.0, False, 0.00619551, 25),
    "scaled digits, C=1000": (load_digits, True, 1000.0, True, 0.00043349, 25),
    "scaled breast cancer, C=100": (load_breast_cancer, True, 100.0, True, 0.02825170, 20),
    "breast cancer, C=10": (load_breast_cancer, False, 10.0, True, 0.07029502, 20),
    "scaled wine, C=10": (load_wine, True, 10.0, True, 0.02089109, 15),
    "wine, C=100": (load_wine, False, 100.0, True, 0.00312111, 25),
    "iris, C=1": (load_iris, False, 1.0, True, 0.17338834, 15),
}


@pytest.mark.parametrize("name", CERTIFIED)
def test_proximal_newton_proves_optima_in_few_iterations(name):
    """To 1e-4, and its bound is tight soon after."""
    load, scaled, C, fit_intercept, least, most = CERTIFIED[name]
    X, y = load(return_X_y=True)
    X = StandardScaler().fit_transform(X) if scaled else X
    problem = pose(X, y, C, 1.0, fit_intercept=fit_intercept)
    epochs = solve(ProximalNewton(proven=True), problem, tol=1e-4)
    assert len(epochs) <= most
    assert epochs[-1].gap[0] <= 1e-4 * epochs[-1].loss[0]
    assert least * (1 - 1e-5) <= epochs[-1].loss[0] <= least * (1 + 1e-4)


@pytest.mark.parametrize("way", ["at once", "in pieces", "by pairs"])
@settings(max_examples=40)
@given(posed(l1_ratios=(0.4, 1.0), strengths=(0.03, 1.0, 30.0)))
def test_proximal_newton_on_any_problem(way, case):
    """The optimum of SciPy, or better; bounds hold; the loss is what the weights give."""
    problem, X, P, weight, C, l1_ratio, known = case
    with pytest.MonkeyPatch.context() as patch:
        if way == "by pairs":
            patch.setattr("skmax.kernels.hessian", lambda: None)
        if way == "in pieces":
            patch.setattr("skmax.solvers.proximal_newton._VALUES_AT_ONCE", 64)
        epochs = solve(ProximalNewton(proven=True), problem, most=60)
    F = np.array([epoch.loss[0] for epoch in epochs])
    gap = np.array([epoch.gap[0] for epoch in epochs])
    least = scipy_optimum(X, P, weight, C, l1_ratio, problem.fit_intercept)
    digits = 1e-9 if problem.data.dtype == np.float64 else 1e-6  # weights are rounded
    assert F[-1] <= least + 1e-6 * least
    assert (F - min(F[-1], least) <= gap + digits).all()
    assert gap[-1] <= 1e-5 * F[-1]
    state = epochs[-1].state
    assert (state.intercept[0][~known] == state.intercept.dtype.type(MASKED_LOGIT)).all()
    shift = 0.0 if problem.data.shift is None else problem.data.shift
    weights = state.coef[0][known], state.intercept[0][known]
    given_by_weights = objective(*weights, X - shift, P, weight, C, l1_ratio)
    assert given_by_weights == pytest.approx(F[-1], rel=1e3 * digits, abs=1e3 * digits)


@pytest.mark.parametrize("preconditioned", [True, False])
@pytest.mark.parametrize("k", [2, 3])
def test_models_of_a_stack_under_l1_are_what_each_is_alone(k, preconditioned):
    rng = np.random.default_rng(0)
    X, y = make_data(k)
    weight, columns = folds(len(X), k, 4, rng), np.array([3, 0, 1, 2])
    C, l1_ratio = np.array([0.1, 3.0, 10.0, 1.0]), np.array([1.0, 0.3, 1.0, 0.0])
    masked = np.zeros((4, k), dtype=bool)
    if k > 2:
        masked[2, 1] = True
        weight[y == 1, 1] = 0

    def problem(models):
        return pose(
            X, y, C[models], l1_ratio[models], weight=weight, columns=columns[models],
            masked=masked[models], preconditioned=preconditioned,
        )  # fmt: skip

    ends = {}
    generator = ProximalNewton().epochs(problem(np.arange(4)), State.start(problem(np.arange(4))))
    epoch = next(generator)
    while True:
        done = (epoch.gap <= 1e-8) | epoch.stalled
        ends |= {m: epoch.loss[place] for place, m in enumerate(epoch.models) if done[place]}
        if done.all():
            break
        epoch = generator.send(done)
    for model in range(4):
        alone = solve(ProximalNewton(), problem(np.array([model])), tol=1e-8)[-1]
        assert ends[model] == pytest.approx(alone.loss[0], rel=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_under_l1_sparse_rows_and_other_namespaces_reach_the_same_weights(k):
    X, y = make_data(k)
    X[np.abs(X) < 0.5] = 0
    expected = solve(ProximalNewton(), pose(X, y, 1.0, 0.9), tol=1e-10)[-1].state.coef
    found = [solve(ProximalNewton(), pose(sparse.csr_array(X), y, 1.0, 0.9), tol=1e-10)[-1]]
    with sklearn.config_context(array_api_dispatch=True):
        strict = pose(array_api_strict.asarray(X), y, 1.0, 0.9)
        found.append(solve(ProximalNewton(), strict, tol=1e-10)[-1])
    for end in found:
        np.testing.assert_allclose(np.asarray(end.state.coef), expected, rtol=1e-5, atol=1e-7)


def test_models_that_are_too_large_for_an_exact_hessian():
    """Blocks, and for sparse rows a diagonal, corrected by past steps, reach the same optimum."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 60)) @ rng.normal(size=(60, 60)) * (rng.random((400, 60)) < 0.5)
    y = np.argmax(X @ rng.normal(size=(60, 4)) + 10 * rng.gumbel(size=(400, 4)), axis=1)
    exact = solve(ProximalNewton(proven=True), pose(X, y, 0.1, 1.0), tol=1e-8)[-1]
    for rows, worth in ((X, 1e9), (X, 0.0), (sparse.csr_array(X), 0.0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("skmax.solvers.proximal_newton._MOST_EXACT", 0)
            patch.setattr("skmax.solvers.proximal_newton._BLOCKS_WORTH", worth)
            end = solve(ProximalNewton(proven=True), pose(rows, y, 0.1, 1.0), tol=1e-5, most=300)[
                -1
            ]
        assert end.gap[0] <= 1e-5 * end.loss[0]
        assert exact.loss[0] <= end.loss[0] * (1 + 1e-8) <= exact.loss[0] * (1 + 2e-5)


def test_proximal_newton_goes_on_from_weights():
    X, y = make_data(3)
    problem = pose(X, y, 10.0, 1.0)
    end = solve(ProximalNewton(), problem, tol=1e-9)[-1]
    again = solve(ProximalNewton(), problem, state=end.state, tol=1e-8)
    assert len(again) <= 2
    near = pose(X, y, 12.0, 1.0)
    assert len(solve(ProximalNewton(), near, state=end.state, tol=1e-8)) <= len(
        solve(ProximalNewton(), near, tol=1e-8)
    )


def test_no_weight_survives_a_strong_penalty():
    """Then the intercepts are the logarithms of the shares, at the first step."""
    X, y = make_data(3)
    end = solve(ProximalNewton(proven=True), pose(X, y, 1e-6, 1.0), tol=1e-10)[-1]
    assert not end.state.coef.any()
    shares = np.bincount(y) / len(y)
    assert end.loss[0] == pytest.approx(-np.sum(shares * np.log(shares)), rel=1e-12)


# The quadratic model


@st.composite
def quadratic(draw):
    """A matrix, the gradient at w, and thresholds, some of them zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    q, rank = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    A = rng.normal(size=(rank, q)) * 10 ** rng.uniform(-1, 1, q)
    t = rng.exponential(size=q) * (rng.random(q) < 0.8)
    B = A.T @ A + 1e-8 * np.diag(np.sum(A * A, axis=0) + 1e-3)
    w = rng.normal(size=q) * (rng.random(q) < 0.5)
    return B, w, B @ rng.normal(size=q) + 0.5 * t * rng.uniform(-1, 1, q), t


@pytest.mark.parametrize("way", ["coordinates", "momentum", "underestimated", "few sweeps"])
@given(quadratic())
def test_the_minimum_of_a_quadratic_and_l1(way, case):
    """It is no worse than what L-BFGS-B finds, up to a share of what was to gain.

    Also where a few products tell too little of the largest eigenvalue.
    """
    B, w, g, t = case
    q = len(w)

    def smooth(x):
        return g @ (x - w) + (x - w) @ B @ (x - w) / 2

    def of_parts(parts):
        x = parts[:q] - parts[q:]
        slope = g + B @ (x - w)
        return smooth(x) + t @ (parts[:q] + parts[q:]), np.append(slope + t, t - slope)

    start = np.append(np.maximum(w, 0), np.maximum(-w, 0))
    least = minimize(
        of_parts, start, jac=True, method="L-BFGS-B",
        bounds=[(0, None) if penalised else (None, None) for penalised in np.tile(t > 0, 2)],
    ).fun  # fmt: skip
    largest, other = (
        quadratic_models._largest,
        {"_PER_DESCENT": 1 if way == "few sweeps" else 10**7},
    )
    if way in ("momentum", "underestimated"):
        share = 0.1 if way == "underestimated" else 1.0
        no_core = mock.Mock(**{"serves.return_value": False})
        other = {"coordinate_descent": no_core, "_largest": lambda *a: share * largest(*a)}
    with mock.patch.multiple(quadratic_models, **other):
        x, before = minimise(Exact(B), w, g, t, 1e-6), t @ np.abs(w)
    assert smooth(x) + t @ np.abs(x) <= least + 1e-3 * (before - least) + 1e-9


def test_past_steps_correct_a_first_guess_like_bfgs():
    """Products, diagonal and solutions are those of the matrix that the updates make."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(20, 8))
    H, steps = A.T @ A, rng.normal(size=(8, 3))
    changes = H @ steps
    for guess in (Diagonal(H.diagonal()), Blocks([H[:3, :3], H[3:, 3:]])):
        model = Corrected(guess, steps, changes)
        scale = (steps[:, -1] @ changes[:, -1]) / (steps[:, -1] @ guess.times(steps)[:, -1])
        B = scale * guess.times(np.eye(8))
        for s, y in zip(steps.T, changes.T, strict=True):
            B += np.outer(y, y) / (s @ y) - np.outer(B @ s, B @ s) / (s @ B @ s)
        np.testing.assert_allclose(model.times(np.eye(8)), B, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(model.diagonal(), B.diagonal(), rtol=1e-8)
        free = np.array([True, False, True, True, False, False, True, True])
        r = rng.normal(size=5)
        expected = np.linalg.solve(B[np.ix_(free, free)], r)
        np.testing.assert_allclose(model.solver(free)(r), expected, rtol=1e-6)


# What is worth while


@pytest.mark.parametrize(
    ("n", "d", "k", "l1_ratio", "solver"),
    [
        (150, 4, 3, 0, "newton"),
        (3000, 30, 3, 0, "newton"),
        (20_000, 30, 3, 0, "lbfgs"),
        (100, 2000, 3, 0, "newton"),
        (200, 2000, 20, 0, "lbfgs"),
        (1797, 64, 10, 0, "lbfgs"),
        (60_000, 784, 10, 0, "sgd"),
        (1797, 64, 10, 1, "newton"),
        (60_000, 784, 10, 1, "sgd"),
    ],
)
def test_the_defaults_choose_by_the_size_of_the_data(n, d, k, l1_ratio, solver):
    assert choose(Hyperparameters(l1_ratio=l1_ratio), Size(n, d, k, d)).solver == solver


@pytest.mark.parametrize("offset", [0.0, 30.0, -1e5])
def test_rows_of_X_are_read_as_they_are_unless_they_are_far_from_zero(offset):
    """Then digits would be lost; weights are those for features around zero either way."""
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(300, 7)), rng.integers(3, size=300)
    X[:, 0] += y
    model = SoftmaxRegression(solver="newton", tol=1e-12).fit(X + offset, y)
    expected = LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(X, y)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-8)
    there = model.intercept_ + offset * model.coef_.sum(axis=1)
    np.testing.assert_allclose(there, expected.intercept_ - expected.intercept_.mean(), atol=1e-7)


def test_newton_makes_no_copy_of_X():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20_000, 50)), rng.integers(2, size=20_000)
    model = SoftmaxRegression(solver="newton")
    tracemalloc.start()
    try:
        model.fit(X, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < X.nbytes / 2

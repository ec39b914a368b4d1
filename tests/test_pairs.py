"""What L-BFGS is made of: its pairs, its first guesses, and its bounds."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_wine

import skmax.solvers.run
from skmax import SoftmaxRegression
from skmax.backends.numpy import NumpyBackend
from skmax.duality import Dual
from skmax.problem import Problem, State
from skmax.solvers.coordinates import Coordinates
from skmax.solvers.curvature import Blocks, Shared, _difference_of_classes
from skmax.solvers.pairs import Pairs, PairsThere


def two_loops(gradient, pairs, first_guess):
    """Nocedal and Wright, algorithm 7.4, of one model."""
    q, shares = gradient.copy(), []
    for step, change in reversed(pairs):
        shares.append(np.sum(step * q) / np.sum(step * change))
        q = q - shares[-1] * change
    result = first_guess(q)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        result = result + (share - np.sum(change * result) / np.sum(step * change)) * step
    return result


def added(pairs, step, change, gradient):
    """The product of a pair that leads from somewhere to a gradient."""
    before = SimpleNamespace(weights=0 * step, gradient=gradient - change)
    _, product = pairs.add(before, SimpleNamespace(weights=step, gradient=gradient))
    return product


class Guess:
    """A first guess that is what it is."""

    change = None

    def __init__(self, m, units):
        self.scale, self.units = np.ones(m), units

    def __call__(self, gradient):
        return gradient / self.units

    unscaled = __call__


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 9), st.integers(1, 5))
def test_the_direction_is_that_of_the_two_loops(seed, m, n_pairs, most):
    """Pairs without convexity count for nothing; of many, the last ones stay."""
    rng = np.random.default_rng(seed)
    shape, scale = (m, 2, 4), rng.uniform(0.5, 2, size=(1, 2, 4))
    pairs, kept = Pairs(NumpyBackend(), shape, np.dtype(float), most), [[] for _ in range(m)]
    for _ in range(n_pairs):
        step = rng.normal(size=shape)
        change = 2 * step + 0.3 * rng.normal(size=shape)
        change[rng.random(m) < 0.2] *= -1
        gradient = rng.normal(size=shape)
        product = added(pairs, step, change, gradient)
        np.testing.assert_allclose(product, np.sum(step * change, axis=(1, 2)))
        for j in range(m):
            kept[j].append((step[j], change[j]) if product[j] > 0 else None)
    if not n_pairs:
        gradient = rng.normal(size=shape)
    direction, slope = pairs.direction(gradient, Guess(m, scale))
    np.testing.assert_allclose(slope, np.sum(gradient * direction, axis=(1, 2)))
    for j in range(m):
        mine = [pair for pair in kept[j][-most:] if pair is not None]
        expected = two_loops(gradient[j], mine, lambda g: g / scale[0])
        np.testing.assert_allclose(-direction[j], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", [Pairs, PairsThere])
def test_a_step_that_is_too_short_to_be_kept_says_nothing(kind):
    """Its product with the change is positive, and that of what single precision keeps is zero."""
    rng, shape = np.random.default_rng(0), (2, 3, 4)
    pairs = kind(NumpyBackend(), shape, np.dtype("f4"), 3)
    step, gradient = rng.normal(size=(2, *shape))
    change = 2 * step
    step[0] *= 1e-60
    assert (added(pairs, step, change, gradient) > 0).all()
    direction, _ = pairs.direction(gradient, Guess(2, np.full((1, 3, 4), 4.0, "f4")))
    np.testing.assert_allclose(direction[0], -gradient[0] / 4, rtol=1e-6)
    expected = two_loops(gradient[1], [(step[1], change[1])], lambda g: g / 4)
    np.testing.assert_allclose(direction[1], -expected, rtol=1e-4)


def posed(monkeypatch, X, y, **parameters):
    """The problem of a fit, in the preconditioner's coordinates."""
    seen = []
    original = skmax.solvers.run.LBFGS.epochs

    def epochs(self, problem, state):
        seen.append(problem)
        return original(self, problem, state)

    with monkeypatch.context() as patch:
        patch.setattr(skmax.solvers.run.LBFGS, "epochs", epochs)
        SoftmaxRegression(solver="lbfgs", **parameters).fit(X, y)
    return seen[0]


def hessian_blocks(problem: Problem, state: State):
    """Those with a = b, times k / (k - 1), by the formula."""
    X = problem.data.X.astype(float)
    Z = (X - problem.mean[0, 0]) * problem.inverse_scale[0, 0]
    Z = np.column_stack([Z, np.ones(len(Z))])
    logits = X @ state.coef[0].T + state.intercept[0]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    k = p.shape[1]
    weight = p * (1 - p) * k / (k - 1)
    l2 = np.append(problem.l2[0] * problem.inverse_scale[0, 0] ** 2, 0.0)
    return Z, weight, l2


@pytest.mark.parametrize("is_wide", [True, False])
def test_blocks_are_the_hessian_s(monkeypatch, is_wide):
    """To a sixth: rows that hardly matter are left out, and weak features get some more."""
    monkeypatch.setattr(NumpyBackend, "is_wide", is_wide)
    X, y = load_wine(return_X_y=True)
    problem = posed(monkeypatch, X, y, C=0.1)
    rng = np.random.default_rng(0)
    state = State.start(problem)
    state = replace(state, coef=rng.normal(size=state.coef.shape) * problem.inverse_scale / 4)
    Z, weight, l2 = hessian_blocks(problem, state)
    gradient = rng.normal(size=(1, 3, 14))
    solved = Blocks.of(problem, state, problem.order)(gradient[None])[0]
    for a in range(3):
        H = (Z * weight[:, a, None]).T @ Z / len(Z) + np.diag(l2)
        error = np.linalg.norm(H @ solved[0, a] - gradient[0, a])
        assert error < np.linalg.norm(gradient[0, a]) / 6


@pytest.mark.parametrize("is_wide", [True, False])
def test_classes_share_second_moments_and_have_curvatures_of_their_own(monkeypatch, is_wide):
    """Where those are far apart, each is exact; where they are close, within their ratio."""
    monkeypatch.setattr(NumpyBackend, "is_wide", is_wide)
    X, y = load_wine(return_X_y=True)
    y = np.where(np.arange(len(y)) % 9, 0, y)  # two rare classes
    problem = posed(monkeypatch, X, y, C=0.01)
    state = replace(
        State.start(problem), intercept=np.log(np.bincount(y) / len(y))[None] * np.ones((1, 1))
    )
    Z, weight, l2 = hessian_blocks(problem, state)
    gradient = np.random.default_rng(0).normal(size=(1, 3, 14))
    solved = Shared.of(problem, state, problem.order)(gradient[None])[0]
    for a in range(3):
        H = weight[:, a].mean() * Z.T @ Z / len(Z) + np.diag(l2)
        exact = np.linalg.solve(H, gradient[0, a])
        assert np.linalg.norm(solved[0, a] - exact) < 0.3 * np.linalg.norm(exact)


@pytest.mark.parametrize("confident", [False, True])
def test_how_much_the_matrices_of_classes_differ(monkeypatch, confident):
    """The shares of rows that count, by definition; the spread, from all pairs of rows."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 60)
    X = rng.normal(size=(180, 6))
    X[:, :3] *= np.where(y == 0, 4, 1)[:, None]  # the first class is another cloud
    problem = posed(monkeypatch, X, y)
    state, rng = State.start(problem), np.random.default_rng(1)
    if confident:
        coef = rng.normal(size=state.coef.shape) * problem.inverse_scale
        coef[:, :1] = 0
        state = replace(state, coef=coef, intercept=np.array([[3.0, 0, 0]]))
    Z, weight, _ = hessian_blocks(problem, state)
    Z, spreads = Z[:, :-1], []
    for h in (*weight.T, np.ones(180)):
        pairs = np.outer(h, h) - np.diag(h * h)
        square = np.trace(sum(
            pairs[i, j] * np.outer(Z[i], Z[i]) @ np.outer(Z[j], Z[j])
            for i in range(180) for j in range(180)
        )) / pairs.sum()  # fmt: skip
        spreads.append(square / np.average(np.sum(Z**2, axis=1), weights=h) ** 2)
    evenness, promise, heavy = _difference_of_classes(problem, state, rng)
    share = np.median(weight.mean(axis=0) ** 2 / np.mean(weight**2, axis=0))
    assert evenness == pytest.approx(share, rel=1e-6)
    assert promise == pytest.approx(np.median(spreads[:3]) / spreads[3] - 1, rel=1e-6, abs=1e-9)
    assert (abs(promise) > 0.01) == confident
    assert heavy == pytest.approx(np.mean(weight > 0.2 * weight.mean(axis=0)), abs=1e-9)


@pytest.mark.parametrize("kind", [Shared, Blocks])
def test_a_guess_is_the_same_for_all_models_at_once(monkeypatch, kind):
    """Also for some of them, and for several gradients."""
    rng = np.random.default_rng(0)
    X, y = load_wine(return_X_y=True)
    one = posed(monkeypatch, X, np.where(np.arange(len(y)) % 9, 0, y))
    weight = rng.integers(0, 2, size=(len(y), 3)) + 0.5
    problem = replace(
        one.select(np.zeros(3, dtype=int)), sample_weight=weight, columns=np.arange(3)
    )
    state = State.start(problem)
    gradients, results = rng.normal(size=(3, 2, 3, 14)), []
    for is_wide in (False, True):
        monkeypatch.setattr(NumpyBackend, "is_wide", is_wide)
        guess = kind.of(problem, state, problem.order)
        some = guess.select(np.array([2, 0]))
        results.append([guess(gradients), guess(gradients[:, :1]), some(gradients[[2, 0]])])
        np.testing.assert_allclose(results[-1][2], results[-1][0][[2, 0]])
    for here, there in zip(*results, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-6)


@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("C", [1e-3, 1, 1e6])
def test_all_ways_to_the_bounds_agree(monkeypatch, C, fit_intercept, is_wide):
    """From inner products, computed here or there, and from vectors."""
    monkeypatch.setattr(NumpyBackend, "is_wide", is_wide)
    X, y = load_wine(return_X_y=True)
    problem = posed(monkeypatch, X, y, C=C, fit_intercept=fit_intercept)
    space, dual = Coordinates(problem), Dual(problem)
    rng = np.random.default_rng(0)
    for scale in (0.01, 1, 10):
        weights = scale * rng.normal(size=(1, 3, 14))
        weights[..., -1] *= fit_intercept
        point = space.evaluate(weights)
        of_loss = point.gradient.copy()
        of_loss[..., :-1] -= dual.l2 * weights[..., :-1]
        proven, nearby = dual.bounds(point.loss, weights, point.gradient)
        here = point.loss, weights, of_loss
        np.testing.assert_allclose(proven, dual.bound(*here), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(nearby, dual.bound_nearby(*here), rtol=1e-9, atol=1e-9)

"""The kernels of L-BFGS: against the reference, emulated on the CPU and on a device."""

from dataclasses import replace
from unittest import mock

import emulated_cupy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernels import make_case
from test_pairs import Guess

from skmax.backends.cupy import CupyBackend
from skmax.duality import Dual
from skmax.kernels import descent
from skmax.solvers import curvature
from skmax.solvers.coordinates import Coordinates
from skmax.solvers.pairs import Pairs, PairsThere

EXACT = {np.float64: 1e-9, np.float32: 1e-4}
CASES = st.fixed_dictionaries(
    {
        "m": st.integers(1, 3),
        "k": st.sampled_from([2, 3, 5, 9]),
        "d": st.sampled_from([1, 4, 37]),
        "dtype": st.sampled_from([np.float32, np.float64]),
        "rare": st.sets(st.sampled_from(["weights", "masked", "own columns", "lasso", "plain"])),
    }
)
emulated_alone = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def posed(seed, m, k, d, dtype, rare):
    """A problem on the device, and weights in its coordinates."""
    rng = np.random.default_rng(seed)
    shape = {"m": m, "k": k, "n": 60, "d": d, "dtype": dtype, "batch": 20}
    of_data = tuple(rare & {"weights", "masked", "own columns"})
    problem, _, _ = make_case(CupyBackend(), seed, **shape, rare=of_data)
    units, mean = rng.uniform(0.5, 2, (m, 1, d)), rng.normal(size=(m, 1, d))
    moved = problem.backend.asarray
    plain = "plain" in rare
    problem = replace(
        problem,
        order=np.arange(60),
        l2=rng.uniform(0.1, 1, m),
        l1=rng.uniform(0, 1, m) * ("lasso" in rare),
        inverse_scale=None if plain else moved(units, problem.data.dtype),
        mean=None if plain or not problem.fit_intercept else moved(mean, problem.data.dtype),
    )
    weights = 0.3 * rng.normal(size=(m, k, d + 1))
    weights[..., -1][problem.masked] = -1e30
    return problem, moved(weights), rng


@pytest.fixture
def reference():
    """A context in which no kernel of these serves."""
    return lambda: mock.patch.object(descent, "serves", return_value=False)


@emulated_alone
@given(st.integers(0, 2**31 - 1), CASES)
def test_points_equal_the_reference(cuda, reference, seed, case):
    emulated_cupy.Kernel.seed = seed
    problem, weights, _ = posed(seed, **case)
    to_numpy = problem.backend.to_numpy
    found = Coordinates(problem).evaluate(weights)
    with reference():
        expected = Coordinates(problem).evaluate(weights)
    tolerance = {"rtol": EXACT[case["dtype"]], "atol": EXACT[case["dtype"]]}
    for name in ("value", "loss", "accuracy"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), **tolerance)
    np.testing.assert_allclose(*(to_numpy(p.gradient) for p in (found, expected)), **tolerance)
    for name in ("coef", "intercept"):
        both = (to_numpy(getattr(point.state, name)) for point in (found, expected))
        np.testing.assert_allclose(*both, **tolerance)


@emulated_alone
@given(st.integers(0, 2**31 - 1), CASES, st.integers(1, 2))
def test_the_mean_over_classes_is_that_of_the_reference(cuda, reference, seed, case, r):
    emulated_cupy.Kernel.seed = seed
    problem, weights, rng = posed(seed, **{**case, "rare": case["rare"] - {"lasso"}})
    backend = problem.backend
    for shape in (weights.shape, (len(weights), r, *weights.shape[1:])):
        values = rng.normal(size=shape).astype(case["dtype"])
        found = backend.to_numpy(Coordinates(problem).centered(backend.asarray(values)))
        for i in range(r if len(shape) == 4 else 1):
            part = values[:, i] if len(shape) == 4 else values
            with reference():
                expected = Coordinates(problem).centered(backend.asarray(part.copy()))
            mine = found[:, i] if len(shape) == 4 else found
            np.testing.assert_allclose(mine, backend.to_numpy(expected), atol=1e-6)


@emulated_alone
@given(st.integers(0, 2**31 - 1), CASES)
def test_bounds_equal_the_reference(cuda, reference, seed, case):
    emulated_cupy.Kernel.seed = seed
    problem, weights, _ = posed(seed, **{**case, "rare": case["rare"] - {"lasso"}})
    point = Coordinates(problem).evaluate(weights)
    here = point.loss, weights, point.gradient
    some = np.array([problem.n_models - 1, 0])
    dual = Dual(problem)
    found = dual.bounds(*here)
    of_some = dual.select(some).bounds(
        point.loss[some], *(problem.backend.take(array, some) for array in here[1:])
    )
    with reference():
        expected = Dual(problem).bounds(*here)
    for i in range(2):
        np.testing.assert_allclose(found[i], expected[i], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(of_some[i], found[i][some])


@emulated_alone
@given(st.integers(0, 2**31 - 1), CASES, st.booleans())
def test_curvatures_equal_the_reference(cuda, reference, seed, case, in_order):
    emulated_cupy.Kernel.seed = seed
    problem, weights, rng = posed(seed, **case)
    state, backend = Coordinates(problem).state(weights), problem.backend
    index = slice(10, 40) if in_order else backend.asarray(rng.permutation(60)[:20])
    X = problem.data.rows(index)
    found = curvature._weights(problem, state, X, index)
    with reference():
        expected = curvature._weights(problem, state, X, index)
    tolerance = {"rtol": 10 * EXACT[case["dtype"]], "atol": EXACT[case["dtype"]]}
    np.testing.assert_allclose(*map(backend.to_numpy, (found, expected)), **tolerance)


class Learning(Guess):
    """A first guess that is told of a change."""

    def rescaled(self, expected):
        self.expected, self.change, self.scale = expected, None, self.scale * 1.5
        return self.scale

    def __call__(self, gradient):
        if self.change is not None:
            guess = self.change / self.units
            self.rescaled(np.sum(np.asarray(self.change * guess), axis=(1, 2)))
        return gradient / self.units * self.scale[:, None, None].astype(gradient.dtype)

    def unscaled(self, gradients):
        return gradients / self.units[:, None, ...]


@emulated_alone
@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 3),
    st.integers(0, 7),
    st.sampled_from([1, 5, 10]),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([1, 128]),
)
def test_pairs_equal_the_reference(emulated, seed, m, n_pairs, most, dtype, parts):
    emulated_cupy.Kernel.seed = seed
    rng, shape, backend = np.random.default_rng(seed), (m, 3, 250), CupyBackend()
    units = rng.uniform(0.5, 2, size=(1, *shape[1:])).astype(dtype)
    kinds = [kind(backend, shape, np.dtype(dtype), most) for kind in (PairsThere, Pairs)]
    guesses = [Learning(m, units) for _ in kinds]
    gradient, tolerance = rng.normal(size=shape), EXACT[dtype]
    with mock.patch.object(descent, "_PARTS", parts):
        for i in range(n_pairs + 1):
            if i:
                step = rng.normal(size=shape)
                change = 2 * step + 0.3 * rng.normal(size=shape)
                change[rng.random(m) < 0.2] *= -1
                gradient = rng.normal(size=shape)
                products = [pairs.add(step, change, gradient) for pairs in kinds]
                np.testing.assert_allclose(*products, rtol=1e-9)
                for guess in guesses:
                    guess.change = np.where(products[0][:, None, None] > 0, change, 0).astype(dtype)
            found, expected = (
                pairs.direction(gradient, guess)
                for pairs, guess in zip(kinds, guesses, strict=True)
            )
            scale = np.abs(expected[0]).max()
            np.testing.assert_allclose(found[0], expected[0], atol=tolerance * scale)
            np.testing.assert_allclose(found[1], expected[1], rtol=tolerance)
            if i:
                np.testing.assert_allclose(guesses[0].expected, guesses[1].expected, rtol=tolerance)
            if i == 3:
                staying = np.arange(m)[::-1][:2]
                kinds = [pairs.select(staying) for pairs in kinds]
                m, shape = len(staying), (len(staying), *shape[1:])
                gradient = gradient[staying]
                for guess in guesses:
                    guess.scale = guess.scale[staying]


def test_most_pairs_are_the_kernel_s():
    assert f"MOST = {descent.MOST};" in descent.unit(4).source()

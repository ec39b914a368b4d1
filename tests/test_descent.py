"""The kernels of L-BFGS: against the reference, of the CPU, emulated on it, and on a device."""

import re
from dataclasses import replace
from importlib import resources
from typing import NamedTuple
from unittest import mock

import emulated_cupy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernels import make_case, threads
from test_pairs import Guess

from skmax import kernels
from skmax.backends.cupy import CupyBackend
from skmax.backends.numpy import NumpyBackend
from skmax.duality import Dual
from skmax.kernels import descent, host_descent
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


@pytest.fixture(params=["cpu", "emulated", pytest.param("device", marks=pytest.mark.gpu)])
def backend(request, monkeypatch):
    """Where the kernels run."""
    if request.param == "emulated":
        emulated_cupy.install(monkeypatch)
    return NumpyBackend() if request.param == "cpu" else CupyBackend()


def posed(backend, seed, m, k, d, dtype, rare):
    """A problem, and weights in its coordinates."""
    rng = np.random.default_rng(seed)
    shape = {"m": m, "k": k, "n": 60, "d": d, "dtype": dtype, "batch": 20}
    of_data = tuple(rare & {"weights", "masked", "own columns"})
    problem, _, _ = make_case(backend, seed, **shape, rare=of_data)
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
    names = "vectors", "curvatures", "second_moments", "solved"
    nothing = dict.fromkeys(names, lambda _: None)
    return lambda: mock.patch.multiple(kernels, **nothing)


@emulated_alone
@given(st.integers(0, 2**31 - 1), CASES)
def test_points_equal_the_reference(backend, reference, seed, case):
    emulated_cupy.Kernel.seed = seed
    problem, weights, _ = posed(backend, seed, **case)
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
def test_the_mean_over_classes_is_that_of_the_reference(backend, reference, seed, case, r):
    emulated_cupy.Kernel.seed = seed
    problem, weights, rng = posed(backend, seed, **{**case, "rare": case["rare"] - {"lasso"}})
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
def test_bounds_equal_the_reference(backend, reference, seed, case):
    emulated_cupy.Kernel.seed = seed
    problem, weights, _ = posed(backend, seed, **{**case, "rare": case["rare"] - {"lasso"}})
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
def test_curvatures_equal_the_reference(backend, reference, seed, case, in_order):
    emulated_cupy.Kernel.seed = seed
    problem, weights, rng = posed(backend, seed, **case)
    state = Coordinates(problem).state(weights)
    index = slice(10, 40) if in_order else backend.asarray(rng.permutation(60)[:20])
    X = problem.data.rows(index)
    found = curvature._weights(problem, state, X, index)
    with reference():
        expected = curvature._weights(problem, state, X, index)
    tolerance = {"rtol": 10 * EXACT[case["dtype"]], "atol": EXACT[case["dtype"]]}
    np.testing.assert_allclose(*map(backend.to_numpy, (found, expected)), **tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    seed=st.integers(0, 2**31 - 1),
    n=st.one_of(st.integers(1, 40), st.integers(400, 1200)),
    d=st.sampled_from([1, 2, 15, 16, 17, 63, 64, 100, 131]),
    k=st.integers(1, 4),
    rare=st.sets(st.sampled_from(["plain", "masked", "by column", "one class has none", "all 1"])),
    threads=threads,
)
def test_second_moments_of_the_cpu_are_those_of_float64(dtype, seed, n, d, k, rare, threads):
    case = {"m": 2, "k": 3, "d": d, "dtype": dtype, "rare": rare & {"plain", "masked"}}
    problem, _, rng = posed(NumpyBackend(), seed, **case)
    X = rng.normal(size=(n, d)).astype(dtype, order="F" if "by column" in rare else "C")
    weight = np.maximum(rng.normal(size=(n, k)), 0).astype(dtype)
    weight[:, -1] *= "one class has none" not in rare
    if "all 1" in rare:
        weight = np.ones((n, 1))
    Z = np.append(X.astype(float), np.full((n, 1), float(problem.fit_intercept)), axis=1)
    if problem.mean is not None:
        Z[:, :-1] -= problem.mean[1, 0]
    if problem.inverse_scale is not None:
        Z[:, :-1] *= problem.inverse_scale[1, 0]
    expected = np.einsum("nk,ni,nj->kij", weight, Z, Z) / n
    assert kernels.second_moments(problem.backend) is not None
    with threads:
        found = curvature._moments(problem, X, 1, None if "all 1" in rare else weight)
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT[dtype] * np.abs(expected).max())
    np.testing.assert_array_equal(found, found.swapaxes(1, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    seed=st.integers(0, 2**31 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 70)),
    part=st.booleans(),
)
def test_systems_of_factored_matrices_are_solved_on_the_cpu(dtype, seed, shape, part):
    rng, (m, r, p) = np.random.default_rng(seed), shape
    Z = rng.normal(size=(m, p + 3, p))
    matrices = (Z.swapaxes(1, 2) @ Z / p + 0.1 * np.eye(p)).astype(dtype)
    rows, backend = rng.normal(size=(m, r, p)), NumpyBackend()
    expected = np.linalg.solve(matrices.astype(float), rows.swapaxes(1, 2)).swapaxes(1, 2)
    factors = backend.factored(matrices)
    given = rows[:, ::-1][:, ::-1] if part else rows.astype(dtype)
    before = given.copy()
    for solve in (kernels.solved(backend), backend.solved):
        found = solve(factors, given)
        scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(found / scale, expected / scale, atol=100 * EXACT[dtype])
        np.testing.assert_array_equal(given, before)


def test_a_matrix_that_rounding_made_indefinite_gets_some_more():
    matrix = np.ones((3, 3)) - 1e-9 * np.eye(3)
    factors = NumpyBackend().factored(np.stack([np.eye(3), matrix]))
    np.testing.assert_array_equal(factors[0], np.eye(3))
    np.testing.assert_allclose(factors[1] @ factors[1].T, matrix, atol=1e-4)


class Place(NamedTuple):
    weights: object
    gradient: object


class Learning(Guess):
    """A first guess that is told of a change."""

    def __init__(self, backend, m, units):
        super().__init__(m, units)
        self.backend = backend

    def rescaled(self, expected):
        self.expected, self.change, self.scale = expected, None, self.scale * 1.5
        return self.scale

    def __call__(self, gradient):
        if self.change is not None:
            expected = self.backend.to_numpy(self.change * self.change / self.units)
            self.rescaled(np.sum(expected, axis=(1, 2)))
        scale = self.backend.asarray(self.scale[:, None, None], gradient.dtype)
        return gradient / self.units * scale

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
def test_pairs_equal_the_reference(backend, seed, m, n_pairs, most, dtype, parts):
    emulated_cupy.Kernel.seed = seed
    rng, shape, moved = np.random.default_rng(seed), (m, 3, 250), backend.asarray
    to_numpy = backend.to_numpy
    units = moved(rng.uniform(0.5, 2, size=(1, *shape[1:])).astype(dtype))
    kinds = [kind(backend, shape, np.dtype(dtype), most) for kind in (PairsThere, Pairs)]
    guesses = [Learning(backend, m, units) for _ in kinds]
    there, tolerance = Place(*(moved(rng.normal(size=shape)) for _ in range(2))), EXACT[dtype]
    with mock.patch.object(descent, "_PARTS", parts):
        for i in range(n_pairs + 1):
            if i:
                before, (step, gradient) = there, rng.normal(size=(2, *shape))
                change = 2 * step + 0.3 * rng.normal(size=shape)
                change[rng.random(m) < 0.2] *= -1
                before = Place(before.weights, moved(gradient - change))
                there = Place(before.weights + moved(step), moved(gradient))
                changes, products = zip(*(pairs.add(before, there) for pairs in kinds), strict=True)
                np.testing.assert_allclose(*products, rtol=1e-9)
                np.testing.assert_allclose(products[0], np.sum(step * change, axis=(1, 2)))
                convex = (products[0] > 0)[:, None, None]
                mine = np.where(convex, change, 0).astype(dtype)
                np.testing.assert_allclose(
                    np.where(convex, to_numpy(changes[0]), 0), mine, rtol=1e-5, atol=1e-12
                )
                for guess in guesses:
                    guess.change = moved(mine)
            found, expected = (
                pairs.direction(there.gradient, guess)
                for pairs, guess in zip(kinds, guesses, strict=True)
            )
            both = to_numpy(found[0]), to_numpy(expected[0])
            np.testing.assert_allclose(*both, atol=tolerance * np.abs(both[1]).max())
            np.testing.assert_allclose(found[1], expected[1], rtol=tolerance)
            if i:
                np.testing.assert_allclose(guesses[0].expected, guesses[1].expected, rtol=tolerance)
            if i == 3:
                staying = np.arange(m)[::-1][:2]
                kinds = [pairs.select(staying) for pairs in kinds]
                m, shape = len(staying), (len(staying), *shape[1:])
                there = Place(*(backend.take(array, staying) for array in there))
                for guess in guesses:
                    guess.scale = guess.scale[staying]


def test_most_pairs_are_the_kernels():
    assert f"MOST = {descent.MOST};" in descent.unit(4).source()
    source = resources.files("skmax.kernels").joinpath("descent.h").read_text()
    assert source.count(f"[{host_descent.MOST}]") == 3


def test_fields_are_those_that_the_source_declares():
    source = resources.files("skmax.kernels").joinpath("descent.h").read_text()
    body = re.sub(r"//.*", "", source.split("struct Vectors {")[1].split("};")[0])
    declared = re.findall(r"(\w+)\s*(?=[,;])", body)
    assert declared == [name for name, _ in host_descent.Vectors._fields_]

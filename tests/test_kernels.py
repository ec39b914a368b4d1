"""Every kernel beside the reference, over the whole range of what it serves."""

import ctypes
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import array_api_strict
import emulated_cupy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import sparse

from skmax import SoftmaxRegression, kernels, objective
from skmax.backends import Backend, float_dtype_for
from skmax.backends.cupy import CupyBackend
from skmax.backends.device_code import Unit
from skmax.backends.numpy import NumpyBackend
from skmax.data import source
from skmax.data.disk import opened
from skmax.kernels import cpu, cuda, device_sums, halves, residual
from skmax.kernels.cuda import PARAMETERS, Device, Plan
from skmax.kernels.sparse import rounded
from skmax.problem import Problem, State
from skmax.solvers import curvature, learning_rate, preconditioner, sgd
from skmax.solvers.sgd import SGD

ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
H100 = Device(-1, 132, 232448, 8, 64)
RARE = [
    "weights", "scores", "own columns", "soft", "l1", "smoothing", "masked", "no intercept",
    "not centred", "plain", "shift", "F-ordered", "tiny units",
]  # fmt: skip
SHAPE = {"m": 1, "k": 3, "n": 40, "d": 20, "dtype": np.float32, "batch": 16, "rare": ()}


def in_layout(X, layout):
    """The same values in another layout."""
    if layout == "columns":
        return np.asfortranarray(X)
    if layout == "reversed":
        return X[::-1].copy()[::-1]
    if layout == "every other":
        return np.repeat(X, 2, axis=1)[:, ::2]
    memory = np.zeros(X.nbytes + 1, np.uint8)[1:]  # where no value is aligned
    memory[:] = np.frombuffer(X.tobytes(), np.uint8)
    return memory.view(X.dtype).reshape(X.shape)


def make_case(
    backend, seed, *, m, k, n, d, dtype, batch, rare, precision=None, density=None, layout=None
):
    """A stack, where it starts, and the steps of an epoch, all at random.

    `precision` is that of training; None: what suits the dtype of X. `density` is the share of
    values that are not zero of sparse rows; None: rows are dense. `layout` is that of X, which
    stays as it is; None: as `source` lays out what is read in random order.
    """
    rng = np.random.default_rng(seed)
    values = 3 * rng.normal(size=(n, d)) + 20
    if density is not None:
        values = values * (rng.random((n, d)) < density)
    tiny = {"f4": 1e-25, "f8": 1e-160}.get(np.dtype(dtype).str[1:], 1.0)
    unit = tiny if "tiny units" in rare else 1.0
    values = np.rint(values) if np.dtype(dtype).kind in "iu" else unit * values
    values = np.asarray(values.astype(dtype), order="F" if "F-ordered" in rare else "C")
    X = values if density is None else sparse.csr_array(values)
    X = untidy(X, rng) if "untidy" in rare else X
    data = source(X, backend, precision or float_dtype_for(values), shuffled=True)
    labels = rng.integers(k, size=n)
    labels[:k] = np.arange(k)
    u = m if "own columns" in rare else min(m, 3)
    weight = rng.exponential(size=(n, u)) * (rng.random((n, u)) > 0.2)
    weight[:k] = 1
    soft = rng.dirichlet(np.ones(k), size=n)
    problem = Problem.pose(
        data,
        np.arange(n),
        soft if "soft" in rare else labels,
        sample_weight=weight if "weights" in rare else None,
        score_weight=weight**2 if {"weights", "scores"} <= set(rare) else None,
        masked=(np.arange(k) == rng.integers(k, size=(m, 1))) & ("masked" in rare and k > 2),
        C=rng.choice([0.01, 1.0, np.inf] if unit == 1 else [np.inf], m),
        l1_ratio=rng.choice([0.0, 0.5, 1.0], m) * ("l1" in rare),
        label_smoothing=rng.uniform(0, 0.3, m) * ("smoothing" in rare),
        fit_intercept="no intercept" not in rare,
        columns=np.arange(m) if "own columns" in rare else rng.integers(u, size=m),
    )
    of = problem.data.dtype
    if "shift" in rare:
        shift = np.full(d, 20 * unit).astype(float_dtype_for(values))
        problem = replace(problem, data=problem.data.with_(shift=shift))
    if "plain" not in rare:
        mean = rng.normal(size=(u, 1, d))[problem.columns] + (0 if "shift" in rare else 20)
        mean = mean if density is None else density * mean
        scale = rng.uniform(0.2, 0.5, size=(m, 1, d))
        if density is not None:
            scale = rounded(scale * (rng.random(d) < 0.9) / 4)
        problem = replace(
            problem,
            mean=None if "not centred" in rare else backend.asarray(unit * mean, of),
            inverse_scale=backend.asarray(scale / unit, of),
        )
    start = State.start(problem)
    sizes = {"coef": 1e-3 / unit, "coef_velocity": 1e-3 / unit}
    state = State(
        *(
            array + backend.asarray(sizes.get(name, 1e-3) * rng.normal(size=array.shape), of)
            for name, array in vars(start).items()
        )
    )
    largest = 1e-5 if "plain" in rare else 1e-4 if "not centred" in rare else 1e-2
    rate = largest * rng.uniform(0.5, 1, m)
    solver = SGD(
        rate, rng.choice([0.0, 0.9], m), np.zeros(m, bool), ("linear",) * m, (3,) * m, batch, True
    )
    return problem, state, solver.steps(0, rng.permutation(n))


def untidy(X, rng):
    """The same sparse matrix with indices that are wide and in no order, and some of them twice."""
    first = rng.integers(2, size=X.nnz).astype(X.dtype) * X.data
    X = X.tocoo()
    row, column = np.tile(X.row, 2), np.tile(X.col, 2).astype(np.int64)
    order = rng.permutation(len(row))
    order = order[np.argsort(row[order], kind="stable")]
    starts = np.searchsorted(row[order], np.arange(X.shape[0] + 1))
    values = np.concatenate([first, X.data - first])[order]
    matrix = sparse.csr_array(X.shape, dtype=X.dtype)
    matrix.data, matrix.indices, matrix.indptr = values, column[order], starts
    return matrix


def run(epoch, problem, state, steps):
    """What an epoch leaves, on the host, by name."""
    after, sums = epoch(problem, state, steps)
    arrays = {**vars(after), **sums._asdict()}
    return {name: problem.backend.to_numpy(array) for name, array in arrays.items()}


def assert_close(found, expected, exact, precision):
    """Known to 1e-10 of the largest entry in float64; in float32, to some multiple of what the
    reference itself is off, since what is left of terms that cancel is known to few digits.
    """
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].shape == values.shape, name
        seen = np.where(np.abs(values) < 1e20, values, 0) if "intercept" in name else values
        scale = float(np.abs(seen).max()) or 1.0
        off = np.abs(seen - np.where(np.abs(values) < 1e20, exact[name], 0)).max() / scale
        allowed = 1e-10 if precision == np.float64 else 1e-5 + 20 * off
        np.testing.assert_allclose(
            found[name] / scale, values / scale, rtol=1e-5, atol=allowed, err_msg=name
        )


@st.composite
def shapes(draw):
    """What `make_case` needs."""
    return {
        "m": draw(st.integers(1, 5)),
        "k": draw(st.sampled_from([2, 3, 10])),
        "n": draw(st.integers(12, 70)),
        "d": draw(st.sampled_from([1, 3, 8, 30, 70, 132, 260])),
        "dtype": draw(st.sampled_from([np.uint8, np.int16, np.float32, np.float64])),
        "batch": draw(st.sampled_from([1, 5, 16, 33, 64])),
        "rare": draw(st.sets(st.sampled_from(RARE))),
    }


def assert_threads_may_run_in_any_order(plan, case):
    """A missing barrier would show."""
    results = []
    for seed in range(4):
        emulated_cupy.Kernel.seed = seed
        results.append(run(plan, *case))
    for other in results[1:]:
        for name, values in results[0].items():
            np.testing.assert_array_equal(other[name], values, err_msg=name)


def assert_it_repeats_the_reference(plan, case, seed, shape):
    """On a device, in memory that is no number before; twice, bit for bit."""
    import cupy

    poison = cupy.full(1 << 26, np.nan)  # what is freed now is what the next arrays get
    del poison
    assert_an_epoch_equals_the_reference(lambda _: plan, case[0].backend, seed, shape)
    first, second = run(plan, *case), run(plan, *case)
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values, err_msg=name)


# Epochs


def assert_an_epoch_equals_the_reference(epoch, backend, seed, shape):
    """Also that what it starts from is left as it was."""
    precision = np.float64 if shape["dtype"] == np.float64 else np.float32
    case = make_case(backend, seed, **shape)
    before = {name: backend.to_numpy(array).copy() for name, array in vars(case[1]).items()}
    found = run(epoch(case), *case)
    for name, array in vars(case[1]).items():
        np.testing.assert_array_equal(backend.to_numpy(array), before[name])
    expected = run(sgd.sgd_epoch, *case)
    exact = run(sgd.sgd_epoch, *make_case(backend, seed, **shape, precision=np.float64))
    assert_close(found, expected, exact, precision)


class Threads:
    """So many threads, which are worth starting for little."""

    def __init__(self, n_threads):
        self.settings = [
            *[(module, "n_threads", lambda: n_threads) for module in (
                "kernels.cpu", "kernels.sparse", "backends.numpy")],
            *[(module, "WORTH_A_THREAD", 1) for module in (
                "kernels.cpu", "kernels.sparse", "backends.numpy")],
        ]  # fmt: skip

    def __enter__(self):
        self.stack = ExitStack()
        for module, name, value in self.settings:
            self.stack.enter_context(mock.patch(f"skmax.{module}.{name}", value))

    def __exit__(self, *_):
        self.stack.close()


threads = st.builds(Threads, st.sampled_from([1, 2]))
# What the kernel for dense rows serves.
of_dense_rows = st.builds(
    lambda shape, layout: {**shape, "layout": layout},
    shapes(),
    st.sampled_from([None, "columns", "reversed", "every other", "misaligned"]),
)


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), of_dense_rows, threads)
def test_the_epoch_of_the_cpu_equals_the_reference(seed, shape, threads):
    def kernel(case):
        assert kernels.sgd_epoch(case[0], shape["batch"]) is cpu.sgd_epoch
        return cpu.sgd_epoch

    with threads:
        assert_an_epoch_equals_the_reference(kernel, NumpyBackend(), seed, shape)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), of_dense_rows, threads)
def test_the_moments_of_the_cpu_equal_the_reference(seed, shape, threads):
    shape["rare"] = shape["rare"] - {"tiny units"}  # whose squares underflow
    results = []
    for precision in (None, np.float64):
        problem, _, steps = make_case(NumpyBackend(), seed, **shape, precision=precision)
        problem = replace(problem, order=steps.order[: 1 + seed % len(steps.order)])
        assert kernels.moments(problem) is cpu.moments
        with threads:
            found = cpu.moments(problem)
        expected = preconditioner.weighted_sums(problem, preconditioner.first_two)
        for sums in (found, expected):
            results.append(dict(zip(("sum", "square"), sums, strict=True)))
    precision = np.float64 if shape["dtype"] == np.float64 else np.float32
    assert_close(results[0], results[1], results[3], precision)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), of_dense_rows, st.sampled_from([60, 700]), st.booleans())
def test_the_curvatures_of_the_cpu_equal_the_reference(seed, shape, n, in_order):
    problem, state, _ = make_case(NumpyBackend(), seed, **shape | {"n": n})
    rows = np.random.default_rng(seed).permutation(n)[: n - 7]
    index = slice(5, n) if in_order else rows
    X = problem.data.rows(index)
    assert kernels.curvatures(problem) is cpu.curvatures
    found = curvature._weights(problem, state, X, index)
    with mock.patch.object(kernels, "curvatures", return_value=None):
        expected = curvature._weights(problem, state, X, index)
    tolerance = {np.float64: 1e-9, np.float32: 2e-4}[problem.data.dtype.type]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * expected.max())


@pytest.mark.parametrize("on_disk", [False, True])
def test_any_number_of_threads_of_the_cpu_gives_the_same_bits(on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr("skmax.data.disk._WINDOW", 1 << 14)
    monkeypatch.setattr("skmax.data.disk._BLOCK", 1 << 12)
    rare = ("weights", "scores", "soft", "smoothing", "l1")
    problem, state, steps = make_case(
        NumpyBackend(), 0, **SHAPE | {"m": 5, "n": 400, "d": 30, "rare": rare}
    )
    if on_disk:
        np.save(tmp_path / "X.npy", problem.data.X)
        blocks = opened(np.load(tmp_path / "X.npy", mmap_mode="r"))
        problem = replace(problem, data=source(blocks, NumpyBackend(), np.float32))
        assert problem.data.is_on_disk
    results = []
    for n_threads in (1, 2, 3, 8):
        with Threads(n_threads):
            sums = cpu.full_pass(problem, state.coef, state.intercept, gradient=True)
            values, _ = cpu.predictions(
                problem.data, state.coef[0], state.intercept[0], "predict_proba"
            )
            epoch = run(cpu.sgd_epoch, problem, state, steps)
            results.append([*sums, values, *epoch.values()])
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(another, one)


# What the kernels for sparse rows serve, and how many values are not zero.
of_sparse_rows = st.builds(
    lambda shape, density, more: {
        **shape,
        "rare": shape["rare"] - {"shift", "F-ordered", "tiny units"} | more,
        "density": density,
    },
    shapes(),
    st.sampled_from([0.0, 0.02, 0.3]),
    st.sets(st.just("untidy")),
)


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), of_sparse_rows, threads, st.booleans())
def test_the_epoch_of_sparse_rows_equals_the_reference(seed, shape, threads, lazy):
    def kernel(case):
        assert kernels.sgd_epoch(case[0], shape["batch"]) is kernels.sparse.sgd_epoch
        return kernels.sparse.sgd_epoch

    with threads, mock.patch("skmax.kernels.sparse._lazy_steps_pay", return_value=lazy):
        assert_an_epoch_equals_the_reference(kernel, NumpyBackend(), seed, shape)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 2**32 - 1), shapes(), st.sampled_from([1, 8]), st.integers(1, 40), st.booleans()
)
def test_the_epoch_of_the_emulated_device_equals_the_reference(
    emulated, seed, shape, cluster, n_processors, little_memory
):
    def kernel(case):
        device = replace(H100, cluster=cluster, n_processors=n_processors)
        plan = Plan.of(case[0], shape["batch"], device)
        while little_memory:  # which takes smaller tiles
            device = replace(device, shared_bytes=plan.shared_bytes - 1)
            smaller = Plan.of(case[0], shape["batch"], device)
            if smaller is None:
                break
            plan = smaller
            if plan.tile <= 8:
                break
        return plan

    emulated_cupy.Kernel.seed = seed % 2**31
    assert_an_epoch_equals_the_reference(kernel, CupyBackend(), seed, shape)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), shapes(), st.sampled_from([9, 64]), st.booleans())
def test_the_moments_of_the_emulated_device_equal_the_reference(
    emulated, seed, shape, fewest_rows, in_order
):
    shape["rare"] = shape["rare"] - {"tiny units"}  # whose squares underflow
    backend, results = CupyBackend(), []
    emulated_cupy.Kernel.seed = seed % 2**31
    problem, _, steps = make_case(backend, seed, **shape)
    order = np.sort(steps.order) if in_order else steps.order
    problem = replace(problem, order=order[seed % 7 : 8 + seed % len(order)])
    assert kernels.moments(problem) is device_sums.moments
    with mock.patch.object(device_sums, "_FEWEST_ROWS", fewest_rows):
        found = kernels.moments(problem)(problem)
        again = kernels.moments(problem)(problem)
    exact, *_ = make_case(backend, seed, **shape, precision=np.float64)
    exact = replace(exact, order=problem.order)
    for values in (
        found,
        preconditioner.weighted_sums(problem, preconditioner.first_two),
        preconditioner.weighted_sums(exact, preconditioner.first_two),
    ):
        results.append(dict(zip(("sum", "square"), values, strict=True)))
    assert_close(*results, np.float64 if shape["dtype"] == np.float64 else np.float32)
    for one, another in zip(found, again, strict=True):
        np.testing.assert_array_equal(another, one)


def test_moments_of_a_device_see_wide_numbers_and_narrow_ones(emulated):
    """What a kernel reads as it is, and what is left to the reference."""
    first_two = preconditioner.first_two
    for dtype in (np.float16, np.int8, np.uint16, bool, np.int64):
        X = np.arange(24).reshape(8, 3).astype(dtype)
        data = source(X, CupyBackend(), float_dtype_for(X))
        problem, *_ = make_case(CupyBackend(), 0, **SHAPE)
        problem = replace(problem, data=data, order=np.arange(2, 7))
        assert (kernels.moments(problem) is None) == (dtype is np.int64)
        sums = preconditioner._quick_sums(problem, first_two)
        for found, expected in zip(sums, (X, X.astype(float) ** 2), strict=True):
            np.testing.assert_allclose(found[0], expected[2:7].sum(axis=0, dtype=float))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), shapes(), st.sampled_from([7, 64]), st.booleans())
def test_the_curvature_of_the_emulated_device_equals_the_reference(
    emulated, seed, shape, rows_of_a_part, in_order
):
    emulated_cupy.Kernel.seed = seed % 2**31
    problem, _, steps = make_case(CupyBackend(), seed, **shape)
    rows = (np.sort(steps.order) if in_order else steps.order)[: 10 + seed % 60]
    run = kernels.curvature(problem)
    for n_iter, settled in ((1, 0), (5, 0), (11, 1e-3)):
        with mock.patch.object(device_sums, "_ROWS_OF_A_PART", rows_of_a_part):
            found = run(problem, rows, n_iter, settled)
        expected = learning_rate.curvature(problem, rows, n_iter, settled)
        np.testing.assert_allclose(found, expected, rtol=1e-3 if settled else 1e-4)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), shapes(), st.sampled_from([7, 4096]))
def test_the_penalty_of_the_emulated_device_equals_the_reference(emulated, seed, shape, fewest):
    problem, state, _ = make_case(CupyBackend(), seed, **shape)
    with mock.patch.object(device_sums, "_FEWEST_WEIGHTS", fewest):
        found = objective.penalty(problem, state.coef)
    assert emulated_cupy.Kernel.launches["penalty"]
    np.testing.assert_allclose(found, objective.summed_penalty(problem, state.coef), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("shape", [(9,), (9, 3), (9, 4), (9, 2, 8), (9, 0)], ids=str)
def test_rows_of_the_emulated_device(emulated, dtype, shape):
    backend, index = CupyBackend(), np.array([8, 0, 3, 3])
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.testing.assert_array_equal(backend.take(array, index), array[index])
    np.testing.assert_array_equal(backend.take(array[:, ...][::-1], index), array[::-1][index])
    np.testing.assert_array_equal(backend.take(array, index[:0]), array[:0])


def test_sums_over_the_first_axis_of_the_emulated_device(emulated, rng):
    parts = rng.normal(size=(7, 2, 300))
    np.testing.assert_allclose(CupyBackend().total(parts), parts.sum(axis=0), rtol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("m", [1, 20])
def test_the_epoch_of_a_device_with_poisoned_memory_equals_the_reference(dtype, m):
    """With fresh data; twice, bit for bit."""
    backend, seed = CupyBackend(), np.random.SeedSequence().entropy
    shape = {"m": m, "k": 10, "n": 3000, "d": 784, "dtype": dtype, "batch": 256}
    for rare in (
        (), ("weights", "scores"), ("l1", "smoothing"), ("soft",), ("shift", "masked"),
        ("own columns", "weights", "no intercept"), ("not centred",), ("plain", "l1"),
    ):  # fmt: skip
        shape["rare"] = rare
        case = make_case(backend, seed, **shape)
        plan = Plan.of(case[0], 256, Device.of(backend.device))
        assert plan is not None
        assert_it_repeats_the_reference(plan, case, seed, shape)


# Full passes


def assert_a_pass_equals_the_reference(run_pass, seed, shape, gradient, backend=None):
    """On a part of the rows in any order, or in their own, too."""
    results, backend = [], backend or NumpyBackend()
    names = ("loss", "correct", "coef", "intercept")
    for precision in (None, np.float64):
        problem, state, steps = make_case(backend, seed, **shape, precision=precision)
        order = steps.order if seed % 2 else np.arange(len(steps.order))
        problem = replace(problem, order=order[seed % 3 : 4 + seed % len(order)])
        quick = kernels.full_pass(problem)
        assert quick is run_pass or precision is not None
        for run in (quick, objective.full_pass):
            sums = run(problem, state.coef, state.intercept, gradient=gradient)
            sums = tuple(map(backend.to_numpy, sums))
            assert len(sums) == (4 if gradient else 2)
            assert {part.dtype for part in sums} == {np.dtype(np.float64)}
            results.append(dict(zip(names, sums, strict=False)))
    precision = np.float64 if shape["dtype"] == np.float64 else np.float32
    assert_close(results[0], results[1], results[3], precision)


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), of_dense_rows, threads, st.booleans())
def test_the_pass_of_the_cpu_equals_the_reference(seed, shape, threads, gradient):
    with threads:
        assert_a_pass_equals_the_reference(cpu.full_pass, seed, shape, gradient)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("part", [np.s_[:, :13], np.s_[::2], np.s_[:70, :16], np.s_[:, :-3:2]])
def test_what_is_beside_the_rows_is_not_looked_at(rng, dtype, k, part):
    wider, y = np.full((101, 17), np.nan, dtype), rng.integers(k, size=101)
    wider[part] = rng.normal(size=wider[part].shape)
    X, model = wider[part], SoftmaxRegression(solver="lbfgs")
    y = y[: len(X)]
    expected = SoftmaxRegression(solver="lbfgs").fit(X.copy(), y)
    assert_allclose(model.fit(X, y).coef_, expected.coef_, rtol=1e-5, atol=1e-6)
    assert_allclose(model.predict_proba(X), expected.predict_proba(X.copy()), rtol=1e-5)


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), of_sparse_rows, threads, st.booleans())
def test_the_pass_of_sparse_rows_equals_the_reference(seed, shape, threads, gradient):
    with threads:
        assert_a_pass_equals_the_reference(kernels.sparse.full_pass, seed, shape, gradient)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 2**32 - 1),
    of_dense_rows,
    st.sampled_from([2, 5, 10, 70, 200]),
    st.booleans(),
    st.sampled_from([residual._SUMMED, 7]),
)
def test_the_pass_of_the_emulated_device_equals_the_reference(
    emulated, seed, shape, k, gradient, summed
):
    emulated_cupy.Kernel.seed = seed % 2**31
    shape |= {"k": k, "n": max(shape["n"], k)}
    with (
        mock.patch.object(halves, "serves", return_value=False),
        mock.patch.multiple(residual, _SUMMED=summed, _MOST_ROWS=max(32, 2 * summed)),
    ):
        assert_a_pass_equals_the_reference(residual.full_pass, seed, shape, gradient, CupyBackend())


def of_any_size():
    """Halves serve problems of any size."""
    return mock.patch.multiple(halves, _FEWEST_FEATURES=1, _FEWEST_LOGITS=1, _FEWEST_PRODUCTS=1)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 2**32 - 1),
    of_dense_rows,
    st.sampled_from([np.uint8, np.int16, np.float16, np.float32]),
    st.sampled_from([2, 5, 10, 130]),
    st.booleans(),
    st.sampled_from([halves._SUMMED, 16]),
)
def test_the_pass_by_halves_of_the_emulated_device_equals_the_reference(
    emulated, seed, shape, dtype, k, gradient, summed
):
    emulated_cupy.Kernel.seed = seed % 2**31
    shape |= {"k": k, "n": max(shape["n"], k), "dtype": dtype}
    with of_any_size(), mock.patch.multiple(halves, _SUMMED=summed, _BYTES=1 << 16):
        assert_a_pass_equals_the_reference(halves.full_pass, seed, shape, gradient, CupyBackend())


@pytest.mark.parametrize("rare", [("weights",), ("weights", "smoothing")], ids=str)
@pytest.mark.parametrize("k", [300, 520, 1030])
def test_the_pass_by_halves_of_many_classes_equals_the_reference(emulated, k, rare):
    """Of as many as a thread can hold, if targets are labels alone, and of more.

    On a processor that has few rows at a time, so that many follow one another.
    """
    shape = SHAPE | {"k": k, "n": k, "d": 8, "rare": rare}
    small = replace(residual._device(-1), n_processors=1)
    with of_any_size(), mock.patch.object(residual, "_device", return_value=small):
        assert_a_pass_equals_the_reference(halves.full_pass, 199, shape, True, CupyBackend())


def far_apart(rng, n, d, k):
    """Rows and weights, each of which has values that are far apart, and none that overflows."""
    of_features = 10.0 ** rng.uniform(-15, 15, d)
    X = rng.normal(size=(n, d)) * of_features * 10.0 ** rng.uniform(-3, 0, (n, d))
    X[rng.integers(n, size=d), np.arange(d)] *= 1e4
    coef = rng.normal(size=(1, k, d)) / of_features * 10.0 ** rng.uniform(-6, 0, (1, k, 1))
    return X.astype(np.float32), coef.astype(np.float32)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-6, 1e6]))
def test_halves_lose_nothing_of_numbers_that_are_far_apart(emulated, seed, heavy):
    """Of features in any units, with outliers; of weights of rows that differ as much."""
    backend, rng = CupyBackend(), np.random.default_rng(seed)
    shape = SHAPE | {"n": 300, "d": 70, "k": 66, "rare": ("weights",) if heavy else ()}
    X, coef = far_apart(rng, 300, 70, 66)
    results = []
    for run in (halves.full_pass, residual.full_pass, objective.full_pass):
        precision = np.float64 if run is objective.full_pass else np.float32
        problem, *_ = make_case(backend, seed, **shape, precision=precision)
        weight = problem.sample_weight
        if heavy:
            weight = weight * np.where(np.arange(300) == 7, heavy, 1.0)[:, None]
            weight = (weight / weight.mean(axis=0)).astype(precision)
        data = source(X, backend, precision, shuffled=True)
        problem = replace(problem, data=data, sample_weight=weight)
        weights = backend.asarray(coef, precision), backend.zeros((1, 66), precision)
        results.append(run(problem, *weights, gradient=True))
    for found, by_floats, exact in zip(*results, strict=True):
        size = np.abs(exact).max(axis=tuple(range(exact.ndim - 1)), keepdims=True)  # of a feature
        size[size == 0] = 1.0
        off, usual = (np.abs((part - exact) / size).max() for part in (found, by_floats))
        assert off <= 5 * usual + (5e-5 if heavy > 1 else 1e-6)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("kind", ["held out", "of weight 0"])
def test_halves_take_their_scale_from_rows_that_count(emulated, kind, in_order):
    """However large others are: infinite here, once they are scaled."""
    shape = SHAPE | {"n": 130, "d": 66, "k": 65, "rare": ("weights",)}
    backend, results = CupyBackend(), []
    for run in (halves.full_pass, objective.full_pass):
        precision = np.float32 if run is halves.full_pass else np.float64
        problem, state, _ = make_case(backend, 0, **shape, precision=precision)
        weight, others = problem.sample_weight.copy(), np.arange(100, 108)
        problem.data.X[others] = np.float32(1e36) if run is halves.full_pass else 0
        weight[others] = 0 if kind == "of weight 0" else 1e8
        last = 130 if kind == "of weight 0" else 100
        order = np.arange(3, last) if in_order else np.random.default_rng(0).permutation(last)
        problem = replace(problem, order=order, sample_weight=weight)
        results.append(run(problem, state.coef, state.intercept, gradient=True))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_halves_of_rows_without_any_weight_sum_to_nothing(emulated):
    """As those of a worker may be."""
    problem, state, _ = make_case(CupyBackend(), 0, **SHAPE | {"rare": ("weights",)})
    problem = replace(problem, sample_weight=0 * problem.sample_weight)
    for sums in halves.full_pass(problem, state.coef, state.intercept, gradient=True):
        np.testing.assert_array_equal(sums, 0)


def test_halves_leave_wide_data_to_others(emulated):
    """Data that are trained on in float32 may be validated on in float64."""
    backend, X = CupyBackend(), np.random.default_rng(0).normal(size=(40, 20)) + 100
    problem, *_ = make_case(backend, 0, **SHAPE)
    data = source(X, backend, np.float64, shuffled=False)
    data = data.with_(shift=np.full(20, 100.0), dtype=np.float32)
    with of_any_size():
        assert kernels.full_pass(problem) is halves.full_pass
        assert kernels.full_pass(replace(problem, data=data)) is residual.full_pass


def test_the_pass_by_halves_says_where_weights_are_no_numbers(emulated):
    """As those of a step that went too far may be: the line search goes by that."""
    problem, state, _ = make_case(CupyBackend(), 0, **SHAPE | {"k": 70, "n": 80, "d": 66})
    for value in (np.inf, -np.inf, np.nan):
        state.coef[0, 3, 5] = value
        with np.errstate(invalid="ignore"):
            loss, *_ = halves.full_pass(problem, state.coef, state.intercept, gradient=False)
        assert not np.isfinite(loss).any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("k", [2, 10, 50, 413, 1000, 3000])
def test_the_pass_of_a_device_equals_the_reference(dtype, k):
    """With fresh data; twice, bit for bit."""
    backend, seed = CupyBackend(), np.random.SeedSequence().entropy % 2**32
    shape = {"m": 2, "k": k, "n": 20_000, "d": 100, "dtype": dtype, "batch": 256}
    for rare in ((), ("weights", "scores", "smoothing"), ("soft", "masked"), ("own columns",)):
        case = shape | {"rare": rare}
        problem, state, _ = make_case(backend, seed, **case)
        weights = state.coef, state.intercept
        with of_any_size():
            run_pass = kernels.full_pass(problem)
            assert_a_pass_equals_the_reference(run_pass, seed, case, True, backend)
        first, second = (run_pass(problem, *weights, gradient=True) for _ in range(2))
        for one, another in zip(first, second, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(another))


# Predictions


@st.composite
def rows_and_weights(draw):
    """Whole numbers, small enough for logits to be exact and often equal, and what is rare."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d = draw(st.sampled_from([1, 7, 300])), draw(st.sampled_from([1, 3, 40, 700]))
    k = draw(st.sampled_from([1, 3, 10, 70]))
    dtype = draw(st.sampled_from([np.uint8, np.float32, np.float64]))
    kind = draw(st.sampled_from(["C", "F", "sparse"]))
    values = rng.integers(0, 4, size=(n, d)) * (
        rng.random((n, d)) < draw(st.sampled_from([0.1, 0.4]))
    )
    X = sparse.csr_array(values.astype(dtype)) if kind == "sparse" else values.astype(dtype, kind)
    data = source(X, NumpyBackend(), float_dtype_for(X))
    if draw(st.booleans()):
        data = data.with_(shift=np.ones(d, data.dtype))
    coef = rng.integers(-2, 3, size=(k, d)).astype(data.dtype)
    intercept = rng.integers(-2, 3, size=k).astype(data.dtype)
    if draw(st.booleans()):
        intercept[rng.random(k) < 0.2] = draw(st.sampled_from([-np.inf, np.inf, np.nan]))
    return data, sparse.csr_array(coef) if draw(st.booleans()) else coef, intercept


@settings(max_examples=300)
@given(rows_and_weights(), st.sampled_from(list(objective.METHODS)), threads)
def test_predictions_of_the_cpu_equal_the_reference(arguments, method, threads):
    data, coef, intercept = arguments
    with mock.patch.object(cpu, "_FEW_ROWS", 0):
        run = kernels.predictions(data, coef)
    shifted = data.is_sparse and data.shift is not None
    assert (run is None) == (sparse.issparse(coef) or shifted)
    if run is None:
        return
    with np.errstate(invalid="ignore"):
        expected, finite = objective.predicted(data, coef, intercept, method)
    with threads:
        found, found_finite = run(data, coef, intercept, method)
    assert found.dtype == expected.dtype
    assert found.flags.c_contiguous
    assert found_finite == finite
    precision = 1e-5 if data.dtype == np.float32 else 1e-13
    small = precision if method == "predict_log_proba" else 1e-30
    np.testing.assert_allclose(found, expected, rtol=precision, atol=small)


def test_predictions_for_few_rows_by_many_weights_are_products(rng):
    """Which need no copy of the weights: the reference makes them, as those for more rows are."""
    coef, intercept = rng.normal(size=(200, 400)), rng.normal(size=200)
    X = rng.normal(size=(500, 400))
    few, many = (source(part, NumpyBackend(), np.float64) for part in (X[:100], X))
    assert kernels.predictions(few, coef) is None
    assert kernels.predictions(many, coef) is cpu.predictions
    found, expected = (
        objective.predictions(data, coef, intercept, "predict_proba")[0] for data in (few, many)
    )
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected[:100], rtol=1e-12)


# What the dispatch says


def test_what_has_no_kernel_takes_the_reference():
    problem, *_ = make_case(Backend(array_api_strict), 0, **SHAPE)
    assert kernels.sgd_epoch(problem, 16) is None
    assert kernels.full_pass(problem) is None
    assert kernels.predictions(problem.data, np.ones((3, 20))) is None


def test_rows_that_are_not_what_the_kernel_for_sparse_rows_computes_with_take_the_reference():
    problem, *_ = make_case(NumpyBackend(), 0, **SHAPE | {"density": 0.1})
    assert kernels.predictions(problem.data, np.ones((3, 20))) is kernels.sparse.predictions
    assert kernels.predictions(problem.data, sparse.csr_array(np.ones((3, 20)))) is None
    shifted = replace(problem, data=problem.data.with_(shift=np.ones(20, np.float32)))
    assert kernels.full_pass(shifted) is None
    assert kernels.sgd_epoch(shifted, 16) is None
    assert kernels.predictions(shifted.data, np.ones((3, 20))) is None


def units(problem, batch_size=16):
    """Those of lazy steps, if they are taken."""
    pays = kernels.sparse._lazy_steps_pay(problem, batch_size)
    return pays and kernels.sparse._units(problem)


@pytest.mark.parametrize("rare", [(), ("plain",), ("not centred",)])
def test_lazy_steps_are_taken_where_a_batch_has_few_of_many_features(rare):
    shape = SHAPE | {"d": 30_000, "density": 1e-3, "rare": rare}
    problem, *_ = make_case(NumpyBackend(), 0, **shape)
    assert units(problem)
    assert not units(problem, 2000)
    assert not units(replace(problem, l1=problem.l1 + 1))


def test_lazy_steps_are_not_taken_where_they_would_cost_more_or_err():
    shape = SHAPE | {"d": 30_000, "density": 1e-3}
    few, *_ = make_case(NumpyBackend(), 0, **shape | {"d": 300})
    assert not units(few)
    problem, *_ = make_case(NumpyBackend(), 0, **shape)
    for factor in (1.01, 1e-30, 1e30):  # scales that are not rounded, or have no square
        other = replace(problem, inverse_scale=problem.inverse_scale * np.float32(factor))
        assert not units(other)


def test_a_popular_feature_of_very_many_rows_loses_no_digits():
    """Its gradient is a sum of more terms than float32 can count."""
    n = 200_000
    X = sparse.csr_array(np.ones((n, 1), np.float32))
    problem = Problem.pose(
        source(X, NumpyBackend(), np.float32), np.arange(n), np.arange(n) % 3,
        sample_weight=None, score_weight=None, masked=np.zeros((1, 3), bool), C=np.ones(1),
        l1_ratio=np.zeros(1), label_smoothing=np.zeros(1), fit_intercept=True,
    )  # fmt: skip
    coef, intercept = np.full((1, 3, 1), 0, np.float32), np.array([[0, 1, 2]], np.float32)
    gradient = kernels.full_pass(problem)(problem, coef, intercept, gradient=True)[2]
    share = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    np.testing.assert_allclose(gradient[0, :, 0] / n, share - 1 / 3, atol=5e-6)


def test_a_device_has_kernels_for_epochs_and_passes(emulated):
    """Of sparse rows and of very many classes, for neither."""
    problem, *_ = make_case(CupyBackend(), 0, **SHAPE)
    assert isinstance(kernels.sgd_epoch(problem, 16), Plan)
    assert kernels.full_pass(problem) is residual.full_pass
    sparse_problem, *_ = make_case(CupyBackend(), 0, **SHAPE, density=0.3)
    assert kernels.full_pass(sparse_problem) is None
    many = replace(problem, masked=np.zeros((1, 30_000), dtype=bool))
    assert kernels.full_pass(many) is None


@pytest.mark.parametrize(
    ("shape", "device"),
    [
        ({"k": 33, "n": 80}, H100),
        ({"k": 17, "n": 80, "dtype": np.float64}, H100),
        ({"d": 9000, "k": 10}, replace(H100, cluster=1, shared_bytes=166912)),
        ({"rare": {"F-ordered"}}, H100),
    ],
    ids=["many classes", "many classes in float64", "many weights", "columns in order"],
)
def test_what_the_kernel_of_the_device_does_not_serve(emulated, shape, device, monkeypatch):
    # Moved as it is, as an array of CuPy would be that is not shuffled.
    monkeypatch.setattr("skmax.data.device.PinnedBuffer.send_all", lambda self, X: X)
    problem, *_ = make_case(CupyBackend(), 0, **SHAPE | shape)
    assert Plan.of(problem, 16, device) is None


def test_more_rows_than_the_kernel_of_the_device_can_count(emulated, monkeypatch):
    problem, *_ = make_case(CupyBackend(), 0, **SHAPE)
    monkeypatch.setattr(cuda, "MOST_ROWS", 40)
    assert Plan.of(problem, 16, H100) is not None
    monkeypatch.setattr(cuda, "MOST_ROWS", 39)
    assert Plan.of(problem, 16, H100) is None


# The device's kernel


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("cluster", [1, 2, 8])
def test_threads_of_the_device_may_run_in_any_order(emulated, dtype, cluster):
    """A missing barrier would show."""
    shape = {"m": 2, "d": 260, "dtype": dtype, "rare": ("l1", "weights")}
    case = make_case(CupyBackend(), 1, **SHAPE | shape)
    plan = Plan.of(case[0], 16, replace(H100, cluster=cluster))
    assert cluster == plan.build.CLUSTER
    assert_threads_may_run_in_any_order(plan, case)


def test_arguments_are_in_the_order_of_the_parameters():
    (parameters,) = re.findall(r"sgd_epoch\(([^)]*)\)", Unit((cuda.SOURCE,)).source())
    assert tuple(re.findall(r"(\w+)(?:,|$)", parameters)) == PARAMETERS
    (parameters,) = re.findall(r"\) residual\((.*?)\n\)", residual.unit(4, 0).source(), re.DOTALL)
    parameters = re.sub(r"//.*", "", parameters)
    assert tuple(re.findall(r"(\w+)\s*(?:,|$)", parameters)) == residual.PARAMETERS


# The compiler, which needs no GPU


def nvrtc():
    """NVIDIA's run-time compiler."""
    import nvidia.cuda_nvrtc

    (library,) = Path(next(iter(nvidia.cuda_nvrtc.__path__)), "lib").glob("libnvrtc.so*")
    return ctypes.CDLL(str(library))


def compiler_report(unit, options, check=""):
    """What ptxas says of a unit, with a check at its end."""
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    code = (unit.source() + check).encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), code, b"k.cu", 0, None, None) == 0
    options = (*unit.options, *options)
    words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = library.nvrtcCompileProgram(program, len(options), words)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    assert not failed, log.value.decode()
    return log.value.decode()


def assert_no_register_is_spilled(unit, architecture, n_kernels=1):
    """Nor does the compiler warn; what ptxas says."""
    pytest.importorskip("nvidia.cuda_nvrtc", reason="no nvidia-cuda-nvrtc-cu12")
    options = (f"-arch={architecture}", "-ftz=true", "--ptxas-options=-v")
    report = compiler_report(unit, options)
    frames = re.findall(r"(\d+) bytes (stack frame|spill stores|spill loads)", report)
    assert len(frames) >= 3 * n_kernels
    assert {size for size, _ in frames} == {"0"}
    assert "warning" not in report.lower()
    return report


def builds():
    """Of the extremes that the kernel serves, as `Plan.of` makes them, which are not stored."""
    shapes = {
        "Fashion-MNIST, uint8, in clusters": (10, 784, np.uint8, 256, "sm_90", 1),
        "embeddings, float16": (10, 768, np.float16, 256, "sm_100", 1),
        "float64": (10, 300, np.float64, 256, "sm_90", 128),
        "two classes": (2, 30, np.float64, 200, "sm_80", 1),
        "many classes": (32, 100, np.float32, 128, "sm_90", 128),
        "many classes, float64": (16, 100, np.float64, 128, "sm_100", 1),
        "rows that are not aligned": (24, 317, np.float32, 200, "sm_80", 1),
    }
    return [pytest.param(*shape, id=name) for name, shape in shapes.items()]


@pytest.mark.parametrize(("k", "d", "dtype", "batch", "architecture", "m"), builds())
def test_the_kernel_compiles_without_spilling_registers(
    monkeypatch, k, d, dtype, batch, architecture, m
):
    emulated_cupy.install(monkeypatch)
    shape = {"m": m, "k": k, "n": max(k, 300), "d": d, "dtype": dtype, "batch": batch}
    problem, *_ = make_case(CupyBackend(), 0, **SHAPE | shape)
    memory, cluster = (166912, 1) if architecture == "sm_80" else (232448, 8)
    plan = Plan.of(problem, batch, Device(-1, 132, memory, cluster, 256))
    report = assert_no_register_is_spilled(plan.build.unit(), architecture)
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    assert registers * plan.build.THREADS <= 65536

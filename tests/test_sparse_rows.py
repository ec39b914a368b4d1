"""The kernel for sparse rows on a device: against the reference, emulated and on a device."""

import re
from dataclasses import replace

import emulated_cupy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernels import (
    H100,
    assert_an_epoch_equals_the_reference,
    assert_it_repeats_the_reference,
    assert_threads_may_run_in_any_order,
    make_case,
    run,
)

from skmax import kernels
from skmax.backends.cupy import CupyBackend
from skmax.kernels import sparse_rows
from skmax.kernels.sparse_rows import KEYS, PARAMETERS, Plan
from skmax.solvers.sgd import sgd_epoch

RARE = [
    "soft", "smoothing", "weights", "scores", "own columns", "masked", "l1", "no intercept",
    "plain", "not centred", "untidy",
]  # fmt: skip
SHAPE = {
    "m": 1, "k": 5, "n": 40, "d": 30, "dtype": np.float32, "batch": 16, "rare": (), "density": 0.2,
}  # fmt: skip


def device(n_processors):
    """One with so few multiprocessors, as the emulation has a thread for each of theirs."""
    return replace(H100, n_processors=n_processors, shared_bytes_in_all=233472)


@st.composite
def shapes(draw):
    """What `make_case` needs."""
    return {
        "m": draw(st.integers(1, 3)),
        "k": draw(st.sampled_from([2, 3, 10, 33])),
        "n": draw(st.integers(34, 60)),
        "d": draw(st.sampled_from([1, 7, 33, 100])),
        "dtype": draw(st.sampled_from([np.float32, np.float64])),
        "batch": draw(st.sampled_from([5, 20, 60])),
        "rare": draw(st.sets(st.sampled_from(RARE))),
        "density": draw(st.sampled_from([0.0, 0.05, 0.5])),
    }


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), shapes(), st.integers(1, 2))
def test_the_emulated_epoch_equals_the_reference(emulated, seed, shape, n_processors):
    def kernel(case):
        return Plan.of(case[0], shape["batch"], device(n_processors))

    emulated_cupy.Kernel.seed = seed % 2**31
    assert_an_epoch_equals_the_reference(kernel, CupyBackend(), seed, shape)


@pytest.mark.parametrize(
    ("k", "m", "dtype"),
    [(140, 2, np.float32), (140, 4, np.float64), (530, 1, np.float32)],
    ids=["of a block", "more than a block has threads", "more than registers"],
)
def test_a_block_has_a_row(emulated, k, m, dtype):
    shape = SHAPE | {"m": m, "k": k, "n": k + 9, "d": 3, "dtype": dtype, "batch": k}
    shape["rare"] = ("soft", "weights", "scores")

    def kernel(case):
        return Plan.of(case[0], shape["batch"], device(2))

    assert_an_epoch_equals_the_reference(kernel, CupyBackend(), 1, shape)


@pytest.mark.parametrize("pieces", [1, 5, None], ids=["one", "few", "all"])
def test_features_that_most_rows_have(emulated, pieces):
    """Their entries are summed in pieces, which are larger where there is memory for few."""
    shape = SHAPE | {"n": 130, "d": 3, "batch": 100, "density": 0.9, "rare": ("weights",)}

    def kernel(case):
        plan = Plan.of(case[0], shape["batch"], device(1))
        return plan if pieces is None else replace(plan, pieces=pieces)

    assert_an_epoch_equals_the_reference(kernel, CupyBackend(), 2, shape)


def test_some_of_the_rows_in_an_epoch(emulated):
    problem, state, steps = make_case(CupyBackend(), 3, **SHAPE)
    order = steps.order[:21]
    problem, steps = replace(problem, order=order), replace(steps, order=order)
    found = run(Plan.of(problem, 16, device(1)), problem, state, steps)
    expected = run(sgd_epoch, problem, state, steps)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_first_steps_of_an_epoch(emulated):
    problem, state, steps = make_case(CupyBackend(), 0, **SHAPE)
    few = replace(steps, order=steps.order[:32], rates=steps.rates[:2])
    plan = Plan.of(problem, 16, device(2))
    found, expected = run(plan, problem, state, few), run(sgd_epoch, problem, state, few)
    np.testing.assert_allclose(found["coef"], expected["coef"], atol=1e-5)


@pytest.mark.parametrize(("m", "k"), [(1, 3), (2, 5)])
def test_threads_may_run_in_any_order(emulated, m, k):
    shape = {"m": m, "k": k, "d": 100, "rare": ("l1", "weights")}
    case = make_case(CupyBackend(), 1, **SHAPE | shape)
    plan = Plan.of(case[0], 16, device(2))
    assert_threads_may_run_in_any_order(plan, case)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_shows_in_the_loss(emulated, bad):
    problem, state, steps = make_case(CupyBackend(), 0, **SHAPE)
    state.coef[0, 0, 0] = bad
    with np.errstate(invalid="ignore"):
        found = run(Plan.of(problem, 16, device(1)), problem, state, steps)
    assert np.isnan(found["loss"]).all()


def test_classes_that_a_model_must_not_know_stay_unknown(emulated):
    problem, state, steps = make_case(CupyBackend(), 0, **SHAPE | {"rare": ("masked",)})
    state = replace(state, coef=0 * state.coef, coef_velocity=0 * state.coef_velocity)
    found = run(Plan.of(problem, 16, device(1)), problem, state, steps)
    assert (found["intercept"][problem.masked] < -1e29).all()


@pytest.mark.parametrize("shape", [{"precision": np.float64}, {"rare": ("shift",)}], ids=str)
def test_what_the_kernel_does_not_serve(emulated, shape):
    problem, *_ = make_case(CupyBackend(), 0, **SHAPE | shape)
    assert Plan.of(problem, 16, device(2)) is None


def test_what_does_not_fit_the_memory_is_not_served(emulated, monkeypatch):
    problem, *_ = make_case(CupyBackend(), 0, **SHAPE)
    assert Plan.of(problem, 16, device(2)) is not None
    monkeypatch.setattr(sparse_rows, "_FREE", 0)
    monkeypatch.setattr(CupyBackend, "free_bytes", lambda _: 1000)
    assert Plan.of(problem, 16, device(2)) is None


def test_more_entries_than_keys_can_count_are_not_served(emulated, monkeypatch):
    problem, *_ = make_case(CupyBackend(), 0, **SHAPE)
    monkeypatch.setattr(sparse_rows, "_KEY", 10)
    assert Plan.of(problem, 16, device(2)) is None


def test_sparse_rows_are_its_own(emulated):
    problem, *_ = make_case(CupyBackend(), 0, **SHAPE)
    assert type(kernels.sgd_epoch(problem, 20)) is Plan


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [("keys_of_entries", KEYS), ("sgd_epoch_of_sparse_rows", PARAMETERS)],
)
def test_arguments_are_in_the_order_of_the_parameters(kernel, expected):
    (parameters,) = re.findall(rf"{kernel}\(([^)]*)\)", sparse_rows.units()[0].source())
    assert tuple(re.findall(r"(\w+)(?:,|$)", parameters)) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [2, 20, 413])
def test_the_epoch_of_a_device_with_poisoned_memory_equals_the_reference(dtype, k):
    """With fresh data; twice, bit for bit."""
    backend, seed = CupyBackend(), np.random.SeedSequence().entropy
    shape = {"m": 2, "k": k, "n": 3000, "d": 5000, "dtype": dtype, "batch": 256, "density": 0.003}
    for rare in ((), ("weights", "scores", "l1", "smoothing"), ("soft", "masked", "plain")):
        shape["rare"] = rare
        case = make_case(backend, seed, **shape)
        plan = kernels.sgd_epoch(case[0], 256)
        assert isinstance(plan, Plan)
        assert_it_repeats_the_reference(plan, case, seed, shape)

"""The kernel for many classes: against the reference, emulated on the CPU and on a device."""

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
from skmax.kernels import many_classes
from skmax.kernels.many_classes import PARAMETERS, Plan

RARE = [
    "soft", "smoothing", "weights", "scores", "own columns", "masked", "l1", "no intercept",
    "plain", "not centred",
]  # fmt: skip
SHAPE = {"m": 1, "k": 40, "n": 50, "d": 70, "dtype": np.float32, "batch": 20, "rare": ()}


def device(n_processors):
    """One with so few multiprocessors, as the emulation has a thread for each of theirs."""
    return replace(H100, n_processors=n_processors, shared_bytes_in_all=233472)


@st.composite
def shapes(draw):
    """What `make_case` needs."""
    return {
        "m": draw(st.integers(1, 3)),
        "k": draw(st.sampled_from([3, 33, 70])),
        "n": draw(st.integers(70, 90)),
        "d": draw(st.sampled_from([1, 7, 32, 70, 132, 200])),
        "dtype": draw(st.sampled_from([np.uint8, np.int16, np.float16, np.float32, np.float64])),
        "batch": draw(st.sampled_from([5, 32, 67])),
        "rare": draw(st.sets(st.sampled_from(RARE))),
    }


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), shapes(), st.sampled_from([3, 4]))
def test_the_emulated_epoch_equals_the_reference(emulated, seed, shape, n_processors):
    def kernel(case):
        return Plan.of(case[0], shape["batch"], device(n_processors))

    emulated_cupy.Kernel.seed = seed % 2**31
    assert_an_epoch_equals_the_reference(kernel, CupyBackend(), seed, shape)


@pytest.mark.parametrize(
    ("k", "rare"), [(140, ("soft", "weights")), (1030, ())], ids=["soft", "more than registers"]
)
def test_a_block_has_a_row(emulated, k, rare):
    shape = SHAPE | {"k": k, "n": k, "d": 1, "batch": k, "rare": rare}

    def kernel(case):
        return Plan.of(case[0], shape["batch"], device(1))

    assert_an_epoch_equals_the_reference(kernel, CupyBackend(), 1, shape)


def test_threads_may_run_in_any_order(emulated):
    shape = {"m": 2, "d": 130, "rare": ("l1", "weights")}
    case = make_case(CupyBackend(), 1, **SHAPE | shape)
    plan = Plan.of(case[0], 20, device(2))
    assert_threads_may_run_in_any_order(plan, case)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_shows_in_the_loss(emulated, bad):
    problem, state, steps = make_case(CupyBackend(), 0, **SHAPE)
    state.coef[0, 0, 0] = bad
    with np.errstate(invalid="ignore"):
        found = run(Plan.of(problem, 20, device(1)), problem, state, steps)
    assert np.isnan(found["loss"]).all()


@pytest.mark.parametrize("shape", [{"rare": ("shift",)}, {"dtype": np.int64}], ids=str)
def test_what_the_kernel_does_not_serve(emulated, shape):
    problem, *_ = make_case(CupyBackend(), 0, **SHAPE | shape)
    assert Plan.of(problem, 20, device(2)) is None


def test_many_classes_are_its_own(emulated):
    for k, expected in ((32, kernels.cuda.Plan), (33, Plan)):
        problem, *_ = make_case(CupyBackend(), 0, **SHAPE | {"k": k})
        assert type(kernels.sgd_epoch(problem, 20)) is expected


def test_without_clusters_few_models_share_the_device(emulated, monkeypatch):
    monkeypatch.setattr(emulated_cupy.Device, "compute_capability", "80")
    for m, expected in ((1, Plan), (4, Plan), (5, kernels.cuda.Plan)):  # of 16 multiprocessors
        problem, *_ = make_case(CupyBackend(), 0, **SHAPE | {"m": m, "k": 3})
        assert type(kernels.sgd_epoch(problem, 20)) is expected


def test_arguments_are_in_the_order_of_the_parameters():
    (parameters,) = re.findall(
        r"sgd_epoch_of_many_classes\(([^)]*)\)", many_classes.units()[0].source()
    )
    assert tuple(re.findall(r"(\w+)(?:,|$)", parameters)) == PARAMETERS


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("k", "d", "batch"), [(100, 384, 256), (1000, 97, 200), (2500, 64, 100), (40, 784, 1024)]
)
def test_the_epoch_of_a_device_with_poisoned_memory_equals_the_reference(dtype, k, d, batch):
    """With fresh data; twice, bit for bit."""
    backend, seed = CupyBackend(), np.random.SeedSequence().entropy
    shape = {"m": 2, "k": k, "n": 3000, "d": d, "dtype": dtype, "batch": batch}
    for rare in ((), ("weights", "scores", "l1", "smoothing"), ("soft", "masked", "plain")):
        shape["rare"] = rare
        case = make_case(backend, seed, **shape)
        plan = kernels.sgd_epoch(case[0], batch)
        assert isinstance(plan, Plan)
        assert_it_repeats_the_reference(plan, case, seed, shape)

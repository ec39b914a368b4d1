"""The kernel for few classes on tensor cores beside the reference."""

import re
from dataclasses import replace

import emulated_cupy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernels import (
    H100,
    RARE,
    SHAPE,
    assert_an_epoch_equals_the_reference,
    assert_it_repeats_the_reference,
    assert_no_register_is_spilled,
    assert_threads_may_run_in_any_order,
    compiler_report,
    make_case,
    run,
)

from skmax import kernels
from skmax.backends.cupy import CupyBackend
from skmax.kernels import cuda, few_classes
from skmax.kernels.few_classes import PARAMETERS, Build, Plan, builds

SERVED = sorted({*RARE} - {"shift", "F-ordered"})
DTYPES = {1: [np.uint8, np.bool_], 2: [np.float16], 4: [np.float32]}
WEIGHTED = {"batch": 256, "rare": ("weights",)}
EXAMPLES = {"u8": (1, 10, 8, 4, 1), "f32": (4, 10, 8, 2, 1)}


@pytest.fixture
def chosen(monkeypatch):
    """Called with a build, lets all plans have it, wherever another kernel would be as fast."""

    def choose(build):
        monkeypatch.setattr(few_classes, "_build", lambda *_: build)

    return choose


@st.composite
def shapes(draw, sizes):
    """A build, and what `make_case` needs of what it serves."""
    build = draw(st.sampled_from([b for b in builds() if (b.DATA_BYTES, b.CLUSTER) in sizes]))
    batch = draw(st.sampled_from([1, 5, 16, 33, 64, 65, 130]))
    k = draw(st.sampled_from([k for k in (2, 3, 9, 10, 13, 20, 32) if k <= build.CLASSES]))
    values = max(1, 4 // build.DATA_BYTES)  # that are copied at once
    return build, {
        "m": draw(st.integers(1, 2)),
        "k": k,
        "n": max(k, draw(st.integers(1, 2)) * batch + draw(st.integers(0, batch))),
        "d": values * draw(st.integers(1, min(400, build.n_features) // values)),
        "dtype": draw(st.sampled_from(DTYPES[build.DATA_BYTES])),
        "batch": batch,
        "rare": draw(st.sets(st.sampled_from(SERVED))),
    }


def planned(case, batch):
    plan = Plan.of(case[0], batch, H100)
    assert plan is not None
    return plan


@settings(max_examples=16, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), shapes([(1, 8), (4, 8)]))
def test_the_epoch_of_the_emulated_device_equals_the_reference(emulated, chosen, seed, drawn):
    build, shape = drawn
    chosen(build)
    emulated_cupy.Kernel.seed = seed % 2**31
    assert_an_epoch_equals_the_reference(
        lambda case: planned(case, shape["batch"]), CupyBackend(), seed, shape
    )


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        ((1, 10, 16, 2, 1), {"d": 784, "dtype": np.uint8, "rare": ("weights", "l1")}),
        ((1, 10, 16, 4, 2), {"d": 3000, "dtype": np.uint8, "rare": ("weights", "smoothing")}),
        ((2, 10, 16, 2, 1), {"d": 386, "dtype": np.float16, "rare": ("soft", "masked")}),
        ((1, 10, 8, 4, 1), {"d": 784, "n": 770, "batch": 256, "dtype": np.uint8, "m": 1}),
        ((1, 10, 16, 2, 1), {"d": 784, "n": 520, "batch": 250, "dtype": np.bool_, "m": 1}),
        ((4, 10, 8, 2, 1), {"d": 300, "n": 520, "batch": 256, "dtype": np.float32}),
        ((1, 2, 8, 4, 1), {"d": 784, "n": 520, "batch": 256, "k": 2, "dtype": np.uint8}),
        ((1, 10, 8, 4, 1), WEIGHTED | {"d": 784, "n": 770, "dtype": np.uint8, "m": 3}),
        ((1, 10, 16, 2, 1), WEIGHTED | {"d": 784, "n": 520, "batch": 250, "dtype": np.bool_}),
        ((4, 10, 8, 2, 1), WEIGHTED | {"d": 300, "n": 520, "dtype": np.float32}),
        ((1, 10, 8, 4, 1), {"d": 784, "n": 470, "batch": 200, "dtype": np.uint8, "m": 2}),
        ((1, 10, 16, 2, 1), {"d": 784, "n": 330, "batch": 130, "dtype": np.uint8}),
        ((4, 10, 8, 2, 1), WEIGHTED | {"d": 300, "n": 470, "batch": 200, "dtype": np.float32}),
        ((2, 10, 16, 2, 1), {"d": 384, "n": 330, "batch": 150, "dtype": np.float16}),
    ],
    ids=[
        *("16 blocks", "many features", "float16"),
        *("whole batches",) * 4,
        *("weighted",) * 3,
        *("most of a batch",) * 4,
    ],
)
def test_other_builds_equal_the_reference(emulated, chosen, build, shape):
    chosen(Build(*build))
    shape = SHAPE | {"n": 40, "batch": 33, "k": 9} | shape
    assert_an_epoch_equals_the_reference(
        lambda case: planned(case, shape["batch"]), CupyBackend(), 3, shape
    )


@pytest.mark.parametrize("build", EXAMPLES.values(), ids=EXAMPLES)
def test_threads_may_run_in_any_order(emulated, chosen, build):
    chosen(Build(*build))
    dtype = DTYPES[build[0]][0]
    shape = {"m": 2, "d": 260, "dtype": dtype, "batch": 33, "n": 110, "rare": ("l1", "weights")}
    case = make_case(CupyBackend(), 1, **SHAPE | shape)
    assert_threads_may_run_in_any_order(planned(case, 33), case)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e36])
@pytest.mark.parametrize("build", EXAMPLES.values(), ids=EXAMPLES)
def test_weights_that_are_no_numbers_show_in_the_loss(emulated, chosen, build, bad):
    """Not those that are large and no worse."""
    chosen(Build(*build))
    dtype = DTYPES[build[0]][0]
    shape = SHAPE | {"m": 2, "k": 10, "d": 40, "dtype": dtype, "batch": 33}
    problem, state, steps = make_case(CupyBackend(), 1, **shape)
    coef = np.array(state.coef)
    for k, f in ((2, 7), (9, 39)):
        coef[0, k, f] = bad
    after = run(planned((problem,), 33), problem, replace(state, coef=coef), steps)
    assert np.isnan(after["loss"][0]) or (bad == 1e36 and not after["loss"][0] < 1e30)
    assert np.isfinite(after["loss"][1])


def test_rows_that_are_streamed_equal_those_on_the_device(emulated, chosen, monkeypatch):
    chosen(Build(*EXAMPLES["u8"]))
    shape = SHAPE | {"n": 70, "d": 40, "dtype": np.uint8, "rare": ("weights", "soft")}
    expected = run(planned(make_case(CupyBackend(), 1, **shape), 16), *make_case(
        CupyBackend(), 1, **shape
    ))  # fmt: skip
    monkeypatch.setattr("skmax.data.device._SHARE", 0)
    monkeypatch.setattr("skmax.data.device._PIECE", 40 * 32)
    case = make_case(CupyBackend(), 1, **shape)
    found = run(planned(case, 16), *case)
    assert emulated_cupy.Kernel.launches["few_classes"] > 2
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)


def test_labels_of_any_integers(emulated, chosen):
    chosen(Build(*EXAMPLES["u8"]))
    problem, state, steps = make_case(CupyBackend(), 1, **SHAPE | {"dtype": np.uint8})
    plan = planned((problem,), 16)
    expected = run(plan, problem, state, steps)
    for dtype in (np.uint8, np.int32, np.int64):
        other = replace(problem, targets=problem.targets.astype(dtype))
        for name, values in run(plan, other, state, steps).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


# What is chosen


@pytest.mark.parametrize(
    ("shape", "build"),
    [
        ({"d": 784}, (1, 10, 16, 2, 1)),
        ({"d": 784, "m": 16}, (1, 10, 8, 4, 1)),
        ({"d": 784, "k": 2}, (1, 2, 16, 2, 1)),
        ({"d": 1000, "k": 16}, (1, 16, 16, 4, 2)),
        ({"d": 784, "dtype": np.float32}, (4, 10, 16, 2, 1)),
        ({"d": 300, "dtype": np.float32, "k": 32}, (4, 32, 8, 2, 1)),
        ({"d": 784, "dtype": np.float16}, (2, 10, 16, 2, 1)),
    ],
)
def test_the_build_that_is_chosen(emulated, shape, build):
    shape = SHAPE | {"k": 10, "dtype": np.uint8} | shape
    problem, *_ = make_case(CupyBackend(), 0, **shape)
    plan = Plan.of(problem, 16, H100)
    assert isinstance(plan, Plan)
    assert plan.build == Build(*build)
    assert plan.build in builds()


@pytest.mark.parametrize(
    ("shape", "device"),
    [
        ({"k": 33, "n": 80}, H100),
        ({"batch": 257, "n": 300}, H100),
        ({"d": 4000}, H100),
        ({"d": 786}, H100),
        ({"d": 8}, H100),
        ({"m": 128, "d": 100}, H100),
        ({"dtype": np.int16}, H100),
        ({"dtype": np.float64}, H100),
        ({"rare": ("shift",)}, H100),
        ({"precision": np.float64}, H100),
        ({}, replace(H100, cluster=1)),
        ({"d": 1000}, replace(H100, shared_bytes=101376)),
        ({}, replace(H100, shared_bytes=49152)),
    ],
    ids=[
        "many classes", "large batches", "many features", "rows that no copy fits", "few features",
        "few features, many models", "int16", "float64", "shift", "weights of float64",
        "no clusters", "small clusters", "little memory",
    ],
)  # fmt: skip
def test_what_is_not_served(emulated, shape, device):
    shape = SHAPE | {"d": 784, "dtype": np.uint8} | shape
    problem, *_ = make_case(CupyBackend(), 0, **shape)
    assert Plan.of(problem, shape["batch"], device) is None


def test_rows_that_are_not_laid_out_in_order_are_not_served(emulated, monkeypatch):
    monkeypatch.setattr("skmax.data.device.PinnedBuffer.send_all", lambda self, X: X)
    problem, *_ = make_case(
        CupyBackend(), 0, **SHAPE | {"d": 784, "dtype": np.uint8, "rare": ("F-ordered",)}
    )
    assert Plan.of(problem, 16, H100) is None


def test_a_small_device_gets_portable_clusters(emulated):
    problem, *_ = make_case(CupyBackend(), 0, **SHAPE | {"d": 784, "dtype": np.uint8, "k": 10})
    plan = Plan.of(problem, 16, replace(H100, shared_bytes=101376))
    assert plan.build == Build(1, 10, 8, 4, 1)


# The source


def test_arguments_are_in_the_order_of_the_parameters():
    source = builds()[0].unit().source()
    (parameters,) = re.findall(r" few_classes\(([^)]*)\)", source)
    assert tuple(re.findall(r"(\w+)(?:,|$)", parameters)) == PARAMETERS


def test_there_are_few_builds_and_each_fits_a_device():
    assert len(set(builds())) == len(builds()) <= 24
    assert all(build.shared_bytes <= H100.shared_bytes for build in builds())


@pytest.mark.parametrize("build", EXAMPLES.values(), ids=EXAMPLES)
def test_the_memory_of_a_block_is_what_the_kernel_takes(build):
    """The compiler checks it, of some builds."""
    pytest.importorskip("nvidia.cuda_nvrtc", reason="no nvidia-cuda-nvrtc-cu12")
    build = Build(*build)
    check = f'static_assert(Layout::total == {build.shared_bytes}, "");'
    compiler_report(build.unit(), ("-arch=sm_90",), check)


@pytest.mark.parametrize(
    ("build", "architecture"), [((1, 32, 8, 4, 1), "sm_90"), ((1, 16, 16, 4, 2), "sm_100")]
)
def test_the_kernel_compiles_without_spilling_registers(build, architecture):
    """Those that are not stored."""
    assert_no_register_is_spilled(Build(*build).unit(), architecture)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
@pytest.mark.parametrize("m", [1, 20])
def test_the_epoch_of_a_device_with_poisoned_memory_equals_the_reference(dtype, m):
    """With fresh data; twice, bit for bit."""
    backend, seed = CupyBackend(), np.random.SeedSequence().entropy
    if cuda.Device.of(backend.device).shared_bytes < H100.shared_bytes:
        pytest.skip("not a device of those that the kernel is for")
    shape = {"m": m, "k": 10, "n": 3000, "d": 784, "dtype": dtype, "batch": 256}
    for rare in (
        (), ("weights", "scores"), ("l1", "smoothing"), ("soft",), ("masked",),
        ("own columns", "weights", "no intercept"), ("not centred",), ("plain", "l1"),
    ):  # fmt: skip
        for change in ({}, {"k": 2, "batch": 64}, {"k": 16, "batch": 100}, {"k": 32}):
            changed = shape | {"rare": rare} | change
            case = make_case(backend, seed, **changed)
            plan = kernels.sgd_epoch(case[0], changed["batch"])
            assert isinstance(plan, Plan)
            assert_it_repeats_the_reference(plan, case, seed, changed)

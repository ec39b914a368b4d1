"""SoftmaxRegression on an NVIDIA GPU: correctness; speed beside the hardware's limits and peers.

    python benchmarks/gpu.py [--quick] [--data FOLDER] [--output FOLDER]

Needs one CUDA device and, beside skmax or a checkout of it: NumPy, SciPy, scikit-learn 1.9,
array-api-compat and CuPy 14 with the headers of CUDA. PyTorch and cuML take part where they are
installed. Nothing is downloaded: Fashion-MNIST is looked for in the folder given and where
``skmax.datasets.fetch_fashion_mnist`` looks. Where it is not, images of the same shape are made up,
which is said in the report; what an epoch takes does not depend on it.

FOLDER gets gpu.json (all figures) and gpu.md (the tables), written anew after each section. A run
takes about six minutes: what a section has no time left for is left out, and named. The exit
status is 1 where something failed. What was expected before the first run stands beside each
result.
"""

from __future__ import annotations

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # before SciPy is imported

import argparse
import cProfile
import json
import platform
import pstats
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, strftime
from traceback import format_exc
from typing import Any, NamedTuple

import cupy
import numpy as np
import scipy
import sklearn
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

try:
    import skmax
except ImportError:  # not installed: the checkout that this file is in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import skmax

from compare import Data, Row, add_ratios, cell, objective, table, timed
from data import embeddings, text

from skmax import BatchedGridSearchCV, SoftmaxRegression, kernels
from skmax.backends import float_dtype_for, resolve
from skmax.data import Rows, source
from skmax.datasets import fetch_fashion_mnist
from skmax.hyperparameters import Hyperparameters
from skmax.posing import Share, pose
from skmax.problem import Problem, State, Steps
from skmax.solvers.run import sgd
from skmax.solvers.sgd import SGD, sgd_epoch
from skmax.validation import Targets

SEED, BATCH, DEFAULT_BATCH, EPOCHS, FOLDS = 0, 256, 200, 10, 5
# Steps after which an epoch is compared with the reference.
STEPS = 12
# How far results may be from those of NumPy, or of float64, as a share of the largest entry; and a
# whole epoch in float32 from another one in float32.
ALLOWED, ALLOWED_IN_AN_EPOCH = {"float64": 1e-9, "float32": 1e-5, "uint8": 1e-5}, 1e-4
# Seconds that each section may take; what one leaves is there for the next.
BUDGET = {
    "versions": 10,
    "first fit": 40,
    "ceilings": 30,
    "correctness": 60,
    "epochs": 30,
    "classes": 60,
    "sparse": 15,
    "fits": 30,
    "embeddings": 90,
    "large": 40,
    "peers": 40,
}
# Rows, features and classes of embeddings that epochs are measured on, and batches.
CLASSES = [(50_000, 768, 1000), (50_000, 768, 100), (40_000, 384, 413), (40_000, 384, 50)]
BATCHES = (256, 1024)
# The same that fits are measured on, the values of C and the folds of a search, and a probe of
# ImageNet's size, in float16 on the device, with its batch.
EMBEDDINGS, SEARCH, SEARCH_FOLDS = (40_000, 384), np.logspace(-3, 3, 8), 3
LARGE, LARGE_BATCH = (1_280_000, 1024, 1000), 4096
# Where PyTorch computes, the rate (of 0.1, 0.2, 0.4, 0.6 and 0.8) with which its loop needs fewest
# epochs to the objective of LogisticRegression, and the lengths of its runs that are tried.
TORCH_DEVICE, TORCH_RATE, TORCH_EPOCHS = "cuda", 0.4, (2, 3, 4, 5, 6, 8, 12, 16)
# What a run was expected to give, written before there was one, for an H200.
PREDICTED = {
    "copy on the device": "4.3 TB/s (H100: 3.0)",
    "float32 matrix product": "50 TFLOP/s",
    "empty launch": "2.5 us",
    "barrier of 8 blocks": "0.3 us",
    "barrier of the grid": "1.5 us",
    "epoch, uint8, 1 model": "1.2 ms",
    "epoch, uint8, 16 models": "1.3 ms",
    "epoch, uint8, 128 models": "10 ms",
    "epoch, float32, 1 model": "1.6 ms",
    "epoch, float32, 16 models": "1.8 ms",
    "epoch, float32, 128 models": "12 ms",
    "first fit after installation": "2 s",
    "epoch, 1000 classes, batch 256": "6.5 ms",
    "epoch, 1000 classes, batch 1024": "3.5 ms",
    "epoch, 100 classes, batch 256": "3 ms",
    "epoch, 100 classes, batch 1024": "1.6 ms",
    "default fit, 413 classes": "0.1 s",
    "to 1e-4, 413 classes": "0.2 s",
    "to 1e-4, 50 classes": "0.1 s",
    "sweep, 8 C x 3 folds, 50 classes": "0.5 s",
    "epoch, 1,280,000 x 1024, 1000 classes": "0.15 s",
    "default fit, 1,280,000 x 1024, 1000 classes": "2 s",
    "launching an epoch, on the host": "0.3 ms",
    "drawing an order, on the host": "0.6 ms",
    "10 epochs, uint8, from NumPy": "20 ms",
    "10 epochs, uint8, from CuPy": "15 ms",
    "predict_proba, uint8, on CuPy": "1 ms",
    "search, 24 x 5 fits": "0.4 s",
    "skmax on CuPy": "0.05 s",
    "skmax from NumPy": "0.08 s",
    "LogisticRegression on CuPy": "20 times skmax",
    "PyTorch, a graph per epoch": "2 times skmax",
    "cuML": "10 times skmax",
}
EMPTY = 'extern "C" __global__ void barriers(int) {}'
CLUSTER_BARRIERS = r"""
extern "C" __global__ void __cluster_dims__(8, 1, 1) barriers(int n) {
    for (int i = 0; i < n; ++i)
        asm volatile("barrier.cluster.arrive.release.aligned;\n"
                     "barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
"""
GRID_BARRIERS = r"""
#include <cooperative_groups.h>
extern "C" __global__ void barriers(int n) {
    cooperative_groups::grid_group grid = cooperative_groups::this_grid();
    for (int i = 0; i < n; ++i) grid.sync();
}
"""


# What is measured on


class Ceilings(NamedTuple):
    """What the device can do at best; nan where it could not be measured."""

    copy: float  # bytes/s, read and written
    gemm: float  # FLOP/s of a float32 matrix product
    peak: float  # FLOP/s of float32 that its multiprocessors could do

    def epoch(self, X: np.ndarray, n_classes: int, m: int) -> float:
        """Seconds of an epoch of m models that moves X once and does the two products."""
        fastest = np.nanmax([self.gemm, self.peak])
        return float(np.fmax(X.nbytes / self.copy, 4 * X.size * n_classes * m / fastest))


@dataclass
class Bench:
    """What the sections share, and what they have found."""

    quick: bool
    folder: Path | None
    deadline: float = float("inf")
    source: str = ""
    results: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    ceilings: Ceilings = field(default_factory=lambda: Ceilings(*[float("nan")] * 3))

    @cached_property
    def images(self) -> Data:
        """Fashion-MNIST, or what takes its place: uint8, 0 to 255."""
        data, self.source = images(self.folder)
        if not self.quick:
            return data
        return Data(*(part[:2000].copy() for part in data))

    @cached_property
    def scaled(self) -> Data:
        """The same as float32 from 0 to 1."""
        X, y, X_test, y_test = self.images
        return Data(X.astype(np.float32) / 255, y, X_test.astype(np.float32) / 255, y_test)

    def typed(self, name: str) -> Data:
        """The same, uint8 as it comes and floats from 0 to 1."""
        if name == "uint8":
            return self.images
        X, y, X_test, y_test = self.scaled
        return Data(X.astype(name, copy=False), y, X_test.astype(name, copy=False), y_test)

    def tried(self, what: str, function: Callable[[], Row], *, ours: bool = True) -> Row:
        """What a function gives, or why it does not, which is a failure where it is of skmax."""
        if perf_counter() > self.deadline:
            return {"note": "left out: no time left"}
        print(f"{what} ...", file=sys.stderr, flush=True)
        try:
            return function()
        except Exception as error:  # the rest is worth having
            note = f"FAILED: {type(error).__name__}: {error}".splitlines()[0][:300]
            self.errors[what] = format_exc()
            self.failures += [f"{what}: {note}"] * ours
            return {"note": note}

    def require(self, what: str, ok: bool) -> str:
        """A note that is empty where all is well."""
        if ok:
            return ""
        self.failures.append(what)
        return "FAILED"

    def result(self, name: str, value: float, unit: str, floor: float | None = None) -> None:
        """Note a result for the last table, and the least that it could be."""
        row: Row = {"result": name, "measured": f"{cell('', value)} {unit}"}
        row["predicted"] = PREDICTED.get(name, "")
        if floor is not None and np.isfinite(floor):
            row |= {"floor": f"{cell('', floor)} {unit}", "ratio": value / floor}
        self.results.append(row)


def images(folder: Path | None) -> tuple[Data, str]:
    """Fashion-MNIST where it is on disk, else images that are made up; and which these are."""
    load = partial(
        fetch_fashion_mnist, data_home=folder, download_if_missing=False, return_X_y=True
    )
    try:
        return Data(*load(subset="train"), *load(subset="test")), "Fashion-MNIST"
    except OSError:
        X, y = made_up_images(70_000)
        return (
            Data(X[:60_000], y[:60_000], X[60_000:], y[60_000:]),
            "**Synthetic images** of the shape of Fashion-MNIST, which was not found",
        )


def made_up_images(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of 28 x 28 pixels, most of them 0: three prototypes per class, and noise.

    A tenth of the labels is wrong.
    """
    rng = np.random.default_rng(SEED)
    coarse = np.maximum(rng.normal(size=(30, 7, 7)), 0)
    prototypes = 100 * np.kron(coarse, np.ones((1, 4, 4))).reshape(30, 784).astype(np.float32)
    which = rng.integers(30, size=n)
    X = prototypes[which] * rng.uniform(0.3, 1.3, (n, 1)).astype(np.float32)
    X += 80 * rng.standard_normal(X.shape, dtype=np.float32) * (X > 0)
    X += 150 * (rng.random(X.shape, dtype=np.float32) < 0.05)
    y = np.where(rng.random(n) < 0.1, rng.integers(10, size=n), which % 10)
    return np.clip(X, 0, 255).astype(np.uint8), y


def stack(data: Rows, y: np.ndarray, m: int, *, varied: bool = False) -> tuple[Problem, SGD]:
    """The problem of one model, or of m models that learn from different folds, and its solver.

    Varied, some have an L1 penalty or smoothed labels. A weight that comes to zero leaves it as
    fast as it came, which multiplies what it is off by up to momentum / (1 - momentum): with an L1
    penalty, momentum is such that this is no more than one.
    """
    targets, rows = Targets.read(y), np.arange(len(y))
    parts = [rows] if m == 1 else [np.flatnonzero(rows % FOLDS != f) for f in range(FOLDS)]
    shares = [Share.of(targets, None, part, None) for part in parts]
    asked = [
        Hyperparameters(
            C=10.0 ** (j % 4 - 2),
            learning_rate=0.01 + 0.03 * j / m,
            l1_ratio=0.5 * (varied and j % 4 == 3),
            momentum=0.5 if varied and j % 4 == 3 else 0.9,
            label_smoothing=0.1 * (varied and j % 4 == 1),
            batch_size=min(BATCH, len(parts[0])),
        )
        for j in range(m)
    ]
    problem, _ = pose(data, shares, np.arange(m) % len(shares), asked)
    n_rows = np.array([len(parts[j % len(parts)]) for j in range(m)])
    solver = sgd(asked, problem, n_rows, [EPOCHS] * m)
    return problem, replace(solver, batch_size=BATCH)  # of all rows, not of those of a fold


# Measuring


def synchronize() -> None:
    """Wait for the device."""
    cupy.cuda.Device().synchronize()


def event() -> Any:
    """An event in the stream, recorded."""
    recorded = cupy.cuda.Event()
    recorded.record()
    return recorded


def elapsed(start: Any, stop: Any) -> float:
    """Milliseconds between two events."""
    stop.synchronize()
    return cupy.cuda.get_elapsed_time(start, stop)


def device_ms(function: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each call by events, to an idle device, after a first one."""
    function()
    times = []
    for _ in range(repeats):
        synchronize()
        start = event()
        function()
        times.append(elapsed(start, event()))
    return times


def wall(function: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """Seconds of each call, to an idle device, after a first one; and what the last one gave."""

    def complete() -> Any:
        value = function()
        synchronize()
        return value

    result, seconds = complete(), []
    for _ in range(repeats):
        result = None  # memory that it holds is there for the next one
        took, result = timed(complete)
        seconds.append(took)
    return seconds, result


def relative(found: Any, expected: Any) -> float:
    """The largest difference, as a share of the largest entry."""
    found, expected = (cupy.asnumpy(array).astype(np.float64) for array in (found, expected))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# The sections: each yields the lines of its table, and its docstring is the text above it


def versions(bench: Bench) -> Iterator[Row]:
    """The device, and the versions of what computes on it."""
    about = cupy.cuda.runtime.getDeviceProperties(0)
    device, runtime = cupy.cuda.Device(), cupy.cuda.runtime
    facts = {
        "GPU": about["name"].decode(),
        "driver": f"{driver()}, CUDA {runtime.driverGetVersion()}",
        "compute capability": device.compute_capability,
        "multiprocessors": str(device.attributes["MultiProcessorCount"]),
        "highest clock": f"{device.attributes.get('ClockRate', float('nan')) / 1e6:.2f} GHz",
        "memory": f"{about['totalGlobalMem'] / 2**30:.1f} GiB",
        "second-level cache": f"{about.get('l2CacheSize', 0) / 2**20:.0f} MiB",
        "CUDA runtime": str(runtime.runtimeGetVersion()),
        "CuPy": cupy.__version__,
        "PyTorch": installed("torch"),
        "cuML": installed("cuml"),
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "SciPy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "skmax": skmax.__version__,
        "cores of the host": str(os.cpu_count()),
        "date": strftime("%Y-%m-%d %H:%M"),
        "rows": f"{len(bench.images.X):,} x {bench.images.X.shape[1]}: {bench.source}",
    }
    yield from ({"data": name, "note": value} for name, value in facts.items())


def driver() -> str:
    """The version of the driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def installed(module: str) -> str:
    """The version of a package that need not be there."""
    if find_spec(module) is None:
        return "not installed"
    try:
        return version(module)
    except PackageNotFoundError:  # as cuML's, whose package has another name
        return "installed"


def ceilings(bench: Bench) -> Iterator[Row]:
    """What the device can do at best, and what waiting costs.

    Copying counts bytes read and written. Barriers are those of one cluster of 8 blocks, as the
    kernel has them, and of a cooperative grid with a block on each multiprocessor.
    """
    device = cupy.cuda.Device()
    processors = device.attributes["MultiProcessorCount"]
    lanes = {70: 64, 75: 64, 80: 64}.get(int(device.compute_capability), 128)
    peak = 2e3 * device.attributes.get("ClockRate", float("nan")) * processors * lanes
    measures: dict[str, tuple[Callable[[], float], float, str]] = {
        "copy on the device": (partial(copy_rate, bench.quick), 1e-12, "TB/s"),
        "float32 matrix product": (partial(gemm_rate, bench.quick), 1e-12, "TFLOP/s"),
        "empty launch": (launch_seconds, 1e6, "us"),
        "barrier of 8 blocks": (partial(barrier_seconds, CLUSTER_BARRIERS, 8), 1e6, "us"),
        "barrier of the grid": (partial(barrier_seconds, GRID_BARRIERS, processors), 1e6, "us"),
    }
    found = {"peak": peak}
    for name, (measure, scale, unit) in measures.items():
        row = bench.tried(name, partial(value_of, measure), ours=False)
        if "value" in row:
            found[name] = row.pop("value")
            row = {"measured": found[name] * scale, "unit": unit}
            bench.result(name, found[name] * scale, unit)
        yield {"data": name, "predicted": PREDICTED[name], **row}
    names = ("copy on the device", "float32 matrix product", "peak")
    bench.ceilings = Ceilings(*(found.get(name, float("nan")) for name in names))
    yield {"data": "float32 of all lanes", "measured": peak * 1e-12, "unit": "TFLOP/s"}


def value_of(measure: Callable[[], float]) -> Row:
    """What was measured, to be put into a line."""
    return {"value": measure()}


def copy_rate(quick: bool) -> float:
    """Bytes read and written per second, of an array much larger than the cache."""
    source = cupy.ones(2**20 if quick else 2**28, dtype=np.float32)
    target = cupy.zeros(source.shape, dtype=np.float32)
    times = device_ms(lambda: cupy.copyto(target, source), 20)
    return 2 * source.nbytes / median(times) * 1e3


def gemm_rate(quick: bool) -> float:
    """FLOP/s of a product of square matrices of float32, which CuPy does not round to TF32."""
    size = 256 if quick else 8192
    rng = np.random.default_rng(SEED)
    a, b = (cupy.asarray(rng.standard_normal((size, size), dtype=np.float32)) for _ in range(2))
    times = device_ms(lambda: a @ b, 20)
    return 2 * size**3 / median(times) * 1e3


def launch_seconds() -> float:
    """Seconds from one launch of an empty kernel to the next, of many in a row."""
    kernel = cupy.RawModule(code=EMPTY).get_function("barriers")
    count = 10_000

    def launches() -> None:
        for _ in range(count):
            kernel((1,), (32,), (np.int32(0),))

    return median(device_ms(launches, 5)) / count / 1e3


def barrier_seconds(source: str, blocks: int) -> float:
    """Seconds per barrier: what more of them take, so that the launch does not count."""
    cooperative = "cooperative_groups" in source
    kernel = cupy.RawKernel(
        source, "barriers", ("-std=c++17",), enable_cooperative_groups=cooperative
    )

    def launch(count: int) -> None:
        kernel((blocks,), (256,), (np.int32(count),))

    few, many = (median(device_ms(partial(launch, count), 10)) for count in (1000, 11_000))
    return (many - few) / 10_000 / 1e3


def correctness(bench: Bench) -> Iterator[Row]:
    """The kernel beside the reference in float64, and fits beside those of NumPy.

    Epochs: two, of batches that do not divide the rows; coefficients, intercepts and losses of the
    kernel against `sgd_epoch` on the same device in float64; allowed is also three times what
    `sgd_epoch` is off in the precision of the kernel. With 16 models, some have L1 penalties or
    smoothed labels, and they learn from different folds. Fits: the coefficients of three epochs at
    a fixed rate. Both must repeat to the last bit. Predictions for test rows must be equal but for
    ties.
    """
    for name, allowed in ALLOWED.items():
        X, y, X_test, _ = bench.typed(name)
        for m in (1, 16):
            several = f"{m} model{'s' * (m > 1)}"
            what = f"epochs, {name}, {several}"
            check = partial(check_epochs, bench, what, X[:10_019], y[:10_019], m, allowed)
            yield {"X": name, "data": f"epochs, {several}", **bench.tried(what, check)}
        what = f"fit, {name}"
        check = partial(check_fit, bench, what, X[:5000], y[:5000], X_test[:5000], allowed)
        yield {"X": name, "data": "fit", **bench.tried(what, check)}


def check_epochs(
    bench: Bench, what: str, X: np.ndarray, y: np.ndarray, m: int, allowed: float
) -> Row:
    """Two epochs of the kernel, twice, and of the reference in float64."""
    backend = resolve(X, "cupy")
    rows = partial(source, X, backend, shuffled=True)
    problem, solver = stack(rows(float_dtype_for(X)), y, m, varied=True)
    exact, _ = stack(rows(np.float64), y, m, varied=True)
    plan = kernels.sgd_epoch(problem, BATCH)
    if plan is None:
        raise AssertionError("the kernel does not serve this problem")
    first, again = (trained(plan, problem, solver, 2) for _ in range(2))
    rounded, expected = (trained(sgd_epoch, posed, solver, 2) for posed in (problem, exact))
    differences = [relative(*pair) for pair in zip(first, expected, strict=True)]
    equal = all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    difference, accuracy = float(np.max(differences[:-1])), differences[-1]
    rounding = max(relative(*pair) for pair in zip(rounded[:-1], expected[:-1], strict=True))
    allowed = max(allowed, 3 * rounding)
    # A row whose two best classes are as good as equal may count as right in one of them.
    good = difference <= allowed and accuracy <= 1e-3 and equal
    return {
        "difference": difference,
        "allowed": allowed,
        "of the reference": rounding,
        "two runs": "equal" if equal else "DIFFERENT",
        "note": bench.require(f"{what}: {differences}, equal: {equal}", good),
    }


def trained(run: Any, problem: Problem, solver: SGD, n_epochs: int) -> list[np.ndarray]:
    """Coefficients, intercepts, and the losses and right rows of the last of some epochs."""
    backend, rng = problem.backend, np.random.default_rng(SEED)
    state = State.start(problem)
    sums: Any = None
    for epoch in range(n_epochs):
        order = rng.permutation(problem.order)
        with backend.computing():
            state, sums = run(problem, state, solver.steps(epoch, order))
    return [backend.to_numpy(part) for part in (state.coef, state.intercept, *sums)]


def check_fit(
    bench: Bench, what: str, X: np.ndarray, y: np.ndarray, X_test: np.ndarray, allowed: float
) -> Row:
    """Two fits on the device, and one by NumPy."""
    model = SoftmaxRegression(
        max_iter=3, learning_rate=0.03, batch_size=BATCH, random_state=SEED, backend="cupy"
    )
    first, again = (clone(model).fit(X, y) for _ in range(2))
    expected = clone(model).set_params(backend="numpy").fit(X, y)
    difference = relative(first.coef_, expected.coef_)
    equal = np.array_equal(first.coef_, again.coef_)
    logits = np.sort(expected.decision_function(X_test), axis=1)
    ties = logits[:, -1] - logits[:, -2] <= 10 * allowed * np.abs(logits).max()
    apart = int(np.sum((first.predict(X_test) != expected.predict(X_test)) & ~ties))
    good = difference <= allowed and equal and apart == 0
    return {
        "difference": difference,
        "allowed": allowed,
        "two runs": "equal" if equal else "DIFFERENT",
        "other predictions": apart,
        "note": bench.require(f"{what}: {difference}, equal: {equal}, apart: {apart}", good),
    }


class Case(NamedTuple):
    """A stack of models of which epochs are measured: what an epoch is called with."""

    problem: Problem
    state: State
    steps: Steps

    @classmethod
    def of(cls, X: Any, y: np.ndarray, m: int = 1, batch: int = BATCH) -> Case:
        data = source(X, resolve(X, "cupy"), float_dtype_for(X), shuffled=True)
        problem, solver = stack(data, y, m)
        order = np.random.default_rng(SEED).permutation(problem.order)
        solver = replace(solver, batch_size=batch)
        return cls(problem, State.start(problem), solver.steps(0, order))

    def plan(self) -> Any:
        """What skmax would run its epochs by."""
        return kernels.sgd_epoch(self.problem, self.steps.batch_size) or sgd_epoch

    def run(self, epoch: Any, n_steps: int | None = None) -> Any:
        """The coefficients after an epoch, or its first steps; the device may still be at them."""
        steps = self.steps
        if n_steps is not None:
            n_rows = n_steps * steps.batch_size
            steps = replace(steps, order=steps.order[:n_rows], rates=steps.rates[:n_steps])
        with self.problem.backend.computing():
            return epoch(self.problem, self.state, steps)[0].coef


def measure_epochs(
    bench: Bench, what: str, X: Any, y: np.ndarray, m: int, batch: int, repeats: int = 15
) -> Row:
    """Milliseconds of an epoch, until the host goes on, and how far off some steps are."""
    case = Case.of(X, y, m, batch)
    plan = case.plan()
    difference = relative(case.run(plan, STEPS), case.run(sgd_epoch, STEPS))
    times = device_ms(partial(case.run, plan), repeats)
    good = difference <= ALLOWED_IN_AN_EPOCH
    return {
        "ms": median(times),
        "host": median(launching(partial(case.run, plan)) for _ in range(5)) * 1e3,
        "kernel": type(plan).__module__.rpartition(".")[2],
        "difference": difference,
        "note": bench.require(f"epoch of {what}: {difference}", good),
    }


def epochs(bench: Bench) -> Iterator[Row]:
    """Milliseconds per epoch of Fashion-MNIST.

    By events, from the first operation to the last, the device being idle before, so that what the
    host takes to send them counts; medians. Host: until the call returns. Floor: reading X once, or
    the arithmetic of both products on all multiprocessors, whichever is longer. Ratio: ms over the
    floor. Difference: of the coefficients after some steps from those of the reference, a call of
    CuPy per operation.
    """
    for name in ("uint8", "float32"):
        X, y, *_ = bench.typed(name)
        sizes = [
            (1, DEFAULT_BATCH),
            *((m, BATCH) for m in ((1, 4) if bench.quick else (1, 16, 128))),
        ]
        for m, batch in sizes:
            what = f"{name}, {m} model{'s' * (m > 1)}"
            what += f", batch {batch}" * (batch != BATCH)
            row = bench.tried(what, partial(measure_epochs, bench, what, X, y, m, batch))
            if "ms" in row:
                row["floor"] = 1e3 * bench.ceilings.epoch(X, 10, m)
                row["ratio"] = row["ms"] / row["floor"]
                bench.result(f"epoch, {what}", row["ms"], "ms", row["floor"])
            yield {"X": name, "models": m, "batch": batch, **row}
    draw = partial(np.random.default_rng(SEED).permutation, np.arange(len(bench.images.X)))
    drawing = median(timed(draw)[0] for _ in range(20)) * 1e3
    bench.result("drawing an order, on the host", drawing, "ms")
    yield {"X": "drawing an order", "host": drawing}


def classes(bench: Bench) -> Iterator[Row]:
    """Milliseconds per epoch of embeddings in float32, by classes and batch.

    Columns are those of the epochs above. PyTorch: a linear layer and SGD with momentum, an epoch
    being one CUDA graph, with float32 products and with those of TF32, which lose 13 of 24 bits.
    """
    for n, d, k in CLASSES:
        X, y = embeddings(n // (10 if bench.quick else 1), d, k)
        for batch in BATCHES:
            what = f"{k} classes, batch {batch}"
            row = bench.tried(what, partial(measure_epochs, bench, what, X, y, 1, batch))
            if "ms" in row:
                bench.result(f"epoch, {what}", row["ms"], "ms")
                if find_spec("torch") is not None and k > 99:
                    peer = partial(torch_epochs, X, y, batch)
                    row |= bench.tried(f"PyTorch, {what}", peer, ours=False)
            yield {"rows": len(X), "features": d, "classes": k, "batch": batch, **row}


def sparse_rows(bench: Bench) -> Iterator[Row]:
    """Milliseconds per epoch of text, 40,000 x 15,000 with 15 values per row, batches of 256.

    Columns are those of the epochs above.
    """
    for k in (20, 413):
        X, y = text(40_000 // (10 if bench.quick else 1), 15_000, k, 15)
        X = X.astype(np.float32)
        what = f"text, {k} classes"
        row = bench.tried(what, partial(measure_epochs, bench, what, X, y, 1, BATCH))
        if "ms" in row:
            bench.result(f"epoch, {what}", row["ms"], "ms")
        yield {"rows": X.shape[0], "classes": k, **row}


def torch_epochs(X: np.ndarray, y: np.ndarray, batch: int) -> Row:
    """Milliseconds of PyTorch's epochs."""
    return {
        f"PyTorch, {name}": median(device_ms(TorchLoop(X, y, batch, tf32=name == "TF32").replay, 5))
        for name in ("float32", "TF32")
    }


def launching(function: Callable[[], object]) -> float:
    """Seconds until a call returns, the device being idle before."""
    synchronize()
    return timed(function)[0]


def fits(bench: Bench) -> Iterator[Row]:
    """From a call to its result, the device being idle at both ends: medians of wall seconds.

    A fit runs 10 epochs at a fixed rate, batches of 256. "NumPy" and "CuPy" say what X is; from
    NumPy, it is moved to the device and fitted attributes come back. The search: 24 candidates, 5
    folds, 10 epochs. Floor: moving X, as measured, and the floors of the epochs.
    """
    seconds: dict[str, float] = {}
    for what, run, repeats in calls(bench):
        row = bench.tried(what, partial(wall_row, run, repeats))
        if "seconds" in row:
            seconds[what] = row["seconds"]
            floor = fit_floor(bench, what, seconds)
            scale, unit = (1.0, "s") if what.startswith("search") else (1e3, "ms")
            if what in PREDICTED:
                least = None if floor is None else scale * floor
                bench.result(what, scale * row["seconds"], unit, least)
            if floor is not None:
                row |= {"floor": floor, "ratio": row["seconds"] / floor}
        yield {"data": what, **row}
    yield {"data": "where a fit spends it", **bench.tried("profile", partial(profile, bench))}


def wall_row(run: Callable[[], Any], repeats: int) -> Row:
    """The median of some calls."""
    every, _ = wall(run, repeats)
    return {"seconds": median(every), "repeats": repeats, "all seconds": every}


def ten_epochs(**changes: Any) -> SoftmaxRegression:
    """The model that fits are measured with."""
    settings = {"max_iter": EPOCHS, "tol": 0, "learning_rate": 0.03, "batch_size": BATCH}
    return SoftmaxRegression(random_state=SEED, backend="cupy", **settings).set_params(**changes)


def dispatched(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call under array API dispatch."""
    with sklearn.config_context(array_api_dispatch=True):
        return function(*arguments)


def calls(bench: Bench) -> Iterator[tuple[str, Callable[[], Any], int]]:
    """What is measured, and how often."""
    repeats = 2 if bench.quick else 7
    for name in ("uint8", "float32"):
        X, y, *_ = bench.typed(name)
        there, labels = cupy.asarray(X), cupy.asarray(y)
        yield f"moving X to the device, {name}", partial(cupy.asarray, X), repeats
        yield f"10 epochs, {name}, from NumPy", partial(ten_epochs().fit, X, y), repeats
        model = ten_epochs()
        fit = partial(dispatched, model.fit, there, labels)
        yield f"10 epochs, {name}, from CuPy", fit, repeats
        predict = partial(dispatched, model.predict_proba, there)
        yield f"predict_proba, {name}, on CuPy", predict, repeats
    probabilities = cupy.zeros((len(X), 10), dtype=np.float32)
    yield "moving probabilities to the host", partial(cupy.asnumpy, probabilities), repeats
    X, y, *_ = bench.images
    yield "search, 24 x 5 fits", partial(search().fit, X, y), 1 if bench.quick else 3
    by_numpy = ten_epochs(backend="numpy")
    yield "10 epochs, uint8, by NumPy on the host", partial(by_numpy.fit, X, y), 1


def search() -> BatchedGridSearchCV:
    """24 candidates, 5 folds."""
    grid = {"C": np.logspace(-3, 2, 6), "learning_rate": [0.01, 0.02, 0.03, 0.05]}
    return BatchedGridSearchCV(ten_epochs(), grid, cv=FOLDS, refit=False)


def fit_floor(bench: Bench, what: str, seconds: dict[str, float]) -> float | None:
    """The least seconds that a call could take."""
    if "host" in what or not what.startswith(("10 epochs", "search")):
        return None
    name = "float32" if "float32" in what else "uint8"
    m = 24 * FOLDS if what.startswith("search") else 1
    floor = bench.ceilings.epoch(bench.typed(name).X, 10, m)
    moving = 0.0 if "from CuPy" in what else seconds.get(f"moving X to the device, {name}", 0.0)
    return EPOCHS * floor + moving


def profile(bench: Bench) -> Row:
    """Where the host is during a fit from NumPy; waiting for the device is in `asnumpy`."""
    X, y, *_ = bench.images
    profiler = cProfile.Profile()
    profiler.runcall(ten_epochs().fit, X, y)
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    spent = sorted(((own, where) for where, (_, _, own, *_) in stats.items()), reverse=True)
    lines = [f"{1e3 * own:.2f} ms {Path(file).name}:{name}" for own, (file, _, name) in spent[:20]]
    return {"note": "; ".join(lines[:4]), "profile": lines}


def first_fit(bench: Bench) -> Iterator[Row]:
    """The first default fit of Fashion-MNIST of a process, with nothing compiled before.

    CuPy keeps what it compiles in a folder, which is empty here.
    """
    script = """
import os, sys, time
import numpy as np
import cupy
from skmax import SoftmaxRegression
X = np.random.default_rng(0).integers(256, size=(60_000, 784), dtype=np.uint8)
y = np.arange(60_000) % 10
cupy.zeros(1)
start = time.perf_counter()
SoftmaxRegression(backend="cupy").fit(X, y)
cupy.cuda.Device().synchronize()
print(time.perf_counter() - start)
"""
    with TemporaryDirectory() as folder:
        paths = [str(Path(skmax.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        setting = {"CUPY_CACHE_DIR": folder, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-W", "ignore", "-c", script]
        done = subprocess.run(
            command, env=os.environ | setting, capture_output=True, text=True, check=True
        )
        compiled = len(list(Path(folder).rglob("*.cubin")))
    seconds = float(done.stdout.split()[-1])
    bench.result("first fit after installation", seconds, "s")
    yield {"seconds": seconds, "compiled": compiled}


def fits_of_embeddings(bench: Bench) -> Iterator[Row]:
    """Embeddings of 40,000 x 384 in float32 on the device: fits and a search, seconds.

    Default: SoftmaxRegression as it comes. To 1e-4: solver="lbfgs". LogisticRegression: its lbfgs,
    to its tol, on the device. F: the mean cross-entropy plus the penalty. The search: 8 values of C
    from 1e-3 to 1e3, 3 folds, no refit, its score the best mean accuracy.
    """
    for k in (413, 50):
        X, y = embeddings(EMBEDDINGS[0] // (10 if bench.quick else 1), EMBEDDINGS[1], k)
        there, labels = cupy.asarray(X), cupy.asarray(y)
        data = Data(X, y, X[:100], y[:100])
        models = {
            f"default fit, {k} classes": SoftmaxRegression(backend="cupy", random_state=SEED),
            f"to 1e-4, {k} classes": SoftmaxRegression(
                backend="cupy", random_state=SEED, solver="lbfgs"
            ),
            "LogisticRegression": LogisticRegression(max_iter=1000),
        }
        for what, model in models.items():
            ours = what != "LogisticRegression"
            fit = partial(fitted, model, there, labels, 3 if ours else 1)
            row = bench.tried(what, partial(measure_peer, fit, data), ours=ours)
            row.pop("test accuracy", None)
            if ours and "seconds" in row:
                bench.result(what, row["seconds"], "s")
            yield {"classes": k, "model": what, **row}
    what = "sweep, 8 C x 3 folds, 50 classes"
    model = SoftmaxRegression(backend="cupy", random_state=SEED)
    search = BatchedGridSearchCV(model, {"C": SEARCH}, cv=SEARCH_FOLDS, refit=False)
    row = bench.tried(what, partial(searched, search, there, labels, 3))
    if "seconds" in row:
        bench.result(what, row["seconds"], "s")
    yield {"classes": 50, "model": what, **row}


def searched(model: Any, X: Any, y: Any, repeats: int) -> Row:
    """The line of a search."""
    seconds, model = wall(partial(dispatched, clone(model).fit, X, y), repeats)
    return {"seconds": median(seconds), "repeats": repeats, "score": float(model.best_score_)}


def large(bench: Bench) -> Iterator[Row]:
    """A probe of ImageNet's size: 1,280,000 x 1024 in float16 on the device, 1000 classes.

    Values are made up. An epoch in batches of 4096, and a default fit.
    """
    n, d, k = LARGE
    n //= 100 if bench.quick else 1
    rng = np.random.default_rng(SEED)
    X, y = cupy.empty((n, d), np.float16), rng.integers(k, size=n)
    for first in range(0, n, 1 << 16):  # normal, and on the side of the class
        last = min(first + (1 << 16), n)
        noise = rng.standard_normal((1 << 12, d), dtype=np.float32)
        X[first:last] = cupy.asarray(np.resize(noise, (last - first, d)), dtype=np.float16)
    centers = cupy.asarray(rng.standard_normal((k, d), dtype=np.float32) / 4, dtype=np.float16)
    labels = cupy.asarray(y)
    for first in range(0, n, 1 << 16):
        X[first : first + (1 << 16)] += centers[labels[first : first + (1 << 16)]]
    what = f"{LARGE[0]:,} x {d}, {k} classes"
    row = bench.tried(what, partial(measure_epochs, bench, what, X, y, 1, LARGE_BATCH, 3))
    if "ms" in row:
        bench.result(f"epoch, {what}", row["ms"] / 1e3, "s")
        row["TFLOP/s"] = 4 * n * d * k / row["ms"] / 1e9
    yield {"data": "epoch", **row}
    model = SoftmaxRegression(backend="cupy", random_state=SEED)
    run = partial(dispatched, model.fit, X, labels)
    row = bench.tried(f"fit, {what}", partial(wall_row, run, 1))
    if "seconds" in row:
        bench.result(f"default fit, {what}", row["seconds"], "s")
        row["note"] = (
            f"{model.n_iter_} iterations, solver {model.solver_}"
            if hasattr(model, "solver_")
            else f"{model.n_iter_} iterations"
        )
    yield {"data": "default fit", **row}


class Fitted(NamedTuple):
    """What a peer has learned, and what it took."""

    seconds: list[float]
    coef: np.ndarray
    intercept: np.ndarray
    note: str = ""


def peers(bench: Bench) -> Iterator[Row]:
    """Seconds to the objective and the test accuracy of LogisticRegression, float32 from 0 to 1.

    skmax and LogisticRegression fit with their defaults, cuML likewise. PyTorch: a linear layer,
    SGD with momentum, a rate that falls to zero along half a cosine, one CUDA graph per epoch, rows
    and permutations on the device before the clock runs, with the fewest epochs of those tried that
    reach LogisticRegression. Reached: whether F is no more than a thousandth above that of
    LogisticRegression, and the accuracy no more than 0.002 below. Medians; capturing graphs and
    compiling do not count.
    """
    X, y, *_ = data = bench.scaled
    there, labels = cupy.asarray(X), cupy.asarray(y)
    default = SoftmaxRegression(random_state=SEED, backend="cupy")
    goal: list[Row] = []
    runs: dict[str, Callable[[], Fitted]] = {
        "LogisticRegression on CuPy": partial(fitted, LogisticRegression(), there, labels, 3),
        "skmax on CuPy": partial(fitted, default, there, labels, 7),
        "skmax from NumPy": partial(fitted, default, X, y, 7),
        "PyTorch, a graph per epoch": lambda: torch_fit(data, goal[0]),
    }
    if find_spec("cuml") is not None:
        runs["cuML"] = partial(cuml_fit, there, labels)
    if find_spec("torch") is None:
        del runs["PyTorch, a graph per epoch"]
    rows = []
    for name, run in runs.items():
        measure = partial(measure_peer, run, data)
        ours = name.startswith("skmax")
        row = {"model": name, **bench.tried(name, measure, ours=ours)}
        goal.append(row)
        if "F" in row and "F" in goal[0]:
            row["reached"] = "yes" if reaches(row, goal[0]) else "no"
        rows.append(row)
    rows.sort(key=lambda row: not row["model"].startswith("skmax"))  # what others are compared with
    yield from add_ratios(rows)
    for row in rows:
        if row["model"].startswith("skmax") and "seconds" in row:
            bench.result(row["model"], row["seconds"], "s")
        elif "time ratio" in row:
            bench.result(row["model"], row["time ratio"], "times skmax")


def reaches(row: Row, goal: Row) -> bool:
    """Whether a model is as good as another one, or all but."""
    return row["F"] <= 1.001 * goal["F"] and row["test accuracy"] >= goal["test accuracy"] - 0.002


def measure_peer(run: Callable[[], Fitted], data: Data) -> Row:
    """The line of a peer."""
    return peer_row(run(), data)


def peer_row(learned: Fitted, data: Data) -> Row:
    """Seconds, objective and accuracy."""
    logits = data.X_test @ learned.coef.T + learned.intercept
    return {
        "seconds": median(learned.seconds),
        "repeats": len(learned.seconds),
        "all seconds": learned.seconds,
        "F": objective(learned.coef, learned.intercept, data.X, data.y),
        "test accuracy": float(np.mean(np.argmax(logits, axis=1) == data.y_test)),
        "note": learned.note,
    }


def fitted(model: Any, X: Any, y: Any, repeats: int) -> Fitted:
    """A model with scikit-learn's interface."""
    fit = clone(model).fit if isinstance(X, np.ndarray) else partial(dispatched, clone(model).fit)
    seconds, model = wall(partial(fit, X, y), repeats)
    coef, intercept, n_iter = map(cupy.asnumpy, (model.coef_, model.intercept_, model.n_iter_))
    return Fitted(seconds, coef, intercept.astype(coef.dtype), f"{np.max(n_iter)} iterations")


def cuml_fit(X: Any, y: Any) -> Fitted:
    """cuML's model with its defaults, which is no estimator of scikit-learn's."""
    OfCuml = import_module("cuml.linear_model").LogisticRegression

    seconds, model = wall(lambda: OfCuml().fit(X, y), 3)
    coef, intercept = (cupy.asnumpy(cupy.asarray(part)) for part in (model.coef_, model.intercept_))
    # It has had its coefficients either way round.
    return Fitted(seconds, coef if len(coef) == len(intercept) else coef.T, intercept)


def torch_fit(data: Data, goal: Row) -> Fitted:
    """The shortest of several runs that reaches the goal; the longest if none does."""
    loop = TorchLoop(data.X, data.y)
    for n_epochs in TORCH_EPOCHS:
        seconds = [loop.fit(n_epochs) for _ in range(3)]
        learned = Fitted(seconds, *loop.weights(), note=f"{n_epochs} epochs")
        if "F" in goal and reaches(peer_row(learned, data), goal):
            break
    return learned


class TorchLoop:
    """SGD with momentum on a linear layer, data on the device, an epoch being one CUDA graph."""

    def __init__(self, X: np.ndarray, y: np.ndarray, batch: int = BATCH, *, tf32: bool = False):
        import torch

        torch.manual_seed(SEED)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        self.torch, self.batch = torch, batch
        self.X, self.y = (torch.from_numpy(part).to(TORCH_DEVICE) for part in (X, y))
        steps = -(-len(y) // batch)
        # What a graph reads must stay where it is: each epoch writes its own into these.
        self.order = torch.arange(len(y), device=TORCH_DEVICE)
        self.rates = torch.zeros(steps, device=TORCH_DEVICE)
        self.rate = torch.zeros((), device=TORCH_DEVICE)
        self.layer = torch.nn.Linear(X.shape[1], int(y.max()) + 1, device=TORCH_DEVICE)
        groups: list[dict[str, Any]] = [
            {"params": [self.layer.weight], "weight_decay": 1 / len(y)},
            {"params": [self.layer.bias]},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=self.rate, momentum=0.9, fused=True)
        self.replay = captured(self.epoch)

    def epoch(self) -> None:
        """The steps of an epoch."""
        for step, rows in enumerate(self.order.split(self.batch)):
            self.rate.copy_(self.rates[step])
            logits = self.layer(self.X.index_select(0, rows))
            self.optimizer.zero_grad()
            self.torch.nn.functional.cross_entropy(logits, self.y.index_select(0, rows)).backward()
            self.optimizer.step()

    def fit(self, n_epochs: int) -> float:
        """Seconds of some epochs, from weights of zero."""
        with self.torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.zero_()
                self.optimizer.state[parameter]["momentum_buffer"].zero_()
        steps = len(self.rates)
        progress = np.arange(n_epochs * steps, dtype=np.float32) / (n_epochs * steps)
        cosine = TORCH_RATE / 2 * (1 + np.cos(np.pi * progress)).reshape(n_epochs, steps)
        rates = self.torch.from_numpy(cosine).to(TORCH_DEVICE)
        orders = [self.torch.randperm(len(self.y)).to(TORCH_DEVICE) for _ in range(n_epochs)]

        def run() -> None:
            for order, of_epoch in zip(orders, rates, strict=True):
                self.order.copy_(order)
                self.rates.copy_(of_epoch)
                self.replay()
            synchronize()

        synchronize()
        return timed(run)[0]

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and intercepts."""
        layer = self.layer
        return layer.weight.detach().cpu().numpy().copy(), layer.bias.detach().cpu().numpy().copy()


def captured(function: Callable[[], None]) -> Callable[[], None]:
    """What a function of PyTorch does on the device, as a CUDA graph: a call replays it."""
    import torch

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        function()  # libraries start, and buffers of the optimiser come to be, before the capture
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "versions": versions,
    "first fit": first_fit,
    "ceilings": ceilings,
    "correctness": correctness,
    "epochs": epochs,
    "classes": classes,
    "sparse": sparse_rows,
    "fits": fits,
    "embeddings": fits_of_embeddings,
    "large": large,
    "peers": peers,
}


# Reporting


def run_section(name: str, bench: Bench) -> dict[str, Any]:
    """The lines of its table, as far as it came, and how long it took."""
    rows: list[Row] = []
    start = perf_counter()
    try:
        for row in SECTIONS[name](bench):
            rows.append(row)
    except Exception as error:  # the other sections are worth having
        note = f"FAILED: {type(error).__name__}: {error}".splitlines()[0]
        bench.errors[name] = format_exc()
        bench.failures.append(f"{name}: {note}")
        rows.append({"note": note})
    return {"seconds": perf_counter() - start, "rows": rows}


def text_of(name: str, section: dict[str, Any]) -> str:
    """A section in Markdown."""
    lines = (SECTIONS[name].__doc__ or "").strip().splitlines()
    summary = "\n".join(line.strip() for line in lines)
    seconds = f"{section['seconds']:.0f} s in all."
    return "\n\n".join([f"## {name}", summary, table(section["rows"]), seconds])


def summary_of(bench: Bench) -> str:
    """The results beside what was expected, and what failed."""
    failed = [f"- {failure}" for failure in bench.failures]
    verdict = "Nothing failed." if not failed else "\n".join(["**FAILED:**", "", *failed])
    return "\n\n".join(["## Results", table(bench.results) if bench.results else "None.", verdict])


def save(report: dict[str, Any], bench: Bench, folder: Path) -> None:
    """Write what has been measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    report |= {"results": bench.results, "failures": bench.failures, "errors": bench.errors}
    (folder / "gpu.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    part = "Small parts of the data only (--quick)." if bench.quick else ""
    data = f"{bench.source}. {part}".strip()
    parts = [text_of(name, section) for name, section in report["sections"].items()]
    text = "\n\n".join(["# skmax on a GPU", data, summary_of(bench), *parts])
    (folder / "gpu.md").write_text(text + "\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="small parts of the data: does everything run?")
    add("--data", type=Path, metavar="FOLDER", help="where the files of Fashion-MNIST are")
    add("--output", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the sections one after the other; print and write each as soon as it is there."""
    options = parse(argv)
    warnings.simplefilter("ignore")
    bench = Bench(options.quick, options.data)
    report: dict[str, Any] = {"quick": options.quick, "predicted": PREDICTED, "sections": {}}
    start, allotted = perf_counter(), 0.0
    for name in SECTIONS:
        allotted += BUDGET[name]
        bench.deadline = start + allotted
        report["sections"][name] = section = run_section(name, bench)
        report["seconds"] = perf_counter() - start
        save(report, bench, options.output)
        print(f"\n{text_of(name, section)}", flush=True)
    print(f"\n{summary_of(bench)}\n\nWritten to {options.output.resolve()}.")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())

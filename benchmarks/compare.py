"""skmax beside LogisticRegression, MLPClassifier, SGDClassifier, PyTorch and scikit-learn-intelex.

    python benchmarks/compare.py [--quick] [--only TASK ...] [--repeats N] [--output FOLDER]

Everything is measured in one process. Models take turns, and times are medians over the turns. What
takes more than 5 seconds gets at most three turns, and what takes more than 20 seconds one. Times
of Fashion-MNIST are also given as multiples of what the arithmetic alone would take on one core, at
the speed of a large float32 matrix product measured in the same run. PyTorch and
scikit-learn-intelex take part where they are installed. Run it on a machine that does nothing else:
models that compute on several threads suffer most from company. What other processes used is told.

FOLDER gets results.json (all figures), results.md (the tables) and objective.png (distance to the
optimum against time). A full run takes about ten minutes. Fashion-MNIST is found, or downloaded, by
``skmax.datasets.fetch_fashion_mnist``.

F is the objective of LogisticRegression with C=1, divided by the number of rows: mean cross-entropy
plus squared coefficients over twice the number of rows. SGDClassifier is one-vs-rest and has
another objective: where it is drawn, that is its cross-entropy alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter, strftime
from typing import Any, NamedTuple

import numpy as np
from joblib import cpu_count
from scipy import sparse
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier
from sklearn.utils import gen_batches
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

from skmax import SoftmaxRegression
from skmax.datasets import fetch_fashion_mnist

SEED = 0
BATCH = 256
FASHION_OPTIMUM = 0.34989281  # F of Fashion-MNIST, scaled to [0, 1], after 2860 iterations
Row = dict[str, Any]  # a line of a table; lists and dictionaries in it go to the JSON file only

STYLES = {
    "skmax, lbfgs": {"color": "#08519c", "marker": "o", "zorder": 4},
    "skmax": {"color": "#3a9bdc", "marker": "o", "zorder": 4},
    "LogisticRegression": {"color": "#d95f02", "marker": "s"},
    "scikit-learn-intelex": {"color": "#e6ab02", "marker": "D"},
    "MLPClassifier": {"color": "#7b5aa6", "marker": "^"},
    "SGDClassifier": {"color": "#777777", "marker": "v"},
    "PyTorch": {"color": "#1b9e77", "marker": "P"},
}


# What is measured on


class Data(NamedTuple):
    """Training rows and test rows."""

    X: Any
    y: np.ndarray
    X_test: Any
    y_test: np.ndarray


class Limits(NamedTuple):
    """What this machine can do at best."""

    gemm_one_core: float  # FLOP/s of a 2048 x 2048 x 2048 product of float32
    gemm_all_cores: float
    read_one_core: float  # bytes/s

    @classmethod
    def measure(cls) -> Limits:
        """The best of several tries each."""
        square = np.random.default_rng(SEED).standard_normal((2048, 2048), dtype=np.float32)
        large = np.ones(2**26, dtype=np.float32)

        def fastest(function: Callable[[], object]) -> float:
            return min(timed(function)[0] for _ in range(5))

        with threadpool_limits(1):
            one, read = fastest(lambda: square @ square), fastest(large.sum)
        every = fastest(lambda: square @ square)
        return cls(2 * 2048**3 / one, 2 * 2048**3 / every, large.nbytes / read)

    def epoch(self, X: np.ndarray, n_classes: int) -> float:
        """Seconds of the two products of an epoch (logits and gradient) on one core."""
        return 4 * X.size * n_classes / self.gemm_one_core

    def predict(self, X: np.ndarray, n_classes: int) -> float:
        """Seconds of the product, or of reading X, whichever is longer, on one core."""
        return max(2 * X.size * n_classes / self.gemm_one_core, X.nbytes / self.read_one_core)


@dataclass
class Bench:
    """What the tasks share."""

    quick: bool
    repeats: int
    limits: Limits = field(default_factory=Limits.measure)

    @cached_property
    def images(self) -> Data:
        """Fashion-MNIST as it comes: uint8, 0 to 255."""
        arrays = []
        for subset, quick_rows in (("train", 2000), ("test", 1000)):
            X, y = fetch_fashion_mnist(subset=subset, return_X_y=True)
            rows = slice(quick_rows if self.quick else None)
            arrays += [X[rows].copy(), y[rows].astype(np.int64)]
        return Data(*arrays)

    @cached_property
    def scaled(self) -> Data:
        """Fashion-MNIST as float32 from 0 to 1."""
        X, y, X_test, y_test = self.images
        return Data(X.astype(np.float32) / 255, y, X_test.astype(np.float32) / 255, y_test)


def text_like(n: int, n_test: int, d: int, k: int = 20, length: int = 100) -> Data:
    """Counts of Zipf-distributed words, 15 % of which depend on the class, weighted by tf-idf.

    A tenth of the labels is wrong.
    """
    rng = np.random.default_rng(SEED)
    total = n + n_test
    y = rng.permutation(np.arange(total) % k)
    lengths = rng.poisson(length, total) + 1
    document = np.repeat(np.arange(total), lengths)
    share = 1 / (np.arange(d) + 10.0)
    word = np.searchsorted(np.cumsum(share / share.sum())[:-1], rng.random(len(document)))
    topics = np.stack([rng.permutation(d) for _ in range(k)])
    word = np.where(rng.random(len(word)) < 0.15, topics[y[document], word], word)
    counts = sparse.csr_array((np.ones(len(word)), (document, word)), shape=(total, d))
    X = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    y = np.where(rng.random(total) < 0.1, rng.integers(k, size=total), y)
    return Data(X[:n], y[:n], X[n:], y[n:])


def gaussians(n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """One spherical Gaussian per class; any two classes overlap."""
    rng = np.random.default_rng(SEED)
    y = rng.permutation(np.arange(n) % k)
    centres = rng.normal(size=(k, d)) * 2 / np.sqrt(d)
    return centres[y] + rng.normal(size=(n, d)), y


# Measuring


class Timing(NamedTuple):
    """The turns of one model: what each took and returned; or why there were none."""

    seconds: list[float]
    results: list[Any]
    error: str | None = None


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and what it returns."""
    start = perf_counter()
    result = function()
    return perf_counter() - start, result


def interleaved(
    runs: dict[str, Callable[[], tuple[float, Any]]], repeats: int
) -> dict[str, Timing]:
    """Call each in turn, again and again. A run returns its own time, and a result."""
    timings = {name: Timing([], []) for name in runs}
    turns = dict.fromkeys(runs, repeats)
    for turn in range(repeats):
        for name, run in runs.items():
            if turn >= turns[name]:
                continue
            try:
                wall, (seconds, result) = timed(run)
            except Exception as error:  # a peer that cannot do it is told of in the table
                timings[name] = Timing([], [], f"{type(error).__name__}: {error}".splitlines()[0])
                turns[name] = 0
                continue
            timings[name].seconds.append(seconds)
            timings[name].results.append(result)
            turns[name] = min(turns[name], 1 if wall > 20 else 3 if wall > 5 else repeats)
    return timings


def to_row(name: str, timing: Timing, unit: str = "seconds", **more: Any) -> Row:
    """A line of a table."""
    if timing.error is not None:
        return {"model": name, "note": f"not available: {timing.error[:80]}"}
    scale = 1000 if unit.startswith("ms") else 1
    return {
        "model": name,
        unit: scale * median(timing.seconds),
        "repeats": len(timing.seconds),
        "all seconds": timing.seconds,
        **more,
    }


def add_ratios(rows: list[Row], unit: str = "seconds", limit: float | None = None) -> list[Row]:
    """Add times as multiples of the first line's, and of the limit in seconds."""
    first = rows[0].get(unit)
    for row in rows:
        if unit in row and first is not None:
            row["time ratio"] = row[unit] / first
        if unit in row and limit is not None:
            row["limit ratio"] = row[unit] / (1000 if unit.startswith("ms") else 1) / limit
    return rows


def compare_fits(
    models: dict[str, Any], data: Data, repeats: int, limit: float | None = None
) -> list[Row]:
    """Fit each model: seconds, objective, and accuracy where there are test rows."""

    def fit(model: Any) -> tuple[float, Any]:
        return timed(lambda: clone(model).fit(data.X, data.y))

    timings = interleaved({name: partial(fit, model) for name, model in models.items()}, repeats)
    rows = []
    for name, timing in timings.items():
        row = to_row(name, timing)
        if timing.results:
            if not isinstance(model := timing.results[-1], SGDClassifier):  # it has another one
                row["F"] = model_objective(model, data.X, data.y)
            if len(data.y_test):
                row["test accuracy"] = model.score(data.X_test, data.y_test)
        rows.append(row)
    return add_ratios(rows, limit=limit)


def objective(coef: np.ndarray, intercept: np.ndarray, X: Any, y: np.ndarray) -> float:
    """F of softmax regression, or of binary logistic regression where coef has one row."""
    dtype = np.float32 if X.dtype == np.float32 else np.float64
    penalty = np.sum(coef.astype(np.float64) ** 2) / 2
    if len(coef) == 1:
        coef, intercept = np.vstack([0 * coef, coef]), np.append(0, intercept)
    coef, intercept = coef.astype(dtype), intercept.astype(dtype)
    total = 0.0
    for rows in gen_batches(X.shape[0], 5000):
        logits = (X[rows].astype(dtype) @ coef.T + intercept).astype(np.float64)
        total += np.sum(logsumexp(logits, axis=1) - logits[np.arange(len(logits)), y[rows]])
    return float((total + penalty) / len(y))


def model_objective(model: Any, X: Any, y: np.ndarray) -> float:
    """F of a fitted model; of SGDClassifier, only the cross-entropy."""
    if isinstance(model, SGDClassifier):  # one-vs-rest: its penalty is that of another problem
        return log_loss(y, model.predict_proba(X))
    if isinstance(model, MLPClassifier):
        return objective(model.coefs_[0].T, model.intercepts_[0], X, y)
    return objective(model.coef_, model.intercept_, X, y)


# The peers


def logistic_peers() -> dict[str, Any]:
    """LogisticRegression with its defaults, by those who offer it."""
    peers = {"LogisticRegression": LogisticRegression()}
    if find_spec("sklearnex") is not None:
        from sklearnex.linear_model import LogisticRegression as Intelex

        peers["scikit-learn-intelex"] = Intelex()
    return peers


def minibatch_mlp(n: int) -> MLPClassifier:
    """Softmax regression by minibatches; the penalty, which it divides by the batch, is C=1's."""
    return MLPClassifier(
        (),
        solver="sgd",
        alpha=BATCH / n,
        batch_size=BATCH,
        learning_rate_init=0.1,
        tol=0,
        n_iter_no_change=10**6,
        random_state=SEED,
    )


def one_vs_rest_sgd(n: int) -> SGDClassifier:
    """Logistic regressions, one-vs-rest, that run all their epochs."""
    return SGDClassifier(loss="log_loss", alpha=1 / n, tol=None, random_state=SEED)


def torch_loop(
    X: np.ndarray, y: np.ndarray, n_epochs: int, recorder: Recorder | None = None
) -> None:
    """SGD with momentum on a linear layer, all data in memory, pixels of uint8 scaled to [0, 1]."""
    import torch

    torch.manual_seed(SEED)
    layer = torch.nn.Linear(X.shape[1], int(y.max()) + 1)
    groups = [{"params": layer.weight, "weight_decay": 1 / len(y)}, {"params": layer.bias}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    features, labels = torch.from_numpy(X), torch.from_numpy(y)
    for _ in range(n_epochs):
        for rows in torch.randperm(len(labels)).split(BATCH):
            batch = features[rows]
            if batch.dtype == torch.uint8:
                batch = batch.float().div_(255)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(batch), labels[rows]).backward()
            optimizer.step()
        if recorder is not None:
            recorder.record(layer.weight.detach().numpy(), layer.bias.detach().numpy())


def warm_up() -> None:
    """Import, and start threads, before anything is timed."""
    X, y = gaussians(300, 20, 3)
    X = X.astype(np.float32)
    models = [SoftmaxRegression(solver="sgd", max_iter=2), *logistic_peers().values()]
    for model in [*models, minibatch_mlp(300).set_params(max_iter=2), one_vs_rest_sgd(300)]:
        model.fit(X, y).predict_proba(X)
    if find_spec("torch") is not None:
        torch_loop(X, y, 1)


# The tasks: each returns the lines of its table, and its docstring is the text above it


def epoch(bench: Bench) -> list[Row]:
    """One epoch of Fashion-MNIST, batches of 256.

    The time of a fit of several epochs less that of a shorter one, per epoch between them: so
    neither checks nor conversions before the first epoch count. The limit is the arithmetic of the
    two matrix products on one core.
    """
    rows = []
    for name, (X, y, *_) in (("uint8", bench.images), ("float32", bench.scaled)):
        timings = interleaved(epoch_runs(X, y), bench.repeats)
        lines = [to_row(model, timing, "ms per epoch") for model, timing in timings.items()]
        add_ratios(lines, "ms per epoch", bench.limits.epoch(X, 10))
        rows += [{"X": name, **line} for line in lines]
    return rows


def epoch_runs(X: np.ndarray, y: np.ndarray) -> dict[str, Callable[[], tuple[float, Any]]]:
    """What measures an epoch of each model."""

    def fit(model: Any, n_epochs: int) -> None:
        clone(model).set_params(max_iter=n_epochs).fit(X, y)

    def difference(run: Callable[[int], None], few: int, many: int) -> tuple[float, None]:
        run(few)  # memory is fresh, and slow, the first time
        seconds = [timed(lambda n=n: run(n))[0] for n in (few, many)]
        return (seconds[1] - seconds[0]) / (many - few), None

    skmax = SoftmaxRegression(learning_rate=0.05, tol=0, batch_size=BATCH, random_state=SEED)
    runs = {
        "skmax": partial(difference, partial(fit, skmax), 2, 12),
        "MLPClassifier": partial(difference, partial(fit, minibatch_mlp(len(y))), 1, 7),
        "SGDClassifier": partial(difference, partial(fit, one_vs_rest_sgd(len(y))), 1, 2),
    }
    if find_spec("torch") is not None:
        runs["PyTorch"] = partial(difference, partial(torch_loop, X, y), 1, 5)
    return runs


def fashion(bench: Bench) -> list[Row]:
    """Fits with their defaults on Fashion-MNIST, float32 from 0 to 1, and skmax with 3 epochs.

    The limit ratio is the time in epochs as fast as the limit.
    """
    models = {
        "skmax": SoftmaxRegression(random_state=SEED),
        "skmax, 3 epochs": SoftmaxRegression(solver="sgd", max_iter=3, random_state=SEED),
        **logistic_peers(),
    }
    limit = bench.limits.epoch(bench.scaled.X, 10)
    return compare_fits(models, bench.scaled, bench.repeats, limit)


def uint8(bench: Bench) -> list[Row]:
    """Fits with their defaults on Fashion-MNIST as it comes: uint8, 0 to 255.

    The limit ratio is the time in epochs as fast as the limit. F is that of unscaled pixels.
    """
    models = {"skmax": SoftmaxRegression(random_state=SEED), **logistic_peers()}
    limit = bench.limits.epoch(bench.images.X, 10)
    return compare_fits(models, bench.images, bench.repeats, limit)


class Curve(NamedTuple):
    """The objective after so many seconds of fitting."""

    seconds: list[float]
    F: list[float]

    def seconds_to(self, goal: float) -> float | None:
        """When F passed a goal, interpolated between the points on both logarithmic scales."""
        after = next((i for i, value in enumerate(self.F) if value <= goal), None)
        if not after:
            return None if after is None else self.seconds[0]
        F, seconds = np.log(self.F[after - 1 : after + 1]), np.log(self.seconds[after - 1 :][:2])
        share = (np.log(goal) - F[0]) / (F[1] - F[0])
        return float(np.exp(seconds[0] + share * (seconds[1] - seconds[0])))


class Recorder:
    """Draws a Curve while a model fits; its clock stands still while it computes F.

    A callback of scikit-learn. Computes F after each of the first 20 epochs or iterations, then
    less and less often, on one thread, lest idle ones take time from the fit. Stops the fit when F
    has come down to `enough`.
    """

    def __init__(self, data: Data, enough: float = 0.0):
        self.curve = Curve([], [])
        self._data, self._enough = data, enough
        self._count, self._next = 0, 1
        self._pools = ThreadpoolController()
        self._start, self._paused = perf_counter(), 0.0

    def record(self, coef: np.ndarray, intercept: np.ndarray) -> bool:
        """Note time and F; whether F is low enough."""
        now = perf_counter()
        self._count += 1
        if self._count < self._next:
            return False
        self._next = max(self._count + 1, int(1.05 * self._count))
        self.curve.seconds.append(now - self._start - self._paused)
        with self._pools.limit(limits=1):
            self.curve.F.append(objective(coef, intercept, self._data.X, self._data.y))
        self._paused += perf_counter() - now
        return self.curve.F[-1] <= self._enough

    def setup(self, estimator: Any, context: Any) -> None:
        """Do nothing."""

    def teardown(self, estimator: Any, context: Any) -> None:
        """Do nothing."""

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Do nothing."""

    def on_fit_task_end(
        self, estimator: Any, context: Any, *, fitted_estimator: Any = None
    ) -> bool:
        """Note time and F of an epoch or iteration."""
        if fitted_estimator is None or context.parent is None:
            return False
        enough = self.record(fitted_estimator.coef_, fitted_estimator.intercept_)
        if enough and isinstance(estimator, LogisticRegression):
            raise StopIteration  # to SciPy's minimize: scikit-learn 1.9 passes on no answer
        return enough


def recorded(fit: Callable[[Recorder], object], data: Data, enough: float) -> tuple[float, Curve]:
    """The curve of a fit that tells a recorder of its epochs or iterations."""
    recorder = Recorder(data, enough)
    fit(recorder)
    return recorder.curve.seconds[-1], recorder.curve


def refitted(model: Any, data: Data, iterations: tuple[int, ...]) -> tuple[float, Curve]:
    """The curve of a model that knows no callbacks: a fit from the start for each point."""
    curve = Curve([], [])
    clone(model).set_params(max_iter=iterations[0]).fit(data.X, data.y)  # memory is fresh, and slow
    for max_iter in iterations:
        other = clone(model).set_params(max_iter=max_iter)
        curve.seconds.append(timed(lambda other=other: other.fit(data.X, data.y))[0])
        curve.F.append(model_objective(other, data.X, data.y))
    return curve.seconds[-1], curve


def optimum(bench: Bench) -> list[Row]:
    """Seconds to within 10 %, 1 % and 0.1 % of the least F, on Fashion-MNIST, from 0 to 1.

    Curves are in objective.png. MLPClassifier, SGDClassifier and scikit-learn-intelex report no
    progress: each of their points is a fit of its own. SGDClassifier is one-vs-rest and has another
    objective; its F here is the cross-entropy alone. What is left empty was not reached. The
    time ratio and the limit ratio (the time in epochs as fast as the limit) are those of 0.1 %.
    """
    data = bench.scaled
    if bench.quick:
        data = Data(data.X[:500], data.y[:500], data.X_test, data.y_test)
    best = least_objective(data, bench.quick)
    goals = {f"seconds to {100 * gap:g} %": (1 + gap) * best for gap in (0.1, 0.01, 0.001)}
    rows = []
    for name, timing in interleaved(curve_runs(data, best), min(3, bench.repeats)).items():
        row = to_row(name, timing, "whole run")
        for goal, F in goals.items() if timing.results else ():
            seconds = [curve.seconds_to(F) for curve in timing.results]
            row[goal] = None if None in seconds else median(seconds)
        if row.pop("whole run", None) is not None:
            row["F at the end"] = timing.results[-1].F[-1]
        row["curves"] = [curve._asdict() for curve in timing.results]
        rows.append({**row, "details": {"least F": best}})
    limit = bench.limits.epoch(data.X, 10)
    last = [{"seconds": s} if (s := row.get(goal)) else {} for row in rows]
    for row, ratios in zip(rows, add_ratios(last, limit=limit), strict=True):
        row.update({key: ratios[key] for key in ratios if key.endswith("ratio")})
    return rows


def least_objective(data: Data, quick: bool) -> float:
    """F at the optimum: known for all of Fashion-MNIST, computed for a part of it."""
    if not quick:
        return FASHION_OPTIMUM
    model = LogisticRegression(tol=1e-7, max_iter=5000).fit(data.X.astype(np.float64), data.y)
    return model_objective(model, data.X, data.y)


def curve_runs(data: Data, best: float) -> dict[str, Callable[[], tuple[float, Curve]]]:
    """What draws the curve of each model."""
    n = len(data.y)

    def fit(model: Any, recorder: Recorder) -> None:
        clone(model).set_callbacks(recorder).fit(data.X, data.y)

    def by_callback(model: Any, gap: float) -> Callable[[], tuple[float, Curve]]:
        return partial(recorded, partial(fit, model), data, (1 + gap) * best)

    lbfgs = SoftmaxRegression(solver="lbfgs", tol=0, max_iter=1000, random_state=SEED)
    runs = {
        "skmax, lbfgs": by_callback(lbfgs, 1e-4),
        "skmax": by_callback(SoftmaxRegression(random_state=SEED), 0),
        "LogisticRegression": by_callback(LogisticRegression(max_iter=1000, tol=1e-6), 1e-3),
        "MLPClassifier": partial(refitted, minibatch_mlp(n), data, (1, 2, 4, 8, 16)),
        "SGDClassifier": partial(refitted, one_vs_rest_sgd(n), data, (1, 3, 9)),
    }
    if find_spec("torch") is not None:
        loop = partial(torch_loop, data.X, data.y, 16)
        runs["PyTorch"] = partial(recorded, loop, data, 0)
    if "scikit-learn-intelex" in (peers := logistic_peers()):
        model = peers["scikit-learn-intelex"].set_params(tol=1e-6)
        runs["scikit-learn-intelex"] = partial(refitted, model, data, (10, 30, 100, 300))
    return runs


def memory(bench: Bench) -> list[Row]:
    """Peak memory of a fit beyond the data, Fashion-MNIST as uint8, each in a process of its own.

    skmax with its defaults; of the others, whose memory does not grow with iterations, the first
    one or two.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "X.npy"), bench.images.X)
        np.save(Path(folder, "y.npy"), bench.images.y)
        for name in memory_models():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                beyond = pool.apply(fit_memory, (name, folder))
            share = beyond / bench.images.X.nbytes
            rows.append({"model": name, "MB beyond the data": beyond / 1e6, "of the data": share})
    return rows


def memory_models() -> dict[str, Any]:
    """The models whose memory is measured."""
    return {
        "skmax": SoftmaxRegression(random_state=SEED),
        "LogisticRegression": LogisticRegression(max_iter=2),
        "MLPClassifier": MLPClassifier((), max_iter=1),
    }


def fit_memory(name: str, folder: str) -> int:
    """Bytes that a fit needs beyond those before it.

    The peak is VmHWM, that of this process: ru_maxrss would start from the parent's.
    """
    warnings.simplefilter("ignore")
    X, y = (np.load(Path(folder, f"{part}.npy")) for part in "Xy")
    model = memory_models()[name]
    clone(model).set_params(max_iter=1).fit(
        X[:500], y[:500]
    )  # imports, threads and buffers of BLAS do not count
    before = resident_bytes("VmRSS")
    model.fit(X, y)
    return resident_bytes("VmHWM") - before


def resident_bytes(which: str) -> int:
    """VmRSS, the memory in use, or VmHWM, its peak, of this process (Linux only)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def predict(bench: Bench) -> list[Row]:
    """predict_proba on the training images of Fashion-MNIST as uint8.

    The limit is the matrix product, or reading X, on one core.
    """
    X, y, *_ = bench.images
    models = {
        "skmax": SoftmaxRegression(random_state=SEED),
        **logistic_peers(),
        "MLPClassifier": MLPClassifier((), max_iter=10, random_state=SEED),
    }
    runs = {
        name: partial(timed, partial(model.fit(X[:2000], y[:2000]).predict_proba, X))
        for name, model in models.items()
    }
    timings = interleaved(runs, 2 * bench.repeats)
    rows = [to_row(name, timing, "ms") for name, timing in timings.items()]
    return add_ratios(rows, "ms", bench.limits.predict(X, 10))


def small(bench: Bench) -> list[Row]:
    """Fits with their defaults on small data as scikit-learn loads them, float64."""
    rows = []
    repeats = {"iris": 3 if bench.quick else max(20, bench.repeats), "digits": bench.repeats}
    for name, load in (("iris", load_iris), ("digits", load_digits)):
        X, y = load(return_X_y=True)
        models = {
            "skmax": SoftmaxRegression(random_state=SEED),
            **logistic_peers(),
            "MLPClassifier": MLPClassifier((), random_state=SEED),
        }
        lines = compare_fits(models, Data(X, y, X[:0], y[:0]), repeats[name])
        rows += [{"data": name, **line} for line in lines]
    return rows


def text(bench: Bench) -> list[Row]:
    """Fits with their defaults on sparse rows like those of texts (CSR, tf-idf, 20 classes).

    10,000 rows of 20,000 features for training, of which about 95 per row are not zero. A tenth of
    the labels is wrong.
    """
    data = text_like(1000, 500, 2000) if bench.quick else text_like(10_000, 5000, 20_000)
    models = {
        "skmax": SoftmaxRegression(random_state=SEED),
        "LogisticRegression": LogisticRegression(),
        "SGDClassifier": SGDClassifier(loss="log_loss", random_state=SEED),
    }
    return compare_fits(models, data, bench.repeats)


def growth(bench: Bench) -> list[Row]:
    """Fits with their defaults as rows (n), features (d) or classes (k) grow, one at a time.

    One spherical Gaussian per class, float64.
    """
    base = {"n": 1000, "d": 20, "k": 5} if bench.quick else {"n": 10_000, "d": 100, "k": 10}
    axes = {
        "n": (1000, 3000) if bench.quick else (1000, 3000, 10_000, 30_000, 100_000),
        "d": (20, 50) if bench.quick else (10, 30, 100, 300, 1000),
        "k": (5, 20) if bench.quick else (2, 5, 10, 50, 200),
    }
    sizes = [{**base, axis: size} for axis, several in axes.items() for size in several]
    rows = []
    for size in [size for i, size in enumerate(sizes) if size not in sizes[:i]]:
        X, y = gaussians(**size)
        models = {
            "skmax": SoftmaxRegression(random_state=SEED),
            "LogisticRegression": LogisticRegression(),
        }
        lines = compare_fits(models, Data(X, y, X[:0], y[:0]), min(3, bench.repeats))
        rows.append(size | growth_row(lines))
    return rows


def growth_row(lines: list[Row]) -> Row:
    """The lines of all models side by side."""
    row: Row = {"repeats": max(line.get("repeats", 0) for line in lines)}
    for key in ("seconds", "F"):
        row |= {f"{line['model']}, {key}": line.get(key) for line in lines}
    return row | {"time ratio": lines[-1].get("time ratio"), "details": lines}


TASKS: dict[str, Callable[[Bench], list[Row]]] = {
    "epoch": epoch,
    "fashion": fashion,
    "uint8": uint8,
    "optimum": optimum,
    "memory": memory,
    "predict": predict,
    "small": small,
    "sparse": text,
    "growth": growth,
}


# Reporting


def machine() -> dict[str, Any]:
    """Hardware, versions and load."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = {"numpy", "scipy", "scikit-learn", "skmax", "torch", "scikit-learn-intelex"}
    modules = {"scikit-learn": "sklearn", "scikit-learn-intelex": "sklearnex"}
    found = [name for name in sorted(packages) if find_spec(modules.get(name, name))]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in found},
        "thread pools": [
            {key: value for key, value in pool.items() if key != "filepath"}
            for pool in threadpool_info()
        ],
        "load average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "date": strftime("%Y-%m-%d %H:%M"),
    }


def others_cpu_seconds() -> float | None:
    """CPU seconds that all other processes have used since the machine started (Linux only)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, *interrupts = map(int, stat.read_text().split()[1:9])
    busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def run_task(task: Callable[[Bench], list[Row]], bench: Bench) -> dict[str, Any]:
    """The lines of its table, how long it took, and how many cores other processes kept busy."""
    before = others_cpu_seconds()
    seconds, rows = timed(lambda: task(bench))
    after = others_cpu_seconds()
    others = None if before is None or after is None else max(0.0, after - before) / seconds
    return {"seconds": seconds, "cores of others": others, "rows": rows}


def remark(result: dict[str, Any]) -> str:
    """How far a task was disturbed."""
    others = result["cores of others"]
    if others is None:
        return f"{result['seconds']:.0f} s in all."
    text = f"{result['seconds']:.0f} s in all; other processes kept {others:.2f} cores busy."
    if others < 0.1:
        return text
    return text + " **Disturbed: what computes on several threads may have waited for each other.**"


def describe(report: dict[str, Any]) -> str:
    """Machine, versions and limits, as sentences."""
    where, limits = report["machine"], report["limits"]
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    blas = {
        f"{pool['internal_api']} {pool['version']} ({pool['num_threads']} threads)"
        for pool in where["thread pools"]
        if pool["user_api"] == "blas"
    }
    part = "Parts of the data only (--quick). " if report["quick"] else ""
    return (
        f"{part}{where['processor']}, {where['cores']} cores; Python {where['python']}, {versions};"
        f" BLAS: {', '.join(sorted(blas))}.\n\n"
        f"Measured in the same run: float32 matrix product {limits['gemm_one_core'] / 1e9:.0f} "
        f"GFLOP/s on one core, {limits['gemm_all_cores'] / 1e9:.0f} on all; reading memory "
        f"{limits['read_one_core'] / 1e9:.1f} GB/s on one core.\n\n"
        "Seconds are medians over the repeats. Time ratio: the time over that of skmax (of the "
        "table's first line). Limit ratio: the time over the limit of one core. F: the objective "
        "of LogisticRegression with C=1, divided by the number of rows; lower is better."
    )


def table(rows: list[Row]) -> str:
    """A Markdown table of what is not a list or a dictionary."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "note"]
    keys = [k for k in keys if not any(isinstance(row.get(k), (list, dict)) for row in rows)]
    keys += ["note"] * any("note" in row for row in rows)
    cells = [keys] + [[cell(key, row.get(key)) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = {"X", "data", "model", "note"}
    lines = [
        [
            c.ljust(w) if k in words else c.rjust(w)
            for k, c, w in zip(keys, row, widths, strict=True)
        ]
        for row in cells
    ]
    rule = [
        "-" * w if k in words else "-" * (w - 1) + ":" for k, w in zip(keys, widths, strict=True)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def cell(key: str, value: Any) -> str:
    """A figure with the digits that mean something."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int):
        return f"{value:,}"
    if key.startswith("F") or key.endswith(" F") or "accuracy" in key:
        return f"{value:.4f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def sections(report: dict[str, Any]) -> list[str]:
    """The whole report in Markdown."""
    parts = ["# skmax beside its peers", describe(report)]
    for name, result in report["tasks"].items():
        summary = "\n".join(line.strip() for line in TASKS[name].__doc__.strip().splitlines())
        parts += [f"## {name}", summary, table(result["rows"]), remark(result)]
        if name == "optimum":
            parts.append("![Distance to the optimum against time](objective.png)")
    return parts


def draw(rows: list[Row], path: Path, quick: bool) -> None:
    """The distance to the optimum against time, of all models that have a curve."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    for name, style in STYLES.items():
        for row in rows:
            if row["model"] == name and row["curves"]:
                curve, best = row["curves"][-1], row["details"]["least F"]
                gap = np.maximum(np.array(curve["F"]) / best - 1, 1e-6)
                axes.plot(curve["seconds"], gap, label=name, lw=2, ms=4, **style)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("Time of fitting (seconds)")
    axes.set_ylabel("Objective above its optimum, (F − F*) / F*")  # noqa: RUF001
    part = ", 500 images" if quick else ""
    axes.set_title(f"Fashion-MNIST{part}: distance to the optimum against time", loc="left", pad=10)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.grid(which="major", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def save(report: dict[str, Any], folder: Path) -> None:
    """Write what has been measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(report, indent=1, default=float) + "\n")
    (folder / "results.md").write_text("\n\n".join(sections(report)) + "\n")
    rows = report["tasks"].get("optimum", {"rows": []})["rows"]
    if any(row["curves"] for row in rows):
        draw(rows, folder / "objective.png", report["quick"])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description="Measure skmax beside its peers; write tables and a picture."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="small parts of the data: does everything run?")
    add(
        "--only",
        nargs="+",
        choices=TASKS,
        default=list(TASKS),
        metavar="TASK",
        help=", ".join(TASKS),
    )
    add("--repeats", type=int, default=5, metavar="N", help="turns of each model (%(default)s)")
    add("--output", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    return options


def main(argv: list[str] | None = None) -> None:
    """Run the tasks one after the other; print and write each table as soon as it is there."""
    options = parse(argv)
    warnings.simplefilter("ignore")
    start = perf_counter()
    warm_up()
    bench = Bench(options.quick, options.repeats)
    report: dict[str, Any] = {"machine": machine(), "quick": options.quick}
    report |= {"limits": bench.limits._asdict(), "tasks": {}}
    print(describe(report), flush=True)
    for name in TASKS:
        if name in options.only:
            print(f"\n{name} ...", flush=True)
            result = report["tasks"][name] = run_task(TASKS[name], bench)
            print(f"{table(result['rows'])}\n{remark(result)}", flush=True)
            save(report, options.output)
    report["limits at the end"] = Limits.measure()._asdict()
    report["seconds"] = perf_counter() - start
    save(report, options.output)
    print(f"\nWritten to {options.output.resolve()} after {report['seconds']:.0f} s.")


if __name__ == "__main__":
    main()

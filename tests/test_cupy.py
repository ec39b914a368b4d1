"""The CuPy backend: on a GPU where there is one, and emulated on the CPU everywhere."""

import json
import pickle
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import emulated_cupy
import numpy as np
import pytest
import sklearn
from scipy import sparse
from test_backends import NAMES, SOFT, WEIGHT, Place, X, Y, assert_same, estimator

import skmax.solvers.run
import skmax.solvers.sgd
from skmax import BatchedGridSearchCV, SoftmaxRegression
from skmax.backends.cupy import CupyBackend
from skmax.data import device, source
from skmax.objective import logit_chunks
from skmax.solvers import lbfgs

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


# The same answers as on the CPU

ALIKE = [
    pytest.param({}, id="plain"),
    pytest.param({"preconditioner": None}, id="no preconditioner"),
    pytest.param({"fit_intercept": False}, id="no intercept"),
    pytest.param({"l1_ratio": 0.5, "C": 0.1}, id="elastic net"),
    pytest.param({"l1_ratio": 1.0, "C": 0.05, "max_iter": 6}, id="lasso"),
    pytest.param({"C": np.inf}, id="no penalty"),
    pytest.param({"class_weight": "balanced"}, id="class weights"),
    pytest.param({"label_smoothing": 0.1}, id="label smoothing"),
    pytest.param({"early_stopping": True, "max_iter": 6}, id="early stopping"),
    pytest.param({"batch_size": 7}, id="a short last batch"),
    pytest.param({"batch_size": 120, "shuffle": False}, id="full batches"),
    pytest.param({"schedule": "constant", "momentum": 0.0, "tol": 0}, id="no momentum"),
    pytest.param({"solver": "lbfgs", "max_iter": 30, "tol": 1e-3}, id="lbfgs"),
]


def assert_as_on_the_cpu(model, expected, dtype):
    assert isinstance(model.coef_, np.ndarray)
    assert isinstance(model.intercept_, np.ndarray)
    assert model.coef_.dtype == expected.coef_.dtype
    largest = np.abs(expected.coef_).max()
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=0, atol=TOLERANCE[dtype] * largest)
    assert model.n_iter_ == expected.n_iter_
    np.testing.assert_allclose(model.loss_curve_, expected.loss_curve_, rtol=TOLERANCE[dtype])
    np.testing.assert_allclose(model.accuracy_curve_, expected.accuracy_curve_, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("params", ALIKE)
def test_numpy_input_gives_what_the_cpu_gives(cuda, params, dtype):
    values = X.astype(dtype)
    model = estimator(backend="cupy", **params).fit(values, Y)
    expected = estimator(**params).fit(values, Y)
    if params.get("solver") == "lbfgs":  # how far it comes depends on rounding errors
        np.testing.assert_allclose(model.loss_curve_[-1], expected.loss_curve_[-1], rtol=1e-4)
    else:
        assert_as_on_the_cpu(model, expected, dtype)
    assert isinstance(model.predict_proba(values), np.ndarray)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float16", "bool", ">f4"])
def test_narrow_dtypes_train_in_float32(cuda, dtype, order):
    values = np.rint(20 * X + 50 if dtype != "bool" else X / 2)
    values = np.asarray(np.clip(values, 0, 127).astype(dtype), order=order)
    model = estimator(backend="cupy").fit(values, Y)
    expected = estimator().fit(values, Y)
    assert model.coef_.dtype == np.float32
    assert_as_on_the_cpu(model, expected, "float32")


def test_wide_integers_train_in_float64(cuda):
    values = np.rint(20 * X).astype(np.int64) + 10**12
    model = estimator(backend="cupy").fit(values, Y)
    assert_as_on_the_cpu(model, estimator().fit(values, Y), "float64")


def test_data_far_from_zero(cuda):
    far = X + 1e7
    model = estimator(backend="cupy").fit(far, Y)
    assert_same(model, estimator().fit(far, Y), 1e-6)


def test_sample_weights(cuda):
    model = estimator(backend="cupy").fit(X, Y, sample_weight=WEIGHT)
    assert_as_on_the_cpu(model, estimator().fit(X, Y, sample_weight=WEIGHT), "float64")


def test_class_weights_count_in_the_loss_and_not_in_the_accuracy(cuda):
    params = {"class_weight": {0: 3.0, 1: 0.5}}
    model = estimator(backend="cupy", **params).fit(X, Y, sample_weight=WEIGHT)
    expected = estimator(**params).fit(X, Y, sample_weight=WEIGHT)
    assert_as_on_the_cpu(model, expected, "float64")


@pytest.mark.parametrize("params", [{}, {"label_smoothing": 0.2}], ids=str)
def test_soft_targets(cuda, params):
    model = estimator(backend="cupy", **params).fit(X, SOFT)
    assert_as_on_the_cpu(model, estimator(**params).fit(X, SOFT), "float64")


def test_two_classes(cuda):
    model = estimator(backend="cupy").fit(X, Y % 2)
    assert_as_on_the_cpu(model, estimator().fit(X, Y % 2), "float64")


def test_names_as_labels(cuda):
    model = estimator(backend="cupy").fit(X, NAMES[Y])
    assert list(model.classes_) == list(NAMES)
    np.testing.assert_array_equal(model.predict(X), estimator().fit(X, NAMES[Y]).predict(X))


def test_validation_data(cuda):
    validation = {"X_val": X[:40], "y_val": Y[:40]}
    model = estimator(backend="cupy").fit(X, Y, **validation)
    expected = estimator().fit(X, Y, **validation)
    assert model.validation_scores_ == pytest.approx(expected.validation_scores_)
    np.testing.assert_allclose(
        model.validation_loss_curve_, expected.validation_loss_curve_, rtol=1e-9
    )


def test_partial_fit(cuda):
    model, expected = estimator(backend="cupy"), estimator()
    for part in (slice(50), slice(50, 120)):
        for trained in (model, expected):
            trained.partial_fit(X[part], Y[part], classes=[0, 1, 2])
    assert_as_on_the_cpu(model, expected, "float64")


def test_warm_start(cuda):
    model = estimator(backend="cupy", warm_start=True).fit(X, Y).fit(X, Y)
    expected = estimator(warm_start=True).fit(X, Y).fit(X, Y)
    assert_as_on_the_cpu(model, expected, "float64")


def test_batches_of_any_size_follow_one_another(cuda):
    """Equal builds of the kernel share what is set for one of them."""
    model, expected = estimator(backend="cupy"), estimator()
    for part in (slice(120), slice(40), slice(120)):
        for trained in (model, expected):
            trained.partial_fit(X[part], Y[part], classes=[0, 1, 2])
    assert_as_on_the_cpu(model, expected, "float64")


def test_coefficients_in_any_layout_go_on(cuda):
    models = [estimator(backend=backend, warm_start=True).fit(X, Y) for backend in ("cupy", "auto")]
    for model in models:
        model.coef_ = np.asfortranarray(model.coef_)
        model.fit(X, Y)
    assert_as_on_the_cpu(*models, "float64")


def test_the_learning_rate_of_the_cpu_is_found(cuda):
    model = estimator(backend="cupy", learning_rate="auto").fit(X, Y)
    expected = estimator(learning_rate="auto").fit(X, Y)
    assert model.learning_rate_ == pytest.approx(expected.learning_rate_, rel=1e-6)


def test_a_diverging_learning_rate_is_caught(cuda):
    with pytest.raises(ValueError, match=r"diverged in epoch 1.*learning_rate=1e\+06"):
        estimator(backend="cupy", learning_rate=1e6).fit(X, Y)


@pytest.mark.parametrize("partly", [False, True], ids=["fit", "partial_fit"])
def test_models_of_NumPy_input_are_pickled_without_cupy(cuda, partly):
    model = estimator(backend="cupy")
    if partly:
        model.partial_fit(X, Y, classes=[0, 1, 2])
    else:
        model.fit(X, Y)
    model.set_params(backend="auto")  # the parameter's own value is a word, too
    assert b"cupy" not in pickle.dumps(model)


@pytest.mark.filterwarnings("ignore:L-BFGS had not converged")
@pytest.mark.parametrize("dtype", ["float64", "float32", "int32", "bool"])
@pytest.mark.parametrize(
    "params", [{}, {"preconditioner": None}, {"solver": "lbfgs", "max_iter": 5}], ids=str
)
def test_sparse_rows(cuda, params, dtype):
    values = np.where(np.abs(X) > 1, np.rint(5 * X), 0).astype(dtype)
    values[:, 3] = 0
    values = sparse.csr_array(values)
    model = estimator(backend="cupy", **params).fit(values, Y, sample_weight=WEIGHT)
    expected = estimator(**params).fit(values, Y, sample_weight=WEIGHT)
    trained_in = "float64" if dtype in ("float64", "int32") else "float32"
    if params.get("solver") == "lbfgs":
        np.testing.assert_allclose(model.loss_curve_[-1], expected.loss_curve_[-1], rtol=1e-4)
    else:
        assert_as_on_the_cpu(model, expected, trained_in)
    assert isinstance(model.predict(values), np.ndarray)


def test_logits_of_sparse_rows(cuda):
    values = np.where(np.abs(X) > 1, X, 0)
    coef, intercept = np.random.default_rng(0).normal(size=(3, 5)), np.arange(3.0)
    backend = CupyBackend()
    data = source(sparse.csr_array(values), backend, np.float64)
    order = np.arange(len(values))[::-1]
    parts = logit_chunks(data, backend.asarray(coef), backend.asarray(intercept), order)
    logits = np.concatenate([backend.to_numpy(part).reshape(-1, 3) for part in parts])
    np.testing.assert_allclose(logits, values[order] @ coef.T + intercept, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "uint8", "sparse"])
def test_a_search_gives_the_scores_of_the_cpu(cuda, kind):
    values = {
        "dense": X,
        "uint8": np.clip(np.rint(20 * X + 100), 0, 255).astype(np.uint8),
        "sparse": sparse.csr_array(np.where(np.abs(X) > 1, X, 0)),
    }[kind]
    grid = {"C": [0.01, 1.0], "learning_rate": [0.02, 0.05], "l1_ratio": [0.0, 0.5]}
    searches = [
        BatchedGridSearchCV(
            estimator(backend=backend, tol=0), grid, cv=3, scoring="neg_log_loss"
        ).fit(values, Y, sample_weight=WEIGHT)
        for backend in ("cupy", "auto")
    ]
    scores = [search.cv_results_["mean_test_score"] for search in searches]
    np.testing.assert_allclose(*scores, rtol=1e-4 if kind == "uint8" else 1e-9)
    np.testing.assert_allclose(
        searches[0].best_estimator_.coef_, searches[1].best_estimator_.coef_, atol=1e-4
    )


# The work of an epoch


def test_a_stack_trains_in_one_launch_per_epoch(emulated):
    values = np.rint(20 * X + 100).clip(0, 255).astype(np.uint8)
    estimator(backend="cupy", max_iter=5, tol=0).fit(values, Y)
    assert emulated_cupy.Kernel.launches["sgd_epoch"] == 5
    grid = {"C": [0.1, 1.0], "learning_rate": [0.01, 0.02]}
    BatchedGridSearchCV(estimator(backend="cupy", max_iter=4, tol=0), grid, cv=3, refit=False).fit(
        values, Y
    )
    assert emulated_cupy.Kernel.launches["sgd_epoch"] == 5 + 4


class Counted(np.ndarray):
    """An array that counts what is done with it."""

    operations = 0

    def _done(self, function, arguments, options):
        def plain(value):
            if isinstance(value, list | tuple):
                return type(value)(map(plain, value))
            return value.view(np.ndarray) if isinstance(value, Counted) else value

        Counted.operations += 1
        result = function(*plain(arguments), **{name: plain(x) for name, x in options.items()})
        return np.asarray(result).view(Counted)

    def __array_ufunc__(self, ufunc, method, *arguments, **options):
        return self._done(getattr(ufunc, method), arguments, options)

    def __array_function__(self, function, _, arguments, options):
        return self._done(function, arguments, options)

    def __getitem__(self, index):
        return np.asarray(super().__getitem__(index)).view(Counted)

    def astype(self, dtype, **options):
        Counted.operations += dtype != self.dtype
        return super().astype(dtype, **options)


@pytest.mark.parametrize("n_models", [1, 6])
def test_an_iteration_of_lbfgs_takes_few_operations(emulated, monkeypatch, n_models):
    """Views count, too; what counts on a device is how many there are, not how large they are."""
    transfers = []

    def moved(array, dtype=None):
        transfers.append(array)
        return np.array(array, dtype=dtype).view(Counted)

    def fetched(array):
        transfers.append(array)
        return np.array(array.view(np.ndarray))

    launch = emulated_cupy.Kernel.__call__
    monkeypatch.setattr(
        emulated_cupy.Kernel,
        "__call__",
        lambda self, grid, block, arguments, **options: launch(
            self, grid, block, tuple(np.asarray(array)[()] for array in arguments), **options
        ),
    )
    monkeypatch.setattr(emulated, "asarray", moved)
    monkeypatch.setattr(emulated, "asnumpy", fetched)
    for name in ("zeros", "empty"):
        made = getattr(emulated, name)
        monkeypatch.setattr(emulated, name, lambda *a, made=made, **b: made(*a, **b).view(Counted))
    iterations, counts = [], []
    advance = lbfgs._Search.advance

    def counted(self):
        Counted.operations = 0
        transfers.clear()
        before = emulated_cupy.Kernel.launches.total()
        advance(self)
        iterations.append(len(self._models))
        launched = emulated_cupy.Kernel.launches.total()
        counts.append((Counted.operations, launched - before, len(transfers)))

    monkeypatch.setattr(lbfgs._Search, "advance", counted)
    model = SoftmaxRegression(solver="lbfgs", backend="cupy")
    if n_models == 1:
        model.fit(X, Y)
    else:
        BatchedGridSearchCV(model, {"C": [0.1, 10.0]}, cv=3, refit=False).fit(X, Y)
        assert max(iterations) == n_models
    operations, launches, moves = np.median(counts, axis=0)
    assert operations <= 16
    assert launches <= 13
    assert moves <= 6


@pytest.mark.parametrize("shape", [(20, 4, 4), (3, 600, 600), (1, 2, 5, 5), (4, 2, 333, 333)])
def test_inverses_are_the_same_in_a_batch_and_one_by_one(cuda, shape):
    backend, rng = CupyBackend(), np.random.default_rng(0)
    matrices = rng.normal(size=shape)
    matrices = matrices @ matrices.swapaxes(-1, -2) + np.eye(shape[-1])
    found = backend.to_numpy(backend.factored(backend.asarray(matrices)))
    np.testing.assert_allclose(found, np.linalg.inv(matrices), atol=1e-11)


@pytest.mark.parametrize("shape", [(3, 600, 600), (9, 150, 150)])
def test_inverses_of_what_is_nearly_singular_are_inverses(cuda, shape):
    """Nearly collinear features and a ridge of 1e-8 make such matrices."""
    backend, rng = CupyBackend(), np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=shape))[0]
    matrices = (basis * np.geomspace(1, 1e-8, shape[-1])) @ basis.swapaxes(-1, -2)
    found = backend.to_numpy(backend.factored(backend.asarray(matrices)))
    np.testing.assert_allclose(found @ matrices, np.eye(shape[-1]) + 0 * matrices, atol=1e-6)


def test_weights_come_to_the_host_once_whatever_the_number_of_epochs(emulated, monkeypatch):
    """Callbacks are told of every epoch, and take arrays only if they ask for them."""
    downloads = []
    original = emulated.asnumpy

    def counted(array):
        downloads.append(array.size)
        return original(array)

    class Told:
        epochs = 0

        def setup(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context):
            Told.epochs += 1

        def teardown(self, estimator, context):
            pass

    monkeypatch.setattr(emulated, "asnumpy", counted)
    of_weights = []
    for max_iter in (2, 8):
        downloads.clear()
        estimator(backend="cupy", max_iter=max_iter, tol=0).set_callbacks(Told()).fit(X, Y)
        of_weights.append(downloads.count(3 * 5))
    assert Told.epochs >= 2 + 8
    assert of_weights == [2, 2]  # at the start, and at the end


def test_the_next_order_is_drawn_while_an_epoch_runs(emulated, monkeypatch):
    """By a thread, which comes to it before the epoch is waited for; no more than are needed."""
    launched, drawn, read = emulated_cupy.Kernel.launches, [], emulated.asnumpy
    draw = skmax.solvers.sgd.Orders._draw

    def drawn_by_a_thread(orders):
        drawn.append(threading.current_thread() is not threading.main_thread())
        return draw(orders)

    def read_when_drawn(array):
        deadline = time.monotonic() + 10
        while launched["sgd_epoch"] and len(drawn) < min(3, launched["sgd_epoch"] + 1):
            assert time.monotonic() < deadline
            time.sleep(1e-3)
        return read(array)

    launched.clear()
    monkeypatch.setattr(skmax.solvers.sgd.Orders, "_draw", drawn_by_a_thread)
    monkeypatch.setattr(emulated, "asnumpy", read_when_drawn)
    model = estimator(backend="cupy", max_iter=3, tol=0).fit(X, Y)
    assert launched["sgd_epoch"] == 3
    assert drawn == [True] * 3
    assert_as_on_the_cpu(model, estimator(max_iter=3, tol=0).fit(X, Y), "float64")


def test_the_next_epoch_is_asked_for_before_the_last_is_looked_at(emulated, monkeypatch):
    """The device computes while the host looks; none is asked for beyond those that are planned."""
    launched, looked = emulated_cupy.Kernel.launches, []
    later = CupyBackend.later

    def told_later(backend, *arrays):
        told = later(backend, *arrays)

        def look():
            looked.append(launched["sgd_epoch"])
            return told()

        return look

    launched.clear()
    monkeypatch.setattr(CupyBackend, "later", told_later)
    estimator(backend="cupy", max_iter=4, tol=0).fit(X, Y)
    assert looked == [2, 3, 4, 4]


def test_what_was_asked_for_in_vain_leaves_no_trace(cuda):
    """Training that ends early goes on, by partial_fit, with the rows in the order of the CPU."""
    models = []
    for backend in ("cupy", "numpy"):
        params = {"max_iter": 30, "tol": 0.5, "n_iter_no_change": 2, "schedule": "constant"}
        model = estimator(backend=backend, **params)
        models.append(model.fit(X, Y).partial_fit(X, Y))
    assert models[0].n_iter_ < 30
    assert_as_on_the_cpu(*models, "float64")


def test_an_epoch_that_diverges_is_repeated_as_on_the_cpu(cuda, monkeypatch):
    """With the rows in the order that they had, though the next epoch had been asked for."""
    monkeypatch.setattr(
        skmax.solvers.run, "searched_rate", lambda problem, solver, rng: np.array([40.0])
    )
    models = [
        estimator(backend=backend, learning_rate="auto", max_iter=5, tol=0).fit(X, Y)
        for backend in ("cupy", "numpy")
    ]
    assert models[0].learning_rate_ < 40
    assert_as_on_the_cpu(*models, "float64")


def test_uint8_is_uploaded_once_and_as_it_is(emulated, monkeypatch):
    values = np.rint(20 * X + 100).clip(0, 255).astype(np.uint8)
    uploads = []
    original = emulated.asarray

    def counted(array, dtype=None):
        uploads.append((np.asarray(array).dtype.name, np.shape(array)))
        return original(array, dtype=dtype)

    monkeypatch.setattr(emulated, "asarray", counted)
    estimator(backend="cupy").fit(values, Y)
    assert [dtype for dtype, shape in uploads if shape == values.shape] == ["uint8"]


def test_shapes_that_the_kernel_does_not_serve_are_fitted(cuda):
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(200, 5)), np.arange(200) % 25
    model = estimator(backend="cupy").fit(values, labels)
    assert_as_on_the_cpu(model, estimator().fit(values, labels), "float64")


class Uncomputed(np.ndarray):
    """An array that CuPy would have to compile a kernel for, whatever is done with it."""

    def __array_ufunc__(self, ufunc, *_, **__):
        pytest.fail(f"CuPy would compile {ufunc.__name__}")

    def __array_function__(self, function, types, arguments, options):
        if function is not np.zeros_like:
            pytest.fail(f"CuPy would compile {function.__name__}")
        return np.zeros(self.shape, self.dtype).view(Uncomputed)

    def astype(self, dtype, copy=True, **_):
        if copy or dtype != self.dtype:
            pytest.fail(f"CuPy would compile a conversion to {dtype}")
        return self


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("params", [{}, {"C": 10.0, "class_weight": "balanced"}], ids=str)
def test_a_default_fit_of_a_device_compiles_nothing_of_CuPy(emulated, monkeypatch, dtype, params):
    """Each kind of CuPy's operations would take a quarter of a second, once."""
    values = np.rint(20 * X + 100).clip(0, 255).astype(dtype)
    params = {"solver": "sgd", "max_iter": 3, "tol": 0, "random_state": 0, **params}
    expected = SoftmaxRegression(backend="cupy", **params).fit(values, Y)
    for name in ("asarray", "zeros", "empty", "ascontiguousarray"):
        original = getattr(emulated, name)

        def seen(*arguments, original=original, **options):
            plain = [a.view(np.ndarray) if isinstance(a, Uncomputed) else a for a in arguments]
            return original(*plain, **options).view(Uncomputed)

        monkeypatch.setattr(emulated, name, seen)
    model = SoftmaxRegression(backend="cupy", **params).fit(values, Y)
    np.testing.assert_array_equal(model.coef_, expected.coef_)


# X larger than the device


@pytest.fixture
def little_memory(monkeypatch):
    """A device that has room for no X, with room for a few rows in the pinned buffer."""
    monkeypatch.setattr(CupyBackend, "free_bytes", lambda self: 0)
    monkeypatch.setattr(device, "_PIECE", 2000)


@pytest.mark.parametrize("layout", ["C", "F", "big endian", "memory map", "uint8", "int64"])
@pytest.mark.parametrize("params", [{}, {"l1_ratio": 0.5, "C": 0.1}], ids=str)
def test_larger_data_are_streamed(cuda, little_memory, tmp_path, layout, params):
    values = {
        "F": np.asfortranarray(X),
        "big endian": X.astype(">f8"),
        "uint8": np.rint(20 * X + 100).clip(0, 255).astype(np.uint8),
        "int64": np.rint(20 * X).astype(np.int64),
    }.get(layout, X)
    if layout == "memory map":
        np.save(tmp_path / "X.npy", X)
        values = np.load(tmp_path / "X.npy", mmap_mode="r")
    model = estimator(backend="cupy", **params).fit(values, Y)
    expected = estimator(**params).fit(values, Y)
    assert_as_on_the_cpu(model, expected, "float32" if layout == "uint8" else "float64")


@pytest.mark.parametrize("layout", ["rows", "columns", "big endian", "read-only map"])
def test_large_data_that_fit_are_moved(cuda, monkeypatch, tmp_path, layout):
    """From their own memory, where the device can read that, or piece by piece."""
    monkeypatch.setattr(device, "_SMALL_PIECE", 2000)
    X.tofile(tmp_path / "X")
    values = {
        "rows": X,
        "columns": np.asfortranarray(X),
        "big endian": X.astype(">f8"),
        "read-only map": np.memmap(tmp_path / "X", X.dtype, "r", shape=X.shape),
    }[layout]
    data = source(values, CupyBackend(), np.float64, shuffled=True)
    assert type(data) is device.DeviceRows
    np.testing.assert_array_equal(data.backend.to_numpy(data.X), X)


def test_data_that_are_on_their_way_elsewhere_are_moved_piece_by_piece(cuda, monkeypatch):
    monkeypatch.setattr(device, "_SMALL_PIECE", 2000)
    backend = CupyBackend()
    with device._page_locked(backend.cupy.cuda.runtime, X) as is_locked:
        assert is_locked
        data = source(X, backend, np.float64, shuffled=True)
    np.testing.assert_array_equal(backend.to_numpy(data.X), X)
    with device._page_locked(backend.cupy.cuda.runtime, X) as is_locked:
        assert is_locked  # nothing is left so


def test_streamed_batches_may_be_larger_than_the_buffer(cuda, little_memory):
    model = estimator(backend="cupy", batch_size=110).fit(X, Y)
    assert_as_on_the_cpu(model, estimator(batch_size=110).fit(X, Y), "float64")


def test_streamed_data_with_lbfgs_and_validation(cuda, little_memory):
    params = {"solver": "lbfgs", "max_iter": 5, "early_stopping": True, "tol": 0}
    model = estimator(backend="cupy", **params).fit(X, Y)
    expected = estimator(**params).fit(X, Y)
    np.testing.assert_allclose(model.loss_curve_, expected.loss_curve_, rtol=1e-6)
    assert model.validation_scores_ == expected.validation_scores_


def test_pieces_follow_one_another_through_the_buffer(emulated, little_memory):
    """Each piece is a launch: 50 rows of 5 float64 numbers fit, three batches of 16."""
    estimator(backend="cupy", batch_size=16, max_iter=2, tol=0).fit(X, Y)
    assert emulated_cupy.Kernel.launches["sgd_epoch"] == 2 * 3


# Messages


def test_a_full_device_is_named(emulated, monkeypatch):
    def full(array, dtype=None):
        raise emulated_cupy.OutOfMemoryError("Out of memory allocating 4,800 bytes.")

    monkeypatch.setattr(emulated, "asarray", full)
    with pytest.raises(MemoryError) as caught:
        estimator(backend="cupy").fit(X, Y)
    for part in ("GPU is out of memory", "4,800 bytes", "20.0 GB", "batch_size", "backend='numpy'"):
        assert part in str(caught.value)


def test_a_driver_that_fails_is_named(emulated, monkeypatch):
    def absent():
        raise RuntimeError("cudaErrorInsufficientDriver")

    monkeypatch.setattr(emulated.cuda, "is_available", absent)
    with pytest.raises(RuntimeError, match=r"finds none that it can use.*nvidia-smi.*driver"):
        estimator(backend="cupy").fit(X, Y)


@pytest.mark.parametrize("names", [["cupy-cuda12x"], ["cupy-cuda12x", "CuPy-CUDA13x", "numpy"]])
def test_several_packages_of_cupy_are_named(emulated, monkeypatch, names):
    installed = [types.SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: installed)
    monkeypatch.setattr(emulated.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError) as caught:
        estimator(backend="cupy").fit(X, Y)
    told = "Several CuPy packages are installed" in str(caught.value)
    assert told == (len(names) > 1)
    if told:
        assert "cupy-cuda12x, cupy-cuda13x" in str(caught.value)


def test_sparse_data_with_too_many_entries_are_refused(emulated, monkeypatch):
    monkeypatch.setattr(device, "_MOST_ENTRIES", 599)
    with pytest.raises(ValueError, match=r"600 entries.*backend='numpy'.*partial_fit"):
        estimator(backend="cupy").fit(sparse.csr_array(X), Y)


# Golden runs: seed, order, and weights after some steps

GOLDEN = Path(__file__).parent / "golden_sgd.json"
RUNS = {
    "float64": ("float64", {}),
    "float32": ("float32", {}),
    "uint8": ("uint8", {}),
    "lasso": ("float64", {"l1_ratio": 1.0, "C": 0.02}),
    "plain": ("float64", {"preconditioner": None, "learning_rate": 1e-4, "momentum": 0.5}),
}


def golden_run(name, **params):
    """A fit that depends on nothing but arithmetic and NumPy's PCG64."""
    dtype, others = RUNS[name]
    i, j = np.ogrid[:150, :9]
    values = ((i * i * (j + 3) + 31 * j) % 97).astype(dtype)
    labels = (values[:, 0].astype(int) + values[:, 1].astype(int)) % 3
    return estimator(**others, **params).fit(values, labels)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_golden_runs(cuda, name, backend):
    """Made by this function with backend="numpy"; see `golden_sgd.json`."""
    golden = json.loads(GOLDEN.read_text())
    order = np.random.Generator(np.random.PCG64(golden["seed"])).permutation(150)
    assert order[:10].tolist() == golden["order"]
    assert np.random.RandomState(0).randint(np.iinfo(np.int32).max) == golden["seed"]
    model = golden_run(name, backend=backend)
    expected = golden["runs"][name]
    tolerance = 1e-9 if RUNS[name][0] == "float64" else 2e-5
    for attribute in ("coef_", "intercept_", "loss_curve_"):
        values = np.array(expected[attribute])
        np.testing.assert_allclose(
            getattr(model, attribute), values, rtol=0, atol=tolerance * np.abs(values).max()
        )


# On a GPU alone


@pytest.fixture
def dispatch():
    with sklearn.config_context(array_api_dispatch=True):
        yield


SANITIZED = """
import numpy as np
from scipy import sparse
from skmax import SoftmaxRegression
rng, y = np.random.default_rng(0), np.arange(600)
X = rng.integers(256, size=(600, 100), dtype=np.uint8)
params = {"backend": "cupy", "max_iter": 2, "learning_rate": 0.01, "tol": 0}
SoftmaxRegression(**params).fit(X / 255.0, y % 3)
SoftmaxRegression(**params).fit(X, y % 40)
SoftmaxRegression(**params).fit(sparse.csr_array(X * (X > 200.0)), y % 3)
SoftmaxRegression(backend="cupy", solver="lbfgs", max_iter=2).fit(X, y % 40)
"""
OF_CLUSTERS = "SoftmaxRegression(**params).fit(X, y % 3)"


@pytest.mark.gpu
@pytest.mark.parametrize("check", ["memcheck", "synccheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(check):
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("no usable GPU tools: compute-sanitizer is not on the PATH")
    # CuPy asks a device for attributes that it may not have, which counts as an error otherwise.
    options = ["--report-api-errors", "no", "--error-exitcode", "9"]
    for name in ("few_classes", "sgd_epoch", "residual"):
        options += ["--kernel-name", f"kns={name}"]
    # With clusters of 16, the check for races fails itself.
    script = SANITIZED + OF_CLUSTERS * (check != "racecheck")
    command = [tool, "--tool", check, *options, sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("no usable GPU for compute-sanitizer, which says: Device not supported")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
def test_results_repeat_bit_for_bit():
    first, second = (estimator(backend="cupy").fit(X, Y) for _ in range(2))
    np.testing.assert_array_equal(first.coef_, second.coef_)


@pytest.mark.gpu
def test_predictions_on_Fashion_MNIST_are_those_of_the_cpu():
    from skmax.datasets import fetch_fashion_mnist

    try:
        images, labels = fetch_fashion_mnist(return_X_y=True)
        test, _ = fetch_fashion_mnist(subset="test", return_X_y=True)
    except OSError as error:
        pytest.skip(f"no usable GPU data: {error}")
    params = {"max_iter": 3, "learning_rate": 0.03, "random_state": 0, "tol": 0}
    there = SoftmaxRegression(backend="cupy", **params).fit(images, labels)
    here = SoftmaxRegression(**params).fit(images, labels)
    assert_as_on_the_cpu(there, here, "float32")
    logits = np.sort(here.decision_function(test), axis=1)
    differ = there.predict(test) != here.predict(test)
    assert (logits[differ, -1] - logits[differ, -2] < 1e-4).all()


@pytest.mark.gpu
def test_cupy_input_and_backend_numpy(dispatch):
    import cupy

    model = estimator(backend="numpy").fit(cupy.asarray(X), cupy.asarray(Y))
    assert isinstance(model.coef_, cupy.ndarray)
    np.testing.assert_array_equal(model.coef_.get(), estimator().fit(X, Y).coef_)


@pytest.mark.gpu
def test_cupy_views_that_are_not_aligned(dispatch):
    import cupy

    values = cupy.asarray(np.rint(20 * X + 100).clip(0, 255).astype(np.uint8))
    flat = cupy.empty(values.size + 1, np.uint8)
    flat[1:] = values.ravel()
    model = estimator().fit(flat[1:].reshape(values.shape), cupy.asarray(Y))
    expected = estimator().fit(values, cupy.asarray(Y))
    np.testing.assert_allclose(model.coef_.get(), expected.coef_.get(), rtol=1e-5, atol=1e-7)


@pytest.mark.gpu
def test_tensors_of_torch(dispatch):
    if not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("no usable GPU: PyTorch finds no CUDA device")
    there = Place("torch", "cuda")
    model = estimator().fit(there(X), there(Y))
    assert there.holds(model.coef_, there(X))
    assert_same(model, estimator().fit(X, Y))

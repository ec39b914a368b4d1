"""X on disk: memory maps, HDF5, Zarr, and whatever gives slices of rows."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skmax import SoftmaxRegression
from skmax.backends.numpy import NumpyBackend
from skmax.data import Blocks, disk, opened
from skmax.data.disk import DiskRows

# Bytes of a window, of a block, and of a window in order, for tests.
SMALL = {"_WINDOW": 8192, "_BLOCK": 512, "_IN_ORDER": 2048}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Whatever is larger than 8 KB is on disk, in blocks of half a KB."""
    for name, value in SMALL.items():
        monkeypatch.setattr(disk, name, value)


class Slices:
    """What has a shape, a dtype and slices of rows, and takes down which were read."""

    def __init__(self, X, chunks=None, broken=None):
        self.X, self.shape, self.dtype, self.chunks = X, X.shape, X.dtype, chunks
        self.read, self.broken, self.inside = [], broken, threading.Lock()

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        assert rows.step is None
        assert self.inside.acquire(blocking=False), "read by two threads at once"
        try:
            if self.broken is not None and rows.start <= self.broken < rows.stop:
                raise OSError("input/output error")
            self.read.append((rows.start, rows.stop))
            return self.X[rows].copy()
        finally:
            self.inside.release()

    def times(self):
        """How often each row was read."""
        count = np.zeros(len(self.X), dtype=int)
        for first, last in self.read:
            count[first:last] += 1
        return count


def make_data(n=2000, d=8, k=4, seed=0, dtype=np.float32):
    """Overlapping classes, the rows sorted by label."""
    rng = np.random.default_rng(seed)
    y = np.sort(rng.integers(k, size=n))
    X = rng.normal(size=(n, d)) * np.resize([1, 3], d) + rng.normal(size=(k, d))[y]
    return X.astype(dtype), y


def rows_of(X, dtype=np.float32, **blocks):
    return DiskRows(NumpyBackend(), Blocks(X), np.dtype(dtype))


# What is read


@given(
    n=st.integers(1, 400),
    d=st.integers(1, 6),
    block=st.integers(1, 900),
    window=st.integers(1, 5000),
    in_order=st.integers(1, 3000),
    chunk=st.sampled_from([None, 1, 7, 64, 1000]),
    batch=st.integers(1, 500),
    shuffle=st.booleans(),
    share=st.sampled_from([1.0, 0.5]),
)
def test_an_epoch_has_each_row_once_and_reads_it_once(
    n, d, block, window, in_order, chunk, batch, shuffle, share
):
    """Whatever the shapes, and the sizes of blocks, windows, chunks and batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "_BLOCK", block)
        patch.setattr(disk, "_WINDOW", window)
        patch.setattr(disk, "_IN_ORDER", in_order)
        X = np.arange(n * d, dtype=np.float32).reshape(n, d)
        source = Slices(X, None if chunk is None else (chunk, d))
        data, rng = rows_of(source), np.random.default_rng(0)
        rows = np.sort(rng.permutation(n)[: max(1, int(share * n))])
        order = data.epoch(rows, rng if shuffle else None)
        assert np.array_equal(np.sort(order), rows)
        seen = []
        for index, batch_rows in data.batches(order, batch):
            np.testing.assert_array_equal(batch_rows, X[index])
            seen.append(np.arange(n)[index])
    assert all(len(part) == batch for part in seen[:-1])
    assert 0 < len(seen[-1]) <= batch
    np.testing.assert_array_equal(np.concatenate(seen), order)
    assert source.times()[rows].min() == 1
    if share == 1:
        assert source.times().max() == 1


@given(
    order=st.lists(st.integers(0, 199), max_size=300),
    chunk=st.sampled_from([None, 16]),
)
def test_any_rows_in_any_order(order, chunk):
    X = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    data = rows_of(Slices(X, None if chunk is None else (chunk, 3)))
    order = np.array(order, dtype=int)
    np.testing.assert_array_equal(data.rows(order), X[order])
    for index, rows in data.pieces(order, 37):
        np.testing.assert_array_equal(rows, X[index])
    np.testing.assert_array_equal(data.rows(slice(3, 90)), X[3:90])


@pytest.mark.parametrize("chunk", [1, 8, 48])
def test_chunks_are_read_whole(chunk):
    """In epochs and in order, all but where the rows end."""
    X, _ = make_data()
    source = Slices(X, (chunk, X.shape[1]))
    data = rows_of(source)
    order = np.arange(len(X))
    for visits in (data.epoch(order, np.random.default_rng(0)), order):
        for _ in data.batches(visits, 50):
            pass
    edges = np.array(source.read)
    assert (edges[:, 0] % chunk == 0).all()
    assert ((edges[:, 1] % chunk == 0) | (edges[:, 1] == len(X))).all()


def test_a_window_of_sorted_rows_is_like_all_rows():
    """Blocks of a window come from all over the file, so every window has all classes alike."""
    X, y = make_data(n=16_000, k=4)
    data = rows_of(Slices(X))
    order = data.epoch(np.arange(len(X)), np.random.default_rng(0))
    windows = data._windows(order)
    assert len(windows) > 20
    for window in windows:
        share = np.bincount(y[window], minlength=4) / len(window)
        np.testing.assert_allclose(share, np.bincount(y) / len(y), atol=0.12)
        # And within a window rows are shuffled: neighbours are mostly of different classes.
        assert np.mean(y[window[1:]] == y[window[:-1]]) < 0.5


def test_epochs_differ_and_repeat_with_the_random_state():
    data = rows_of(Slices(make_data()[0]))
    order, rng = np.arange(data.n_samples), np.random.default_rng(0)
    first, second = data.epoch(order, rng), data.epoch(order, rng)
    assert (first != second).mean() > 0.9
    np.testing.assert_array_equal(data.epoch(order, np.random.default_rng(0)), first)


@given(n=st.integers(1, 3000), size=st.integers(1, 3000), seed=st.integers(0, 9))
def test_a_sample_is_of_about_that_size_and_from_many_places(n, size, seed):
    data = rows_of(Slices(np.zeros((5000, 1), np.float32)))
    order = np.sort(np.random.default_rng(seed).permutation(5000)[:n])
    sample = data.sample(order, size, np.random.default_rng(seed))
    assert 0.9 * min(n, size) <= len(sample) <= min(n, size)
    assert set(sample.tolist()) <= set(order.tolist())
    assert (np.diff(sample) > 0).all()
    if 100 < size < n / 2:
        places = np.count_nonzero(np.diff(np.searchsorted(order, sample)) > 1) + 1
        assert places > 50


def test_rows_that_are_few_are_read_once():
    X, _ = make_data()
    source = Slices(X)
    data = rows_of(source)
    rows = data.sample(np.arange(len(X)), 100)
    for _ in range(3):
        np.testing.assert_array_equal(data.rows(rows), X[rows])
    np.testing.assert_array_equal(data.rows(rows[::-2]), X[rows[::-2]])
    assert source.times().max() == 1


def test_at_most_two_windows_are_in_memory():
    X, y = make_data(n=40_000, d=16)
    source = Slices(X)
    disk._WINDOW, disk._BLOCK = 1 << 17, 1 << 13
    model = SoftmaxRegression(solver="sgd", learning_rate=0.1, max_iter=2, random_state=0)
    tracemalloc.start(1)
    try:
        model.fit(source, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    orders = 8 * len(X)  # bytes of one integer per row
    assert peak < 4 * (1 << 17) + 8 * orders


# The answer


@pytest.mark.parametrize(
    "parameters",
    [
        {"solver": "lbfgs"},
        {},
        {"solver": "lbfgs", "l1_ratio": 0.5, "C": 0.1},
        {"l1_ratio": 1, "C": 0.1},
        {"solver": "lbfgs", "fit_intercept": False, "class_weight": "balanced"},
        {"solver": "lbfgs", "preconditioner": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("k", [2, 4])
def test_the_optimum_is_that_of_an_array(parameters, k):
    X, y = make_data(k=k, dtype=np.float64)
    parameters = {"tol": 1e-7, "max_iter": 300, **parameters}
    model, expected = (SoftmaxRegression(**parameters).fit(A, y) for A in (Slices(X), X))
    assert model.loss_curve_[-1] == pytest.approx(expected.loss_curve_[-1], rel=2e-7)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=2e-3)
    np.testing.assert_allclose(model.predict_proba(Slices(X)), expected.predict_proba(X), atol=1e-3)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"momentum": 0}, {"l1_ratio": 0.5}, {"learning_rate": 0.05}, {"early_stopping": True}],
    ids=str,
)
def test_sgd_on_rows_sorted_by_label_does_as_well_as_in_memory(parameters):
    X, y = make_data(n=6000)
    parameters = {"solver": "sgd", "random_state": 0, "max_iter": 8, **parameters}
    model, expected = (SoftmaxRegression(**parameters).fit(A, y) for A in (Slices(X), X))
    losses = [-np.mean(m.predict_log_proba(X)[np.arange(len(X)), y]) for m in (model, expected)]
    # Stopped early, it may keep the weights of another epoch.
    assert losses[0] == pytest.approx(losses[1], rel=0.05 if model.early_stopping else 0.01)


def test_an_epoch_of_sgd_is_the_reference_on_the_same_batches():
    """Rows in the order of the file: batches that begin in one window and end in the next."""
    X, y = make_data(dtype=np.float64)
    shuffled = np.random.default_rng(0).permutation(len(X))
    X, y = X[shuffled], y[shuffled]
    parameters = {"solver": "sgd", "shuffle": False, "learning_rate": 0.1, "batch_size": 37,
                  "max_iter": 2}  # fmt: skip
    model, expected = (SoftmaxRegression(**parameters).fit(A, y) for A in (Slices(X), X))
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-9)
    np.testing.assert_allclose(model.loss_curve_, expected.loss_curve_, rtol=1e-9)


def test_a_fit_reads_each_row_once_per_epoch_and_once_for_the_moments():
    X, y = make_data(n=20_000)
    source = Slices(X)
    SoftmaxRegression(solver="sgd", learning_rate=0.1, max_iter=3, random_state=0).fit(source, y)
    few = disk._PLACES * 4  # what the origin is found from
    assert source.times().min() == 4
    assert (source.times() > 4).sum() <= few


@pytest.mark.parametrize("kind", ["uint8", "int64 far", "float16", "float64"])
def test_other_dtypes(kind):
    rng, y = np.random.default_rng(0), np.arange(4000) % 3
    X = rng.normal(size=(4000, 3)) * 20 + 5 * y[:, None]
    if kind == "int64 far":
        X = np.rint(X * 1e9).astype(np.int64) + 1_700_000_000_000_000_000
    else:
        X = (np.clip(X + 100, 0, 255) if kind == "uint8" else X).astype(kind)
    model, expected = (
        SoftmaxRegression(solver="lbfgs", tol=1e-8).fit(A, y) for A in (Slices(X), X)
    )
    assert model.coef_.dtype == expected.coef_.dtype
    np.testing.assert_allclose(model.predict_proba(Slices(X)), expected.predict_proba(X), atol=1e-3)
    assert model.score(Slices(X), y) == expected.score(X, y)


def test_partial_fit_warm_start_validation_and_weights():
    X, y = make_data()
    weight = np.random.default_rng(0).uniform(size=len(X))
    fits = []
    for A in (Slices(X), X):
        model = SoftmaxRegression(solver="sgd", learning_rate=0.05, warm_start=True, shuffle=False)
        model.fit(A, y, weight, X_val=A, y_val=y)
        model.set_params(max_iter=2).fit(A, y, X_val=A, y_val=y)
        model.partial_fit(A, y)
        fits.append(model)
    np.testing.assert_allclose(fits[0].coef_, fits[1].coef_, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        fits[0].validation_loss_curve_, fits[1].validation_loss_curve_, rtol=1e-5
    )
    assert fits[0].optimality_gap(Slices(X), y) == pytest.approx(fits[1].optimality_gap(X, y), 0.1)


# Kinds of files


def memmap(X, path):
    np.save(path / "X.npy", X)
    return np.load(path / "X.npy", mmap_mode="r")


def memmap_to_write(X, path):
    array = np.memmap(path / "X", X.dtype, "w+", shape=X.shape, offset=12_345)
    array[:] = X
    return array


def private_memmap(X, path):
    """Of which the file knows nothing of what was changed."""
    np.save(path / "X.npy", np.zeros_like(X))
    array = np.load(path / "X.npy", mmap_mode="c")
    array[:] = X
    return array


def view_of_memmap(X, path):
    np.save(path / "X.npy", np.hstack([X, X])[np.repeat(np.arange(len(X)), 2)])
    return np.asarray(np.load(path / "X.npy", mmap_mode="r"))[::2, : X.shape[1]]


def columns_of_memmap(X, path):
    np.save(path / "X.npy", np.asfortranarray(X))
    return np.load(path / "X.npy", mmap_mode="r")


def hdf5(X, path, **options):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "X.h5", "w") as file:
        file.create_dataset("X", data=X, **options)
    return h5py.File(path / "X.h5")["X"]


def compressed_hdf5(X, path):
    return hdf5(X, path, chunks=(50, X.shape[1]), compression="gzip", shuffle=True)


def hdf5_in_tiles(X, path):
    return hdf5(X, path, chunks=(64, 3), compression="lzf")


def zarr_array(X, path):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(path / "X.zarr", shape=X.shape, dtype=X.dtype, chunks=(150, 5))
    array[:] = X
    return array


KINDS = [
    memmap, memmap_to_write, private_memmap, view_of_memmap, columns_of_memmap, hdf5,
    compressed_hdf5, hdf5_in_tiles, zarr_array,
]  # fmt: skip


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("large", [True, False], ids=["blocks", "small"])
def test_files_equal_arrays(make, large, tmp_path, monkeypatch):
    X, y = make_data()
    if not large:
        monkeypatch.setattr(disk, "_WINDOW", 1 << 20)
    given = make(X, tmp_path)
    assert isinstance(opened(given), Blocks) == large
    model = SoftmaxRegression(solver="lbfgs", tol=1e-7).fit(given, y)
    expected = SoftmaxRegression(solver="lbfgs", tol=1e-7).fit(X, y)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(model.predict_proba(given), model.predict_proba(X), atol=1e-5)
    np.testing.assert_array_equal(given[:], X)
    sgd = SoftmaxRegression(solver="sgd", random_state=0).fit(given, y)
    assert sgd.score(given, y) == sgd.score(X, y) > 0.5
    if hasattr(given, "file"):
        given.file.close()


# What cannot be read


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_rows_that_cannot_be_read_are_named_and_the_estimator_stays_as_it_was(solver):
    X, y = make_data()
    threads = threading.active_count()
    model = SoftmaxRegression(solver=solver, random_state=0).fit(X, y)
    before = copy.deepcopy(vars(model))
    with pytest.raises(OSError, match=r"Rows \d+ to \d+ of X cannot be read: input/output") as info:
        model.fit(Slices(X, broken=1234), y)
    first, last = (int(word) for word in str(info.value).split() if word.isdigit())
    assert first <= 1234 <= last < first + 600
    assert str(vars(model)) == str(before)
    with pytest.raises(OSError, match="cannot be read"):
        model.predict(Slices(X, broken=1234))
    if solver == "sgd":
        with pytest.raises(OSError, match="cannot be read"):
            model.partial_fit(Slices(X, broken=1234), y)
    assert str(vars(model)) == str(before)
    assert threading.active_count() == threads


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("preconditioner", ["diagonal", None])
def test_what_is_not_finite_is_found_where_it_is(value, preconditioner):
    X, y = make_data()
    model = SoftmaxRegression(random_state=0, preconditioner=preconditioner).fit(X, y)
    X[1500, 3] = value
    what = "NaN" if np.isnan(value) else "infinity"
    for call in (model.fit, lambda X, y: model.predict(X)):
        with pytest.raises(ValueError, match=f"Input X contains {what}: row 1500, feature 3"):
            call(Slices(X), y)
    X[1500, 3] = np.finfo(np.float32).max  # of which sums overflow
    model.predict(Slices(X))


def test_what_does_not_fit_is_refused():
    X, y = make_data()
    model = SoftmaxRegression().fit(X, y)
    with pytest.raises(ValueError, match="X has 5 features, but SoftmaxRegression is expecting 8"):
        model.predict(Slices(np.zeros((3000, 5), np.float32)))
    with pytest.raises(ValueError, match="X_val has 5 features"):
        model.fit(X, y, X_val=Slices(np.zeros((3000, 5), np.float32)), y_val=np.zeros(3000))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(Slices(X), y[:-1])
    with pytest.raises(ValueError, match="Expected 2D array, got 3D array instead"):
        model.fit(Slices(np.zeros((30, 20, 10))), np.zeros(30))
    with pytest.raises(ValueError, match="holds all rows in memory"):
        SoftmaxRegression(solver="newton").fit(Slices(X), y)
    wrong = Slices(X)
    wrong.shape = (5000, 8)
    with pytest.raises(OSError, match="their shape is"):
        model.predict(wrong)


def test_only_numpy_reads_what_is_no_array(emulated):
    X, y = make_data()
    with pytest.raises(TypeError, match="X is a Slices, which only the NumPy backend reads"):
        SoftmaxRegression(backend="cupy").fit(Slices(X), y)


def test_a_memory_map_goes_to_a_device_as_before(emulated, tmp_path):
    X, y = make_data()
    given = memmap(X, tmp_path)
    parameters = {"solver": "sgd", "learning_rate": 0.05, "random_state": 0}
    model = SoftmaxRegression(backend="cupy", **parameters).fit(given, y)
    expected = SoftmaxRegression(**parameters).fit(X, y)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-3, atol=1e-4)
    X[77, 1] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN: row 77, feature 1"):
        SoftmaxRegression(backend="cupy", **parameters).fit(memmap(X, tmp_path), y)


# Predictions


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba",
                                    "decision_function"])  # fmt: skip
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("on_disk", [True, False])
def test_predictions_are_written_where_the_caller_wants_them(
    method, k, on_disk, tmp_path, monkeypatch
):
    monkeypatch.setattr("skmax.outputs._ROWS", 300)
    X, y = make_data(k=k)
    labels = np.array(["a", "bc", "d", "e"])[y]
    model = SoftmaxRegression(solver="lbfgs").fit(X, labels)
    expected = getattr(model, method)(X)
    given = Slices(X) if on_disk else X
    found = getattr(model, method)(given)
    if method == "predict":
        np.testing.assert_array_equal(found, expected)
    else:  # a kernel serves what is in memory
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    outputs = [np.empty(expected.shape, expected.dtype)]
    if method != "predict":
        shape = expected.shape
        outputs.append(np.memmap(tmp_path / "out", "f4", "w+", shape=shape))
        h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
        file = h5py.File(tmp_path / "out.h5", "w")
        chunks = (70, *shape[1:])
        outputs.append(file.create_dataset("P", shape, "f4", chunks=chunks, compression="gzip"))
        outputs.append(
            zarr.create_array(tmp_path / "out.zarr", shape=shape, dtype="f4", chunks=chunks)
        )
    for out in outputs:
        assert getattr(model, method)(given, out=out) is out
        if method == "predict":
            np.testing.assert_array_equal(out, expected)
        else:
            np.testing.assert_allclose(out[:], expected, rtol=1e-6, atol=1e-6)
    if method != "predict":
        file.close()


def test_an_output_that_cannot_hold_predictions_is_refused():
    X, y = make_data()
    model = SoftmaxRegression(solver="lbfgs").fit(X, y + 1000)
    with pytest.raises(ValueError, match=r"out has shape \(2000, 3\), but what is written has"):
        model.predict_proba(X, out=np.empty((2000, 3)))
    with pytest.raises(ValueError, match="out has dtype int64, which cannot hold values of float"):
        model.predict_proba(X, out=np.empty((2000, 4), np.int64))
    with pytest.raises(ValueError, match="out has dtype int8, which cannot hold the labels"):
        model.predict(X, out=np.empty(2000, np.int8))
    named = SoftmaxRegression(solver="lbfgs").fit(X, np.array(["a", "bc", "d", "e"])[y])
    with pytest.raises(ValueError, match="out has dtype <U1, which cannot hold the labels"):
        named.predict(X, out=np.empty(2000, "U1"))


def test_predictions_read_each_row_once():
    X, y = make_data()
    model, source = SoftmaxRegression(solver="lbfgs").fit(X, y), Slices(X)
    model.predict_proba(source)
    assert source.times().tolist() == [1] * len(X)


def test_a_file_that_took_the_place_of_a_mapped_one_is_not_read(tmp_path):
    X, _ = make_data()
    given = memmap(X, tmp_path)
    np.save(tmp_path / "other.npy", X + 1)
    os.replace(tmp_path / "other.npy", tmp_path / "X.npy")
    np.testing.assert_array_equal(rows_of(given).rows(np.arange(len(X))), X)


def test_what_is_written_to_a_map_is_what_is_read(tmp_path):
    X, _ = make_data()
    given = memmap_to_write(X, tmp_path)
    rows = rows_of(given)
    given[5:700] += 1
    np.testing.assert_array_equal(rows.rows(np.arange(len(X))), np.asarray(given))


def test_a_file_that_became_shorter_is_an_error_that_names_rows(tmp_path):
    X, y = make_data()
    given = memmap(X, tmp_path)
    os.truncate(tmp_path / "X.npy", 20_000)
    with pytest.raises(OSError, match=r"Rows \d+ to \d+ of X cannot be read: the file ends before"):
        SoftmaxRegression(solver="lbfgs").fit(given, y)


# Checkpoints

KEEPER = """
import os, pickle, signal

class Keeper:
    def setup(self, estimator, context): ...
    def teardown(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context, **_): ...

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None, **_):
        if context.task_name != "epoch":
            return
        with open("checkpoint.tmp", "wb") as file:
            pickle.dump(fitted_estimator, file)
        os.replace("checkpoint.tmp", "checkpoint.pickle")
        if fitted_estimator.n_iter_ == int(os.environ.get("KILL_AFTER", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED = """
import sys
import numpy as np
from keeper import Keeper
from skmax import SoftmaxRegression
from skmax.data import disk

disk._WINDOW = 8192
model = SoftmaxRegression(solver=sys.argv[1], tol=1e-8, max_iter=100, learning_rate=0.01)
model.set_callbacks(Keeper()).fit(np.load("X.npy", mmap_mode="r"), np.load("y.npy"))
"""


@pytest.mark.parametrize(("solver", "n_done"), [("sgd", 3), ("lbfgs", 5)])
def test_a_killed_fit_goes_on_from_a_checkpoint(solver, n_done, tmp_path, monkeypatch):
    """A callback saves the model that it is given after each epoch; `warm_start` goes on."""
    X, y = make_data()
    (tmp_path / "keeper.py").write_text(KEEPER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", y)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, solver],
        env=os.environ | {"KILL_AFTER": str(n_done), "PYTHONPATH": path},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    saved = pickle.loads((tmp_path / "checkpoint.pickle").read_bytes())
    assert saved.n_iter_ == n_done
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    before = saved.loss_curve_[-1]
    saved.set_params(warm_start=True).fit(mapped, y)
    assert saved.loss_curve_[0] < before
    whole = SoftmaxRegression(solver="lbfgs", tol=1e-8).fit(X, y)
    if solver == "lbfgs":
        np.testing.assert_allclose(saved.coef_, whole.coef_, atol=1e-3)
        assert saved.n_iter_ < whole.n_iter_
    else:
        assert saved.score(X, y) > whole.score(X, y) - 0.01

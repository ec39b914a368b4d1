"""DaskSoftmaxRegression: the answers of SoftmaxRegression, on a cluster, whatever happens to it."""

import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest
from conftest import make_data
from scipy import sparse
from sklearn.base import clone
from sklearn.callback.tests._utils import RecordingCallback
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError

from skmax import SoftmaxRegression

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
pd = pytest.importorskip("pandas")

import dask.array as da  # noqa: E402
import dask.dataframe as dd  # noqa: E402

from skmax.dask import DaskSoftmaxRegression  # noqa: E402

TIGHT = {"solver": "lbfgs", "tol": 1e-12}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Two worker processes. Work over which two have died is given up."""
    before = set(multiprocessing.active_children())  # of other tests
    settings = {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.deploy.lost-worker-timeout": "1h",  # or a nanny is closed while it restarts
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=50,
            local_directory=tmp_path_factory.mktemp("dask"),
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client
    assert not set(multiprocessing.active_children()) - before


@pytest.fixture(params=["here", "cluster"])
def anywhere(request):
    """No client, so that this process computes; and the cluster."""
    return request.getfixturevalue("client") if request.param == "cluster" else None


def parted(*arrays, rows=37):
    """Dask arrays in partitions of so many rows."""
    return [da.from_array(array, chunks=(rows, *array.shape[1:])) for array in arrays]


def from_blocks(blocks, n_features=None):
    """A Dask array of blocks of rows, as they are, of lengths that nobody knows."""
    width = () if n_features is None else (n_features,)
    return da.concatenate(
        [
            da.from_delayed(dask.delayed(block), (np.nan, *width), block.dtype, meta=block[:0])
            for block in blocks
        ],
        allow_unknown_chunksizes=True,
    )


def assert_same(model, plain, atol=1e-6):
    """Both have the same coefficients, of the same dtype, and all else that tells what they are."""
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=0, atol=atol)
    # What is added to all intercepts makes no difference, and under L1 there is nothing to set it.
    intercepts = (
        each.intercept_ - each.intercept_.mean() * (len(each.coef_) > 1) for each in (model, plain)
    )
    np.testing.assert_allclose(*intercepts, rtol=0, atol=atol)
    np.testing.assert_array_equal(model.classes_, plain.classes_)
    assert model.coef_.dtype == plain.coef_.dtype
    assert model.n_features_in_ == plain.n_features_in_
    assert model.solver_ == "lbfgs"


def after(epochs, act):
    """A callback that acts once, at the end of so many epochs."""

    class Acting(RecordingCallback):
        seen = 0

        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            super().on_fit_task_end(estimator, context, fitted_estimator=fitted_estimator)
            if context.parent is not None:
                self.seen += 1
                if self.seen == epochs:
                    act()

    return Acting()


# The answer


def test_answer_is_that_of_the_plain_estimator(anywhere):
    X, y = make_data(300)
    model = DaskSoftmaxRegression(solver="lbfgs", tol=1e-8, client=anywhere).fit(*parted(X, y))
    assert_same(model, SoftmaxRegression(solver="lbfgs", tol=1e-8).fit(X, y))


@pytest.mark.parametrize(
    "params",
    [
        {"class_weight": "balanced"},
        {"class_weight": {0: 2.0, 1: 0.5}, "label_smoothing": 0.1},
        {"fit_intercept": False},
        {"preconditioner": None},
        {"l1_ratio": 0.5, "C": 0.1},
    ],
    ids=str,
)
def test_answer_with_other_parameters(params):
    X, y = make_data(300)
    plain = SoftmaxRegression(**TIGHT, **params).fit(X, y)
    model = DaskSoftmaxRegression(**TIGHT, **params).fit(*parted(X, y))
    assert_same(model, plain)
    assert abs(model.loss_curve_[-1] - plain.loss_curve_[-1]) < 1e-8
    assert model.score(*parted(X, y)) == pytest.approx(plain.score(X, y))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_weights_of_rows(anywhere, rng, k, class_weight):
    X, y = make_data(200, k=k)
    weight = rng.integers(0, 3, size=200).astype(float)
    weight[:37] = 0  # a whole partition
    plain = SoftmaxRegression(**TIGHT, class_weight=class_weight).fit(X, y, weight)
    model = DaskSoftmaxRegression(**TIGHT, class_weight=class_weight, client=anywhere)
    assert_same(model.fit(*parted(X, y, weight)), plain)
    assert model.score(*parted(X, y, weight)) == pytest.approx(plain.score(X, y, weight))
    assert_same(model.fit(*parted(X, y), sample_weight=weight), plain)


def test_sparse_rows(anywhere, rng):
    X, y = make_data(300, d=6)
    X *= rng.random(X.shape) < 0.4
    plain = SoftmaxRegression(**TIGHT).fit(sparse.csr_array(X), y)
    dX, dy = parted(X, y)
    dX = dX.map_blocks(sparse.csr_matrix)
    model = DaskSoftmaxRegression(**TIGHT, client=anywhere).fit(dX, dy)
    assert_same(model, plain)
    found = model.predict_proba(dX).compute(scheduler="synchronous")
    np.testing.assert_allclose(found, plain.predict_proba(X), atol=1e-5)


def test_weights_so_large_that_workers_pass_them_on(client, rng):
    X = sparse.random_array((300, 2100), density=0.01, format="csr", rng=rng)
    y = rng.integers(0, 10, size=300)
    plain = SoftmaxRegression(solver="lbfgs", tol=1e-8).fit(X, y)
    blocks = from_blocks([sparse.csr_matrix(X[:120]), sparse.csr_matrix(X[120:])], 2100)
    model = DaskSoftmaxRegression(tol=1e-8, client=client).fit(blocks, y)
    np.testing.assert_allclose(model.coef_, plain.coef_, atol=1e-4)
    assert model.loss_curve_[-1] == pytest.approx(plain.loss_curve_[-1], rel=2e-8)


def test_dataframes(anywhere):
    X, y = make_data(200)
    frame = pd.DataFrame(X, columns=list("abcd")).assign(label=np.array(["x", "y", "z"])[y])
    plain = SoftmaxRegression(**TIGHT).fit(frame[list("abcd")], frame["label"])
    table = dd.from_pandas(frame, npartitions=5)
    dX, dy = table[list("abcd")], table["label"]
    model = DaskSoftmaxRegression(**TIGHT, client=anywhere).fit(dX, dy)
    assert_same(model, plain)
    assert list(model.feature_names_in_) == list("abcd")
    found = model.predict(dX).compute(scheduler="synchronous")
    np.testing.assert_array_equal(found, plain.predict(frame[list("abcd")]))
    found = model.predict_proba(dX).compute(scheduler="synchronous")
    np.testing.assert_allclose(found, plain.predict_proba(frame[list("abcd")]), atol=1e-6)
    assert model.score(dX, dy) == pytest.approx(plain.score(frame[list("abcd")], frame["label"]))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(dX.rename(columns={"a": "e"}))


@pytest.mark.parametrize("class_weight", [None, {0: 3.0}])
def test_soft_targets(anywhere, rng, class_weight):
    X, _ = make_data(150)
    y = rng.dirichlet(np.ones(3), size=150)
    y[:37] = np.eye(3)[rng.integers(0, 3, 37)]  # a partition whose rows are all one-hot
    plain = SoftmaxRegression(**TIGHT, class_weight=class_weight).fit(X, y)
    model = DaskSoftmaxRegression(**TIGHT, class_weight=class_weight, client=anywhere)
    assert_same(model.fit(*parted(X, y)), plain)
    assert model.score(*parted(X, y)) == pytest.approx(plain.score(X, y))


def test_float32_far_from_zero():
    X, y = make_data(300)
    X = (X + 1000).astype(np.float32)
    plain = SoftmaxRegression(solver="lbfgs", tol=1e-6).fit(X, y)
    model = DaskSoftmaxRegression(tol=1e-6).fit(*parted(X, y))
    assert_same(model, plain, atol=2e-2)
    np.testing.assert_allclose(model.coef_, plain.coef_, atol=2e-3)


def test_features_whose_squares_underflow():
    X, y = make_data(200)
    X[:, 0] *= 1e-170
    plain = SoftmaxRegression(**TIGHT).fit(X, y)
    model = DaskSoftmaxRegression(**TIGHT).fit(*parted(X, y))
    np.testing.assert_allclose(model.coef_[:, 1:], plain.coef_[:, 1:], atol=1e-6)


def test_workers_may_compute_with_cupy(emulated):
    X, y = make_data(200)
    model = DaskSoftmaxRegression(**TIGHT, backend="cupy").fit(*parted(X, y))
    assert_same(model, SoftmaxRegression(**TIGHT).fit(X, y))
    assert type(model.coef_) is np.ndarray


# Partitions as they come


def test_partitions_without_some_classes_or_rows_and_of_other_dtypes(anywhere):
    X, y = make_data(240)
    X = np.round(8 * X)
    order = np.argsort(y)
    X, y = X[order], y[order]
    cuts = np.split(np.arange(240), [50, 50, 130, 200])
    dtypes = [np.float64, np.float64, np.int16, np.float32, np.float64]
    blocks = [X[cut].astype(dtype) for cut, dtype in zip(cuts, dtypes, strict=True)]
    plain = SoftmaxRegression(**TIGHT).fit(X, y)
    model = DaskSoftmaxRegression(**TIGHT, client=anywhere)
    model.fit(from_blocks(blocks, 4), from_blocks([y[cut] for cut in cuts]))
    assert_same(model, plain)
    found = model.predict_proba(from_blocks(blocks, 4)).compute(scheduler="synchronous")
    np.testing.assert_allclose(found, plain.predict_proba(X), atol=1e-5)


def test_integers_columns_of_labels_and_a_weight_for_all():
    X, y = make_data(200)
    X = np.round(100 * X).astype(np.int64) + 10**15  # where float64 has no neighbours left
    plain = SoftmaxRegression(**TIGHT).fit(X, y, 2.0)
    dX, dy = parted(X, y[:, None])
    with pytest.warns(DataConversionWarning, match="y is a column"):
        model = DaskSoftmaxRegression(**TIGHT).fit(dX, dy, 2.0)
    np.testing.assert_allclose(model.coef_, plain.coef_, atol=1e-6)
    np.testing.assert_array_equal(model.predict(dX), plain.predict(X))


@pytest.mark.parametrize("known", [True, False])
def test_partitions_of_y_need_not_be_those_of_x(known):
    X, y = make_data(200)
    dX = da.from_array(X, chunks=(60, 3)) if known else from_blocks(np.split(X, [80, 90]), 4)
    dy = da.from_array(y, chunks=45) if known else from_blocks(np.split(y, [20, 30, 110]))
    model = DaskSoftmaxRegression(**TIGHT).fit(dX, dy)
    assert_same(model, SoftmaxRegression(**TIGHT).fit(X, y))
    assert model.score(dX, dy) == model.score(dX, y) == model.to_local().score(X, y)


@pytest.mark.filterwarnings("ignore:Sending large graph:UserWarning")
def test_epochs_of_sgd_come_first_where_rows_are_many(client):
    X, y = make_data(30_000, d=200, k=15)
    dX, dy = parted(X.astype(np.float32), y, rows=5000)
    model = DaskSoftmaxRegression(client=client).fit(dX, dy)
    plain = SoftmaxRegression(solver="lbfgs").fit(X, y)
    assert np.isfinite(model.learning_rate_)
    assert model.loss_curve_[2] < 0.25 * np.log(15)
    assert model.loss_curve_[-1] == pytest.approx(plain.loss_curve_[-1], rel=1e-4)
    assert len(model.loss_curve_) == model.n_iter_


# Predictions, and what is left of a fit


def test_predictions_wait_until_they_are_wanted(client):
    X, y = make_data(100)
    dX, dy = parted(X, y)
    model = DaskSoftmaxRegression(client=client).fit(dX, dy)
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        found, expected = getattr(model, method)(dX), getattr(model.to_local(), method)(X)
        assert isinstance(found, da.Array)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(found.compute(scheduler=client), expected)
        np.testing.assert_allclose(getattr(model, method)(X), expected)


def test_wrong_widths_are_refused_before_anything_is_computed():
    X, y = make_data(100)
    model = DaskSoftmaxRegression().fit(*parted(X, y))
    with pytest.raises(ValueError, match="X has 3 features"):
        model.predict(parted(X[:, :3])[0])
    with pytest.raises(NotFittedError):
        DaskSoftmaxRegression().predict(X)


def test_clones_pickles_and_plain_estimators(client):
    X, y = make_data(100)
    model = DaskSoftmaxRegression(C=2, client=client).fit(*parted(X, y))
    copy = clone(model)
    assert copy.client is client
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, "coef_")
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded.client is None
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    local = model.to_local()
    assert type(local) is SoftmaxRegression
    assert local.get_params() == SoftmaxRegression(C=2).get_params()
    np.testing.assert_array_equal(local.predict_proba(X), model.predict_proba(X))
    assert local.partial_fit(X, y).n_iter_ == model.n_iter_ + 1
    assert not hasattr(model, "partial_fit")
    np.testing.assert_allclose(
        model.to_sklearn().predict_proba(X), local.predict_proba(X), atol=0.5
    )


def test_the_current_client_is_used_where_none_is_given(client):
    X, y = make_data(100)
    with client.as_current():
        pid = da.map_blocks(lambda _: np.array([os.getpid()]), da.zeros(1, chunks=1), dtype=int)
        model = DaskSoftmaxRegression().fit(*parted(X, y))
        assert pid.compute()[0] != os.getpid()
    assert_same(model, SoftmaxRegression(solver="lbfgs").fit(X, y), atol=1e-2)


def test_validation_data_are_scored_and_may_stop(anywhere, rng):
    X, y = make_data(400)
    X_train, y_train, X_val, y_val = X[:300], y[:300], X[300:], y[300:]
    weight = rng.random(100)
    validation = {"X_val": X_val, "y_val": y_val, "sample_weight_val": weight}
    lazy = dict(zip(validation, parted(X_val, y_val, weight, rows=40), strict=True))
    plain = SoftmaxRegression(**TIGHT).fit(X_train, y_train, **validation)
    model = DaskSoftmaxRegression(**TIGHT, client=anywhere)
    model.fit(*parted(X_train, y_train), **lazy)
    assert len(model.validation_scores_) == model.n_iter_
    assert model.validation_loss_curve_[-1] == pytest.approx(plain.validation_loss_curve_[-1])
    assert model.validation_scores_[-1] == pytest.approx(plain.validation_scores_[-1])
    stopped = DaskSoftmaxRegression(
        early_stopping=True, n_iter_no_change=2, tol=1e-8, client=anywhere
    ).fit(*parted(X_train, y_train), **validation)
    assert max(stopped.validation_scores_) == stopped.best_validation_score_
    assert stopped.n_iter_ <= model.n_iter_


def test_distance_to_the_optimum(anywhere):
    X, y = make_data(200)
    with pytest.warns(ConvergenceWarning):
        model = DaskSoftmaxRegression(max_iter=2, client=anywhere).fit(*parted(X, y))
    plain = SoftmaxRegression(**TIGHT).fit(X, y)
    truth = 1 - plain.loss_curve_[-1] / model.loss_curve_[-1]
    gap = model.optimality_gap(*parted(X, y))
    assert truth <= gap <= 1.2 * truth + 1e-7


def test_a_capped_fit_can_go_on():
    X, y = make_data(300)
    dX, dy = parted(X, y)
    model = DaskSoftmaxRegression(**TIGHT, warm_start=True)
    with pytest.warns(ConvergenceWarning):
        model.set_params(max_iter=4).fit(dX, dy)
    halfway = model.loss_curve_[-1]
    model.set_params(max_iter=None).fit(dX, dy)
    assert model.loss_curve_[0] <= halfway
    assert_same(model, SoftmaxRegression(**TIGHT).fit(X, y))


def test_progress_is_printed(capsys):
    X, y = make_data(100)
    model = DaskSoftmaxRegression(verbose=1).fit(*parted(X, y))
    assert capsys.readouterr().out.count("Epoch") == model.n_iter_


# What is refused


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"solver": "sgd"}, "solver='sgd' is not for a cluster. Use solver='lbfgs'"),
        ({"solver": "newton"}, "solver='newton' is not for a cluster"),
        ({"learning_rate": 0.1}, "learning_rate, schedule"),
        ({"early_stopping": True}, "needs X_val and y_val"),
        ({"C": -1}, "'C' parameter"),
    ],
)
def test_parameters_that_are_not_for_a_cluster_are_refused(params, words):
    with pytest.raises(ValueError, match=words):
        DaskSoftmaxRegression(**params).fit(*parted(*make_data(50)))


def test_partitions_that_are_wrong_are_named(anywhere):
    X, y = make_data(100)
    X[80, 1] = np.nan
    with pytest.raises(ValueError, match="contains NaN") as caught:
        DaskSoftmaxRegression(client=anywhere).fit(*parted(X, y))
    assert caught.value.__notes__ == ["This is partition 2 of X, counted from 0."]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda X, y: (X, y[:-1]), "inconsistent numbers of samples"),
        (lambda X, y: (X, 0 * y), "at least 2 classes"),
        (lambda X, y: (X[:0], y[:0]), "0 sample"),
        (lambda X, y: (X, y + 0.5), "continuous"),
        (lambda X, y: (X, np.where(y == 0, np.nan, y)), "NaN"),
        (lambda X, y: (np.full(X.shape, 2**62), y), r"beyond 2\*\*62"),
    ],
)
def test_data_that_are_wrong_are_refused(change, words):
    model = DaskSoftmaxRegression()
    with pytest.raises(ValueError, match=words):
        model.fit(*parted(*change(*make_data(100))))
    assert not hasattr(model, "coef_")


def test_partitions_that_do_not_go_together_are_refused():
    X, y = make_data(100)
    mixed = from_blocks([y[:50].astype(object), y[50:].astype(str).astype(object)])
    blocks = [X[:50], sparse.csr_matrix(X[50:])]
    cases = [
        (from_blocks(blocks, 4), from_blocks([y[:50], y[50:]]), ValueError, "sparse"),
        (from_blocks([X[:50], X[50:, :3]], 4), from_blocks([y[:50], y[50:]]), ValueError, "differ"),
        (from_blocks([X[:50], X[50:]], 4), mixed, ValueError, "Unknown label type"),
    ]
    for dX, dy, error, words in cases:
        with pytest.raises(error, match=words):
            DaskSoftmaxRegression().fit(dX, dy)


def test_validation_data_that_are_wrong_are_refused():
    X, y = make_data(100)
    model, train = DaskSoftmaxRegression(), parted(X, y)
    with pytest.raises(ValueError, match="X_val and X differ in n_features_in_: 3 and 4"):
        model.fit(*train, X_val=X[:, :3], y_val=y)
    with pytest.raises(ValueError, match="y_val has labels that are not among the classes"):
        model.fit(*train, X_val=X, y_val=y + 1)
    with pytest.raises(ValueError, match="given together"):
        model.fit(*train, X_val=X)
    with pytest.raises(ValueError, match="all rows have weight zero"):
        model.fit(*train, sample_weight=0 * y)


# Faults


def test_a_worker_that_dies_costs_time_and_not_the_fit(client):
    X, y = make_data(300)
    plain = SoftmaxRegression(**TIGHT).fit(X, y)
    pids = client.run(os.getpid)

    def kill():
        os.kill(min(pids.values()), signal.SIGKILL)

    model = DaskSoftmaxRegression(**TIGHT, client=client).set_callbacks(after(3, kill))
    assert_same(model.fit(*parted(X, y)), plain)
    client.wait_for_workers(2, timeout=60)
    assert set(client.run(os.getpid).values()) != set(pids.values())


def test_a_worker_without_memory_says_so(client):
    X, y = make_data(100)
    dX, dy = parted(X, y)

    def fill(block):
        raise MemoryError("Unable to allocate 1 TB")

    with pytest.raises(MemoryError, match=r"A worker is out of memory \(Unable to allocate 1 TB"):
        DaskSoftmaxRegression(client=client).fit(dX.map_blocks(fill, meta=np.empty((0, 4))), dy)


def test_rows_that_kill_every_worker_are_given_up(client):
    X, y = make_data(100)
    dX, dy = parted(X, y)

    def die(block):
        os.kill(os.getpid(), signal.SIGKILL)

    model = DaskSoftmaxRegression(client=client).fit(dX, dy)
    before = pickle.dumps(model)
    with pytest.raises(MemoryError, match="Workers died 2 times over the same rows"):
        model.fit(dX.map_blocks(die, meta=np.empty((0, 4))), dy)
    assert pickle.dumps(model) == before


def test_a_scheduler_that_goes_away_is_missed(tmp_path):
    X, y = make_data(100)
    settings = {"distributed.comm.timeouts.connect": "1s"}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=10,  # whose sums are a tree
            processes=False,
            dashboard_address=":0",
            silence_logs=50,
            local_directory=tmp_path,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        model = DaskSoftmaxRegression(**TIGHT, client=client).fit(*parted(X, y, rows=9))
        assert_same(model, SoftmaxRegression(**TIGHT).fit(X, y))
        before = model.coef_.copy()
        model.set_callbacks(after(2, lambda: cluster.close(timeout=2)))
        with pytest.raises(ConnectionError, match="scheduler"):
            model.fit(*parted(X, y))
    np.testing.assert_array_equal(model.coef_, before)


def test_lazy_predictions_are_not_written_where_the_caller_wants_them():
    X = np.random.default_rng(0).normal(size=(150, 3))
    given, y = da.from_array(X, chunks=50), da.from_array((X[:, 0] > 0).astype(int), chunks=50)
    model, out = DaskSoftmaxRegression().fit(given, y), np.empty(150, dtype=int)
    assert model.predict(X, out=out) is out
    np.testing.assert_array_equal(out, model.predict(given).compute())
    with pytest.raises(ValueError, match=r"lazy: write them with dask.array.store"):
        model.predict(given, out=out)

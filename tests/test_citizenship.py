"""SoftmaxRegression among scikit-learn's tools: pipelines, searches, pickles, threads."""

import copy
import html
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import sklearn
from scipy import sparse
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.parallel import Parallel, delayed
from threadpoolctl import threadpool_info, threadpool_limits

import skmax.backends.numpy
import skmax.kernels.cpu
from skmax import SoftmaxRegression
from skmax.datasets import fetch_fashion_mnist

rng = np.random.default_rng(0)
Y = np.arange(150) % 3
X = rng.normal(size=(150, 4)) + 1.5 * np.eye(3, 4)[Y]
NAMES = np.array(["ant", "bee", "cat"])
WEIGHT = rng.uniform(0.1, 3.0, size=150)


def estimator(**params):
    return SoftmaxRegression(**({"max_iter": 5, "learning_rate": 0.05, "random_state": 0} | params))


def piped(**params):
    return Pipeline([("scaler", StandardScaler()), ("model", estimator(**params))])


@pytest.fixture
def routing():
    """Metadata routing, switched on."""
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def assert_same_bits(model, other):
    for name in ("coef_", "intercept_"):
        first, second = getattr(model, name), getattr(other, name)
        if sparse.issparse(first):
            first, second = first.toarray(), second.toarray()
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    assert model.loss_curve_ == other.loss_curve_


# Parameters and copies


def test_clone_keeps_the_parameters_and_nothing_else():
    model = estimator(C=0.3, class_weight={0: 2.0}).fit(X, Y)
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    assert not hasattr(twin, "coef_")
    assert_same_bits(twin.fit(X, Y), model)


def test_set_params_counts_at_the_next_fit():
    model = estimator().fit(X, Y).set_params(C=0.01, momentum=0.5)
    assert_same_bits(model.fit(X, Y), estimator(C=0.01, momentum=0.5).fit(X, Y))


def test_fit_changes_no_parameter():
    model = SoftmaxRegression(random_state=0)
    before = copy.deepcopy(model.get_params())
    model.fit(X, Y)
    assert model.get_params() == before


def test_unknown_parameters_are_refused():
    with pytest.raises(ValueError, match="Invalid parameter 'alpha'"):
        estimator().set_params(alpha=1.0)


def through_joblib(model):
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "joblib": through_joblib,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize(
    "data",
    [X, X.astype(np.float32), sparse.csr_array(X), X + 1e8],
    ids=["float64", "float32", "sparse", "far from zero"],
)
def test_copies_predict_the_same_bits(duplicate, data):
    model = estimator().fit(data, NAMES[Y])
    twin = duplicate(model)
    assert_same_bits(twin, model)
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        np.testing.assert_array_equal(getattr(twin, method)(data), getattr(model, method)(data))


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_continue_with_the_same_bits(duplicate):
    model = estimator().partial_fit(X[:70], Y[:70], classes=[0, 1, 2])
    twin = duplicate(model)
    assert_same_bits(twin.partial_fit(X[70:], Y[70:]), model.partial_fit(X[70:], Y[70:]))


def test_a_pickle_holds_no_training_data():
    rows = np.tile(X, (100, 1))
    model = estimator(early_stopping=True).fit(rows, np.tile(Y, 100))
    assert len(pickle.dumps(model)) < 10_000 < rows.nbytes


# Fitted attributes

FLOATS = ("loss_curve_", "accuracy_curve_", "validation_scores_", "validation_loss_curve_")


@pytest.mark.parametrize("y", [Y, NAMES[Y], np.eye(3)[Y]], ids=["numbers", "names", "one-hot"])
def test_fitted_attributes_have_the_types_of_the_contract(y):
    model = estimator(tol=0).fit(X, y, X_val=X, y_val=y)
    assert type(model.n_iter_) is int
    assert type(model.n_features_in_) is int
    assert type(model.learning_rate_) is float
    assert type(model.best_loss_) is float
    assert type(model.best_validation_score_) is float
    for name in FLOATS:
        curve = getattr(model, name)
        assert type(curve) is list
        assert {type(value) for value in curve} == {float}
        assert len(curve) == model.n_iter_ == 5
    assert model.best_loss_ == min(model.loss_curve_)
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert model.coef_.shape == (3, 4)
    assert model.intercept_.shape == model.classes_.shape == (3,)
    assert model.learning_rate_ == 0.05


def test_two_classes_have_one_row_of_coefficients():
    model = estimator().fit(X, NAMES[Y % 2])
    assert model.coef_.shape == (1, 4)
    assert model.intercept_.shape == (1,)
    assert model.decision_function(X).shape == (150,)
    assert model.predict_proba(X).shape == (150, 2)
    np.testing.assert_array_equal(model.predict(X) == "bee", model.decision_function(X) > 0)


def test_without_an_intercept_it_is_zero():
    model = estimator(fit_intercept=False).fit(X, Y)
    np.testing.assert_array_equal(model.intercept_, np.zeros(3))
    np.testing.assert_allclose(model.decision_function(X), X @ model.coef_.T, rtol=1e-12)


def test_without_validation_data_there_are_no_validation_results():
    model = estimator().fit(X, Y, X_val=X, y_val=Y).fit(X, Y)
    for name in ("validation_scores_", "validation_loss_curve_", "best_validation_score_"):
        assert getattr(model, name, None) is None


def test_a_learning_rate_that_was_found_is_a_positive_float():
    model = estimator(solver="sgd", learning_rate="auto").fit(X, Y)
    assert type(model.learning_rate_) is float
    assert 0 < model.learning_rate_ < np.inf
    assert model.learning_rate == "auto"


@pytest.mark.parametrize("labels", [NAMES, NAMES.astype(object), [3, 5, 9], [True, False, True]])
def test_predictions_are_the_labels_that_fit_was_given(labels):
    y = np.asarray(labels)[Y]
    model = estimator().fit(X, y)
    assert model.classes_.dtype == y.dtype
    assert list(model.classes_) == sorted(set(labels))
    assert model.predict(X).dtype == y.dtype
    assert model.score(X, y) == np.mean(model.predict(X) == y) > 0.5


def test_labels_in_a_list_of_strings():
    assert estimator().fit(X, list(NAMES[Y])).predict(X[:1])[0] in list(NAMES)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_score_accepts_probabilities_of_which_the_largest_counts(weight):
    model = estimator().fit(X, Y)
    soft = np.random.default_rng(1).dirichlet(np.ones(3), size=150)
    assert model.score(X, np.eye(3)[Y], weight) == model.score(X, Y, weight)
    assert model.score(X, soft, weight) == model.score(X, soft.argmax(axis=1), weight)


def test_score_of_names_accepts_probabilities_in_the_order_of_classes():
    model = estimator().fit(X, NAMES[Y])
    assert model.score(X, np.eye(3)[Y]) == model.score(X, NAMES[Y])


def test_sparsify_and_densify_change_no_prediction():
    model = estimator(l1_ratio=1.0, C=0.05, max_iter=20).fit(X, Y)
    dense, probabilities = model.coef_.copy(), model.predict_proba(X)
    assert model.sparsify() is model
    assert sparse.issparse(model.coef_)
    assert model.coef_.nnz == np.count_nonzero(dense) < dense.size
    np.testing.assert_allclose(model.predict_proba(X), probabilities, rtol=1e-12)
    np.testing.assert_allclose(model.predict_proba(sparse.csr_array(X)), probabilities, rtol=1e-12)
    np.testing.assert_array_equal(model.densify().coef_, dense)


def test_sparsified_models_can_be_copied_exported_and_trained_on():
    model = estimator(warm_start=True).fit(X, Y)
    twin = copy.deepcopy(model).sparsify()
    np.testing.assert_allclose(
        twin.to_sklearn().predict_proba(X), model.predict_proba(X), rtol=1e-12
    )
    twin, model = copy.deepcopy(twin).partial_fit(X, Y), model.partial_fit(X, Y)
    np.testing.assert_allclose(twin.predict_proba(X), model.predict_proba(X), rtol=1e-12)
    twin.sparsify().fit(X, Y)
    np.testing.assert_allclose(twin.predict_proba(X), model.fit(X, Y).predict_proba(X), rtol=1e-12)


# What scikit-learn is told


def test_tags():
    tags = get_tags(SoftmaxRegression())
    assert is_classifier(SoftmaxRegression())
    assert tags.input_tags.sparse
    assert not tags.input_tags.allow_nan
    assert tags.array_api_support
    assert tags.classifier_tags.multi_class
    assert not tags.classifier_tags.multi_label
    assert tags.target_tags.required


def test_html_shows_parameters_and_links_to_no_page_that_does_not_exist():
    shown = html.unescape(SoftmaxRegression(C=0.5)._repr_html_())
    assert "readthedocs" not in shown
    for name in SoftmaxRegression().get_params():
        assert name in shown


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(SoftmaxRegression(C=0.5, l1_ratio=0.2)) == "SoftmaxRegression(C=0.5, l1_ratio=0.2)"


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_feature_names(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame(dict(zip("abcd", X.T, strict=True)))
    model = estimator().fit(frame, Y)
    assert list(model.feature_names_in_) == list("abcd")
    np.testing.assert_array_equal(model.predict(frame), estimator().fit(X, Y).predict(X))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[["b", "a", "c", "d"]])
    with pytest.raises(ValueError, match="feature names should match"):
        model.partial_fit(frame[["b", "a", "c", "d"]], Y)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(X)


def test_features_without_names_meet_features_with_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    model = estimator().fit(frame, Y).fit(X, Y)
    assert not hasattr(model, "feature_names_in_")
    with pytest.warns(UserWarning, match="fitted without feature names"):
        model.predict(frame)


def test_y_may_be_a_series_or_a_frame_of_probabilities():
    pandas = pytest.importorskip("pandas")
    expected = estimator().fit(X, Y)
    index = np.arange(150)[::-1]
    assert_same_bits(estimator().fit(X, pandas.Series(Y, index=index)), expected)
    categories = pandas.Series(NAMES[Y], index=index, dtype="category")
    assert_same_bits(estimator().fit(X, categories), expected)
    one_hot = pandas.DataFrame(np.eye(3)[Y], index=index)
    assert_same_bits(estimator().fit(X, one_hot), expected)


def test_weights_may_be_a_series():
    pandas = pytest.importorskip("pandas")
    weight = pandas.Series(WEIGHT, index=np.arange(150)[::-1])
    assert_same_bits(
        estimator().fit(X, Y, sample_weight=weight), estimator().fit(X, Y, sample_weight=WEIGHT)
    )


# Pipelines, searches, meta-estimators


def test_a_pipeline_is_the_model_on_transformed_data():
    scaled = StandardScaler().fit_transform(X)
    model = make_pipeline(StandardScaler(), estimator()).fit(X, Y)
    assert_same_bits(model[-1], estimator().fit(scaled, Y))
    assert model.score(X, Y) == estimator().fit(scaled, Y).score(scaled, Y)


GRID = {"model__C": [0.01, 1.0], "model__learning_rate": [0.01, 0.1]}


def assert_same_results(search, other):
    assert set(search.cv_results_) == set(other.cv_results_)
    for name, values in search.cv_results_.items():
        if name.endswith(("_test_score", "_train_score")):
            np.testing.assert_array_equal(values, other.cv_results_[name])
    assert search.best_params_ == other.best_params_


@pytest.mark.parametrize("learning_rate", ["auto", 0.05])
def test_a_search_gives_the_same_scores_with_any_number_of_jobs(learning_rate):
    settings = {"cv": 3, "return_train_score": True, "scoring": "neg_log_loss"}
    model = piped(solver="sgd", learning_rate=learning_rate)
    grid = {"model__C": [0.001, 1.0], "model__momentum": [0.0, 0.9]}
    one, two = (GridSearchCV(model, grid, n_jobs=n, **settings).fit(X, Y) for n in (1, 2))
    assert_same_results(one, two)
    assert_same_bits(one.best_estimator_[-1], two.best_estimator_[-1])
    by_hand = [
        -log_loss(
            Y[test],
            clone(model).set_params(**params).fit(X[train], Y[train]).predict_proba(X[test]),
        )
        for params in one.cv_results_["params"]
        for train, test in [next(StratifiedKFold(3).split(X, Y))]
    ]
    np.testing.assert_allclose(one.cv_results_["split0_test_score"], by_hand, rtol=1e-12)


@pytest.fixture(scope="module")
def fashion_mnist():
    try:
        data = fetch_fashion_mnist(download_if_missing=False)
    except OSError as error:
        pytest.skip(f"Fashion-MNIST is not here: {error}")
    return data.data[:3000], data.target[:3000]


def test_a_search_on_pictures(fashion_mnist):
    model = piped(max_iter=2)
    one, two = (GridSearchCV(model, GRID, cv=2, n_jobs=n).fit(*fashion_mnist) for n in (1, 2))
    assert_same_results(one, two)
    assert one.best_score_ > 0.75


def test_cross_validation():
    scores = cross_val_score(estimator(), X, Y, cv=3)
    by_hand = [
        accuracy_score(Y[test], estimator().fit(X[train], Y[train]).predict(X[test]))
        for train, test in StratifiedKFold(3).split(X, Y)
    ]
    np.testing.assert_array_equal(scores, by_hand)


@pytest.mark.parametrize("ensemble", [True, False])
def test_calibration(ensemble):
    model = CalibratedClassifierCV(estimator(), ensemble=ensemble, cv=3)
    model.fit(X, NAMES[Y], sample_weight=WEIGHT)
    assert model.score(X, NAMES[Y]) > 0.6
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_temperature_of_tensors(dtype, frozen):
    torch = pytest.importorskip("torch")
    rows, labels = load_digits(return_X_y=True)
    rows, labels = rows[:600].astype(dtype), labels[:600]

    def probabilities(X, y):
        model = SoftmaxRegression(C=0.01)
        model = FrozenEstimator(model.fit(X[:300], y[:300])) if frozen else model
        model = CalibratedClassifierCV(model, method="temperature", cv=3)
        return model.fit(X[300:], y[300:]).predict_proba(X)

    with sklearn.config_context(array_api_dispatch=True):
        there = probabilities(torch.asarray(rows), torch.asarray(labels))
    np.testing.assert_allclose(there.numpy(), probabilities(rows, labels), atol=0.01)


# Metadata routing


@pytest.mark.usefixtures("routing")
def test_weights_reach_every_fit_of_a_search_through_a_pipeline():
    model = Pipeline(
        [
            ("scaler", StandardScaler().set_fit_request(sample_weight=False)),
            (
                "model",
                estimator()
                .set_fit_request(sample_weight=True)
                .set_score_request(sample_weight=True),
            ),
        ]
    )
    search = GridSearchCV(model, GRID, cv=3).fit(X, Y, sample_weight=WEIGHT)
    for split, (train, test) in enumerate(StratifiedKFold(3).split(X, Y)):
        scaler = StandardScaler().fit(X[train])
        by_hand = [
            estimator(C=params["model__C"], learning_rate=params["model__learning_rate"])
            .fit(scaler.transform(X[train]), Y[train], WEIGHT[train])
            .score(scaler.transform(X[test]), Y[test], WEIGHT[test])
            for params in search.cv_results_["params"]
        ]
        np.testing.assert_allclose(
            search.cv_results_[f"split{split}_test_score"], by_hand, rtol=1e-12
        )


@pytest.mark.usefixtures("routing")
def test_weights_that_were_not_asked_for_are_refused():
    with pytest.raises(UnsetMetadataPassedError, match="set_fit_request"):
        piped().fit(X, Y, sample_weight=WEIGHT)


@pytest.mark.usefixtures("routing")
def test_partial_fit_can_ask_for_classes_and_weights():
    model = estimator().set_partial_fit_request(sample_weight=True, classes=True)
    request = model.get_metadata_routing().partial_fit.requests
    assert request == {"sample_weight": True, "classes": True}


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_pipeline_transforms_validation_data_like_X(early_stopping):
    names = ("X_val", "y_val", "sample_weight_val")
    settings = {"early_stopping": early_stopping, "schedule": "constant", "tol": 0}
    model = estimator(**settings).set_fit_request(**dict.fromkeys(names, True))
    pipeline = Pipeline([("scaler", StandardScaler()), ("model", model)], transform_input=["X_val"])
    X_train, X_val = 100 * X[:100] + 50, 100 * X[100:] + 50
    y_val, weight = Y[100:], WEIGHT[100:]
    pipeline.fit(X_train, Y[:100], X_val=X_val, y_val=y_val, sample_weight_val=weight)

    scaler = StandardScaler().fit(X_train)
    fitted = pipeline[-1]
    for n_epochs in range(1, 6):
        by_hand = estimator(schedule="constant", tol=0, max_iter=n_epochs)
        by_hand.fit(scaler.transform(X_train), Y[:100])
        score = by_hand.score(scaler.transform(X_val), y_val, weight)
        loss = log_loss(y_val, by_hand.predict_proba(scaler.transform(X_val)), sample_weight=weight)
        assert fitted.validation_scores_[n_epochs - 1] == pytest.approx(score, rel=1e-12)
        assert fitted.validation_loss_curve_[n_epochs - 1] == pytest.approx(loss, rel=1e-12)


# Threads and processes


def blas_threads():
    return max(
        (pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"),
        default=1,
    )


class CountThreads:
    """A callback that leaves on the estimator how many BLAS threads its epochs could use."""

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        estimator.blas_threads = max(blas_threads(), getattr(estimator, "blas_threads", 0))

    def teardown(self, estimator, context):
        pass


def count_threads(fitted, X, y):
    return {
        "score": fitted.score(X, y),
        "while_fitting": fitted.blas_threads,
        "while_scoring": blas_threads(),
    }


def test_jobs_do_not_start_more_threads_than_there_are_processors():
    model = estimator().set_callbacks(CountThreads())
    results = cross_validate(model, X, Y, cv=4, scoring=count_threads, n_jobs=2)
    most = max(1, joblib.cpu_count() // 2)
    assert results["test_while_fitting"].max() <= most
    assert results["test_while_scoring"].max() <= most


def test_two_threads_give_the_bits_of_one_after_the_other():
    data = np.tile(X, (20, 1)), np.tile(Y, 20)
    settings = [
        {"C": 0.01},
        {"C": 10.0, "early_stopping": True},
        {"l1_ratio": 0.5},
        {"momentum": 0},
    ]
    one_by_one = [estimator(**params).fit(*data) for params in settings]
    start = threading.Barrier(len(settings))

    def fit(params):
        start.wait()
        return estimator(**params).fit(*data)

    with ThreadPoolExecutor(len(settings)) as pool:
        for model, expected in zip(pool.map(fit, settings), one_by_one, strict=True):
            assert_same_bits(model, expected)


def test_joblib_threads_may_share_one_data_set():
    models = [estimator(random_state=seed) for seed in range(4)]
    fitted = Parallel(n_jobs=2, prefer="threads")(delayed(model.fit)(X, Y) for model in models)
    for seed, model in enumerate(fitted):
        assert_same_bits(model, estimator(random_state=seed).fit(X, Y))


def test_many_threads_may_predict_with_one_model():
    data = np.tile(X, (200, 1)).astype(np.float32) + 1e4
    model = estimator().fit(data, np.tile(Y, 200))
    expected = model.predict_proba(data)
    with ThreadPoolExecutor(4) as pool:
        for probabilities in pool.map(model.predict_proba, [data] * 8):
            np.testing.assert_array_equal(probabilities, expected)


@pytest.mark.parametrize("limit", [1, 2])
def test_fitting_leaves_the_number_of_blas_threads_as_it_was(limit):
    with threadpool_limits(limit, user_api="blas"):
        before = threadpool_info()
        estimator().fit(X, Y)
        assert threadpool_info() == before
        with pytest.raises(ValueError, match="diverged"):
            estimator(learning_rate=1e6).fit(X, Y)
        assert threadpool_info() == before


def test_fits_that_overlap_leave_the_number_of_blas_threads_as_it_was():
    data = np.tile(X, (40, 1)), np.tile(Y, 40)
    with threadpool_limits(2, user_api="blas"):
        before = threadpool_info()
        models = [estimator(max_iter=5 + 5 * i, tol=0) for i in range(4)]
        Parallel(n_jobs=4, prefer="threads")(delayed(model.fit)(*data) for model in models)
        assert threadpool_info() == before


def test_a_fit_does_not_depend_on_the_global_random_state():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    estimator().fit(X, Y)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("backing", ["read-only", "memory map"])
def test_data_that_cannot_be_written_to(tmp_path, backing):
    data = X.copy()
    data.flags.writeable = False
    if backing == "memory map":
        joblib.dump(X, tmp_path / "X")
        data = joblib.load(tmp_path / "X", mmap_mode="r")
    model = estimator().fit(data, Y, sample_weight=WEIGHT)
    assert_same_bits(model, estimator().fit(X, Y, sample_weight=WEIGHT))
    model.predict_proba(data)
    model.partial_fit(data, Y)


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_no_product_or_factorisation_of_fit_waits_for_threads_of_blas(monkeypatch, solver):
    """Idle ones spin: where two processes fit at once, each took four times as long."""
    counts = []
    numpy, cpu = skmax.backends.numpy.NumpyBackend, skmax.kernels.cpu
    for module, name in ((numpy, "factored"), (cpu, "full_pass"), (cpu, "sgd_epoch")):
        original = getattr(module, name)

        def counted(*arguments, original=original, **options):
            counts.append(blas_threads())
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, counted)
    rng = np.random.default_rng(0)
    with threadpool_limits(2, user_api="blas"):
        labels = np.arange(600) % 3
        SoftmaxRegression(solver=solver).fit(rng.normal(size=(600, 80)) + labels[:, None], labels)
    assert len(counts) > 10
    assert set(counts) == {1}

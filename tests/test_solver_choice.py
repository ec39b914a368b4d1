"""What solver="auto" chooses, how progress is announced, and what pickles hold."""

import pickle
import pickletools

import numpy as np
import pytest
from sklearn.callback.tests._utils import RecordingCallback
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning

from skmax import BatchedGridSearchCV, SoftmaxRegression
from skmax.hyperparameters import Hyperparameters
from skmax.policy import Size, choose, more_rows, rows_of_blocks


@pytest.mark.parametrize(
    "params",
    [
        {"learning_rate": 0.1},
        {"schedule": "linear"},
        {"batch_size": 16},
        {"momentum": 0.5},
        {"shuffle": False},
        {"early_stopping": True},
    ],
    ids=str,
)
def test_whoever_sets_what_only_sgd_knows_gets_sgd(params):
    X, y = load_iris(return_X_y=True)
    assert SoftmaxRegression(random_state=0, **params).fit(X, y).solver_ == "sgd"
    assert SoftmaxRegression(random_state=0).fit(X, y).solver_ == "newton"


@pytest.mark.parametrize(
    ("size", "solver", "first_epochs"),
    [
        (Size(150, 4, 3, 4), "newton", 0),
        (Size(10_000, 50, 2, 50), "newton", 0),
        (Size(1797, 64, 10, 64), "lbfgs", 0),
        (Size(10_000, 1000, 10, 1000), "lbfgs", 0),
        (Size(32_000, 15_000, 400, 15), "lbfgs", 0),  # sparse
        (Size(32_000, 384, 413, 384), "lbfgs", 3),  # fewer rows than weights
        (Size(1_000_000, 20, 5, 20), "lbfgs", 0),
        (Size(100_000, 50, 20, 50), "lbfgs", 3),
        (Size(100_000, 50, 2, 50), "lbfgs", 0),
        (Size(60_000, 784, 10, 784), "sgd", 0),
        (Size(1_000_000, 784, 10, 784), "sgd", 0),
    ],
    ids=str,
)
def test_what_is_best_for_data_of_a_size(size, solver, first_epochs):
    """As measured: `benchmarks/README.md`."""
    method = choose(Hyperparameters(), size)
    assert (method.solver, method.first_epochs) == (solver, first_epochs)


def skewed(n=2000, d=5, k=40):
    """Lognormal features of other scales, correlated; L-BFGS takes 1,000 iterations and more."""
    rng = np.random.default_rng(0)
    X = np.exp(1.5 * rng.normal(size=(n, d)) @ (np.eye(d) + 0.5)) * 10 ** rng.uniform(-3, 3, d)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    y = np.argmax(2 * Z @ rng.normal(size=(d, k)) + rng.gumbel(size=(n, k)), axis=1)
    y[:k] = np.arange(k)
    return X, y


def test_newton_takes_over_where_lbfgs_is_slow():
    """As soon as it would have cost less; to the same optimum, alone and in a search."""
    X, y = skewed()
    model, newton = (SoftmaxRegression(solver=s).fit(X, y) for s in ("auto", "newton"))
    after = choose(Hyperparameters(), Size(*X.shape, 40, X.shape[1])).newton_after
    assert model.solver_ == "newton"
    assert after < model.n_iter_ <= after + newton.n_iter_
    assert model.loss_curve_[-1] == pytest.approx(newton.loss_curve_[-1], rel=1e-4)
    assert np.all(np.diff(model.loss_curve_) <= 0)
    few = SoftmaxRegression(max_iter=after)
    with pytest.warns(ConvergenceWarning, match="L-BFGS"):
        few.fit(X, y)
    assert few.solver_ == "lbfgs"
    with pytest.warns(ConvergenceWarning, match="Newton"):
        assert few.set_params(max_iter=after + 1).fit(X, y).solver_ == "newton"


def test_newton_takes_over_in_searches():
    """Scores are those of tight fits."""
    X, y = skewed(n=1000, k=20)
    scores = []
    for model in (SoftmaxRegression(), SoftmaxRegression(solver="newton", tol=1e-8)):
        search = BatchedGridSearchCV(model, {"C": [0.1, 1, 10]}, cv=3).fit(X, y)
        assert search.best_estimator_.solver_ == "newton"
        scores.append(search.cv_results_["mean_test_score"])
    np.testing.assert_allclose(*scores, atol=0.002)


@pytest.mark.parametrize("n_classes", [2, 10, 1000])
@pytest.mark.parametrize("n_features", [1, 20, 2000])
@pytest.mark.parametrize("n_rows", [1, 1000, 10**9])
def test_curvature_is_measured_on_few_rows(n_rows, n_features, n_classes):
    """Of any number of rows, what is gathered of them fits in memory."""
    size = Size(n_rows, n_features, n_classes, n_features)
    few = 8 * (n_features + 1)
    promising = 1.0, np.inf
    first = rows_of_blocks(size, *promising)
    assert min(few, n_rows) <= first <= min(max(few, 20_000), n_rows)
    assert rows_of_blocks(size._replace(is_on_disk=True), *promising) == min(few, n_rows)
    rows = more = rows_of_blocks(size, 0.1, 0.0)
    assert first <= more <= n_rows
    for _ in range(20):
        rows = more_rows(size, rows)
    assert rows * (n_features + 1) <= max(2**25, few * (n_features + 1))


@pytest.mark.parametrize("solver", ["sgd", "lbfgs", "newton"])
def test_the_solver_that_is_named_is_used(solver):
    X, y = load_iris(return_X_y=True)
    model = SoftmaxRegression(solver=solver, random_state=0).fit(X, y)
    assert model.solver_ == solver
    assert model.n_iter_ == len(model.loss_curve_)


def test_newton_says_when_there_are_too_many_weights():
    X, y = np.random.default_rng(0).normal(size=(1500, 2000)), np.arange(1500) % 10
    with pytest.raises(ValueError, match=r"13,509 weights.*1 GB.*solver='lbfgs'"):
        SoftmaxRegression(solver="newton").fit(X, y)


def test_newton_refuses_wide_rows_that_would_fill_the_memory():
    with pytest.raises(ValueError, match=r"40 GB, and X is of 1,000,000 features.*solver='lbfgs'"):
        choose(Hyperparameters(solver="newton"), Size(5000, 1_000_000, 2, 100.0))


@pytest.mark.parametrize(("solver", "planned"), [("sgd", 7), ("lbfgs", None), ("newton", None)])
def test_progress_is_announced_where_it_is_planned(solver, planned):
    """How many iterations lead to the optimum, nobody knows before."""
    announced = []

    class Watching(RecordingCallback):
        def setup(self, estimator, context):
            announced.append(context.max_subtasks)
            super().setup(estimator, context)

    X, y = load_iris(return_X_y=True)
    max_iter = 7 if solver == "sgd" else None
    model = SoftmaxRegression(solver=solver, max_iter=max_iter, tol=1e-4, random_state=0)
    model.set_callbacks(Watching()).fit(X, y)
    assert announced == [planned]


def fitted_in_parts():
    X, y = load_digits(return_X_y=True)
    model = SoftmaxRegression(random_state=0)
    return model.partial_fit(X[:900], y[:900], classes=range(10)), X[900:], y[900:]


def test_pickles_hold_nothing_of_skmax_but_the_estimator():
    model, *_ = fitted_in_parts()
    names = {
        argument
        for _, argument, _ in pickletools.genops(pickle.dumps(model, protocol=2))
        if isinstance(argument, str) and argument.startswith("skmax")
    }
    assert names == {"skmax.estimator SoftmaxRegression"}


def test_an_unpickled_model_goes_on_like_the_one_that_was_pickled():
    model, X, y = fitted_in_parts()
    other = pickle.loads(pickle.dumps(model))
    assert vars(other).keys() == vars(model).keys()
    np.testing.assert_array_equal(other.partial_fit(X, y).coef_, model.partial_fit(X, y).coef_)


def test_a_pickle_of_a_newer_format_is_refused():
    model, *_ = fitted_in_parts()
    state = model.__getstate__()
    (key,) = state.keys() - vars(model).keys() - {"_sklearn_version"}
    with pytest.raises(ValueError, match=r"newer skmax, in format 99.*Upgrade skmax"):
        SoftmaxRegression().__setstate__({**state, key: 99})

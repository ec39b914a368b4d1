"""Searches along a path of C, beside single fits that are tight."""

import warnings
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn import config_context
from sklearn.datasets import load_breast_cancer, load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, PredefinedSplit, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

import skmax.search.stacks
from skmax import BatchedGridSearchCV, SoftmaxRegression, policy
from skmax.solvers.newton import Newton


def make_data(n=90, d=6, k=3, seed=0):
    return make_classification(
        n, d, n_informative=4, n_classes=k, n_clusters_per_class=1, flip_y=0.2, random_state=seed
    )


def insight(model, X, y):
    """Whatever a scorer may see of a model, as scores."""
    y = y if np.ndim(y) == 1 else np.argmax(y, axis=1)
    p = model.predict_proba(X)
    seen = np.isin(y, model.classes_)
    scores = {
        "loss": log_loss(y[seen], p[seen], labels=model.classes_) if seen.any() else 0.0,
        "accuracy": accuracy_score(y, model.predict(X)),
        "n_iter": model.n_iter_,
        "n_losses": len(model.loss_curve_),
        "least": model.best_loss_,
        "rate": np.nan_to_num(model.learning_rate_, nan=-1.0),
    }
    intercept = np.where(np.isfinite(model.intercept_), model.intercept_, 0.0)
    if len(intercept) > 1:
        intercept = intercept - intercept.mean()  # which the loss does not see
    weights = np.concatenate([model.coef_.ravel(), intercept, np.zeros(27)])[:27]
    return scores | {f"weight {i}": weight for i, weight in enumerate(weights)}


def searched(search, model, grid, X, y, fit=None, **settings):
    """The scores by name, of shape (n_candidates, n_splits)."""
    settings = {"cv": 3, "scoring": insight, "refit": False} | settings
    found = search(model, grid, **settings).fit(X, y, **(fit or {}))
    names = [name.removeprefix("mean_test_") for name in found.cv_results_ if "mean_test" in name]
    return {
        name: np.stack(
            [found.cv_results_[f"split{i}_test_{name}"] for i in range(found.n_splits_)], axis=1
        )
        for name in names
    }


def assert_same_models(one, other, atol):
    for name, values in one.items():
        if name in ("loss", "accuracy", "least") or name.startswith("weight"):
            np.testing.assert_allclose(other[name], values, atol=atol, err_msg=name)


@st.composite
def cases(draw):
    """A model, what is fitted, and splits."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, k = int(rng.integers(40, 80)), int(rng.integers(6, 8)), draw(st.integers(2, 3))
    X, y = make_data(n, d, k, seed=int(rng.integers(1000)))
    X = X * 10 ** rng.uniform(-1, 1, d) + rng.normal(size=d)
    fold = np.arange(n) % 3
    fit = {}
    if draw(st.booleans()):
        fit["sample_weight"] = rng.exponential(size=n) * (rng.random(n) > 0.2)
    if k == 3 and draw(st.booleans()):
        fold = np.where(y == 2, 0, fold)  # one fold does not know the class
    if draw(st.booleans()):
        y = 0.7 * np.eye(k)[y] + 0.3 * rng.dirichlet(np.ones(k), n)
    elif draw(st.booleans()):
        X = sparse.csr_array(np.where(np.abs(X) > 0.5, X, 0))
    lasso = draw(st.sampled_from([0.0, 0.0, 0.5, 1.0]))
    model = SoftmaxRegression(
        solver=draw(st.sampled_from(["newton", "lbfgs"] if not lasso else ["newton"])),
        l1_ratio=lasso,
        fit_intercept=draw(st.booleans()),
        class_weight=draw(st.sampled_from([None, {0: 3.0}, "balanced"])),
        label_smoothing=draw(st.sampled_from([0.0, 0.1])),
        preconditioner=draw(st.sampled_from(["diagonal", "diagonal", None])),
        tol=1e-9,
    )
    C = draw(st.lists(st.sampled_from([1e-4, 1e-3, 0.03, 0.1, 1.0, 7.0]), min_size=1, max_size=5))
    return model, {"C": C}, X, y, fit, PredefinedSplit(fold)


@pytest.mark.filterwarnings("ignore:The scoring .* does not support sample_weight")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@settings(max_examples=60)
@given(cases())
def test_models_of_a_path_are_those_of_single_fits(case):
    model, grid, X, y, fit, cv = case
    one, other = (
        searched(search, model, grid, X, y, fit, cv=cv)
        for search in (GridSearchCV, BatchedGridSearchCV)
    )
    if model.l1_ratio == 0:  # else weights may have company that is as good
        assert_same_models(one, other, 2e-3)
    np.testing.assert_allclose(other["loss"], one["loss"], atol=1e-3)
    np.testing.assert_allclose(other["least"], one["least"], rtol=1e-7)
    np.testing.assert_array_equal(other["n_iter"], other["n_losses"])


def test_scores_are_those_of_logistic_regression():
    X, y = make_data(150)
    grid = {"C": [100.0, 0.01, 1.0, 1e-3, 0.1]}
    tight = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000)
    settings = {"scoring": "neg_log_loss", "return_train_score": True, "cv": 4}
    expected = GridSearchCV(tight, grid, **settings).fit(X, y).cv_results_
    for solver in ("auto", "newton", "lbfgs"):
        model = SoftmaxRegression(solver=solver, tol=1e-10)
        found = BatchedGridSearchCV(model, grid, **settings).fit(X, y).cv_results_
        for name in ("mean_test_score", "std_test_score", "mean_train_score"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_each_c_starts_from_the_optimum_before():
    """On digits, single fits take a third as many iterations again, and more."""
    X, y = load_digits(return_X_y=True)
    X, y = scale(X)[:600], y[:600]
    grid = {"C": np.logspace(-3, 3, 7)[::-1]}
    model = SoftmaxRegression(solver="lbfgs")
    one, other = (
        searched(search, model, grid, X, y) for search in (GridSearchCV, BatchedGridSearchCV)
    )
    assert other["n_iter"].sum() < one["n_iter"].sum() / 1.33
    np.testing.assert_array_equal(other["n_iter"][-1], one["n_iter"][-1])  # the least C is cold
    np.testing.assert_allclose(other["accuracy"], one["accuracy"], atol=0.011)  # 2 rows of 200
    again = searched(BatchedGridSearchCV, model, {"C": [1.0, 1.0]}, X, y)
    assert (again["n_iter"][1] <= 3).all()  # there already


def test_the_order_of_candidates_is_that_of_the_grid():
    X, y = make_data()
    model = SoftmaxRegression(tol=1e-10)
    C = [1.0, 1e-3, 10.0, 0.1]
    mixed = searched(BatchedGridSearchCV, model, {"C": C}, X, y)
    alone = [searched(BatchedGridSearchCV, model, {"C": [c]}, X, y) for c in C]
    for name in ("loss", "weight 0"):
        expected = np.concatenate([scores[name] for scores in alone])
        np.testing.assert_allclose(mixed[name], expected, atol=1e-4)


def test_no_penalty_is_the_end_of_a_path():
    X, y = make_data(300)
    for solver in ("newton", "lbfgs"):
        model = SoftmaxRegression(solver=solver, tol=1e-8)
        grid = {"C": [np.inf, 0.01, 1e4, np.inf]}
        one, other = (
            searched(search, model, grid, X, y) for search in (GridSearchCV, BatchedGridSearchCV)
        )
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-3)
        np.testing.assert_allclose(other["least"], one["least"], rtol=1e-7)


def test_penalties_that_are_far_apart_and_features_as_they_come():
    X, y = make_data(60, 6, 2)
    X = X * np.logspace(-4, 4, 6) + 10 * np.logspace(-4, 4, 6)
    X[:, 2] = 7.0
    grid = {"C": [1e-9, 1e9, 1.0, 1e-3]}
    for solver in ("newton", "lbfgs"):
        model = SoftmaxRegression(solver=solver, tol=1e-6)
        one, other = (
            searched(search, model, grid, X, y) for search in (GridSearchCV, BatchedGridSearchCV)
        )
        np.testing.assert_allclose(other["least"], one["least"], rtol=1e-5)
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-2)


def test_other_parameters_make_paths_of_their_own():
    X, y = make_data()
    grid = [
        {"C": [1.0, 0.01], "class_weight": [None, "balanced"], "tol": [1e-9, 1e-10]},
        {"C": [0.1], "label_smoothing": [0.0, 0.2]},
        {"C": [1.0, 0.01, 10.0], "fit_intercept": [False], "l1_ratio": [0.0, 0.5]},
    ]
    model = SoftmaxRegression(tol=1e-9)
    one, other = (
        searched(search, model, grid, X, y) for search in (GridSearchCV, BatchedGridSearchCV)
    )
    assert_same_models(one, other, 1e-3)


@pytest.mark.parametrize("solver", ["lbfgs", "newton"])
def test_a_cap_counts_for_each_model_and_each_of_them_warns(solver):
    X, y = make_data()
    model = SoftmaxRegression(solver=solver, max_iter=1, tol=1e-12)
    with pytest.warns(ConvergenceWarning, match="after 1 iterations") as caught:
        scores = searched(BatchedGridSearchCV, model, {"C": [1.0, 100.0, 10.0]}, X, y)
    assert len([w for w in caught if w.category is ConvergenceWarning]) == 3 * 3
    assert (scores["n_iter"] == 1).all()
    model = SoftmaxRegression(solver=solver, max_iter=4, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = searched(BatchedGridSearchCV, model, {"C": [1.0, 100.0, 10.0]}, X, y)
    assert (scores["n_iter"] == 4).all()


def test_early_stopping_follows_no_path():
    """What it ends with depends on where it starts."""
    X, y = make_data(200)
    model = SoftmaxRegression(
        solver="lbfgs", early_stopping=True, tol=1e-3, max_iter=30, random_state=0
    )
    together = searched(BatchedGridSearchCV, model, {"C": [0.01, 1.0, 100.0]}, X, y)
    alone = searched(BatchedGridSearchCV, model, {"C": [100.0]}, X, y)
    for name, values in alone.items():
        np.testing.assert_allclose(together[name][2:], values, rtol=1e-6, atol=1e-9)


def test_epochs_of_sgd_come_before_the_first_c_alone(monkeypatch):
    monkeypatch.setattr(policy, "_WORTH_SGD", 50)
    monkeypatch.setattr(policy, "_CLASSES_FOR_SGD", 4)
    X, y = make_data(120, k=4)
    model = SoftmaxRegression(solver="lbfgs", tol=1e-9)
    one, other = (
        searched(search, model, {"C": [1.0, 0.01, 0.1]}, X, y)
        for search in (GridSearchCV, BatchedGridSearchCV)
    )
    assert (one["rate"] > 0).all()
    np.testing.assert_array_equal(other["rate"] > 0, [[False] * 3, [True] * 3, [False] * 3])
    assert_same_models(one, other, 1e-3)


def test_a_fold_of_one_class_fails_alone():
    X, y = make_data(k=2)
    y = np.sort(y)
    splits = [(np.arange(20), np.arange(20, 90)), (np.arange(0, 90, 2), np.arange(1, 90, 2))]
    search = BatchedGridSearchCV(SoftmaxRegression(), {"C": [1.0, 0.1]}, cv=splits, refit=False)
    with pytest.warns() as caught:
        search.fit(X, y)
    assert "2 fits failed" in " ".join(str(w.message) for w in caught)
    assert np.isnan(search.cv_results_["split0_test_score"]).all()
    assert (search.cv_results_["split1_test_score"] > 0.5).all()


@pytest.mark.parametrize("solver", ["lbfgs", "newton"])
def test_paths_that_do_not_fit_the_memory_follow_each_other(solver, monkeypatch):
    X, y = make_data()
    grid = {"C": [0.01, 0.1, 1.0, 10.0], "class_weight": [None, "balanced"]}
    model = SoftmaxRegression(solver=solver, tol=1e-9)
    whole = searched(BatchedGridSearchCV, model, grid, X, y)
    at_a_time, original = [], skmax.search.stacks.run

    def run(methods, parameters, problem, state, rng, n_rows, chains):
        at_a_time.append(len(chains))
        assert sorted(j for chain in chains for j in chain) == list(range(len(methods)))
        assert all(len(chain) == 4 for chain in chains)
        return original(methods, parameters, problem, state, rng, n_rows, chains)

    monkeypatch.setattr(skmax.search.stacks, "run", run)
    searched(BatchedGridSearchCV, model, grid, X, y)
    assert at_a_time == [6]
    monkeypatch.setattr(skmax.search.stacks, "_BUDGET", 30_000 if solver == "lbfgs" else 80_000)
    in_parts = searched(BatchedGridSearchCV, model, grid, X, y)
    assert sum(at_a_time[1:]) == 6
    assert max(at_a_time[1:]) < 6
    assert_same_models(whole, in_parts, 1e-3)


def test_the_rows_are_read_once_for_all_of_a_newton_path():
    X, y = make_data()
    tables = []
    original = Newton.begin

    def begin(self, *arguments):
        search = original(self, *arguments)
        tables.append(id(self._table))
        return search

    with mock.patch.object(Newton, "begin", begin):
        model = SoftmaxRegression(solver="newton")
        BatchedGridSearchCV(model, {"C": [0.1, 1.0, 10.0]}, cv=3, refit=False).fit(X, y)
    assert len(tables) == 3
    assert len(set(tables)) == 1


@pytest.mark.parametrize("solver", ["lbfgs", "newton"])
def test_other_namespaces_follow_the_same_path(solver):
    xp = pytest.importorskip("array_api_strict")
    X, y = make_data()
    grid, model = {"C": [0.01, 1.0, 0.1, 10.0]}, SoftmaxRegression(solver=solver, tol=1e-8)
    expected = BatchedGridSearchCV(model, grid, cv=3).fit(X, y)
    with config_context(array_api_dispatch=True):
        search = BatchedGridSearchCV(model, grid, cv=3).fit(xp.asarray(X), xp.asarray(y))
        assert isinstance(search.best_estimator_.coef_, type(xp.asarray(X)))
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], atol=1e-9
    )


@pytest.mark.parametrize("in_pipeline", [False, True])
@pytest.mark.parametrize("kind", ["strings", "objects", "bools", "floats", "list", "frame"])
@pytest.mark.parametrize("scoring", [None, "accuracy"])
def test_accuracies_are_those_of_scikit_learn(scoring, kind, in_pipeline):
    X, y = make_data(k=2)
    y = {
        "strings": np.array(["ash", "beech"])[y],
        "objects": np.array(["ash", "beech"], dtype=object)[y],
        "bools": y == 1,
        "floats": y.astype(float),
        "list": y.tolist(),
        "frame": y,
    }[kind]
    if kind == "frame":
        pandas = pytest.importorskip("pandas")
        X, y = pandas.DataFrame(X), pandas.Series(y, dtype="category")
    model, grid = SoftmaxRegression(tol=1e-8), {"C": [1.0, 0.01, 0.1]}
    if in_pipeline:
        model = make_pipeline(StandardScaler(), model)
        grid = {"softmaxregression__C": grid["C"]}
    one, other = (
        search(model, grid, cv=StratifiedKFold(3), scoring=scoring, return_train_score=True)
        .fit(X, y)
        .cv_results_
        for search in (GridSearchCV, BatchedGridSearchCV)
    )
    for name, values in one.items():
        if "_score" in name and not name.startswith("rank") and "time" not in name:
            np.testing.assert_array_equal(other[name], values)


def test_a_path_under_l1_goes_to_the_end():
    """With 27 of 30 weights in use, whose Hessian has a condition number of 2e5."""
    X, y = load_breast_cancer(return_X_y=True)
    train, test = list(StratifiedKFold(5).split(X, y))[2]
    Z = StandardScaler().fit(X[train]).transform(X)
    C = np.geomspace(1e-3, 1e2, 21)[:20]
    search = BatchedGridSearchCV(
        SoftmaxRegression(l1_ratio=1),
        {"C": C},
        cv=[(train, test)],
        scoring="neg_log_loss",
        refit=False,
    ).fit(Z, y)  # a warning is an error
    last = SoftmaxRegression(l1_ratio=1, C=C[-1], tol=1e-8).fit(Z[train], y[train])
    expected = -log_loss(y[test], last.predict_proba(Z[test]))
    assert search.cv_results_["mean_test_score"][-1] == pytest.approx(expected, abs=2e-3)

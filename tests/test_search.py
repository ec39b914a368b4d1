"""BatchedGridSearchCV beside GridSearchCV, which fits one candidate and fold after the other."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from conftest import usable
from scipy import sparse
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits, load_iris, make_classification
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    LeaveOneGroupOut,
    RepeatedKFold,
    ShuffleSplit,
    StratifiedKFold,
    TimeSeriesSplit,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

import skmax.search.stacks
from skmax import BatchedGridSearchCV, SoftmaxRegression
from skmax.solvers.run import sgd

pytestmark = pytest.mark.filterwarnings("ignore:batch_size=.* is larger")

GRID = {"C": [0.01, 1.0], "learning_rate": ["auto", 0.05]}


def in_full_batches(**parameters):
    """A model whose batches hold all rows: those of a stack are then the same."""
    settings = {"batch_size": 10**6, "max_iter": 15, "tol": 0, "random_state": 0}
    return SoftmaxRegression(**(settings | parameters))


def make_data(n=120, d=6, k=3, seed=0):
    return make_classification(
        n, d, n_informative=4, n_classes=k, n_clusters_per_class=1, flip_y=0.1, random_state=seed
    )


def both(estimator, grid, X, y, fit=None, **settings):
    """The two searches, fitted."""
    settings = {"cv": 3, "scoring": "neg_log_loss", "return_train_score": True} | settings
    return [
        search(clone(estimator), grid, **settings).fit(X, y, **(fit or {}))
        for search in (GridSearchCV, BatchedGridSearchCV)
    ]


def assert_same(one, other, atol=1e-9):
    """All that does not measure time is the same."""
    assert list(one.cv_results_) == list(other.cv_results_)
    for name, values in one.cv_results_.items():
        if "time" in name:
            assert np.all(other.cv_results_[name] >= 0), name
        elif name.startswith(("split", "mean", "std")):
            np.testing.assert_allclose(other.cv_results_[name], values, atol=atol, err_msg=name)
        elif not name.startswith("rank"):  # rounding may break ties
            assert list(other.cv_results_[name]) == list(values), name
    if hasattr(one, "best_index_") and other.best_params_ != one.best_params_:  # a tie again
        name = f"mean_test_{one.refit}" if one.multimetric_ else "mean_test_score"
        of_both = one.cv_results_[name][[one.best_index_, other.best_index_]]
        assert of_both[0] == pytest.approx(of_both[1], abs=atol)
    assert other.n_splits_ == one.n_splits_
    assert other.multimetric_ == one.multimetric_


@pytest.fixture
def stack_sizes(monkeypatch):
    """The number of models in each stack that is trained."""
    sizes = []
    original = skmax.search.stacks._train

    def counted(tasks, *rest):
        sizes.append(len(tasks))
        return original(tasks, *rest)

    monkeypatch.setattr(skmax.search.stacks, "_train", counted)
    return sizes


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"preconditioner": None},
        {"fit_intercept": False},
        {"class_weight": "balanced"},
        {"class_weight": {0: 2.0}, "label_smoothing": 0.1},
        {"l1_ratio": 0.5},
        {"schedule": "constant", "momentum": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("k", [2, 3])
def test_the_scores_are_those_of_single_fits(parameters, k):
    X, y = make_data(k=k)
    assert_same(*both(in_full_batches(**parameters), GRID, X, y))


@pytest.mark.parametrize("preconditioner", [None, "diagonal"])
def test_a_large_stack_trains_as_one(preconditioner, stack_sizes):
    X, y = make_data()
    grid = {"C": np.logspace(-3, 2, 7), "learning_rate": [0.02, 0.05]}
    model = in_full_batches(preconditioner=preconditioner, max_iter=5)
    assert_same(*both(model, grid, X, y))
    assert stack_sizes == [14 * 3]


@pytest.mark.parametrize("kind", ["strings", "sparse", "float32", "uint8", "frame", "weights"])
def test_any_data_give_the_scores_of_single_fits(kind):
    X, y = make_data()
    fit, atol = {}, 1e-9
    if kind == "strings":
        y = np.array(["ash", "beech", "cedar"])[y]
    elif kind == "sparse":
        X = sparse.csr_array(np.where(np.abs(X) > 1, X, 0))
    elif kind == "float32":
        X, atol = X.astype(np.float32), 1e-4
    elif kind == "uint8":
        X, atol = (X * 20 + 128).astype(np.uint8), 1e-4
    elif kind == "frame":
        X = pytest.importorskip("pandas").DataFrame(X, columns=list("abcdef"))
    else:
        fit = {"sample_weight": np.random.default_rng(0).integers(0, 4, len(y))}
    one, other = both(in_full_batches(), GRID, X, y, fit)
    assert_same(one, other, atol)
    assert other.best_estimator_.coef_.dtype == one.best_estimator_.coef_.dtype
    assert np.all(other.predict(X) == one.predict(X))


@pytest.mark.parametrize(
    "cv",
    [
        ShuffleSplit(4, test_size=0.4, random_state=0),
        RepeatedKFold(n_splits=2, n_repeats=2, random_state=0),
        StratifiedKFold(4),
        [(np.arange(0, 80), np.arange(60, 120)), (np.arange(40, 120), np.arange(50))],
        [(np.arange(-90, -10), np.arange(30)), (list(range(50, 110)), list(range(50)))],
        [(np.arange(120) < 80, np.arange(120) >= 80), (np.arange(120) > 30, np.arange(120) < 40)],
        [(np.arange(200) % 90, np.arange(90, 120)), (np.arange(90), np.arange(90, 120))],
        TimeSeriesSplit(4),
    ],
    ids=[
        *("overlapping", "repeated", "stratified", "pairs"),
        *("negative", "masks", "bootstrap", "growing"),
    ],
)
def test_any_splits(cv):
    X, y = make_data()
    assert_same(*both(in_full_batches(), GRID, X, y, cv=cv))


def test_groups_reach_the_splitter():
    X, y = make_data()
    groups = np.repeat([0, 1, 2, 3], [50, 10, 40, 20])
    searches = both(in_full_batches(), GRID, X, y, {"groups": groups}, cv=LeaveOneGroupOut())
    assert_same(*searches)
    with config_context(enable_metadata_routing=True):
        model = in_full_batches().set_fit_request(sample_weight=True)
        scorer = make_scorer(accuracy_score).set_score_request(sample_weight=True)
        fit = {"groups": groups, "sample_weight": np.linspace(0.1, 1, len(y))}
        assert_same(*both(model, GRID, X, y, fit, cv=LeaveOneGroupOut(), scoring=scorer))


def test_a_class_that_a_fold_lacks_is_no_class_of_its_models():
    X, y = make_data(k=3)
    X, y = X[np.argsort(y, kind="stable")], np.sort(y)
    without = np.flatnonzero(y != 2)  # two classes are left: the binary penalty
    splits = [(without[::2], without[1::2]), (np.arange(0, 120, 2), np.arange(1, 120, 2))]
    one, other = both(in_full_batches(), {"C": [1e-3, 1.0]}, X, y, cv=splits)
    assert_same(one, other)


def test_soft_targets():
    X, y = make_data()
    rng = np.random.default_rng(0)
    soft = 0.8 * np.eye(3)[y] + 0.2 * rng.dirichlet(np.ones(3), len(y))
    splits = [(np.arange(80), np.arange(80, 120)), (np.arange(40, 120), np.arange(40))]
    grid = {"C": [0.01, 1.0], "class_weight": [None, {0: 3.0}, "balanced"]}
    assert_same(*both(in_full_batches(), grid, X, soft, cv=splits, scoring=None))


def test_early_stopping_holds_out_the_same_rows():
    X, y = make_data(300)
    grid = {"C": [0.01, 1.0], "validation_fraction": [0.1, 0.3], "n_iter_no_change": [2, 5]}
    model = in_full_batches(early_stopping=True, tol=1e-3, max_iter=40)
    assert_same(*both(model, grid, X, y))


def test_what_cannot_be_stacked_makes_stacks_of_its_own():
    X, y = make_data()
    grid = [
        {"fit_intercept": [True, False], "max_iter": [5, 20]},
        {"preconditioner": [None, "diagonal"], "schedule": ["linear", "constant"]},
        {"random_state": [0, 1], "shuffle": [True, False]},
        {"early_stopping": [True, False]},
    ]
    assert_same(*both(in_full_batches(), grid, X, y))


def test_lbfgs_and_the_defaults_reach_the_same_optima():
    X, y = make_data()
    grid = [{"solver": ["lbfgs"], "C": [0.01, 1.0]}, {"C": [0.01, 1.0]}]
    one, other = both(SoftmaxRegression(random_state=0, tol=1e-9), grid, X, y)
    assert_same(one, other, atol=1e-4)


def test_minibatches_differ_as_seeds_do():
    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float32)
    grid = {"C": [1e-5, 1e-3, 1.0], "learning_rate": ["auto", 0.02]}
    means = {GridSearchCV: [], BatchedGridSearchCV: []}
    for seed in range(4):
        model = SoftmaxRegression(solver="sgd", max_iter=8, tol=0, random_state=seed)
        searches = both(model, grid, X, y, return_train_score=False)
        for search in searches:
            means[type(search)].append(search.cv_results_["mean_test_score"])
        assert searches[0].best_params_["C"] == searches[1].best_params_["C"]
    single, stacked = (np.array(values) for values in means.values())
    noise = np.maximum(single.std(axis=0, ddof=1), stacked.std(axis=0, ddof=1))
    gap = np.abs(single.mean(axis=0) - stacked.mean(axis=0))
    assert np.all(gap <= 3 * noise + 5e-3 * np.abs(single.mean(axis=0)))
    # Far apart as candidates are, they rank the same.
    order = np.argsort(single.mean(axis=0))
    for worse, better in pairwise(order):
        if single.mean(axis=0)[better] - single.mean(axis=0)[worse] > 6 * noise.max():
            assert stacked.mean(axis=0)[better] > stacked.mean(axis=0)[worse]


def test_a_stack_takes_as_many_steps_as_a_fit():
    X, y = make_data(900)
    grid = {"learning_rate": [0.05]}
    model = SoftmaxRegression(batch_size=100, max_iter=4, tol=0, random_state=0)
    seen = []
    original = skmax.search.stacks.run

    def run(methods, parameters, problem, state, rng, n_rows, chains):
        seen.append(sgd(parameters, problem, n_rows, [4] * len(methods)).batch_size)
        return original(methods, parameters, problem, state, rng, n_rows, chains)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skmax.search.stacks, "run", run)
        BatchedGridSearchCV(model, grid, cv=3).fit(X, y)
    assert seen == [150]  # of 900 rows, of which each model sees 600


def test_a_diverged_candidate_gets_the_error_score_and_is_named():
    X, y = make_data()
    grid = {"learning_rate": [0.05, 1e30], "C": [1.0]}
    model = in_full_batches(max_iter=5)
    with pytest.warns() as caught:
        search = BatchedGridSearchCV(model, grid, cv=3, error_score=-7.0).fit(X, y)
    failed = [w for w in caught if w.category is FitFailedWarning]
    assert len(failed) == 1
    assert "'learning_rate': 1e+30" in str(failed[0].message)
    assert list(search.cv_results_["split1_test_score"] == -7.0) == [False, True]
    alone = GridSearchCV(model, {"learning_rate": [0.05]}, cv=3).fit(X, y)
    assert search.best_score_ == pytest.approx(alone.best_score_)
    with pytest.raises(ValueError, match="diverged"):
        BatchedGridSearchCV(model, grid, cv=3, error_score="raise").fit(X, y)
    with pytest.raises(ValueError, match="All the 3 fits failed"):
        BatchedGridSearchCV(model, {"learning_rate": [1e30]}, cv=3).fit(X, y)


@pytest.mark.parametrize("error_score", [np.nan, "raise"])
@pytest.mark.parametrize(
    ("in_pipeline", "name"),
    [
        *((False, "sample_wieght"), (False, "m__sample_weight"), (True, "sample_wieght")),
        *((True, "m__sample_wieght"), (True, "m__m__sample_weight"), (True, "m__X_val")),
    ],
)
def test_fit_parameters_that_a_fit_refuses_are_refused(in_pipeline, name, error_score):
    X, y = make_data()
    model, grid = in_full_batches(), {"C": [0.1, 1.0]}
    if in_pipeline:
        model, grid = Pipeline([("scale", StandardScaler()), ("m", model)]), {"m__C": [0.1, 1.0]}
    errors = []
    for search in (GridSearchCV, BatchedGridSearchCV):
        with pytest.raises((TypeError, ValueError)) as caught:
            search(model, grid, cv=3, refit=False, error_score=error_score).fit(
                X, y, **{name: np.ones(len(y))}
            )
        errors.append((caught.type, str(caught.value).strip().splitlines()[-1]))
    assert errors[1] == errors[0]


def broken(*_):
    raise RuntimeError("The solver is broken.")


def test_error_score_raise_raises_at_once(monkeypatch, stack_sizes):
    X, y = make_data()
    grid = {"learning_rate": [0.05, 1e30, 1e31], "C": [0.1, 1.0]}
    search = BatchedGridSearchCV(in_full_batches(max_iter=5), grid, cv=3, error_score="raise")
    with pytest.raises(ValueError, match="diverged") as caught:
        search.fit(X, y)
    assert "{'C': 0.1, 'learning_rate': 1e+30}" in str(caught.value)
    assert stack_sizes == [18]
    monkeypatch.setattr(skmax.search.stacks, "run", broken)
    with pytest.raises(RuntimeError, match="The solver is broken") as caught:
        search.fit(X, y)
    assert stack_sizes == [18, 18]
    assert "{'C': 0.1, 'learning_rate': 0.05}" in caught.value.__notes__[0]


def test_models_that_have_not_converged_warn_as_fits_of_their_own(stack_sizes):
    X, y = make_data()
    model = SoftmaxRegression(solver="lbfgs", tol=1e-10)
    grid = {"max_iter": [4, 1000], "C": [0.1, 1.0]}
    numbers = []
    for search in (GridSearchCV, BatchedGridSearchCV):
        with pytest.warns(ConvergenceWarning) as caught:
            search(model, grid, cv=3, refit=False).fit(X, y)
        numbers.append(len(caught))
    assert numbers == [2 * 3, 2 * 3]
    # Where warnings are errors, the fits that warn have failed, and no others.
    stack_sizes.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", ConvergenceWarning)
        search = BatchedGridSearchCV(model, grid, cv=3, refit=False).fit(X, y)
    failed = np.isnan(search.cv_results_["mean_test_score"])
    assert list(failed) == [
        parameters["max_iter"] == 4 for parameters in search.cv_results_["params"]
    ]
    assert sum(stack_sizes) == 12


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_bad_parameters_fail_alone():
    X, y = make_data()
    with pytest.warns(FitFailedWarning, match="The 'C' parameter"):
        search = BatchedGridSearchCV(in_full_batches(), {"C": [-1.0, 1.0]}, cv=3).fit(X, y)
    assert np.isnan(search.cv_results_["mean_test_score"][0])
    assert search.best_params_ == {"C": 1.0}


@pytest.mark.parametrize("error_score", [np.nan, "raise"])
def test_a_stack_that_does_not_fit_the_memory_is_trained_in_smaller_ones(monkeypatch, error_score):
    X, y = make_data()
    model, grid = in_full_batches(max_iter=5), {"C": [0.1, 1.0, 10.0]}
    search = BatchedGridSearchCV(model, grid, cv=3, error_score=error_score)
    whole = clone(search).fit(X, y)
    sizes, original = [], skmax.search.stacks.run

    def run(methods, *rest):
        sizes.append(len(methods))
        if len(methods) > 3:
            raise MemoryError
        return original(methods, *rest)

    monkeypatch.setattr(skmax.search.stacks, "run", run)
    in_parts = search.fit(X, y)
    assert sizes == [9, 4, 2, 2, 5, 2, 3]
    np.testing.assert_allclose(
        in_parts.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"], rtol=1e-12
    )


def test_several_scores():
    X, y = make_data()
    scoring = {"loss": "neg_log_loss", "accuracy": "accuracy"}
    assert_same(*both(in_full_batches(), GRID, X, y, scoring=scoring, refit="loss"))
    one, other = both(in_full_batches(), GRID, X, y, scoring=scoring, refit=False)
    assert_same(one, other)
    assert not hasattr(other, "best_estimator_")

    def scorer(model, X, y):
        p = model.predict_proba(X)
        return {"ours": -log_loss(y, p, labels=model.classes_), "twice": 2 * model.score(X, y)}

    assert_same(*both(in_full_batches(), GRID, X, y, scoring=scorer, refit="ours"))

    def least_C(results):
        return int(np.argmin(results["param_C"].astype(float)))

    assert_same(*both(in_full_batches(), GRID, X, y, refit=least_C))


def test_a_scorer_may_ask_about_other_rows():
    X, y = make_data()
    probe = np.zeros((1, X.shape[1]))

    def scorer(model, X, y):
        return model.decision_function(probe)[0, 0] + model.intercept_[1]

    assert_same(*both(in_full_batches(), GRID, X, y, scoring=scorer))


class Counted(TransformerMixin, BaseEstimator):
    """Scales, and counts how often it is fitted."""

    fits = 0

    def __init__(self, factor=1.0):
        self.factor = factor

    def fit(self, X, y=None):
        type(self).fits += 1
        self.scale_ = np.abs(X).max(axis=0)
        return self

    def transform(self, X):
        return self.factor * X / self.scale_


def test_steps_before_the_last_are_fitted_once_per_fold_and_value():
    X, y = make_data()
    pipeline = Pipeline([("scale", Counted()), ("again", "passthrough"), ("m", in_full_batches())])
    grid = {"scale__factor": [1.0, 10.0], "m__C": [0.01, 1.0, 100.0], "m__l1_ratio": [0.0, 0.5]}
    Counted.fits = 0
    one, other = both(pipeline, grid, X, y)
    assert Counted.fits == (12 * 3 + 1) + (2 * 3 + 1)
    assert_same(one, other)
    assert isinstance(other.best_estimator_["scale"], Counted)
    weight = np.linspace(0, 1, len(y))
    assert_same(*both(pipeline, grid, X, y, {"m__sample_weight": weight}))


def test_a_scorer_sees_the_steps_of_the_pipeline():
    X, y = make_data()
    pipeline = make_pipeline(StandardScaler(), in_full_batches())

    def scorer(model, X, y):
        return model["standardscaler"].mean_[0] + model.score(X, y)

    assert_same(*both(pipeline, {"softmaxregression__C": [0.1, 1.0]}, X, y, scoring=scorer))


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_a_step_may_be_without_a_name_or_fail_on_a_fold():
    X, y = make_data()
    pipeline = make_pipeline(FunctionTransformer(lambda X: X + 1), in_full_batches())
    assert_same(*both(pipeline, {"softmaxregression__C": [0.1, 1.0]}, X, y))
    X = np.column_stack([X, np.arange(len(y)) // 100])
    splits = [(np.arange(90), np.arange(90, 120)), (np.arange(60, 120), np.arange(60))]
    encoder = ColumnTransformer([("e", OneHotEncoder(), [6])], remainder="passthrough")
    pipeline = make_pipeline(encoder, in_full_batches())
    with pytest.warns(UserWarning, match="Scoring failed"):
        one, other = both(
            pipeline,
            {"softmaxregression__C": [0.1, 1.0]},
            X,
            y,
            cv=splits,
            return_train_score=False,
        )
    assert np.isnan(one.cv_results_["split0_test_score"]).all()
    assert_same(one, other)


def test_pipelines_keep_what_their_last_step_requests():
    X, y = make_data()
    weight = np.linspace(0.1, 1, len(y))
    with config_context(enable_metadata_routing=True):
        last = in_full_batches().set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, last.set_score_request(sample_weight=True))
        grid = {"softmaxregression__C": [0.1, 1.0]}
        one, other = both(pipeline, grid, X, y, {"sample_weight": weight}, scoring=None)
    assert np.isfinite(one.cv_results_["mean_test_score"]).all()
    assert_same(one, other)


def test_random_states_and_classes_that_only_validation_sees():
    X, y = make_data(300)
    grid = {"C": [0.01, 1.0]}
    model = in_full_batches(early_stopping=True, tol=1e-3, random_state=np.random.RandomState(3))
    assert_same(*both(model, grid, X, y))
    weight = (y != 1).astype(float)
    model = in_full_batches(early_stopping=True, tol=1e-3)
    assert_same(*both(model, grid, X, y, {"sample_weight": weight}, scoring="accuracy"))


def test_callbacks_of_the_estimator_are_told_of_every_fit():
    X, y = make_data()

    class Count:
        epochs = 0

        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, **_):
            pass

        def on_fit_task_end(self, estimator, context, **_):
            Count.epochs += context.task_name == "epoch"

    model = in_full_batches(max_iter=4).set_callbacks(Count())
    counts = []
    for search in (GridSearchCV, BatchedGridSearchCV):
        Count.epochs = 0
        search(model, {"C": [0.1, 1.0]}, cv=3).fit(X, y)
        counts.append(Count.epochs)
    assert counts == [(2 * 3 + 1) * 4] * 2


def test_other_estimators_are_fitted_alone():
    X, y = make_data()
    pipeline = Pipeline([("scale", StandardScaler()), ("m", in_full_batches())])
    grid = [{"m": [LogisticRegression()], "m__C": [0.1, 1.0]}, {"m__C": [0.1, 1.0]}]
    one, other = both(pipeline, grid, X, y)
    assert [str(p) for p in one.cv_results_["params"]] == [
        str(p) for p in other.cv_results_["params"]
    ]
    for name in ("mean_test_score", "mean_train_score", "rank_test_score"):
        np.testing.assert_allclose(other.cv_results_[name], one.cv_results_[name], atol=1e-9)


def test_chunks_change_nothing(monkeypatch, stack_sizes):
    X, y = make_data()
    whole = both(in_full_batches(), GRID, X, y)[1]
    stack_sizes.clear()
    monkeypatch.setattr(
        skmax.search.stacks, "_BUDGET", (64 * 3 * 7 + 16 * 3 * 120 + 24 * 120 // 4) * 5
    )
    assert_same(whole, both(in_full_batches(), GRID, X, y)[1])
    assert max(stack_sizes) <= 5
    assert sum(stack_sizes) == 12


@pytest.mark.parametrize(
    ("k", "d", "method"),
    [
        *((10, 785, "sgd"), (1000, 1000, "sgd"), (2, 20, "sgd")),
        *((10, 65, "both"), (10, 785, "lbfgs"), (5, 1900, "lbfgs"), (2, 2500, "lbfgs")),
    ],
)
def test_a_stack_fits_its_budget(k, d, method):
    batch, column_bytes = 256, 10**5
    limit = skmax.search.stacks.max_models(method, k, d, batch, column_bytes)
    weights = k * d * (64 if method == "sgd" else 300)
    assert limit >= 1
    assert (
        limit == 1
        or limit * (weights + 16 * k * batch + column_bytes) <= skmax.search.stacks._BUDGET
    )
    if method != "sgd":  # as many matrices per model as alone
        blocks = skmax.solvers.curvature.blocks_per_model
        assert blocks(limit, k, d) == blocks(1, k, d)


@pytest.mark.parametrize("namespace", ["array_api_strict", "torch"])
def test_other_namespaces_give_the_same(namespace):
    if not usable(namespace):
        pytest.skip(f"{namespace} is not installed")
    xp = pytest.importorskip(namespace)
    X, y = make_data()
    expected = both(in_full_batches(), GRID, X, y)[1]
    with config_context(array_api_dispatch=True):
        search = both(in_full_batches(), GRID, xp.asarray(X), xp.asarray(y))[1]
        assert isinstance(search.best_estimator_.coef_, type(xp.asarray(X)))
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], atol=1e-9
    )


def test_verbose_says_what_it_does(capsys):
    X, y = load_iris(return_X_y=True)
    BatchedGridSearchCV(in_full_batches(batch_size=100), {"C": [1.0]}, cv=3, verbose=3).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Fitting 3 folds for each of 1 candidates, totalling 3 fits"
    assert len(lines) == 4
    assert lines[1].startswith("[CV 1/3] END C=1.0, test score 0.")


def test_splits_that_do_not_add_up_and_missing_targets():
    class Liar(StratifiedKFold):
        def get_n_splits(self, *args, **kwargs):
            return 7

    X, y = make_data()
    with pytest.raises(ValueError, match="Expected 7 splits, got 3"):
        BatchedGridSearchCV(in_full_batches(), GRID, cv=Liar(3)).fit(X, y)
    with pytest.raises((TypeError, ValueError)):
        BatchedGridSearchCV(in_full_batches(), GRID, cv=3).fit(X)

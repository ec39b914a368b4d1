"""What skmax expects of the private names of scikit-learn, one test to a name.

A test is called `test_` and the name, so that a failure after an upgrade of scikit-learn names what
has changed, and its docstring says who relies on it for what.
"""

import inspect
from contextlib import suppress
from numbers import Integral, Real
from typing import ClassVar

import array_api_compat
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator
from sklearn.callback import CallbackSupportMixin
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV

from skmax import SoftmaxRegression, _sklearn

X = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [3.0, 1.0]])
y = np.array([0, 1, 0, 1])
FOLD = {"fit_error", "fit_time", "n_test_samples", "score_time", "test_scores", "train_scores"}


def test_there_is_a_test_for_each_private_name():
    """Whoever adds a name to `_sklearn` says what is expected of it, here."""
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert tests - {"there_is_a_test_for_each_private_name"} == set(_sklearn.__all__)


def containers(array):
    """The same rows as users may have them, by name."""
    yield "numpy", array
    yield "list", array.tolist()
    yield "csr", sparse.csr_array(array)
    yield "pandas", pytest.importorskip("pandas").DataFrame(array)
    yield "polars", pytest.importorskip("polars").DataFrame(array)


class Recorder:
    """A callback that notes when it is called, and for which task."""

    def __init__(self):
        self.log = []

    def setup(self, estimator, context):
        self.log.append("setup")

    def on_fit_task_begin(self, estimator, context):
        self.log.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context):
        self.log.append(f"end {context.task_name}")

    def teardown(self, estimator, context):
        self.log.append("teardown")


def dense(rows):
    return rows.toarray() if sparse.issparse(rows) else np.asarray(rows)


# Parameters


def accepts(constraint, value):
    """Whether a parameter may have a value."""

    @_sklearn.validate_params({"value": [constraint]}, prefer_skip_nested_validation=True)
    def function(value):
        return True

    with suppress(ValueError):
        return function(value)
    return False


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        ((Real, 0, None, "right"), [1e-300, 1, np.inf, np.float32(2)], [0, -1, np.nan, "1", None]),
        ((Real, 0, None, "neither"), [1e-300, 1], [0, np.inf]),
        ((Real, 0, None, "left"), [0, 1.5], [-1e-300, np.inf]),
        ((Real, 0, 1, "both"), [0, 0.5, 1], [-0.1, 1.1]),
        ((Integral, 1, None, "left"), [1, np.int64(7)], [0, 1.0, "1"]),
    ],
)
def test_Interval(limits, inside, outside):
    """SoftmaxRegression: `C` may be infinite and not zero, `tol` zero and not infinite."""
    constraint = _sklearn.Interval(*limits[:3], closed=limits[3])
    assert [accepts(constraint, value) for value in inside] == [True] * len(inside)
    assert [accepts(constraint, value) for value in outside] == [False] * len(outside)


def test_Options():
    """SoftmaxRegression: n_iter_no_change may be infinite."""
    constraint = _sklearn.Options(float, {np.inf})
    assert constraint.is_satisfied_by(np.inf)
    assert not constraint.is_satisfied_by(1.5)
    assert "inf" in str(constraint)


def test_StrOptions():
    """SoftmaxRegression and fetch_fashion_mnist: one of a few words."""
    constraint = _sklearn.StrOptions({"sgd", "lbfgs"})
    assert accepts(constraint, "sgd")
    assert not any(accepts(constraint, value) for value in ("SGD", "", 1, None))


def test_validate_params():
    """fetch_fashion_mnist: arguments are checked by name, its signature stays."""

    @_sklearn.validate_params(
        {"name": [str, None], "flag": ["boolean"]}, prefer_skip_nested_validation=True
    )
    def function(*, name=None, flag=True):
        """What it does."""
        return name, flag

    assert function(name="a") == ("a", True)
    assert list(inspect.signature(function).parameters) == ["name", "flag"]
    assert function.__doc__ == "What it does."
    for wrong in ({"name": 1}, {"flag": "yes"}):
        with pytest.raises(ValueError, match=f"The '{next(iter(wrong))}' parameter of"):
            function(**wrong)


def test_validate_parameter_constraints():
    """`SoftmaxRegression._validate_params`: names without constraints are passed over."""
    constraints = {"alpha": [Real], "beta": [str]}
    _sklearn.validate_parameter_constraints(constraints, {"alpha": 1, "other": None}, "Some")
    with pytest.raises(ValueError, match="The 'beta' parameter of Some must be"):
        _sklearn.validate_parameter_constraints(constraints, {"beta": 1}, caller_name="Some")


@pytest.mark.parametrize("skip", [True, False])
def test__fit_context(skip):
    """`fit` and `partial_fit`: parameters are checked first, callbacks torn down at the end."""
    recorder = Recorder()

    class Estimator(CallbackSupportMixin, BaseEstimator):
        _parameter_constraints: ClassVar = {"alpha": [Real]}

        def __init__(self, alpha=1.0):
            self.alpha = alpha

        @_sklearn._fit_context(prefer_skip_nested_validation=skip)
        def fit(self, X, *, fails=False):
            self._init_callback_context(max_subtasks=1).call_on_fit_task_begin(estimator=self)
            recorder.log.append(get_config()["skip_parameter_validation"])
            return self if not fails else 1 / 0

    model = Estimator().set_callbacks(recorder)
    assert model.fit(X) is model
    with pytest.raises(ZeroDivisionError):
        model.fit(X, fails=True)
    assert recorder.log == ["setup", "begin fit", skip, "teardown"] * 2
    with pytest.raises(ValueError, match="'alpha'"):
        model.set_params(alpha="one").fit(X)


def test__OF_A_RUNNING_FIT():
    """`fitted.packed`: what is bound to a fit that runs, and gone when it ends."""
    during = set()

    class Listener(Recorder):
        def on_fit_task_end(self, estimator, context, **_):
            during.update(vars(estimator))

    model = SoftmaxRegression().set_callbacks(Listener()).fit(X, y)
    assert during - set(vars(model)) == set(_sklearn._OF_A_RUNNING_FIT)


# Data and arrays


def test__check_feature_names():
    """`validation.check_validation_X_y`: columns of X_val are named as those of X were."""
    pandas = pytest.importorskip("pandas")
    model = LogisticRegression().fit(pandas.DataFrame(X, columns=["a", "b"]), y)
    same, other = (pandas.DataFrame(X, columns=names) for names in (["a", "b"], ["b", "a"]))
    _sklearn._check_feature_names(model, same, reset=False)
    with pytest.raises(ValueError, match="feature names should match"):
        _sklearn._check_feature_names(model, other, reset=False)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        _sklearn._check_feature_names(model, X, reset=False)


def test__check_n_features():
    """`validation._check_features`: the number of features of what is on disk."""
    model = LogisticRegression()
    _sklearn._check_n_features(model, X, reset=True)
    assert model.n_features_in_ == X.shape[1]
    with pytest.raises(ValueError, match="X has 1 features, but LogisticRegression is expecting"):
        _sklearn._check_n_features(model, X[:, :1], reset=False)


def test__check_unknown():
    """`validation.Targets.read`: the labels that are not among the classes; none is falsy."""
    for known in (np.array([1, 3, 5]), np.array(["a", "b"]), np.array(["a", "b"], dtype=object)):
        assert not list(_sklearn._check_unknown(known[[1, 0, 1]], known))
    assert list(_sklearn._check_unknown(np.array([3, 4, 4, 7]), np.array([1, 3, 5]))) == [4, 7]
    for dtype in (None, object):
        values, known = np.array(["b", "c", "c"], dtype=dtype), np.array(["a", "b"], dtype=dtype)
        assert list(_sklearn._check_unknown(values, known)) == ["c"]


def test__encode():
    """`validation.Targets.read`: the places of labels among the classes."""
    for classes in (np.array([1, 3, 5]), np.array(["a", "b", "c"]), np.array([False, True])):
        for dtype in (None, object):
            labels = classes[[1, 0, 1]].astype(dtype or classes.dtype)
            encoded = _sklearn._encode(labels, uniques=classes, check_unknown=False)
            assert encoded.astype(np.int64).tolist() == [1, 0, 1]


@pytest.mark.parametrize("container", ["memmap", "numpy", "strict", "strict device", "torch"])
def test__convert_to_numpy(container, tmp_path):
    """Backends, validation and plotting: any array on the host, without array API dispatch."""
    assert not get_config()["array_api_dispatch"]
    array = X
    if container == "memmap":
        array = np.memmap(tmp_path / "X", dtype=X.dtype, mode="w+", shape=X.shape)
        array[:] = X
    elif container.startswith("strict"):
        xp = pytest.importorskip("array_api_strict")
        device = "device1" if container.endswith("device") else "CPU_DEVICE"
        array = xp.asarray(X, device=xp.Device(device))
    elif container == "torch":
        array = pytest.importorskip("torch").asarray(X)
    converted = _sklearn._convert_to_numpy(array, array_api_compat.array_namespace(array))
    assert isinstance(converted, np.ndarray)
    assert_array_equal(converted, X)


def test__max_precision_float_dtype():
    """`Backend.dtype`: the widest float of a namespace on a device, or on its default one."""
    assert _sklearn._max_precision_float_dtype(np, None) == np.float64
    xp = pytest.importorskip("array_api_strict")
    info = xp.__array_namespace_info__()
    for device in (None, *info.devices()):  # new versions have some without float64
        dtypes = info.dtypes(kind="real floating", device=device)
        widest = dtypes.get("float64", xp.float32)
        assert _sklearn._max_precision_float_dtype(xp, device) == widest


def test_check_same_namespace():
    """`predict*`: X is where `coef_` is, which is asked under array API dispatch only."""
    xp = pytest.importorskip("array_api_strict")
    model = SoftmaxRegression()

    def check(rows, coef):
        model.coef_ = coef
        _sklearn.check_same_namespace(rows, model, attribute="coef_", method="predict")

    check(xp.asarray(X), X)
    with config_context(array_api_dispatch=True):
        check(X, X)
        check(X, sparse.csr_array(X))
        check(sparse.csr_array(X), X)
        check(xp.asarray(X), xp.asarray(X))
        for rows, coef in ((X, xp.asarray(X)), (xp.asarray(X), X)):
            with pytest.raises(ValueError, match=r"SoftmaxRegression\.predict\(\) must use"):
                check(rows, coef)


def test_get_namespace():
    """BatchedGridSearchCV: the namespace that computes with X, NumPy's unless dispatched."""
    for _, rows in containers(X):
        assert isinstance(_sklearn.get_namespace(rows)[0].asarray([0, 2]), np.ndarray)
    xp = pytest.importorskip("array_api_strict")
    with config_context(array_api_dispatch=True):
        assert _sklearn.get_namespace(xp.asarray(X))[0] is xp


def test_device():
    """BatchedGridSearchCV: where row indices must be to index X; what NumPy takes for its own."""
    for _, rows in containers(X):
        np.asarray([0, 2], device=_sklearn.device(rows))
    xp = pytest.importorskip("array_api_strict")
    elsewhere = xp.Device("device1")
    with config_context(array_api_dispatch=True):
        assert _sklearn.device(xp.asarray(X, device=elsewhere)) == elsewhere


def test__safe_indexing():
    """PredictionGridDisplay: the first rows of anything, in its own container."""
    for _, rows in containers(X):
        first = _sklearn._safe_indexing(rows, slice(0, 3))
        assert type(first) is type(rows)
        assert_array_equal(dense(first), X[:3])


def test_SparseCoefMixin():
    """SoftmaxRegression: `sparsify` and `densify`, there and back."""

    class Estimator(_sklearn.SparseCoefMixin, BaseEstimator):
        def fit(self):
            return self

    model = Estimator()
    model.coef_ = X.copy()
    assert model.sparsify() is model
    assert sparse.issparse(model.coef_)
    assert model.densify() is model
    assert isinstance(model.coef_, np.ndarray)
    assert_array_equal(model.coef_, X)


# Threads


def test__get_threadpool_controller():
    """`NumpyBackend`: BLAS is limited to one thread until the limit is taken back."""

    def blas_threads():
        pools = _sklearn._get_threadpool_controller().info()
        return [pool["num_threads"] for pool in pools if pool["user_api"] == "blas"]

    before = blas_threads()
    limit = _sklearn._get_threadpool_controller().limit(limits=1, user_api="blas")
    try:
        assert blas_threads() == [1] * len(before)
    finally:
        limit.restore_original_limits()
    assert blas_threads() == before


def test__openmp_effective_n_threads():
    """`NumpyBackend`: as many threads as OpenMP may have here, fewer where it is limited."""
    n_threads = _sklearn._openmp_effective_n_threads()
    assert isinstance(n_threads, int)
    assert n_threads >= 1
    limit = _sklearn._get_threadpool_controller().limit(limits=1, user_api="openmp")
    try:
        assert _sklearn._openmp_effective_n_threads() == 1
    finally:
        limit.restore_original_limits()
    assert _sklearn._openmp_effective_n_threads() == n_threads


# The search


def searching(scoring, **kwargs):
    """A search, for what it inherits."""
    return GridSearchCV(LogisticRegression(), {"C": [1.0]}, scoring=scoring, **kwargs)


def test__MultimetricScorer():
    """BatchedGridSearchCV: what several scorers are, told from a single one, with their names."""
    scorers, _ = searching(["accuracy", "neg_log_loss"], refit=False)._get_scorers()
    assert isinstance(scorers, _sklearn._MultimetricScorer)
    assert list(scorers._scorers) == ["accuracy", "neg_log_loss"]
    assert set(scorers(LogisticRegression().fit(X, y), X, y)) == set(scorers._scorers)
    for single in (None, "accuracy", lambda model, X, y: {"a": 1.0}):
        assert not isinstance(searching(single)._get_scorers()[0], _sklearn._MultimetricScorer)


def test__check_method_params():
    """BatchedGridSearchCV: what has a value per row is cut like the rows, the rest passed on."""
    weight = np.arange(4.0)
    params = {
        "sample_weight": weight,
        "weights_in_a_list": list(weight),
        "flag": True,
        "none": None,
    }
    whole = _sklearn._check_method_params(X, params=params)
    assert_array_equal(whole["sample_weight"], weight)
    some = _sklearn._check_method_params(X, params=params, indices=np.array([3, 1]))
    assert_array_equal(some["sample_weight"], [3, 1])
    assert some["weights_in_a_list"] == [3, 1]
    assert (some["flag"], some["none"]) == (True, None)


def test__safe_split():
    """BatchedGridSearchCV: rows of X, and of y, labels or probabilities."""
    rows = np.array([2, 0])
    for _, data in containers(X):
        for targets in (y, np.eye(2)[y]):
            X_part, y_part = _sklearn._safe_split(SoftmaxRegression(), data, targets, rows)
            assert_array_equal(dense(X_part), X[rows])
            assert_array_equal(y_part, targets[rows])


def evaluate(estimator, scoring, recorder=None, **kwargs):
    """A fold, evaluated as BatchedGridSearchCV has those that it cannot stack."""
    search = searching(scoring, error_score=-1.0, refit=False).set_callbacks(recorder or Recorder())
    context = search._init_callback_context(max_subtasks=1)
    arguments = {
        "train": np.array([0, 1, 2]),
        "test": np.array([3, 0]),
        "parameters": {"C": 3.0},
        "split_progress": (0, 2),
        "candidate_progress": (0, 1),
        "scorer": search._get_scorers()[0],
        "fit_params": {"sample_weight": np.ones(4)},
        "score_params": {},
        "return_train_score": True,
        "return_n_test_samples": True,
        "return_times": True,
        "return_parameters": False,
        "error_score": -1.0,
        "verbose": 0,
        "caller": search,
        "callback_ctx": context.subcontext(task_name="fold"),
    }
    return _sklearn._fit_and_score(estimator, X, y, **{**arguments, **kwargs})


@pytest.mark.parametrize(
    ("scoring", "failed"),
    [("accuracy", -1.0), (["accuracy", "r2"], {"accuracy": -1.0, "r2": -1.0})],
)
def test__fit_and_score(scoring, failed):
    """BatchedGridSearchCV: folds by themselves, with results like those of stacked ones."""
    model, recorder = LogisticRegression(), Recorder()
    good = evaluate(model, scoring, recorder)
    assert recorder.log == ["setup", "begin fold", "end fold"]
    bad = evaluate(model, scoring, recorder, parameters={"C": -3.0})
    assert recorder.log == ["setup", "begin fold", "end fold"] * 2
    assert model.C == -3.0
    assert set(good) == set(bad) == FOLD
    assert good["fit_error"] is None
    assert "InvalidParameterError" in bad["fit_error"]
    assert good["n_test_samples"] == 2
    for part in ("test_scores", "train_scores"):
        assert bad[part] == failed
        assert type(good[part]) is type(failed)
        assert failed == -1.0 or set(good[part]) == set(failed)
    with pytest.raises(ValueError, match="'C'"):
        evaluate(model, scoring, parameters={"C": -3.0}, error_score="raise")
    assert "train_scores" not in evaluate(LogisticRegression(), scoring, return_train_score=False)


def test__score():
    """BatchedGridSearchCV: scores as Python numbers, one or by name; a failure is `error_score`."""
    model = LogisticRegression().fit(X, y)

    def broken(model, X, y):
        raise ValueError("is broken")

    def score(scorer, error_score=-1, **params):
        return _sklearn._score(model, X, y, scorer, params, error_score)

    def several(*scorers):
        return searching(dict(zip("ab", scorers, strict=True)), refit=False, error_score=-1)

    accuracy = get_scorer("accuracy")
    both, one_of_two = (several(*s)._get_scorers()[0] for s in ([accuracy] * 2, [accuracy, broken]))
    good = score(accuracy)
    assert good == model.score(X, y)
    assert type(good) is float
    assert score(accuracy, sample_weight=model.predict(X) == y) == 1
    assert score(both) == {"a": good, "b": good}
    for scorer, scores in ((broken, -1), (one_of_two, {"a": good, "b": -1})):
        with pytest.warns(UserWarning, match=r"(?s)Scoring failed.*is broken"):
            assert score(scorer) == scores
    with pytest.raises(ValueError, match="is broken"):
        score(broken, "raise")
    with pytest.raises(ValueError, match="must return a number"):
        score(lambda model, X, y: "good")


def folds(*errors):
    """Results of folds that failed with these errors, or did not, of a scorer with two names."""
    scores = {"a": 1.0, "b": 2.0}
    return [
        {"fit_error": error, "test_scores": scores if error is None else -1.0} for error in errors
    ]


def test__insert_error_scores():
    """BatchedGridSearchCV: the scores of failed folds get the names that a callable returned."""
    results = folds("failed", None)
    _sklearn._insert_error_scores(results, -1.0)
    assert results[0]["test_scores"] == {"a": -1.0, "b": -1.0}
    assert results[1]["test_scores"] == {"a": 1.0, "b": 2.0}
    nothing = folds("failed")
    _sklearn._insert_error_scores(nothing, -1.0)
    assert nothing == folds("failed")


def test__warn_or_raise_about_fit_failures():
    """BatchedGridSearchCV: some failed folds are warned of, if all failed that is an error."""
    _sklearn._warn_or_raise_about_fit_failures(folds(None, None), -1.0)
    with pytest.warns(FitFailedWarning, match=r"(?s)1 fits failed out of a total of 2.*no memory"):
        _sklearn._warn_or_raise_about_fit_failures(folds(None, "no memory"), -1.0)
    with pytest.raises(ValueError, match=r"(?s)All the 2 fits failed.*no memory"):
        _sklearn._warn_or_raise_about_fit_failures(folds("no memory", "no memory"), -1.0)


class TestInheritedBySearch:
    """Private methods of GridSearchCV that BatchedGridSearchCV calls, which no import shows."""

    def test_get_scorers(self):
        model = LogisticRegression().fit(X, y)
        scorer, metric = searching("accuracy")._get_scorers()
        assert (scorer(model, X, y), metric) == (model.score(X, y), "score")
        assert searching(["accuracy", "r2"], refit="r2")._get_scorers()[1] == "r2"

    def test_get_routed_params_for_fit(self):
        weight, groups = np.ones(4), np.arange(4)
        routed = searching("accuracy")._get_routed_params_for_fit(
            {"sample_weight": weight, "groups": groups}
        )
        assert routed.estimator.fit == {"sample_weight": weight}
        assert routed.splitter.split == {"groups": groups}
        assert routed.scorer.score == {"sample_weight": weight}

    def test_check_refit_for_multimetric(self):
        with pytest.raises(ValueError, match="refit must be set to a scorer key"):
            searching(None)._check_refit_for_multimetric({"a": 1.0})

    def test_format_results_and_select_best_index(self):
        timed = {"fit_time": 1.0, "score_time": 1.0, "n_test_samples": 2, "fit_error": None}
        out = [{**timed, "test_scores": score} for score in (0.1, 0.3, 0.8, 0.6)]
        search = searching(None)
        results = search._format_results([{"C": 1.0}, {"C": 2.0}], 2, out)
        np.testing.assert_allclose(results["mean_test_score"], [0.2, 0.7])
        assert results["params"] == [{"C": 1.0}, {"C": 2.0}]
        assert search._select_best_index(True, "score", results) == 1
        assert search._select_best_index(lambda results: 0, "score", results) == 0

    def test_callbacks_of_an_estimator(self):
        model = SoftmaxRegression()
        assert not getattr(model, "_skl_callbacks", None)
        recorder = Recorder()
        assert model.set_callbacks(recorder)._skl_callbacks == [recorder]

"""scikit-learn's callbacks: what they are told, when, and what they may do."""

import pickle
import re
import threading
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.callback.tests._utils import FailingCallback, RecordingCallback, StopFitCallback
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skmax import SoftmaxRegression, stopping
from skmax.objective import evaluate

EPOCHS = 5


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    return rng.normal(size=(90, 4)) + np.eye(3, 4)[y], y


def estimator(**params):
    """A model whose epochs do not depend on how many are to come."""
    params = {
        "max_iter": EPOCHS,
        "learning_rate": 0.02,
        "schedule": "constant",
        "batch_size": 30,
        "tol": 0,
        "random_state": 0,
    } | params
    return SoftmaxRegression(**params)


class Watcher(RecordingCallback):
    """Records the hooks, and runs a function at one of them.

    Parameters
    ----------
    hook : {"begin", "end"}
        Which one.
    function : callable
        Called with the number of epochs that this hook has seen and the fitted estimator.
    """

    def __init__(self, hook, function):
        super().__init__()
        self.hook, self.function = hook, function
        self.seen = 0

    def _see(self, hook, context, fitted_estimator):
        if hook == self.hook and context.parent is not None:
            self.seen += 1
            return self.function(self.seen, fitted_estimator)
        return None

    def on_fit_task_begin(self, estimator, context, *, fitted_estimator=None):
        super().on_fit_task_begin(estimator, context, fitted_estimator=fitted_estimator)
        self._see("begin", context, fitted_estimator)

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        super().on_fit_task_end(estimator, context, fitted_estimator=fitted_estimator)
        return self._see("end", context, fitted_estimator)


def hooks(callback):
    """The hooks that were called, in order: (name, task)."""
    return [(entry["name"], entry["context"].task_name) for entry in callback.record]


ONE_EPOCH = [("on_fit_task_begin", "epoch"), ("on_fit_task_end", "epoch")]


def whole_fit(n_epochs):
    return [
        ("setup", "fit"),
        ("on_fit_task_begin", "fit"),
        *ONE_EPOCH * n_epochs,
        ("on_fit_task_end", "fit"),
        ("teardown", "fit"),
    ]


# What callbacks are told


def test_hooks_are_called_once_per_epoch_and_once_per_fit(data):
    callback = RecordingCallback()
    estimator().set_callbacks(callback).fit(*data)
    assert hooks(callback) == whole_fit(EPOCHS)
    assert callback.record[0]["context"].max_subtasks == EPOCHS


def test_no_epoch_is_begun_after_training_has_stalled(data):
    callback = RecordingCallback()
    model = estimator(max_iter=100, tol=0.5, n_iter_no_change=2).set_callbacks(callback).fit(*data)
    assert 2 <= model.n_iter_ < 10
    assert hooks(callback) == whole_fit(model.n_iter_)


def test_no_epoch_is_begun_after_early_stopping(data):
    callback = RecordingCallback()
    model = estimator(max_iter=100, early_stopping=True, tol=0.5, n_iter_no_change=2)
    model.set_callbacks(callback).fit(*data)
    assert 2 <= model.n_iter_ < 10
    assert hooks(callback) == whole_fit(model.n_iter_)


def test_a_second_fit_reports_anew(data):
    callback = RecordingCallback()
    model = estimator(warm_start=True).set_callbacks(callback)
    model.fit(*data).fit(*data)
    assert hooks(callback) == 2 * whole_fit(EPOCHS)


def test_callbacks_change_nothing_about_the_result(data):
    watched = estimator().set_callbacks(RecordingCallback()).fit(*data)
    np.testing.assert_array_equal(watched.coef_, estimator().fit(*data).coef_)


def test_hooks_get_the_data_and_weights_as_given(data):
    pandas = pytest.importorskip("pandas")
    X, y = pandas.DataFrame(data[0], columns=list("abcd")), data[1]
    weight = np.arange(90) + 1.0
    callback = RecordingCallback()
    estimator().set_callbacks(callback).fit(X, y, sample_weight=weight)
    given = [entry["kwargs"] for entry in callback.record if "kwargs" in entry]
    assert len(given) == 2 * (EPOCHS + 1)
    for kwargs in given:
        assert kwargs["X"] is X
        assert kwargs["y"] is y
        assert kwargs["metadata"]["sample_weight"] is weight


def test_without_weights_there_is_no_metadata(data):
    callback = RecordingCallback()
    estimator().set_callbacks(callback).fit(*data)
    assert not any(entry["kwargs"]["metadata"] for entry in callback.record if "kwargs" in entry)


def test_fitted_estimator_is_that_of_a_fit_which_ends_here(data):
    X, y = data
    taken = []

    def take(n_epochs, fitted):
        taken.append((fitted.n_iter_, list(fitted.loss_curve_), fitted.predict_proba(X)))

    estimator().set_callbacks(Watcher("end", take)).fit(X, y)
    assert len(taken) == EPOCHS
    for n_epochs, (n_iter, curve, proba) in enumerate(taken, 1):
        shorter = estimator(max_iter=n_epochs).fit(X, y)
        assert n_iter == n_epochs
        np.testing.assert_allclose(curve, shorter.loss_curve_, rtol=1e-12)
        np.testing.assert_allclose(proba, shorter.predict_proba(X), rtol=1e-10)


def test_fitted_estimators_stay_as_they_were(data):
    X, y = data
    kept = []
    model = estimator().set_callbacks(Watcher("end", lambda _, fitted: kept.append(fitted)))
    model.fit(X, y)
    assert [fitted.n_iter_ for fitted in kept] == [1, 2, 3, 4, 5]
    assert [len(fitted.loss_curve_) for fitted in kept] == [1, 2, 3, 4, 5]
    assert len({fitted.coef_.tobytes() for fitted in kept}) == EPOCHS
    np.testing.assert_array_equal(kept[-1].coef_, model.coef_)


def test_the_estimator_itself_is_not_fitted_while_it_trains(data):
    X, y = data
    model = estimator()

    def check(_, fitted):
        with pytest.raises(NotFittedError):
            model.predict(X)

    model.set_callbacks(Watcher("end", check)).fit(X, y)
    assert model.predict(X).shape == y.shape


def test_fitted_estimator_has_the_validation_curves_so_far(data):
    X, y = data
    seen = []

    def take(n_epochs, fitted):
        seen.append((list(fitted.validation_scores_), fitted.score(X[:30], y[:30])))

    model = estimator().set_callbacks(Watcher("end", take))
    model.fit(X, y, X_val=X[:30], y_val=y[:30])
    for n_epochs, (scores, score) in enumerate(seen, 1):
        assert scores == model.validation_scores_[:n_epochs]
        assert scores[-1] == pytest.approx(score)


# What callbacks may do


def test_a_callback_can_stop_training(data):
    callback = StopFitCallback()
    model = estimator().set_callbacks(callback).fit(*data)
    assert model.n_iter_ == len(model.loss_curve_) == 1
    assert hooks(callback) == whole_fit(1)
    np.testing.assert_array_equal(model.coef_, estimator(max_iter=1).fit(*data).coef_)


def test_training_that_was_stopped_warns_of_nothing(data):
    model = estimator(tol=1e-4).set_callbacks(Watcher("end", lambda epoch, _: epoch == 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(*data)
    assert model.n_iter_ == 3


def test_any_of_several_callbacks_can_stop_training_and_all_hear_of_it(data):
    others = RecordingCallback(), RecordingCallback()
    model = estimator().set_callbacks(others[0], StopFitCallback(), others[1]).fit(*data)
    assert model.n_iter_ == 1
    assert hooks(others[0]) == hooks(others[1]) == whole_fit(1)


@pytest.mark.parametrize("hook", ["setup", "on_fit_task_begin", "on_fit_task_end", "teardown"])
def test_the_error_of_a_callback_reaches_the_caller(data, hook):
    callback = FailingCallback(fail_at=hook)
    with pytest.raises(ValueError, match=f"Failing callback failed at {hook}"):
        estimator().set_callbacks(callback).fit(*data)
    assert callback.count_hooks("teardown") == 1


def test_after_the_error_of_a_callback_the_estimator_can_be_fitted(data):
    def fail(_, fitted):
        raise RuntimeError("no space left")

    model = estimator().set_callbacks(Watcher("end", fail))
    with pytest.raises(RuntimeError, match="no space left"):
        model.fit(*data)
    with pytest.raises(NotFittedError):
        model.predict(data[0])
    model.set_callbacks().fit(*data)
    np.testing.assert_array_equal(model.coef_, estimator().fit(*data).coef_)


def interrupt_at(n):
    def interrupt(seen, fitted):
        if seen == n:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize(("hook", "seen"), [("begin", 4), ("end", 3)])
@pytest.mark.parametrize("params", [{}, {"early_stopping": True}], ids=["plain", "early stopping"])
def test_ctrl_c_leaves_what_the_completed_epochs_have_reached(data, hook, seen, params):
    X, y = data
    callback = Watcher(hook, interrupt_at(seen))
    model = estimator(**params).set_callbacks(callback)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert callback.count_hooks("teardown") == 1
    shorter = estimator(max_iter=3, **params).fit(X, y)
    assert model.n_iter_ == 3
    assert model.loss_curve_ == shorter.loss_curve_
    assert model.validation_scores_ == shorter.validation_scores_
    np.testing.assert_array_equal(model.coef_, shorter.coef_)
    np.testing.assert_array_equal(model.predict_proba(X), shorter.predict_proba(X))


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_ctrl_c_while_an_epoch_is_scored(data, monkeypatch, n, early_stopping):
    X, y = data
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == n:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(stopping, "evaluate", interrupted)
    model = estimator(early_stopping=early_stopping)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y, X_val=X[:30], y_val=y[:30])
    if n > 1 or hasattr(model, "coef_"):
        assert model.n_iter_ == len(model.loss_curve_) == len(model.accuracy_curve_) >= n - 1
        assert len(model.validation_scores_) == len(model.validation_loss_curve_) == model.n_iter_
        assert np.isfinite(model.predict_proba(X)).all()


def test_ctrl_c_before_any_epoch_leaves_the_estimator_unfitted(data):
    model = estimator().set_callbacks(Watcher("begin", interrupt_at(1)))
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data)
    with pytest.raises(NotFittedError):
        model.predict(data[0])


def test_ctrl_c_before_any_epoch_leaves_a_fitted_estimator_as_it_was(data):
    X, y = data
    model = estimator().fit(X, y)
    before = model.predict_proba(X)
    model.set_callbacks(Watcher("begin", interrupt_at(1)))
    with pytest.raises(KeyboardInterrupt):
        model.fit(X[::-1], y)
    np.testing.assert_array_equal(model.predict_proba(X), before)


def test_after_ctrl_c_a_warm_start_goes_on(data):
    model = estimator(warm_start=True).set_callbacks(Watcher("begin", interrupt_at(4)))
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data)
    reached = model.loss_curve_[-1]
    model.set_callbacks().fit(*data)
    assert model.n_iter_ == EPOCHS
    assert model.loss_curve_[-1] < reached


def test_after_ctrl_c_partial_fit_goes_on(data):
    X, y = data
    model = estimator().set_callbacks(Watcher("begin", interrupt_at(4)))
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert model.partial_fit(X, y).n_iter_ == 4


# Data frames


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_keep_their_names_in_hooks(data, library):
    frames = pytest.importorskip(library)
    X = frames.DataFrame(dict(zip("abcd", data[0].T, strict=True)))
    names = []

    def predict(_, fitted):
        fitted.predict(X)  # a warning that names are missing would be an error
        names.append(list(fitted.feature_names_in_))

    estimator().set_callbacks(Watcher("end", predict)).fit(X, data[1])
    assert names == [list("abcd")] * EPOCHS


# scikit-learn's own callbacks


def epoch_rows(log):
    return [row for row in log.data if row["task_name"] == "epoch"]


def test_scoring_monitor_scores_every_epoch(data):
    X, y = data
    monitor = ScoringMonitor(scoring=["accuracy", "neg_log_loss"])
    estimator().set_callbacks(monitor).fit(X, y)
    rows = epoch_rows(monitor.get_logs())
    assert [row["task_id"] for row in rows] == list(range(EPOCHS))
    for n_epochs, row in enumerate(rows, 1):
        shorter = estimator(max_iter=n_epochs).fit(X, y)
        probability = shorter.predict_proba(X)[np.arange(len(y)), y]
        assert row["accuracy"] == shorter.score(X, y)
        assert row["neg_log_loss"] == pytest.approx(np.log(probability).mean(), rel=1e-12)


def test_scoring_monitor_weighs_rows_as_the_fit_does(data):
    X, y = data
    weight = np.arange(90) + 1.0
    monitor = ScoringMonitor(scoring="accuracy")
    model = estimator().set_callbacks(monitor).fit(X, y, sample_weight=weight)
    last = epoch_rows(monitor.get_logs())[-1]
    assert last["accuracy"] == pytest.approx(model.score(X, y, weight), rel=1e-12)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_scoring_monitor_on_the_inner_estimator_of_a_search(data, n_jobs):
    monitor = ScoringMonitor(scoring="accuracy")
    model = make_pipeline(StandardScaler(), estimator().set_callbacks(monitor))
    grid = {"softmaxregression__C": [0.1, 1.0]}
    search = GridSearchCV(model, grid, cv=3, n_jobs=n_jobs).fit(*data)
    rows = epoch_rows(monitor.get_logs())
    assert len(rows) == (2 * 3 + 1) * EPOCHS  # candidates, folds, and the last fit
    assert {row["estimator_name"] for row in rows} == {"SoftmaxRegression"}
    # The refit comes after the search, and is not so deep.
    last = min(rows, key=lambda row: (len(row["task_id_path"]), -row["task_id"]))
    assert last["accuracy"] == pytest.approx(search.score(*data))


@pytest.fixture
def shown_bars(capsys):
    """A function that returns the bars that were drawn, as (description, percentage)."""
    rich = pytest.importorskip("rich")
    rich.reconfigure(width=200)

    def read():
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out).splitlines()
        bars = [re.match(r"\s*(.*\S) [━╸╺ ]+ +(\d+)%", line) for line in lines]
        return [(bar[1], int(bar[2])) for bar in bars if bar]

    yield read
    rich.reconfigure()


def test_progress_bar_of_the_estimator(data, shown_bars):
    estimator().set_callbacks(ProgressBar()).fit(*data)
    assert shown_bars()[-1] == ("SoftmaxRegression - fit", 100)


def test_progress_bar_is_full_when_training_stops_early(data, shown_bars):
    estimator().set_callbacks(StopFitCallback(), ProgressBar()).fit(*data)
    assert shown_bars()[-1] == ("SoftmaxRegression - fit", 100)


def test_progress_bar_of_a_pipeline(data, shown_bars):
    model = make_pipeline(StandardScaler(), estimator()).set_callbacks(ProgressBar())
    model.fit(*data)
    bars = shown_bars()
    assert ("Pipeline - fit", 100) in bars
    inner = [bar for bar in bars if "SoftmaxRegression - fit" in bar[0]]
    assert len({name for name, _ in inner}) == 1
    assert inner[-1][1] == 100


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_bar_of_a_search_has_a_bar_per_fit(data, shown_bars, n_jobs):
    search = GridSearchCV(estimator(), {"C": [0.1, 1.0]}, cv=3, n_jobs=n_jobs)
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(*data)
    bars = shown_bars()
    assert ("GridSearchCV - fit", 100) in bars
    full = {name for name, percentage in bars if percentage == 100}
    assert len([name for name in full if "SoftmaxRegression - fit" in name]) == 2 * 3 + 1


def test_a_clone_shares_the_callbacks(data):
    callback = RecordingCallback()
    model = estimator().set_callbacks(callback)
    clone(model).fit(*data)
    assert hooks(callback) == whole_fit(EPOCHS)


class Checkpoint(Watcher):
    """Pickles the model after each epoch, and holds what no pickle can."""

    def __init__(self):
        super().__init__("end", self.keep)
        self.saved, self.lock = [], threading.Lock()

    def keep(self, _, fitted_estimator):
        self.saved.append(pickle.dumps(fitted_estimator.set_callbacks()))


def test_a_checkpoint_holds_the_model_alone(data):
    checkpoint = Checkpoint()
    model = estimator().set_callbacks(checkpoint).fit(*data)
    assert len(checkpoint.saved) == EPOCHS
    last = pickle.loads(checkpoint.saved[-1])
    np.testing.assert_array_equal(last.coef_, model.coef_)
    assert set(vars(last)) == set(vars(model.set_callbacks()))

"""What went wrong once and must not again: each test is one promise, held to an independent truth.

Optima are those of SciPy's L-BFGS-B, of LogisticRegression's newton-cholesky, or closed forms.
"""

import collections
import functools
import inspect
import os
import re
import subprocess
import sys
import warnings
from contextlib import suppress
from copy import deepcopy

import array_api_strict
import numpy as np
import pytest
import sklearn
import threadpoolctl
from scipy import sparse
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax, softmax, xlogy
from sklearn.base import clone
from sklearn.callback.tests._utils import RecordingCallback
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skmax
from skmax import BatchedGridSearchCV, SoftmaxRegression

TO_THE_OPTIMUM = {"defaults": {}, "lbfgs": {"solver": "lbfgs"}}


class Objective:
    """F of weights with a row per class, or one row for two, by the formula, in float64.

    `P` has the probabilities that the rows should have.
    """

    def __init__(self, X, P, weight=None, *, C=1.0, l1_ratio=0.0, fit_intercept=True):
        self.X, self.P = np.asarray(X, dtype=float), P
        weight = np.ones(len(P)) if weight is None else weight
        self.weight = (weight / weight.sum())[:, None]
        self.l1, self.l2 = l1_ratio / (C * weight.sum()), (1 - l1_ratio) / (C * weight.sum())
        self.fit_intercept = fit_intercept
        self.n_rows = 1 if P.shape[1] == 2 else P.shape[1]

    def _smooth(self, coef, intercept):
        """F without L1, and its gradient."""
        logits = self.X @ coef.T + intercept
        if self.n_rows == 1:
            logits = np.column_stack([np.zeros(len(logits)), logits])
        log_p = log_softmax(logits, axis=1)
        residual = (self.weight * (np.exp(log_p) - self.P))[:, -self.n_rows :]
        value = -np.sum(self.weight * self.P * log_p) + self.l2 / 2 * np.sum(coef**2)
        by_intercept = self.fit_intercept * residual.sum(axis=0)
        return value, residual.T @ self.X + self.l2 * coef, by_intercept

    def __call__(self, coef, intercept=0.0):
        coef = np.asarray(coef, dtype=float)
        value, _, _ = self._smooth(coef, np.asarray(intercept, dtype=float))
        return value + self.l1 * np.abs(coef).sum()

    @threadpoolctl.threadpool_limits.wrap(limits=1)  # two would wait for each other
    def minimum(self, coef=0.0, intercept=0.0):
        """Coefficients and intercepts, found from those given.

        On features centred and scaled; weights are split into positive and negative parts, so
        that L1 is smooth.
        """
        k, d = self.n_rows, self.X.shape[1]
        mean = self.X.mean(axis=0) * self.fit_intercept
        scale = np.sqrt(np.mean((self.X - mean) ** 2, axis=0))
        scale[scale == 0] = 1.0

        def weights(flat):
            positive, negative = flat[: 2 * k * d].reshape(2, k, d) / scale
            coef = positive - negative
            return coef, flat[2 * k * d :] - coef @ mean

        def value_and_gradient(flat):
            value, by_coef, by_intercept = self._smooth(*weights(flat))
            by_coef = by_coef - np.outer(by_intercept, mean)
            by_parts = (np.stack([by_coef, -by_coef]) + self.l1) / scale
            value += self.l1 * np.sum(flat[: 2 * k * d].reshape(2, k, d) / scale)
            return value, np.append(by_parts, by_intercept)

        coef = np.zeros((k, d)) + coef
        parts = np.stack([np.maximum(coef, 0), np.maximum(-coef, 0)]) * scale
        start = np.append(parts, intercept + coef @ mean)
        bounds = [(0, None)] * (2 * k * d) + [(None, None)] * k
        for _ in range(3):  # from where it thinks it is done
            start = minimize(
                value_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds,
                options={"maxiter": 5000, "maxfun": 10000, "maxcor": 30, "ftol": 0, "gtol": 1e-12},
            ).x  # fmt: skip
        return weights(start)


def one_hot(y):
    return np.eye(y.max() + 1)[y]


def fitted(model, X, y, sample_weight=None):
    """The fitted model, and whether it said that it has not converged; nothing else is said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(X, y, sample_weight)
    others = [one for one in said if not issubclass(one.category, ConvergenceWarning)]
    assert not others, str(others[0])
    return model, bool(said)


def overshoot(model, F, least):
    """By how much of F the model is above the optimum, beyond what it is allowed; 0: not at all."""
    excess = 1 - least / F(model.coef_, model.intercept_)
    return excess if excess > 1.01 * model.tol + 1e-8 else 0.0


# The optimum: within tol of it, or a warning


def hard_lassos():
    """L1 problems whose optimum is known, by name."""
    X, y = load_digits(return_X_y=True)
    yield "digits", X, y, {"C": 10, "l1_ratio": 1, "fit_intercept": False}, 0.0061955081
    X, y = load_breast_cancer(return_X_y=True)
    yield "cancer", StandardScaler().fit_transform(X), y, {"C": 100, "l1_ratio": 1}, 0.0282517021


@pytest.mark.parametrize("how", TO_THE_OPTIMUM)
@pytest.mark.parametrize(
    ("X", "y", "parameters", "least"),
    [pytest.param(*case, id=name) for name, *case in hard_lassos()],
)
def test_a_lasso_ends_within_tol_of_the_optimum_or_says_that_it_does_not(
    X, y, parameters, least, how
):
    model, warned = fitted(
        SoftmaxRegression(random_state=0, **TO_THE_OPTIMUM[how], **parameters), X, y
    )
    excess = overshoot(model, Objective(X, one_hot(y), **parameters), least)
    assert warned or not excess


PENALTIES = {"lasso": 1.0, "elastic net": 0.3, "ridge": 0.0, "none": 0.0}


@functools.cache
def random_problem(penalty, seed):
    """X, P, parameters, and the objective of a small problem; without a penalty, P is positive."""
    rng = np.random.default_rng([seed, list(PENALTIES).index(penalty)])
    n, d, k = rng.integers(20, 120), rng.integers(1, 9), rng.integers(2, 5)
    X = rng.normal(size=(n, d)) * 10 ** rng.uniform(-2, 2, d)
    X += rng.normal(size=d) * 10 ** rng.uniform(-1, 1.5, d)
    if seed % 3 == 0:  # correlated
        X = X @ rng.normal(size=(d, d))
    logits = (X - X.mean(axis=0)) / X.std(axis=0) @ rng.normal(size=(d, k))
    y = np.argmax(logits + rng.gumbel(size=(n, k)), axis=1)
    y[:k] = np.arange(k)
    P = one_hot(y)
    parameters = {
        "C": float(10 ** rng.uniform(-2, 4)),
        "l1_ratio": PENALTIES[penalty],
        "fit_intercept": bool(rng.random() < 0.8),
    }
    if penalty == "none":
        parameters["C"], P = np.inf, 0.97 * P + 0.03 / k
    if seed % 2:
        X = X.astype(np.float32)
    F = Objective(X, P, **parameters)
    return X, P, parameters, F, F.minimum()


@pytest.mark.parametrize("tol", [1e-4, 1e-6])
@pytest.mark.parametrize("how", TO_THE_OPTIMUM)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_small_problems_end_within_tol_of_the_optimum_or_say_that_they_do_not(penalty, how, tol):
    """SciPy looks for lower values from zero and from where the model has ended."""
    silent = {}
    for seed in range(12):
        X, P, parameters, F, optimum = random_problem(penalty, seed)
        model = SoftmaxRegression(random_state=0, tol=tol, **TO_THE_OPTIMUM[how], **parameters)
        model, warned = fitted(model, X, P)
        least = F(*optimum)
        if not (warned or overshoot(model, F, least)):
            least = min(least, F(*F.minimum(model.coef_, model.intercept_)))
        if not warned and (excess := overshoot(model, F, least)):
            silent[seed] = excess
    assert not silent


@functools.cache
@threadpoolctl.threadpool_limits.wrap(limits=1)
def collinear():
    """X of rank 30 in 300 features, exact in float32; y; the objective, and its least value.

    The best weights lie in the span of the rows, which has 30 coordinates.
    """
    rng = np.random.default_rng(0)
    latent = rng.integers(-3, 4, size=(1000, 30))
    mixing = rng.integers(-2, 3, size=(30, 300))
    logits = latent @ rng.normal(size=(30, 6)) / 4
    y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    X, (basis, _) = latent @ mixing, np.linalg.qr(mixing.T.astype(float))
    inner = LogisticRegression(C=1e4, solver="newton-cholesky", tol=1e-6).fit(X @ basis, y)
    F = Objective(X, one_hot(y), C=1e4)
    return X, y, F, F(inner.coef_ @ basis.T, inner.intercept_)


@pytest.mark.parametrize("how", TO_THE_OPTIMUM)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_collinear_features_under_a_weak_penalty_end_at_the_optimum_or_say_that_they_do_not(
    dtype, how
):
    X, y, F, least = collinear()
    model = SoftmaxRegression(C=1e4, random_state=0, **TO_THE_OPTIMUM[how])
    model, warned = fitted(model, X.astype(dtype), y)
    excess = overshoot(model, F, least)
    assert warned or not excess


@pytest.mark.parametrize("how", TO_THE_OPTIMUM)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_copies_of_indicators_end_at_the_class_frequencies_or_say_that_they_do_not(dtype, how):
    """Without a penalty, the best probabilities in a group are its class frequencies."""
    rng = np.random.default_rng(0)
    group = np.arange(2000) % 8
    y = np.argmax(rng.normal(size=(8, 4))[group] + rng.gumbel(size=(2000, 4)), axis=1)
    X = np.hstack([np.eye(8, dtype=dtype)[group]] * 12)
    model = SoftmaxRegression(C=np.inf, random_state=0, **TO_THE_OPTIMUM[how])
    model, warned = fitted(model, X, y)
    frequencies = np.stack([np.bincount(y[group == g], minlength=4) / 250 for g in range(8)])
    least = -xlogy(frequencies, frequencies).sum(axis=1).mean()
    excess = overshoot(model, Objective(X, one_hot(y), C=np.inf), least)
    assert warned or not excess


# The proven distance to the optimum


def overlapping(n=150, d=4, k=3, seed=0):
    """Classes that overlap, on features of unit variance."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X, np.argmax(X @ rng.normal(size=(d, k)) + rng.gumbel(size=(n, k)), axis=1)


@pytest.mark.parametrize("truth", [0.002, 0.05])
def test_under_l1_the_optimality_gap_is_within_ten_times_the_truth(truth):
    """On a model whose weights lie between zero and the optimum that SciPy finds."""
    X, y = load_wine(return_X_y=True)
    parameters = {"C": 100, "l1_ratio": 1}
    F = Objective(X, one_hot(y), **parameters)
    coef, intercept = F.minimum()
    least = F(coef, intercept)
    share = brentq(lambda share: 1 - least / F(share * coef, share * intercept) - truth, 0, 1)
    model = SoftmaxRegression(random_state=0, solver="sgd", max_iter=3, **parameters).fit(X, y)
    model.coef_, model.intercept_ = share * coef, share * intercept
    assert truth * (1 - 1e-6) <= model.optimality_gap(X, y) <= 10 * truth


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_the_optimality_gap_is_a_bound_where_a_class_of_the_model_does_not_occur(C, fit_intercept):
    """Three rows of weights on rows of two classes; at the optimum, the third is out of the way.

    Then the other two are each other's negative, and as if C were doubled in the binary model.
    Without an intercept, the third class keeps some probability, and SciPy says how much.
    """
    X, y = overlapping()
    model = SoftmaxRegression(C=C, fit_intercept=fit_intercept, random_state=0).fit(X, y)
    X, y = X[y < 2], y[y < 2]
    F = Objective(X, np.eye(3)[y], C=C, fit_intercept=fit_intercept)
    if fit_intercept:
        two = LogisticRegression(C=2 * C, solver="newton-cholesky", tol=1e-10).fit(X, y)
        least = Objective(X, one_hot(y), C=2 * C)(two.coef_, two.intercept_)
    else:
        least = F(*F.minimum())
    truth = 1 - least / F(model.coef_, model.intercept_)
    assert truth > 0.01
    assert truth - 1e-9 <= model.optimality_gap(X, y) <= 1.3 * truth + 1e-2


def test_the_optimality_gap_is_one_where_a_class_that_occurs_has_no_probability():
    X, y = overlapping()
    model = SoftmaxRegression(random_state=0).fit(X, y, sample_weight=1.0 * (y != 2))
    assert model.optimality_gap(X, y) == 1
    assert model.optimality_gap(X, y, sample_weight=1.0 * (y != 2)) < 1e-3


def calls_within_skmax(function):
    """How many Python functions of the package are called."""
    root, count = os.path.dirname(skmax.__file__), 0

    def see(frame, event, _):
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(root)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def test_without_a_penalty_the_optimality_gap_takes_no_pains_to_say_nothing():
    """No more work than with a penalty at the optimum, where one look at the data suffices."""
    X, y = overlapping()
    work = []
    for C in (1.0, np.inf):
        model = SoftmaxRegression(C=C, solver="lbfgs", tol=1e-8).fit(X, y)
        model.optimality_gap(X, y)
        work.append(calls_within_skmax(lambda model=model: model.optimality_gap(X, y)))
    assert model.optimality_gap(X, y) == 1
    assert work[1] <= 2 * work[0]


@pytest.mark.parametrize("container", [sparse.csr_array, sparse.csc_matrix])
def test_the_optimality_gap_takes_a_sparse_y_as_fit_does(container):
    X, y = overlapping()
    model = SoftmaxRegression(random_state=0).fit(X, container(one_hot(y)))
    gap = model.optimality_gap(X, container(one_hot(y)))
    assert gap == pytest.approx(model.optimality_gap(X, y), rel=1e-9)


@pytest.mark.parametrize("of_X", ["numpy", "array_api_strict"])
@pytest.mark.parametrize("form", ["labels", "matrix"])
def test_the_optimality_gap_takes_y_of_another_library_as_fit_does(form, of_X):
    X, y = overlapping()
    there = array_api_strict.asarray(y if form == "labels" else one_hot(y))
    with sklearn.config_context(array_api_dispatch=True):
        X = array_api_strict.asarray(X) if of_X == "array_api_strict" else X
        model = SoftmaxRegression(random_state=0).fit(X, there)
        gap = model.optimality_gap(X, there)
        assert gap == pytest.approx(model.optimality_gap(X, y), rel=1e-9)


# Fits that fail or are interrupted


def assert_kept(model, before):
    """Every attribute is the object that it was, and what is in it has not changed."""
    attributes, copies = before
    assert sorted(vars(model)) == sorted(attributes)
    for name, value in vars(model).items():
        assert value is attributes[name], name
        if name in copies:
            np.testing.assert_array_equal(value, copies[name])


def as_it_is(model):
    """What `assert_kept` compares with."""
    attributes = dict(vars(model))
    return attributes, {name: deepcopy(v) for name, v in attributes.items() if name.endswith("_")}


# X has four columns and y three classes; other_X has two columns.
FAILING = {
    "diverges": lambda model, X, y, other_X: model.fit(X, y),
    "one class": lambda model, X, y, other_X: model.fit(X, 0 * y),
    "negative weights": lambda model, X, y, other_X: model.fit(X, y, -np.ones(len(y))),
    "other columns in X_val": lambda model, X, y, other_X: model.fit(X, y, X_val=other_X, y_val=y),
}


@pytest.mark.parametrize("frames", [False, True], ids=["arrays", "frames"])
@pytest.mark.parametrize("fitted_before", [True, False], ids=["fitted", "new"])
@pytest.mark.parametrize("failing", FAILING)
def test_a_fit_that_fails_leaves_the_model_as_it_was(failing, fitted_before, frames):
    X, y = overlapping()
    X, other_X = 1e3 * X, X[:, :2]
    if frames:
        pandas = pytest.importorskip("pandas")
        X, other_X = (pandas.DataFrame(X, columns=list("abcd")), pandas.DataFrame(other_X))
        other_X.columns = ["e", "f"]
    model = SoftmaxRegression(
        solver="sgd", learning_rate=0.1, batch_size=5, max_iter=3, random_state=0
    )
    if fitted_before:
        probabilities = model.fit(other_X, y).predict_proba(other_X)
    if failing == "diverges":
        model.set_params(learning_rate=1e8)
    before = as_it_is(model)
    with pytest.raises(ValueError):
        FAILING[failing](model, X, y, other_X)
    assert_kept(model, before)
    if fitted_before:
        np.testing.assert_array_equal(model.predict_proba(other_X), probabilities)
        with pytest.raises(ValueError, match="feature"):
            model.predict(X)


def test_a_first_partial_fit_that_diverges_leaves_the_model_as_it_was():
    X, y = overlapping()
    model = SoftmaxRegression(solver="sgd", learning_rate=1e8, batch_size=5)
    before = as_it_is(model)
    with pytest.raises(ValueError, match="diverged"):
        model.partial_fit(1e3 * X, y, classes=[0, 1, 2])
    assert_kept(model, before)


METHODS = {
    "predict": lambda model, X, y: model.predict(X),
    "predict_proba": lambda model, X, y: model.predict_proba(X),
    "decision_function": lambda model, X, y: model.decision_function(X),
    "score": lambda model, X, y: model.score(X, y),
    "partial_fit": lambda model, X, y: model.partial_fit(X, y),
    "optimality_gap": lambda model, X, y: model.optimality_gap(X, y),
}


@pytest.mark.parametrize("method", METHODS)
def test_columns_are_counted_by_the_coefficients_that_there_are(method):
    X, y = overlapping()
    model = SoftmaxRegression(solver="sgd", random_state=0).fit(X, y)
    model.coef_ = model.coef_[:, :2].copy()
    with pytest.raises(ValueError, match=r"X has 4 features.* 2 features"):
        METHODS[method](model, X, y)


PACKAGE = os.path.dirname(skmax.__file__) + os.sep
HERE_TOO = threadpoolctl.__file__


def profiled(function, on_event):
    """Call a function; `on_event(place)` is called wherever Python looks for signals.

    That is at the start of a Python function and after the call of another one, here of those in
    the package and in threadpoolctl.
    """

    def see(frame, event, what):
        file, code = frame.f_code.co_filename, frame.f_code
        if not file.startswith((PACKAGE, HERE_TOO)):
            return
        if event == "c_return":
            on_event(f"{os.path.basename(file)}:{frame.f_lineno}, after {what.__name__}")
        elif event == "call" and not code.co_flags & inspect.CO_GENERATOR:  # which may be closing
            on_event(f"{os.path.basename(file)}:{frame.f_lineno}, start of {code.co_name}")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(before)


def interruptions(function):
    """For each place where a call can be interrupted, what interrupts a call there.

    Where it can several times, the first time and one chosen at random. Yields the place, and a
    function of a call.
    """
    times = collections.Counter()
    profiled(function, lambda place: times.update([place]))
    rng = np.random.default_rng(0)

    def interrupt(call, place, left):
        def on_event(reached):
            nonlocal left
            left -= reached == place
            if left < 0:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            profiled(call, on_event)
            assert left >= 0, "the interrupt was swallowed"

    for place, most in sorted(times.items()):
        for before in {0, int(rng.integers(most))}:
            yield place, functools.partial(interrupt, place=place, left=before)


def assert_whole(model, X):
    """The model is fitted to X of three classes, and all that it says of itself fits together."""
    assert model.coef_.shape == (3, X.shape[1])
    assert model.intercept_.shape == model.classes_.shape == (3,)
    assert model.n_features_in_ == X.shape[1]
    assert model.n_iter_ == len(model.loss_curve_) == len(model.accuracy_curve_) > 0
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1, rtol=1e-6)


FITS = {
    "sgd": {"solver": "sgd", "max_iter": 3},
    "lbfgs": {"solver": "lbfgs", "tol": 1e-3},
}


@functools.cache
def interrupted_fits(name):
    """Where a fit was interrupted and left BLAS with fewer threads, or a model of two halves.

    Every other model was fitted before, to fewer columns and classes.
    """
    X, y = overlapping(n=300, d=20)
    new = SoftmaxRegression(random_state=0, **FITS[name])
    pasts = [new, clone(new).fit(X[:, :5], y % 2)]
    leaks, halves = [], []
    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        blas = threadpoolctl.ThreadpoolController().select(user_api="blas")
        for number, (place, interrupt) in enumerate(interruptions(lambda: clone(new).fit(X, y))):
            past, model = pasts[number % 2], SoftmaxRegression()
            vars(model).update(vars(past))
            before = as_it_is(past)
            interrupt(functools.partial(model.fit, X, y))
            if any(library["num_threads"] != 2 for library in blas.info()):
                leaks.append(place)
                threadpoolctl.threadpool_limits(limits=2, user_api="blas")
            try:
                if getattr(model, "coef_", None) is getattr(past, "coef_", None):
                    assert_kept(model, before)
                else:
                    assert_whole(model, X)
            except (AssertionError, AttributeError, ValueError) as error:
                halves.append((place, str(error)))
    return leaks, halves


@pytest.mark.parametrize("name", FITS)
def test_wherever_a_fit_is_interrupted_blas_gets_its_threads_back(name):
    leaks, _ = interrupted_fits(name)
    assert not leaks


@pytest.mark.parametrize("name", FITS)
def test_wherever_a_fit_is_interrupted_the_model_is_the_old_one_or_a_whole_new_one(name):
    _, halves = interrupted_fits(name)
    assert not halves


FORKING = """
import os, signal, sys, threading, time
import numpy as np
import threadpoolctl
from skmax import SoftmaxRegression

X, y = np.random.default_rng(0).normal(size=(300, 20)), np.arange(300) % 3

def fit():
    SoftmaxRegression(solver="sgd", max_iter=2, random_state=0).fit(X, y)

def dawdle(frame, event, _):
    if event == "call" and frame.f_code.co_filename.startswith(threadpoolctl.__file__):
        time.sleep(1e-3)

def fit_slowly():
    sys.setprofile(dawdle)
    while not done.is_set():
        fit()

fit()
done = threading.Event()
thread = threading.Thread(target=fit_slowly)
thread.start()
statuses = []
for turn in range(20):
    time.sleep(turn % 7 / 1000)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            fit()
        finally:
            os._exit(0)
    statuses.append(os.waitpid(child, 0)[1])
    if statuses[-1]:
        break
done.set()
thread.join()
assert not any(statuses), f"child {len(statuses)} ended with status {statuses[-1]}"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_that_is_forked_while_another_thread_fits_can_fit():
    """The thread dawdles wherever threads of BLAS are counted, so that forks happen there.

    BLAS has one thread in all: forks of OpenBLAS with several may hang by themselves.
    """
    one = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}
    script = [sys.executable, "-W", "ignore", "-c", FORKING]
    path = os.pathsep.join([os.path.dirname(PACKAGE.rstrip(os.sep)), *sys.path])
    ended = subprocess.run(
        script, capture_output=True, text=True, timeout=60,
        env={**os.environ, **one, "PYTHONPATH": path},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


# Parameters that mean what they say


@pytest.mark.parametrize("how", ["sgd", "lbfgs", "partial_fit"])
@pytest.mark.parametrize("k", [2, 3])
def test_without_an_intercept_the_intercept_of_an_earlier_fit_is_gone(k, how):
    """As in LogisticRegression, whose optimum L-BFGS then finds."""
    X, y = overlapping(k=k)
    X = X + 1
    model = SoftmaxRegression(
        warm_start=True, solver="lbfgs" if how == "lbfgs" else "sgd", random_state=0, tol=1e-8
    ).fit(X, y)
    assert np.abs(model.intercept_).max() > 0.1
    model.set_params(fit_intercept=False)
    model.partial_fit(X, y) if how == "partial_fit" else model.fit(X, y)
    np.testing.assert_array_equal(model.intercept_, 0)
    if how == "lbfgs":
        reference = LogisticRegression(fit_intercept=False, solver="newton-cholesky", tol=1e-10)
        np.testing.assert_allclose(model.coef_, reference.fit(X, y).coef_, atol=1e-3)


def one_epoch(l1_ratio, **parameters):
    """A model that takes plain steps at a given rate."""
    return SoftmaxRegression(
        **{
            "solver": "sgd", "l1_ratio": l1_ratio, "learning_rate": 0.1, "momentum": 0.0,
            "schedule": "constant", "max_iter": 1, "tol": 0, "preconditioner": None,
            "shuffle": False, "random_state": 0, **parameters,
        }
    )  # fmt: skip


@pytest.mark.parametrize("batch_size", [50, 150])
@pytest.mark.parametrize("preconditioner", ["diagonal", None])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_vanishing_share_of_l1_changes_nothing(momentum, preconditioner, batch_size):
    X, y = overlapping()
    parameters = {
        "batch_size": batch_size, "momentum": momentum, "preconditioner": preconditioner,
    }  # fmt: skip
    ridge, nearly = (one_epoch(share, **parameters).fit(X, y) for share in (0.0, 1e-9))
    np.testing.assert_allclose(nearly.coef_, ridge.coef_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(nearly.intercept_, ridge.intercept_, rtol=0, atol=1e-6)


def test_one_full_batch_under_l1_is_one_proximal_step():
    """From zero: what the gradient step gives, less the threshold."""
    X, y = overlapping()
    model = one_epoch(1.0, C=0.05, batch_size=150).fit(X, y)
    gradient = (one_hot(y) - 1 / 3).T @ X / 150
    step, threshold = 0.1 * gradient, 0.1 / (0.05 * 150)
    expected = np.sign(step) * np.maximum(np.abs(step) - threshold, 0)
    np.testing.assert_allclose(model.coef_, expected, rtol=0, atol=1e-12)
    assert (expected == 0).any()
    assert (expected != 0).any()


@pytest.mark.parametrize("cut", [50, 75, 150])
def test_a_stream_may_be_cut_anywhere_under_l1(cut):
    """With a vanishing share of L1, every cut gives what it gives without."""
    X, y = overlapping()
    ridge, nearly = (one_epoch(share, batch_size=25) for share in (0.0, 1e-9))
    for model in (ridge, nearly):
        for first in range(0, 150, cut):
            rows = slice(first, first + cut)
            model.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
    np.testing.assert_allclose(nearly.coef_, ridge.coef_, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["fit", "partial_fit"])
def test_the_rate_does_not_depend_on_a_period_in_the_order_of_the_rows(how):
    """Every tenth row is of class 0, which lies at the centre and hardly varies.

    Rates that race in `fit` are half a power of ten apart, and the next one may win.
    """
    rng = np.random.default_rng(0)
    y = np.arange(2048 * 10) % 10
    place = np.append(0.0, np.arange(9) - 4)[y]
    X = np.outer(place, rng.normal(size=50)) + 0.01 * rng.normal(size=(len(y), 50))
    rates = []
    for order in (np.arange(len(y)), rng.permutation(len(y))):
        model = SoftmaxRegression(solver="sgd", max_iter=1, random_state=0)
        if how == "fit":
            model.fit(X[order], y[order])
        else:
            model.partial_fit(X[order], y[order], classes=np.arange(10))
        rates.append(model.learning_rate_)
    assert max(rates) < (4 if how == "fit" else 3) * min(rates)


# Searches


def pipeline_or_not(model, piped):
    return (make_pipeline(StandardScaler(), model), "softmaxregression__") if piped else (model, "")


@pytest.mark.parametrize("error_score", ["raise", np.nan])
@pytest.mark.parametrize("piped", [False, True], ids=["bare", "pipeline"])
@pytest.mark.parametrize("search", [GridSearchCV, BatchedGridSearchCV])
def test_a_search_refuses_a_fit_parameter_that_is_misspelt(search, piped, error_score):
    X, y = overlapping()
    model, prefix = pipeline_or_not(SoftmaxRegression(solver="sgd", max_iter=2), piped)
    search = search(
        model, {f"{prefix}C": [1.0, 2.0]}, cv=2, refit=False, error_score=error_score
    )  # fmt: skip
    error = TypeError if error_score == "raise" else (TypeError, ValueError)
    with pytest.raises(error, match="unexpected keyword argument 'sample_wieght'"):
        search.fit(X, y, **{f"{prefix}sample_wieght": np.ones(len(y))})


def first_epochs(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch 1:")]


def test_a_search_that_is_to_raise_trains_nothing_twice(capsys):
    """As many stacks begin as where the error is only taken down."""
    X, y = overlapping()
    model = SoftmaxRegression(
        solver="sgd", max_iter=2, batch_size=5, verbose=1, random_state=0
    )  # fmt: skip
    grid = {"learning_rate": [0.1, 0.2, 0.3, 1e8]}
    with pytest.warns(FitFailedWarning):
        BatchedGridSearchCV(model, grid, cv=2, refit=False, error_score=0.0).fit(1e3 * X, y)
    most = len(first_epochs(capsys))
    with pytest.raises(ValueError, match=r"diverged.*learning_rate=1e\+08"):
        BatchedGridSearchCV(model, grid, cv=2, refit=False, error_score="raise").fit(1e3 * X, y)
    assert len(first_epochs(capsys)) <= most


def test_a_search_reports_no_epoch_twice(capsys):
    X, y = overlapping()
    model = SoftmaxRegression(
        solver="sgd", learning_rate=0.1, batch_size=5, tol=0, verbose=1, random_state=0
    )
    BatchedGridSearchCV(model, {"max_iter": [2, 5]}, cv=2, refit=False).fit(X, y)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert len(lines) >= 2
    assert len(set(lines)) == len(lines)


# Labels


@pytest.mark.parametrize("dtype", ["M8[D]", "m8[s]"])
def test_a_time_that_is_missing_is_no_class(dtype):
    X, y = overlapping()
    times = np.arange(3).astype(dtype)
    labels = times[y]
    assert SoftmaxRegression(solver="sgd", max_iter=2).fit(X, labels).classes_.dtype == times.dtype
    labels[7] = "NaT"
    with pytest.raises(ValueError, match=r"(?s)\by\b.*(NaT|NaN|missing)"):
        SoftmaxRegression().fit(X, labels)
    with pytest.raises(ValueError, match=r"(?s)\by\b.*(NaT|NaN|missing)"):
        SoftmaxRegression(solver="sgd").partial_fit(X, labels, classes=times)
    with pytest.raises(ValueError, match=r"(?s)classes.*(NaT|NaN|missing)"):
        SoftmaxRegression(solver="sgd").partial_fit(X, times[y], classes=[*times, labels[7]])


@pytest.mark.parametrize("dtype", [int, float])
def test_the_classes_that_are_announced_are_no_missing_values(dtype):
    X, y = overlapping()
    model = SoftmaxRegression(solver="sgd")
    with pytest.raises(ValueError, match=r"(?s)classes.*(?i:nan)"):
        model.partial_fit(X, y.astype(dtype), classes=[0.0, 1.0, 2.0, np.nan])
    assert not hasattr(model, "classes_")


@pytest.mark.parametrize("labels", [[0, 1, 2], ["ant", "bee", "cat"]], ids=["numbers", "words"])
@pytest.mark.parametrize("container", [set, frozenset, tuple, lambda labels: dict.fromkeys(labels)])
def test_the_classes_may_be_announced_as_a_set(container, labels):
    X, y = overlapping()
    y = np.asarray(labels)[y]
    first, second = (
        SoftmaxRegression(solver="sgd", random_state=0).partial_fit(X, y, classes=classes)
        for classes in (labels, container(labels))
    )
    second.partial_fit(X, y, classes=container(labels))
    first.partial_fit(X, y)
    np.testing.assert_array_equal(second.classes_, labels)
    np.testing.assert_array_equal(second.coef_, first.coef_)


# Stopping, and what is told of it


@pytest.mark.parametrize("max_iter", [1, 2, 3])
@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_too_few_iterations_are_told_however_few(max_iter, l1_ratio):
    X, y = overlapping()
    model = SoftmaxRegression(solver="lbfgs", max_iter=max_iter, l1_ratio=l1_ratio, tol=1e-12)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, y)
    assert len(model.loss_curve_) == model.n_iter_ <= max_iter


def test_patience_may_be_infinite():
    X, y = overlapping()
    model = SoftmaxRegression(
        solver="sgd", n_iter_no_change=np.inf, tol=0.5, max_iter=30, random_state=0
    )
    assert model.fit(X, y).n_iter_ == 30
    assert model.set_params(early_stopping=True).fit(X, y).n_iter_ == 30


class Epochs(RecordingCallback):
    """Keeps the fitted estimator of every epoch."""

    def __init__(self):
        super().__init__()
        self.models = []

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        super().on_fit_task_end(estimator, context, fitted_estimator=fitted_estimator)
        if context.parent is not None:
            self.models.append(fitted_estimator)


def test_with_early_stopping_callbacks_see_the_weights_of_their_epoch():
    """What they score on the validation rows is what the curves say of that epoch."""
    X, y = overlapping(n=200)
    X_val, y_val = X[100:], y[100:]
    callback = Epochs()
    model = SoftmaxRegression(
        solver="sgd", early_stopping=True, learning_rate=0.3, schedule="constant", batch_size=10,
        max_iter=8, tol=0, random_state=0,
    ).set_callbacks(callback)  # fmt: skip
    model.fit(X[:100], y[:100], X_val=X_val, y_val=y_val)
    scores = model.validation_scores_
    assert np.argmax(scores) < 7  # the last is not the best
    assert len(callback.models) == 8
    for epoch, seen in enumerate(callback.models):
        loss = -seen.predict_log_proba(X_val)[np.arange(100), y_val].mean()
        assert loss == pytest.approx(model.validation_loss_curve_[epoch], rel=1e-6)
        assert seen.score(X_val, y_val) == pytest.approx(scores[epoch])
        assert seen.validation_scores_ == scores[: epoch + 1]
    assert model.score(X_val, y_val) == pytest.approx(max(scores))


@pytest.mark.parametrize("early_stopping", [False, True])
def test_partial_fit_after_validation_keeps_the_curves_side_by_side(early_stopping):
    X, y = overlapping()
    model = SoftmaxRegression(
        solver="sgd", max_iter=3, tol=0, early_stopping=early_stopping, random_state=0
    ).fit(X[:100], y[:100], X_val=X[100:], y_val=y[100:])
    scores, losses = list(model.validation_scores_), list(model.validation_loss_curve_)
    best = model.best_validation_score_
    model.set_params(early_stopping=False)
    for _ in range(2):
        model.partial_fit(X[:100], y[:100])
    assert model.n_iter_ == len(model.loss_curve_) == len(model.accuracy_curve_) == 5
    nothing = [np.nan, np.nan]
    np.testing.assert_array_equal(model.validation_scores_, scores + nothing)
    np.testing.assert_array_equal(model.validation_loss_curve_, losses + nothing)
    assert model.best_validation_score_ == best == max(scores)
    assert model.best_loss_ == min(model.loss_curve_)


def test_partial_fit_without_validation_has_no_validation_curves():
    X, y = overlapping()
    model = SoftmaxRegression(solver="sgd", max_iter=3, tol=0).fit(X, y).partial_fit(X, y)
    assert model.validation_scores_ is model.validation_loss_curve_ is None
    assert model.best_validation_score_ is None


def test_the_report_of_partial_fit_counts_on(capsys):
    X, y = overlapping()
    model = SoftmaxRegression(solver="sgd", max_iter=3, tol=0, verbose=1, random_state=0).fit(X, y)
    for _ in range(2):
        model.partial_fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    epochs = [int(line.split(":")[0].removeprefix("Epoch ")) for line in lines if "Epoch" in line]
    assert epochs == [1, 2, 3, 4, 5]


# Models that were filled by hand, and subclasses


def federated(k=3, n_features=4):
    """A model that has what the average of models has, and nothing else."""
    rng = np.random.default_rng(1)
    rows = 1 if k == 2 else k
    model = SoftmaxRegression(solver="sgd", random_state=0)
    model.coef_ = 0.3 * rng.normal(size=(rows, n_features))
    model.intercept_ = 0.3 * rng.normal(size=rows)
    model.classes_ = np.arange(k)
    return model


@pytest.mark.parametrize("k", [2, 3])
def test_a_model_that_was_filled_by_hand_predicts(k):
    X, y = overlapping(k=k)
    model = federated(k)
    logits = X @ model.coef_.T + model.intercept_
    if k == 2:
        logits = np.column_stack([np.zeros(len(X)), logits])
    np.testing.assert_allclose(model.predict_proba(X), softmax(logits, axis=1), rtol=1e-12)
    np.testing.assert_allclose(
        model.predict_log_proba(X), log_softmax(logits, axis=1), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_array_equal(model.predict(X), logits.argmax(axis=1))
    assert model.score(X, y) == np.mean(logits.argmax(axis=1) == y)
    with pytest.raises(ValueError, match=r"X has 3 features.* 4 features"):
        model.predict(X[:, :3])


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("k", [2, 3])
def test_a_model_that_was_filled_by_hand_trains_on_from_there(k, method):
    """Steps of hardly any length leave it where it is."""
    X, y = overlapping(k=k)
    model = federated(k).set_params(
        warm_start=True, learning_rate=1e-12, momentum=0.0, C=1e6, max_iter=1, tol=0
    )
    probabilities = model.predict_proba(X)
    getattr(model, method)(X, y)
    np.testing.assert_allclose(model.predict_proba(X), probabilities, atol=1e-6)
    assert model.n_iter_ == len(model.loss_curve_) == len(model.accuracy_curve_) == 1
    assert model.n_features_in_ == 4


@pytest.mark.parametrize("k", [2, 3])
def test_a_model_that_was_filled_by_hand_is_led_to_the_optimum(k):
    X, y = overlapping(k=k)
    model = federated(k).set_params(warm_start=True, solver="lbfgs", tol=1e-8).fit(X, y)
    reference = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), reference.predict_proba(X), atol=1e-3)


class Named(SoftmaxRegression):
    """A model with a parameter that it cannot do without."""

    def __init__(self, name, *, C=1.0, solver="lbfgs"):
        super().__init__(C=C, solver=solver, tol=1e-8)
        self.name = name


class Hasty(SoftmaxRegression):
    """A model whose defaults are hopeless for SGD."""

    def __init__(
        self, *, C=1.0, solver="lbfgs", learning_rate=1e8, batch_size=1, momentum=0.99, tol=1e-8
    ):
        super().__init__(
            C=C, solver=solver, learning_rate=learning_rate, batch_size=batch_size,
            momentum=momentum, tol=tol,
        )  # fmt: skip


@pytest.mark.parametrize("make", [lambda: Named("it"), Hasty], ids=["required", "defaults"])
def test_a_subclass_of_other_defaults_finds_the_same_optimum(make):
    X, y = overlapping()
    plain = SoftmaxRegression(solver="lbfgs", tol=1e-8).fit(X, y)
    np.testing.assert_array_equal(make().fit(X, y).coef_, plain.coef_)


# Small numbers


def assert_scale_is_no_matter(X, y, unit, columns, **parameters):
    """Without a penalty, probabilities are those of LogisticRegression on columns of unit 1."""
    reference = LogisticRegression(
        C=np.inf, solver="newton-cholesky", tol=1e-10,
        fit_intercept=parameters.get("fit_intercept", True),
    ).fit(X.astype(float), y)  # fmt: skip
    tiny = X.copy()
    tiny[:, columns] *= X.dtype.type(unit)
    model, _ = fitted(SoftmaxRegression(C=np.inf, tol=1e-7, random_state=0, **parameters), tiny, y)
    np.testing.assert_allclose(
        model.predict_proba(tiny), reference.predict_proba(X.astype(float)), atol=1e-3
    )


@pytest.mark.parametrize("how", TO_THE_OPTIMUM)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("columns", [[0], [0, 1, 2, 3]], ids=["one", "all"])
@pytest.mark.parametrize(
    ("dtype", "unit"),
    [(np.float64, 2.0**-530), (np.float64, 2.0**-565), (np.float32, 2.0**-83)],
)
def test_columns_whose_squares_underflow_count(dtype, unit, columns, fit_intercept, how):
    """Units of about 1e-160, 1e-170 and 1e-25, as powers of two: nothing is rounded."""
    X, y = overlapping()
    assert_scale_is_no_matter(
        X.astype(dtype), y, unit, columns, fit_intercept=fit_intercept, **TO_THE_OPTIMUM[how]
    )


@pytest.mark.parametrize("parameters", [{}, {"solver": "lbfgs"}, {"solver": "sgd"}], ids=str)
@pytest.mark.parametrize("C", [1e-41, 1e-300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_penalty_beyond_float32_leaves_the_frequencies_of_the_classes(dtype, C, parameters):
    X, y = overlapping()
    X = X.astype(dtype)
    model = SoftmaxRegression(C=C, random_state=0, **parameters).fit(X, y)
    np.testing.assert_allclose(model.coef_, 0, atol=1e-6)
    frequencies = np.tile(np.bincount(y) / len(y), (len(X), 1))
    np.testing.assert_allclose(model.predict_proba(X), frequencies, atol=0.02)


# What is said, and of whom


@pytest.mark.parametrize("scale", [1e3, 1e6])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"solver": "lbfgs"},
        {"solver": "sgd", "max_iter": 5},
        {"solver": "sgd", "max_iter": 5, "learning_rate": 0.1},
    ],
    ids=str,
)
def test_a_warm_start_far_away_trains_or_is_blamed_itself(parameters, scale):
    X, y = overlapping()
    model = SoftmaxRegression(warm_start=True, random_state=0, **parameters).fit(X, y)
    model.coef_ = scale * model.coef_
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            model.fit(X, y)
        except ValueError as error:
            messages = [str(error)]
        else:
            others = (one for one in said if not issubclass(one.category, ConvergenceWarning))
            messages = [str(one.message) for one in others]
            F = Objective(X, one_hot(y))(model.coef_, model.intercept_)
            assert said or np.log(3) > F
    for message in messages:
        assert "warm" in message
        assert "diverged in epoch 1" not in message
        assert not re.search("learning_rate='?auto", message) or "learning_rate" in parameters


@pytest.mark.parametrize("how", TO_THE_OPTIMUM)
def test_a_warm_start_far_away_ends_within_tol_of_the_optimum_or_says_that_it_does_not(how):
    X, y = overlapping()
    model = SoftmaxRegression(warm_start=True, random_state=0, **TO_THE_OPTIMUM[how]).fit(X, y)
    model.coef_ = 1e6 * model.coef_
    reference = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(X, y)
    F = Objective(X, one_hot(y))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(X, y)
    excess = overshoot(model, F, F(reference.coef_, reference.intercept_))
    assert said or not excess


WARNED = {
    "schedule": (
        {"schedule": "constant", "learning_rate": 0.01, "max_iter": 3}, ConvergenceWarning
    ),
    "iterations": ({"solver": "lbfgs", "max_iter": 2}, ConvergenceWarning),
    "ignorance": (
        {"schedule": "constant", "learning_rate": 50.0, "max_iter": 3}, UserWarning
    ),
    "batch": ({"batch_size": 1000, "max_iter": 3, "learning_rate": 0.1}, UserWarning),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
def test_a_warning_of_fit_points_to_its_caller(name):
    X, y = overlapping()
    parameters, category = WARNED[name]
    model = SoftmaxRegression(**{"solver": "sgd", "random_state": 0, **parameters})
    with pytest.warns(category) as record:
        model.fit(X, y)
    assert [one.filename for one in record] == [__file__]


def test_a_warning_of_partial_fit_points_to_its_caller():
    X, y = overlapping()
    model = SoftmaxRegression(solver="sgd", batch_size=1000, learning_rate=0.1)
    with pytest.warns(UserWarning, match="batch_size=1000") as record:
        model.partial_fit(X, y, classes=[0, 1, 2])
    assert [one.filename for one in record] == [__file__]


@pytest.mark.parametrize("weight", [None, 1e-4, 1e-12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_validation_loss_of_a_class_without_probability_is_infinite(dtype, weight):
    """However little its rows weigh; without weight, they do not count."""
    X, y = overlapping()
    X, known = X.astype(dtype), 1.0 * (y != 2)
    weight_val = None if weight is None else np.where(y == 2, weight, 1.0)
    model = SoftmaxRegression(solver="sgd", max_iter=2, random_state=0)
    model.fit(X, y, known, X_val=X, y_val=y, sample_weight_val=weight_val)
    assert model.validation_loss_curve_ == [np.inf, np.inf]
    model.fit(X, y, known, X_val=X, y_val=y, sample_weight_val=known)
    assert np.isfinite(model.validation_loss_curve_).all()


@pytest.mark.parametrize(
    "estimator", [SoftmaxRegression(), BatchedGridSearchCV(SoftmaxRegression(), {"C": [1.0]})]
)
def test_the_html_of_an_estimator_links_to_no_page_that_does_not_exist(estimator):
    assert "readthedocs" not in estimator._repr_html_()

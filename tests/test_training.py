"""What happens while training: curves, stopping, weights, schedules, stacks and reproducibility."""

import itertools
import warnings

import array_api_strict
import numpy as np
import pytest
import sklearn
from conftest import make_data
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from skmax import SoftmaxRegression
from skmax.backends.numpy import NumpyBackend
from skmax.data import source
from skmax.datasets import fetch_fashion_mnist
from skmax.problem import MASKED_LOGIT, Problem, State
from skmax.solvers.learning_rate import searched_rate
from skmax.solvers.preconditioner import Moments, precondition
from skmax.solvers.schedules import step_rates
from skmax.solvers.sgd import SGD
from skmax.stopping import Record
from skmax.training import Consumer, train


def plain(**parameters):
    """Textbook SGD, where every number can be computed by hand."""
    return SoftmaxRegression(
        **{
            "preconditioner": None,
            "learning_rate": 0.05,
            "schedule": "constant",
            "momentum": 0,
            "shuffle": False,
            "tol": 0,
            "max_iter": 5,
            "random_state": 0,
            **parameters,
        }
    )


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def textbook(X, y, rates, batch_size, C=1.0, weight=None):
    """Weights after an epoch per rate in `rates`, and (F, accuracy) as the epochs went by."""
    n, k = len(X), y.max() + 1
    weight = np.ones(n) if weight is None else weight
    W, b, curve = np.zeros((k, X.shape[1])), np.zeros(k), []
    for epoch_rates in rates:
        loss = right = 0.0
        for start, rate in zip(range(0, n, batch_size), epoch_rates, strict=True):
            rows = slice(start, start + batch_size)
            p, w = softmax(X[rows] @ W.T + b), weight[rows] / weight.mean()
            loss -= np.sum(w * np.log(p[np.arange(len(p)), y[rows]]))
            right += np.sum(w * (p.argmax(axis=1) == y[rows]))
            residual = w[:, None] * (p - np.eye(k)[y[rows]])
            gradient = residual.T @ X[rows] / len(p) + W / (C * weight.sum())
            W, b = W - rate * gradient, b - rate * residual.mean(axis=0)
        curve.append((loss / n + np.sum(W**2) / (2 * C * weight.sum()), right / n))
    return W, b, np.array(curve).T


@pytest.fixture(scope="module")
def fashion_mnist():
    try:
        return [
            fetch_fashion_mnist(subset=subset, download_if_missing=False, return_X_y=True)
            for subset in ("train", "test")
        ]
    except OSError as error:
        pytest.skip(f"no Fashion-MNIST: {error}")


def test_the_textbook_run(fashion_mnist):
    """What PyTorch and MLPClassifier reach with the same ten epochs: 0.44 to 0.45, 83 %."""
    (X, y), (X_test, y_test) = fashion_mnist
    X, X_test = X / np.float32(255), X_test / np.float32(255)
    model = plain(learning_rate=0.1, batch_size=256, max_iter=10, C=np.inf, shuffle=True).fit(
        X, y, X_val=X_test, y_val=y_test
    )
    for curve in ("loss_curve_", "accuracy_curve_", "validation_scores_", "validation_loss_curve_"):
        assert len(getattr(model, curve)) == 10
    assert model.n_iter_ == 10
    assert (np.diff(model.loss_curve_) < 0).all()
    assert 0.43 < model.loss_curve_[-1] < 0.46
    assert 0.825 < model.score(X_test, y_test) < 0.845
    assert model.validation_scores_[-1] == pytest.approx(model.score(X_test, y_test), abs=1e-4)


@pytest.mark.parametrize("batch_size", [120, 50])
def test_curves_are_the_objective_and_the_accuracy_met_while_training(rng, batch_size):
    """Cross-entropy before each step, penalty at the end of the epoch; to rounding."""
    X, y = make_data()
    weight = rng.exponential(size=len(X))
    model = plain(C=0.05, batch_size=batch_size).fit(X, y, weight)
    n_steps = -(-len(X) // batch_size)
    W, b, (loss, accuracy) = textbook(X, y, [[0.05] * n_steps] * 5, batch_size, 0.05, weight)
    np.testing.assert_allclose(model.coef_, W, rtol=1e-10)
    np.testing.assert_allclose(model.intercept_, b, rtol=1e-10)
    np.testing.assert_allclose(model.loss_curve_, loss, rtol=1e-12)
    np.testing.assert_allclose(model.accuracy_curve_, accuracy, rtol=1e-12)
    assert model.best_loss_ == min(model.loss_curve_)
    assert model.learning_rate_ == 0.05


@pytest.mark.parametrize("X_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch_size", [25, 120])
def test_schedules_multiply_the_rate_of_each_step(batch_size, X_dtype):
    """By hand, with t the epochs done (a fraction within an epoch) of T; to rounding.

    120 rows in batches of 25 end with one of 20.
    """
    X, y = make_data()
    T, n_steps = 4, -(-len(X) // batch_size)
    t = np.arange(T)[:, None] + np.arange(n_steps) / n_steps
    multipliers = {
        "constant": np.ones_like(t),
        "linear": 1 - t / T,
        "cosine": (1 + np.cos(np.pi * t / T)) / 2,
        "invscaling": (1 + t) ** -0.5,
    }
    for schedule, multiplier in multipliers.items():
        model = plain(schedule=schedule, max_iter=T, batch_size=batch_size).fit(
            X.astype(X_dtype), y
        )
        W, b, _ = textbook(X, y, 0.05 * multiplier, batch_size)
        rtol = 1e-10 if X_dtype == np.float64 else 1e-4
        np.testing.assert_allclose(model.coef_, W, rtol=rtol, atol=rtol, err_msg=schedule)
        np.testing.assert_allclose(model.intercept_, b, rtol=rtol, atol=rtol, err_msg=schedule)


@pytest.mark.parametrize("preconditioner", ["diagonal", None])
@pytest.mark.parametrize(
    "parameters", [{}, {"l1_ratio": 1, "C": 0.1}, {"class_weight": "balanced"}]
)
def test_integer_weights_equal_repetition_in_full_batches(rng, parameters, preconditioner):
    """The same steps, to rounding; a weight of zero equals no row."""
    X, y = make_data()
    weight = rng.integers(4, size=len(X))
    repeated = np.repeat(np.arange(len(X)), weight)
    fits = [
        plain(
            preconditioner=preconditioner, batch_size=len(rows), learning_rate=0.1, momentum=0.9,
            max_iter=30, **parameters,
        ).fit(X[rows], y[rows], w)
        for rows, w in ((np.arange(len(X)), weight), (repeated, None))
    ]  # fmt: skip
    for attribute in ("coef_", "intercept_", "loss_curve_", "accuracy_curve_"):
        np.testing.assert_allclose(
            *(getattr(fit, attribute) for fit in fits), rtol=1e-8, atol=1e-12, err_msg=attribute
        )


def test_rows_without_weight_equal_removed_rows_whatever_they_hold(rng):
    """Labels that occur nowhere else included: to 1e-8 after 300 epochs of the full batch."""
    X, y = make_data()
    weight = rng.integers(2, size=len(X)).astype(float)
    X[weight == 0] *= 100
    y[weight == 0] = rng.integers(5, size=(weight == 0).sum())
    fit = SoftmaxRegression(batch_size=len(X), max_iter=300, tol=0, random_state=0).fit(
        X, y, weight
    )
    kept = weight > 0
    other = SoftmaxRegression(batch_size=kept.sum(), max_iter=300, tol=0, random_state=0).fit(
        X[kept], y[kept]
    )
    np.testing.assert_array_equal(fit.classes_, np.arange(5))
    proba = fit.predict_proba(X[kept])
    np.testing.assert_allclose(proba[:, :3], other.predict_proba(X[kept]), atol=1e-8)
    assert not proba[:, 3:].any()


def test_integer_weights_equal_repetition_in_small_batches_on_average():
    """20 seeds each, in batches of 16: means of the logits agree to 5 standard errors.

    Those are small enough to tell either from a fit without weights.
    """
    X, y = make_data(n=200)
    weight = np.where(y == 0, 3, 1)
    repeated = np.repeat(np.arange(len(X)), weight)

    def fits(rows, w):
        return np.stack(
            [
                SoftmaxRegression(
                    learning_rate=0.05, batch_size=16, max_iter=20, tol=0, random_state=seed
                )
                .fit(X[rows], y[rows], w)
                .predict_log_proba(X[:50])
                for seed in range(20)
            ]
        )

    everything = np.arange(len(X))
    weighted, twice, unweighted = (
        fits(rows, w) for rows, w in ((everything, weight), (repeated, None), (everything, None))
    )
    error = np.sqrt((weighted.var(axis=0, ddof=1) + twice.var(axis=0, ddof=1)) / 20)
    assert (np.abs(weighted.mean(axis=0) - twice.mean(axis=0)) < 5 * error + 0.01).all()
    assert np.median(np.abs(weighted.mean(axis=0) - unweighted.mean(axis=0)) / error) > 20


@pytest.mark.parametrize("early_stopping", [False, True])
def test_the_same_seed_gives_the_same_bits(early_stopping):
    X, y = make_data()
    fits = [
        SoftmaxRegression(
            batch_size=16, random_state=seed, max_iter=10, early_stopping=early_stopping
        ).fit(X, y)
        for seed in (3, 3, 4)
    ]
    for attribute in ("coef_", "intercept_", "loss_curve_"):
        first, same, other = (np.asarray(getattr(fit, attribute)) for fit in fits)
        np.testing.assert_array_equal(first, same)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("namespace", ["array_api_strict", "torch"])
@pytest.mark.parametrize(
    "parameters",
    [{}, {"l1_ratio": 0.5, "C": 0.1}, {"preconditioner": None}, {"early_stopping": True}],
    ids=str,
)
def test_every_backend_sees_the_same_batches(rng, namespace, parameters):
    """To 1e-9 in float64; another order of the rows would change the second digit."""
    X, y = make_data()
    weight = rng.exponential(size=len(X))
    model = SoftmaxRegression(
        learning_rate=0.1, batch_size=16, max_iter=8, tol=0, random_state=0
    ).set_params(**parameters)
    here = model.fit(X, y, weight)
    coef, intercept, curve = here.coef_, here.intercept_, here.loss_curve_
    xp = pytest.importorskip("torch") if namespace == "torch" else array_api_strict
    with sklearn.config_context(array_api_dispatch=True):
        there = sklearn.clone(model).fit(*map(xp.asarray, (X, y, weight)))
        proba = there.predict_proba(xp.asarray(X))
    assert type(there.coef_) is type(xp.asarray(X))
    np.testing.assert_allclose(np.asarray(there.coef_), coef, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.asarray(there.intercept_), intercept, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(there.loss_curve_, curve, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(proba), here.predict_proba(X), atol=1e-9)


def test_tol_stops_after_n_iter_no_change_epochs_without_progress():
    """Recounted from the curve: a constant rate stalls, and `tol=0` runs on."""
    X, y = make_data()
    arguments = {"learning_rate": 0.5, "preconditioner": "diagonal", "max_iter": 400}
    model = plain(tol=1e-3, n_iter_no_change=4, **arguments).fit(X, y)
    best, waited, stops = np.inf, 0, []
    for epoch, loss in enumerate(model.loss_curve_, start=1):
        improved = loss < best - (1e-3 * best if np.isfinite(best) else 0)
        best, waited = (loss, 0) if improved else (best, waited + 1)
        if waited == 4:
            stops.append(epoch)
    assert stops == [model.n_iter_]
    assert model.n_iter_ < 400
    assert plain(tol=0, n_iter_no_change=4, **arguments).fit(X, y).n_iter_ == 400


@pytest.mark.parametrize(
    ("parameters", "warns"),
    [
        ({"schedule": "constant", "tol": 1e-4}, True),
        ({"schedule": "invscaling", "tol": 1e-4}, True),
        ({"schedule": "constant", "tol": 0.9}, True),
        ({"schedule": "constant", "tol": 0}, False),
        ({"schedule": "linear", "tol": 1e-4}, False),
        ({"schedule": "cosine", "tol": 1e-4}, False),
        ({"schedule": "constant", "tol": 1e-2, "max_iter": 500}, False),
    ],
    ids=str,
)
def test_convergence_warning_at_the_cap_unless_the_schedule_ends_there(parameters, warns):
    X, y = make_data()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain(**{"max_iter": 3, **parameters}).fit(X, y)
    assert [w.category for w in caught] == [ConvergenceWarning] * warns


def test_early_stopping_keeps_the_weights_of_the_best_epoch():
    """A rate far too high makes the score go up and down."""
    X, y = make_data(n=300)
    model = plain(
        learning_rate=0.3,
        batch_size=8,
        max_iter=100,
        early_stopping=True,
        n_iter_no_change=6,
        tol=1e-9,
    ).fit(X[:200], y[:200], X_val=X[200:], y_val=y[200:])
    scores = model.validation_scores_
    best = int(np.argmax(scores))
    assert model.n_iter_ == len(scores) < 100
    assert best < len(scores) - 1
    assert model.score(X[200:], y[200:]) == pytest.approx(max(scores), abs=1e-12)
    assert model.best_validation_score_ == max(scores)
    # The same run, cut off there.
    again = plain(learning_rate=0.3, batch_size=8, max_iter=best + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        again.fit(X[:200], y[:200])
    np.testing.assert_array_equal(model.coef_, again.coef_)
    np.testing.assert_array_equal(model.intercept_, again.intercept_)


def test_early_stopping_holds_out_a_stratified_share_of_the_rows():
    """One pair of rows, one of each class, explains the first step: those were held out."""
    X, y = make_data(n=20, k=2)
    y = np.arange(20) % 2
    model = plain(early_stopping=True, max_iter=1, batch_size=18).fit(X, y)
    found = []
    for pair in itertools.combinations(range(20), 2):
        rows = np.setdiff1d(np.arange(20), pair)
        W, _, _ = textbook(X[rows], y[rows], [[0.05]], 18)
        if np.allclose(model.coef_[0], W[1] - W[0], rtol=1e-6):
            found.append(pair)
    # L2 does not matter yet: weights start from zero.
    assert len(found) == 1
    held_out = list(found[0])
    assert sorted(y[held_out]) == [0, 1]
    assert model.validation_scores_ == [model.score(X[held_out], y[held_out])]


@pytest.mark.parametrize("fraction", [0.1, 0.35])
def test_validation_fraction_is_the_share_that_is_held_out(fraction):
    """Scores are multiples of one over the number of rows held out."""
    X, y = make_data(n=200)
    model = plain(early_stopping=True, validation_fraction=fraction, n_iter_no_change=50)
    scores = np.array(model.set_params(max_iter=30, batch_size=10).fit(X, y).validation_scores_)
    counts = scores * fraction * 200
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-9)
    assert len(set(scores)) > 2


def test_validation_data_without_early_stopping_is_only_recorded(rng):
    X, y = make_data(n=200)
    weight = rng.exponential(size=80)
    model = plain(max_iter=20, batch_size=20, learning_rate=0.5, tol=0)
    seen = model.fit(X[:120], y[:120], X_val=X[120:], y_val=y[120:], sample_weight_val=weight)
    coef, scores = seen.coef_.copy(), seen.validation_scores_
    expected_score = seen.score(X[120:], y[120:], weight)
    log_p = seen.predict_log_proba(X[120:])[np.arange(80), y[120:]]
    assert len(scores) == len(seen.validation_loss_curve_) == 20
    assert scores[-1] == pytest.approx(expected_score, rel=1e-12)
    assert seen.best_validation_score_ == max(scores)
    assert seen.validation_loss_curve_[-1] == pytest.approx(
        -np.average(log_p, weights=weight), rel=1e-12
    )
    np.testing.assert_array_equal(coef, model.fit(X[:120], y[:120]).coef_)


@pytest.mark.parametrize("k", [2, 3])
def test_warm_start_continues_and_restarts_the_curves(k):
    """Without momentum, 4 epochs and 3 more are 7, to rounding."""
    X, y = make_data(k=k)
    model = plain(warm_start=True, max_iter=4, batch_size=50).fit(X, y)
    first = model.loss_curve_
    model.set_params(max_iter=3).fit(X, y)
    whole = plain(max_iter=7, batch_size=50).fit(X, y)
    assert model.n_iter_ == len(model.loss_curve_) == 3
    np.testing.assert_allclose(first + model.loss_curve_, whole.loss_curve_, rtol=1e-12)
    np.testing.assert_allclose(model.coef_, whole.coef_, rtol=1e-10, atol=1e-13)
    cold = model.set_params(warm_start=False).fit(X, y)
    np.testing.assert_allclose(cold.loss_curve_, whole.loss_curve_[:3], rtol=1e-12)


def test_warm_start_refuses_other_classes():
    X, y = make_data()
    model = plain(warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="same classes"):
        model.fit(X, y + 1)


@pytest.mark.parametrize("learning_rate", [0.1, "auto"])
def test_warm_start_recovers_from_weights_that_are_wrong_for_the_new_data(learning_rate):
    """A large objective to begin with is no divergence: it falls to that of a cold start."""
    X, _ = make_data()
    y = np.argmax(X[:, :3] - X[:, :3].mean(axis=0), axis=1)
    model = SoftmaxRegression(
        C=1e4, solver="sgd", learning_rate=learning_rate, max_iter=300, warm_start=True,
        random_state=0,
    )  # fmt: skip
    model.fit(X, y).fit(X, (y + 1) % 3)
    assert model.loss_curve_[0] > 2 * np.log(3)
    assert model.score(X, (y + 1) % 3) > 0.95


@pytest.mark.parametrize("preconditioner", ["diagonal", None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_divergence_names_the_rate(dtype, preconditioner):
    X, y = make_data()
    model = plain(learning_rate=1e10, preconditioner=preconditioner, max_iter=50)
    with pytest.raises(ValueError, match=r"(?i)diverged.*learning_rate=1e\+10"):
        model.fit(X.astype(dtype), y)


@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("max_iter", [10, 50, None])
def test_the_automatic_rate_is_not_too_high_for_noisy_labels(max_iter, momentum):
    """One feature that says little, no penalty: within 2 % of the optimum (5 % in 20 steps)."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(300, 1))
    y = np.argmax(2 * X @ rng.normal(size=(1, 3)) + rng.gumbel(size=(300, 3)), axis=1)
    y[:3] = range(3)
    model = SoftmaxRegression(C=np.inf, max_iter=max_iter, momentum=momentum, random_state=0)
    reference = LogisticRegression(C=np.inf).fit(X, y)
    ours, best = (
        -fit.predict_log_proba(X)[np.arange(300), y].mean() for fit in (model.fit(X, y), reference)
    )
    assert ours < (1.05 if max_iter == 10 else 1.02) * best


@settings(max_examples=30)
@given(st.data())
def test_the_automatic_rate_copes_with_hostile_data(data):
    """Scales of 1e-8 to 1e8, constant features: finite, no warning, no worse than the prior."""
    n = data.draw(st.sampled_from([20, 60, 300, 3000]))
    k = data.draw(st.integers(2, min(50, n // 4)))
    d = data.draw(st.integers(1, 12))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    Z = rng.normal(size=(n, d))
    y = np.argmax(2 * Z @ rng.normal(size=(d, k)) + rng.gumbel(size=(n, k)), axis=1)
    y[:k] = np.arange(k)
    X = Z * 10.0 ** rng.uniform(-8, 8, size=d) + rng.normal(size=d)
    if data.draw(st.booleans()):
        X = np.column_stack([X, np.full(n, 1e8), np.zeros(n), np.full(n, 1 / 3)])
    X = X.astype(dtype)
    X[:, np.arange(d)] = np.where(rng.uniform(size=d) < 0.5, X[:, :d], (Z * 100).astype(dtype))
    batch_size = data.draw(st.sampled_from(["auto", 16]))
    max_iter = data.draw(st.sampled_from([None, 10, 50]))
    model = SoftmaxRegression(
        C=np.inf, solver="sgd", batch_size=batch_size, max_iter=max_iter, random_state=0
    )
    model.fit(X, y)
    for attribute in ("coef_", "intercept_", "loss_curve_"):
        assert np.isfinite(getattr(model, attribute)).all(), attribute
    share = np.bincount(y) / n
    entropy = -np.sum(share * np.log(share))
    log_p = model.predict_log_proba(X)
    assert np.isfinite(log_p).all()
    signal = np.ptp(X, axis=0).max() > 0
    settled = max_iter != 10 or n == 3000 or (n == 300 and batch_size == 16)  # after 20 steps: no
    if signal and n >= 300 and settled:
        assert -log_p[np.arange(n), y].mean() < 1.02 * entropy  # there may be hardly any signal


class Leaves(Consumer):
    """Sends each model away after a number of epochs of its own."""

    def __init__(self, epochs):
        self.epochs, self.done = np.asarray(epochs), 0

    def __call__(self, epoch):
        self.done += 1
        return self.epochs[epoch.models] <= self.done


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5])
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("auto", [False, True])
def test_a_stack_trains_each_model_as_if_alone(rng, preconditioned, l1_ratio, auto):
    """Folds, C, rates, momenta, schedules and lengths of their own; to rounding.

    The second model has no rows of class 2, and the models leave at different times.
    """
    X, y = make_data(n=150)
    m, k = 4, 3
    weight = rng.exponential(size=(len(X), m)) * (np.arange(len(X))[:, None] % 5 != np.arange(m))
    weight[y == 2, 1] = 0
    masked = np.zeros((m, k), dtype=bool)
    masked[1, 2] = True
    C, smoothing = np.array([0.01, 1.0, 100.0, np.inf]), np.array([0, 0.1, 0, 0.2])
    lengths = np.array([5, 2, 7, 3])
    solver = SGD(
        learning_rate=np.array([0.02, 0.05, 0.01, 0.03]),
        momentum=np.array([0.9, 0.5, 0.0, 0.9]),
        retry=np.full(m, auto),
        schedule=("linear", "constant", "cosine", "invscaling"),
        max_iter=tuple(lengths.tolist()),
        batch_size=32,
        shuffle=True,
    )

    def run(models):
        problem = Problem.pose(
            source(X, NumpyBackend(), np.float64),
            np.arange(len(X)),
            y,
            sample_weight=weight[:, models],
            score_weight=None,
            masked=masked[models],
            C=C[models],
            l1_ratio=np.full(len(models), l1_ratio),
            label_smoothing=smoothing[models],
            fit_intercept=True,
        )
        if preconditioned:
            problem = precondition(problem, Moments.of(problem))
        chosen, order = solver.select(models), np.random.default_rng(5)
        if auto:
            rates = searched_rate(problem, chosen, order)
            chosen = SGD(**{**vars(chosen), "learning_rate": rates})
        record = Record(problem)
        epochs = chosen.epochs(problem, State.start(problem), chosen.orders(problem, order))
        train(epochs, [record, Leaves(lengths[models])], [None] * len(models))
        return record

    together = run(np.arange(m))
    for model in range(m):
        alone = run(np.array([model]))
        assert len(together.loss(model)) == lengths[model]
        assert together.learning_rate[model] == pytest.approx(alone.learning_rate[0], rel=1e-9)
        np.testing.assert_allclose(together.loss(model), alone.loss(0), rtol=1e-9)
        np.testing.assert_allclose(together.accuracy(model), alone.accuracy(0), rtol=1e-9)
        for ours, theirs in zip(together.weights(model), alone.weights(0), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)
    coef, intercept = together.weights(1)
    assert intercept[2] == MASKED_LOGIT
    assert not coef[2].any()


@pytest.mark.parametrize("parameters", [{}, {"l1_ratio": 1, "C": 0.1}, {"label_smoothing": 0.2}])
def test_a_class_without_weight_is_masked(parameters):
    """Probability exactly zero; the rest is the fit without it, to 1e-8 in the full batch."""
    X, y = make_data()
    arguments = {"batch_size": len(X), "max_iter": 300, "tol": 0, "random_state": 0, **parameters}
    model = SoftmaxRegression(**arguments).fit(X, y, (y != 1).astype(float))
    kept = y != 1
    other = SoftmaxRegression(**{**arguments, "batch_size": kept.sum()}).fit(X[kept], y[kept])
    proba = model.predict_proba(X)
    assert not proba[:, 1].any()
    np.testing.assert_allclose(proba[:, [0, 2]], other.predict_proba(X), atol=1e-8)
    np.testing.assert_allclose(model.loss_curve_[-1], other.loss_curve_[-1], rtol=1e-8)
    assert set(model.predict(X)) == {0, 2}


@pytest.mark.parametrize("seed", range(4))
def test_the_default_fit_comes_close_on_labels_that_are_mostly_noise(seed):
    """Within 1 %: a stall at a high rate must not end training before the rate has decayed."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(3000, 1))
    y = np.argmax(2 * X @ rng.normal(size=(1, 2)) + rng.gumbel(size=(3000, 2)), axis=1)
    ours, best = (
        -fit.fit(X, y).predict_log_proba(X)[np.arange(3000), y].mean()
        for fit in (SoftmaxRegression(random_state=0), LogisticRegression())
    )
    assert ours < 1.01 * best


def test_the_default_fit_comes_close_to_logistic_regression():
    """Raw features, true minibatches, nothing tuned: within 1 % of the optimal objective."""
    X, y = make_data(n=2000, d=8, k=4)
    model = SoftmaxRegression(random_state=0).fit(X, y)
    reference = LogisticRegression(solver="newton-cholesky").fit(X, y)

    def objective(fit):
        log_p = fit.predict_log_proba(X)[np.arange(len(X)), y]
        return -log_p.mean() + np.sum(fit.coef_**2) / (2 * len(X))

    assert objective(model) < 1.01 * objective(reference)


def test_a_stack_of_equally_weighted_rows_is_as_good_as_one_with_weights_of_one():
    """A model that leaves early does not disturb the others."""
    X, y = make_data(n=90)

    def run(sample_weight):
        problem = Problem.pose(
            source(X, NumpyBackend(), np.float64),
            np.arange(len(X)),
            y,
            sample_weight=sample_weight,
            score_weight=None,
            masked=np.zeros((3, 3), dtype=bool),
            C=np.array([0.01, 1.0, 100.0]),
            l1_ratio=np.zeros(3),
            label_smoothing=np.zeros(3),
            fit_intercept=True,
        )
        problem = precondition(problem, Moments.of(problem))
        solver = SGD(
            learning_rate=np.full(3, 0.05),
            momentum=np.full(3, 0.9),
            retry=np.zeros(3, dtype=bool),
            schedule=("linear",) * 3,
            max_iter=(6,) * 3,
            batch_size=20,
            shuffle=True,
        )
        record = Record(problem)
        orders = solver.orders(problem, np.random.default_rng(0))
        epochs = solver.epochs(problem, State.start(problem), orders)
        train(epochs, [record, Leaves([6, 2, 6])], [None] * 3)
        return record

    with_ones, without = run(np.ones((len(X), 3))), run(None)
    for model, length in enumerate([6, 2, 6]):
        assert len(without.loss(model)) == length
        np.testing.assert_allclose(without.loss(model), with_ones.loss(model), rtol=1e-9)


def test_schedules_never_turn_negative():
    for name in ("constant", "linear", "cosine", "invscaling"):
        assert (step_rates(name, 7, 3, 6) >= 0).all()


def test_early_stopping_with_tol_0_runs_all_epochs_and_keeps_the_best():
    X, y = make_data(n=300)
    model = plain(learning_rate=0.3, batch_size=8, max_iter=30, early_stopping=True)
    model.fit(X[:200], y[:200], X_val=X[200:], y_val=y[200:])
    assert model.n_iter_ == 30
    assert model.score(X[200:], y[200:]) == pytest.approx(max(model.validation_scores_))

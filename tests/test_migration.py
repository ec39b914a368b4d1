"""The equivalences that docs/migration.rst claims, each against the real library."""

import numpy as np
import pytest
from conftest import make_data
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier

from skmax import BatchedGridSearchCV, SoftmaxRegression

X, Y = make_data(n=150)
X = (X - X.mean(axis=0)) / X.std(axis=0)
N = len(X)
# Plain steps, in the order of the rows.
STEPS = {
    "solver": "sgd",
    "preconditioner": None,
    "schedule": "constant",
    "shuffle": False,
    "tol": 0,
}


def centred(intercept):
    """Intercepts without what softmax takes no notice of: a constant for all classes."""
    return intercept - intercept.mean()


def assert_same_weights(model, coef, intercept, atol=1e-4):
    np.testing.assert_allclose(model.coef_, coef, rtol=0, atol=atol)
    if len(intercept) > 1:
        np.testing.assert_allclose(centred(model.intercept_), centred(intercept), rtol=0, atol=atol)
    else:
        np.testing.assert_allclose(model.intercept_, intercept, rtol=0, atol=atol)


# LogisticRegression


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"C": 0.01},
        {"C": np.inf},
        {"fit_intercept": False},
        {"class_weight": "balanced"},
        {"l1_ratio": 1.0, "C": 0.1},
        {"l1_ratio": 0.5, "C": 0.1},
    ],
    ids=str,
)
def test_logistic_regression(params, k):
    solver = {"solver": "saga", "max_iter": 10**5} if "l1_ratio" in params else {"max_iter": 10**4}
    expected = LogisticRegression(tol=1e-10, **solver, **params).fit(X, Y % k)
    model = SoftmaxRegression(tol=1e-9, **params).fit(X, Y % k)
    assert_same_weights(model, expected.coef_, expected.intercept_)


@pytest.mark.parametrize("k", [2, 3])
def test_logistic_regression_cv(k):
    expected = LogisticRegressionCV(
        Cs=10,
        l1_ratios=(0,),
        scoring="neg_log_loss",
        tol=1e-8,
        max_iter=10**4,
        use_legacy_attributes=False,
    ).fit(X, Y % k)
    search = BatchedGridSearchCV(
        SoftmaxRegression(tol=1e-9), {"C": np.logspace(-4, 4, 10)}, scoring="neg_log_loss"
    ).fit(X, Y % k)
    assert search.best_params_["C"] == pytest.approx(expected.C_)
    scores = [search.cv_results_[f"split{fold}_test_score"] for fold in range(5)]
    np.testing.assert_allclose(scores, expected.scores_[:, 0, :], atol=1e-4)
    assert_same_weights(search.best_estimator_, expected.coef_, expected.intercept_)


# SGDClassifier


@pytest.mark.parametrize("alpha", [0.0001, 0.01])
def test_sgd_classifier_takes_the_same_steps(alpha):
    y = Y % 2
    expected = SGDClassifier(
        loss="log_loss",
        alpha=alpha,
        learning_rate="constant",
        eta0=0.05,
        shuffle=False,
        tol=None,
        max_iter=4,
    ).fit(X, y)
    model = SoftmaxRegression(
        C=1 / (alpha * N), batch_size=1, momentum=0, learning_rate=0.05 / 2, max_iter=4, **STEPS
    ).fit(X, y)
    assert_same_weights(model, expected.coef_, expected.intercept_, atol=1e-10)


def test_sgd_classifier_goes_to_the_same_optimum_one_versus_rest():
    alpha = 0.1
    expected = SGDClassifier(
        loss="log_loss",
        alpha=alpha,
        learning_rate="invscaling",
        eta0=0.5,
        power_t=0.75,
        tol=None,
        max_iter=2000,
        random_state=0,
    ).fit(X, Y)
    model = OneVsRestClassifier(SoftmaxRegression(C=1 / (alpha * N), tol=1e-9)).fit(X, Y)
    coef = np.concatenate([binary.coef_ for binary in model.estimators_])
    np.testing.assert_allclose(coef, expected.coef_, rtol=0, atol=2e-3)


# MLPClassifier


@pytest.mark.parametrize("k", [2, 3])
def test_mlp_classifier_without_hidden_layers(k):
    alpha = 0.1
    expected = MLPClassifier(
        (), solver="lbfgs", alpha=alpha, tol=1e-14, max_iter=10**4, max_fun=10**5, random_state=0
    ).fit(X, Y % k)
    model = SoftmaxRegression(C=1 / alpha, tol=1e-9).fit(X, Y % k)
    assert_same_weights(model, expected.coefs_[0].T, expected.intercepts_[0], atol=5e-4)


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_mlp_classifier_takes_the_same_steps(momentum):
    alpha, batch = 0.1, 50
    expected = MLPClassifier(
        (),
        solver="sgd",
        alpha=alpha,
        batch_size=batch,
        learning_rate_init=0.1,
        momentum=momentum,
        nesterovs_momentum=False,
        shuffle=False,
        random_state=0,
    ).partial_fit(X[:batch], Y[:batch], classes=range(3))
    for weights in (*expected.coefs_, *expected.intercepts_, *expected._optimizer.velocities):
        weights[:] = 0  # a random start, otherwise
    for first in range(0, N, batch):
        expected.partial_fit(X[first : first + batch], Y[first : first + batch])
    model = SoftmaxRegression(
        C=batch / (alpha * N),
        batch_size=batch,
        momentum=momentum,
        learning_rate=0.1,
        max_iter=1,
        **STEPS,
    ).fit(X, Y)
    assert_same_weights(model, expected.coefs_[0].T, expected.intercepts_[0], atol=1e-10)


# PyTorch


def train_in_torch(X, y, k, weight_decay, label_smoothing=0.0, weight=None, batch=32, epochs=3):
    """The weights of a linear layer, from zero, by SGD at a rate of 0.1 with momentum 0.9."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(X.shape[1], k, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": weight_decay}, {"params": [layer.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    loss = torch.nn.CrossEntropyLoss(weight, label_smoothing=label_smoothing)
    X, y = torch.from_numpy(X), torch.from_numpy(y)
    for _ in range(epochs):
        for first in range(0, len(X), batch):
            rows = slice(first, first + batch)
            optimizer.zero_grad()
            loss(layer(X[rows]), y[rows]).backward()
            optimizer.step()
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


@pytest.mark.parametrize("label_smoothing", [0, 0.1])
@pytest.mark.parametrize("targets", ["labels", "probabilities"])
@pytest.mark.parametrize("C", [0.5, np.inf])
@pytest.mark.parametrize("k", [2, 3])
def test_torch_takes_the_same_steps(k, C, targets, label_smoothing):
    y = Y % k
    if targets == "probabilities":
        y = np.random.default_rng(1).dirichlet(np.ones(k), size=N)
    penalised_rows = 2 if k == 2 else 1
    coef, intercept = train_in_torch(X, y, k, penalised_rows / (C * N), label_smoothing)
    if k == 2:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    model = SoftmaxRegression(
        C=C,
        batch_size=32,
        momentum=0.9,
        learning_rate=0.1,
        max_iter=3,
        label_smoothing=label_smoothing,
        **STEPS,
    ).fit(X, y)
    assert_same_weights(model, coef, intercept, atol=1e-12)


def test_torch_with_one_output_takes_the_same_steps_at_twice_the_rate():
    torch = pytest.importorskip("torch")
    decay, y = 0.02, Y % 2
    layer = torch.nn.Linear(X.shape[1], 1, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9)
    for _ in range(3):
        for first in range(0, N, 32):
            rows = slice(first, first + 32)
            optimizer.zero_grad()
            logits, labels = layer(torch.tensor(X[rows]))[:, 0], torch.tensor(y[rows] * 1.0)
            torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
            optimizer.step()
    model = SoftmaxRegression(
        C=1 / (decay * N), batch_size=32, learning_rate=0.1, max_iter=3, **STEPS
    ).fit(X, y)
    assert_same_weights(
        model, layer.weight.detach().numpy(), layer.bias.detach().numpy(), atol=1e-12
    )


def test_torch_takes_the_same_steps_with_class_weights_in_full_batches():
    weight, C = [1.0, 2.0, 5.0], 0.5
    total = np.sum(np.asarray(weight)[Y])
    coef, intercept = train_in_torch(X, Y, 3, 1 / (C * total), weight=weight, batch=N)
    model = SoftmaxRegression(
        C=C,
        class_weight=dict(enumerate(weight)),
        batch_size=N,
        learning_rate=0.1,
        max_iter=3,
        **STEPS,
    ).fit(X, Y)
    assert_same_weights(model, coef, intercept, atol=1e-12)


# statsmodels


def test_mnlogit_starts_where_skmax_ends():
    statsmodels = pytest.importorskip("statsmodels.api")
    exog = statsmodels.add_constant(X)
    model = SoftmaxRegression(C=np.inf, tol=1e-10).fit(X, Y)
    weights = np.column_stack([model.intercept_, model.coef_])
    start = (weights - weights[0])[1:].ravel()
    result = statsmodels.MNLogit(Y, exog).fit(start_params=start, disp=0)
    expected = statsmodels.MNLogit(Y, exog).fit(disp=0)
    assert result.mle_retvals["iterations"] <= 1 < expected.mle_retvals["iterations"]
    np.testing.assert_allclose(result.bse, expected.bse, rtol=1e-4)


def test_mnlogit_has_the_coefficients_less_those_of_the_first_class():
    statsmodels = pytest.importorskip("statsmodels.api")
    data = statsmodels.datasets.anes96.load_pandas()
    X, y = data.exog, data.endog.astype(int)
    expected = statsmodels.MNLogit(y, statsmodels.add_constant(X)).fit(disp=0)
    model = SoftmaxRegression(C=np.inf, tol=1e-10).fit(X, y)
    weights = np.column_stack([model.intercept_, model.coef_])
    np.testing.assert_allclose((weights - weights[0])[1:], expected.params.T, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(model.predict_proba(X), expected.predict(), atol=1e-8)
    assert -model.loss_curve_[-1] * len(y) == pytest.approx(expected.llf, rel=1e-8)


def test_logit_has_the_coefficients_of_two_classes():
    statsmodels = pytest.importorskip("statsmodels.api")
    expected = statsmodels.Logit(Y % 2, statsmodels.add_constant(X)).fit(disp=0)
    model = SoftmaxRegression(C=np.inf, tol=1e-10).fit(X, Y % 2)
    np.testing.assert_allclose(
        np.append(model.intercept_, model.coef_), expected.params, rtol=0, atol=1e-6
    )


# dask-ml, whose penalty takes in the intercept


def test_a_penalised_intercept_is_a_column_of_ones():
    """The objective of dask-ml, minimised by SciPy."""
    from scipy.optimize import minimize

    y, C = Y % 2, 0.05
    ones = np.column_stack([X, np.ones(N)])

    def objective(beta):
        logits = ones @ beta
        return np.sum(np.logaddexp(0, logits) - y * logits) + beta @ beta / (2 * C)

    expected = minimize(objective, np.zeros(5), tol=1e-10).x
    model = SoftmaxRegression(C=C, fit_intercept=False, tol=1e-9).fit(ones, y)
    np.testing.assert_allclose(model.coef_[0], expected, rtol=0, atol=1e-4)

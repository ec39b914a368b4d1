"""The peers of skmax, the tasks they share with it, and how good a result is.

A task is a function that returns the contestants by name, skmax first. Each has settings, the
loosest first: one, or several where the optimum is the task. Peers that are not installed
(scikit-learn-intelex, skglm, PyTorch) do not take part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from data import KINDS, SEED
from scipy import sparse
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches

from skmax import BatchedGridSearchCV, SoftmaxRegression

Record = dict[str, Any]
Rungs = list[Any]

MOST_UNKNOWNS = 3000  # of newton-cholesky, whose Hessian has the square of that
CS = np.logspace(-3, 3, 8)
# The settings of LogisticRegression on the way to the optimum.
LADDER = [{}, {"max_iter": 1000}, {"max_iter": 10_000, "tol": 1e-6}]


class Data:
    """A kind of data, and what decides who can take part."""

    def __init__(self, kind: str, threads: int) -> None:
        self.X, self.y = KINDS[kind]()
        self.n_jobs = None if threads == 1 else -1
        self.n, self.d = self.X.shape
        self.k = len(np.unique(self.y))
        self.is_sparse = sparse.issparse(self.X)
        self.unknowns = (self.d + 1) * (self.k - (self.k == 2))

    @cached_property
    def fitted(self) -> dict[str, Rungs]:
        """Models to predict with, fit to a row per class and the first 300."""
        rows = np.unique(self.y, return_index=True)[1]
        rows = np.union1d(rows, np.arange(min(300, self.n)))
        few = self.X[rows], self.y[rows]
        model = SoftmaxRegression(solver="sgd", max_iter=1, learning_rate=0.1).fit(*few)
        models = {"skmax": model, "LogisticRegression": model.to_sklearn()}
        models["MLPClassifier"] = MLPClassifier((), max_iter=1).fit(*few)
        if installed("sklearnex"):
            models["intelex"] = intelex()(max_iter=1).fit(*few)
            models["intelex"].coef_ = model.coef_
            models["intelex"].intercept_ = model.intercept_
        return {name: [model] for name, model in models.items()}


class Scaled:
    """Fits a model to X scaled as people would; coefficients are those of X as given.

    Dense X is standardised if its features differ in scale, else multiplied by a number, so that
    the mean squared norm of the rows is 100, for which a rate of 0.1 is right.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, X: Any, y: np.ndarray) -> Scaled:
        """Scale, fit, and undo the first in the coefficients."""
        mean, scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if not sparse.issparse(X):
            some = X[:1000].astype(np.float64)
            spread = some.std(axis=0)
            if spread.max() > 10 * np.median(spread[spread > 0]):
                scaler = StandardScaler().fit(X)
                mean, scale = scaler.mean_, scaler.scale_
                X = scaler.transform(X)
            else:
                scale = scale * np.sqrt(np.sum(some**2) / len(some)) / 10
                X = X / scale.astype(np.result_type(X, np.float32))
        coef, intercept = weights(self.model.fit(X, y))
        self.coef_ = coef / scale
        self.intercept_ = intercept - self.coef_ @ mean
        return self


class TorchLoop:
    """A linear layer, SGD with momentum and a rate that falls to 0, tensors in memory."""

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs = n_epochs

    def fit(self, X: np.ndarray, y: np.ndarray) -> TorchLoop:
        """Train; two classes have one logit."""
        import torch

        torch.manual_seed(SEED)
        k = int(y.max()) + 1
        layer = torch.nn.Linear(X.shape[1], 1 if k == 2 else k)
        groups = [{"params": layer.weight, "weight_decay": 1 / len(y)}, {"params": layer.bias}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        n_steps = self.n_epochs * -(-len(y) // 256)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, n_steps)
        features = torch.from_numpy(X.astype(np.float32, copy=False))
        labels = torch.from_numpy(y.astype(np.float32 if k == 2 else np.int64))
        loss = torch.nn.functional.cross_entropy
        if k == 2:
            labels, loss = labels[:, None], torch.nn.functional.binary_cross_entropy_with_logits
        for _ in range(self.n_epochs):
            for rows in torch.randperm(len(y)).split(256):
                optimizer.zero_grad()
                loss(layer(features[rows]), labels[rows]).backward()
                optimizer.step()
                schedule.step()
        self.coef_, self.intercept_ = (p.detach().numpy() for p in (layer.weight, layer.bias))
        return self


def mlp(n: int, n_epochs: int) -> MLPClassifier:
    """Softmax regression by minibatches; the penalty, which it divides by the batch, is C=1's."""
    return MLPClassifier(
        (),
        solver="sgd",
        alpha=200 / n,
        learning_rate_init=0.1,
        max_iter=n_epochs,
        random_state=SEED,
    )


def installed(module: str) -> bool:
    return find_spec(module) is not None


def intelex() -> Callable[..., Any]:
    from sklearnex.linear_model import LogisticRegression as Intelex

    return Intelex


def minibatch(data: Data, epochs: list[int], **penalty: Any) -> dict[str, Rungs]:
    """Peers that learn from minibatches; SGDClassifier is one-vs-rest beyond two classes."""
    alpha = 1 / data.n
    sgd = partial(SGDClassifier, "log_loss", alpha=alpha, tol=None, random_state=SEED, **penalty)
    peers: dict[str, Rungs] = {"SGDClassifier": [Scaled(sgd(max_iter=number)) for number in epochs]}
    if not penalty:
        peers["MLPClassifier"] = [Scaled(mlp(data.n, number)) for number in epochs]
    if not penalty and not data.is_sparse and installed("torch"):
        peers["PyTorch"] = [Scaled(TorchLoop(number)) for number in epochs]
    return peers


def logistic(data: Data, settings: list[Record]) -> dict[str, Rungs]:
    """LogisticRegression with each solver that applies, scikit-learn-intelex's among them."""
    solvers = ["lbfgs", "newton-cg", "sag", "saga"]
    solvers += ["newton-cholesky"] * (data.unknowns <= MOST_UNKNOWNS)
    solvers += ["liblinear"] * (data.k == 2)
    peers = {s: [LogisticRegression(solver=s, **setting) for setting in settings] for s in solvers}
    if installed("sklearnex"):
        peers["intelex"] = [intelex()(**setting) for setting in settings]
    return peers


# The tasks


def fit(data: Data) -> dict[str, Rungs]:
    """`fit` with the defaults."""
    return {"skmax": [SoftmaxRegression()], **logistic(data, [{}]), **minibatch(data, [10])}


def optimum(data: Data) -> dict[str, Rungs]:
    """`fit` until F is within 0.1 % of the optimum."""
    skmax = [SoftmaxRegression(tol=1e-3), SoftmaxRegression(solver="lbfgs", tol=1e-3)]
    reference = {"reference": [SoftmaxRegression(solver="lbfgs", tol=1e-5)]}
    return {"skmax": skmax, **reference, **logistic(data, LADDER), **minibatch(data, [10, 100])}


def l1(data: Data, l1_ratio: float = 1.0) -> dict[str, Rungs]:
    """The same with `l1_ratio=1`; skmax with its defaults."""
    peers = {"skmax": [SoftmaxRegression(l1_ratio=l1_ratio)]}
    for solver in ["saga"] + ["liblinear"] * (data.k == 2 and l1_ratio == 1):
        peers[solver] = [
            LogisticRegression(solver=solver, l1_ratio=l1_ratio, **rung) for rung in LADDER
        ]
    if data.k == 2 and installed("skglm"):
        from skglm import SparseLogisticRegression

        peers["skglm"] = [
            SparseLogisticRegression(1 / data.n, l1_ratio, tol=tol) for tol in (1e-4, 1e-6)
        ]
    if data.k == 2:
        peers |= minibatch(data, [10, 100], penalty="elasticnet", l1_ratio=l1_ratio)
    return peers


def elastic_net(data: Data) -> dict[str, Rungs]:
    """The same with `l1_ratio=0.5`."""
    return l1(data, 0.5)


def sweep(data: Data) -> dict[str, Rungs]:
    """A search over 8 values of C from 1e-3 to 1e3 by 3 folds; peers use all cores where asked."""
    grid = {"C": CS}
    peers = {"skmax": BatchedGridSearchCV(SoftmaxRegression(), grid, cv=3)}
    peers["GridSearchCV(skmax), 2 jobs"] = GridSearchCV(SoftmaxRegression(), grid, cv=3, n_jobs=2)
    peers["GridSearchCV"] = GridSearchCV(LogisticRegression(), grid, cv=3, n_jobs=data.n_jobs)
    peers["LogisticRegressionCV"] = LogisticRegressionCV(
        Cs=CS,
        cv=3,
        l1_ratios=(0.0,),
        use_legacy_attributes=False,
        scoring="accuracy",
        n_jobs=data.n_jobs,
    )
    if data.unknowns <= MOST_UNKNOWNS:
        newton = LogisticRegression(solver="newton-cholesky")
        peers["GridSearchCV, newton-cholesky"] = GridSearchCV(
            newton, grid, cv=3, n_jobs=data.n_jobs
        )
    if installed("sklearnex"):
        peers["GridSearchCV, intelex"] = GridSearchCV(intelex()(), grid, cv=3, n_jobs=data.n_jobs)
    return {name: [model] for name, model in peers.items()}


def predict(data: Data) -> dict[str, Rungs]:
    """`predict_proba` on all rows; coefficients are the same, but for MLPClassifier."""
    return data.fitted


def one_row(data: Data) -> dict[str, Rungs]:
    """The same on one row, the mean of a hundred calls."""
    return predict(data)


def memory(data: Data) -> dict[str, Rungs]:
    """Peak memory of a default fit, beyond the data, at least 10 MB; on one thread."""
    chosen = ("skmax", "lbfgs", "newton-cholesky", "saga", "MLPClassifier")
    return {name: rungs for name, rungs in fit(data).items() if name in chosen}


TASKS: dict[str, Callable[[Data], dict[str, Rungs]]] = {
    "fit": fit,
    "optimum": optimum,
    "l1": l1,
    "elastic net": elastic_net,
    "sweep": sweep,
    "predict": predict,
    "one row": one_row,
    "memory": memory,
}
TO_THE_OPTIMUM = {"optimum", "l1", "elastic net"}
L1_RATIOS = {"l1": 1.0, "elastic net": 0.5}


# Judging


def weights(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (classes, features) or (1, features), and intercepts."""
    if isinstance(model, MLPClassifier):
        return model.coefs_[0].T, model.intercepts_[0]
    return np.asarray(model.coef_), np.reshape(model.intercept_, -1)


def objective(model: Any, data: Data, l1_ratio: float = 0.0) -> float:
    """F at C=1: the mean cross-entropy, and the penalty divided by the number of rows."""
    coef, intercept = (array.astype(np.float64) for array in weights(model))
    penalty = (1 - l1_ratio) / 2 * np.sum(coef**2) + l1_ratio * np.abs(coef).sum()
    if len(coef) == 1:
        coef, intercept = np.vstack([0 * coef, coef]), np.append(0, intercept)
    total = 0.0
    for rows in gen_batches(data.n, 5000):
        logits = data.X[rows].astype(np.float64) @ coef.T + intercept
        total += np.sum(logsumexp(logits, axis=1) - logits[np.arange(len(logits)), data.y[rows]])
    return float((total + penalty) / data.n)


def judged(task: str, model: Any, data: Data) -> Record:
    """What is known of a fit: F, or the accuracies of a search."""
    if task == "sweep":
        if isinstance(model, LogisticRegressionCV):
            scores = np.mean(model.scores_, axis=0).ravel()
        else:
            scores = model.cv_results_["mean_test_score"]
        return {"loss": 1 - max(scores), "scores": list(scores)}
    if task in ("predict", "one row"):
        return {"loss": 0.0}
    return {"loss": objective(model, data, L1_RATIOS.get(task, 0.0))}

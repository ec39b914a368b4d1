"""How far from the optimum SoftmaxRegression's defaults end, and how long they take.

    python benchmarks/defaults.py

One line per data set: the least value F* of LogisticRegression's objective at C=1, per row, that
any of the three reaches; how far above it newton-cholesky (to 1e-8), the defaults of
SoftmaxRegression and those of LogisticRegression end, as a share of F*; and seconds, in one run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from time import perf_counter

import numpy as np
from scipy import sparse
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    load_wine,
    make_classification,
)
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from skmax import SoftmaxRegression


def data_sets() -> Iterator[tuple[str, object, np.ndarray]]:
    """Yield (name, X, y): what scikit-learn brings along, and data with a difficulty each."""
    for load in (load_iris, load_wine, load_breast_cancer, load_digits):
        yield load.__name__[5:], *load(return_X_y=True)
    for seed, (n, d, k) in enumerate(
        [(500, 20, 2), (5000, 50, 5), (20000, 30, 10), (3000, 300, 4)]
    ):
        X, y = make_classification(
            n, d, n_informative=d // 2, n_classes=k, n_clusters_per_class=1, random_state=seed
        )
        yield f"blobs {n}x{d}, {k} classes", X, y
        rng = np.random.default_rng(seed)
        X = X * 10 ** rng.uniform(-4, 4, d) + 10 ** rng.uniform(-3, 4, d)
        yield "  scales from 1e-4 to 1e4, far from 0", X, y
    rng = np.random.default_rng(1)
    Z = rng.normal(size=(5000, 40))
    y = np.argmax(Z @ rng.normal(size=(40, 4)) + rng.gumbel(size=(5000, 4)), axis=1)
    yield "lognormal 5000x40, 4 classes", np.exp(2 * Z), y
    X = Z[:, :10] @ rng.normal(size=(10, 100)) + 0.01 * rng.normal(size=(5000, 100))
    y = np.argmax(X[:, :10] @ rng.normal(size=(10, 6)) + rng.gumbel(size=(5000, 6)), axis=1)
    yield "correlated 5000x100, 6 classes", X, y
    yield "imbalanced 5000x40, 1 percent", Z, (Z @ rng.normal(size=40) > 14).astype(int)
    X = sparse.random_array((5000, 300), density=0.05, rng=0, format="csr")
    y = np.argmax(X @ rng.normal(size=(300, 5)) * 3 + rng.gumbel(size=(5000, 5)), axis=1)
    yield "sparse 5000x300, 5 classes", X, y


def objective(model: LogisticRegression, X: object, y: np.ndarray) -> float:
    """LogisticRegression's objective at C=1, divided by the number of rows."""
    penalty = np.sum(model.coef_.astype(np.float64) ** 2) / 2 / len(y)
    return log_loss(y, model.predict_proba(X)) + penalty


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    models = {
        "newton": LogisticRegression(solver="newton-cholesky", tol=1e-8, max_iter=1000),
        "skmax": SoftmaxRegression(random_state=0),
        "LogReg": LogisticRegression(),
    }
    print(f"{'':40}{'F*':>9}" + "".join(f"{name:>9}{'s':>7}" for name in models))
    for name, X, y in data_sets():
        ends, seconds = [], []
        for model in models.values():
            dense = X.toarray() if model is models["newton"] and sparse.issparse(X) else X
            start = perf_counter()
            model.fit(dense, y)
            seconds.append(perf_counter() - start)
            ends.append(objective(model, X, y))
        best = min(ends)
        pairs = zip(ends, seconds, strict=True)
        line = "".join(f"{end / best - 1:9.4f}{second:7.2f}" for end, second in pairs)
        print(f"{name:40}{best:9.4f}{line}", flush=True)


if __name__ == "__main__":
    main()

"""Data of every kind that people have: real where a package brings them, else made as told.

``KINDS`` maps a name to a function that returns X and y. Real are iris, wine, breast_cancer and
digits (scikit-learn's) and Fashion-MNIST (Debian's package, or downloaded). The labels of what is
made are noisy, so that no kind is separable by more rows, but for what says that it is clear.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse
from sklearn import datasets
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import StandardScaler

from skmax.datasets import fetch_fashion_mnist

SEED = 0
Kind = Callable[[], tuple[Any, np.ndarray]]


def bundled(name: str, *, standardised: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """What scikit-learn brings along, as it comes or standardised."""
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return (StandardScaler().fit_transform(X) if standardised else X), y


def fashion(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST: uint8 as it comes, float32 in [0, 1]."""
    X, y = fetch_fashion_mnist(return_X_y=True)
    return (X if dtype == "uint8" else X.astype(np.float32) / 255), y.astype(np.int64)


def labels(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A draw from the softmax of each row, with every class in it at least thrice."""
    y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    n, k = logits.shape
    y[rng.choice(n, 3 * k, replace=False)] = np.repeat(np.arange(k), 3)
    return y


def table(n: int, d: int, k: int, columns: str = "standardised") -> tuple[np.ndarray, np.ndarray]:
    """A softmax model's draws from features that are standardised, correlated, raw or hostile.

    standardised: independent and normal. correlated: mixed, with standard deviations along the
    principal axes that fall from 1 to 1/1000. raw, as tables come: a third each normal with a mean
    and a scale of their own (of 0.1 to 1000), lognormal, and small counts. hostile: scales from
    1e-4 to 1e4, and means up to 1e4 from zero. Labels come from the features before all that.
    """
    rng = np.random.default_rng(SEED)
    Z = rng.standard_normal((n, d))
    y = labels(Z @ rng.normal(size=(d, k)) * (2 / np.sqrt(d)), rng)
    if columns == "correlated":
        axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
        return Z @ (np.logspace(0, -3, d)[:, None] * axes) * np.sqrt(d), y
    if columns == "hostile":
        return Z * 10 ** rng.uniform(-4, 4, d) + 10 ** rng.uniform(-3, 4, d), y
    if columns == "raw":
        third = d // 3
        scale = 10 ** rng.uniform(-1, 3, third)
        Z[:, :third] = Z[:, :third] * scale + 3 * scale * rng.normal(size=third)
        Z[:, third : 2 * third] = np.exp(Z[:, third : 2 * third])
        Z[:, 2 * third :] = rng.poisson(np.exp(Z[:, 2 * third :]))
    return Z, y


def embeddings(
    n: int, d: int, k: int, *, clear: bool = False, standardised: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors, float32, as encoders of texts and images give, or the same standardised.

    A common mean, a centre per class, and noise, the last two with variances along hidden axes that
    decay like 1 / (10 + i), as the spectra of real ones do. Class sizes fall like 1 / (20 + j).
    A twentieth of the labels is wrong. Where all is clear, none is, and centres are further apart.
    """
    rng = np.random.default_rng(SEED)
    size = 1 / (20.0 + np.arange(k))
    y = rng.choice(k, n, p=size / size.sum())
    y[: 3 * k] = np.repeat(np.arange(k), 3)
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32)
    spread = np.sqrt(1 / (10.0 + np.arange(d))).astype(np.float32)[:, None] * axes
    centres = rng.standard_normal((k, d), dtype=np.float32)
    apart = np.float32(12 if clear else 4) / np.sqrt(np.float32(d))
    Z = apart * centres[y] + rng.standard_normal((n, d), dtype=np.float32)
    X = Z @ spread + axes.mean(axis=0)
    if not clear:
        y = np.where(rng.random(n) < 0.05, rng.permutation(y), y)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return (StandardScaler().fit_transform(X) if standardised else X), y


def zipf(rng: np.random.Generator, size: int, n: int) -> np.ndarray:
    """Draws from 0 to n - 1 with shares like 1 / (10 + rank)."""
    share = np.cumsum(1 / (np.arange(n) + 10.0))
    return np.searchsorted(share[:-1] / share[-1], rng.random(size))


def text(n: int, d: int, k: int, length: int) -> tuple[sparse.csr_array, np.ndarray]:
    """tf-idf of Zipf-distributed words, of which a quarter comes from the topic of the class.

    A topic gives the same shares to words of its own; lengths are Poisson; a tenth of the labels is
    wrong. Class sizes are equal.
    """
    rng = np.random.default_rng(SEED)
    y = rng.permutation(np.arange(n) % k)
    document = np.repeat(np.arange(n), rng.poisson(length, n) + 1)
    word = zipf(rng, len(document), d)
    # 7919 is prime, and thus a topic an order of all words, if it does not divide d.
    topic = (rng.integers(d, size=k)[y[document]] + 7919 * word) % d
    word = np.where(rng.random(len(word)) < 0.25, topic, word)
    counts = sparse.csr_array((np.ones(len(word)), (document, word)), shape=(n, d))
    y = np.where(rng.random(n) < 0.1, rng.integers(k, size=n), y)
    X = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    X.indices, X.indptr = X.indices.astype(np.int32), X.indptr.astype(np.int32)  # as liblinear asks
    return X, y


def clicks(n: int, d: int, fields: int = 12) -> tuple[sparse.csr_array, np.ndarray]:
    """One-hot rows with a category per field, Zipf-distributed; about 5 % of the rows are clicks.

    The fields have 4 categories up to half of all d, growing by a constant factor.
    """
    rng = np.random.default_rng(SEED)
    sizes = np.geomspace(4, d / 2, fields).astype(int)
    sizes[-1] += d - sizes.sum()
    starts = np.cumsum(sizes) - sizes
    columns = np.column_stack([s + zipf(rng, n, m) for s, m in zip(starts, sizes, strict=True)])
    indptr = np.arange(0, n * fields + 1, fields, dtype=np.int32)
    X = sparse.csr_array((np.ones(n * fields), columns.ravel().astype(np.int32), indptr), (n, d))
    logits = X @ rng.normal(0, 0.4, d) - 3.2
    return X, (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(int)


SIZES = {"1k": (1000, 20), "10k": (10_000, 100), "100k": (100_000, 50), "1M": (1_000_000, 20)}


def _tables(columns: str, *which: tuple[str, int]) -> dict[str, Kind]:
    """Tables by name: the columns, the size and the number of classes."""
    return {f"{columns} {s} {k}": partial(table, *SIZES[s], k, columns) for s, k in which}


KINDS: dict[str, Kind] = {
    **{name: partial(bundled, name) for name in ("iris", "wine", "breast_cancer", "digits")},
    **{
        f"{name} std": partial(bundled, name, standardised=True)
        for name in ("iris", "wine", "breast_cancer", "digits")
    },
    **_tables("standardised", *((size, k) for size in SIZES for k in (2, 5, 20))),
    **_tables("raw", ("1k", 2), ("1k", 5), ("10k", 2), ("10k", 5), ("100k", 5)),
    **_tables("correlated", ("1k", 5), ("10k", 2), ("10k", 20), ("100k", 5)),
    **_tables("hostile", ("1k", 2), ("10k", 5), ("100k", 2)),
    "gaussians 10k x 1000 10": partial(table, 10_000, 1000, 10),
    "500 x 200 2": partial(table, 500, 200, 2),
    "1k x 100 3": partial(table, 1000, 100, 3),
    "wide 200 x 2000 2": partial(table, 200, 2000, 2),
    "wide 100 x 10k 3": partial(table, 100, 10_000, 3),
    "fashion float32": partial(fashion, "float32"),
    "fashion uint8": partial(fashion, "uint8"),
    "embeddings 20k x 384 50": partial(embeddings, 20_000, 384, 50),
    "embeddings 20k x 384 400": partial(embeddings, 20_000, 384, 400),
    "clear 20k x 384 50": partial(embeddings, 20_000, 384, 50, clear=True),
    "clear std 20k x 384 50": partial(embeddings, 20_000, 384, 50, clear=True, standardised=True),
    "embeddings 50k x 768 100": partial(embeddings, 50_000, 768, 100),
    "embeddings 50k x 768 1000": partial(embeddings, 50_000, 768, 1000),
    "text 15 x 15k 2": partial(text, 32_000, 15_000, 2, 15),
    "text 15 x 15k 20": partial(text, 32_000, 15_000, 20, 15),
    "text 15 x 15k 400": partial(text, 32_000, 15_000, 400, 15),
    "text 15 x 200k 20": partial(text, 32_000, 200_000, 20, 15),
    "text 100 x 200k 2": partial(text, 20_000, 200_000, 2, 100),
    "text 100 x 200k 20": partial(text, 20_000, 200_000, 20, 100),
    "text 100 x 15k 400": partial(text, 20_000, 15_000, 400, 100),
    "clicks 1M x 100k 2": partial(clicks, 1_000_000, 100_000),
}

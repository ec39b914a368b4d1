"""The objective of softmax regression: its value, its gradient, and its proximal operator.

Shapes are those of `skmax.problem`; `b` is the number of rows in a batch.

References
----------
C. M. Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.4: softmax regression and
its gradient. P. Blanchard, D. J. Higham and N. J. Higham, Accurately computing the log-sum-exp and
softmax functions, IMA Journal of Numerical Analysis 41(4), 2021: why the maximum is taken out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import entr
from sklearn.utils.extmath import safe_sparse_dot

from skmax import kernels
from skmax.backends import Array
from skmax.data import Rows
from skmax.problem import MASKED_LOGIT, BatchSums, Problem, State

# The rows that logits are made of at once, if X and they do not take more bytes: 100 rows of 5,000
# features and 1,000 classes, 26 at a time, took twice as long.
_ROWS, _BYTES = 128, 1 << 25


def log_softmax(xp: Any, logits: Array) -> Array:
    """Logarithms of the softmax over the last axis, finite wherever the logits are."""
    logits = _below_top(xp, logits)
    return logits - xp.log(xp.sum(xp.exp(logits), axis=-1, keepdims=True))


def softmax(xp: Any, logits: Array) -> Array:
    """The softmax over the last axis."""
    exponentials = xp.exp(_below_top(xp, logits))
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)


def _below_top(xp: Any, logits: Array) -> Array:
    """The logits less the largest over the last axis."""
    top = xp.max(logits, axis=-1, keepdims=True)
    return xp.where(logits == top, 0.0, logits - top)  # inf - inf is no number


def logits_of(xp: Any, X: Array, coef: Array, intercept: Array) -> Array:
    """Logits of shape (b, m, k) of rows X."""
    m, k, d = coef.shape
    # Transposed, a namespace that keeps memory in order reduces over classes vectorised.
    logits = (xp.reshape(coef, (m * k, d)) @ X.T).T
    return xp.reshape(logits, (-1, m, k)) + intercept


def pullback(xp: Any, X: Array, residual: Array) -> tuple[Array, Array]:
    """Derivatives by weights, (m, k, d) and (m, k), from those by the logits of rows X, (b, m, k).

    This is the adjoint of `logits_of`.
    """
    b, m, k = residual.shape
    by_coef = xp.reshape(residual, (b, m * k)).T @ X
    return xp.reshape(by_coef, (m, k, X.shape[1])), xp.sum(residual, axis=0)


def logit_chunks(data: Rows, coef: Any, intercept: Array, order: np.ndarray) -> Iterator[Array]:
    """Logits of rows, of shape (b, k), a piece at a time.

    `coef` of shape (k, d) may be a SciPy sparse matrix, `intercept` is of shape (k,). From a
    single row of weights come two columns, of which the first is zero.
    """
    xp, k = data.backend.xp, coef.shape[0]
    if data.is_sparse and not sparse.issparse(coef):  # as products with sparse rows want them
        coef = xp.ascontiguousarray(coef.T).T
    size = data.rows_per_piece(k)
    if not data.is_sparse:  # each piece reads all weights
        size = max(size, min(_ROWS, _BYTES // (8 * max(k, data.n_features))))
    for _, X in data.pieces(order, size):
        if sparse.issparse(coef):
            logits = safe_sparse_dot(X, coef.T, dense_output=True)
        elif hasattr(X, "toarray") or X.shape[0] <= max(k, _ROWS):
            logits = X @ coef.T
        else:  # transposed as in `logits_of`
            logits = (coef @ X.T).T
        logits = logits + intercept
        yield xp.concat([xp.zeros_like(logits), logits], axis=-1) if k == 1 else logits


def likeliest(xp: Any, logits: Array) -> Array:
    """The index of the largest over the last axis: of equal ones, the first."""
    return xp.argmax(logits, axis=-1)


def margins(_: Any, logits: Array) -> Array:
    """The logits themselves, or of two classes the second's, the first's being zero."""
    return logits[..., 1] if logits.shape[-1] == 2 else logits


# What the methods of an estimator make of logits.
METHODS = {
    "decision_function": margins,
    "predict": likeliest,
    "predict_proba": softmax,
    "predict_log_proba": log_softmax,
}


def predictions(
    data: Rows, coef: Any, intercept: Array, method: str, order: np.ndarray | None = None
) -> tuple[Array, bool]:
    """What a method makes of the logits of rows, a bounded number of rows at a time.

    Parameters
    ----------
    data : Rows
        Where the rows come from.
    coef : array of shape (k, d)
        Weights, or a SciPy sparse matrix of them; a single row of two classes.
    intercept : array of shape (k,)
        Intercepts of a row that equals the data's shift.
    method : str
        One of `METHODS`.
    order : ndarray of shape (n,), host, or None
        Indices of the rows; None: all.

    Returns
    -------
    values : array of shape (n,) or (n, k)
        What the method says of each row.
    finite : bool
        Whether the largest logit of every row is finite: if so, all values of X are.
    """
    run, backend = kernels.predictions(data, coef), data.backend
    quiet = np.errstate(over="ignore", invalid="ignore")  # X may not be finite, nor looked at yet
    # On the CPU, to limit the threads of BLAS takes as long as to predict one row, and a product
    # that nothing follows is faster with all of them.
    with quiet, backend.computing() if backend.is_wide else nullcontext():
        return (run or predicted)(data, coef, intercept, method, order)


def predicted(
    data: Rows, coef: Any, intercept: Array, method: str, order: np.ndarray | None = None
) -> tuple[Array, bool]:
    """See `predictions`: the reference, for any array API namespace."""
    xp, finite, parts = data.backend.xp, True, []
    order = np.arange(data.n_samples) if order is None else order
    for logits in logit_chunks(data, coef, intercept, order):
        top = logits[:, 1] if coef.shape[0] == 1 else xp.max(logits, axis=-1)
        finite &= bool(xp.all(xp.isfinite(top)))
        parts.append(METHODS[method](xp, logits))
    return xp.concat(parts, axis=0), finite


def residual(problem: Problem, logits: Array, index: Any) -> tuple[BatchSums, Array]:
    """Compare logits with the targets of their rows: the loss in prediction space.

    Parameters
    ----------
    problem : Problem
        Holds the targets and weights.
    logits : array of shape (b, m, k)
        Logits of the rows `index`.
    index : array of shape (b,) or slice
        Which rows of the data these are.

    Returns
    -------
    sums : BatchSums
        Loss and accuracy of the batch.
    by_logits : array of shape (b, m, k)
        Derivatives of the loss by the logits.
    """
    xp, dtype = problem.backend.xp, logits.dtype
    target, label = _targets_of(problem, index, dtype)
    log_probability = log_softmax(xp, logits)
    loss = -xp.sum(target * log_probability, axis=-1)
    by_logits = xp.exp(log_probability) - target
    correct = xp.astype(xp.argmax(logits, axis=-1) == label[:, None], dtype)
    weight = problem.weights(index)
    if weight is not None:
        loss = loss * weight
        by_logits = by_logits * weight[..., None]
        correct = correct * problem.weights(index, of_scores=True)
    float64 = problem.backend.dtype(np.float64)
    sums = BatchSums(*(xp.sum(part, axis=0, dtype=float64) for part in (loss, correct)))
    return sums, by_logits


def _targets_of(problem: Problem, index: Any, dtype: Any) -> tuple[Array, Array]:
    """Probabilities of shape (b, 1 or m, k) that a batch should have, and labels of shape (b,)."""
    backend, xp = problem.backend, problem.backend.xp
    targets = problem.rows_of(problem.targets, index)
    if targets.ndim == 1:
        classes = xp.arange(problem.n_classes, device=backend.device)
        label, target = targets, xp.astype(targets[:, None] == classes, dtype)
    else:
        label, target = xp.argmax(targets, axis=-1), targets
    target = target[:, None, :]
    if problem.smoothing is not None:
        hard_share = 1 - xp.sum(problem.smoothing, axis=-1, keepdims=True)
        target = hard_share * target + problem.smoothing
    return target, label


def target_shares(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means of the targets (m, k), and of their entropies (m,), on the host."""
    shares, entropy = (total / len(problem.order) for total in problem.total(_sums_of_targets))
    return shares, entropy


def _sums_of_targets(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums of the targets and of their entropies, on the host."""
    to_numpy, n, k = problem.backend.to_numpy, len(problem.order), problem.n_classes
    targets = to_numpy(problem.targets)[problem.order]
    weights = np.ones((n, 1))
    if problem.sample_weight is not None:
        weights = to_numpy(problem.sample_weight)[problem.order].astype(np.float64)
    columns = problem.columns if weights.shape[1] > 1 else np.zeros_like(problem.columns)
    if targets.ndim == 1:  # as good as a row per class, which weighs what the class does
        rows = [np.bincount(targets, column, k) for column in weights.T]
        targets, weights = np.eye(k), np.stack(rows, axis=1)
    sums = (weights.T @ targets)[columns]
    if problem.smoothing is None:
        return sums, (weights.T @ entr(targets).sum(axis=1))[columns]
    entropy = np.empty(problem.n_models)
    smoothing = to_numpy(problem.smoothing).astype(np.float64)
    hard_share = 1 - smoothing.sum(axis=1)
    for model, added in enumerate(smoothing):
        smooth = hard_share[model] * targets + added
        entropy[model] = weights[:, columns[model]] @ entr(smooth).sum(axis=1)
    mass = weights.sum(axis=0)[columns]
    return hard_share[:, None] * sums + smoothing * mass[:, None], entropy


def target_sums(problem: Problem) -> np.ndarray:
    """Weighted means over all rows of targets times features, (m, k, d), on the host, float64."""
    backend = problem.backend
    with backend.computing():
        (total,) = problem.total(_sums_of_features)
    shape = problem.n_models, problem.n_classes, problem.data.n_features
    return np.broadcast_to(backend.to_numpy(total) / len(problem.order), shape)


def _sums_of_features(problem: Problem) -> tuple[Array, ...]:
    """Sums of each class's target times the features."""
    xp = problem.backend.xp

    def sums(index: Any, X: Array) -> tuple[Array]:
        target, _ = _targets_of(problem, index, problem.data.dtype)
        weight = problem.weights(index)
        if weight is not None:
            target = target * weight[..., None]
        return (pullback(xp, X, target)[0],)

    return problem.data.reduce(problem.order, sums, width=problem.n_models * problem.n_classes)


def centered_target_sums(problem: Problem, shares: np.ndarray) -> np.ndarray:
    """The same of features less their means; `shares` (m, k) are the means of the targets.

    A model that knows these shares alone has minus that as its gradient, which is one pass.
    """
    with np.errstate(divide="ignore"):
        intercept = np.maximum(np.log(shares), MASKED_LOGIT)
    start, backend = State.start(problem), problem.backend
    alone = replace(start, intercept=backend.asarray(intercept, problem.data.dtype))
    return -backend.to_numpy(value_and_gradient(problem, alone)[2])


def batch_gradient(
    problem: Problem, coef: Array, intercept: Array, index: Any, X: Array
) -> tuple[BatchSums, Array, Array]:
    """Loss of rows X and its gradient without the penalty, summed over the rows.

    `coef` (m, k, d), `intercept` (m, k) and what is derived by them are at the data's shift;
    `index` says which rows of the data X (b, d) is.
    """
    xp = problem.backend.xp
    sums, by_logits = residual(problem, logits_of(xp, X, coef, intercept), index)
    return sums, *pullback(xp, X, by_logits)


def penalty(problem: Problem, coef: Array) -> np.ndarray:
    """The penalty of each model, of shape (m,), on the host."""
    return problem.backend.to_numpy(penalty_there(problem, coef))


def penalty_there(problem: Problem, coef: Array) -> Array:
    """The penalty of each model, of shape (m,), where the backend computes."""
    return (kernels.penalty(problem) or summed_penalty)(problem, coef)


def summed_penalty(problem: Problem, coef: Array) -> Array:
    """See `penalty_there`: the reference, for any array API namespace."""
    (m, k, d), backend = coef.shape, problem.backend
    size = max(1, backend.chunk_bytes // (8 * m * k))
    parts = [
        _penalty_of_features(problem, coef[:, :, first : min(first + size, d)])
        for first in range(0, d, size)
    ]
    return backend.xp.sum(sum(parts), axis=0)


def _penalty_of_features(problem: Problem, coef: Array) -> Array:
    """The terms of the penalty that come of some of the features, of shape (1 or 2, m)."""
    backend, xp = problem.backend, problem.backend.xp
    coef = xp.astype(coef, backend.dtype(np.float64), copy=False)
    # Squared by themselves, coefficients of features in tiny units may overflow.
    scaled = coef * backend.asarray(np.sqrt(problem.l2 / 2)[:, None, None], coef.dtype)
    terms = [xp.sum(scaled * scaled, axis=(1, 2))]
    if problem.l1.any():
        l1 = backend.asarray(problem.l1[:, None, None], coef.dtype)
        terms.append(xp.sum(xp.abs(coef) * l1, axis=(1, 2)))
    return xp.stack(terms)


def clip(xp: Any, values: Array, bound: Array) -> Array:
    """The values, cut to what lies between -bound and bound.

    What is left of `values` without it is soft thresholding, the proximal operator of
    ``bound * |values|``: N. Parikh and S. Boyd, Proximal Algorithms, 2014, section 6.5.2.
    """
    return xp.minimum(xp.maximum(values, -bound), bound)


def full_pass(
    problem: Problem, coef: Array, intercept: Array, *, gradient: bool
) -> tuple[Array, ...]:
    """Loss, accuracy and gradient of all rows: the reference, for any array API namespace.

    Parameters
    ----------
    problem : Problem
        What is minimised.
    coef : array of shape (m, k, d)
        Weights.
    intercept : array of shape (m, k)
        Logits of a row that equals the data's shift.
    gradient : bool
        Whether the gradient is wanted.

    Returns
    -------
    loss, correct : arrays of shape (m,), float64
        Sums over the rows, as in `BatchSums`.
    by_coef : array of shape (m, k, d), float64
        Gradient of the summed loss by `coef`, without the penalty; only if it is wanted.
    by_intercept : array of shape (m, k), float64
        Gradient of the summed loss by `intercept`; only if it is wanted.
    """
    xp = problem.backend.xp

    def sums(index: Any, X: Array) -> tuple[Array, ...]:
        if not gradient:
            return residual(problem, logits_of(xp, X, coef, intercept), index)[0]
        (loss, correct), *gradients = batch_gradient(problem, coef, intercept, index, X)
        return loss, correct, *gradients

    return problem.data.reduce(problem.order, sums, width=problem.n_models * problem.n_classes)


def evaluate(problem: Problem, state: State) -> tuple[np.ndarray, np.ndarray]:
    """Mean cross-entropy and accuracy of each model, both of shape (m,), over all rows."""
    loss, correct = map(problem.backend.to_numpy, summed(problem, state, gradient=False))
    n = len(problem.order)
    return loss / n, correct / n


def value_and_gradient(problem: Problem, state: State) -> tuple[Array, Array, Array, Array]:
    """Mean cross-entropy and accuracy of each model, and the gradient of the former.

    Returns
    -------
    loss, accuracy : arrays of shape (m,), float64
        Means over all rows.
    by_coef : array of shape (m, k, d), float64
        Gradient by the coefficients, without the penalty.
    by_intercept : array of shape (m, k), float64
        Gradient by the intercepts.
    """
    loss, accuracy, by_coef, by_intercept = summed(problem, state, gradient=True)
    with problem.backend.computing():
        for array in (loss, accuracy, by_coef, by_intercept):
            array /= len(problem.order)
    return loss, accuracy, by_coef, by_intercept


def summed(problem: Problem, state: State, *, gradient: bool) -> tuple[Array, ...]:
    """What `full_pass` does, wherever the rows are, by whatever does it fastest."""
    with problem.backend.computing():
        return problem.total(_quick_pass, state.coef, state.intercept, gradient=gradient)


def _quick_pass(
    problem: Problem, coef: Array, intercept: Array, *, gradient: bool
) -> tuple[Array, ...]:
    """What `full_pass` does, by whatever does it fastest."""
    run = kernels.full_pass(problem) or full_pass
    return run(problem, coef, intercept, gradient=gradient)

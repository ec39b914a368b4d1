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
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import safe_sparse_dot

from skmax.backends import Rows
from skmax.problem import Array, BatchSums, Problem, State


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


def logit_chunks(data: Rows, coef: Any, intercept: Array, order: np.ndarray) -> Iterator[Array]:
    """Logits of rows, of shape (some, some, k), a piece at a time.

    `coef` of shape (k, d) may be a SciPy sparse matrix, `intercept` is of shape (k,). From a
    single row of weights come two columns, of which the first is zero.
    """
    xp, (k, d) = data.backend.xp, coef.shape
    for _, X in data.chunks(order, width=k):
        if sparse.issparse(coef):
            logits = safe_sparse_dot(X, coef.T, dense_output=True)[None]
        elif hasattr(X, "toarray"):
            logits = (X @ coef.T)[None]
        else:  # several products of a size that the backend likes, transposed as in `logits_of`
            tile = data.tile(X.shape[0], width=k)
            tiles = xp.reshape(X, (-1, tile, d))
            logits = xp.matrix_transpose(coef @ xp.matrix_transpose(tiles))
        logits = logits + intercept
        yield xp.concat([xp.zeros_like(logits), logits], axis=-1) if k == 1 else logits


def score(problem: Problem, logits: Array, index: Any) -> tuple[BatchSums, Array]:
    """Compare logits with the targets of their rows.

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
    residual : array of shape (b, m, k)
        Derivatives of the loss by the logits.
    """
    xp, dtype = problem.backend.xp, logits.dtype
    target, label = _targets_of(problem, index, dtype)
    log_probability = log_softmax(xp, logits)
    loss = -xp.sum(target * log_probability, axis=-1)
    residual = xp.exp(log_probability) - target
    correct = xp.astype(xp.argmax(logits, axis=-1) == label[:, None], dtype)
    weight = problem.weights(index)
    if weight is not None:
        loss = loss * weight
        residual = residual * weight[..., None]
        correct = correct * problem.weights(index, of_scores=True)
    float64 = problem.backend.dtype(np.float64)
    total = BatchSums(*(xp.sum(part, axis=0, dtype=float64) for part in (loss, correct)))
    return total, residual


def _targets_of(problem: Problem, index: Any, dtype: Any) -> tuple[Array, Array]:
    """Probabilities of shape (b, 1 or m, k) that a batch should have, and labels of shape (b,)."""
    backend, xp = problem.backend, problem.backend.xp
    targets = _take(xp, problem.targets, index)
    if targets.ndim == 1:
        classes = xp.arange(problem.n_classes, device=backend.device)
        label, target = targets, xp.astype(targets[:, None] == classes, dtype)
    else:
        label, target = xp.argmax(targets, axis=-1), targets
    target = target[:, None, :]
    if problem.smoothing is not None:
        kept = 1 - xp.sum(problem.smoothing, axis=-1, keepdims=True)
        target = kept * target + problem.smoothing
    return target, label


def _take(xp: Any, array: Array, index: Any) -> Array:
    return array[index] if isinstance(index, slice) else xp.take(array, index, axis=0)


def batch_gradient(
    problem: Problem, coef: Array, intercept: Array, index: Array
) -> tuple[BatchSums, Array, Array]:
    """Loss of the rows `index` and its gradient, without the penalty.

    Parameters
    ----------
    problem : Problem
        What is minimised.
    coef : array of shape (m, k, d)
        Weights.
    intercept : array of shape (m, k)
        Logits of a row that equals the data's shift.
    index : array of shape (b,)
        Rows of the data.

    Returns
    -------
    sums : BatchSums
        Loss and accuracy of the batch, summed over its rows.
    coef_gradient : array of shape (m, k, d)
        Gradient of the summed loss by `coef`.
    intercept_gradient : array of shape (m, k)
        Gradient of the summed loss by `intercept`.
    """
    xp = problem.backend.xp
    X = problem.data.rows(index)
    sums, residual = score(problem, logits_of(xp, X, coef, intercept), index)
    flat = xp.reshape(residual, (residual.shape[0], -1))
    return sums, xp.reshape(flat.T @ X, coef.shape), xp.sum(residual, axis=0)


def penalty(problem: Problem, coef: Array) -> np.ndarray:
    """The penalty of each model, of shape (m,), on the host."""
    backend, xp = problem.backend, problem.backend.xp
    coef = xp.astype(coef, backend.dtype(np.float64), copy=False)
    norms = [xp.sum(coef * coef, axis=(1, 2))]
    if problem.l1.any():
        norms.append(xp.sum(xp.abs(coef), axis=(1, 2)))
    squares, *moduli = backend.to_numpy(xp.stack(norms))  # moved at once
    return problem.l2 / 2 * squares + sum(problem.l1 * norm for norm in moduli)


def excess(xp: Any, coef: Array, threshold: Array) -> Array:
    """What the proximal operator of ``threshold * |coef|`` takes off: all, or the threshold.

    Reference: N. Parikh and S. Boyd, Proximal Algorithms, 2014, sections 2.5 and 6.5.2.
    """
    return xp.minimum(xp.maximum(coef, -threshold), threshold)


def full_pass(
    problem: Problem, coef: Array, intercept: Array, *, gradient: bool
) -> tuple[Array, Array, Array | None, Array | None]:
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
    by_coef : array of shape (m, k, d), float64, or None
        Gradient of the summed loss by `coef`, without the penalty.
    by_intercept : array of shape (m, k), float64, or None
        Gradient of the summed loss by `intercept`.
    """
    backend, xp = problem.backend, problem.backend.xp
    float64 = backend.dtype(np.float64)
    loss = correct = backend.zeros((problem.n_models,), float64)
    by_coef = backend.zeros(coef.shape, float64) if gradient else None
    by_intercept = backend.zeros(intercept.shape, float64) if gradient else None
    width = problem.n_models * problem.n_classes
    for index, X in problem.data.chunks(problem.order, width=width):
        sums, residual = score(problem, logits_of(xp, X, coef, intercept), index)
        loss, correct = loss + sums.loss, correct + sums.correct
        if gradient:
            flat = xp.reshape(residual, (residual.shape[0], -1))
            by_coef = by_coef + xp.astype(xp.reshape(flat.T @ X, coef.shape), float64)
            by_intercept = by_intercept + xp.sum(residual, axis=0, dtype=float64)
    return loss, correct, by_coef, by_intercept


def evaluate(problem: Problem, state: State) -> tuple[np.ndarray, np.ndarray]:
    """Mean cross-entropy and accuracy of each model, both of shape (m,), over all rows."""
    return _means(problem, state, gradient=False)[:2]


def value_and_gradient(
    problem: Problem, state: State
) -> tuple[np.ndarray, np.ndarray, Array, Array]:
    """Mean cross-entropy and accuracy of each model, and the gradient of the former.

    Returns
    -------
    loss, accuracy : ndarrays of shape (m,), host
        Means over all rows.
    by_coef : array of shape (m, k, d), float64
        Gradient by the coefficients, without the penalty.
    by_intercept : array of shape (m, k), float64
        Gradient by the intercepts.
    """
    loss, accuracy, by_coef, by_intercept = _means(problem, state, gradient=True)
    n = len(problem.order)
    return loss, accuracy, by_coef / n, by_intercept / n


def _means(problem: Problem, state: State, *, gradient: bool) -> tuple[Any, Any, Any, Any]:
    backend, n = problem.backend, len(problem.order)
    run = backend.fast_pass(problem) or full_pass
    with backend.computing():
        loss, correct, *gradients = run(problem, state.coef, state.intercept, gradient=gradient)
    return backend.to_numpy(loss) / n, backend.to_numpy(correct) / n, *gradients

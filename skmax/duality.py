"""How far from the optimum a model can be at most: lower bounds from the dual problem.

Write t_i for the target probabilities of row i, w_i for its weight (with mean 1), and
``F(W, b) = mean_i w_i (lse(z_i) - t_i z_i) + l2/2 ||W||^2 + l1 ||W||_1`` with ``z_i = W x_i + b``,
where lse is the logarithm of the summed exponentials. Since lse is the greatest value of
``q z + H(q)`` over all probability vectors q, H being the entropy, any choice of one q_i per row
gives

``F(W, b) >= mean_i w_i H(q_i) + <V, W> + r b + l2/2 ||W||^2 + l1 ||W||_1``

with ``V = mean_i w_i (q_i - t_i) x_i'`` and ``r = mean_i w_i (q_i - t_i)``. If r = 0 (always, where
there is no intercept), the least value of the right-hand side over all W and b is

``D(q) = mean_i w_i H(q_i) - sum_jl max(|V_jl| - l1, 0)^2 / (2 l2)``,

so that F* >= D(q); without L2, the last term is 0 if no |V_jl| exceeds l1, and else infinite. The
probabilities of any model are such a q, but for r. Two mixtures, whose entropy is at least the
mixture of the entropies since H is concave, give more:

- with one vector u for all rows, just enough of it to make r = 0;
- with the targets, for which V = 0: the share that makes D greatest.

At the optimum, its own probabilities make D equal F*. So L-BFGS goes on from the model, and the
greatest D that it meets counts.

References
----------
S. Shalev-Shwartz and T. Zhang, Accelerated proximal stochastic dual coordinate ascent for
regularized loss minimization, Mathematical Programming 155, 2016: this dual. S. Boyd and
L. Vandenberghe, Convex Optimization, 2004, chapter 5.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import entr

from skmax.backends import rounding_unit
from skmax.objective import evaluate, penalty, value_and_gradient
from skmax.problem import Problem, State
from skmax.solvers.lbfgs import LBFGS

# Passes that L-BFGS may take, how many of them between two bounds, and the share of a bound that it
# may exceed the truth by before more are worth while.
_MOST_PASSES, _BETWEEN, _LOOSE = 100, 5, 0.1
# A gap below which nobody cares.
_NOTHING = 1e-7


def optimality_gap(problem: Problem, state: State, mean: np.ndarray) -> float:
    """An upper bound of ``(F - F*) / F`` for a single model.

    Parameters
    ----------
    problem : Problem
        What is minimised.
    state : State
        The weights of the model.
    mean : ndarray of shape (d,)
        Weighted means of the features, counted from the shift of the data.
    """
    seen = replace(problem, masked=np.zeros_like(problem.masked))  # as the model is
    value = float((evaluate(seen, state)[0] + penalty(problem, state.coef))[0])
    if not value > 0:
        return 0.0
    bounds = _Bounds(problem, mean)
    state = bounds.masked(state)
    least, lowest = bounds.at(state), value
    with closing(LBFGS().epochs(problem, state)) as epochs:
        for turn in range(_MOST_PASSES):
            gap = value - least
            if gap <= _NOTHING * value or lowest - least <= _LOOSE * gap:
                break
            epoch = next(epochs)
            lowest = min(lowest, float(epoch.loss[0]))
            if turn % _BETWEEN == _BETWEEN - 1:
                least = max(least, bounds.at(epoch.state))
    rounding = 8 * rounding_unit(problem.data.dtype)
    return float(np.clip((value - least) / value + rounding, 0.0, 1.0))


class _Bounds:
    """Values of the dual problem of a single model."""

    def __init__(self, problem: Problem, mean: np.ndarray):
        self.problem = problem
        self.known = ~problem.masked[0]
        origin = np.zeros_like(mean) if problem.mean is None else self._host(problem.mean)[0]
        self.origin, self.offset = origin, mean - origin
        start = State.start(problem)
        _, _, by_coef, by_intercept = self._evaluate(start)
        # At weights of zero, q is the same for every known class, and so is its entropy.
        self.uniform = np.where(self.known, 1 / self.known.sum(), 0.0)
        self.by_uniform = by_coef
        self.share = self.uniform - by_intercept  # of each class among the targets
        self.entropy_of_targets = self._entropy_of_targets()

    def masked(self, state: State) -> State:
        """The state, with classes without weight masked."""
        start = State.start(self.problem)
        known = self.problem.backend.asarray(self.known[None, :])
        intercept = self.problem.backend.xp.where(known, state.intercept, start.intercept)
        return replace(state, intercept=intercept)

    def _host(self, array: Any) -> np.ndarray:
        return self.problem.backend.to_numpy(array)[0].astype(np.float64)

    def _evaluate(self, state: State) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Cross-entropy, its gradients (k, d) by centred features and (k,), and intercepts."""
        loss, _, by_coef, by_intercept = value_and_gradient(self.problem, state)
        by_coef, by_intercept = self._host(by_coef), self._host(by_intercept)
        by_coef = by_coef - by_intercept[:, None] * self.origin
        intercept = self._host(state.intercept) + self._host(state.coef) @ self.origin
        return float(loss[0]), intercept, by_coef, by_intercept

    def _entropy_of_targets(self) -> float:
        problem, backend = self.problem, self.problem.backend
        targets, order = problem.targets, problem.order
        smoothing = 0.0 if problem.smoothing is None else self._host(problem.smoothing)
        kept = 1 - np.sum(smoothing)
        if targets.ndim == 1:  # rows of a class are alike
            n_classes = problem.n_classes
            per_class = entr(kept * np.eye(n_classes) + smoothing).sum(axis=1)
            return float(self._weighted(per_class[backend.to_numpy(targets)[order]]))
        values = backend.to_numpy(targets)[order].astype(np.float64)
        return float(self._weighted(entr(kept * values + smoothing).sum(axis=1)))

    def _weighted(self, values: np.ndarray) -> float:
        problem = self.problem
        weight = problem.weights(problem.backend.asarray(problem.order))
        if weight is None:
            return float(values.mean())
        weight = problem.backend.to_numpy(weight)[:, 0].astype(np.float64)
        return float((weight * values).mean())

    def at(self, state: State) -> float:
        """The lower bound that the probabilities of a model give."""
        loss, intercept, V, r = self._evaluate(state)
        coef, known = self._host(state.coef), self.known
        entropy = loss - np.sum(V * coef) - np.sum(r[known] * intercept[known])
        if self.problem.fit_intercept:
            share = np.where(known, self.share, 1.0)
            excess = 1 - share[known] / np.maximum(share + r, 1e-300)[known]
            mixed = float(np.clip(excess.max(), 0.0, 1.0))
            if mixed > 0:
                u = np.where(known, (self.share - (1 - mixed) * (self.share + r)) / mixed, 0.0)
                u = np.maximum(u, 0.0)
                # Where nothing is left, what was out of balance was a rounding error.
                u = u / u.sum() if u.any() else self.uniform
                by_u = self.by_uniform + np.outer(u - self.uniform, self.offset)
                V = (1 - mixed) * V + mixed * by_u
                entropy = (1 - mixed) * entropy + mixed * entr(u).sum()
        return self._greatest(entropy, V)

    def _greatest(self, entropy: float, V: np.ndarray) -> float:
        """The dual value of the best mixture with the targets."""
        l1, l2, target = self.problem.l1[0], self.problem.l2[0], self.entropy_of_targets
        modulus = np.abs(V)

        def value(share: float) -> float:
            beyond = np.sum(np.maximum(share * modulus - l1, 0.0) ** 2)
            return share * entropy + (1 - share) * target - (beyond / (2 * l2) if beyond else 0.0)

        if l2 == 0:
            largest = modulus.max()
            return max(target, value(1.0 if largest <= l1 else (1 - 1e-12) * l1 / largest))
        best = minimize_scalar(lambda share: -value(share), bounds=(0, 1), method="bounded")
        return max(target, value(1.0), value(float(best.x)))

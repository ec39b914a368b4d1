"""How far from the optimum models can be at most: lower bounds from the dual problem.

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
probabilities of any model are such a q, but for r; V and r are then the gradient of its
cross-entropy, which a solver knows anyway. Two mixtures, whose entropy is at least the mixture of
the entropies since H is concave, give more:

- with one vector u for all rows, just enough of it to make r = 0;
- with the targets, for which V = 0: the share that makes D greatest.

At the optimum, its own probabilities make D equal F*.

References
----------
S. Shalev-Shwartz and T. Zhang, Accelerated proximal stochastic dual coordinate ascent for
regularized loss minimization, Mathematical Programming 155, 2016: this dual. S. Boyd and
L. Vandenberghe, Convex Optimization, 2004, chapter 5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import entr

from skmax import kernels
from skmax.backends import Array
from skmax.objective import centered_target_sums, target_shares, target_sums
from skmax.problem import Problem

# Newton steps on the share of the targets in a mixture, a concave function of one variable.
_STEPS = 6
# What counts as near, in units of the logits.
_NEARBY = 1.0


class _Products(NamedTuple):
    """Inner products per model of weights W, gradients G, and class sums S, on the host.

    All over (k, d) but for the last three, which are of shape (m, k).
    """

    GW: np.ndarray
    WW: np.ndarray
    GG: np.ndarray
    WW_times_l2: np.ndarray
    GG_over_l2: np.ndarray
    WS: np.ndarray
    GS_over_l2: np.ndarray
    by_mean: np.ndarray  # G / l2 - W, times the mean of the features
    intercept: np.ndarray
    by_intercept: np.ndarray


class Dual:
    """Lower bounds of the least objectives of a stack of models.

    Weights and gradients are host arrays of shape (m, k, d + 1) in the coordinates of the
    preconditioner, the intercept last, at their origin; `bounds` takes them where the backend
    computes.

    Parameters
    ----------
    problem : Problem
        What is minimised.
    class_sums : ndarray of shape (m, k, d) or None
        Weighted means of the targets times the features, in these coordinates, if they are known.
    """

    def __init__(self, problem: Problem, class_sums: np.ndarray | None = None):
        m, d = problem.n_models, problem.data.n_features
        self._backend, self._kernels = problem.backend, kernels.vectors(problem.backend)
        units = np.ones((m, 1, d))
        if problem.inverse_scale is not None:
            units = problem.backend.to_numpy(problem.inverse_scale).astype(np.float64)
        self.shares, self.entropy_of_targets = target_shares(problem)
        if class_sums is None:
            class_sums = self._class_sums(problem, units)
        self.class_sums = class_sums
        self.mean = self.class_sums.sum(axis=1, keepdims=True)
        self.l1 = problem.l1[:, None, None] * units
        self.l2 = problem.l2[:, None, None] * units * units  # squared, they may overflow
        self._inverse = np.divide(1.0, self.l2, out=np.zeros_like(self.l2), where=self.l2 > 0)
        self.has_l2, self.has_lasso = problem.l2 > 0, bool(problem.l1.any())
        self.fit_intercept = problem.fit_intercept
        self._known = ~problem.masked
        self._multiply()

    def _multiply(self) -> None:
        """What `_square_of_mixture` needs, whatever the weights."""
        mean, sums = self.mean, self.class_sums
        inverse = self._inverse[..., : sums.shape[-1]]  # of none, without an intercept
        with np.errstate(over="ignore", invalid="ignore"):
            self._weighted_mean = (mean * inverse).swapaxes(1, 2)
            self._sums_by_mean = (sums @ self._weighted_mean)[..., 0]
            self._mean_square = _product(mean, mean, inverse)
            self._sums_square = _product(sums, sums, inverse)
        if self._kernels is not None:
            used = (self.l2[:, 0], *((sums, mean[:, 0]) if self.fit_intercept else ()))
            self._there = tuple(self._backend.asarray(array, np.float64) for array in used)

    def _class_sums(self, problem: Problem, units: np.ndarray) -> np.ndarray:
        if not problem.fit_intercept:  # then nothing needs to be balanced
            return np.zeros((problem.n_models, problem.n_classes, 0))
        if problem.mean is None:
            return target_sums(problem) * units
        return centered_target_sums(problem, self.shares) * units

    def select(self, models: np.ndarray) -> Dual:
        """The bounds of some of the models, at the host indices `models`."""
        part = object.__new__(Dual)
        for name, value in vars(self).items():
            setattr(part, name, value[models] if isinstance(value, np.ndarray) else value)
        if self._kernels is not None:
            part._there = tuple(self._backend.take(array, models) for array in self._there)
        return part

    def bound(self, loss: np.ndarray, weights: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Lower bounds of F*, of shape (m,), proven.

        Parameters
        ----------
        loss : ndarray of shape (m,)
            Mean cross-entropies of models.
        weights : ndarray of shape (m, k, d + 1)
            Their weights.
        gradient : ndarray of shape (m, k, d + 1)
            Gradients of their cross-entropies by these weights, without the penalty.
        """
        entropy, V = self._balanced(*self._entropy(loss, weights, gradient))
        return self._with_targets(entropy, V)

    def bound_nearby(
        self, loss: np.ndarray, weights: np.ndarray, gradient: np.ndarray
    ) -> np.ndarray:
        """Lower bounds of the objective over all weights that are near those of a model.

        That is, intercepts differ by no more than a unit of the logits, and coefficients by no
        more than the length of the model's (or a unit), or, where the penalty gives the better
        bound, by whatever they like. As F is convex, a model that is best among those is nearly
        best among all. Where the penalty is weak or missing, or the intercepts are not quite at
        their best, this is the better bound, or the only one. It says something of the model at
        hand only: unlike those of `bound`, the greatest of several is none.

        The parameters are those of `bound`.
        """
        W, V, r = weights[..., :-1], gradient[..., :-1], gradient[..., -1]
        loss = loss - _NEARBY * np.linalg.norm(r, axis=1)
        dual = self._with_targets(loss - np.einsum("mkd,mkd->m", V, W), V)
        steepest = V + self.l2 * W
        penalty = np.einsum("mkd,mkd->m", self.l2 * W, W) / 2
        if self.has_lasso:
            away = np.maximum(np.abs(steepest) - self.l1, 0.0)  # where a coefficient is zero
            steepest = np.where(W != 0, steepest + self.l1 * np.sign(W), away)
            penalty += np.sum(self.l1 * np.abs(W), axis=(1, 2))
        length = np.maximum(np.linalg.norm(W, axis=(1, 2)), _NEARBY)
        return np.maximum(dual, loss + penalty - length * np.linalg.norm(steepest, axis=(1, 2)))

    def bounds(
        self, loss: np.ndarray, weights: Array, gradient: Array
    ) -> tuple[np.ndarray, np.ndarray]:
        """Both bounds, from the gradient of the objective less its L1 term.

        Under L2 alone, inner products of weights and gradient are all that they are made of.
        """
        there, under_l2 = self._kernels is not None, self.has_l2.all() and not self.has_lasso
        if not (there and under_l2):
            weights, gradient = map(self._backend.to_numpy, (weights, gradient))
        if not under_l2:
            of_loss = gradient.copy()
            of_loss[..., :-1] -= self.l2 * weights[..., :-1]
            here = loss, weights, of_loss
            return self.bound(*here), self.bound_nearby(*here)
        with np.errstate(over="ignore", invalid="ignore"):
            products = (self._products_there if there else self._products)(weights, gradient)
            return self._under_ridge(loss, products)

    def _products(self, weights: np.ndarray, gradient: np.ndarray) -> _Products:
        W, G, inverse = weights[..., :-1], gradient[..., :-1], self._inverse
        WS, GS, by_mean = np.zeros(len(W)), np.zeros(len(W)), np.zeros(W.shape[:2])
        if self.fit_intercept:
            WS = np.einsum("mkd,mkd->m", W, self.class_sums)
            GS = _product(G, self.class_sums, inverse)
            by_mean = (G @ self._weighted_mean - W @ self.mean.swapaxes(1, 2))[..., 0]
        return _Products(
            GW=np.einsum("mkd,mkd->m", G, W),
            WW=np.einsum("mkd,mkd->m", W, W),
            GG=np.einsum("mkd,mkd->m", G, G),
            WW_times_l2=_product(W, W, self.l2),
            GG_over_l2=_product(G, G, inverse),
            WS=WS,
            GS_over_l2=GS,
            by_mean=by_mean,
            intercept=weights[..., -1],
            by_intercept=gradient[..., -1],
        )

    def _products_there(self, weights: Array, gradient: Array) -> _Products:
        """The same by a kernel, of which the sums over features are moved at once."""
        l2, *of_classes = self._there
        sums, mean = of_classes or (None, None)
        *products, by_mean, intercept, r = self._kernels.bounds(
            self._backend, weights, gradient, l2, (sums, mean)
        )
        of_models = (part.sum(axis=1) for part in products)
        return _Products._make([*of_models, by_mean, intercept, r])

    def _under_ridge(self, loss: np.ndarray, products: _Products) -> tuple[np.ndarray, np.ndarray]:
        """See `bounds`. With V = G - l2 W, products with V are those with G and W."""
        GW, WW, r = products.GW, products.WW_times_l2, products.by_intercept
        VW, VV = GW - WW, products.GG_over_l2 - 2 * GW + WW
        below = loss - _NEARBY * np.sqrt(np.vecdot(r, r))
        length = np.maximum(np.sqrt(products.WW), _NEARBY)
        steepest = np.sqrt(products.GG)
        nearby = np.maximum(self._parabola(below - VW, VV), below + WW / 2 - length * steepest)
        entropy = loss - VW - np.vecdot(r, np.where(self._known, products.intercept, 0.0))
        if self.fit_intercept:
            mixed, common = self._common(r)
            entropy = (1 - mixed) * entropy + mixed * entr(common).sum(axis=1)
            VV = self._square_of_mixture(products, VV, mixed, common)
        return self._parabola(entropy, VV), nearby

    def _square_of_mixture(
        self, products: _Products, VV: np.ndarray, mixed: np.ndarray, common: np.ndarray
    ) -> np.ndarray:
        """The square of `_balanced`'s V, over l2, from that of V alone."""
        crossed = np.vecdot(common, products.by_mean) - products.GS_over_l2 + products.WS
        square = np.vecdot(common, common) * self._mean_square + self._sums_square
        square -= 2 * np.vecdot(common, self._sums_by_mean)
        return (1 - mixed) ** 2 * VV + 2 * mixed * (1 - mixed) * crossed + mixed**2 * square

    def _entropy(
        self, loss: np.ndarray, weights: np.ndarray, gradient: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean entropies (m,) of the models' probabilities, and their V and r."""
        V, r = gradient[..., :-1], gradient[..., -1]
        intercept = np.where(self._known, weights[..., -1], 0.0)
        inner = np.einsum("mkd,mkd->m", V, weights[..., :-1]) + np.sum(r * intercept, axis=1)
        return loss - inner, V, r

    def _balanced(
        self, entropy: np.ndarray, V: np.ndarray, r: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Entropies and V of a mixture with one vector for all rows, for which r = 0."""
        if not self.fit_intercept:
            return entropy, V
        mixed, common = self._common(r)
        of_common = common[..., None] * self.mean - self.class_sums
        entropy = (1 - mixed) * entropy + mixed * entr(common).sum(axis=1)
        mixed = mixed[:, None, None]
        return entropy, (1 - mixed) * V + mixed * of_common

    def _common(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares (m,) of a vector for all rows (m, k) in the mixture for which r = 0."""
        share = self.shares
        mean = np.maximum(share + r, 0.0)
        kept = np.divide(share, mean, out=np.ones_like(mean), where=mean > 0)
        mixed = np.maximum(1 - kept.min(axis=1, keepdims=True), 0.0)
        common = np.maximum(share - (1 - mixed) * mean, 0.0)
        total = common.sum(axis=1, keepdims=True)
        # Where nothing is left, what was out of balance was a rounding error.
        common = np.where(total > 0, common / np.where(total > 0, total, 1.0), share)
        return mixed[:, 0], common

    def _with_targets(self, entropy: np.ndarray, V: np.ndarray) -> np.ndarray:
        """The dual values of the best mixtures with the targets."""
        target, best = self.entropy_of_targets, self.entropy_of_targets
        if self.has_l2.any():
            inverse = np.divide(1.0, self.l2, out=np.zeros_like(self.l2), where=self.l2 > 0)
            of_ridge = (self._under_both if self.has_lasso else self._under_l2)(entropy, V, inverse)
            best = np.where(self.has_l2, np.fmax(of_ridge, best), best)
        if not self.has_l2.all():  # the largest share for which V stays feasible
            modulus = np.abs(V)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(modulus > self.l1, self.l1 / modulus, 1.0)
            share = ratio.min(axis=(1, 2), initial=1.0) * (1 - 1e-12)
            of_lasso = share * entropy + (1 - share) * target
            best = np.where(self.has_l2, best, np.fmax(of_lasso, best))
        return best

    def _under_l2(self, entropy: np.ndarray, V: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        return self._parabola(entropy, _product(V, V, inverse))

    def _parabola(self, entropy: np.ndarray, square: np.ndarray) -> np.ndarray:
        """The value is a parabola of the share, of which the square of V over l2 says all."""
        explained = entropy - self.entropy_of_targets
        share = np.minimum(np.maximum(explained / np.maximum(square, 1e-300), 0.0), 1.0)
        return self.entropy_of_targets + share * explained - share**2 * square / 2

    def _under_both(self, entropy: np.ndarray, V: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        """The value is concave; its greatest is found by Newton's method."""
        modulus, target = np.abs(V), self.entropy_of_targets
        share, best = np.ones(len(entropy)), np.full(len(entropy), -np.inf)
        for _ in range(_STEPS):
            beyond = np.maximum(share[:, None, None] * modulus - self.l1, 0.0)
            value = share * entropy + (1 - share) * target
            value -= np.sum(beyond**2 * inverse, axis=(1, 2)) / 2
            best = np.fmax(best, value)
            slope = entropy - target - np.sum(beyond * modulus * inverse, axis=(1, 2))
            curvature = np.sum((beyond > 0) * modulus**2 * inverse, axis=(1, 2))
            step = np.divide(slope, curvature, out=np.sign(slope), where=curvature > 0)
            following = np.clip(share + step, 0.0, 1.0)
            if (following == share).all():
                break
            share = following
        return best


def _product(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sums over (k, d) of a b weight, whose weight has one row for all classes."""
    return np.einsum("mkd,mkd,md->m", a, b, weight[:, 0])

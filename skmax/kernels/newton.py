"""What Newton's method does with all rows, on the CPU: `newton.h`, of the core."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from skmax.backends import Backend
from skmax.backends.threads import WORTH_A_THREAD, n_threads
from skmax.kernels import library
from skmax.kernels.job import MOST_PARTS
from skmax.problem import MASKED_LOGIT

# Rows are padded to a multiple of what any vector has.
_GROUP = 16
# Multiply-adds from which on single precision saves time: of 2e6, it saves a fifteenth of 0.3 ms.
_WORTH_SINGLE = 4e6
# Multiply-adds per entry of a Hessian that a part of the rows must have: an entry takes as long as
# 200 of them, being in new memory and summed. 10,000 x 100 with 5 classes takes 54 instead of 43 ms
# on one thread with 12 parts.
_OF_AN_ENTRY = 2000


class Models(ctypes.Structure):
    """What `newton.h` declares, where each field is explained."""

    arrays: dict[str, np.ndarray]  # which the pointers point to

    _fields_ = [
        *[
            (name, ctypes.c_int64)
            for name in (
                "first", "last", "k", "r", "p", "n", "padded", "stride", "few_trials",
                "most_trials", "r_there",
            )
        ],
        *[(name, ctypes.c_double) for name in ("flat", "rounding", "longer", "inside", "one")],
        *[
            (name, ctypes.c_void_p)
            for name in (
                "Z", "mean", "inverse", "basis", "offset", "target", "weight", "score",
            )
        ],
        *[(name, ctypes.c_int64) for name in ("of_target", "of_weight", "of_score")],
        *[
            (name, ctypes.c_void_p)
            for name in (
                "label", "penalty", "V", "U", "P", "value", "loss", "accuracy", "gradient",
                "of_loss", "step", "promised", "found", "entropy", "foreseen", "hessian",
            )
        ],
    ]  # fmt: skip


def serves() -> bool:
    """Whether there is a compiled core."""
    return library.function("newton_go") is not None


def hessian(X: np.ndarray, probability: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """That of the cross-entropy by k rows of weights of p features, (k p, k p).

    What is below its diagonal is zero.

    Parameters
    ----------
    X : ndarray of shape (n, p)
        The features.
    probability : ndarray of shape (k, n)
        Those of the classes that the rows of weights are of: all classes, or one of two.
    weight : ndarray of shape (n,)
        Weights of the rows of X.
    """
    (n, p), k = X.shape, len(probability)
    H = np.zeros((k * p, k * p))
    arrays = {"Z": X, "P": probability, "weight": weight, "basis": np.eye(k)}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    sizes = {"k": k, "r": k, "r_there": k, "p": p, "n": n, "padded": n, "stride": p}
    pointers = {name: library.address(array) for name, array in arrays.items()}
    library.call("newton_hessian", Models(last=1, hessian=library.address(H), **sizes, **pointers))
    return H


class Descent:
    """See `skmax.solvers.newton.Descent`."""

    def __init__(self, backend: Backend, table: Any, search: dict[str, Any], **of: np.ndarray):
        rows = table.rows
        (m, r, p), k, (n, stride) = of["penalty"].shape, of["basis"].shape[1], rows.shape
        of["basis"] = np.broadcast_to(of["basis"], (m, k, r))
        of["offset"] = np.where(of.pop("masked"), MASKED_LOGIT, 0.0)
        padded = -(-n // _GROUP) * _GROUP
        self._backend, self._shape, self._cost = backend, (m, r, p), n * r * p
        self.V = np.empty((m, r, p))
        self.gradient, self.of_loss = np.empty((m, r, p)), np.empty((m, r, p))
        self.value, self.loss, self.accuracy = np.empty(m), np.empty(m), np.empty(m)
        self._found = np.empty(m, np.int64)
        self.foreseen = np.empty(m), np.empty((m, r, p))
        for name in ("target", "weight", "score", "label"):
            array = of[name]
            there = np.zeros((*array.shape[:-1], padded), array.dtype)
            there[..., :n] = array
            of[name] = there
        if table.is_X:
            of |= {"mean": table.mean, "inverse": table.inverse}
        self._of = of | {
            "Z": rows,
            "U": np.zeros((m, r, padded)),  # as what weighs nothing keeps them
            "P": np.zeros((m, k, padded)),
            "found": self._found,
            **{name: getattr(self, name) for name in ("V", "gradient", "of_loss")},
            **{name: getattr(self, name) for name in ("value", "loss", "accuracy")},
        }
        self._of = {name: np.ascontiguousarray(array) for name, array in self._of.items()}
        shared = {
            f"of_{name}": 0 if len(of[name]) == 1 else of[name][0].size
            for name in ("target", "weight", "score")
        }
        sizes = {"k": k, "r": r, "p": p, "n": n, "padded": padded, "stride": stride}
        sizes["one"] = float(table.fit_intercept)
        pointers = {name: library.address(array) for name, array in self._of.items()}
        self._models = Models(**sizes, **search, **shared, **pointers)

    def _run(self, name: str, cost: float, **arrays: np.ndarray) -> None:
        """Call a function of the core, in threads that share the models."""
        m, models = self._shape[0], self._models
        self._of |= arrays
        for field, array in arrays.items():
            setattr(models, field, library.address(array))
        n = max(1, int(min(n_threads(), m, m * cost // WORTH_A_THREAD))) if m > 1 else 1
        ends = [m * part // n for part in range(n + 1)]
        self._call(name, [{"first": a, "last": b} for a, b in pairwise(ends)], m * cost)

    def _call(self, name: str, fields: Sequence[dict[str, int]], cost: float) -> None:
        """Call a function several times, with what is told of each time."""
        if len(fields) == 1:
            jobs = [self._models]
        else:
            jobs = [Models.from_buffer_copy(self._models) for _ in fields]
        for job, some in zip(jobs, fields, strict=True):
            job.arrays = self._of  # live until its thread is done, whatever interrupts this one
            for field, value in some.items():
                setattr(job, field, value)
        self._backend.each(lambda job: library.call(name, job), jobs, cost)

    def go_to(self, V: np.ndarray) -> None:
        """See `skmax.solvers.newton.Descent.go_to`."""
        self.V[...] = V
        self._run("newton_stay", self._cost)

    def hessian(self, *, exact: bool, alike: bool) -> np.ndarray:
        """See `skmax.solvers.newton.Descent.hessian`."""
        m, r, p = self._shape
        models, n = self._models, self._models.n
        models.r_there = r = 1 if alike else r
        cost = n * r * p**2 * (r + 1) / 4
        is_double = exact or cost < _WORTH_SINGLE
        name = "newton_hessian" if is_double else "newton_hessian_in_single"
        of_part = max(WORTH_A_THREAD, _OF_AN_ENTRY * (r * p) ** 2)
        parts = int(min(max(1, cost // of_part), MOST_PARTS)) if m == 1 else 1
        if parts == 1:
            H = np.empty((m, r * p, r * p))
            self._run(name, cost, hessian=H)
            return H
        H = np.zeros((parts, 1, r * p, r * p))  # below the diagonal, too, since all is summed
        self._of |= {"hessian": H}
        # Threads share the rows, each with sums of its own.
        ends = [n * part // parts for part in range(parts + 1)]
        rows = {field: getattr(models, field) for field in ("Z", "P", "weight")}
        steps = {"Z": models.stride, "P": 1, "weight": 1}
        self._call(
            name,
            [
                {
                    "n": last - first,
                    "hessian": library.address(H[part]),
                    **{of: at + H.itemsize * steps[of] * first for of, at in rows.items()},
                }
                for part, (first, last) in enumerate(pairwise(ends))
            ],
            cost,
        )
        return H.sum(axis=0)

    def go(self, step: np.ndarray, promised: np.ndarray, *, foresee: bool) -> np.ndarray:
        """See `skmax.solvers.newton.Descent.go`."""
        self._models.entropy = self._models.foreseen = None
        given = {"step": np.ascontiguousarray(step), "promised": promised}
        if foresee:
            given |= dict(zip(("entropy", "foreseen"), self.foreseen, strict=True))
        self._run("newton_go", 2 * self._cost, **given)
        return self._found > 0

    def at(self, V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `skmax.solvers.newton.Descent.at`."""
        there = object.__new__(Descent)
        there.__dict__.update(self.__dict__)
        changed = ("V", "U", "P", "value", "loss", "accuracy", "gradient", "of_loss")
        there._of = self._of | {name: np.empty_like(self._of[name]) for name in changed}
        there._models = Models.from_buffer_copy(self._models)
        for name in changed:
            setattr(there._models, name, library.address(there._of[name]))
        there.V = there._of["V"]
        there.go_to(V)
        return there._of["value"], there._of["accuracy"]

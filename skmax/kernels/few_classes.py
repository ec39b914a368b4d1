"""Dense rows on a CUDA device with clusters, few classes: an epoch in one launch on tensor cores.

The kernel is `few_classes.cu`, which says how it works. Here its build is chosen, and its arguments
are laid out. Shapes are those of `skmax.problem`. What is not served here, `skmax.kernels.cuda`
serves.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from skmax.backends.array_api import dtype_name
from skmax.backends.device_code import Unit, kernel
from skmax.data.device import DeviceRows
from skmax.kernels.cuda import MOST_ROWS, Device, argument, of_state
from skmax.problem import BatchSums, Problem, State, Steps

# Types of X that the kernel reads, and their size.
DATA = {"bool": 1, "uint8": 1, "float16": 2, "float32": 4}
SOURCES = "primitives.cuh", "few_classes.cu"
# In the order of the kernel's parameters.
PARAMETERS = (
    *("X", "place", "visit", "n", "batch", "d", "classes", "copy", "label"),
    *("label_words", "target", "weight", "score_weight", "u", "smoothing", "mean"),
    *("inverse_scale", "numbers", "steps", "first", "fit_intercept", "coef", "velocity"),
    *("intercept", "intercept_velocity", "new_coef", "new_velocity", "new_intercept"),
    *("new_intercept_velocity", "sums"),
)
WARPS, THREADS, ROWS = 4, 128, 256
# What numbers of classes are rounded up to, and where they are many.
_CLASSES, _MANY = (2, 10, 16, 32), 16
# Bytes of a row.
_MOST_BYTES = 2**31 - 1
# The blocks that any cluster may have; where there may be more, blocks have so many bytes.
_PORTABLE, _LARGE_MEMORY = 8, 200_000
# What says to the driver that a cluster may have more: CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_...
_LARGER_CLUSTERS = 14
# Processors that make a cluster of 16 for each of several models worthwhile.
_PER_MODEL = 18
# Of the features that a cluster has room for, the share from which on it is faster than
# `skmax.kernels.cuda`, where the device is full of models and where it is not.
_WORTH = {1: (1 / 4, 1 / 16), 2: (3 / 4, 2 / 7), 4: (3 / 4, 2 / 7)}


@dataclass(frozen=True)
class Build:
    """The kernel for a kind of problem: what its source says that the build defines."""

    DATA_BYTES: int
    CLASSES: int
    CLUSTER: int
    PER: int
    GROUPS: int

    def unit(self) -> Unit:
        """What is compiled."""
        defined = ((field.name, getattr(self, field.name)) for field in fields(self))
        options = ("-std=c++17", *(f"-D{name}={value}" for name, value in defined))
        return Unit(SOURCES, options, 90)

    @property
    def slice_(self) -> int:
        """The most features of a block."""
        return WARPS * self.GROUPS * 7 * self.PER

    @property
    def n_features(self) -> int:
        """The most features of a model."""
        return self.CLUSTER * self.slice_

    @property
    def shared_bytes(self) -> int:
        """What `Layout` takes of a block's memory in the kernel."""
        of_bytes, tiles, rest = self.DATA_BYTES == 1, self.CLASSES // 8, int(self.CLASSES % 8 > 0)
        padding = 12 if self.DATA_BYTES == 4 and tiles > 2 else 16
        stride = (self.slice_ + padding) * self.DATA_BYTES
        if of_bytes:
            stride = (-(-self.slice_ // 16) | 1) * 16
        parts = 4 if of_bytes else 2
        sent = 1 if not of_bytes and tiles > 2 else parts
        rows = 2 * ROWS * stride + 128
        weights = -(-self.slice_ // (32 if of_bytes else 8)) * (parts * tiles + rest) * 256
        residuals = ROWS // 16 * (32 if of_bytes else 128) * (sent * tiles + rest) * 4
        logits = ROWS * self.CLASSES * 4
        numbers = 4 * ROWS * 4 + (WARPS + self.CLUSTER) * self.CLASSES * 4
        numbers += 3 * -(-self.CLASSES // 4) * 16 + 2 * WARPS * 4
        return (
            rows
            + weights
            + residuals
            + logits
            + numbers
            + 16 * (THREADS + self.CLUSTER + 2)
            + 8 * self.slice_
            + 16 * (ROWS // self.CLUSTER)
        )


def builds() -> list[Build]:
    """All builds that there are, for each kind of data in the order in which they are tried."""
    kinds = [(1, 16, 2, 1), (1, 8, 4, 1), (1, 16, 4, 2), (2, 16, 2, 1), (4, 8, 2, 1), (4, 16, 2, 1)]
    return [
        # Of many classes, a thread has no room for the weights of two groups.
        Build(size, k, cluster, per, 1 if k > _MANY else groups)
        for size, cluster, per, groups in kinds
        for k in _CLASSES
    ]


@dataclass(frozen=True)
class Plan:
    """How the epochs of a problem run on a device; calling it runs one."""

    build: Build
    device: Device
    batch: int  # rows per step
    copy: int  # bytes that are copied at once

    @classmethod
    def of(cls, problem: Problem, batch_size: int, device: Device) -> Plan | None:
        """The plan for a problem; None if the kernel does not serve it."""
        data, (m, k) = problem.data, problem.masked.shape
        if not isinstance(data, DeviceRows) or data.n_samples > MOST_ROWS:
            return None
        name, batch = dtype_name(data.X), min(batch_size, len(problem.order))
        if name not in DATA or np.dtype(data.dtype) != np.float32 or batch > ROWS:
            return None
        if data.subtrahend is not None or device.cluster < _PORTABLE:
            return None
        size, d = DATA[name], data.n_features
        copy = int(np.gcd(np.gcd(d * size, 16), data.alignment)) if data.alignment else 0
        build = _build(device, size, k, d, m)
        if copy < 4 or d * size > _MOST_BYTES or build is None:
            return None
        copy = int(np.gcd(copy, build.slice_ * size))
        return cls(build, device, batch, copy)

    def __call__(self, problem: Problem, state: State, steps: Steps) -> tuple[State, BatchSums]:
        """What `skmax.solvers.sgd.sgd_epoch` does. It returns before the device is done."""
        data = problem.data
        assert isinstance(data, DeviceRows)
        empty = data.backend.cupy.empty
        after = State(
            *(empty(getattr(state, part.name).shape, dtype=np.float32) for part in fields(state))
        )
        sums = empty((2, problem.n_models), dtype=np.float64)
        values = problem.once(self, lambda: self._of_problem(problem))
        values = values | self._of_epoch(problem, steps) | of_state(after, "new_") | {"sums": sums}
        for X, place, visit, part in data.segments(steps.order, self.batch):
            values |= of_state(state)
            values |= {"X": X, "place": place, "n": np.int32(len(place))}
            values["visit"] = None if visit is place else visit
            values["first"] = np.int32(part.start // self.batch)
            self._launch(values)
            state = after
        return after, BatchSums(sums[0], sums[1])

    def _of_epoch(self, problem: Problem, steps: Steps) -> dict[str, Any]:
        """The kernel's arguments that stay as they are for an epoch."""
        # All numbers in one transfer; columns as bits.
        per_model = np.stack([problem.l2, problem.l1, steps.momentum]).astype(np.float32)
        columns = problem.columns.astype(np.int32).view(np.float32)
        numbers = np.concatenate([steps.rates.astype(np.float32), per_model, columns[None]])
        return {"numbers": problem.backend.asarray(numbers), "steps": np.int32(len(steps.rates))}

    def _of_problem(self, problem: Problem) -> dict[str, Any]:
        """The kernel's arguments that stay as they are for a problem."""
        xp, weight, targets = problem.backend.xp, problem.sample_weight, problem.targets
        soft = targets.ndim == 2
        if not soft and dtype_name(targets) not in ("int32", "int64"):
            targets = xp.astype(targets, xp.int32)
        return {
            "batch": np.int32(self.batch),
            "d": np.int32(problem.data.n_features),
            "classes": np.int32(problem.n_classes),
            "copy": np.int32(self.copy),
            # Of an integer of 64 bits, the kernel reads the lower half.
            "label": None if soft else targets,
            "label_words": np.int32(targets.dtype.itemsize // 4),
            "target": targets if soft else None,
            "weight": weight,
            "score_weight": None if weight is None else problem.score_weight,
            "u": np.int32(1 if weight is None else weight.shape[1]),
            "smoothing": problem.smoothing,
            "mean": problem.mean,
            "inverse_scale": problem.inverse_scale,
            "fit_intercept": np.int32(problem.fit_intercept),
        }

    @cached_property
    def _kernel(self) -> Any:
        found = kernel(self.build.unit(), "few_classes", self.device.index)
        if self.build.CLUSTER > _PORTABLE:
            from cupy_backends.cuda.api import driver

            driver.funcSetAttribute(found.kernel.ptr, _LARGER_CLUSTERS, 1)
        return found

    def _launch(self, values: dict[str, Any]) -> None:
        self._kernel(
            (len(values["coef"]) * self.build.CLUSTER,),
            (THREADS,),
            tuple(argument(values[name]) for name in PARAMETERS),
            shared_mem=self.build.shared_bytes,
        )


def _build(device: Device, size: int, k: int, d: int, m: int) -> Build | None:
    """The build for so many classes, features and models; None if there is none."""
    for build in builds():
        if size != build.DATA_BYTES or d > build.n_features:
            continue
        if k > build.CLASSES:
            continue
        if build.shared_bytes > device.shared_bytes:
            continue
        large = build.CLUSTER > _PORTABLE
        if large and device.shared_bytes < _LARGE_MEMORY:
            continue
        # Where models share the device, more blocks for each are of no use.
        first_choice = size == 1 and build.PER == 2
        if first_choice and m * _PER_MODEL > device.n_processors:
            continue
        return build if _is_worthwhile(build, device, d, m) else None
    return None


def _is_worthwhile(build: Build, device: Device, d: int, m: int) -> bool:
    many, few = _WORTH[build.DATA_BYTES]
    is_full = m * build.CLUSTER > device.n_processors
    return d >= (many if is_full else few) * build.n_features


def units() -> list[Unit]:
    """What is compiled ahead: for the commonest numbers of classes."""
    return [build.unit() for build in builds() if build.CLASSES in (2, 10)]

"""Dense rows on a CUDA device: all steps of an epoch in one launch.

The kernel is `sgd_epoch.cu`, which says how it works. Here its build is chosen, and its arguments
are laid out. Shapes are those of `skmax.problem`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from skmax.backends.array_api import dtype_name
from skmax.backends.device_code import Unit, kernel
from skmax.data.device import ALIGNMENT, DeviceRows
from skmax.problem import BatchSums, Problem, State, Steps

SOURCE = "sgd_epoch.cu"
# Types of X that the kernel reads, as it names them.
DATA = {
    "bool": "unsigned char",
    "uint8": "unsigned char",
    "int8": "signed char",
    "uint16": "unsigned short",
    "int16": "short",
    "float16": "half",
    "float32": "float",
    "float64": "double",
}
# In the order of the kernel's parameters.
PARAMETERS = (
    *("X", "place", "n", "batch", "d", "shift", "label", "target", "weight", "score_weight", "u"),
    *("column", "smoothing", "mean", "inverse_scale", "rate", "l2", "l1", "momentum"),
    *("fit_intercept", "coef", "velocity", "intercept", "intercept_velocity", "sums"),
    *("slice", "tile", "groups"),
)
THREADS, WARP = 256, 32
# Bytes that a thread may sum at once: more would not stay in its registers.
_SUMS, _GRADIENTS, _MOST_CLASSES = 320, 384, 128
# Rows that the kernel can count.
MOST_ROWS = 2**31 - 1
# Multiply-adds per cycle of a multiprocessor, and the cycles that going on to the next tile takes.
_LANES, _TURN = 128, 500
# Features that make a block worthwhile, the most blocks of a cluster on any device that has
# clusters, and the compute capability of the first of them, times ten.
_SLICE, _CLUSTER, _CLUSTERS_FROM = 32, 8, 90
# Processors that any group of them has.
_NEIGHBOURS = 16
# Bytes of shared memory that each block takes beside its own.
_RESERVED = 1024


@dataclass(frozen=True)
class Build:
    """The kernel for a kind of problem: what its source says that the build defines."""

    REAL: str
    DATA: str
    K: int
    CLUSTER: int
    THREADS: int
    ROWS: int
    SHARE: int
    V: int
    SHIFTED: int
    COPY: int

    def unit(self) -> Unit:
        """What is compiled."""
        defined = ((field.name, getattr(self, field.name)) for field in fields(self))
        options = ("-std=c++17", *(f"-D{name}={value}" for name, value in defined))
        return Unit((SOURCE,), options, 80 if self.CLUSTER == 1 else _CLUSTERS_FROM)

    def shared_bytes(self, batch: int, slice_: int, tile: int, groups: int) -> int:
        """What `lay_out` and `cut` take of a block's memory in the kernel."""
        real = 8 if self.REAL == "double" else 4
        data = next(np.dtype(name).itemsize for name, type_ in DATA.items() if type_ == self.DATA)
        owned, warps = -(-batch // self.CLUSTER), self.THREADS // WARP
        across = min(self.THREADS, -(-batch // WARP) * WARP)
        stride = tile if tile // self.V % 2 else tile + self.V
        reals = [self.K * slice_] * 2 + [self.K * slice_ // self.V]
        reals += [slice_] * 3 + [groups * self.K * tile]
        reals += [batch * (-(-self.K // 4) * 4)]
        reals += [self.CLUSTER * (self.THREADS // across) * owned * self.K]
        reals += [self.K] * 3 + [self.CLUSTER * self.K, self.CLUSTER * warps * self.K]
        reals += [2 * owned, 2 * owned]
        pieces = [16 * self.THREADS, *(real * count for count in reals), 8 * owned, 8 * batch]
        return sum(-(-piece // 16) * 16 for piece in [*pieces, 2 * batch * stride * data])


@dataclass(frozen=True)
class Device:
    """What of a device decides how the kernel is built."""

    index: int
    n_processors: int
    shared_bytes: int  # that a block may have
    cluster: int  # the most blocks that a model gets
    threads: int  # that a block gets
    shared_bytes_in_all: int = 0  # of a multiprocessor

    def blocks(self, shared_bytes: int, most: int) -> int:
        """How many blocks can run at once, at most so many on a multiprocessor."""
        of_each = shared_bytes + _RESERVED
        return self.n_processors * min(most, self.shared_bytes_in_all // of_each)

    @classmethod
    def of(cls, device: Any) -> Device:
        """What a `cupy.cuda.Device` says of itself."""
        attributes = device.attributes
        return cls(
            device.id,
            attributes["MultiProcessorCount"],
            attributes["MaxSharedMemoryPerBlockOptin"],
            _CLUSTER if int(device.compute_capability) >= _CLUSTERS_FROM else 1,
            THREADS,
            attributes["MaxSharedMemoryPerMultiprocessor"],
        )


class Shape(NamedTuple):
    """What of a problem decides how the kernel is built."""

    n_models: int
    n_classes: int
    n_features: int
    batch: int
    data: str  # the dtype of X
    real: int  # bytes of a weight
    shifted: bool
    aligned: bool


@dataclass(frozen=True)
class Plan:
    """How the epochs of a problem run on a device; calling it runs one."""

    build: Build
    device: Device
    batch: int  # rows per step
    slice_: int  # features per block
    tile: int  # features that are in shared memory together
    groups: int  # the parts in which a block sums a batch's gradient
    shared_bytes: int  # per block

    @classmethod
    def of(cls, problem: Problem, batch_size: int, device: Device) -> Plan | None:
        """The plan for a problem; None if the kernel does not serve it."""
        data, (m, k) = problem.data, problem.masked.shape
        if not isinstance(data, DeviceRows) or data.n_samples > MOST_ROWS:
            return None
        name, real = dtype_name(data.X), np.dtype(data.dtype).itemsize
        if name not in DATA or k * real > _MOST_CLASSES or not data.alignment:
            return None
        return _plan(
            device,
            Shape(
                n_models=m,
                n_classes=k,
                n_features=data.n_features,
                batch=min(batch_size, len(problem.order)),
                data=name,
                real=real,
                shifted=data.subtrahend is not None,
                aligned=data.alignment == ALIGNMENT,
            ),
        )

    def cycles(self) -> float:
        """About how long a step takes: what plans are compared by."""
        build, quads = self.build, self.tile // self.build.V
        product = self.batch * build.K * self.slice_ / _LANES
        backward = product * build.THREADS / (quads * self.groups)
        update = build.K * self.slice_ * self.groups / _LANES
        return product + backward + update + _TURN * 2 * -(-self.slice_ // self.tile)

    def __call__(self, problem: Problem, state: State, steps: Steps) -> tuple[State, BatchSums]:
        """What `skmax.solvers.sgd.sgd_epoch` does. It returns before the device is done."""
        xp, data, m = problem.backend.xp, problem.data, problem.n_models
        assert isinstance(data, DeviceRows)
        state = State(  # these are written to
            *(data.backend.copy(getattr(state, part.name)) for part in fields(state))
        )
        values = of_epoch(problem, steps) | of_state(state)
        values |= {
            "batch": np.int32(self.batch),
            "slice": np.int32(self.slice_),
            "tile": np.int32(self.tile),
            "groups": np.int32(self.groups),
        }
        rate: Any = values["rate"]
        total: Any = None
        for X, place, visits, part in data.segments(steps.order, self.batch):
            sums = xp.empty((self.build.CLUSTER, 2, m), dtype=xp.float64)
            values |= _of_rows(problem, visits)
            values |= {"X": X, "place": place, "n": np.int32(len(place)), "sums": sums}
            values["rate"] = rate[part.start // self.batch :]
            self._launch(values)
            part_total = data.backend.total(sums)
            total = part_total if total is None else total + part_total
        return state, BatchSums(total[0], total[1])

    def _launch(self, values: dict[str, Any]) -> None:
        compiled(self.build, self.device.index)(
            (len(values["coef"]) * self.build.CLUSTER,),
            (self.build.THREADS,),
            tuple(argument(values[name]) for name in PARAMETERS),
            shared_mem=self.shared_bytes,
        )


def argument(value: Any) -> Any:
    """What a kernel is given for an array, a number, or nothing."""
    if value is None:
        return np.uintp(0)
    if isinstance(value, np.generic) or value.flags.c_contiguous:
        return value
    import cupy

    return cupy.ascontiguousarray(value)  # a kernel sees no strides


def which(index: Any) -> tuple[Any, Any]:
    """What a kernel is given for an index of `Rows.pieces`: that, or where its range begins."""
    if isinstance(index, slice):
        return None, np.int64(index.start)
    return index, np.int64(0)


def of_state(state: State, prefix: str = "") -> dict[str, Any]:
    """A kernel's arguments for a state, each with a prefix."""
    return {
        f"{prefix}coef": state.coef,
        f"{prefix}velocity": state.coef_velocity,
        f"{prefix}intercept": state.intercept,
        f"{prefix}intercept_velocity": state.intercept_velocity,
    }


def of_epoch(problem: Problem, steps: Steps) -> dict[str, Any]:
    """The kernel's arguments that stay as they are for an epoch."""
    backend, weight = problem.backend, problem.sample_weight
    per_model = np.stack([problem.l2, problem.l1, steps.momentum])
    # All numbers in one transfer.
    numbers = np.concatenate([steps.rates, per_model]).astype(problem.data.dtype)
    numbers = backend.asarray(numbers)
    l2, l1, momentum = numbers[len(steps.rates) :]
    return {
        "d": np.int32(problem.data.n_features),
        "shift": problem.data.subtrahend,
        "u": np.int32(1 if weight is None else weight.shape[1]),
        "column": problem.columns_there,
        "smoothing": problem.smoothing,
        "mean": problem.mean,
        "inverse_scale": problem.inverse_scale,
        "rate": numbers[: len(steps.rates)],
        "l2": l2,
        "l1": l1,
        "momentum": momentum,
        "fit_intercept": np.int32(problem.fit_intercept),
    }


def _of_rows(problem: Problem, visits: Any) -> dict[str, Any]:
    """The kernel's arguments about the rows visited, in the order of the visits."""
    take, weight, score_weight = problem.backend.take, problem.sample_weight, problem.score_weight
    target, soft = take(problem.targets, visits), problem.targets.ndim == 2
    if weight is None:
        score_weight = None
    return {
        "label": None if soft else target,
        "target": target if soft else None,
        "weight": None if weight is None else take(weight, visits),
        "score_weight": None if score_weight is None else take(score_weight, visits),
    }


@cache
def _plan(device: Device, shape: Shape) -> Plan | None:
    # The blocks of a cluster are neighbours: of a group of processors, some may be left over.
    free = device.n_processors - device.n_processors % _NEIGHBOURS
    best = max(1, min(free // shape.n_models, shape.n_features // _SLICE, device.cluster))
    clusters = [1 << i for i in range(device.cluster.bit_length())]
    for cluster in clusters[best.bit_length() - 1 :]:  # with more blocks, each needs less memory
        plans = [
            plan
            for plan in _variants(device, shape, cluster)
            if plan.shared_bytes <= device.shared_bytes
        ]
        if plans:
            return min(plans, key=Plan.cycles)
    return None


def _variants(device: Device, shape: Shape, cluster: int) -> Iterator[Plan]:
    """Plans with so many blocks per model, which differ in their tiles and groups."""
    k, d, real, threads = shape.n_classes, shape.n_features, shape.real, device.threads
    size, slice_, rows = (
        np.dtype(shape.data).itemsize,
        -(-d // (4 * cluster)) * 4,
        -(-shape.batch // threads),
    )
    if rows * k * real > _SUMS:
        return
    v = next(  # a thread loads and stores up to 16 bytes at once
        v
        for v in (4, 2, 1)
        if v == 1 or (v * max(size, real) <= 16 and v * k * real <= _GRADIENTS and slice_ > v * 8)
    )
    copied = shape.aligned and v * size % 4 == 0 and d * size % (v * size) == 0
    build = Build(
        REAL="double" if real == 8 else "float",
        DATA=DATA[shape.data],
        K=k,
        CLUSTER=cluster,
        THREADS=threads,
        ROWS=rows,
        SHARE=max(n for n in (1, 2, 4) if n == 1 or n * rows * k * real <= _SUMS),
        V=v,
        SHIFTED=int(shape.shifted),
        COPY=v * size if copied else 0,
    )
    for share in (1, 2, 4, 8):
        for n_tiles in range(1, slice_ // 4 + 1):
            tile = -(-slice_ // (4 * n_tiles)) * 4
            groups = threads // (tile // v) // share
            if groups:
                shared_bytes = build.shared_bytes(shape.batch, slice_, tile, groups)
                yield Plan(build, device, shape.batch, slice_, tile, groups, shared_bytes)


def units() -> list[Unit]:
    """What is compiled ahead: the commonest builds, for devices without clusters."""
    device = Device(0, 108, 166912, 1, THREADS, 0)
    shapes = [
        Shape(1, k, 784, 200, data, real=4, shifted=False, aligned=True)
        for k in (2, 10)
        for data in ("uint8", "float32")
    ]
    plans = [_plan(device, shape) for shape in shapes]
    return [plan.build.unit() for plan in plans if plan is not None]


def compiled(build: Build, index: int) -> Any:
    """The kernel, ready for the device of that number, which is the current one."""
    return kernel(build.unit(), "sgd_epoch", index)

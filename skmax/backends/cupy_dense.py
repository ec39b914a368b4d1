"""What CuPy does faster than the reference on dense rows: all steps of an epoch in one launch.

The kernel is `sgd_epoch.cu`, which says how it works. Here its build is chosen, and its arguments
are laid out. Shapes are those of `skmax.problem`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from skmax.backends.array_api import dtype_name

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
THREADS, WARP = 256, 32
# Numbers of 4 bytes that a thread may sum at once: more would not stay in its registers.
_SUMS, _GRADIENTS, _MOST_CLASSES = 80, 96, 32
# Multiply-adds per cycle of a multiprocessor, and the cycles that going on to the next tile takes.
_LANES, _TURN = 128, 500
# Bytes that X begins at a multiple of, where nothing speaks against it.
ALIGNMENT = 16
# Features that make a block worthwhile, the most blocks of a cluster on any device that has
# clusters, and the compute capability of the first of them, times ten.
_SLICE, _CLUSTER, _CLUSTERS_FROM = 32, 8, 90
# Processors that any group of them has.
_NEIGHBOURS = 16


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

    def options(self) -> tuple[str, ...]:
        """Options of the compiler."""
        defined = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ("-std=c++17", *(f"-D{name}={value}" for name, value in defined))

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
    """What of a device decides how the kernel is built.

    Attributes
    ----------
    index : int
        Its number.
    n_processors : int
        Its multiprocessors.
    shared_bytes : int
        Shared memory that a block may have.
    cluster : int
        The most blocks that a model gets.
    threads : int
        Threads that a block gets.
    """

    index: int
    n_processors: int
    shared_bytes: int
    cluster: int
    threads: int

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
        )


@dataclass(frozen=True)
class Plan:
    """How the epochs of a problem run on a device; calling it runs one.

    Attributes
    ----------
    build : Build
        The kernel.
    device : Device
        Where.
    batch : int
        Rows per step.
    slice_ : int
        Features per block.
    tile : int
        Features that are in shared memory together.
    groups : int
        In how many parts a block sums a batch's gradient.
    shared_bytes : int
        Shared memory per block.
    """

    build: Build
    device: Device
    batch: int
    slice_: int
    tile: int
    groups: int
    shared_bytes: int

    @classmethod
    def of(cls, problem: Any, batch_size: int, device: Device) -> Plan | None:
        """The plan for a problem on dense rows; None if the kernel does not serve it."""
        data, batch = problem.data, min(batch_size, len(problem.order))
        (m, k), d, name = problem.masked.shape, data.n_features, dtype_name(data.X)
        words = np.dtype(data.dtype).itemsize // 4
        if name not in DATA or words * k > _MOST_CLASSES or not data.alignment:
            return None
        shifted, aligned = data.subtrahend is not None, data.alignment == ALIGNMENT
        return _plan(device, m, k, d, batch, name, words, shifted, aligned)

    def cycles(self) -> float:
        """About how long a step takes: what plans are compared by."""
        build, quads = self.build, self.tile // self.build.V
        product = self.batch * build.K * self.slice_ / _LANES
        backward = product * build.THREADS / (quads * self.groups)
        update = build.K * self.slice_ * self.groups / _LANES
        return product + backward + update + _TURN * 2 * -(-self.slice_ // self.tile)

    def __call__(
        self, problem: Any, state: Any, solver: Any, order: np.ndarray, rates: np.ndarray
    ) -> tuple[Any, tuple[Any, Any]]:
        """What `skmax.solvers.sgd.sgd_epoch` does. It returns before the device is done."""
        backend, dtype, m = problem.backend, problem.data.dtype, problem.n_models
        xp, d, batch = backend.xp, problem.data.n_features, self.batch
        per_model = [problem.l2, problem.l1, solver.momentum, solver.learning_rate]
        numbers = backend.asarray(np.vstack([rates, *per_model]).astype(dtype))  # in one transfer
        l2, l1, momentum, settle_rate = numbers[len(rates) :]
        columns = backend.asarray(problem.columns.astype(np.int32))
        # These are written to.
        changed = {
            field.name: xp.asarray(getattr(state, field.name), copy=True, order="C")
            for field in fields(state)
        }
        lasso, weight = bool(problem.l1.any()), problem.sample_weight
        gradient_sum = xp.zeros_like(state.coef) if lasso else None
        total: Any = 0
        for X, place, visits, piece in problem.data.pieces(order, batch):
            soft = problem.targets.ndim == 2
            target = xp.take(problem.targets, visits, axis=0)
            sums = xp.empty((m, self.build.CLUSTER, 2), dtype=xp.float64)
            arguments = (
                X,
                place,
                np.int32(len(place)),
                np.int32(batch),
                np.int32(d),
                problem.data.subtrahend,
                None if soft else xp.astype(target, xp.int32),
                target if soft else None,
                _taken(xp, weight, visits),
                None if weight is None else _taken(xp, problem.score_weight, visits),
                np.int32(1 if weight is None else weight.shape[1]),
                columns,
                problem.smoothing,
                problem.mean,
                problem.inverse_scale,
                numbers[piece.start // batch :],
                l2,
                l1,
                momentum,
                settle_rate,
                np.int32(len(order) if lasso and piece.stop == len(order) else 0),
                np.int32(problem.fit_intercept),
                changed["coef"],
                changed["coef_velocity"],
                changed["intercept"],
                changed["intercept_velocity"],
                gradient_sum,
                sums,
                np.int32(self.slice_),
                np.int32(self.tile),
                np.int32(self.groups),
            )
            null, contiguous = np.uintp(0), backend.cupy.ascontiguousarray
            compiled(self.build, self.device)(
                (m * self.build.CLUSTER,),
                (self.build.THREADS,),
                tuple(
                    null
                    if argument is None
                    # A kernel sees no strides.
                    else argument
                    if isinstance(argument, np.generic)
                    else contiguous(argument)
                    for argument in arguments
                ),
                shared_mem=self.shared_bytes,
            )
            total = total + xp.sum(sums, axis=1)
        return replace(state, **changed), (total[:, 0], total[:, 1])


@cache
def _plan(
    device: Device,
    m: int,
    k: int,
    d: int,
    batch: int,
    name: str,
    words: int,
    shifted: bool,
    aligned: bool,
) -> Plan | None:
    # The blocks of a cluster are neighbours: of a group of processors, some may be left over.
    free = device.n_processors - device.n_processors % _NEIGHBOURS
    best = max(1, min(free // m, d // _SLICE, device.cluster))
    clusters = [1 << i for i in range(device.cluster.bit_length())]
    for cluster in clusters[best.bit_length() - 1 :]:  # with more blocks, each needs less memory
        plans = [
            plan
            for plan in _variants(device, cluster, k, d, batch, name, words, shifted, aligned)
            if plan.shared_bytes <= device.shared_bytes
        ]
        if plans:
            return min(plans, key=Plan.cycles)
    return None


def _variants(
    device: Device,
    cluster: int,
    k: int,
    d: int,
    batch: int,
    name: str,
    words: int,
    shifted: bool,
    aligned: bool,
) -> Iterator[Plan]:
    """Plans with so many blocks per model, which differ in their tiles and groups."""
    size, slice_ = np.dtype(name).itemsize, -(-d // (4 * cluster)) * 4
    v = next(  # a thread loads and stores up to 16 bytes at once
        v
        for v in (4, 2, 1)
        if v == 1
        or (v * max(size, 4 * words) <= 16 and v * k * words <= _GRADIENTS and slice_ > v * 8)
    )
    copy, rows = v * size, -(-batch // device.threads)
    build = Build(
        REAL="double" if words == 2 else "float",
        DATA=DATA[name],
        K=k,
        CLUSTER=cluster,
        THREADS=device.threads,
        ROWS=rows,
        SHARE=max(n for n in (1, 2, 4) if n == 1 or n * rows * k * words <= _SUMS),
        V=v,
        SHIFTED=int(shifted),
        COPY=copy if aligned and copy % 4 == 0 and d * size % copy == 0 else 0,
    )
    if rows * k * words > _SUMS:
        return
    for share in (1, 2, 4, 8):
        for n_tiles in range(1, slice_ // 4 + 1):
            tile = -(-slice_ // (4 * n_tiles)) * 4
            groups = device.threads // (tile // v) // share
            if groups:
                shared_bytes = build.shared_bytes(batch, slice_, tile, groups)
                yield Plan(build, device, batch, slice_, tile, groups, shared_bytes)


def _taken(xp: Any, weights: Any, visits: Any) -> Any:
    return None if weights is None else xp.take(weights, visits, axis=0)


def source() -> str:
    """The kernel's source."""
    return resources.files(__package__).joinpath("sgd_epoch.cu").read_text(encoding="utf-8")


@cache
def compiled(build: Build, device: Device) -> Any:
    """The kernel, ready for a device, which is the current one."""
    import cupy

    kernel = cupy.RawModule(code=source(), options=build.options()).get_function("sgd_epoch")
    # Once for all launches: equal builds share what is set here.
    kernel.max_dynamic_shared_size_bytes = device.shared_bytes
    return kernel

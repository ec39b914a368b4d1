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
_SUMS, _GRADIENTS, _MOST_CLASSES = 80, 128, 32
# Features that make a block of a cluster worthwhile; and the first devices that have clusters.
_SLICE, _CLUSTERS_FROM = 32, 90


@dataclass(frozen=True)
class Build:
    """The kernel for a kind of problem: what its source says that the build defines."""

    REAL: str
    DATA: str
    K: int
    CLUSTER: int
    THREADS: int
    ROWS: int
    V: int
    ALIGNED: int
    STAGED: int

    def options(self) -> tuple[str, ...]:
        """Options of the compiler."""
        defined = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ("-std=c++17", *(f"-D{name}={value}" for name, value in defined))

    def shared_bytes(self, batch: int, slice_: int, groups: int) -> int:
        """What `Shared` takes of a block's memory in the kernel."""
        real = 8 if self.REAL == "double" else 4
        owned, weights = -(-batch // self.CLUSTER), self.K * slice_
        data = next(np.dtype(name).itemsize for name, type_ in DATA.items() if type_ == self.DATA)
        reals = [weights, weights, groups * weights, slice_, slice_, slice_]
        reals += [batch * (-(-self.K // 4) * 4), self.CLUSTER * owned * self.K, self.K, self.K]
        reals += [self.CLUSTER * self.K, self.CLUSTER * (self.THREADS // WARP) * self.K]
        halves = [
            owned * real,
            owned * real,
            owned * 4,
            batch * 4,
            batch * slice_ * data * self.STAGED,
        ]
        pieces = [16 * self.THREADS, *(real * count for count in reals), *(2 * h for h in halves)]
        return sum(-(-piece // 16) * 16 for piece in pieces)


@dataclass(frozen=True)
class Device:
    """What of a device decides how the kernel is built.

    Attributes
    ----------
    index : int
        Its number.
    capability : int
        Ten times its compute capability.
    n_processors : int
        Its multiprocessors.
    shared_bytes : int
        Shared memory that a block may have.
    """

    index: int
    capability: int
    n_processors: int
    shared_bytes: int

    @classmethod
    def of(cls, device: Any) -> Device:
        """What a `cupy.cuda.Device` says of itself."""
        attributes = device.attributes
        return cls(
            device.id,
            int(device.compute_capability),
            attributes["MultiProcessorCount"],
            attributes["MaxSharedMemoryPerBlockOptin"],
        )


@dataclass(frozen=True)
class Plan:
    """How the epochs of a problem run on a device; calling it runs one.

    Attributes
    ----------
    build : Build
        The kernel.
    device : int
        Number of the device.
    batch : int
        Rows per step.
    slice_ : int
        Features per block.
    groups : int
        In how many parts a block sums a batch's gradient.
    shared_bytes : int
        Shared memory per block.
    """

    build: Build
    device: int
    batch: int
    slice_: int
    groups: int
    shared_bytes: int

    @classmethod
    def of(cls, problem: Any, batch_size: int, device: Device) -> Plan | None:
        """The plan for a problem on dense rows; None if the kernel does not serve it."""
        data, (m, k) = problem.data, problem.masked.shape
        d, batch = data.n_features, min(batch_size, len(problem.order))
        words = np.dtype(data.dtype).itemsize // 4
        if dtype_name(data.X) not in DATA or words * k > _MOST_CLASSES or not data.alignment:
            return None
        clusters = [1]
        if device.capability >= _CLUSTERS_FROM:
            most = min(device.n_processors // m, d // _SLICE, 8)
            best = next(cluster for cluster in (8, 4, 2, 1) if cluster <= max(1, most))
            clusters = [cluster for cluster in (1, 2, 4, 8) if cluster >= best]
        for cluster in clusters:
            for plan in cls._variants(problem, batch, device, cluster):
                if plan.shared_bytes <= device.shared_bytes:
                    return plan
        return None

    @classmethod
    def _variants(cls, problem: Any, batch: int, device: Device, cluster: int) -> Iterator[Plan]:
        """Plans with so many blocks per model, from the best to the one that needs least memory."""
        data, k, d = problem.data, problem.n_classes, problem.data.n_features
        name, words = dtype_name(data.X), np.dtype(data.dtype).itemsize // 4
        size = np.dtype(name).itemsize
        slice_ = -(-d // (4 * cluster)) * 4
        # A thread loads and stores up to 16 bytes at once.
        v = next(
            v
            for v in (4, 2, 1)
            if v == 1
            or (v * max(size, 4 * words) <= 16 and v * k * words <= _GRADIENTS and slice_ > v * 16)
        )
        rows = next(
            r
            for r in (8, 4, 2, 1)
            if r == 1 or (r * k * words <= _SUMS and r * THREADS <= batch * WARP)
        )
        aligned = d % v == 0 and d * size % 4 == 0 and data.alignment == 16
        build = Build(
            REAL="double" if words == 2 else "float",
            DATA=DATA[name],
            K=k,
            CLUSTER=cluster,
            THREADS=THREADS,
            ROWS=rows,
            V=v,
            ALIGNED=int(aligned),
            STAGED=0,
        )
        groups = max(1, THREADS // WARP // -(-slice_ // (WARP * v)))
        while groups:
            for staged in (1, 0) if aligned else (0,):
                mine = replace(build, STAGED=staged)
                shared_bytes = mine.shared_bytes(batch, slice_, groups)
                yield cls(mine, device.index, batch, slice_, groups, shared_bytes)
            groups //= 2

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
            field.name: xp.asarray(getattr(state, field.name), copy=True) for field in fields(state)
        }
        lasso, weight = bool(problem.l1.any()), problem.sample_weight
        gradient_sum = xp.zeros_like(state.coef) if lasso else None
        total: Any = 0
        for X, place, piece in problem.data.pieces(order, batch):
            visits = backend.asarray(order[piece])
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
                np.int32(self.groups),
            )
            null = np.uintp(0)
            compiled(self.build, self.device, self.shared_bytes)(
                (m * self.build.CLUSTER,),
                (THREADS,),
                tuple(null if argument is None else argument for argument in arguments),
                shared_mem=self.shared_bytes,
            )
            total = total + xp.sum(sums, axis=1)
        return replace(state, **changed), (total[:, 0], total[:, 1])


def _taken(xp: Any, weights: Any, visits: Any) -> Any:
    return None if weights is None else xp.take(weights, visits, axis=0)


def source() -> str:
    """The kernel's source."""
    return resources.files(__package__).joinpath("sgd_epoch.cu").read_text(encoding="utf-8")


@cache
def compiled(build: Build, device: int, shared_bytes: int) -> Any:  # noqa: ARG001
    """The kernel, ready for a device, which is the current one, and for so much shared memory."""
    import cupy

    kernel = cupy.RawModule(code=source(), options=build.options()).get_function("sgd_epoch")
    kernel.max_dynamic_shared_size_bytes = shared_bytes
    return kernel

"""Sparse rows on a CUDA device: all steps of an epoch in one launch.

The kernel is `sparse_rows.cu`, which says how it works. Here its launch is planned, and its
arguments are laid out. Shapes are those of `skmax.problem`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from math import isqrt
from typing import Any

import numpy as np

from skmax.kernels.cuda import Device, argument, of_epoch
from skmax.problem import BatchSums, Problem, State, Steps

# In the order of the kernels' parameters.
KEYS = ("features", "starts", "visit", "n", "batch", "d", "low", "keys", "place")
PARAMETERS = (
    *("values", "features", "starts", "visit", "keys", "place", "entries", "low", "n", "batch"),
    *("d", "classes", "models", "piece", "pieces", "label", "target", "weight", "score_weight"),
    *("u", "column", "smoothing", "mean", "inverse_scale", "rate", "l2", "l1", "momentum"),
    *("fit_intercept", "coef", "velocity", "intercept", "intercept_velocity", "new_coef"),
    *("new_velocity", "new_intercept", "new_intercept_velocity", "sums", "counter", "memory"),
)
_WARP = 32
# Bytes that a thread reads at once.
_WIDE = 16
# Threads of a block, as multiples of what another kernel has, and blocks of a multiprocessor: all
# that 64 registers each leave room for, in few blocks, since these wait for each other.
_TIMES, _BLOCKS = 2, 2
# Entries of a piece of which a thread sums the gradient, and how many times the mean batch's there
# is memory for; those of a larger batch have more entries.
_PIECE, _ROOM = 16, 2
# Bits of a key, without the sign.
_KEY = 63
# Bytes that are there without asking, which takes a while.
_FREE = 1 << 28


@dataclass(frozen=True)
class Build:
    """The kernel for a kind of problem: what its source says that the build defines."""

    REAL: str
    VECTOR: int
    THREADS: int
    BLOCKS: int = _BLOCKS

    def options(self) -> tuple[str, ...]:
        """Options of the compiler."""
        defined = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ("-std=c++17", *(f"-D{name}={value}" for name, value in defined))

    @property
    def shared_bytes(self) -> int:
        """What a block takes of shared memory."""
        return self.THREADS * _WIDE


@dataclass(frozen=True)
class Plan:
    """How the epochs of a problem run on a device; calling it runs one."""

    build: Build
    device: Device
    batch: int  # rows per step
    low: int  # bits that count the entries
    piece: int  # entries
    pieces: int  # of a step that there is memory for
    blocks: int

    @classmethod
    def of(cls, problem: Problem, batch_size: int, device: Device) -> Plan | None:
        """The plan for a problem; None if the kernel does not serve it."""
        data, (m, k) = problem.data, problem.masked.shape
        if data.shift is not None or data.X.data.dtype != data.dtype:
            return None
        size, n = data.X.data.itemsize, len(problem.order)
        batch = min(batch_size, n)
        low, steps = int(data.X.nnz).bit_length(), -(-n // batch)
        if ((steps + 1) * data.n_features).bit_length() + low > _KEY:
            return None
        build = Build(
            "double" if size == 8 else "float",
            2 if k == 2 else _WIDE // size,  # of two classes, more would be zeros
            _TIMES * device.threads,
        )
        chunks = -(-k // build.VECTOR)
        warps = batch * m * (1 if chunks <= _WARP else build.THREADS // _WARP)
        threads = max(data.n_features * m * chunks, _WARP * warps)
        blocks = min(device.blocks(build.shared_bytes, _BLOCKS), -(-threads // build.THREADS))
        if m * chunks > blocks * build.THREADS:  # a thread has features of one
            return None
        piece = max(_PIECE, isqrt(batch))
        pieces = 1 + int(_ROOM * batch * data.values_per_row) // piece
        plan = cls(build, device, batch, low, piece, pieces, blocks)
        return plan if plan._fits(problem) else None

    def _fits(self, problem: Problem) -> bool:
        """Whether there is memory."""
        of_entry = 3 * np.dtype(np.int64).itemsize  # keys, sorted, and places
        n_bytes = self._n_bytes(problem) + of_entry * problem.data.X.nnz
        return n_bytes <= _FREE or n_bytes <= problem.backend.free_bytes()

    def __call__(self, problem: Problem, state: State, steps: Steps) -> tuple[State, BatchSums]:
        """What `skmax.solvers.sgd.sgd_epoch` does. It returns before the device is done."""
        xp, data, soft = problem.backend.xp, problem.data, problem.targets.ndim == 2
        (m, k), d, nnz = problem.masked.shape, data.n_features, int(data.X.nnz)
        shapes = ((m, k, d), (m, k)) * 2
        after = State(*(xp.empty(shape, dtype=data.dtype) for shape in shapes))
        sums = xp.empty((2, m), dtype=xp.float64)
        values = of_epoch(problem, steps) | {
            "values": data.X.data,
            "features": data.X.indices,
            "starts": data.X.indptr,
            "visit": problem.backend.asarray(steps.order.astype(np.int32)),
            "keys": xp.zeros(nnz, dtype=xp.int64),
            "place": xp.empty(nnz, dtype=xp.int32),
            "entries": np.int32(nnz),
            "low": np.int32(self.low),
            "n": np.int32(len(steps.order)),
            "batch": np.int32(self.batch),
            "classes": np.int32(k),
            "models": np.int32(m),
            "piece": np.int32(self.piece),
            "pieces": np.int32(self.pieces),
            "label": None if soft else xp.astype(problem.targets, xp.int64, copy=False),
            "target": problem.targets if soft else None,
            "weight": problem.sample_weight,
            "score_weight": None if problem.sample_weight is None else problem.score_weight,
            "coef": state.coef,
            "velocity": state.coef_velocity,
            "intercept": state.intercept,
            "intercept_velocity": state.intercept_velocity,
            "new_coef": after.coef,
            "new_velocity": after.coef_velocity,
            "new_intercept": after.intercept,
            "new_intercept_velocity": after.intercept_velocity,
            "sums": sums,
            "counter": xp.zeros(2, dtype=xp.uint32),
            "memory": xp.empty(self._n_bytes(problem), dtype=xp.uint8),
        }
        if nnz:
            self._launch("keys_of_entries", KEYS, values)
            values["keys"].sort()
        self._launch("sgd_epoch_of_sparse_rows", PARAMETERS, values)
        return after, BatchSums(sums[0, :], sums[1, :])

    def _n_bytes(self, problem: Problem) -> int:
        """What `Scratch` takes in the kernel."""
        (m, k), d, nnz = problem.masked.shape, problem.data.n_features, int(problem.data.X.nnz)
        real, threads = (8 if self.build.REAL == "double" else 4), self.blocks * self.build.THREADS
        chunks = m * -(-k // self.build.VECTOR)
        parts = self.blocks if chunks <= self.build.THREADS else threads // chunks
        steps = -(-len(problem.order) // self.batch)
        rows = d, d, self.batch, 2 * self.pieces, parts, 1, 1, 1, 1
        pieces = [real * chunks * self.build.VECTOR * count for count in rows]
        pieces += [16 * self.batch * m, 2 * real * nnz, 4 * nnz, 8 * d, 4 * (steps + 1)]
        return sum(-(-piece // 16) * 16 for piece in pieces)

    def _launch(self, name: str, parameters: tuple[str, ...], values: dict[str, Any]) -> None:
        compiled(self.build, self.device.index, name)(
            (self.blocks,),
            (self.build.THREADS,),
            tuple(argument(values[parameter]) for parameter in parameters),
            shared_mem=self.build.shared_bytes,
        )


def source() -> str:
    """The kernels' source."""
    folder = resources.files(__package__)
    return "\n".join(
        folder.joinpath(name).read_text(encoding="utf-8")
        for name in ("primitives.cuh", "sparse_rows.cu")
    )


@cache
def compiled(build: Build, index: int, name: str) -> Any:
    """A kernel, ready for the device of that number, which is the current one."""
    import cupy

    module = cupy.RawModule(code=source(), options=build.options(), enable_cooperative_groups=True)
    kernel = module.get_function(name)
    kernel.max_dynamic_shared_size_bytes = build.shared_bytes
    return kernel

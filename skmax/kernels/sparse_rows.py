"""Sparse rows on a CUDA device: all steps of an epoch in one launch.

The kernel is `sparse_rows.cu`, which says how it works. Here its launch is planned, and its
arguments are laid out. Shapes are those of `skmax.problem`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isqrt, prod
from typing import Any

import numpy as np

from skmax.backends.device_code import Unit, kernel
from skmax.kernels.cuda import THREADS, Device, argument, of_epoch, of_state
from skmax.problem import BatchSums, Problem, State, Steps

SOURCES = "primitives.cuh", "sparse_rows.cu"
# In the order of the kernels' parameters.
KEYS = ("features", "starts", "visit", "n", "batch", "d", "low", "keys", "place")
PARAMETERS = (
    *("values", "features", "starts", "visit", "keys", "place", "entries", "low", "n", "batch"),
    *("steps", "d", "classes", "models", "log_size", "pieces", "chunks", "all_chunks", "stride"),
    *("parts", "label", "target", "weight", "score_weight", "u", "column", "smoothing", "mean"),
    *("inverse_scale", "rate", "l2", "l1", "momentum", "fit_intercept", "coef", "velocity"),
    *("intercept", "intercept_velocity", "new_coef", "new_velocity", "new_intercept"),
    *("new_intercept_velocity", "sums", "counter", "of_coef", "of_velocity", "residual", "part"),
    *("product", "bias", "bias_velocity", "dot", "of_all", "of_rows", "entry", "feature", "run"),
    "first",
)
_WARP = 32
# Bytes that a thread reads at once.
_WIDE = 16
# Of a multiprocessor. They are few, since they wait for each other.
_BLOCKS = 2
# Entries of which one thread sums the gradient, at least, and how many times as many as the mean
# batch has there is memory for; of a larger batch, a thread has more.
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

    @classmethod
    def of(cls, size: int, k: int, threads: int) -> Build:
        """The build for weights of so many bytes, and half as many threads again as others have.

        Each then has 80 registers.
        """
        vector = 2 if k == 2 else _WIDE // size  # of two classes, more would be zeros
        return cls("double" if size == 8 else "float", vector, threads * 3 // 2)

    def unit(self) -> Unit:
        """What is compiled."""
        defined = ((field.name, getattr(self, field.name)) for field in fields(self))
        options = ("-std=c++17", *(f"-D{name}={value}" for name, value in defined))
        return Unit(SOURCES, options)

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
    steps: int
    low: int  # bits that count the entries
    log_size: int  # of the smallest piece of a batch's entries
    pieces: int  # that there is memory for
    chunks: int  # of a model's classes
    all_chunks: int  # of all models
    blocks: int

    @classmethod
    def of(cls, problem: Problem, batch_size: int, device: Device) -> Plan | None:
        """The plan for a problem; None if the kernel does not serve it."""
        data, n, (m, k) = problem.data, len(problem.order), problem.masked.shape
        if data.shift is not None or data.X.data.dtype != data.dtype:
            return None
        build, batch = Build.of(data.X.data.itemsize, k, device.threads), min(batch_size, n)
        low, steps, chunks = int(data.X.nnz).bit_length(), -(-n // batch), -(-k // build.VECTOR)
        if ((steps + 1) * data.n_features).bit_length() + low > _KEY:
            return None
        of_row = _WARP if chunks <= _WARP else build.THREADS
        threads = max(data.n_features * m * chunks, of_row * batch * m)
        blocks = min(device.blocks(build.shared_bytes, _BLOCKS), -(-threads // build.THREADS))
        if m * chunks > blocks * build.THREADS:  # a thread has one of them
            return None
        log_size = max(_PIECE, isqrt(batch)).bit_length() - 1
        pieces = 1 + (int(_ROOM * batch * data.values_per_row) >> log_size)
        plan = cls(build, device, batch, steps, low, log_size, pieces, chunks, m * chunks, blocks)
        return plan if plan._fits(problem) else None

    def _fits(self, problem: Problem) -> bool:
        """Whether there is memory."""
        backend: Any = problem.backend
        n_bytes = 2 * np.dtype(np.int64).itemsize * problem.data.X.nnz  # keys, sorted elsewhere
        for shape, dtype in self._scratch(problem).values():
            n_bytes += prod(shape) * np.dtype(dtype).itemsize
        return n_bytes <= _FREE or n_bytes <= backend.free_bytes()

    def _scratch(self, problem: Problem) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shapes and types of what the kernel's blocks share."""
        data, m, steps = problem.data, problem.n_models, self.steps
        columns, nnz = self.all_chunks * self.build.VECTOR, int(data.X.nnz)
        rows = {
            "of_coef": data.n_features,
            "of_velocity": data.n_features,
            "residual": self.batch,
            "part": 2 * self.pieces,
            "product": self._parts,
            **dict.fromkeys(("bias", "bias_velocity", "dot", "of_all"), 1),
        }
        reals = {name: ((count, columns), data.dtype) for name, count in rows.items()}
        return reals | {
            "of_rows": ((self.batch, m, 2), np.float64),
            "entry": ((nnz, 2), data.dtype),
            "feature": ((nnz,), np.int32),
            "run": ((data.n_features, 2), np.int32),
            "first": ((steps + 1,), np.int32),
            "place": ((nnz,), np.int32),
        }

    @property
    def _stride(self) -> int:
        """From one of a thread's features to the next."""
        return self.blocks * self.build.THREADS // self.all_chunks

    @property
    def _parts(self) -> int:
        """In which the weights' product with the mean is summed."""
        return self.blocks if self.all_chunks <= self.build.THREADS else self._stride

    def __call__(self, problem: Problem, state: State, steps: Steps) -> tuple[State, BatchSums]:
        """What `skmax.solvers.sgd.sgd_epoch` does. It returns before the device is done."""
        xp, data, soft = problem.backend.xp, problem.data, problem.targets.ndim == 2
        (m, k), d, nnz = problem.masked.shape, data.n_features, int(data.X.nnz)
        shapes = ((m, k, d), (m, k)) * 2
        after = State(*(xp.empty(shape, dtype=data.dtype) for shape in shapes))
        sums = xp.empty((2, m), dtype=xp.float64)
        numbers = {
            "entries": nnz,
            "low": self.low,
            "n": len(steps.order),
            "batch": self.batch,
            "steps": -(-len(steps.order) // self.batch),
            "classes": k,
            "models": m,
            "log_size": self.log_size,
            "pieces": self.pieces,
            "chunks": self.chunks,
            "all_chunks": self.all_chunks,
            "stride": self._stride,
            "parts": self._parts,
        }
        values = of_epoch(problem, steps) | {
            "values": data.X.data,
            "features": data.X.indices,
            "starts": data.X.indptr,
            "visit": problem.backend.asarray(steps.order.astype(np.int32)),
            "keys": xp.zeros(nnz, dtype=xp.int64),
            "label": None if soft else xp.astype(problem.targets, xp.int64, copy=False),
            "target": problem.targets if soft else None,
            "weight": problem.sample_weight,
            "score_weight": None if problem.sample_weight is None else problem.score_weight,
            "sums": sums,
            "counter": xp.zeros(2, dtype=xp.uint32),
        }
        values |= of_state(state) | of_state(after, "new_")
        values |= {name: np.int32(number) for name, number in numbers.items()}
        scratch = self._scratch(problem).items()
        values |= {name: xp.empty(shape, dtype=dtype) for name, (shape, dtype) in scratch}
        if nnz:
            self._launch("keys_of_entries", KEYS, values)
            values["keys"].sort()
        self._launch("sgd_epoch_of_sparse_rows", PARAMETERS, values)
        return after, BatchSums(sums[0, :], sums[1, :])

    def _launch(self, name: str, parameters: tuple[str, ...], values: dict[str, Any]) -> None:
        launch = kernel(self.build.unit(), name, self.device.index, cooperative=True)
        launch(
            (self.blocks,),
            (self.build.THREADS,),
            tuple(argument(values[parameter]) for parameter in parameters),
            shared_mem=self.build.shared_bytes,
        )


def units() -> list[Unit]:
    """What is compiled ahead: all."""
    return [Build.of(size, k, THREADS).unit() for size, k in ((4, 3), (4, 2), (8, 3))]

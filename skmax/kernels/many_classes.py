"""Dense rows and many classes on a CUDA device: all steps of an epoch in one launch.

The kernel is `many_classes.cu`, which says how it works. Here its launch is planned, and its
arguments are laid out. Shapes are those of `skmax.problem`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from skmax.backends.array_api import dtype_name
from skmax.backends.device_code import Unit, kernel
from skmax.data.device import DeviceRows
from skmax.kernels.cuda import DATA, MOST_ROWS, Device, argument, of_epoch, of_state
from skmax.problem import BatchSums, Problem, State, Steps

SOURCES = "primitives.cuh", "many_classes.cu"
# In the order of the kernel's parameters.
PARAMETERS = (
    *("X", "place", "visit", "n", "batch", "d", "classes", "models", "copy", "splits", "label"),
    *("target", "weight", "score_weight", "u", "column", "smoothing", "mean", "inverse_scale"),
    *("rate", "l2", "l1", "momentum", "fit_intercept", "coef", "velocity", "intercept"),
    *("intercept_velocity", "new_coef", "new_velocity", "new_intercept"),
    *("new_intercept_velocity", "sums", "counter", "memory"),
)
# As the kernel has them.
_WARPS, _TILE, _DEEP, _STAGES = 4, 64, 32, 3
# From row to row in shared memory, in bytes, by the bytes of a value: of DEEP and of TILE values.
_STRIDES = {1: (48, 80), 2: (80, 160), 4: (160, 288), 8: (320, 544)}
_BYTES = {type_: np.dtype(name).itemsize for name, type_ in DATA.items()}
# Classes up to which a warp has a row, and not a block.
_FEW = 128
# Blocks of a multiprocessor that share its registers.
_BLOCKS = 2
# What starting a tile takes, in units of what multiplying DEEP features of it does, and what a part
# of the logits adds to the softmax.
_START, _PER_SPLIT = 4, 0.5


@dataclass(frozen=True)
class Build:
    """The kernel for a type of X: what its source says that the build defines."""

    REAL: str
    DATA: str

    def unit(self) -> Unit:
        """What is compiled."""
        defined = {"REAL": self.REAL, "DATA": self.DATA, "BLOCKS": _BLOCKS}
        options = ("-std=c++17", *(f"-D{name}={value}" for name, value in defined.items()))
        return Unit(SOURCES, options)

    @property
    def shared_bytes(self) -> int:
        """What a block takes of shared memory."""
        word = _BYTES[self.REAL]
        (deep, tile), (of_weights, of_residuals) = _STRIDES[_BYTES[self.DATA]], _STRIDES[word]
        forward = _TILE * (deep + of_weights) + word * _DEEP
        return _STAGES * max(forward, _DEEP * (tile + of_residuals)) + word * _TILE


@dataclass(frozen=True)
class Plan:
    """How the epochs of a problem run on a device; calling it runs one."""

    build: Build
    device: Device
    batch: int  # rows per step
    copy: int  # bytes of X that are copied at once
    splits: int  # parts of the features in the forward phase
    blocks: int

    @classmethod
    def of(cls, problem: Problem, batch_size: int, device: Device) -> Plan | None:
        """The plan for a problem; None if the kernel does not serve it."""
        data, (m, k) = problem.data, problem.masked.shape
        if not isinstance(data, DeviceRows) or data.n_samples > MOST_ROWS or not data.alignment:
            return None
        name = dtype_name(data.X)
        if data.subtrahend is not None or name not in DATA:
            return None
        real = "double" if np.dtype(data.dtype) == np.float64 else "float"
        size, batch = np.dtype(name).itemsize, min(batch_size, len(problem.order))
        row = data.n_features * size
        build = Build(real, DATA[name])
        most = device.blocks(build.shared_bytes, _BLOCKS)
        if m > most:  # each block has rows of one
            return None
        high, across = -(-batch // _TILE), m * -(-k // _TILE)
        splits = _splits(high * across, -(-data.n_features // _DEEP), most)
        phases = (
            high * across * splits,
            batch * m if k > _FEW else -(-batch * m // _WARPS),
            4 * across * -(-data.n_features // _TILE),
        )
        return cls(
            build,
            device,
            batch,
            next(n for n in (16, max(4, size), 1) if data.alignment % n == 0 and row % n == 0),
            splits,
            min(most, max(phases)),
        )

    def __call__(self, problem: Problem, state: State, steps: Steps) -> tuple[State, BatchSums]:
        """What `skmax.solvers.sgd.sgd_epoch` does. It returns before the device is done."""
        xp, data, soft = problem.backend.xp, problem.data, problem.targets.ndim == 2
        assert isinstance(data, DeviceRows)
        (m, k), d, dtype = problem.masked.shape, data.n_features, data.dtype
        values = of_epoch(problem, steps) | {
            "batch": np.int32(self.batch),
            "classes": np.int32(k),
            "models": np.int32(m),
            "copy": np.int32(self.copy),
            "splits": np.int32(self.splits),
            "label": None if soft else xp.astype(problem.targets, xp.int64, copy=False),
            "target": problem.targets if soft else None,
            "weight": problem.sample_weight,
            "score_weight": None if problem.sample_weight is None else problem.score_weight,
            "memory": xp.empty(self._n_reals(m, k, d), dtype=dtype),
        }
        rate: Any = values["rate"]
        total: Any = None
        for X, place, visit, part in data.segments(steps.order, self.batch):
            sums = xp.empty((2, m), dtype=xp.float64)
            after = State(*(xp.empty(shape, dtype=dtype) for shape in ((m, k, d), (m, k)) * 2))
            values |= of_state(state) | of_state(after, "new_")
            values |= {"X": X, "place": place, "visit": visit, "n": np.int32(len(place))}
            values |= {"sums": sums, "counter": xp.zeros(1, dtype=xp.uint32)}
            values["rate"] = rate[part.start // self.batch :]
            self._launch(values)
            state, total = after, sums if total is None else total + sums
        return state, BatchSums(total[0, :], total[1, :])

    def _n_reals(self, m: int, k: int, d: int) -> int:
        """What `Scratch` takes in the kernel."""
        columns, wide, rows = m * _up(k, _TILE), _up(d, _TILE), _up(self.batch, _TILE)
        per_column = 2 * wide + 2 + (self.splits + 1) * rows
        of_batch = rows * wide * _BYTES[self.build.DATA] // _BYTES[self.build.REAL]
        return 4 * self.blocks * _WARPS + columns * per_column + of_batch  # the first are doubles

    def _launch(self, values: dict[str, Any]) -> None:
        arguments = tuple(argument(values[name]) for name in PARAMETERS)
        launch = kernel(
            self.build.unit(), "sgd_epoch_of_many_classes", self.device.index, cooperative=True
        )
        launch((self.blocks,), (_WARPS * 32,), arguments, shared_mem=self.build.shared_bytes)


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


@cache
def _splits(tiles: int, deep: int, blocks: int) -> int:
    """The parts of the features for which the forward phase is shortest."""

    def cost(splits: int) -> float:
        return -(-tiles * splits // blocks) * (-(-deep // splits) + _START) + _PER_SPLIT * splits

    return min(range(1, max(1, deep // 2) + 1), key=cost)


def units() -> list[Unit]:
    """What is compiled ahead: for the commonest types of X."""
    common = ("unsigned char", "half", "float", "double")
    return [Build(type_ if type_ == "double" else "float", type_).unit() for type_ in common]

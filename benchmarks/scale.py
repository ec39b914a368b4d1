"""Files larger than memory: what an epoch takes beside reading the file, and beside memory.

    python benchmarks/scale.py --folder FOLDER [--rows 1500000] [--kinds memmap hdf5 zarr]
        [--memory 2.0] [--turns 3] [--output FOLDER]

In FOLDER, rows of 1,024 features in float32, sorted by label (10 classes), are written once for
each kind: an .npy file; HDF5, in chunks of 256 rows, shuffled and compressed by LZF; Zarr, in the
same chunks, compressed by Zstandard. Values are rounded to 1/32, so that there is something to
compress. Each turn is a process of its own, limited to so many GB of memory by a control group
where this may make one (as root; the page cache counts, too), and beginning with an empty page
cache where it may empty that. It reads the file in order through its own library, without skmax,
fits with the defaults, and reads it again. Beside it, the same fit from memory, where that is large
enough, in a process without a limit.

Measured are GB per second in order and in an epoch, the ratio of an epoch's seconds to the longer
of reading in order and an epoch in memory, the peak of memory beyond the process, anonymous and
all (which has the pages of the map), and F after the fit. FOLDER of --output gets scale.json and
scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from compare import Row, machine
from compare import table as markdown
from data import SEED

N_FEATURES, N_CLASSES, CHUNK = 1024, 10, 256
KINDS = {"memmap": "X.npy", "hdf5": "X.h5", "zarr": "X.zarr", "memory": "X.npy"}
GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
LIMITS = ("memory.limit_in_bytes", "memory.max")


# The files


def blocks(n: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Rows and labels, sorted by label."""
    rng = np.random.default_rng(SEED)
    centers = 0.09 * rng.standard_normal((N_CLASSES, N_FEATURES), dtype=np.float32)
    scale = np.exp(0.5 * rng.standard_normal(N_FEATURES, dtype=np.float32))
    y = np.arange(n) * N_CLASSES // n
    for first in range(0, n, 64 * CHUNK):
        label = y[first : first + 64 * CHUNK]
        X = rng.standard_normal((len(label), N_FEATURES), dtype=np.float32) + centers[label]
        yield first, np.rint(32 * X * scale) / 32, label


def write(kind: str, folder: Path, n: int) -> None:
    """Make the file of a kind, if there is none."""
    path, shape = folder / KINDS[kind], (n, N_FEATURES)
    if path.exists():
        return
    if kind == "hdf5":
        import h5py

        options = {"chunks": (CHUNK, N_FEATURES), "compression": "lzf", "shuffle": True}
        with h5py.File(path, "w") as file:
            X = file.create_dataset("X", shape, "f4", **options)
            for first, rows, _ in blocks(n):
                X[first : first + len(rows)] = rows
        return
    if kind == "zarr":
        import zarr

        X = zarr.create_array(path, shape=shape, dtype="f4", chunks=(CHUNK, N_FEATURES))
    else:
        X = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for first, rows, _ in blocks(n):
        X[first : first + len(rows)] = rows


def opened(kind: str, folder: Path) -> Any:
    path = folder / KINDS[kind]
    if kind == "hdf5":
        import h5py

        return h5py.File(path)["X"]
    if kind == "zarr":
        import zarr

        return zarr.open_array(path, mode="r")
    return np.load(path, mmap_mode="r" if kind == "memmap" else None)


def seconds_to_read(kind: str, folder: Path) -> float:
    """Read all in order: the bytes of an .npy file, or what its library makes of another."""
    start, n_rows = time.perf_counter(), 8 * CHUNK
    if kind == "memmap":
        buffer = bytearray(4 * N_FEATURES * n_rows)
        with (folder / KINDS[kind]).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    else:
        X = opened(kind, folder)
        for first in range(0, X.shape[0], n_rows):
            X[first : first + n_rows]
    return time.perf_counter() - start


# A turn


class Memory(threading.Thread):
    """The peak of what a process takes beyond what it took, in MB: anonymous, and all."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.peak, self.done = self.now(), self.now(), threading.Event()

    @staticmethod
    def now() -> np.ndarray:
        status = Path("/proc/self/status").read_text()
        found = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("RssAnon", "VmRSS"))
        return np.array([int(match[1]) / 1024 for match in found if match])

    def run(self) -> None:
        while not self.done.wait(0.02):
            self.peak = np.maximum(self.peak, self.now())

    def stop(self) -> list[float]:
        self.done.set()
        self.join()
        return (self.peak - self.before).tolist()


class Clock:
    """A callback of scikit-learn that takes down when epochs end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def setup(self, estimator: Any, context: Any) -> None: ...

    def teardown(self, estimator: Any, context: Any) -> None: ...

    def on_fit_task_begin(self, estimator: Any, context: Any, **_: Any) -> None: ...

    def on_fit_task_end(self, estimator: Any, context: Any, **_: Any) -> None:  # noqa: ARG002
        if context.task_name == "epoch":
            self.ends.append(time.perf_counter())


def turn(kind: str, folder: Path, group: str | None) -> Row:
    """What this process measures."""
    from skmax import SoftmaxRegression

    if group is not None:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1")
    reading = [] if kind == "memory" else [seconds_to_read(kind, folder)]
    X, clock = opened(kind, folder), Clock()
    y = np.arange(X.shape[0]) * N_CLASSES // X.shape[0]
    model = SoftmaxRegression(random_state=SEED).set_callbacks(clock)
    memory = Memory()
    memory.start()
    start = time.perf_counter()
    model.fit(X, y)
    seconds, (anonymous, everything) = time.perf_counter() - start, memory.stop()
    if kind != "memory":
        reading.append(seconds_to_read(kind, folder))
    log_probability = model.predict_log_proba(X)[np.arange(len(y)), y]
    penalty = np.sum(model.coef_.astype(np.float64) ** 2) / (2 * len(y))
    return {
        "read": reading,
        "epoch": np.diff(clock.ends).tolist(),
        "fit": seconds,
        "anonymous": anonymous,
        "memory": everything,
        "F": float(penalty - log_probability.mean(dtype=np.float64)),
    }


@contextmanager
def limited(gigabytes: float) -> Iterator[str | None]:
    """A control group with so much memory, or None where there can be none."""
    made = None
    for root in GROUPS:
        group = root / f"skmax-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            made = group
            limit = next(group / name for name in LIMITS if (group / name).exists())
            limit.write_text(str(int(gigabytes * 2**30)))
            break
    try:
        yield None if made is None else str(made)
    finally:
        if made is not None:
            made.rmdir()


def measure(kind: str, folder: Path, gigabytes: float) -> Row:
    """A turn, in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--turn", kind]
    with limited(gigabytes) as group:
        limit = [] if group is None or kind == "memory" else ["--group", group]
        done = subprocess.run(command + limit, capture_output=True, text=True, check=True)
    return json.loads(done.stdout) | {"limited": bool(limit)}


def summary(kind: str, turns: list[Row], in_memory: list[Row], size: float) -> Row:
    """The medians of all turns of a kind."""
    read = median(second for row in turns for second in row["read"])
    epoch, other = (
        median(second for row in rows for second in row["epoch"]) if rows else 0.0
        for rows in (turns, in_memory)
    )
    return {
        "X": kind,
        "GB/s in order": size / read,
        "GB/s in an epoch": size / epoch,
        "s to read": read,
        "s per epoch": epoch,
        "s per epoch in memory": other,
        "ratio to the longer": epoch / max(read, other),
        "s to fit": median(row["fit"] for row in turns),
        "MB anonymous": max(row["anonymous"] for row in turns),
        "MB in all": max(row["memory"] for row in turns),
        "F": turns[0]["F"],
        "F in memory": in_memory[0]["F"] if in_memory else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--kinds", nargs="+", default=["memmap", "hdf5", "zarr"], choices=KINDS)
    parser.add_argument("--memory", type=float, default=2.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--turn", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--group", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn is not None:
        print(json.dumps(turn(arguments.turn, arguments.folder, arguments.group)))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    size = 4e-9 * arguments.rows * N_FEATURES
    fits = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") > 2e9 * size
    kinds = [*arguments.kinds, *["memory"] * fits]
    for kind in kinds:
        write(kind, arguments.folder, arguments.rows)
    results: dict[str, list[Row]] = {kind: [] for kind in kinds}
    for _ in range(arguments.turns):
        for kind in kinds:
            results[kind].append(measure(kind, arguments.folder, arguments.memory))
    in_memory = results.pop("memory", [])
    rows = [summary(kind, turns, in_memory, size) for kind, turns in results.items()]
    print(markdown(rows))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        found = {"machine": machine(), "summary": rows, "turns": results, "in memory": in_memory}
        (arguments.output / "scale.json").write_text(json.dumps(found, indent=1) + "\n")
        (arguments.output / "scale.md").write_text(markdown(rows) + "\n")


if __name__ == "__main__":
    main()

"""How fits grow with workers: seconds and bytes of a pass on a Dask cluster, and what 1 TB takes.

Each worker is a process of one thread, as the plain estimator has one, which makes the same passes
of the same rows in between. Run it with OMP_NUM_THREADS=1 on an idle machine of a core per worker:

    python benchmarks/scale_dask.py [--rows 400000] [--workers 1 2 4]
"""

import argparse
import os
import pickle
import statistics
import time
from contextlib import ExitStack

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

from skmax.backends import resolve
from skmax.dask import Table, Workers, _frame_of, _pose
from skmax.data import source
from skmax.hyperparameters import Hyperparameters
from skmax.objective import value_and_gradient
from skmax.posing import Share, pose
from skmax.problem import State
from skmax.validation import Targets

FEATURES, CLASSES, PARTITIONS, REPEATS = 200, 10, 8, 25
# What the estimate is made for: bytes of float32, workers of four cores, a network of 10 Gbit/s.
BYTES, WORKERS, CORES, NETWORK = 1e12, 100, 4, 1.25e9
# Seconds of the scheduler per task, as Dask's documentation has it (200 us to 1 ms).
PER_TASK, SHARD = 5e-4, 2**30


def rows_of(partition, n_rows):
    """Overlapping classes, the same for every process that asks."""
    rng = np.random.default_rng(partition)
    X = rng.standard_normal((n_rows, FEATURES), dtype=np.float32)
    coef = np.random.default_rng(0).standard_normal((CLASSES, FEATURES), dtype=np.float32) / 5
    return X, np.argmax(X @ coef.T + rng.gumbel(size=(n_rows, CLASSES)), axis=1)


def block(numbers, n_rows, part):
    """A block of a Dask array, made by whichever worker holds it."""
    return rows_of(int(numbers.flat[0]), n_rows)[part]


def collections(n_rows):
    """X and y as Dask arrays that no graph carries."""
    numbers, each = da.arange(PARTITIONS, chunks=1), n_rows // PARTITIONS
    chunks = (each,) * PARTITIONS
    y = numbers.map_blocks(block, each, 1, chunks=(chunks,), dtype=int)
    X = numbers[:, None].map_blocks(block, each, 0, chunks=(chunks, (FEATURES,)), dtype=np.float32)
    return X, y


def plain_problem(n_rows):
    """The same rows in this process."""
    parts = [rows_of(i, n_rows // PARTITIONS) for i in range(PARTITIONS)]
    X, y = (np.concatenate(each) for each in zip(*parts, strict=True))
    targets = Targets.read(y)
    share = Share.of(targets, None, np.arange(len(X)), None)
    data = source(X, resolve(X, "numpy"), np.float32)
    return pose(data, [share], np.zeros(1, dtype=int), [Hyperparameters()])[0]


def cluster_problem(stack, n_workers, n_rows):
    """The same rows on so many workers."""
    cluster = stack.enter_context(
        LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0")
    )
    client = stack.enter_context(Client(cluster, set_as_default=False))
    table = Table.read(Workers(client), *collections(n_rows), None)
    return _pose(Hyperparameters(), table, table.targets().classes)[0], client


class Pass:
    """A pass over the rows of a problem, again and again, and what it costs."""

    def __init__(self, problem, client):
        self._problem, self._client = problem, client
        coef = np.random.default_rng(0).standard_normal((1, CLASSES, FEATURES)) / 10
        self._state = State.at(problem, coef, np.zeros((1, CLASSES)))
        value_and_gradient(problem, self._state)
        self.seconds, self.cpu = [], []

    def _cpu_seconds(self):
        """Of this process, where the scheduler runs, too; and of each worker."""
        workers = [] if self._client is None else self._client.run(time.process_time).values()
        return np.array([time.process_time(), *workers])

    def __call__(self):
        """Make one."""
        before, start = self._cpu_seconds(), time.perf_counter()
        value_and_gradient(self._problem, self._state)
        self.seconds.append(time.perf_counter() - start)
        here, *workers = self._cpu_seconds() - before
        self.cpu.append((here, max(workers, default=0.0)))


def interleaved(passes):
    """Let passes take turns."""
    for _ in range(REPEATS):
        for each in passes.values():
            each()


def main():
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    with ExitStack() as stack:
        passes = {"plain": Pass(plain_problem(args.rows), None)}
        for n in args.workers:
            problem, client = cluster_problem(stack, n, args.rows)
            passes[n] = Pass(problem, client)
        interleaved(passes)
        weights = np.zeros((1, CLASSES, FEATURES + 1), np.float32)
        sent = len(pickle.dumps((_frame_of(problem), weights)))
    back, size = 8 * (CLASSES * (FEATURES + 1) + 2), args.rows * FEATURES * 4
    least = min(passes["plain"].seconds)
    print(f"{args.rows:,} x {FEATURES} float32, {CLASSES} classes: {size:,} bytes")
    print(
        "Seconds of a pass, least and median; CPU seconds here and in the busiest worker, medians"
    )
    print(" workers    least of plain   median     here   worker  bytes out       in")
    for name, each in passes.items():
        n = 0 if name == "plain" else name
        here, worker = np.median(each.cpu, axis=0)
        times = f"{min(each.seconds):9.4f}{min(each.seconds) / least:9.2f}"
        times += f"{statistics.median(each.seconds):9.4f}{here:9.4f}{worker:9.4f}"
        print(f"{name:>8}{times}{n * sent:11,}{n * back:9,}")
    estimate(size / statistics.median(passes["plain"].seconds), sent, back)


def estimate(rate, sent, back):
    """What a pass of much more takes, from bytes per second of a core, and what limits it."""
    compute = BYTES / (WORKERS * CORES * rate)
    tasks = max(WORKERS * CORES, BYTES / SHARD)
    scheduling = 1.2 * tasks * PER_TASK
    travel = (sent + back) * WORKERS * CORES / NETWORK
    print(f"1 TB on {WORKERS} workers of {CORES} cores, on paper: rows {compute:.2f} s per pass, ")
    print(
        f"  scheduling {tasks:.0f} tasks {scheduling:.2f} s, weights and gradients {travel:.3f} s"
    )


if __name__ == "__main__":
    main()

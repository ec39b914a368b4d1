"""DaskSoftmaxRegression: the same model and the same solvers, on rows that are on a cluster.

The client has a `ClusterProblem` whose `total` sends the weights to the workers, where each calls
the same functions on problems of the rows that it holds; sums come back. A worker's rows of several
partitions are a *shard*: a task of Dask, which is computed anew where its worker has died.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, NoReturn, Self

import array_api_compat
import numpy as np
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, column_or_1d

from skmax import fitted, kernels
from skmax._sklearn import _check_feature_names, _fit_context
from skmax.annotations import (
    BackendName,
    ClassWeight,
    Data,
    RandomState,
    ScheduleName,
    SolverName,
    TakesRows,
)
from skmax.backends import Array, float_dtype_for, resolve
from skmax.data import source
from skmax.estimator import SoftmaxRegression
from skmax.hyperparameters import Hyperparameters
from skmax.messages import warn
from skmax.objective import penalty
from skmax.posing import Seen
from skmax.problem import Epoch, Problem, State
from skmax.solvers.lbfgs import LBFGS
from skmax.solvers.learning_rate import stable_rate
from skmax.solvers.optimality import optimality_gap
from skmax.solvers.preconditioner import Moments, precondition
from skmax.solvers.run import Epochs, followed, sgd
from skmax.solvers.sgd import SGD, sgd_epoch
from skmax.validation import (
    Targets,
    check_classes,
    check_same_model,
    check_weights,
    check_X_y,
    is_matrix,
    to_host,
)

try:
    import dask.array as da
    from dask import compute, config, delayed, is_dask_collection
    from distributed import CancelledError, Client, KilledWorker
    from distributed.client import ClosedClientError
    from distributed.comm import CommClosedError
except ImportError as error:
    raise ImportError(
        f'skmax.dask needs Dask, which cannot be imported ({error}): pip install "skmax[dask]".'
    ) from error

__all__ = ["DaskSoftmaxRegression"]

# Bytes of a shard at most, unless a single partition has more: what moves at once when a worker is
# lost. Bytes that are sent with every task that needs them. And the sums that one task adds up.
_SHARD_BYTES, _LARGE, _FAN_IN = 1 << 30, 100_000, 8
# Rows that the client looks at, and the most values of a sample that it fetches later on.
_LOOKED_AT, _ROWS_FOR_RATE, _MOST_VALUES = 64, 2048, 1 << 25
# What of a problem is about its rows, and stays where they are.
_OF_ROWS = ("data", "order", "targets", "sample_weight", "score_weight")


# Where things are computed


class Here:
    """This process, where one of Dask's local schedulers reads the data."""

    def start(self, tasks: list[Any]) -> list[Any]:
        """The results of Dask's delayed objects; they stay where they are computed."""
        return list(compute(*tasks))

    def map(self, function: Callable[..., Any], *items: Sequence[Any], shared: Any = ()) -> list:
        """The results of a function of results, or other things, and of what all calls share."""
        return [function(*each, *shared) for each in zip(*items, strict=True)]

    def gather(self, results: list[Any]) -> list[Any]:
        """Results, brought here."""
        return results

    def sums(self, results: list[Any]) -> list[Any]:
        """What results add up to that are lists of arrays."""
        return _added(*results)

    def groups(self, results: list[Any], sizes: Sequence[int]) -> list[tuple[list[int], Any]]:  # noqa: ARG002
        """Positions of results, of so many bytes, that are in one place; and that place."""
        return [(list(range(len(results))), None)]

    def join(self, function: Callable[..., Any], results: list[Any], place: Any) -> Any:  # noqa: ARG002
        """The result of a function of a list of results, in the place where they are."""
        return function(results)


@contextmanager
def _explained() -> Iterator[None]:
    """Words for what may happen to a cluster."""
    try:
        yield
    except KilledWorker as error:
        raise MemoryError(
            f"Workers died {error.allowed_failures + 1} times over the same rows, most likely "
            "since they ran out of memory. Use more workers, or more memory for each, or smaller "
            f"partitions: a worker holds its share of X, and sums of the size of coef_. ({error})"
        ) from error
    except MemoryError as error:
        raise MemoryError(
            f"A worker is out of memory ({error}). Use more workers, or more memory for each, or "
            "smaller partitions."
        ) from error
    except CancelledError as error:
        raise ConnectionError(_of_cancelled(error)) from error
    except (ClosedClientError, CommClosedError, TimeoutError) as error:
        raise ConnectionError(f"The scheduler cannot be reached any more: {error}") from error


def _of_cancelled(error: BaseException) -> str:
    if "lost-dependencies" in str(error):
        return (
            "A worker has died that held data which Dask cannot compute anew, since they were "
            f"scattered by hand: let a graph make or read them. ({error})"
        )
    return f"The scheduler has gone away, or somebody has cancelled the work: {error}"


class Workers(Here):
    """The workers of a cluster."""

    def __init__(self, client: Client):
        self._client = client

    @_explained()
    def start(self, tasks: list[Any]) -> list[Any]:
        """See `Here`."""
        return self._client.compute(tasks)

    @_explained()
    def map(self, function: Callable[..., Any], *items: Sequence[Any], shared: Any = ()) -> list:
        """See `Here`. What is shared goes out once, and from worker to worker if it is large."""
        packed: Any = pickle.dumps(shared)
        if len(packed) > _LARGE:  # a task of its own, that may be done again if its worker dies
            with config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
                packed = self._client.submit(bytes, packed, pure=False)
        everywhere = [packed] * len(items[0])
        call, key = partial(_called, function), _key_of(function)
        return self._client.map(call, *items, everywhere, pure=False, key=key)

    @_explained()
    def gather(self, results: list[Any]) -> list[Any]:
        """See `Here`."""
        return self._client.gather(results)

    @_explained()
    def sums(self, results: list[Any]) -> list[Any]:
        """See `Here`. They are added up as a tree, of which the client does the last few."""
        while len(results) > _FAN_IN:
            parts = [results[first : first + _FAN_IN] for first in range(0, len(results), _FAN_IN)]
            results = [self._client.submit(_added, *part, pure=False) for part in parts]
        return _added(*self._client.gather(results))

    @_explained()
    def groups(self, results: list[Any], sizes: Sequence[int]) -> list[tuple[list[int], Any]]:
        """See `Here`: for each worker as many as it has threads, or more where they are large."""
        held, threads = self._client.who_has(results), self._client.nthreads()
        places: dict[Any, list[int]] = {}
        for position, result in enumerate(results):  # of a worker that has died, in no place
            places.setdefault(min(held.get(result.key) or [""]), []).append(position)
        found = []
        for place, positions in sorted(places.items()):
            n_bytes = sum(sizes[position] for position in positions)
            n = max(threads.get(place, 1), -(-n_bytes // _SHARD_BYTES))
            groups = np.array_split(positions, min(n, len(positions)))
            found += [(group.tolist(), place) for group in groups]
        return found

    @_explained()
    def join(self, function: Callable[..., Any], results: list[Any], place: Any) -> Any:
        """See `Here`; if its place is lost, any other will do."""
        where = {"workers": [place], "allow_other_workers": True} if place else {}
        return self._client.submit(function, results, pure=False, **where)


def _key_of(function: Callable[..., Any]) -> str:
    return f"skmax-{function.__name__.strip('_')}"


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    *items, shared = arguments
    return function(*items, *pickle.loads(shared))


def _added(*results: list[Any]) -> list[Any]:
    """The sums of lists of arrays."""
    first, *others = results
    totals = [np.array(array) for array in first]
    for other in others:
        for total, array in zip(totals, other, strict=True):
            total += array
    return totals


# What workers do


@dataclass(frozen=True)
class Facts:
    """What is known of the rows of a partition.

    Attributes
    ----------
    n_rows, n_bytes : int
        How many rows, and the bytes of their features.
    learned : dict
        What `fit` learns of X by itself: the number of features, and their names.
    dtype : dtype
        Of the features.
    is_sparse, is_soft, is_weighted : bool
        Whether X is sparse, the targets are probabilities, and rows have weights of their own.
    labels, mass : ndarray of shape (n_labels,)
        The labels that occur, or indices of classes, and the weight of the rows of each.
    """

    n_rows: int
    n_bytes: int
    learned: dict[str, Any]
    dtype: np.dtype
    is_sparse: bool
    is_soft: bool
    is_weighted: bool
    labels: np.ndarray
    mass: np.ndarray


@dataclass(frozen=True)
class Part:
    """The rows of a partition, checked."""

    X: Any
    y: Any
    weight: np.ndarray | None
    facts: Facts


def _read(number: int, X: Any, y: Any, weight: Any, name: str) -> Part | None:
    """A partition, checked as `fit` checks X and y; None, if it has no rows."""
    if X.shape[0] == 0 and len(y) == 0:
        return None
    try:
        with config_context(array_api_dispatch=_is_cupy(X)):
            X, y, learned = check_X_y(SoftmaxRegression(), X, y, reset=True)
        _refuse_differences(X)
        y, weight = to_host(y), None if weight is None else _weights_of(weight, X)
        return Part(X, y, weight, _facts_of(X, y, weight, learned))
    except (TypeError, ValueError) as error:
        error.add_note(f"This is partition {number} of {name}, counted from 0.")
        raise


def _refuse_differences(X: Any) -> None:
    """Refuse integers whose differences may not be integers of 64 bits."""
    if sparse.issparse(X) or X.dtype.kind not in "iu" or X.dtype.itemsize < 8:
        return
    if int(X.min()) <= -(2**62) or int(X.max()) >= 2**62:
        raise ValueError("X has integers beyond 2**62: convert it with X.astype('float64').")


def _is_cupy(X: Any) -> bool:
    return bool(array_api_compat.is_cupy_array(X))


def _weights_of(weight: Any, X: Any) -> np.ndarray:
    """Row weights, which may all be zero in a partition."""
    host, n = to_host(weight), X.shape[0]
    if host.shape == (n,) and host.dtype.kind in "biuf" and not host.any():
        return np.zeros(n)
    checked = check_weights(weight, X)
    assert checked is not None
    return checked


def _facts_of(X: Any, y: np.ndarray, weight: np.ndarray | None, learned: dict[str, Any]) -> Facts:
    if is_matrix(y):
        targets = Targets.read(y)
        is_soft, labels = targets.values.ndim == 2, targets.classes
        mass = targets.mass(weight, np.arange(len(y)))
    else:
        is_soft, y = False, column_or_1d(y)
        labels, index = np.unique(y, return_inverse=True)
        mass = np.bincount(index, weight, minlength=len(labels))
    is_sparse = sparse.issparse(X)
    n_bytes = X.data.nbytes + X.indices.nbytes if is_sparse else X.nbytes
    kinds = is_sparse, is_soft, weight is not None
    return Facts(X.shape[0], n_bytes, learned, X.dtype, *kinds, labels, mass.astype(np.float64))


def _facts(part: Part | None) -> Facts | None:
    return None if part is None else part.facts


@dataclass(frozen=True)
class Terms:
    """What workers must know to make problems of their rows.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        All classes.
    factor : ndarray of shape (n_classes,)
        Their weights.
    of_rows, of_scores : float or None
        What multiplies weights of rows, with class weights and without, so that the mean of all is
        1. None: all are 1, or scores have the same.
    is_soft : bool
        Whether any targets are probabilities.
    dtype : type
        The precision.
    backend : {"auto", "numpy", "cupy"}
        Where workers compute.
    """

    classes: np.ndarray
    factor: np.ndarray
    of_rows: float | None
    of_scores: float | None
    is_soft: bool
    dtype: type[np.floating]
    backend: str


def _shard(terms: Terms, parts: list[Part]) -> list[Problem]:
    """The problems of the rows of partitions that are in one place."""
    return [_posed(terms, part) for part in parts]


def _posed(terms: Terms, part: Part) -> Problem:
    """The problem of the rows of a partition; what is not about them comes with every call."""
    backend, k = resolve(part.X, terms.backend), len(terms.classes)
    order = np.arange(part.facts.n_rows)
    if is_matrix(part.y):
        targets = Targets.read(part.y, terms.classes)
    else:
        targets = Targets(terms.classes, np.searchsorted(terms.classes, column_or_1d(part.y)))
    if terms.is_soft and targets.values.ndim == 1:
        targets = Targets(terms.classes, np.eye(k)[targets.values])
    weighted, weight = targets.times(terms.factor, part.weight)
    data = source(part.X, backend, terms.dtype)

    def moved(weight: np.ndarray | None, scale: float | None) -> Array | None:
        if scale is None:
            return None
        weight = np.ones(len(order)) if weight is None else weight
        return backend.asarray(weight[:, None] * scale, data.dtype)

    with backend.computing():
        soft = weighted.values.ndim == 2
        return Problem(
            data=data,
            order=order,
            targets=backend.asarray(weighted.values, data.dtype if soft else None),
            sample_weight=moved(weight, terms.of_rows),
            score_weight=moved(part.weight, terms.of_scores),
            l2=np.zeros(1),
            l1=np.zeros(1),
            smoothing=None,
            masked=np.zeros((1, k), dtype=bool),
            fit_intercept=True,
            columns=np.zeros(1, dtype=int),
        )


def _frame_of(problem: Problem) -> dict[str, Any]:
    """What of a problem is not about its rows: small, of plain arrays and numbers."""
    names = [field.name for field in fields(Problem) if field.name not in _OF_ROWS]
    return {name: getattr(problem, name) for name in names}


def _framed(problem: Problem, frame: dict[str, Any], shift: Any, dtype: Any) -> Problem:
    """The problem of a worker's rows that goes with the client's."""
    backend, data = problem.backend, problem.data
    dtype = backend.dtype(dtype)
    if shift is not None or dtype != data.dtype:
        data = data.with_(shift=shift, dtype=dtype)
    moved = {
        name: backend.asarray(frame[name], dtype)
        for name in ("smoothing", "mean", "inverse_scale")
        if frame[name] is not None
    }
    return replace(problem, data=data, **{**frame, **moved})


def _totals(
    shard: list[Problem],
    client: tuple[dict[str, Any], Any, Any],
    function: Callable[..., tuple[Array, ...]],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> list[np.ndarray]:
    """What a function sums over the rows of a shard, as the client's problem has it."""

    def of_part(part: Problem) -> list[np.ndarray]:
        problem, backend = _framed(part, *client), part.backend
        with backend.computing(), np.errstate(over="ignore", invalid="ignore"):
            moved = (backend.asarray(x) if isinstance(x, np.ndarray) else x for x in arguments)
            return [backend.to_numpy(total) for total in function(problem, *moved, **options)]

    return _added(*map(of_part, shard))


def _taken(shard: list[Problem], indices: list[np.ndarray]) -> list[tuple[Any, ...]]:
    """Rows of the problems of a shard, on the host: of X as it is, targets, and both weights."""

    def of_part(problem: Problem, index: np.ndarray) -> tuple[Any, ...]:
        rows = problem.data.X[problem.backend.asarray(index)]
        rows = rows.get() if hasattr(rows, "get") else rows  # from a device
        arrays = (problem.targets, problem.sample_weight, problem.score_weight)
        return rows, *(None if array is None else to_host(array)[index] for array in arrays)

    return [of_part(*each) for each in zip(shard, indices, strict=True) if len(each[1])]


def _epoch(
    problem: Problem, coef: Array, intercept: Array, solver: SGD, epoch: int
) -> tuple[Array, ...]:
    """Weights after an epoch of SGD on the rows of a problem, and its losses, times the rows."""
    n, rng = len(problem.order), np.random.Generator(np.random.PCG64(epoch))
    state = replace(State.start(problem), coef=coef, intercept=intercept)
    order = problem.data.epoch(problem.order, rng)
    run = kernels.sgd_epoch(problem, solver.batch_size) or sgd_epoch
    after, sums = run(problem, state, solver.steps(epoch, order))
    if not bool(problem.backend.xp.all(problem.backend.xp.isfinite(after.coef))):
        after = state  # these rows have no say
    return n * after.coef, n * after.intercept, *sums


# What the client knows


@dataclass(frozen=True)
class Table:
    """Partitions with rows, and what is known of them together.

    Attributes
    ----------
    runner : Here
        Where they are.
    parts : list
        Results, as `_read` makes them.
    facts : list of Facts
        Of each.
    """

    runner: Here
    parts: list[Any]
    facts: list[Facts]

    @classmethod
    def read(cls, runner: Here, X: Any, y: Any, weight: Any, suffix: str = "") -> Table:
        """X, y and weights, read and checked where they are."""
        if getattr(y, "ndim", 1) == 2 and y.shape[1] == 1:
            warn(f"y{suffix} is a column: a 1d array was expected.", DataConversionWarning)
        blocks = _aligned(runner, X, y, weight, suffix)
        parts = runner.map(_read, range(len(blocks[0])), *blocks, shared=("X" + suffix,))
        facts = runner.gather(runner.map(_facts, parts))
        kept = [i for i, fact in enumerate(facts) if fact is not None]
        if not kept:
            raise ValueError(f"Found array with 0 sample(s): X{suffix} has no rows.")
        return cls(runner, [parts[i] for i in kept], [facts[i] for i in kept])

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return sum(fact.n_rows for fact in self.facts)

    def learned(self) -> dict[str, Any]:
        """What `fit` learns of X by itself, the same in all partitions."""
        first = self.facts[0].learned
        for fact in self.facts:
            if difference := _difference(fact.learned, first):
                raise ValueError(f"Partitions of X differ in {difference}.")
        if len({fact.is_sparse for fact in self.facts}) > 1:
            raise ValueError("Some partitions of X are sparse, and some are not: make all alike.")
        return first

    def targets(self, classes: np.ndarray | None = None, name: str = "y") -> Targets:
        """The labels of all partitions, each of them once or a few times, as targets."""
        kinds = {
            "number" if fact.labels.dtype.kind in "biuf" else "text"
            for fact in self.facts
            if fact.labels.dtype.kind != "O"
        }
        if len(kinds) > 1:
            raise TypeError(f"{name} mixes labels of types that have no order, numbers and text.")
        labels = np.concatenate([fact.labels for fact in self.facts])
        # So often that it looks like the targets of a regression only if it does.
        return Targets.read(np.resize(labels, min(self.n_rows, 3 * len(labels))), classes, name)

    def mass(self, classes: np.ndarray) -> np.ndarray:
        """The weight of the rows of each class."""
        mass = np.zeros(len(classes))
        for fact in self.facts:
            mass[np.searchsorted(classes, fact.labels)] += fact.mass
        return mass

    @property
    def is_soft(self) -> bool:
        """Whether any targets are probabilities."""
        return any(fact.is_soft for fact in self.facts)

    @property
    def is_weighted(self) -> bool:
        """Whether rows have weights of their own."""
        return any(fact.is_weighted for fact in self.facts)

    def dtype(self) -> type[np.floating]:
        """The precision that holds the rows of all partitions."""
        return np.result_type(
            *(float_dtype_for(np.empty(0, fact.dtype)) for fact in self.facts)
        ).type


def _blocks(collection: Any) -> tuple[list[Any], tuple[int, ...] | None]:
    """The partitions of a collection as delayed objects, and their lengths, if they are known."""
    if not is_dask_collection(collection):
        length = getattr(collection, "shape", None) or (len(collection),)
        return [delayed(collection, traverse=False)], (length[0],)
    if not isinstance(collection, da.Array):
        return list(collection.to_delayed()), None
    if collection.ndim > 1 and collection.numblocks[1] > 1:
        collection = collection.rechunk({1: -1})
    lengths = collection.chunks[0]
    known = None if np.isnan(lengths).any() else tuple(map(int, lengths))
    return list(collection.to_delayed().ravel()), known


def _aligned(runner: Here, X: Any, y: Any, weight: Any, suffix: str) -> list[list[Any]]:
    """The partitions of X, and of y and weights, cut as X is if they are not.

    Where lengths are unknown, partitions are counted first, unless there are as many of each.
    """
    named = {f"X{suffix}": X, f"y{suffix}": y, f"sample_weight{suffix}": weight}
    given = {
        name: _blocks(value)
        for name, value in named.items()
        if value is not None and np.ndim(value) > 0
    }
    starts = np.cumsum([0, *(len(blocks) for blocks, _ in given.values())])
    everything = runner.start([block for blocks, _ in given.values() for block in blocks])
    started = {
        name: (everything[starts[i] : starts[i + 1]], lengths)
        for i, (name, (_, lengths)) in enumerate(given.items())
    }
    of_X = started[f"X{suffix}"]
    aligned = []
    for name, value in named.items():
        if name in started:
            aligned.append(_cut_like(runner, name, started[name], of_X))
        else:
            aligned.append([value] * len(of_X[0]))
    return aligned


def _cut_like(runner: Here, name: str, ours: Any, of_X: Any) -> list[Any]:
    """Partitions with as many rows as those of X have."""
    (blocks, lengths), (blocks_of_X, lengths_of_X) = ours, of_X
    known = lengths is not None and lengths_of_X is not None
    if lengths == lengths_of_X if known else len(blocks) == len(blocks_of_X):
        return blocks
    lengths = lengths or runner.gather(runner.map(_length, blocks))
    lengths_of_X = lengths_of_X or runner.gather(runner.map(_length, blocks_of_X))
    if sum(lengths) != sum(lengths_of_X):
        raise ValueError(
            "Found input variables with inconsistent numbers of samples: X has "
            f"{sum(lengths_of_X)} rows, and {name} has {sum(lengths)}."
        )
    starts, ends = np.cumsum([0, *lengths]), np.cumsum(lengths_of_X)
    cut = []
    for last, length in zip(ends, lengths_of_X, strict=True):
        first = last - length
        some = [i for i in range(len(blocks)) if starts[i] < last and starts[i + 1] > first] or [0]
        cut.append((some, first - starts[some[0]], length))
    pieces = [[blocks[i] for i in some] for some, _, _ in cut]
    return runner.map(_piece, pieces, [first for _, first, _ in cut], [n for *_, n in cut])


def _length(block: Any) -> int:
    return int(block.shape[0]) if hasattr(block, "shape") else len(block)


def _piece(blocks: list[Any], first: int, length: int) -> np.ndarray:
    """So many rows of blocks that follow one another."""
    return np.concatenate([to_host(block) for block in blocks])[first : first + length]


@dataclass(frozen=True)
class Shards:
    """Where the rows of a problem are.

    Attributes
    ----------
    runner : Here
        Where they are.
    shards : list
        Results: lists of problems, as `_shard` makes them.
    lengths : list of list of int
        How many rows each of those has.
    """

    runner: Here
    shards: list[Any]
    lengths: list[list[int]]

    @classmethod
    def of(cls, table: Table, terms: Terms) -> Shards:
        """The rows of a table."""
        sizes = [fact.n_bytes for fact in table.facts]
        call, shards, lengths = partial(_shard, terms), [], []
        for positions, place in table.runner.groups(table.parts, sizes):
            parts = [table.parts[position] for position in positions]
            shards.append(table.runner.join(call, parts, place))
            lengths.append([table.facts[position].n_rows for position in positions])
        return cls(table.runner, shards, lengths)

    def take(self, index: np.ndarray) -> list[Any]:
        """Rows at sorted indices, as `_taken` has them, put together."""
        ends = np.cumsum([length for shard in self.lengths for length in shard])
        pieces = np.split(index, np.searchsorted(index, ends[:-1]))
        local = iter([piece - first for piece, first in zip(pieces, [0, *ends], strict=False)])
        indices = [[next(local) for _ in shard] for shard in self.lengths]
        some = [i for i, shard in enumerate(indices) if any(map(len, shard))]
        found = self.runner.map(_taken, [self.shards[i] for i in some], [indices[i] for i in some])
        columns = zip(*(part for shard in self.runner.gather(found) for part in shard), strict=True)
        return [_stacked(list(column)) for column in columns]


def _stacked(arrays: list[Any]) -> Any:
    if arrays[0] is None:
        return None
    return sparse.vstack(arrays, "csr") if sparse.issparse(arrays[0]) else np.concatenate(arrays)


@dataclass(frozen=True)
class ClusterProblem(Problem):
    """A problem whose rows are elsewhere; its own `data` and `targets` are those of a few of them.

    Attributes
    ----------
    shards : Shards
        Where all are. `order` is a range over them.
    """

    shards: Any = None

    def total(
        self, function: Callable[..., tuple[Array, ...]], *arguments: Any, **options: Any
    ) -> tuple[Array, ...]:
        """See `Problem.total`."""
        client = _frame_of(self), self.data.shift, np.dtype(self.data.dtype).type
        shared = client, function, arguments, options
        runner = self.shards.runner
        return tuple(runner.sums(runner.map(_totals, self.shards.shards, shared=shared)))

    def sample(self, n: int, rng: np.random.Generator | None = None) -> Problem:
        """See `Problem.sample`. The rows come to the client, and so do not grow without bound."""
        n_rows, values = len(self.order), max(1.0, self.data.values_per_row)
        n = int(min(n, n_rows, max(1, _MOST_VALUES // values)))
        rng = np.random.Generator(np.random.PCG64(0)) if rng is None else rng
        X, *arrays = self.shards.take(np.sort(rng.choice(n_rows, n, replace=False, shuffle=False)))
        data = source(X, self.backend, np.dtype(self.data.dtype).type).shifted(self.data.shift)
        return Problem(data, np.arange(n), *arrays, **_frame_of(self))


def _masses(class_weight: Any, table: Table, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the rows of each class, without class weights and with them."""
    each, mass = np.arange(len(classes)), table.mass(classes)
    if not mass.any():
        raise ValueError("sample_weight: all rows have weight zero: there is nothing to learn.")
    if class_weight is None:
        return mass, mass
    _, weighted = Targets(classes, each).weighted(class_weight, mass, each)
    if not weighted.any():
        raise ValueError(
            f"With class_weight={class_weight!r}, all {table.n_rows} rows have weight zero: there "
            "is nothing to learn from."
        )
    return mass, weighted


def _pose(
    params: Hyperparameters, table: Table, classes: np.ndarray, masked: np.ndarray | None = None
) -> tuple[ClusterProblem, Seen]:
    """What `skmax.posing.pose` makes of a single model, of rows that are on a cluster.

    `masked` classes are those without weight, unless they are given.
    """
    n, mass, weighted = table.n_rows, *_masses(params.class_weight, table, classes)
    factor = np.divide(weighted, mass, out=np.zeros(len(classes)), where=mass > 0)
    masked = check_classes(classes, weighted) if masked is None else masked
    balanced = params.class_weight is not None
    terms = Terms(
        classes,
        factor,
        of_rows=n / weighted.sum() if balanced or table.is_weighted else None,
        of_scores=n / mass.sum() if balanced else None,
        is_soft=table.is_soft,
        dtype=table.dtype(),
        backend=params.backend,
    )
    shards = Shards.of(table, terms)
    X, targets, *_ = shards.take(np.arange(0, n, -(-n // _LOOKED_AT)))
    data = source(X, resolve(X, "numpy"), terms.dtype)
    problem: Any = ClusterProblem.pose(
        data,
        range(n),  # type: ignore[arg-type]
        targets,
        sample_weight=None,
        score_weight=None,
        masked=masked[None],
        C=np.array([float(params.C)]),
        l1_ratio=np.array([float(params.l1_ratio)]),
        label_smoothing=np.array([float(params.label_smoothing)]),
        fit_intercept=params.fit_intercept,
        weight_sum=np.array([weighted.sum()]),
    )
    problem = replace(problem, shards=shards)
    if params.preconditioner is None:
        return problem, Seen(float(weighted.sum()))
    moments = Moments.of(problem, data.origin(np.arange(X.shape[0])))
    posed: Any = precondition(problem, moments)
    return posed, Seen(float(weighted.sum()), moments)


def _pose_validation(problem: ClusterProblem, table: Table, classes: np.ndarray) -> ClusterProblem:
    """The plain cross-entropy of the model of a problem on validation rows."""
    n, total = table.n_rows, table.mass(classes).sum()
    if not total > 0:
        raise ValueError("sample_weight_val: all rows have weight zero: there is nothing to score.")
    terms = Terms(
        classes,
        np.ones(len(classes)),
        of_rows=n / total if table.is_weighted else None,
        of_scores=None,
        is_soft=table.is_soft,
        dtype=np.dtype(problem.data.dtype).type,
        backend="auto",
    )
    return replace(
        problem,
        order=range(n),  # type: ignore[arg-type]
        shards=Shards.of(table, terms),
        l2=np.zeros(1),
        l1=np.zeros(1),
        smoothing=None,
    )


def _averaged(problem: ClusterProblem, state: State, n_epochs: int) -> Epochs:
    """Epochs of SGD on the rows of each partition, whose weights are averaged after each.

    Reference: M. Zinkevich, M. Weimer, L. Li and A. J. Smola, Parallelized stochastic gradient
    descent, NIPS 2010.
    """
    n = len(problem.order)
    solver = sgd([Hyperparameters()], problem, np.array([n]), [n_epochs])
    rate = stable_rate(problem.sample(_ROWS_FOR_RATE), solver)
    solver = replace(solver, learning_rate=rate)
    for epoch in range(n_epochs):
        sums = problem.total(_epoch, state.coef, state.intercept, solver, epoch)
        coef, intercept, loss, correct = (part / n for part in sums)
        state = State.at(problem, coef, intercept)
        loss = loss + penalty(problem, state.coef)
        yield Epoch(np.arange(1), state, loss, correct, np.zeros(1, dtype=bool), rate)


def _runner(client: Any) -> Here:
    """Where a client computes; without any, the current one, or else this process."""
    if client is None:
        try:
            client = Client.current()
        except ValueError:
            return Here()
    return Workers(client)


def _predicted(X: Any, model: SoftmaxRegression, method: str) -> np.ndarray:
    """What a method makes of the rows of a partition, which may be none."""
    if X.shape[0] == 0:
        example = np.zeros((1, X.shape[1]), getattr(X, "dtype", np.float64))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names, which the example does not have
            return getattr(model, method)(example)[:0]
    return getattr(model, method)(to_host(X) if _is_cupy(X) else X)


def _scored(X: Any, y: Any, weight: Any, model: SoftmaxRegression) -> list[np.ndarray]:
    """The weight of the rows of a partition that are classified rightly, and of all."""
    n = X.shape[0]
    if n == 0:
        return [np.zeros(()), np.zeros(())]
    weights = np.ones(n) if weight is None else _weights_of(weight, X)
    total = weights.sum()
    X = to_host(X) if _is_cupy(X) else X
    correct = model.score(X, to_host(y), weights) * total if total > 0 else 0.0
    return [np.asarray(correct), np.asarray(total)]


def _has_no_partial_fit(estimator: Any) -> bool:
    raise AttributeError(
        f"{type(estimator).__name__} has no partial_fit: use fit, whose warm_start goes on from "
        "the last weights; or partial_fit of to_local()."
    )


class DaskSoftmaxRegression(SoftmaxRegression):
    """Softmax regression on a Dask cluster: `SoftmaxRegression`'s answer on the same rows.

    Rows stay with the workers. Every iteration sends the weights there, and one gradient per worker
    and thread comes back. On many dense rows, three epochs of SGD on the rows of each partition
    come first, whose weights are averaged; then L-BFGS goes on to the optimum, led by the curvature
    on a sample of the rows. A worker that dies costs the time to compute its rows anew, as long as
    Dask knows how.

    Parameters
    ----------
    C : float, default=1.0
        As in `SoftmaxRegression`.
    l1_ratio : float, default=0.0
        As in `SoftmaxRegression`.
    fit_intercept : bool, default=True
        As in `SoftmaxRegression`.
    class_weight : dict or "balanced", default=None
        As in `SoftmaxRegression`.
    label_smoothing : float, default=0.0
        As in `SoftmaxRegression`.
    solver : {"auto", "lbfgs"}, default="auto"
        Both are L-BFGS. Others raise an error.
    preconditioner : {"diagonal"} or None, default="diagonal"
        As in `SoftmaxRegression`.
    learning_rate : float or "auto", default="auto"
        Of "sgd": anything but the default raises an error.
    schedule : {"cosine", "linear", "constant", "invscaling"}, default="cosine"
        Of "sgd": anything but the default raises an error.
    max_iter : int, default=None
        As in `SoftmaxRegression`.
    batch_size : int or "auto", default="auto"
        Of "sgd": anything but the default raises an error.
    momentum : float, default=0.9
        Of "sgd": anything but the default raises an error.
    shuffle : bool, default=True
        Of "sgd": anything but the default raises an error.
    tol : float, default=1e-4
        As in `SoftmaxRegression`.
    n_iter_no_change : int or np.inf, default=None
        As in `SoftmaxRegression`.
    early_stopping : bool, default=False
        As in `SoftmaxRegression`, but it needs `X_val`.
    validation_fraction : float, default=0.1
        Not used: no rows are held out.
    warm_start : bool, default=False
        As in `SoftmaxRegression`.
    random_state : int, RandomState instance or None, default=None
        As in `SoftmaxRegression`.
    verbose : int, default=0
        As in `SoftmaxRegression`.
    backend : {"auto", "numpy", "cupy"}, default="auto"
        What workers compute with. "auto": CuPy for blocks of CuPy arrays, which need
        SCIPY_ARRAY_API=1 in the workers' environment; else NumPy.
    client : distributed.Client, default=None
        The cluster. None: that of the current client; without any, Dask's local scheduler reads
        the data, and this process computes. It is not pickled.

    Attributes
    ----------
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
        Coefficients of the features as given.
    intercept_ : ndarray of shape (n_classes,), or (1,)
        Intercepts.
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted; ``arange(n_classes)`` where y is a matrix. All other attributes are
        those of `SoftmaxRegression`.

    See Also
    --------
    skmax.SoftmaxRegression : The same model, for data of one machine.

    Notes
    -----
    X may be a Dask array with blocks of NumPy, SciPy (CSR) or CuPy arrays, or a Dask dataframe;
    y and weights Dask arrays or series, or anything that `SoftmaxRegression` takes. Where lengths
    of partitions are unknown and their numbers differ, they are counted first. Partitions are kept
    in the workers' memory while `fit` runs. The more rows a partition has, the less time is spent
    on anything but them: 10 to 100 MB suit well.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.datasets import load_iris
    >>> from skmax.dask import DaskSoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> X, y = da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50)
    >>> model = DaskSoftmaxRegression().fit(X, y)
    >>> model.predict_proba(X)
    dask.array<...shape=(150, 3)...>
    >>> model.score(X, y)
    0.97...
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **SoftmaxRegression._parameter_constraints,
        "client": "no_validation",
    }

    def __init__(
        self,
        *,
        C: float = 1.0,
        l1_ratio: float = 0.0,
        fit_intercept: bool = True,
        class_weight: ClassWeight = None,
        label_smoothing: float = 0.0,
        solver: SolverName = "auto",
        preconditioner: Literal["diagonal"] | None = "diagonal",
        learning_rate: float | Literal["auto"] = "auto",
        schedule: ScheduleName = "cosine",
        max_iter: int | None = None,
        batch_size: int | Literal["auto"] = "auto",
        momentum: float = 0.9,
        shuffle: bool = True,
        tol: float = 1e-4,
        n_iter_no_change: float | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        random_state: RandomState = None,
        verbose: int = 0,
        backend: BackendName = "auto",
        client: Client | None = None,
    ) -> None:
        super().__init__(
            C=C,
            l1_ratio=l1_ratio,
            fit_intercept=fit_intercept,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            solver=solver,
            preconditioner=preconditioner,
            learning_rate=learning_rate,
            schedule=schedule,
            max_iter=max_iter,
            batch_size=batch_size,
            momentum=momentum,
            shuffle=shuffle,
            tol=tol,
            n_iter_no_change=n_iter_no_change,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
            backend=backend,
        )
        self.client = client

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Data,
        y: Data,
        sample_weight: Data | None = None,
        *,
        X_val: Data | None = None,
        y_val: Data | None = None,
        sample_weight_val: Data | None = None,
    ) -> Self:
        """Fit the model to data that are on a cluster.

        Parameters
        ----------
        X : Dask array or dataframe of shape (n_samples, n_features)
            The training data. Arrays that are not Dask's are one partition.
        y : Dask array, series or dataframe, or array-like, of shape (n_samples,) or \
                (n_samples, n_classes)
            Labels or probabilities, as in `SoftmaxRegression.fit`.
        sample_weight : Dask array or series, or array-like, of shape (n_samples,), default=None
            Weights of the rows.
        X_val : Dask array or dataframe of shape (n_val, n_features), default=None
            Validation data, scored after each iteration.
        y_val : Dask array, series or dataframe, or array-like, default=None
            Labels or probabilities of the validation data.
        sample_weight_val : Dask array or series, or array-like, of shape (n_val,), default=None
            Weights of the validation data.

        Returns
        -------
        self : DaskSoftmaxRegression
            The fitted estimator.

        Raises
        ------
        ValueError
            The data are not valid, or a parameter asks for what there is not on a cluster.
        MemoryError
            Workers ran out of memory.
        ConnectionError
            The scheduler went away. As after any error, the estimator is as it was.

        Warns
        -----
        ConvergenceWarning
            As in `SoftmaxRegression.fit`.

        Examples
        --------
        >>> import dask.array as da
        >>> from sklearn.datasets import load_iris
        >>> from skmax.dask import DaskSoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> X, y = da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50)
        >>> DaskSoftmaxRegression(C=0.1).fit(X, y).coef_.shape
        (3, 4)
        """
        metadata = {} if sample_weight is None else {"sample_weight": sample_weight}
        arguments = {"X": X, "y": y, "metadata": metadata}
        params = self._check_method(X_val)
        validation = self._check_pair(X_val, y_val, sample_weight_val)
        runner = _runner(self.client)
        table = Table.read(runner, X, y, sample_weight)
        learned, classes = table.learned(), table.targets().classes
        if self.warm_start and hasattr(self, "coef_"):
            check_same_model(self, np.empty((0, learned["n_features_in_"])), classes)
        problem, seen = _pose(params, table, classes)
        watched = None
        if validation is not None:
            table = Table.read(runner, *validation, suffix="_val")
            _check_validation(table, learned, classes)
            watched = _pose_validation(problem, table, classes)
        del table  # or partitions would be kept, and computed anew where a worker dies
        learned = {**learned, "classes_": classes}
        here, rng = np.empty(0), self._new_rng()
        return self._train(here, params, problem, seen, watched, rng, arguments, learned)

    def _check_method(self, X_val: Any) -> Hyperparameters:
        """The parameters, if there is on a cluster what they ask for."""
        params = Hyperparameters.of(self)
        if params.solver in ("sgd", "newton"):
            raise ValueError(
                f"solver={params.solver!r} is not for a cluster. Use solver='lbfgs', which goes to "
                "the optimum; or to SoftmaxRegression, with partial_fit, partition by partition."
            )
        if replace(params, early_stopping=False).asks_for_sgd:
            raise ValueError(
                "learning_rate, schedule, batch_size, momentum and shuffle are of solver='sgd', "
                "which is not for a cluster: leave them at their defaults."
            )
        if params.early_stopping and X_val is None:
            raise ValueError(
                "early_stopping=True needs X_val and y_val on a cluster: no rows are held out."
            )
        return replace(params, solver="lbfgs")

    def _check_pair(self, X_val: Any, y_val: Any, weight: Any) -> tuple[Any, Any, Any] | None:
        if X_val is None and y_val is None and weight is None:
            return None
        if X_val is None or y_val is None:
            raise ValueError("X_val and y_val must be given together.")
        return X_val, y_val, weight

    def _epochs(self, method, params, problem, state, rng):  # noqa: ARG002
        if method.first_epochs == 0:
            return LBFGS().epochs(problem, state)
        first = _averaged(problem, state, method.first_epochs)
        return followed(first, method.first_epochs, problem, LBFGS())

    @available_if(_has_no_partial_fit)
    def partial_fit(
        self,
        X: Data,
        y: Data,
        classes: Data | None = None,
        sample_weight: Data | None = None,
    ) -> NoReturn:
        """Not available: to look it up raises an AttributeError, whose cause says what to do.

        Parameters
        ----------
        X : object
            Not used.
        y : object
            Not used.
        classes : object, default=None
            Not used.
        sample_weight : object, default=None
            Not used.

        Returns
        -------
        never : NoReturn
            Nothing.
        """
        raise NotImplementedError  # never reached

    def decision_function(self, X: Data, *, out: TakesRows | None = None) -> Any:
        """The logits of each row.

        Parameters
        ----------
        X : Dask array or dataframe, or array-like, of shape (n_samples, n_features)
            The rows.
        out : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            Where to write what is made of an X that is not Dask's, as in `SoftmaxRegression`.

        Returns
        -------
        logits : Dask array of shape (n_samples,) or (n_samples, n_classes)
            Not computed yet; of what is not Dask's, an array.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            `out` is given for what is Dask's; or X has other features than those fitted to.

        Examples
        --------
        >>> import dask.array as da
        >>> from sklearn.datasets import load_iris
        >>> from skmax.dask import DaskSoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> X, y = da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50)
        >>> model = DaskSoftmaxRegression().fit(X, y)
        >>> model.decision_function(X)
        dask.array<...shape=(150, 3)...>
        """
        return self._lazy(X, "decision_function", out)

    def predict(self, X: Data, *, out: TakesRows | None = None) -> Any:
        """The likeliest class of each row.

        Parameters
        ----------
        X : Dask array or dataframe, or array-like, of shape (n_samples, n_features)
            The rows.
        out : array-like of shape (n_samples,), default=None
            Where to write what is made of an X that is not Dask's, as in `SoftmaxRegression`.

        Returns
        -------
        y : Dask array or series of shape (n_samples,)
            Not computed yet; of what is not Dask's, an array.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            `out` is given for what is Dask's; or X has other features than those fitted to.

        Examples
        --------
        >>> import dask.array as da
        >>> from sklearn.datasets import load_iris
        >>> from skmax.dask import DaskSoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> X, y = da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50)
        >>> model = DaskSoftmaxRegression().fit(X, y)
        >>> model.predict(X)[[0, 50, 100]].compute()
        array([0, 1, 2])
        """
        return self._lazy(X, "predict", out)

    def predict_proba(self, X: Data, *, out: TakesRows | None = None) -> Any:
        """The probabilities of the classes.

        Parameters
        ----------
        X : Dask array or dataframe, or array-like, of shape (n_samples, n_features)
            The rows.
        out : array-like of shape (n_samples, n_classes), default=None
            Where to write what is made of an X that is not Dask's, as in `SoftmaxRegression`.

        Returns
        -------
        probabilities : Dask array of shape (n_samples, n_classes)
            Not computed yet; of what is not Dask's, an array.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            `out` is given for what is Dask's; or X has other features than those fitted to.

        Examples
        --------
        >>> import dask.array as da
        >>> from sklearn.datasets import load_iris
        >>> from skmax.dask import DaskSoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> X, y = da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50)
        >>> model = DaskSoftmaxRegression().fit(X, y)
        >>> model.predict_proba(X)[:1].compute().round(2)
        array([[0.98, 0.02, 0.  ]])
        """
        return self._lazy(X, "predict_proba", out)

    def predict_log_proba(self, X: Data, *, out: TakesRows | None = None) -> Any:
        """The logarithms of the probabilities of the classes.

        Parameters
        ----------
        X : Dask array or dataframe, or array-like, of shape (n_samples, n_features)
            The rows.
        out : array-like of shape (n_samples, n_classes), default=None
            Where to write what is made of an X that is not Dask's, as in `SoftmaxRegression`.

        Returns
        -------
        log_probabilities : Dask array of shape (n_samples, n_classes)
            In nats. Not computed yet; of what is not Dask's, an array.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            `out` is given for what is Dask's; or X has other features than those fitted to.

        Examples
        --------
        >>> import dask.array as da
        >>> from sklearn.datasets import load_iris
        >>> from skmax.dask import DaskSoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> X, y = da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50)
        >>> model = DaskSoftmaxRegression().fit(X, y)
        >>> model.predict_log_proba(X).max(axis=0).compute() < 0
        array([ True,  True,  True])
        """
        return self._lazy(X, "predict_log_proba", out)

    def _lazy(self, X: Any, method: str, out: Any) -> Any:
        """What a method makes of X, partition by partition."""
        check_is_fitted(self, "coef_")
        local = self.to_local()
        if not is_dask_collection(X):
            return getattr(local, method)(X, out=out)
        if out is not None:
            raise ValueError(
                "out= is for what is no Dask collection, whose predictions are lazy: write them "
                f"with dask.array.store(model.{method}(X), out)."
            )
        is_array = isinstance(X, da.Array)
        if X.shape[1] != self.coef_.shape[1]:
            raise ValueError(
                f"X has {X.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.coef_.shape[1]} features as input."
            )
        example = np.zeros((1, X.shape[1]), X.dtype) if is_array else X._meta_nonempty
        _check_feature_names(self, example, reset=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names, as have been said
            meta = getattr(local, method)(example)[:0]
        call = partial(_predicted, method=method)
        model = delayed(local, traverse=False)
        if not is_array:
            return X.map_partitions(call, model, meta=meta)
        X = X.rechunk({1: -1}) if X.numblocks[1] > 1 else X
        shape = {"drop_axis": 1} if meta.ndim == 1 else {"chunks": (X.chunks[0], meta.shape[1:])}
        return X.map_blocks(call, model=model, dtype=meta.dtype, meta=meta, **shape)

    def score(self, X: Data, y: Data, sample_weight: Data | None = None) -> float:
        """Accuracy, computed at once.

        Parameters
        ----------
        X : Dask array or dataframe of shape (n_samples, n_features)
            The rows.
        y : Dask array, series or dataframe, or array-like, of shape (n_samples,) or \
                (n_samples, n_classes)
            True labels, or their probabilities, of which the largest counts.
        sample_weight : Dask array or series, or array-like, of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        accuracy : float
            The (weighted) share of rows that are classified rightly, from 0 to 1.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            y does not go with X; or X has other features than those fitted to.

        Examples
        --------
        >>> import dask.array as da
        >>> from sklearn.datasets import load_iris
        >>> from skmax.dask import DaskSoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> X, y = da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50)
        >>> model = DaskSoftmaxRegression().fit(X, y)
        >>> model.score(X, y)
        0.97...
        """
        check_is_fitted(self, "coef_")
        runner = _runner(self.client)
        blocks = _aligned(runner, X, y, sample_weight, "")
        sums = runner.sums(runner.map(_scored, *blocks, shared=(self.to_local(),)))
        correct, total = map(float, sums)
        return correct / total if total > 0 else np.nan

    def optimality_gap(self, X: Data, y: Data, sample_weight: Data | None = None) -> float:
        """How far above its least value the objective is at most, as a share of itself.

        Parameters
        ----------
        X : Dask array or dataframe of shape (n_samples, n_features)
            The data that the model was fitted to, or others.
        y : Dask array, series or dataframe, or array-like
            Their labels or probabilities.
        sample_weight : Dask array or series, or array-like, of shape (n_samples,), default=None
            Their weights.

        Returns
        -------
        gap : float
            From 0, at the optimum, to 1. See `SoftmaxRegression.optimality_gap`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            y does not go with X; or X has other features than those fitted to.

        Examples
        --------
        >>> import dask.array as da
        >>> from sklearn.datasets import load_iris
        >>> from skmax.dask import DaskSoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> X, y = da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50)
        >>> model = DaskSoftmaxRegression(tol=1e-6).fit(X, y)
        >>> model.optimality_gap(X, y) <= 1e-6
        True
        """
        check_is_fitted(self, "coef_")
        table = Table.read(_runner(self.client), X, y, sample_weight)
        table.targets(self.classes_)
        masked = np.isneginf(fitted.intercept_at(self, None))
        if (masked & (table.mass(self.classes_) > 0)).any():
            return 1.0  # a class that occurs is impossible: the objective is infinite
        params = replace(Hyperparameters.of(self), preconditioner="diagonal")
        problem, _ = _pose(params, table, self.classes_, masked)
        return optimality_gap(problem, fitted.state_of(self, problem))

    def to_local(self) -> SoftmaxRegression:
        """A plain `SoftmaxRegression` with the same parameters and fitted attributes.

        Returns
        -------
        model : SoftmaxRegression
            It shares its arrays with this one.

        Examples
        --------
        >>> import dask.array as da
        >>> from sklearn.datasets import load_iris
        >>> from skmax.dask import DaskSoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> X, y = da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50)
        >>> model = DaskSoftmaxRegression().fit(X, y)
        >>> model.to_local()
        SoftmaxRegression()
        """
        params = self.get_params(deep=False)
        del params["client"]
        local = clone(SoftmaxRegression(**params))
        state = {name: value for name, value in vars(self).items() if name.endswith("_")}
        kept = ("_anchor", "_continuation")
        vars(local).update(state, **{name: vars(self)[name] for name in kept if name in vars(self)})
        return local

    def __getstate__(self):
        return {**super().__getstate__(), "client": None}

    def __sklearn_clone__(self):
        copy = object.__new__(type(self))
        copy.__dict__.update(vars(self), client=None)  # a client cannot be copied
        copy = super(DaskSoftmaxRegression, copy).__sklearn_clone__()
        copy.client = self.client
        return copy


def _check_validation(table: Table, learned: dict[str, Any], classes: np.ndarray) -> None:
    """Hold validation data to what is known of X and y."""
    if difference := _difference(table.learned(), learned):
        raise ValueError(f"X_val and X differ in {difference}.")
    table.targets(classes, "y_val")


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """In what those differ that have been learned of two X, if they do."""
    for name in sorted({*ours, *theirs}):
        one, other = ours.get(name), theirs.get(name)
        if not np.array_equal(np.asarray(one), np.asarray(other)):
            return f"{name}: {one} and {other}"
    return None

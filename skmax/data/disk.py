"""Rows that stay on disk: memory maps, HDF5, Zarr, and whatever gives slices of rows."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import array_api_compat
import numpy as np
from scipy import sparse

from skmax.data.host import HostRows, memory_map_of
from skmax.data.rows import start_of_range

# Bytes of rows that an epoch mixes, of which it holds two windows: what is smaller as a whole is
# treated as in memory. Bytes that are read in one place: with 96 blocks in each of 62 windows of
# rows sorted by label, three epochs ended 0.0 % above F of the same in memory with 10 classes,
# and 0.4 % with 100; with 24 blocks, 0.0 and 2.0 %; with 6, 1.0 and 46 %. At random, blocks of
# 1 MB that the disk is told of before took 0.9 to 1.7 times as long as reading in order.
# And the bytes of a window where all rows are read in order.
_WINDOW, _BLOCK, _IN_ORDER = 3 << 25, 1 << 20, 1 << 23
# Places that a sample comes from, at most and at least, and the bytes of chunks that it may cost.
_PLACES, _FEWEST_PLACES, _BYTES_OF_SAMPLE = 256, 16, 1 << 28


class Blocks:
    """A matrix on disk, of which rows are read that follow one another.

    They are looked at when they are first read, so that no pass is needed to find what is not
    finite.

    Parameters
    ----------
    array : object
        It has a shape of two numbers, a dtype, and slices of rows.

    Attributes
    ----------
    shape, dtype, itemsize
        As those of an array.
    chunk : int
        Rows that cannot be read one without the other.
    block : int
        Rows that are read in one place: whole chunks, where these are not too large.
    """

    def __init__(self, array: Any):
        self.array, self.shape, self.dtype = array, tuple(map(int, array.shape)), array.dtype
        self.itemsize = self.dtype.itemsize
        self.row_bytes = max(1, self.shape[1] * self.itemsize)
        chunks = getattr(array, "chunks", None) or (1,)
        self.chunk = chunks[0] if isinstance(chunks[0], int) else 1
        n_chunks = max(1, _BLOCK // (self.chunk * self.row_bytes))
        self.block = max(1, min(n_chunks * self.chunk, _WINDOW // self.row_bytes))
        self._file = _File.of(array)
        self._sound = np.zeros(-(-self.shape[0] // self.block), dtype=bool)
        self._sound[:] = self.dtype.kind != "f"
        # Whoever wrote the array may not have thought of threads.
        self.lock, self._few_lock = Lock(), Lock()
        self._few: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows from `first` to before `last`, as they are.

        Raises
        ------
        OSError
            They cannot be read.
        ValueError
            They are not finite.
        """
        try:
            with self.lock:
                rows = self._read(first, last)
            if rows.shape != (last - first, self.shape[1]):
                raise ValueError(f"their shape is {rows.shape}")
        except Exception as error:
            raise OSError(f"Rows {first} to {last - 1} of X cannot be read: {error}") from error
        if not self._sound[first // self.block : -(-last // self.block)].all():
            _check_finite(rows, first)
            self._sound[-(-first // self.block) : _whole(last, self.block, len(self))] = True
        return rows

    def _read(self, first: int, last: int) -> np.ndarray:
        if self._file is None:
            return np.asarray(self.array[first:last])
        return self._file.read(first, last)

    def fill(self, order: np.ndarray, out: np.ndarray) -> None:
        """Write the rows `order` into an array of as many rows, reading each once."""
        if not len(order):
            return
        places = np.argsort(order, kind="stable")
        ordered = order[places]
        distinct = bool((np.diff(ordered) > 0).all())
        apart = (np.flatnonzero(np.diff(ordered // self.block) > 1) + 1).tolist()
        parts = [slice(*ends) for ends in pairwise([0, *apart, len(order)])]
        ends = [(int(ordered[part.start]), int(ordered[part.stop - 1]) + 1) for part in parts]
        if self._file is not None:
            self._file.announce(ends)
        for part, (first, last) in zip(parts, ends, strict=True):
            rows = self.read(first, last)
            follow = distinct and len(rows) == part.stop - part.start
            out[places[part]] = rows if follow else rows[ordered[part] - first]

    def mapped(self) -> np.ndarray:
        """The array itself, if it is one, looked at as a whole.

        Raises
        ------
        TypeError
            It is none.
        """
        if not isinstance(self.array, np.ndarray):
            raise TypeError(
                f"X is a {type(self.array).__name__}, which only the NumPy backend reads in "
                "blocks: pass backend='numpy'."
            )
        for first in range(0, len(self), self.block):
            self.read(first, min(first + self.block, len(self)))
        return self.array

    def few(self, order: np.ndarray) -> np.ndarray:
        """The rows `order`, of which some may have been read before: as many as fit a window."""
        if not 0 < len(order) * self.row_bytes <= _WINDOW:
            out = np.empty((len(order), self.shape[1]), self.dtype)
            self.fill(order, out)
            return out
        with self._few_lock:
            if self._few is None or not _contains(self._few[0], order):
                rows = np.unique(order)
                values = np.empty((len(rows), self.shape[1]), self.dtype)
                self.fill(rows, values)
                self._few = rows, values
            rows, values = self._few
        return np.take(values, np.searchsorted(rows, order), axis=0)


def _whole(last: int, block: int, n_rows: int) -> int:
    """The blocks that end before a row; the last one may be smaller."""
    return -(-last // block) if last == n_rows else last // block


def _contains(rows: np.ndarray, order: np.ndarray) -> bool:
    place = np.minimum(np.searchsorted(rows, order), len(rows) - 1)
    return bool((rows[place] == order).all())


def _check_finite(rows: np.ndarray, first: int) -> None:
    """Raise a ValueError that says where rows of floats are not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(rows.sum()):
            return
    bad = np.argwhere(~np.isfinite(rows))
    if bad.size:
        row, feature = bad[0]
        what = "NaN" if np.isnan(rows[row, feature]) else "infinity"
        raise ValueError(
            f"Input X contains {what}: row {first + row}, feature {feature}. Fill in what is "
            "missing, or leave the row out."
        )


class _File:
    """The file that an array maps, to be read as a file: which is faster, and maps no pages.

    Parameters
    ----------
    array : ndarray
        With rows that follow one another in the file.
    """

    def __init__(self, descriptor: int, first: int, array: np.ndarray):
        self._descriptor, self._first = descriptor, first
        weakref.finalize(self, os.close, descriptor)
        self._shape, self._dtype, self._row_bytes = array.shape[1:], array.dtype, array.strides[0]

    @classmethod
    def of(cls, X: Any) -> _File | None:
        """The file of an array; None: it is none, or has changes of its own, or nobody tells."""
        view = X
        while isinstance(view, np.ndarray) and not isinstance(view, np.memmap):
            view = view.base
        if not isinstance(view, np.memmap) or view.mode == "c" or not X.flags.c_contiguous:
            return None
        address = X.__array_interface__["data"][0]
        with suppress(OSError):
            for line in Path("/proc/self/maps").read_text().splitlines():
                # begin-end, permissions, offset, device, inode, path
                place, _, offset, _, inode, *path = line.split(maxsplit=5)
                begin, end = (int(number, 16) for number in place.split("-"))
                if begin <= address < end and path:
                    descriptor = os.open(path[0], os.O_RDONLY)
                    file = cls(descriptor, int(offset, 16) + address - begin, X)
                    same = os.fstat(descriptor).st_ino == int(inode)  # it may be another by now
                    return file if same else None
        return None

    def announce(self, parts: list[tuple[int, int]]) -> None:
        """Say that rows are going to be read, so that the disk has many of them to do at once."""
        for first, last in parts:
            begin, end = (self._first + row * self._row_bytes for row in (first, last))
            os.posix_fadvise(self._descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows from `first` to before `last`."""
        rows = np.empty((last - first, *self._shape), self._dtype)
        left = rows.view(np.uint8).reshape(-1).data
        position = self._first + first * self._row_bytes
        while left:
            n_bytes = os.preadv(self._descriptor, [left], position)
            if not n_bytes:
                raise OSError("the file ends before")
            left, position = left[n_bytes:], position + n_bytes
        return rows


def opened(X: Any) -> Any:
    """Blocks of X, if that is on disk and large; read, if it is on disk and small; else X."""
    if isinstance(X, np.ndarray):
        large = X.ndim == 2 and X.nbytes > _WINDOW and X.dtype.kind in "biuf"
        return Blocks(X) if large and memory_map_of(X) is not None else X
    if not _is_source(X):
        return X
    if len(X.shape) != 2:
        raise ValueError(
            f"Expected 2D array, got {len(X.shape)}D array instead: the shape of X is {X.shape}."
        )
    blocks = Blocks(X)
    large = len(blocks) * blocks.row_bytes > _WINDOW
    return blocks if large or not len(blocks) else blocks.read(0, len(blocks))


def _is_source(X: Any) -> bool:
    """Whether X is no array, but gives arrays of rows."""
    dtype, shape = getattr(X, "dtype", None), getattr(X, "shape", None)
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or dtype.kind not in "biuf":
        return False
    known = isinstance(X, np.generic) or sparse.issparse(X) or array_api_compat.is_array_api_obj(X)
    return not known and hasattr(X, "__getitem__")


class DiskRows(HostRows):
    """Rows on disk, a window of which is in memory, and the next one on its way there."""

    X: Blocks
    is_on_disk = True

    def rows(self, index: Any) -> np.ndarray:
        """Rows of X, less the shift."""
        if isinstance(index, slice):
            index = np.arange(*index.indices(self.n_samples))
        return self._as_floats(self._gather(index))

    def _gather(self, index: np.ndarray) -> np.ndarray:
        return self.X.few(index)

    def pieces(self, order: np.ndarray, size: int) -> Iterator[tuple[Any, np.ndarray]]:
        """The rows at `order` as (index, rows), `size` of them at a time, each read once."""
        for index, rows in self.stored(order, size):
            for first in range(0, len(rows), size):
                some = slice(first, min(first + size, len(rows)))
                place = index[some]
                if isinstance(index, range):
                    place = slice(place.start, place.stop)
                yield place, self._as_floats(rows[some])

    def stored(self, order: np.ndarray, unit: int) -> Iterator[tuple[Any, np.ndarray]]:
        """The rows at `order` as they are stored, with their indices, about a window at a time.

        They come in multiples of `unit`, but for the last. Each is read once, where rows that are
        near in the file are near in `order`, as in what `epoch` gives, or are few.
        """
        start, first = start_of_range(order), 0
        for rows in _regrouped(self._read(order), unit):
            last = first + len(rows)
            yield order[first:last] if start is None else range(start + first, start + last), rows
            first = last

    def _read(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """The rows, a window at a time, while a thread reads the next one."""
        windows = self._windows(order)

        if not windows:
            return
        if len(windows) == 1 and start_of_range(order) is None:
            yield self.X.few(order)
            return
        size = max(len(window) for window in windows)
        buffers = np.empty((min(2, len(windows)), size, self.n_features), self.X.dtype)

        def read(place: int) -> np.ndarray:
            out = buffers[place % 2, : len(windows[place])]
            self.X.fill(windows[place], out)
            return out

        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(read, 0)
            for place in range(len(windows)):
                rows = coming.result()
                if place + 1 < len(windows):
                    coming = pool.submit(read, place + 1)
                yield rows

    def _windows(self, order: np.ndarray) -> list[np.ndarray]:
        """The parts of an order that are read together: they share no block, if that can be.

        They are as small as that allows, but no smaller than suits the disk.
        """
        most = self._rows_of_window()
        step = max(1, _IN_ORDER // (self.X.block * self.X.row_bytes)) * self.X.block
        step = min(step, most)
        parts, start = [], 0
        for end in _ends(order, self.X.block, step):
            parts += [order[a : min(a + most, end)] for a in range(start, end, most)]
            start = end
        return parts

    def _rows_of_window(self) -> int:
        """The most rows that are mixed."""
        return max(2, _WINDOW // (self.X.block * self.X.row_bytes)) * self.X.block

    def epoch(self, order: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """The rows `order`, shuffled within windows of blocks from all over the file.

        A window has a block of each part of the file, at random: so it is like the whole, even
        where rows are sorted by label.
        """
        if rng is None:
            return order
        shuffled = rng.permutation(order)
        n_windows = -(-len(order) // self._rows_of_window())
        if n_windows == 1:
            return shuffled
        n_parts = -(-self.n_samples // (self.X.block * n_windows))
        windows = np.arange(n_windows, dtype=np.min_scalar_type(n_windows))
        of_block = rng.permuted(np.tile(windows, (n_parts, 1)), axis=1).ravel()
        return shuffled[np.argsort(of_block[shuffled // self.X.block], kind="stable")]

    def sample(
        self, order: np.ndarray, n: int, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """About n of the rows `order`, sorted: neighbours, from many places at random."""
        if len(order) <= n:
            return order
        rng = np.random.Generator(np.random.PCG64(0)) if rng is None else rng
        affordable = _BYTES_OF_SAMPLE // (self.X.chunk * self.X.row_bytes)
        n_places = min(n, max(_FEWEST_PLACES, min(_PLACES, affordable)))
        edges, counts = (
            np.linspace(0, total, n_places + 1).astype(int) for total in (len(order), n)
        )
        width, length = np.diff(edges), np.diff(counts)
        start = edges[:-1] + (rng.random(n_places) * np.maximum(width - length + 1, 1)).astype(int)
        steps = np.arange(n) - np.repeat(counts[:-1], length)
        place = np.minimum(np.repeat(start, length) + steps, np.repeat(edges[1:], length) - 1)
        return np.sort(order)[np.unique(place)]

    def _some(self, order: np.ndarray, n: int) -> np.ndarray:
        return self.sample(order, n)

    def _differences_fit(self) -> bool:
        return all(
            int(rows.min()) > -(2**62) and int(rows.max()) < 2**62
            for rows in self._read(np.arange(self.n_samples))
        )


def _ends(order: np.ndarray, block: int, step: int) -> Iterator[int]:
    """Where parts of an order end of about `step` rows, or more, that share no block."""
    if start_of_range(order) is not None:
        first = int(order[0]) if len(order) else 0
        yield from range(step - first % step, len(order), step)
    else:
        block_of, place = order // block, np.arange(len(order))
        last = np.zeros(block_of.max() + 1, dtype=int)
        last[block_of] = place
        ends = np.flatnonzero(np.maximum.accumulate(last[block_of]) == place) + 1
        start = 0
        for end, following in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            if following - start > step:
                yield end
                start = end
    if len(order):
        yield len(order)


def _regrouped(windows: Iterator[np.ndarray], unit: int) -> Iterator[np.ndarray]:
    """The rows of windows, in multiples of `unit`, but for the last."""
    begun = None
    for rows in windows:
        if begun is not None:
            missing = unit - len(begun)
            begun, rows = np.concatenate([begun, rows[:missing]]), rows[missing:]
            if len(begun) < unit:
                continue
            yield begun
        whole = len(rows) // unit * unit
        if whole:
            yield rows[:whole]
        begun = rows[whole:].copy() if whole < len(rows) else None
    if begun is not None:
        yield begun

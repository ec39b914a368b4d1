"""Threads: how many there are for this process, work for them, and one of BLAS meanwhile.

An interrupt may come between any two lines, and a fork while any thread is anywhere. So what is to
be restored is written down before anything is changed, a token that missed its exit lets go when it
is dropped, and a lock that nobody is left to release is waited for once.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from typing import Any

from skmax._sklearn import _get_threadpool_controller, _openmp_effective_n_threads

# Multiply-adds that make up for waking a thread: 0.3 ms, beside 0.03 to 0.1.
WORTH_A_THREAD = 3_000_000
# Seconds after which a lock that is held for microseconds counts as abandoned.
_PATIENCE = 1.0

_helpers: ThreadPoolExecutor | None = None
_lock = threading.Lock()
# By the id of each token that is inside: its thread, and a reference that lets go in its place.
_holders: dict[int, tuple[int, weakref.ref[OneBlasThread]]] = {}
_originals: list[tuple[Any, int]] = []  # the libraries that are limited, and their threads before


def n_threads() -> int:
    """How many threads there are for this process: fewer in the workers of joblib."""
    return _openmp_effective_n_threads()


def shared(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """The results of a function of items, which as many threads share as there are.

    The calling thread is one of them. The others stay, asleep: new ones took as long to get at work
    as they saved of 3 ms, two threads that stay take 0.6 times as long as one.
    """
    left = deque(enumerate(items))
    results: list[Any] = [None] * len(items)

    def work() -> None:
        while True:
            try:
                place, item = left.popleft()
            except IndexError:
                return
            results[place] = function(item)

    helpers = [_pool().submit(work) for _ in range(min(n_threads(), len(items)) - 1)]
    try:
        work()
    finally:
        left.clear()
        wait([helper for helper in helpers if not helper.cancel()])
    for helper in helpers:
        if not helper.cancelled():
            helper.result()  # which raises what was raised there
    return results


def _pool() -> ThreadPoolExecutor:
    global _helpers
    if _helpers is None:
        _helpers = ThreadPoolExecutor(os.cpu_count(), "skmax")  # which starts them one by one
    return _helpers


def one_blas_thread() -> AbstractContextManager[None]:
    """What limits BLAS to one thread while inside, if it has more."""
    is_limited = not _holders and all(library.num_threads == 1 for library in _blas())
    return nullcontext() if is_limited else OneBlasThread()


class OneBlasThread:
    """Limits BLAS to one thread while any of these is inside, in any thread. For one `with`."""

    def __enter__(self) -> None:
        try:
            _enter(self)
        except BaseException:  # whose traceback may keep the token alive
            _leave(id(self))
            raise

    def __exit__(self, *_: object) -> None:
        try:
            _leave(id(self))
        except BaseException:
            _leave(id(self))
            raise


def _enter(token: OneBlasThread) -> None:
    key, lock = id(token), _acquire()
    try:
        # No __del__, which would swallow interrupts after every exit.
        _holders[key] = threading.get_ident(), weakref.ref(token, lambda _: _leave(key))
        _limit()
    finally:
        _release(lock)


def _leave(key: int) -> None:
    """Let a token go, if that has not been done; the last one restores the limits."""
    if key not in _holders:
        return
    lock = _acquire()
    try:
        if _holders.keys() == {key}:
            _restore()
        _holders.pop(key, None)
    finally:
        _release(lock)


def _acquire() -> threading.Lock:
    lock = _lock
    lock.acquire(timeout=_PATIENCE)  # taken over, if an interrupt has left it locked
    return lock


def _release(lock: threading.Lock) -> None:
    with suppress(RuntimeError):  # whoever took it over was here before
        lock.release()


def _limit() -> None:
    global _originals
    if not _originals:
        _originals = [(library, library.num_threads) for library in _blas()]
    for library, _ in _originals:
        _set_threads(library, 1)


@cache
def _blas() -> list[Any]:
    libraries = _get_threadpool_controller().lib_controllers
    return [library for library in libraries if library.user_api == "blas"]


def _restore() -> None:
    global _originals
    for library, count in _originals:
        _set_threads(library, count)
    _originals = []


def _set_threads(library: Any, count: int) -> None:
    # From threadpoolctl 3.8 on, `set_num_threads` does nothing in any thread but the first to call
    # it: the last to leave could not restore what the first has changed.
    getattr(library, "_real_set_num_threads", library.set_num_threads)(count)


def _after_fork_in_child() -> None:
    """Forget the threads that the child does not have, one of which may have held the lock."""
    global _helpers, _lock
    _helpers, _lock = None, threading.Lock()
    for key, (thread, _) in list(_holders.items()):
        if thread != threading.get_ident():
            del _holders[key]
    if not _holders:
        _restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

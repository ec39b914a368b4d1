"""Shared fixtures, and the count of scikit-learn's checks in the terminal summary."""

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # before SciPy is imported

import collections
import importlib.util
import sys

import emulated_cupy
import numpy as np
import pytest
from hypothesis import settings

# The same examples each time, so that no commit passes or fails by chance. For others:
# pytest --hypothesis-profile=fresh
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("fresh", deadline=None)
settings.load_profile("repeatable")


def gpu_problem():
    """Why GPU tests cannot run here, or None."""
    try:
        import cupy
    except ImportError as error:
        return f"no CuPy: {error}"
    if not cupy.cuda.is_available():
        return "CuPy finds no usable CUDA device"
    return None


def usable(namespace, device=None):
    """Whether arrays of a namespace can be made on a device here."""
    if namespace == "cupy" or device == "cuda":
        if gpu_problem() is not None:
            return False
    elif device in ("xpu", "mps"):
        return False
    return importlib.util.find_spec(namespace) is not None


def pytest_collection_modifyitems(items):
    problem = gpu_problem()
    for item in items:
        if problem and item.get_closest_marker("gpu"):
            if os.environ.get("SKMAX_REQUIRE_GPU") == "1":
                raise pytest.UsageError(f"SKMAX_REQUIRE_GPU=1, but {problem}")
            item.add_marker(pytest.mark.skip(reason=f"no usable GPU: {problem}"))


def pytest_terminal_summary(terminalreporter):
    """Count scikit-learn's checks per kind of input."""
    counts = collections.Counter()
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for kind, value in getattr(report, "user_properties", []):
                if kind == "scikit-learn check" and report.when in ("call", "setup"):
                    counts[value, outcome] += 1
    if counts:
        terminalreporter.section("scikit-learn's estimator checks")
        for (kind, outcome), number in sorted(counts.items()):
            terminalreporter.line(f"{kind}: {number} {outcome}")


@pytest.fixture(params=[pytest.param("device", marks=pytest.mark.gpu), "emulated"])
def cuda(request, monkeypatch):
    """CuPy on a GPU, or emulated."""
    if request.param == "emulated":
        emulated_cupy.install(monkeypatch)
    return request.param


@pytest.fixture
def emulated(monkeypatch):
    """CuPy emulated, whatever there is."""
    return emulated_cupy.install(monkeypatch)


@pytest.fixture(autouse=True)
def _close_figures():
    """Close what a test, or an example, has drawn: pyplot keeps it."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make_data(n=120, d=4, k=3, seed=0):
    """Overlapping classes of n rows, with features of two scales and centres."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.resize([1, 3], d) + np.resize([0, 2], d)
    coef = rng.normal(size=(k, d)) / X.std(axis=0)
    y = np.argmax((X - X.mean(axis=0)) @ coef.T + rng.gumbel(size=(n, k)), axis=1)
    return X, y

"""What skmax runs on here: for reports of bugs, and to see whether the compiled core is used."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from threadpoolctl import threadpool_info

from skmax.backends.threads import n_threads
from skmax.kernels import library

_NEEDED = ("skmax", "numpy", "scipy", "scikit-learn", "array-api-compat", "threadpoolctl", "joblib")
_EXTRAS = (
    *("cupy-cuda12x", "cupy-cuda13x", "dask", "distributed", "matplotlib", "rich", "pooch"),
    *("torch", "h5py", "zarr", "pandas", "polars"),
)


def show_versions() -> None:
    """Print versions, which kernels run here and on which instruction set, threads and GPUs.

    Please add it to a report of a bug. The line "CPU kernels" says whether the compiled core is
    used; where it is not, NumPy does the work, several times more slowly, and the line says why.

    Examples
    --------
    >>> import skmax
    >>> skmax.show_versions()
    System:
    ...
    """
    sections = {
        "System": _system(),
        "Versions": _versions(),
        "Computation": _computation(),
    }
    for title, lines in sections.items():
        print(f"{title}:")
        for name, value in lines:
            print(f"{name:>20}: {value}")


def _system() -> Iterator[tuple[str, str]]:
    yield "python", sys.version.replace("\n", " ")
    yield "executable", sys.executable
    yield "machine", platform.platform()
    yield "skmax is in", str(Path(__file__).parent)


def _versions() -> Iterator[tuple[str, str]]:
    """What is installed of that, as its metadata say: nothing is imported."""
    for name in _NEEDED + _EXTRAS:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in _NEEDED:
                yield name, "not installed"


def _computation() -> Iterator[tuple[str, str]]:
    yield "CPU kernels", _cpu_kernels()
    yield "threads", str(n_threads())
    for info in threadpool_info():
        what = f"{info['internal_api']} {info['version']}, {info['num_threads']} threads"
        yield info["user_api"], f"{what}, {info['filepath']}"
    yield from _gpus()


def _cpu_kernels() -> str:
    try:
        chosen = library.instruction_set()
    except ValueError as error:
        return f"none: {error}"
    if chosen:
        return f"compiled, {chosen} (can run here: {', '.join(library.possible_sets())})"
    return f"none: {library.problem() or f'{library.VARIABLE} says so'}"


def _gpus() -> list[tuple[str, str]]:
    """The GPUs that CuPy sees, or in a line why it sees none; nothing without CuPy."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cupy

            runtime = cupy.cuda.runtime
            cuda, count = runtime.runtimeGetVersion(), runtime.getDeviceCount()
            names = [runtime.getDeviceProperties(i)["name"].decode() for i in range(count)]
    except ModuleNotFoundError:
        return []
    except Exception as error:  # whatever a driver that does not suit says
        return [("GPUs", f"none: {(str(error).strip() or repr(error)).splitlines()[0]}")]
    version = f"CUDA {cuda // 1000}.{cuda % 1000 // 10}"
    return [(f"GPU {i}", f"{name}, {version}") for i, name in enumerate(names)]

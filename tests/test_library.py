"""The compiled core is found, chosen and refused as it should be; and what `show_versions` says."""

import ctypes
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import emulated_cupy
import numpy as np
import pytest

import skmax
from skmax import versions
from skmax.kernels import library

PROBLEM = library.problem()
compiled = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))


def forget():
    for cached in (library.function, library.instruction_set, library.possible_sets):
        cached.cache_clear()
    library._library.cache_clear()


@pytest.fixture(autouse=True)
def _afresh(monkeypatch):
    """No environment variable, and nothing known of before."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    forget()
    yield
    forget()


@pytest.fixture
def place(monkeypatch, tmp_path):
    """Where alone the library is looked for; nothing is there yet."""
    path = tmp_path / "libskmax.so"
    monkeypatch.setattr(library, "_places", lambda: iter([path]))
    return path


def own():
    """The library of this installation."""
    return Path(library._library()._name)


# Which set runs


@compiled
def test_the_best_set_runs():
    assert library.instruction_set() == library.possible_sets()[0]
    assert library.possible_sets()[-1] in ("plain", "neon")


@compiled
def test_functions_are_those_of_the_set_and_cost_nothing_to_ask_for_again(monkeypatch):
    of_set = {}
    for name in library.possible_sets():
        monkeypatch.setenv(library.VARIABLE, name)
        forget()
        assert library.instruction_set() == name
        found = library.function("epoch")
        assert (found.argtypes, found.restype) == ([ctypes.c_void_p], ctypes.c_int)
        assert library.function("epoch") is found
        of_set[name] = ctypes.cast(found, ctypes.c_void_p).value
    assert len(set(of_set.values())) == len(of_set)


@compiled
def test_the_reference_can_be_asked_for(monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "none")
    assert library.instruction_set() is None
    assert library.function("epoch") is None
    assert versions._cpu_kernels() == "none: SKMAX_INSTRUCTION_SET says so"


@compiled
def test_a_set_that_cannot_run_is_refused(monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "altivec")
    possible = ", ".join(library.possible_sets())
    for _ in range(2):
        with pytest.raises(ValueError, match=f"is 'altivec', but .* is {possible}, none. Set it"):
            library.function("epoch")
    assert "is 'altivec'" in versions._cpu_kernels()


def test_a_set_is_refused_for_want_of_a_library(monkeypatch, place):
    monkeypatch.setenv(library.VARIABLE, "plain")
    with pytest.raises(ValueError, match=r"is none \(skmax was installed without .*clang"):
        library.function("epoch")


# Where the library is, and whether it may be called


def test_without_a_library_the_reference_serves(place):
    assert library.function("epoch") is None
    assert library.instruction_set() is None
    assert "g++ or clang" in library.problem()
    assert versions._cpu_kernels() == f"none: {library.problem()}"


def test_what_is_no_library_is_not_loaded(place):
    place.write_bytes(b"\x7fELF of another processor")
    assert library.function("epoch") is None
    assert f"{place} does not load (" in library.problem()


def test_a_library_of_another_project_is_not_called(place):
    shutil.copy(np._core._multiarray_umath.__file__, place)
    assert library.function("epoch") is None
    assert f"{place} was compiled from another version of core.cpp" in library.problem()


@compiled
def test_a_library_of_another_source_is_not_called(monkeypatch):
    monkeypatch.setattr(library, "_source_hash", lambda: "0" * 64)
    assert library.function("epoch") is None
    assert "was compiled from another version of core.cpp" in library.problem()


@compiled
def test_a_source_tree_uses_what_is_installed(monkeypatch, tmp_path):
    """As in an editable installation, or where the tests of a checkout run."""
    installed = tmp_path / "skmax" / "kernels" / "libskmax.so"
    installed.parent.mkdir(parents=True)
    shutil.copy(own(), installed)
    (tmp_path / "skmax-0.1.0.dist-info").mkdir()
    (tmp_path / "skmax-0.1.0.dist-info" / "METADATA").write_text("Name: skmax\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    forget()
    assert own() == installed


@compiled
def test_the_library_of_the_package_comes_first(monkeypatch, tmp_path):
    path = tmp_path / "libskmax.so"
    shutil.copy(own(), path)
    spec = ModuleSpec("skmax.kernels.libskmax", None, origin=str(path))
    monkeypatch.setattr(library, "find_spec", {spec.name: spec}.get)
    forget()
    assert own() == path


@compiled
def test_a_stale_library_does_not_hide_a_good_one(monkeypatch, tmp_path):
    good = own()
    (tmp_path / "libskmax.so").write_bytes(b"stale")
    monkeypatch.setattr(library, "_places", lambda: iter([tmp_path / "libskmax.so", good]))
    forget()
    assert own() == good


# skmax.show_versions


def test_show_versions(capsys):
    skmax.show_versions()
    output = capsys.readouterr().out
    for name in ("python", "numpy", "scipy", "scikit-learn", "array-api-compat", "threads", "blas"):
        assert f" {name}: " in output
    assert f" numpy: {np.__version__}\n" in output
    assert f" CPU kernels: {versions._cpu_kernels()}\n" in output
    if PROBLEM is None:
        assert f" CPU kernels: compiled, {library.instruction_set()}" in output
    assert "not installed" not in output


@pytest.mark.parametrize("error", [RuntimeError("no driver\nTraceback"), OSError(), "odd"])
def test_show_versions_survives_a_cupy_that_does_not_work(monkeypatch, capsys, error):
    cupy = emulated_cupy.module("cupy")
    if error != "odd":

        def fail():
            raise error

        cupy.cuda = emulated_cupy.module("cuda", runtime=emulated_cupy.module("runtime"))
        cupy.cuda.runtime.getDeviceCount = fail
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    skmax.show_versions()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "GPUs: none: " in line]
    assert "Traceback" not in line


def test_show_versions_names_the_gpus(monkeypatch, capsys):
    runtime = emulated_cupy.module(
        "runtime",
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda index: {"name": b"NVIDIA H100"},
        runtimeGetVersion=lambda: 12090,
    )
    cuda = emulated_cupy.module("cuda", runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", emulated_cupy.module("cupy", cuda=cuda))
    skmax.show_versions()
    assert " GPU 0: NVIDIA H100, CUDA 12.9\n" in capsys.readouterr().out


def test_the_address_of_an_array_is_that_of_its_first_value():
    array = np.arange(12.0).reshape(3, 4)
    frozen = array.view()
    frozen.flags.writeable = False
    views = array, frozen, array[:, 1:], array[::-1], array.T, np.broadcast_to(array, (2, 3, 4))
    for view in (*views, array[:0], array > 3, array.astype(np.float16)):
        assert library.address(view) == view.__array_interface__["data"][0]

"""The compiled core: where its library is, whether it may be called, and for which processor.

`dispatch.cpp` says which instruction sets can run here; the best of them does, unless the
environment variable SKMAX_INSTRUCTION_SET names another, or `none`: the reference.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

VARIABLE = "SKMAX_INSTRUCTION_SET"
_REMEDY = "install g++ or clang, and then skmax again"
# As CMakeLists.txt has them.
_SOURCES = "core.cpp", "sparse.h", "descent.h", "coordinate_descent.h", "newton.h"


@cache
def function(name: str) -> Callable[[Any], int] | None:
    """A function of the core, which takes the address of what it is told; None: there is none.

    Raises
    ------
    ValueError
        If the environment variable asks for what cannot run here.
    """
    chosen = instruction_set()
    if chosen is None:
        return None
    found = getattr(_library(), f"skmax_{name}_{chosen}")
    found.argtypes, found.restype = [ctypes.c_void_p], ctypes.c_int
    return found


def address(array: Any) -> int:
    """Where an array begins; by `array.ctypes.data`, it would take three times as long."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (BufferError, TypeError, ValueError):  # it is read-only, in no order, or empty
        return int(array.ctypes.data)


def call(name: str, asked: ctypes.Structure) -> None:
    """Call a function of the core, which there must be, and which answers whether it has failed.

    Raises
    ------
    MemoryError
        It has no memory left.
    """
    found = function(name)
    assert found is not None
    if found(ctypes.byref(asked)):
        raise MemoryError("No memory is left for what the kernel of the CPU keeps in it.")


@cache
def instruction_set() -> str | None:
    """The instruction set that runs; None: there is no library, or the reference was asked for.

    Raises
    ------
    ValueError
        If the environment variable asks for what cannot run here.
    """
    asked, possible = os.environ.get(VARIABLE), [*possible_sets(), "none"]
    if not asked:
        asked = possible[0]
    if asked not in possible:
        why = f" ({problem()})" if possible == ["none"] else ""
        raise ValueError(
            f"{VARIABLE} is {asked!r}, but what can run here is {', '.join(possible)}{why}. "
            "Set it to one of these before the first fit, or leave it unset for the first of them."
        )
    return None if asked == "none" else asked


@cache
def possible_sets() -> tuple[str, ...]:
    """The instruction sets that were compiled and can run here, best first."""
    library = _library()
    return () if isinstance(library, str) else tuple(_text(library.skmax_instruction_sets).split())


def problem() -> str | None:
    """Why there is no library; None: there is one."""
    library = _library()
    return library if isinstance(library, str) else None


@cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    problem = f"skmax was installed without its compiled core; {_REMEDY}"
    for path in _places():
        if path.is_file():
            library = _load(path)
            if not isinstance(library, str):
                return library
            problem = library
    return problem


def _places() -> Iterator[Path]:
    """Where it may be: in this package, or what is installed, if this is only a source tree."""
    # Editable installations find modules elsewhere than in the package's folder: also this one.
    spec = find_spec(f"{__package__}.libskmax")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin)
    with suppress(metadata.PackageNotFoundError):
        yield Path(str(metadata.distribution("skmax").locate_file("skmax/kernels/libskmax.so")))


def _load(path: Path) -> ctypes.CDLL | str:
    """The library in a file, or why it may not be called."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # for another processor, or other versions of what it needs
        return f"{path} does not load ({error}); {_REMEDY}"
    stamp = getattr(library, "skmax_source", None)
    if stamp is None or _text(stamp) != _source_hash():
        return f"{path} was compiled from another version of core.cpp; {_REMEDY}"
    return library


def _source_hash() -> str:
    folder = resources.files(__package__)
    sources = (folder.joinpath(name).read_bytes() for name in _SOURCES)
    return "".join(sha256(source).hexdigest() for source in sources)


def _text(function: Any) -> str:
    function.restype = ctypes.c_char_p
    return function().decode()

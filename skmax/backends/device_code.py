"""Kernels for CUDA devices: as they were compiled ahead of time, or else as CuPy compiles them.

`python -m skmax.kernels.build` compiles ahead, into an archive per source in `kernels/cubins`. What
is in it is named by a hash of all that went into it: nothing that is out of date is ever found.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from zipfile import ZipFile

# The compiler ahead of time, of nvidia-cuda-nvrtc-cu12; and the compute capabilities, times ten,
# that it compiles for: such code runs where the first digits are the same, and the last no lower.
COMPILER = "12.9.86"
ARCHITECTURES = (80, 90, 100, 120)


def kernels() -> Traversable:
    """Where the sources are, and the folder `cubins`."""
    return resources.files("skmax").joinpath("kernels")


class Unit(NamedTuple):
    """What is compiled together.

    Attributes
    ----------
    files : tuple of str
        The sources, one after the other. The last one names the archive.
    options : tuple of str
        For the compiler.
    least : int
        The compute capability, times ten, from which it can run.
    """

    files: tuple[str, ...]
    options: tuple[str, ...] = ()
    least: int = 80

    def source(self) -> str:
        """The text of all sources."""
        return "\n".join(_text(file) for file in self.files)

    @property
    def archive(self) -> str:
        """The name of the file that has what was compiled of it."""
        return f"{Path(self.files[-1]).stem}.zip"

    def name(self, architecture: int) -> str:
        """What it is called in there, compiled for an architecture."""
        parts = (self.source(), *self.options, COMPILER, str(architecture))
        return f"{sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.cubin"

    def stored(self, capability: int) -> bytes | None:
        """What was compiled of it ahead for a device; None: nothing that runs there."""
        fitting = [a for a in ARCHITECTURES if a // 10 == capability // 10 and a <= capability]
        path = kernels().joinpath("cubins", self.archive)
        if not fitting or not path.is_file():
            return None
        with path.open("rb") as file, ZipFile(file) as archive:
            name = self.name(max(fitting))
            return archive.read(name) if name in archive.namelist() else None


@cache
def _text(file: str) -> str:
    return kernels().joinpath(file).read_text(encoding="utf-8")


@cache
def kernel(unit: Unit, function: str, index: int, *, cooperative: bool = False) -> Any:
    """A kernel of a unit, ready for the device of that number, which is the current one.

    It may have all of a block's shared memory: units have none but what is asked for at a launch.
    """
    import cupy

    device = cupy.cuda.Device(index)
    binary = unit.stored(int(device.compute_capability))
    if binary is None:
        module = cupy.RawModule(
            code=unit.source(), options=unit.options, enable_cooperative_groups=cooperative
        )
        found = module.get_function(function)
    else:
        with TemporaryDirectory() as folder:  # CuPy reads files alone, and at once
            path = Path(folder, "kernel.cubin")
            path.write_bytes(binary)
            module = cupy.RawModule(path=str(path), enable_cooperative_groups=cooperative)
            found = module.get_function(function)
    found.max_dynamic_shared_size_bytes = device.attributes["MaxSharedMemoryPerBlockOptin"]
    return found

"""Compile the kernels for CUDA devices ahead of time: ``python -m skmax.kernels.build``.

To be run after a change of their sources; what has not changed is left as it is. It takes NVIDIA's
run-time compiler of one version, which the extra ``test`` installs, and no GPU.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from skmax.backends import cupy
from skmax.backends.device_code import ARCHITECTURES, COMPILER, Unit, kernels
from skmax.kernels import (
    cuda,
    descent,
    device_sums,
    few_classes,
    halves,
    many_classes,
    residual,
    sparse_rows,
)

_PACKAGE = "nvidia-cuda-nvrtc-cu12"


def units() -> list[Unit]:
    """All that is compiled ahead."""
    modules = (
        *(cupy, cuda, descent, device_sums, few_classes, halves),
        *(many_classes, residual, sparse_rows),
    )
    return [unit for module in modules for unit in module.units()]


def code(unit: Unit, architecture: int) -> bytes:
    """What the compiler makes of a unit.

    Raises
    ------
    RuntimeError
        The compiler is missing, of another version, or refuses the source.
    """
    if architecture < unit.least:
        raise ValueError(f"{unit} does not run on sm_{architecture}.")
    nvrtc, program, size = _compiler(), ctypes.c_void_p(), ctypes.c_size_t()
    options = [*unit.options, "-ftz=true", f"-arch=sm_{architecture}"]  # as CuPy has it
    words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), unit.source().encode(), unit.files[-1].encode(), 0, None, None
    )
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), words):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"{unit} does not compile:\n{log.value.decode()}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, binary)
        return binary.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _compiler() -> ctypes.CDLL:
    try:
        found = metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        found = "none"
    if found != COMPILER:
        raise RuntimeError(
            f"The kernels are compiled with {_PACKAGE} {COMPILER}, and here is {found}: "
            f"pip install {_PACKAGE}=={COMPILER}"
        )
    import nvidia.cuda_nvrtc

    (path,) = Path(next(iter(nvidia.cuda_nvrtc.__path__)), "lib").glob("libnvrtc.so*")
    return ctypes.CDLL(str(path))


def archives() -> dict[str, dict[str, tuple[Unit, int]]]:
    """What belongs into each archive: the entries' names, and what they are made of."""
    all_of: dict[str, dict[str, tuple[Unit, int]]] = {}
    for unit in units():
        entries = all_of.setdefault(unit.archive, {})
        entries |= {unit.name(a): (unit, a) for a in ARCHITECTURES if a >= unit.least}
    return all_of


def main(folder: Path) -> None:
    """Bring the archives in a folder up to date, and remove those that nothing belongs into."""
    wanted = archives()
    for path in folder.glob("*.zip"):
        if path.name not in wanted:
            path.unlink()
    for archive, entries in wanted.items():
        known = _read(folder / archive)
        if known.keys() == entries.keys():
            continue
        new = {name: made_of for name, made_of in entries.items() if name not in known}
        with ThreadPoolExecutor() as pool:
            known |= dict(zip(new, pool.map(code, *zip(*new.values(), strict=True)), strict=True))
        _write(folder / archive, {name: known[name] for name in sorted(entries)})
        print(f"{archive}: {len(new)} compiled, {len(entries)} in all")


def _read(path: Path) -> dict[str, bytes]:
    if not path.exists():
        return {}
    with ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(path: Path, entries: dict[str, bytes]) -> None:
    """An archive that has the same bytes whenever it is made."""
    memory = BytesIO()
    with ZipFile(memory, "w", ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in entries.items():
            archive.writestr(ZipInfo(name), content, ZIP_DEFLATED, compresslevel=9)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(memory.getvalue())


if __name__ == "__main__":
    main(Path(str(kernels().joinpath("cubins"))))

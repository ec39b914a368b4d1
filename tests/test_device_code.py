"""Kernels for CUDA devices that were compiled ahead: what is stored, and what of it is taken."""

import struct
import types
from zipfile import ZipFile

import pytest

from skmax.backends import device_code
from skmax.backends.device_code import ARCHITECTURES, Unit, kernels
from skmax.kernels import build, cuda, sparse_rows

FOLDER = kernels().joinpath("cubins")
UNITS = build.units()


def entries(path):
    with ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_is_stored_is_what_the_sources_name():
    """If not: python -m skmax.kernels.build."""
    wanted = {archive: set(of) for archive, of in build.archives().items()}
    stored = {path.name: set(entries(path)) for path in FOLDER.iterdir()}
    assert stored == wanted


def test_what_is_stored_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6.5e6


@pytest.mark.parametrize("archive", build.archives())
def test_what_is_stored_is_what_the_compiler_makes_of_it(archive, tmp_path):
    pytest.importorskip("nvidia.cuda_nvrtc", reason="no nvidia-cuda-nvrtc-cu12")
    stored, made_of = entries(FOLDER / archive), build.archives()[archive]
    name = next(iter(made_of))
    assert build.code(*made_of[name]) == stored[name]
    build._write(tmp_path / archive, stored)
    assert entries(tmp_path / archive) == stored
    assert (tmp_path / archive).read_bytes() == (FOLDER / archive).read_bytes()


# What a kernel may have on its stack: a call to a slow path of a division or root, say.
_OF_A_CALL = 8


def resources(cubin):
    """Of each kernel and function in an ELF file: bytes of its stack, and registers."""
    (sections,) = struct.unpack_from("<Q", cubin, 40)
    n_sections, of_names = struct.unpack_from("<HH", cubin, 60)
    heads = [struct.unpack_from("<IIQQQQ", cubin, sections + 64 * i) for i in range(n_sections)]
    found = {"stack": {}, "registers": {}}
    for name, _, _, _, start, size in heads:
        at = heads[of_names][4] + name
        if cubin[at : cubin.index(b"\0", at)] != b".nv.info":
            continue
        end = start + size
        while start < end:
            form, attribute, n_bytes = struct.unpack_from("<BBH", cubin, start)
            kind = {0x11: "stack", 0x2F: "registers"}.get(attribute)
            if kind:
                of, value = struct.unpack_from("<II", cubin, start + 4)
                found[kind][of] = value
            start += 4 + (n_bytes if form == 4 else 0)
    return found


@pytest.mark.parametrize("archive", build.archives())
def test_what_is_stored_spills_no_registers(archive):
    """They would be on the stack, as a few logits of rows are that the residuals index."""
    most = {"residual.zip": 112}.get(archive, _OF_A_CALL)
    for cubin in entries(FOLDER / archive).values():
        of = resources(cubin)
        assert len(of["stack"]) >= len(of["registers"]) >= 1
        assert max(of["stack"].values()) <= most


@pytest.mark.parametrize("module", [cuda, sparse_rows])
def test_a_block_has_the_registers_that_it_takes(module):
    for unit in module.units():
        threads = dict(option.split("=") for option in unit.options if "=" in option)["-DTHREADS"]
        for architecture in ARCHITECTURES:
            if architecture >= unit.least:
                of = resources(entries(FOLDER / unit.archive)[unit.name(architecture)])
                assert max(of["registers"].values()) * int(threads) <= 1 << 16


def test_only_what_has_changed_is_compiled(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(build, "code", lambda *of: made.append(of) or str(of).encode())
    (tmp_path / "forgotten.zip").touch()
    build.main(tmp_path)
    n = sum(sum(a >= unit.least for a in ARCHITECTURES) for unit in UNITS)
    assert len(made) == n
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == build.archives().keys()
    build.main(tmp_path)
    assert len(made) == n
    first, *others = UNITS
    changed = first._replace(options=("-DNEW",))
    monkeypatch.setattr(build, "units", lambda: [changed, *others])
    build.main(tmp_path)
    assert {unit for unit, _ in made[n:]} == {changed}
    monkeypatch.setattr(build, "units", lambda: UNITS)
    build.main(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "compiled" in capsys.readouterr().out


def test_the_compiler_says_what_is_wrong(monkeypatch):
    pytest.importorskip("nvidia.cuda_nvrtc", reason="no nvidia-cuda-nvrtc-cu12")
    with pytest.raises(RuntimeError, match=r"does not compile:[^$]*penalty.cu.*REAL"):
        build.code(Unit(("penalty.cu",)), 80)
    monkeypatch.setattr(build, "COMPILER", "1.0")
    with pytest.raises(RuntimeError, match=r"pip install nvidia-cuda-nvrtc-cu12==1\.0"):
        build.code(UNITS[0], 80)


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        *[(80, 80), (86, 80), (89, 80), (90, 90), (100, 100), (103, 100), (120, 120), (121, 120)],
        *[(75, None), (110, None)],
    ],
)
def test_a_device_gets_what_was_compiled_for_it(capability, architecture):
    unit = UNITS[0]
    expected = architecture and entries(FOLDER / unit.archive)[unit.name(architecture)]
    assert unit.stored(capability) == expected


def test_what_is_out_of_date_is_not_taken(monkeypatch):
    unit = UNITS[0]
    assert unit._replace(options=("-DNEW",)).stored(90) is None
    assert Unit(("sgd_epoch.cu",)).stored(90) is None
    monkeypatch.setattr(device_code, "_text", lambda file: "// changed")
    assert unit.stored(90) is None
    monkeypatch.undo()
    monkeypatch.setattr(device_code, "COMPILER", "13.0")
    assert unit.stored(90) is None


def test_what_needs_clusters_is_not_compiled_for_less():
    unit = Unit(("sgd_epoch.cu",), ("-DCLUSTER=8",), 90)
    with pytest.raises(ValueError, match="does not run on sm_80"):
        build.code(unit, 80)


@pytest.mark.parametrize("capability", ["75", "90"])
def test_kernels_are_loaded_or_else_compiled(emulated, monkeypatch, capability):
    asked, unit, kernel = [], UNITS[0], types.SimpleNamespace()

    def raw_module(**options):
        if "path" in options:
            with open(options.pop("path"), "rb") as file:
                options["binary"] = file.read()
        asked.append(options)
        return types.SimpleNamespace(get_function=lambda name: kernel)

    monkeypatch.setattr(emulated, "RawModule", raw_module)
    monkeypatch.setattr(emulated.cuda.Device, "compute_capability", capability)
    binary = entries(FOLDER / unit.archive)[unit.name(90)] if capability == "90" else None
    monkeypatch.setattr(Unit, "stored", lambda *_: binary)
    for _ in range(2):
        found = device_code.kernel(unit, "total_8", -1, cooperative=True)
        assert found is kernel
    assert kernel.max_dynamic_shared_size_bytes == 232448
    what = {"binary": binary} if binary else {"code": unit.source(), "options": unit.options}
    assert asked == [what | {"enable_cooperative_groups": True}]

"""How many instructions kernels take, which tells more than a clock on a busy machine."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

# By the major version of g++, with AVX2. A failure says what to write here.
INSTRUCTIONS = {12: 11_029_694}
ALLOWED = 0.05

TESTS = Path(__file__).parent


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def options():
    """Those that the core is compiled with for AVX2."""
    listing = (TESTS.parent / "CMakeLists.txt").read_text("utf-8")
    common, avx2 = (
        re.search(rf"^ *set\({name} (-.*)\)$", listing, re.MULTILINE)[1].split()
        for name in ("common", "avx2")
    )
    return [*common, *avx2, "-std=c++17", "-DSKMAX_SET=avx2", "-DSKMAX_VECTOR_BYTES=32"]


def runs_avx2():
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and {"avx2", "fma", "bmi2"} <= set(cpu.read_text().split())


@pytest.fixture
def gcc():
    """The major version of g++, if its instructions can be counted here."""
    for program in ("g++", "valgrind"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")
    if platform.machine() != "x86_64" or not runs_avx2():
        pytest.skip("instructions are those of a processor with AVX2")
    version = int(output_of("g++", "-dumpversion").partition(".")[0])
    if version not in INSTRUCTIONS:
        pytest.skip(f"no number for g++ {version}, but for {', '.join(map(str, INSTRUCTIONS))}")
    return version


def test_kernels_take_as_many_instructions_as_before(gcc, tmp_path):
    """Predictions for what is laid out by columns, as frames of pandas are, take few more.

    They took hundreds of times as many where the whole of X was prefetched for each tile.
    """
    program, counts = tmp_path / "count", tmp_path / "counts"
    output_of("g++", *options(), str(TESTS / "count_instructions.cpp"), "-o", str(program))

    def count(function, *arguments):
        output_of(
            *("valgrind", "--tool=callgrind", f"--toggle-collect=skmax_{function}_avx2"),
            *(f"--callgrind-out-file={counts}", str(program), *arguments),
        )
        return int(re.search(r"^totals: (\d+)$", counts.read_text(), re.MULTILINE)[1])

    found = count("epoch")
    change = found / INSTRUCTIONS[gcc] - 1
    assert abs(change) <= ALLOWED, (
        f"{found:,} instructions, {100 * change:+.1f} %. If that is meant, set INSTRUCTIONS[{gcc}] "
        f"to {found:_} in tests/test_instructions.py, and say why in the commit."
    )
    by_rows, *others = (count("predict", layout) for layout in ("rows", "columns", "strided"))
    assert max(others) < 8 * by_rows  # which are converted as vectors

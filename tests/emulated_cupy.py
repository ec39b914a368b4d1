"""CuPy as far as skmax uses it, on the CPU: arrays are NumPy's, kernels run as fibers.

What CuPy does itself is not tested so; what skmax asks of it is, and its kernels are, thread by
thread (see emulated_cuda.h).
"""

import collections
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from scipy import sparse

HEADER = Path(__file__).with_name("emulated_cuda.h")
COMPILER = shutil.which("g++")
CLUSTER = "-DCLUSTER="
LAUNCH = """
#include <tuple>
#include <utility>

template <typename... A> bool fit(void (*)(A...), const int *sizes) {
    const int expected[] = {(std::is_pointer_v<A> ? -int(sizeof(A)) : int(sizeof(A)))..., 0};
    return std::equal(std::begin(expected), std::end(expected), sizes);
}
template <typename... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A *>(arguments[I])...);
}
template <typename... A> auto positions(void (*)(A...)) {
    return std::make_index_sequence<sizeof...(A)>();
}
extern "C" const char *
launch(int blocks, int cluster, int threads, size_t bytes, unsigned seed, void **arguments,
       const int *sizes) {
    if (!fit(KERNEL, sizes)) return "The arguments have other sizes than the parameters.";
    emulation::body = [=] { call(KERNEL, arguments, positions(KERNEL)); };
    return emulation::launch(blocks, cluster, threads, bytes, seed);
}
"""


def hashed(*parts):
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


@functools.cache
def header_there(command):
    """A folder with the header, compiled once for all kernels: that takes a third of their time."""
    text = HEADER.read_text()
    folder = Path(tempfile.gettempdir()) / f"skmax-emulated-{HEADER.stat().st_uid}"
    folder /= hashed(text)
    compiled = folder / f"{HEADER.name}.gch" / hashed(*command)
    compiled.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not compiled.exists():
        mine = folder / f"{os.getpid()}-{HEADER.name}"
        mine.write_text(text)
        subprocess.run([*command, "-x", "c++-header", "-o", f"{mine}.new", mine], check=True)
        mine.rename(folder / HEADER.name)
        Path(f"{mine}.new").rename(compiled)
    return folder


class Kernel:
    """A kernel built for the CPU, called as CuPy's are.

    Threads run in an order that `seed` decides.
    """

    seed = 0
    launches: ClassVar = collections.Counter()  # by name

    def __init__(self, code, options, name, *, cooperative=False):
        source = f'#include "{HEADER.name}"\n{code}\n{LAUNCH.replace("KERNEL", name)}'
        command = [COMPILER, "-O1", "-fPIC", "-ffp-contract=off", *options]
        folder = header_there(tuple(option for option in command if not option.startswith("-D")))
        library = folder / f"{hashed(source, *command)}.so"
        if not library.exists():
            mine = library.with_suffix(f".{os.getpid()}.cpp")  # another process may build it, too
            mine.write_text(source)
            new = mine.with_suffix(".new")
            subprocess.run([*command, "-shared", f"-I{folder}", "-o", new, mine], check=True)
            new.rename(library)
        self._name, self._launch = name, ctypes.CDLL(str(library)).launch
        self._launch.restype = ctypes.c_char_p
        self.max_dynamic_shared_size_bytes = 0
        self.kernel = types.SimpleNamespace(ptr=0)
        clusters = [int(option[len(CLUSTER) :]) for option in options if option.startswith(CLUSTER)]
        self._cluster = None if cooperative else clusters[0] if clusters else 1

    def __call__(self, grid, block, args, *, shared_mem=0):
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        Kernel.launches[self._name] += 1
        values, sizes = [], []
        for argument in args:
            if isinstance(argument, np.ndarray):
                assert argument.flags.c_contiguous
                values.append(np.uintp(argument.ctypes.data))
            else:
                assert isinstance(argument, np.generic)
                values.append(argument)
            pointer = isinstance(argument, np.ndarray | np.uintp)
            sizes.append(-8 if pointer else values[-1].itemsize)
        stored = [np.array(value) for value in values]
        addresses = (ctypes.c_void_p * len(stored))(*(value.ctypes.data for value in stored))
        error = self._launch(
            ctypes.c_int(grid[0]),
            ctypes.c_int(self._cluster or grid[0]),
            ctypes.c_int(block[0]),
            ctypes.c_size_t(shared_mem),
            ctypes.c_uint(self.seed),
            addresses,
            (ctypes.c_int * (len(sizes) + 1))(*sizes, 0),
        )
        assert not error, error.decode()


class Device(str):
    """A device, which array-api-compat takes for NumPy's own."""

    id = -1
    compute_capability = "90"
    attributes = types.MappingProxyType(
        {
            "MultiProcessorCount": 16,  # each has hundreds of fibers
            "MaxSharedMemoryPerBlockOptin": 232448,
            "MaxSharedMemoryPerMultiprocessor": 233472,
        }
    )
    mem_info = (10**10, 2 * 10**10)

    def __new__(cls, index=-1):
        assert index == cls.id  # there is but one
        return super().__new__(cls, "cpu")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Event:
    """What has been sent is there at once."""

    def __init__(self, disable_timing=False):
        pass

    def record(self):
        pass

    def synchronize(self):
        pass


class CUDARuntimeError(RuntimeError):
    """What CUDA does not do."""


PAGE_LOCKED: set[int] = set()  # where memory begins that the device reads by itself


def host_register(start, size, flags):
    """Once, and from addresses."""
    assert (size > 0, flags) == (True, 0)
    if start in PAGE_LOCKED:
        raise CUDARuntimeError("cudaErrorHostMemoryAlreadyRegistered")
    PAGE_LOCKED.add(start)


class OutOfMemoryError(MemoryError):
    """What CuPy raises when the device is full."""


class Elsewhere:
    """The type of CuPy's arrays, of which there are none."""


class SparseMatrix:
    """What CuPy's sparse matrices can do of what SciPy's can, which do not know them."""

    __array_ufunc__ = None  # NumPy leaves products to this

    def __init__(self, matrix):
        self._matrix = matrix
        self.shape, self.dtype, self.nnz = matrix.shape, matrix.dtype, matrix.nnz
        self.ndim = 2

    def __getitem__(self, index):
        return SparseMatrix(self._matrix[index])

    def __abs__(self):
        return SparseMatrix(abs(self._matrix))

    def __truediv__(self, number):
        return SparseMatrix(self._matrix / number)

    def __matmul__(self, dense):
        return self._matrix @ dense

    def __rmatmul__(self, dense):
        return dense @ self._matrix

    @property
    def T(self):
        return SparseMatrix(self._matrix.T)

    @property
    def indices(self):
        return self._matrix.indices

    @property
    def indptr(self):
        return self._matrix.indptr

    @property
    def data(self):
        return self._matrix.data

    @data.setter
    def data(self, values):
        self._matrix.data = values

    def astype(self, dtype):
        return SparseMatrix(self._matrix.astype(dtype))

    def copy(self):
        return SparseMatrix(self._matrix.copy())

    def multiply(self, other):
        return SparseMatrix(self._matrix.multiply(other._matrix).tocsr())

    def sum_duplicates(self):
        self._matrix.sum_duplicates()

    def toarray(self):
        return self._matrix.toarray()


def csr_matrix(parts, shape):
    """Of floats only, with indices of 32 bits."""
    assert parts[0].dtype in (np.float32, np.float64)
    assert parts[1].dtype == parts[2].dtype == np.int32
    return SparseMatrix(sparse.csr_matrix(parts, shape=shape))


def module(name, **attributes):
    """A module with some attributes."""
    made = types.ModuleType(name)
    vars(made).update(attributes)
    return made


def empty(shape, dtype=float):
    """An array of what nobody has written."""
    return np.frombuffer(
        bytearray(b"\xff") * (np.dtype(dtype).itemsize * int(np.prod(shape))), dtype
    ).reshape(shape)


def memcpy(to, start, size, kind, stream):
    """To and from addresses."""
    assert kind in (1, 2, 3)
    assert stream == 0
    ctypes.memmove(to, start, size)


def columns(place, dtype, distance, shape):
    """A matrix in the order of columns, from an address on."""
    rows, n_columns = shape
    assert rows <= distance
    size = np.dtype(dtype).itemsize
    memory = (ctypes.c_char * (size * (distance * (n_columns - 1) + rows))).from_address(place)
    return np.ndarray(shape, dtype, memory, strides=(size, size * distance))


def products(
    handle, way, other_way, m, n, k, one, a, of_a, lda, step_a, b, of_b, ldb, step_b, old, c, of_c,
    ldc, step_c, count, how, algorithm,
):  # fmt: skip
    """Of halves, in floats: cublasGemmStridedBatchedEx."""
    assert (of_a, of_b, of_c, how, algorithm) == (2, 2, 0, 68, -1)
    assert all(place % 16 == 0 for place in (a, b, c))
    assert lda % 8 == ldb % 8 == ldc % 8 == 0
    one, old = (ctypes.c_float.from_address(scalar).value for scalar in (one, old))
    for i in range(count):
        shapes = ((k, m) if way else (m, k)), ((n, k) if other_way else (k, n))
        places = a + 2 * i * step_a, b + 2 * i * step_b
        factors = [
            columns(place, np.float16, distance, shape).astype(np.float32)
            for place, distance, shape in zip(places, (lda, ldb), shapes, strict=True)
        ]
        first, second = (x.T if w else x for x, w in zip(factors, (way, other_way), strict=True))
        result = columns(c + 4 * i * step_c, np.float32, ldc, (m, n))
        product = np.float32(one) * (first @ second)
        result[...] = product + np.float32(old) * result if old else product


@functools.cache  # as CuPy's are
def raw_module(code, options=(), enable_cooperative_groups=False):
    def get_function(name):
        return Kernel(code, options, name, cooperative=enable_cooperative_groups)

    return types.SimpleNamespace(get_function=functools.cache(get_function))


def install(monkeypatch):
    """Let `import cupy` find this, and build kernels with fewer threads."""
    import array_api_compat.numpy

    from skmax.backends import device_code

    if COMPILER is None:
        pytest.skip("no g++, which builds the kernels for the CPU")
    cuda = module(
        "cupy.cuda",
        is_available=lambda: True,
        Device=Device,
        Event=Event,
        memory=module("cupy.cuda.memory", OutOfMemoryError=OutOfMemoryError),
        runtime=module(
            "cupy.cuda.runtime",
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            memcpyDeviceToDevice=3,
            memcpyAsync=memcpy,
            hostRegister=host_register,
            hostUnregister=PAGE_LOCKED.remove,
            CUDARuntimeError=CUDARuntimeError,
        ),
        alloc_pinned_memory=lambda size: bytearray(b"\xff") * size,
        get_current_stream=lambda: types.SimpleNamespace(ptr=0, synchronize=lambda: None),
        device=module("cupy.cuda.device", get_cublas_handle=lambda: 0),
    )
    cupy = module(
        "cupy",
        __version__="14.0",
        ndarray=Elsewhere,
        generic=Elsewhere,
        cuda=cuda,
        asarray=lambda array, dtype=None: np.array(array, dtype=dtype),
        ascontiguousarray=np.ascontiguousarray,
        asnumpy=np.array,
        zeros=np.zeros,
        empty=empty,
        RawModule=raw_module,
        get_default_memory_pool=lambda: types.SimpleNamespace(free_bytes=lambda: 0),
    )
    on_device = module("cupyx.scipy.sparse", csr_matrix=csr_matrix)
    scipy = module("cupyx.scipy", sparse=on_device)
    cupyx = module("cupyx", scipy=scipy)
    driver = module("cupy_backends.cuda.api.driver", funcSetAttribute=lambda *_: None)
    api = module("cupy_backends.cuda.api", driver=driver)
    cublas = module("cupy_backends.cuda.libs.cublas", gemmStridedBatchedEx=products)
    libs = module("cupy_backends.cuda.libs", cublas=cublas)
    for made in (cupy, cuda, cuda.device, cupyx, scipy, on_device, driver, api, cublas, libs):
        monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", array_api_compat.numpy)
    monkeypatch.setattr(array_api_compat, "cupy", array_api_compat.numpy, raising=False)
    monkeypatch.setattr("skmax.kernels.cuda.THREADS", 64)
    monkeypatch.setattr("skmax.kernels.device_sums.THREADS", 64)
    monkeypatch.setattr("skmax.kernels.residual._THREADS", 64)
    monkeypatch.setattr(Kernel, "launches", collections.Counter())
    monkeypatch.setattr(device_code.Unit, "stored", lambda *_: None)  # that is for a GPU
    device_code.kernel.cache_clear()
    return cupy

"""fetch_fashion_mnist: where it looks, what it accepts, and what it says when it cannot."""

import gc
import gzip
import hashlib
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from skmax.datasets import fashion_mnist, fetch_fashion_mnist

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
N_SAMPLES = {"train": 20, "test": 10}
REAL_DEBIAN_FOLDER = fashion_mnist.DEBIAN_FOLDER


def idx(array, magic=None):
    """Return an array in the IDX format."""
    header = [0x0800 + array.ndim if magic is None else magic, *array.shape]
    return np.array(header, dtype=">u4").tobytes() + array.tobytes()


@pytest.fixture
def arrays(monkeypatch, tmp_path):
    """A data set of a few pictures that stands in for Fashion-MNIST: file name -> array."""
    rng = np.random.default_rng(0)
    arrays, table = {}, {}
    for subset, files in fashion_mnist.FILES.items():
        table[subset] = []
        for file in files:
            shape = (N_SAMPLES[subset], *file.shape[1:])
            high = 256 if len(shape) == 3 else 10
            array = arrays[file.name] = rng.integers(high, size=shape, dtype=np.uint8)
            digests = [hashlib.sha256(b).hexdigest() for b in (packed(array), idx(array))]
            table[subset].append(fashion_mnist.IdxFile(file.name, shape, *digests))
    monkeypatch.setattr(fashion_mnist, "FILES", table)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "BASE_URL", f"http://127.0.0.1:{closed_port()}/")
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "sklearn"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return arrays


def packed(array):
    return gzip.compress(idx(array), mtime=0)


def closed_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def put(folder, arrays):
    """Write the files as Debian has them: same content, compressed otherwise."""
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        (folder / name).write_bytes(gzip.compress(idx(array), compresslevel=1, mtime=1))


class Server(ThreadingHTTPServer):
    """Serves `files`, less a byte of those in `cut`; `requested` are the names asked for."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requested, self.cut = files, [], []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.removeprefix("/")
        self.server.requested.append(name)
        body = self.server.files.get(name)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:-1] if name in self.server.cut else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(arrays, monkeypatch):
    pytest.importorskip("pooch")
    server = Server({name: packed(array) for name, array in arrays.items()})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(fashion_mnist, "BASE_URL", f"http://127.0.0.1:{server.server_port}/")
    yield server
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)
    assert not thread.is_alive()
    gc.collect()  # a socket left open is a ResourceWarning, and that an error of this test


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def error_of(kind, **params):
    """Return the message of the error of a fetch, which has to list the three ways."""
    with pytest.raises(kind) as info:
        fetch_fashion_mnist(**params)
    assert type(info.value) is kind
    message = str(info.value)
    assert "three ways" in message
    for file in fashion_mnist.FILES["train"] + fashion_mnist.FILES["test"]:
        assert file.name in message
    assert "apt-get install dataset-fashion-mnist" in message
    assert 'pip install "skmax[data]"' in message
    return message


# Where it looks


def assert_train_data(bunch, arrays):
    np.testing.assert_array_equal(bunch.data, arrays[TRAIN_IMAGES].reshape(20, 784))
    np.testing.assert_array_equal(bunch.target, arrays[TRAIN_LABELS])


@pytest.mark.parametrize("subfolder", ["", "fashion_mnist"])
@pytest.mark.parametrize("convert", [str, Path])
def test_files_in_data_home(arrays, tmp_path, subfolder, convert):
    put(tmp_path / "home" / subfolder, arrays)
    assert_train_data(fetch_fashion_mnist(data_home=convert(tmp_path / "home")), arrays)


def test_default_data_home_is_that_of_sklearn(arrays, tmp_path):
    put(tmp_path / "sklearn" / "fashion_mnist", arrays)
    assert_train_data(fetch_fashion_mnist(), arrays)


def test_default_data_home_and_tilde_are_in_the_users_home(arrays, tmp_path, monkeypatch):
    monkeypatch.delenv("SCIKIT_LEARN_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    put(tmp_path / "scikit_learn_data" / "fashion_mnist", arrays)
    assert_train_data(fetch_fashion_mnist(), arrays)
    assert_train_data(fetch_fashion_mnist(data_home="~/scikit_learn_data"), arrays)


def test_debian_folder_needs_no_pooch_and_creates_nothing(arrays, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    put(tmp_path / "debian", arrays)
    assert_train_data(fetch_fashion_mnist(), arrays)
    assert_train_data(fetch_fashion_mnist(data_home=tmp_path / "home"), arrays)
    assert [path.name for path in tmp_path.iterdir()] == ["debian"]


def test_data_home_comes_before_debian_and_network(arrays, server, tmp_path):
    put(tmp_path / "home", arrays)
    put(tmp_path / "debian", {name: array[::-1] for name, array in arrays.items()})
    assert_train_data(fetch_fashion_mnist(data_home=tmp_path / "home"), arrays)
    assert server.requested == []


def test_download_is_cached(arrays, server, tmp_path):
    home = tmp_path / "home"
    assert_train_data(fetch_fashion_mnist(data_home=home), arrays)
    assert server.requested == [TRAIN_IMAGES, TRAIN_LABELS]
    assert files_in(home / "fashion_mnist") == [TRAIN_IMAGES, TRAIN_LABELS]

    assert_train_data(fetch_fashion_mnist(data_home=home, download_if_missing=False), arrays)
    assert server.requested == [TRAIN_IMAGES, TRAIN_LABELS]


def test_only_what_is_missing_is_downloaded(arrays, server, tmp_path):
    put(tmp_path / "home", {TRAIN_IMAGES: arrays[TRAIN_IMAGES]})
    assert_train_data(fetch_fashion_mnist(data_home=tmp_path / "home"), arrays)
    assert server.requested == [TRAIN_LABELS]


def test_default_download_goes_where_sklearn_keeps_its_data(arrays, server, tmp_path):
    fetch_fashion_mnist()
    assert files_in(tmp_path / "sklearn" / "fashion_mnist") == [TRAIN_IMAGES, TRAIN_LABELS]


# What it returns


def test_bunch(arrays, tmp_path):
    put(tmp_path / "home", arrays)
    bunch = fetch_fashion_mnist(data_home=tmp_path / "home")
    assert sorted(bunch) == ["DESCR", "data", "target", "target_names"]
    assert bunch.data.dtype == np.uint8
    assert bunch.target.dtype == np.int64
    for array in (bunch.data, bunch.target):
        assert array.flags.c_contiguous
        assert array.flags.writeable
    assert len(bunch.target_names) == 10
    assert bunch.target_names[9] == "Ankle boot"
    for fact in ("Zalando", "arXiv:1708.07747", "MIT", "60000", "10000", "28 x 28"):
        assert fact in bunch.DESCR


def test_subsets_as_tuples(arrays, tmp_path):
    put(tmp_path / "home", arrays)
    X_train, y_train = fetch_fashion_mnist(data_home=tmp_path / "home", return_X_y=True)
    X_test, y_test = fetch_fashion_mnist(
        data_home=tmp_path / "home", subset="test", return_X_y=True
    )
    X, y = fetch_fashion_mnist(data_home=tmp_path / "home", subset="all", return_X_y=True)
    np.testing.assert_array_equal(X_test, arrays["t10k-images-idx3-ubyte.gz"].reshape(10, 784))
    np.testing.assert_array_equal(y_test, arrays["t10k-labels-idx1-ubyte.gz"])
    np.testing.assert_array_equal(X, np.vstack([X_train, X_test]))
    np.testing.assert_array_equal(y, np.hstack([y_train, y_test]))


@pytest.mark.parametrize(
    "param",
    [{"subset": "validation"}, {"data_home": 3}, {"download_if_missing": "no"}, {"return_X_y": 2}],
)
def test_invalid_parameters(param):
    with pytest.raises(ValueError, match=f"The '{next(iter(param))}' parameter"):
        fetch_fashion_mnist(**param)


# Bad files on disk: named, left alone, and not replaced by a download


def cut_gzip(array):
    return packed(array)[:-20]


def cut_gzip_trailer(array):
    return packed(array)[:-4]


def no_gzip(array):
    return idx(array)


def corrupt_gzip(array):
    content = bytearray(packed(array))
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


def empty(array):
    return gzip.compress(b"")


def wrong_magic(array):
    return gzip.compress(idx(array, magic=2049))


def wrong_count(array):
    return packed(array[:-1])


def wrong_picture_size(array):
    return packed(array.reshape(-1, 14, 56))


def short_payload(array):
    return gzip.compress(idx(array)[:-1])


def long_payload(array):
    return gzip.compress(idx(array) + b"\0")


def other_pictures(array):
    return packed(array[::-1])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_gzip, "is not a complete gzip file"),
        (cut_gzip_trailer, "is not a complete gzip file"),
        (no_gzip, "is not a complete gzip file"),
        (corrupt_gzip, "is not a complete gzip file"),
        (empty, "its magic number is 0 instead of 2051"),
        (wrong_magic, "its magic number is 2049 instead of 2051"),
        (wrong_count, "its dimensions are (19, 28, 28) instead of (20, 28, 28)"),
        (wrong_picture_size, "its dimensions are (20, 14, 56) instead of (20, 28, 28)"),
        (short_payload, f"it holds only {20 * 784 - 1} bytes instead of {20 * 784}"),
        (long_payload, f"it holds more bytes instead of {20 * 784}"),
        (other_pictures, "the SHA-256 of its decompressed content is"),
    ],
)
@pytest.mark.parametrize("place", ["home", "home/fashion_mnist", "debian"])
def test_bad_file(arrays, server, tmp_path, place, spoil, words):
    put(tmp_path / place, arrays)
    bad = tmp_path / place / TRAIN_IMAGES
    bad.write_bytes(spoil(arrays[TRAIN_IMAGES]))
    before = bad.read_bytes()

    message = error_of(ValueError, data_home=tmp_path / "home")
    assert message.startswith(f"{bad} ")
    assert words in message
    assert bad.read_bytes() == before
    assert server.requested == []
    assert files_in(tmp_path) == sorted(arrays)


def test_labels_are_checked_too(arrays, tmp_path):
    put(tmp_path / "home", arrays)
    bad = tmp_path / "home" / TRAIN_LABELS
    bad.write_bytes(packed(arrays[TRAIN_LABELS] + 10))
    message = error_of(ValueError, data_home=tmp_path / "home")
    assert message.startswith(f"{bad} is not Fashion-MNIST's: the SHA-256")


def test_unreadable_file(arrays, tmp_path):
    (tmp_path / "home" / TRAIN_IMAGES).mkdir(parents=True)
    message = error_of(OSError, data_home=tmp_path / "home")
    assert message.startswith(f"{tmp_path / 'home' / TRAIN_IMAGES} cannot be read: ")


# Downloads that fail: no file stays behind


def test_wrong_checksum(arrays, server, tmp_path):
    # Right content, wrong compression: only the checksum of the download itself tells.
    server.files[TRAIN_LABELS] = gzip.compress(idx(arrays[TRAIN_LABELS]), mtime=1)
    message = error_of(ValueError, data_home=tmp_path / "home")
    expected = fashion_mnist.FILES["train"][1].gzip_sha256
    found = hashlib.sha256(server.files[TRAIN_LABELS]).hexdigest()
    assert f"Downloading {fashion_mnist.BASE_URL}{TRAIN_LABELS} brought another file" in message
    assert expected in message
    assert found in message
    assert files_in(tmp_path) == [TRAIN_IMAGES]


@pytest.mark.parametrize("spoil", [cut_gzip, wrong_magic, wrong_count])
def test_bad_download(arrays, server, tmp_path, spoil):
    server.files[TRAIN_IMAGES] = spoil(arrays[TRAIN_IMAGES])
    message = error_of(ValueError, data_home=tmp_path / "home")
    assert f"Downloading {fashion_mnist.BASE_URL}{TRAIN_IMAGES} brought another file" in message
    assert files_in(tmp_path) == []


def test_file_missing_on_server(arrays, server, tmp_path):
    del server.files[TRAIN_IMAGES]
    message = error_of(OSError, data_home=tmp_path / "home")
    assert f"Downloading {fashion_mnist.BASE_URL}{TRAIN_IMAGES} failed: 404" in message
    assert files_in(tmp_path) == []


def test_connection_lost_and_found_again(arrays, server, tmp_path):
    server.cut = [TRAIN_IMAGES]
    message = error_of(OSError, data_home=tmp_path / "home")
    assert f"Downloading {fashion_mnist.BASE_URL}{TRAIN_IMAGES} failed: " in message
    assert files_in(tmp_path) == []

    server.cut = []
    assert_train_data(fetch_fashion_mnist(data_home=tmp_path / "home"), arrays)


def test_no_network(arrays, tmp_path):
    requests = pytest.importorskip("requests")
    pytest.importorskip("pooch")
    with pytest.raises(OSError) as info:  # its cause is wanted as well as its message
        fetch_fashion_mnist(data_home=tmp_path / "home")
    assert isinstance(info.value.__cause__, requests.ConnectionError)
    message = error_of(OSError, data_home=tmp_path / "home")
    assert f"Downloading {fashion_mnist.BASE_URL}{TRAIN_IMAGES} failed: " in message
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("obstacle", ["home", "home/fashion_mnist"])
def test_cache_that_cannot_be_written(arrays, server, tmp_path, obstacle):
    # A file where a folder should be stops every user, root included.
    (tmp_path / obstacle).parent.mkdir(exist_ok=True)
    (tmp_path / obstacle).write_text("in the way")
    message = error_of(OSError, data_home=tmp_path / "home")
    cache = tmp_path / "home" / "fashion_mnist"
    assert message.startswith(f"{TRAIN_IMAGES} cannot be saved in {cache}: ")
    assert files_in(tmp_path) == [Path(obstacle).name]
    assert (tmp_path / obstacle).read_text() == "in the way"


def test_without_pooch(arrays, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    message = error_of(ImportError, data_home=tmp_path / "home")
    assert message.startswith(f"Downloading {TRAIN_IMAGES} needs pooch: ")
    assert list(tmp_path.iterdir()) == []


def test_download_if_missing_false(arrays, server, tmp_path):
    message = error_of(OSError, data_home=tmp_path / "home", download_if_missing=False)
    assert message.startswith(f"{TRAIN_IMAGES} is in none of ")
    for folder in ("home", "home/fashion_mnist", "debian"):
        assert f"{tmp_path / folder}, " in message
    assert "download_if_missing=False" in message
    assert server.requested == []
    assert list(tmp_path.iterdir()) == []


# The real data


def test_table_of_files_is_that_of_fashion_mnist():
    for subset, n_samples in (("train", 60_000), ("test", 10_000)):
        images, labels = fashion_mnist.FILES[subset]
        assert images.shape == (n_samples, 28, 28)
        assert labels.shape == (n_samples,)
    digests = {d for files in fashion_mnist.FILES.values() for file in files for d in file[2:]}
    assert len(digests) == 8
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)


@pytest.mark.skipif(
    not REAL_DEBIAN_FOLDER.exists(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_real_data(tmp_path):
    bunch = fetch_fashion_mnist(subset="all", data_home=tmp_path, download_if_missing=False)
    assert bunch.data.shape == (70_000, 784)
    assert bunch.target[:5].tolist() == [9, 0, 0, 3, 0]
    assert bunch.target[60_000:60_005].tolist() == [9, 2, 1, 1, 6]
    assert np.bincount(bunch.target[:60_000]).tolist() == [6000] * 10
    assert np.bincount(bunch.target[60_000:]).tolist() == [1000] * 10
    # The mean pixel of the training pictures, 0.2860 of full scale, as it is widely quoted.
    assert bunch.data[:60_000].mean() / 255 == pytest.approx(0.2860, abs=1e-4)

"""Fashion-MNIST: 70,000 grey-scale pictures of clothes in ten classes.

The files are looked for on disk before anything is downloaded, and whatever their source, what they
hold is compared with the SHA-256 of the original data.
"""

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skmax._sklearn import StrOptions, validate_params

BASE_URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


class IdxFile(NamedTuple):
    """A gzipped array of uint8 in the IDX format, and how to recognise it."""

    name: str
    shape: tuple[int, ...]
    gzip_sha256: str  # of the file as its authors compressed it: what a download must match
    content_sha256: str  # of what it decompresses to: Debian compresses the same bytes anew


# The images and the labels of each subset.
FILES = {
    "train": (
        IdxFile(
            "train-images-idx3-ubyte.gz",
            (60_000, 28, 28),
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        IdxFile(
            "train-labels-idx1-ubyte.gz",
            (60_000,),
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
    ),
    "test": (
        IdxFile(
            "t10k-images-idx3-ubyte.gz",
            (10_000, 28, 28),
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte.gz",
            (10_000,),
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}

TARGET_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

DESCR = """\
.. _fashion_mnist_dataset:

Fashion-MNIST
-------------

Pictures of articles of clothing from the shop Zalando, made by Zalando Research as a harder drop-in
replacement for the handwritten digits of MNIST: same size, same split, same file format.

=================   ===============================
Classes                                          10
Samples per class                              7000
Samples total       70000 (60000 train, 10000 test)
Dimensionality                        784 (28 x 28)
Features                         integers, 0 to 255
=================   ===============================

Each row of ``data`` is one grey-scale picture of 28 x 28 pixels, row by row; 0 is the background.
Each entry of ``target`` is the index of the picture's class in ``target_names``.

The data come from https://github.com/zalandoresearch/fashion-mnist under the MIT licence,
copyright 2017 Zalando SE.

.. rubric:: References

- Han Xiao, Kashif Rasul, Roland Vollgraf (2017). "Fashion-MNIST: a Novel Image Dataset for
  Benchmarking Machine Learning Algorithms". arXiv:1708.07747.
"""


@overload
def fetch_fashion_mnist(
    *,
    subset: Literal["train", "test", "all"] = "train",
    data_home: str | os.PathLike[str] | None = None,
    download_if_missing: bool = True,
    return_X_y: Literal[False] = False,
) -> Bunch: ...


@overload
def fetch_fashion_mnist(
    *,
    subset: Literal["train", "test", "all"] = "train",
    data_home: str | os.PathLike[str] | None = None,
    download_if_missing: bool = True,
    return_X_y: Literal[True],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]: ...


@validate_params(
    {
        "subset": [StrOptions({"train", "test", "all"})],
        "data_home": [str, os.PathLike, None],
        "download_if_missing": ["boolean"],
        "return_X_y": ["boolean"],
    },
    prefer_skip_nested_validation=True,
)
def fetch_fashion_mnist(
    *,
    subset: Literal["train", "test", "all"] = "train",
    data_home: str | os.PathLike[str] | None = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> Bunch | tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Load the Fashion-MNIST dataset (classification).

    Each file is taken from the first place that has it: `data_home`, the folder of Debian's
    package ``dataset-fashion-mnist``, and else the network. Wherever it comes from, its content
    must have the SHA-256 of the original; a file that has not is reported, never skipped or
    replaced.

    =================   ==================
    Classes                             10
    Samples total                    70000
    Dimensionality                     784
    Features            integers, 0 to 255
    =================   ==================

    Parameters
    ----------
    subset : {'train', 'test', 'all'}, default='train'
        Select the dataset to load: 'train' for the 60,000 training samples, 'test' for the 10,000
        test samples, 'all' for both, the training samples first.

    data_home : str or path-like, default=None
        The folder of the datasets. The files may lie in it or in its subfolder ``fashion_mnist``;
        downloads are kept in the subfolder. If None, the subfolder ``fashion_mnist`` of
        scikit-learn's own data folder (see :func:`sklearn.datasets.get_data_home`).

    download_if_missing : bool, default=True
        If False, raise an OSError if the data is not locally available instead of trying to
        download it, which needs `pooch <https://www.fatiando.org/pooch>`_.

    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch object.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        Dictionary-like object, with the following attributes.

        data : ndarray of shape (n_samples, 784), dtype=uint8
            One picture of 28 x 28 pixels per row, pixels from 0 (background) to 255.
        target : ndarray of shape (n_samples,), dtype=int64
            The classes, 0 to 9.
        target_names : list of str of shape (10,)
            The names of the classes.
        DESCR : str
            The full description of the dataset.

    (data, target) : tuple if `return_X_y=True`
        The two ndarrays of the Bunch.

    Raises
    ------
    OSError
        If a file is missing and `download_if_missing=False`, if the download fails, or if a file
        cannot be read or saved.
    ValueError
        If a file, found or downloaded, is not the original's.
    ImportError
        If a file must be downloaded and pooch is not installed.

    Notes
    -----
    Every error lists the ways in which the data can be had.

    References
    ----------
    Han Xiao, Kashif Rasul, Roland Vollgraf (2017). "Fashion-MNIST: a Novel Image Dataset for
    Benchmarking Machine Learning Algorithms". `arXiv:1708.07747
    <https://arxiv.org/abs/1708.07747>`_.

    Examples
    --------
    >>> from skmax.datasets import fetch_fashion_mnist
    >>> train = fetch_fashion_mnist()  # doctest: +SKIP
    >>> train.data.shape, train.data.dtype  # doctest: +SKIP
    ((60000, 784), dtype('uint8'))
    >>> [train.target_names[label] for label in train.target[:3]]  # doctest: +SKIP
    ['Ankle boot', 'T-shirt/top', 'T-shirt/top']
    >>> X_test, y_test = fetch_fashion_mnist(subset="test", return_X_y=True)  # doctest: +SKIP
    """
    subsets = ("train", "test") if subset == "all" else (subset,)
    images, labels = zip(
        *[
            [_read(_locate(file, data_home, download_if_missing), file) for file in FILES[name]]
            for name in subsets
        ],
        strict=True,
    )
    # Concatenating copies, also a single array: what _read returns cannot be written to.
    data = np.concatenate(images).reshape(-1, 28 * 28)
    target = np.concatenate(labels).astype(np.int64)
    if return_X_y:
        return data, target
    return Bunch(data=data, target=target, target_names=list(TARGET_NAMES), DESCR=DESCR)


def _locate(file: IdxFile, data_home: str | os.PathLike[str] | None, download: bool) -> Path:
    """Return the path of a file, which is downloaded if need be."""
    if data_home is None:
        # Not get_data_home(): it creates the folder, which merely looking into must not do.
        home = Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()
        folders = [home / "fashion_mnist", DEBIAN_FOLDER]
    else:
        home = Path(data_home).expanduser()
        folders = [home, home / "fashion_mnist", DEBIAN_FOLDER]
    for folder in folders:
        # Not Path.exists(), which raises where a folder may not be searched.
        if os.path.exists(folder / file.name):
            return folder / file.name
    if download:
        return _download(file, home / "fashion_mnist")
    looked_in = ", ".join(map(str, folders))
    raise OSError(
        _explain(f"{file.name} is in none of {looked_in}, and download_if_missing=False.")
    )


def _download(file: IdxFile, folder: Path) -> Path:
    """Download a file into a folder, where it appears only once it is complete and verified."""
    try:
        import pooch
        from requests import RequestException  # what pooch downloads with
    except ImportError as error:
        raise ImportError(
            _explain(f'Downloading {file.name} needs pooch: pip install "skmax[data]".')
        ) from error
    url = BASE_URL + file.name
    try:
        # A checksum that differs is pooch's only ValueError. Requests' errors are OSErrors, some
        # of them ValueErrors as well, and therefore come first.
        pooch.retrieve(
            url,
            known_hash=f"sha256:{file.gzip_sha256}",
            fname=file.name,
            path=folder,
            # A streamed answer that says 404 would never be closed; 26 MB fit into memory.
            downloader=pooch.HTTPDownloader(stream=False),
        )
    except RequestException as error:
        raise OSError(_explain(f"Downloading {url} failed: {error}.")) from error
    except ValueError as error:
        raise ValueError(_explain(f"Downloading {url} brought another file: {error}")) from error
    except OSError as error:
        raise OSError(_explain(f"{file.name} cannot be saved in {folder}: {error}.")) from error
    return folder / file.name


def _read(path: Path, file: IdxFile) -> NDArray[np.uint8]:
    """Return the verified array of a file, read-only."""
    n_bytes = _header_size(file) + math.prod(file.shape)
    try:
        with gzip.open(path) as stream:
            # One byte more than there should be: enough to tell that there is too much, and
            # otherwise reading goes on to the end, where gzip's own checksum is.
            content = stream.read(n_bytes + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(_explain(f"{path} is not a complete gzip file: {error}.")) from error
    except OSError as error:
        raise OSError(_explain(f"{path} cannot be read: {error}.")) from error
    if fault := _find_fault(content, file):
        raise ValueError(_explain(f"{path} is not Fashion-MNIST's: {fault}."))
    return np.frombuffer(content, np.uint8, offset=_header_size(file)).reshape(file.shape)


def _find_fault(content: bytes, file: IdxFile) -> str | None:
    """Say what is wrong with the decompressed content of a file, the most telling fault first."""
    magic, *shape = (
        int.from_bytes(content[i : i + 4], "big") for i in range(0, _header_size(file), 4)
    )
    expected_magic = 0x0800 + len(file.shape)  # 0x08: unsigned bytes; then the number of dimensions
    if magic != expected_magic:
        return f"its magic number is {magic} instead of {expected_magic}"
    if tuple(shape) != file.shape:
        return f"its dimensions are {tuple(shape)} instead of {file.shape}"
    n_bytes, expected = len(content) - _header_size(file), math.prod(file.shape)
    if n_bytes != expected:
        found = f"only {n_bytes}" if n_bytes < expected else "more"
        return f"after the header it holds {found} bytes instead of {expected}"
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.content_sha256:
        return (
            f"the SHA-256 of its decompressed content is {digest} instead of "
            f"{file.content_sha256} (the files of MNIST have the same names and sizes)"
        )
    return None


def _header_size(file: IdxFile) -> int:
    """Return the bytes of an IDX header: the magic number and each dimension take four."""
    return 4 * (1 + len(file.shape))


def _explain(problem: str) -> str:
    """Return an error message: what went wrong, and the ways there are to get the data."""
    names = ", ".join(file.name for files in FILES.values() for file in files)
    return (
        f"{problem}\n"
        "There are three ways to get Fashion-MNIST:\n"
        f"1. put its files ({names}) into the folder that you give as data_home;\n"
        "2. install Debian's package: apt-get install dataset-fashion-mnist;\n"
        '3. have it downloaded: pip install "skmax[data]", then call '
        "fetch_fashion_mnist(download_if_missing=True) with a network connection.\n"
        "A bad file in one of these places must be replaced or removed first."
    )

"""
A file larger than memory
=========================

X may be a file: a ``numpy.memmap``, as here, or an ``h5py.Dataset``, a ``zarr.Array``, or anything
that has a shape, a dtype, and slices of rows. It is read piece by piece, and never held. The file
below has 470 MB, so that this page is built quickly. Of a hundred times as many rows, memory would
hold the same pieces, and more labels.
"""

# %%
# The file is written piece by piece, too: the 60,000 images of Fashion-MNIST, five times, moved by
# up to five pixels. They are sorted by label, as data often are that were exported class by class,
# and as is worst for a method that learns from one small batch after the other.
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from skmax.datasets import fetch_fashion_mnist

images, labels = fetch_fashion_mnist(return_X_y=True)
folder = TemporaryDirectory()
path = Path(folder.name)
pixels = np.lib.format.open_memmap(path / "X.npy", "w+", np.uint8, (600_000, 784))
y = np.repeat(np.arange(10), 60_000)
for k in range(10):
    for distance in range(10):
        place = slice(60_000 * k + 6000 * distance, 60_000 * k + 6000 * (distance + 1))
        pixels[place] = np.roll(images[labels == k], distance - 5, axis=1)
pixels.flush()
print(f"{pixels.nbytes / 1e6:.0f} MB")

# %%
# To see what is read, the file is put behind a class that writes it down. It has what ``X`` needs
# to have, and no more. (Else ``X = np.load("X.npy", mmap_mode="r")`` is all that it takes.)


class Watched:
    """Rows of an array; which ones were asked for is kept."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.read = []

    def __getitem__(self, rows):
        self.read.append((rows.start, rows.stop))
        return self.array[rows]


X = Watched(np.load(path / "X.npy", mmap_mode="r"))

# %%
# A long fit should survive a power cut. A callback of scikit-learn's is told when an epoch ends,
# and gets the model as it is then: pickled, it is a checkpoint. This one also notes how much was
# read until then, and plays the power cut in the second epoch.
import os
import pickle


class Checkpoint:
    def __init__(self, path, last_epoch=np.inf):
        self.path, self.last_epoch, self.ends = path, last_epoch, []

    def setup(self, estimator, context): ...
    def teardown(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context, **_): ...

    def on_fit_task_end(self, _estimator, context, *, fitted_estimator=None, **_):
        if context.task_name == "epoch":
            self.ends.append(len(X.read))
            if fitted_estimator.n_iter_ > self.last_epoch:
                raise RuntimeError("the lights went out")
            unfinished = self.path.with_suffix(".part")
            unfinished.write_bytes(pickle.dumps(fitted_estimator))
            os.replace(unfinished, self.path)  # there is never half a checkpoint


# %%
# The fit, with an eye on the most memory that Python and NumPy hold:
import tracemalloc

from skmax import SoftmaxRegression

checkpoint = Checkpoint(path / "model.pickle", last_epoch=1)
model = SoftmaxRegression(random_state=0).set_callbacks(checkpoint)
tracemalloc.start()
try:
    model.fit(X, y)
except RuntimeError as reason:
    print("interrupted:", reason)
print(f"at most {tracemalloc.get_traced_memory()[1] / 1e6:.0f} MB of memory")
tracemalloc.stop()

# %%
# What is left is the checkpoint. With ``warm_start``, ``fit`` goes on from its weights; the
# schedule of the learning rate and the curves begin anew. (The callback is pickled with the model:
# in a script of yours, put its class into a module, from which another process can import it.)
model = pickle.loads((path / "model.pickle").read_bytes())
print("before:", np.round(model.loss_curve_, 3))
model.set_params(warm_start=True).set_callbacks(Checkpoint(path / "model.pickle")).fit(X, y)
print("after: ", np.round(model.loss_curve_, 3))

# %%
# Probabilities of 600,000 rows may be large as well. ``out`` is where they go, block by block:
# here, to another file.
shape = (len(y), len(model.classes_))
probabilities = np.lib.format.open_memmap(path / "P.npy", "w+", np.float32, shape)
before = len(X.read)
model.predict_proba(X, out=probabilities)
print("likeliest classes of the last rows:", probabilities[-5:].argmax(axis=1))

# %%
# The picture: which rows were read when. Labels change at the dotted lines. A first pass, in
# order, is for the means and variances of the features; the two stripes after it are samples, for
# the curvature and the learning rate. Then come the epochs. Each stripe of theirs is 100 MB of
# blocks of a megabyte from all over the file, whose rows are mixed in memory while the next ones
# are read, so that every small batch has rows of all labels. Predictions are made in order.
import matplotlib.pyplot as plt

first, last = np.transpose(X.read)
epoch_1, epoch_2 = checkpoint.ends
parts = {"fit, until the lights went out": slice(0, epoch_2), "predict_proba": slice(before, None)}
figure, axes = plt.subplots(
    1, 2, figsize=(9, 5), sharey=True, width_ratios=[3.4, 1], layout="constrained"
)
for ax, (title, part) in zip(axes, parts.items(), strict=True):
    megabytes = np.cumsum(last[part] - first[part]) * X.shape[1] / 1e6
    ax.hlines(np.arange(1, 10) * 60_000, 0, megabytes[-1], "0.5", ":", linewidth=1)
    ax.vlines(megabytes, first[part], last[part], "tab:blue", linewidth=3)
    ax.set(title=title, xlabel="MB read so far", ylim=(0, len(y)))
    if title != "predict_proba":
        ax.axvline(megabytes[epoch_1], color="tab:orange", label="end of an epoch: checkpoint")
axes[0].set_ylabel("row in the file")
figure.legend(loc="outside lower center")
plt.show()
folder.cleanup()

# %%
# See :doc:`/guide/data` for what suits HDF5 and Zarr, and :doc:`/performance` for how long it
# takes.

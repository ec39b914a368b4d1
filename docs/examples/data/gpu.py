"""
On a GPU
========

With CuPy, ``fit``, ``partial_fit`` and :class:`~skmax.BatchedGridSearchCV` compute on an NVIDIA
GPU, with the batches of the CPU and, to rounding, its answers. This page was written down, and not
executed when this documentation was built, which needs no GPU.
"""

# sphinx_gallery_thumbnail_path = 'images/predictions.png'

# %%
# What is needed: a GPU, and CuPy, which comes with an extra of skmax, ``cuda12`` or ``cuda13``,
# whichever the driver is for:
#
# .. code-block:: sh
#
#    pip install ".[cuda12]"
#    python -c "import skmax; skmax.show_versions()"  # names the GPU
#
# NumPy arrays go in and come out
# -------------------------------
# ``backend="cupy"`` moves X to the GPU, once, in its own dtype: uint8 stays uint8, which is a
# quarter of the bytes of float32. The fitted attributes come back as NumPy arrays. So the model
# predicts on the CPU, and its pickle is of use where there is no GPU.
from skmax import SoftmaxRegression
from skmax.datasets import fetch_fashion_mnist

X_train, y_train = fetch_fashion_mnist(return_X_y=True)
X_test, y_test = fetch_fashion_mnist(subset="test", return_X_y=True)

model = SoftmaxRegression(backend="cupy", random_state=0).fit(X_train, y_train)
print(type(model.coef_))  # numpy.ndarray
print(model.score(X_test, y_test))  # computed on the CPU

# %%
# CuPy arrays go in and come out
# ------------------------------
# Where the data are on the GPU already, scikit-learn's array API does without moving them. The
# variable ``SCIPY_ARRAY_API=1`` has to be set before Python starts. What comes out is on the GPU,
# too.
import cupy as cp
import sklearn

with sklearn.config_context(array_api_dispatch=True):
    X_gpu, y_gpu = cp.asarray(X_train), cp.asarray(y_train)
    model = SoftmaxRegression(random_state=0).fit(X_gpu, y_gpu)
    probabilities = model.predict_proba(cp.asarray(X_test))

print(type(model.coef_), type(probabilities))  # cupy.ndarray, both
on_cpu = cp.asnumpy(probabilities)

# %%
# Such a model, pickled, needs a GPU where it is unpickled.
# :meth:`~skmax.SoftmaxRegression.to_sklearn` makes a scikit-learn model of it, whose attributes
# are NumPy arrays.
#
# Many models at once
# -------------------
# One small model keeps a few of a GPU's processors busy. A search trains all candidates and folds
# side by side:
from skmax import BatchedGridSearchCV

grid = {"C": [1e-8, 1e-7, 1e-6, 1e-5, 1e-4], "label_smoothing": [0, 0.1]}
search = BatchedGridSearchCV(SoftmaxRegression(solver="sgd", backend="cupy"), grid)
search.fit(X_train, y_train)

# %%
# Data larger than the GPU's memory
# ---------------------------------
# What of X would fill more than half of the free memory of the GPU stays where it is, in memory or
# in a ``numpy.memmap``, and is moved batch by batch in every epoch. Nothing has to be said for it.
#
# How long it takes
# -----------------
# On Fashion-MNIST and an NVIDIA H200, with CuPy 14.2, in milliseconds; ``python
# benchmarks/gpu.py`` measures it:
#
# =========================================================  =======
# what                                                       ms
# =========================================================  =======
# default fit, float32, X in CuPy                            23
# default fit, float32, X in NumPy                           64
# ``LogisticRegression`` on CuPy, to its 100 iterations      419
# PyTorch, a CUDA graph per epoch, 4 epochs to the same      55
# 10 epochs of one model, uint8, X in CuPy                   24
# 10 epochs of one model, uint8, X in NumPy                  30
# one epoch of 1 model, uint8                                1.1
# one epoch of 16 models side by side                        1.7
# one epoch of 128 models side by side                       6.1
# a search of 24 candidates, 5 folds, 10 epochs              304
# ``predict_proba``, 60,000 rows of uint8                    4.9
# =========================================================  =======
#
# .. plot::
#    :alt: Milliseconds of fits, and per epoch and model of 1, 16 and 128 models
#
#    import matplotlib.pyplot as plt
#
#    fits = {
#        "LogisticRegression\non CuPy": 419,
#        "skmax, X in NumPy": 64,
#        "PyTorch,\na CUDA graph": 55,
#        "skmax, X in CuPy": 23,
#    }
#    colours = ["0.6", "tab:blue", "0.6", "tab:blue"]
#    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
#    left.bar_label(left.barh(list(fits), list(fits.values()), color=colours), padding=3)
#    left.set(xlabel="ms to reach the objective of LogisticRegression", xlim=(0, 490))
#    models, epoch = [1, 16, 128], [1.08, 1.65, 6.10]
#    right.loglog(models, [ms / n for ms, n in zip(epoch, models)], "o-")
#    right.set(xlabel="models side by side", ylabel="ms per epoch and model")
#    right.set_xticks(models, models)
#    right.set_yticks([0.05, 0.1, 0.3, 1], [0.05, 0.1, 0.3, 1])
#    right.minorticks_off()
#
# An epoch is one launch, of dense rows and of sparse ones, with few classes and with many, and the
# next one is asked for while it runs. Kernels come compiled for compute capabilities 8, 9, 10 and
# 12; a first fit by L-BFGS waits some seconds for operations that CuPy compiles. See
# :doc:`/performance` for the rest of the measurements.

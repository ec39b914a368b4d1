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
# default fit, float32, X in CuPy                            42
# default fit, float32, X in NumPy                           89
# ``LogisticRegression`` on CuPy, to its 100 iterations      264
# PyTorch, a CUDA graph per epoch, 4 epochs to the same      56
# 10 epochs of one model, uint8, X in CuPy                   44
# 10 epochs of one model, uint8, X in NumPy                  50
# one epoch of 1 model, uint8                                2.8
# one epoch of 16 models side by side                        5.4
# one epoch of 128 models side by side                       15
# a search of 24 candidates, 5 folds, 10 epochs              574
# ``predict_proba``, 60,000 rows of uint8                    2.2
# =========================================================  =======
#
# .. plot::
#    :alt: Milliseconds of fits, and per epoch and model of 1, 16 and 128 models
#
#    import matplotlib.pyplot as plt
#
#    fits = {
#        "LogisticRegression\non CuPy": 264,
#        "skmax, X in NumPy": 89,
#        "PyTorch,\na CUDA graph": 56,
#        "skmax, X in CuPy": 42,
#    }
#    colours = ["0.6", "tab:blue", "0.6", "tab:blue"]
#    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
#    left.bar_label(left.barh(list(fits), list(fits.values()), color=colours), padding=3)
#    left.set(xlabel="ms to reach the objective of LogisticRegression", xlim=(0, 310))
#    models, epoch = [1, 16, 128], [2.79, 5.35, 15.1]
#    right.loglog(models, [ms / n for ms, n in zip(epoch, models)], "o-")
#    right.set(xlabel="models side by side", ylabel="ms per epoch and model")
#    right.set_xticks(models, models)
#    right.set_yticks([0.1, 0.3, 1, 3], [0.1, 0.3, 1, 3])
#    right.minorticks_off()
#
# The kernel that does an epoch in one launch is for dense rows and up to 32 classes (16 in
# float64). Else each operation is a call of CuPy: the same answers, later; an epoch of one model
# then takes about 0.2 seconds. The first fit on a machine takes seconds longer, in which kernels
# are compiled. See :doc:`/performance` for the rest of the measurements.

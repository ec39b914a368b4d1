"""
Augmentation: images that are never the same twice
==================================================

A photograph of a garment that lies two pixels further left is still one of it, but nothing in a
table of pixels says so. Augmentation teaches it: in every epoch, each image is moved by a few
pixels at random. ``fit`` wants its rows once and for all; ``partial_fit`` takes whatever rows the
next epoch has.
"""

# %%
# 10,000 images of Fashion-MNIST, and a function that moves each to its own place, by up to
# ``most`` pixels in each direction. Seen through a window of 28 by 28 pixels, that is a choice of
# the window.
import numpy as np

from skmax.datasets import fetch_fashion_mnist

X_train, y_train = (part[:10_000] for part in fetch_fashion_mnist(return_X_y=True))
X_test, y_test = fetch_fashion_mnist(subset="test", return_X_y=True)
rng = np.random.default_rng(0)


def moved(X, most):
    """Images, each moved by up to so many pixels, at random."""
    padded = np.pad(X.reshape(-1, 28, 28), [(0, 0), (most, most), (most, most)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (28, 28), axis=(1, 2))
    down, right = rng.integers(2 * most + 1, size=(2, len(X)))
    return windows[np.arange(len(X)), down, right].reshape(len(X), -1)


# %%
# The same model twice, for 15 epochs: on the images as they are, and on images moved by up to two
# pixels, which are new ones in every epoch. Both are tested on images as they are, and on moved
# ones. The rate of ``partial_fit`` does not decay; a fixed one makes the two comparable.
from skmax import SoftmaxRegression

X_moved = moved(X_test, 2)
models = {}
for name in ("without augmentation", "with augmentation"):
    model = models[name] = SoftmaxRegression(learning_rate=0.01, random_state=0)
    for _ in range(15):
        X = moved(X_train, 2) if name == "with augmentation" else X_train
        model.partial_fit(X, y_train, classes=np.arange(10))
    scores = [model.score(*data) for data in [(X, y_train), (X_test, y_test), (X_moved, y_test)]]
    print("{:21} training {:.2f}, test {:.2f}, test moved {:.2f}".format(name, *scores))

# %%
# Without augmentation, four moved images in ten are taken for something else. With it they are
# recognised nearly as well as those that were not moved, and the gap between training and test
# images closes: there is less to learn by heart where no image comes twice. It has a price. A
# softmax regression has one weight per pixel and class, and the same weights now serve 25 places,
# so that it loses on images which are centred as neatly as those of Fashion-MNIST. Augment by what
# will happen in use, and by no more.
#
# How far is far enough? All test images moved to the right, by 0 to 5 pixels:
distances = range(6)
by_distance = {name: [] for name in models}
for name, model in models.items():
    for distance in distances:
        padded = np.pad(X_test.reshape(-1, 28, 28), [(0, 0), (0, 0), (distance, 0)])
        X = padded[:, :, :28].reshape(len(X_test), -1)
        by_distance[name].append(model.score(X, y_test))
    print(f"{name:21}", np.round(by_distance[name], 2))

# %%
# The picture. Above: these accuracies. Below: the weights of the ten classes. What was learned
# from moved images is smooth, since a pixel's neighbours get its weight as well.
import matplotlib.pyplot as plt

from skmax.plotting import ClassWeightsDisplay

styles = {"without augmentation": ("tab:orange", "s"), "with augmentation": ("tab:blue", "o")}
figure, axes = plt.subplot_mosaic(
    [["accuracy", "accuracy"], list(models)], figsize=(9, 7), layout="constrained"
)
for name, (colour, marker) in styles.items():
    line = f"{marker}-"
    axes["accuracy"].plot(distances, by_distance[name], line, color=colour, label=name)
    ClassWeightsDisplay.from_estimator(models[name], ax=axes[name])
    axes[name].set_title(name)
axes["accuracy"].axvspan(-0.1, 2, color="0.93", label="in the augmentation")
axes["accuracy"].set(xlabel="test images moved to the right by so many pixels", ylabel="accuracy")
axes["accuracy"].set(xlim=(-0.1, 5.1), ylim=(0, 0.9))
axes["accuracy"].legend()
plt.show()

r"""
Softmax regression from first principles
========================================

Softmax regression is small enough to be written down whole: a matrix product, a softmax, a loss, a
gradient, and a loop. Here it is in plain NumPy, on the pictures of clothes of Fashion-MNIST [1]_,
in the order in which a textbook builds it up (chapter 4 of [2]_). Beside it stands the one call of
skmax that does the same; at the end, the two hold the same numbers.
"""

import matplotlib.pyplot as plt
import numpy as np

from skmax import SoftmaxRegression
from skmax.datasets import fetch_fashion_mnist
from skmax.plotting import PredictionGridDisplay

# %%
# The data
# --------
# 60,000 pictures of 28 x 28 grey pixels, each a row of 784 numbers, in ten classes. The pixels are
# brought to the range from 0 to 1, where a step of 0.1 is a sensible one, and the rows into a
# random order, so that each minibatch is a fair sample of all pictures. Double precision is more
# than training needs; it will show that the two programs differ by rounding only.

train = fetch_fashion_mnist()
test = fetch_fashion_mnist(subset="test")
order = np.random.default_rng(0).permutation(len(train.data))
X, y = train.data[order] / 255.0, train.target[order]
X_test, y_test = test.data / 255.0, test.target
print(X.shape, X_test.shape)

# %%
# The parameters
# --------------
# One weight per pixel and class, and one intercept per class. A textbook draws the weights at
# random, since the units of a deep network must not all start alike. Softmax regression has no
# hidden units, and its loss is convex: there are no bad places to start from, and zeros will do.

n_features, n_classes = 784, 10
W, b = np.zeros((n_features, n_classes)), np.zeros(n_classes)

# %%
# The softmax
# -----------
# The logits ``o = x W + b`` may be any real numbers. Exponentials make them positive, and their sum
# makes them probabilities (section 4.1 of [2]_):
#
# .. math:: p_j = \frac{\exp(o_j)}{\sum_l \exp(o_l)}.
#
# :math:`\exp(1000)` is too large for any floating-point number. But a constant that is added to all
# logits cancels, so that the largest of a row may be taken out beforehand: no exponent is then
# above zero, and nothing overflows (section 4.5 of [2]_).


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


np.exp(log_softmax(np.array([[1000.0, 1001.0, 0.0]]))).round(3)

# %%
# The loss
# --------
# The cross-entropy of a picture is :math:`-\log p_y`, the surprise at its true class in nats: zero
# if the model was certain of it, and without bound as its probability goes to zero. Summed over
# independent pictures, it is minus the logarithm of the likelihood (section 4.1 of [2]_). Weights
# of zero make all ten classes equally likely, so that training has to start from
# :math:`\log 10 \approx 2.303`.


def cross_entropy(log_p, y):
    return -log_p[np.arange(len(y)), y]


def accuracy(logits, y):
    return (logits.argmax(axis=1) == y).mean()


log_p = log_softmax(X @ W + b)
print(f"loss {cross_entropy(log_p, y).mean():.3f}, accuracy {accuracy(log_p, y):.3f}")

# %%
# The gradient
# ------------
# By a logit, the derivative of the cross-entropy is :math:`p_j - y_j` (section 4.1 of [2]_), ``y``
# being one-hot: what the model says, less what is true. The chain rule takes it to the weights, and
# a minibatch takes the mean over its rows.


def gradient(X, y, W, b):
    log_p = log_softmax(X @ W + b)
    residual = (np.exp(log_p) - np.eye(n_classes)[y]) / len(X)
    return X.T @ residual, residual.sum(axis=0), log_p


# %%
# It is good practice to compare a gradient with differences of the loss. One weight, in the middle
# of the pictures, moved up and down by a ten-thousandth:

step = np.zeros_like(W)
step[14 * 28 + 14, 0] = 1e-4
up = cross_entropy(log_softmax(X @ (W + step) + b), y).mean()
down = cross_entropy(log_softmax(X @ (W - step) + b), y).mean()
slope, _, _ = gradient(X, y, W, b)
print(f"{(up - down) / 2e-4:.6f} and {slope[14 * 28 + 14, 0]:.6f}")

# %%
# The training loop
# -----------------
# Minibatch stochastic gradient descent: 256 rows at a time, a step against their mean gradient, and
# on to the next 256; an epoch has seen all rows once. We note the loss and the accuracy of each
# minibatch before its step, averaged over the epoch, and the accuracy on the test pictures after
# each epoch.

learning_rate, batch_size, n_epochs = 0.1, 256, 10
loss_curve, accuracy_curve, test_curve = [], [], []
for _ in range(n_epochs):
    loss = correct = 0
    for start in range(0, len(X), batch_size):
        X_batch, y_batch = X[start : start + batch_size], y[start : start + batch_size]
        slope, slope_0, log_p = gradient(X_batch, y_batch, W, b)
        W -= learning_rate * slope
        b -= learning_rate * slope_0
        loss += cross_entropy(log_p, y_batch).sum()
        correct += accuracy(log_p, y_batch) * len(y_batch)
    loss_curve.append(loss / len(X))
    accuracy_curve.append(correct / len(X))
    test_curve.append(accuracy(X_test @ W + b, y_test))

print(f"loss {loss_curve[-1]:.3f}, accuracy {accuracy_curve[-1]:.3f}, test {test_curve[-1]:.3f}")

# %%
# The same with skmax
# -------------------
# By default skmax does several things that this loop does not: a penalty, momentum, a
# preconditioner, a learning rate found from the data, a schedule, a new order in every epoch. Each
# has a parameter; set to what the loop does, they give the textbook's algorithm. ``C=np.inf`` is no
# penalty, and ``tol=0`` runs all epochs. The test pictures are only recorded: without
# ``early_stopping`` they have no part in training.

model = SoftmaxRegression(
    solver="sgd",
    preconditioner=None,
    learning_rate=0.1,
    schedule="constant",
    momentum=0,
    C=np.inf,
    batch_size=256,
    shuffle=False,
    max_iter=10,
    tol=0,
).fit(X, y, X_val=X_test, y_val=y_test)

last = model.loss_curve_[-1], model.accuracy_curve_[-1], model.validation_scores_[-1]
print("loss {:.3f}, accuracy {:.3f}, test {:.3f}".format(*last))

# %%
# After 2,350 steps, all 7,850 parameters agree to twelve decimal places, and the test accuracies
# after each epoch are equal:

np.testing.assert_allclose(model.coef_, W.T, rtol=0, atol=1e-12)
np.testing.assert_allclose(model.intercept_, b, rtol=0, atol=1e-12)
np.testing.assert_allclose(model.loss_curve_, loss_curve, rtol=1e-12)
np.testing.assert_allclose(model.validation_scores_, test_curve)

# %%
# The curves lie on top of each other. Training accuracy is that of the weights as they
# were during the epoch, test accuracy that of those at its end.

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
epochs = np.arange(1, n_epochs + 1)
curves = [
    (left, "training", "C0", loss_curve, model.loss_curve_),
    (right, "training", "C0", accuracy_curve, model.accuracy_curve_),
    (right, "test", "C1", test_curve, model.validation_scores_),
]
for ax, rows, color, by_hand, by_skmax in curves:
    ax.plot(epochs, by_hand, color=color, lw=7, alpha=0.35, label=f"{rows}, NumPy")
    ax.plot(epochs, by_skmax, "o--", color=color, ms=4, label=f"{rows}, skmax")
left.set(xlabel="epoch", ylabel="mean cross-entropy (nats)", xticks=epochs)
right.set(xlabel="epoch", ylabel="accuracy", xticks=epochs)
left.legend()
right.legend()
plt.show()

# %%
# Predictions
# -----------
# The likeliest class is that of the largest logit: to predict, no exponential is needed. The first
# test pictures, with what they are and what the model takes them for, errors in red:

np.testing.assert_array_equal(model.predict(X_test), (X_test @ W + b).argmax(axis=1))
PredictionGridDisplay.from_estimator(
    model, X_test, y_test, n_images=15, class_names=test.target_names
)
plt.show()

# %%
# Nobody has to know that a step of 0.1 suits pixels from 0 to 1: with its defaults, skmax takes the
# bytes as they are, and finds the rest.

default = SoftmaxRegression(random_state=0).fit(train.data, train.target)
print(f"test accuracy {default.score(test.data, test.target):.2f}")

# %%
# References
# ----------
# .. [1] H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking
#    machine learning algorithms, 2017, arXiv:1708.07747.
# .. [2] A. Zhang, Z. C. Lipton, M. Li and A. J. Smola, Dive into Deep Learning, Cambridge
#    University Press, 2023, chapter 4, https://d2l.ai.

"""
What a model means by 90 percent
================================

A model that saw few rows and was penalised little is sure of itself, and wrong more often than it
says. Who relies on its probabilities, to set prices or to ask a person, must know. This example
draws what they are worth, mends them with one number, the temperature, and shows that a better
penalty would have left less to mend. The theory is in the
:doc:`user guide </guide/probabilities>`.
"""

# %%
# Of Fashion-MNIST, 2,000 photographs to train on, 2,000 to learn the temperature from, and 10,000
# to count on. Pixels are from 0 to 255: ``C=1e-3`` is a weak penalty for them.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from skmax import SoftmaxRegression
from skmax.datasets import fetch_fashion_mnist

X, y = fetch_fashion_mnist(subset="train", return_X_y=True)
X_test, y_test = fetch_fashion_mnist(subset="test", return_X_y=True)
X_train, y_train, X_held, y_held = X[:2000], y[:2000], X[2000:4000], y[2000:4000]

# %%
# The temperature divides all logits. It cannot change which class is the likeliest, and is chosen
# to make the cross-entropy on the photographs held out least. (Probabilities of raw pixels are
# float32; scikit-learn gives them back as float64, so that they are divided by their sum once
# more, or `log_loss` would warn.)


def probabilities(model):
    p = model.predict_proba(X_test).astype(float)
    return p / p.sum(axis=1, keepdims=True)


results = {}
for name, C in (("weak penalty, C=1e-3", 1e-3), ("tuned penalty, C=3e-6", 3e-6)):
    model = SoftmaxRegression(C=C, random_state=0).fit(X_train, y_train)
    calibrated = CalibratedClassifierCV(FrozenEstimator(model), method="temperature")
    calibrated.fit(X_held, y_held)
    steps = {"as fitted": probabilities(model), "temperature": probabilities(calibrated)}
    results[name] = steps
    print(name)
    for step, p in steps.items():
        right = np.mean(p.argmax(axis=1) == y_test)
        print(f"{step:>11}: right {right:.3f}, said {p.max(axis=1).mean():.3f}", end=", ")
        print(f"cross-entropy {log_loss(y_test, p):.2f} nats")

# %%
# What a model said is the mean probability of its answers. As fitted, the weakly penalised model is
# right with three answers in four, and said more than nine in ten. The temperature takes away
# nearly all of the difference. The tuned model had little to mend, is right more often, and its
# cross-entropy stays the lower one: a temperature mends how sure a model is, not what it has
# learned.
#
# The diagrams put answers into tenths by their probability: above, how many of each were right; on
# the diagonal, as many as was said. Below, how many answers there were.

edges = np.linspace(0, 1, 11)
fig, axes = plt.subplots(
    2, 2, figsize=(8, 5.4), layout="constrained", sharex=True, sharey="row", height_ratios=[3, 1]
)
for (name, steps), (top, bottom) in zip(results.items(), axes.T, strict=True):
    top.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
    for step, colour, marker in (("as fitted", "#D55E00", "s"), ("temperature", "#0072B2", "o")):
        p = steps[step]
        sure, right = p.max(axis=1), p.argmax(axis=1) == y_test
        n = np.histogram(sure, edges)[0]
        enough = n >= 30
        said = np.histogram(sure, edges, weights=sure)[0][enough] / n[enough]
        true = np.histogram(sure, edges, weights=right.astype(float))[0][enough] / n[enough]
        top.plot(said, true, marker=marker, color=colour, label=step)
        bottom.stairs(n / len(sure), edges, color=colour, fill=step == "as fitted", alpha=0.7)
    top.set(title=name, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    bottom.set(xlabel="probability of the answer")
axes[0, 0].set_ylabel("share that is right")
axes[1, 0].set_ylabel("share of answers")
axes[0, 0].legend(loc="upper left")
plt.show()

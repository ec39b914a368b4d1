"""
Rare classes: what class weights do, and how to undo it
=======================================================

One garment in ten of Fashion-MNIST is a shirt, and shirts look like T-shirts, pullovers and coats.
A classifier that is to find the shirts is right about most images if it says "no" to nearly all.
Class weights change that. What they give is recall; what they cost is precision, and the meaning
of the probabilities. The latter comes back with one subtraction.
"""

# %%
# The data: 60,000 images, of which 6,000 are shirts, and 10,000 to test on.
import numpy as np

from skmax.datasets import fetch_fashion_mnist

X_train, y_train = fetch_fashion_mnist(return_X_y=True)
X_test, y_test = fetch_fashion_mnist(subset="test", return_X_y=True)
is_shirt, is_shirt_test = y_train == 6, y_test == 6

# %%
# Two models, which differ in their weights alone. "balanced" makes both classes weigh the same:
# class k, with :math:`n_k` of the n rows, gets the weight :math:`s_k = n / (2 n_k)`, so that a
# shirt counts nine times as much as anything else. The pixels go from 0 to 255 here, to which a
# ``C`` of one in a million is fitting.
from skmax import SoftmaxRegression

plain = SoftmaxRegression(C=1e-6).fit(X_train, is_shirt)
balanced = SoftmaxRegression(C=1e-6, class_weight="balanced").fit(X_train, is_shirt)
s = len(is_shirt) / (2 * np.bincount(is_shirt))
print("weights:", s.round(2))

# %%
# Where the weights of the classes are :math:`s_k`, the model learns the probabilities of a
# population in which class k is :math:`s_k` times as frequent. By Bayes' theorem, those of the
# actual one are proportional to
#
# .. math:: p(k \mid x) \propto p_{\text{weighted}}(k \mid x) \, / \, s_k
#
# (M. Saerens, P. Latinne and C. Decaestecker, Adjusting the outputs of a classifier to new a
# priori probabilities, Neural Computation 14, 2002, section 2). In a softmax model this takes
# :math:`\log s_k` away from the intercept of each class; with two classes there is one intercept,
# the difference of both.
from copy import deepcopy

corrected = deepcopy(balanced)
corrected.intercept_ = balanced.intercept_ - np.log(s[1] / s[0])

# %%
# What the three models say of the test images:
from sklearn.metrics import log_loss, precision_score, recall_score

models = {"plain": plain, "balanced": balanced, "corrected": corrected}
found, probability = {}, {}
print("           recall  precision  log-loss  mean probability")
for name, model in models.items():
    found[name], p = model.predict(X_test), model.predict_proba(X_test)[:, 1]
    probability[name] = p
    recall = recall_score(is_shirt_test, found[name])
    precision = precision_score(is_shirt_test, found[name])
    loss = log_loss(is_shirt_test, p)
    print(f"{name:10} {recall:6.2f} {precision:10.2f} {loss:9.2f} {p.mean():17.2f}")

# %%
# Balanced, the model finds twice as many shirts, and two of three alarms are false. Its
# probabilities add up to far more shirts than there are (one in ten). The correction brings back
# the level of the plain model's probabilities, their log-loss, and with them its decisions.
#
# So weights are a way to move the threshold. The plain model has it, too: where it says "shirt"
# from a probability of one in ten on, instead of one in two, it finds what the balanced one finds.
from sklearn.metrics import precision_recall_curve

threshold = s[0] / s.sum()
found["plain, lower threshold"] = probability["plain"] > threshold
print(f"threshold: {threshold:.2f}")
print(f"recall: {recall_score(is_shirt_test, found['plain, lower threshold']):.2f}")

# %%
# The picture. Left: a threshold takes a model to any point of its curve; marked is what
# ``predict`` does. The curves cross: each model is the better one around its own point, since the
# weights say where a boundary that must be straight should fit best. Right: of the images that got
# about this probability, which share are shirts. The balanced model's line lies far below the
# diagonal. The corrected model's lies on it up to 0.7, as the plain model's does; above, both
# promise too much.
import matplotlib.pyplot as plt
from sklearn.calibration import CalibrationDisplay

styles = {"plain": ("tab:blue", "o"), "balanced": ("tab:orange", "s"), "corrected": ("black", "^")}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
for name, (colour, marker) in styles.items():
    p = probability[name]
    precision, recall, _ = precision_recall_curve(is_shirt_test, p)
    if name != "corrected":  # it has the balanced model's order of images, and so its curve
        left.plot(recall, precision, color=colour)
    at = recall_score(is_shirt_test, found[name]), precision_score(is_shirt_test, found[name])
    left.plot(*at, marker, color=colour, markersize=9, label=name)
    display = CalibrationDisplay.from_predictions(
        is_shirt_test, p, n_bins=8, ax=right, name=name, color=colour, marker=marker
    )
left.set(
    xlabel="recall: share of the shirts found", ylabel="precision: share of alarms that are right"
)
left.set(xlim=(0, 1), ylim=(0, 1), title="What is found")
left.legend(title="what predict does", loc="lower left")
right.set(
    xlabel="probability of a shirt", ylabel="share of shirts", title="What probabilities mean"
)
right.legend(loc="upper left")
plt.show()

# %%
# Use class weights where ``predict`` has to find the rare class, and correct the intercepts where
# somebody reads the probabilities. Where you have a say in the threshold, you need no weights:
# :doc:`/guide/probabilities` finds it from the costs of errors.

"""
Labels that are not sure of themselves
======================================

Five people look at a picture; three say "shirt", two say "coat". Who writes down "shirt" has
thrown away how hard the picture is. ``SoftmaxRegression`` learns from the votes as they are: a
matrix of shares as ``y``. Label smoothing is what can be done where nobody was asked: the same
doubt for every picture.
"""

# %%
# The annotators are played by the data. 2,000 images of Fashion-MNIST are to be labelled, and each
# of five annotators, when shown one, remembers a garment that looks alike: one of the ten most
# similar out of 20,000 others, whose label is the vote. So votes differ where garments are hard to
# tell apart.
import numpy as np
from sklearn.neighbors import NearestNeighbors

from skmax.datasets import fetch_fashion_mnist

X, y = fetch_fashion_mnist(return_X_y=True)
X_test, y_test = fetch_fashion_mnist(subset="test", return_X_y=True)
X_train, others = X[:2000], slice(2000, 22_000)
similar = NearestNeighbors(n_neighbors=10).fit(X[others].astype(np.float32))
remembered = y[others][similar.kneighbors(X_train.astype(np.float32), return_distance=False)]
votes = np.random.default_rng(0).permuted(remembered, axis=1)[:, :5]

shares = np.stack([np.mean(votes == k, axis=1) for k in range(10)], axis=1)
majority = shares.argmax(axis=1)
print("shares of the first image:", shares[0])
print(f"unanimous: {np.mean(shares.max(axis=1) == 1):.2f} of the images")
print(f"one annotator is right in {np.mean(votes[:, 0] == y[:2000]):.2f} of the cases")
print(f"the majority in {np.mean(majority == y[:2000]):.2f}")

# %%
# Four ways to learn from them, each with penalties of all strengths: from the label of the
# majority; from the shares; and from the label of the majority, smoothed. A smoothed label is
# :math:`(1 - e) y + e / k` with k classes (C. Szegedy and others, Rethinking the Inception
# architecture for computer vision, CVPR 2016, section 7). All are tested with true labels.
from sklearn.metrics import log_loss

from skmax import SoftmaxRegression

ways = {
    "majority": (0.0, majority),
    "shares of votes": (0.0, shares),
    "majority, smoothed by 0.1": (0.1, majority),
    "majority, smoothed by 0.3": (0.3, majority),
}
Cs = np.logspace(-7, -4, 7)
losses, confidence = {name: [] for name in ways}, {}
print("at C = 1e-5                  accuracy  mean confidence  log-loss")
for name, (smoothing, labels) in ways.items():
    for C in Cs:
        model = SoftmaxRegression(C=C, label_smoothing=smoothing).fit(X_train, labels)
        p = model.predict_proba(X_test)
        losses[name].append(log_loss(y_test, p))
        if np.isclose(C, 1e-5):
            confidence[name] = p.max(axis=1)
            numbers = model.score(X_test, y_test), p.max(axis=1).mean(), losses[name][-1]
            print(f"{name:25}" + "{:12.2f}{:17.2f}{:10.2f}".format(*numbers))

# %%
# All name the likeliest class about equally well. They differ in how sure they are. Whoever learns
# from the majority is surer than right: 0.88 on average, and right in 0.79 of the cases. With the
# shares, confidence and accuracy agree to two hundredths. Smoothing takes confidence away as well,
# but from a trouser, which nobody mistakes, as much as from a coat.
#
# The picture. Left: shares give the best probabilities, but where the penalty is so strong that no
# way is good; and the weaker it is, the more they gain. Smoothing by 0.1 helps only where it is
# weak. Right: how many of the test images get which confidence. The shares leave the sure ones
# sure; smoothing by 0.3 leaves none.
import matplotlib.pyplot as plt

styles = dict(
    zip(ways, [("tab:orange", "--"), ("tab:blue", "-"), ("0.1", ":"), ("0.6", "-.")], strict=True)
)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for name, (colour, line) in styles.items():
    left.plot(Cs, losses[name], color=colour, linestyle=line, linewidth=2, label=name)
    bins = np.linspace(0.1, 1, 19)
    right.hist(confidence[name], bins, histtype="step", color=colour, linestyle=line, linewidth=2)
left.set(xscale="log", xlabel="C (a larger one penalises less)", ylabel="log-loss on test images")
left.set(ylim=(0.5, 1.4), title="What the probabilities are worth")
left.legend()
right.set(
    xlabel="probability of the likeliest class", ylabel="test images", title="How sure, at C = 1e-5"
)
plt.show()

"""
Ask a person when the model is unsure
=====================================

A model sorts photographs of garments, and a person sorts those that it leaves. How many must be
left, so that of those it sorts 19 in 20 are right? The entropy of each prediction, in nats, says
which ones to leave. The theory is in the :doc:`user guide </guide/probabilities>`.
"""

# %%
# The model is trained on 10,000 photographs of Fashion-MNIST. The 10,000 test images are halved:
# one half to choose by, the other to see what comes of it.

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import entropy
from skmax import SoftmaxRegression
from skmax.datasets import fetch_fashion_mnist

train = fetch_fashion_mnist(subset="train")
test = fetch_fashion_mnist(subset="test")
model = SoftmaxRegression(C=1e-6, random_state=0).fit(train.data[:10000], train.target[:10000])
p = model.predict_proba(test.data)
wrong = p.argmax(axis=1) != test.target
nats = entropy(p, axis=1)

# %%
# Sorted by entropy, the share of wrong answers among the first n photographs is the risk, and n
# the coverage. The largest n with a risk of no more than 5 % gives the threshold.


def risk_of(order):
    return np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)


chosen, new = np.arange(5000), np.arange(5000, 10000)
order = chosen[np.argsort(nats[chosen])]
n = np.flatnonzero(risk_of(order) <= 0.05)[-1]
threshold = nats[order[n]]
answered = nats[new] <= threshold
print(f"wrong without a person: {wrong[new].mean():.3f}")
print(f"answer below {threshold:.2f} nats; that is {answered.mean():.2f} of the other half")
print(f"wrong among those: {wrong[new][answered].mean():.3f}")
print(f"wrong among those left to a person: {wrong[new][~answered].mean():.2f}")

# %%
# On photographs that had no part in the choice, the risk is about what was asked for. That leaves
# the person a third of them, among which the model would have got far more wrong.
#
# Left, the risk for every coverage, with two ways to be measured against: leaving photographs at
# random, and an oracle that leaves the wrong answers first. Right, the photographs of which the
# model is the least sure, with its two best guesses.

fig = plt.figure(figsize=(9.5, 4.6), layout="constrained")
left, right = fig.subfigures(1, 2, width_ratios=[5, 6], squeeze=False)[0]
ax = left.subplots()
coverage = np.arange(1, len(new) + 1) / len(new)
for name, key, colour, style in (
    ("at random", np.random.default_rng(0).random(len(new)), "#999999", ":"),
    ("by entropy", nats[new], "#0072B2", "-"),
    ("by an oracle", wrong[new], "#009E73", "--"),
):
    ax.plot(coverage, risk_of(new[np.argsort(key, kind="stable")]), style, color=colour, label=name)
ax.plot(answered.mean(), wrong[new][answered].mean(), "o", color="#D55E00", label="chosen")
ax.set(xlabel="coverage: share answered", ylabel="risk: share wrong", ylim=(-0.005, 0.225))
ax.spines[["top", "right"]].set_visible(False)
ax.legend(loc="upper left", ncols=2)
least_sure = new[np.argsort(-nats[new])[:6]]
for ax, i in zip(right.subplots(2, 3).flat, least_sure, strict=True):
    ax.imshow(test.data[i].reshape(28, 28), cmap="gray_r")
    first, second = (test.target_names[k] for k in np.argsort(-p[i])[:2])
    ax.set_title(f"{nats[i]:.2f} nats\n{first} or\n{second}", fontsize=9)
    ax.axis("off")
plt.show()

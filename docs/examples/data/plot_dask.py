"""
A cluster: Dask
===============

Where the rows are on many machines, :class:`~skmax.dask.DaskSoftmaxRegression` leaves them there.
Weights go out to the workers, and gradients come back. The answer is that of
:class:`~skmax.SoftmaxRegression` on all rows in one place.
"""

# %%
# A cluster of this machine stands in for a larger one: two workers of one thread each, in this
# process. A real one has an address: ``Client("tcp://scheduler:8786")``.
from distributed import Client, LocalCluster

cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
client = Client(cluster)

# %%
# 400,000 rows of 20 features, of three classes, in eight partitions. Nothing is computed yet:
# workers make, or read, their own partitions once these are needed. The classes come from a
# softmax model: of logits to each of which noise of a Gumbel distribution was added, the largest
# one is that of class k with the model's probability of k (D. McFadden, Conditional logit analysis
# of qualitative choice behavior, 1974, section II).
import dask.array as da
import numpy as np

true_coef = np.random.default_rng(0).normal(size=(3, 20)) / 2
random = da.random.default_rng(0)
X = random.normal(size=(400_000, 20), chunks=(50_000, 20)).astype(np.float32)
y = (X @ true_coef.T + random.gumbel(size=(400_000, 3), chunks=(50_000, 3))).argmax(axis=1)
print(X)
print(y)

# %%
# The fit. For the picture below, Dask keeps a record of its tasks.
from distributed import get_task_stream

from skmax.dask import DaskSoftmaxRegression

with get_task_stream(client) as tasks:
    model = DaskSoftmaxRegression(client=client).fit(X, y)
print(f"{model.n_iter_} iterations, with {model.solver_}")

# %%
# Predictions are Dask arrays, of which nothing is computed before somebody asks. The score is
# computed at once.
probabilities = model.predict_proba(X)
print(probabilities)
print(probabilities[:3].compute().round(2))
print(f"accuracy: {model.score(X, y):.3f}")

# %%
# ``to_local`` gives a plain model, which needs neither Dask nor the cluster: to keep, to send, and
# to deploy. It is the model that a fit to all rows in one place gives, to within the tolerance
# ``tol`` of both.
from skmax import SoftmaxRegression

local = model.to_local()
whole = SoftmaxRegression(solver="lbfgs").fit(X.compute(), y.compute())
print(type(local).__name__)
print(f"largest difference of a coefficient: {abs(local.coef_ - whole.coef_).max():.1e}")
print(f"largest coefficient:                 {abs(whole.coef_).max():.1e}")

# %%
# The picture: what the two workers did during the fit. First they make their partitions, and put
# them together; then every iteration is a pass over the rows, each worker on its own. In the gaps,
# the client takes a step, and waits for nothing but sums. The larger the partitions, the smaller
# is the share of the gaps.
import matplotlib.pyplot as plt

colours = {
    "partitions are made": "0.7",
    "and put together": "black",
    "passes over the rows": "tab:blue",
}


def kind(key):
    """Which of the three a task is, by its name."""
    if not str(key).startswith(("skmax", "_shard")):
        return "partitions are made"
    is_pass = key.startswith(("skmax-totals", "skmax-taken"))
    return "passes over the rows" if is_pass else "and put together"


workers = sorted({task["worker"] for task in tasks.data})
begin = min(task["startstops"][0]["start"] for task in tasks.data)
figure, ax = plt.subplots(figsize=(9, 2.6), layout="constrained")
for task in tasks.data:
    work = task["startstops"][-1]
    place, colour = workers.index(task["worker"]), colours[kind(task["key"])]
    ax.barh(place, work["stop"] - work["start"], 0.7, work["start"] - begin, color=colour)
ax.set(xlabel="seconds", yticks=[0, 1], yticklabels=["worker 1", "worker 2"])
handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
figure.legend(handles, colours, loc="outside upper center", ncols=3)
plt.show()
client.close()
cluster.close()

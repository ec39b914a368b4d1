"""What type checkers make of calls of skmax: right ones pass, wrong ones are errors."""

import re

import pytest

api = pytest.importorskip("mypy.api")

BEGIN = """\
import numpy as np
from scipy import sparse

from skmax import BatchedGridSearchCV, SoftmaxRegression, show_versions
from skmax.dask import DaskSoftmaxRegression
from skmax.datasets import fetch_fashion_mnist
from skmax.plotting import ClassWeightsDisplay, PredictionGridDisplay, TrainingCurveDisplay

X, y = np.ones((4, 2)), np.array([0, 1, 0, 1])
model = SoftmaxRegression()
search = BatchedGridSearchCV(model, {"C": [1.0]})
"""

RIGHT = """\
SoftmaxRegression(C=10, class_weight={"a": 1, "b": 2.5}, max_iter=None, random_state=0).fit(X, y)
SoftmaxRegression(n_iter_no_change=np.inf, C=np.inf, batch_size=32, learning_rate=0.1)
for solver in ("lbfgs", "newton"):
    SoftmaxRegression(solver=solver)
model.fit([[0.0], [1.0]], ["a", "b"], [1, 2])
model.fit(sparse.csr_array(X), y, X_val=X, y_val=np.eye(2)[y])
model.partial_fit(X, y, classes=[0, 1]).partial_fit(X, y, sample_weight=y)
model.predict_proba(X, out=np.empty((4, 2)))
model.sparsify().coef_.nnz
model.loss_curve_[-1] + model.n_iter_
model.fit(X, y, X_val=X, y_val=y).validation_scores_[-1] + model.score(X, y)
model.to_sklearn().predict(X)
model.set_params(C=2.0).fit(X, y)
BatchedGridSearchCV(model, [{"C": np.logspace(-2, 2, 5)}, {"l1_ratio": (0, 1)}], cv=3).fit(X, y)
BatchedGridSearchCV(model, {"C": [1]}, scoring=["accuracy"], refit="accuracy").best_params_["C"]
DaskSoftmaxRegression(client=None).fit(X, y).to_local().classes_
images, labels = fetch_fashion_mnist(subset="test", return_X_y=True)
images.mean(), fetch_fashion_mnist().data
TrainingCurveDisplay.from_estimator(model).figure_.savefig("curves.png")
ClassWeightsDisplay.from_estimator(search.best_estimator_, image_shape=(1, 2)).plot(n_cols=2)
PredictionGridDisplay.from_predictions(X, y, y, labels=["a", "b"]).im_[0]
show_versions()
"""

WRONG = """\
SoftmaxRegression(1.0)
SoftmaxRegression(c=1.0)
SoftmaxRegression(C="1")
SoftmaxRegression(solver="adam")
SoftmaxRegression(max_iter=1.5)
SoftmaxRegression(class_weight="balance")
DaskSoftmaxRegression(schedule="step")
model.fit(X)
model.fit(X, y, weights=y)
model.fit(X, y, y, X, y)
model.fit(print, y)
model.fit(X, y).predict(X, output=y)
model.partial_fit(X, y, n_epochs=3)
model.predict(X).no_attribute
model.predict_proba(X, out=1)
model.score(X)
model.optimality_gap(X)
model.loss_curve_.shape
BatchedGridSearchCV(model, {"C": 1.0})
BatchedGridSearchCV(model, {"C": [1.0]}, folds=3)
search.fit()
fetch_fashion_mnist(subset="val")
fetch_fashion_mnist(return_X_y=True).data
TrainingCurveDisplay.from_estimator(X)
TrainingCurveDisplay.from_estimator(model, axes=None)
ClassWeightsDisplay.from_estimator(model, n_cols="3")
PredictionGridDisplay.from_estimator(model, X)
show_versions(all=True)
"""


RESULTS = {
    "reveal_type(model.fit(X, y))": "skmax.estimator.SoftmaxRegression",
    "reveal_type(model.predict_proba(X))": "numpy.ndarray",
    "reveal_type(search.fit(X, y))": "skmax.search.grid_search.BatchedGridSearchCV",
    "reveal_type(model.score(X, y))": "float",
}


def test_calls_and_results_have_the_types_that_are_documented(tmp_path):
    """In one run of mypy, which takes longest for the libraries."""
    code = BEGIN + RIGHT + WRONG + "\n".join(RESULTS)
    (tmp_path / "calls.py").write_text(code, encoding="utf-8")
    settings = ["--config-file=", "--disable-error-code=import-untyped", f"--cache-dir={tmp_path}"]
    said, problem, _ = api.run([*settings, str(tmp_path / "calls.py")])
    assert not problem
    numbers = dict.fromkeys(re.findall(r"calls\.py:(\d+): error", said))
    assert [code.splitlines()[int(n) - 1] for n in numbers] == WRONG.splitlines(), said
    assert re.findall(r'Revealed type is "([\w.]+)', said) == list(RESULTS.values())

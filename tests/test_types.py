"""What type checkers make of calls of skmax: right ones pass, wrong ones are errors."""

import re
import textwrap

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


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """The lines of code with errors, and what mypy says."""
    folder = tmp_path_factory.mktemp("types")
    settings = ["--config-file=", "--disable-error-code=import-untyped", f"--cache-dir={folder}"]

    def run(code):
        (folder / "calls.py").write_text(BEGIN + code, encoding="utf-8")
        said, problem, _ = api.run([*settings, str(folder / "calls.py")])
        assert not problem
        errors = re.findall(r"calls\.py:(\d+): error", said)
        lines = (BEGIN + code).splitlines()
        return [lines[int(number) - 1] for number in dict.fromkeys(errors)], said

    return run


def test_right_calls_have_no_errors(check):
    found, said = check(RIGHT)
    assert found == [], said


def test_each_wrong_call_is_an_error(check):
    found, said = check(WRONG)
    assert found == WRONG.splitlines(), said


def test_types_of_results(check):
    code = """\
        reveal_type(model.fit(X, y))
        reveal_type(model.predict_proba(X))
        reveal_type(search.fit(X, y))
        reveal_type(model.score(X, y))
    """
    _, said = check(textwrap.dedent(code))
    assert re.findall(r'Revealed type is "([\w.]+)', said) == [
        "skmax.estimator.SoftmaxRegression",
        "numpy.ndarray",
        "skmax.search.grid_search.BatchedGridSearchCV",
        "float",
    ]

"""Models among other libraries, each with the real one: what docs/interoperability.rst promises."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn
from conftest import make_data
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.callback import FitCallback
from sklearn.ensemble import BaggingClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skmax import BatchedGridSearchCV, SoftmaxRegression
from skmax.plotting import RegularizationPathDisplay
from skmax.search import stacks

X, Y = make_data(n=200)
NAMES = np.array(["ant", "bee", "cat"])
PAGE = Path(__file__).parents[1] / "docs" / "interoperability.rst"
METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function")


def labelled(k, names=False):
    """Rows of k classes, and their labels."""
    y = Y % k
    return X, NAMES[y] if names else y


def assert_same_predictions(model, other, X):
    for method in METHODS:
        np.testing.assert_array_equal(getattr(model, method)(X), getattr(other, method)(X))


# ONNX

ROUNDING = {np.float32: 1e-5, np.float64: 1e-12}


def convert(scope, operator, container):
    """What skl2onnx does of LogisticRegression, of a SoftmaxRegression."""
    from skl2onnx.operator_converters.linear_classifier import convert_sklearn_linear_classifier

    options = container.get_options(operator.raw_operator, {})
    operator.raw_operator = operator.raw_operator.to_sklearn()
    container.add_options(id(operator.raw_operator), options)
    convert_sklearn_linear_classifier(scope, operator, container)


def register(converter):
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes

    update_registered_converter(
        SoftmaxRegression,
        "SkmaxSoftmaxRegression",
        calculate_linear_classifier_output_shapes,
        converter,
        options={
            "zipmap": [True, False, "columns"],
            "nocl": [True, False],
            "output_class_labels": [False, True],
            "raw_scores": [True, False],
        },
    )


def run_onnx(graph, X):
    """The labels and the scores that onnxruntime computes."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: X})


def assert_same_in_onnx(graph, model, X, rows=None):
    rows = X if rows is None else rows
    labels, probabilities = run_onnx(graph, rows)
    np.testing.assert_array_equal(labels, model.predict(X))
    np.testing.assert_allclose(
        probabilities, model.predict_proba(X), rtol=0, atol=ROUNDING[rows.dtype.type]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("names", [False, True], ids=["numbers", "names"])
@pytest.mark.parametrize("k", [2, 3])
def test_onnx_of_to_sklearn(k, names, dtype):
    skl2onnx = pytest.importorskip("skl2onnx")
    X, y = labelled(k, names)
    X = X.astype(dtype)
    model = SoftmaxRegression().fit(X, y)
    graph = skl2onnx.to_onnx(model.to_sklearn(), X[:1], options={"zipmap": False})
    assert_same_in_onnx(graph, model, X)


@pytest.mark.parametrize("k", [2, 3])
def test_onnx_of_bytes(k):
    skl2onnx = pytest.importorskip("skl2onnx")
    from skl2onnx.sklapi import CastTransformer

    X, y = labelled(k)
    X = np.clip(20 * X + 100, 0, 255).astype(np.uint8)
    model = SoftmaxRegression().fit(X, y)
    pipeline = make_pipeline(CastTransformer(dtype=np.float32), model.to_sklearn())
    graph = skl2onnx.to_onnx(pipeline, X[:1], options={"zipmap": False})
    labels, probabilities = run_onnx(graph, X)
    np.testing.assert_array_equal(labels, model.predict(X))
    np.testing.assert_allclose(probabilities, model.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_onnx_of_a_pipeline_whose_last_step_is_exported(dtype):
    skl2onnx = pytest.importorskip("skl2onnx")
    X, y = labelled(2, names=True)
    X = X.astype(dtype)
    model = make_pipeline(StandardScaler(), SoftmaxRegression()).fit(X, y)
    exported = Pipeline([*model.steps[:-1], ("logistic", model[-1].to_sklearn())])
    graph = skl2onnx.to_onnx(exported, X[:1], options={"zipmap": False})
    assert_same_in_onnx(graph, model, X)


def test_onnx_in_float64_of_features_far_from_zero():
    skl2onnx = pytest.importorskip("skl2onnx")
    X, y = labelled(3)
    X = (X + 1e4).astype(np.float32)
    model = SoftmaxRegression().fit(X, y)
    rows = X.astype(np.float64)
    graph = skl2onnx.to_onnx(model.to_sklearn(), rows[:1], options={"zipmap": False})
    _, probabilities = run_onnx(graph, rows)
    np.testing.assert_allclose(probabilities, model.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_onnx_of_a_class_without_weight(dtype):
    skl2onnx = pytest.importorskip("skl2onnx")
    X, y = labelled(3)
    X = X.astype(dtype)
    model = SoftmaxRegression().fit(X, y, sample_weight=(y != 1).astype(float))
    graph = skl2onnx.to_onnx(model.to_sklearn(), X[:1], options={"zipmap": False})
    assert_same_in_onnx(graph, model, X)


AROUND = {
    "alone": lambda model: model,
    "pipeline": lambda model: make_pipeline(StandardScaler(), model),
    "calibrated": lambda model: CalibratedClassifierCV(model, cv=3),
    "stacked": lambda model: StackingClassifier(
        [("a", model), ("b", clone(model).set_params(C=0.1))]
    ),
    "bagged": lambda model: BaggingClassifier(model, n_estimators=3, random_state=0),
    "one-vs-rest": OneVsRestClassifier,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_onnx_with_a_registered_converter(around, k, dtype):
    skl2onnx = pytest.importorskip("skl2onnx")
    register(convert)
    X, y = labelled(k, names=True)
    X = X.astype(dtype)
    model = around(SoftmaxRegression()).fit(X, y)
    graph = skl2onnx.to_onnx(model, X[:1], options={id(model): {"zipmap": False}})
    assert_same_in_onnx(graph, model, X)


@pytest.mark.parametrize("k", [2, 3])
def test_onnx_of_logits_with_a_registered_converter(k):
    skl2onnx = pytest.importorskip("skl2onnx")
    register(convert)
    X, y = labelled(k)
    model = SoftmaxRegression().fit(X, y)
    options = {id(model): {"zipmap": False, "raw_scores": True}}
    _, logits = run_onnx(skl2onnx.to_onnx(model, X[:1], options=options), X)
    expected = model.decision_function(X)
    if k == 2:
        expected = np.stack([-expected, expected], axis=1)
    np.testing.assert_allclose(logits, expected, atol=1e-12)
    assert type(model) is SoftmaxRegression  # converting has left it alone


def test_the_converter_of_LogisticRegression_alone_errs_with_two_classes():
    """It takes the softmax of both logits, of anything that is no LogisticRegression.

    Once this fails, docs/interoperability.rst may register that converter itself.
    """
    skl2onnx = pytest.importorskip("skl2onnx")
    from skl2onnx.operator_converters.linear_classifier import convert_sklearn_linear_classifier

    X, y = labelled(2)
    model = SoftmaxRegression().fit(X, y)
    register(convert_sklearn_linear_classifier)
    try:
        graph = skl2onnx.to_onnx(model, X[:1], options={id(model): {"zipmap": False}})
    finally:
        register(convert)
    _, probabilities = run_onnx(graph, X)
    assert np.abs(probabilities - model.predict_proba(X)).max() > 0.01


# Files and processes

TRUSTED = ["skmax.estimator.SoftmaxRegression"]


@pytest.mark.parametrize(
    "model",
    [
        SoftmaxRegression(random_state=0),
        SoftmaxRegression(random_state=0, class_weight="balanced", solver="lbfgs"),
        make_pipeline(StandardScaler(), SoftmaxRegression(random_state=0)),
    ],
    ids=["plain", "lbfgs", "pipeline"],
)
@pytest.mark.parametrize("shift", [0, 1e6], ids=["near zero", "far from zero"])
def test_skops_trusts_one_type_and_changes_nothing(model, shift):
    skops = pytest.importorskip("skops.io")
    model = clone(model).fit(X + shift, NAMES[Y])
    data = skops.dumps(model)
    assert skops.get_untrusted_types(data=data) == TRUSTED
    assert_same_predictions(skops.loads(data, trusted=TRUSTED), model, X + shift)


def test_skops_needs_no_trust_in_what_to_sklearn_gives():
    skops = pytest.importorskip("skops.io")
    exported = SoftmaxRegression().fit(X, NAMES[Y]).to_sklearn()
    data = skops.dumps(exported)
    assert skops.get_untrusted_types(data=data) == []
    assert_same_predictions(skops.loads(data), exported, X)


def test_training_goes_on_after_skops():
    skops = pytest.importorskip("skops.io")
    model = SoftmaxRegression(random_state=0).partial_fit(X[:90], Y[:90], classes=range(3))
    loaded = skops.loads(skops.dumps(model), trusted=TRUSTED)
    for each in (model, loaded):
        each.partial_fit(X[90:], Y[90:])
    np.testing.assert_array_equal(loaded.coef_, model.coef_)
    assert loaded.loss_curve_ == model.loss_curve_


PREDICT = """
import sys
{before}
import numpy as np
from {module} import load
X = np.load("X.npy")
with open("model", "rb") as file:
    np.save("predicted.npy", load(file).predict_proba(X))
"""


def predict_elsewhere(model, folder, module="pickle", before=""):
    """The probabilities of the rows X by a model that another process has loaded."""
    np.save(folder / "X.npy", X)
    with open(folder / "model", "wb") as file:
        {"pickle": pickle, "joblib": joblib}[module].dump(model, file)
    script = PREDICT.format(module=module, before=before)
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    return np.load(folder / "predicted.npy")


@pytest.mark.parametrize("module", ["pickle", "joblib"])
def test_another_process_predicts_the_same(tmp_path, module):
    model = SoftmaxRegression().fit(X, NAMES[Y])
    there = predict_elsewhere(model, tmp_path, module)
    np.testing.assert_array_equal(there, model.predict_proba(X))


def test_processes_of_joblib_predict_the_same():
    model = SoftmaxRegression().fit(X, NAMES[Y])
    call = joblib.delayed(SoftmaxRegression.predict_proba)
    parts = joblib.Parallel(n_jobs=2)(call(model, part) for part in np.array_split(X, 2))
    np.testing.assert_array_equal(np.concatenate(parts), model.predict_proba(X))


WITHOUT_CUPY = 'sys.modules["cupy"] = None  # it cannot be imported'


def test_a_process_without_CuPy_predicts_as_the_GPU_that_trained(cuda, tmp_path):
    model = SoftmaxRegression(backend="cupy", random_state=0).fit(X, Y)
    there = predict_elsewhere(model, tmp_path, before=WITHOUT_CUPY)
    np.testing.assert_array_equal(there, model.predict_proba(X))


def test_to_sklearn_takes_a_model_of_CuPy_arrays_to_a_process_without_CuPy(cuda, tmp_path):
    import cupy

    with sklearn.config_context(array_api_dispatch=True):
        model = SoftmaxRegression(random_state=0).fit(cupy.asarray(X), cupy.asarray(Y))
        expected = cupy.asnumpy(model.predict_proba(cupy.asarray(X)))
    there = predict_elsewhere(model.to_sklearn(), tmp_path, before=WITHOUT_CUPY)
    np.testing.assert_allclose(there, expected, atol=1e-9)


# SHAP


@pytest.mark.filterwarnings(
    "ignore:The set_(bad|over|under) function:PendingDeprecationWarning"
)  # by shap
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("export", [False, True], ids=["itself", "to_sklearn"])
def test_shap_values_and_their_base_sum_to_the_logits(k, export):
    shap = pytest.importorskip("shap")
    X, y = labelled(k)
    model = SoftmaxRegression().fit(X, y)
    background = shap.maskers.Independent(X, max_samples=len(X))
    explained = shap.LinearExplainer(model.to_sklearn() if export else model, background)(X)
    logits = model.decision_function(X)
    assert explained.values.shape == (X.shape if k == 2 else (*X.shape, k))
    np.testing.assert_allclose(
        explained.values.sum(axis=1) + explained.base_values, logits, atol=1e-10
    )
    # Of features taken as independent: coefficient times distance from the mean.
    by_hand = (X - X.mean(axis=0))[:, :, None] * model.coef_.T
    np.testing.assert_allclose(explained.values.reshape(by_hand.shape), by_hand, atol=1e-10)


# Dataframes


def frame(library, values, columns):
    module = pytest.importorskip(library)
    if library == "pandas":
        return module.DataFrame(values, columns=columns)
    return module.DataFrame(values, schema=columns)


def series(library, values, dtype=None):
    module = pytest.importorskip(library)
    if dtype is None:
        return module.Series(values)
    if library == "pandas":
        return module.Series(values, dtype=dtype)
    return module.Series(values).cast(getattr(module, dtype))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_dataframes_give_feature_names_and_the_answers_of_arrays(library):
    data = frame(library, X, list("abcd"))
    model = SoftmaxRegression().fit(data, series(library, NAMES[Y]))
    assert list(model.feature_names_in_) == list("abcd")
    assert list(model.classes_) == list(NAMES)
    plain = SoftmaxRegression().fit(X, NAMES[Y])
    for method in METHODS:
        np.testing.assert_array_equal(getattr(model, method)(data), getattr(plain, method)(X))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(data[["b", "a", "c", "d"]])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_steps_of_a_pipeline_can_put_out_dataframes(library):
    data = frame(library, X, list("abcd"))
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression()).set_output(transform=library)
    pipeline.fit(data, Y)
    assert list(pipeline[-1].feature_names_in_) == list("abcd")
    plain = make_pipeline(StandardScaler(), SoftmaxRegression()).fit(X, Y)
    np.testing.assert_allclose(pipeline.predict_proba(data), plain.predict_proba(X), atol=1e-9)
    search = BatchedGridSearchCV(pipeline, {"softmaxregression__C": [0.1, 1]}).fit(data, Y)
    assert list(search.feature_names_in_) == list("abcd")


@pytest.mark.parametrize(
    ("library", "dtype"),
    [("pandas", "category"), ("pandas", "string"), ("pandas", object), ("polars", "Categorical")],
)
def test_labels_of_a_dataframe(library, dtype):
    model = SoftmaxRegression().fit(X, series(library, NAMES[Y], dtype))
    assert list(model.classes_) == list(NAMES)
    np.testing.assert_array_equal(model.coef_, SoftmaxRegression().fit(X, NAMES[Y]).coef_)


def test_nullable_columns_of_pandas():
    data = frame("pandas", X, list("abcd"))
    model = SoftmaxRegression().fit(data.astype("Float64"), Y)
    np.testing.assert_array_equal(model.coef_, SoftmaxRegression().fit(data, Y).coef_)


# Optuna


class Pruning(FitCallback):
    """Reports the validation loss of each epoch to a trial, and ends what is not promising."""

    def __init__(self, trial):
        self.trial = trial

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name == "epoch":
            self.trial.report(fitted_estimator.validation_loss_curve_[-1], fitted_estimator.n_iter_)
            if self.trial.should_prune():
                raise pytest.importorskip("optuna").TrialPruned


def train_with_callbacks(trial, model, X, y, X_val, y_val):
    model.set_params(max_iter=8).set_callbacks(Pruning(trial))
    return model.fit(X, y, X_val=X_val, y_val=y_val).validation_loss_curve_[-1]


def train_in_parts(trial, model, X, y, X_val, y_val):
    for epoch in range(1, 9):
        model.partial_fit(X, y, classes=range(3))
        loss = log_loss(y_val, model.predict_proba(X_val))
        trial.report(loss, epoch)
        if trial.should_prune():
            raise pytest.importorskip("optuna").TrialPruned
    return loss


@pytest.mark.parametrize("train", [train_with_callbacks, train_in_parts])
def test_optuna_prunes_what_is_not_promising(train):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial):
        rate = trial.suggest_float("learning_rate", 1e-6, 1, log=True)
        model = SoftmaxRegression(learning_rate=rate, random_state=0)
        return train(trial, model, X[:120], Y[:120], X[120:], Y[120:])

    # Of the rates given, some learn nothing to speak of.
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    for rate in (0.1, 0.03, 1e-6, 2e-6):
        study.enqueue_trial({"learning_rate": rate})
    study.optimize(objective, n_trials=4)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert len(study.trials[0].intermediate_values) == 8
    assert len(study.trials[2].intermediate_values) < 8
    assert study.best_params["learning_rate"] >= 0.03


# Successive halving


@pytest.mark.parametrize(
    ("params", "resource"),
    [
        ({}, {}),
        ({"solver": "sgd"}, {"resource": "max_iter", "min_resources": 2, "max_resources": 18}),
    ],
    ids=["rows", "epochs"],
)
def test_successive_halving(params, resource):
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingGridSearchCV

    grid = {"C": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100]}
    search = HalvingGridSearchCV(
        SoftmaxRegression(random_state=0, **params), grid, random_state=0, **resource
    ).fit(X, Y)
    assert search.n_candidates_[0] == 9
    assert len(search.n_candidates_) >= 2
    assert search.best_params_["C"] > 1e-4
    assert search.score(X, Y) > 0.5


# imbalanced-learn


def resampler(name):
    module = pytest.importorskip(f"imblearn.{'under' if 'Under' in name else 'over'}_sampling")
    return getattr(module, name)(random_state=0)


IMBALANCED = np.flatnonzero((Y != 2) | (np.arange(len(Y)) % 3 == 0))


@pytest.mark.parametrize("scoring", [None, "balanced_accuracy", "neg_log_loss"])
@pytest.mark.parametrize("name", ["SMOTE", "RandomOverSampler", "RandomUnderSampler"])
def test_a_search_stacks_the_pipelines_of_imbalanced_learn(name, scoring, monkeypatch):
    pipelines = pytest.importorskip("imblearn.pipeline")
    pipeline = pipelines.make_pipeline(
        StandardScaler(), resampler(name), "passthrough", SoftmaxRegression(tol=1e-8)
    )
    grid = {"softmaxregression__C": [0.01, 0.1, 1.0]}
    stacked, train = [], stacks._train
    monkeypatch.setattr(stacks, "_train", lambda *a: stacked.append(len(a[0])) or train(*a))
    X_, y = X[IMBALANCED], NAMES[Y[IMBALANCED]]
    searches = [
        search(pipeline, grid, scoring=scoring, return_train_score=True).fit(X_, y)
        for search in (GridSearchCV, BatchedGridSearchCV)
    ]
    assert stacked == [3] * 5  # candidates, for each fold
    for key in ("mean_test_score", "mean_train_score"):
        expected, scores = (search.cv_results_[key] for search in searches)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert type(searches[1].best_estimator_) is pipelines.Pipeline


def test_a_resampler_is_fitted_once_per_fold_for_all_candidates():
    imblearn = pytest.importorskip("imblearn")
    pipelines = pytest.importorskip("imblearn.pipeline")
    calls = []

    def recorded(X, y):
        calls.append(len(y))
        return X, y

    sampler = imblearn.FunctionSampler(func=recorded)
    pipeline = pipelines.Pipeline([("sample", sampler), ("m", SoftmaxRegression())])
    BatchedGridSearchCV(pipeline, {"m__C": [0.1, 1.0, 10.0]}, refit=False).fit(X, Y)
    assert len(calls) == 5
    assert max(calls) < len(Y)  # those that are scored are not resampled


def test_the_path_of_a_pipeline_that_resamples():
    """Coefficients are those of the pipeline's own fits."""
    imblearn = pytest.importorskip("imblearn")
    pipelines = pytest.importorskip("imblearn.pipeline")

    def shuffled(X, y):
        order = np.random.default_rng(0).permutation(len(y))[:100]
        return X[order], y[order]

    sampler = imblearn.FunctionSampler(func=shuffled)
    pipeline = pipelines.Pipeline(
        [("sample", sampler), ("scale", StandardScaler()), ("m", SoftmaxRegression(tol=1e-8))]
    )
    display = RegularizationPathDisplay.from_estimator(pipeline, X, Y, Cs=[0.1, 1.0], cv=3)
    for C, coef in zip(display.C, display.coef, strict=True):
        expected = pipeline.set_params(m__C=C).fit(X, Y)[-1].coef_
        np.testing.assert_allclose(coef, expected, atol=1e-3)


def test_a_resampler_that_fails_fails_its_candidates():
    imblearn = pytest.importorskip("imblearn")
    pipelines = pytest.importorskip("imblearn.pipeline")

    def broken(X, y):
        raise ValueError("nothing to sample from")

    pipeline = pipelines.Pipeline(
        [("sample", imblearn.FunctionSampler(func=broken)), ("m", SoftmaxRegression())]
    )
    search = BatchedGridSearchCV(pipeline, {"m__C": [0.1, 1.0]}, error_score="raise")
    with pytest.raises(ValueError, match="nothing to sample from"):
        search.fit(X, Y)


def test_ensembles_of_imbalanced_learn():
    ensembles = pytest.importorskip("imblearn.ensemble")
    model = ensembles.BalancedBaggingClassifier(SoftmaxRegression(), random_state=0)
    X_, y = X[IMBALANCED], NAMES[Y[IMBALANCED]]
    expected = clone(model).set_params(estimator=LogisticRegression(tol=1e-8, max_iter=1000))
    np.testing.assert_allclose(
        model.fit(X_, y).predict_proba(X), expected.fit(X_, y).predict_proba(X), atol=0.02
    )


# MLflow

CHECK = """
run = mlflow.last_active_run()
(logged,) = mlflow.search_logged_models(output_format="list")
loaded = mlflow.sklearn.load_model(logged.model_uri)
print("found", json.dumps({
    "params": run.data.params,
    "metrics": run.data.metrics,
    "same": bool((loaded.predict_proba(X) == model.predict_proba(X)).all()),
}))
"""


def test_mlflow_logs_as_documented(tmp_path):
    """The code of the page, in a process of its own: autologging changes scikit-learn's classes."""
    pytest.importorskip("mlflow")
    (code,) = re.findall(
        r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", PAGE.read_text().split("MLflow\n---")[1]
    )
    code = "import json\n" + re.sub(r"(?m)^   ", "", code) + CHECK
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.split("found", 1)[1])
    assert found["params"]["softmaxregression__C"] == "0.1"
    assert found["metrics"]["training_accuracy_score"] > 0.9
    assert found["metrics"]["epochs"] >= 1
    assert found["same"]

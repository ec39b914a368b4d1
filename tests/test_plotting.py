"""The displays, judged by what a reader of the picture sees, and the live training curve."""

import copy
import itertools
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.datasets import load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer, top_k_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skmax import SoftmaxRegression
from skmax.plotting import (
    ClassWeightsDisplay,
    LiveTrainingCurve,
    PredictionGridDisplay,
    RegularizationPathDisplay,
    TrainingCurveDisplay,
)

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import same_color, to_rgba  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Text  # noqa: E402

RED = "tab:red"
LOSS = [0.9, 0.6, 0.5]
ACCURACY = [0.6, 0.7, 0.75]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


class Model(CallbackSupportMixin, ClassifierMixin, BaseEstimator):
    """A linear classifier whose fit replays given curves."""

    def set_fitted(self, **attributes):
        vars(self).update(attributes)
        return self

    @with_callbacks
    def fit(self, losses=LOSS, accuracies=ACCURACY):
        fit = self._init_callback_context(max_subtasks=len(losses))
        fit.call_on_fit_task_begin(estimator=self)
        curves = {"loss_curve_": [], "accuracy_curve_": []}
        for loss, accuracy in zip(losses, accuracies, strict=True):
            epoch = fit.subcontext(task_name="epoch").call_on_fit_task_begin(estimator=self)
            curves["loss_curve_"].append(loss)
            curves["accuracy_curve_"].append(accuracy)
            epoch.call_on_fit_task_end(
                estimator=self, reconstruction_attributes=lambda: dict(curves)
            )
        fit.call_on_fit_task_end(estimator=self, reconstruction_attributes=lambda: dict(curves))
        return self.set_fitted(**curves)

    def predict(self, X):
        return self.classes_[np.argmax(np.asarray(X @ self.coef_.T), axis=1)]


def model_of_images(n_classes=3, n_features=9, classes=None):
    coef = np.random.default_rng(0).normal(size=(n_classes, n_features))
    return Model().set_fitted(
        coef_=coef, classes_=np.arange(n_classes) if classes is None else np.asarray(classes)
    )


def used(axes):
    return [ax for ax in axes.flat if ax is not None]


def titles(display):
    return [ax.get_title() for ax in used(display.axes_)]


def pixels(display):
    return [np.asarray(image.get_array()) for image in display.im_]


def curves_in(display):
    return {
        (line.axes.get_ylabel(), line.get_label()): list(line.get_ydata())
        for line in display.lines_
    }


class TestTrainingCurve:
    def test_draws_all_curves_of_an_estimator(self):
        model = Model().set_fitted(
            loss_curve_=LOSS,
            accuracy_curve_=ACCURACY,
            validation_loss_curve_=[1.0, 0.8, 0.7],
            validation_scores_=[0.5, 0.6, 0.65],
        )
        display = TrainingCurveDisplay.from_estimator(model)
        assert curves_in(display) == {
            ("loss", "training"): LOSS,
            ("loss", "validation"): [1.0, 0.8, 0.7],
            ("accuracy", "training"): ACCURACY,
            ("accuracy", "validation"): [0.5, 0.6, 0.65],
        }
        for line in display.lines_:
            assert_array_equal(line.get_xdata(), [1, 2, 3])

    @pytest.mark.parametrize("validation", [None, [0.5, 0.6, 0.65]])
    def test_says_what_is_what(self, validation):
        display = TrainingCurveDisplay(
            loss=LOSS, accuracy=ACCURACY, validation_loss=validation, validation_accuracy=validation
        ).plot()
        assert [ax.get_xlabel() for ax in display.axes_.flat] == ["epoch", "epoch"]
        assert [ax.get_ylabel() for ax in display.axes_.flat] == ["loss", "accuracy"]
        labels = ["training", "validation"][: 1 if validation is None else 2]
        for ax in display.axes_.flat:
            assert [text.get_text() for text in ax.get_legend().get_texts()] == labels
            colors = [line.get_color() for line in ax.lines]
            assert colors == ["C0", "C1"][: len(labels)]

    @pytest.mark.parametrize("n_epochs", [1, 2, 7, 100])
    def test_ticks_are_epochs(self, n_epochs):
        display = TrainingCurveDisplay(loss=np.ones(n_epochs), accuracy=np.ones(n_epochs)).plot()
        for ax in display.axes_.flat:
            assert_array_equal(ax.get_xticks(), np.round(ax.get_xticks()))

    @pytest.mark.parametrize(("n_epochs", "marker"), [(1, "o"), (100, "None")])
    def test_one_epoch_is_visible_and_many_are_not_cluttered(self, n_epochs, marker):
        display = TrainingCurveDisplay(loss=np.ones(n_epochs), accuracy=np.ones(n_epochs)).plot()
        assert {line.get_marker() for line in display.lines_} == {marker}

    def test_draws_into_two_axes(self):
        figure, axes = plt.subplots(2)
        display = TrainingCurveDisplay(loss=LOSS, accuracy=ACCURACY)
        assert display.plot(ax=axes) is display
        assert [line.axes for line in display.lines_] == list(axes)
        assert display.figure_ is figure

    def test_subdivides_one_ax(self):
        figure, ax = plt.subplots()
        display = TrainingCurveDisplay(loss=LOSS, accuracy=ACCURACY).plot(ax=ax)
        assert display.bounding_ax_ is ax
        assert display.axes_.shape == (1, 2)
        assert display.figure_ is figure

    def test_line_kw_may_use_matplotlib_aliases(self):
        display = TrainingCurveDisplay(loss=LOSS, accuracy=ACCURACY).plot(line_kw={"lw": 4})
        assert [line.get_linewidth() for line in display.lines_] == [4, 4]
        display.plot(line_kw={"c": "k"})
        assert [line.get_color() for line in display.lines_] == ["k", "k"]

    def test_does_not_follow_later_epochs(self):
        model = Model().set_fitted(loss_curve_=[0.9], accuracy_curve_=[0.6])
        display = TrainingCurveDisplay.from_estimator(model)
        model.loss_curve_.append(0.5)
        assert display.loss == [0.9]

    def test_wants_a_fitted_estimator(self):
        with pytest.raises(NotFittedError):
            TrainingCurveDisplay.from_estimator(Model())

    def test_says_where_the_curves_are(self):
        X, y = load_iris(return_X_y=True)
        model = SoftmaxRegression(solver="sgd", max_iter=2)
        pipeline = make_pipeline(StandardScaler(), model).fit(X, y)
        with pytest.raises(TypeError, match=r"Pipeline has no loss_curve_.*`estimator\[-1\]`"):
            TrainingCurveDisplay.from_estimator(pipeline)
        search = GridSearchCV(model, {"C": [1.0]}, cv=2).fit(X, y)
        with pytest.raises(TypeError, match=r"GridSearchCV has no loss_curve_.*best_estimator_"):
            TrainingCurveDisplay.from_estimator(search)


class TestClassWeights:
    def test_draws_one_image_per_class(self):
        model = model_of_images(n_classes=3, classes=["cat", "cow", "dog"])
        display = ClassWeightsDisplay.from_estimator(model)
        assert titles(display) == ["cat", "cow", "dog"]
        assert_array_equal(pixels(display), model.coef_.reshape(3, 3, 3))

    def test_has_one_symmetric_scale(self):
        model = model_of_images()
        model.coef_[:] = [[-3], [2], [1]]
        display = ClassWeightsDisplay.from_estimator(model)
        assert {image.get_clim() for image in display.im_} == {(-3, 3)}
        assert (display.colorbar_.vmin, display.colorbar_.vmax) == (-3, 3)
        assert display.colorbar_.extend == "neither"
        assert display.colorbar_.ax.get_ylabel() == "weight"

    def test_few_large_weights_do_not_take_the_colour_from_the_others(self):
        model = model_of_images()
        model.coef_[:] = 1
        model.coef_[0, 0] = -100
        display = ClassWeightsDisplay.from_estimator(model)
        assert display.im_[0].get_clim() == (-1, 1)
        assert display.colorbar_.extend == "both"

    def test_few_weights_besides_zeros_are_seen(self):
        model = model_of_images(n_features=10_000)
        model.coef_[:] = 0
        model.coef_[0, 0] = 0.5
        assert ClassWeightsDisplay.from_estimator(model).im_[0].get_clim() == (-0.5, 0.5)

    def test_zero_weights_are_neutral(self):
        model = model_of_images()
        model.coef_[:] = 0
        display = ClassWeightsDisplay.from_estimator(model)
        colors = display.im_[0].to_rgba(display.im_[0].get_array())
        np.testing.assert_allclose(colors, np.broadcast_to(to_rgba("white"), (3, 3, 4)), atol=0.04)

    def test_two_classes_have_one_image(self):
        model = model_of_images(n_classes=1, classes=["no", "yes"])
        display = ClassWeightsDisplay.from_estimator(model)
        assert titles(display) == ["yes vs. no"]
        assert_array_equal(pixels(display)[0], model.coef_.reshape(3, 3))

    def test_class_names(self):
        model = model_of_images(n_classes=3)
        display = ClassWeightsDisplay.from_estimator(model, class_names=("a", "b", "c"))
        assert titles(display) == ["a", "b", "c"]
        with pytest.raises(ValueError, match=r"2 names for 3 classes: \[0, 1, 2\]"):
            ClassWeightsDisplay.from_estimator(model, class_names=["a", "b"])

    @pytest.mark.parametrize("convert", [sparse.csr_array, sparse.csr_matrix])
    def test_sparsified_weights(self, convert):
        model = model_of_images()
        dense = model.coef_.copy()
        model.coef_ = convert(dense)
        assert_array_equal(
            pixels(ClassWeightsDisplay.from_estimator(model)), dense.reshape(3, 3, 3)
        )

    @pytest.mark.parametrize("device", ["CPU_DEVICE", "device1"])
    def test_weights_of_another_namespace_and_device(self, device):
        xp = pytest.importorskip("array_api_strict")
        model = model_of_images()
        dense = model.coef_
        model.coef_ = xp.asarray(dense, device=xp.Device(device))
        model.classes_ = xp.asarray(model.classes_, device=xp.Device(device))
        display = ClassWeightsDisplay.from_estimator(model)
        assert_array_equal(pixels(display), dense.reshape(3, 3, 3))
        assert titles(display) == ["0", "1", "2"]

    def test_image_shape(self):
        model = model_of_images(n_features=6)
        display = ClassWeightsDisplay.from_estimator(model, image_shape=(2, 3))
        assert_array_equal(pixels(display), model.coef_.reshape(3, 2, 3))

    @pytest.mark.parametrize(
        ("image_shape", "message"),
        [
            (None, "6 features do not make a square image. Pass their height and width"),
            ((3, 3), r"image_shape=\(3, 3\) does not fit: .* number of features, 6"),
            ((6,), r"image_shape=\(6,\) does not fit"),
            ((2, 3, 1), r"image_shape=\(2, 3, 1\) does not fit"),
        ],
    )
    def test_refuses_other_image_shapes(self, image_shape, message):
        with pytest.raises(ValueError, match=message):
            ClassWeightsDisplay.from_estimator(
                model_of_images(n_features=6), image_shape=image_shape
            )

    def test_wants_a_fitted_estimator(self):
        with pytest.raises(NotFittedError):
            ClassWeightsDisplay.from_estimator(Model())

    def test_cmap_and_im_kw(self):
        display = ClassWeightsDisplay.from_estimator(
            model_of_images(), cmap="coolwarm", im_kw={"vmax": 2, "vmin": -2}
        )
        assert display.im_[0].get_cmap().name == "coolwarm"
        assert display.im_[0].get_clim() == (-2, 2)


class TestAxesOfAGrid:
    @pytest.fixture
    def display(self):
        return ClassWeightsDisplay(weights=np.ones((5, 2, 2)), titles=list("abcde"))

    @pytest.mark.parametrize(
        ("n_cols", "shape"), [(1, (5, 1)), (2, (3, 2)), (5, (1, 5)), (9, (1, 5))]
    )
    def test_n_cols(self, display, n_cols, shape):
        display.plot(n_cols=n_cols)
        assert display.axes_.shape == shape
        assert titles(display) == list("abcde")

    def test_n_cols_must_be_positive(self, display):
        with pytest.raises(ValueError, match="n_cols == 0, must be >= 1"):
            display.plot(n_cols=0)

    def test_one_ax_is_subdivided(self, display):
        figure, (left, right) = plt.subplots(1, 2)
        display.plot(ax=right)
        assert display.bounding_ax_ is right
        assert not right.axison
        assert display.figure_ is figure
        edge = left.get_position().x1
        assert all(ax.get_position().x0 > edge for ax in used(display.axes_))

    def test_a_subdivided_ax_is_not_subdivided_again(self, display):
        _, ax = plt.subplots()
        display.plot(ax=ax)
        with pytest.raises(ValueError, match=r"pass ax=display\.axes_"):
            display.plot(ax=ax)

    def test_an_ax_outside_a_grid_cannot_be_subdivided(self, display):
        with pytest.raises(ValueError, match="Pass an array of 5 Axes"):
            display.plot(ax=plt.figure().add_axes((0, 0, 1, 1)))

    @pytest.mark.parametrize("as_given", [np.asarray, list])
    def test_several_axes_are_used_as_given(self, display, as_given):
        figure, axes = plt.subplots(1, 5)
        display.plot(ax=as_given(axes))
        assert list(display.axes_) == list(axes)
        assert display.bounding_ax_ is None
        assert display.figure_ is figure

    def test_wrong_number_of_axes(self, display):
        _, axes = plt.subplots(2, 2)
        with pytest.raises(ValueError, match="Expected ax to have 5 axes, got 4"):
            display.plot(ax=axes)

    @pytest.mark.parametrize("n_images", [2, 10])
    @pytest.mark.parametrize("subdivided", [False, True])
    def test_long_titles_do_not_overlap(self, n_images, subdivided):
        names = [f"{word} rather long name of a class" for word in ["A", "Another"] * 5][:n_images]
        display = ClassWeightsDisplay(weights=np.ones((n_images, 2, 2)), titles=names)
        ax = plt.subplots(figsize=(9, 5), layout="constrained")[1] if subdivided else None
        display.plot(ax=ax).figure_.draw_without_rendering()
        assert [title.replace("\n", " ") for title in titles(display)] == names
        assert display.titles == names
        for row in display.axes_:
            boxes = [ax.title.get_window_extent() for ax in used(row)]
            assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))
        for above, below in zip(used(display.axes_), used(display.axes_[1:]), strict=False):
            assert below.title.get_window_extent().y1 <= above.get_window_extent().y0

    def test_titles_without_end_are_cut(self):
        display = ClassWeightsDisplay(weights=np.ones((5, 2, 2)), titles=["name " * 50] * 5).plot()
        assert titles(display)[0].count("\n") == 2
        assert titles(display)[0].endswith("…")

    def test_a_band_makes_no_huge_figure(self):
        display = ClassWeightsDisplay(weights=np.ones((1, 1000, 1)), titles=["band"]).plot()
        assert max(display.figure_.get_size_inches()) < 20


class TestPredictionGrid:
    X = np.arange(4 * 9, dtype=np.uint8).reshape(4, 9)
    y_true = np.array(["cat", "dog", "cat", "cow"])
    y_pred = np.array(["cat", "cat", "dog", "cow"])

    def test_shows_images_and_names(self):
        display = PredictionGridDisplay.from_predictions(self.X, self.y_true, self.y_pred)
        assert_array_equal(pixels(display), self.X.reshape(4, 3, 3))
        assert titles(display) == [
            "true: cat\npredicted: cat",
            "true: dog\npredicted: cat",
            "true: cat\npredicted: dog",
            "true: cow\npredicted: cow",
        ]

    def test_marks_wrong_predictions_in_red(self):
        display = PredictionGridDisplay.from_predictions(self.X, self.y_true, self.y_pred)
        axes = used(display.axes_)
        assert [same_color(ax.title.get_color(), RED) for ax in axes] == [False, True, True, False]
        assert [same_color(ax.spines["left"].get_edgecolor(), RED) for ax in axes] == [
            False,
            True,
            True,
            False,
        ]

    def test_images_share_their_scale(self):
        display = PredictionGridDisplay.from_predictions(self.X, self.y_true, self.y_pred)
        assert {image.get_clim() for image in display.im_} == {(0, 35)}

    def test_im_kw(self):
        display = PredictionGridDisplay.from_predictions(
            self.X, self.y_true, self.y_pred, cmap="gray_r", im_kw={"vmax": 255}
        )
        assert display.im_[0].get_cmap().name == "gray_r"
        assert display.im_[0].get_clim() == (0, 255)

    def test_class_names_follow_the_sorted_labels_of_all_rows(self):
        display = PredictionGridDisplay.from_predictions(
            self.X, self.y_true, self.y_pred, n_images=1, class_names=["C", "B", "D"]
        )
        assert titles(display) == ["true: C\npredicted: C"]

    def test_class_names_follow_labels(self):
        display = PredictionGridDisplay.from_predictions(
            self.X[:2], [2, 0], [2, 2], labels=[2, 1, 0], class_names=["two", "one", "zero"]
        )
        assert titles(display) == ["true: two\npredicted: two", "true: zero\npredicted: two"]

    def test_probabilities_name_their_largest_column(self):
        one_hot = np.eye(3)[[0, 2]]
        soft = np.array([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
        display = PredictionGridDisplay.from_predictions(self.X[:2], one_hot, soft)
        assert titles(display) == ["true: 0\npredicted: 1", "true: 2\npredicted: 2"]

    def test_probabilities_against_labels(self):
        soft = np.array([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [1, 0, 0], [1, 0, 0]])
        display = PredictionGridDisplay.from_predictions(self.X, self.y_true, soft)
        assert display.predicted_names == ["cow", "dog", "cat", "cat"]

    def test_probabilities_of_unknown_classes(self):
        with pytest.raises(ValueError, match=r"of 3 classes .* labels are \[0, 1\]"):
            PredictionGridDisplay.from_predictions(self.X[:2], [0, 1], np.eye(3)[:2])

    def test_a_column_of_labels(self):
        display = PredictionGridDisplay.from_predictions(
            self.X, self.y_true.reshape(-1, 1), self.y_pred
        )
        assert display.true_names == self.y_true.tolist()

    def test_lengths_must_agree(self):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            PredictionGridDisplay.from_predictions(self.X, self.y_true, self.y_pred[:3])
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            PredictionGridDisplay.from_estimator(model_of_images(), self.X, self.y_true[:3])

    @pytest.mark.parametrize("n_images", [0, -1])
    def test_n_images_must_be_positive(self, n_images):
        with pytest.raises(ValueError, match=f"n_images == {n_images}, must be >= 1"):
            PredictionGridDisplay.from_estimator(
                model_of_images(), self.X, self.y_true, n_images=n_images
            )

    def test_from_estimator_predicts_only_what_it_shows(self):
        class Counting(Model):
            def predict(self, X):
                self.n_predicted_ = X.shape[0]
                return super().predict(X)

        model = Counting().set_fitted(**vars(model_of_images()))
        X = np.random.default_rng(0).normal(size=(50, 9))
        y = np.argmax(X @ model.coef_.T, axis=1)
        y[1] = (y[1] + 1) % 3
        display = PredictionGridDisplay.from_estimator(
            model, X, y, n_images=4, class_names=["a", "b", "c"]
        )
        assert model.n_predicted_ == 4
        assert_array_equal(pixels(display), X[:4].reshape(4, 3, 3))
        assert display.true_names == ["abc"[label] for label in y[:4]]
        wrong = [same_color(ax.title.get_color(), RED) for ax in used(display.axes_)]
        assert wrong == [False, True, False, False]

    def test_from_estimator_takes_one_hot_targets(self):
        model, y = model_of_images(), [0, 2, 1, 0]
        display = PredictionGridDisplay.from_estimator(model, self.X, np.eye(3)[y])
        assert display.true_names == ["0", "2", "1", "0"]

    def test_a_class_the_estimator_has_not_seen(self):
        display = PredictionGridDisplay.from_estimator(
            model_of_images(), self.X, [0, 7, 1, 2], class_names=["a", "b", "c"]
        )
        assert display.true_names == ["a", "7", "b", "c"]

    @pytest.mark.parametrize("container", ["csr", "csc", "pandas", "polars", "memmap", "torch"])
    def test_takes_data_as_they_come(self, container, tmp_path):
        model = model_of_images()
        X, y = self._contain(container, tmp_path), [0, 1, 2, 0]
        if container in ("pandas", "polars", "torch"):
            model.predict = lambda rows: Model.predict(model, np.asarray(rows))
        display = PredictionGridDisplay.from_estimator(model, X, y, n_images=3)
        assert_array_equal(pixels(display), self.X[:3].reshape(3, 3, 3))

    def _contain(self, container, tmp_path):
        if container in ("pandas", "polars"):
            names = [f"pixel{i}" for i in range(9)]
            return pytest.importorskip(container).DataFrame(dict(zip(names, self.X.T, strict=True)))
        if container == "torch":
            return pytest.importorskip("torch").asarray(self.X)
        if container == "memmap":
            np.save(tmp_path / "X.npy", self.X)
            return np.load(tmp_path / "X.npy", mmap_mode="r")
        return sparse.csr_array(self.X).asformat(container)


def path_of(estimator=None, X=None, y=None, **kwargs):
    """The path of an estimator on iris, unless something else is given."""
    if X is None:
        X, y = load_iris(return_X_y=True)
    model = SoftmaxRegression() if estimator is None else estimator
    kwargs = {"Cs": [0.01, 1, 100], "cv": 3, **kwargs}
    return RegularizationPathDisplay.from_estimator(model, X, y, **kwargs)


def written(axes):
    """What is written beside the lines, from top to bottom."""
    texts = sorted(axes.texts, key=lambda text: -text.xyann[1])
    return [text.get_text() for text in texts]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


class TestRegularizationPath:
    C = (0.1, 1.0, 10.0, 100.0)
    # Means 0.5, 0.8, 0.9, 0.9. The standard error of the last two is 0.2 / sqrt(3) = 0.115.
    SCORES = ((0.4, 0.5, 0.6), (0.7, 0.8, 0.9), (0.7, 0.9, 1.1), (0.7, 0.9, 1.1))
    COEF = np.array([[[1, -2, 0], [-1, 2, 0.5]]]) * np.array([0.1, 1, 2, 3]).reshape(4, 1, 1)

    def display(self, **kwargs):
        arrays = {"C": self.C, "coef": self.COEF, "test_scores": self.SCORES}
        return RegularizationPathDisplay(**{**arrays, **kwargs})

    @pytest.mark.parametrize("classes", [[0, 1, 2], [1, 2]])
    def test_coefficients_are_those_of_logistic_regression(self, classes):
        X, y = load_iris(return_X_y=True)
        X, y = X[np.isin(y, classes)], y[np.isin(y, classes)]
        display = path_of(SoftmaxRegression(tol=1e-10), X, y)
        for C, coef in zip([0.01, 1, 100], display.coef, strict=True):
            reference = LogisticRegression(C=C, tol=1e-8, max_iter=10_000, solver="newton-cg")
            np.testing.assert_allclose(coef, reference.fit(X, y).coef_, rtol=1e-3, atol=1e-4)

    def test_coefficients_under_l1_are_those_of_logistic_regression(self):
        X, y = load_iris(return_X_y=True)
        X = StandardScaler().fit_transform(X)
        display = path_of(SoftmaxRegression(l1_ratio=1, tol=1e-10), X, y, Cs=[0.05, 1])
        for C, coef in zip([0.05, 1], display.coef, strict=True):
            reference = LogisticRegression(
                C=C, l1_ratio=1, solver="saga", tol=1e-7, max_iter=100_000, random_state=0
            )
            np.testing.assert_allclose(coef, reference.fit(X, y).coef_, atol=2e-3)

    @pytest.mark.parametrize("scoring", [None, "neg_log_loss"])
    def test_scores_are_those_of_cross_validation(self, scoring):
        X, y = load_iris(return_X_y=True)
        cv = StratifiedKFold(4, shuffle=True, random_state=0)
        display = path_of(SoftmaxRegression(tol=1e-8), X, y, cv=cv, scoring=scoring)
        for C, scores in zip([0.01, 1, 100], display.test_scores, strict=True):
            model = LogisticRegression(C=C, tol=1e-8, max_iter=10_000, solver="newton-cg")
            expected = cross_val_score(model, X, y, cv=cv, scoring=scoring)
            np.testing.assert_allclose(scores, expected, atol=1e-3)

    def test_sample_weights_are_rows(self):
        X, y = load_iris(return_X_y=True)
        weight = np.resize([1, 2, 1], len(y))
        model = SoftmaxRegression(tol=1e-10)
        display = path_of(model, X, y, sample_weight=weight)
        repeated = LogisticRegression(C=100, tol=1e-8, max_iter=10_000, solver="newton-cg").fit(
            np.repeat(X, weight, axis=0), np.repeat(y, weight)
        )
        np.testing.assert_allclose(display.coef[2], repeated.coef_, rtol=1e-3, atol=1e-4)
        search = GridSearchCV(model, {"C": [100]}, cv=3).fit(X, y, sample_weight=weight)
        assert display.test_scores[2].mean() == pytest.approx(search.best_score_)

    def test_a_pipeline(self):
        wine = load_wine()
        names = [f"f{j}" for j in range(13)]
        pipeline = make_pipeline(StandardScaler(), SoftmaxRegression(tol=1e-10))
        display = path_of(pipeline, wine.data, wine.target, Cs=[0.01, 1], feature_names=names)
        scaled = StandardScaler().fit_transform(wine.data)
        alone = LogisticRegression(tol=1e-8, solver="newton-cg").fit(scaled, wine.target)
        np.testing.assert_allclose(display.coef[1], alone.coef_, rtol=1e-3, atol=1e-4)
        reference = make_pipeline(StandardScaler(), LogisticRegression())
        expected = cross_val_score(reference, wine.data, wine.target, cv=3)
        np.testing.assert_allclose(display.test_scores[1], expected)
        assert display.feature_names == names
        weighted = path_of(pipeline, wine.data, wine.target, sample_weight=1 + wine.target)
        assert not np.allclose(weighted.coef[1], alone.coef_, rtol=0.01)

    def test_a_pipeline_of_one_step(self):
        assert_array_equal(path_of(make_pipeline(SoftmaxRegression())).coef, path_of().coef)

    def test_sgd_starts_each_value_of_c_anew(self):
        X, y = load_iris(return_X_y=True)
        model = SoftmaxRegression(solver="sgd", max_iter=3, random_state=0)
        display = path_of(model, X, y)
        for C, coef in zip([0.01, 1, 100], display.coef, strict=True):
            assert_array_equal(coef, clone(model).set_params(C=C).fit(X, y).coef_)

    def test_leaves_the_estimator_as_it_was(self):
        model = SoftmaxRegression(C=7)
        path_of(model)
        assert vars(model) == vars(SoftmaxRegression(C=7))

    def test_values_of_c(self):
        np.testing.assert_allclose(path_of(Cs=3).C, [1e-4, 1, 1e4])
        assert_array_equal(path_of(Cs=(10, 0.1, 10)).C, [0.1, 10])

    def test_names_come_from_the_data(self):
        data = load_iris(as_frame=True)
        labels = data.target_names[data.target]
        display = path_of(SoftmaxRegression(), data.data, labels)
        assert display.class_names == data.target_names.tolist()
        assert list(display.feature_names) == data.feature_names
        pipeline = make_pipeline(StandardScaler(), SoftmaxRegression())
        assert list(path_of(pipeline, data.data, labels).feature_names) == data.feature_names

    @pytest.mark.parametrize(
        ("scoring", "negate", "name"),
        [
            (None, False, "accuracy"),
            ("neg_log_loss", False, "negative log loss"),
            ("neg_log_loss", True, "log loss"),
            ("balanced_accuracy", True, "negative balanced accuracy"),
            (make_scorer(top_k_accuracy_score, response_method="predict_proba"), False, "score"),
            (lambda model, X, y: 0.5, False, "<lambda>"),
        ],
    )
    def test_names_the_score(self, scoring, negate, name):
        display = path_of(scoring=scoring, negate_score=negate)
        assert display.axes_[1, 0].get_ylabel() == name
        sign = -1 if negate else 1
        np.testing.assert_allclose(
            display.lines_[-1].get_ydata(), sign * display.test_scores.mean(axis=1)
        )

    def test_weights_of_rows_are_routed(self):
        """As `fit_params` of a Pipeline, or by the requests of its steps."""
        X, y = load_iris(return_X_y=True)
        weight = 1.0 + (y == 1)
        pipeline = make_pipeline(StandardScaler(), SoftmaxRegression())
        expected = path_of(pipeline, X, y, sample_weight=weight)
        with config_context(enable_metadata_routing=True):
            pipeline[0].set_fit_request(sample_weight=False)
            pipeline[1].set_fit_request(sample_weight=True)
            pipeline[1].set_score_request(sample_weight=False)
            routed = path_of(pipeline, X, y, sample_weight=weight)
        np.testing.assert_allclose(routed.coef, expected.coef)
        np.testing.assert_allclose(routed.test_scores, expected.test_scores)

    def test_values_of_C_are_finite(self):
        with pytest.raises(ValueError, match="positive finite numbers that ascend"):
            self.display(C=[0.1, 1.0, 10.0, np.inf]).plot()

    def test_keeps_the_arrays_it_is_given(self):
        arrays = {"C": list(self.C), "coef": self.COEF, "test_scores": np.array(self.SCORES)}
        before = copy.deepcopy(arrays)
        display = RegularizationPathDisplay(**arrays).plot()
        for name, array in arrays.items():
            assert getattr(display, name) is array
            assert_array_equal(array, before[name])

    def test_draws_the_arrays(self):
        display = self.display().plot()
        drawn = [list(line.get_ydata()) for line in display.lines_]
        # The largest at the best C first; of the same size, in their order.
        pairs = [(0, 1), (1, 1), (0, 0), (1, 0), (1, 2), (0, 2)]
        assert drawn[:-1] == [list(self.COEF[:, i, j]) for i, j in pairs]
        np.testing.assert_allclose(drawn[-1], [0.5, 0.8, 0.9, 0.9])
        band = display.fill_between_.get_paths()[0].vertices[:, 1]
        assert band.max() == pytest.approx(0.9 + 0.2 / np.sqrt(3))
        assert band.min() == pytest.approx(0.5 - 0.1 / np.sqrt(3))

    def test_marks_the_best_and_the_simplest_about_as_good(self):
        display = self.display()
        assert (display.best_C_, display.one_standard_error_C_) == (10, 1)
        display.plot()
        assert legend(display.axes_[1, 0]) == ["best:\nC = 10", "one standard error:\nC = 1"]
        for ax in display.axes_.flat:
            marks = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
            assert {10, 1} <= set(marks)

    def test_one_split_has_no_error(self):
        display = self.display(test_scores=[[0.5], [0.9], [0.8], [0.9]]).plot()
        assert display.best_C_ == 1
        assert np.isnan(display.one_standard_error_C_)
        assert display.fill_between_ is None
        assert legend(display.axes_[1, 0]) == ["best:\nC = 1"]

    def test_fits_that_failed_are_never_the_best(self):
        scores = np.array(self.SCORES)
        scores[2, 0] = np.nan
        assert self.display(test_scores=scores).plot().best_C_ == 100
        with pytest.raises(ValueError, match="no C whose scores are all numbers"):
            self.display(test_scores=np.full((4, 3), np.nan)).plot()

    def test_names_the_largest_and_greys_the_rest(self):
        display = self.display(feature_names=["a", "b", "c"], class_names=["no", "yes"])
        display.plot(n_labels=3)
        upper = display.axes_[0, 0]
        assert written(upper) == ["b", "a", "b"]
        assert legend(upper) == ["no", "yes"]
        assert len(display.grey_lines_.get_paths()) == 2  # one is zero throughout
        assert display.plot(n_labels=0).axes_[0, 0].get_legend() is None
        assert len(display.grey_lines_.get_paths()) == 5

    def test_a_line_has_the_colour_of_its_class_and_of_its_name(self):
        display = self.display(feature_names=["a", "b", "c"]).plot()
        upper = display.axes_[0, 0]
        colors = [line.get_color() for line in display.lines_[:-1]]
        assert colors == [colors[i] for i in (0, 1, 0, 1, 1, 0)]
        assert colors[0] != colors[1]
        ends = {line.get_ydata()[-1]: line.get_color() for line in display.lines_[:-1]}
        for text in upper.texts:
            assert text.get_color() == ends[text.xy[1]]

    def test_two_classes_speak_for_the_second(self):
        display = self.display(coef=self.COEF[:, :1], class_names=["no", "yes"]).plot()
        assert legend(display.axes_[0, 0]) == ["yes"]

    def test_of_many_classes_lines_name_their_own(self):
        coef = np.arange(1.0, 11) * np.ones((4, 1, 1))
        display = self.display(coef=coef.transpose(0, 2, 1)).plot(n_labels=8)
        upper = display.axes_[0, 0]
        assert upper.get_legend() is None
        assert written(upper) == [f"x0, {i}" for i in range(9, 1, -1)]

    @pytest.mark.parametrize("n_labels", [12, 60])
    def test_names_do_not_overlap(self, n_labels):
        rng = np.random.default_rng(0)
        coef = rng.normal(size=(3, 40)) * np.ones((4, 1, 1)) + [[[0]], [[1]], [[1]], [[1]]]
        names = [f"a rather long name of feature {j}" for j in range(40)]
        display = self.display(coef=coef, feature_names=names).plot(n_labels=n_labels)
        display.figure_.draw_without_rendering()
        upper = display.axes_[0, 0]
        boxes = [Text.get_window_extent(text) for text in upper.texts]  # without their arrows
        boxes.sort(key=lambda box: box.y0)
        assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))
        assert boxes[-1].y1 <= display.figure_.bbox.y1
        assert max(len(text.get_text()) for text in upper.texts) <= 22

    def test_counts_what_is_left_under_l1(self):
        coef = self.COEF.copy()
        coef[:2, :, 0] = 0
        display = self.display(coef=coef).plot()
        (top,) = display.axes_[0, 0].child_axes
        assert top.get_xlabel() == "coefficients other than zero"
        assert [text.get_text() for text in top.get_xticklabels()] == ["3", "3", "5", "5"]
        assert self.display().plot().axes_[0, 0].child_axes == []

    def test_millions_of_coefficients(self):
        coef = np.zeros((4, 20, 100_000), dtype=np.float32)
        coef[2] = np.random.default_rng(0).normal(size=coef.shape[1:])
        display = self.display(coef=coef).plot()
        assert len(display.grey_lines_.get_paths()) == 1000
        (top,) = display.axes_[0, 0].child_axes
        assert [text.get_text() for text in top.get_xticklabels()] == ["0", "0", "2M", "0"]

    def test_draws_into_two_axes_or_one(self):
        figure, axes = plt.subplots(2)
        display = self.display().plot(ax=axes)
        assert display.axes_ is axes
        assert display.figure_ is figure
        _, ax = plt.subplots()
        assert self.display().plot(ax=ax).bounding_ax_ is ax
        with pytest.raises(ValueError, match="Expected ax to have 2 axes, got 3"):
            self.display().plot(ax=plt.subplots(3)[1])

    def test_line_kw_may_use_matplotlib_aliases(self):
        display = self.display().plot(line_kw={"lw": 4})
        assert {line.get_linewidth() for line in display.lines_} == {4}

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"Cs": 1}, ValueError, "Cs == 1, must be >= 2"),
            ({"Cs": [1.0]}, ValueError, "Cs has 1 distinct values. A path needs two or more"),
            ({"Cs": [1.0, np.inf]}, ValueError, "Cs contains inf, which has no place on a log"),
            ({"Cs": [0.0, 1.0]}, ValueError, r"Cs contains 0\.0, .* Pass finite values greater"),
            ({"Cs": [[1.0, 2.0]]}, ValueError, "Cs has 2 dimensions. Pass a number, or a list"),
            ({"scoring": ["accuracy"]}, TypeError, "asks for several scores. Pass one"),
            (
                {"scoring": ["accuracy", "f1_macro"], "score_name": "both"},
                TypeError,
                "asks for several scores. Pass one",
            ),
            (
                {"scoring": lambda model, X, y: {"a": 0.5, "b": 0.5}},
                TypeError,
                "asks for several scores. Pass one",
            ),
            ({"feature_names": ["a"]}, ValueError, "feature_names has 1 names for 4 features"),
            ({"class_names": ["a"]}, ValueError, r"1 names for 3 classes: \[0, 1, 2\]"),
            ({"estimator": LogisticRegression()}, TypeError, "of a LogisticRegression. Pass a Sof"),
            (
                {"estimator": make_pipeline(StandardScaler(), LogisticRegression())},
                TypeError,
                "of a Pipeline that ends with LogisticRegression. Pass a SoftmaxRegression",
            ),
        ],
    )
    def test_says_what_is_wrong(self, kwargs, error, message):
        with pytest.raises(error, match=message):
            path_of(**kwargs)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"C": [1, 10, 10, 100]}, r"numbers that ascend, got \[1.0, 10.0, 10.0, 100.0\]"),
            ({"coef": COEF[:3]}, r"coef of shape \(3, 2, 3\) does not fit 4 values of C"),
            ({"coef": COEF[:, 0]}, r"coef of shape \(4, 3\) .* must have 3 dimensions"),
            ({"test_scores": [0.1, 0.2, 0.3, 0.4]}, r"test_scores of shape \(4,\) does not fit"),
        ],
    )
    def test_says_which_arrays_do_not_fit(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            self.display(**kwargs).plot()


class RecordingCanvas:
    """Counts what a window would be asked to do."""

    def __init__(self, canvas, monkeypatch):
        self.calls = []
        for name in ("draw", "flush_events"):
            monkeypatch.setattr(canvas, name, lambda name=name: self.calls.append(name))


class TestLiveTrainingCurve:
    def test_leaves_the_finished_curves_where_nobody_watches(self):
        callback = LiveTrainingCurve()
        Model().set_callbacks(callback).fit()
        assert curves_in(callback.display_) == {
            ("loss", "training"): LOSS,
            ("accuracy", "training"): ACCURACY,
        }
        assert callback.figure_ is callback.display_.figure_

    def test_redraws_a_window_at_every_epoch(self, monkeypatch):
        monkeypatch.setattr(matplotlib, "get_backend", lambda: "QtAgg")
        ax = Figure().add_subplot()
        window = RecordingCanvas(ax.figure.canvas, monkeypatch)
        callback = LiveTrainingCurve(ax=ax, interval=0)
        Model().set_callbacks(callback).fit()
        assert window.calls == ["draw", "flush_events"] * len(LOSS)
        assert callback.figure_ is ax.figure

    def test_opens_a_window_once(self, monkeypatch):
        monkeypatch.setattr(matplotlib, "get_backend", lambda: "QtAgg")
        shown = []
        monkeypatch.setattr(Figure, "show", lambda figure: shown.append(figure))
        callback = LiveTrainingCurve(interval=0)
        Model().set_callbacks(callback).fit()
        assert shown == [callback.figure_]

    def test_interval_skips_all_but_the_first_and_the_last_epoch(self, monkeypatch):
        monkeypatch.setattr(matplotlib, "get_backend", lambda: "QtAgg")
        ax = Figure().add_subplot()
        window = RecordingCanvas(ax.figure.canvas, monkeypatch)
        callback = LiveTrainingCurve(ax=ax, interval=1000)
        Model().set_callbacks(callback).fit()
        assert window.calls == ["draw", "flush_events"] * 2
        assert curves_in(callback.display_)["loss", "training"] == LOSS

    def test_updates_one_display_of_a_notebook(self, monkeypatch):
        notebook = FakeNotebook(monkeypatch)
        callback = LiveTrainingCurve(interval=0)
        Model().set_callbacks(callback).fit()
        assert notebook.shown == [("display", 1), ("update", 2), ("update", 3)]
        assert not plt.fignum_exists(callback.figure_.number)

    def test_shows_nothing_in_a_worker_of_a_notebook(self, monkeypatch):
        notebook = FakeNotebook(monkeypatch, shell=None)
        Model().set_callbacks(LiveTrainingCurve(interval=0)).fit()
        assert notebook.shown == []

    def test_redrawing_keeps_what_else_is_on_the_axes(self, monkeypatch):
        monkeypatch.setattr(matplotlib, "get_backend", lambda: "QtAgg")
        axes = Figure().subplots(2)
        axes[0].set_title("My run")
        Model().set_callbacks(LiveTrainingCurve(ax=axes, interval=0)).fit()
        assert axes[0].get_title() == "My run"
        assert [len(ax.lines) for ax in axes] == [1, 1]

    @pytest.mark.parametrize("clear", [False, True])
    def test_the_next_fit_replaces_the_curves_on_given_axes(self, clear):
        axes = Figure().subplots(2)
        model = Model().set_callbacks(LiveTrainingCurve(ax=axes)).fit([100, 50, 25])
        if clear:
            axes[0].clear()
        model.fit()
        assert [[list(line.get_ydata()) for line in ax.lines] for ax in axes] == [
            [LOSS],
            [ACCURACY],
        ]
        assert axes[0].get_ylim()[1] < 1

    def test_one_given_ax_is_subdivided_once(self):
        ax = Figure().add_subplot()
        callback = LiveTrainingCurve(ax=ax)
        Model().set_callbacks(callback).fit().fit()
        assert ax.figure.axes == [ax, *callback.display_.axes_.flat]

    def test_each_fit_has_a_figure_of_its_own_and_the_one_before_is_closed(self):
        callback = LiveTrainingCurve()
        model = Model().set_callbacks(callback).fit()
        first = callback.figure_
        clone(model).fit()
        assert callback.figure_ is not first
        assert plt.get_fignums() == [callback.figure_.number]

    def test_only_the_fit_that_began_last_is_drawn(self):
        callback = LiveTrainingCurve()
        outer = SimpleNamespace(task_name="fit")
        callback.setup(None, outer)
        Model().set_callbacks(callback).fit()
        stale = Model().set_fitted(loss_curve_=[7], accuracy_curve_=[0])
        epoch = SimpleNamespace(task_name="epoch", parent=outer)
        callback.on_fit_task_end(None, epoch, fitted_estimator=stale)
        callback.teardown(None, outer)
        assert curves_in(callback.display_)["loss", "training"] == LOSS

    def test_a_fit_that_fails_leaves_the_epochs_before(self):
        callback = LiveTrainingCurve()
        with pytest.raises(ValueError):
            Model().set_callbacks(callback).fit([0.9, 0.6], [0.6])
        assert curves_in(callback.display_)["loss", "training"] == [0.9]

    def test_pickles_without_its_figure(self):
        model = Model().set_callbacks(LiveTrainingCurve(interval=3)).fit()
        restored = pickle.loads(pickle.dumps(model))
        (callback,) = restored._skl_callbacks
        assert callback.interval == 3
        assert not hasattr(callback, "figure_")
        restored.fit()
        assert curves_in(callback.display_)["loss", "training"] == LOSS

    def test_pickles_during_a_fit(self):
        callback = PicklingCurve(ax=Figure().add_subplot())
        Model().set_callbacks(callback).fit()
        assert callback.copy.ax is None


class PicklingCurve(LiveTrainingCurve):
    """Pickles itself while it draws, as sending a clone to a worker does."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        super().on_fit_task_end(estimator, context, fitted_estimator=fitted_estimator)
        (self.copy,) = pickle.loads(pickle.dumps(estimator))._skl_callbacks


class FakeNotebook:
    """Stands in for IPython, and notes how many epochs each picture shows."""

    def __init__(self, monkeypatch, shell="shell"):
        self.shown = []
        ipython = SimpleNamespace(get_ipython=lambda: shell)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=self.display))
        monkeypatch.setattr(
            matplotlib, "get_backend", lambda: "module://matplotlib_inline.backend_inline"
        )

    def display(self, figure, *, display_id):
        assert display_id is True
        self._note("display", figure)
        return SimpleNamespace(update=lambda figure: self._note("update", figure))

    def _note(self, what, figure):
        self.shown.append((what, len(figure.axes[-1].lines[0].get_ydata())))


def test_importing_imports_no_matplotlib():
    code = "import sys, skmax.plotting; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("draw", "caller"),
    [
        (
            lambda: TrainingCurveDisplay(loss=LOSS, accuracy=ACCURACY).plot(),
            "TrainingCurveDisplay.plot",
        ),
        (
            lambda: ClassWeightsDisplay.from_estimator(model_of_images()),
            "ClassWeightsDisplay.plot",
        ),
        (
            lambda: PredictionGridDisplay.from_predictions(np.ones((1, 4)), [0], [0]),
            "PredictionGridDisplay.plot",
        ),
        (lambda: Model().set_callbacks(LiveTrainingCurve()).fit(), "LiveTrainingCurve"),
        (lambda: path_of(), "RegularizationPathDisplay.from_estimator"),
    ],
)
def test_missing_matplotlib(draw, caller, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ImportError, match=rf'^{caller} requires matplotlib.*`pip install "skmax\[plot\]"`'
    ):
        draw()

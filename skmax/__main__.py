"""The main job: train on Fashion-MNIST, compare with LogisticRegression, draw pictures."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from skmax import SoftmaxRegression
from skmax.datasets import fetch_fashion_mnist
from skmax.kernels import library


class Data(NamedTuple):
    """Images as rows of float32 from 0 to 1, and the labels of what they show."""

    name: str
    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    class_names: list[str]


def main(argv: list[str] | None = None) -> int:
    """Run the main job; the exit status."""
    options = _parse(argv)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        _run(options)
    except KeyboardInterrupt:
        print("\nInterrupted.")
        return 130
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    def number(text: str, least: int) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
        return int(text)

    def count(text: str) -> int:
        return number(text, 1)

    def seed(text: str) -> int:
        return number(text, 0)

    def rate(text: str) -> float | str:
        if text == "auto":
            return text
        try:
            if float(text) > 0:
                return float(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor auto")

    parser = argparse.ArgumentParser(
        prog="python -m skmax",
        description="Train a softmax regression on Fashion-MNIST, compare it with scikit-learn's "
        "LogisticRegression in the same run, and draw pictures.",
    )
    add = parser.add_argument
    folder: dict[str, Any] = {"type": Path, "metavar": "FOLDER"}
    own = "default: the estimator's own"
    add("--data-home", **folder, help="where to look for the images first, and to download them to")
    add("--epochs", type=count, metavar="N", help=f"passes over the data ({own})")
    add("--batch-size", type=count, metavar="N", help=f"images per step ({own})")
    add("--learning-rate", type=rate, default="auto", metavar="RATE", help="a number, or auto")
    add("--backend", choices=["auto", "numpy", "cupy"], default="auto", help="where to compute")
    add("--output", **folder, default=Path("skmax-results"), help="for the pictures (%(default)s)")
    add("--seed", type=seed, default=0, metavar="N", help="decides the order of the images (0)")
    add("--no-baseline", action="store_true", help="do not train LogisticRegression as well")
    return parser.parse_args(argv)


def _run(options: argparse.Namespace) -> None:
    data = _load(options.data_home)
    print(
        f"{data.name}: {len(data.X)} training and {len(data.X_test)} test images, scaled to 0..1 "
        "for both models."
    )
    if library.problem() is not None:
        print(f"Training takes longer than it need: {library.problem()}.")
    model = SoftmaxRegression(
        solver="auto" if options.epochs is None else "sgd",
        max_iter=options.epochs,
        batch_size="auto" if options.batch_size is None else options.batch_size,
        learning_rate=options.learning_rate,
        backend=options.backend,
        random_state=options.seed,
    )
    with _Progress() as progress:
        model.set_callbacks(progress)
        seconds = _timed(lambda: model.fit(data.X, data.y, X_val=data.X_test, y_val=data.y_test))
    model.set_callbacks()
    results = {"SoftmaxRegression": _result(model, data, seconds)}
    if not options.no_baseline:
        results["LogisticRegression"] = _baseline(data)
    print("\n" + _table(data.name, results) + "\n")
    _draw(model, data, options.output)


def _load(data_home: Path | None) -> Data:
    try:
        train, test = (
            fetch_fashion_mnist(subset=subset, data_home=data_home) for subset in ("train", "test")
        )
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, ValueError) and data_home is not None:
            raise  # files that were named, and are damaged, are not passed over
        print(f"Fashion-MNIST cannot be had here: {error}\n")
        print("Going on with the small digits that scikit-learn brings along.\n")
        X, y = load_digits(return_X_y=True)
        X = (X / 16).astype(np.float32)
        X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
        return Data("Digits", X, y, X_test, y_test, [str(digit) for digit in range(10)])
    X, X_test = (part.data.astype(np.float32) / 255 for part in (train, test))
    return Data("Fashion-MNIST", X, train.target, X_test, test.target, train.target_names)


class _Progress:
    """A callback that prints a line per epoch, above a progress bar where rich is installed."""

    def __init__(self) -> None:
        self._bar: Any = None
        if find_spec("rich") is None:
            print('For a progress bar: pip install "skmax[progress]"')
        else:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

            counts = MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Progress(BarColumn(16), *counts, "{task.description}", transient=True)

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def setup(self, estimator: Any, context: Any) -> None:  # noqa: ARG002
        """Learn how many epochs there will be."""
        if self._bar is not None:
            self._task = self._bar.add_task("", total=context.max_subtasks)

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Do nothing."""

    def on_fit_task_end(
        self,
        estimator: Any,  # noqa: ARG002
        context: Any,
        *,
        fitted_estimator: Any = None,
    ) -> None:
        """Tell how the epoch went."""
        if context.task_name != "epoch":
            return
        loss, accuracy = fitted_estimator.loss_curve_[-1], fitted_estimator.accuracy_curve_[-1]
        test = fitted_estimator.validation_scores_[-1]
        print(
            f"epoch {fitted_estimator.n_iter_}: loss {loss:.4f}, "
            f"training accuracy {accuracy:.4f}, test accuracy {test:.4f}"
        )
        if self._bar is not None:
            line = f"loss {loss:.3f} training {accuracy:.3f} test {test:.3f}"
            self._bar.update(self._task, advance=1, description=line)

    def teardown(self, estimator: Any, context: Any) -> None:
        """Do nothing."""


def _baseline(data: Data) -> dict[str, float]:
    model = LogisticRegression()
    print("\nLogisticRegression with its defaults, on the same data: 10 seconds or more.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        seconds = _timed(lambda: model.fit(data.X, data.y))
    stopped = "not converged" if model.n_iter_[0] >= model.max_iter else "converged"
    print(f"{model.n_iter_[0]} iterations of at most {model.max_iter}, {stopped}.")
    return _result(model, data, seconds)


def _timed(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def _result(model: Any, data: Data, seconds: float) -> dict[str, float]:
    squares = float(np.sum(model.coef_.astype(np.float64) ** 2))
    return {
        "seconds": seconds,
        "train objective": log_loss(data.y, model.predict_proba(data.X))
        + squares / (2 * model.C * len(data.y)),
        "test accuracy": model.score(data.X_test, data.y_test),
        "test log-loss": log_loss(data.y_test, model.predict_proba(data.X_test)),
    }


def _table(corner: str, results: dict[str, dict[str, float]]) -> str:
    """A Markdown table with a column per model; times also as multiples of the first one's."""
    first, *_ = results.values()
    rows = [[corner, *results]]
    for name in first:
        digits = 2 if name == "seconds" else 4
        rows.append([name, *(f"{result[name]:.{digits}f}" for result in results.values())])
    if len(results) > 1:
        times = [result["seconds"] / first["seconds"] for result in results.values()]
        rows.append(["time ratio", *(f"{time:.1f}" for time in times)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )


def _draw(model: SoftmaxRegression, data: Data, folder: Path) -> None:
    if find_spec("matplotlib") is None:
        print('For pictures of the training and of the model: pip install "skmax[plot]"')
        return
    import matplotlib as mpl

    mpl.use("Agg")
    from sklearn.metrics import ConfusionMatrixDisplay

    from skmax.plotting import ClassWeightsDisplay, PredictionGridDisplay, TrainingCurveDisplay

    X, y, names = data.X_test, data.y_test, data.class_names
    confusion = ConfusionMatrixDisplay.from_estimator(
        model,
        X,
        y,
        display_labels=names,
        xticks_rotation=45,
        colorbar=False,
        cmap="Blues",
    )
    confusion.figure_.set_size_inches(8, 8)
    figures = {
        "learning-curves": TrainingCurveDisplay.from_estimator(model).figure_,
        "predictions": PredictionGridDisplay.from_estimator(
            model, X, y, n_images=20, class_names=names
        ).figure_,
        "weights": ClassWeightsDisplay.from_estimator(model, class_names=names).figure_,
        "confusion-matrix": confusion.figure_,
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
    print(f"Pictures in {folder.resolve()}:", *(f"  {name}.png" for name in figures), sep="\n")


if __name__ == "__main__":
    sys.exit(main())

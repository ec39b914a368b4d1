"""BatchedGridSearchCV beside GridSearchCV, over SoftmaxRegression and over LogisticRegression.

    python benchmarks/search.py [--quick] [--output FOLDER]

Grids of 8, 24 and 100 candidates (C and learning rate), 5 folds, 10 epochs, Fashion-MNIST as uint8.
GridSearchCV fits SoftmaxRegression with n_jobs=2. Where that would take too long, as noted,
and for LogisticRegression with its defaults always, the time of a fit is measured and multiplied by
the number of fits. The limit is the arithmetic of the two matrix products at the
speed of a large float32 matrix product on all cores, measured in the same run. A full run takes
about four minutes on two cores; run it on a machine that does nothing else.

FOLDER gets search.json (all figures), search.md (the table) and search.png (seconds against the
number of candidates).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from compare import Limits, Row, machine, resident_bytes, table, timed
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from skmax import BatchedGridSearchCV, SoftmaxRegression
from skmax.datasets import fetch_fashion_mnist

FOLDS, EPOCHS = 5, 10
RATES = [0.01, 0.02, 0.03, 0.05]
# The most candidates that GridSearchCV is run with.
MOST = 24
MODEL = SoftmaxRegression(solver="sgd", max_iter=EPOCHS, tol=0, random_state=0)


def grid(n_candidates: int) -> dict[str, Any]:
    """So many candidates."""
    return {"C": np.logspace(-3, 2, n_candidates // len(RATES)), "learning_rate": RATES}


def images(quick: bool) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST as it comes."""
    X, y = fetch_fashion_mnist(return_X_y=True)
    rows = slice(5000 if quick else None)
    return X[rows], y[rows]


def search(n_candidates: int) -> BatchedGridSearchCV:
    """The search that is measured."""
    return BatchedGridSearchCV(clone(MODEL), grid(n_candidates), cv=FOLDS, refit=False)


def peak_memory(quick: bool) -> int:
    """Bytes that a search of 24 candidates needs beyond those before it."""
    X, y = images(quick)
    clone(MODEL).set_params(max_iter=1).fit(X[:500], y[:500])  # imports and buffers of BLAS
    before = resident_bytes("VmRSS")
    search(24).fit(X, y)
    return resident_bytes("VmHWM") - before


def measure(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """The table's rows, and what holds of all."""
    X, y = images(quick)
    limits = Limits.measure()
    kept = len(X) * (FOLDS - 1) // FOLDS
    clone(MODEL).set_params(max_iter=1).fit(X, y)
    seconds_of_logistic, _ = timed(lambda: LogisticRegression().fit(X[:kept], y[:kept]))
    rows: list[Row] = []
    per_fit, gap = float("nan"), float("nan")
    for n_candidates in (8, 24, 100):
        fits = n_candidates * FOLDS
        stacked, batched = timed(lambda n=n_candidates: search(n).fit(X, y))
        if n_candidates <= MOST:
            one = GridSearchCV(clone(MODEL), grid(n_candidates), cv=FOLDS, refit=False, n_jobs=2)
            single, alone = timed(lambda one=one: one.fit(X, y))
            per_fit = single / fits
            gap = np.abs(
                batched.cv_results_["mean_test_score"] - alone.cv_results_["mean_test_score"]
            ).max()
        epoch = 4 * X.size * 10 / limits.gemm_all_cores
        rows.append(
            {
                "candidates": n_candidates,
                "fits": fits,
                "seconds": stacked,
                "ms per model and epoch": stacked / fits / EPOCHS * 1e3,
                "limit ratio": stacked / fits / EPOCHS / epoch,
                "GridSearchCV, seconds": per_fit * fits,
                "ratio": per_fit * fits / stacked,
                "LogisticRegression, seconds": seconds_of_logistic * fits,
                "its ratio": seconds_of_logistic * fits / stacked,
                "largest difference of scores": gap if n_candidates <= MOST else None,
                "note": "" if n_candidates <= MOST else "GridSearchCV: a product",
            }
        )
        print(table(rows[-1:]), flush=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        memory = pool.apply(peak_memory, (quick,))
    facts = {
        "machine": machine(),
        "quick": quick,
        "GFLOP/s of all cores": limits.gemm_all_cores / 1e9,
        "seconds of a fit of LogisticRegression": seconds_of_logistic,
        "MB beyond the data, 24 candidates": memory / 1e6,
    }
    return rows, facts


def describe(rows: list[Row], facts: dict[str, Any]) -> str:
    """The table, and how it is to be read."""
    return "\n\n".join(
        [
            "# BatchedGridSearchCV beside GridSearchCV",
            f"Fashion-MNIST as uint8, {FOLDS} folds, {EPOCHS} epochs"
            + (", the first 5,000 images" if facts["quick"] else "")
            + f"; float32 matrix product {facts['GFLOP/s of all cores']:.0f} GFLOP/s on all cores.",
            table(rows),
            "GridSearchCV is over SoftmaxRegression with n_jobs=2; with 100 candidates, and for "
            "LogisticRegression always, seconds are those of a measured fit times the fits. "
            "Limit ratio: the time over that of the two matrix products on all cores. "
            f"LogisticRegression takes {facts['seconds of a fit of LogisticRegression']:.1f} "
            "seconds per fit. Peak memory beyond the data with 24 candidates: "
            f"{facts['MB beyond the data, 24 candidates']:.0f} MB.",
            "![Seconds against candidates](search.png)",
        ]
    )


def draw(rows: list[Row], path: Path) -> None:
    """Seconds against the number of candidates."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    candidates = [row["candidates"] for row in rows]
    for key, label, style in (
        ("LogisticRegression, seconds", "GridSearchCV, LogisticRegression (product)", "s--"),
        ("GridSearchCV, seconds", "GridSearchCV, SoftmaxRegression, n_jobs=2", "^-"),
        ("seconds", "BatchedGridSearchCV", "o-"),
    ):
        axes.loglog(candidates, [row[key] for row in rows], style, label=label)
    axes.set_xticks(candidates, [str(n) for n in candidates])
    axes.minorticks_off()
    axes.set(xlabel=f"Candidates, of {FOLDS} folds and {EPOCHS} epochs each", ylabel="Seconds")
    axes.set_title("Tuning on Fashion-MNIST", loc="left")
    axes.grid(alpha=0.4)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the first 5,000 images")
    default = Path(__file__).parent / "results"
    parser.add_argument("--output", type=Path, default=default, metavar="FOLDER")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, facts = measure(asked.quick)
    asked.output.mkdir(parents=True, exist_ok=True)
    text = describe(rows, facts)
    report = {"facts": facts, "rows": rows}
    (asked.output / "search.json").write_text(json.dumps(report, indent=1, default=float) + "\n")
    (asked.output / "search.md").write_text(text + "\n")
    draw(rows, asked.output / "search.png")
    print(text)


if __name__ == "__main__":
    main()

"""What skmax costs as data grow: in rows, features, classes, values per row and threads.

    python benchmarks/growth.py [--quick] [--output FOLDER]

From a table of 20,000 x 200 with 10 classes (float32, standardised) and texts of 20,000 x 20,000
with 30 values per row and 20 classes, one thing grows at a time. Measured are the default fit, an
epoch of SGD (of two fits that differ in a few), and `predict_proba` on all rows, the medians
of interleaved turns, on one thread but where threads grow. Beside each is its limit: what its
matrix products take on all rows at once, in the same run and on as many threads; two for an epoch,
one for predictions, two for every iteration of the fit. LogisticRegression's default fit is told
where it is not cut off, after 20 seconds for a smaller size.

FOLDER gets growth.json, growth.md (a table) and growth.png (curves).
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from compare import Row, machine, timed
from compare import table as markdown
from data import SEED, table, text
from joblib import cpu_count
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from skmax import SoftmaxRegression

BASE = {"rows": 20_000, "features": 200, "classes": 10, "threads": 1}
TEXTS = {"rows": 20_000, "features": 20_000, "classes": 20, "values per row": 30, "threads": 1}
CORES = sorted({2**i for i in range(cpu_count().bit_length())} | {cpu_count()})
GROWTH: dict[str, tuple[dict[str, int], str, list[int]]] = {
    "table, rows": (BASE, "rows", [1000, 4000, 20_000, 100_000, 500_000]),
    "table, features": (BASE, "features", [10, 40, 200, 1000, 4000]),
    "table, classes": (BASE, "classes", [2, 5, 20, 100, 500]),
    "table, threads": (BASE | {"rows": 100_000}, "threads", CORES),
    "texts, rows": (TEXTS, "rows", [1000, 4000, 20_000, 100_000]),
    "texts, features": (TEXTS, "features", [1000, 10_000, 100_000, 400_000]),
    "texts, classes": (TEXTS, "classes", [2, 20, 100, 400]),
    "texts, values per row": (TEXTS, "values per row", [4, 15, 60, 240]),
    "texts, threads": (TEXTS, "threads", CORES),
}
CURVES = {"fit": ("#08519c", "o"), "epoch": ("#d95f02", "^"), "predict": ("#1b9e77", "s")}
TOO_LONG = 20.0


def make(size: dict[str, int]) -> tuple[Any, np.ndarray]:
    """A table, or texts, of a size."""
    n, d, k = size["rows"], size["features"], size["classes"]
    if "values per row" in size:
        return text(n, d, k, size["values per row"])
    X, y = table(n, d, k)
    return X.astype(np.float32), y


def products(X: Any, n_classes: int) -> tuple[float, float]:
    """Seconds of the logits of all rows, and of pulling as many residuals back."""
    rng = np.random.default_rng(SEED)
    W = rng.standard_normal((X.shape[1], n_classes)).astype(X.dtype)
    R = rng.standard_normal((X.shape[0], n_classes)).astype(X.dtype)
    return tuple(min(timed(f)[0] for _ in range(5)) for f in (lambda: X @ W, lambda: X.T @ R))


def measure(size: dict[str, int], turns: int, *, peer: bool) -> Row:
    """Seconds of all that is measured, and the limits."""
    X, y = make(size)
    sgd = partial(SoftmaxRegression, solver="sgd", learning_rate=0.1, tol=0, random_state=SEED)
    model = SoftmaxRegression(random_state=SEED)
    few = max(3, min(100, 200_000 // X.shape[0]))
    runs: dict[str, Callable[[], Any]] = {
        "fit": lambda: model.fit(X, y),
        "one": lambda: sgd(max_iter=1).fit(X, y),
        "few": lambda: sgd(max_iter=1 + few).fit(X, y),
        "predict": lambda: model.predict_proba(X),
    }
    if peer:
        runs["LogisticRegression"] = lambda: LogisticRegression().fit(X, y)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            if sum(times[name]) < TOO_LONG / 4:
                times[name].append(timed(run)[0])
    seconds = {name: median(values) for name, values in times.items()}
    epoch = (seconds.pop("few") - seconds.pop("one")) / few
    forward, back = products(X, size["classes"])
    return {
        **seconds,
        "epoch": epoch if epoch > 0 else np.nan,
        "solver": model.solver_,
        "fit, limit": model.n_iter_ * (forward + back),
        "epoch, limit": forward + back,
        "predict, limit": forward,
    }


def rows(quick: bool) -> Iterator[Row]:
    """A row for each size."""
    for name, (base, what, sizes) in GROWTH.items():
        peer = True
        for value in sizes[: 2 if quick else None]:
            size = base | {what: value}
            with threadpool_limits(size["threads"]):
                row = measure(size, 2 if quick else 3, peer=peer)
            peer = row.get("LogisticRegression", np.inf) < TOO_LONG / 4
            yield {"what grows": name, "value": value, **row}


def draw(measured: list[Row], path: Path) -> None:
    """A panel for each thing that grows."""
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["what grows"] for row in measured))
    figure, grid = plt.subplots(3, 3, figsize=(9, 9), layout="constrained", sharey=True)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    for name, axes in zip(names, grid.flat, strict=False):
        part = [row for row in measured if row["what grows"] == name]
        values = [row["value"] for row in part]
        for key, (colour, marker) in CURVES.items():
            style = {"c": colour, "ms": 4.5}
            axes.plot(values, [row[key] for row in part], f"{marker}-", label=key, **style)
            limits = [row[f"{key}, limit"] for row in part]
            axes.plot(values, limits, "--", label=f"{key}, limit", lw=1.2, **style)
        peer = [row.get("LogisticRegression", np.nan) for row in part]
        axes.plot(values, peer, "x-", c="#777777", label="LogisticRegression, fit", ms=5)
        axes.set(xscale="log", yscale="log", xlabel=name)
        axes.set_xticks(values, [f"{v // 1000}k" if v >= 1000 else str(v) for v in values])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.grid(alpha=0.4)
    for axes in grid[:, 0]:
        axes.set_ylabel("Seconds")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save(measured: list[Row], folder: Path) -> None:
    """Write what is known so far."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "rows": measured}
    (folder / "growth.json").write_text(json.dumps(report, indent=1, default=float) + "\n")
    parts = ["# Growth", __doc__.partition("\n\n")[2].partition("\n\n")[2].split("\n\n")[0]]
    parts += [markdown(measured), "![Seconds as data grow](growth.png)"]
    (folder / "growth.md").write_text("\n\n".join(parts) + "\n")
    draw(measured, folder / "growth.png")


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two small sizes each, two turns")
    default = Path(__file__).parent / "results"
    parser.add_argument("--output", type=Path, default=default, metavar="FOLDER")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    measured: list[Row] = []
    for row in rows(asked.quick):
        measured.append(row)
        print(
            ", ".join(
                f"{k} {v:.3g}" if k != "solver" and k != "what grows" else str(v)
                for k, v in row.items()
            ),
            flush=True,
        )
        save(measured, asked.output)


if __name__ == "__main__":
    main()

"""The map: skmax beside the best of its peers, on every kind of data, in every task.

    python benchmarks/map.py [--kinds PATTERN ...] [--tasks TASK ...] [--threads one all]
                             [--quick] [--resume] [--output FOLDER]

FOLDER gets map.json (all figures), map.md (the table) and map.png (a heat map), written after every
cell; cells that are there and not asked for are kept, with --resume also those asked for. Kinds are
those of ``data.py``; the tasks are told below, in ``TASKS``. Peers that are not installed
(scikit-learn-intelex, skglm, PyTorch) do not take part. Run it where nothing else runs.

**A cell** is the time of the best peer over that of skmax. All take turns in one process, with as
many threads as the cell says, after a fit on 300 rows that is not timed; times are medians over the
turns. What takes long gets fewer turns, one above 2 seconds, and so does what is no longer in the
running: a peer that takes twice as long as another which is as good.

**How good** a fit is, is told by F, the objective per unit of weight in float64, of all by one
function. The best peer is the fastest of those whose F is at most 10 % above that of skmax, and of
LogisticRegression with its defaults whatever its F, since that is what people take. Where the
optimum is the task (``optimum``, ``l1``, ``elastic net``), each has several settings, and the
loosest that ends within 0.1 % of the least F that any reached counts; who never gets there is out.
A search is judged by the best mean accuracy on its folds instead, and is as good within 0.02.

**Marks.** "!": no win, whatever the time: skmax ends more than 0.1 % above the best peer (0.002 in
accuracy), or does not get to the optimum, or to an end. "+": a peer that takes longer ends lower
than skmax by more than that. ">": what could have been the best was cut off, and would have taken
longer than that. "alone": all ended, and no peer was as good. A peer is cut off after 20 times the
time of skmax, or 3 times that of the best peer so far, though not within 2 seconds; skmax after 2
minutes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import signal
import time
import warnings
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from compare import machine, resident_bytes, timed
from data import KINDS
from joblib import cpu_count
from peers import TASKS, TO_THE_OPTIMUM, Data, Record, installed, judged
from threadpoolctl import threadpool_limits

GOAL, TOLERATED = 1.001, 1.1
MOST_SECONDS, LEAST_SECONDS, TIMES_SKMAX, TIMES_BEST = 120.0, 2.0, 20, 3
QUICK_KINDS = ["iris", "breast_cancer*", "digits std", "* 1k 5", "standardised 10k 5"]


class Timeout(BaseException):
    """A run took too long. No Exception, so that nobody handles it."""


# Running, in a process that can be ended


def perform(task: str, model: Any, data: Data) -> tuple[float, Any]:
    """Seconds, of the median of five where it is short, and the fitted model."""
    if task == "one row":
        row = data.X[:1]
        return timed(lambda: [model.predict_proba(row) for _ in range(100)])[0] / 100, model
    action = partial(model.predict_proba, data.X) if task == "predict" else None
    action = action or partial(model.fit, data.X, data.y)
    seconds, _ = timed(action)
    more = [timed(action)[0] for _ in range(4 if seconds < 0.02 else 0)]
    return median([seconds, *more]), model


def attempt(
    data: Data, task: str, name: str, rung: int, budget: float, judge: bool = True
) -> Record:
    """One turn of one contestant."""
    model = TASKS[task](data)[name][rung]
    with suppress(OSError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of memory so far
    before = resident_bytes("VmRSS")
    signal.setitimer(signal.ITIMER_REAL, budget)
    try:
        seconds, model = perform(task, model, data)
    except Timeout:
        return {"cut": budget}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    peak = max(10.0, (resident_bytes("VmHWM") - before) / 1e6)
    how = {
        "solver": getattr(model, "solver_", None),
        "n_iter": np.max(getattr(model, "n_iter_", 0)),
    }
    return {"seconds": seconds, "MB": peak, **how} | (judged(task, model, data) if judge else {})


def warm_up(task: str, data: Data) -> None:
    """Import and compile what the contestants need, on a few rows."""
    frequent = np.argsort(np.bincount(data.y))[-3:]
    rows = np.flatnonzero(np.isin(data.y, frequent))[:300]
    for rungs in TASKS[task](data).values() if task not in ("predict", "one row") else ():
        with suppress(Exception):
            rungs[0].fit(data.X[rows], data.y[rows])


def serve(connection: Any, kind: str, threads: int) -> None:
    """Make data once, then answer: the names of a task's contestants with rungs, or a turn."""

    def stop(*_: Any) -> None:
        raise Timeout

    os.setsid()  # so that processes of a search can be ended, too
    signal.signal(signal.SIGALRM, stop)
    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"
    if installed("torch"):
        import torch

        torch.set_num_threads(threads)
    if installed("daal4py"):
        import daal4py

        daal4py.daalinit(threads)
    warm: set[str] = set()
    with threadpool_limits(threads), suppress(EOFError, OSError):  # until nobody asks any more
        data = Data(kind, threads)
        while True:
            task, *turn = connection.recv()
            if task not in warm:
                warm_up(task, data)
                warm.add(task)
            names = {name: len(rungs) for name, rungs in TASKS[task](data).items()}
            connection.send(attempt(data, task, *turn) if turn else names)


class Worker:
    """A process with a kind of data; ended where it does not answer, and started again."""

    def __init__(self, kind: str, threads: int) -> None:
        self.arguments = kind, threads
        self.process: Any = None

    def __call__(self, *question: Any, budget: float = MOST_SECONDS) -> Record:
        """Ask, and wait somewhat longer than the budget: not every solver heeds an alarm."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs, *self.arguments))
            self.process.start()
            theirs.close()
            if "skmax" not in (names := self(question[0])):  # data are made, and the task is warm
                return names
        try:
            self.connection.send(question)
            if self.connection.poll(3 + 1.1 * budget + 120 * (len(question) == 1)):
                return self.connection.recv()
        except (EOFError, OSError):
            self.close()
            return {"error": "the process ended: out of memory?"}
        self.close()
        return {"cut": budget}

    def close(self) -> None:
        """End the process, and those it started, but for joblib's, which tidies up after them."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
            self.process.join()
            self.process = None


# A cell


def turns(seconds: float, quick: bool) -> int:
    """How often what takes so long is measured."""
    most, total = (3, 0.5) if quick else (15, 4.0)
    return max(1, min(most, int(total / seconds)))


def above(task: str, loss: float, other: float, factor: float) -> bool:
    """Whether a loss is clearly above another: by a factor, or in accuracy by twice its excess."""
    return loss > (other + 2 * (factor - 1) if task == "sweep" else other * factor)


def budget(task: str, records: dict[str, Record]) -> float:
    """Seconds for the next contestant."""
    if "seconds" not in records.get("skmax", {}):
        return MOST_SECONDS
    skmax = records["skmax"]
    as_good = [
        record["seconds"]
        for name, record in records.items()
        if name not in ("skmax", "reference") and "seconds" in record
        if not above(task, record["loss"], skmax["loss"], slack(task))
    ]
    best = TIMES_BEST * min(as_good, default=MOST_SECONDS)
    return min(MOST_SECONDS, max(LEAST_SECONDS, min(TIMES_SKMAX * skmax["seconds"], best)))


def slack(task: str) -> float:
    """The factor by which F may be above that of skmax, or of the optimum."""
    return GOAL if task in TO_THE_OPTIMUM else 1.01 if task == "sweep" else TOLERATED


def climb(worker: Worker, task: str, name: str, n_rungs: int, records: dict[str, Record]) -> Record:
    """The first turn of a contestant: rung by rung, where the optimum is the task."""
    seen = [record["loss"] for record in records.values() if "loss" in record]
    record: Record = {}
    for rung in range(n_rungs):
        if task == "memory":
            worker.close()
        limit = budget(task, records)
        record = worker(task, name, rung, limit, budget=limit) | {"rung": rung}
        least = min([*seen, record.get("loss", np.inf)])
        if record.get("loss", np.inf) <= least * GOAL:
            break
    return record


def measure(worker: Worker, task: str, quick: bool) -> dict[str, Record]:
    """The records of all contestants, with the seconds of every turn."""
    records: dict[str, Record] = {}
    names = worker(task)
    if "skmax" not in names:
        return {"skmax": names}
    if task == "optimum":
        names = {"reference": names.pop("reference"), **names}
    for name, n_rungs in names.items():
        records[name] = climb(worker, task, name, n_rungs, records)
        if name == "skmax" and "seconds" not in records[name]:
            return records
    running = {n: r for n, r in records.items() if "seconds" in r and n != "reference"}
    fastest = min(record["seconds"] for record in running.values())
    for record in running.values():
        record["all seconds"] = [record["seconds"]]
    limit = 2 * max(fastest, records["skmax"]["seconds"])
    running = {n: r for n, r in running.items() if r["seconds"] <= limit and task != "memory"}
    for turn in range(1, 15):
        for name, record in running.items():
            if turn < turns(record["seconds"], quick):
                again = worker(task, name, record["rung"], MOST_SECONDS, False)
                record["all seconds"] += [again["seconds"]] if "seconds" in again else []
    for record in running.values():
        record["seconds"] = median(record["all seconds"])
    return records


def verdict(task: str, records: dict[str, Record]) -> Record:
    """The ratio, the peer it is against, and the marks."""
    skmax, unit = records["skmax"], "MB" if task == "memory" else "seconds"
    if unit not in skmax:
        return {"ratio": None, "marks": "!", "best": None}
    peers = {n: r for n, r in records.items() if n not in ("skmax", "reference") and unit in r}
    least = min(r["loss"] for r in records.values() if "loss" in r)
    goal = least if task in TO_THE_OPTIMUM else skmax["loss"]
    good = {
        name: record
        for name, record in peers.items()
        if not above(task, record["loss"], goal, slack(task))
        or (task in ("fit", "memory") and name == "lbfgs")
    }
    worse = above(task, skmax["loss"], least, GOAL)
    if not good:
        cuts = [r["cut"] for name, r in records.items() if "cut" in r and name != "reference"]
        ratio = min(cuts) / skmax["seconds"] if cuts else None
        return {"ratio": ratio, "marks": ">" * bool(cuts) + "!" * worse, "best": None}
    best = min(good, key=lambda name: good[name][unit])
    beaten = task in TO_THE_OPTIMUM and worse
    beaten = beaten or above(task, skmax["loss"], good[best]["loss"], GOAL)
    marks = "!" if beaten else "+" if worse else ""
    return {"ratio": good[best][unit] / skmax[unit], "marks": marks, "best": best}


# Showing


def label(cell: Record) -> str:
    """What a cell of the table says."""
    ratio, marks = cell["ratio"], cell["marks"]
    if ratio is None:
        return "!" if marks else "alone"
    digits = 0 if ratio >= 9.95 else 1 if ratio >= 0.995 else 2
    return ">" * (">" in marks) + f"{ratio:.{digits}f}" + marks.replace(">", "")


def grid_of(report: Record, threads: str) -> tuple[list[str], dict[tuple[str, str], Record]]:
    """The kinds measured, and their cells by kind and task."""
    cells = {}
    for key, cell in report["cells"].items():
        kind, task, which = key.split("|")
        if which == threads:
            cells[kind, task] = cell
    return [kind for kind in KINDS if any(kind == key[0] for key in cells)], cells


def describe(report: Record) -> str:
    """The tables, the cells below 1.0, and those with marks, in Markdown."""
    where = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    parts = ["# The map", __doc__.partition("**A cell**")[2].strip().join(["**A cell** ", ""])]
    parts.append(f"{where['processor']}, {where['cores']} cores; {versions}.")
    parts += ["\n".join(f"- {task}: {TASKS[task].__doc__}" for task in TASKS)]
    parts.append("![The map](map.png)")
    for threads in ("one", "all"):
        kinds, cells = grid_of(report, threads)
        rows = [["data", *TASKS], ["---"] + ["---:"] * len(TASKS)]
        for kind in kinds:
            line = [cells.get((kind, task)) for task in TASKS]
            rows.append([kind, *(label(cell) if cell else "" for cell in line)])
        rows.append(["median", *(typical(cells, task) for task in TASKS)])
        lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts += [f"## Threads: {threads}", lines] if kinds else []
    parts.append("## Below 1.0, or marked\n")
    return "\n\n".join(parts) + "\n" + "\n".join(remarks(report)) + "\n"


def typical(cells: dict[tuple[str, str], Record], task: str) -> str:
    """The median of a task's ratios; without a peer as good, a ratio is infinite."""
    ratios = [cell["ratio"] or np.inf for (_, which), cell in cells.items() if which == task]
    return label({"ratio": median(ratios), "marks": ""}) if ratios else ""


def remarks(report: Record) -> list[str]:
    """A line for every cell that is no win."""
    lines = []
    for key, cell in report["cells"].items():
        ratio, records = cell["ratio"], cell["records"]
        if cell["marks"].strip(">") or (ratio is not None and ratio < 1):
            unit = "MB" if "|memory|" in key else "seconds"
            ends = [
                f"{name} {record[unit]:.3g} ({record['loss']:.5g})"
                for name, record in records.items()
                if unit in record and name in ("skmax", cell["best"])
            ]
            least = min(
                (n for n in records if "loss" in records[n]), key=lambda n: records[n]["loss"]
            )
            ends.append(f"least loss: {least} {records[least]['loss']:.5g}")
            lines.append(f"- {key.replace('|', ', ')}: {label(cell)}; " + "; ".join(ends))
    return lines


def draw(report: Record, path: Path) -> None:
    """The heat map: a panel for one thread, and one for all."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    grids = [(t, grid_of(report, t)[1]) for t in ("one", "all")]
    panels = [
        (threads, [task for task in TASKS if any(task == of for _, of in cells)], cells)
        for threads, cells in grids
        if cells
    ]
    kinds = [kind for kind in KINDS if any((kind, t) in c for _, of, c in panels for t in of)]
    widths = [len(tasks) for _, tasks, _ in panels]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(2.2 + 0.78 * sum(widths), 1.5 + 0.25 * len(kinds)),
        width_ratios=widths,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    norm = mpl.colors.LogNorm(1 / 32, 32)
    colours = mpl.colormaps["PuOr"]
    for ax, (threads, tasks, cells) in zip(axes[0], panels, strict=True):
        ratios = np.full((len(kinds), len(tasks)), np.nan)
        for (kind, task), cell in cells.items():
            i, j = kinds.index(kind), tasks.index(task)
            alone = 1 / 32 if "!" in cell["marks"] else 32
            ratios[i, j] = np.clip(cell["ratio"] or alone, 1 / 32, 32)
            dark = not 1 / 8 < ratios[i, j] < 8
            flagged = "!" in cell["marks"]
            ax.text(
                j,
                i,
                label(cell),
                ha="center",
                va="center",
                fontsize=9,
                color="white" if dark else "black",
                weight="bold" if flagged else "normal",
            )
            if flagged:
                box = plt.Rectangle(
                    (j - 0.46, i - 0.44), 0.92, 0.88, fill=False, ec="black", lw=1.4
                )
                ax.add_patch(box)
        image = ax.imshow(ratios, norm=norm, cmap=colours, aspect="auto")
        ax.set_xticks(range(len(tasks)), tasks, fontsize=9)
        ax.set_yticks(range(len(kinds)), kinds, fontsize=9)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.set_title("One thread" if threads == "one" else "All cores", loc="left", pad=10)
        ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, aspect=50, pad=0.01)
    bar.minorticks_off()
    ticks = [1 / 32, 1 / 8, 1 / 2, 1, 2, 8, 32]
    bar.set_ticks(ticks, labels=["1/32", "1/8", "1/2", "1", "2", "8", "32"])
    bar.set_label(
        "Time (memory) of the best peer over that of skmax\n"
        "framed: skmax ends worse; blank: not measured"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def save(report: Record, folder: Path) -> None:
    """Write what is known so far."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, default=float)
    (folder / "map.json.part").write_text(text + "\n")
    (folder / "map.json.part").replace(folder / "map.json")
    (folder / "map.md").write_text(describe(report))
    draw(report, folder / "map.png")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--kinds", nargs="+", metavar="PATTERN", help="such as iris 'text*'; default: all")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    add("--threads", nargs="+", choices=["one", "all"], default=["one", "all"])
    add("--quick", action="store_true", help="three turns; small kinds, where none are named")
    add("--resume", action="store_true", help="only cells that are not there yet")
    add("--output", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    options = parser.parse_args(argv)
    patterns = options.kinds or (QUICK_KINDS if options.quick else ["*"])
    options.kinds = [kind for kind in KINDS if any(fnmatch(kind, p) for p in patterns)]
    if not options.kinds:
        parser.error(f"no such kind; there are {', '.join(KINDS)}")
    return options


def main(argv: list[str] | None = None) -> None:
    """Measure cell by cell."""
    options = parse(argv)
    path = options.output / "map.json"
    report = json.loads(path.read_text()) if path.exists() else {"cells": {}}
    report["machine"] = machine()
    for kind in options.kinds:
        for threads in options.threads:
            worker = Worker(kind, 1 if threads == "one" else cpu_count())
            for task in options.tasks:
                key = f"{kind}|{task}|{threads}"
                known = options.resume and key in report["cells"]
                if known or (task == "memory" and threads == "all"):
                    continue
                seconds, records = timed(partial(measure, worker, task, options.quick))
                cell = verdict(task, records)
                cell |= {"quick": options.quick, "date": time.strftime("%Y-%m-%d %H:%M")}
                report["cells"][key] = cell | {"records": records}
                print(
                    f"{key:45} {label(cell):>8} {cell['best'] or '':20} {seconds:5.0f} s",
                    flush=True,
                )
                save(report, options.output)
            worker.close()


if __name__ == "__main__":
    main()

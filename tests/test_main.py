"""python -m skmax, on the digits that scikit-learn brings along."""

import re
import subprocess
import sys

import numpy as np
import pytest
from sklearn.utils import Bunch

import skmax.__main__ as job
from skmax.datasets import fetch_fashion_mnist

PICTURES = {"learning-curves.png", "predictions.png", "weights.png", "confusion-matrix.png"}


@pytest.fixture
def no_fashion_mnist(monkeypatch):
    def fetch(**_):
        raise OSError("no data; there are three ways to get it")

    monkeypatch.setattr(job, "fetch_fashion_mnist", fetch)


def columns_of(output):
    """The columns of the table, as a dictionary per model."""
    lines = [line for line in output.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    _, *models = rows[0]
    return [
        {"model": model, **{row[0]: row[i] for row in rows[2:]}}
        for i, model in enumerate(models, 1)
    ]


@pytest.mark.usefixtures("no_fashion_mnist")
def test_without_fashion_mnist_it_says_why_and_runs_on_digits(capsys, tmp_path):
    assert job.main(["--output", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "three ways" in output
    assert "digits" in output
    ours, theirs = columns_of(output)
    assert (ours["model"], theirs["model"]) == ("SoftmaxRegression", "LogisticRegression")
    lines = [line for line in output.splitlines() if line.startswith("|")]
    assert max(map(len, lines)) < 80
    assert float(ours["test accuracy"]) > 0.94
    assert float(ours["train objective"]) < 2 * float(theirs["train objective"]) + 0.05
    # Of seconds that were rounded to hundredths, of which a fit may take few.
    rounding, (mine, other) = 0.0051, (float(model["seconds"]) for model in (ours, theirs))
    least, most = (other - rounding) / (mine + rounding), (other + rounding) / (mine - rounding)
    assert least - 0.1 <= float(theirs["time ratio"]) <= (most if mine > rounding else np.inf) + 0.1
    assert {path.name for path in (tmp_path / "out").iterdir()} == PICTURES
    assert str(tmp_path / "out") in output


@pytest.mark.usefixtures("no_fashion_mnist")
def test_options_reach_the_estimator(capsys, tmp_path):
    options = ["--epochs", "3", "--batch-size", "50", "--learning-rate", "0.01", "--no-baseline"]
    job.main([*options, "--output", str(tmp_path)])
    output = capsys.readouterr().out
    epochs = re.findall(
        r"^epoch (\d+): loss [\d.]+, training accuracy [\d.]+, test accuracy [\d.]+$", output, re.M
    )
    assert epochs == ["1", "2", "3"]
    (ours,) = columns_of(output)
    assert "time ratio" not in ours


def test_images_are_scaled_and_classes_named(monkeypatch, capsys, tmp_path):
    rng = np.random.default_rng(0)
    names = [f"garment {i}" for i in range(10)]

    def fetch(*, subset, data_home):
        assert data_home == tmp_path
        n = {"train": 200, "test": 100}[subset]
        y = np.arange(n) % 10
        X = rng.integers(0, 50, (n, 784)).astype(np.uint8)
        X[np.arange(n), y] = 255
        return Bunch(data=X, target=y, target_names=names)

    monkeypatch.setattr(job, "fetch_fashion_mnist", fetch)
    data = job._load(tmp_path)
    assert data.X.dtype == np.float32
    assert data.X.max() == 1
    assert data.class_names == names


@pytest.mark.usefixtures("no_fashion_mnist")
def test_without_extras_it_says_what_they_would_add(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    monkeypatch.setattr(job.library, "problem", lambda: "no compiled core")
    job.main(["--no-baseline", "--epochs", "2", "--output", str(tmp_path / "out")])
    output = capsys.readouterr().out
    assert "longer than it need: no compiled core.\n" in output
    assert 'progress bar: pip install "skmax[progress]"' in output
    assert 'pictures of the training and of the model: pip install "skmax[plot]"' in output
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("no_fashion_mnist")
def test_ctrl_c_ends_it_cleanly(monkeypatch, capsys, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(job._Progress, "on_fit_task_begin", interrupt)
    assert job.main(["--output", str(tmp_path)]) == 130
    assert capsys.readouterr().out.endswith("\nInterrupted.\n")


def test_the_module_is_runnable():
    run = subprocess.run(
        [sys.executable, "-m", "skmax", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--data-home", "--epochs", "--batch-size", "--learning-rate", "--backend"):
        assert option in run.stdout
    for option in ("--output", "--seed", "--no-baseline"):
        assert option in run.stdout


def test_fashion_mnist_accuracy(capsys, tmp_path):
    try:
        fetch_fashion_mnist(subset="test", download_if_missing=False)
    except OSError:
        pytest.skip("Fashion-MNIST is not on this machine")
    job.main(["--no-baseline", "--output", str(tmp_path)])
    (ours,) = columns_of(capsys.readouterr().out)
    assert float(ours["test accuracy"]) >= 0.840
    assert float(ours["train objective"]) < 0.3895  # where LogisticRegression's defaults end


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--epochs", "0", "'0' is no whole number from 1"),
        ("--batch-size", "-3", "'-3' is no whole number from 1"),
        ("--learning-rate", "banana", "'banana' is neither a number above 0 nor auto"),
        ("--learning-rate", "nan", "'nan' is neither a number above 0 nor auto"),
        ("--seed", "x", "'x' is no whole number from 0"),
    ],
)
def test_bad_options_are_refused_at_once(capsys, option, value, reason):
    with pytest.raises(SystemExit, match="2"):
        job.main([f"{option}={value}"])
    assert f"argument {option}: {reason}" in capsys.readouterr().err


@pytest.mark.usefixtures("no_fashion_mnist")
def test_what_goes_wrong_is_said_in_a_line(capsys, tmp_path):
    arguments = ["--no-baseline", "--output", str(tmp_path)]
    assert job.main([*arguments, "--learning-rate", "1e300"]) == 1
    assert re.fullmatch(r"error: Training diverged in epoch.*\n", capsys.readouterr().err)
    (tmp_path / "file").touch()
    assert job.main(["--output", str(tmp_path / "file")]) == 1
    assert "file" in capsys.readouterr().err


def test_damaged_files_in_the_folder_given_are_an_error(monkeypatch, capsys, tmp_path):
    def fetch(**_):
        raise ValueError("train-labels-idx1-ubyte.gz is truncated")

    monkeypatch.setattr(job, "fetch_fashion_mnist", fetch)
    assert job.main(["--data-home", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "error: train-labels-idx1-ubyte.gz is truncated\n"


@pytest.mark.usefixtures("no_fashion_mnist")
def test_an_empty_folder_given_ends_in_the_digits(capsys, tmp_path):
    options = ["--data-home", str(tmp_path), "--output", str(tmp_path / "out"), "--no-baseline"]
    assert job.main([*options, "--epochs", "2"]) == 0
    output = capsys.readouterr().out
    assert "three ways" in output
    assert "| Digits" in output

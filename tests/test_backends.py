"""The same results in the caller's own arrays, whichever library and device they are of."""

import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

import array_api_compat
import numpy as np
import pytest
import sklearn
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.utils._array_api import _convert_to_numpy
from threadpoolctl import ThreadpoolController, threadpool_limits

from skmax import SoftmaxRegression
from skmax.backends import threads
from skmax.backends.threads import OneBlasThread

rng = np.random.default_rng(0)
Y = np.arange(120) % 3
X = rng.normal(size=(120, 5)) + 2 * np.eye(3, 5)[Y]
WEIGHT = rng.uniform(0.5, 2.0, size=120)
SOFT = rng.dirichlet(np.ones(3), size=120)
NAMES = np.array(["ant", "bee", "cat"])


def estimator(**params):
    params = {"max_iter": 3, "learning_rate": 0.05, "batch_size": 32, "random_state": 0} | params
    return SoftmaxRegression(**params)


@pytest.fixture
def dispatch():
    """Array API dispatch, switched on."""
    with sklearn.config_context(array_api_dispatch=True):
        yield


class Place:
    """A namespace and a device of it, to make arrays there."""

    def __init__(self, namespace, device=None):
        self.namespace, self.device = namespace, device

    def __call__(self, array):
        """A NumPy array, moved here."""
        xp = pytest.importorskip(self.namespace)
        device = self.device
        if self.namespace == "array_api_strict":
            device = xp.Device(device)
        else:  # PyTorch and CuPy lack parts of the standard themselves
            xp = pytest.importorskip(f"array_api_compat.{self.namespace}")
        return xp.asarray(array, device=device)

    def holds(self, array, like):
        """Whether an array is of the namespace, device and library that another one has."""
        return (
            type(array) is type(like)
            and array_api_compat.device(array) == array_api_compat.device(like)
            and array_api_compat.array_namespace(array) is array_api_compat.array_namespace(like)
        )


PLACES = [
    pytest.param(Place("array_api_strict", "CPU_DEVICE"), id="strict"),
    pytest.param(Place("array_api_strict", "device1"), id="strict on device1"),
    pytest.param(Place("torch", "cpu"), id="torch"),
    pytest.param(Place("cupy"), id="cupy", marks=pytest.mark.gpu),
]
everywhere = pytest.mark.parametrize("place", PLACES)
TORCH = Place("torch", "cpu")


def host(array):
    """A NumPy array of any array."""
    if isinstance(array, np.ndarray):
        return array
    return _convert_to_numpy(array, array_api_compat.array_namespace(array))


def dtype_name(array):
    return str(array.dtype).rpartition(".")[2]


def assert_same(model, expected, tolerance=1e-8, largest=0.0):
    """Two models have learned the same.

    Intercepts are what is left of sums with the values of X, of which `largest` is the largest.
    """
    reference = expected.coef_
    atol = tolerance * np.abs(reference).max()
    np.testing.assert_allclose(host(model.coef_), reference, rtol=0, atol=atol)
    atol += 16 * np.finfo(reference.dtype).eps * np.abs(reference).sum(axis=1).max() * largest
    np.testing.assert_allclose(host(model.intercept_), expected.intercept_, rtol=0, atol=atol)
    np.testing.assert_allclose(model.loss_curve_, expected.loss_curve_, rtol=tolerance)
    np.testing.assert_allclose(model.accuracy_curve_, expected.accuracy_curve_, rtol=tolerance)


# Where results are, and of which type


@everywhere
@pytest.mark.parametrize(
    ("dtype", "trained_in"),
    [
        ("float32", "float32"),
        ("float64", "float64"),
        ("uint8", "float32"),
        ("int16", "float32"),
        ("int64", "float64"),
    ],
)
def test_results_are_where_X_is(dispatch, place, dtype, trained_in):
    values = np.clip(np.rint(20 * X + 100), 0, 255).astype(dtype)
    there = place(values)
    model = estimator().fit(there, place(Y))
    for array in (
        model.coef_,
        model.intercept_,
        model.decision_function(there),
        model.predict_proba(there),
        model.predict_log_proba(there),
    ):
        assert place.holds(array, there)
        assert dtype_name(array) == trained_in
    assert place.holds(model.predict(there), there)
    assert dtype_name(model.predict(there)) == "int64"
    assert isinstance(model.score(there, place(Y)), float)
    expected = estimator().fit(values, Y)
    assert_same(model, expected, 1e-4 if trained_in == "float32" else 1e-8, values.max())
    np.testing.assert_allclose(
        host(model.predict_proba(there)),
        expected.predict_proba(values),
        atol=1e-4 if trained_in == "float32" else 1e-8,
    )


@everywhere
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lbfgs_reaches_the_same_optimum(dispatch, place, dtype):
    X, y = load_digits(return_X_y=True)
    X, y = X[:300].astype(dtype), y[:300]
    model = SoftmaxRegression(C=0.01, solver="lbfgs").fit(place(X), place(y))
    expected = SoftmaxRegression(C=0.01, solver="lbfgs").fit(X, y)
    assert dtype_name(model.coef_) == dtype
    np.testing.assert_allclose(model.loss_curve_[-1], expected.loss_curve_[-1], rtol=1e-4)


@everywhere
def test_two_classes(dispatch, place):
    there = place(X)
    model = estimator().fit(there, place(Y % 2))
    expected = estimator().fit(X, Y % 2)
    assert_same(model, expected)
    assert model.coef_.shape == (1, 5)
    assert place.holds(model.decision_function(there), there)
    np.testing.assert_allclose(
        host(model.decision_function(there)), expected.decision_function(X), atol=1e-8
    )


@pytest.mark.parametrize("given", ["torch", "NumPy", "list"])
def test_labels_may_be_elsewhere_than_X(dispatch, given):
    there = TORCH(X)
    y = {"torch": TORCH(Y), "NumPy": Y, "list": Y.tolist()}[given]
    model = estimator().fit(there, y)
    assert_same(model, estimator().fit(X, Y))
    assert TORCH.holds(model.coef_, there)
    assert isinstance(model.classes_, type(there) if given == "torch" else np.ndarray)
    assert TORCH.holds(model.predict(there), there)


@everywhere
@pytest.mark.parametrize("given", [np.asarray, list])
def test_names_as_labels_are_predicted_as_NumPy_strings(dispatch, place, given):
    there = place(X)
    model = estimator().fit(there, given(NAMES[Y]))
    assert place.holds(model.coef_, there)
    assert list(model.classes_) == list(NAMES)
    predicted = model.predict(there)
    assert isinstance(predicted, np.ndarray)
    np.testing.assert_array_equal(predicted, estimator().fit(X, NAMES[Y]).predict(X))
    assert model.score(there, NAMES[Y]) > 0.5


@everywhere
@pytest.mark.parametrize("elsewhere", ["NumPy", "list", "torch", "here"])
def test_weights_may_be_elsewhere_than_X(dispatch, place, elsewhere):
    move = {"NumPy": np.asarray, "list": list, "torch": TORCH, "here": place}[elsewhere]
    model = estimator().fit(place(X), place(Y), sample_weight=move(WEIGHT))
    assert_same(model, estimator().fit(X, Y, sample_weight=WEIGHT))


@everywhere
@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_prediction_needs_the_namespace_of_fit(dispatch, place, method):
    abroad, at_home = estimator().fit(place(X), place(Y)), estimator().fit(X, Y)
    with pytest.raises(ValueError, match="must use the same namespace"):
        getattr(abroad, method)(X)
    with pytest.raises(ValueError, match="must use the same namespace"):
        getattr(at_home, method)(place(X))


def test_without_dispatch_tensors_become_NumPy():
    model = estimator().fit(TORCH(X), TORCH(Y))
    for array in (model.coef_, model.classes_, model.predict_proba(TORCH(X))):
        assert isinstance(array, np.ndarray)
    assert_same(model, estimator().fit(X, Y), 0)


@everywhere
def test_models_fitted_elsewhere_can_be_pickled(dispatch, place):
    there = place(X)
    model = estimator().fit(there, place(Y))
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        host(again.predict_proba(there)), host(model.predict_proba(there))
    )


@everywhere
def test_to_sklearn_gives_NumPy(dispatch, place):
    model = estimator().fit(place(X), place(Y))
    exported = model.to_sklearn()
    assert isinstance(exported.coef_, np.ndarray)
    np.testing.assert_allclose(
        exported.predict_proba(X), host(model.predict_proba(place(X))), atol=1e-12
    )


# Everything that fit can do


@everywhere
@pytest.mark.parametrize(
    "params",
    [
        {"preconditioner": None},
        {"fit_intercept": False},
        {"l1_ratio": 1.0, "C": 0.05},
        {"l1_ratio": 0.5, "C": 0.1},
        {"C": np.inf},
        {"class_weight": "balanced"},
        {"class_weight": {0: 3.0}},
        {"label_smoothing": 0.1},
        {"momentum": 0.0, "shuffle": False},
        {"schedule": "cosine", "batch_size": 120},
    ],
    ids=str,
)
def test_parameters_mean_the_same_everywhere(dispatch, place, params):
    model = estimator(**params).fit(place(X), place(Y))
    assert_same(model, estimator(**params).fit(X, Y))


@everywhere
def test_lasso_gives_the_same_zeros(dispatch, place):
    params = {"l1_ratio": 1.0, "C": 0.02, "max_iter": 20, "tol": 0}
    coef = host(estimator(**params).fit(place(X), place(Y)).coef_)
    expected = estimator(**params).fit(X, Y).coef_
    assert 0 < np.count_nonzero(expected) < expected.size
    np.testing.assert_array_equal(coef == 0, expected == 0)


@everywhere
def test_soft_targets(dispatch, place):
    model = estimator().fit(place(X), place(SOFT))
    assert_same(model, estimator().fit(X, SOFT))
    assert model.score(place(X), place(SOFT)) == estimator().fit(X, SOFT).score(X, SOFT)


@everywhere
def test_soft_targets_with_class_weights(dispatch, place):
    params = {"class_weight": "balanced"}
    model = estimator(**params).fit(place(X), place(SOFT), sample_weight=place(WEIGHT))
    assert_same(model, estimator(**params).fit(X, SOFT, sample_weight=WEIGHT))


@everywhere
def test_early_stopping(dispatch, place):
    params = {"early_stopping": True, "max_iter": 10, "n_iter_no_change": 2}
    model = estimator(**params).fit(place(X), place(Y))
    expected = estimator(**params).fit(X, Y)
    assert_same(model, expected)
    assert model.validation_scores_ == expected.validation_scores_


@everywhere
def test_validation_data(dispatch, place):
    there = {
        "X_val": place(X[:40]),
        "y_val": place(Y[:40]),
        "sample_weight_val": place(WEIGHT[:40]),
    }
    here = {"X_val": X[:40], "y_val": Y[:40], "sample_weight_val": WEIGHT[:40]}
    model = estimator().fit(place(X), place(Y), **there)
    expected = estimator().fit(X, Y, **here)
    np.testing.assert_allclose(model.validation_scores_, expected.validation_scores_, rtol=1e-8)
    np.testing.assert_allclose(
        model.validation_loss_curve_, expected.validation_loss_curve_, rtol=1e-8
    )


@everywhere
@pytest.mark.parametrize("anew", [False, True], ids=["partial_fit alone", "after fit"])
def test_partial_fit(dispatch, place, anew):
    def trained(move):
        model = estimator()
        if anew:
            model.fit(move(X[:60]), move(Y[:60]))
        for part in (slice(40), slice(40, 80), slice(80, 120)):
            model.partial_fit(
                move(X[part]), move(Y[part]), classes=[0, 1, 2], sample_weight=move(WEIGHT[part])
            )
        return model

    model, expected = trained(place), trained(np.asarray)
    assert_same(model, expected)
    assert place.holds(model.coef_, place(X))


@everywhere
def test_warm_start(dispatch, place):
    model = estimator(warm_start=True).fit(place(X), place(Y)).fit(place(X), place(Y))
    expected = estimator(warm_start=True).fit(X, Y).fit(X, Y)
    assert_same(model, expected)


@everywhere
def test_learning_rate_is_found_everywhere(dispatch, place):
    model = estimator(learning_rate="auto").fit(place(X), place(Y))
    expected = estimator(learning_rate="auto").fit(X, Y)
    assert model.learning_rate_ == pytest.approx(expected.learning_rate_, rel=1e-6)


@everywhere
def test_data_far_from_zero(dispatch, place):
    far = X + 1e7
    model = estimator().fit(place(far), place(Y))
    expected = estimator().fit(far, Y)
    assert_same(model, expected, 1e-6)
    np.testing.assert_allclose(
        host(model.predict_proba(place(far))), expected.predict_proba(far), atol=1e-6
    )


@everywhere
def test_X_is_left_as_it_was(dispatch, place):
    there = place(X)
    estimator().fit(there, place(Y)).predict_proba(there)
    np.testing.assert_array_equal(host(there), X)


def test_transposed_and_sliced_tensors(dispatch):
    wide = TORCH(np.ascontiguousarray(np.repeat(X, 2, axis=1).T)).T[:, ::2]
    assert_same(estimator().fit(wide, TORCH(Y)), estimator().fit(X, Y))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_tensors_train_in_float32(dispatch, dtype):
    torch = pytest.importorskip("torch")
    there = torch.asarray(X).to(getattr(torch, dtype))
    model = estimator().fit(there, TORCH(Y))
    assert model.coef_.dtype == torch.float32
    assert_same(model, estimator().fit(there.to(torch.float32).numpy(), Y), 1e-4)


# A backend asked for by name


def test_backend_numpy_gives_results_where_X_is(dispatch):
    there = TORCH(X)
    model = estimator(backend="numpy").fit(there, TORCH(Y))
    assert_same(model, estimator().fit(X, Y), 0)
    for array in (model.coef_, model.intercept_, model.predict_proba(there)):
        assert TORCH.holds(array, there)
    model.partial_fit(there, TORCH(Y))
    assert TORCH.holds(model.coef_, there)
    assert_same(model, estimator().fit(X, Y).partial_fit(X, Y), 0)


def test_backend_cupy_without_cupy_names_the_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "array_api_compat.cupy", raising=False)
    with pytest.raises(ImportError) as caught:
        estimator(backend="cupy").fit(X, Y)
    for part in ("backend='cupy'", "skmax[cuda12]", "skmax[cuda13]", "backend='numpy'"):
        assert part in str(caught.value)


def test_backend_cupy_without_a_device_says_so(monkeypatch):
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.0.1"
    cupy.cuda = types.SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    # array-api-compat wraps the names of CuPy itself, which the module above lacks.
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", types.ModuleType("wrapped"))
    with pytest.raises(RuntimeError) as caught:
        estimator(backend="cupy").fit(X, Y)
    for part in ("CUDA device", "14.0.1", "finds none", "nvidia-smi", "backend='numpy'"):
        assert part in str(caught.value)


@pytest.mark.parametrize("params", [{}, {"backend": "numpy"}], ids=["auto", "numpy"])
def test_sparse_X_under_dispatch_is_computed_by_NumPy(dispatch, params):
    X_sparse = sparse.csr_array(np.where(np.abs(X) > 1, X, 0))
    model = estimator(**params).fit(X_sparse, Y)
    assert isinstance(model.coef_, np.ndarray)
    with sklearn.config_context(array_api_dispatch=False):
        assert_same(model, estimator().fit(X_sparse, Y), 0)


EXTRAS = ["cupy", "matplotlib", "rich", "pooch", "torch", "pandas"]
SMALL_FIT = """
    import numpy as np
    X, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3
    print(skmax.SoftmaxRegression(solver='sgd', max_iter=2).fit(X, y).predict_proba(X).shape)
"""


def output_of(*parts):
    """What a script prints in a Python process of its own."""
    script = "".join(textwrap.dedent(part) for part in parts)
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("after", ["", SMALL_FIT], ids=["import", "fit"])
def test_no_extra_is_imported(after):
    # scikit-learn imports pandas and rich itself, where they are installed.
    before = f"""
    import sys
    import sklearn.callback, sklearn.linear_model, sklearn.model_selection
    extras = [name for name in {EXTRAS} if name not in sys.modules]
    import skmax
    """
    printed = output_of(before, after, "print([name for name in extras if name in sys.modules])")
    assert printed.splitlines()[-1] == "[]"


def test_no_extra_is_needed():
    before = f"""
    import sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {EXTRAS}:
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Missing())
    import skmax
    """
    assert output_of(before, SMALL_FIT) == "(60, 3)\n"


# One thread of BLAS


BLAS = ThreadpoolController().select(user_api="blas").lib_controllers


def blas_limits():
    return [library.num_threads for library in BLAS]


@pytest.fixture
def two_threads(monkeypatch):
    """BLAS with two threads, and a lock that is soon given up."""
    monkeypatch.setattr(threads, "_PATIENCE", 0.02)
    with threadpool_limits(2, user_api="blas"):
        assert set(blas_limits()) == {2}
        yield


def limited():
    """Tokens one after the other, within each other, and around what fails."""
    token = OneBlasThread()
    with suppress(ZeroDivisionError), token:
        assert set(blas_limits()) == {1}
        1 / 0  # noqa: B018
    token.__exit__()  # once more
    for _ in range(2):
        with OneBlasThread(), OneBlasThread():
            pass
        assert set(blas_limits()) == {2}


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line of threads.py, or of what it calls."""

    def __init__(self, n):
        self.left, self.line, self.inside = n, None, 0

    def __call__(self, frame, event, arg):
        ours = frame.f_code.co_filename == threads.__file__
        if not ours and not self.inside:
            return None
        self.inside += event == "call"
        self.inside -= event == "return"
        if event == "line":
            self.left -= 1
            if self.left < 0:
                self.line = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self


def interrupted(n):
    """Where the n-th line was, at which this was interrupted; None if it has fewer."""
    interrupt, before = Interrupt(n), sys.gettrace()
    try:
        sys.settrace(interrupt)
        limited()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return interrupt.line


def test_an_interrupt_at_any_line_leaves_blas_as_it_was(two_threads, monkeypatch):
    """Where it comes while a token is deleted, it is reported and not raised."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    seen = set()
    for n in count():
        line = interrupted(n)
        if line is None:
            break
        seen.add(line)
        assert set(blas_limits()) == {2}, line
        assert threads._holders == {}, line
        limited()
        limited()
        assert set(blas_limits()) == {2}, line
    functions = (threads._enter, threads._leave, threads._limit, threads._restore)
    lines = {line for each in functions for *_, line in each.__code__.co_lines()}
    starts = {each.__code__.co_firstlineno for each in functions}
    assert {f"threads.py:{line}" for line in lines - starts - {None}} <= seen


def test_blas_is_limited_until_the_last_of_several_threads_is_done(two_threads):
    """Also if that is not the one that came first, which threadpoolctl lets alone set limits."""
    inside, leave = threading.Event(), threading.Event()

    def last():
        with OneBlasThread():
            inside.set()
            leave.wait()

    other = threading.Thread(target=last)
    with OneBlasThread():
        other.start()
        inside.wait()
    assert set(blas_limits()) == {1}
    leave.set()
    other.join()
    assert set(blas_limits()) == {2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("where", ["inside", "at the lock"])
def test_a_child_of_a_process_with_a_limiting_thread_is_not_limited(where):
    printed = output_of(f"""
        import os, threading, time, warnings
        from threadpoolctl import threadpool_info, threadpool_limits
        from skmax.backends import threads

        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        threads._PATIENCE = 20
        inside, leave = threading.Event(), threading.Event()

        def limits():
            return {{i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}}

        def limit():
            with threads.OneBlasThread():
                if {where!r} == "at the lock":
                    threads._lock.acquire()
                inside.set()
                leave.wait()
                if {where!r} == "at the lock":
                    threads._lock.release()

        threadpool_limits(2, user_api="blas")
        thread = threading.Thread(target=limit, daemon=True)
        thread.start()
        inside.wait()
        start = time.monotonic()
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0
            leave.set()
            thread.join()
            print(limits())
        else:
            try:
                assert limits() == {{2}}
                with threads.OneBlasThread():
                    assert limits() == {{1}}
                assert limits() == {{2}}
                assert time.monotonic() - start < 10
                os._exit(0)
            finally:
                os._exit(1)
    """)
    assert printed == "{2}\n"


def test_a_child_forked_inside_is_limited_until_it_leaves():
    printed = output_of("""
        import os
        from threadpoolctl import threadpool_info, threadpool_limits
        from skmax.backends import threads

        def limits():
            return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}

        threadpool_limits(2, user_api="blas")
        with threads.OneBlasThread():
            child = os.fork()
            assert limits() == {1}
        assert limits() == {2}
        if child:
            assert os.waitpid(child, 0)[1] == 0
            print("both")
        else:
            os._exit(0)
    """)
    assert printed == "both\n"


@pytest.fixture
def four_threads(monkeypatch):
    """As many threads, whatever the processor has."""
    monkeypatch.setattr(threads, "n_threads", lambda: 4)
    with ThreadPoolExecutor(3) as helpers:
        monkeypatch.setattr(threads, "_helpers", helpers)
        yield


def test_threads_share_work_and_results_are_in_order(four_threads):
    """All four have to be at work at once, or none gets on."""
    together = threading.Barrier(4)

    def work(item):
        if item < 4:
            together.wait(10)
        return item**2, threading.get_ident()

    squares, workers = zip(*threads.shared(work, range(20)), strict=True)
    assert squares == tuple(i**2 for i in range(20))
    assert len(set(workers[:4])) == 4
    assert threading.get_ident() in workers


@pytest.mark.parametrize("fails", range(8))
def test_what_an_item_raises_reaches_the_caller(four_threads, fails):
    together = threading.Barrier(4)

    def work(item):
        if item < 4:
            together.wait(10)
        return [][item] if item == fails else item

    with pytest.raises(IndexError, match="list index out of range"):
        threads.shared(work, range(8))


def test_nothing_is_at_work_after_an_interrupt(four_threads):
    """Helpers end what they do, and begin nothing else."""
    together, begun, ended = threading.Barrier(4), [], []

    def work(item):
        begun.append(item)
        together.wait(10)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.05)
        ended.append(item)

    with pytest.raises(KeyboardInterrupt):
        threads.shared(work, range(100))
    assert len(begun) == 4
    assert len(ended) == 3
    time.sleep(0.1)
    assert len(begun) == 4


def test_work_within_work_waits_for_nobody(four_threads, monkeypatch):
    """There may be fewer threads than are asked for."""
    with ThreadPoolExecutor(1) as one:
        monkeypatch.setattr(threads, "_pool", lambda: one)
        sums = threads.shared(lambda i: sum(threads.shared(lambda j: i * j, range(9))), range(9))
    assert sums == [36 * i for i in range(9)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_threads_of_its_own():
    printed = output_of("""
        import os, signal, warnings
        from skmax.backends import threads

        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        threads.n_threads = os.cpu_count = lambda: 4
        assert threads.shared(abs, [-1, -2, -3]) == [1, 2, 3]
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0
            print("both")
        else:
            signal.alarm(20)
            together = threads.threading.Barrier(4)
            threads.shared(lambda item: together.wait(10), range(4))
            os._exit(0)
    """)
    assert printed == "both\n"

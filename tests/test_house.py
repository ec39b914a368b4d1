"""The house: what modules may import, how long functions are, what is documented."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import statistics
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from sklearn.model_selection import GridSearchCV
from sklearn.utils._param_validation import InvalidParameterError

import skmax
from skmax import SoftmaxRegression, _sklearn
from skmax.hyperparameters import Hyperparameters

ROOT = Path(skmax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A module imports only what ranks below it; modules of the same rank may use one another as long
# as there is no cycle.
RANKS = {
    "_sklearn": 0,
    "annotations": 0,
    "messages": 0,
    "hyperparameters": 0,
    "backends": 1,
    "policy": 1,
    "data": 2,
    "problem": 3,
    "kernels": 4,
    "objective": 5,
    "duality": 6,
    "solvers": 7,
    "ending": 8,
    "training": 8,
    "validation": 8,
    "stopping": 9,
    "callbacks": 9,
    "posing": 9,
    "outputs": 9,
    "fitted": 10,
    "estimator": 11,
    "dask": 12,
    "search": 12,
    "versions": 12,
    "plotting": 13,
    "": 13,
    "__main__": 13,
}
LEAVES = {"datasets"}


def name_of(path):
    """The dotted name of a file's module."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def room(module):
    """The room of the house that a module is in: the part after `skmax`."""
    return module.partition(".")[2].partition(".")[0]


def imports(module):
    """All modules of skmax that a module imports, inside functions and type checks too."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = package.rsplit(".", node.level - 1)[0]
                origin = f"{base}.{origin}" if origin else base
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                found.add(submodule if submodule in MODULES else origin)
    return {name for name in found if name.partition(".")[0] == "skmax"}


def test_the_import_reader_sees_every_kind_of_import(tmp_path, monkeypatch):
    path = tmp_path / "x.py"
    path.write_text(
        "import skmax.problem\n"
        "from skmax import plotting, SoftmaxRegression\n"
        "from . import sgd\n"
        "from ..objective import penalty\n"
        "def f():\n    from skmax.backends.numpy import NumpyBackend\n"
    )
    monkeypatch.setitem(MODULES, "skmax.solvers.x", path)
    assert imports("skmax.solvers.x") == {
        "skmax",
        "skmax.backends.numpy",
        "skmax.objective",
        "skmax.plotting",
        "skmax.problem",
        "skmax.solvers.sgd",
    }


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    here = room(module)
    assert here in RANKS or here in LEAVES, f"{module} has no place in the house"
    for imported in imports(module):
        there = room(imported)
        if there == here:
            continue
        if there in ("_sklearn", "annotations"):
            continue
        assert here not in LEAVES, f"{module} is a leaf, but imports {imported}"
        if there in LEAVES:
            assert here in ("", "__main__"), f"{module} imports the leaf {imported}"
        else:
            assert RANKS[there] <= RANKS[here], f"{module} imports {imported}, which is above it"


def test_imports_make_no_cycle():
    finished = set()

    def visit(module, path):
        assert module not in path, " imports ".join([*path[path.index(module) :], module])
        if module in finished or module not in MODULES:
            return
        for imported in sorted(imports(module)):
            # Running a package's __init__ on the way to its module is no use of the package.
            if imported != module:
                visit(imported, [*path, module])
        finished.add(module)

    for module in MODULES:
        visit(module, [])


def _backend_checks(tree):
    """Names of backends that a syntax tree asks isinstance or issubclass about."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "isinstance",
            "issubclass",
        ):
            for part in ast.walk(node.args[1]):
                name = getattr(part, "id", getattr(part, "attr", ""))
                if name.endswith("Backend"):
                    yield name


@pytest.mark.parametrize("module", MODULES)
def test_only_resolve_knows_which_backend_there_is(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    if module != "skmax.backends":
        assert list(_backend_checks(tree)) == []


def test_the_backend_check_finds_what_it_looks_for():
    tree = ast.parse("isinstance(b, (int, backends.CupyBackend)) or issubclass(c, NumpyBackend)")
    assert sorted(_backend_checks(tree)) == ["CupyBackend", "NumpyBackend"]


# What is private in scikit-learn


def _private_imports(tree):
    """What a syntax tree imports from scikit-learn that its makers may move in any version."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == "sklearn" and any(part.startswith("_") for part in rest):
                yield name


@pytest.mark.parametrize("module", [module for module in MODULES if module != "skmax._sklearn"])
def test_only_one_file_imports_what_is_private_in_scikit_learn(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert list(_private_imports(tree)) == [], "import it in skmax/_sklearn.py, with a test"


def test_the_reader_of_private_imports_finds_what_it_looks_for():
    tree = ast.parse(
        "import sklearn.utils._encode, sklearn.utils\n"
        "from sklearn.base import _fit_context, clone\n"
        "def f():\n    from sklearn.utils._array_api import device as d\n"
        "from sklearn.utils import _array_api\n"
        "from skmax._sklearn import _encode\n"
    )
    assert sorted(_private_imports(tree)) == [
        "sklearn.base._fit_context",
        "sklearn.utils._array_api",
        "sklearn.utils._array_api.device",
        "sklearn.utils._encode",
    ]


def test_what_is_private_is_what_is_used():
    used = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "skmax._sklearn":
                used.update(alias.name for alias in node.names)
    assert used == set(_sklearn.__all__)
    imported = _private_imports(ast.parse(MODULES["skmax._sklearn"].read_text(encoding="utf-8")))
    names_of_attributes = {"_OF_A_RUNNING_FIT"}
    assert {name.rpartition(".")[2] for name in imported} == used - names_of_attributes


def test_scikit_learn_is_capped_below_its_next_minor_version():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    requirements = map(Requirement, project["project"]["dependencies"])
    (allowed,) = (each.specifier for each in requirements if each.name == "scikit-learn")
    (lowest,) = (each.version for each in allowed if each.operator == ">=")
    major, minor = map(int, lowest.split(".")[:2])
    assert allowed.contains(f"{major}.{minor}.99")
    for version in (f"{major}.{minor + 1}.dev0", f"{major}.{minor + 1}.0", f"{major + 1}.0"):
        assert not allowed.contains(version, prereleases=True)


# The length of functions


def _lengths(tree):
    """Lines of the bodies of functions, docstrings left out, with the functions' names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield (body[-1].end_lineno - body[0].lineno + 1 if body else 0), node.name


def test_functions_are_short_enough_to_see_whole():
    functions = [
        (length, module, name)
        for module, path in MODULES.items()
        for length, name in _lengths(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert [function for function in functions if function[0] > 50] == []
    assert statistics.median(length for length, *_ in functions) < 12


def test_the_reader_of_lengths_leaves_out_docstrings():
    tree = ast.parse(
        'def f(\n    a,\n):\n    """Of\n\n    three lines."""\n    def g():\n        """One."""\n'
        "    # why\n    return (\n        g\n    )\n"
    )
    assert list(_lengths(tree)) == [(6, "f"), (0, "g")]


# What is public


def _public_names():
    """Names of modules, and of what they make public."""
    for module in ("skmax", "skmax.dask", "skmax.datasets", "skmax.plotting"):
        for name in importlib.import_module(module).__all__:
            yield module, name


def _public_objects():
    for module, name in _public_names():
        yield pytest.param(
            getattr(importlib.import_module(module), name, None), id=f"{module}.{name}"
        )


def _methods(cls):
    for name, member in vars(cls).items():
        if not name.startswith("_") and (inspect.isfunction(member) or hasattr(member, "__func__")):
            yield name, getattr(member, "__func__", member)


def _section(docstring, title):
    """The names that a section of a numpydoc docstring describes."""
    lines = inspect.cleandoc(docstring).splitlines()
    start = next(
        (
            i
            for i, line in enumerate(lines[:-1])
            if line == title and set(lines[i + 1]) == {"-"} and len(lines[i + 1]) == len(title)
        ),
        None,
    )
    if start is None:
        return {}
    entries, current = {}, None
    for i, line in enumerate(lines[start + 2 :], start + 2):
        if i + 1 < len(lines) and lines[i + 1] and set(lines[i + 1]) == {"-"}:
            break
        if line and not line.startswith(" "):
            head, _, kind = line.partition(":")
            current = [name.strip(" *") for name in head.split(",")]
            entries.update((name, kind.strip()) for name in current)
    return entries


def _arguments(function):
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


@pytest.mark.parametrize("public", list(_public_objects()))
def test_what_is_public_exists_and_is_documented(public):
    assert public is not None
    assert set(_arguments(public)) <= set(_section(public.__doc__ or "", "Parameters"))


def _public_methods():
    for parameter in _public_objects():
        (public,) = parameter.values
        if inspect.isclass(public):
            for name, method in _methods(public):
                # The hooks of callbacks are described by scikit-learn's protocol.
                if not (name.startswith("on_fit_task") or name in ("setup", "teardown")):
                    yield pytest.param(method, id=method.__qualname__)


@pytest.mark.parametrize("method", list(_public_methods()))
def test_public_methods_are_documented(method):
    assert method.__doc__
    assert set(_arguments(method)) <= set(_section(method.__doc__, "Parameters"))
    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    if any(isinstance(node, ast.Return) and node.value is not None for node in ast.walk(tree)):
        assert _section(method.__doc__, "Returns")


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))


def test_all_modules_can_be_imported():
    for info in pkgutil.walk_packages([str(ROOT)], "skmax."):
        if not info.name.endswith(("__main__", "libskmax")):  # a library, which only looks like one
            importlib.import_module(info.name)


def test_the_reference_has_all_that_is_public():
    pages = Path(__file__).parents[1] / "docs"
    if not pages.exists():
        pytest.skip("the documentation is not here")
    module, found = "", []
    for line in (pages / "reference.rst").read_text(encoding="utf-8").splitlines():
        module = line.removeprefix(".. currentmodule:: ") if "currentmodule" in line else module
        if re.fullmatch(r"   \w+", line):
            found.append((module, line.strip()))
    assert sorted(found) == sorted(_public_names())


def _annotations(cls):
    """Annotations of public attributes, inherited ones too, as they are written."""
    return {
        name: kind
        for parent in cls.__mro__
        for name, kind in inspect.get_annotations(parent).items()
        if parent.__module__.startswith("skmax") and name.endswith("_") and name[0] != "_"
    }


@pytest.mark.parametrize("public", list(_public_objects()))
def test_public_signatures_are_typed(public):
    functions = [public] if inspect.isfunction(public) else [public.__init__]
    if inspect.isclass(public):
        functions += [method for _, method in _methods(public) if not _is_made(method)]
    for function in functions:
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, function
        for name, parameter in signature.parameters.items():
            if name not in ("self", "cls"):
                assert parameter.annotation is not inspect.Parameter.empty, (function, name)


def _is_made(method):
    """Whether a method is made by scikit-learn, for metadata routing."""
    return method.__name__.endswith("_request")


@pytest.mark.parametrize(
    "public", [public for public in _public_objects() if inspect.isclass(public.values[0])]
)
def test_attributes_are_documented_and_typed_alike(public):
    documented = set(_section(public.__doc__ or "", "Attributes"))
    if public.__name__ != "DaskSoftmaxRegression":  # which says: all others are inherited
        # What is inherited from scikit-learn as a property has no annotation.
        computed = {name for name in documented if hasattr(public, name)}
        assert documented - computed == set(_annotations(public))


def test_the_search_takes_what_a_grid_search_takes():
    ours, theirs = (
        {
            name: (parameter.kind, repr(parameter.default))
            for name, parameter in inspect.signature(search).parameters.items()
        }
        for search in (skmax.BatchedGridSearchCV, GridSearchCV)
    )
    assert ours == theirs


# SoftmaxRegression

DOCUMENTED = _section(SoftmaxRegression.__doc__, "Parameters")
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(SoftmaxRegression).parameters.items()
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_parameter_is_documented_with_its_default(name):
    written = DOCUMENTED[name].rpartition("default=")[2]
    assert ast.literal_eval(written) == DEFAULTS[name]


def test_only_parameters_are_documented_as_such_in_their_order():
    assert list(DOCUMENTED) == list(DEFAULTS)


@pytest.mark.parametrize("name", DEFAULTS)
def test_parameter_is_constrained(name):
    assert set(SoftmaxRegression._parameter_constraints) == set(DEFAULTS)
    X, y = np.array([[0.0], [1.0]]), [0, 1]
    with pytest.raises(InvalidParameterError, match=f"'{name}'"):
        SoftmaxRegression(**{name: object()}).fit(X, y)


@pytest.mark.parametrize("name", DEFAULTS)
def test_parameter_is_keyword_only(name):
    kind = inspect.signature(SoftmaxRegression).parameters[name].kind
    assert kind is inspect.Parameter.KEYWORD_ONLY


def test_fitted_attributes_and_their_documentation_agree():
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=["a", "b", "c"])
    y = np.arange(60) % 3
    model = SoftmaxRegression(max_iter=2, early_stopping=True, random_state=0)
    model.fit(X, y, X_val=X, y_val=y)
    fitted = {name for name in vars(model) if re.fullmatch(r"[a-z].*[^_]_", name, re.I)}
    assert fitted == set(_section(SoftmaxRegression.__doc__, "Attributes"))


def test_hyperparameters_are_those_of_the_estimator_with_their_defaults():
    """All but where fits start from and the random state, which never travel."""
    record = {field.name: field.default for field in dataclasses.fields(Hyperparameters)}
    assert record == {
        name: value
        for name, value in DEFAULTS.items()
        if name not in ("warm_start", "random_state")
    }
    assert Hyperparameters.of(SoftmaxRegression(C=3, tol=0)) == Hyperparameters(C=3, tol=0)

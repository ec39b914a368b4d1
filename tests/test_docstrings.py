"""Public docstrings are what numpydoc calls valid, with examples."""

import importlib
import inspect

import pytest

validate = pytest.importorskip("numpydoc.validate").validate

MODULES = ("skmax", "skmax.dask", "skmax.datasets", "skmax.plotting")

# What numpydoc asks for, and skmax does not do.
NOT_ASKED = {
    "ES01",  # no extended summary: where a line and the parameters say all, nothing is added
    "RT02",  # a returned value has a name, as in scikit-learn, by which its text can call it
    "SA01",  # no See Also: a method's relatives are on the same page
}
# Who calls these is scikit-learn, so that an example would show nothing that a user does.
HOOKS = {"setup", "teardown", "on_fit_task_begin", "on_fit_task_end"}


def _public_names():
    """All public names with their modules, methods too: those that skmax defines."""
    for module in MODULES:
        namespace = importlib.import_module(module)
        for name in namespace.__all__:
            public = getattr(namespace, name)
            yield f"{module}.{name}"
            members = vars(public) if inspect.isclass(public) else {}
            for member, value in members.items():
                if isinstance(value, property):
                    continue  # of the class's section Attributes
                # What decorates methods by scikit-learn's metadata routing is not written here.
                if not member.startswith("_") and not member.endswith("_request"):
                    yield f"{module}.{name}.{member}"


@pytest.mark.parametrize("name", list(_public_names()))
def test_docstring_is_valid(name):
    asked = set(NOT_ASKED)
    if name.rpartition(".")[2] in HOOKS:
        asked.add("EX01")
    if name == "skmax.dask.DaskSoftmaxRegression.partial_fit":
        asked.add("EX01")  # there is none
    found = [error for error in validate(name)["errors"] if error[0] not in asked]
    assert found == []


@pytest.mark.parametrize("code", sorted(NOT_ASKED))
def test_no_more_is_let_off_than_must_be(code):
    names = list(_public_names())
    assert any(code in dict(validate(name)["errors"]) for name in names)

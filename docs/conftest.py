"""Which pages pytest runs as doctests: all whose libraries are installed."""

from importlib.util import find_spec

import pytest

collect_ignore = ["conf.py", "examples", "auto_examples", "reference", "_build"]
# Of the extra `docs`; the tests' own environment need not have them.
_LIBRARIES = {
    "guide/probabilities.rst": ["mapie"],
    "interoperability.rst": ["imblearn", "onnxruntime", "optuna", "shap", "skl2onnx", "skops"],
    "migration.rst": ["statsmodels", "torch"],
}
collect_ignore += [
    page
    for page, libraries in _LIBRARIES.items()
    if not all(find_spec(library) for library in libraries)
]


def pytest_collection_modifyitems(items):
    """Let pass what libraries warn of by themselves; shap, when it is imported."""
    for item in items:
        if item.path.name == "interoperability.rst":
            item.add_marker(
                pytest.mark.filterwarnings(
                    "ignore:The set_(bad|over|under) function:PendingDeprecationWarning"
                )
            )

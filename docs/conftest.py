"""Which pages pytest runs as doctests: all whose libraries are installed."""

from importlib.util import find_spec

collect_ignore = ["conf.py", "examples", "auto_examples", "reference", "_build"]
# Of the extra `docs`; the tests' own environment need not have them.
_LIBRARIES = {"guide/probabilities.rst": ["mapie"], "interoperability.rst": ["skl2onnx", "shap"]}
collect_ignore += [
    page
    for page, libraries in _LIBRARIES.items()
    if not all(find_spec(library) for library in libraries)
]

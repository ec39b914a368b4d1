"""How Sphinx builds the documentation: `python -m sphinx -W docs docs/_build`."""

import os
import warnings

import skmax

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models come with their packages
warnings.filterwarnings("error", module="skmax")

project = "skmax"
author = "the skmax developers"
version = release = skmax.__version__

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "numpydoc",
    "sphinx-mathjax-offline",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "examples", "auto_examples/**.ipynb", "auto_examples/**.json"]
toc_object_entries_show_parents = "hide"
nitpicky = True

# Inventories of other projects are kept here, so that the build needs no network.
intersphinx_mapping = {
    name: (url, f"inventories/{name}.inv")
    for name, url in {
        "python": "https://docs.python.org/3",
        "numpy": "https://numpy.org/doc/stable",
        "scipy": "https://docs.scipy.org/doc/scipy",
        "sklearn": "https://scikit-learn.org/stable",
        "matplotlib": "https://matplotlib.org/stable",
    }.items()
}

autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_show_inherited_class_members = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

plot_html_show_source_link = False
plot_html_show_formats = False
plot_formats = [("png", 120)]
plot_rcparams = {"figure.figsize": (6.4, 3.6), "figure.constrained_layout.use": True}
plot_apply_rcparams = True

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "show_signature": False,
    "remove_config_comments": True,
    "reference_url": {"skmax": None},
    "backreferences_dir": "reference/examples",
    "doc_module": ("skmax",),
    "write_computation_times": False,
    "subsection_order": [
        f"examples/{part}" for part in ("learning", "labels", "probabilities", "data")
    ],
    "within_subsection_order": "FileNameSortKey",
}

templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_title = "skmax"
html_static_path = ["_static"]
html_css_files = ["skmax.css"]
html_show_sourcelink = False
html_sidebars = {
    page: [] for page in ("get_started", "migration", "interoperability")
}  # these have no siblings
html_theme_options = {
    "logo": {"text": "skmax"},
    "header_links_before_dropdown": 6,
    "navbar_persistent": [],
    "navbar_end": ["search-button", "theme-switcher"],
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}

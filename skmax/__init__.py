"""Softmax regression for scikit-learn."""

from skmax.estimator import SoftmaxRegression
from skmax.search import BatchedGridSearchCV
from skmax.versions import show_versions

__all__ = ["BatchedGridSearchCV", "SoftmaxRegression", "show_versions"]
__version__ = "0.1.0"

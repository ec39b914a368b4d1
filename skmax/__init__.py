"""Softmax regression for scikit-learn."""

from skmax.estimator import SoftmaxRegression
from skmax.search import BatchedGridSearchCV

__all__ = ["BatchedGridSearchCV", "SoftmaxRegression"]
__version__ = "0.1.0"

"""Softmax regression for scikit-learn."""

from skmax.estimator import SoftmaxRegression

__all__ = ["SoftmaxRegression"]
__version__ = "0.1.0"

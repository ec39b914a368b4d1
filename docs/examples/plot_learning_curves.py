"""
Learning curves, and when to stop
=================================

With few rows and many features, a model can learn its training data by heart. Its loss on them goes
on falling, while on other data it has long begun to rise: it overfits. Learning curves show when
that happens, and early stopping makes something of it: it keeps the weights of the best epoch.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import PolynomialFeatures

from skmax import SoftmaxRegression
from skmax.plotting import TrainingCurveDisplay

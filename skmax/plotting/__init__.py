"""Pictures of a softmax regression: how it trained, what it learned, where it errs, what C does.

The displays follow scikit-learn's conventions: `from_estimator` and `from_predictions` compute and
draw, `plot` draws again. Matplotlib is imported when something is drawn, not with this module.
For the confusion matrix there is :class:`sklearn.metrics.ConfusionMatrixDisplay`.
"""

from skmax.plotting.class_weights import ClassWeightsDisplay
from skmax.plotting.live_training_curve import LiveTrainingCurve
from skmax.plotting.prediction_grid import PredictionGridDisplay
from skmax.plotting.regularization_path import RegularizationPathDisplay
from skmax.plotting.training_curve import TrainingCurveDisplay

__all__ = [
    "ClassWeightsDisplay",
    "LiveTrainingCurve",
    "PredictionGridDisplay",
    "RegularizationPathDisplay",
    "TrainingCurveDisplay",
]

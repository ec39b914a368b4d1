"""Hyperparameter search that trains candidates and folds side by side."""

from skmax.search.grid_search import BatchedGridSearchCV

__all__ = ["BatchedGridSearchCV"]

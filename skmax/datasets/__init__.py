"""Loaders of data sets."""

from .fashion_mnist import fetch_fashion_mnist

__all__ = ["fetch_fashion_mnist"]

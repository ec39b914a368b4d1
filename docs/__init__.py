"""A package, so that the conftest.py here and that of the tests have two names."""

"""Solvers: generators of epochs, and what they choose their steps by."""

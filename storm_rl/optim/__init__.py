"""Stochastic optimisers with recursive momentum. Knows tensors only."""

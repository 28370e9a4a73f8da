"""Stochastic optimisers with recursive momentum. Knows tensors only."""

from storm_rl.optim.algorithms import STORM, MetaSTORM, STORMPlus

__all__ = ["STORM", "MetaSTORM", "STORMPlus"]

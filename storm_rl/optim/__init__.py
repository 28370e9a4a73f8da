"""Stochastic optimisers with recursive momentum. Knows tensors only."""

from storm_rl.optim.meta_storm import MetaSTORM
from storm_rl.optim.storm import STORM
from storm_rl.optim.storm_plus import STORMPlus

__all__ = ["STORM", "MetaSTORM", "STORMPlus"]

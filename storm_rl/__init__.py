"""STORM+ for reinforcement learning, as Stable-Baselines3 algorithms and PyTorch optimisers."""

from storm_rl.episodic import DEFPG, GPOMDP, PAGEPG, SRVRPG, STORMPG, SVRPG
from storm_rl.storm_plus_pg import STORMPlusPG
from storm_rl.version import __version__

__all__ = ["DEFPG", "GPOMDP", "PAGEPG", "SRVRPG", "STORMPG", "SVRPG", "STORMPlusPG", "__version__"]

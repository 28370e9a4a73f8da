"""STORM+ for reinforcement learning, as Stable-Baselines3 algorithms and PyTorch optimisers."""

from storm_rl.storm_plus_pg import STORMPlusPG
from storm_rl.version import __version__

__all__ = ["STORMPlusPG", "__version__"]

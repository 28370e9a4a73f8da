"""STORM+ for reinforcement learning, as Stable-Baselines3 algorithms and PyTorch optimisers."""

from storm_rl.version import __version__

__all__ = ["__version__"]

"""SVRPG: stochastic variance-reduced policy gradient (Papini et al., ICML 2018), practical variant."""

from storm_rl.svrpg.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from storm_rl.svrpg.svrpg import SVRPG

__all__ = ["SVRPG", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]

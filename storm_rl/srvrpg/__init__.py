"""SRVR-PG: recursive variance reduction by epochs (Xu, Gao, Gu, ICLR 2020)."""

from storm_rl.srvrpg.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from storm_rl.srvrpg.srvrpg import SRVRPG

__all__ = ["SRVRPG", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]

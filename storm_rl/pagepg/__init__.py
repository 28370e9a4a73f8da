"""PAGE-PG: a coin decides between large and small batches (Gargiani et al., ICML 2022)."""

from storm_rl.pagepg.pagepg import PAGEPG
from storm_rl.pagepg.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["PAGEPG", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]

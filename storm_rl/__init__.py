"""STORM+ for reinforcement learning, as Stable-Baselines3 algorithms and PyTorch optimisers."""

from storm_rl.defpg import DEFPG
from storm_rl.gpomdp import GPOMDP
from storm_rl.pagepg import PAGEPG
from storm_rl.srvrpg import SRVRPG
from storm_rl.storm_plus_pg import STORMPlusPG
from storm_rl.stormpg import STORMPG
from storm_rl.svrpg import SVRPG
from storm_rl.version import __version__

__all__ = ["DEFPG", "GPOMDP", "PAGEPG", "SRVRPG", "STORMPG", "SVRPG", "STORMPlusPG", "__version__"]

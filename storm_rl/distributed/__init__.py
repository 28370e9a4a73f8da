"""STORM+ policy gradient with actors beyond this process, by Ray (extra ``ray``)."""

from storm_rl.distributed.distributed_storm_plus_pg import DistributedSTORMPlusPG
from storm_rl.distributed.ray_vec_env import RayVecEnv

__all__ = ["DistributedSTORMPlusPG", "RayVecEnv"]

"""Policy gradients over whole trajectories: SVRPG and its siblings."""

from storm_rl.episodic.algorithms import DEFPG, GPOMDP, PAGEPG, SRVRPG, STORMPG, SVRPG

__all__ = ["DEFPG", "GPOMDP", "PAGEPG", "SRVRPG", "STORMPG", "SVRPG"]

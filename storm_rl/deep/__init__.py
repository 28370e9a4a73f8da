"""Policies deeper than two layers: starts at criticality, residual and reversible networks, and what signals do there.

Nothing else of the package imports this room.
"""

from storm_rl.deep.criticality import CRITICAL, critical_, propagation
from storm_rl.deep.features import DeepFeatures
from storm_rl.deep.momentum import momentum_residual

__all__ = ["CRITICAL", "DeepFeatures", "critical_", "momentum_residual", "propagation"]

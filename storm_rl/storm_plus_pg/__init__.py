"""STORM+ policy gradient."""

from storm_rl.storm_plus_pg.storm_plus_pg import STORMPlusPG

__all__ = ["STORMPlusPG"]

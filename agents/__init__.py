"""The benchmark's contestants: for each, how it is built and with which settings."""

from agents.contestants import CONTESTANTS, FAMILY, Contestant, get_contestant

__all__ = ["CONTESTANTS", "FAMILY", "Contestant", "get_contestant"]

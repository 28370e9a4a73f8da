"""Environments: the benchmark's tasks as data, and small problems whose gradient is known exactly."""

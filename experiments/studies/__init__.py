"""The studies, one module each; every module is a command of ``python -m experiments``."""

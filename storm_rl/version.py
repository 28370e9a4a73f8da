"""The version, in one place: read by setuptools, by the package and by saved results."""

__version__ = "0.1.0"

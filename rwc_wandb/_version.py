"""The version, where setuptools reads it too."""

__version__ = "0.1.0"

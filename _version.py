"""The version of fr-edge."""

__version__ = "0.2.0"

"""The version of the package, for itself and for whoever builds it."""

__version__ = "0.1.0"

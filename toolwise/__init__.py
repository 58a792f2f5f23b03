"""Toolwise: train, prove, promote and serve models that call tools only when they must."""

__version__ = "0.1.0"

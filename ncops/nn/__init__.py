"""Modules for training: ``LinearHead``."""

from .head import LinearHead

__all__ = ["LinearHead"]

"""Sparse latent-variable models and held-out checks of what they found."""

__version__ = "0.1.0"

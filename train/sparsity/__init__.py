"""Sparse training that is more than a recipe's option (see `zoo.masks`): features found by what learns."""

from zoo.train.sparsity.quick_selection import DenoisingAutoencoder, QuickSelection

__all__ = ["DenoisingAutoencoder", "QuickSelection"]

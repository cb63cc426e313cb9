"""Root-mean-square normalisation, with or without a gate."""

from zoo.kernels.rms_norm.op import rms_norm

__all__ = ["rms_norm"]

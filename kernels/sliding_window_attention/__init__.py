"""Causal attention within a sliding window."""

from zoo.kernels.sliding_window_attention.op import sliding_window_attention

__all__ = ["sliding_window_attention"]

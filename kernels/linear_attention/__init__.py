"""Linear attention: plain, with one decay a head, or with one a key channel (gated linear attention)."""

from zoo.kernels.linear_attention.op import LinearAttentionOutput, linear_attention

__all__ = ["LinearAttentionOutput", "linear_attention"]

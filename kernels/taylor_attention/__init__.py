"""Linear attention with the second-order Taylor feature map of the exponential (BASED)."""

from zoo.kernels.taylor_attention.op import TaylorAttentionOutput, taylor_attention
from zoo.kernels.taylor_attention.reference import taylor_features

__all__ = ["TaylorAttentionOutput", "taylor_attention", "taylor_features"]

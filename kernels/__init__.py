"""Operations: pure functions over tensors, each with a reference and fast implementations behind one dispatch."""

from zoo.kernels.binary_matmul import binary_matmul
from zoo.kernels.block_sparse_attention import block_sparse_attention
from zoo.kernels.causal_conv1d import ConvOutput, causal_conv1d
from zoo.kernels.cross_entropy import linear_cross_entropy
from zoo.kernels.deformable_attention_3d import deformable_attention_3d
from zoo.kernels.delta_rule import delta_rule
from zoo.kernels.dispatch import available_implementations, implementation
from zoo.kernels.generalized_delta_rule import generalized_delta_rule
from zoo.kernels.hashed_lookup import hashed_lookup
from zoo.kernels.integer_matmul import bit_serial_products, bit_serial_sums, integer_products
from zoo.kernels.leaky_memory import LeakyMemoryOutput, leaky_memory
from zoo.kernels.linear_attention import LinearAttentionOutput, linear_attention
from zoo.kernels.linear_recurrence import RecurrenceOutput, linear_recurrence
from zoo.kernels.long_conv import butterfly_conv, dft_factors, long_conv, packed_long_conv
from zoo.kernels.lowbit_matmul import lowbit_matmul
from zoo.kernels.minifloat_matmul import minifloat_matmul
from zoo.kernels.mlstm import MLSTMOutput, mlstm
from zoo.kernels.moe import (
    MoEOutput,
    Routing,
    TokenOrder,
    Utilisation,
    expert_utilisation,
    grouped_matmul,
    load_balance_loss,
    moe,
    router_z_loss,
    sort_by_expert,
    top_k_routing,
)
from zoo.kernels.momentum_delta_rule import MomentumDeltaRuleOutput, momentum_delta_rule
from zoo.kernels.rms_norm import rms_norm
from zoo.kernels.rope import rope
from zoo.kernels.row_linear import row_linear
from zoo.kernels.selective_scan import ScanOutput, selective_scan
from zoo.kernels.sliding_window_attention import sliding_window_attention
from zoo.kernels.slstm import SLSTMOutput, slstm
from zoo.kernels.sparse_matmul import sparse_matmul
from zoo.kernels.ssd import SSDOutput, ssd
from zoo.kernels.taylor_attention import TaylorAttentionOutput, taylor_attention, taylor_features

__all__ = [
    "ConvOutput",
    "LeakyMemoryOutput",
    "LinearAttentionOutput",
    "MLSTMOutput",
    "MoEOutput",
    "MomentumDeltaRuleOutput",
    "RecurrenceOutput",
    "Routing",
    "SLSTMOutput",
    "SSDOutput",
    "ScanOutput",
    "TaylorAttentionOutput",
    "TokenOrder",
    "Utilisation",
    "available_implementations",
    "binary_matmul",
    "bit_serial_products",
    "bit_serial_sums",
    "block_sparse_attention",
    "butterfly_conv",
    "causal_conv1d",
    "deformable_attention_3d",
    "delta_rule",
    "dft_factors",
    "expert_utilisation",
    "generalized_delta_rule",
    "grouped_matmul",
    "hashed_lookup",
    "implementation",
    "integer_products",
    "leaky_memory",
    "linear_attention",
    "linear_cross_entropy",
    "linear_recurrence",
    "load_balance_loss",
    "long_conv",
    "lowbit_matmul",
    "minifloat_matmul",
    "mlstm",
    "moe",
    "momentum_delta_rule",
    "packed_long_conv",
    "rms_norm",
    "rope",
    "router_z_loss",
    "row_linear",
    "selective_scan",
    "sliding_window_attention",
    "slstm",
    "sort_by_expert",
    "sparse_matmul",
    "ssd",
    "taylor_attention",
    "taylor_features",
    "top_k_routing",
]

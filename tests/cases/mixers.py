"""Every sequence mixer, in small: what the contract is tested on."""

from __future__ import annotations

import torch

from zoo.layers import CausalAttention, Mamba, Mamba2, Mixer, OffsetRMSNorm, ParallelMixers, RMSNorm
from zoo.layers.attention import (
    CodeMatchedAttention,
    ConvolvedAttention,
    GatedLinearAttention,
    LatentAttention,
    LightningAttention,
    LizardAttention,
    Llama3,
    Retention,
    Rotary,
    RoutingAttention,
    ScatterbrainAttention,
    SlidingWindowAttention,
    SubDimensionAttention,
    TaylorAttention,
)
from zoo.layers.conv import DoubleGatedConv, GatedConv, H3Conv, decaying_kernel
from zoo.layers.depth import ActiveAttention, CausalWindow, SparseActivation
from zoo.layers.memory import (
    HashedAttention,
    MemoryAsContext,
    MemoryAsGate,
    MemoryAsLayer,
    NeuralMemory,
    PersistentAttention,
)
from zoo.layers.moe import SubDimensionRouter
from zoo.layers.ssm import (
    MLSTM,
    S4,
    S4D,
    SLSTM,
    DeltaNet,
    ExpandedMLSTM,
    ExpressiveLeakyMemory,
    FusedGatedDeltaNet,
    GatedDeltaNet,
    GriffinRecurrence,
    KimiDeltaAttention,
    MultiHeadEMA,
    RWKV7Block,
)
from zoo.layers.ssm.hippo import diagonal_inv, diagonal_real
from zoo.layers.ssm.s4d import bilinear

DIM = 24
LENGTH = 29
MIXERS = {
    "mamba": lambda: Mamba(DIM, d_state=4),
    "mamba-narrow": lambda: Mamba(DIM, d_state=3, d_conv=2, dt_rank=5, bias=True, conv_bias=False),
    "mamba2": lambda: Mamba2(DIM, d_state=8, head_dim=8, chunk_size=8),
    "mamba2-groups": lambda: Mamba2(DIM, d_state=4, head_dim=8, num_groups=3, chunk_size=5, dt_limit=(0.01, 0.05)),
    "attention": lambda: CausalAttention(DIM, num_heads=4),
    "attention-grouped": lambda: CausalAttention(DIM, num_heads=6, num_kv_heads=2),
    "attention-no-positions": lambda: CausalAttention(DIM, num_heads=4, rope_base=None),
    "attention-wide": lambda: CausalAttention(DIM, num_heads=3, head_dim=10, scale=0.1),
    "attention-options": lambda: CausalAttention(
        DIM,
        3,
        head_dim=7,
        rotary=Rotary(4, scaling=Llama3(4.0, 8), interleaved=True),
        bias=True,
        out_bias=True,
        q_norm=RMSNorm(7),
        k_norm=OffsetRMSNorm(7),
    ),
    "attention-convolved": lambda: ConvolvedAttention(DIM, 3, head_dim=8, rotary_dim=4, kernel_size=3),
    "attention-code-matched": lambda: CodeMatchedAttention(DIM, 6, 2, None, keys=7, codeword_dim=2, codewords=4),
    "active-attention": lambda: ActiveAttention(DIM, num_heads=6, num_kv_heads=2),
    "sub-dimensions": lambda: SubDimensionAttention(DIM, 4, SubDimensionRouter(DIM, 6, 3, 2), num_kv_heads=2),
    "latent": lambda: LatentAttention(DIM, 4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6),
    "latent-no-positions": lambda: LatentAttention(
        DIM, 4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=5, v_head_dim=6, rope_base=None
    ),
    "taylor": lambda: TaylorAttention(DIM, num_heads=3, feature_dim=5, chunk_size=8),
    "taylor-narrow": lambda: TaylorAttention(DIM, num_heads=1, feature_dim=1, chunk_size=5),
    "sliding-window": lambda: SlidingWindowAttention(DIM, num_heads=3, window=6),
    "sliding-window-grouped": lambda: SlidingWindowAttention(DIM, num_heads=6, window=50, num_kv_heads=2),
    "sliding-window-narrow": lambda: SlidingWindowAttention(DIM, num_heads=3, window=2),
    "sliding-window-wide": lambda: SlidingWindowAttention(DIM, num_heads=3, window=6, head_dim=10),
    "sliding-window-options": lambda: SlidingWindowAttention(
        DIM, num_heads=3, window=6, bias=True, q_norm=RMSNorm(8), k_norm=RMSNorm(8), rotary=Rotary(6)
    ),
    "attention-capped": lambda: CausalAttention(DIM, num_heads=6, num_kv_heads=2, softcap=1.5),
    "sliding-window-capped": lambda: SlidingWindowAttention(DIM, num_heads=3, window=6, softcap=1.5),
    "attention-sinks": lambda: CausalAttention(DIM, num_heads=6, num_kv_heads=2, scale=0.3, sinks=True),
    "attention-sinks-capped": lambda: CausalAttention(DIM, num_heads=4, softcap=1.5, sinks=True),
    "sliding-window-sinks": lambda: SlidingWindowAttention(DIM, num_heads=6, window=6, num_kv_heads=2, sinks=True),
    "lizard": lambda: LizardAttention(CausalAttention(DIM, num_heads=6, num_kv_heads=2), window=6, chunk_size=8),
    "lizard-options": lambda: LizardAttention(
        CausalAttention(DIM, 3, rotary=Rotary(6), q_norm=RMSNorm(8), sinks=True, scale=0.3), 50, gate=False
    ),
    "lizard-memory": lambda: LizardAttention(CausalAttention(DIM, num_heads=3), window=None, chunk_size=5),
    "lizard-window": lambda: LizardAttention(CausalAttention(DIM, num_heads=4), window=6, linear=False),
    "routing-one-cluster": lambda: RoutingAttention(DIM, 4, num_clusters=1, cluster_size=8).eval(),
    "routing-and-local": lambda: ParallelMixers(
        {
            "local": SlidingWindowAttention(DIM, num_heads=2, window=50),
            "routing": RoutingAttention(DIM, 2, num_clusters=2, cluster_size=8, head_dim=10),
        },
        (1.0, 1.0),
        (1.0, 1.0),
    ).eval(),
    "scatterbrain": lambda: ScatterbrainAttention(DIM, num_heads=3, window=6, num_features=12).eval(),
    "scatterbrain-narrow": lambda: ScatterbrainAttention(DIM, 2, window=1, num_features=8, num_hashes=0),
    "scatterbrain-wide": lambda: ScatterbrainAttention(DIM, 3, window=50, num_features=2, head_dim=4),
    "gated-conv": lambda: GatedConv(DIM),
    "gated-conv-narrow": lambda: GatedConv(DIM, kernel_size=2, expand=1, bias=False),
    "gated-conv-double": lambda: DoubleGatedConv(DIM, kernel_size=4),
    "h3-conv": lambda: H3Conv(DIM, kernel_length=LENGTH + 3),
    "h3-conv-short": lambda: H3Conv(DIM, kernel_length=6, lam=0.01, smooth_window=3, init=decaying_kernel),
    "h3-conv-one-tap": lambda: H3Conv(DIM, kernel_length=1),
    "delta-net": lambda: DeltaNet(DIM, num_heads=3, chunk_size=8),
    "delta-net-wide": lambda: DeltaNet(DIM, 2, head_dim=6, expand_v=1.5, d_conv=2, negative_eigenvalues=True),
    "gated-delta-net": lambda: GatedDeltaNet(DIM, num_heads=3, head_dim=6, chunk_size=8),
    "gated-delta-net-grouped": lambda: GatedDeltaNet(DIM, num_heads=6, head_dim=5, expand_v=1.6, num_key_heads=2),
    "gated-delta-net-fused": lambda: FusedGatedDeltaNet(DIM, num_heads=4, head_dim=6, num_key_heads=2, chunk_size=8),
    "kimi-delta": lambda: KimiDeltaAttention(DIM, num_heads=3, head_dim=6, chunk_size=8),
    "griffin": lambda: GriffinRecurrence(DIM, num_blocks=3),
    "griffin-wide": lambda: GriffinRecurrence(DIM, num_blocks=2, width=36, d_conv=2),
    "gated-linear": lambda: GatedLinearAttention(DIM, num_heads=3, chunk_size=8),
    "gated-linear-wide": lambda: GatedLinearAttention(DIM, 2, 0.25, 1.5, gate_rank=3, gate_temperature=2.0),
    "retention": lambda: Retention(DIM, num_heads=3, chunk_size=8),
    "lightning": lambda: LightningAttention(DIM, num_heads=3, index=1, depth=3, chunk_size=8),
    "mlstm": lambda: MLSTM(DIM, num_heads=3, key_dim=4, value_dim=8, input_offset=0.0, chunk_size=8),
    "mlstm-uncapped": lambda: MLSTM(DIM, 2, key_dim=5, value_dim=3, gate_softcap=None, input_offset=1.0, eps=1e-2),
    "mlstm-expanded": lambda: ExpandedMLSTM(DIM, num_heads=3, chunk_size=8),
    "mlstm-expanded-narrow": lambda: ExpandedMLSTM(DIM, 2, inner_dim=30, block_size=5, d_conv=2, eps=1e-2),
    "slstm": lambda: SLSTM(DIM, num_heads=3),
    "ema": lambda: MultiHeadEMA(DIM, d_state=4),
    "sparse-activation": lambda: SparseActivation(DIM, CausalWindow(8, 4), 20, 8, d_state=4),
    "sparse-activation-wide": lambda: SparseActivation(DIM, CausalWindow(6, 50), 10, 6, d_state=3),
    "leaky-memory": lambda: ExpressiveLeakyMemory(DIM, DIM, activation="silu", tau_max=50.0, learn_tau=True),
    "leaky-memory-branches": lambda: ExpressiveLeakyMemory(
        DIM, DIM, 5, 7, overlap=True, hidden_dim=10, version=1, tau_max=50.0, dt=2.0
    ),
    "slstm-narrow": lambda: SLSTM(DIM, num_heads=2, d_conv=2, forget_power=1.0),
    "attention-hashed": lambda: HashedAttention(DIM, num_heads=3, bits=4),
    "neural-memory": lambda: NeuralMemory(DIM, num_heads=3, chunk_size=8),
    "neural-memory-linear": lambda: NeuralMemory(DIM, 2, 5, depth=1, chunk_size=1, d_conv=2, max_rate=0.5),
    "neural-memory-deep": lambda: NeuralMemory(DIM, 2, depth=3, expand=1, chunk_size=5, clip=0.1),
    "memory-as-context": lambda: MemoryAsContext(DIM, num_heads=3, segment=6, num_persistent=2),
    "memory-as-gate": lambda: MemoryAsGate(
        PersistentAttention(DIM, 3, window=6, num_persistent=2), NeuralMemory(DIM, 2, depth=1, chunk_size=4), DIM
    ),
    "memory-as-layer": lambda: MemoryAsLayer(
        PersistentAttention(DIM, 3, window=50), NeuralMemory(DIM, 2, chunk_size=7), DIM
    ),
    "rwkv7-first": lambda: RWKV7Block(DIM // 2, head_dim=6, mlp_dim=20, ranks=(3, 4, 5, 6), depth=2, chunk_size=8),
    "rwkv7": lambda: RWKV7Block(DIM // 2, head_dim=4, mlp_dim=20, ranks=(3, 4, 5, 6), index=1, depth=2, chunk_size=8),
    "s4": lambda: S4(DIM, d_state=8, chunk_size=8),
    "s4-untied": lambda: S4(DIM, d_state=4, num_ssm=DIM, chunk_size=5),
    "s4d": lambda: S4D(DIM, d_state=8, chunk_size=8),
    "s4d-bilinear": lambda: S4D(DIM, d_state=2, init=diagonal_inv, discretisation=bilinear, num_ssm=3, chunk_size=5),
    "s4d-real": lambda: S4D(DIM, d_state=6, init=diagonal_real),
    "parallel": lambda: ParallelMixers(
        {
            "ssm": Mamba2(DIM, 4, d_inner=16, head_dim=8, gated_norm=False, multipliers=(0.5, 0.7, 2.0, 0.3, 1.1)),
            "attention": CausalAttention(DIM, num_heads=4),
        },
        (0.5, 2.0),
        (1.5, 0.7),
    ),
}


def build(name: str) -> Mixer:
    """The mixer in float64, with noise on every parameter."""
    torch.manual_seed(0)
    built = MIXERS[name]().double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built

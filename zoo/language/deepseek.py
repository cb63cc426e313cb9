"""DeepSeek-V2 and DeepSeek-V3: latent attention, fine-grained experts, and prediction of further tokens.

Papers: "DeepSeek-V3 Technical Report", arXiv 2412.19437; "DeepSeek-V2", arXiv 2405.04434. Sizes of the published
checkpoints, with the YaRN scaling of their config.json.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block, LanguageConfig
from zoo.layers import ModelState, RMSNorm, State, SwiGLU
from zoo.layers.attention.latent import LatentAttention
from zoo.layers.attention.scaling import RotaryScaling, Yarn
from zoo.layers.moe.deepseek import DeepSeekMoE
from zoo.layers.report import Reports
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepSeekConfig(LanguageConfig):
    """Options of DeepSeek-V2 and V3; ``initializer_range`` is that of all matrices."""

    num_heads: int
    """Heads of the attention."""
    kv_lora_rank: int
    """Width of the latent vector of keys and values, which is what the cache holds."""
    q_lora_rank: int | None = None
    """Width of the latent vector of the queries; None: queries come straight from the input."""
    qk_nope_head_dim: int = 128
    """Channels of a head's queries and keys without positions."""
    qk_rope_head_dim: int = 64
    """Channels of a head's queries with rotary positions, and of the one key all heads share."""
    v_head_dim: int = 128
    """Channels of a head's values."""
    rope_base: float = 10000.0
    """Wavelength base of the rotary positions."""
    rope_interleaved: bool = True
    """Rotary pairs are neighbouring channels; False: the two halves."""
    yarn: Yarn | None = None
    """Stretching of the rotary positions to longer contexts: a Yarn, or its fields as a dict."""
    mlp_dim: int
    """Hidden width of the feed-forward layer of the first blocks."""
    first_k_dense: int = 1
    """Blocks at the start without experts."""
    expert_dim: int
    """Hidden width of an expert."""
    num_experts: int
    """Routed experts of a layer."""
    top_k: int
    """Routed experts a token takes."""
    num_shared: int = 1
    """Experts that every token takes."""
    score: str = "sigmoid"
    """Affinity of token and expert: "softmax" (V2) or "sigmoid" (V3)."""
    normalize: bool = True
    """The weights of a token's experts sum to 1."""
    routed_scale: float = 1.0
    """Factor of the routed experts' sum."""
    num_groups: int = 1
    """Groups the experts form, one a device."""
    top_groups: int = 1
    """Groups a token's experts may come from."""
    group_top: int = 2
    """Best experts of a group whose scores are summed to rank it."""
    bias_speed: float | None = 1e-3
    """Step of the selection bias that balances without a loss."""
    balance_weight: float = 1e-4
    """Weight of the sequence-wise balance loss."""
    mtp_depth: int = 0
    """Further tokens predicted in training, by one block each."""
    mtp_weight: float = 0.3
    """Weight of their mean loss, the side loss "mtp": 0.3, later 0.1 in the paper."""
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    residual_in_fp32: bool = False

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.yarn, dict):
            object.__setattr__(self, "yarn", RotaryScaling.of({"kind": "yarn", **self.yarn}))
        require_positive(self, "num_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        require_positive(self, "mlp_dim", "expert_dim", "num_experts", "top_k", "q_lora_rank", "group_top")
        for name in ("first_k_dense", "num_shared", "mtp_depth"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class NextTokenModule(nn.Module):
    r"""One depth of multi-token prediction: the hidden state of a position and the embedding of a later token give the
    hidden state from which the shared head predicts the token after that.

    .. math::
        h'_t = n(\mathrm{block}(W [n(e_{t + k}); n(h_t)]))

    The embedding comes first and h is what the head reads (after the norm), as in the published weights.

    Paper: "DeepSeek-V3", section 2.2.
    """

    def __init__(self, config: LanguageConfig, block: Block):
        super().__init__()
        self.enorm = RMSNorm(config.dim, config.norm_eps)
        self.hnorm = RMSNorm(config.dim, config.norm_eps)
        self.eh_proj = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.block = block
        self.shared_head_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, hidden: Tensor, embedded: Tensor, seq_idx: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """hidden (B, T, dim) of the depth before, embedded (B, T, dim) k tokens later -> (B, T, dim)."""
        x = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1))
        return self.shared_head_norm(self.block(x, state, seq_idx))


class DeepSeekLanguageModel(Reports, LanguageModel):
    """A stack of latent attention and experts, or SwiGLU in the first blocks; ``mtp`` is used in training, and by
    ``zoo.decoding.MultiToken`` to draft."""

    config: DeepSeekConfig

    def __init__(self, config: DeepSeekConfig):
        super().__init__(config)
        self.mtp = nn.ModuleList(
            NextTokenModule(config, self.build_block(config.depth + depth)) for depth in range(config.mtp_depth)
        )
        _init_matrices(self.mtp, config.initializer_range)

    def build_block(self, index: int) -> Block:
        """Norm and latent attention, norm and SwiGLU or experts."""
        c = self.config
        mixer = LatentAttention(
            c.dim, c.num_heads, kv_lora_rank=c.kv_lora_rank, qk_nope_head_dim=c.qk_nope_head_dim,
            qk_rope_head_dim=c.qk_rope_head_dim, v_head_dim=c.v_head_dim, q_lora_rank=c.q_lora_rank,
            rope_base=c.rope_base, rope_interleaved=c.rope_interleaved, yarn=c.yarn,
        )  # fmt: skip
        if index < c.first_k_dense:
            return Block(c, mixer, SwiGLU(c.dim, c.mlp_dim))
        experts = DeepSeekMoE(
            c.dim, c.expert_dim, c.num_experts, c.top_k, num_shared=c.num_shared, score=c.score, normalize=c.normalize,
            scale=c.routed_scale, num_groups=c.num_groups, top_groups=c.top_groups, group_top=c.group_top,
            bias_speed=c.bias_speed, balance_weight=c.balance_weight,
        )  # fmt: skip
        return Block(c, mixer, experts)

    def init_weights(self) -> None:
        """Every matrix normal, as in both papers (section on hyper-parameters: 0.006)."""
        _init_matrices(self, self.config.initializer_range)

    def forward_blocks(self, x: Tensor, state: ModelState | None, seq_idx: Tensor | None) -> Tensor:
        """The residual stream (B, T, dim) through all blocks; the latest side losses are forgotten."""
        self.report({}, {})
        return super().forward_blocks(x, state, seq_idx)

    def loss(
        self,
        hidden: Tensor,
        tokens: Tensor,
        labels: Tensor,
        seq_idx: Tensor | None = None,
        num_scored: int | Tensor | None = None,
    ) -> Tensor:
        """That of every language model; in training it also leaves the side loss "mtp"."""
        further = self.further_tokens(hidden, tokens, labels, seq_idx) if self.training else []
        losses = [self.cross_entropy(h, shifted, None, num_scored) for h, shifted in further]
        if losses:
            self.report({"mtp": self.config.mtp_weight * torch.stack(losses).mean()}, {})
        return self.cross_entropy(hidden, labels, seq_idx, num_scored)

    def adapt_tensors(self, tensors: Mapping[str, Tensor], known: DeepSeekConfig | None = None) -> dict[str, Tensor]:
        """The tensors of a checkpoint without the modules of multi-token prediction that this model does not have."""
        beyond = re.compile(r"mtp\.(\d+)\.")
        return {
            name: tensor
            for name, tensor in tensors.items()
            if not (found := beyond.match(name)) or int(found[1]) < len(self.mtp)
        }

    def further_tokens(
        self, hidden: Tensor, tokens: Tensor, labels: Tensor | None = None, seq_idx: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """What the multi-token prediction modules see and are scored against.

        Args:
            hidden: (B, T, dim) as the head reads it.
            tokens, labels, seq_idx: as in ``forward``.

        Returns:
            For depth k = 1, 2, ... of those that fit into T: hidden states (B, T - k, dim), of which position t
            predicts token t + k + 1, and labels (B, T - k) of which, as in ``forward``, the next one belongs to t.
        """
        labels, found = tokens if labels is None else labels, []
        for k, module in enumerate(self.mtp, 1):
            if tokens.shape[1] < k + 2:
                break
            shifted, ids = labels[:, k:], None
            if seq_idx is not None:
                ids = seq_idx[:, :-k]
                same = (seq_idx[:, k + 1 :] == seq_idx[:, : -k - 1]) & (seq_idx[:, k + 1 :] >= 0)
                shifted = shifted.masked_fill(~F.pad(same, (1, 0)), -100)
            arguments = (hidden[:, :-1], self.embed(tokens[:, k:]), ids)
            if self.grad_checkpointing and self.training:
                hidden = checkpoint(module, *arguments, use_reentrant=False)
            else:
                hidden = module(*arguments)
            found.append((hidden, shifted))
        return found

    def num_active_parameters(self) -> int:
        """As in every language model, without multi-token prediction."""
        return super().num_active_parameters() - sum(p.numel() for p in self.mtp.parameters())


def _init_matrices(module: nn.Module, std: float) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)


_register = partial(
    register_model,
    DeepSeekLanguageModel,
    task="language",
    family="deepseek",
    paper=Paper("DeepSeek-V3 Technical Report", "2412.19437", 2024),
)


@_register()
def deepseek_nano():
    return DeepSeekConfig(
        vocab_size=256, dim=128, depth=3, num_heads=4, kv_lora_rank=48, q_lora_rank=64, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, mlp_dim=384, expert_dim=64, num_experts=8, top_k=2, num_groups=4,
        top_groups=2, tie_embeddings=True, initializer_range=0.05,
    )  # fmt: skip


@_register()
def deepseek_mtp_nano():
    return DeepSeekConfig(
        vocab_size=256, dim=64, depth=2, num_heads=4, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16,
        v_head_dim=16, mlp_dim=192, expert_dim=32, num_experts=8, top_k=2, mtp_depth=2, tie_embeddings=True,
        initializer_range=0.05,
    )  # fmt: skip


@_register()
def deepseek_v2_lite():
    return DeepSeekConfig(
        vocab_size=102400, dim=2048, depth=27, num_heads=16, kv_lora_rank=512, mlp_dim=10944, expert_dim=1408,
        num_experts=64, top_k=6, num_shared=2, score="softmax", normalize=False, group_top=1, bias_speed=None,
        balance_weight=1e-3, initializer_range=0.006, yarn=Yarn(40, mscale=0.707, mscale_all_dim=0.707),
    )  # fmt: skip


@_register()
def deepseek_v2_236b():
    return DeepSeekConfig(
        vocab_size=102400, dim=5120, depth=60, num_heads=128, kv_lora_rank=512, q_lora_rank=1536, mlp_dim=12288,
        expert_dim=1536, num_experts=160, top_k=6, num_shared=2, score="softmax", normalize=False, routed_scale=16.0,
        num_groups=8, top_groups=3, group_top=1, bias_speed=None, balance_weight=3e-3, initializer_range=0.006,
        yarn=Yarn(40, mscale=0.707, mscale_all_dim=0.707),
    )  # fmt: skip


@_register()
def deepseek_v3_671b():
    return DeepSeekConfig(
        vocab_size=129280, dim=7168, depth=61, num_heads=128, kv_lora_rank=512, q_lora_rank=1536, mlp_dim=18432,
        first_k_dense=3, expert_dim=2048, num_experts=256, top_k=8, routed_scale=2.5, num_groups=8, top_groups=4,
        initializer_range=0.006, yarn=Yarn(40, mscale_all_dim=1.0),
    )  # fmt: skip

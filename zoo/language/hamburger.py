"""HAMburger: a transformer that says several tokens a step, and remembers those of a step as one.

Paper: Liu and Zhang, "HAMburger: Accelerating LLM Inference via Token Smashing", arXiv 2505.20438, with the details of
the authors' code. There the base model is a finished one, whose entropies cut the text into segments beforehand. Here
it is trained together with its additions, or further, and cuts as it does at that step of the training.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive
from zoo.kernels.dispatch import compute_dtype
from zoo.language.block import Block
from zoo.language.dense import llama3_2_1b
from zoo.language.transformer import TransformerConfig, TransformerLanguageModel
from zoo.layers import ModelState
from zoo.layers.linear import capped, head_loss
from zoo.layers.precision import computes_in
from zoo.layers.report import Reports
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class HamburgerConfig(TransformerConfig):
    """Options of HAMburger, over those of the transformer."""

    max_steps: int = 4
    """Most tokens of a step."""
    merge_heads: int = 64
    """Heads of the attention that merges the tokens of a step."""
    micro_depth: int = 4
    """Blocks that say the tokens of a step after its first."""
    micro_features: int = 4
    """Blocks of the base model whose outputs they read, evenly spaced up to the last."""
    micro_weight: float = 1.0
    """Weight of the side loss "micro" in training."""
    stop_weight: float = 0.5
    """Weight of the end of a step in it."""
    segment_floor: float = 0.05
    """A token of less entropy, in nats, goes on with a segment."""
    segment_ratio: float = 0.3
    """So does one of less than this share of the largest entropy in the segment."""
    single_share: float = 0.25
    """Share of a training sequence, at its beginning, whose tokens are read one by one, as those of a prompt."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "max_steps", "merge_heads", "micro_depth", "micro_features")
        if self.dim % self.merge_heads or self.dim % 2:
            raise ValueError(f"merge_heads must divide dim, which is even: got {self.merge_heads} and {self.dim}")
        if self.micro_features > self.depth:
            raise ValueError(f"micro_features must be at most the {self.depth} blocks, got {self.micro_features}")
        for name in ("micro_weight", "stop_weight", "segment_floor", "segment_ratio", "single_share"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def segments(entropy: Tensor, most: int, floor: float, ratio: float) -> Tensor:
    """Which tokens begin a segment, (B, T) bool, of the entropies (B, T) that they were predicted with, in nats.

    A token goes on with a segment of fewer than ``most`` if its entropy is below ``floor`` or below ``ratio`` times the
    largest in it.
    """
    first, largest, count = [], torch.full_like(entropy[:, 0], -torch.inf), torch.full_like(entropy[:, 0], most)
    for one in entropy.unbind(1):
        begins = ~((one < floor) | (one < ratio * largest)) | (count >= most)
        count = torch.where(begins, 1, count + 1)
        largest = torch.where(begins, one, torch.maximum(largest, one))
        first.append(begins)
    return torch.stack(first, 1)


class CompositionalEmbedder(nn.Module):
    r"""Several tokens as one: their mean, and what it attends to of them and their places.

    .. math::
        m = \frac{1}{n} \sum_j e_j, \quad y = m + W^O \mathrm{attention}(W^Q m, W^K [e_j; p_j], W^V [e_j; p_j])

    Args:
        dim: width of the embeddings.
        num_heads: of the attention.
        max_steps: most tokens.
    """

    def __init__(self, dim: int, num_heads: int, max_steps: int):
        super().__init__()
        self.num_heads = num_heads
        self.pos = nn.Parameter(torch.empty(max_steps, dim // 2))
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj, self.v_proj = (nn.Linear(dim + dim // 2, dim) for _ in range(2))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_normal_(self.pos)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        """x (N, n, dim), of which each row's first ``length`` (N,) count -> (N, dim); a single token is itself."""
        real = torch.arange(x.shape[1], device=x.device) < length[:, None]  # (N, n)
        mean = (x * real[..., None]).sum(1) / length[:, None]
        placed = torch.cat([x, self.pos[: x.shape[1]].expand(len(x), -1, -1)], -1)
        q, k, v = (
            heads.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for heads in (self.q_proj(mean)[:, None], self.k_proj(placed), self.v_proj(placed))
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])  # (N, H, 1, d)
        return torch.where((length > 1)[:, None], mean + self.out_proj(y.flatten(1)), x[:, 0])


class MicroStepDecoder(nn.Module):
    """Blocks over what the base model made of a step and the tokens that were said in it, and where a step ends.

    Args:
        config: of the model.
        blocks: with causal attention.
    """

    def __init__(self, config: HamburgerConfig, blocks: list[Block]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.stop_head = nn.Sequential(
            nn.Linear(config.dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim), nn.SiLU(),
            nn.Linear(config.dim, 1),
        )  # fmt: skip

    def forward(self, features: Tensor, said: Tensor) -> Tensor:
        """features (N, F, dim) and the embeddings (N, n, dim) of the tokens said -> (N, n, dim), of which the head
        reads the token after each; no norm comes before it."""
        x = torch.cat([features, said.to(features.dtype)], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, features.shape[1] :]

    def stops(self, x: Tensor) -> Tensor:
        """Logit (...) of the step to end with the token that is read out of x (..., dim)."""
        return self.stop_head(x)[..., 0]


class HamburgerLanguageModel(Reports, TransformerLanguageModel):
    """The transformer, ``embedder`` and ``micro``, which are used in training and by ``zoo.decoding.MicroSteps``."""

    config: HamburgerConfig

    def __init__(self, config: HamburgerConfig):
        super().__init__(config)
        self.embedder = CompositionalEmbedder(config.dim, config.merge_heads, config.max_steps)
        self.micro = MicroStepDecoder(config, [self.build_block(config.depth - 1) for _ in range(config.micro_depth)])

    def features(self, x: Tensor, state: ModelState | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """The residual stream (B, T, dim) before the first block -> (B, T, F, dim): after some of the blocks, the last
        of which is what the head reads."""
        c, found = self.config, []
        wanted = {(part + 1) * c.depth // c.micro_features - 1 for part in range(c.micro_features - 1)}
        for index, block in enumerate(self.blocks):
            x = block(x, None if state is None else state[index], seq_idx)
            if index in wanted:
                found.append(x)
        return torch.stack([*found, self.forward_norm(x)], 2)

    def say(self, x: Tensor) -> Tensor:
        """Logits of what the head reads (..., dim)."""
        return capped(self.head(x), self.softcap)

    def merged(self, tokens: Tensor, length: Tensor) -> Tensor:
        """tokens (N, n), of which each row's first ``length`` (N,) are one step -> its input (N, 1, dim)."""
        x = self.embedder(self.embed(tokens), length)[:, None]
        return x.to(compute_dtype(x)) if self.config.residual_in_fp32 else x

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
        """That of every language model; in training it also leaves the side loss "micro", of the text in segments."""
        if self.training and tokens.shape[1] > 2:
            first = self.segmented(hidden.detach(), seq_idx)
            loss = self.step_loss(tokens, labels, first, seq_idx)
            self.report({"micro": self.config.micro_weight * loss}, {"step_length": 1 / first.float().mean()})
        return self.cross_entropy(hidden, labels, seq_idx, num_scored)

    @torch.no_grad()
    def segmented(self, hidden: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """Which tokens begin a segment (B, T), of hidden (B, T, dim) as the head reads it: see ``segments``."""
        c, parts = self.config, []
        for part in hidden[:, :-1].split(128, 1):
            law = self.say(part).float().log_softmax(-1)
            parts.append(-(law.exp() * law).sum(-1))
        entropy = F.pad(torch.cat(parts, 1), (1, 0), value=torch.inf)
        entropy[:, : round(c.single_share * hidden.shape[1])] = torch.inf
        if seq_idx is not None:
            starts = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0), value=True)
            entropy = entropy.masked_fill(starts | (seq_idx < 0), torch.inf)
        return segments(entropy, c.max_steps, c.segment_floor, c.segment_ratio)

    def step_loss(self, tokens: Tensor, labels: Tensor, first: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """Mean loss of every token and every end of a step, where ``first`` (B, T) begins one.

        A step is read at the place of its last token, and the others are of a sequence that it does not see.
        """
        c, (batch, length) = self.config, tokens.shape
        place = torch.arange(length, device=tokens.device).expand(batch, -1)
        last = F.pad(first[:, 1:], (0, 1), value=True)
        begin = torch.where(first, place, 0).cummax(1).values  # (B, T), of each token's step
        end = torch.where(last, place, length).flip(1).cummin(1).values.flip(1)
        several = (last & (begin < place)).nonzero().unbind(1)
        x = self.enter(tokens)
        x = x.index_put(several, self._steps(tokens, several[0], begin[several], end[several])[:, 0].to(x.dtype))
        ids = torch.zeros_like(tokens) if seq_idx is None else seq_idx
        features = self.features(x, None, torch.where(ids < 0, ids, 2 * ids + (~last).to(ids.dtype)))
        following = F.pad(end[:, 1:], (0, 1), value=length - 1)  # the last token of the next step
        known = last & (following < length - 1) & (ids >= 0) & (F.pad(ids[:, 1:], (0, 1), value=-1) == ids)
        row, at = known.nonzero().unbind(1)
        count, features = following[row, at] - at, features[row, at]  # (N,), (N, F, dim)
        steps = torch.arange(c.max_steps, device=tokens.device)
        targets = labels[row[:, None], (at[:, None] + 1 + steps).clamp(max=length - 1)]  # (N, max_steps)
        targets = targets.masked_fill(steps >= count[:, None], -100)
        longer = (count > 1).nonzero()[:, 0]
        said = tokens[row[longer, None], (at[longer, None] + steps[1:]).clamp(max=length - 1)]
        later = self.micro(features[longer], self.embed(said))  # (M, max_steps - 1, dim)
        read = torch.cat([features[:, -1], later.flatten(0, 1)])
        loss = head_loss(
            self.head, read, torch.cat([targets[:, 0], targets[longer, 1:].flatten()]), softcap=self.softcap
        )
        ends = (steps == count[:, None] - 1).to(read.dtype)
        inside = torch.cat([count > 0, (steps[1:] < count[longer, None]).flatten()])
        stops = torch.cat([ends[:, 0], ends[longer, 1:].flatten()])[inside]
        if not len(stops):
            return loss
        return loss + c.stop_weight * F.binary_cross_entropy_with_logits(self.micro.stops(read)[inside], stops)

    def _steps(self, tokens: Tensor, row: Tensor, begin: Tensor, end: Tensor) -> Tensor:
        """The inputs (N, 1, dim) of the steps from ``begin`` to ``end`` (N,) of some rows (N,)."""
        place = begin[:, None] + torch.arange(self.config.max_steps, device=tokens.device)
        return self.merged(tokens[row[:, None], place.clamp(max=tokens.shape[1] - 1)], end - begin + 1)

    def num_active_parameters(self) -> int:
        """As in every language model, of the base model alone."""
        extra = (*self.embedder.parameters(), *self.micro.parameters())
        return super().num_active_parameters() - sum(p.numel() for p in extra)


def over(model: TransformerLanguageModel, **options: Any) -> HamburgerLanguageModel:
    """A HAMburger over a transformer of the zoo: its configuration and weights, and fresh additions to be trained.

    Args:
        model: any of the family "transformer".
        options: of ``HamburgerConfig``.

    Raises:
        ValueError: for another family.
    """
    if type(model) is not TransformerLanguageModel:
        raise ValueError(f"a HAMburger is made over a model of the family transformer, got {type(model).__name__}")
    made = HamburgerLanguageModel(HamburgerConfig(**dataclasses.asdict(model.config) | options))
    made.load_state_dict(model.state_dict(), strict=False)
    return made.to(computes_in(model))


_register = partial(
    register_model,
    HamburgerLanguageModel,
    task="language",
    family="hamburger",
    paper=Paper("HAMburger: Accelerating LLM Inference via Token Smashing", "2505.20438", 2025),
)


@_register()
def hamburger_nano():
    return HamburgerConfig(
        vocab_size=256, dim=128, depth=3, num_heads=4, num_kv_heads=2, mlp_dim=384, merge_heads=4, micro_depth=1,
        micro_features=3,
    )  # fmt: skip


@_register()
def hamburger_llama3_2_1b():
    return HamburgerConfig(**dataclasses.asdict(llama3_2_1b()))

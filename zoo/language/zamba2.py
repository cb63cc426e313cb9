"""Zamba2: Mamba-2, whose input at some places has the output of a transformer block added that those places share.

Paper: Glorioso et al., arXiv 2411.15242. Sizes of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from itertools import chain, cycle, repeat
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.config import require_positive
from zoo.language.block import Block
from zoo.language.hybrid import Mamba2HybridConfig, Mamba2HybridLanguageModel
from zoo.layers import Mixer, ModelState, State
from zoo.layers.attention.shared import Adapters, LowRank, SharedAttention, SharedTransformer
from zoo.layers.attention.state import KeyValueState
from zoo.layers.step import Value, Writer, attend_step, describes, sequential_step
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zamba2Config(Mamba2HybridConfig):
    """Options of Zamba2. Blocks "*" have a shared transformer block before their Mamba-2, whose heads are of width
    2 dim / num_heads; ``mlp_dim`` is its hidden width."""

    letters: ClassVar[dict[str, str]] = {"mixers": "M*", "mlps": "."}

    vocab_size: int = 32000
    mlps: str = "."
    num_shared_blocks: int = 1
    """Shared transformer blocks, which take turns."""
    adapter_rank: int = 128
    """Rank of what each place adds to the projections of the shared block."""
    attention_adapters: bool = False
    """The places add to queries, keys and values too, not to the feed-forward layer alone."""
    rope_base: float | None = None
    """Wavelength base of the rotary positions; None: the attention has no positions."""
    d_state: int = 64
    tie_embeddings: bool = True

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_shared_blocks", "adapter_rank")
        if self.head_dim is not None or 2 * self.dim % self.num_heads:
            raise ValueError(
                f"num_heads must divide 2 dim, and head_dim is their quotient: got dim {self.dim}, num_heads "
                f"{self.num_heads}, head_dim {self.head_dim}"
            )


class Zamba2Block(Block):
    """x + mamba(norm(x)), or x + mamba(norm(x + W shared([x; first]))) with the embedding ``first``.

    ``shared`` is a submodule of the first block that has it (``owned``) and a reference in the others: the model has it
    under one name, as do its state dict and the adapters that a library puts on it.
    """

    shared: SharedTransformer | None

    def __init__(
        self, config: Zamba2Config, mixer: Mixer, shared: SharedTransformer | None = None, *, owned: bool = True
    ):
        super().__init__(config, mixer)
        if owned:
            self.shared = shared
        else:
            object.__setattr__(self, "shared", shared)  # unregistered
        if shared is not None:
            attention, rank = shared.attention, config.adapter_rank
            heads = (attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim)
            self.adapters = Adapters(config.dim, rank, heads if config.attention_adapters else None, config.mlp_dim)
            self.linear = nn.Linear(config.dim, config.dim, bias=False)

    @property
    def mixers(self) -> list[Mixer]:
        """What keeps a state: the shared attention, if any, and Mamba-2."""
        return [self.mixer] if self.shared is None else [self.shared.attention, self.mixer]

    def forward(  # type: ignore[override]
        self, x: Tensor, first: Tensor, states: list[State | None], seq_idx: Tensor | None = None
    ) -> Tensor:
        """x and first (B, T, dim), in the dtype of the residual stream, -> x."""
        y = x
        if self.shared is not None:
            cache = cast("KeyValueState | None", states[0])
            y = x + self.linear(self.shared(x, first, self.adapters, cache, seq_idx))
        return x + self.mixer(self.norm(y), states[-1], seq_idx=seq_idx)


describes(LowRank)(sequential_step)


def _shared_step(p: Writer, m: SharedTransformer, adapters: Adapters, x: Value, first: Value) -> Value:
    """What a shared transformer block adds to a program of steps."""
    p.expect(m, SharedTransformer)
    p.expect(adapters, Adapters)
    p.expect(m.attention, SharedAttention)
    joined = p.empty(2 * x.width)
    for part, value in zip(joined.split(x.width, x.width), (x, first), strict=True):
        p.accumulate(part, value, first=True)
    normal, attention = p.call(m.norm, joined), m.attention
    pairs = (attention.q_proj, adapters.q), (attention.k_proj, adapters.k), (attention.v_proj, adapters.v)
    y = attend_step(p, attention, *(_adapted(p, shared, own, normal) for shared, own in pairs))
    hidden = _adapted(p, m.w1, adapters.mlp, p.call(m.mlp_norm, p.call(attention.out_proj, y)))
    a, b = hidden.split(hidden.width // 2, hidden.width // 2)
    return p.call(m.w2, p.glu(a, b, "gelu"))


def _adapted(p: Writer, shared: nn.Module, own: nn.Module | None, x: Value) -> Value:
    y = p.whole(p.call(shared, x))
    if own is not None:
        p.accumulate(y, p.call(own, x))
    return y._replace(made=None)


class Zamba2LanguageModel(Mamba2HybridLanguageModel):
    """A stack of Mamba-2 blocks, some with a transformer block that they share."""

    straight = False

    config: Zamba2Config

    def __init__(self, config: Zamba2Config):
        c = config
        turns = [
            SharedTransformer(c.dim, c.num_heads, c.num_kv_heads, c.rope_base, c.mlp_dim, c.norm_eps)
            for _ in range(c.num_shared_blocks)
        ]
        self._turns = chain(zip(turns, repeat(True)), zip(cycle(turns), repeat(False)))
        super().__init__(config)
        del self._turns

    def build_block(self, index: int) -> Block:
        """Norm and Mamba-2, and in blocks "*" the next of the shared transformer blocks."""
        shared, owned = next(self._turns) if self.config.kind(index).startswith("*") else (None, True)
        return Zamba2Block(self.config, self.build_ssm(), shared, owned=owned)

    @property
    def mixers(self) -> list[Mixer]:
        """What keeps a state, in order: the attention of a shared block once a place."""
        return [mixer for block in self.blocks for mixer in cast(Zamba2Block, block).mixers]

    @property
    def shared_modules(self) -> list[nn.Module]:
        """The shared transformer blocks."""
        return [module for block in self.blocks for name, module in block.named_children() if name == "shared"]

    def adapt_tensors(self, tensors: Mapping[str, Tensor], known: Any = None) -> dict[str, Tensor]:
        """Without the copies of shared blocks that a checkpoint may have under the names of the later places."""
        later = tuple(
            f"blocks.{index}.shared."
            for index, block in enumerate(self.blocks)
            if block.shared is not None and "shared" not in dict(block.named_children())
        )
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(later)}

    def forward_blocks(self, x: Tensor, state: ModelState | None, seq_idx: Tensor | None) -> Tensor:
        """The residual stream (B, T, dim) through all blocks."""
        if (stepped := self.step_blocks(x, state, seq_idx)) is not None:
            return stepped
        first, states = x, iter([None] * len(self.mixers) if state is None else state)
        for block in self.blocks:
            own = [next(states) for _ in cast(Zamba2Block, block).mixers]
            if self.grad_checkpointing and self.training and state is None:
                x = checkpoint(block, x, first, own, seq_idx, use_reentrant=False)
            else:
                x = block(x, first, own, seq_idx)
        return x

    def write_blocks(self, p: Writer, x: Value) -> None:
        """A place with a shared block has the state of its attention, then that of Mamba-2."""
        first = p.lasting(x)
        for block in cast(Any, self.blocks):
            p.expect(block, Zamba2Block)
            p.again()
            y = x
            if block.shared is not None:
                p.next_state()
                y = p.scaled(x)
                p.accumulate(y, p.call(block.linear, _shared_step(p, block.shared, block.adapters, x, first)))
            p.next_state()
            p.accumulate(x, p.call(block.mixer, p.call(block.norm, y)))


_register = partial(
    register_model,
    Zamba2LanguageModel,
    task="language",
    family="zamba2",
    paper=Paper("The Zamba2 Suite: Technical Report", "2411.15242", 2024),
)


@_register()
def zamba2_nano():
    return Zamba2Config(
        vocab_size=256, dim=96, depth=5, mixers="M*", num_heads=4, num_kv_heads=4, mlp_dim=256, ssm_dim=192,
        ssm_head_dim=32, d_state=32, adapter_rank=8, attention_adapters=True, rope_base=10000.0,
    )  # fmt: skip


@_register()
def zamba2_1_2b():
    return Zamba2Config(
        dim=2048, depth=38, mixers="MMMMM*", num_heads=32, num_kv_heads=32, mlp_dim=8192, ssm_dim=4096, d_state=128,
        attention_adapters=True, rope_base=10000.0,
    )  # fmt: skip


@_register()
def zamba2_2_7b():
    return Zamba2Config(
        dim=2560, depth=54, mixers="M" + 7 * "MMMMM*" + "MMMM*MMM*MM", num_heads=32, num_kv_heads=32, mlp_dim=10240,
        ssm_dim=5120, num_shared_blocks=2,
    )  # fmt: skip


@_register()
def zamba2_7b():
    return Zamba2Config(
        dim=3584, depth=81, mixers="MMMMMM*MMMM*" + 11 * "MMMMM*" + "MMM", num_heads=32, num_kv_heads=32,
        mlp_dim=14336, ssm_dim=7168, num_groups=2, num_shared_blocks=2, rope_base=10000.0,
    )  # fmt: skip

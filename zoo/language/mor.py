"""Mixture-of-Recursions: a stack of transformer blocks run several times, each token as often as its router says.

Paper: Bae et al., arXiv 2507.10524. The sizes stand for SmolLM models of 30, 32, 26 and 24 layers (vocabulary, widths,
heads and tied embedding theirs): a first and a last block of their own and, between them, three recursions of the
floor((layers - 2) / 3) shared ones, as in the authors' code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.config import require_positive
from zoo.language.base import LanguageModel
from zoo.language.block import Block
from zoo.language.mor_init import init_recursions
from zoo.language.transformer import DecoderConfig
from zoo.layers import CausalAttention, KeyValueState, Mixer, ModelState, SwiGLU
from zoo.layers.attention import Keys
from zoo.layers.depth import (
    ActiveAttention,
    ActiveTokens,
    EveryToken,
    ExpertChoice,
    Recursion,
    TokenChoice,
    linear_router,
    mlp_router,
    refreshed,
)
from zoo.layers.options import require_above, require_at_least
from zoo.registry import Paper, nearest, register_model

Plan = list[list[int]]  # the shared blocks, by number, that each recursion runs


def cycle(blocks: int, recursions: int) -> Plan:
    """Every recursion runs all shared blocks: 0 1 | 0 1 | 0 1."""
    return [list(range(blocks))] * recursions


def sequence(blocks: int, recursions: int) -> Plan:
    """Each block is repeated at once, and the recursions cut the row into equal parts: 0 0 | 0 1 | 1 1."""
    row = [index // recursions for index in range(blocks * recursions)]
    return [row[r * blocks : (r + 1) * blocks] for r in range(recursions)]


# name -> (blocks of their own at each end, order of the shared ones)
SHARING: dict[str, tuple[int, Callable[[int, int], Plan]]] = {
    "cycle": (0, cycle),
    "sequence": (0, sequence),
    "middle_cycle": (1, cycle),
    "middle_sequence": (1, sequence),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoRConfig(DecoderConfig):
    """Options of Mixture-of-Recursions; ``depth`` counts the blocks that have weights."""

    vocab_size: int = 49152
    num_recursions: int = 3
    """Passes R through the shared blocks; 1 is the plain transformer, which routes nothing."""
    sharing: str = "middle_cycle"
    """"cycle", "sequence", or "middle_cycle", "middle_sequence", which leave the first and the last block unshared."""
    router: str = "expert_choice"
    """"expert_choice", "token_choice", or "every_token", the recursive transformer without routing."""
    share_kv: bool = False
    """The recursions after the first attend to its keys and values and make none, in place of recursion-wise
    caching."""
    refresh_kv: bool = False
    """With ``share_kv``: a token that is active in a later recursion has keys and values of its own there, which stand
    for its shared ones (hybrid caching); all that every recursion made is then cached."""
    gate_scale: float | None = None
    """Factor alpha of the router; None for the authors' (0.1 expert-choice, 1 token-choice)."""
    auxiliary_weight: float = 1e-3
    """Weight of expert-choice's side loss."""
    auxiliary_router: bool = False
    """Expert-choice samples by separate weights."""
    scorer: str = "linear"
    """What scores the tokens: "linear", or "mlp" with twice the model's width of hidden units."""
    gate: str | None = None
    """What makes a score a weight: "sigmoid", "tanh" or "identity", for token-choice "softmax" or "sigmoid"; None for
    the authors' (sigmoid expert-choice, softmax token-choice)."""
    temperature: float = 1.0
    """Divides what the router reads."""
    balance: str = "loss"
    """Token-choice balances the depths by a side "loss", or "loss_free" by a bias."""
    balance_weight: float = 0.1
    """Weight of token-choice's load-balance loss."""
    bias_speed: float = 1e-3
    """Step of token-choice's bias in loss-free balance."""
    z_weight: float = 1e-5
    """Weight of token-choice's z-loss."""
    expert_z_weight: float = 0.0
    """Weight of expert-choice's z-loss."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_recursions")
        for field in ("auxiliary_weight", "balance_weight", "z_weight", "expert_z_weight"):
            require_at_least(0, **{field: getattr(self, field)})
        require_above(0, bias_speed=self.bias_speed)
        choices = {"sharing": SHARING, "router": ROUTERS, "scorer": SCORERS, "balance": ("loss", "loss_free")}
        for name, known in {**choices, "gate": GATES.get(self.router, ())}.items():
            value = getattr(self, name)
            if value not in known and not (name == "gate" and value is None):
                raise ValueError(f"{name} must be one of {list(known)}, got {value!r}{nearest(str(value), known)}")
        ends, order = SHARING[self.sharing]
        if self.depth <= 2 * ends:
            raise ValueError(
                f"sharing {self.sharing!r} keeps {2 * ends} blocks unshared, so depth must be larger: got {self.depth}"
            )
        if self.refresh_kv and not self.share_kv:
            raise ValueError("refresh_kv replaces shared keys and values, so it goes with share_kv=True")
        if self.share_kv and order is not cycle:
            raise ValueError(
                "share_kv needs a block to meet the keys it made itself in the first recursion, as under sharing "
                f"'cycle' or 'middle_cycle': got {self.sharing!r}"
            )


SCORERS = {"linear": linear_router, "mlp": mlp_router}
GATES: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {  # of each router, the authors' first
    "expert_choice": {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "identity": torch.real},
    "token_choice": {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid},
}


def _expert_choice(c: MoRConfig) -> Recursion:
    return ExpertChoice(
        c.dim, c.num_recursions, 0.1 if c.gate_scale is None else c.gate_scale, router=SCORERS[c.scorer],
        gate=GATES["expert_choice"][c.gate or "sigmoid"], temperature=c.temperature,
        auxiliary_weight=c.auxiliary_weight, auxiliary_router=c.auxiliary_router, z_weight=c.expert_z_weight,
    )  # fmt: skip


def _token_choice(c: MoRConfig) -> Recursion:
    return TokenChoice(
        c.dim, c.num_recursions, 1.0 if c.gate_scale is None else c.gate_scale, router=SCORERS[c.scorer],
        gate=GATES["token_choice"][c.gate or "softmax"], temperature=c.temperature, balance_weight=c.balance_weight,
        bias_speed=c.bias_speed if c.balance == "loss_free" else None, z_weight=c.z_weight,
    )  # fmt: skip


ROUTERS: dict[str, Callable[[MoRConfig], Recursion]] = {
    "expert_choice": _expert_choice,
    "token_choice": _token_choice,
    "every_token": lambda c: EveryToken(c.num_recursions),
}


class SharedBlock(Block):
    """A block of the recursions: it runs on the active tokens alone."""

    mixer: ActiveAttention

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        state: KeyValueState | None,
        tokens: ActiveTokens,
        shared: Keys | None = None,
        refresh: bool = False,
        shares: bool = False,
    ) -> tuple[Tensor, Keys | None]:
        """x (B, N, dim) of the active tokens -> the same, and the keys that later recursions may share.

        Args:
            shared: the keys to attend to, None to make them.
            refresh: make those of the active tokens all the same.
            shares: later recursions are to share the keys.
        """
        normal = self.norm(x)
        if not shares:
            x = x + self.mixer.among(normal, tokens, state)
        elif shared is None:
            shared = self.mixer.write(normal, tokens, state)
            x = x + self.mixer.read(normal, tokens, shared)
        else:
            keys = refreshed(shared, self.mixer.write(normal, tokens, state)) if refresh else shared
            x = x + self.mixer.read(normal, tokens, keys)
        return x + self.mlp(self.mlp_norm(x)), shared  # pyright: ignore[reportOptionalCall]


class MoRLanguageModel(LanguageModel):
    """Transformer blocks, of which all or all but the ends are run once a recursion by the tokens routed to it.

    In evaluation, and wherever a state is given, routing is causal: decoding equals the parallel form. Tokens that have
    exited are in no matrix product and, with recursion-wise caching, in no cache of the later recursions.
    """

    straight = False

    config: MoRConfig

    def __init__(self, config: MoRConfig):
        self.ends, order = SHARING[config.sharing]
        self.plan = order(config.depth - 2 * self.ends, config.num_recursions)
        super().__init__(config)
        self.recursion = ROUTERS[config.router if config.num_recursions > 1 else "every_token"](config)

    def build_block(self, index: int) -> Block:
        """Norm and causal attention, norm and SwiGLU."""
        c = self.config
        shared = self.ends <= index < c.depth - self.ends
        kinds = (SharedBlock, ActiveAttention) if shared else (Block, CausalAttention)
        return kinds[0](c, kinds[1](c.dim, c.num_heads, c.num_kv_heads, c.rope_base), SwiGLU(c.dim, c.mlp_dim))

    @property
    def mixers(self) -> list[Mixer]:
        """The mixers that keep keys, in order: a shared one once a recursion, or with ``share_kv`` once in all."""
        mixers: list[Any] = [block.mixer for block in self.blocks]
        first, shared, last = self._split(mixers)
        caching = self.plan[:1] if self.config.share_kv and not self.config.refresh_kv else self.plan
        return [*first, *(shared[block] for blocks in caching for block in blocks), *last]

    def init_state(self, batch_size, max_length=None, device=None, dtype=None, cache=None) -> ModelState:
        """See ``LanguageModel``.

        Raises:
            ValueError: for a cache policy beside ``share_kv``: recursions read the keys that another one keeps.
        """
        if cache is not None and self.config.share_kv:
            raise ValueError("share_kv=True goes without a cache policy: recursions read the keys of the first one")
        return super().init_state(batch_size, max_length, device, dtype, cache)

    def forward_blocks(self, x: Tensor, state: ModelState | None, seq_idx: Tensor | None) -> Tensor:
        """The residual stream (B, T, dim) through the first block, the recursions and the last block."""
        c, (first, shared, last) = self.config, self._split(list(self.blocks))
        states = self._split([None] * len(self.mixers) if state is None else state)
        for block, own in zip(first, states[0], strict=True):
            x = self._run(block, x, own, seq_idx)
        tokens = ActiveTokens.of(x, states[1], seq_idx)
        keys: dict[int, Keys | None] = {}

        def step(r: int, h: Tensor, tokens: ActiveTokens) -> Tensor:
            if h.shape[1] == 0:
                return h
            for index, block in enumerate(self.plan[r]):
                shares, refresh = c.share_kv and r > 0, c.refresh_kv and r > 0
                own = None if shares and not refresh else states[1][r * len(shared) + index]
                given = keys[index] if shares else None
                h, keys[index] = self._run(shared[block], h, own, tokens, given, refresh, c.share_kv)
            return h

        sampling = state is not None or not self.training
        x = self.recursion(x, tokens, step, sampling=sampling)
        for block, own in zip(last, states[2], strict=True):
            x = self._run(block, x, own, seq_idx)
        return x

    def state_size(self, length: int) -> int:
        """Numbers the state holds for one sequence after ``length`` tokens if (R - r) / R of them pass recursion r, for
        which both routers are trained; what a text really took is the state's ``nbytes``."""
        first, inner, last = self._split(self.mixers)
        shared = self.config.depth - 2 * self.ends
        lengths = [self.recursion.capacity(index // shared, length) for index in range(len(inner))]
        return sum(mixer.state_size(length) for mixer in [*first, *last]) + sum(
            mixer.state_size(active) for mixer, active in zip(inner, lengths, strict=True)
        )

    def init_from(self, source: LanguageModel, how: str = "stepwise") -> None:
        """Begin with the weights of a pretrained transformer, whose inner layers give the shared blocks.

        Args:
            source: a transformer of the same widths, with at least as many blocks as the recursions run.
            how: "stepwise" layers, the "average" of those a block stands for, the "lower" or "upper" ones, or "random".

        Raises:
            ValueError: for another ``how``, or a source that does not fit.
        """
        init_recursions(self, source, self.ends, self.plan, how)

    def num_unrolled_blocks(self) -> int:
        """Blocks that a token of full depth passes."""
        return 2 * self.ends + sum(len(blocks) for blocks in self.plan)

    def _split(self, parts: Any) -> tuple[Any, Any, Any]:
        """The parts of the first block, of the recursions and of the last block."""
        end = len(parts) - self.ends
        return parts[: self.ends], parts[self.ends : end], parts[end:]

    def _run(self, block: nn.Module, x: Tensor, state: Any, *arguments: Any) -> Any:
        if self.grad_checkpointing and self.training and state is None:
            return checkpoint(block, x, None, *arguments, use_reentrant=False)
        return block(x, state, *arguments)


_register = partial(
    register_model,
    MoRLanguageModel,
    task="language",
    family="mor",
    paper=Paper(
        "Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level Computation",
        "2507.10524",
        2025,
    ),
)


@_register()
def mor_nano():
    return MoRConfig(vocab_size=256, dim=128, depth=4, num_heads=4, num_kv_heads=2, mlp_dim=384)


@_register()
def mor_135m():
    return MoRConfig(dim=576, depth=11, num_heads=9, num_kv_heads=3, mlp_dim=1536)


@_register()
def mor_360m():
    return MoRConfig(dim=960, depth=12, num_heads=15, num_kv_heads=5, mlp_dim=2560)


@_register()
def mor_730m():
    return MoRConfig(dim=1536, depth=10, num_heads=24, num_kv_heads=8, mlp_dim=4096)


@_register()
def mor_1_7b():
    return MoRConfig(dim=2048, depth=9, num_heads=32, mlp_dim=8192)

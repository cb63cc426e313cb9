"""A language model's options and its residual block: what every family extends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.layers import Mixer, RMSNorm, State
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.step import Value, Writer, describes


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Options of every language model."""

    vocab_size: int
    """Tokens the model knows."""
    dim: int
    """Model width."""
    depth: int
    """Blocks."""
    norm_eps: float = 1e-5
    """Added to the mean square in the norms."""
    tie_embeddings: bool = True
    """The head shares the embedding's weight."""
    residual_in_fp32: bool = True
    """The residual stream is float32 also in a low-precision model."""
    initializer_range: float = 0.02
    """Standard deviation of the initial embedding."""

    def __post_init__(self):
        require_positive(self, "vocab_size", "dim", "depth")
        require_ranges(self)


class Block(nn.Module):
    """Pre-norm residual block: x + mixer(norm(x)), then x + mlp(mlp_norm(x)) where there is an MLP."""

    def __init__(
        self,
        config: LanguageConfig,
        mixer: Mixer,
        mlp: nn.Module | None = None,
        norm: Callable[[int, float], nn.Module] = RMSNorm,
    ):
        super().__init__()
        self.norm = norm(config.dim, config.norm_eps)
        self.mixer = mixer
        self.mlp_norm = norm(config.dim, config.norm_eps) if mlp is not None else None
        self.mlp = mlp

    def forward(self, x: Tensor, state: State | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim), in the dtype of the residual stream, -> the same."""
        x = x + self.mixer(self.norm(x), state, seq_idx=seq_idx)
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.feed_forward(self.mlp_norm(x), seq_idx)
        return x

    def remember(self, x: Tensor, state: State, seq_idx: Tensor | None = None) -> None:
        """Advance the state by x (B, T, dim), tokens that go no further."""
        if type(self).forward is not Block.forward:
            self(x, state, seq_idx)
        else:
            self.mixer.remember(self.norm(x), state, seq_idx=seq_idx)

    def feed_forward(self, x: Tensor, seq_idx: Tensor | None) -> Tensor:
        """The MLP of x (B, T, dim); experts are not visited by padding, which counts in none of their losses."""
        if isinstance(self.mlp, RoutedExperts):
            return self.mlp(x, None if seq_idx is None else seq_idx >= 0)
        return self.mlp(x)  # type: ignore[misc]


@describes(Block)
def _block(program: Writer, block: Block, x: Value) -> Value:
    program.accumulate(x, program.call(block.mixer, program.call(block.norm, x)))
    if block.mlp is not None and block.mlp_norm is not None:
        program.accumulate(x, program.call(block.mlp, program.call(block.mlp_norm, x)))
    return x

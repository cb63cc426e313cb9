"""DRoPE: agents of a scene that attend to one another by relative place and relative heading.

Paper: Zhao et al., "DRoPE: Directional Rotary Position Embedding for Efficient Agent Interaction Modeling", arXiv
2503.15029. No code and no sizes of its models could be found: the encoder around its attention, the frequencies of
places, which channels turn by what and all widths are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from zoo.config import require_positive
from zoo.layers.attention import AgentAttention, HeadByHead, IntraHead
from zoo.layers.attention.agents import Tables
from zoo.layers.positions import directional_tables, planar_tables, rotary_tables
from zoo.layers.sequence_block import EncoderBlock
from zoo.registry import Paper, register_model
from zoo.sequence.base import RegressorConfig, SequenceRegressor

COMBINATIONS: dict[str, Callable[[int, int], HeadByHead | IntraHead]] = {
    "head-by-head": HeadByHead,
    "intra-head": IntraHead,
}
HEADINGS: dict[str, Callable[[Tensor, int, float], tuple[Tensor, Tensor]]] = {
    "directional": lambda headings, dim, base: directional_tables(headings, dim, headings.dtype),
    "rotary": lambda headings, dim, base: rotary_tables(headings, dim, base, headings.dtype),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DRoPEConfig(RegressorConfig):
    """Options of the agents' encoder."""

    combination: str = "intra-head"
    """How place and heading share attention: "head-by-head", a half of the heads each, or "intra-head", a half of every
    head's channels each."""
    heading: str = "directional"
    """How a heading turns: "directional", every pair by the heading itself; or, which the paper argues against,
    "rotary", as if it were a position."""
    rope_base: float = 10000.0
    """Wavelength base of places, and of headings that are taken for positions."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "num_heads")
        if self.in_features < 4:
            raise ValueError(
                f"an agent is x, y, heading and at least one attribute: in_features must be 4 or more, got "
                f"{self.in_features}"
            )
        for field, known in (("combination", COMBINATIONS), ("heading", HEADINGS)):
            if getattr(self, field) not in known:
                raise ValueError(f"{field} must be one of {', '.join(known)}, got {getattr(self, field)!r}")


class DRoPEModel(SequenceRegressor):
    """Agents (x, y, heading in radians, attributes) of a scene to what is asked of each, such as what comes next.

    The encoder sees an agent's attributes alone. Place and heading enter by attention, relative to the others': scenes
    that are moved give the same, and with directional headings so do scenes in which all turn on the spot by one angle,
    or one of them by 2 pi. A scene turned as a whole is another one: rotary places are relative along two fixed axes.
    """

    config: DRoPEConfig

    def __init__(self, config: DRoPEConfig):
        super().__init__(config, config.in_features - 3)
        self.turning: int = cast(Any, self.blocks[0]).mixer.turn.dim  # channels of a head that turn by one of the two

    def build_block(self) -> nn.Module:
        """Layer norm and attention, layer norm and MLP."""
        c = self.config
        turn = COMBINATIONS[c.combination](c.dim // c.num_heads, c.num_heads)
        return EncoderBlock(c.dim, AgentAttention(c.dim, c.num_heads, turn), c.mlp_dim)

    def build_norm(self) -> nn.Module:
        """A layer norm."""
        return nn.LayerNorm(self.config.dim)

    def read(self, inputs: Tensor) -> tuple[Tensor, tuple[Tables, Tables]]:
        """The attributes at the model's width; how places and headings turn."""
        places, headings, attributes = inputs[..., :2], inputs[..., 2], inputs[..., 3:]
        base = self.config.rope_base
        turned = HEADINGS[self.config.heading](headings, self.turning, base)
        return self.embed(attributes), (planar_tables(places, self.turning, base, inputs.dtype), turned)


_register = partial(
    register_model,
    DRoPEModel,
    task="sequence-regression",
    family="drope",
    paper=Paper(
        "DRoPE: Directional Rotary Position Embedding for Efficient Agent Interaction Modeling", "2503.15029", 2025
    ),
)


@_register()
def drope_nano():
    return DRoPEConfig(in_features=4, out_features=2, dim=64, depth=2, num_heads=4, mlp_dim=128, rope_base=100.0)

"""Nemotron-H: Mamba-2, a few layers of attention without positions, and feed-forward layers of a squared ReLU.

The published pattern has one letter a layer, "M-M-M-M*-" and so on. Here a block is a mixer with the feed-forward layer
behind it, if there is one, which computes the same: ``depth`` counts mixers.

Paper: NVIDIA, arXiv 2504.03624; the 4B is pruned, Taghibakhshi et al., arXiv 2504.11409. Published sizes.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar

from torch import nn

from zoo.language.hybrid import Mamba2HybridConfig, Mamba2HybridLanguageModel
from zoo.layers.mlp import SquaredReLU
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class NemotronHConfig(Mamba2HybridConfig):
    """Options of Nemotron-H; ``depth`` counts the layers of Mamba-2 and attention."""

    letters: ClassVar[dict[str, str]] = {"mixers": "M*", "mlps": "-."}

    vocab_size: int = 131072


class NemotronHLanguageModel(Mamba2HybridLanguageModel):
    """A stack of Mamba-2 or attention, most with a feed-forward layer."""

    config: NemotronHConfig

    def build_mlp(self) -> nn.Module:
        """Two matrices with a squared ReLU between."""
        return SquaredReLU(self.config.dim, self.config.mlp_dim)


_register = partial(
    register_model,
    NemotronHLanguageModel,
    task="language",
    family="nemotron_h",
    paper=Paper("Nemotron-H: Accurate and Efficient Hybrid Mamba-Transformer Models", "2504.03624", 2025),
)
_published = partial(
    NemotronHConfig, depth=28, mixers="MMMM*" + 3 * "MMMMM*" + "MMMMM", mlps="---.-" + 3 * "----.-" + "-----",
    num_heads=32, num_kv_heads=8, head_dim=128, num_groups=8,
)  # fmt: skip


@_register()
def nemotron_h_nano():
    return NemotronHConfig(
        vocab_size=256, dim=96, depth=4, mixers="MM*M", mlps="-.--", num_heads=4, num_kv_heads=2, mlp_dim=384,
        ssm_dim=192, ssm_head_dim=32, d_state=32, num_groups=2,
    )  # fmt: skip


@_register()
def nemotron_h_4b():
    return _published(dim=3072, mlp_dim=12288, ssm_dim=7168)


@_register()
def nemotron_h_8b():
    return _published(dim=4096, mlp_dim=21504, ssm_dim=8192)

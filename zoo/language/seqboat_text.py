"""SeqBoat as a classifier of token sequences: averages from both sides, and attention among active tokens.

Paper: Ren et al., "Sparse Modular Activation for Efficient Sequence Modeling", arXiv 2306.11197. The sizes
``seqboat_text_lra_*`` are those of the authors' scripts for the text tasks of the Long Range Arena (arXiv 2011.04006;
renll/SeqBoat, experiment/run_lra_*.sh). Where the house differs: text is bytes and ListOps has its 15 symbols, as in
``s4_text``; the classifier is linear, where theirs has a hidden layer; averages are as long as the sequence, where
theirs are cut at 1024 steps; tokens are always compressed, see ``seqboat``.
"""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import Tensor, nn

from zoo.language.classifier import SequenceClassifier, SequenceConfig, padding_last
from zoo.layers.depth import SparseActivationBlock
from zoo.layers.norm import ScaleNorm
from zoo.registry import Paper, register_model
from zoo.sparse_activation import SparseActivationConfig

NORMS = {"layer": nn.LayerNorm, "scale": ScaleNorm}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeqBoatTextConfig(SparseActivationConfig, SequenceConfig):
    """Options of SeqBoat as a classifier of token sequences."""

    norm: str = "scale"
    """The norm after each block: "layer", or "scale", with one weight."""

    def __post_init__(self):
        super().__post_init__()
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")


class SeqBoatTextClassifier(SequenceClassifier):
    """A token embedding, sparsely activated blocks, the mean over the tokens of a sequence, and a classifier of it."""

    config: SeqBoatTextConfig

    def build_block(self, index: int) -> nn.Module:
        """Averages, gated attention, and a norm."""
        c = self.config
        return SparseActivationBlock(c.dim, c.build_mixer(c.dim, c.mixer_drop_rate), NORMS[c.norm], prenorm=False)

    def build_norm(self) -> nn.Module:
        """None: every block ends in one."""
        return nn.Identity()

    def forward_features(self, tokens: Tensor) -> Tensor:
        """As of every classifier; padding is moved to the end, so that it takes no position."""
        self._check(tokens)
        return super().forward_features(padding_last(tokens))


_register = partial(
    register_model,
    SeqBoatTextClassifier,
    task="text-classification",
    family="seqboat_text",
    paper=Paper("Sparse Modular Activation for Efficient Sequence Modeling", "2306.11197", 2023),
)
_lra = partial(SeqBoatTextConfig, dim=128, hidden_dim=256, qk_dim=64, mixer_drop_rate=0.1)


@_register()
def seqboat_text_nano():
    return SeqBoatTextConfig(
        vocab_size=15, num_classes=10, dim=48, depth=3, hidden_dim=96, qk_dim=24, d_state=8, window=16, norm="layer"
    )


@_register()
def seqboat_text_lra_listops():
    return _lra(
        vocab_size=15, num_classes=10, dim=80, depth=6, hidden_dim=160, max_distance=2001, norm="layer"
    )  # fmt: skip


@_register()
def seqboat_text_lra_text():
    return _lra(vocab_size=256, num_classes=2, depth=4)


@_register()
def seqboat_text_lra_retrieval():
    return _lra(vocab_size=256, num_classes=2, pair=True, depth=6, max_distance=4001)

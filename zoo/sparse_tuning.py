"""A language model fine-tuned with few keys a query, few blocks of its feed-forward layers a token, and low ranks."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from torch import nn

from zoo.changes import Change, apply
from zoo.layers.attention import CausalAttention
from zoo.layers.attention.code_matched import CodeMatchedAttention
from zoo.layers.lowrank.lora import LoRA
from zoo.layers.mlp import SwiGLU
from zoo.layers.moe.routed_blocks import RoutedBlocks
from zoo.layers.options import require_at_least

Model = TypeVar("Model", bound=nn.Module)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseTuning(Change, kind="sparse_tuning"):
    """Attention among matching keys, routed blocks and low ranks; the fields are those of ``sparse_tuning``."""

    keys: int | None = 64
    blocks: int = 4
    active_blocks: int = 2
    rank: int = 16
    codewords: int = 16
    codeword_dim: int = 8
    clamp: float | None = None

    def install(self, model: nn.Module) -> None:
        """Put the layers in place and freeze all but what they add."""
        require_at_least(1, rank=self.rank)
        attention: dict[str, Any] = {name: m for name, m in model.named_modules() if _is_whole(m)}
        mlps: dict[str, Any] = {name: m for name, m in model.named_modules() if _is_gated(m)}
        if not attention and not mlps:
            raise ValueError(
                "sparse_tuning takes a model with whole softmax attention or SwiGLU, "
                f"{type(model).__name__} has neither"
            )
        made: dict[str, nn.Module] = {}
        if self.keys is not None:
            made |= {name: self._matched(layer) for name, layer in attention.items()}
        if self.active_blocks != self.blocks:
            made |= {name: self._routed(layer) for name, layer in mlps.items()}
        model.requires_grad_(False)
        for name, module in made.items():
            _put(model, name, module)
        linears = [f"{name}.{part}" for name in attention for part in PROJECTIONS]
        linears += [f"{name}.{part}" for name in mlps if name not in made for part in ("w1", "w3", "w2")]
        for name in linears:
            layer: Any = model.get_submodule(name)
            _put(model, name, LoRA(layer, self.rank))

    def _matched(self, layer: CausalAttention) -> CodeMatchedAttention:
        codes = {"codewords": self.codewords, "codeword_dim": self.codeword_dim, "clamp": self.clamp}
        return CodeMatchedAttention.of(layer, keys=self.keys, **codes)

    def _routed(self, layer: SwiGLU) -> RoutedBlocks:
        weight = layer.w1.weight
        with weight.device:
            made = RoutedBlocks(weight.shape[1], weight.shape[0], self.blocks, self.active_blocks, self.rank, layer.act)
        made.to(weight.dtype).take(layer)
        return made.train(layer.training)


def sparse_tuning(
    model: Model,
    *,
    keys: int | None = 64,
    blocks: int = 4,
    active_blocks: int = 2,
    rank: int = 16,
    codewords: int = 16,
    codeword_dim: int = 8,
    clamp: float | None = None,
) -> Model:
    """Prepare a softmax language model for fine-tuning by SPT, in place.

    Each query attends to the ``keys`` whose product-quantised codes are most like its own, each token takes
    ``active_blocks`` of the ``blocks`` of a SwiGLU's inner channels, and of the matrices only low ranks beside them
    learn, with codebooks and routers; all else is frozen. The codebooks' loss is a side loss
    (``zoo.auxiliary_losses``), which the training tasks add. Where all keys are seen and all blocks active the
    untrained model computes what it did, and this is LoRA.

    Whole attention without softcap and sinks and SwiGLU without biases are replaced; windows, recurrences and experts
    stay as they are, frozen. The change is saved with the model, and a recipe asks for it by
    ``model_args: {changes: [{kind: sparse_tuning}]}``.

    Args:
        model: a language model of plain weights.
        keys: that a query sees at most, see ``CodeMatchedAttention``; None leaves attention whole.
        blocks: that the inner channels of a feed-forward layer are cut into.
        active_blocks: that a token takes; with all of them the layer is whole, as it was.
        rank: of the matrices that learn.
        codewords: of each part of a head.
        codeword_dim: channels of a part.
        clamp: bound of the logits of matched attention, 10 in the authors' code; None for none.

    Returns:
        The model.

    Raises:
        ValueError: for a model without such layers, numbers that do not divide its widths, or options below 1. Nothing
            is changed then.

    Paper: Gui et al., "SPT: Fine-Tuning Transformer-based Language Models Efficiently with Sparsification", arXiv
    2312.10365; the authors' code, github.com/ytgui/SPT-proto.
    """
    change = SparseTuning(
        keys=keys, blocks=blocks, active_blocks=active_blocks, rank=rank, codewords=codewords,
        codeword_dim=codeword_dim, clamp=clamp,
    )  # fmt: skip
    apply(model, change)
    return model


def _is_whole(module: nn.Module) -> bool:
    """Whether it is attention to all keys, without what matched attention does not have."""
    return type(module) is CausalAttention and module.softcap is None and module.sinks is None


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _is_gated(module: nn.Module) -> bool:
    return type(module) is SwiGLU and module.w1.bias is None

"""A model without the layers that change least of what goes through them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.changes import Change, apply
from zoo.generate import evaluating
from zoo.language.base import LanguageModel
from zoo.quantize.calibration import Calibration, Given

Model = TypeVar("Model", bound=nn.Module)
NUMBERED = ("reweaving", "context_predictors", "head_roles")  # what other changes leave on a language model


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunedLayers(Change, kind="pruned_layers"):
    """A language model, or that of a vision-language model, without some of its blocks."""

    layers: tuple[int, ...] = ()
    """Numbers of the blocks that go, as they were counted before."""

    def install(self, model: nn.Module) -> None:
        """Take them out; the others keep their weights, and have keys and values alone."""
        language = language_of(model)
        count = len(language.blocks)
        if found := [name for name in NUMBERED if hasattr(language, name)]:
            raise ValueError(
                f"layers go before what names them by their numbers, got a model with {found[0]}: prune it first"
            )
        if not {*self.layers} <= {*range(count)} or len({*self.layers}) != len(self.layers):
            raise ValueError(f"layers must be different numbers in [0, {count}), got {list(self.layers)}")
        if len(self.layers) == count:
            raise ValueError(f"a model has a layer at least, and all {count} were to go: leave one")
        kept = (block for index, block in enumerate(language.blocks) if index not in self.layers)
        language.blocks = nn.ModuleList(kept)


@torch.no_grad()
def layer_importance(model: nn.Module, calibration: Given) -> Tensor:
    r"""How much each block turns what goes through it, (depth,) in float64, from 0 for what leaves it as it is.

    .. math:: I_l = 1 - \mathrm{mean}_t \cos(x_t^l, x_t^{l + 1})

    over all tokens, with the residual streams before and after block l.

    Args:
        model: a language model, or one with one as ``language``, such as a ``Llava``; it is left in its mode.
        calibration: what it is called with, as ``zoo.quantize`` takes it: tokens (B, T), a list of such batches, or of
            tuples of images and tokens.

    Raises:
        ValueError: for a model whose blocks are not run one after the other.

    Paper: Yang et al., "EfficientVLA", arXiv 2506.10100, section on the language module.
    """
    blocks = language_of(model).blocks
    seen = Calibration.of(calibration, model)
    seen.check(model)
    total, count = torch.zeros(len(blocks), dtype=torch.float64), [0] * len(blocks)

    def watch(index: int):
        def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            cosine = F.cosine_similarity(inputs[0].double(), output.double(), dim=-1)
            total[index] += (1 - cosine).sum().cpu()
            count[index] += cosine.numel()

        return see

    handles = [block.register_forward_hook(watch(index)) for index, block in enumerate(blocks)]
    try:
        with evaluating(model):
            seen.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return total / torch.tensor(count, dtype=torch.float64)


def prune_layers(model: Model, count: int, calibration: Given) -> Model:
    """Take ``count`` blocks out of a model, in place: those that turn least of what goes through them.

    They need not be neighbours, and each is judged with all others in place, so what two neighbours add up to is not
    seen. No training is needed, and none is done.

    Args:
        model: see ``layer_importance``.
        count: blocks that go; 0 leaves the model as it is, bit for bit.
        calibration: by which they are judged.

    Returns:
        The model; ``zoo.save_model`` keeps what was taken out.

    Raises:
        ValueError: for a model whose blocks are not run one after the other, or as many blocks as there are.

    Paper: Yang et al., "EfficientVLA", arXiv 2506.10100: 22 of a policy's 32 blocks stay. That it also leaves out a
    quarter of the hidden numbers of their MLPs is ``zoo.subnetwork``'s business.
    """
    depth = len(language_of(model).blocks)
    if not 0 <= count < depth:
        raise ValueError(f"count must be in [0, {depth}), so that a layer stays, got {count}")
    if count:
        least = layer_importance(model, calibration).argsort(stable=True)[:count]
        apply(model, PrunedLayers(layers=tuple(sorted(least.tolist()))))
    return model


def language_of(model: Any) -> LanguageModel:
    """The language model that a model is or has.

    Raises:
        ValueError: for one without, or whose blocks are not run one after the other.
    """
    language = model if isinstance(model, LanguageModel) else getattr(model, "language", None)
    if (
        not isinstance(language, LanguageModel)
        or type(language).forward_blocks is not LanguageModel.forward_blocks
        or not language.straight
        or language.shared_modules
        or language.exits is not None
    ):
        raise ValueError(
            f"layers are pruned of a language model whose blocks run one after the other, got {type(model).__name__}"
        )
    return language

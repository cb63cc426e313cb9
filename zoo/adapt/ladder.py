"""LST: a narrow network beside the blocks of a frozen one."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from zoo.adapt.method import Adapter
from zoo.language.base import LanguageModel
from zoo.layers.adapt.ladder import Rung
from zoo.layers.adapt.marks import device_of
from zoo.layers.options import require_at_least
from zoo.layers.precision import computes_in

REDUCTIONS = (2, 3, 4, 6, 8, 12, 16)  # that an error names where they fit
WIDTHS = ("dim", "mlp_dim", "head_dim", "expert_dim", "ssm_dim")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladder(Adapter, kind="ladder"):
    """A network of the model's own blocks, ``reduction`` times as narrow, reads what they make and adds to the last of
    it; the model runs without gradients. It cannot be merged, and both are run ever after.

    Its weights are fresh; the authors begin with those pruned out of the model, as
    ``zoo.adapt.pruned.prune_into_ladder`` does (in a recipe the callback ``zoo.train.adapt.PrunedLadder``).

    Paper: see ``zoo.layers.adapt.ladder.Rung``.
    """

    adds = ("enter", "down", "gate", "side", "close", "up")
    inner = "block"
    alone = True
    mergeable = False

    reduction: int = 8
    """The model's widths over the ladder's."""
    every: int = 1
    """Blocks a rung: the last block has one, and each as many before."""

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The blocks, each with its rung."""
        require_at_least(1, reduction=self.reduction, every=self.every)
        known: Any = model
        name = type(model).__name__
        if (
            not isinstance(model, LanguageModel)
            or type(model).forward_blocks is not LanguageModel.forward_blocks
            or not model.straight
            or model.exits is not None
        ):
            raise ValueError(f"a ladder takes a language model whose blocks run one after the other, got {name}")
        if known.stream_dim != known.config.dim:
            raise ValueError(
                f"a ladder takes a model between whose blocks nothing runs but the residual stream, got {name}, with "
                f"{known.stream_dim} numbers a token for dim={known.config.dim}: take lora or paca"
            )
        if self.targets:
            raise ValueError(f"a ladder stands beside the whole model, got targets {self.targets}")
        like = computes_in(model)
        with device_of(like):
            side: Any = self.beside(model).to(like.dtype)
            last, width = len(model.blocks) - 1, side.config.dim
            made: dict[str, nn.Module] = {}
            for index, block in enumerate(model.blocks):
                rung = side.blocks[index] if (last - index) % self.every == 0 else None
                ends = {"first": index == 0, "norm": side.norm if index == last else None}
                made[f"blocks.{index}"] = Rung(block, rung, known.config.dim, width, dtype=like.dtype, **ends)
        return made

    def beside(self, model: Any) -> nn.Module:
        """The network beside a model, with fresh weights.

        Raises:
            ValueError: there is none so narrow.
        """
        try:
            return type(model)(narrowed(model.config, self.reduction))
        except ValueError as error:
            able = ", ".join(str(reduction) for reduction in REDUCTIONS if _fits(model, reduction))
            raise ValueError(
                f"no ladder of reduction={self.reduction} stands beside {type(model).__name__} ({error}): "
                f"{f'take a reduction of {able}' if able else 'take lora or paca'}"
            ) from error


def narrowed(config: Any, reduction: int) -> Any:
    """A configuration of widths so many times as narrow, of one token.

    Raises:
        ValueError: for widths that cannot be divided so.
    """
    widths = {name: getattr(config, name) for name in WIDTHS if getattr(config, name, None)}
    if odd := {name: width for name, width in widths.items() if width % reduction}:
        raise ValueError(f"it must divide the model's widths, among them {odd}")
    narrow = {name: width // reduction for name, width in widths.items()}
    return dataclasses.replace(config, vocab_size=1, tie_embeddings=True, **narrow)


def _fits(model: Any, reduction: int) -> bool:
    try:
        with torch.device("meta"):
            type(model)(narrowed(model.config, reduction))
    except ValueError:
        return False
    return True

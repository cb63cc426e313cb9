"""Where a ladder begins: with weights pruned out of the model that it stands beside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers import CausalAttention, SwiGLU
from zoo.layers.adapt.ladder import Rung

LEAST = 1e-30  # beneath a logarithm


def prune_into_ladder(model: nn.Module, samples: Iterable[tuple[Tensor, Tensor]]) -> None:
    r"""Begin the narrow blocks of a ladder with those channels of the model's blocks that matter most, in place.

    What matters is told by the Fisher information of each weight, :math:`\sum_n (\partial L_n / \partial w)^2` over
    samples n of their own loss each. A channel's is the sum over its weights, of which those of channels that are gone
    do not count; where several matrices share a channel (queries and keys, the two halves of a SwiGLU) the logarithms
    are added. The residual stream has one choice of channels, by the embedding, and the heads of a layer have one each
    of their queries and keys, in pairs that turn together, and of their values. With as many channels as the model has
    it is a copy.

    Args:
        model: with a ladder (``zoo.adapt(model, "ladder")``), of blocks of softmax attention and SwiGLU.
        samples: (tokens (1, T), labels (1, T)), see ``LanguageModel.forward``.

    Raises:
        ValueError: for a model without a ladder, or blocks of other layers; nothing has been changed then.

    Paper: Sung et al., "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", arXiv
    2206.06522, section 3.3, and the authors' code. There the channels of the residual stream are chosen anew by each
    matrix that writes to it.
    """
    known: Any = model
    rungs = [block for block in getattr(known, "blocks", ()) if isinstance(block, Rung)]
    if not rungs:
        raise ValueError(f"{type(model).__name__} has no ladder: zoo.adapt(model, 'ladder') puts one beside it")
    for block in [rung.block for rung in rungs if rung.side is not None]:
        attention: Any = block.mixer
        turned = getattr(attention, "rotary", None)
        plain = type(attention) is CausalAttention and type(block.mlp) is SwiGLU and attention.sinks is None
        if not plain or (turned is not None and (turned.dim != attention.head_dim or turned.interleaved)):
            raise ValueError(
                "channels are pruned out of blocks of softmax attention with SwiGLU, got "
                f"{type(attention).__name__} with {type(block.mlp).__name__}: begin with fresh weights"
            )
    matters = fisher(model, samples)
    stream = top(matters[known.embedding.weight].sum(0), rungs[0].width)
    for rung in rungs:
        if rung.side is not None:
            _prune_block(rung.block, rung.side, stream, matters)
    if rungs[-1].close is not None:
        _copy(rungs[-1].close, known.norm, stream)


def fisher(model: nn.Module, samples: Iterable[tuple[Tensor, Tensor]]) -> dict[nn.Parameter, Tensor]:
    """The sum of squared gradients of each sample's loss, of the parameters of the model beneath a ladder."""
    with _beneath(model) as parameters:
        found = {parameter: torch.zeros_like(parameter) for parameter in parameters}
        for tokens, labels in samples:
            gradients = torch.autograd.grad(model(tokens, labels=labels), parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    found[parameter] += gradient.square()
    return found


def top(scores: Tensor, count: int) -> Tensor:
    """The indices of the largest, in their order."""
    return scores.topk(count).indices.sort().values


@contextmanager
def _beneath(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Within it a model runs without its ladder, and its own parameters ask for gradients."""
    known: Any = model
    blocks, mode = known.blocks, model.training
    own = [p for rung in blocks for p in (rung.block.parameters() if isinstance(rung, Rung) else rung.parameters())]
    outside = [p for name, child in model.named_children() if name != "blocks" for p in child.parameters()]
    parameters = [p for p in dict.fromkeys([*outside, *own]) if p.is_floating_point()]
    learning = [p.requires_grad for p in parameters]
    try:
        known.blocks = nn.ModuleList(rung.block if isinstance(rung, Rung) else rung for rung in blocks)
        for parameter in parameters:
            parameter.requires_grad_(True)
        model.eval()
        with torch.enable_grad():
            yield parameters
    finally:
        known.blocks = blocks
        for parameter, learns in zip(parameters, learning, strict=True):
            parameter.requires_grad_(learns)
        model.train(mode)


def _prune_block(block: Any, side: Any, stream: Tensor, matters: dict[nn.Parameter, Tensor]) -> None:
    attention, narrow, mlp = block.mixer, side.mixer, block.mlp

    def logs(layer: Any) -> Tensor:
        """Of each row, over the columns of the stream."""
        return matters[layer.weight][:, stream].sum(1).clamp(min=LEAST).log()

    def by_head(layer: Any, heads: int) -> Tensor:
        return logs(layer).view(heads, -1).sum(0)

    turning = by_head(attention.q_proj, attention.num_heads) + by_head(attention.k_proj, attention.num_kv_heads)
    if attention.rotary is None:
        channels = top(turning, narrow.head_dim)
    else:
        pairs = top(turning.view(2, -1).sum(0), narrow.head_dim // 2)
        channels = torch.cat([pairs, pairs + attention.head_dim // 2])
    values = top(by_head(attention.v_proj, attention.num_kv_heads), narrow.head_dim)
    for name, heads, chosen in (
        ("q_proj", attention.num_heads, channels),
        ("k_proj", attention.num_kv_heads, channels),
        ("v_proj", attention.num_kv_heads, values),
    ):
        _copy(getattr(narrow, name), getattr(attention, name), _in_heads(chosen, heads, attention.head_dim), stream)
    _copy(narrow.out_proj, attention.out_proj, stream, _in_heads(values, attention.num_heads, attention.head_dim))
    for name, heads in (("q_norm", attention.num_heads), ("k_norm", attention.num_kv_heads)):
        norm: Any = getattr(attention, name)
        if norm is not None and hasattr(norm, "weight"):
            joint = norm.weight.numel() > attention.head_dim
            _copy(getattr(narrow, name), norm, _in_heads(channels, heads if joint else 1, attention.head_dim))
    hidden = top(logs(mlp.w1) + logs(mlp.w3), side.mlp.w1.out_features)
    _copy(side.mlp.w1, mlp.w1, hidden, stream)
    _copy(side.mlp.w3, mlp.w3, hidden, stream)
    _copy(side.mlp.w2, mlp.w2, stream, hidden)
    for name, norm in block.named_children():
        if name.endswith("norm") and hasattr(norm, "weight"):
            _copy(getattr(side, name), norm, stream)


def _in_heads(channels: Tensor, heads: int, width: int) -> Tensor:
    """The rows of these channels of each head."""
    return (torch.arange(heads, device=channels.device)[:, None] * width + channels).flatten()


@torch.no_grad()
def _copy(narrow: Any, wide: Any, rows: Tensor, columns: Tensor | None = None) -> None:
    weight = wide.weight[rows]
    narrow.weight.copy_(weight if columns is None else weight[:, columns])
    if getattr(wide, "bias", None) is not None:
        narrow.bias.copy_(wide.bias[rows])

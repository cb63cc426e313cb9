"""What each plan does to a model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from zoo.language.base import LanguageModel
from zoo.language.block import Block
from zoo.language.moe import JointlyBalanced
from zoo.language.transformer import PostNormBlock
from zoo.layers import CausalAttention, Mixer
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.report import Reports
from zoo.parallel.experts import sent
from zoo.parallel.local import ALIKE, MEAN, OWN_MEAN, SUMMED, replicate
from zoo.parallel.ring import RINGS, SHARED, share_attention
from zoo.parallel.tensors import SPLITS, Experts, Whole, expert_names, share_experts
from zoo.parallel.tokens import in_parts, in_turns, share_tokens

Names = tuple[list[str], list[str]]


def tensor(model: nn.Module, mesh: DeviceMesh) -> Names:
    """Layers in parts, tokens whole."""
    styles, whole = _styles(model, mesh, sequence=False)
    parallelize_module(model, mesh, dict(styles), src_data_rank=None)
    replicate(model, mesh, ALIKE)
    return list(styles), whole


def sequence(model: nn.Module, mesh: DeviceMesh) -> Names:
    """Layers in parts, and tokens between them."""
    model = _streaming(model, "sequence", "tensor")
    for name, block in model.blocks.named_children():
        if type(block).forward not in (Block.forward, PostNormBlock.forward):
            raise ValueError(
                f"sequence is for blocks of norm, mixer and feed-forward layer, blocks.{name} is a "
                f"{type(block).__name__}: take plan='tensor'"
            )
    styles, whole = _styles(model, mesh, sequence=True)
    around: dict[str, ParallelStyle] = dict.fromkeys(whole, Whole())
    around |= {name: Whole() for name, style in styles.items() if isinstance(style, Experts)}
    parallelize_module(model, mesh, dict(styles), src_data_rank=None)
    parallelize_module(model, mesh, around, src_data_rank=None)
    replicate(model, mesh, SUMMED)
    share_tokens(model, in_parts(mesh))
    return list(styles), whole


def expert(model: nn.Module, mesh: DeviceMesh, node_size: int | None) -> Names:
    """Experts in parts, each process with sequences of its own."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, RoutedExperts)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no experts to share out: take plan='tensor'")
    nodes = None if node_size in (None, mesh.size()) else _nodes(mesh, node_size)
    for layer in layers.values():  # before any of them is changed
        expert_names(layer, mesh.size())
    for layer in layers.values():
        share_experts(layer, mesh, OWN_MEAN)
        layer.visit = MethodType(partial(sent, mesh.get_group(), nodes), layer)  # type: ignore[method-assign]
    replicate(model, mesh, MEAN)
    return list(layers), []


def context(model: nn.Module, mesh: DeviceMesh, ring: str = "context") -> Names:
    """The tokens of a sequence in parts through the whole model."""
    model = _streaming(model, ring, "sequence")
    for name, module in model.blocks.named_modules():
        known = type(module) in SHARED
        plain = known and module.softcap is None and module.sinks is None
        if (isinstance(module, Mixer) and not plain) or isinstance(module, Reports):
            raise ValueError(
                f"{ring} is for causal attention, with or without a window, and layers of single tokens, blocks.{name} "
                f"is a {type(module).__name__}{' with a softcap or sinks' * known}: take plan='tensor'"
            )
    names = [name for name, module in model.named_modules() if isinstance(module, CausalAttention)]
    for name in names:
        share_attention(model.get_submodule(name), mesh, RINGS[ring])  # type: ignore[arg-type]
    replicate(model, mesh, SUMMED)
    # NCCL's first messages in a group must be of all its processes, and a window may leave some with none
    dist.all_reduce(torch.zeros(1, device=mesh.device_type), group=mesh.get_group())
    share_tokens(model, in_turns(mesh))
    return names, []


def token_ring(model: nn.Module, mesh: DeviceMesh) -> Names:
    """The same, queries going round."""
    return context(model, mesh, "token_ring")


MAKES = {"tensor": tensor, "sequence": sequence, "expert": expert, "context": context, "token_ring": token_ring}


PLAINLY = {  # what tokens in parts go through, and whose it may be
    name: {getattr(kind, name) for kind in (LanguageModel, JointlyBalanced)}
    for name in ("forward", "forward_residual", "forward_blocks", "loss", "cross_entropy", "read_out")
}


def _styles(model: nn.Module, mesh: DeviceMesh, *, sequence: bool) -> tuple[dict[str, Any], list[str]]:
    """How layers are shared, and which stay whole: the outermost ones that hold parameters and are not blocks."""
    styles: dict[str, Any] = {}
    whole: list[str] = []
    for name, module in _layers(model):
        style: Any = None
        if isinstance(module, RoutedExperts):
            expert_names(module, mesh.size())
            style = Experts()
        elif type(module) in SPLITS:
            style = SPLITS[type(module)](module, mesh.size())
            if style is not None:
                style.check(module)
                style.sequence = sequence
        if style is not None:
            styles[name] = style
        elif isinstance(module, Mixer) or name.endswith(".mlp"):
            whole.append(name)
    # the layers that experts have besides them, whose tokens are those of all processes
    for name in [name for name, style in styles.items() if isinstance(style, Experts)]:
        shared: Any = getattr(model.get_submodule(name), "shared", None)
        if type(shared) in SPLITS and (style := SPLITS[type(shared)](shared, mesh.size())) is not None:
            style.check(shared)
            styles[f"{name}.shared"] = style
    if not styles:
        kinds = ", ".join(sorted({type(module).__name__ for _, module in _layers(model)})) or "none"
        raise ValueError(
            f"{type(model).__name__} has no layers that can be shared out: its mixers and MLPs are {kinds}"
        )
    return styles, whole


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers that could be shared out, none within another."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{other}.") for other in inside):
            continue
        if type(module) in SPLITS or isinstance(module, (RoutedExperts, Mixer)) or name.endswith(".mlp"):
            inside.append(name)
            yield name, module


def _streaming(model: nn.Module, plan: str, other: str) -> LanguageModel:
    """The model, if its tokens can be in parts.

    Raises:
        ValueError: otherwise.
    """
    straight = isinstance(model, LanguageModel) and model.straight and model.exits is None
    own = [name for name, known in PLAINLY.items() if getattr(type(model), name, None) not in known]
    if not straight or own:
        raise ValueError(
            f"{plan} takes a language model of blocks one after the other, got {type(model).__name__}"
            f"{' with its own ' * bool(own)}{', '.join(own)}: take plan={other!r}"
        )
    return model  # type: ignore[return-value]


def _nodes(mesh: DeviceMesh, node_size: int) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """The processes of the same node, and those of the same place in all nodes."""
    ranks = dist.get_process_group_ranks(mesh.get_group())
    nodes = [ranks[start : start + node_size] for start in range(0, len(ranks), node_size)]
    within, _ = dist.new_subgroups_by_enumeration(nodes)
    across, _ = dist.new_subgroups_by_enumeration([list(place) for place in zip(*nodes, strict=True)])
    return within, across  # type: ignore[return-value]

"""Layers whose width processes share out: torch's own plans for their linear layers, and what else they hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from zoo.layers import CausalAttention, Mamba, Mamba2, SlidingWindowAttention
from zoo.layers.attention import Attention, GatedAttention
from zoo.layers.mlp import Mlp, SquaredReLU, SwiGLU
from zoo.layers.moe.experts import RoutedExperts
from zoo.layers.norm import GatedRMSNorm, JointRMSNorm
from zoo.parallel.collectives import copied, gathered, joined, parted, summed
from zoo.parallel.experts import at_home
from zoo.parallel.local import ALIKE, SUMMED, Held, localize, replicate

SPLITS: dict[type[nn.Module], Callable[[Any, int], Shared | None]] = {}


class Shared(ParallelStyle):
    """How the processes share a layer: a plan of torch's for its linear layers, and what happens around them.

    Args:
        plan: linear layer -> "columns", of which each process has some outputs, or "rows", some inputs.
        held: module within, "" for the layer -> parameter -> how it is held.
        sizes: attributes of modules within that are as much smaller as there are processes.
        own: the layer's input is a plain tensor, not one of torch's distributed ones.
        partial: modules within whose outputs are parts of a sum that all read.

    Attributes:
        sequence: tokens between layers are shared out, too; the layer itself sees all of them.
    """

    def __init__(
        self,
        plan: dict[str, str],
        held: dict[str, dict[str, Held]] | None = None,
        sizes: dict[str, tuple[str, ...]] | None = None,
        own: bool = False,
        partial: tuple[str, ...] = (),
    ):
        super().__init__()
        self.plan, self.held, self.sizes, self.own, self.partial = plan, held or {}, sizes or {}, own, partial
        self.sequence = False

    def check(self, module: nn.Module) -> None:
        """Raise a ValueError where something has taken the place of what is shared out."""
        plain = [name for name in self.plan if type(module.get_submodule(name)) is nn.Linear]
        plain += [name for name, held in self.held.items() if "weight" not in held or _has_weight(module, name)]
        for name in (*self.plan, *self.held):
            if name not in plain:
                raise ValueError(
                    f"{name} of a {type(module).__name__} is no plain layer but a "
                    f"{type(module.get_submodule(name)).__name__}: share the model out before it is quantised, and "
                    "merge adapters first"
                )

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layout = Shard(1) if self.sequence else Replicate()
        styles: dict[str, ParallelStyle] = {
            name: ColwiseParallel() if kind == "columns" else RowwiseParallel(output_layouts=layout)
            for name, kind in self.plan.items()
        }
        parallelize_module(module, device_mesh, styles, src_data_rank=None)
        for name, held in self.held.items():
            part = module.get_submodule(name)
            there = {key: how for key, how in held.items() if part._parameters.get(key) is not None}
            localize(part, device_mesh, there)
        for name, attributes in self.sizes.items():
            part = module.get_submodule(name)
            for attribute in attributes:
                setattr(part, attribute, _divided(getattr(part, attribute), device_mesh.size()))
        group = device_mesh.get_group()
        for name in self.partial:
            module.get_submodule(name).register_forward_hook(lambda _, __, y: copied(summed(y, group), group))
        module.register_forward_pre_hook(lambda _, inputs: self._enter(device_mesh, inputs))
        return module

    def _enter(self, mesh: DeviceMesh, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = inputs
        if self.own:
            group = mesh.get_group()
            return (gathered(x, group, 1) if self.sequence else copied(x, group), *rest)
        layout = Shard(1) if self.sequence else Replicate()
        return (DTensor.from_local(x, mesh, [layout], run_check=False).redistribute(placements=[Replicate()]), *rest)


class Whole(ParallelStyle):
    """A layer that every process computes wholly, where the tokens around it are shared out."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        group = device_mesh.get_group()
        replicate(module, device_mesh, ALIKE)
        module.register_forward_pre_hook(lambda _, inputs: (joined(inputs[0], group, 1), *inputs[1:]))
        module.register_forward_hook(lambda _, __, output: parted(output, group, 1))  # type: ignore[arg-type]
        return module


class Experts(ParallelStyle):
    """Experts of which each process has some, for tokens that all have."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        share_experts(module, device_mesh, ALIKE)  # type: ignore[arg-type]
        module.visit = MethodType(partial(at_home, device_mesh.get_group()), module)  # type: ignore[assignment]
        return module


def share_experts(layer: RoutedExperts, mesh: DeviceMesh, gradient: str) -> None:
    """Each process holds the matrices of some of the experts."""
    localize(layer, mesh, {name: Held(Shard(0), gradient) for name in expert_names(layer, mesh.size())})


def expert_names(layer: RoutedExperts, processes: int) -> list[str]:
    """The matrices of experts that so many processes can share out; raises a ValueError where they cannot."""
    require_shares(processes, f"the experts of {type(layer).__name__}", num_experts=layer.num_experts)
    own = {id(weight) for weight in layer.expert_parameters()}
    names = [name for name, parameter in layer.named_parameters(recurse=False) if id(parameter) in own]
    if len(names) < len(own):
        raise ValueError("experts are shared out as plain matrices, some of these are factors or compressed")
    return names


def require_shares(processes: int, what: str, **sizes: int) -> None:
    """Raise a ValueError where processes cannot have equal parts."""
    if wrong := {name: size for name, size in sizes.items() if size % processes}:
        told = ", ".join(f"{name} {size}" for name, size in wrong.items())
        raise ValueError(
            f"{processes} processes have equal parts of {what}: got {told}, which they do not divide; take a mesh of "
            "other processes, or a model of other sizes"
        )


def splits(*kinds: type[nn.Module]) -> Callable[[Callable[[Any, int], Shared | None]], Any]:
    """Say how layers of these types, and not of subclasses, are shared among so many processes; None: they are not."""

    def note(function: Callable[[Any, int], Shared | None]) -> Any:
        SPLITS.update(dict.fromkeys(kinds, function))
        return function

    return note


@splits(CausalAttention, SlidingWindowAttention, GatedAttention)
def _attention(layer: CausalAttention, processes: int) -> Shared | None:
    """Heads."""
    if isinstance(layer.q_norm, JointRMSNorm) or isinstance(layer.k_norm, JointRMSNorm):
        return None  # which counts all heads
    heads = {"num_heads": layer.num_heads, "num_kv_heads": layer.num_kv_heads}
    require_shares(processes, "the heads of attention", **heads)
    plan = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "columns") | {"out_proj": "rows"}
    if isinstance(layer, GatedAttention):
        plan["gate_proj"] = "columns"
    held = {"": {"sinks": Held(Shard(0))}}
    for name in ("q_norm", "k_norm"):
        held[name] = dict.fromkeys(layer.get_submodule(name)._parameters, Held(gradient=SUMMED))
    return Shared(plan, held, {"": ("num_heads", "num_kv_heads")})


@splits(Attention)
def _full_attention(layer: Attention, processes: int) -> Shared:
    """Heads of vision's attention, whose projections are one matrix."""
    require_shares(processes, "the heads of attention", num_heads=layer.num_heads)
    part = Held(Shard(0), sections=(layer.proj.in_features,) * 3)
    return Shared({"proj": "rows"}, {"qkv": {"weight": part, "bias": part}}, {"": ("num_heads",)}, own=True)


@splits(SwiGLU, SquaredReLU)
def _gated(layer: Any, processes: int) -> Shared:
    """Channels of the hidden layer."""
    require_shares(processes, "the channels of the feed-forward layer", hidden_dim=layer.w1.out_features)
    return Shared({"w1": "columns", "w2": "rows"} | ({"w3": "columns"} if hasattr(layer, "w3") else {}))


@splits(Mlp)
def _mlp(layer: Mlp, processes: int) -> Shared | None:
    if layer.drop.p:
        return None  # each process would drop others
    require_shares(processes, "the channels of the feed-forward layer", hidden_dim=layer.fc1.out_features)
    return Shared({"fc1": "columns", "fc2": "rows"})


@splits(Mamba2)
def _mamba2(layer: Mamba2, processes: int) -> Shared:
    """Heads with their groups (arXiv 2405.21060, section 8.1): without a group of its own a process would need the B
    and C of others, and the norm their channels."""
    require_shares(processes, "the groups of Mamba-2's heads", num_groups=layer.num_groups)
    grouped = layer.num_groups * layer.d_state
    inner = Held(Shard(0), sections=(layer.d_inner, layer.d_inner, grouped, grouped, layer.num_heads))
    taps = Held(Shard(0), sections=(layer.d_inner, grouped, grouped))
    held = {
        "": dict.fromkeys(("dt_bias", "A_log", "D"), Held(Shard(0))),
        "in_proj": {"weight": inner, "bias": inner},
        "conv1d": {"weight": taps, "bias": taps},
    }
    sizes: dict[str, tuple[str, ...]] = {"": ("d_inner", "conv_dim", "num_groups", "num_heads", "multipliers")}
    if isinstance(layer.norm, GatedRMSNorm):
        held["norm"], sizes["norm"] = {"weight": Held(Shard(0))}, ("num_groups",)
    return Shared({"out_proj": "rows"}, held, sizes, own=True)


@splits(Mamba)
def _mamba(layer: Mamba, processes: int) -> Shared:
    """Channels; step sizes, B and C, which read them all, are added up."""
    require_shares(processes, "the channels of Mamba", d_inner=layer.d_inner)
    inner, part = Held(Shard(0), sections=(layer.d_inner, layer.d_inner)), Held(Shard(0))
    held = {
        "": {"A_log": part, "D": part},
        "in_proj": {"weight": inner, "bias": inner},
        "conv1d": {"weight": part, "bias": part},
        "dt_proj": {"weight": part, "bias": part},
        "x_proj": {"weight": Held(Shard(1))},
    }
    for name in ("dt_norm", "b_norm", "c_norm"):
        held[name] = dict.fromkeys(layer.get_submodule(name)._parameters, Held(gradient=SUMMED))
    return Shared({"out_proj": "rows"}, held, {"": ("d_inner",)}, own=True, partial=("x_proj",))


def _has_weight(module: nn.Module, name: str) -> bool:
    return module.get_submodule(name)._parameters.get("weight") is not None


def _divided(size: Any, processes: int) -> Any:
    if isinstance(size, int):
        return size // processes
    return tuple((width // processes, scale) for width, scale in size)  # multipliers of Mamba-2

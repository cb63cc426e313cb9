"""LoRA by peft inside a model of the zoo, and which matrices of Mamba it is put on."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from zoo.layers.ssm.steps import selective

Model = TypeVar("Model", bound=nn.Module)
FUSED = ("in_proj", "x_proj")  # what makes dt, B, C, x and z, several of them by one matrix
RECURRENT = ("A_log", "D", "dt_bias")


def inject(model: Model, targets: Sequence[str], rank: int, alpha: float) -> Model:
    """LoRA, (alpha / rank) B A x with B = 0 at first, on linear layers, in place; other parameters learn as they did.

    Args:
        targets: names of the layers.

    Raises:
        ImportError: without peft.
    """
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install efficient-zoo[peft]") from error
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)), model)
    for name, parameter in model.named_parameters():  # peft froze them all
        parameter.requires_grad_("lora_" in name or name.replace(".base_layer", "") in free)
    return model


def merge(model: Model) -> Model:
    """Add what LoRA has learnt to the weights beneath it, in its place; every parameter learns again."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "get_base_layer"):
            layer: Any = module
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model.requires_grad_(True)


def mamba_lora(model: Model, rank: int = 8, alpha: float = 16.0, *, output: bool = False, ssm: bool = False) -> Model:
    r"""Freeze a model but for LoRA on the matrices that make the parameters of its Mamba and Mamba-2 recurrences.

    in_proj makes x and z, with Mamba-2 also B, C and :math:`\Delta`; Mamba's x_proj makes what :math:`\Delta`, B and C
    are made of. One adapter on such a matrix is an adapter on each of its parts that share A:

    .. math:: W + B A = [W_1 + B_1 A; \dots; W_n + B_n A]

    Args:
        model: with Mamba or Mamba-2 mixers, changed in place; ``merge`` makes it a plain one again.
        rank, alpha: of LoRA.
        output: also on out_proj.
        ssm: A, D and the bias of the step size learn too, all of them.

    Raises:
        ValueError: for a model without such mixers. ImportError: without peft.

    Paper: Halloran et al., "Mamba State-Space Models Are Lyapunov-Stable Learners", arXiv 2406.00209.
    """
    mixers = selective(model)
    wanted = (*FUSED, "out_proj") if output else FUSED
    model.requires_grad_(False)
    for mixer in mixers.values() if ssm else ():
        own = [getattr(mixer, name) for name in RECURRENT if hasattr(mixer, name)]
        for parameter in own if hasattr(mixer, "dt_bias") else [*own, mixer.dt_proj.bias]:
            parameter.requires_grad_(True)
    targets = [f"{name}.{part}" for name, mixer in mixers.items() for part in wanted if hasattr(mixer, part)]
    return inject(model, targets, rank, alpha)

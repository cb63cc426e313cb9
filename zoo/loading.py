"""A model built around the tensors of a checkpoint, without memory of its own for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.checkpoints import fit_state_dict
from zoo.layers.lowrank import ranks_of, restored
from zoo.limits import check_bytes, check_sizes, each_parameter, few_parameters

ALIGNED, SMALL = 64, 1 << 20  # bytes; kernels may sum in another order where memory is not aligned: below, it is copied


class Plan(NamedTuple):
    """A model without memory, the configuration it was built with, and the tensors for exactly its keys."""

    model: Any
    config: Any
    tensors: dict[str, Tensor]


def build_around(
    tensors: Mapping[str, Tensor],
    build: Callable[[Any], nn.Module],
    config: Any,
    source: str,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    known: Any = None,
    changed: Collection[str] = (),
) -> nn.Module:
    """``build(config)`` with the tensors of a checkpoint, under the model's names, as its parameters.

    The model is first built without memory, to see whether the tensors fit. It is then built with real buffers alone,
    and each parameter becomes the checkpoint's tensor itself where device and dtype agree (a memory-mapped file stays
    on the disk until it is used, and is never written to), and a copy where they do not.

    Args:
        tensors: of the checkpoint, under the model's names.
        build: from a configuration to a model.
        config: of the model that is wanted.
        source: name of the checkpoint, for errors.
        device: of the model.
        dtype: of its parameters, see ``create_model``.
        known: see ``plan``.
        changed: see ``plan``; a classifier that differs from the checkpoint's is a fresh one.

    Raises:
        ValueError: naming ``source``, for a configuration that describes no model, or one the tensors do not fit.
    """
    made = plan(tensors, build, config, source, known=known, changed=changed)
    with device, each_parameter(release):
        model: Any = restored(build, ranks_of(tensors))(made.config)
    if dtype is not None:
        cast(model, dtype)
    _assign(model, made.tensors, device)
    if made.config is not config:
        model.reset_classifier(config.num_classes)
    return model


def plan(
    tensors: Mapping[str, Tensor],
    build: Callable[[Any], nn.Module],
    config: Any,
    source: str,
    *,
    known: Any = None,
    changed: Collection[str] = (),
) -> Plan:
    """What ``build_around`` will do: nothing takes memory yet but tensors that are adapted.

    Args:
        known: the configuration that the tensors were made with, where that is known.
        changed: fields in which the model may differ from the tensors, because the caller asked for it: for
            "num_classes" the plan's configuration has the checkpoint's classes, for "in_chans" the first convolution is
            adapted.

    Raises:
        ValueError: naming ``source``, for a configuration that describes no model, or one the tensors do not fit.
    """
    model = without_memory(build, config, tensors, source)
    if "num_classes" in changed and hasattr(model, "reset_classifier"):
        head = tensors.get(f"{getattr(model, 'classifier', 'head')}.weight")
        classes = 0 if head is None else len(head)
        if classes != config.num_classes:
            config = dataclasses.replace(config, num_classes=classes)
            model = without_memory(build, config, tensors, source)
    if "in_chans" in changed and hasattr(model, "first_conv"):
        tensors = adapt_channels(tensors, f"{model.first_conv}.weight", config.in_chans)
    if hasattr(model, "adapt_tensors"):
        tensors = model.adapt_tensors(tensors, known)
    return Plan(model, config, fit_state_dict(tensors, model.state_dict(), tied(model), source))


def without_memory(build: Callable[[Any], nn.Module], config: Any, tensors: Mapping[str, Tensor], source: str) -> Any:
    """``build(config)`` on the meta device, if it describes a model of about the size of a checkpoint's tensors.

    Raises:
        ValueError: naming ``source``, for a configuration that describes none, or one that is far larger.
    """
    try:
        check_sizes(vars(config) if dataclasses.is_dataclass(config) else {}, tensors)
        with torch.device("meta"), few_parameters(tensors):
            model = restored(build, ranks_of(tensors))(config)
        check_bytes(model, tensors)
        return model
    except (ArithmeticError, LookupError, MemoryError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: no model can be built: {error}") from error


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Give floating parameters a dtype; those that a layer keeps wide (``KeepsFloat32``) are at least float32."""
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating dtype, got {dtype}")
    model.to(dtype)


def common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    """The floating dtype that most of the numbers have."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype], default=None)


def tied(model: nn.Module) -> dict[str, str]:
    """Names of tied parameters -> the first name of the same parameter."""
    first: dict[int, str] = {}
    return {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first.setdefault(id(parameter), name) != name
    }


def adapt_channels(tensors: Mapping[str, Tensor], name: str, channels: int) -> dict[str, Tensor]:
    """The tensors of a model for images of as many ``channels``, from those for C_in.

    One channel takes the sum of the filters ``name`` (C_out, C_in, ...): the response to a grey image. Otherwise they
    are repeated in turn, times C_in / channels: the response to equal channels stays, as in timm.
    """
    weight = tensors.get(name)
    if weight is None or not weight.is_floating_point() or weight.dim() < 2 or weight.shape[1] == channels:
        return dict(tensors)
    given = weight.shape[1]
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if channels == 1:
        adapted = weight.sum(1, keepdim=True)
    else:
        adapted = weight[:, torch.arange(channels) % given] * (given / channels)
    return {**tensors, name: adapted}


def release(parameter: nn.Parameter) -> nn.Parameter | None:
    """The parameter on the meta device, None where it is there already; for ``each_parameter``."""
    return None if parameter.is_meta else nn.Parameter(parameter.to("meta"), parameter.requires_grad)


def _assign(model: nn.Module, fitted: Mapping[str, Tensor], device: torch.device) -> None:
    parameters: dict[int, nn.Parameter] = {}
    taken: set[int] = set()
    for prefix, module in model.named_modules():
        for name, empty in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(empty) not in parameters:
                tensor = fitted[f"{prefix}.{name}" if prefix else name].to(device, empty.dtype).contiguous()
                tied_elsewhere = tensor.data_ptr() in taken  # in the checkpoint, but not here
                if tied_elsewhere or (tensor.nbytes < SMALL and tensor.data_ptr() % ALIGNED):
                    tensor = tensor.clone()
                taken.add(tensor.data_ptr())
                parameters[id(empty)] = nn.Parameter(tensor, empty.requires_grad)
            setattr(module, name, parameters[id(empty)])
    buffers = {name for name, _ in model.named_buffers()}
    model.load_state_dict({name: tensor for name, tensor in fitted.items() if name in buffers}, strict=False)

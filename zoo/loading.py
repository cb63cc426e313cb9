"""A model built around the tensors of a checkpoint, without memory of its own for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from zoo.checkpoints import fit_state_dict

REPEATED = ("depth", "depths", "num_layers", "mtp_depth")  # fields that say how often something is built
LONGEST = 1000
ALIGNED, SMALL = 64, 1 << 20  # bytes; kernels may sum in another order where memory is not aligned: below, it is copied


def build_around(
    tensors: Mapping[str, Tensor],
    build: Callable[[Any], nn.Module],
    config: Any,
    device: torch.device,
    dtype: torch.dtype | None,
    source: str,
) -> nn.Module:
    """``build(config)`` with the tensors of a checkpoint, under the model's names, as its parameters.

    The model is first built without memory, to see whether the tensors fit. It is then built with real buffers alone,
    and each parameter becomes the checkpoint's tensor itself where device and dtype agree (a memory-mapped file stays
    on the disk until it is used, and is never written to), and a copy where they do not.

    Raises:
        ValueError: naming ``source``, for a configuration that describes no model, or one the tensors do not fit.
    """
    _, fitted = plan(tensors, build, config, source)
    with device, _parameters_on_meta():
        model = build(config)
    if dtype is not None:
        cast(model, dtype)
    _assign(model, fitted, device)
    return model


def plan(
    tensors: Mapping[str, Tensor], build: Callable[[Any], nn.Module], config: Any, source: str
) -> tuple[nn.Module, dict[str, Tensor]]:
    """``build(config)`` without memory, and the tensors for exactly the keys of its state dict.

    Raises:
        ValueError: naming ``source``, for a configuration that describes no model, or one the tensors do not fit.
    """
    _check_counts(config, len(tensors), source)
    try:
        with torch.device("meta"):
            model = build(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: no model can be built: {error}") from error
    return model, fit_state_dict(tensors, model.state_dict(), tied(model), source)


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Give floating parameters a dtype; those that a layer keeps wide (``KeepsFloat32``) are at least float32."""
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating dtype, got {dtype}")
    model.to(dtype)


def tied(model: nn.Module) -> dict[str, str]:
    """Names of tied parameters -> the first name of the same parameter."""
    first: dict[int, str] = {}
    return {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first.setdefault(id(parameter), name) != name
    }


def _check_counts(config: Any, available: int, source: str) -> None:
    for field in REPEATED:
        value = getattr(config, field, 0)
        count = sum(value) if isinstance(value, tuple) else value
        if count > max(available, LONGEST):
            raise ValueError(
                f"{source} does not fit the model; nothing was loaded\n  {field} is {value}, the checkpoint holds only "
                f"{available} tensors"
            )


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made in this block, by this thread, lose their memory before it is touched; buffers keep theirs."""
    builder = threading.get_ident()

    def release(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != builder:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(release)  # pyright: ignore[reportArgumentType] (it may return)
    try:
        yield
    finally:
        hook.remove()


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

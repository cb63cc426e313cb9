"""Triton kernels: imported at first use, where a GPU (or Triton's interpreter, when it is asked for) can run them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from zoo.kernels.dispatch import Implementation, as_given

BLOCKS = Path(__file__).with_name("blocks.json")
requested: dict[tuple[str, str], dict[str, int]] = {}  # (operation, shape class) -> default, of all launches so far


def triton_implementation(module: str) -> Implementation:
    """The implementation "triton" of an operation: ``forward`` and ``backward`` of ``module``, imported when they run.

    It is the automatic choice on CUDA. On the CPU it runs by name under ``TRITON_INTERPRET=1``, to be set before
    Triton is imported: a check of the kernels' results, thousands of times slower than a GPU.
    """
    return Implementation(
        "triton",
        lambda *arguments: _on_device(module, "forward", arguments),
        lambda *arguments: _on_device(module, "backward", arguments),
        obstacle,
        automatic=lambda device: device.type == "cuda",
        prepare=as_given,
    )


def obstacle(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on ``device``, or None."""
    if not _installed():
        return "Triton is not installed"
    if device.type == "cuda" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return "Triton needs a CUDA device, or on the CPU TRITON_INTERPRET=1 (slow; to check results)"


def block_sizes(operation: str, shape_class: str, device: torch.device, default: dict[str, int]) -> dict[str, int]:
    """Launch parameters of a kernel: measured ones from ``blocks.json`` for this device, or ``default``.

    The table is ``{"sm_90": {operation: {shape_class: {name: size}}}}``. Nothing is tried out at run time: `make gpu`
    writes the table, and finds in ``requested`` what there is to measure.
    """
    requested[operation, shape_class] = default
    return default | measured().get(target(device), {}).get(operation, {}).get(shape_class, {})


def target(device: torch.device) -> str:
    """A device's key in the table: "sm_90" of compute capability 9.0, else its type."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def measured() -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """The table of ``blocks.json``, once read; what is changed in it counts for this process."""
    return json.loads(BLOCKS.read_text())


def _on_device(module: str, function: str, arguments: tuple) -> Any:
    """Triton launches on the current CUDA device: make that the device of the tensors."""
    tensor = next(a for a in arguments if isinstance(a, torch.Tensor))
    call = getattr(importlib.import_module(module), function)
    if tensor.device.type != "cuda":
        return call(*arguments)
    with torch.cuda.device(tensor.device):
        return call(*arguments)


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None

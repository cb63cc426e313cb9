"""Models as ONNX files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 2**31 - 2**24  # bytes of weights beside the graph: a protobuf ends at 2 GB


def export_onnx(model: nn.Module, path: str | Path, *, fixed_batch: int | None = None) -> Path:
    """Write a vision model's inference form as an ONNX file.

    The model is put into eval mode and exported by ``torch.onnx`` in float32, input ``images`` (batch, C, H, W) of the
    configuration's size, output ``logits``. The operators of ``zoo.kernels`` become standard ones: a selective scan
    its associative form in log2(T) rounds, a mixture of experts all of them with a choice after. Call ``model.fuse()``
    before for folded batch norms.

    Args:
        path: file to write; where it would pass the 2 GB of a protobuf the weights are beside it in ``path.data``.
        fixed_batch: the batch size; None leaves it open.

    Returns:
        The path.

    Raises:
        ValueError: for a model that is no vision model or computes with complex numbers (``s4_pixel``,
            ``longconv_pixel``), or a batch size below 1.
        FileNotFoundError: for a file in no folder.
        ImportError: without onnx and onnxscript: ``pip install 'efficient-zoo[export]'``.
    """
    from zoo.vision import VisionModel

    if not isinstance(model, VisionModel):
        raise ValueError(f"only vision models can be exported to ONNX, got {type(model).__name__}")
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            message = f"exporting to ONNX needs {package}: pip install 'efficient-zoo[export]'"
            raise ModuleNotFoundError(message, name=package) from error
    if fixed_batch is not None and fixed_batch < 1:
        raise ValueError(f"fixed_batch must be at least 1, got {fixed_batch}")
    path = Path(path)
    if not path.parent.is_dir() or path.is_dir():
        raise FileNotFoundError(
            f"{path} is a folder: name a file in it"
            if path.is_dir()
            else f"there is no folder {path.parent} for {path.name}"
        )
    parameter = next(model.eval().parameters())
    images = torch.randn(
        2 if fixed_batch is None else fixed_batch, model.config.in_chans, *model.config.image_shape
    ).to(parameter)
    shapes = None if fixed_batch is not None else ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=shapes).run_decompositions(_decompositions())
    name = getattr(model, "config_name", type(model).__name__)
    values = [node.meta.get("val") for node in program.graph.nodes]
    if any(isinstance(value, Tensor) and value.is_complex() for value in values):
        raise ValueError(f"{name} computes with complex numbers, which ONNX has not")
    tensors = [*program.state_dict.values(), *program.constants.values()]
    beside = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor)) > LARGEST
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # both files in full, then in place
        written = Path(folder) / path.name
        torch.onnx.export(
            program,
            (),
            written,
            input_names=["images"],
            output_names=["logits"],
            external_data=beside,
            verbose=False,
        )
        data = path.with_name(f"{path.name}.data")
        data.unlink(missing_ok=True)  # of an earlier model
        for file in sorted(Path(folder).iterdir(), reverse=True):
            os.replace(file, path.with_name(file.name))
    return path


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """torch's own, and standard operators for the zoo's."""
    from zoo.kernels.causal_conv1d import reference as conv
    from zoo.kernels.rms_norm import reference as norm
    from zoo.kernels.rope import reference as rope

    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions().items())
    return table | {
        torch.ops.zoo.causal_conv1d.default: lambda *args: conv.forward(*args[:-1]),
        torch.ops.zoo.rms_norm.default: lambda *args: norm.forward(*args[:-1]),
        torch.ops.zoo.rope.default: lambda *args: rope.forward(*args[:-1]),
        torch.ops.zoo.selective_scan.default: _selective_scan,
        torch.ops.zoo.grouped_matmul.default: _grouped_matmul,
        torch.ops.aten.sort.stable: lambda x, *, stable, dim=-1, descending=False: torch.sort(x, dim, descending),
        torch.ops.aten.empty_permuted.default: lambda size, order, dtype, device, **_: torch.zeros(
            size, dtype=dtype, device=device
        ),
        torch.ops.aten.searchsorted.Tensor: lambda ascending, values: (ascending < values[:, None]).sum(-1),
    }


def _grouped_matmul(x: Tensor, weight: Tensor, offsets: Tensor, impl: str) -> Tensor:
    """Every expert over every row, and of each row its own expert's result: no shape depends on the routing."""
    row = torch.arange(x.shape[0], device=x.device)[:, None]
    y = x.new_zeros(x.shape[0], weight.shape[2])
    for expert in range(weight.shape[0]):
        y = torch.where((row >= offsets[expert]) & (row < offsets[expert + 1]), x @ weight[expert], y)
    return y


def _selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    state: Tensor,
    starts: Tensor | None,
    softplus: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """The recurrence h = a h + b as an associative scan: after k rounds a step holds the sum of 2^k steps."""
    from zoo.kernels.selective_scan.reference import skipped_and_gated, step_size

    if starts is not None:
        raise ValueError("packed sequences have no ONNX form")
    steps, channels = step_size(dt, dt_bias, softplus)[..., None], x.shape[2] // B.shape[2]
    B, C = (t.repeat_interleave(channels, dim=2) for t in (B, C))
    decay = torch.exp(steps * A)  # (B, T, D, N)
    states = steps * x[..., None] * B
    states = torch.cat([states[:, :1] + decay[:, :1] * state[:, None], states[:, 1:]], dim=1)
    reach = 1
    while reach < x.shape[1]:
        states = states + decay * F.pad(states, [0, 0, 0, 0, reach, 0])[:, : x.shape[1]]
        decay = decay * F.pad(decay, [0, 0, 0, 0, reach, 0], value=1.0)[:, : x.shape[1]]
        reach *= 2
    return skipped_and_gated((states * C).sum(-1), x, D, z), states[:, -1]

"""Models as programs and files that others run."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.export.language import Program, step_program, whole_program
from zoo.export.operators import decompositions
from zoo.language.base import LanguageModel
from zoo.layers.precision import computes_in

LARGEST = 2**31 - 2**24  # bytes of weights beside the graph: a protobuf ends at 2 GB


def export_program(model: nn.Module, *, step: bool = False, fixed_batch: int | None = None) -> Program:
    """A model as a program of ``torch.export``, in eval mode.

    A vision model: ``images`` (batch, C, H, W) of the configuration's size to ``logits``. A language model: ``tokens``
    (batch, length) int64 to ``logits`` (batch, length, vocab_size), for any batch and length; or one ``step``:
    ``tokens`` (batch, 1) and the tensors of a state to ``logits`` (batch, 1, vocab_size) and the next state's tensors.
    These are named "0.key" (block 0), and "next.0.key" afterwards. Before the first token all are zeros; what grows has
    an open dimension besides the batch, the first one, which is 0 then.

    Args:
        model: of the zoo.
        step: of a language model, see above.
        fixed_batch: the batch size of a vision model; None leaves it open.

    Raises:
        ValueError: for any other model, one whose program depends on its data or on what the tensors of its state do
            not tell, or a batch size below 1.
    """
    from zoo.vision import VisionModel

    if fixed_batch is not None and fixed_batch < 1:
        raise ValueError(f"fixed_batch must be at least 1, got {fixed_batch}")
    if isinstance(model, LanguageModel) and fixed_batch is None:
        return step_program(model) if step else whole_program(model)
    if not isinstance(model, VisionModel) or step:
        rule = (
            "a step is one of a language model, and a fixed batch one of a vision model"
            if step or fixed_batch
            else ("only language models and vision models can be exported")
        )
        raise ValueError(f"{rule}, got {type(model).__name__}")
    like = computes_in(model.eval())
    shape = (2 if fixed_batch is None else fixed_batch, model.config.in_chans, *model.config.image_shape)
    shapes = None if fixed_batch is not None else ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(shape).to(like),), dynamic_shapes=shapes)
    return Program(program, ["images"], ["logits"])


@torch.no_grad()  # under which torch decomposes programs as well
def export_onnx(model: nn.Module, path: str | Path, *, step: bool = False, fixed_batch: int | None = None) -> Path:
    """Write a model's inference form as an ONNX file, exported by ``torch.onnx`` in float32.

    Inputs and outputs are those of ``export_program``. The operators of ``zoo.kernels`` become standard ones: over a
    sequence of any length a recurrence becomes a loop (Scan), over one of a known length the selective scan takes its
    associative form in log2(T) rounds, and a mixture of experts all of them with a choice after. Call ``model.fuse()``
    of a vision model before for folded batch norms.

    Args:
        model: of the zoo, see ``export_program``.
        path: file to write; where it would pass the 2 GB of a protobuf the weights are beside it in ``path.data``.
        step, fixed_batch: see ``export_program``.

    Returns:
        The path.

    Raises:
        ValueError: see ``export_program``; also for a model that computes with complex numbers (``s4_pixel``,
            ``longconv_pixel``).
        FileNotFoundError: for a file in no folder.
        ImportError: without onnx and onnxscript: ``pip install 'efficient-zoo[export]'``.
    """
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            message = f"exporting to ONNX needs {package}: pip install 'efficient-zoo[export]'"
            raise ModuleNotFoundError(message, name=package) from error
    path = Path(path)
    if not path.parent.is_dir() or path.is_dir():
        raise FileNotFoundError(
            f"{path} is a folder: name a file in it"
            if path.is_dir()
            else f"there is no folder {path.parent} for {path.name}"
        )
    program, inputs, outputs = export_program(model, step=step, fixed_batch=fixed_batch)
    program = program.run_decompositions(decompositions())
    name = getattr(model, "config_name", type(model).__name__)
    values = [node.meta.get("val") for node in program.graph.nodes]
    if any(isinstance(value, Tensor) and value.is_complex() for value in values):
        raise ValueError(f"{name} computes with complex numbers, which ONNX has not")
    left = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("zoo.")}
    if left:
        raise ValueError(f"{name} computes {', '.join(sorted(left))}, which has no ONNX form here")
    tensors: list[Any] = [*program.state_dict.values(), *program.constants.values()]
    beside = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor)) > LARGEST
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # both files in full, then in place
        written = Path(folder) / path.name
        try:
            torch.onnx.export(
                program,
                (),
                written,
                input_names=inputs,
                output_names=outputs,
                external_data=beside,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            what = re.search(r"target=torch\.ops\.([\w.]+)", str(error.__cause__))
            operation = what[1] if what else f"an operation ({str(error.__cause__)[:200]})"
            raise ValueError(f"{name} computes {operation}, which has no ONNX form here") from error
        data = path.with_name(f"{path.name}.data")
        data.unlink(missing_ok=True)  # of an earlier model
        for file in sorted(Path(folder).iterdir(), reverse=True):
            os.replace(file, path.with_name(file.name))
    return path

"""GGUF files, through the package ``gguf`` of llama.cpp's authors: a model's weights and its vocabulary."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.checkpoints.convert.gguf import Converted
from zoo.checkpoints.gguf_vocabulary import Vocabulary

FORMATS = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # in which matrices are written
_KEPT = (".A_log", ".D", ".conv1d.weight", ".norm.weight", "rope_freqs.weight")  # float32 whatever their shape
_LARGEST_HALF = 65504  # of float16, in which blocks have their scales too


def write_gguf(
    path: Path, name: str, converted: Converted, vocabulary: Vocabulary | None, form: str | None = None
) -> Path:
    """Write a model for llama.cpp; the file is there when it is whole.

    Args:
        path: the file.
        name: of the model, for those who read the file.
        converted: see ``to_gguf``.
        vocabulary: None writes a file that knows token ids alone.
        form: of matrices, one of ``FORMATS``; None keeps each as it is. Rows that the blocks of a form do not divide
            are written in float16, and all that is no matrix in float32.

    Raises:
        ImportError: without the package ``gguf``.
        ValueError: for another form, a number that it cannot hold, or a tensor that the architecture has no name for;
            nothing is written.
    """
    gguf = _package()
    if form is not None and form not in FORMATS:
        raise ValueError(f"a GGUF file has matrices in {', '.join(FORMATS)}, got {form!r}")
    kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == converted.architecture)
    names = gguf.get_tensor_name_map(kind, converted.metadata["block_count"])
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(unfinished, converted.architecture)
    writer.add_name(name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in converted.metadata.items():
        _add(writer, f"{converted.architecture}.{key}", value)
    _add_vocabulary(writer, vocabulary, converted.metadata["vocab_size"])
    for theirs, tensor in converted.tensors.items():
        found = theirs if theirs == "rope_freqs.weight" else names.get_name(theirs, (".weight", ".bias"))
        if found is None:
            raise ValueError(f"llama.cpp's {converted.architecture} has no place for {theirs}")
        stored, data = _encoded(gguf, theirs, tensor, form)
        writer.add_tensor(found, data, raw_dtype=stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError("GGUF files are written by the package gguf: pip install gguf") from error
    return gguf


def _add(writer: Any, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders[type(value)](key, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary | None, size: int) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges or [f"{vocabulary.tokens[0]} {vocabulary.tokens[0]}"])  # one must be
    for key, index in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}", index)
    writer.add_add_bos_token(vocabulary.begins)
    writer.add_add_eos_token(vocabulary.ends)


def _encoded(gguf: Any, name: str, tensor: Tensor, form: str | None) -> tuple[Any, np.ndarray]:
    types = gguf.GGMLQuantizationType
    several = tensor.dim() == 3 and name.split(".")[-3] == "experts"
    if (tensor.dim() != 2 and not several) or name.endswith(_KEPT):
        form = "f32"
    elif form is None:
        form = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(tensor.dtype, "f32")
    elif form.startswith("q") and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[types[form.upper()]][0]:
        form = "f16"
    stored = types[form.upper()]
    numbers = tensor.detach().cpu().contiguous().float()
    largest = numbers.abs().max().item()
    if not math.isfinite(largest):
        raise ValueError(f"{name} holds {largest} as {form}; mend the checkpoint before it is converted")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is looked at
        data = gguf.quants.quantize(numbers.numpy(), stored)
        held = largest <= _LARGEST_HALF or np.isfinite(gguf.quants.dequantize(data, stored)).all()
    if not held:
        raise ValueError(f"{name} holds {largest:.4g}, more than {form} can: take another form, such as f32")
    return stored, data

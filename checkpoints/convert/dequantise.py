"""Weights published in few bits, as plain ones: FP8 in square blocks, and MXFP4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SIDE = 128  # of the square blocks that share a scale in FP8
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of the codes of 4 bits, whose highest is the sign
_BYTES, _NO_NUMBER = 16, 255  # of the blocks that share a scale in MXFP4; the scale that stands for none


def require_method(config: Mapping[str, Any], **known: Any) -> None:
    """Raise a ValueError where "quantization_config" is given and says something else than it may.

    Args:
        config: of a file.
        known: what its options must be where they are given, "quant_method" in any case.
    """
    given = config.get("quantization_config")
    if given is None:
        return
    for name, value in known.items():
        if given.get(name) != value and (name == "quant_method" or given.get(name) is not None):
            raise ValueError(
                f"quantization_config must be absent or have {name} {value!r}, got {given.get(name)!r}: weights in "
                "other forms are not read here; convert the folder to bfloat16 first"
            )


def from_fp8(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in FP8 times ``NAME_scale_inv``, a scale for each block of 128 x 128, in float32; others unchanged.

    Raises:
        ValueError: for a matrix without a scale, a scale without one, or shapes that do not fit.

    Source: DeepSeek-AI, "DeepSeek-V3", arXiv 2412.19437, section 3.3.2.
    """
    result = {}
    for key, tensor in state_dict.items():
        scale, matrix = state_dict.get(f"{key}_scale_inv"), key.removesuffix("_scale_inv")
        if scale is not None:
            result[key] = _times_blocks(key, tensor, scale)
        elif tensor.dtype in FP8:
            raise ValueError(f"{key} is in {str(tensor.dtype)[6:]} and {key}_scale_inv is missing from the checkpoint")
        elif matrix == key:
            result[key] = tensor
        elif matrix not in state_dict:
            raise ValueError(f"{key} is the scale of {matrix}, which is missing from the checkpoint")
    return result


def _times_blocks(key: str, matrix: Tensor, scale: Tensor) -> Tensor:
    expected = tuple(-(-size // SIDE) for size in matrix.shape)
    if matrix.dim() != 2 or tuple(scale.shape) != expected:
        raise ValueError(
            f"{key}_scale_inv must have a number for each {SIDE} x {SIDE} block of {key} {tuple(matrix.shape)}: "
            f"{expected}, got {tuple(scale.shape)}"
        )
    rows, columns = matrix.shape
    spread = scale.float().repeat_interleave(SIDE, 0)[:rows].repeat_interleave(SIDE, 1)[:, :columns]
    return matrix.float() * spread


def from_mxfp4(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pairs ``NAME_blocks`` and ``NAME_scales`` as ``NAME`` (E, columns, rows), in bfloat16, exactly; others unchanged.

    A byte of the blocks (E, rows, columns / 32, 16) holds two numbers of 4 bits, the lower first, and a byte of the
    scales (E, rows, columns / 32) the exponent of two, plus 127, of 32 neighbouring columns.

    Raises:
        ValueError: for one without the other, shapes or dtypes that do not fit, or a scale that stands for no number.

    Source: "OCP Microscaling Formats (MX) Specification", version 1.0, section 5.3.3; layout of openai/gpt-oss-20b.
    """
    result = {}
    for key, tensor in state_dict.items():
        name, found, part = key.rpartition("_")
        if found and part in ("blocks", "scales"):
            other = f"{name}_{'scales' if part == 'blocks' else 'blocks'}"
            if other not in state_dict:
                raise ValueError(f"{key} is in the checkpoint and {other} is missing from it")
            if part == "blocks":
                result[name] = _unpacked(name, tensor, state_dict[other])
        else:
            result[key] = tensor
    return result


def _unpacked(name: str, blocks: Tensor, scales: Tensor) -> Tensor:
    fits = blocks.dim() == 4 and blocks.shape[-1] == _BYTES and blocks.shape[:-1] == scales.shape
    if not fits or blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise ValueError(
            f"{name} in MXFP4 must be blocks (E, rows, columns / 32, {_BYTES}) and scales (E, rows, columns / 32), "
            f"both uint8, got {tuple(blocks.shape)} {blocks.dtype} and {tuple(scales.shape)} {scales.dtype}"
        )
    if bool((scales == _NO_NUMBER).any()):
        raise ValueError(f"{name}_scales holds {_NO_NUMBER}, which stands for no number: the checkpoint is damaged")
    table = torch.tensor((*_MAGNITUDES, *(-size for size in _MAGNITUDES)))
    experts = (_expert(table, *pair) for pair in zip(blocks, scales, strict=True))  # one after another, for memory
    return torch.stack([expert.mT for expert in experts])


def _expert(table: Tensor, blocks: Tensor, scales: Tensor) -> Tensor:
    """(rows, columns) of blocks (rows, G, 16) and scales (rows, G)."""
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2)  # (rows, G, 32)
    return torch.ldexp(table[codes.int()], scales.int()[..., None] - 127).to(torch.bfloat16).flatten(-2)

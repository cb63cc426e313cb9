"""What a language model is called with, checked before anything is looked up."""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 8  # ids that a step of decoding has


def check_ids(name: str, ids: Tensor, low: int, high: int, ignore: int | None = None) -> None:
    """Raise a ValueError unless ``ids`` is an int64 tensor with values in [low, high) or equal to ``ignore``.

    On CUDA the range is checked on the device, without waiting for it. A traced program has no range check.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be an int64 tensor of token ids, got {ids.dtype}; use {name}.long()")
    if torch.compiler.is_compiling() or ids.device.type == "meta":
        return
    few = ids.device.type == "cpu" and ids.numel() <= FEW  # a step's: reading them takes less time
    if few and all(low <= one < high or one == ignore for one in ids.flatten().tolist()):
        return
    inside = (ids >= low) & (ids < high)
    if ignore is not None:
        inside |= ids == ignore
    message = f"{name} must be in [{low}, {high})" + (f" or {ignore}" if ignore is not None else "")
    if ids.device.type == "cuda":
        torch._assert_async(inside.all(), message)
    elif not inside.all():
        wrong = ids[~inside][0].item()
        raise ValueError(f"{message}, got {wrong}: does the tokenizer belong to this model (vocab_size {high})?")


def check_call(
    vocab_size: int,
    tokens: Tensor,
    labels: Tensor | None,
    seq_idx: Tensor | None,
    logits_to_keep: int,
    num_scored: int | Tensor | None,
) -> None:
    """Raise a ValueError unless these are arguments of ``LanguageModel.forward`` for so many words."""
    if tokens.dim() != 2 or tokens.shape[1] == 0:
        raise ValueError(f"tokens must have shape (batch, length >= 1), got {tuple(tokens.shape)}")
    check_ids("tokens", tokens, 0, vocab_size)
    for name, tensor in (("labels", labels), ("seq_idx", seq_idx)):
        if tensor is not None and tensor.shape != tokens.shape:
            raise ValueError(f"{name} must have the shape of tokens {tuple(tokens.shape)}, got {tuple(tensor.shape)}")
    if labels is not None:
        check_ids("labels", labels, 0, vocab_size, ignore=-100)
    if seq_idx is not None and (seq_idx.is_floating_point() or seq_idx.dtype == torch.bool):
        raise ValueError(f"seq_idx must be an integer tensor of sequence ids, got {seq_idx.dtype}")
    if not 0 <= logits_to_keep <= tokens.shape[1]:
        raise ValueError(f"logits_to_keep must be in [0, {tokens.shape[1]}], got {logits_to_keep}")
    if isinstance(num_scored, int) and num_scored < 1:
        raise ValueError(f"num_scored, the tokens that the loss is divided by, must be at least 1, got {num_scored}")

"""Prompts of one length or several as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.layers import ModelState

Prompts = Tensor | Sequence[Tensor] | Sequence[Sequence[int]]


class Batch(NamedTuple):
    """Prompts (B, T), padded on the left where ``mask`` (B, T) is False; None for no padding."""

    tokens: Tensor
    mask: Tensor | None = None

    def repeated(self, count: int) -> Batch:
        """Every row ``count`` times."""
        return Batch(*(None if one is None else one.repeat_interleave(count, 0) for one in self))  # type: ignore[arg-type]

    def rows(self) -> list[Tensor]:
        """Each prompt without its padding."""
        if self.mask is None:
            return list(self.tokens)
        return [tokens[mask] for tokens, mask in zip(self.tokens, self.mask, strict=True)]


def batched(prompts: Prompts, attention_mask: Tensor | None, device: torch.device) -> Batch:
    """A batch of a tensor (B, T), or of a list of prompts (T_i,).

    Raises:
        ValueError: for an empty list, tensor or prompt, a tensor of another rank, or a mask of another
            shape or with padding to the right of a prompt.
    """
    if isinstance(prompts, Tensor):
        if prompts.dim() != 2 or prompts.numel() == 0:
            raise ValueError(
                "a tensor of prompts must have the shape (batch, length), both at least 1, got "
                f"{tuple(prompts.shape)}; one prompt (length,) is tokens[None]"
            )
        return Batch(prompts, None if attention_mask is None else _checked(attention_mask, prompts))
    if attention_mask is not None:
        raise ValueError("attention_mask goes with a tensor of prompts; a list of them says itself how long they are")
    rows = [torch.as_tensor(prompt, device=device) for prompt in prompts]
    if not rows or any(row.dim() != 1 or len(row) == 0 or row.is_floating_point() for row in rows):
        raise ValueError(
            "a list of prompts must hold at least one, and each of them the ids of at least one token, got shapes "
            f"{[tuple(row.shape) for row in rows][:5]}"
        )
    tokens = pad_sequence(rows, batch_first=True, padding_side="left")
    if len({len(row) for row in rows}) == 1:
        return Batch(tokens)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return Batch(tokens, torch.arange(tokens.shape[1], device=device) >= tokens.shape[1] - lengths[:, None])


def _checked(attention_mask: Tensor, tokens: Tensor) -> Tensor:
    if attention_mask.shape != tokens.shape:
        raise ValueError(
            f"attention_mask must have the shape of tokens {tuple(tokens.shape)}, got {tuple(attention_mask.shape)}"
        )
    mask = attention_mask.bool()
    if not bool(mask[:, -1].all()) or bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise ValueError("attention_mask must be 0s then 1s in every row: pad prompts on the left")
    return mask


def check_room(state: ModelState, length: int, new: int) -> None:
    """Raise a ValueError unless a state has room for a prompt and all new tokens but the last."""
    if state.room is not None and length + new - 1 > state.room:
        raise ValueError(
            f"the state has room for {state.room} more tokens; the prompt has {length} and {new} may follow: give "
            "init_state a larger max_length, or none, or ask for fewer tokens"
        )

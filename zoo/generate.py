"""Decoding over any language model's state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.language.base import LanguageModel


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    eos_token: int | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Continue prompts: the prompt runs once in parallel, then one step a token from the recurrent state or cache.

    Args:
        model: a language model, used in eval mode and left as it was.
        tokens: prompts (B, T) int64, T at least 1.
        max_new_tokens: tokens to add.
        temperature: divides the logits, however small; 0 takes the most likely token.
        top_k: sample among the k most likely.
        top_p: sample among the most likely that together reach this probability.
        generator: source of randomness.
        eos_token: a row that produced it is filled with it; all rows done ends early.
        attention_mask: (B, T), 0 on the padding left of a shorter prompt; padding changes nothing.

    Returns:
        Prompts and continuations (B, T + new), new at most ``max_new_tokens``.

    Raises:
        ValueError: for options out of range, or padding to the right of a prompt.
    """
    _check(model, tokens, max_new_tokens, temperature, top_k, top_p, eos_token, attention_mask)
    with evaluating(model):
        seq_idx = None if attention_mask is None else attention_mask.long() - 1
        state = model.init_state(tokens.shape[0], tokens.shape[1] + max_new_tokens)
        logits = model(tokens, state, logits_to_keep=1, seq_idx=seq_idx)[:, -1]
        done = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
        for index in range(max_new_tokens):
            token = _sample(logits, temperature, top_k, top_p, generator)
            if eos_token is not None:
                token = token.masked_fill(done, eos_token)
                done |= token == eos_token
            tokens = torch.cat([tokens, token[:, None]], dim=1)
            if index + 1 == max_new_tokens or (eos_token is not None and bool(done.all())):
                break
            logits = model(token[:, None], state)[:, -1]
    return tokens


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model is in eval mode; afterwards every module is in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _sample(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator) -> Tensor:
    """One token a row from logits (B, vocab_size)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float()
    logits = logits - logits.amax(-1, keepdim=True)  # the largest is 0, whatever it is divided by
    logits = logits / max(temperature, torch.finfo(logits.dtype).tiny)
    if top_k is not None:
        threshold = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p is not None:
        ordered, order = logits.sort(descending=True)
        probability = F.softmax(ordered, dim=-1)
        beyond = probability.cumsum(-1) - probability >= top_p
        logits = logits.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    return torch.multinomial(F.softmax(logits, dim=-1), 1, generator=generator)[:, 0]


def _check(model, tokens, max_new_tokens, temperature, top_k, top_p, eos_token, attention_mask) -> None:
    if not isinstance(model, LanguageModel):
        raise ValueError(f"generate takes a language model, got {type(model).__name__}")
    for name, count in (("max_new_tokens", max_new_tokens), ("top_k", top_k), ("eos_token", eos_token)):
        wanted = name == "max_new_tokens" or count is not None
        if wanted and (not isinstance(count, int) or isinstance(count, bool)):
            raise ValueError(f"{name} must be an integer, got {count!r}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if eos_token is not None and not 0 <= eos_token < model.config.vocab_size:
        raise ValueError(f"eos_token must be in [0, vocab_size = {model.config.vocab_size}), got {eos_token}")
    if attention_mask is not None:
        if attention_mask.shape != tokens.shape:
            raise ValueError(
                f"attention_mask must have the shape of tokens {tuple(tokens.shape)}, got {tuple(attention_mask.shape)}"
            )
        mask = attention_mask.bool()
        if not bool(mask[:, -1].all()) or bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise ValueError("attention_mask must be 0s then 1s in every row: pad prompts on the left")

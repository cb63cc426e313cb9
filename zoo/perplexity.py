"""How well a language model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.generate import evaluating
from zoo.kernels.dispatch import compute_dtype
from zoo.language.base import LanguageModel
from zoo.quantize.seen import held_out

if TYPE_CHECKING:
    from zoo.text import Tokenizer


@dataclass(frozen=True)
class TextScore:
    """The log-likelihood of a text.

    Attributes:
        nats: the summed cross-entropy of the scored tokens.
        tokens: how many are scored.
        num_bytes: of the text in UTF-8.
    """

    nats: float
    tokens: int
    num_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits that the text takes by the model's probabilities, over its bytes: comparable between tokenizers."""
        return self.nats / math.log(2) / self.num_bytes

    @property
    def perplexity(self) -> float:
        """exp of the mean cross-entropy of a token."""
        return math.exp(self.nats / self.tokens)


@torch.no_grad()
def score_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    window: int = 1024,
    stride: int | None = None,
    batch_size: int = 8,
) -> TextScore:
    """Score every token of a text once, after the token that begins a text, or ends one, where the tokenizer has it.

    Without ``stride`` each token is predicted from all of the text before it: the state is carried from window to
    window. With a ``stride`` windows start afresh and overlap: each scores its newest ``stride`` tokens, given at least
    the ``window - stride`` before them, as far as the text goes back.

    Args:
        model: a language model, used in eval mode and left as it was.
        tokenizer: the model's.
        text: any.
        window: tokens at a time.
        stride: in [1, window]; None carries the state.
        batch_size: overlapping windows at a time.

    Warns:
        UserWarning: where the model was calibrated (``zoo.quantize``) on the text.

    Raises:
        ValueError: for a text without a token to score, a tokenizer of another model, or sizes out of range.
    """
    for name, size, largest in (
        ("window", window, math.inf),
        ("stride", stride, window),
        ("batch_size", batch_size, math.inf),
    ):
        if size is not None and not 1 <= size <= largest:
            raise ValueError(
                f"{name} must be at least 1{f' and at most {largest}' if name == 'stride' else ''}, got {size}"
            )
    tokenizer.check(model)
    begins = [tokenizer.bos_id] if tokenizer.bos_id is not None else list(tokenizer.eos_ids[:1])
    ids = torch.tensor([*begins, *tokenizer.encode(text, add_special_tokens=False)], dtype=torch.int64)
    if len(ids) < 2:
        raise ValueError("the text has no token that could be scored")
    ids = ids.to(next(model.parameters()).device)
    with evaluating(model), held_out(model):
        parts = _carried(model, ids, window) if stride is None else _overlapping(model, ids, window, stride, batch_size)
        return TextScore(sum(parts), len(ids) - 1, len(text.encode()))


def _carried(model: LanguageModel, ids: Tensor, window: int) -> Iterator[float]:
    state = model.init_state(1, len(ids) - 1)
    for tokens, targets in zip(ids[:-1].split(window), ids[1:].split(window), strict=True):
        yield _nats(model(tokens[None], state), targets[None])


def _overlapping(model: LanguageModel, ids: Tensor, window: int, stride: int, batch_size: int) -> Iterator[float]:
    last = len(ids) - 1  # inputs end at most here
    first = min(window, last)
    yield _nats(model(ids[None, :first]), ids[None, 1 : first + 1])
    ends = torch.tensor(range(first + stride, last + 1, stride), device=ids.device)
    for batch in ends.split(batch_size) if len(ends) else ():
        places = batch[:, None] + torch.arange(-window, 0, device=ids.device)
        yield _nats(model(ids[places], logits_to_keep=stride), ids[places[:, -stride:] + 1])
    if rest := (last - first) % stride:
        yield _nats(model(ids[None, last - window : last], logits_to_keep=rest), ids[None, last - rest + 1 :])


def _nats(logits: Tensor, targets: Tensor) -> float:
    """Summed cross-entropy of logits (B, T, V)."""
    losses = F.cross_entropy(logits.flatten(0, 1).to(compute_dtype(logits)), targets.flatten(), reduction="none")
    return losses.double().sum().item()

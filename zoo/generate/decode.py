"""One token after the other, from the state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.generate.logits import Shaper, last
from zoo.generate.look_ahead import look_ahead
from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.language.base import LanguageModel
from zoo.language.rows import RowStates, batch_invariant
from zoo.layers import ModelState
from zoo.layers.attention.shared_prefix import fan_out
from zoo.layers.step import programmed

SHARED_FROM = 4096  # tokens that the copies of a prompt would hold; fewer are copied faster than shared


class Step(NamedTuple):
    """What one step adds to every row.

    Attributes:
        tokens: (B,); in rows that had ended before, a filler.
        log_probs: (B,) log-probabilities in nats, as the model has them before any option; 0 for a filler.
        ended: (B,) rows to which nothing is added any more.
    """

    tokens: Tensor
    log_probs: Tensor
    ended: Tensor


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


@contextmanager
def generating(model: LanguageModel, options: Options, alone: bool = False) -> Iterator[None]:
    """Within it the model is in eval mode, batch-invariant where that is asked for, and where it is not compiled its
    steps are programs or its linear layers read their matrices as fast as there is memory; ``alone``: nobody changes
    the model meanwhile."""
    invariant = batch_invariant(model) if options.batch_invariant else nullcontext()
    with evaluating(model), invariant, nullcontext() if options.compile else programmed(model, alone):
        yield


@torch.no_grad()
def steps(
    model: LanguageModel, prompts: Batch, options: Options, state: ModelState | None, alone: bool = False
) -> Iterator[Step]:
    """The prompts once in parallel, then a token a row and step, until all rows have ended; ``alone``: whoever takes
    the steps does nothing else between two."""
    with generating(model, options, alone):
        shared, copied = options.share_prompt, options.num_samples * prompts.tokens.shape[1]
        shared = copied >= SHARED_FROM if shared is None else shared
        logits, state = prefilled(model, prompts, options, options.num_samples, state, shared=shared)
        step = stepping(model, options)
        saying = Saying(options, prompts.repeated(options.num_samples), logits.shape[-1])
        for index in range(options.max_new_tokens):
            said = saying.step(saying.shaper.drawn(logits), logits)
            yield said
            if index + 1 == options.max_new_tokens or saying.over:
                return
            logits = last(step(said.tokens[:, None], state))


def prefilled(
    model: LanguageModel,
    prompts: Batch,
    options: Options,
    copies: int,
    state: ModelState | None = None,
    *,
    shared: bool = False,
) -> tuple[Tensor, ModelState]:
    """Logits (B copies, vocab_size) after the prompts, and the state, both with every row ``copies`` times; where it is
    ``shared``, caches hold the prompts once, and the rows stay in their order."""
    tokens, mask = prompts
    batch, length = tokens.shape
    if state is None:
        state = model.init_state(batch, length + options.max_new_tokens, cache=options.cache)
    seq_idx = None if mask is None else mask.long() - 1
    logits = last(read(model, tokens, state, seq_idx, options.prefill_chunk or length))
    look_ahead(model, state, partial(guessed, prompts))
    if copies > 1:
        index = torch.arange(batch, device=tokens.device).repeat_interleave(copies)
        if shared and not isinstance(state, RowStates):
            state = fan_out(state, copies)
        else:
            state.reorder(index)
        logits = logits[index]
    return logits, state


def read(model: LanguageModel, tokens: Tensor, state: ModelState, seq_idx: Tensor | None, chunk: int) -> Tensor:
    """The logits (B, 1, vocab_size) after tokens (B, T), of which the model is given ``chunk`` at a time."""
    for start in range(0, tokens.shape[1], chunk):
        ids = None if seq_idx is None else seq_idx[:, start : start + chunk]
        logits = model(tokens[:, start : start + chunk], state, logits_to_keep=1, seq_idx=ids)
    return logits


def guessed(prompts: Batch, draft: LanguageModel, count: int) -> Tensor:
    """The (B, count) most likely tokens by which a draft continues the prompts."""
    said = steps(draft, prompts, Options(max_new_tokens=count, temperature=0.0), None)
    return torch.stack([one.tokens for one in said], 1)


def stepping(model: LanguageModel, options: Options) -> Callable[[Tensor, ModelState], Tensor]:
    """The model, compiled where that is asked for."""
    return torch.compile(model) if options.compile else model


class Saying:
    """What is said in every row: how logits become the next token, and which rows have ended, by a token or by a stop
    string.

    Args:
        options: of the continuation.
        prompts: with every row as often as it is continued.
        vocab_size: of the model.
    """

    def __init__(self, options: Options, prompts: Batch, vocab_size: int):
        self.options, self.shaper = options, Shaper(options, prompts, vocab_size)
        self.ended = torch.zeros(len(prompts.tokens), dtype=torch.bool, device=prompts.tokens.device)
        self._ends = torch.tensor(options.ends, device=self.ended.device)
        stop, tokenizer = options.stop_strings, options.tokenizer
        self._streams = [tokenizer.stream(row.tolist(), stop) for row in prompts.rows()] if stop and tokenizer else []

    @property
    def over(self) -> bool:
        """All rows have ended."""
        return bool(self.options.ends or self._streams) and bool(self.ended.all())

    def step(self, token: Tensor, logits: Tensor) -> Step:
        """The tokens (B,) are said, of logits (B, vocab_size); a filler in rows that had ended."""
        before = self.ended
        token = token.masked_fill(before, self.options.filler)
        log_probs = logits.log_softmax(-1).gather(1, token[:, None])[:, 0].masked_fill(before, 0)
        self.shaper.note(token)
        self._end(token)
        return Step(token, log_probs, self.ended)

    def _end(self, token: Tensor) -> None:
        rows = self.ended | torch.isin(token, self._ends)
        for index, (stream, one) in enumerate(zip(self._streams, token.tolist() if self._streams else (), strict=True)):
            if not self.ended[index]:
                stream.add(one)
                rows[index] |= stream.stopped
        self.ended = rows

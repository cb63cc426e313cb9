"""Continuing prompts with any language model, from its state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.generate.beams import search
from zoo.generate.decode import Step, evaluating, steps
from zoo.generate.options import Options, checked
from zoo.generate.prepack import Packed, prepack
from zoo.generate.prompts import Batch, Prompts, batched, check_room
from zoo.language.base import LanguageModel
from zoo.layers import ModelState

__all__ = ["Generated", "Packed", "Step", "evaluating", "generate", "prepack", "stream"]


class Generated(NamedTuple):
    """Prompts with their continuations, and the log-probabilities of the new tokens, as ``generate`` gives them."""

    tokens: Any
    log_probs: Any


@overload
def generate(model: LanguageModel, tokens: Tensor, max_new_tokens: int, **options: Any) -> Tensor: ...


@overload
def generate(
    model: LanguageModel, tokens: Sequence[Tensor] | Sequence[Sequence[int]], max_new_tokens: int, **options: Any
) -> list[Tensor]: ...


def generate(
    model: LanguageModel,
    tokens: Prompts,
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    log_probs: bool = False,
    **options: Any,
) -> Any:
    """Continue prompts: they run once in parallel, then one step a token from the recurrent state or cache.

    Args:
        model: a language model, used in eval mode and left as it was.
        tokens: prompts (B, T) int64, T at least 1; or a list of prompts of any lengths, tensors (T,) or lists of ids.
        max_new_tokens: tokens to add.
        attention_mask: (B, T), 0 on the padding left of a shorter prompt; padding changes nothing.
        log_probs: also give the log-probabilities of the new tokens in nats, as the model has them before any option.
        options: any of these.
            temperature (1.0): divides the logits, however small; 0 takes the most likely token.
            top_k: sample among the k most likely.
            top_p: sample among the most likely that together reach this probability.
            min_p: sample among those of at least this share of the most likely one's probability.
            repetition_penalty (1.0): above 1 makes tokens of the prompt and those said before less likely.
            presence_penalty (0.0): taken from the logits of tokens said before, in nats.
            min_new_tokens (0): no end before.
            num_samples (1): continuations of each prompt, in rows side by side; the prompt itself runs once.
            share_prompt: caches keep the keys and values of a prompt once for all its samples, whose queries attend
                to it together (Hydragen, arXiv 2402.05099); equal to copies of them up to rounding. None: where the
                copies would hold 4096 tokens or more, from where on it is faster.
            num_beams (1): with temperature=0, search for the likeliest continuations with so many beams.
            length_penalty (1.0): a beam's score is divided by its length to this power.
            eos_token: an id, or several, that ends a row, which is filled with the first of them; all rows done ends
                early. By default the tokenizer's, where one is given.
            stop: a text, or several, that ends a row once it has been said; needs ``tokenizer``.
            tokenizer: the model's, from ``zoo.load_tokenizer``.
            generator: source of randomness.
            compile (False): run the steps through ``torch.compile``.
            cache: what attention remembers and sees, a policy of ``zoo.cache``, its name or a mapping; see
                ``LanguageModel.init_state``.
            prefill_chunk: tokens of the prompts that are read at once; all when None. A cache policy evicts after each.
            batch_invariant (False): every prompt is computed by itself, so that tokens and log-probabilities are bit
                for bit those of the prompt alone; without it they agree to within rounding, in a fraction of the time.
            draft: says the next tokens, which the model then reads at once, keeping those of its own law: a smaller
                model, or a draft of ``zoo.decoding`` or its name. At temperature 0 the tokens are those without it,
                and otherwise their law. A cache policy evicts after a draft, not within it.
            compress: shortens the prompts before the model reads them, a ``zoo.decoding.SpecPC``; penalties count what
                is left. What is returned begins with the whole prompts.
            memory: which subtasks of a structured text are forgotten once they are done, a ``zoo.decoding.TIM``.

    Returns:
        Prompts and continuations (B num_samples, T + new), new at most ``max_new_tokens``; of a list of prompts a list
        of as many tensors, each up to its end. With ``log_probs`` a pair of those and the log-probabilities, (B
        num_samples, new), 0 after a row's end, or a list of tensors.

    Raises:
        ValueError: for options out of range, padding to the right of a prompt, or another model's tokenizer.
        TypeError: for an unknown option, with the nearest.
    """
    asked = checked(model, max_new_tokens, options)
    prompts = batched(tokens, attention_mask, next(model.parameters()).device)
    given = _shortened(prompts, asked)
    if asked.num_beams > 1:
        beams = search(model, given, asked)
        new = [torch.tensor(beam.tokens, device=prompts.tokens.device) for beam in beams]
        chances = [torch.tensor(beam.log_probs, device=prompts.tokens.device) for beam in beams]
    else:
        new, chances = _rows(list(_steps(model, given, asked, alone=True)))
    if isinstance(tokens, Tensor):
        said = pad_sequence(new, batch_first=True, padding_value=asked.filler)
        whole: Any = torch.cat([tokens.repeat_interleave(asked.num_samples, 0), said], dim=1)
        return Generated(whole, pad_sequence(chances, batch_first=True)) if log_probs else whole
    rows = [row for row in prompts.rows() for _ in range(asked.num_samples)]
    whole = [torch.cat(pair) for pair in zip(rows, new, strict=True)]
    return Generated(whole, chances) if log_probs else whole


def stream(
    model: LanguageModel,
    tokens: Prompts,
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    state: ModelState | None = None,
    **options: Any,
) -> Iterator[Step]:
    """Continue prompts as ``generate``, and give each step's tokens as they come.

    The model is in eval mode until the iterator has ended, or was closed. Until then write to its weights by operations
    that autograd counts, as an optimizer does, not through ``.data``, and set none of its options: a step that runs as
    a program has copies of them (``layers.step.programmed``).

    Args:
        model, tokens, max_new_tokens, attention_mask, options: of ``generate``; there are no beams.
        state: what the model has read before the prompts, from ``model.init_state``; it is advanced, and has seen all
            but the newest token of the last step.

    Yields:
        Step: the tokens (B num_samples,), their log-probabilities, and which rows have ended.

    Raises:
        ValueError: as ``generate``, and for prompts and new tokens that the state has no room for.
    """
    asked = checked(model, max_new_tokens, options)
    if asked.num_beams > 1 or (state is not None and asked.num_samples > 1):
        raise ValueError(
            f"a stream has no beams, and one sample a row of a state: got num_beams={asked.num_beams}, "
            f"num_samples={asked.num_samples}"
        )
    prompts = _shortened(batched(tokens, attention_mask, next(model.parameters()).device), asked)
    if state is not None:
        if asked.draft is not None:
            raise ValueError("a draft reads the prompts from their beginning: leave out state=, or draft=")
        if asked.memory is not None:
            raise ValueError("a working memory begins with the prompts: leave out state=, or memory=")
        if asked.cache is not None:
            raise ValueError(f"a state keeps the cache policy that init_state gave it: leave out cache={asked.cache!r}")
        check_room(state, prompts.tokens.shape[1], max_new_tokens)
    return _steps(model, prompts, asked, state)


def _shortened(prompts: Batch, asked: Options) -> Batch:
    """What the model reads of the prompts."""
    return prompts if asked.compress is None else asked.compress.shorten(prompts)


def _steps(
    model: LanguageModel, prompts: Batch, asked: Options, state: ModelState | None = None, alone: bool = False
) -> Iterator[Step]:
    """Token by token, or draft by draft."""
    if asked.memory is not None:
        return asked.memory.steps(model, prompts, asked)
    if asked.draft is None:
        return steps(model, prompts, asked, state, alone)
    return asked.draft.begin(model, asked).steps(prompts)


def _rows(given: list[Step]) -> tuple[list[Tensor], list[Tensor]]:
    """New tokens and their log-probabilities, row by row, each up to its end."""
    tokens, log_probs = (torch.stack([getattr(step, name) for step in given], 1) for name in ("tokens", "log_probs"))
    before = torch.stack([step.ended for step in given], 1)[:, :-1]  # ended before the next step
    lengths = [1 + int((~row).sum()) for row in before]
    return [row[:n] for row, n in zip(tokens, lengths, strict=True)], [
        row[:n] for row, n in zip(log_probs, lengths, strict=True)
    ]

"""Texts that follow images and what is asked about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.generate import Step, evaluating
from zoo.generate import stream as stream_text
from zoo.generate.prompts import batched
from zoo.layers.cache.build import Cache
from zoo.text.tokenizer import Tokenizer
from zoo.vision_language.llava import Llava
from zoo.vision_language.prompts import IMAGE, encode_prompt
from zoo.vision_language.reduction import Reduction


def stream(
    model: Llava,
    images: Tensor | None,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    reduction: Reduction | None = None,
    cache: Cache = None,
    **options: Any,
) -> Iterator[Step]:
    """Continue texts with images in them, token by token.

    The model reads images and prompts, but for the last token, into a state; from there on it is ``zoo.stream`` of the
    language model.

    Args:
        model: used in eval mode, and left as it was.
        images: (I, C, H, W), in the order in which they stand in the prompts; None for none.
        prompts: lists of ids of any lengths, of ``encode_prompt``.
        max_new_tokens: of each.
        reduction: what is left of an image; the prompts were made with it.
        cache: what attention remembers and sees, see ``LanguageModel.init_state``.
        options: of ``zoo.generate``, such as temperature and tokenizer; those that look at earlier tokens see the new
            ones and the last of the prompt.

    Raises:
        ValueError: as ``Llava.forward`` and ``zoo.stream``, and for a prompt that ends in an image.
    """
    tokens, mask = batched(prompts, None, next(model.parameters()).device)
    if bool((tokens[:, -1] == model.config.image_token).any()):
        raise ValueError("a prompt must end in text, and one ends in an image")
    state = model.init_state(len(tokens), tokens.shape[1] + max_new_tokens, cache=cache)
    if tokens.shape[1] > 1:
        ids = None if mask is None else mask[:, :-1].long() - 1
        with evaluating(model), torch.no_grad():
            model(images, tokens[:, :-1], state, seq_idx=ids, logits_to_keep=1, reduction=reduction)
    return model.continuing(state, stream_text(model.language, tokens[:, -1:], max_new_tokens, state=state, **options))


def answer(
    model: Llava,
    images: Tensor | None,
    prompts: str | Sequence[str],
    tokenizer: Tokenizer,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    reduction: Reduction | None = None,
    **options: Any,
) -> list[str]:
    """What the model says to each text, up to its end.

    Args:
        prompts: one text or several, with an ``<image>`` for each image; where none names any, each begins with its
            equal share of them.
        tokenizer: of the language model, ``zoo.load_tokenizer``.
        model, images, max_new_tokens, reduction, options: see ``stream``.

    Raises:
        ValueError: for texts that name other images than there are, and as ``stream``.
    """
    texts, count = [prompts] if isinstance(prompts, str) else list(prompts), 0 if images is None else len(images)
    if not texts:
        raise ValueError("there must be a text to answer, got none")
    texts = named(texts, count)
    ids = [encode_prompt(model, tokenizer, text, reduction=reduction) for text in texts]
    given = stream(
        model, images, ids, max_new_tokens, reduction=reduction, temperature=temperature, tokenizer=tokenizer, **options
    )
    said: list[list[int]] = [[] for _ in texts]
    over = [False] * len(texts)
    for step in given:
        for row, (one, ended) in enumerate(zip(step.tokens.tolist(), step.ended.tolist(), strict=True)):
            if not over[row]:
                said[row].append(one)
                over[row] = ended
    return [tokenizer.decode(row) for row in said]


def named(texts: Sequence[str], images: int) -> list[str]:
    """Texts that name all images: as they are where they do, or begun with an equal share each where none does.

    Raises:
        ValueError: where they name others.
    """
    found = sum(text.count(IMAGE) for text in texts)
    if found == 0 and images and images % len(texts) == 0:
        return [IMAGE * (images // len(texts)) + text for text in texts]
    if found != images:
        raise ValueError(
            f"the texts must name each image by one {IMAGE}, got {found} of them and {images} image"
            f"{'' if images == 1 else 's'}" + (": give an image" if images == 0 else "")
        )
    return list(texts)

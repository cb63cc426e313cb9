"""Learnt predictors say which tokens of images, and which of the text that a model writes, later layers need."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.layers.attention.keys import EMPTY
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState, visible
from zoo.layers.options import require_at_least
from zoo.layers.precision import computes_in
from zoo.layers.tokens.predictors import drawn


@dataclass(frozen=True)
class DynamicLLaVA(Policy):
    r"""From one layer on a prompt has fewer tokens of its images, and what is generated leaves fewer keys and values.

    Before that layer one predictor chooses the share ``image_keep`` of the tokens of images, and another says of each
    token of the output whether it is kept. The earlier layers keep everything. Tokens keep their positions.

    - A prompt: tokens of images that are not chosen end there.
    - A token of the output: it attends in all layers, to what was kept and to itself; if it is not kept, its keys and
      values in the later layers go then. So it is with a draft, whose dropped tokens later ones do not see.
    - Without a cache, that is a prompt whose last ``generated`` tokens are output: those that are not kept end as those
      of images do. The newest token always goes on. Rows go on with as many tokens as the one with the most.
    - ``masked``: all tokens pass all layers, and of those that are not kept each is seen by itself alone, by weights

    .. math:: a_{ts} = \frac{m_{ts} \exp l_{ts}}{\sum_{r \leq t} m_{tr} \exp l_{tr}}, \quad
        m_{ts} = 1 \text{ for } s = t, \; k_s \text{ else}

    which gives the same outputs, and has a gradient in k. That is what the predictors are trained by.

    Args:
        images: ids of the tokens that stand for parts of images.
        image_keep: share of these that goes on; 1 for all, None for that of the predictors.
        text_keep: 1 keeps all output; otherwise the predictor decides, and this was only its target. None: theirs.
        generated: tokens at the end of a prompt that are output.
        unjudged: single tokens after a prompt that are part of it, as the last token is that
            ``zoo.vision_language.answer`` gives by itself; 0 where prompts are given whole.
        masked: see above; a call is then a whole text.
        temperature: of the Gumbel noise with which tokens are drawn where masked; 0: as at inference.
        predictors: with ``image``, ``text``, ``layer``, ``image_keep`` and ``text_keep``; None for the model's.

    Raises:
        ValueError: for a share outside (0, 1], a number or temperature below 0, or a model without predictors.

    Paper: Huang et al., "Dynamic-LLaVA", arXiv 2412.00876; the code of Osilly/dynamic_llava.
    """

    paper: ClassVar[str] = "2412.00876"

    images: tuple[int, ...] = ()
    image_keep: float | None = None
    text_keep: float | None = None
    generated: int = 0
    unjudged: int = 1
    masked: bool = False
    temperature: float = 0.0
    predictors: Any = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        require_at_least(0, generated=self.generated, unjudged=self.unjudged, temperature=self.temperature)
        for name, share in (("image_keep", self.image_keep), ("text_keep", self.text_keep)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} must be a share in (0, 1], got {share}")

    def __deepcopy__(self, memo: dict[int, Any]) -> DynamicLLaVA:
        """Itself: copies of a state copy no predictors."""
        return self

    def learnt(self, model: Any) -> DynamicLLaVA:
        """With the model's predictors, where it has none of its own and needs them."""
        if self.predictors is not None or self.image_keep == self.text_keep == 1:
            return self
        found = getattr(model, "context_predictors", None)
        if found is None:
            raise ValueError(
                "DynamicLLaVA asks predictors which tokens to keep, and the model has none: put them in place by "
                "zoo.vision_language.add_predictors(model), and train them, or give image_keep=1 and text_keep=1"
            )
        given = {"image_keep": self.image_keep, "text_keep": self.text_keep}
        rates = {name: getattr(found, name) for name, share in given.items() if share is None}
        return dataclasses.replace(self, predictors=found, **rates)

    def start(self, state: CacheState) -> None:
        """The ids of tokens before the layer; after it, which of them are to go."""
        if self.chooses(state):
            state.add("token", 1, dtype=torch.int64)
        elif self.predictors is not None and state.order >= self.predictors.layer:
            state.add("gone", 1)

    def chooses(self, state: CacheState) -> bool:
        """Whether the state is that of the layer after which tokens are chosen."""
        return self.predictors is not None and state.order == self.predictors.layer - 1

    def after_layer(self, state: CacheState, hidden: Tensor, later: Sequence[CacheState]) -> Tensor | None:
        """Of a prompt, what goes on; of output and of masked texts, what the later layers are told."""
        if not self.chooses(state):
            return None
        length = hidden.shape[1]
        real = state.position[:, 0, -length:] != EMPTY
        one_by_one = not self.masked and "prompt" in state.notes and (state.committed is not None or length == 1)
        output = self.output(state, real, one_by_one)
        tokens = state.held("token")[:, 0, -length:]
        ids = torch.tensor(self.images, device=tokens.device, dtype=torch.int64)
        image = torch.isin(tokens, ids) & real & ~output
        keep, score = self.judged(hidden, image, output)
        if self.masked:
            state.notes["keep"] = keep
        if keep is None:
            return None
        if self.masked or one_by_one:
            for part in later:
                part.notes["keep"] = keep
            return None
        keep[:, -1] = 1
        count = int((keep > 0).sum(1).max())
        order = score.masked_fill(keep > 0, torch.inf).argsort(dim=1, descending=True, stable=True)
        return None if count == length else order[:, :count].sort(dim=1).values

    def output(self, state: CacheState, real: Tensor, one_by_one: bool) -> Tensor:
        """(B, T), which tokens of a call the model wrote."""
        told = state.notes.pop("output", None)
        if told is not None:
            return told & real
        back = torch.arange(real.shape[1] - 1, -1, -1, device=real.device)
        if one_by_one:
            return (state.seen - back - state.notes["prompt"][:, None] > self.unjudged) & real
        state.notes["prompt"] = torch.full_like(real[:, 0], state.seen, dtype=torch.int64)
        return (back < self.generated) & real

    def judged(self, hidden: Tensor, image: Tensor, output: Tensor) -> tuple[Any, Any]:
        """Which tokens are kept, 1 or 0, and how probable that is in logarithms, (B, T) each; None where all are."""
        keep, score = torch.ones_like(image, dtype=torch.float32), torch.zeros_like(image, dtype=torch.float32)
        counts = image.sum(1).tolist()
        asked_image, asked_text = max(counts) > 0 and self.image_keep != 1, bool(output.any()) and self.text_keep != 1
        if not asked_image and not asked_text:
            return None, None
        hidden = hidden.to(computes_in(self.predictors).dtype)
        if asked_image:
            places = (~image).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)]
            there = image.gather(1, places)
            x = hidden.take_along_dim(places[..., None], 1)
            said = self.predictors.image(x, None if bool(there.all()) else there).float()
            most = torch.tensor([min(n, max(1, int(n * self.image_keep))) for n in counts], device=x.device)
            keep = self._decided(keep, places, there, said, most)
            score = score.scatter(1, places, torch.where(there, said[..., 0], 0))
        if asked_text:
            start = int(output.any(0).nonzero()[0])
            places = torch.arange(start, output.shape[1], device=hidden.device).expand(len(output), -1)
            said = self.predictors.text(hidden[:, start:]).float()
            keep = self._decided(keep, places, output[:, start:], said)
            score = score.scatter(1, places, torch.where(output[:, start:], said[..., 0], score[:, start:]))
        return keep, score

    def _decided(self, keep: Tensor, places: Tensor, there: Tensor, said: Tensor, most: Tensor | None = None) -> Tensor:
        """``keep`` (B, T) after decisions at ``places`` (B, n) where ``there``: drawn, the ``most`` (B,) probable, or
        what is more probably kept than not."""
        if self.masked and self.temperature:
            found = drawn(said, self.temperature)
        elif most is None:
            found = (said[..., 0] > said[..., 1]).float()
        else:
            order = said[..., 0].masked_fill(~there, -torch.inf).argsort(dim=1, descending=True, stable=True)
            found = (order.argsort(dim=1) < most[:, None]).float()
        return keep.scatter(1, places, torch.where(there, found, keep.gather(1, places)))

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """As ever, but that other tokens do not see those that are to go."""
        keep = state.notes.pop("keep", None) if "gone" in state.data else None
        if keep is None:
            return state.attend_all(call)
        length = call.length
        if self.masked:
            if state.filled != length:
                raise ValueError("a masked call is a whole text: give a state of its own to each")
            return masked_attention(state, call, keep)
        gone = torch.cat([state.held("gone")[..., :-length], 1 - keep[:, None]], 2)
        state.renew("gone", gone)
        if not bool(gone[..., :-1].any()):  # of others than the newest
            return state.attend_all(call)
        own = torch.ones(length, state.filled, dtype=torch.bool, device=gone.device).triu(state.filled - length)
        mask = visible(call, state.position) & ((gone == 0)[:, :, None] | own.tril(state.filled - length))
        return call.attention.attend(call.q, state.key, state.value, mask)

    def after_step(self, state: CacheState, call: Call) -> None:
        """What is to go, goes."""
        if "gone" in state.data:
            state.keep(state.held("gone") == 0)


def masked_attention(state: CacheState, call: Call, keep: Tensor) -> Tensor:
    """The tokens of a whole text attend to those with keep (B, T) = 1, as far as that is, and each to itself."""
    logits = state.hidden(call.attention.logits(call.q, state.key, state.value), call)
    full = call.attention.weights(logits)  # (B, G, H / G, T, T)
    own = torch.eye(call.length, dtype=full.dtype, device=full.device)
    kept = keep[:, None, None, None].to(full.dtype)
    seen = full * (kept + (1 - kept) * own)
    rest = 0 if getattr(call.attention, "sinks", None) is None else 1 - full.sum(-1, keepdim=True)
    total = (seen.sum(-1, keepdim=True) + rest).clamp(min=torch.finfo(full.dtype).tiny)
    return call.attention.mixed(seen / total, state.value)

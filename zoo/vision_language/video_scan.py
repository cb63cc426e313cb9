"""A video as it comes: of each frame one token stays, which has read all of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.generate import Step, evaluating
from zoo.generate import stream as stream_text
from zoo.layers import ModelState
from zoo.layers.cache import Dense
from zoo.layers.cache.pruning import governed_parts
from zoo.layers.options import require_at_least
from zoo.vision_language.llava import Llava


class VideoScan:
    r"""What a model remembers of a video: the prompt before it, and the carrier of each frame.

    .. math:: C_t = \mathrm{mean}_j \; E_{t, j}

    stands behind the N features E_t of a frame. The model reads these N + 1 tokens after the prompt and the carriers
    of earlier frames; then the keys and values of the carrier stay, in all layers, and those of the features go. So
    time and memory of a frame do not grow with the video, and what is read later is what a mask would give under which
    features are seen by their own frame alone. Of more than ``memory`` carriers, the two neighbours with the most
    similar C lose the older one. Questions leave nothing behind.

    Tokens are counted on from frame to frame; the authors begin each frame where the carriers end, so that its tokens
    stand before some that they see.

    Args:
        model: used in eval mode, and left as it was; one that was not trained under the mask may understand little.
        memory: carriers at most.
        prompt: ids of what stands before the video.

    Attributes:
        state: of the language model. carriers: (frames held, dim), their C. positions: where they stand. frames: seen.

    Raises:
        ValueError: for a language model whose attention no policy governs, a memory below 1, a prompt with images, or a
            model whose texts do not hold the features of images, as ADEM-VL.

    Paper: Li et al., "VideoScan", arXiv 2503.09387; the code of LyliAgave/VideoScan.
    """

    def __init__(self, model: Llava, memory: int = 64, prompt: Sequence[int] = ()):
        require_at_least(1, memory=memory)
        if type(model).see is not Llava.see or type(model).forward is not Llava.forward:
            raise ValueError(
                f"VideoScan reads all features of a frame as tokens, which {type(model).__name__} does not"
            )
        if model.config.image_token in prompt:
            raise ValueError("the prompt of a video stands before its frames: leave out images")
        like = next(model.parameters())
        self.model, self.memory, self.frames = model, memory, 0
        self.state: ModelState = model.init_state(1, cache=Dense())
        self.carriers = like.new_zeros(0, model.language.stream_dim)
        self.positions: list[int] = []
        self.position = 0
        if len(prompt):
            self._read(torch.tensor([list(prompt)], device=like.device), None)

    @property
    def held(self) -> int:
        """Tokens whose keys and values each layer holds."""
        return next(governed_parts(self.state)).filled

    def add(self, frame: Tensor) -> None:
        """Look at the next frame (C, H, W), normalised."""
        model = self.model
        with evaluating(model), torch.no_grad():
            features = model.see(frame[None])
        carrier = features.mean(1, keepdim=True)
        embedded = torch.cat([features, carrier], dim=1)
        tokens = torch.full(embedded.shape[:2], model.config.image_token, device=embedded.device)
        first = self.position
        self._read(tokens, embedded)
        self._forget(range(first, self.position - 1))
        self.frames += 1
        self.positions.append(self.position - 1)
        self.carriers = torch.cat([self.carriers, carrier[0]])
        if len(self.positions) > self.memory:
            similar = F.cosine_similarity(self.carriers[:-1], self.carriers[1:], dim=1)
            older = int(similar.argmax())
            self._forget([self.positions.pop(older)])
            self.carriers = torch.cat([self.carriers[:older], self.carriers[older + 1 :]])

    def ask(self, question: Sequence[int], max_new_tokens: int, **options: Any) -> Iterator[Step]:
        """Continue a text about what was seen so far, with the options of ``zoo.stream``; nothing of it is kept.

        Raises:
            ValueError: for a question of no tokens, or with images.
        """
        if not len(question) or self.model.config.image_token in question:
            raise ValueError(
                f"a question about a video is a text, of a token or more and no image, got {list(question)}"
            )
        tokens = torch.tensor([list(question)], device=self.carriers.device)
        return stream_text(self.model.language, tokens, max_new_tokens, state=self.state.clone(), **options)

    def _read(self, tokens: Tensor, embedded: Tensor | None) -> None:
        language = self.model.language
        with evaluating(language), torch.no_grad():
            language(tokens, self.state, embedded=embedded, logits_to_keep=1)
        self.position += tokens.shape[1]

    def _forget(self, positions: Sequence[int] | range) -> None:
        gone = torch.tensor(list(positions), dtype=torch.int64, device=self.carriers.device)
        for part in governed_parts(self.state):
            part.keep(~torch.isin(part.position, gone))

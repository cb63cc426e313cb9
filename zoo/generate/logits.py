"""From logits to the next token: penalties, what is left to draw from, and the draw.

All functions take logits (B, vocab_size) and give new ones; -inf is never drawn.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.generate.options import Options
from zoo.generate.prompts import Batch
from zoo.kernels.dispatch import compute_dtype


def repeated(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits of ``seen`` tokens (B, vocab_size) over the penalty where positive, times it where negative (Keskar et
    al., "CTRL", arXiv 1909.05858, section 4.1)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def present(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits of ``seen`` tokens (B, vocab_size) less the penalty."""
    return logits - penalty * seen


def without(logits: Tensor, ids: tuple[int, ...]) -> Tensor:
    """Logits without some tokens."""
    return logits.index_fill(1, torch.tensor(ids, dtype=torch.long, device=logits.device), -torch.inf)


def likeliest(logits: Tensor, count: int) -> Tensor:
    """Top-k: the ``count`` likeliest, and what is as likely as the last of them (Fan et al., arXiv 1805.04833)."""
    threshold = logits.topk(min(count, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def nucleus(logits: Tensor, share: float) -> Tensor:
    """Top-p: the likeliest that together reach a probability (Holtzman et al., arXiv 1904.09751)."""
    ordered, order = logits.sort(descending=True)
    probability = ordered.softmax(-1)
    beyond = probability.cumsum(-1) - probability >= share
    return logits.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)


def at_least(logits: Tensor, share: float) -> Tensor:
    """Min-p: those of at least ``share`` of the likeliest one's probability (Nguyen et al., arXiv 2407.01082)."""
    probability = logits.softmax(-1)
    return logits.masked_fill(probability < share * probability.amax(-1, keepdim=True), -torch.inf)


class Shaper:
    """What the options make of logits, given what was said before.

    Args:
        options: of the continuation.
        prompts: whose tokens count as said for ``repetition_penalty``, not for ``presence_penalty``.
        vocab_size: of the model.
    """

    def __init__(self, options: Options, prompts: Batch, vocab_size: int):
        self.options, self.count = options, 0
        tokens, mask = prompts
        self.new = torch.zeros(len(tokens), vocab_size, dtype=torch.bool, device=tokens.device)
        first = tokens[:, -1:]  # stands for the padding
        self.seen = self.new.scatter(1, tokens if mask is None else tokens.where(mask, first), True)

    def note(self, token: Tensor) -> None:
        """The tokens (B,) were said."""
        self.count += 1
        for said in (self.new, self.seen):
            said.scatter_(1, token[:, None], True)

    def reorder(self, index: Tensor) -> None:
        """Row i becomes row ``index[i]``."""
        self.new, self.seen = self.new[index], self.seen[index]

    def penalised(self, logits: Tensor) -> Tensor:
        """Logits with the penalties, and without an end where it comes too soon."""
        options = self.options
        if options.repetition_penalty != 1:
            logits = repeated(logits, self.seen, options.repetition_penalty)
        if options.presence_penalty != 0:
            logits = present(logits, self.new, options.presence_penalty)
        if self.count < options.min_new_tokens and options.ends:
            logits = without(logits, options.ends)
        return logits

    def shaped(self, logits: Tensor) -> Tensor:
        """Logits to be drawn from."""
        options, logits = self.options, self.penalised(logits)
        logits = logits - logits.amax(-1, keepdim=True)  # the largest is 0, whatever it is divided by
        logits = logits / max(options.temperature, torch.finfo(logits.dtype).tiny)
        logits = logits if options.top_k is None else likeliest(logits, options.top_k)
        logits = logits if options.top_p is None else nucleus(logits, options.top_p)
        return logits if options.min_p is None else at_least(logits, options.min_p)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What a token is drawn from (B, vocab_size); at temperature 0 all of it is one token's."""
        if self.options.temperature == 0:
            return F.one_hot(self.penalised(logits).argmax(-1), logits.shape[-1]).to(logits.dtype)
        return self.shaped(logits).softmax(-1)

    def drawn(self, logits: Tensor) -> Tensor:
        """One token a row (B,)."""
        if self.options.temperature == 0:
            return self.penalised(logits).argmax(-1)
        return draw(self.probabilities(logits), self.options.generator)

    def copy(self) -> Shaper:
        """One that goes its own way from here, as what is only drafted is not said."""
        copied = copy.copy(self)
        copied.new, copied.seen = self.new.clone(), self.seen.clone()
        return copied


def draw(chances: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One token a row (B,) of probabilities (B, vocab_size), whose sum need not be 1; what has none is never drawn.

    On the CPU it is the first up to which more than a share of all is summed, one random number a row: a hundredth of
    the time of torch.multinomial, which draws one for each token.

    Raises:
        ValueError: on the CPU, for a row whose sum is not a positive number.
    """
    if chances.device.type != "cpu":
        return torch.multinomial(chances, 1, generator=generator)[:, 0]
    sums = chances.cumsum(-1, dtype=torch.float64)
    total = sums[:, -1:]
    if not bool(((total > 0) & (total < torch.inf)).all()):
        raise ValueError(f"the probabilities of a token must sum to a positive number, got {total[:, 0].tolist()}")
    share = torch.rand(total.shape, dtype=torch.float64, generator=generator)
    return torch.searchsorted(sums, share * total, right=True)[:, 0]


def last(logits: Tensor) -> Tensor:
    """Logits (B, vocab_size) of the last position, in float32 or wider."""
    return logits[:, -1].to(compute_dtype(logits))

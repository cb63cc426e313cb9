"""FlexLLM: an adapter is tuned beside the requests that a process serves, a few tokens of each at a time."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import zoo
from zoo.generate import Step, evaluating
from zoo.language.base import LanguageModel
from zoo.layers.linear import head_loss
from zoo.layers.options import require_at_least
from zoo.layers.replay import autocast_mode, if_drawn, random_state
from zoo.layers.step import programmed
from zoo.train.memory.streambp import Again, not_in_parts

Model = TypeVar("Model", bound=nn.Module)
IGNORED = -100


def shared_copy(model: Model) -> Model:
    """A model of its own whose parameters are the same tensors: to be adapted, while the other one serves."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


@dataclasses.dataclass
class Request:
    """A prompt that is continued.

    Attributes:
        prompt: its tokens.
        said: new tokens so far.
        done: no more will come.
    """

    prompt: list[int]
    steps: Iterator[Step]
    said: list[int] = dataclasses.field(default_factory=list)
    done: bool = False


class CoServing:
    """Requests are served and an adapter is tuned in turns, on one copy of the base weights.

    An iteration gives every request its next token, a new one its prompt too, then as many tokens to tuning as the
    ``budget`` has left. A training sequence goes forward ``chunk_size`` tokens at a time through all layers, and
    backward layer by layer, from its last tokens to its first, which hand the gradients of keys, values and states to
    those before them; the optimiser steps once a sequence has come to its end. So requests wait for one chunk at most,
    their texts are those of the model alone, and the adapter is that of plain training, to rounding.

    Of a sequence the inputs of the blocks are kept, and within a block the activations of one chunk; the paper keeps
    those that frozen weights leave necessary instead of computing them again, and computes both kinds of tokens in one
    product, not in turns. Its split over devices is not part of this.

    >>> tuned = zoo.adapt(shared_copy(model), "lora", rank=4)
    >>> both = CoServing(model, tuned, torch.optim.AdamW(filter(lambda p: p.requires_grad, tuned.parameters())))
    >>> request = both.submit(prompt, 100)
    >>> both.tune(tokens)
    >>> both.run()

    Args:
        served: answers requests; in eval mode from now on.
        tuned: the same parameters with an adapter (``shared_copy``, ``zoo.adapt``); in training mode from now on.
        optimizer: of what learns.
        budget: tokens of an iteration; a token through one block backwards counts as three that go through it forwards.
        chunk_size: tokens of a training sequence that are computed at once.

    Attributes:
        losses: of the sequences that were learnt, in nats a token.

    Raises:
        ValueError: for a model that is not a stack of causal blocks, that learns what the other one serves, or that
            shares no weight with it.

    Paper: Miao et al., "FlexLLM: Token-Level Co-Serving of LLM Inference and Finetuning with SLO Guarantees", arXiv
    2402.18789.
    """

    def __init__(
        self, served: LanguageModel, tuned: LanguageModel, optimizer: Optimizer, *, budget: int = 256,
        chunk_size: int = 64,
    ):  # fmt: skip
        require_at_least(1, budget=budget, chunk_size=chunk_size)
        if reason := not_in_parts(tuned):
            raise ValueError(f"an adapter is tuned beside requests by parts of a sequence: {reason}; tune it by itself")
        if type(tuned).loss is not LanguageModel.loss or type(tuned).cross_entropy is not LanguageModel.cross_entropy:
            raise ValueError(f"{type(tuned).__name__} has a loss of its own, which pieces of a sequence are not")
        serves = {id(parameter) for parameter in served.parameters()}
        if serves.isdisjoint(id(parameter) for parameter in tuned.parameters()):
            raise ValueError(
                "both models must have the same base weights in memory once, and these share none: adapt a "
                "shared_copy of the one that is served"
            )
        if learns := [n for n, p in tuned.named_parameters() if p.requires_grad and id(p) in serves]:
            raise ValueError(
                f"what learns must not be served meanwhile, but {learns[0]} is in both models: adapt a shared_copy"
            )
        self.served, self.tuned, self.optimizer = served.eval(), tuned.train(), optimizer
        self.budget, self.chunk_size = budget, chunk_size
        self.losses: list[float] = []
        self.requests: list[Request] = []
        self.waiting: deque[tuple[Tensor, Tensor]] = deque()
        self._learning: Generator[float, None, Tensor] | None = None

    def submit(self, prompt: Sequence[int], max_new_tokens: int, **options: Any) -> Request:
        """One more request, with options of ``zoo.generate``; its first token comes in the next iteration."""
        steps = zoo.stream(self.served, [list(prompt)], max_new_tokens, **options)
        self.requests.append(Request(list(prompt), steps))
        return self.requests[-1]

    def tune(self, tokens: Tensor, labels: Tensor | None = None) -> None:
        """One more step of the optimiser, on tokens (B, T) int64; labels as a language model has them.

        Raises:
            ValueError: for tokens or labels that the model does not read, or of which nothing would be scored.
        """
        labels = tokens if labels is None else labels
        self.tuned._check(tokens, None, labels, None, 0, None)
        if not (labels[:, 1:] != IGNORED).any():
            raise ValueError(
                f"nothing of {tuple(tokens.shape)} tokens is scored: give sequences of at least 2 tokens, with a label "
                f"other than {IGNORED} past the first"
            )
        self.waiting.append((tokens, labels))

    def run(self) -> None:
        """Until all requests are answered and all sequences learnt."""
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.served))
            stack.enter_context(programmed(self.served))
            while self.requests or self.waiting or self._learning is not None:
                self.iterate()

    def iterate(self) -> float:
        """One iteration; the tokens that it computed."""
        spent = 0.0
        for request in self.requests:
            spent += len(request.prompt) if not request.said else 1
            step = next(request.steps, None)
            request.done = step is None
            if step is not None:
                request.said.append(int(step.tokens))
        self.requests = [request for request in self.requests if not request.done]
        while spent < self.budget and (self._learning is not None or self.waiting):
            spent += self._learn()
        return spent

    def _learn(self) -> float:
        """The next piece of a training sequence; the tokens that it counts as."""
        if self._learning is None:
            self._learning = in_pieces(self.tuned, *self.waiting.popleft(), self.chunk_size)
        learning, self._learning = self._learning, None  # one that fails is not gone on with
        try:
            spent = next(learning)
        except StopIteration as end:
            self.optimizer.step()
            self.optimizer.zero_grad()
            zoo.after_step(self.tuned)
            self.losses.append(float(end.value))
            return 0.0
        self._learning = learning
        return spent


def in_pieces(model: LanguageModel, tokens: Tensor, labels: Tensor, chunk_size: int) -> Generator[float, None, Tensor]:
    """A forward and a backward pass, with pauses; gradients are added to those of the parameters at the end.

    Yields:
        After each piece: tokens through the whole model that it took as long as.

    Returns:
        The loss.
    """
    blocks: Any = model.blocks
    inputs: list[list[Tensor]] = [[] for _ in blocks]
    drawn: list[list[Any]] = [[] for _ in blocks]
    last, states, autocast = [], None, autocast_mode(tokens.device)
    for chunk in tokens.split(chunk_size, 1):
        with torch.no_grad(), autocast():
            x = model.enter(chunk)
            states = states or [block.mixer.init_state(len(x), tokens.shape[1]) for block in blocks]
            for block, state, kept, draws in zip(blocks, states, inputs, drawn, strict=True):
                kept.append(x)
                before = random_state(x.device)
                x = block(x, state, None)
                draws.append(if_drawn(before, x.device))
            last.append(x)
        yield chunk.shape[1]
    own = {id(parameter) for parameter in blocks.parameters()}
    outer = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    found: dict[int, Tensor] = {}
    loss, dy = yield from _losses(model, last, labels, outer, found, autocast)
    for block, kept, draws in zip(reversed(blocks), reversed(inputs), reversed(drawn), strict=True):
        learns = [parameter for parameter in block.parameters() if parameter.requires_grad]
        steps = Again(block, chunk_size, learns, autocast, draws).backward(torch.cat(kept, 1), dy)
        kept.clear()
        while True:
            try:
                yield 3 * next(steps) / len(blocks)
            except StopIteration as end:
                dy, gradients = end.value
                break
        _add(found, learns, gradients)
    if outer:
        with torch.enable_grad(), autocast():
            x = model.enter(tokens)
        if x.requires_grad:
            _add(found, outer, torch.autograd.grad(x, outer, dy, materialize_grads=True))
    for parameter in model.parameters():
        if (gradient := found.get(id(parameter))) is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return loss


def _losses(
    model: LanguageModel, hidden: Sequence[Tensor], labels: Tensor, outer: Sequence[nn.Parameter],
    found: dict[int, Tensor], autocast: Any,
) -> Generator[float, None, tuple[Tensor, Tensor]]:  # fmt: skip
    """Of the residual stream by chunks: the mean loss, and the gradient of all of the stream."""
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    scored, start = (shifted != IGNORED).sum().clamp(min=1), 0
    total, parts = torch.zeros((), device=labels.device), []
    for x in hidden:
        x, target = x.detach().requires_grad_(), shifted[:, start : start + x.shape[1]]
        start += x.shape[1]
        with torch.enable_grad(), autocast():
            mean = head_loss(model.head, model.forward_norm(x).flatten(0, 1), target.flatten(), softcap=model.softcap)
            loss = mean * (target != IGNORED).sum() / scored
        part, *others = torch.autograd.grad(loss, [x, *outer], materialize_grads=True)
        _add(found, outer, others)
        parts.append(part)
        total = total + loss.detach()
        yield 3 * x.shape[1] / len(model.blocks)
    return total, torch.cat(parts, 1)


def _add(found: dict[int, Tensor], parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        found[id(parameter)] = found[id(parameter)] + gradient if id(parameter) in found else gradient

"""Mamba beyond the length it was trained on, without training."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor, nn

from zoo.changes import Change, apply
from zoo.generate import evaluating
from zoo.language.base import LanguageModel
from zoo.layers.ssm.steps import StepFilter, selective, slowest, watching

Model = TypeVar("Model", bound=LanguageModel)
STRETCHES = (1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 32, 40, 48, 60, 72, 84, 96)  # the authors'


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongMamba(Change, kind="longmamba"):
    """A ``StepFilter`` in every Mamba and Mamba-2 mixer, whose thresholds are weights of the model."""

    trained: int = 1
    lengths: tuple[int, ...] = ()

    def install(self, model: nn.Module) -> None:
        """Put them there, with thresholds 0."""
        mixers = selective(model)
        if any(isinstance(mixer.step_rule, StepFilter) for mixer in mixers.values()):
            raise ValueError("the context is extended already: begin from the model as it was trained")
        for mixer in mixers.values():
            rule = StepFilter(len(mixer.A_log), self.trained, self.lengths)
            mixer.step_rule = rule.to(mixer.compute.device, mixer.compute.dtype)


@torch.no_grad()
def extend_context(
    model: Model,
    tokens: Tensor,
    *,
    lengths: tuple[int, ...] | None = None,
    memory: float = 0.05,
    clamp: float = 0.0,
    scale: float = 1.0,
) -> Model:
    r"""Let Mamba and Mamba-2 mixers forget no more over a long prompt than over the sequences they were trained on.

    A channel decays by :math:`\exp(A \sum_t \Delta_t)` over a sequence. One that keeps more than ``memory`` of it over
    the ``tokens`` is global; in calls longer than they are, its step sizes below a threshold become 0, so that those
    that are left sum up to as much as over the tokens (``zoo.layers.ssm.steps.StepFilter``). Other channels stay as
    they are, as do calls of single tokens, so that decoding goes on from the prompt's state as ever. What a call gives
    then depends on how long it is: read a prompt in one call. ``zoo.save_model`` keeps the thresholds.

    Args:
        model: a language model with Mamba or Mamba-2 mixers, changed in place.
        tokens: (n, T) texts of as many tokens as the sequences it was trained on had; the authors take 100 of 2,000.
        lengths: of the calls that there shall be thresholds for, the nearest of which is used; None for 23 of them up
            to 96 T.
        memory: what a global channel keeps, of 1.
        clamp: share of the largest steps that count as the smallest of them here.
        scale: factor of the thresholds.

    Returns:
        The model.

    Raises:
        ValueError: for a model without such mixers, or whose context is extended already; tokens that are no
            sequences; lengths that do not grow from T on; a memory or clamp outside [0, 1) or a negative scale.

    Paper: Ye et al., "LongMamba", arXiv 2504.16053. Their code has Mamba-2 alone; here a channel of Mamba keeps what
    the slowest of its states does.
    """
    trained = tokens.shape[-1]
    lengths = tuple(int(trained * stretch) for stretch in STRETCHES) if lengths is None else tuple(lengths)
    if tokens.dim() != 2 or not tokens.numel():
        raise ValueError(f"tokens must be (n, T) sequences, got {tuple(tokens.shape)}")
    if not lengths or list(lengths) != sorted({trained + 1, *lengths})[-len(lengths) :] or lengths[0] <= trained:
        raise ValueError(f"lengths must grow, from more than the {trained} tokens of a sequence on, got {lengths}")
    if not (0 <= memory < 1 and 0 <= clamp < 1 and scale >= 0):
        raise ValueError(f"memory and clamp must be in [0, 1) and scale not negative, got {memory}, {clamp}, {scale}")
    with evaluating(model), watching(model) as seen:
        model(tokens, logits_to_keep=1)
    apply(model, LongMamba(trained=trained, lengths=lengths))
    for name, mixer in selective(model).items():
        steps = clamped(torch.cat(seen[name]).transpose(1, 2), clamp)  # (n, C, T)
        far = (steps.sum(-1) * slowest(mixer)).exp().mean(0) > memory
        ordered = steps[:, far].sort(-1, descending=True).values
        for index, length in enumerate(lengths):
            mixer.step_rule.threshold[index, far] = scale * thresholds(ordered, length).mean(0)
    return model


def thresholds(ordered: Tensor, length: int) -> Tensor:
    """The largest g at which the steps above it, of sequences stretched to ``length``, sum up to what all did.

    Args:
        ordered: steps (n, C, T), the largest first.
        length: of the stretched sequences, whose further steps are interpolated between those.

    Returns:
        (n, C).
    """
    trained = ordered.shape[-1]
    count = min(length, 2 * trained)  # of the stretched ones: the largest T of them sum up to what T of the mean do
    source = ((torch.arange(count, device=ordered.device, dtype=ordered.dtype) + 0.5) * trained / length - 0.5).clamp(
        min=0
    )
    below = source.long()
    stretched = ordered[..., below].lerp(ordered[..., (below + 1).clamp(max=trained - 1)], source - below)
    enough = (stretched.cumsum(-1) > ordered.sum(-1, keepdim=True)).to(torch.uint8)
    place = (enough.argmax(-1, keepdim=True) + 1).clamp(max=count - 1)
    return stretched.gather(-1, place)[..., 0]


def clamped(steps: Tensor, share: float) -> Tensor:
    """The largest steps (n, C, T), a share of them, as large as the smallest of these."""
    if share == 0:
        return steps
    return steps.minimum(steps.topk(max(1, int(share * steps.shape[-1]))).values.amin(-1, keepdim=True))

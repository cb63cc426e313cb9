"""Predictors that learn which tokens of images and of answers later layers can do without."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zoo.changes import Change, apply
from zoo.config import require_positive
from zoo.layers.cache.dynamic_llava import DynamicLLaVA
from zoo.layers.cache.pruning import governed_parts
from zoo.layers.options import require_at_least
from zoo.layers.precision import computes_in
from zoo.layers.tokens.predictors import ImagePredictor, TextPredictor
from zoo.vision_language.llava import Llava

Model = TypeVar("Model", bound=Llava)
IGNORED = -100


class ContextPredictors(nn.Module):
    """Of a language model: what reads its residual stream before the layer from which on there are fewer tokens.

    Attributes:
        image, text: predictors of tokens of images and of output.
        layer, image_keep, text_keep: see ``ContextSparsity``.
    """

    def __init__(self, dim: int, options: ContextSparsity):
        super().__init__()
        self.layer, self.image_keep, self.text_keep = options.layer, options.image_keep, options.text_keep
        sizes = options.num_heads, options.mlp_dim, options.depth
        self.image = ImagePredictor(dim, options.width, *sizes)
        self.text = TextPredictor(dim, options.width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextSparsity(Change, kind="dynamic_llava"):
    """Predictors in the language model of a ``Llava``, ``language.context_predictors``, which change no output until
    they are asked: by ``sparsified_loss`` and ``cache=DynamicLLaVA()``."""

    layer: int = 2
    """Number of the first attention layer that has fewer tokens; 1 for the second."""
    image_keep: float = 0.2
    """Share of the tokens of images that it has."""
    text_keep: float = 0.5
    """Share of the output that training aims at."""
    width: int = 512
    """Of both predictors."""
    num_heads: int = 8
    """Of the image predictor's blocks."""
    mlp_dim: int = 2048
    """Hidden width of their MLPs."""
    depth: int = 2
    """Their number."""

    def install(self, model: nn.Module) -> None:
        """Put fresh predictors in place."""
        require_positive(self, "layer", "width", "num_heads", "mlp_dim", "depth")
        DynamicLLaVA(image_keep=self.image_keep, text_keep=self.text_keep)
        if not isinstance(model, Llava) or type(model).forward is not Llava.forward:
            raise ValueError(
                f"predictors choose among the tokens of images that stand in texts, and {type(model).__name__} has "
                "none: take a Llava"
            )
        if hasattr(model.language, "context_predictors"):
            raise ValueError("the model has predictors already: train these, or begin with the plain model")
        keeping = DynamicLLaVA(image_keep=1, text_keep=1)
        layers = sum(1 for _ in governed_parts(model.init_state(1, device="meta", cache=keeping)))
        if self.layer >= layers:
            raise ValueError(f"layer must be below {layers}, the number of attention layers, got {self.layer}")
        like = computes_in(model.language)
        with torch.device(like.device):
            model.language.context_predictors = ContextPredictors(model.language.stream_dim, self).to(like.dtype)


def add_predictors(model: Model, **options: Any) -> Model:
    """Put predictors of Dynamic-LLaVA in a model, in place, fresh: train them by ``sparsified_loss``.

    >>> add_predictors(model, layer=1, width=64, mlp_dim=128)
    >>> sparsified_loss(model, images, tokens, labels, temperature=annealed(step / steps)).backward()
    >>> answer(model.eval(), images, texts, tokenizer, 20, cache=DynamicLLaVA())

    Args:
        model: a ``Llava``, whose outputs do not change.
        options: those of ``ContextSparsity``.

    Returns:
        The model; ``zoo.save_model`` keeps the predictors.

    Raises:
        ValueError: for another model, a share outside (0, 1], or a layer that it does not have. TypeError: for an
            option that there is not.

    Paper: Huang et al., "Dynamic-LLaVA", arXiv 2412.00876.
    """
    apply(model, ContextSparsity(**options))
    return model


def sparsified_loss(
    model: Llava,
    images: Tensor,
    tokens: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    weight: float = 100.0,
    shortest: int = 50,
) -> Tensor:
    r"""The loss of answers that are read under the predictors' choices, and how far these are from their shares:

    .. math:: L + w \, \mathrm{mean}_b (r_I - \bar k_b^I)^2 + w \, \mathrm{mean}_b (r_T - \bar k_b^T)^2

    with the means of what is kept in row b of the tokens of images and of those that labels score, the output. Tokens
    are drawn with Gumbel noise, 0 or 1, and have the gradient of softmax; no token is left out of the computation.

    Args:
        model: with predictors, see ``add_predictors``.
        images, tokens, labels: as of ``Llava.forward``.
        temperature: of the noise.
        weight: w.
        shortest: an answer of fewer tokens is kept, and counts in no mean.

    Returns:
        A scalar.

    Raises:
        ValueError: for a model without predictors, or a temperature of 0, which has no gradient.

    Paper: Huang et al., "Dynamic-LLaVA", arXiv 2412.00876, numbers of the authors' code.
    """
    found: Any = getattr(model.language, "context_predictors", None)
    if found is None:
        raise ValueError("there are no predictors to train: put them in place by add_predictors(model)")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    require_at_least(0, weight=weight, shortest=shortest)
    state = model.init_state(len(tokens), cache=DynamicLLaVA(masked=True, temperature=temperature))
    chooser = list(governed_parts(state))[found.layer - 1]
    output = labels != IGNORED
    output = output & (output.sum(1, keepdim=True) >= shortest)
    chooser.notes["output"] = output
    loss = model(images, tokens, state, labels=labels)
    keep = chooser.notes["keep"]
    if keep is None:
        return loss
    for share, judged in ((found.image_keep, tokens == model.config.image_token), (found.text_keep, output)):
        rows = judged.any(1)
        if share != 1 and bool(rows.any()):
            mean = (keep * judged).sum(1)[rows] / judged.sum(1)[rows]
            loss = loss + weight * (share - mean).square().mean()
    return loss


def annealed(progress: float, start: float = 1.0, end: float = 0.1) -> float:
    """The temperature after a share ``progress`` of the training: from ``start`` to ``end`` by equal factors."""
    return start * (end / start) ** progress

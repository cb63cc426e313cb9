"""In-context vectors: examples that move what a language model says, instead of standing in its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
Ids = Tensor | Sequence[int]


@torch.no_grad()
def in_context_vectors(model: nn.Module, pairs: Sequence[tuple[Ids, Ids]]) -> Tensor:
    """One direction a block, from examples of what a text is to become.

    With h(.) the outputs of all blocks after a text's last token, D_i = h(y_i) - h(x_i) over the pairs: the mean of
    D, plus the first principal component of D around it, a unit vector that points the mean's way. Of a single pair
    it is the difference.

    Args:
        model: a language model.
        pairs: token ids (x_i, y_i) of a text and of what it is to become, each of one token or more.

    Returns:
        (depth, dim), in float32.

    Raises:
        ValueError: for no pair, or an empty text.

    Paper: Liu et al., "In-context Vectors: Making In Context Learning More Effective and Controllable Through Latent
    Space Steering", arXiv 2311.06668.
    """
    if not pairs or any(len(text) == 0 for pair in pairs for text in pair):
        raise ValueError(f"in_context_vectors takes pairs of texts of at least one token each, got {len(pairs)} pairs")
    differences = torch.stack([_last(model, after) - _last(model, before) for before, after in pairs]).flatten(1)
    mean = differences.mean(0)
    found = mean
    if len(pairs) > 1:
        *_, directions = torch.linalg.svd(differences - mean, full_matrices=False)
        found = mean + directions[0] * (torch.sign(directions[0] @ mean) or 1.0)
    return found.unflatten(0, (len(blocks_of(model)), -1)).float()


@contextmanager
def steer(model: Model, vectors: Tensor | Sequence[Tensor], strength: float | Sequence[float] = 0.1) -> Iterator[Model]:
    """Within it each block's MLP answers h become |h| times the direction of h / |h| + u, where over the n vectors

        u = sum_i lambda_i (1 + max(0, cos(h, -v_i))) v_i / |v_i| / n.

    Prompts and steps alike; states made within it belong to it. Blocks without an MLP are moved at their mixer.

    Args:
        model: a language model.
        vectors: (depth, dim) of ``in_context_vectors``, or several.
        strength: lambda, of all vectors or one each; 0 changes nothing.

    Yields:
        The model, which is as it was afterwards.

    Raises:
        ValueError: for vectors of another shape, or not as many strengths as vectors.
    """
    given = [vectors] if isinstance(vectors, Tensor) else list(vectors)
    blocks = blocks_of(model)
    strengths = [float(strength)] * len(given) if isinstance(strength, (int, float)) else list(strength)
    shape = (len(blocks), model.config.dim)  # type: ignore[union-attr]
    if not given or len(strengths) != len(given) or any(vector.shape != shape for vector in given):
        raise ValueError(
            f"steer takes vectors {shape} and a strength for each, got vectors "
            f"{[tuple(vector.shape) for vector in given]} and {len(strengths)} strengths"
        )
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            place = block.mlp if getattr(block, "mlp", None) is not None else block.mixer
            rows = torch.stack(
                [s * F.normalize(vector[index], dim=0) for s, vector in zip(strengths, given, strict=True)]
            )
            stack.enter_context(_hooked(place, partial(_moved, rows)))
        yield model


def blocks_of(model: Any) -> Sequence[Any]:
    """The blocks of a language model.

    Raises:
        ValueError: for a model that is none, or repeats its blocks.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is None or not getattr(model, "straight", False):
        raise ValueError(
            f"in-context vectors go with a language model whose blocks are run once, got {type(model).__name__}"
        )
    return blocks


def _last(model: nn.Module, text: Ids) -> Tensor:
    """(depth, dim): what leaves each block after the last token, in float64."""
    found: list[Tensor] = []
    tokens = torch.as_tensor(text, device=next(model.parameters()).device)[None]
    with ExitStack() as stack:
        for block in blocks_of(model):
            stack.enter_context(_hooked(block, lambda module, inputs, output: found.append(output[0, -1].double())))
        model(tokens)
    return torch.stack(found)


@contextmanager
def _hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _moved(rows: Tensor, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """rows: lambda_i v_i / |v_i| of the block, (n, dim)."""
    rows, h = rows.to(output.device), output.float()
    against = F.cosine_similarity(h[..., None, :], -rows, dim=-1).clamp(min=0)  # (..., n)
    shift = (1 + against) @ rows / len(rows)
    size = h.norm(dim=-1, keepdim=True)
    return (size * F.normalize(F.normalize(h, dim=-1) + shift, dim=-1)).to(output.dtype) if bool(rows.any()) else output

"""How far two runs of a model with Mamba or Mamba-2 mixers come apart: their Lyapunov exponents, and what is seen."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from zoo.generate import evaluating
from zoo.kernels.dispatch import compute_dtype
from zoo.language.base import LanguageModel
from zoo.layers.ssm.steps import selective, watching


@torch.no_grad()
def lyapunov_exponents(model: LanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    r"""How fast each Mamba and Mamba-2 mixer forgets a change of its state, over a text.

    .. math::
        \lambda = \frac{1}{T} \log \Big| \prod_{t=1}^{T} \frac{\partial h_t}{\partial h_{t-1}} \Big|
        = \frac{A}{T} \sum_{t=1}^{T} \Delta_t \le 0

    as the Jacobian of the recurrence is diagonal, with :math:`e^{\Delta_t A} \in (0, 1)`. Whatever the weights, two
    states that read the same do not come apart: :math:`|\delta h_T| = e^{\lambda T} |\delta h_0|`. That is of the
    recurrence with its inputs fixed; it says nothing of how :math:`\Delta`, B and C depend on the input, of several
    layers, or of a model that reads what it writes. See ``deviation`` for what is seen of the whole.

    Args:
        model: a language model.
        tokens: (B, T).

    Returns:
        Name of a mixer -> exponents in nats a step, of the text in which it forgets least: (D, N) of Mamba, a state of
        a channel, (H,) of Mamba-2, a head. The largest of all is the maximal exponent of the recurrence.

    Raises:
        ValueError: for a model without such mixers.

    Paper: Halloran et al., "Mamba State-Space Models Are Lyapunov-Stable Learners", arXiv 2406.00209.
    """
    with evaluating(model), watching(model) as seen:
        model(tokens, logits_to_keep=1)
    found = {}
    for name, mixer in selective(model).items():
        steps = torch.cat(seen[name]).mean(1)  # (B, C)
        rates = -mixer.A_log.to(steps.dtype).exp()
        found[name] = (steps.reshape(*steps.shape, *[1] * (rates.dim() - 1)) * rates).amax(0)
    return found


@torch.no_grad()
def deviation(
    model: LanguageModel, tokens: Tensor, *, dtype: torch.dtype | None = None, noise: float = 0.0, seed: int = 0
) -> Tensor:
    r"""How far a model's logits are from those in low precision, or from disturbed embeddings, at each step.

    .. math:: d_t = \lVert z'_t - z_t \rVert / \lVert z_t \rVert

    The paper compares accuracies in full and mixed precision; this is what they come from. Of a stable model the end of
    a long text deviates no more than its beginning.

    Args:
        model: a language model, of any kind.
        tokens: (B, T).
        dtype: torch.bfloat16 or torch.float16, in which the other run computes under autocast.
        noise: standard deviation of what is added to the embeddings of the other run, over that of these.
        seed: of the noise.

    Returns:
        d (B, T), float32 or wider.

    Raises:
        ValueError: where there is neither a low precision nor noise.
    """
    if dtype is None and noise == 0:
        raise ValueError("nothing would differ: give the other run a dtype, such as torch.bfloat16, or noise above 0")

    def disturbed(module: Any, inputs: Any, output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        return output + noise * output.std() * drawn.to(output.device, output.dtype)

    with evaluating(model), contextlib.ExitStack() as stack:
        exact = model(tokens)
        if noise:
            stack.callback(model.embedding.register_forward_hook(disturbed).remove)
        if dtype is not None:
            stack.enter_context(torch.autocast(tokens.device.type, dtype=dtype))
        other = model(tokens)
    wide = compute_dtype(exact)
    return (other.to(wide) - exact.to(wide)).norm(dim=-1) / exact.to(wide).norm(dim=-1)

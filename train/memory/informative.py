"""Which tokens of a layer are informative: its own scores, and a small network that learns to say them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.layers import CausalAttention


def tiles(attention: CausalAttention, x: Tensor, size: int, seq_idx: Tensor | None = None) -> Tensor:
    r"""Largest sum over heads of the positive logits of ``size`` queries and as many keys.

    :math:`S_{ij} = \max_{t \in i, s \in j, s \le t} \sum_h \max(0, q_{ht} \cdot k_{hs} / \sqrt d)`, x (B, T, dim) ->
    (B, n, n), 0 where no query sees a key.
    """
    place = attention.place(x, None, seq_idx)
    q, k = (proj(x).unflatten(-1, (-1, attention.head_dim)) for proj in (attention.q_proj, attention.k_proj))
    q, k = (t.transpose(1, 2) for t in attention.rotated(place.position, attention.q_norm(q), attention.k_norm(k)))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
    position, found = torch.arange(x.shape[1], device=x.device), []
    for first in range(0, x.shape[1], size):
        here = slice(first, first + size)
        logits = (q[:, :, here] @ k.mT * scale).relu().sum(1)  # (B, size, T)
        seen = position <= position[here, None]
        if seq_idx is not None:
            seen = seen & (seq_idx[:, here, None] == seq_idx[:, None])
        row = F.pad(logits.masked_fill(~seen, 0), (0, -x.shape[1] % size)).amax(1)
        found.append(row.unflatten(1, (-1, size)).amax(2))
    return torch.stack(found, 1)


def information(scores: Tensor) -> Tensor:
    """Mean over the blocks of queries i >= j of S (B, n, n): how informative each block of keys j is, (B, n)."""
    n = scores.shape[-1]
    return scores.tril().sum(1) / torch.arange(n, 0, -1, device=scores.device)


class Predictor(nn.Module):
    r"""Says S from what enters a layer: the tokens of a block side by side, head by head, through two networks.

    .. math:: S_{ij} \approx \sum_h f(x_{hi}) \cdot g(x_{hj})

    Args:
        dim, num_heads: of the layer; a head's channels are dim / num_heads of its input.
        block_size: tokens of a block.
        hidden_dim: width of the networks.
    """

    def __init__(self, dim: int, num_heads: int, block_size: int, hidden_dim: int):
        super().__init__()
        self.num_heads, self.block_size, width = num_heads, block_size, dim // num_heads
        wide = block_size * width
        self.query, self.key = (
            nn.Sequential(
                nn.Linear(wide, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, wide), nn.ReLU(), nn.Linear(wide, width)
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, dim) -> (B, n, n)."""
        x = F.pad(x.float(), (0, 0, 0, -x.shape[1] % self.block_size))
        x = x.unflatten(1, (-1, self.block_size)).unflatten(-1, (self.num_heads, -1))  # (B, n, size, H, d)
        x = x.permute(0, 3, 1, 2, 4).flatten(3)  # (B, H, n, size d)
        return (self.query(x) @ self.key(x).mT).sum(1)


def fit_predictors(
    model: Any,
    batches: Iterable[Tensor],
    path: Path | str,
    *,
    layers: Iterable[int],
    block_size: int = 64,
    hidden_dim: int = 32,
    lr: float = 1e-3,
) -> dict[int, list[float]]:
    """Let networks learn the scores of some blocks' attention, one step of Adam a batch, and write them to a file.

    Args:
        model: a language model whose blocks have ``CausalAttention``; nothing of it is changed.
        batches: tokens (B, T).
        path: of the file, safetensors.
        layers: numbers of the blocks.
        block_size: tokens of a block, as in ``LeMo``.
        hidden_dim: width of the networks.
        lr: learning rate.

    Returns:
        The loss of each step, by layer: smooth L1 of the scores, each divided by the mean of the layer's.
    """
    mixers = {index: model.blocks[index].mixer for index in layers}
    learnt = {
        index: Predictor(mixer.dim, mixer.num_heads, block_size, hidden_dim).to(next(mixer.parameters()).device)
        for index, mixer in mixers.items()
    }  # fmt: skip
    optimizers = {index: torch.optim.Adam(one.parameters(), lr) for index, one in learnt.items()}
    losses: dict[int, list[float]] = {index: [] for index in mixers}
    entered: dict[int, Tensor] = {}
    hooks = [
        mixer.register_forward_pre_hook(lambda _, inputs, index=index: entered.__setitem__(index, inputs[0].float()))
        for index, mixer in mixers.items()
    ]
    training = model.training
    try:
        for tokens in batches:
            with torch.no_grad():
                model.eval()(tokens, labels=tokens)
                wanted = {index: tiles(mixer, entered[index], block_size) for index, mixer in mixers.items()}
            for index, scores in wanted.items():
                scores = scores / scores.mean().clamp(min=1e-6)
                loss = F.smooth_l1_loss(learnt[index](entered[index]).tril(), scores)
                optimizers[index].zero_grad()
                loss.backward()
                optimizers[index].step()
                losses[index].append(loss.item())
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    tensors = {f"{index}.{name}": t for index, one in learnt.items() for name, t in one.state_dict().items()}
    save_file(tensors, str(path), {"format": "pt"})
    return losses


def read_predictors(path: Path | str, attention: dict[int, Any], block_size: int) -> dict[int, Predictor]:
    """The networks of a file, for these layers.

    Raises:
        ValueError: it is of other layers, blocks or widths.
    """
    tensors, found = load_file(str(path)), {}
    for index, mixer in attention.items():
        own = {name.removeprefix(f"{index}."): t for name, t in tensors.items() if name.startswith(f"{index}.")}
        if not own:
            raise ValueError(f"{path} has no predictor of block {index}: take layers that fit_predictors was given")
        hidden = own["query.0.weight"].shape[0]
        found[index] = Predictor(mixer.dim, mixer.num_heads, block_size, hidden)
        if found[index].query[0].weight.shape != own["query.0.weight"].shape:  # type: ignore[union-attr]
            raise ValueError(f"{path} is for blocks or heads of another size: take block_size as in fit_predictors")
        found[index].load_state_dict(own)
        found[index].requires_grad_(False)
    return found

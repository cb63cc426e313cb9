"""Attention from each query to the keys whose product-quantised codes are most like its own (SPT)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.kernels.dispatch import compute_dtype
from zoo.layers.attention.causal import CausalAttention
from zoo.layers.attention.keys import EMPTY, Place, masked
from zoo.layers.attention.state import KeyValueState
from zoo.layers.options import require_at_least
from zoo.layers.report import Reports

ROWS = 128  # queries whose logits exist at a time


class ProductQuantizer(Reports):
    r"""Codes of vectors: each of m parts of width w is its nearest of K codewords, in the sum of absolute differences.

    .. math::
        c_i = \mathrm{argmin}_j \lVert z_i - C_{ij} \rVert_1, \quad
        L = \mathrm{mse}(\tilde z, \hat z) + \mathrm{mse}(z, \hat z), \quad
        \hat z_i = C_{i c_i}, \quad \tilde z_i = \sum_j \mathrm{softmax}_j(-\log \lVert z_i - C_{ij} \rVert_1) C_{ij}

    Attributes:
        auxiliary_losses: "codebook", in training mode, of what ``learn`` was given, already weighted.

    Args:
        dim: m w.
        codewords: K.
        width: w.
        weight: of the loss.

    Raises:
        ValueError: for a width that does not divide dim, options below 1, or more than 256 codewords.

    Source: SPT's code, github.com/ytgui/SPT-proto.
    """

    def __init__(self, dim: int, codewords: int = 16, width: int = 8, weight: float = 0.01):
        super().__init__()
        require_at_least(1, codewords=codewords, codeword_dim=width)
        if codewords > 256:
            raise ValueError(f"codewords must be at most 256, a byte's worth, got {codewords}")
        if dim % width:
            raise ValueError(f"codeword_dim must divide the width of a head, got {width} for {dim}")
        self.codebook = nn.Parameter(torch.randn(dim // width, codewords, width))
        self.weight = weight

    def distances(self, z: Tensor) -> Tensor:
        """z (..., m w) -> (m, vectors, K), float32 or wider."""
        codebook = self.codebook.to(compute_dtype(z))
        parts = z.to(codebook.dtype).reshape(-1, codebook.shape[0], codebook.shape[2]).transpose(0, 1)
        return torch.cdist(parts, codebook, p=1.0)

    @torch.no_grad()
    def codes(self, z: Tensor) -> Tensor:
        """z (..., m w) -> (..., m) uint8 in [0, K)."""
        return self.distances(z).argmin(-1).T.reshape(*z.shape[:-1], -1).to(torch.uint8)

    def one_hot(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Codes (..., m) -> (..., m K), a one for each."""
        every = torch.arange(self.codebook.shape[1], device=codes.device, dtype=codes.dtype)
        return (codes[..., None] == every).flatten(-2).to(dtype)

    def loss(self, z: Tensor) -> Tensor:
        """L of z (..., m w)."""
        distance = self.distances(z)
        codebook = self.codebook.to(distance.dtype)
        hard = codebook.take_along_dim(distance.argmin(-1)[..., None], 1)  # (m, vectors, w)
        soft = (-distance.clamp(min=1e-5).log()).softmax(-1) @ codebook
        parts = z.to(hard.dtype).reshape(-1, *codebook.shape[::2]).transpose(0, 1)
        return F.mse_loss(soft, hard) + F.mse_loss(parts, hard)

    def learn(self, *vectors: Tensor) -> None:
        """Publish the loss of some vectors; what it took is computed again for its gradient."""
        losses = [checkpoint(self.loss, z, use_reentrant=False) for z in vectors]
        self.report({"codebook": self.weight * torch.stack(losses).sum()}, {})  # type: ignore[arg-type]


class CodeMatchedAttention(CausalAttention):
    r"""softmax over the ``keys`` of a query that share the most codes with it, of those it may see.

    .. math::
        n_{ts} = \sum_i [c_i(q_t) = c_i(k_s)], \quad \mathcal{K}_t = \mathrm{top}_{keys, s \le t}(n_{ts}), \quad
        y_t = \sum_{s \in \mathcal{K}_t} \mathrm{softmax}_s(q_t k_s / \sqrt{d}) v_s

    Among equal counts the newest keys are taken. A query that may see no more than ``keys`` sees them all, and this is
    ``CausalAttention`` then. Each query head takes keys of its own; caches are those of ``CausalAttention``.

    Some queries at a time are matched with all keys, and their logits are masked: what this saves is memory, not
    products. For the backward pass one number a query is kept, by which its keys are found again.

    With rotary positions codes also tell where in its sequence a vector stands, as in the authors' code. Positions
    begin with each packed sequence, but go on in a state, where later sequences match otherwise than alone.

    The paper keeps an eighth of the sequence's length for every query: 64 keys of its 512 steps. A number does not
    depend on how long a sequence will be, so that decoding agrees with the whole.

    Args:
        dim, num_heads, options: of ``CausalAttention``; without softcap and sinks.
        keys: that a query sees at most.
        codewords, codeword_dim: of the ``ProductQuantizer``.
        clamp: bound of the logits on either side, 10 in the authors' code; None for none.

    Attributes:
        matching: False: attention is whole, and the codebooks learn (the authors' first stage).

    Raises:
        ValueError: for ``keys`` below 1, or a codeword_dim that does not divide the width of a head.

    Paper: Gui et al., "SPT: Fine-Tuning Transformer-based Language Models Efficiently with Sparsification", arXiv
    2312.10365; the authors' code, github.com/ytgui/SPT-proto.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *args: Any,
        keys: int = 64,
        codewords: int = 16,
        codeword_dim: int = 8,
        clamp: float | None = None,
        **options: Any,
    ):
        super().__init__(dim, num_heads, *args, **options)
        require_at_least(1, keys=keys)
        self.keys, self.clamp, self.matching = keys, clamp, True
        self.quantizer = ProductQuantizer(self.head_dim, codewords, codeword_dim)

    @classmethod
    def of(cls, attention: CausalAttention, **options: Any) -> CodeMatchedAttention:
        """The same attention, of the same projections, among fewer keys."""
        a = attention
        device, dtype = a.placement()
        with device:  # without projections: those come next
            made = cls(2, a.num_heads, a.num_kv_heads, None, a.head_dim, a.scale, rotary=a.rotary, **options).to(dtype)
        for name, child in a.named_children():
            setattr(made, name, child)
        return made.train(a.training)

    def place(self, x: Tensor, state: KeyValueState | None, seq_idx: Tensor | None) -> Place:
        """Where the tokens x (B, T, dim) stand: codes tell positions, which so begin with each packed sequence."""
        place = super().place(x, state, seq_idx)
        if state is not None or seq_idx is None:
            return place
        index = torch.arange(x.shape[1], device=x.device)
        starts = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0), value=True)
        position = index - (index * starts).cummax(1).values
        return place._replace(position=position.masked_fill(seq_idx < 0, EMPTY))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: Tensor | None = None) -> Tensor:
        """q (B, H, T, d) over k and v (B, num_kv_heads, S, d) with a mask as in ``Attended`` -> (B, H, T, d)."""
        if self.training and torch.is_grad_enabled():
            self.quantizer.learn(q, k)
        if not self.matching or self.keys >= k.shape[2]:
            return super().attend(q, k, v, mask, heads)
        codes, rows = self.quantizer.codes(k), []  # (B, G, S, m)
        for start in range(0, q.shape[2], ROWS):
            part, seen = q[:, :, start : start + ROWS], self.seen(start, q.shape[2], k.shape[2], mask, k.device)
            keys, values, known = (z[:, :, : seen.shape[-1]] for z in (k, v, codes))
            given = part, keys, values, known, seen, self.least(part, known, seen)
            again = torch.is_grad_enabled()
            rows.append(
                checkpoint(self.among, *given, use_reentrant=False, preserve_rng_state=False)
                if again
                else self.among(*given)
            )
        return torch.cat(rows, dim=2)

    def seen(self, start: int, queries: int, keys: int, mask: Tensor | None, device: torch.device) -> Tensor:
        """Which keys the next ``ROWS`` queries may see: (T, S), or (B, 1, T, S), without those later than all."""
        if mask is not None:
            return mask[..., start : start + ROWS, :]
        if queries == 1:
            return torch.ones(1, keys, dtype=torch.bool, device=device)
        query = torch.arange(start, min(start + ROWS, queries), device=device)
        return torch.arange(min(start + ROWS, queries), device=device) <= query[:, None]

    @torch.no_grad()
    def ranks(self, q: Tensor, codes: Tensor, seen: Tensor) -> Tensor:
        """How good the keys are for q (B, H, T, d), by codes in common, then by age: (B, H, T, S), all different, and
        -1 where a key may not be seen."""
        own, known = (self.quantizer.one_hot(c, compute_dtype(q)) for c in (self.quantizer.codes(q), codes))
        counts = own.unflatten(1, (codes.shape[1], -1)) @ known[:, :, None].mT  # (B, G, H / G, T, S)
        counts = counts.flatten(1, 2)
        newest = torch.arange(codes.shape[2], device=q.device, dtype=counts.dtype)
        return counts.mul_(codes.shape[2]).add_(newest).masked_fill_(~seen, -1)

    @torch.no_grad()
    def least(self, q: Tensor, codes: Tensor, seen: Tensor) -> Tensor:
        """The rank of the last key that each query takes: (B, H, T, 1)."""
        ranks = self.ranks(q, codes, seen)
        if self.keys >= ranks.shape[-1]:
            return ranks.new_zeros(ranks[..., :1].shape)
        return ranks.kthvalue(ranks.shape[-1] - self.keys + 1, dim=-1, keepdim=True).values.clamp(min=0)

    def among(self, q: Tensor, k: Tensor, v: Tensor, codes: Tensor, seen: Tensor, least: Tensor) -> Tensor:
        """q (B, H, T, d) over those of k and v (B, G, S, d) that are of at least these ranks -> (B, H, T, d)."""
        taken = self.ranks(q, codes, seen) >= least
        logits = self.logits(q, k, v)
        if self.clamp is not None:
            logits = logits.clamp(-self.clamp, self.clamp)
        return self.mixed(self.weights(masked(logits, taken)), v)

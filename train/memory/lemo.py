"""LeMo: in some layers only informative tokens take part in attention, and the rest pass by."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers import CausalAttention, SwiGLU
from zoo.layers.attention.keys import Place
from zoo.layers.options import require_at_least
from zoo.layers.recast import recast
from zoo.train.memory.informative import Predictor, information, read_predictors, tiles
from zoo.train.memory.method import Memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeMo(Memory, kind="lemo"):
    r"""In training, attention over the blocks of tokens that matter, and feed-forward layers that forget channels.

    Of the logits of a layer, a tile of ``block_size`` queries and as many keys counts with its largest sum over heads,
    and a block of keys with the mean of its tiles:

    .. math::
        S_{ij} = \max_{t \in i, s \in j, s \le t} \sum_h \max(0, q_{ht} \cdot k_{hs} / \sqrt d), \qquad
        I_j = \frac{1}{n - j} \sum_{i \ge j} S_{ij}

    The paper sums instead of taking the mean, by which early blocks, that more queries see, win. The ``keep`` share
    of blocks of the largest I are projected, attend to one another at their own positions, and are projected back; the
    other tokens go past the attention. Of a SwiGLU the backward pass knows only the channels of the largest
    :math:`\|\mathrm{act}(g)\| + \|u\|` over all tokens; its output is what it was. With all blocks and channels kept
    training is what it was, to the bit; otherwise it is not, and meant for low ranks beside frozen weights. In eval
    mode, and from a state, the model is the plain one.

    The scores are those of the layer itself, without gradients, for one more product of all queries and keys; or what
    small networks say of them, which ``zoo.train.memory.fit_predictors`` has let learn it before.

    Paper: Wang et al., "LeMo: Enabling LEss Token Involvement for MOre Context Fine-tuning", arXiv 2501.09767; numbers
    as its authors' code has them for LLaMA.
    """

    keep: float = 0.4
    """Share of the blocks of tokens that attend, rounded down, at least one."""
    block_size: int = 64
    """Tokens of a block."""
    layers: tuple[int, ...] | None = None
    """Where; None for those from 15 of 32 on, without the last one."""
    predictors: str | None = None
    """File of ``fit_predictors``; None for the layers' own scores."""
    forget: float = 0.0
    """Share of a SwiGLU's channels that the backward pass does without, 0.5 in the paper, in all blocks."""

    def chosen(self, depth: int) -> tuple[int, ...]:
        """The blocks of so many whose attention is sparse."""
        return tuple(range(15 * depth // 32, depth - 1)) if self.layers is None else self.layers

    def check(self, model: nn.Module) -> None:
        """A model whose chosen blocks have plain causal attention."""
        require_at_least(1, block_size=self.block_size)
        if not 0 < self.keep <= 1 or not 0 <= self.forget < 1:
            raise ValueError(f"lemo: keep must be in (0, 1] and forget in [0, 1), got {self.keep} and {self.forget}")
        blocks = getattr(model, "blocks", ())
        for index in self.chosen(len(blocks)):
            if not 0 <= index < len(blocks):
                raise ValueError(f"lemo: layers must be some of the {len(blocks)} blocks, got {self.layers}")
            mixer = getattr(blocks[index], "mixer", None)
            if type(mixer) is not CausalAttention:
                raise ValueError(
                    f"lemo is for plain causal attention, block {index} has {type(mixer).__name__}: take other layers"
                )
        if not self.chosen(len(blocks)):
            raise ValueError(f"lemo: {type(model).__name__} has no middle blocks: take layers by their numbers")

    def install(self, model: Any) -> None:
        """Attention and feed-forward layers that do so in training."""
        mixers = {index: model.blocks[index].mixer for index in self.chosen(len(model.blocks))}
        known = read_predictors(self.predictors, mixers, self.block_size) if self.predictors else {}
        for index, mixer in mixers.items():
            made = recast(mixer, InformativeAttention)
            made.keep, made.block_size = self.keep, self.block_size
            made.says = (known[index].to(next(mixer.parameters()).device),) if known else None
            model.blocks[index].mixer = made
        for block in model.blocks if self.forget else ():
            if type(block.mlp) is SwiGLU:
                block.mlp = recast(block.mlp, ForgetfulSwiGLU)
                block.mlp.forget = self.forget

    def remove(self, model: Any) -> None:
        """The plain ones again."""
        for block in model.blocks:
            for name, kind, plain in (
                ("mixer", InformativeAttention, CausalAttention),
                ("mlp", ForgetfulSwiGLU, SwiGLU),
            ):
                if type(getattr(block, name, None)) is kind:
                    setattr(block, name, recast(getattr(block, name), plain))


class InformativeAttention(CausalAttention):
    """Attention that tokens of little information go past, see ``LeMo``; the plain one in eval mode."""

    keep: float
    block_size: int
    says: tuple[Predictor] | None = None  # in a tuple, so that its weights are none of the model's

    def forward(self, x: Tensor, state=None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        count = -(-x.shape[1] // self.block_size)
        kept = max(1, int(self.keep * count))
        if state is not None or not self.training or kept == count:
            return super().forward(x, state, seq_idx=seq_idx)
        with torch.no_grad():
            blocks = self.information(x, seq_idx).topk(kept, 1).indices.sort(1).values  # (B, kept)
        token = blocks[..., None] * self.block_size + torch.arange(self.block_size, device=x.device)
        return self.at_tokens(x, token.flatten(1), seq_idx)

    def at_tokens(self, x: Tensor, token: Tensor, seq_idx: Tensor | None) -> Tensor:
        """Of x (B, T, dim) the tokens (B, N) attend, those past the end to themselves; 0 for all others."""
        inside = token < x.shape[1]
        place = token.clamp(max=x.shape[1] - 1)
        ids = torch.zeros_like(token) if seq_idx is None else seq_idx.gather(1, place)
        named = seq_idx is not None or x.shape[1] % self.block_size > 0
        ids = ids.masked_fill(~inside, -2) if named else None
        index = place[..., None].expand(-1, -1, x.shape[2])
        y = self.at(x.gather(1, index), Place(place, ids, named))
        return torch.zeros_like(y[:, :1]).expand_as(x).scatter_add(1, index, y.masked_fill(~inside[..., None], 0))

    def information(self, x: Tensor, seq_idx: Tensor | None) -> Tensor:
        """I of each block of x (B, T, dim): (B, blocks)."""
        if self.says is not None:
            return information(self.says[0](x))
        return information(tiles(self, x, self.block_size, seq_idx))


class ForgetfulSwiGLU(SwiGLU):
    """A SwiGLU whose backward pass knows the channels that count most, see ``LeMo``; forwards it is exact."""

    forget: float

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        gate, up = self.w1(x), self.w3(x)
        if not (self.training and torch.is_grad_enabled()):
            return self.w2(self.act(gate) * up)
        with torch.no_grad():
            strength = sum(t.flatten(0, -2).norm(dim=0) for t in (self.act(gate), up))
            kept = strength.topk(gate.shape[-1] - int(self.forget * gate.shape[-1])).indices.sort().values  # type: ignore[union-attr]
        hidden = {gate.data_ptr(), up.data_ptr()}

        def pack(tensor: Tensor) -> Any:
            return (tensor[..., kept], tensor.shape) if tensor.data_ptr() in hidden else tensor

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            found, shape = packed
            return found.new_zeros(shape).index_copy(-1, kept, found)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            acted = self.act(gate)
            hidden.add(acted.data_ptr())
            product = acted * up
            hidden.add(product.data_ptr())
            return self.w2(product)

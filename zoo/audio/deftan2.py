"""DeFTAN-II: the speech in what several microphones heard, by attention over frequencies and over time.

Paper: Lee and Choi, "DeFTAN-II: Efficient Multichannel Speech Enhancement with Subgroup Processing", arXiv 2308.15777,
with the sizes of the authors' code (donghoney0416/DeFTAN-II).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.audio.spectrum import spectrum, waveform
from zoo.config import require_positive, require_ranges
from zoo.layers import recompute
from zoo.registry import Paper, register_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeFTAN2Config:
    """Options of DeFTAN-II."""

    num_mics: int = 4
    """Channels of the wave."""
    num_sources: int = 1
    """Waves that are asked for."""
    sample_rate: int = 16_000
    """Samples a second of the waves it was trained on."""
    num_samples: int = 16_000
    """Samples of a wave that is counted or timed; waves may have any length."""
    window: int = 512
    """Samples of a spectrum, even."""
    depth: int = 6
    """Blocks, each of a transformer over frequencies and one over time."""
    dim: int = 64
    """Model width."""
    num_heads: int = 4
    """Heads of attention, and groups of the convolutions before and after the blocks."""
    head_dim: int = 64
    """Width of a head."""
    hidden_dim: int = 256
    """Hidden units of a feed-forward network, half of them of its convolution."""
    neighbors: int = 4
    """Neighbouring frequencies or moments that are read together, at most 4."""
    drop_rate: float = 0.1
    """Dropout of attention and feed-forward networks."""

    def __post_init__(self):
        require_positive(self, "num_mics", "num_sources", "sample_rate", "num_samples", "window", "depth", "dim",
                         "num_heads", "head_dim", "hidden_dim", "neighbors")  # fmt: skip
        require_ranges(self)
        if self.window % 2 or self.window < 8 or self.hidden_dim % 2 or self.neighbors > 4:
            raise ValueError(
                "window must be even and 8 or more, hidden_dim even and neighbors at most 4, got "
                f"window={self.window}, hidden_dim={self.hidden_dim}, neighbors={self.neighbors}"
            )

    @property
    def input_shape(self) -> tuple[int, int]:
        """Of one sample: (num_mics, num_samples)."""
        return self.num_mics, self.num_samples


class SubgroupDense(nn.Module):
    """Dense convolutions at the width of one group: each reads the next group beside what the last one gave.

    Args:
        dim: channels of a group, and of the output.
        groups: of channels.
        conv: ``nn.Conv1d`` or ``nn.Conv2d``.
    """

    def __init__(self, dim: int, groups: int, conv: type[nn.Conv1d] | type[nn.Conv2d]):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(dim * (2 if i else 1), dim, 3, padding=1), nn.GroupNorm(1, dim), nn.PReLU(dim))
            for i in range(groups)
        )

    def forward(self, groups: Sequence[Tensor]) -> Tensor:
        """The groups, each (B, dim, ...), to (B, dim, ...): the last output alone."""
        found = self.blocks[0](groups[0])
        for block, group in zip(self.blocks[1:], groups[1:], strict=True):
            found = block(torch.cat([found, group], dim=1))
        return found


class EmphasisedAttention(nn.Module):
    r"""Efficient attention whose queries and keys are emphasised by a convolution with a gate.

    .. math::
        p = \mathrm{GLU}(\mathrm{conv}_3(x)), \quad
        y = \mathrm{softmax}_d(p W_q) \, \bigl(\mathrm{softmax}_L(p W_k)^\top (x W_v)\bigr) / \sqrt{d}

    Args:
        dim: model width.
        num_heads, head_dim: H, d.
        dropout: of the products of keys and values, and of the output.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, dropout: float):
        super().__init__()
        self.num_heads, self.scale, inner = num_heads, head_dim**-0.5, num_heads * head_dim
        self.emphasis = nn.Conv1d(dim, 2 * dim, 3, padding=1, bias=False)
        self.query, self.key, self.value = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.out = nn.Identity() if num_heads == 1 and head_dim == dim else nn.Linear(inner, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, dim) -> (B, L, dim), in time linear in L."""
        p = F.glu(self.emphasis(x.mT), dim=1).mT
        q, k, v = (
            layer(part).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, L, d)
            for layer, part in ((self.query, p), (self.key, p), (self.value, x))
        )
        mixed = self.dropout(k.softmax(2).mT @ v * self.scale)  # (B, H, d, d)
        return self._dropped(self.out((q.softmax(3) @ mixed).transpose(1, 2).flatten(2)))

    def _dropped(self, y: Tensor) -> Tensor:
        return y if isinstance(self.out, nn.Identity) else self.dropout(y)


class DualPathFeedForward(nn.Module):
    """One half of the hidden units by themselves, the other through a dilated convolution.

    Args:
        dim, hidden_dim: widths.
        dilation: of the convolution over five neighbours.
        dropout: of both halves and the output.
    """

    def __init__(self, dim: int, hidden_dim: int, dilation: int, dropout: float):
        super().__init__()
        half = hidden_dim // 2
        self.plain, self.mixed = nn.Linear(dim, half), nn.Linear(dim, half)
        self.conv = nn.Sequential(
            nn.Conv1d(half, half, 5, dilation=dilation, padding=2 * dilation), nn.GroupNorm(1, half), nn.PReLU(half)
        )
        self.out = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, dim) -> (B, L, dim)."""
        plain, mixed = (self.dropout(F.gelu(layer(x))) for layer in (self.plain, self.mixed))
        return self.dropout(self.out(torch.cat([plain, self.conv(mixed.mT).mT], dim=-1)))


class SubgroupTransformer(nn.Module):
    """Neighbours along an axis read together, attention and a feed-forward network along it, and back to all places."""

    def __init__(self, config: DeFTAN2Config, dilation: int):
        super().__init__()
        c = config
        self.neighbors = c.neighbors
        self.norm, self.attention_norm, self.mlp_norm = (nn.LayerNorm(c.dim) for _ in range(3))
        self.subgroups = SubgroupDense(c.dim, c.neighbors, nn.Conv1d)
        self.attention = EmphasisedAttention(c.dim, c.num_heads, c.head_dim, c.drop_rate)
        self.mlp = DualPathFeedForward(c.dim, c.hidden_dim, dilation, c.drop_rate)
        self.spread = nn.ConvTranspose1d(c.dim, c.dim, c.neighbors)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, L) -> (B, dim, L)."""
        h, length = self.norm(x.mT).mT, x.shape[-1] - self.neighbors + 1
        h = self.subgroups([h[..., i : i + length] for i in range(self.neighbors)]).mT
        h = h + self.attention(self.attention_norm(h))
        h = h + self.mlp(self.mlp_norm(h))
        return x + self.spread(h.mT)


class DeFTAN2Block(nn.Module):
    """Over frequencies, then over time."""

    def __init__(self, config: DeFTAN2Config, index: int):
        super().__init__()
        self.frequency, self.time = (SubgroupTransformer(config, 2**index) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, T, F) -> the same."""
        x = _along(self.frequency, x.transpose(1, 2)).transpose(1, 2)
        return _along(self.time, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DeFTAN2(nn.Module):
    """Waves to spectra, blocks over them, and the spectra of what is asked for, as complex numbers, to waves.

    The answer to a louder wave is as much louder: the spectra are those of waves of unit variance. It depends on the
    whole wave, so that this is no model for streams.

    Attributes:
        config, grad_checkpointing: whether blocks are recomputed in the backward pass.
        encode, encode_groups, blocks, decode, decode_groups.
    """

    def __init__(self, config: DeFTAN2Config):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        self.encode = nn.Sequential(nn.Conv2d(2 * c.num_mics, c.dim * c.num_heads, 3, padding=1),
                                    nn.GroupNorm(1, c.dim * c.num_heads))  # fmt: skip
        self.encode_groups = SubgroupDense(c.dim, c.num_heads, nn.Conv2d)
        self.blocks = nn.ModuleList(DeFTAN2Block(c, index) for index in range(c.depth))
        self.decode = nn.Conv2d(c.dim, 2 * c.num_sources * c.num_heads, 3, padding=1)
        self.decode_groups = SubgroupDense(2 * c.num_sources, c.num_heads, nn.Conv2d)

    def forward(self, waves: Tensor) -> Tensor:
        """Waves (B, num_mics, N) to the sources' waves (B, num_sources, N), as the first microphone hears them.

        Raises:
            ValueError: for waves of another number of microphones, of no sample, or integers.
        """
        self._check(waves)
        c, hop = self.config, self.config.window // 2
        rest = c.window - (hop + waves.shape[-1]) % c.window
        wide = torch.promote_types(waves.dtype, torch.float32)  # what Fourier transforms know
        padded = F.pad(waves.to(wide), (hop, rest + hop))
        level = _deviation(padded)
        spectra = torch.view_as_real(spectrum(padded / level, c.window))  # (B, num_mics, T, F, 2)
        x = self.encode(spectra.movedim(-1, 2).flatten(1, 2).to(waves.dtype))
        x = self.encode_groups(_interleaved(x, c.num_heads))  # (B, dim, T, F)
        for block in self.blocks:
            x = recompute(block, x) if self.grad_checkpointing and self.training else block(x)
        x = self.decode_groups(_interleaved(self.decode(x), c.num_heads))
        real, imaginary = x.to(wide).unflatten(1, (c.num_sources, 2)).unbind(2)
        found = waveform(torch.complex(real, imaginary), c.window)
        return (found[..., hop : hop + waves.shape[-1]] * level).to(waves.dtype)

    def no_weight_decay(self) -> set[str]:
        """Nothing besides biases and norms."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def _check(self, waves: Tensor) -> None:
        fits = waves.dim() == 3 and waves.shape[1] == self.config.num_mics and waves.shape[2]
        if not fits or not waves.is_floating_point():
            raise ValueError(
                f"waves must be (batch, num_mics {self.config.num_mics}, samples) floats with a sample or more, got "
                f"{tuple(waves.shape)} {waves.dtype}"
            )


def _deviation(waves: Tensor) -> Tensor:
    """(B, 1, 1): the standard deviation over all microphones and samples, which is never zero."""
    around = waves - waves.mean((1, 2), keepdim=True)
    variance = around.square().sum((1, 2), keepdim=True) / (waves.shape[1] * waves.shape[2] - 1)
    return variance.clamp_min(torch.finfo(waves.dtype).tiny).sqrt()


def _along(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer over (B, dim, L), on x (B, P, dim, L)."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _interleaved(x: Tensor, groups: int) -> list[Tensor]:
    """Every ``groups``-th channel, from each of the first."""
    return [x[:, i::groups] for i in range(groups)]


_register = partial(
    register_model, DeFTAN2, task="speech-enhancement", family="deftan2",
    paper=Paper(
        "DeFTAN-II: Efficient Multichannel Speech Enhancement with Subgroup Processing", "2308.15777", 2023
    ),
)  # fmt: skip


@_register()
def deftan2_nano():
    return DeFTAN2Config(
        num_mics=2, sample_rate=8_000, num_samples=1_000, window=64, depth=1, dim=16, num_heads=2, head_dim=8,
        hidden_dim=32, drop_rate=0.0,
    )  # fmt: skip


@_register()
def deftan2():
    return DeFTAN2Config()

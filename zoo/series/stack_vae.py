"""StackVAE-G: anomalies in series of many channels, by one autoencoder for all channels and a learned graph of them.

Paper: Li et al., "StackVAE-G: An efficient and interpretable model for time series anomaly detection", AI Open 2022,
arXiv 2105.08397, with the sizes of the authors' code (liwk16/StackVAE, ``GraphVAEv4.py``).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.layers import recompute
from zoo.layers.report import Reports
from zoo.registry import Paper, register_model

SHARPNESS = 3.0  # of the tanhs of the graph


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackVAEConfig:
    """Options of StackVAE-G."""

    channels: int
    """Series that are read together."""
    window: int = 100
    """Moments that are read at once."""
    hidden_dim: int = 200
    """Width of the hidden layers of encoder and decoder."""
    latent_dim: int = 20
    """Latent numbers of a channel."""
    node_dim: int = 30
    """Numbers that describe a channel to the graph."""
    neighbors: int = 10
    """Edges that a channel keeps, at most ``channels``."""
    mix: float = 0.5
    """Share of its neighbours in what a channel's latents are read from; 0 leaves the channels independent."""
    scaled_graph: bool = False
    """Likeness of two channels is the mean, not the sum, over the node's numbers: as released, tanh saturates, so that
    the edges stay as they were drawn."""
    neighbors_alone: bool = False
    """The graph's loss compares a channel with its neighbours alone. As released it is itself among them, so that the
    least loss is that of a graph without edges."""
    mean: tuple[float, ...] = ()
    """Mean of each channel that series are normalised by; none where empty."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel that series are normalised by; none where empty."""

    def __post_init__(self):
        require_positive(self, "channels", "window", "hidden_dim", "latent_dim", "node_dim", "neighbors")
        require_ranges(self)
        if self.neighbors > self.channels:
            raise ValueError(f"neighbors must be at most channels {self.channels}, got {self.neighbors}")
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix must be in [0, 1], got {self.mix}")
        for name in ("mean", "std"):
            if len(values := getattr(self, name)) not in (0, self.channels):
                raise ValueError(f"{name} must have a number for each of {self.channels} channels, got {len(values)}")

    @property
    def input_shape(self) -> tuple[int, int]:
        """Of one sample: (window, channels)."""
        return self.window, self.channels


class ChannelGraph(nn.Module):
    r"""Which channels go together, as a matrix whose rows add up to one.

    .. math::
        e = \tanh(3 \, \mathrm{Linear}(n)), \quad a = \mathrm{ReLU}(3 \tanh(e e^\top / s)), \quad
        A = \mathrm{rows}(\mathrm{top}_k(a) + I)

    with s = 1 as released, and s = node_dim where ``scaled``.

    Args:
        channels: N.
        dim: numbers that describe a channel.
        neighbors: k, edges kept in a row.
        scaled: see above.
    """

    def __init__(self, channels: int, dim: int, neighbors: int, scaled: bool):
        super().__init__()
        self.neighbors, self.scale = neighbors, dim if scaled else 1
        self.nodes = nn.Parameter(torch.randn(channels, dim))
        self.project = nn.Linear(dim, dim)

    def forward(self, own: float = 1.0) -> Tensor:
        """A (N, N): row i has the weights that channel i reads the others with, at most k + 1 of them positive.

        Args:
            own: what stands for I on the diagonal; with 0 a channel is no neighbour of its own at all.
        """
        e = torch.tanh(SHARPNESS * self.project(self.nodes))
        likeness = F.relu(SHARPNESS * torch.tanh(e @ e.mT / self.scale))
        itself = torch.eye(len(likeness), dtype=likeness.dtype, device=likeness.device)
        likeness = likeness if own else likeness * (1 - itself)
        kept = torch.zeros_like(likeness).scatter(1, likeness.topk(self.neighbors, dim=1).indices, 1)
        adjacency = likeness * kept + own * itself
        return adjacency / adjacency.sum(1, keepdim=True).clamp_min(torch.finfo(adjacency.dtype).tiny)


class StackVAE(Reports):
    """A window of each channel to latents, by one encoder for all; neighbours mixed in; and back by one decoder.

    Attributes:
        config, grad_checkpointing: whether encoder and decoder are recomputed in the backward pass.
        encoder, neighbors, mean, log_variance, decoder, out_mean, out_log_variance.
    """

    def __init__(self, config: StackVAEConfig):
        super().__init__()
        self.config = c = config
        self.grad_checkpointing = False
        self.encoder = nn.Sequential(
            nn.Linear(c.window, c.hidden_dim), nn.ReLU(), nn.Linear(c.hidden_dim, c.hidden_dim), nn.ReLU(),
            nn.Linear(c.hidden_dim, c.latent_dim),
        )  # fmt: skip
        self.neighbors = ChannelGraph(c.channels, c.node_dim, c.neighbors, c.scaled_graph)
        self.mean, self.log_variance = (nn.Linear(c.latent_dim, c.latent_dim) for _ in range(2))
        self.decoder = nn.Sequential(
            nn.Linear(c.latent_dim, c.hidden_dim), nn.ReLU(), nn.Linear(c.hidden_dim, c.hidden_dim), nn.ReLU()
        )
        self.out_mean, self.out_log_variance = (nn.Linear(c.hidden_dim, c.window) for _ in range(2))

    def forward(self, series: Tensor) -> Tensor:
        """Normalised windows (B, window, channels) to what is expected of them, of that shape.

        In training latents and answer are drawn from their Gaussians, and the side losses are published, each over
        window x channels: "divergence", of the latents from the unit Gaussian, and "graph", the squared error of each
        channel against the mean of its neighbours. In evaluation both are the Gaussians' means, which the authors'
        average of 200 draws tends to.

        Raises:
            ValueError: for series of another shape, or integers.
        """
        self._check(series)
        c, x, adjacency = self.config, series.mT, self.neighbors()
        h = self._run(self.encoder, x)  # (B, channels, latent_dim)
        h = c.mix * (adjacency @ h) + (1 - c.mix) * h
        mean, log_variance = self.mean(h), self.log_variance(h)
        if not self.training:
            self.report({}, {})
            return self.out_mean(self._run(self.decoder, mean)).mT
        h = self._run(self.decoder, drawn(mean, log_variance))
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance) / 2  # (B, channels, latent_dim)
        others = self.neighbors(own=0.0) if c.neighbors_alone else adjacency
        divergence = divergence.sum((1, 2)).mean() / (c.window * c.channels)
        self.report({"divergence": divergence, "graph": (x - others @ x).square().mean()}, {})
        return drawn(self.out_mean(h), self.out_log_variance(h)).mT

    def normalised(self, series: Tensor) -> Tensor:
        """Series (..., channels) as they were measured -> as the model reads them."""
        mean, std = (torch.tensor(part or value, dtype=series.dtype, device=series.device)
                     for part, value in ((self.config.mean, 0.0), (self.config.std, 1.0)))  # fmt: skip
        return (series - mean) / std

    @torch.no_grad()
    def scores(self, series: Tensor, batch_size: int = 256) -> Tensor:
        """How far each channel is from what is expected, at each moment that ends a window.

        Args:
            series: (T, channels), normalised.
            batch_size: windows a call.

        Returns:
            (T - window + 1, channels): squared errors of the last moment of each window.

        Raises:
            ValueError: for a series shorter than a window, or of other channels.
        """
        c = self.config
        if series.dim() != 2 or series.shape[1] != c.channels or len(series) < c.window:
            raise ValueError(
                f"a series must be (T, {c.channels}) with T >= window {c.window}, got {tuple(series.shape)}"
            )
        windows = series.unfold(0, c.window, 1).mT  # (T - window + 1, window, channels)
        parts = [(self(part)[:, -1] - part[:, -1]).square() for part in windows.split(batch_size)]
        return torch.cat(parts)

    def no_weight_decay(self) -> set[str]:
        """Nothing besides biases."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute encoder and decoder in the backward pass instead of storing their activations."""
        self.grad_checkpointing = enable

    def _run(self, layers: nn.Module, x: Tensor) -> Tensor:
        return recompute(layers, x) if self.grad_checkpointing and self.training else layers(x)

    def _check(self, series: Tensor) -> None:
        c = self.config
        if series.dim() != 3 or series.shape[1:] != c.input_shape or not series.is_floating_point():
            raise ValueError(
                f"series must be (batch, window {c.window}, channels {c.channels}) floats, got {tuple(series.shape)} "
                f"{series.dtype}"
            )


def drawn(mean: Tensor, log_variance: Tensor) -> Tensor:
    """From the Gaussian."""
    return mean + (log_variance / 2).exp() * torch.randn_like(mean)


def edge_precision(adjacency: Tensor, groups: Tensor) -> float:
    """Share of the graph's edges between different channels that join two of one group; NaN without such edges.

    Args:
        adjacency: (N, N).
        groups: (N,), the group of each channel.
    """
    edges = (adjacency > 0) & ~torch.eye(len(adjacency), dtype=torch.bool, device=adjacency.device)
    same = groups[:, None] == groups
    return (edges & same).sum().item() / count if (count := edges.sum().item()) else float("nan")


_register = partial(
    register_model, StackVAE, task="anomaly-detection", family="stack_vae",
    paper=Paper(
        "StackVAE-G: An efficient and interpretable model for time series anomaly detection", "2105.08397", 2021
    ),
)  # fmt: skip


@_register()
def stack_vae_nano():
    return StackVAEConfig(
        channels=12, window=32, hidden_dim=64, latent_dim=8, neighbors=3, scaled_graph=True, neighbors_alone=True
    )


@_register()
def stack_vae_smap():
    return StackVAEConfig(channels=25)


@_register()
def stack_vae_smd():
    return StackVAEConfig(channels=38)


@_register()
def stack_vae_msl():
    return StackVAEConfig(channels=55)

"""QuickSelection: the features that a sparse evolutionary autoencoder is strongly tied to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zoo
from zoo.layers.options import require_at_least
from zoo.layers.sparse.masks import masks
from zoo.masks import Evolution


class DenoisingAutoencoder(nn.Module):
    r""":math:`\hat x = W_2 \, \mathrm{dropout}(\sigma(W_1 x + b_1)) + b_2`.

    Args:
        features: of x.
        hidden_dim: of the one layer between.
        dropout: share of it that is left out in training.
    """

    def __init__(self, features: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(features, hidden_dim), nn.Linear(hidden_dim, features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, features) -> (B, features)."""
        return self.decoder(self.dropout(self.encoder(x).sigmoid()))


class QuickSelection:
    r"""Which columns of a table tell most of it, without labels.

    A denoising autoencoder with few random links learns to undo noise, by half the squared error of a row; after every
    epoch but the last its weakest links give way to random new ones (``zoo.masks.Evolution``), and so they gather at
    columns that can be told from others.
    A column's strength is :math:`s_i = \sum_j |W^1_{ji}|`.

    Args:
        hidden_dim: hidden units.
        epsilon: links of a matrix over its rows and columns.
        zeta: share of them that changes in an evolution.
        noise: standard deviation of what is added to the columns, drawn once; they are standardised before.
        dropout: of the hidden units.
        lr, momentum, weight_decay, batch_size, epochs: of plain gradient descent.
        seed: of all that is drawn.

    Raises:
        ValueError: for numbers out of range; for strengths or columns before ``fit``.

    Paper: Atashgahi et al., "Quick and Robust Feature Selection: the Strength of Energy-efficient Sparse Training for
    Autoencoders", arXiv 2012.00560; defaults are its authors'.
    """

    def __init__(
        self,
        *,
        hidden_dim: int = 1000,
        epsilon: float = 13.0,
        zeta: float = 0.2,
        noise: float = 0.2,
        dropout: float = 0.2,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-5,
        batch_size: int = 100,
        epochs: int = 100,
        seed: int = 0,
    ):
        require_at_least(1, hidden_dim=hidden_dim, batch_size=batch_size, epochs=epochs)
        require_at_least(0, noise=noise)
        self.links = Evolution(epsilon=epsilon, zeta=zeta, seed=seed)
        self.hidden_dim, self.noise, self.dropout = hidden_dim, noise, dropout
        self.options: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.model: Any = None

    def fit(self, x: Tensor | Any) -> QuickSelection:
        """Learn from a table (rows, columns) of numbers; a column that is the same everywhere is told apart by none.

        Args:
            x: a tensor, or an array of numpy as scikit-learn's tables are.

        Raises:
            ValueError: for anything else.
        """
        given = x
        if isinstance(x, np.ndarray) and x.dtype in (np.float16, np.float32, np.float64):
            x = torch.from_numpy(np.array(x, order="C"))
        if not isinstance(x, Tensor) or x.dim() != 2 or not x.is_floating_point() or not x.isfinite().all():
            kind = f"{type(given).__name__} {tuple(getattr(given, 'shape', ()))} {getattr(given, 'dtype', '')}"
            raise ValueError(f"features are chosen of a table (rows, columns) of finite floats, got {kind.strip()}")
        draws = torch.Generator().manual_seed(self.seed)
        scale = x.std(0, correction=0)
        x = (x - x.mean(0)) / torch.where(scale > 0, scale, 1)
        noisy = x + self.noise * torch.randn(x.shape, generator=draws, dtype=x.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.model = self._fitted(x, noisy, draws)
        return self

    def _fitted(self, x: Tensor, noisy: Tensor, draws: torch.Generator) -> DenoisingAutoencoder:
        batches = -(-len(x) // self.batch_size)
        model = DenoisingAutoencoder(x.shape[1], self.hidden_dim, self.dropout).to(x.dtype)
        evolution = {"every": batches, "evolutions": self.epochs - 1, "seed": self.seed}
        zoo.mask_weights(model, "evolution", epsilon=self.links.epsilon, zeta=self.links.zeta, **evolution)
        held = [(layer.parametrizations["weight"].original, mask.mask) for layer, mask in self._layers(model)]
        optimizer = torch.optim.SGD(model.parameters(), **self.options)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x), generator=draws).split(self.batch_size):
                optimizer.zero_grad()
                (model(noisy[rows]) - x[rows]).square().sum(1).mean().div(2).backward()
                optimizer.step()
                for weight, mask in held:  # a link that comes back starts without momentum
                    optimizer.state[weight]["momentum_buffer"] *= mask
                zoo.after_step(model)
        return model.eval()

    @staticmethod
    def _layers(model: nn.Module) -> list:
        return [(model.get_submodule(name.rpartition(".")[0]), mask) for name, mask in masks(model).items()]

    @property
    def strengths(self) -> Tensor:
        """s (columns,)."""
        if self.model is None:
            raise ValueError("no table has been read yet: fit one first")
        return self.model.encoder.weight.detach().abs().sum(0)

    def select(self, count: int) -> Tensor:
        """The ``count`` strongest columns, in order (count,).

        Raises:
            ValueError: for a number of columns that the table does not have.
        """
        strengths = self.strengths
        if not 1 <= count <= len(strengths):
            raise ValueError(f"count must be 1 to the {len(strengths)} columns of the table, got {count}")
        return strengths.topk(count).indices.sort().values

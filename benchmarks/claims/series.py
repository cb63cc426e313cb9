"""Models of series: what a channel costs, whether the graph finds the groups, whether the group tells an anomaly."""

from __future__ import annotations

from typing import Any

import torch

import zoo
from zoo.benchmarks.claims.declare import Found, claim
from zoo.benchmarks.claims.sizes import total
from zoo.series import edge_precision
from zoo.train.data import SeriesDataModule


@claim(
    "stack_vae", "2105.08397", says="One autoencoder for all channels: a channel more costs next to nothing.",
    source="abstract: weight sharing reduces the size of learned models", evidence="count",
    value="parameters a channel over those of the model for one", at_most=0.001,
)  # fmt: skip
def stack_vae_parameters_a_channel() -> Found:
    """From 25 to 55 channels, stack_vae_smap and stack_vae_msl."""
    small, large = total("stack_vae_smap"), total("stack_vae_msl")
    return Found((large - small) / 30 / small, {"25 channels": small, "55 channels": large})


@claim(
    "stack_vae", "2105.08397", says="The learned graph shows which channels go together.",
    source="abstract: the adjacency matrix captures the interrelation among channels", evidence="trained",
    value="share of edges within a group", at_least=0.8,
)  # fmt: skip
def stack_vae_groups() -> Found:
    """Twelve generated channels of three groups, 300 updates of stack_vae_nano: its graph, the graph as released, and
    the released loss over the scaled graph. Chance is 0.27."""
    options = {
        "ours": {}, "as released": {"scaled_graph": False, "neighbors_alone": False},
        "scaled, with itself": {"neighbors_alone": False},
    }  # fmt: skip
    data = SeriesDataModule()
    data.setup()
    source = data.sources["train"]
    windows, _ = source.fetch(torch.arange(len(source)), 0)
    found = {name: edge_precision(_learned(windows, given), data.group_of) for name, given in options.items()}
    return Found(found["ours"], found)


def _learned(windows: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(0)
    model: Any = zoo.create_model("stack_vae_nano", **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for update in range(300):
        batch = windows[torch.randint(len(windows), (64,), generator=torch.Generator().manual_seed(update))]
        loss = (model(batch) - batch).square().mean() + sum(model.auxiliary_losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.neighbors().detach()

"""World models: sizes, what a Mamba-2 memory is worth beside a recurrent one."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

import zoo
from zoo.benchmarks.claims.declare import Found, beyond, claim
from zoo.benchmarks.claims.sizes import SIZES, counts
from zoo.benchmarks.claims.tools import parameters
from zoo.train.data import EnvironmentDataModule
from zoo.train.data.environments import ACTION, END, FIRST, REWARD
from zoo.worlds import environment_of, horizon_errors, returns

CONTEXT, HORIZON, UPDATES = 8, 12, 300

counts(
    "drama_sizes", "drama", "2410.08893", says=SIZES, source="abstract: 7 million parameters; the authors' code",
    figure={"drama": "7155459"},
)  # fmt: skip
beyond(
    "drama_atari", "drama", "2410.08893",
    says="Scores on Atari100k beside those of larger world models, with 7 million parameters.",
    source="abstract", why="It takes a GPU for hours a game, and the games.",
)  # fmt: skip


@claim(
    "drama", "2410.08893", says="An agent that learns by imagining plays better than chance.",
    source="section 4: scores of Atari100k are normalised by those of random play", evidence="trained",
    value="return over that of random play", at_least=2.0, quick=False, limit=600,
)  # fmt: skip
def drama_return() -> Found:
    """The bundled drama_nano in CartPole, as pictures of 32 x 32: ten episodes of seeds that it was not trained with,
    and as many of actions at random."""
    model: Any = zoo.create_model("drama_nano", pretrained=True)
    players = {"agent": model, "random": None}
    worths = {name: returns(player, partial(environment_of, model), 10, seed=1000) for name, player in players.items()}
    found = {name: statistics.fmean(values) for name, values in worths.items()}
    return Found(found["agent"] / found["random"], {"returns": worths, "means": found})


@claim(
    "drama", "2410.08893", says="A Mamba-2 memory foretells further than a recurrent one of its size.",
    source="abstract: recurrent world models struggle with long-term dependencies", evidence="trained",
    value="squared error over the horizon, over that of a GRU", at_most=1.0, quick=False, limit=900,
)  # fmt: skip
def drama_horizon() -> Found:
    """drama_nano without its agent on 3,000 random steps of CartPole, 300 updates of 8 sequences of 20; the 12 frames
    imagined after 8 that were seen, on other play, where the episode still lasts. Two seeds each, the same batches."""
    found, sizes = {}, {}
    for memory in ("mamba2", "gru"):
        errors = []
        for seed in (0, 1):
            model, data = _learnt(memory, seed)
            errors.append(_errors(model, data))
        found[memory], sizes[memory] = torch.stack(errors).mean(0), parameters(model)
    details = {f"{name}, by steps": [round(float(e), 5) for e in errors] for name, errors in found.items()}
    ratio = found["mamba2"].mean() / found["gru"].mean()
    return Found(ratio.item(), {**details, "parameters": sizes})


def _learnt(memory: str, seed: int) -> tuple[Any, EnvironmentDataModule]:
    data = EnvironmentDataModule(steps=3000, held_out=1500, length=CONTEXT + HORIZON)
    data.setup()
    torch.manual_seed(seed)
    model: Any = zoo.create_model("drama_nano", memory=memory, agent=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    source = data.sources["train"]
    for update in range(UPDATES):
        generator = torch.Generator().manual_seed(update)
        frames, moves = source.fetch(torch.randint(len(source), (8,), generator=generator), 0)
        told = moves[..., ACTION].long(), moves[..., REWARD], moves[..., END] > 0, moves[..., FIRST] > 0
        loss = (model(frames, *told) - frames).square().flatten(2).sum(2).mean() + sum(model.auxiliary_losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), data


def _errors(model: Any, data: EnvironmentDataModule) -> torch.Tensor:
    source = data.sources["test"]
    frames, moves = source.fetch(torch.arange(len(source)), 0)
    return horizon_errors(model, frames, moves[..., ACTION].long(), moves[..., FIRST] > 0, CONTEXT)

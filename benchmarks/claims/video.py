"""Models of video: sizes, what reading memories in cells saves and costs, and what remembering is worth."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.benchmarks.claims.declare import Found, beyond, claim
from zoo.benchmarks.claims.sizes import SIZES, counts
from zoo.benchmarks.claims.tools import flops
from zoo.benchmarks.common import interleaved, medians
from zoo.benchmarks.tracking import again, clips, followed, overlaps
from zoo.layers.attention.cross import MapAttention
from zoo.layers.positions import planar_tables
from zoo.train.tasks.tracking import prompt_of

SIDE, MAPS, POINTERS = 64, 7, 64  # patches of a side at 1024 pixels; maps and tokens of pointers that are read

counts(
    "efficienttam_sizes", "efficienttam", "2411.18933", says=SIZES,
    source="the authors' code: 17,866,018 and 34,055,842 parameters, 256 of which it never reads",
    figure={"efficienttam_ti": "17.87M", "efficienttam_s": "34.06M"},
)  # fmt: skip
beyond(
    "efficienttam_phone", "efficienttam", "2411.18933", says="About ten frames a second on a phone.",
    source="abstract: iPhone 15 Pro Max", why="It takes the phone, and weights that are a download.",
)  # fmt: skip


@claim(
    "efficienttam", "2411.18933", says="Efficient memory attention is attention where a memory is smooth.",
    source="section 3: keys that are the same in a cell", evidence="identity",
    value="largest difference of an output, keys constant in cells of 2 x 2", at_most=1e-12,
)  # fmt: skip
def efficienttam_smooth_memory() -> Found:
    """Three maps of 8 x 8, any values, and four further tokens, in float64. Beside it, keys without any smoothness."""
    torch.manual_seed(0)
    layer, full = (MapAttention(16, 1, pool=pool).double() for pool in (2, 1))
    full.load_state_dict(layer.state_dict())
    tables = (torch.ones(64, 8, dtype=torch.double), torch.zeros(64, 8, dtype=torch.double))  # keys after their turns
    q, values = torch.randn(2, 64, 16, dtype=torch.double), torch.randn(2, 196, 16, dtype=torch.double)
    cells = torch.randn(2, 3, 4, 1, 4, 1, 16, dtype=torch.double).expand(-1, -1, -1, 2, -1, 2, -1).flatten(1, 5)
    keys = {"smooth": torch.cat([cells, values[:, 192:]], 1), "rough": torch.randn(2, 196, 16, dtype=torch.double)}
    found = {
        name: (layer(q, k, values, tables, (8, 8), 3) - full(q, k, values, tables, (8, 8), 3)).abs().max().item()
        for name, k in keys.items()
    }
    return Found(found["smooth"], found)


@claim(
    "efficienttam", "2411.18933", says="Efficient memory attention reads a memory at a fraction of the operations.",
    source="section 3: a quarter of the tokens", evidence="cost",
    value="operations of a layer that reads 7 maps in cells, over all of their places", at_most=0.4,
)  # fmt: skip
def efficienttam_memory_operations() -> Found:
    """Cross-attention of efficienttam_s at 1024 pixels, its projections included: 4096 places to 7 x 4096 and 64
    tokens of pointers, or to 7 x 1024 and 64."""
    places = torch.zeros(SIDE * SIDE, 2, device="meta")
    tables = planar_tables(places, 256)
    q = torch.zeros(1, SIDE * SIDE, 256, device="meta")
    memory = torch.zeros(1, MAPS * SIDE * SIDE + POINTERS, 64, device="meta")
    found = {}
    for pool in (1, 2):
        layer = MapAttention(256, 1, pool=pool, kv_dim=64).to("meta")
        found[f"cells of {pool}"] = flops(layer, q, memory, memory, tables, (SIDE, SIDE), MAPS)
    return Found(found["cells of 2"] / found["cells of 1"], found)


@claim(
    "efficienttam", "2411.18933", says="What is remembered of other frames finds an object that moves and was hidden.",
    source="section 3, after SAM 2: memories condition the current frame", evidence="trained",
    value="J gained by remembering, of frames in which the object is seen again", at_least=0.2,
)  # fmt: skip
def efficienttam_memory() -> Found:
    """The bundled efficienttam_nano on 64 generated clips of 12 frames in which a bar hides what a point names in the
    first: frame after frame, and each frame by itself, with the point where the object was."""
    pictures, targets = clips()
    model: Any = zoo.create_model("efficienttam_nano", pretrained=True)
    prompt, j = prompt_of(targets, "point"), {}
    for name, remembers in (("remembers", True), ("each frame by itself", False)):
        j[name] = overlaps(followed(model, pictures, prompt, remembers), targets["masks"])
    gained = j["remembers"]["seen again"] - j["each frame by itself"]["seen again"]
    return Found(gained, {"J": j, "frames in which it is seen again": int(again(targets["masks"]).sum())})


@claim(
    "efficienttam", "2411.18933", says="Reading memories in cells costs little of the quality.",
    source="abstract: comparable segmentation", evidence="trained",
    value="J lost by cells of 2 x 2, of all frames after the first", at_most=0.02,
)  # fmt: skip
def efficienttam_pooled() -> Found:
    """The bundled efficienttam_nano, which was trained with cells, on the same clips: reading all places of its
    memories, less reading cells."""
    pictures, targets = clips()
    prompt, j = prompt_of(targets, "point"), {}
    for pool in (1, 2):
        model: Any = zoo.create_model("efficienttam_nano", pretrained=True, pool=pool)
        j[f"cells of {pool}"] = overlaps(followed(model, pictures, prompt), targets["masks"])
    lost = j["cells of 1"]["after the first frame"] - j["cells of 2"]["after the first frame"]
    return Found(lost, {"J": j})


@claim(
    "efficienttam", "2411.18933", says="Reading memories in cells makes tracking faster.",
    source="abstract: an efficient memory module reduces the complexity of reading memories", evidence="measured",
    value="frames a second with cells of 2 x 2, over those without", at_least=1.1,
)  # fmt: skip
def efficienttam_frames() -> Found:
    """A frame of efficienttam_ti at 512 pixels with seven maps and sixteen pointers to read, encoding included, in
    turns; beside it one of efficienttam_nano, whose picture has 64 places."""
    calls = {}
    for name, size in (("efficienttam_ti", 512), ("efficienttam_nano", 64)):
        for pool in (1, 2):
            model: Any = zoo.create_model(name, pool=pool, img_size=size).eval()
            frame, state = torch.randn(1, *model.config.input_shape[1:]), model.init_state()
            for time in range(max(state.frames, state.pointers)):
                tokens = torch.randn(1, model.config.grid**2, model.config.memory_dim)
                state.add(tokens, torch.randn(1, model.config.hidden_dim), not time)
            calls[f"{name}, cells of {pool}"] = partial(_next, model, frame, state)
    runs, _ = interleaved(calls, budget=30.0, shortest=0.1)
    frames = {name: 1 / seconds for name, seconds in medians(runs).items()}
    gain = frames["efficienttam_ti, cells of 2"] / frames["efficienttam_ti, cells of 1"]
    return Found(gain, {"frames a second": frames})


@torch.no_grad()
def _next(model: Any, frame: Tensor, state: Any) -> Tensor:
    """What follows that state, which stays as it is."""
    return model.step(frame, dataclasses.replace(state, prompted=[*state.prompted], recent=[*state.recent])).mask

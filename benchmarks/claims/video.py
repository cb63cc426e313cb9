"""Models of video: sizes, and what reading memories in cells saves."""

from __future__ import annotations

import torch

from zoo.benchmarks.claims.declare import Found, beyond, claim
from zoo.benchmarks.claims.sizes import SIZES, counts
from zoo.benchmarks.claims.tools import flops
from zoo.layers.attention.cross import MapAttention
from zoo.layers.positions import planar_tables

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

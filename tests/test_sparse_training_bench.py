"""`zoo bench sparse_training`: what counts as learning, models of each method, and verdicts of its tables."""

from __future__ import annotations

import torch

import zoo
from zoo.benchmarks import sparse_training
from zoo.benchmarks.sparse_training import METHODS, SHRINKS, asked, enlarge, laplacian, learning, tables


def test_numbers_that_learn():
    shape = {"dim": 32, "depth": 1, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 48}
    made = {name: zoo.create_model("transformer_nano", **shape, **asked(name, 30)) for name in METHODS}
    count = {name: learning(model) for name, model in made.items()}
    every = count[sparse_training.FULL]
    masked = sum(mask.mask.numel() for mask in sparse_training.masks(made[sparse_training.PRUNED]).values())
    assert abs(count[sparse_training.PRUNED] - (every - 0.7 * masked)) < 10
    assert count["ISS-P"] == every and 0 < count["PERP, norms"] < count["PERP, masked LoRA"] < every
    score, network = enlarge(0.95, 3)
    assert score > 5 and learning(network) < 0.2 * learning(enlarge(None, 0)[1])


def test_columns_that_differ_little_between_neighbours_come_first():
    draws = torch.Generator().manual_seed(0)
    group = torch.arange(60) % 3
    x = torch.cat([10.0 * torch.nn.functional.one_hot(group, 3), torch.randn(60, 3, generator=draws)], 1)
    x[:, 5] = 1.0
    assert laplacian(x).topk(3).indices.sort().values.tolist() == [0, 1, 2] and laplacian(x)[5] == -torch.inf


def test_verdicts():
    names = list(METHODS)
    found = {
        "steps": 10, "bytes": dict.fromkeys(names, 2**20), "learns": dict.fromkeys(names, 1000) | {"PERP, norms": 4},
        "runs": {key: [1.0] for key in names}, "left": dict.fromkeys(["dense", *SHRINKS], 9),
        "score": dict.fromkeys([*names, "as it was"], 2.0) | {"pruned": 3.0, "PST": 2.1},
        "pictures": {"dense": 30.0, "one-shot": 20.0, "hard thresholds": 21.0, "ISS-P": 22.0},
        "features": {
            "accuracy": {"all columns": 0.9, "at random": 0.5, "Laplacian score": 0.6, "QuickSelection": 0.7},
            "pixels": 1.0,
        },
        "image_bytes": {"all weights": 30, "LoRA": 20, "SCEdit": 15},
        "image_runs": {key: [1.0] for key in ["all weights", "LoRA", "SCEdit"]},
        "dark": {"as it was": 5.0} | dict.fromkeys(["all weights", "LoRA", "SCEdit"], (0.5, 10)),
    }  # fmt: skip
    met = {row[0]: row[-1] for _, columns, rows in tables(found) for row in rows if columns[-1] == "met" and row[-1]}
    assert met == {
        "ISS-P": "yes", "PERP, norms": "yes", "PERP, masked LoRA": "yes", "PST": "no", "QuickSelection": "yes",
        "SCEdit": "no",
    }  # fmt: skip

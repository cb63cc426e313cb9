"""The detection example: a step of training, its score, other backbones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def example(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("detection", root / "examples" / "detection.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_lowers_the_loss(example):
    torch.manual_seed(0)
    model = example.detector("vovnet_nano", stem_strides=(2, 1, 2))
    images, targets = example.shapes(4, torch.Generator().manual_seed(0))
    before = sum(model.train()(images, targets).values()).item()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        sum(model(images, targets).values()).backward()
        optimiser.step()
    assert sum(model(images, targets).values()).item() < 0.9 * before


def test_the_score_of_right_and_wrong_boxes(example):
    images, targets = example.shapes(3, torch.Generator().manual_seed(0))

    class Told(torch.nn.Module):
        def __init__(self, wrong: bool):
            super().__init__()
            self.wrong = wrong

        def forward(self, images):
            labels = [3 - t["labels"] if self.wrong else t["labels"] for t in targets]
            return [
                {**t, "labels": named, "scores": torch.ones(len(named))}
                for t, named in zip(targets, labels, strict=True)
            ]

    assert example.score(Told(False), images, targets) == (1.0, 1.0)
    assert example.score(Told(True), images, targets) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "options", "reductions"),
    [
        ("vovnet_nano", {"stem_strides": (2, 1, 2)}, [2, 4, 8]), ("mcunet_nano", {"stem_strides": (2,)}, [2, 4, 8]),
        ("shvit_nano", {"stem_strides": (2, 2)}, [4, 8]), ("efficientvit_nano", {"stem_strides": (2, 2)}, [4, 8]),
        ("vim_nano", {"patch_size": 8, "out_indices": 1}, [2, 4, 8, 16]),
    ],
)  # fmt: skip
def test_backbones(example, name, options, reductions):
    model = example.detector(name, **options).eval()
    assert model.backbone.reductions == reductions
    (found,) = model(example.shapes(1, torch.Generator().manual_seed(0))[0])
    assert found["boxes"].shape[1] == 4

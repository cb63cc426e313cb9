"""A zoo backbone under torchvision's detection: boxes around generated shapes, trained for a minute.

    python examples/detection.py

``features_only=True`` gives the maps, ``zoo.vision.Pyramid`` brings them to one width, and ``FCOS`` predicts boxes.
Printed before and after training on images never trained on: the mean IoU of each shape's box with the best of as many
predictions of its class as there are shapes, and the share of shapes found with an IoU of at least one half.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

import zoo
from zoo.vision import Pyramid

SIDE, LARGEST = 64, 3  # pixels; shapes an image
CLASSES = ("background", "rectangle", "ellipse")
SECONDS = 60.0


def detector(name: str, **options: Any) -> FCOS:
    """FCOS over the maps of a model of the zoo with these options, one anchor size a level."""
    net: Any = zoo.create_model(name, in_chans=3, img_size=SIDE, features_only=True, **options)
    pyramid = Pyramid(net, out_channels=64)
    anchors = AnchorGenerator(tuple((int(4 * r),) for r in pyramid.reductions), ((1.0,),) * len(pyramid.reductions))
    return FCOS(
        pyramid, len(CLASSES), anchor_generator=anchors, min_size=SIDE, max_size=SIDE, image_mean=[0.5] * 3,
        image_std=[0.25] * 3, detections_per_img=20,
    )  # fmt: skip


def shapes(count: int, generator: torch.Generator) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images (3, SIDE, SIDE) of coloured rectangles and ellipses on noise, with their boxes and labels."""
    images, targets = [], []
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for _ in range(count):
        image = 0.4 + 0.1 * torch.randn(3, SIDE, SIDE, generator=generator)
        boxes, labels = [], []
        for _ in range(int(torch.randint(1, LARGEST + 1, (), generator=generator))):
            width, height = torch.randint(10, 28, (2,), generator=generator).tolist()
            left = int(torch.randint(0, SIDE - width, (), generator=generator))
            top = int(torch.randint(0, SIDE - height, (), generator=generator))
            box = torch.tensor([left, top, left + width, top + height], dtype=torch.float32)
            if boxes and box_iou(box[None], torch.stack(boxes)).max() > 0.1:
                continue
            label = int(torch.randint(1, 3, (), generator=generator))
            y, x = (row + 0.5 - top) / height - 0.5, (column + 0.5 - left) / width - 0.5
            inside = (x.abs() <= 0.5) & (y.abs() <= 0.5) if label == 1 else x.square() + y.square() <= 0.25
            image[:, inside] = torch.rand(3, 1, generator=generator)
            boxes.append(box)
            labels.append(label)
        images.append(image.clamp(0, 1))
        targets.append({"boxes": torch.stack(boxes), "labels": torch.tensor(labels)})
    return images, targets


@torch.no_grad()
def score(model: FCOS, images: list[Tensor], targets: list[dict[str, Tensor]]) -> tuple[float, float]:
    """(mean IoU, share of shapes found)."""
    overlaps = []
    for found, target in zip(model.eval()(images), targets, strict=True):
        best = found["scores"].argsort(descending=True)[: len(target["labels"])]
        same = found["labels"][best] == target["labels"][:, None]
        iou = box_iou(target["boxes"], found["boxes"][best]) * same
        overlaps += [row.max().item() if len(row) else 0.0 for row in iou]
    values = torch.tensor(overlaps)
    return values.mean().item(), (values >= 0.5).float().mean().item()


def train(model: FCOS, seconds: float, generator: torch.Generator, batch: int = 8, lr: float = 1e-3) -> int:
    """Steps of AdamW on images made as it goes, until ``seconds`` are over."""
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=lr)
    started, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - started < seconds:
        loss = sum(model(*shapes(batch, generator)).values(), torch.zeros(()))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        steps += 1
    return steps


def main() -> None:
    torch.manual_seed(0)
    model = detector("vovnet_nano", stem_strides=(2, 1, 2))
    held_out = shapes(100, torch.Generator().manual_seed(1))
    for when in ("before", "after"):
        if when == "after":
            print(f"{train(model, SECONDS, torch.Generator().manual_seed(2))} steps in {SECONDS:.0f} s")
        overlap, found = score(model, *held_out)
        print(f"{when}: mean IoU {overlap:.3f}, found {found:.1%} of the shapes")


if __name__ == "__main__":
    main()

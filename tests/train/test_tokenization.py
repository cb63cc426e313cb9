"""Image tokenization: both stages' losses and what they move; generation that is told the classes."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from zoo.generative import NextScale, WeTok
from zoo.train.tasks import ImageGeneration, ImageTokenization
from zoo.train.tasks.tokenization import patch_lengths


def ready(task: Any) -> Any:
    task.configure_model()
    task.log_dict = task.log = lambda *_, **__: None
    return task


def test_the_first_stage_is_the_error_and_the_side_losses() -> None:
    task, images = ready(ImageTokenization("wetok_nano")), torch.randn(4, 1, 8, 8)
    loss = task.training_step((images, None), 0)
    model = cast(WeTok, task.trained)
    wanted = (model(images) - images).abs().mean() + sum(model.auxiliary_losses.values())
    torch.testing.assert_close(loss, wanted)
    with torch.no_grad():
        task.validation_step((images, None), 0)
        squares = ((model(images) - images) * 0.376).square().flatten(1).mean(1)
    assert task.means["psnr"].compute().item() == pytest.approx((-10 * squares.log10()).mean().item(), rel=1e-5)


def test_the_second_stage_teaches_the_decoder_alone() -> None:
    task, images = ready(ImageTokenization("wetok_nano", generative=True)), torch.randn(4, 1, 8, 8)
    task.training_step((images, None), 0).backward()
    model = cast(WeTok, task.trained)
    assert model.config.generative and all(p.grad is None for p in model.encoder.parameters())
    weight = model.decoder.conv_in.weight
    assert weight.grad is not None and weight.grad[:, 8:].any()  # the noise is heard from now on


def test_the_energy_score_is_least_for_the_law_itself() -> None:
    """Of two values that are equally likely, guessing both is better than their mean, or one of them."""

    def score(draws: torch.Tensor) -> float:
        truth = torch.tensor([0.0, 1.0]).repeat_interleave(4).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        first, second = draws.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), draws.roll(1).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        far = lambda a, b: patch_lengths(a - b, 2)  # noqa: E731
        return ((far(truth, first) + far(truth, second) - far(first, second)) / 2).mean().item()

    both = score(torch.tensor([0.0, 1.0]).repeat(4))
    law = 0.25  # E|x - y| / 2 of independent values
    assert both <= law + 1e-3 < min(score(torch.full((8,), 0.5)), score(torch.zeros(8)))


def test_generation_is_told_the_classes() -> None:
    task = ready(ImageGeneration("next_scale_nano", {"class_drop_rate": 0.0}, conditional=True))
    for parameter in task.trained.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens, classes = torch.randint(16, (3, 2, 21)), torch.tensor([1, 2, 3])
    model = cast(NextScale, task.trained)
    assert task.training_step((tokens, classes), 0) == model(tokens, labels=tokens, classes=classes)
    assert task.training_step((tokens, classes), 0) != model(tokens, labels=tokens)
    with pytest.raises(ValueError, match="leave one of them out"):
        ImageGeneration("axial_nano", random_channel=True, conditional=True)

"""Image tokenization: both stages' losses and what they move; generation that is told the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

import zoo
from zoo.cli import recipe_path
from zoo.generative import NextScale, WeTok, frechet
from zoo.train.command import EvaluationRun, TrainingRun
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
    task = ready(ImageTokenization("wetok_nano", {"pretrained": True}, generative=True))
    images = torch.randn(4, 1, 8, 8)
    task.training_step((images, None), 0).backward()
    model = cast(WeTok, task.trained)
    assert model.config.generative and all(p.grad is None for p in model.encoder.parameters())
    weight = model.decoder.conv_in.weight
    assert weight.grad is not None and weight.grad[:, 8:].any()  # the noise is heard from now on


def test_the_second_stage_begins_with_the_first() -> None:
    first: Any = zoo.create_model("wetok_nano", pretrained=True).eval()
    images = torch.randn(2, 1, 8, 8)
    for arguments in (
        {"model": "wetok_nano_generative", "first_stage": "wetok_nano"},
        {"model": "wetok_nano", "first_stage": "wetok_nano"},
        {"model": "wetok_nano", "model_args": {"pretrained": True}},
        {"model": zoo.create_model("wetok_nano", pretrained=True)},
    ):
        task = ready(ImageTokenization(**arguments, generative=True))  # type: ignore[arg-type]
        model = cast(WeTok, task.trained.eval())
        torch.testing.assert_close(model(images, torch.randn(2, 8, 4, 4)), first(images))
        assert model.config.generative and not any(p.requires_grad for p in model.encoder.parameters())
    with pytest.raises(ValueError, match="begins with the weights of a first one, and wetok_nano has none"):
        ImageTokenization("wetok_nano", generative=True)
    with pytest.raises(ValueError, match="set generative, got 'wetok_nano'"):
        ImageTokenization("wetok_nano", first_stage="wetok_nano")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning")
@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize(("recipe", "options"), [
    ("digits_wetok_nano", ["--model.generative=true", "--model.model_args={pretrained: true}"]),
    ("digits_wetok_nano_generative", []),
])  # fmt: skip
def test_what_the_second_stage_leaves_is_read_again(recipe: str, options: list[str], tmp_path: Path) -> None:
    short = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
             "--trainer.check_val_every_n_epoch=1", "--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=1",
             "--throughput.every_n_steps=1", "--trainer.enable_progress_bar=false"]  # fmt: skip
    run = TrainingRun(recipe_path(recipe), [*options, *short], tmp_path / "run")
    run.fit()
    assert run.scores().keys() == {"val/loss", "val/psnr", "val/frechet"}
    model: Any = zoo.create_model(f"local-dir:{tmp_path / 'run' / 'model'}").eval()
    noise = torch.randn(2, 1, 8, 4, 4)
    tokens = model.encode(torch.randn(1, 1, 8, 8))
    made = [model.decode(tokens, one) for one in noise]
    assert torch.equal(made[0], model.decode(tokens, noise[0])) and not torch.equal(*made)
    first: Any = zoo.create_model("wetok_nano", pretrained=True)
    assert torch.equal(model.encoder.conv_in.weight, first.encoder.conv_in.weight)
    for source in (tmp_path / "run", tmp_path / "run" / "model"):
        scores = EvaluationRun(recipe_path(recipe), [*options, "--trainer.limit_val_batches=1"], source).evaluate("val")
        assert scores["val/frechet"] == pytest.approx(run.scores()["val/frechet"], rel=0.2)  # of another draw


def test_the_distance_of_two_sets_is_that_of_their_gaussians() -> None:
    """Of diagonal covariances it is what the paper's formula comes to pixel by pixel."""
    few = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]]).view(4, 1, 1, 2)  # covariance I
    scale, moved = torch.tensor([2.0, 0.5]), torch.tensor([3.0, 4.0])
    assert frechet(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet(few, few * scale + moved) == pytest.approx(25 + 1.0 + 0.25, rel=1e-6)
    turned = few @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    assert frechet(few, turned) == pytest.approx(0, abs=1e-6)  # the same Gaussian of other points
    assert frechet(torch.zeros(2, 1, 32, 32), torch.ones(2, 1, 32, 32)) == pytest.approx(16 * 16)
    with pytest.raises(ValueError, match=r"of one size, got \(4, 1, 1, 2\) and \(4, 1, 2, 1\)"):
        frechet(few, few.mT)


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

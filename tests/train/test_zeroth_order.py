"""Learning from forward passes alone: the estimate, its subspace, and runs whose model has no gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.adapt import own_names
from zoo.layers.quant import records
from zoo.train.callbacks import LastCheckpoint, RNGState, newest_checkpoint
from zoo.train.data import DigitConceptDataModule
from zoo.train.tasks import ImageDiffusion
from zoo.train.zeroth_order import Subspace, ZerothOrder, _Step, estimate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]


def test_the_estimate_is_its_equation_and_right_in_the_mean():
    e, target = torch.randn(2, 6, dtype=torch.float64)
    values = []

    def loss(x: Tensor) -> Tensor:
        values.append((x - target).square().sum())
        return values[-1]

    found = estimate(loss, e, samples=3, mu=0.1, seed=5, free=4)
    source, total = torch.Generator().manual_seed(5), torch.zeros(6, dtype=torch.float64)
    for value in values[1:]:
        total += (value - values[0]) / 0.1 * torch.randn(6, generator=source, dtype=torch.float64)
    torch.testing.assert_close(found, total / (3 * (6 / 3) ** 0.5))
    assert len(values) == 4
    mean = torch.stack([estimate(loss, e, 2, 1e-6, seed, 6) for seed in range(4000)]).mean(0) * (7 / 2) ** 0.5
    torch.testing.assert_close(mean, 2 * (e - target), rtol=0, atol=0.5)


def test_what_has_not_moved_is_taken_out():
    """A path in a plane of ten dimensions, with noise of one part in a thousand."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(10, 2, dtype=torch.float64, generator=generator)).Q.mT
    noise = 1e-3 * torch.randn(30, 10, dtype=torch.float64, generator=generator)
    path = torch.randn(30, 2, dtype=torch.float64, generator=generator) @ plane + noise
    subspace = Subspace(history=30, nu=1e-3)
    for index, vector in enumerate(path):
        assert subspace.noise is None and len(subspace.past) == index and subspace.free(10) == 10
        subspace.note(vector)
    assert subspace.noise is not None and not subspace.past and subspace.free(10) == 2
    torch.testing.assert_close(subspace.noise @ subspace.noise.mT, torch.eye(8, dtype=torch.float64))
    gradient = torch.randn(10, dtype=torch.float64)
    once = subspace.project(gradient)
    torch.testing.assert_close(subspace.project(once), once)
    scaled = (path - path.mean(0)) / path.std(0, correction=0)
    share = (scaled @ subspace.noise.mT).square().sum() / scaled.square().sum()
    assert share < 1e-3
    everything = Subspace(history=30, nu=0.0)
    for vector in path:
        everything.note(vector)
    assert torch.equal(everything.project(gradient), gradient) and everything.free(10) == 10
    for seed in range(30):  # in float32 shares of the whole may round to more than 1
        everything = Subspace(history=8, nu=0.0)
        for vector in torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)):
            everything.note(vector)
        assert everything.free(8) == 8
    still = Subspace(history=2)
    for _ in range(2):
        still.note(torch.ones(3))
    assert still.project(torch.ones(3)).isfinite().all()


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dit_nano in integers of 8 bits."""
    model = zoo.quantize(zoo.create_model("dit_nano", pretrained=True), bits=8, skip="classes.weight")
    return zoo.save_model(model, tmp_path_factory.mktemp("small") / "dit")


def test_a_row_over_integers_learns_without_gradients_and_a_resumed_run_ends_the_same(
    compressed: Path, trainer, tmp_path: Path
):
    name, adapter = f"local-dir:{compressed}", {"kind": "rows", "rows": [4]}

    def run(folder: str, steps: int) -> tuple[dict[str, Tensor], ZerothOrder, ImageDiffusion]:
        torch.manual_seed(0)
        task = ImageDiffusion(name, {"adapter": adapter}, lr=1e-2, weight_decay=0.0, times=(0.5, 0.9))
        task.schedule_steps = 9
        method, where = ZerothOrder(history=3), tmp_path / folder
        options: dict[str, Any] = {"max_steps": steps, "limit_val_batches": 0, "default_root_dir": where}
        made = trainer(method, RNGState(), LastCheckpoint(1), **options)
        made.fit(task, DigitConceptDataModule(), ckpt_path=newest_checkpoint(where), weights_only=True)
        assert "training_step" not in task.__dict__
        return {key: tensor.clone() for key, tensor in task.trained.state_dict().items()}, method, task

    whole, method, task = run("whole", 7)
    before = zoo.create_model(name, adapter=adapter)
    assert records(before) and own_names(before) == own_names(task.trained)
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, whole[key]) != (key == "classes.rows"), f"{key}: only the row learns"
    assert method.subspace.noise is not None and len(method.subspace.past) == 1
    run("parts", 4)
    resumed, again, _ = run("parts", 7)
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    assert torch.equal(torch.stack(again.subspace.past), torch.stack(method.subspace.past))


def test_no_step_keeps_activations(compressed: Path, trainer, monkeypatch):
    """But for the row's product with the estimate."""
    task = ImageDiffusion(f"local-dir:{compressed}", {"adapter": {"kind": "rows", "rows": [4]}}, schedule_steps=9)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    options = {"max_steps": 1, "limit_val_batches": 0}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer(ZerothOrder(), **options).fit(task, DigitConceptDataModule())
    assert sum(kept) == 96


def test_a_step_that_fails_leaves_the_parameters_where_they_were(monkeypatch):
    task = ImageDiffusion("dit_nano")
    p = torch.nn.Parameter(torch.randn(3, 2))
    seen: list[Tensor] = []

    def failing(batch: Any, batch_idx: int) -> Tensor:
        seen.append(p.detach().clone())
        if len(seen) == 2:
            raise RuntimeError("no memory")
        return p.sum()

    monkeypatch.setattr(task, "training_step", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        _Step(ZerothOrder(mu=0.1), task, [p])(None, 0)
    assert not torch.equal(seen[1], seen[0]) and torch.equal(p, seen[0])


def test_directions_are_not_what_the_task_draws(monkeypatch):
    """From one seed they would be the task's own noise, and the estimate biased."""
    task = ImageDiffusion("dit_nano")
    p = torch.nn.Parameter(torch.zeros(64))
    drawn: list[Tensor] = []
    seen: list[Tensor] = []

    def drawing(batch: Any, batch_idx: int) -> Tensor:
        drawn.append(torch.randn(64))
        seen.append(p.detach().clone())
        return p.sum()

    monkeypatch.setattr(task, "training_step", drawing)
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    _Step(ZerothOrder(samples=1, mu=1.0), task, [p])(None, 0)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.nn.functional.cosine_similarity(seen[1] - seen[0], drawn[0], dim=0).abs() < 0.5


def test_a_concept_is_few_images_of_one_digit_turned():
    from zoo.train.data import DigitsDataModule

    concept, digits = DigitConceptDataModule(7, 3, copies=2), DigitsDataModule(augment=False)
    for data in (concept, digits):
        data.setup()
    images, labels = concept.sources["train"].fetch(torch.arange(6), 0)
    assert len(concept.sources["train"]) == 6 and (labels == 7).all() and torch.equal(images[:3], images[3:])
    plain, classes = digits.sources["train"].fetch(torch.arange(len(digits.sources["train"])), 0)
    assert torch.equal(images[:3], plain[classes == 7][:3].mT)
    with pytest.raises(ValueError, match="digit must be 0 to 9"):
        DigitConceptDataModule(12)


def test_errors(trainer, compressed: Path):
    with pytest.raises(ValueError, match="nu must be in"):
        ZerothOrder(nu=1.0)
    with pytest.raises(ValueError, match="mu must be above 0"):
        ZerothOrder(mu=0.0)
    with pytest.raises(ValueError, match="times must be a part of"):
        ImageDiffusion("dit_nano", times=(0.9, 0.5))
    with pytest.raises(ValueError, match=r"rows must be in \[0, 11\), got \[11\]"):
        zoo.adapt(zoo.create_model("dit_nano"), "rows", rows=(11,))
